"""`lguest-nb` with a Guest which is a scene of this file: SCENE names it in the environment. A program, not a test."""

import os
import sys
import threading
from pathlib import Path

from fakes import ScriptedHost

from lguest_nb import cli, entry
from lguest_nb.block import Block
from lguest_nb.console import CONFIG, F_SIZE, Console
from lguest_nb.host import Ending, HostError
from lguest_nb.memory import LguestError
from lguest_nb.net import Net
from lguest_nb.rng import Rng
from lguest_nb.vring import Virtqueue

resized = threading.Event()


def early(text: bytes):
    "The Guest prints before it has a console."

    def step(host: ScriptedHost) -> int:
        host.memory.write(0x5000, text + b"\0")
        return 0x5000

    return step


def drivers(host: ScriptedHost) -> None:
    "Every driver says DRIVER_OK, and the one whose device is BROKEN makes a chain available there, and kicks."
    for place in host.bus.places:
        host.memory.u8[place.status] = 7
        host.bus.notify(place.address)
        for service, vq in zip(place.device.services, place.device.queues, strict=True):
            if service.__name__ == boom.__name__:
                host.memory.u16[vq.avail + 1] = 1
                host.kick(vq.ring.desc)


def until_stopped(host: ScriptedHost) -> None:
    host.stopped.wait()


def tells_its_size(host: ScriptedHost) -> int:
    "The Guest's driver has taken SIZE, and prints what it is told."
    console = host.bus.places[-1].device
    resized.clear()
    console.accepted, console.config_changed = F_SIZE, resized.set
    cols, rows, *_ = CONFIG.unpack(console.modern_config)
    return early(b"%d columns, %d rows\n" % (cols, rows))(host)


def until_resized(host: ScriptedHost) -> None:
    resized.wait()


def twice_then_off(host: ScriptedHost) -> Ending | None:
    "A Guest which reboots as often as there are lines missing in the file REBOOTS."
    times = Path(os.environ["REBOOTS"])
    lines = times.read_text().splitlines()
    times.write_text("\n".join([*lines, f"{os.getpid()} {len(os.listdir('/proc/self/fd'))}"]))
    return Ending("restart") if len(lines) < 2 else None


def refuse(host: ScriptedHost) -> None:
    raise HostError("The Host cannot go on.")


def defect(host: ScriptedHost) -> None:
    raise ZeroDivisionError("division by zero")


def sigkill(host: ScriptedHost) -> None:
    os.kill(os.getpid(), 9)


def sleeper(host: ScriptedHost) -> None:
    "A CPU which nobody can stop."
    threading.Event().wait()


SCENES = {
    "power-off": [early(b"hello\n")],
    "panic": [lambda host: Ending("died", "CRASH: \x1b[2Jno init\x07")],
    "reboot": [twice_then_off],
    "drivers": [drivers, until_stopped],
    "size": [tells_its_size, until_resized, tells_its_size],
    "wait": [early(b"ready\n"), until_stopped],
    "deaf": [early(b"ready\n"), sleeper],
    "refuse": [refuse],
    "defect": [defect],
    "sigkill": [early(b"ready\n"), sigkill],
}
SERVICES = {
    "blk_request": Block,
    "net_input": Net,
    "net_output": Net,
    "rng_input": Rng,
    "input": Console,
    "output": Console,
}


def boom(name: str):
    "A service function which raises what RAISES asks for."

    def service(self: object, vq: Virtqueue) -> None:
        chain = vq.wait()
        error = LguestError if os.environ.get("RAISES") == "sentence" else RuntimeError
        raise error(f"{name} of head {chain.head} went wrong")

    service.__name__ = boom.__name__
    return service


def make_device(kind: str, value: str):
    "The command's, but without a tap."
    return Net(os.open("/dev/null", os.O_RDWR)) if kind == "tunnet" else make_real_device(kind, value)


if __name__ == "__main__":
    make_real_device, cli.make_device = cli.make_device, make_device
    cli.make_host = lambda *_: ScriptedHost(*SCENES[os.environ["SCENE"]])
    if broken := os.environ.get("BROKEN"):
        setattr(SERVICES[broken], broken, boom(broken))
    sys.exit(entry.main())
