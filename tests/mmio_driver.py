"""A driver for virtio-mmio, one register at a time, as drivers/virtio/virtio_mmio.c has it. The test is the Guest."""

import os
import threading

from fakes import FakeHost

from lguest_nb.bus import mmio
from lguest_nb.bus.life import CONFIG_CHANGE, USED_BUFFER
from lguest_nb.bus.mmio import MmioBus
from lguest_nb.device import F_RING_EVENT_IDX, F_VERSION_1
from lguest_nb.driver import Driver, Used
from lguest_nb.memory import GuestMemory
from lguest_nb.vring import RingLayout, full_barrier, passed

DRIVER, FEATURES_OK, RUNNING, BROKEN = 3, 11, 15, 15 | 0x40  # what the status register says
ROOM = 0x3000  # bytes of memory which a queue takes below
BUFFERS = 0x4000  # bytes of memory for the requests of a queue


class EventDriver(Driver):
    "Kicks and wants interrupts by place, virtio 1.2 §2.7.7 and §2.7.10: for every buffer the next one."

    kicked = 0  # the available index at the last kick

    def kick(self) -> bool:
        full_barrier()
        idx = self.memory.u16[self.vq.avail + 1]
        wanted = passed(self.memory.u16[self.vq.avail_event], idx, (idx - self.kicked) & 0xFFFF)
        self.kicked = idx
        if wanted:
            os.eventfd_write(self.vq.wakeup.kicks, 1)
        return wanted

    def used(self) -> list[Used]:
        done = super().used()
        while True:
            self.memory.u16[self.vq.used_event] = self.seen
            full_barrier()
            if not (more := super().used()):
                return done
            done += more


class MmioDriver:
    "Drives the device in one slot. `add` of `drivers[i]` fills queue i, `kick` writes QueueNotify."

    def __init__(self, bus: MmioBus, host: FakeHost, slot: int = 0) -> None:
        self.bus, self.host, self.memory = bus, host, bus.memory
        self.address, irq = mmio.SLOT_BASE + mmio.SLOT_STRIDE * slot, mmio.SLOT_LINES[slot]
        self.device = bus.slots[slot].device
        self.at = 0x4000 + 0x60000 * slot  # where this driver keeps its rings and buffers
        self.drivers: list[Driver] = []
        self.changes = threading.Semaphore(0)  # of the configuration, as the Guest hears of them
        self.reasons: list[int] = []  # of all interrupts
        host.heard[irq] = self.interrupted

    def read(self, register: int, size: int = 4) -> int:
        return self.bus.read("memory", self.address + register, size)

    def write(self, register: int, value: int, size: int = 4) -> None:
        self.bus.write("memory", self.address + register, size, value)

    @property
    def status(self) -> int:
        return self.read(mmio.STATUS)

    @status.setter
    def status(self, value: int) -> None:
        self.write(mmio.STATUS, value)

    def interrupted(self) -> None:
        "`vm_interrupt`."
        reasons = self.read(mmio.INTERRUPT_STATUS)
        self.write(mmio.INTERRUPT_ACK, reasons)
        self.reasons.append(reasons)
        if reasons & CONFIG_CHANGE:
            self.changes.release()
        if reasons & USED_BUFFER:
            for driver in self.drivers:
                driver.interrupts.release()

    def offered(self) -> int:
        features = 0
        for half in range(2):
            self.write(mmio.DEVICE_FEATURES_SEL, half)
            features |= self.read(mmio.DEVICE_FEATURES) << 32 * half
        return features

    def choose(self, features: int) -> None:
        for half in range(2):
            self.write(mmio.DRIVER_FEATURES_SEL, half)
            self.write(mmio.DRIVER_FEATURES, features >> 32 * half & 0xFFFFFFFF)

    def negotiate(self, features: int = F_VERSION_1) -> int:  # the status then
        "From reset to FEATURES_OK."
        for status in (0, 1, DRIVER):
            self.status = status
        self.choose(features)
        self.status = FEATURES_OK
        return self.status

    def layout(self, queue: int) -> RingLayout:
        "Where this driver puts a ring: not in one piece and not in order."
        at = self.at + ROOM * queue
        return RingLayout(at + 0x2000, at + 0x1002, at + 4)

    def set_up(self, queue: int, num: int, ring: RingLayout) -> bool:  # is it ready?
        "`vm_setup_vq`."
        self.write(mmio.QUEUE_SEL, queue)
        self.write(mmio.QUEUE_NUM, num)
        for register, address in zip((mmio.QUEUE_DESC, mmio.QUEUE_DRIVER, mmio.QUEUE_DEVICE), ring, strict=True):
            self.write(register, address & 0xFFFFFFFF)
            self.write(register + 4, address >> 32)
        self.write(mmio.QUEUE_READY, 1)
        return self.read(mmio.QUEUE_READY) == 1

    def place(self, num: int = 8) -> None:
        "Rings for all queues, full of zeroes, and a driver for each."
        self.drivers = []
        kind = EventDriver if self.device.accepted & F_RING_EVENT_IDX else Driver
        for queue, vq in enumerate(self.device.queues):
            self.memory.write(self.at + ROOM * queue, bytes(ROOM))
            assert self.set_up(queue, num, self.layout(queue))
            by_the_bus = vq.interrupt
            buffers = self.at + ROOM * len(self.device.queues) + BUFFERS * queue
            self.drivers.append(kind(vq, buffers, BUFFERS))
            vq.interrupt = by_the_bus

    def start(self, features: int = F_VERSION_1, num: int = 8) -> None:
        "From reset to DRIVER_OK."
        assert self.negotiate(features) == FEATURES_OK
        self.place(num)
        self.status = RUNNING

    def kick(self, queue: int) -> bool:  # did an eventfd claim it?
        "Write QueueNotify: the Host has an eventfd for that value, or the bus hears of it."
        if self.host.kick(self.address + mmio.QUEUE_NOTIFY, queue):
            return True
        self.write(mmio.QUEUE_NOTIFY, queue)
        return False

    def ask(self, queue: int, out: tuple[bytes, ...] = (), into: tuple[int, ...] = (), **how: bool) -> Used:
        "One request, and its answer."
        driver = self.drivers[queue]
        driver.add(out, into, **how)
        driver.kick()
        return driver.wait_used()[0]


def new_bus(memory: GuestMemory) -> tuple[MmioBus, FakeHost, list[BaseException]]:
    "A bus on a Host without a CPU, and what its devices failed with."
    failures: list[BaseException] = []
    bus, host = MmioBus(memory, failures.append), FakeHost()
    bus.host = host  # type: ignore[assignment]
    return bus, host, failures
