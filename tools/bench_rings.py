"""One ring, one load, several servers: how many requests a second, and what each costs the side which serves them.

The load is tools/ringload.c on a processor of its own: a fixed number of requests in flight, every answer checked.
The other side, on the other processor, is our own device as it ships, on a Host without a CPU; or qemu-storage-daemon,
which serves the very same ring by vhost-user. They take turns in one run, since a machine is never equally fast twice;
what counts is the ratio within a turn.

Nobody else serves our network's ring. It is compared with the same packets sent by a bare loop, without a ring.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from progress import steps
from storage_daemon import StorageDaemon

from lguest_nb.block import Block
from lguest_nb.device import Device
from lguest_nb.memory import GuestMemory
from lguest_nb.net import Net
from lguest_nb.threads import reset_device, start_device
from lguest_nb.vring import VIRTQUEUE_NUM, Virtqueue, ring_at
from lguest_nb.wakeup import Doorbell

BLOCKS, BLOCK = 16384, 4096  # of the disk: 64 MB, which stays in the page cache
MEMORY = 64 << 20
HEADER_AND_PING = [bytes(10), bytes(98)]
DEPTHS = (1, 32)
GOAL, HIGHER_GOAL = 1.5, 2.0  # times qemu-storage-daemon as it comes, at depth 32
OURS, PEER, IO_URING, BARE = "lguest-nb", "qemu-storage-daemon", "... with io_uring", "writev in a loop, no ring"


@dataclass(frozen=True)
class Figure:
    "What one turn gave."

    rate: float  # requests a second
    cpu: float  # microseconds of the serving side for each
    kicks: float  # for each request
    interrupts: float  # for each request


class NoCpu:
    "A Host whose Guest is another process: kicks come from there, by the eventfd itself."

    def attach_eventfd(self, address: int, fd: int, value: int | None = None) -> None:
        pass

    def detach_eventfd(self, address: int, value: int | None = None) -> None:
        pass


def compile_load(
    folder: Path,  # where the program goes
) -> Path:
    source = Path(__file__).with_name("ringload.c")
    program = folder / "ringload"
    subprocess.run(["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", program, source], check=True)
    return program


def processors() -> tuple[int, int]:  # for the serving side, for the load
    "Two which we may use; the same one twice if there is only one."
    mine = sorted(os.sched_getaffinity(0))
    return mine[0], mine[-1]


class Bench:
    "A disk, a load, and the two processors they run on."

    def __init__(self, folder: Path, seconds: float) -> None:
        self.seconds, self.load, self.disk = seconds, compile_load(folder), folder / "disk"
        with open(self.disk, "wb") as file:
            for block in range(BLOCKS):
                file.write(block.to_bytes(8, "little").ljust(BLOCK, b"\0"))
        self.serving, self.loading = processors()

    def run_load(
        self,
        what: str,  # read, write, send
        depth: int,  # requests in flight
        memory: GuestMemory,
        ring: int,  # Guest-physical address
        kick: int,  # eventfd
        call: int,  # eventfd
        clock: Callable[[], float],  # seconds of processor time of the serving side
    ) -> Figure:
        "Raises `SystemExit` if an answer is wrong."
        numbers = [memory.fd, hex(ring), kick, call, what, depth, self.seconds, BLOCKS]
        command = ["taskset", "-c", str(self.loading), str(self.load), *map(str, numbers)]
        before = clock()
        done = subprocess.run(command, pass_fds=(memory.fd, kick, call), stdout=subprocess.PIPE, text=True)
        cpu = clock() - before
        if done.returncode:
            sys.exit(f"The load on the {what} ring came to no good end (status {done.returncode}).")
        count, seconds, kicks, interrupts, wrong = map(float, done.stdout.split())
        if wrong:
            sys.exit(f"{wrong:.0f} of {count:.0f} answers on the {what} ring were wrong.")
        return Figure(count / seconds, cpu / count * 1e6, kicks / count, interrupts / count)

    def ours(self, what: str, depth: int) -> Figure:
        "Our device, its thread alone on its processor."
        memory, call = GuestMemory(MEMORY), os.eventfd(0)
        device: Device = Net(os.open(os.devnull, os.O_RDWR)) if what == "send" else Block(self.disk)
        for i in range(len(device.services)):
            device.queues.append(Virtqueue(memory, VIRTQUEUE_NUM, f"{device.name}:{i}"))
        vq = device.queues[-1]
        vq.place(ring_at(memory.take_pages(3), VIRTQUEUE_NUM))
        vq.doorbell = Doorbell(vq.ring.desc)
        vq.interrupt = lambda: os.eventfd_write(call, 1)
        failures: list[BaseException] = []
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {self.serving})
        try:
            start_device(device, NoCpu(), failures.append)  # type: ignore[arg-type]
            assert vq.thread is not None and vq.thread.ident is not None
            clock = time.pthread_getcpuclockid(vq.thread.ident)
            spent = lambda: time.clock_gettime(clock)  # noqa: E731
            return self.run_load(what, depth, memory, vq.ring.desc, vq.wakeup.kicks, call, spent)
        finally:
            os.sched_setaffinity(0, before)
            reset_device(device, NoCpu())  # type: ignore[arg-type]
            device.close()
            for each in device.queues:
                each.wakeup.close()
            memory.close()
            os.close(call)
            if failures:
                raise failures[0]

    def storage_daemon(self, what: str, depth: int, aio: str) -> Figure:
        "The other one."
        memory, kick, call = GuestMemory(MEMORY), os.eventfd(0), os.eventfd(0)
        ring = ring_at(memory.take_pages(3), VIRTQUEUE_NUM)
        try:
            with StorageDaemon(str(self.disk), aio, self.serving) as daemon:
                daemon.front_end.hand_over(memory, ring, kick, call)
                return self.run_load(what, depth, memory, ring.desc, kick, call, daemon.processor_time)
        finally:
            os.close(kick)
            os.close(call)
            memory.close()

    def bare_loop(self) -> Figure:
        "The packets of the network's ring without a ring: what Python's system calls alone allow."
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {self.serving})
        null = os.open(os.devnull, os.O_RDWR)
        count, started, spent = 0, time.monotonic(), time.thread_time()
        while time.monotonic() - started < self.seconds:
            for _ in range(1000):
                os.writev(null, HEADER_AND_PING)
            count += 1000
        seconds, cpu = time.monotonic() - started, time.thread_time() - spent
        os.close(null)
        os.sched_setaffinity(0, before)
        return Figure(count / seconds, cpu / count * 1e6, 0, 0)


def table(
    title: str,
    figures: dict[str, list[Figure]],  # by who served, in the order of the turns
    base: str,  # whose rate is one
) -> float:  # our ratio
    "Print medians, spread and ratios; the ratio is the median of the turns' own."
    print(f"\n{title}")
    print(f"  {'':<26}{'requests/s':>11} {'(least … most)':>21}{'ratio':>7}{'CPU us':>8}{'kicks':>7}{'irqs':>6}")
    ratios = {}
    for who, turns in figures.items():
        rates = [turn.rate for turn in turns]
        ratios[who] = statistics.median(
            turn.rate / other.rate for turn, other in zip(turns, figures[base], strict=True)
        )
        typical = (statistics.median(getattr(t, what) for t in turns) for what in ("cpu", "kicks", "interrupts"))
        cpu, kicks, irqs = typical
        spread = f"({min(rates):,.0f} … {max(rates):,.0f})"
        print(
            f"  {who:<26}{statistics.median(rates):>11,.0f} {spread:>21}{ratios[who]:>7.2f}{cpu:>8.2f}"
            f"{kicks:>7.2f}{irqs:>6.2f}"
        )
    return ratios[OURS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.5, help="of load, for each figure")
    arguments = parser.parse_args()
    sys.setswitchinterval(50e-6)  # as the command does
    have_peer = shutil.which("qemu-storage-daemon") is not None
    if not have_peer:
        print("There is no qemu-storage-daemon here (Debian: qemu-system-common), and so nobody to compare with.")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), arguments.seconds)
        servers: dict[str, Callable[[str, int], Figure]] = {OURS: bench.ours}
        if have_peer:
            servers[PEER] = lambda what, depth: bench.storage_daemon(what, depth, "threads")
            servers[IO_URING] = lambda what, depth: bench.storage_daemon(what, depth, "io_uring")
        rings = [(what, depth) for what in ("read", "write") for depth in DEPTHS]
        figures: dict[tuple[str, int], dict[str, list[Figure]]] = {}
        for _ in steps("Rings", range(arguments.turns), lambda turn: ", ".join(servers)):
            for what, depth in rings:
                for who, serve in servers.items():
                    figures.setdefault((what, depth), {}).setdefault(who, []).append(serve(what, depth))
            for depth in DEPTHS:
                row = figures.setdefault(("send", depth), {})
                row.setdefault(OURS, []).append(bench.ours("send", depth))
                row.setdefault(BARE, []).append(bench.bare_loop())
    print(f"{arguments.turns} turns of {arguments.seconds:g} s, each side on its processor; every answer is checked.")
    for (what, depth), row in figures.items():
        names = {"read": "block: reads of 4 KiB", "write": "block: writes of 4 KiB", "send": "net: packets of 98 bytes"}
        ratio = table(f"{names[what]}, {depth} in flight", row, PEER if PEER in row else list(row)[-1])
        if (what, depth) == ("read", 32) and have_peer:
            verdict = "met" if ratio >= GOAL else "NOT MET"
            print(f"  to reach: {GOAL} times {PEER}: {verdict} ({ratio:.2f}); {HIGHER_GOAL} is the goal")


if __name__ == "__main__":
    main()
