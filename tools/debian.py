"""Make a Guest of Debian's packages and boot it: at a terminal for you, otherwise for a visit that proves each device.

A device is proved by a value that only that device could have carried. The Guest's files are in build/debian, and its
packages are fetched once. The exit status is 0 only if all that was possible here was proved; what REQUIRE names (of
net,block,rng,console) must have been possible.
"""

import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from network import Network
from session import Session
from visit import NotProved, end_by_exception, network_if_possible, prove_net, required_devices, stay, verdict, visit

from lguest_nb.debian_guest import DebianGuest, build
from lguest_nb.memory import LguestError
from lguest_nb.meter import Meter

LAUNCHER = Path(sys.executable).with_name("lguest-nb")
DIRECTORY = Path("build/debian")
PROMPT = "guest# "
DEVICES = ("console", "block", "rng", "net")


def command_line(
    guest: DebianGuest,
    network: Network | None,
) -> list[str]:
    "The Launcher as you would type it."
    *options, megabytes, kernel = guest.arguments()
    if network:
        return [str(LAUNCHER), *options, f"--tunnet={network.host}", megabytes, kernel, f"ip={network.guest}"]
    return [str(LAUNCHER), *options, megabytes, kernel]


class Shell(Session):
    "A `Session` whose Guest asks the terminal where the cursor is, as busybox's shell does, and which has our prompt."

    def ask(self, line: str) -> str:
        "Type a line at the prompt and wait for the next prompt."
        start = len(self.seen)
        self.type(line + "\r")
        _, _, answer = self.expect("\n" + PROMPT, start).partition("\n")
        return re.sub(r"\x1b\[6n", "", answer)


def prove_console(session: Session) -> str:
    "The Guest's own arithmetic on two numbers which were only typed comes out."
    first, second = secrets.randbelow(1 << 20), secrets.randbelow(1 << 20)
    answer = session.ask(f"tty; echo $(({first} * {second}))")
    if answer.split() != ["/dev/hvc0", str(first * second)]:
        raise NotProved(f"{first} * {second} should have come from /dev/hvc0, and the Guest said {answer!r}")
    return f"{first} * {second}, typed on /dev/hvc0, came back as {first * second}"


def prove_block(session: Session, guest: DebianGuest) -> str:
    "What the Guest writes into a file on /dev/vda is in the disk file, read here without the Guest."
    number = secrets.token_hex(16)
    answer = session.ask(f"echo {number} >/disk/number; sync; grep vda /proc/mounts")
    if "/dev/vda /disk ext4" not in answer:
        raise NotProved(f"/dev/vda is not on /disk: {answer!r}")
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    debugfs = shutil.which("debugfs", path=path) or "debugfs"
    there = subprocess.run([debugfs, "-R", "cat number", guest.disk], capture_output=True, text=True).stdout.strip()
    if there != number:
        raise NotProved(f"the disk file's own file system has {there!r} in the file number, not {number}")
    return f"{number}, written by the Guest on /dev/vda, is in the file system in {guest.disk}"


def prove_rng(session: Session) -> str:
    "Two reads of /dev/hwrng differ, and its driver is virtio's."
    name = session.ask("cat /sys/class/misc/hw_random/rng_current").strip()
    first, second = (session.ask("head -c 16 /dev/hwrng | hexdump -e '16/1 \"%02x\"'; echo").strip() for _ in range(2))
    if not name.startswith("virtio_rng") or len(first) != 32 or first == second:
        raise NotProved(f"{name!r} gave {first!r} and {second!r}")
    return f"two reads of entropy from {name} differ: {first} and {second}"


def visit_debian(
    guest: DebianGuest,
    network: Network | None,
    shell: Callable[[list[str]], Session] = Shell,  # who types
) -> dict[str, bool]:  # device → was it proved
    "Pay Debian's kernel a visit. Raises `GuestLost`."
    session = shell(command_line(guest, network))
    proofs: dict[str, Callable[[], str]] = {
        "console": lambda: prove_console(session),
        "block": lambda: prove_block(session, guest),
        "rng": lambda: prove_rng(session),
    }
    if network:
        proofs["net"] = lambda: prove_net(session, network, "ping -c {count} {host}")

    def greet() -> None:
        session.ask("dmesg -n 1")  # what the kernel says meanwhile would be in the answers
        print(session.ask("uname -a").strip(), flush=True)

    return visit(session, PROMPT, proofs, greet)


def main() -> int:
    required = required_devices(DEVICES)
    try:
        with Meter(sys.stderr) as meter:
            guest = build(DIRECTORY, tell=meter)
    except LguestError as e:
        print(e, file=sys.stderr)
        return 1
    network = network_if_possible()
    end_by_exception()
    if sys.stdin.isatty():
        return stay(command_line(guest, network), "It takes some seconds; `poweroff` or ^C^C^C leaves.")
    return verdict(lambda: visit_debian(guest, network), required)


if __name__ == "__main__":
    sys.exit(main())
