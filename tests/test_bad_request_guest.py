"""Bad requests in good rings, and other mischief, composed by a real Guest: each costs that request, or that Guest.

Each case is named after its rule: D for the disk, E for console, network and entropy, F for what is no ring at all. The
tiny Guest's shell writes the request by `poke` and wakes the device by `kick`, as in test_bad_input_guest.py; the same
rules are held by fake drivers in the tests of each device.
"""

import os
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import PATIENCE
from test_bad_input_guest import (
    BUFFER,
    HOOK,
    KICK,
    LIMIT,
    NEXT_WRITE,
    OTHER,
    POWER_OFF,
    RING,
    SECOND,
    TABLE,
    WAIT,
    Counter,
    Outcome,
    attack,
    chain,
    dies,
    lives,
)

from lguest_nb import guest
from lguest_nb.block import HEADER, S_IOERR, S_OK, S_UNSUPP, T_BARRIER, T_OUT, T_SCSI_CMD, Block
from lguest_nb.console import Console
from lguest_nb.guest import poke_available, poke_descriptors, poke_line
from lguest_nb.net import MOST, VNET_HEADER, Net
from lguest_nb.vring import DESC_NEXT, DESC_WRITE, VIRTQUEUE_NUM, Virtqueue, ring_at

pytestmark = pytest.mark.usefixtures("nothing_left")
SECTORS, DISK = 4, b"disk" * 512  # four sectors of it
OWN = b"the Guest's own."  # what is in the buffer for data, and must stay there if nothing moves
UNTOUCHED = 0xEE  # what is in the place for the status
HEAD = (BUFFER, 16, DESC_NEXT, 1)
STATUS = (TABLE, 1, DESC_WRITE, 0)


# Disk


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    file = tmp_path / "disk"
    file.write_bytes(DISK)
    return file


def request(disk: Block, kind: int, sector: int, *descriptors: tuple[int, int, int, int]) -> Outcome:
    "One request, its traces, and then an ordinary read by the Guest's own driver."
    outcome = attack(
        *[poke_line(BUFFER, HEADER.pack(kind, 0, sector)), poke_line(OTHER, OWN), poke_line(TABLE, bytes([UNTOUCHED]))],
        *chain(*descriptors),
        *[KICK, f"kick {WAIT:#x}", *[f"peek {address:#x} 16" for address in (RING.used, OTHER, TABLE)]],
        *["reset 0", "start 0", "disk read 0"],
        device=disk,
    )
    assert outcome.ending == POWER_OFF, outcome.said
    assert "|diskdiskdiskdisk|" in outcome.said, "the next request was not served"
    assert outcome.used[:2] == (1, 0), "the head was not given back"
    return outcome


def data(length: int = 512, writable: bool = False) -> tuple[int, int, int, int]:
    return OTHER, length, NEXT_WRITE if writable else DESC_NEXT, 2


READ, WRITE = [HEAD, data(writable=True), STATUS], [HEAD, data(), STATUS]
NO_REQUEST = {  # no place for a status, or no whole header: length 0, and nothing is written at all
    "D1 header only": (T_OUT, [(BUFFER, 16, 0, 0)]),
    "D1 header and data, no status": (T_OUT, [HEAD, (OTHER, 512, 0, 0)]),
    "D2 header of 15 bytes": (T_OUT, [(BUFFER, 15, DESC_NEXT, 1), (TABLE, 1, DESC_WRITE, 0)]),
    "D2 no header": (0, [(OTHER, 512, NEXT_WRITE, 1), (TABLE, 1, DESC_WRITE, 0)]),
    "D2 header of 15 bytes in two pieces": (
        T_OUT, [(BUFFER, 8, DESC_NEXT, 1), (BUFFER + 8, 7, DESC_NEXT, 2), STATUS],
    ),
    "D4 header is for writing": (0, [(BUFFER, 16, NEXT_WRITE, 1), data(writable=True), STATUS]),
    "D4 status is for reading": (T_OUT, [HEAD, data(), (TABLE, 1, 0, 0)]),
    "D4 status of no bytes": (T_OUT, [HEAD, data(), (TABLE, 0, DESC_WRITE, 0)]),
}  # fmt: skip


@pytest.mark.parametrize("rule", NO_REQUEST)
def test_what_is_no_request_is_given_back_untouched(rule: str, disk: Path) -> None:
    kind, descriptors = NO_REQUEST[rule]
    outcome = request(Block(disk), kind, 1, *descriptors)
    assert outcome.used == (1, 0, 0)
    assert outcome.peeked[1] == OWN and outcome.peeked[2][0] == UNTOUCHED
    assert disk.read_bytes() == DISK


DISCARD, WRITE_ZEROES, SECURE_ERASE, FLUSH, GET_ID = 11, 13, 14, 4, 8  # virtio 1.2 §5.2.6: none of them offered
FAILS = {  # type, sector, descriptors, and what the status byte says
    "D5 read into what is for reading": (0, 1, WRITE, S_IOERR),
    "D5 write from what is for writing": (T_OUT, 1, READ, S_IOERR),
    "D6 read of 511 bytes": (0, 1, [HEAD, data(511, True), STATUS], S_IOERR),
    "D6 read of 513 bytes": (0, 1, [HEAD, data(513, True), STATUS], S_IOERR),
    "D6 write of 511 bytes": (T_OUT, 1, [HEAD, data(511), STATUS], S_IOERR),
    "D6 write of one byte": (T_OUT, 1, [HEAD, data(1), STATUS], S_IOERR),
    "D8 sector behind the last": (T_OUT, SECTORS, WRITE, S_IOERR),
    "D8 last sector and one more": (T_OUT, SECTORS - 1, [HEAD, data(1024), STATUS], S_IOERR),
    "D8 sector times 512 wraps to 0": (T_OUT, 1 << 55, WRITE, S_IOERR),
    "D8 sector is all 64 bits": (T_OUT, (1 << 64) - 1, WRITE, S_IOERR),
    "D8 read behind the last": (0, SECTORS, READ, S_IOERR),
    "D8 read where the sum wraps": (0, (1 << 64) - 1, READ, S_IOERR),
    "D8 no data at a sector there is not": (T_OUT, 1 << 63, [HEAD, (TABLE, 0, DESC_NEXT, 2), STATUS], S_IOERR),
    "D10 scsi": (T_SCSI_CMD, 1, READ, S_UNSUPP),
    "D10 scsi, and out": (T_SCSI_CMD | T_OUT, 1, WRITE, S_UNSUPP),
    "D10 scsi, and barrier": (T_SCSI_CMD | T_BARRIER, 1, READ, S_UNSUPP),
    "D10 type nobody knows": (0x40, 1, READ, S_UNSUPP),
    "D10 all bits of the type but barrier and scsi": (0x7FFFFFFD, 1, WRITE, S_UNSUPP),
    "D12 flush": (FLUSH, 0, [(BUFFER, 16, DESC_NEXT, 1), STATUS], S_UNSUPP),
    "D12 flush of a sector, with data": (FLUSH, 7, WRITE, S_UNSUPP),
    "D13 id into 19 bytes": (GET_ID, 0, [HEAD, data(19, True), STATUS], S_UNSUPP),
    "D14 discard": (DISCARD, 0, [HEAD, data(16), STATUS], S_UNSUPP),
    "D14 write zeroes": (WRITE_ZEROES, 0, [HEAD, data(16), STATUS], S_UNSUPP),
    "D15 discard with rubbish for a list": (DISCARD, 0, [HEAD, data(17), STATUS], S_UNSUPP),
    "D16 discard with no list": (DISCARD, 0, [(BUFFER, 16, DESC_NEXT, 1), STATUS], S_UNSUPP),
    "D16 secure erase of everything": (SECURE_ERASE, 0, [HEAD, data(512), STATUS], S_UNSUPP),
}


@pytest.mark.parametrize("rule", FAILS)
def test_a_bad_request_fails_alone_and_moves_nothing(rule: str, disk: Path) -> None:
    kind, sector, descriptors, status = FAILS[rule]
    if len(descriptors) == 2:
        descriptors = [descriptors[0], (TABLE, 1, DESC_WRITE, 0)]
    outcome = request(Block(disk), kind, sector, *descriptors)
    assert outcome.used == (1, 0, 1)
    assert outcome.peeked[1] == OWN and outcome.peeked[2][0] == status
    assert disk.read_bytes() == DISK


@pytest.mark.parametrize("kind", [T_OUT, T_OUT | T_BARRIER])
def test_D9_a_write_to_a_read_only_disk_fails_alone(kind: int, disk: Path) -> None:
    outcome = request(Block(disk, read_only=True), kind, 1, *WRITE)
    assert (outcome.used, outcome.peeked[2][0]) == ((1, 0, 1), S_IOERR)
    assert disk.read_bytes() == DISK


LEGAL = {  # and how many bytes the device has written
    "D2 header in two pieces": (
        0, [(BUFFER, 8, DESC_NEXT, 1), (BUFFER + 8, 8, DESC_NEXT, 2), (OTHER, 512, NEXT_WRITE, 3), STATUS], 513,
    ),
    "D4 status in the same buffer as the data": (0, [HEAD, (OTHER, 513, DESC_WRITE, 0)], 513),
    "D12 barrier": (T_BARRIER, READ, 513),
    "no data": (0, [(BUFFER, 16, DESC_NEXT, 1), STATUS], 1),
}  # fmt: skip


@pytest.mark.parametrize("rule", LEGAL)
def test_an_odd_request_is_served(rule: str, disk: Path) -> None:
    kind, descriptors, length = LEGAL[rule]
    outcome = request(Block(disk), kind, 1, *descriptors)
    assert outcome.used == (1, 0, length)
    assert outcome.peeked[1] == (DISK[512:528] if length > 1 else OWN)
    if descriptors[-1] == STATUS:
        assert outcome.peeked[2][0] == S_OK


def test_D4_a_read_whose_status_has_no_byte_takes_the_last_of_the_data(disk: Path) -> None:
    "And so there is no whole sector left for the data."
    outcome = request(Block(disk), 0, 1, HEAD, data(writable=True), (TABLE, 0, DESC_WRITE, 0))
    assert (outcome.used, outcome.peeked[1], outcome.peeked[2][0]) == ((1, 0, 1), OWN, UNTOUCHED)


def test_a_disk_may_be_asked_to_read_into_its_own_ring(disk: Path) -> None:
    "It costs the Guest its ring, and us nothing; the disk has the bytes of its descriptors to say."
    disk.write_bytes(b"\xff" * len(DISK))
    over_the_ring = [HEAD, (RING.avail, 512, NEXT_WRITE, 2), STATUS]
    lines = [poke_line(BUFFER, HEADER.pack(0, 0, 0)), *chain(*over_the_ring)]
    dies("block:0: Guest moved used index from 1 to 65535", *lines, device=Block(disk))


# Console: its rings stand behind those of the first device, and without it there is the early console


CONSOLE_IN, CONSOLE_OUT = SECOND, ring_at(SECOND.desc + 3 * 4096, VIRTQUEUE_NUM)


def console(ring: tuple[int, int, int], *descriptors: tuple[int, int, int, int]) -> list[str]:
    there = type(RING)(*ring)
    lines = [poke_descriptors(there, *descriptors), poke_available(there, 0), f"kick {there.desc:#x}"]
    return ["reset 1", *lines]


def test_E1_a_writable_buffer_for_the_console_to_print_kills() -> None:
    lines = console(CONSOLE_OUT, (BUFFER, 4, DESC_NEXT, 1), (OTHER, 4, DESC_WRITE, 0))
    dies("Input buffers in console output queue?", *lines)


def test_E1_a_readable_buffer_for_the_keyboard_kills() -> None:
    dies("Output buffers in console in queue?", *console(CONSOLE_IN, (BUFFER, 4, 0, 0)))


class Heard(Console):
    "A console which says when it has printed something."

    served, screens = threading.Semaphore(0), list[int]()

    def output(self, vq: Virtqueue) -> None:
        super().output(vq)
        self.screens[:] = [self.output_fd]
        self.served.release()

    @classmethod
    def until_printed(cls, *words: bytes) -> None:
        "In this order. What the Guest's shell says meanwhile, by another way, may come between them."
        pattern = re.compile(b".*".join(words), re.DOTALL)
        while not cls.screens or not pattern.search(os.pread(cls.screens[0], 1 << 16, 0)):
            assert cls.served.acquire(timeout=PATIENCE), "it was not printed"


def test_E5_every_buffer_of_a_chain_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest, "Console", Heard)
    words = [(BUFFER, b"all "), (OTHER, b"of "), (TABLE, b"it\n")]
    chained = [(at, len(word), DESC_NEXT if i < 2 else 0, i + 1) for i, (at, word) in enumerate(words)]
    lines = [*[poke_line(at, word) for at, word in words], *console(CONSOLE_OUT, *chained)]
    outcome = attack(*lines, f"kick {HOOK:#x}", hooks=[lambda: Heard.until_printed(*(word for _, word in words))])
    assert outcome.ending == POWER_OFF


def test_E2_all_of_memory_to_print_thirty_times_over_is_left_when_the_guest_says_so() -> None:
    "Half a gigabyte, and a reset a moment later: it joins, and the rest is not printed."
    everything = [(0, LIMIT, DESC_NEXT if i < 29 else 0, i + 1) for i in range(30)]
    outcome = attack(*console(CONSOLE_OUT, *everything), "reset 1", "start 1", "echo still here")
    assert outcome.ending == POWER_OFF
    assert "echo still here\nstill here\n" in outcome.said


# Network


class Wire:
    "A card whose cable ends in the test."

    def __init__(self) -> None:
        ours, self.end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.card = Net(ours.detach())

    def send(self) -> None:
        self.end.send(bytes(VNET_HEADER) + b"a packet which is longer than the buffer")


@pytest.fixture
def wire() -> Iterator[Wire]:
    wire = Wire()
    yield wire
    wire.end.close()


SEND = SECOND  # the card's second queue


def test_E1_a_writable_buffer_for_the_network_to_send_kills(wire: Wire) -> None:
    lines = [poke_descriptors(SEND, (BUFFER, 60, DESC_WRITE, 0)), poke_available(SEND, 0), f"kick {SEND.desc:#x}"]
    dies("net:1: Input buffers in net output queue?", *lines, device=wire.card)


def test_E1_a_readable_buffer_for_a_packet_to_come_kills(wire: Wire) -> None:
    dies("net:0: Output buffers in net input queue?", *chain((BUFFER, 60, 0, 0)), device=wire.card)


def test_E8_a_packet_which_is_too_large_is_given_back_and_the_next_one_sent(wire: Wire) -> None:
    parts = [(BUFFER, MOST - 100, DESC_NEXT, 1), (OTHER, 101, 0, 0), (BUFFER, VNET_HEADER + 60, 0, 0)]
    send = [poke_descriptors(SEND, *parts), poke_available(SEND, 0, 2), f"kick {SEND.desc:#x}", f"kick {WAIT:#x}"]
    outcome = attack(*send, f"peek {SEND.used:#x} 16", device=wire.card, irqs=range(2, 3))
    assert (outcome.ending, outcome.used) == (POWER_OFF, (2, 0, 0))
    assert len(wire.end.recv(1 << 17)) == VNET_HEADER + 60


@pytest.mark.parametrize("room", [1, VNET_HEADER - 1, VNET_HEADER + 5])
def test_E9_a_packet_which_does_not_fit_is_lost_and_its_buffer_comes_back(wire: Wire, room: int) -> None:
    two = [(BUFFER, room, DESC_WRITE, 0), (OTHER, 256, DESC_WRITE, 0)]
    outcome = attack(
        *[*chain(*two, heads=[0, 1]), KICK, f"kick {HOOK:#x}", f"kick {WAIT:#x}"],
        *[f"kick {HOOK:#x}", f"kick {WAIT:#x}", f"peek {RING.used:#x} 16", f"peek {RING.used + 12:#x} 8"],
        device=wire.card,
        hooks=[wire.send, wire.send],
    )
    assert (outcome.ending, outcome.used) == (POWER_OFF, (2, 0, 0))
    assert int.from_bytes(outcome.peeked[1][4:8], "little") == VNET_HEADER + 40


def test_E10_without_a_receive_buffer_packets_wait_and_the_guest_goes_on(wire: Wire) -> None:
    outcome = attack(KICK, *[f"kick {HOOK:#x}"] * 8, "echo alive", device=wire.card, hooks=[wire.send] * 8)
    assert outcome.ending == POWER_OFF and "\nalive\n" in outcome.said


def test_E13_a_cable_which_was_cut_costs_packets_and_no_thread(wire: Wire) -> None:
    wire.end.close()
    send = [poke_descriptors(SEND, (BUFFER, 60, 0, 0)), poke_available(SEND, 0, 0, 0), f"kick {SEND.desc:#x}"]
    outcome = attack(
        *[*send, f"kick {WAIT:#x}", f"peek {SEND.used:#x} 16"], device=wire.card, irqs=range(2, 3)
    )
    assert (outcome.ending, outcome.used) == (POWER_OFF, (3, 0, 0))


# What is no ring


PAGE = 0x1000000
NOTHING_HAPPENS = {
    "F7 an address inside a descriptor": [f"kick {PAGE + 1:#x}"],
    "F7 an address inside a ring": [f"kick {RING.desc + 4:#x}", f"kick {RING.avail:#x}", f"kick {RING.used + 1:#x}"],
    "F7 address zero": ["kick 0"],
    "F7 the last byte of memory": [f"kick {LIMIT - 1:#x}"],
    "F7 a string without an end": [poke_line(LIMIT - 2, b"!!"), f"kick {LIMIT - 2:#x}"],
    "the descriptor page is full of ones, but for the status": [poke_line(PAGE, b"\xff\xff\xff\xff"),
                                                                poke_line(PAGE + 5, b"\xff" * 900)],
    "the descriptor page is empty": [poke_line(PAGE, bytes(4)), poke_line(PAGE + 5, bytes(900))],
    "ring numbers and interrupts are swapped": [poke_line(PAGE + 5, bytes.fromhex("ffff1f00ffffff7f"))],
    "the used ring is full of ones": [poke_line(RING.used, b"\xff" * 900)],
    "the whole ring is full of ones, and reset": [
        *[poke_line(RING.desc + 900 * i, b"\xff" * 900) for i in range(11)],
        *[f"poke {PAGE + 4:#x} 00", f"kick {PAGE:#x}"],
    ],
}  # fmt: skip


@pytest.mark.parametrize("what", NOTHING_HAPPENS)
def test_a_request_is_served_after(what: str) -> None:
    outcome = lives(*NOTHING_HAPPENS[what], *chain((BUFFER, 16, DESC_WRITE, 0)), typed=True)
    assert outcome.used[1:] == (0, 16)


@pytest.mark.parametrize("address", [LIMIT, LIMIT + 1, 0x7FFFFFFF, 0x80000000, 0xFFC00000, 0xFFFFFFFF])
def test_F7_an_address_beyond_memory_kills(address: int) -> None:
    outcome = attack(f"kick {address:#x}", "echo alive")
    assert outcome.ending.how == "died" and "\nalive" not in outcome.said
    assert outcome.ending.reason == f"Bad NOTIFY {address:#x}: the Guest's memory ends at {LIMIT:#x}."


@pytest.mark.parametrize("rubbish", [range(256), range(255, -1, -1), [0, 4, 0x84, 0, 0xFF, 4, 1, 0x80, 7]])
def test_rubbish_in_a_status_costs_nothing(rubbish: range | list[int]) -> None:
    "Each byte, told to the Launcher: the device is there afterwards."
    lines = [line for value in rubbish for line in (f"poke {PAGE + 4:#x} {value:02x}", f"kick {PAGE:#x}")]
    last = [*chain((BUFFER, 16, DESC_WRITE, 0)), KICK, f"kick {WAIT:#x}", f"peek {RING.used:#x} 16"]
    outcome = attack(*lines, "reset 0", *last, typed=True)
    assert (outcome.ending, outcome.used) == (POWER_OFF, (1, 0, 16)), outcome.said[-500:]


def test_a_storm_of_kicks_everywhere_leaves_a_device_which_works() -> None:
    "Doorbells of all queues, descriptors and strings, in turn and two hundred times."
    doors = [RING.desc, PAGE, PAGE + 1, CONSOLE_OUT.desc, RING.avail, 0]
    lines = [f"kick {address:#x}" for address in doors * 200]
    last = [*chain((BUFFER, 16, DESC_WRITE, 0)), KICK, f"kick {WAIT:#x}", f"peek {RING.used:#x} 16"]
    outcome = attack(*lines, *last, typed=True, device=Counter())
    assert (outcome.ending, outcome.used) == (POWER_OFF, (1, 0, 16)), outcome.said[-500:]
