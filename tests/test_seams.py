"""Device, Virtqueue and service threads carry another bus than that of 2009: the console on a bare virtio-mmio.

Two queues on one QueueNotify register, rings where the driver wants them, and a broken ring which breaks its device
only. The device is the one which the rest of the package uses.
"""

import os
import threading
from collections.abc import Iterator

import bare_mmio as mmio
import pytest
from bare_mmio import BareMmioBus
from fakes import FakeHost, connect
from support import PATIENCE, ask_c, close, lguest_threads, naps

from lguest_nb.console import Console
from lguest_nb.driver import Driver
from lguest_nb.memory import GuestMemory
from lguest_nb.vring import BrokenRing, RingLayout

pytestmark = pytest.mark.usefixtures("nothing_left")
BASE, IRQ = 0xD0000000, 5
READY = 1 | 2 | mmio.STATUS_FEATURES_OK
# Not in one piece, not in order, and of different sizes.
RINGS = [(8, RingLayout(0x30000, 0x20002, 0x10004)), (64, RingLayout(0xFF000, 0x8000, 0x9000))]


class Machine:
    "A console on the bus, pipes for its terminal, and the registers as a driver sees them."

    def __init__(self) -> None:
        self.memory, self.host = GuestMemory(1 << 20), FakeHost()
        self.keys, self.typed = os.pipe()
        self.screen, self.shown = os.pipe()
        self.console = Console(self.keys, self.shown)
        self.bus = BareMmioBus(self.memory, self.host, self.console, BASE, IRQ)
        self.changed = threading.Semaphore(0)
        self.drivers: list[Driver] = []
        self.host.heard[IRQ] = self._interrupted

    def _interrupted(self) -> None:
        "The Guest's interrupt handler."
        why = self.bus.read(mmio.INTERRUPT_STATUS)
        self.bus.write(mmio.INTERRUPT_ACK, why)
        if why & mmio.USED_BUFFER:
            for driver in self.drivers:
                driver.interrupts.release()
        if why & mmio.CONFIG_CHANGE:
            self.changed.release()

    def set_up(self, i: int, num: int, ring: RingLayout) -> None:
        "What `vm_setup_vq` in drivers/virtio/virtio_mmio.c does."
        self.bus.write(mmio.QUEUE_SEL, i)
        assert self.bus.read(mmio.QUEUE_READY) == 0
        assert num <= self.bus.read(mmio.QUEUE_NUM_MAX)
        self.bus.write(mmio.QUEUE_NUM, num)
        registers = (mmio.QUEUE_DESC, mmio.QUEUE_DRIVER, mmio.QUEUE_DEVICE)
        for register, address in zip(registers, ring, strict=True):
            self.bus.write(register, address & 0xFFFFFFFF)
            self.bus.write(register + 4, address >> 32)
        self.bus.write(mmio.QUEUE_READY, 1)

    def accept(self, features: int) -> None:
        for half in range(2):
            self.bus.write(mmio.DRIVER_FEATURES_SEL, half)
            self.bus.write(mmio.DRIVER_FEATURES, features >> 32 * half & 0xFFFFFFFF)

    def bring_up(self, features: int = mmio.F_VERSION_1, driver_ok: bool = True) -> None:
        "A driver, from reset to DRIVER_OK, with rings which are zero."
        self.bus.write(mmio.STATUS, 0)
        self.bus.write(mmio.STATUS, 1)
        self.bus.write(mmio.STATUS, 3)
        self.accept(features)
        self.bus.write(mmio.STATUS, READY)
        assert self.bus.read(mmio.STATUS) == READY
        for i, (num, ring) in enumerate(RINGS):
            for part in ring:
                self.memory.u8[part : part + 1024] = bytes(1024)
            self.set_up(i, num, ring)
        queues = self.console.queues
        self.drivers = [connect(self.host, vq, IRQ, 0x50000 + 0x10000 * i) for i, vq in enumerate(queues)]
        self.host.heard[IRQ] = self._interrupted
        if driver_ok:
            self.bus.write(mmio.STATUS, READY | 4)

    def kick(self, i: int) -> bool:
        "The driver writes QueueNotify: the Host has an eventfd for that value, or the bus hears of it."
        if self.host.kick(BASE + mmio.QUEUE_NOTIFY, i):
            return True
        self.bus.write(mmio.QUEUE_NOTIFY, i)
        return False

    def print(self, text: bytes, indirect: bool = False) -> bytes:
        "Through the Guest's console: what comes out."
        self.drivers[1].add(out=[text], indirect=indirect)
        self.kick(1)
        self.drivers[1].wait_used()
        return os.read(self.screen, 99)

    def receive(self, text: bytes) -> bytes:
        "Through the keyboard: what the Guest gets."
        self.drivers[0].add(into=[64])
        self.kick(0)
        os.write(self.typed, text)
        return self.drivers[0].wait_used()[0].data


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine()
    yield machine
    machine.bus.close()
    for fd in (machine.keys, machine.typed, machine.screen, machine.shown):
        os.close(fd)
    close(machine.memory)


def test_the_registers_are_those_of_linux() -> None:
    names = {
        "MAGIC_VALUE": mmio.MAGIC,
        "VERSION": mmio.VERSION,
        "DEVICE_ID": mmio.DEVICE_ID,
        "DEVICE_FEATURES": mmio.DEVICE_FEATURES,
        "DEVICE_FEATURES_SEL": mmio.DEVICE_FEATURES_SEL,
        "DRIVER_FEATURES": mmio.DRIVER_FEATURES,
        "DRIVER_FEATURES_SEL": mmio.DRIVER_FEATURES_SEL,
        "QUEUE_SEL": mmio.QUEUE_SEL,
        "QUEUE_NUM_MAX": mmio.QUEUE_NUM_MAX,
        "QUEUE_NUM": mmio.QUEUE_NUM,
        "QUEUE_READY": mmio.QUEUE_READY,
        "QUEUE_NOTIFY": mmio.QUEUE_NOTIFY,
        "INTERRUPT_STATUS": mmio.INTERRUPT_STATUS,
        "INTERRUPT_ACK": mmio.INTERRUPT_ACK,
        "STATUS": mmio.STATUS,
        "QUEUE_DESC_LOW": mmio.QUEUE_DESC,
        "QUEUE_AVAIL_LOW": mmio.QUEUE_DRIVER,
        "QUEUE_USED_LOW": mmio.QUEUE_DEVICE,
        "INT_VRING": mmio.USED_BUFFER,
        "INT_CONFIG": mmio.CONFIG_CHANGE,
    }
    told = ask_c(("linux/virtio_mmio.h",), tuple(f"VIRTIO_MMIO_{name}" for name in names))
    assert list(told.values()) == list(names.values())


def test_a_driver_finds_the_same_console(machine: Machine) -> None:
    assert [machine.bus.read(r) for r in (mmio.MAGIC, mmio.VERSION, mmio.DEVICE_ID)] == [0x74726976, 2, 3]
    machine.bus.write(mmio.DEVICE_FEATURES_SEL, 1)
    assert machine.bus.read(mmio.DEVICE_FEATURES) == 1
    machine.bus.write(mmio.QUEUE_SEL, 2)
    assert machine.bus.read(mmio.QUEUE_NUM_MAX) == 0


def test_both_queues_work_through_one_notify_register(machine: Machine) -> None:
    machine.bring_up()
    kicks = [vq.wakeup.kicks for vq in machine.console.queues]
    notify = BASE + mmio.QUEUE_NOTIFY
    assert machine.host.eventfds == {(notify, 0): kicks[0], (notify, 1): kicks[1]}
    assert machine.print(b"login: ") == b"login: "
    assert machine.receive(b"root\r") == b"root\r"
    assert set(machine.host.interrupts) == {IRQ}


def test_a_value_wakes_its_queue_and_no_other(machine: Machine) -> None:
    asleep = [naps(vq) for vq in machine.console.queues]
    machine.bring_up()
    for each in asleep:
        assert each.acquire(timeout=PATIENCE)
    assert machine.kick(1)
    assert asleep[1].acquire(timeout=PATIENCE)
    assert not asleep[0].acquire(blocking=False)


def test_rings_are_where_the_driver_put_them_and_as_long_as_it_said(machine: Machine) -> None:
    machine.bring_up()
    assert [(vq.num, vq.ring) for vq in machine.console.queues] == RINGS
    for count in range(20):  # more than the first ring has entries
        assert machine.receive(b"%d" % count) == b"%d" % count
    assert machine.memory.u16[(RINGS[0][1].used + 2) // 2] == 20


def test_an_early_kick_starts_nothing_and_its_buffer_is_served_after_driver_ok(machine: Machine) -> None:
    machine.bring_up(driver_ok=False)
    machine.drivers[1].add(out=[b"early"])
    assert not machine.kick(1)
    assert not machine.console.running
    assert lguest_threads() == []
    machine.bus.write(mmio.STATUS, READY | 4)
    machine.drivers[1].wait_used()
    assert os.read(machine.screen, 99) == b"early"


def test_set_up_is_latched_when_the_device_starts(machine: Machine) -> None:
    machine.bring_up()
    machine.bus.write(mmio.QUEUE_SEL, 1)
    machine.bus.write(mmio.QUEUE_NUM, 2)
    machine.bus.write(mmio.QUEUE_DESC, 0x70000)
    machine.bus.write(mmio.QUEUE_READY, 1)
    machine.accept(0)
    assert machine.print(b"as before") == b"as before"
    assert (machine.console.queues[1].num, machine.console.queues[1].ring) == RINGS[1]


def test_features_decide_about_indirect_tables_and_silence(machine: Machine) -> None:
    machine.bring_up(mmio.F_VERSION_1 | mmio.F_RING_INDIRECT_DESC)
    assert machine.print(b"by table", indirect=True) == b"by table"
    assert [vq.notify_on_empty for vq in machine.console.queues] == [False, False]
    machine.bring_up(mmio.F_VERSION_1)
    machine.drivers[1].add(out=[b"by table"], indirect=True)
    machine.kick(1)
    assert machine.changed.acquire(timeout=PATIENCE)
    assert "not negotiated" in str(machine.bus.failures[0])


def test_features_nobody_offered_or_without_version_1_are_refused(machine: Machine) -> None:
    for features in (0, mmio.F_VERSION_1 | 1 << 7):
        machine.bus.write(mmio.STATUS, 0)
        machine.accept(features)
        machine.bus.write(mmio.STATUS, READY)
        assert not machine.bus.read(mmio.STATUS) & mmio.STATUS_FEATURES_OK


def test_a_reset_joins_the_threads_and_touches_no_ring_any_more(machine: Machine) -> None:
    machine.bring_up()
    machine.print(b"hello")
    machine.bus.write(mmio.STATUS, 0)
    assert lguest_threads() == []
    assert machine.host.eventfds == {}
    assert machine.bus.read(mmio.STATUS) == 0
    for _, ring in RINGS:
        for part in ring:
            machine.memory.u8[part : part + 1024] = bytes([0xEE]) * 1024
    for i in range(2):
        assert not machine.kick(i)
    for _, ring in RINGS:
        for part in ring:
            assert machine.memory.read(part, 1024) == bytes([0xEE]) * 1024


def test_it_can_be_brought_up_again_and_again(machine: Machine) -> None:
    for count in range(20):
        machine.bring_up()
        assert machine.print(b"life %d" % count) == b"life %d" % count
        assert machine.receive(b"key") == b"key"
    assert machine.bus.failures == []


@pytest.mark.parametrize("queue", [0, 1])
def test_a_broken_ring_breaks_its_device_only_and_a_reset_revives_it(machine: Machine, queue: int) -> None:
    machine.bring_up()
    machine.drivers[queue].make_available(0xFFFF)
    machine.kick(queue)
    assert machine.changed.acquire(timeout=PATIENCE)
    assert machine.bus.read(mmio.STATUS) == READY | 4 | mmio.STATUS_NEEDS_RESET
    assert [type(error) for error in machine.bus.failures] == [BrokenRing]
    assert not machine.host.stopped.is_set()
    used = [machine.memory.u16[vq.used + 1] for vq in machine.console.queues]
    for i in range(2):
        machine.drivers[i].make_available(0)
        machine.kick(i)  # and nobody serves it
    machine.bus.write(mmio.STATUS, 0)
    assert [machine.memory.u16[vq.used + 1] for vq in machine.console.queues] == used
    assert lguest_threads() == []
    machine.bring_up()
    assert machine.print(b"alive") == b"alive"
    assert machine.receive(b"and well") == b"and well"


def test_two_broken_rings_at_once_are_reset_as_one(machine: Machine) -> None:
    for _ in range(20):
        machine.bring_up()
        for i in range(2):
            machine.drivers[i].make_available(0xFFFF)
        for i in range(2):
            machine.kick(i)
        assert machine.changed.acquire(timeout=PATIENCE)
        machine.bus.write(mmio.STATUS, 0)
        assert lguest_threads() == []
        while machine.changed.acquire(blocking=False):
            pass


def test_a_ring_which_cannot_be_is_not_ready_and_is_not_served(machine: Machine) -> None:
    machine.bus.write(mmio.STATUS, READY & ~mmio.STATUS_FEATURES_OK)
    machine.accept(mmio.F_VERSION_1)
    machine.bus.write(mmio.STATUS, READY)
    machine.set_up(0, 8, RingLayout(0x30000, 0x20002, 0x10002))
    assert machine.bus.read(mmio.QUEUE_READY) == 0
    machine.set_up(1, *RINGS[1])
    machine.bus.write(mmio.STATUS, READY | 4)
    assert lguest_threads() == ["lguest console:1"]
    machine.drivers = [connect(machine.host, machine.console.queues[1], IRQ, 0x50000)] * 2
    machine.host.heard[IRQ] = machine._interrupted
    assert machine.print(b"one queue will do") == b"one queue will do"
    assert not machine.kick(0)
