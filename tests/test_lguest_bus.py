"""The bus of 2009: the descriptor page byte for byte, and what each NOTIFY means."""

import logging
import os
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from fakes import FakeHost, connect
from support import PATIENCE, ask_c, close, lguest_threads

from lguest_nb.block import Block
from lguest_nb.bus import lguest as lguest_bus
from lguest_nb.bus.lguest import DESCRIPTOR, EARLY_PIECE, LGUEST_IRQS, RING_PAGES, VQCONFIG, LguestBus
from lguest_nb.console import Console
from lguest_nb.device import (
    F_NOTIFY_ON_EMPTY,
    F_RING_INDIRECT_DESC,
    STATUS_ACKNOWLEDGE,
    STATUS_DRIVER,
    STATUS_DRIVER_OK,
    STATUS_FAILED,
    VIRTIO_ID_BLOCK,
    VIRTIO_ID_CONSOLE,
    VIRTIO_ID_NET,
    VIRTIO_ID_RNG,
    Device,
)
from lguest_nb.host import HostError
from lguest_nb.memory import BadAddress, GuestError, GuestMemory, LguestError
from lguest_nb.net import Net
from lguest_nb.rng import Rng
from lguest_nb.vring import VIRTQUEUE_NUM, Virtqueue, ring_size

pytestmark = pytest.mark.usefixtures("nothing_left")
PAGE = 1 << 20  # the descriptor page: right above a megabyte of RAM


class Toy(Device):
    "Gives every buffer back, on as many queues as you like."

    def __init__(
        self, name: str = "toy", virtio_id: int = 77, features: int = 0, config: bytes = b"", queues: int = 1
    ) -> None:
        super().__init__(name, virtio_id, features, config)
        self.count, self.closed, self.where = queues, 0, set[int]()

    @property
    def services(self) -> Sequence[Callable[[Virtqueue], None]]:
        return [self.serve] * self.count

    def serve(self, vq: Virtqueue) -> None:
        chain = vq.wait()
        self.where.add(threading.get_ident())
        vq.add_used(chain, 0)

    def close(self) -> None:
        self.closed += 1


class Computer:
    "A megabyte of Guest with a bus and a Host, and we are its kernel."

    def __init__(self) -> None:
        self.memory, self.host = GuestMemory(PAGE), FakeHost()
        self.said: list[bytes] = []
        self.failures: list[BaseException] = []
        self.failed = threading.Event()
        self.bus = LguestBus(self.memory, self.said.append, self._failed)
        self.bus.host = self.host

    def _failed(self, error: BaseException) -> None:
        self.failures.append(error)
        self.failed.set()

    def add(self, **kind: object) -> Toy:
        toy = Toy(**kind)  # type: ignore[arg-type]
        self.bus.add(toy)
        return toy

    def status(self, value: int, device: int = 0) -> None:
        "The driver changes a status byte, and says so."
        place = self.bus.places[device]
        self.memory.u8[place.address + 4] = value
        self.bus.notify(place.address)

    def ring(self, device: int = 0, queue: int = 0) -> int:
        "The address of a ring, as the Guest works it out."
        at = self.bus.places[device].address + 5 + 8 * queue
        return VQCONFIG.unpack_from(self.memory.map, at)[2] * 4096


@pytest.fixture
def computer() -> Iterator[Computer]:
    computer = Computer()
    yield computer
    computer.bus.close()
    close(computer.memory)


class TestPage:
    def test_the_five_bytes_of_a_descriptor(self, computer: Computer) -> None:
        computer.add(virtio_id=0x4D, features=0x10203, config=b"12345678", queues=2)
        assert DESCRIPTOR.size == 5
        assert computer.memory.read(PAGE, 5) == bytes([0x4D, 2, 3, 8, 0])

    def test_the_eight_bytes_of_a_queue(self, computer: Computer) -> None:
        computer.add(queues=2)
        assert VQCONFIG.size == 8
        first, second = (computer.memory.read(PAGE + 5 + 8 * i, 8).hex(" ") for i in range(2))
        assert first == "00 01 01 00 01 01 00 00"  # 256 entries, interrupt 1, page 0x101
        assert second == "00 01 02 00 04 01 00 00"

    def test_features_offered_then_accepted_then_config(self, computer: Computer) -> None:
        computer.add(features=0x30201, config=b"config")
        assert computer.memory.read(PAGE + 13, 12) == b"\1\2\3" + bytes(3) + b"config"

    @pytest.mark.parametrize(("bit", "length"), [(0, 1), (7, 1), (8, 2), (15, 2), (16, 3), (31, 4)])
    def test_the_feature_length_grows_with_the_highest_bit(self, computer: Computer, bit: int, length: int) -> None:
        computer.add(features=1 << bit, config=b"!")
        assert computer.memory.u8[PAGE + 2] == length
        offered = computer.memory.read(PAGE + 13, length)
        assert offered[bit // 8] == 1 << bit % 8
        assert computer.memory.u8[PAGE + 13 + 2 * length] == ord("!")

    def test_devices_stand_one_behind_the_other_until_type_0(self, computer: Computer) -> None:
        computer.add(virtio_id=1, features=1, config=b"abc")
        computer.add(virtio_id=2)
        computer.add(virtio_id=3, queues=3)
        assert [place.address for place in computer.bus.places] == [PAGE, PAGE + 18, PAGE + 31]
        assert [computer.memory.u8[PAGE + at] for at in (0, 18, 31, 31 + 29)] == [1, 2, 3, 0]

    def test_the_page_is_the_one_right_above_ram(self, computer: Computer) -> None:
        assert computer.bus.page == computer.memory.size
        computer.add()
        assert computer.ring() == PAGE + 4096

    def test_every_queue_has_256_entries_on_three_zeroed_pages_of_its_own(self, computer: Computer) -> None:
        device = computer.add(queues=3)
        rings = [computer.ring(queue=i) for i in range(3)]
        assert rings == [PAGE + 4096 * (1 + 3 * i) for i in range(3)]
        assert RING_PAGES == 3
        assert computer.memory.limit == PAGE + 4096 * 10
        assert computer.memory.read(rings[0], 9 * 4096) == bytes(9 * 4096)
        for vq, ring in zip(device.queues, rings, strict=True):
            assert (vq.num, vq.ring) == (VIRTQUEUE_NUM, (ring, ring + 4096, ring + 8192))

    def test_interrupts_are_counted_from_1_in_the_order_of_the_queues(self, computer: Computer) -> None:
        computer.add(queues=2)
        computer.add(queues=1)
        computer.add(queues=2)
        irqs = []
        for place in computer.bus.places:
            for i in range(place.device.count):
                irqs.append(VQCONFIG.unpack_from(computer.memory.map, place.address + 5 + 8 * i)[1])
        assert irqs == [1, 2, 3, 4, 5]
        for place in computer.bus.places:
            for vq in place.device.queues:
                vq.interrupt()
        assert computer.host.interrupts == [1, 2, 3, 4, 5]

    def test_what_the_guest_scribbles_over_the_page_moves_nothing(self, computer: Computer) -> None:
        device = computer.add(features=0b11, config=b"config", queues=2)
        ring = computer.ring(queue=1)
        computer.memory.write(PAGE, bytes([0xFF] * 4))
        computer.memory.write(PAGE + 5, bytes([0xFF] * 16))
        computer.status(STATUS_DRIVER_OK)
        assert device.running
        assert {address for address, _ in computer.host.eventfds} == {ring - 3 * 4096, ring}
        computer.memory.u8[PAGE + 22] = 1
        computer.status(0)
        assert not device.running
        assert computer.memory.read(PAGE + 23, 6) == b"config"

    def test_two_devices_of_real_life_are_as_large_as_they_were(self, computer: Computer, tmp_path: Path) -> None:
        disk = tmp_path / "disk"
        disk.write_bytes(bytes(1024))
        devices = [Console(), Rng(), Block(disk), Net(os.open("/dev/null", os.O_RDWR))]
        for device in devices:
            computer.bus.add(device)
        sizes = [place.end - place.address for place in computer.bus.places]
        assert sizes == [21, 13, 31, 37]
        types = [computer.memory.u8[place.address] for place in computer.bus.places]
        assert types == [VIRTIO_ID_CONSOLE, VIRTIO_ID_RNG, VIRTIO_ID_BLOCK, VIRTIO_ID_NET] == [3, 4, 2, 1]
        lengths = [computer.memory.read(place.address + 1, 3) for place in computer.bus.places]
        assert lengths == [bytes(b) for b in ([2, 0, 0], [1, 0, 0], [1, 1, 16], [2, 4, 8])]

    def test_numbers_are_those_of_linux(self) -> None:
        names = ("VIRTIO_ID_NET", "VIRTIO_ID_BLOCK", "VIRTIO_ID_CONSOLE", "VIRTIO_ID_RNG")
        told = ask_c(("linux/virtio_ids.h",), names)
        assert list(told.values()) == [VIRTIO_ID_NET, VIRTIO_ID_BLOCK, VIRTIO_ID_CONSOLE, VIRTIO_ID_RNG]
        names = ("ACKNOWLEDGE", "DRIVER", "DRIVER_OK", "FAILED")
        told = ask_c(("linux/virtio_config.h",), tuple(f"VIRTIO_CONFIG_S_{name}" for name in names))
        ours = [STATUS_ACKNOWLEDGE, STATUS_DRIVER, STATUS_DRIVER_OK, STATUS_FAILED]
        assert list(told.values()) == ours == [1, 2, 4, 0x80]
        bits = ("VIRTIO_F_NOTIFY_ON_EMPTY", "VIRTIO_RING_F_INDIRECT_DESC")
        told = ask_c(("linux/virtio_config.h", "linux/virtio_ring.h"), bits)
        assert [1 << bit for bit in told.values()] == [F_NOTIFY_ON_EMPTY, F_RING_INDIRECT_DESC] == [1 << 24, 1 << 28]


class TestRoom:
    def test_the_page_may_be_filled_to_its_last_byte(self, computer: Computer) -> None:
        for _ in range(15):
            computer.add(config=bytes(255))
        rest = 4096 - 15 * (13 + 255)
        computer.add(config=bytes(rest - 13))
        assert computer.bus.next == PAGE + 4096
        with pytest.raises(LguestError, match="Too many devices: toy needs 13 bytes .* 4096 of 4096 are taken"):
            computer.add()

    def test_one_byte_too_many_does_not_fit(self, computer: Computer) -> None:
        for _ in range(15):
            computer.add(config=bytes(255))
        with pytest.raises(LguestError, match="Too many devices"):
            computer.add(config=bytes(4096 - 15 * (13 + 255) - 12))

    def test_the_31st_interrupt_is_the_last(self, computer: Computer) -> None:
        assert LGUEST_IRQS == 32
        for _ in range(31):
            computer.add()
        with pytest.raises(LguestError, match="toy would have interrupt 32, and the last is 31"):
            computer.add()

    def test_without_pages_for_a_ring_there_is_no_device(self, computer: Computer) -> None:
        computer.memory.take_pages(254)
        with pytest.raises(LguestError, match="Not enough memory for devices: 3 more pages asked for, 1 left"):
            computer.add()

    def test_a_config_length_is_one_byte(self, computer: Computer) -> None:
        computer.add(config=bytes(255))
        with pytest.raises(LguestError, match="config"):
            computer.add(config=bytes(256))

    @pytest.mark.parametrize("features", [-1, 1 << 2040, 1 << 9999], ids=["negative", "one too many", "huge"])
    def test_features_are_bits_in_255_bytes(self, computer: Computer, features: int) -> None:
        computer.add(features=1 << 2039)
        with pytest.raises(LguestError, match="The features of toy are .{,40}, not bits in 255 bytes or less"):
            computer.add(features=features)

    def test_a_device_which_does_not_fit_takes_nothing(self, computer: Computer) -> None:
        computer.memory.take_pages(252)
        limit, before = computer.memory.limit, computer.memory.read(PAGE, 4096)
        toy = Toy(queues=2)
        with pytest.raises(LguestError, match="Not enough memory"):
            computer.bus.add(toy)
        assert toy.queues == []
        assert (computer.memory.limit, computer.bus.next_irq) == (limit, 1)
        assert computer.memory.read(PAGE, 4096) == before

    def test_closing_closes_every_device_though_one_of_them_raises(self) -> None:
        class Stubborn(Toy):
            def close(self) -> None:
                super().close()
                raise ValueError("I won't")

        computer = Computer()
        devices = [Stubborn("first"), Toy("second"), Stubborn("third")]
        for i, device in enumerate(devices):
            computer.bus.add(device)
            computer.status(7, device=i)
        with pytest.raises(ValueError, match="I won't"):
            computer.bus.close()
        assert [device.closed for device in devices] == [1, 1, 1]
        assert lguest_threads() == []
        computer.bus.close()
        close(computer.memory)


class TestStatus:
    @pytest.mark.parametrize("status", [1, 3, 8, 0x73])
    def test_only_driver_ok_starts(self, computer: Computer, status: int) -> None:
        device = computer.add()
        computer.status(status)
        assert not device.running
        assert computer.host.eventfds == {}

    def test_driver_ok_starts_a_thread_and_attaches_an_eventfd_for_each_queue(self, computer: Computer) -> None:
        device = computer.add(queues=2)
        computer.status(7)
        assert device.running
        assert sorted(lguest_threads()) == ["lguest toy:0", "lguest toy:1"]
        kicks = [vq.wakeup.kicks for vq in device.queues]
        assert computer.host.eventfds == {(computer.ring(queue=i), None): kicks[i] for i in range(2)}

    def test_driver_ok_again_changes_nothing(self, computer: Computer, monkeypatch) -> None:
        computer.add()
        computer.status(7)
        monkeypatch.setattr(lguest_bus, "start_device", lambda *_: pytest.fail("it was started twice"))
        computer.status(7)
        assert len(computer.host.calls) == 1

    def test_a_status_written_without_a_notify_means_nothing(self, computer: Computer) -> None:
        device = computer.add()
        computer.memory.u8[PAGE + 4] = 7
        assert not device.running

    def test_each_device_has_a_status_of_its_own(self, computer: Computer) -> None:
        devices = [computer.add(), computer.add()]
        computer.status(7, device=1)
        assert [device.running for device in devices] == [False, True]

    def test_zero_resets(self, computer: Computer) -> None:
        device = computer.add(features=0b11, queues=2)
        computer.memory.u8[PAGE + 22] = 0b11
        computer.status(7)
        driver = connect(computer.host, device.queues[1], 2, 0x10000)
        driver.add(out=[b"x"])
        computer.host.kick(computer.ring(queue=1))
        driver.wait_used()
        computer.status(0)
        assert not device.running
        assert lguest_threads() == []
        assert computer.host.eventfds == {}
        assert computer.memory.u8[PAGE + 22] == 0
        assert computer.memory.u8[PAGE + 21] == 0b11
        for queue, vq in enumerate(device.queues):
            assert computer.memory.read(computer.ring(queue=queue), ring_size(256)) == bytes(ring_size(256))
            assert (vq.last_avail, vq.used_idx, vq.pending_used) == (0, 0, 0)

    def test_a_device_can_be_used_again_after_a_reset(self, computer: Computer) -> None:
        device = computer.add()
        for _ in range(3):
            computer.status(7)
            driver = connect(computer.host, device.queues[0], 1, 0x10000)
            head = driver.add(out=[b"x"])
            computer.host.kick(computer.ring())
            assert [used.head for used in driver.wait_used()] == [head]
            computer.status(0)
        assert computer.failures == []

    def test_a_reset_of_what_never_ran_is_a_reset(self, computer: Computer) -> None:
        computer.add(features=1)
        computer.memory.u8[PAGE + 14] = 1
        computer.memory.u8[computer.ring()] = 0xEE
        computer.status(0)
        assert computer.memory.u8[PAGE + 14] == 0
        assert computer.memory.u8[computer.ring()] == 0

    def test_failed_resets_what_runs_and_warns(self, computer: Computer, caplog) -> None:
        device = computer.add()
        computer.status(7)
        computer.status(STATUS_FAILED | 7)
        assert not device.running
        assert caplog.messages == ["Device toy configuration FAILED"]

    def test_a_driver_which_fails_for_ever_is_warned_of_once(self, computer: Computer, caplog) -> None:
        computer.add()
        for _ in range(100):
            computer.status(STATUS_FAILED)
        assert caplog.messages == ["Device toy configuration FAILED"]

    def test_rubbish_in_the_status_starts_resets_or_fails_and_nothing_else(self, computer: Computer) -> None:
        "Each byte, in an order which has every kind after every other: the device runs if DRIVER_OK says so."
        device = computer.add(features=0xFF, queues=2)
        for step in (1, 37, 89):
            for i in range(256):
                value = i * step & 0xFF
                before = device.running
                computer.status(value)
                failed, ok = value & STATUS_FAILED, value & STATUS_DRIVER_OK
                assert device.running == bool(value and not failed and (ok or before))
        assert computer.failures == []

    def test_failed_leaves_alone_what_does_not_run(self, computer: Computer, caplog) -> None:
        computer.add()
        computer.memory.u8[computer.ring()] = 0xEE
        computer.status(STATUS_FAILED)
        assert computer.memory.u8[computer.ring()] == 0xEE
        assert caplog.messages == ["Device toy configuration FAILED"]

    def test_what_was_not_offered_is_not_accepted(self, computer: Computer) -> None:
        device = computer.add(features=0x1001)
        computer.memory.write(PAGE + 15, b"\xff\xff")
        computer.status(7)
        assert device.accepted == 0x1001

    def test_accepted_features_are_latched_at_the_start(self, computer: Computer, monkeypatch) -> None:
        device = computer.add(features=0b111)
        computer.memory.u8[PAGE + 14] = 0b101
        computer.status(7)
        monkeypatch.setattr(lguest_bus, "start_device", lambda *_: None)
        computer.memory.u8[PAGE + 14] = 0b111
        computer.status(7)
        assert device.accepted == 0b101

    def test_verbose_tells_of_start_and_reset(self, computer: Computer, caplog) -> None:
        caplog.set_level(logging.INFO, "lguest_nb")
        computer.add(features=0x110005)
        computer.memory.u8[PAGE + 16] = 1
        computer.status(7)
        computer.status(0)
        assert caplog.messages == [
            f"Virtqueue page {PAGE + 4096:#x}",
            f"Notify on address {PAGE:#x}",
            "Device toy OK: offered 05 00 11, accepted 01 00 00",
            f"Notify on address {PAGE:#x}",
            "Resetting device toy",
        ]


class TestNotify:
    def test_an_early_kick_starts_the_device_and_is_not_lost(self, computer: Computer) -> None:
        device = computer.add(queues=2)
        driver = connect(computer.host, device.queues[1], 2, 0x10000)
        driver.add(out=[b"partition table, please"])
        computer.bus.notify(computer.ring(queue=1))
        assert device.running
        assert len(driver.wait_used()) == 1
        computer.status(7)
        assert len(computer.host.calls) == 2

    def test_a_kick_which_no_eventfd_claimed_on_a_running_device_is_the_guests_fault(self, computer: Computer) -> None:
        computer.add()
        computer.status(7)
        with pytest.raises(GuestError, match="Notification on running toy"):
            computer.bus.notify(computer.ring())

    def test_after_a_reset_a_kick_is_an_early_kick_again(self, computer: Computer) -> None:
        device = computer.add()
        computer.status(7)
        computer.status(0)
        computer.bus.notify(computer.ring())
        assert device.running

    @pytest.mark.parametrize("address", [0x5000, 0x5001, 0, PAGE - 6])
    def test_any_other_address_is_a_string_to_print(self, computer: Computer, address: int) -> None:
        computer.memory.write(address, b"hello\0")
        computer.bus.notify(address)
        assert computer.said == [b"hello"]

    def test_an_address_inside_a_descriptor_or_a_ring_is_one_too(self, computer: Computer) -> None:
        device = computer.add()
        for address in (PAGE + 1, computer.ring() + 4, computer.ring() + 4096):
            computer.bus.notify(address)
        assert not device.running
        assert len(computer.said) == 3

    def test_a_string_without_an_end_ends_with_memory(self, computer: Computer) -> None:
        computer.memory.write(computer.memory.limit - 3, b"end")
        computer.bus.notify(computer.memory.limit - 3)
        assert computer.said == [b"end"]

    def test_a_string_as_long_as_memory_is_copied_in_pieces(self, computer: Computer) -> None:
        "All of it is printed, and it costs us no second memory of the Guest's size."
        computer.memory.write(0, b"A" * computer.memory.limit)
        computer.bus.notify(1)
        assert sum(map(len, computer.said)) == computer.memory.limit - 1
        assert max(map(len, computer.said)) == EARLY_PIECE == 1 << 16

    def test_a_string_of_whole_pieces_ends_at_its_nul(self, computer: Computer) -> None:
        computer.memory.write(0x5000, b"A" * 2 * EARLY_PIECE + b"\0not this")
        computer.bus.notify(0x5000)
        assert b"".join(computer.said) == b"A" * 2 * EARLY_PIECE

    @pytest.mark.parametrize("beyond", [0, 1, 0xFFFFFFFF - PAGE - 4096])
    def test_an_address_beyond_memory_is_the_guests_fault(self, computer: Computer, beyond: int) -> None:
        address = computer.memory.limit + beyond
        with pytest.raises(GuestError, match=f"Bad NOTIFY {address:#x}: the Guest's memory ends at"):
            computer.bus.notify(address)

    def test_verbose_names_the_address(self, computer: Computer, caplog) -> None:
        caplog.set_level(logging.INFO, "lguest_nb")
        computer.bus.notify(0x5000)
        assert caplog.messages == ["Notify on address 0x5000"]


class TestRunning:
    def test_each_queue_is_served_on_a_thread_of_its_own(self, computer: Computer) -> None:
        device = computer.add(queues=2)
        computer.status(7)
        for i, vq in enumerate(device.queues):
            driver = connect(computer.host, vq, 1 + i, 0x10000 + 0x8000 * i)
            driver.add(out=[b"x"])
            computer.host.kick(computer.ring(queue=i))
            driver.wait_used()
        assert len(device.where) == 2
        assert threading.get_ident() not in device.where

    def test_interrupt_and_what_was_written_reach_the_host(self, computer: Computer) -> None:
        device = computer.add(queues=2)
        computer.status(7)
        driver = connect(computer.host, device.queues[1], 2, 0x10000)
        driver.add(into=[100])
        computer.host.kick(computer.ring(queue=1))
        driver.wait_used()
        assert computer.host.interrupts == [2]
        assert computer.host.written == [(0x10000, 100)]

    def test_a_broken_ring_is_passed_on_and_not_printed(self, computer: Computer, capfd) -> None:
        device = computer.add()
        computer.status(7)
        computer.memory.write(device.queues[0].ring.desc, struct.pack("<QIHH", 1 << 40, 1, 0, 0))
        computer.memory.u16[device.queues[0].avail + 1] = 1
        computer.host.kick(computer.ring())
        assert computer.failed.wait(PATIENCE)
        assert isinstance(computer.failures[0], BadAddress)
        assert str(computer.failures[0]).startswith("toy:0: Invalid address 0x10000000000")
        assert capfd.readouterr() == ("", "")

    def test_without_a_host_nothing_starts(self, computer: Computer) -> None:
        computer.add()
        computer.bus.host = None
        with pytest.raises(HostError, match="not connected to a Host"):
            computer.status(7)

    def test_closing_stops_every_device_and_gives_back_its_files(self, computer: Computer) -> None:
        devices = [computer.add(), computer.add()]
        computer.status(7)
        computer.status(7, device=1)
        computer.bus.close()
        assert lguest_threads() == []
        assert computer.host.eventfds == {}
        assert [device.closed for device in devices] == [1, 1]
