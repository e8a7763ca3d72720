"""Hosts without a CPU: the test is the Guest. No pytest here, since programs which tests start use them too."""

import os
import threading
from collections.abc import Callable, Sequence

from lguest_nb.driver import Driver
from lguest_nb.host import BootState, Bus, Ending, shutdown_ending
from lguest_nb.memory import GuestMemory
from lguest_nb.vring import Virtqueue


class FakeHost:
    "A Host without a CPU, which writes down what it is told. The test is the Guest."

    def __init__(self) -> None:
        self.eventfds: dict[tuple[int, int | None], int] = {}
        self.calls: list[tuple[object, ...]] = []  # attach and detach, in order
        self.interrupts: list[int] = []
        self.heard: dict[int, Callable[[], object]] = {}  # what an interrupt does to the Guest
        self.written: list[tuple[int, int]] = []
        self.stopped = threading.Event()
        self.closed = 0

    def start(self, memory: GuestMemory, boot: BootState, bus: Bus) -> None:
        self.memory, self.boot, self.bus = memory, boot, bus

    def attach_eventfd(self, address: int, fd: int, value: int | None = None) -> None:
        self.calls.append(("attach", address, value))
        self.eventfds[address, value] = fd

    def detach_eventfd(self, address: int, value: int | None = None) -> None:
        self.calls.append(("detach", address, value))
        self.eventfds.pop((address, value), None)

    def interrupt(self, irq: int) -> None:
        self.interrupts.append(irq)
        self.heard.get(irq, bool)()

    def fence(self) -> None:
        pass

    def wrote(self, ranges: Sequence[tuple[int, int]]) -> None:
        self.written += ranges

    def kick(self, address: int, value: int | None = None) -> bool:
        "The Guest pokes `address`: did an eventfd claim it?"
        fd = self.eventfds.get((address, value))
        if fd is not None:
            os.eventfd_write(fd, 1)
        return fd is not None

    def run(self) -> Ending:
        return shutdown_ending("Power down")

    def stop(self) -> None:
        self.stopped.set()

    def report(self) -> str:
        return f"{len(self.interrupts)} interrupts"

    def close(self) -> None:
        self.closed += 1


Step = Callable[["ScriptedHost"], int | Ending | None]


class ScriptedHost(FakeHost):
    "A Host whose Guest is a list of functions: each returns an address to poke, an ending, or nothing."

    def __init__(self, *script: Step) -> None:
        super().__init__()
        self.script = list(script)

    def run(self) -> Ending:
        for step in self.script:
            if self.stopped.is_set():
                return Ending("stopped")
            outcome = step(self)
            if isinstance(outcome, Ending):
                return outcome
            if outcome is not None and not self.kick(outcome):
                self.bus.notify(outcome)
        return shutdown_ending("Power down")


def connect(
    host: FakeHost,
    vq: Virtqueue,
    irq: int,  # which the bus gave this queue
    buffers: int,  # Guest-physical address of memory for the driver
    size: int = 0x4000,
) -> Driver:
    "The Guest's driver of a queue on a bus: interrupts come to it by way of `host`."
    by_the_bus = vq.interrupt
    driver = Driver(vq, buffers, size)
    vq.interrupt = by_the_bus
    host.heard[irq] = driver.interrupts.release
    return driver
