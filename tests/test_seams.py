"""Device, Virtqueue and service threads carry another bus than that of 2009: the console on virtio-mmio.

Two queues on one QueueNotify register, rings where the driver wants them, and a broken ring which breaks its device
only. The device is the one which the rest of the package uses.
"""

import os
from collections.abc import Iterator

import pytest
from fakes import connect
from mmio_driver import BROKEN, FEATURES_OK, RUNNING, MmioDriver, new_bus
from support import PATIENCE, close, lguest_threads, naps

from lguest_nb.bus import mmio
from lguest_nb.console import Console
from lguest_nb.device import F_RING_INDIRECT_DESC, F_VERSION_1
from lguest_nb.memory import GuestMemory
from lguest_nb.vring import RingLayout

pytestmark = pytest.mark.usefixtures("nothing_left")
# Not in one piece, not in order, and of different sizes.
RINGS = [(8, RingLayout(0x30000, 0x20002, 0x10004)), (64, RingLayout(0xFF000, 0x8000, 0x9000))]
NO_RING = RingLayout(0x30000, 0x20002, 0x10002)  # whose used part is not where a multiple of four is
PART = 1024  # bytes, of which no part of these rings has more


class Machine(MmioDriver):
    "A console on the bus, pipes for its terminal, and the registers as a driver sees them."

    def __init__(self) -> None:
        self.keys, self.typed = os.pipe()
        self.screen, self.shown = os.pipe()
        self.console = Console(self.keys, self.shown)
        bus, host, self.failures = new_bus(GuestMemory(1 << 20))
        bus.add(self.console)
        super().__init__(bus, host)

    def close(self) -> None:
        self.bus.close()
        for fd in (self.keys, self.typed, self.screen, self.shown):
            os.close(fd)
        close(self.memory)

    def bring_up(self, features: int = F_VERSION_1, driver_ok: bool = True) -> None:
        "A driver, from reset to DRIVER_OK, with rings which are zero."
        assert self.negotiate(features) == FEATURES_OK
        for i, (num, ring) in enumerate(RINGS):
            for part in ring:
                self.memory.write(part, bytes(PART))
            assert self.set_up(i, num, ring)
        irq = mmio.SLOT_LINES[0]
        queues = self.console.queues
        self.drivers = [connect(self.host, vq, irq, 0x50000 + 0x10000 * i) for i, vq in enumerate(queues)]
        self.host.heard[irq] = self.interrupted
        if driver_ok:
            self.status = RUNNING

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
    machine.close()


def test_a_driver_finds_the_same_console(machine: Machine) -> None:
    assert [machine.read(r) for r in (mmio.MAGIC_VALUE, mmio.VERSION, mmio.DEVICE_ID)] == [0x74726976, 2, 3]
    assert machine.offered() & F_VERSION_1
    machine.write(mmio.QUEUE_SEL, 2)
    assert machine.read(mmio.QUEUE_NUM_MAX) == 0


def test_both_queues_work_through_one_notify_register(machine: Machine) -> None:
    machine.bring_up()
    kicks = [vq.wakeup.kicks for vq in machine.console.queues]
    notify = machine.address + mmio.QUEUE_NOTIFY
    assert machine.host.eventfds == {(notify, 0): kicks[0], (notify, 1): kicks[1]}
    assert machine.print(b"login: ") == b"login: "
    assert machine.receive(b"root\r") == b"root\r"
    assert set(machine.host.interrupts) == {mmio.SLOT_LINES[0]}


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
    machine.status = RUNNING
    machine.drivers[1].wait_used()
    assert os.read(machine.screen, 99) == b"early"


def test_set_up_is_latched_when_the_device_starts(machine: Machine) -> None:
    machine.bring_up()
    machine.set_up(1, 2, RingLayout(0x70000, 0x71000, 0x72000))
    machine.choose(0)
    assert machine.print(b"as before") == b"as before"
    assert (machine.console.queues[1].num, machine.console.queues[1].ring) == RINGS[1]


def test_features_decide_about_indirect_tables_and_silence(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    machine.bring_up(F_VERSION_1 | F_RING_INDIRECT_DESC)
    assert machine.print(b"by table", indirect=True) == b"by table"
    assert [vq.notify_on_empty for vq in machine.console.queues] == [False, False]
    machine.bring_up(F_VERSION_1)
    machine.drivers[1].add(out=[b"by table"], indirect=True)
    machine.kick(1)
    assert machine.changes.acquire(timeout=PATIENCE)
    assert "not negotiated" in caplog.messages[-1]


def test_features_nobody_offered_or_without_version_1_are_refused(machine: Machine) -> None:
    for features in (0, F_VERSION_1 | 1 << 7):
        assert machine.negotiate(features) == FEATURES_OK & ~8


def test_a_reset_joins_the_threads_and_touches_no_ring_any_more(machine: Machine) -> None:
    machine.bring_up()
    machine.print(b"hello")
    machine.status = 0
    assert lguest_threads() == []
    assert machine.host.eventfds == {}
    assert machine.status == 0
    for _, ring in RINGS:
        for part in ring:
            machine.memory.write(part, bytes([0xEE]) * PART)
    for i in range(2):
        assert not machine.kick(i)
    for _, ring in RINGS:
        for part in ring:
            assert machine.memory.read(part, PART) == bytes([0xEE]) * PART


def test_it_can_be_brought_up_again_and_again(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    for count in range(20):
        machine.bring_up()
        assert machine.print(b"life %d" % count) == b"life %d" % count
        assert machine.receive(b"key") == b"key"
    assert machine.failures == [] and caplog.messages == []


@pytest.mark.parametrize("queue", [0, 1])
def test_a_broken_ring_breaks_its_device_only_and_a_reset_revives_it(
    machine: Machine, queue: int, caplog: pytest.LogCaptureFixture
) -> None:
    machine.bring_up()
    machine.drivers[queue].make_available(0xFFFF)
    machine.kick(queue)
    assert machine.changes.acquire(timeout=PATIENCE)
    assert machine.status == BROKEN
    assert len(caplog.messages) == 1 and "console is broken, until its driver resets it" in caplog.messages[0]
    assert machine.failures == [] and not machine.host.stopped.is_set()
    used = [machine.memory.u16[vq.used + 1] for vq in machine.console.queues]
    for i in range(2):
        machine.drivers[i].make_available(0)
        machine.kick(i)  # and nobody serves it
    machine.status = 0
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
        assert machine.changes.acquire(timeout=PATIENCE)
        machine.status = 0
        assert lguest_threads() == []
        while machine.changes.acquire(blocking=False):
            pass


def test_a_ring_which_cannot_be_is_not_ready_and_breaks_its_device_only(machine: Machine) -> None:
    assert machine.negotiate() == FEATURES_OK
    assert not machine.set_up(0, 8, NO_RING)
    assert machine.set_up(1, *RINGS[1])
    machine.status = RUNNING
    assert machine.changes.acquire(timeout=PATIENCE)
    assert machine.status == BROKEN
    assert lguest_threads() == []
    for i in range(2):
        assert not machine.kick(i)
    assert machine.failures == [] and not machine.host.stopped.is_set()
    machine.bring_up()
    assert machine.print(b"two rings it must be") == b"two rings it must be"
