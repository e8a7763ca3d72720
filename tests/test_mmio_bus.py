"""virtio-mmio: what a driver may write into its registers and rings, what it must not, and who suffers from that."""

import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from chain_model import Entry
from mmio_driver import BROKEN, DRIVER, FEATURES_OK, RUNNING, MmioDriver, new_bus
from support import PATIENCE, ask_c, lguest_threads, naps, put_desc

from lguest_nb.block import Block
from lguest_nb.bus import mmio
from lguest_nb.bus.life import CONFIG_CHANGE, USED_BUFFER
from lguest_nb.bus.mmio import MmioBus
from lguest_nb.console import Console
from lguest_nb.device import (
    F_NOTIFY_ON_EMPTY,
    F_RING_EVENT_IDX,
    F_RING_INDIRECT_DESC,
    F_VERSION_1,
    STATUS_ACKNOWLEDGE,
    STATUS_DRIVER,
    STATUS_DRIVER_OK,
    STATUS_FAILED,
    STATUS_FEATURES_OK,
    STATUS_NEEDS_RESET,
    Device,
    Service,
)
from lguest_nb.host import HostError
from lguest_nb.memory import GuestMemory, LguestError
from lguest_nb.rng import Rng
from lguest_nb.vring import DESC_INDIRECT, DESC_NEXT, DESC_WRITE, VIRTQUEUE_NUM, RingLayout, Virtqueue

pytestmark = pytest.mark.usefixtures("nothing_left")
RAM = 1 << 20
TABLE, DATA = 0xC0000, 0xD0000  # where tests put indirect tables and buffers
INDIRECT = F_VERSION_1 | F_RING_INDIRECT_DESC


class Echo(Device):
    "Gives back what it is given, in two queues, and has a configuration which the Guest may write."

    def __init__(self, features: int = 0) -> None:
        super().__init__("echo", 42, features, b"0123456789abcdef")
        self.raises: BaseException | None = None
        self.held: threading.Event | None = None  # waited for in the middle of a request
        self.busy = threading.Semaphore(0)  # released there

    @property
    def services(self) -> Sequence[Service]:
        return [self.serve, self.serve]

    def serve(self, vq: Virtqueue) -> None:
        chain = vq.wait()
        if self.raises is not None:
            raise self.raises
        if self.held is not None:
            self.busy.release()
            self.held.wait(PATIENCE)
        vq.add_used(chain, 0)

    def written(self, offset: int, data: bytes) -> None:
        old = self.modern_config
        self.modern_config = old[:offset] + data + old[offset + len(data) :]


class Machine:
    "An echo in slot 0, a source of randomness in slot 1, and a driver for each."

    def __init__(self, memory: GuestMemory, device: Device) -> None:
        self.memory, self.device = memory, device
        self.bus, self.host, self.failures = new_bus(memory)
        self.bus.add(device)
        self.bus.add(Rng("/dev/urandom"))
        self.driver, self.other = MmioDriver(self.bus, self.host, 0), MmioDriver(self.bus, self.host, 1)
        self.other.start()

    def others_live(self) -> None:
        assert len(self.other.ask(0, into=(8,)).data) == 8
        assert not self.host.stopped.is_set()
        assert self.failures == []

    def own_threads(self) -> list[str]:
        return [name for name in lguest_threads() if self.device.name in name]


@pytest.fixture
def machine(memory: GuestMemory) -> Iterator[Machine]:
    machine = Machine(memory, Echo())
    yield machine
    machine.bus.close()


@pytest.fixture
def driver(machine: Machine) -> MmioDriver:
    return machine.driver


def is_broken(driver: MmioDriver) -> None:
    "It says so once, and nothing of it moves until the reset."
    assert driver.changes.acquire(timeout=PATIENCE)
    assert driver.status == BROKEN
    assert driver.reasons[-1] & CONFIG_CHANGE
    device = driver.device
    for vq in device.queues:  # one of them may still be on its way out of the interrupt
        if vq.thread is not None:
            vq.thread.join(PATIENCE)
            assert not vq.thread.is_alive()
    ready = [vq for vq in device.queues if vq.ready]
    rings = [driver.memory.read(vq.ring.used, 4 + 8 * vq.num) for vq in ready]
    for queue in range(len(device.queues)):
        driver.kick(queue)
    driver.status = RUNNING
    assert driver.status == BROKEN
    assert [driver.memory.read(vq.ring.used, 4 + 8 * vq.num) for vq in ready] == rings
    assert not driver.changes.acquire(blocking=False)


def works(driver: MmioDriver) -> None:
    for queue in range(len(driver.device.queues)):
        assert driver.ask(queue, out=(b"hello",)).length == 0


class TestRegisters:
    def test_they_are_where_linux_looks_for_them(self) -> None:
        names = {
            **{name: getattr(mmio, name) for name in ("MAGIC_VALUE", "VERSION", "DEVICE_ID", "VENDOR_ID", "CONFIG")},
            **{name: getattr(mmio, name) for name in ("DEVICE_FEATURES", "DEVICE_FEATURES_SEL", "DRIVER_FEATURES")},
            **{name: getattr(mmio, name) for name in ("DRIVER_FEATURES_SEL", "QUEUE_SEL", "QUEUE_NUM_MAX", "STATUS")},
            **{name: getattr(mmio, name) for name in ("QUEUE_NUM", "QUEUE_READY", "QUEUE_NOTIFY", "INTERRUPT_STATUS")},
            **{name: getattr(mmio, name) for name in ("INTERRUPT_ACK", "CONFIG_GENERATION")},
            "QUEUE_DESC_LOW": mmio.QUEUE_DESC,
            "QUEUE_DESC_HIGH": mmio.QUEUE_DESC + 4,
            "QUEUE_AVAIL_LOW": mmio.QUEUE_DRIVER,
            "QUEUE_AVAIL_HIGH": mmio.QUEUE_DRIVER + 4,
            "QUEUE_USED_LOW": mmio.QUEUE_DEVICE,
            "QUEUE_USED_HIGH": mmio.QUEUE_DEVICE + 4,
            "SHM_LEN_LOW": mmio.SHM_LEN,
            "SHM_BASE_LOW": mmio.SHM_BASE,
            "INT_VRING": USED_BUFFER,
            "INT_CONFIG": CONFIG_CHANGE,
        }
        told = ask_c(("linux/virtio_mmio.h",), tuple(f"VIRTIO_MMIO_{name}" for name in names))
        assert list(told.values()) == list(names.values())

    def test_status_and_feature_bits_are_linuxs(self) -> None:
        stages = ("ACKNOWLEDGE", "DRIVER", "DRIVER_OK", "FEATURES_OK", "NEEDS_RESET", "FAILED")
        told = ask_c(("linux/virtio_config.h",), tuple(f"VIRTIO_CONFIG_S_{stage}" for stage in stages))
        ours = [STATUS_ACKNOWLEDGE, STATUS_DRIVER, STATUS_DRIVER_OK, STATUS_FEATURES_OK, STATUS_NEEDS_RESET]
        assert list(told.values()) == [*ours, STATUS_FAILED]
        headers = ("linux/virtio_config.h", "linux/virtio_ring.h")
        bits = ("VIRTIO_F_NOTIFY_ON_EMPTY", "VIRTIO_RING_F_INDIRECT_DESC", "VIRTIO_RING_F_EVENT_IDX")
        bits += ("VIRTIO_F_VERSION_1",)
        told = ask_c(headers, tuple(f"1LL << {bit}" for bit in bits))
        ours = [F_NOTIFY_ON_EMPTY, F_RING_INDIRECT_DESC, F_RING_EVENT_IDX, F_VERSION_1]
        assert list(told.values()) == ours

    def test_a_driver_finds_the_device(self, driver: MmioDriver) -> None:
        registers = (mmio.MAGIC_VALUE, mmio.VERSION, mmio.DEVICE_ID)
        assert [driver.read(register) for register in registers] == [0x74726976, 2, 42]
        assert driver.offered() == F_VERSION_1 | F_RING_INDIRECT_DESC | F_RING_EVENT_IDX

    def test_a_bit_of_the_legacy_interface_is_not_offered(self, memory: GuestMemory) -> None:
        bus, host, _ = new_bus(memory)
        bus.add(Echo(F_NOTIFY_ON_EMPTY | 1))
        assert MmioDriver(bus, host).offered() == 1 | F_VERSION_1 | F_RING_INDIRECT_DESC | F_RING_EVENT_IDX
        bus.close()

    def test_selectors_out_of_range_read_as_nothing(self, driver: MmioDriver) -> None:
        for selector in (2, 3, 1 << 31, (1 << 32) - 1):
            driver.write(mmio.DEVICE_FEATURES_SEL, selector)
            assert driver.read(mmio.DEVICE_FEATURES) == 0

    def test_there_is_no_shared_memory(self, driver: MmioDriver) -> None:
        "Virtio 1.2 §4.2.2: a length of -1, which is also how drivers/virtio/virtio_mmio.c sees that."
        for region in (0, 1, 255, (1 << 32) - 1):
            driver.write(0x0AC, region)
            for register in (mmio.SHM_LEN, mmio.SHM_LEN + 4, mmio.SHM_BASE, mmio.SHM_BASE + 4):
                assert driver.read(register) == 0xFFFFFFFF

    @pytest.mark.parametrize("size", [1, 2, 8])
    def test_only_four_bytes_are_a_register(self, driver: MmioDriver, size: int) -> None:
        driver.start()
        assert [driver.read(offset, size) for offset in range(mmio.CONFIG)] == [0] * mmio.CONFIG
        for offset in range(mmio.CONFIG):
            driver.write(offset, 0, size)
        assert driver.status == RUNNING
        works(driver)

    def test_what_is_not_a_register_reads_zero_and_swallows_writes(self, driver: MmioDriver) -> None:
        for offset in range(mmio.CONFIG):
            if offset % 4:
                driver.write(offset, 0xFFFFFFFF)
                assert driver.read(offset) == 0
        for undefined in (0x018, 0x028, 0x03C, 0x048, 0x054, 0x068, 0x074, 0x0C0, 0x0C4, 0x0F8):
            driver.write(undefined, 1)
            assert driver.read(undefined) == 0

    def test_registers_to_read_are_not_written_and_those_to_write_read_zero(self, driver: MmioDriver) -> None:
        driver.start()
        readable = (mmio.MAGIC_VALUE, mmio.VERSION, mmio.DEVICE_ID, mmio.VENDOR_ID, mmio.QUEUE_NUM_MAX)
        before = [driver.read(register) for register in readable]
        for register in (*readable, mmio.INTERRUPT_STATUS, mmio.CONFIG_GENERATION, mmio.DEVICE_FEATURES):
            driver.write(register, 0xFFFFFFFF)
        assert [driver.read(register) for register in readable] == before
        writable = (mmio.QUEUE_NUM, mmio.QUEUE_NOTIFY, mmio.INTERRUPT_ACK, mmio.QUEUE_DESC, mmio.QUEUE_DEVICE + 4)
        assert [driver.read(register) for register in writable] == [0] * len(writable)
        works(driver)

    def test_slots_without_a_device_and_ports_are_not_ours(self, machine: Machine) -> None:
        bus, second = machine.bus, mmio.SLOT_BASE + mmio.SLOT_STRIDE
        ours = [mmio.SLOT_BASE, mmio.SLOT_BASE + mmio.SLOT_SIZE - 1, second]
        others = [0, mmio.SLOT_BASE - 1, mmio.SLOT_BASE + mmio.SLOT_SIZE, second + mmio.SLOT_STRIDE, 1 << 64]
        assert [bus.claims(address) for address in ours + others] == [True] * 3 + [False] * 5
        for address in others:
            bus.write("memory", address, 4, 0)
            assert bus.read("memory", address, 2) == 0xFFFF
        bus.write("port", mmio.SLOT_BASE + mmio.STATUS, 4, 1)
        assert bus.read("port", mmio.SLOT_BASE, 4) == 0xFFFFFFFF
        assert machine.driver.status == 0

    def test_an_access_may_hang_over_the_end(self, driver: MmioDriver) -> None:
        assert driver.read(mmio.SLOT_SIZE - 1, 8) == 0
        driver.write(mmio.SLOT_SIZE - 1, 1, 8)


class TestAdding:
    def test_slots_and_lines_are_given_in_order_until_there_are_no_more(self, memory: GuestMemory) -> None:
        bus, _, _ = new_bus(memory)
        for _ in mmio.SLOT_LINES:
            bus.add(Echo())
        assert [(slot.address, slot.irq) for slot in bus.slots][:2] == [(0xD0000000, 5), (0xD0001000, 7)]
        assert [slot.irq for slot in bus.slots] == [5, 7, 10, 11, 12, 3, 6, 14, 15]
        with pytest.raises(LguestError, match="Too many devices: echo would be number 10 of 9"):
            bus.add(Echo())
        bus.close()

    def test_what_does_not_fit_is_refused_by_a_sentence(self, memory: GuestMemory) -> None:
        bus, _, _ = new_bus(memory)
        device = Echo()
        device.modern_config = bytes(257)
        with pytest.raises(LguestError, match="257 bytes; there is room for 256"):
            bus.add(device)
        device.modern_config, device.virtio_id = bytes(256), 0
        with pytest.raises(LguestError, match="type of echo is 0"):
            bus.add(device)
        assert device.queues == [] == bus.slots

    def test_ram_may_reach_up_to_the_slots_and_no_further(self) -> None:
        memory = GuestMemory(mmio.SLOT_BASE)
        bus, _, _ = new_bus(memory)
        bus.add(Echo())
        bus.close()
        memory.close()
        memory = GuestMemory(mmio.SLOT_BASE, device_pages=1)
        memory.take_pages(1)
        with pytest.raises(LguestError, match="RAM ends at 0xd0001000"):
            new_bus(memory)[0].add(Echo())
        memory.close()

    def test_without_a_host_nothing_starts(self, memory: GuestMemory) -> None:
        bus = MmioBus(memory, print)
        bus.add(Echo())
        with pytest.raises(HostError, match="not connected"):
            bus.write("memory", mmio.SLOT_BASE + mmio.STATUS, 4, 1)
        bus.close()


class TestStatus:
    def test_the_ladder_is_climbed_and_a_reset_is_the_ground(self, driver: MmioDriver) -> None:
        driver.start()
        assert driver.status == RUNNING
        driver.status = 0
        assert driver.status == 0

    def test_firmware_may_take_two_rungs_at_once(self, driver: MmioDriver) -> None:
        driver.status = DRIVER
        assert driver.status == DRIVER

    @pytest.mark.parametrize("value", [2, 8, 11, 15, 4, 16, 0x21, 0xFF, 0x40, 1 << 31 | 1, 0xFFFFFFFF])
    def test_no_other_step_is_taken_from_the_ground(self, driver: MmioDriver, value: int) -> None:
        driver.status = value
        assert driver.status == 0
        driver.start()
        works(driver)

    @pytest.mark.parametrize("value", [1, 2, 3, 11, 14, 0x1F, 0x2F, 0x10F, RUNNING, 0xFFFFFFFF])
    def test_nothing_but_zero_leads_down(self, driver: MmioDriver, value: int) -> None:
        driver.start()
        driver.status = value
        assert driver.status == RUNNING
        works(driver)

    def test_driver_ok_needs_features_ok_to_stand(self, driver: MmioDriver) -> None:
        driver.status = DRIVER
        driver.status = RUNNING
        assert driver.status == DRIVER
        assert not driver.device.running

    @pytest.mark.parametrize("features", [0, F_RING_INDIRECT_DESC, F_VERSION_1 | 1 << 7, F_VERSION_1 | 1 << 33])
    def test_without_version_1_or_with_bits_nobody_offered_features_are_not_ok(
        self, driver: MmioDriver, features: int
    ) -> None:
        assert driver.negotiate(features) == DRIVER
        driver.choose(F_VERSION_1)
        driver.status = FEATURES_OK
        assert driver.status == FEATURES_OK

    def test_features_beyond_the_sixty_fourth_are_not_offered_either(self, driver: MmioDriver) -> None:
        driver.status = DRIVER
        driver.choose(F_VERSION_1)
        driver.write(mmio.DRIVER_FEATURES_SEL, 1 << 31)
        driver.write(mmio.DRIVER_FEATURES, 1)
        driver.status = FEATURES_OK
        assert driver.status == DRIVER

    def test_features_are_fixed_by_features_ok(self, driver: MmioDriver) -> None:
        driver.negotiate(F_VERSION_1)
        driver.choose(0)
        driver.place()
        driver.status = RUNNING
        driver.choose(INDIRECT)
        assert driver.device.accepted == F_VERSION_1
        assert not any(vq.indirect or vq.event_idx or vq.notify_on_empty for vq in driver.device.queues)
        works(driver)

    @pytest.mark.parametrize("rung", [0, 1, DRIVER, FEATURES_OK, RUNNING])
    def test_a_driver_may_give_up_anywhere_and_begin_again(
        self, machine: Machine, driver: MmioDriver, rung: int
    ) -> None:
        for status in (1, DRIVER):
            driver.status = min(status, rung)
        if rung > DRIVER:
            driver.start()
        driver.status = driver.status | STATUS_FAILED
        before = driver.status
        assert before & STATUS_FAILED
        assert machine.own_threads() == []
        assert not any(driver.kick(queue) for queue in range(2))
        for value in (1, DRIVER, FEATURES_OK, RUNNING, 0xFF):
            driver.status = value
        assert driver.status == before
        driver.start()
        works(driver)
        machine.others_live()

    def test_nonsense_is_warned_of_once(self, driver: MmioDriver, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING):
            for value in range(16, 64):
                driver.status = value
        assert [record.getMessage() for record in caplog.records] == [
            "echo: its driver may not go from status 0x0 to 0x10."
        ]


SIZES = (16 * 8, 4 + 2 * 8, 4 + 8 * 8)


class TestQueues:
    @pytest.mark.parametrize("num", [0, 3, 7, VIRTQUEUE_NUM + 1, 2 * VIRTQUEUE_NUM, 1 << 16, 1 << 31, (1 << 32) - 1])
    def test_a_size_which_cannot_be_is_refused(self, machine: Machine, driver: MmioDriver, num: int) -> None:
        driver.negotiate()
        assert not driver.set_up(0, num, driver.layout(0))
        driver.status = RUNNING
        is_broken(driver)
        machine.others_live()
        driver.start()
        works(driver)

    @pytest.mark.parametrize("num", [1, 2, 64, VIRTQUEUE_NUM])
    def test_any_power_of_two_up_to_the_most_is_served(self, driver: MmioDriver, num: int) -> None:
        driver.start(num=num)
        assert {vq.num for vq in driver.device.queues} == {num}
        for _ in range(3):
            works(driver)

    @pytest.mark.parametrize("part", range(3))
    @pytest.mark.parametrize("where", ["unaligned", "over the end", "wraps 2**32", "wraps 2**64", "beyond"])
    def test_a_ring_which_cannot_be_there_is_refused(
        self, machine: Machine, driver: MmioDriver, part: int, where: str
    ) -> None:
        driver.negotiate()
        ring = list(driver.layout(0))
        alignment = (16, 2, 4)[part]
        ring[part] = {
            "unaligned": ring[part] + alignment // 2,
            "over the end": RAM - SIZES[part] + alignment,
            "wraps 2**32": (1 << 32) - alignment,
            "wraps 2**64": (1 << 64) - alignment,
            "beyond": RAM,
        }[where]
        assert not driver.set_up(0, 8, RingLayout(*ring))
        assert driver.status == FEATURES_OK
        driver.status = RUNNING
        is_broken(driver)
        machine.others_live()
        driver.start()
        works(driver)

    @pytest.mark.parametrize("part", range(3))
    def test_a_ring_may_end_with_ram(self, driver: MmioDriver, part: int) -> None:
        driver.negotiate()
        ring = list(driver.layout(0))
        ring[part] = RAM - SIZES[part]
        assert driver.set_up(0, 8, RingLayout(*ring))

    def test_with_event_indices_the_last_two_bytes_count_too(self, driver: MmioDriver) -> None:
        driver.negotiate(F_VERSION_1 | F_RING_EVENT_IDX)
        ring = driver.layout(0)
        assert not driver.set_up(0, 8, ring._replace(avail=RAM - SIZES[1]))
        assert driver.set_up(0, 8, ring._replace(avail=RAM - SIZES[1] - 2))

    def test_parts_may_lie_over_each_other(self, machine: Machine, driver: MmioDriver) -> None:
        for ring in (RingLayout(0x8000, 0x8000, 0x8000), RingLayout(0, 0, 0)):
            driver.negotiate()
            driver.memory.write(ring.desc, bytes(1024))
            assert driver.set_up(0, 8, ring)
            driver.status = RUNNING
            driver.memory.u16[(ring.desc >> 1) + 1] = 1
            driver.kick(0)
        driver.status = 0
        machine.others_live()
        driver.start()
        works(driver)

    def test_a_queue_without_addresses_is_not_ready(self, machine: Machine, driver: MmioDriver) -> None:
        driver.negotiate()
        driver.write(mmio.QUEUE_NUM, 8)
        driver.write(mmio.QUEUE_READY, 1)
        assert driver.read(mmio.QUEUE_READY) == 0
        driver.status = RUNNING
        is_broken(driver)
        machine.others_live()

    def test_what_was_refused_may_be_put_right(self, driver: MmioDriver) -> None:
        driver.negotiate()
        assert not driver.set_up(0, 7, driver.layout(0))
        driver.place()
        driver.status = RUNNING
        works(driver)

    def test_or_taken_back(self, driver: MmioDriver) -> None:
        driver.negotiate()
        driver.place()
        driver.write(mmio.QUEUE_SEL, 0)
        driver.write(mmio.QUEUE_READY, 0)
        assert not driver.set_up(0, 7, driver.layout(0))
        driver.write(mmio.QUEUE_READY, 0)
        driver.status = RUNNING
        assert driver.status == RUNNING
        assert driver.ask(1, out=(b"x",)).length == 0
        assert not driver.kick(0)

    @pytest.mark.parametrize("value", [0, 2, 3, 0x101, 0xFFFFFFFF])
    def test_only_one_means_ready(self, driver: MmioDriver, value: int) -> None:
        driver.negotiate()
        driver.set_up(0, 8, driver.layout(0))
        driver.write(mmio.QUEUE_READY, value)
        assert driver.read(mmio.QUEUE_READY) == 0

    def test_before_features_ok_there_is_nothing_to_set_up(self, driver: MmioDriver) -> None:
        driver.status = DRIVER
        driver.choose(F_VERSION_1)
        assert not driver.set_up(0, 8, driver.layout(0))
        driver.status = FEATURES_OK
        assert driver.read(mmio.QUEUE_READY) == 0

    def test_set_up_is_latched_by_ready_and_by_driver_ok(self, driver: MmioDriver) -> None:
        driver.negotiate()
        driver.place()
        rings = [(vq.num, vq.ring) for vq in driver.device.queues]
        for status in (FEATURES_OK, RUNNING):
            driver.status = status
            for queue in range(2):
                driver.set_up(queue, 2, RingLayout(0x70000, 0x71000, 0x72000))
        driver.write(mmio.QUEUE_READY, 0)
        assert [(vq.num, vq.ring) for vq in driver.device.queues] == rings
        works(driver)

    @pytest.mark.parametrize("queue", [2, 3, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF])
    def test_a_queue_which_there_is_not_has_no_size_and_swallows_writes(self, driver: MmioDriver, queue: int) -> None:
        driver.negotiate()
        driver.place()
        assert not driver.set_up(queue, 8, driver.layout(0))
        assert [driver.read(r) for r in (mmio.QUEUE_NUM_MAX, mmio.QUEUE_READY)] == [0, 0]
        driver.status = RUNNING
        assert not driver.kick(queue)
        works(driver)

    def test_a_queue_nobody_wants_gets_no_thread(self, machine: Machine, driver: MmioDriver) -> None:
        driver.negotiate()
        driver.set_up(1, 8, driver.layout(1))
        driver.status = RUNNING
        assert machine.own_threads() == ["lguest echo:1"]

    def test_the_doorbells_are_one_register_with_the_queues_numbers(self, machine: Machine, driver: MmioDriver) -> None:
        asleep = [naps(vq) for vq in driver.device.queues]
        driver.start()
        notify = mmio.SLOT_BASE + mmio.QUEUE_NOTIFY
        kicks = {(notify, i): vq.wakeup.kicks for i, vq in enumerate(driver.device.queues)}
        assert {key: fd for key, fd in machine.host.eventfds.items() if key[0] == notify} == kicks
        for each in asleep:
            assert each.acquire(timeout=PATIENCE)
        driver.kick(1)
        assert asleep[1].acquire(timeout=PATIENCE)
        assert not asleep[0].acquire(blocking=False)

    @pytest.mark.parametrize("when", ["before DRIVER_OK", "after a reset", "after FAILED"])
    def test_a_kick_at_the_wrong_time_does_nothing(self, machine: Machine, driver: MmioDriver, when: str) -> None:
        driver.negotiate()
        driver.place()
        if when != "before DRIVER_OK":
            driver.status = RUNNING
            driver.status = 0 if when == "after a reset" else RUNNING | STATUS_FAILED
        before = machine.memory.read(0, RAM)
        for queue in range(2):
            driver.drivers[queue].make_available(0)
            assert not driver.kick(queue)
        assert not driver.device.running
        assert machine.own_threads() == []
        assert [vq.last_avail for vq in driver.device.queues] == [0, 0]
        used = [driver.layout(queue).used for queue in range(2)]
        assert [machine.memory.read(at, 68) for at in used] == [before[at : at + 68] for at in used]

    def test_what_was_made_available_early_is_served_after_driver_ok(self, driver: MmioDriver) -> None:
        driver.negotiate()
        driver.place()
        for each in driver.drivers:
            each.add(out=[b"early"])
        driver.status = RUNNING
        for each in driver.drivers:
            each.wait_used()


class TestInterrupts:
    def test_the_reason_is_there_before_the_pulse_and_until_it_is_acknowledged(self, machine: Machine) -> None:
        driver, seen = machine.driver, []
        driver.start()
        machine.host.heard[mmio.SLOT_LINES[0]] = lambda: seen.append(driver.read(mmio.INTERRUPT_STATUS))
        driver.device.config_changed()
        line = machine.bus.slots[0].line
        line.interrupt(USED_BUFFER)
        driver.write(mmio.INTERRUPT_ACK, CONFIG_CHANGE | 4)
        assert (seen, driver.read(mmio.INTERRUPT_STATUS)) == ([CONFIG_CHANGE, CONFIG_CHANGE | USED_BUFFER], USED_BUFFER)
        driver.write(mmio.INTERRUPT_ACK, 0xFFFFFFFF)
        assert driver.read(mmio.INTERRUPT_STATUS) == 0

    def test_no_reason_is_lost_between_threads(self, machine: Machine) -> None:
        "Each thread sets its own bit and takes it away again, and nobody's bit goes with somebody else's."
        line, lost = machine.bus.slots[1].line, []
        line.pulse = bool

        def hammer(bit: int) -> None:
            for _ in range(2000):
                line.interrupt(bit)
                if not line.reasons.get() & bit:
                    lost.append(bit)
                line.reasons.clear(bit)

        threads = [threading.Thread(target=hammer, args=(1 << i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (lost, line.reasons.get()) == ([], 0)

    def test_a_reset_takes_the_reasons_and_the_selectors_back(self, machine: Machine, driver: MmioDriver) -> None:
        driver.start()
        machine.host.heard.clear()
        driver.device.config_changed()
        driver.write(mmio.DEVICE_FEATURES_SEL, 1)
        driver.write(mmio.QUEUE_SEL, 9)
        driver.status = 0
        assert driver.read(mmio.INTERRUPT_STATUS) == 0
        assert driver.read(mmio.DEVICE_FEATURES) == F_RING_INDIRECT_DESC | F_RING_EVENT_IDX
        assert driver.read(mmio.QUEUE_NUM_MAX) == VIRTQUEUE_NUM

    def test_silence_is_kept_and_nothing_is_lost(self, driver: MmioDriver) -> None:
        "NOTIFY_ON_EMPTY is not negotiated here: silence is silence."
        driver.start()
        asleep = naps(driver.device.queues[0])
        driver.kick(0)
        assert asleep.acquire(timeout=PATIENCE)
        each = driver.drivers[0]
        each.no_interrupts(True)
        each.add(out=[b"quiet"])
        each.kick()
        assert asleep.acquire(timeout=PATIENCE)
        assert driver.reasons == []
        each.no_interrupts(False)
        assert len(each.used()) == 1

    @pytest.mark.parametrize("features", [F_RING_EVENT_IDX, F_RING_EVENT_IDX | F_RING_INDIRECT_DESC])
    def test_event_indices_carry_a_thousand_requests(self, driver: MmioDriver, features: int) -> None:
        driver.start(F_VERSION_1 | features)
        indirect = bool(features & F_RING_INDIRECT_DESC)
        for count in range(1000):
            assert driver.ask(count % 2, out=(b"a", b"b"), indirect=indirect).length == 0
        assert [driver.memory.u16[vq.used] for vq in driver.device.queues] == [0, 0]


class TestConfiguration:
    def test_it_is_read_in_any_size_and_at_any_place(self, driver: MmioDriver) -> None:
        text = driver.device.modern_config
        for size in (1, 2, 4, 8):
            for offset in range(len(text) + 8):
                expected = int.from_bytes(text[offset : offset + size], "little")
                assert driver.read(mmio.CONFIG + offset, size) == expected

    def test_what_the_guest_writes_arrives_if_there_is_room_for_all_of_it(self, driver: MmioDriver) -> None:
        driver.write(mmio.CONFIG + 1, 0x42, 1)
        driver.write(mmio.CONFIG + 4, int.from_bytes(b"WXYZ", "little"))
        driver.write(mmio.CONFIG + 8, int.from_bytes(b"ABCDEFGH", "little"), 8)
        driver.write(mmio.CONFIG + 9, 0, 8)
        driver.write(mmio.CONFIG + 16, 0, 1)
        assert driver.device.modern_config == b"0B23WXYZABCDEFGH"

    def test_a_device_ignores_that_by_default(self, machine: Machine) -> None:
        device = machine.other.device
        device.modern_config = b"abcd"
        machine.other.write(mmio.CONFIG, 0)
        assert device.modern_config == b"abcd"

    def test_a_change_is_told_once_driver_ok_is_set_and_not_before(self, driver: MmioDriver) -> None:
        driver.negotiate()
        driver.device.config_changed()
        assert driver.reasons == []
        driver.place()
        driver.status = RUNNING
        driver.device.config_changed()
        assert driver.reasons == [CONFIG_CHANGE]
        driver.status = 0
        driver.device.config_changed()
        assert driver.reasons == [CONFIG_CHANGE]

    def test_whoever_reads_two_halves_of_two_configurations_can_see_it(self, driver: MmioDriver) -> None:
        device = driver.device
        generation = driver.read(mmio.CONFIG_GENERATION)
        assert driver.read(mmio.CONFIG_GENERATION) == generation
        first = driver.read(mmio.CONFIG)
        old, device.modern_config = device.modern_config, b"new and shiny..."
        assert driver.read(mmio.CONFIG) != first
        device.modern_config = old
        driver.read(mmio.CONFIG + 4)
        assert driver.read(mmio.CONFIG_GENERATION) != generation


class TestBreaking:
    def test_a_device_which_the_guest_broke_is_logged_once(
        self, machine: Machine, driver: MmioDriver, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                driver.start()
                driver.drivers[0].make_available(77)
                driver.kick(0)
                is_broken(driver)
        assert [record.getMessage() for record in caplog.records] == [
            "echo is broken, until its driver resets it: echo:0: Guest says index 77 is available, and the ring has 8."
        ]
        machine.others_live()

    def test_both_queues_at_once_break_it_once(self, machine: Machine, driver: MmioDriver) -> None:
        for _ in range(50):
            driver.start()
            for each in driver.drivers:
                each.make_available(99)
            for queue in range(2):
                driver.kick(queue)
            is_broken(driver)
        machine.others_live()
        driver.start()
        works(driver)

    def test_rings_which_are_broken_before_they_start_break_it_too(self, machine: Machine, driver: MmioDriver) -> None:
        "The first thread may stumble before the second one has begun."
        for _ in range(50):
            driver.negotiate()
            driver.place()
            for each in driver.drivers:
                each.make_available(99)
            driver.status = RUNNING
            is_broken(driver)
        machine.others_live()
        driver.start()
        works(driver)

    def test_a_reset_in_the_middle_of_breaking_wins(self, machine: Machine, driver: MmioDriver) -> None:
        for _ in range(100):
            driver.start()
            for each in driver.drivers:
                each.make_available(99)
            driver.kick(0)
            driver.kick(1)
            driver.status = 0
            assert driver.status == 0
            assert machine.own_threads() == []
        machine.others_live()
        driver.start()
        works(driver)

    def test_no_ring_is_touched_once_the_guest_is_told(self, machine: Machine, driver: MmioDriver) -> None:
        "The other thread is in the middle of a request, and that is waited for."
        driver.start()
        assert isinstance(driver.device, Echo)
        driver.device.held = threading.Event()
        driver.drivers[1].add(out=[b"long work"])
        driver.kick(1)
        assert driver.device.busy.acquire(timeout=PATIENCE)
        driver.drivers[0].make_available(99)
        driver.kick(0)
        assert not driver.changes.acquire(timeout=0.02)
        driver.device.held.set()
        is_broken(driver)

    def test_what_is_not_the_guests_fault_goes_to_the_launcher(self, machine: Machine, driver: MmioDriver) -> None:
        driver.start()
        assert isinstance(driver.device, Echo)
        driver.device.raises = RuntimeError("a defect of ours")
        threads = [vq.thread for vq in driver.device.queues]
        driver.drivers[0].make_available(0)
        driver.kick(0)
        assert threads[0] is not None
        threads[0].join(PATIENCE)
        assert machine.failures == [driver.device.raises]
        assert driver.status == RUNNING
        machine.failures.clear()

    def test_a_reset_under_load_joins_whoever_is_interrupting(self, machine: Machine, driver: MmioDriver) -> None:
        for _ in range(50):
            driver.start()
            for queue, each in enumerate(driver.drivers):
                for _ in range(8):
                    each.add(out=[b"load"])
                driver.kick(queue)
            driver.status = 0
            assert machine.own_threads() == []
            used = [machine.memory.read(driver.layout(queue).used, 68) for queue in range(2)]
            assert used == [machine.memory.read(driver.layout(queue).used, 68) for queue in range(2)]
        machine.others_live()

    def test_after_a_reset_the_old_rings_belong_to_the_guest(self, machine: Machine, driver: MmioDriver) -> None:
        driver.start()
        works(driver)
        driver.status = 0
        machine.memory.u8[driver.at : driver.at + 0x6000] = b"\xee" * 0x6000
        for queue in range(2):
            assert not driver.kick(queue)
        assert machine.memory.read(driver.at, 0x6000) == b"\xee" * 0x6000
        assert [key for key in machine.host.eventfds if key[0] < mmio.SLOT_BASE + mmio.SLOT_STRIDE] == []


# What a Guest may put into a ring, for devices of every kind.

Write = Callable[["Forge"], None]


class Forge:
    "Queue `queue` of a device which runs, and a hand which writes anything into its ring."

    def __init__(self, driver: MmioDriver, queue: int, flags: int) -> None:
        self.driver, self.memory, self.vq, self.queue = driver, driver.memory, driver.device.queues[queue], queue
        self.flags = flags  # of a buffer which this queue is made for
        self.avail = self.vq.ring.avail >> 1

    def desc(self, index: int, address: int, length: int, flags: int | None = None, after: int = 0) -> None:
        put_desc(self.memory, self.vq.ring.desc, index, address, length, self.flags if flags is None else flags, after)

    def table(self, *entries: Entry, length: int | None = None, flags: int = 0, ring: int = 0) -> None:
        "An indirect table in descriptor `ring`."
        for i, entry in enumerate(entries):
            put_desc(self.memory, TABLE, i, *entry)
        self.desc(ring, TABLE, 16 * len(entries) if length is None else length, DESC_INDIRECT | flags)

    def chain(self, count: int) -> None:
        "Of `count` descriptors of the ring."
        for i in range(count):
            self.desc(i, DATA, 1, self.flags | (DESC_NEXT if i + 1 < count else 0), i + 1)

    def offer(self, *heads: int) -> None:
        u16 = self.memory.u16
        for head in heads:
            u16[self.avail + 2 + u16[self.avail + 1] % self.vq.num] = head
            u16[self.avail + 1] = (u16[self.avail + 1] + 1) & 0xFFFF

    def index(self, idx: int) -> None:
        self.memory.u16[self.avail + 1] = idx & 0xFFFF


def both(*writes: Callable[[Forge], object]) -> Write:
    "One after the other, and head 0 is offered."

    def write(f: Forge) -> None:
        for each in writes:
            each(f)
        f.offer(0)

    return write


BREAKS: dict[str, Write] = {
    "A1 an index which jumps ahead": lambda f: f.index(9),
    "A2 an index which goes back": lambda f: f.index(-1),
    "A5 a head beyond the ring": lambda f: f.offer(8),
    "A5 a head of all ones": lambda f: f.offer(0xFFFF),
    "A8 a next beyond the table": both(lambda f: f.desc(0, DATA, 1, f.flags | DESC_NEXT, 8)),
    "A9 a loop of one": both(lambda f: f.desc(0, DATA, 1, f.flags | DESC_NEXT, 0)),
    "A9 a loop of all": both(lambda f: f.chain(8), lambda f: f.desc(7, DATA, 1, f.flags | DESC_NEXT, 0)),
    "A10 more than the ring has": both(
        lambda f: f.table(*[(DATA, 1, f.flags | DESC_NEXT, i + 1) for i in range(8)], (DATA, 1, f.flags, 0))
    ),
    "A12 a buffer outside": both(lambda f: f.desc(0, RAM, 1)),
    "A12 a buffer over the end": both(lambda f: f.desc(0, RAM - 1, 2)),
    "A13 a buffer which wraps 2**32": both(lambda f: f.desc(0, (1 << 32) - 1, 2)),
    "A13 a buffer which wraps 2**64": both(lambda f: f.desc(0, (1 << 64) - 1, 2)),
    "A13 a length of all ones": both(lambda f: f.desc(0, 0x100, (1 << 32) - 1)),
    "A22 to be read after to be written": both(
        lambda f: f.desc(0, DATA, 1, DESC_WRITE | DESC_NEXT, 1), lambda f: f.desc(1, DATA, 1, 0)
    ),
    "B2 a table in a table": both(lambda f: f.table((TABLE + 64, 16, DESC_INDIRECT, 0))),
    "B3 a table which goes on": both(lambda f: f.table((DATA, 1, f.flags, 0), flags=DESC_NEXT)),
    "B6 a table of half an entry": both(lambda f: f.table((DATA, 1, f.flags, 0), length=24)),
    "B7 a table of no entry": both(lambda f: f.table((DATA, 1, f.flags, 0), length=0)),
    "B9 a table outside": both(lambda f: f.desc(0, RAM, 16, DESC_INDIRECT)),
    "B9 a table over the end": both(lambda f: f.desc(0, RAM - 16, 32, DESC_INDIRECT)),
    "B9 a table which wraps": both(lambda f: f.desc(0, (1 << 64) - 16, 32, DESC_INDIRECT)),
    "B10 a loop in a table": both(lambda f: f.table((DATA, 1, f.flags | DESC_NEXT, 0))),
    "B10 a next beyond its table": both(lambda f: f.table((DATA, 1, f.flags | DESC_NEXT, 1))),
}

HARMLESS: dict[str, Write] = {  # one chain, which must come back
    "A11 a chain as long as the ring": both(lambda f: f.chain(8)),
    "A14 a buffer to the last byte": both(lambda f: f.desc(0, RAM - 4, 4)),
    "A18 a buffer at address 0": both(lambda f: f.desc(0, 0, 4)),
    "A19 an empty buffer in between": both(lambda f: f.chain(3), lambda f: f.desc(1, DATA, 0, f.flags | DESC_NEXT, 2)),
    "A20 a chain without a byte": both(lambda f: f.desc(0, DATA, 0)),
    "A25 flags nobody knows": both(lambda f: f.desc(0, DATA, 4, f.flags | 0xFFF8)),
    "A26 flags of the ring nobody knows": both(
        lambda f: f.desc(0, DATA, 4), lambda f: f.memory.u16.__setitem__(f.avail, 0xFFFE)
    ),
    "B a table": both(lambda f: f.table((DATA, 1, f.flags | DESC_NEXT, 1), (DATA + 1, 1, f.flags, 0))),
    "B4 a table which is to be written": both(lambda f: f.table((DATA, 1, f.flags, 0), flags=DESC_WRITE)),
    "B a table behind a buffer": both(
        lambda f: f.desc(0, DATA, 1, f.flags | DESC_NEXT, 1), lambda f: f.table((DATA, 1, f.flags, 0), ring=1)
    ),
}


@pytest.fixture(params=["console", "rng", "block"])
def forge(request: pytest.FixtureRequest, memory: GuestMemory, tmp_path: Path) -> Iterator[Forge]:
    "A device which runs with indirect tables, and one of its rings."
    pipes = [os.pipe(), os.pipe()]
    if request.param == "console":
        device: Device = Console(pipes[0][0], pipes[1][1])
    elif request.param == "rng":
        device = Rng("/dev/urandom")
    else:
        (tmp_path / "disk").write_bytes(bytes(4096))
        device = Block(tmp_path / "disk")
    machine = Machine(memory, device)
    machine.driver.start(INDIRECT)
    forge = Forge(machine.driver, len(device.queues) - 1, DESC_WRITE if request.param == "rng" else 0)
    forge.machine = machine  # type: ignore[attr-defined]
    yield forge
    machine.bus.close()
    for pipe in pipes:
        for fd in pipe:
            os.close(fd)


def comes_back(forge: Forge, count: int = 1) -> None:
    "So many chains are given back, and the device lives."
    driver = forge.driver
    driver.kick(forge.queue)
    for _ in range(count):
        if driver.memory.u16[(forge.vq.ring.used >> 1) + 1] == count:
            break
        assert driver.drivers[forge.queue].interrupts.acquire(timeout=PATIENCE)
    assert driver.memory.u16[(forge.vq.ring.used >> 1) + 1] == count
    assert driver.status == RUNNING


def revives(forge: Forge, features: int = INDIRECT) -> None:
    "After a reset it works as if nothing had been."
    forge.driver.start(features)
    both(lambda f: f.desc(0, DATA, 4))(forge)
    comes_back(forge)
    forge.machine.others_live()  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", BREAKS)
def test_a_bad_ring_breaks_its_device_alone_and_a_reset_revives_it(forge: Forge, name: str) -> None:
    BREAKS[name](forge)
    forge.driver.kick(forge.queue)
    is_broken(forge.driver)
    forge.machine.others_live()  # type: ignore[attr-defined]
    revives(forge)


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_legal_or_harmless_comes_back(forge: Forge, name: str) -> None:
    HARMLESS[name](forge)
    comes_back(forge)
    forge.machine.others_live()  # type: ignore[attr-defined]


def test_b1_a_table_which_was_not_negotiated_breaks_it(forge: Forge) -> None:
    forge.driver.start(F_VERSION_1)
    both(lambda f: f.table((DATA, 1, f.flags, 0)))(forge)
    forge.driver.kick(forge.queue)
    is_broken(forge.driver)
    revives(forge)


def test_a4_a_ring_which_is_full_is_served(forge: Forge) -> None:
    for i in range(8):
        forge.desc(i, DATA + 8 * i, 4)
    forge.offer(*range(8))
    comes_back(forge, 8)


def test_a17_a_buffer_may_be_the_ring_itself(forge: Forge) -> None:
    ring = forge.vq.ring
    for address in ring:
        forge.driver.start(INDIRECT)
        both(lambda f, at=address: f.desc(0, at, 68))(forge)
        forge.driver.kick(forge.queue)
        forge.machine.others_live()  # type: ignore[attr-defined]
    revives(forge)


def test_a29_a_storm_of_kicks_is_no_storm_of_interrupts(forge: Forge) -> None:
    for _ in range(100):
        forge.driver.kick(forge.queue)
    assert forge.driver.reasons == []
    both(lambda f: f.desc(0, DATA, 4))(forge)
    comes_back(forge)


def test_a3_indices_run_through_65535_to_0(forge: Forge) -> None:
    "More than 65536 chains, a ring full at a time."
    if forge.driver.device.name == "console":
        forge.flags = 0
    num, length = VIRTQUEUE_NUM, 0
    for features in (F_VERSION_1, F_VERSION_1 | F_RING_EVENT_IDX):
        forge.driver.start(features, num=num)
        forge.avail = forge.vq.ring.avail >> 1
        for i in range(num):
            forge.desc(i, DATA, length)
        asleep = naps(forge.vq)
        u16, used = forge.memory.u16, (forge.vq.ring.used >> 1) + 1
        done = 0
        while done < 65536 + num:
            forge.offer(*range(num))
            done += num
            u16[forge.avail + 2 + num] = (done - 1) & 0xFFFF  # used_event: tell me of the last
            forge.driver.kick(forge.queue)
            while u16[used] != done & 0xFFFF:
                assert asleep.acquire(timeout=PATIENCE)
        assert forge.driver.status == RUNNING
        forge.vq.wakeup.__dict__.pop("sleep")
