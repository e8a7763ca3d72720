"""Bad requests in good rings on virtio-mmio, by a real Guest of 64 bits: each fails alone.

Each case is named after its rule: D for the disk, E for console, network and entropy. The Guest (tests/long) does every
load and store itself, as test_bad_mmio_rings.py says; the same rules are held by fake drivers in the devices' tests.
"""

import os
import struct
from pathlib import Path

import pytest
from inside import (
    BLOCK,
    BUFFER,
    CONSOLE,
    DISK,
    LIMIT,
    NET,
    OTHER,
    RNG,
    RUNNING,
    SECTORS,
    TABLE,
    Descriptor,
    Inside,
    all_serve_but,
    available,
    descriptors,
    is_broken,
    poke,
    register,
    ring_of,
)

from lguest_nb.block import HEADER, S_IOERR, S_OK, S_UNSUPP, T_BARRIER, T_OUT, T_SCSI_CMD
from lguest_nb.bus import mmio
from lguest_nb.device import F_VERSION_1
from lguest_nb.vring import DESC_NEXT, DESC_WRITE

NEXT_WRITE = DESC_NEXT | DESC_WRITE


# The disk


FLUSH, GET_ID, DISCARD, WRITE_ZEROES, SECURE_ERASE = 4, 8, 11, 13, 14
F_FLUSH, F_DISCARD, F_WRITE_ZEROES = 1 << 9, 1 << 13, 1 << 14
ALL = F_VERSION_1 | F_FLUSH | F_DISCARD | F_WRITE_ZEROES
OWN, UNTOUCHED = b"the Guest's own.", 0xEE  # what is in the buffer for data, and in the place for the status
HEAD, STATUS = (BUFFER, 16, DESC_NEXT, 1), (TABLE, 1, DESC_WRITE, 0)


def request(
    pc: Inside, features: int, kind: int, sector: int, *each: Descriptor, data: bytes = OWN
) -> tuple[tuple[int, int, int], bytes, int]:  # what was given back, and what is in the buffer and the status now
    "One request, and then an ordinary read by the same ring."
    pc.begin(BLOCK, features)
    pc.ask(*poke(BUFFER, HEADER.pack(kind, 0, sector)), f"fill {OTHER:x} 2000 0", *poke(OTHER, data))
    pc.ask(*poke(TABLE, bytes([UNTOUCHED])))
    pc.offer(BLOCK, *each)
    used, there, status = pc.answer(BLOCK), pc.peek(OTHER, 16), pc.peek(TABLE, 1)[0]
    ring = ring_of(BLOCK)
    pc.ask(*poke(BUFFER, HEADER.pack(0, 0, 2)))
    pc.ask(*descriptors(ring.desc, HEAD, (OTHER, 512, NEXT_WRITE, 2), STATUS), *available(ring, 0, 0), "kick 2 0")
    assert pc.answer(BLOCK, idx=2)[0] == 2 and pc.peek(OTHER, 512) == DISK[1024:1536], "the next one was not served"
    assert (pc.status(BLOCK), pc.counts(BLOCK)[1]) == (RUNNING, 0)
    return used, there, status


def data(length: int = 512, writable: bool = False) -> Descriptor:
    return OTHER, length, NEXT_WRITE if writable else DESC_NEXT, 2


READ, WRITE, NO_DATA = [HEAD, data(writable=True), STATUS], [HEAD, data(), STATUS], [HEAD, STATUS]
NO_REQUEST: dict[str, tuple[int, list[Descriptor]]] = {  # length 0, and nothing is written at all
    "D1 header only": (T_OUT, [(BUFFER, 16, 0, 0)]),
    "D1 header and data, no status": (T_OUT, [HEAD, (OTHER, 512, 0, 0)]),
    "D2 header of 15 bytes": (T_OUT, [(BUFFER, 15, DESC_NEXT, 1), STATUS]),
    "D2 no header": (0, [(OTHER, 512, NEXT_WRITE, 1), STATUS]),
    "D2 header of 15 bytes in two pieces": (T_OUT, [(BUFFER, 8, 1, 1), (BUFFER + 8, 7, DESC_NEXT, 2), STATUS]),
    "D4 header is for writing": (0, [(BUFFER, 16, NEXT_WRITE, 1), data(writable=True), STATUS]),
    "D4 status is for reading": (T_OUT, [HEAD, data(), (TABLE, 1, 0, 0)]),
    "D4 status of no bytes": (T_OUT, [HEAD, data(), (TABLE, 0, DESC_WRITE, 0)]),
}


@pytest.mark.parametrize("rule", NO_REQUEST)
def test_what_is_no_request_is_given_back_untouched(rule: str, pc: Inside) -> None:
    kind, each = NO_REQUEST[rule]
    assert request(pc, ALL, kind, 1, *each) == ((1, 0, 0), OWN, UNTOUCHED)
    assert pc.disk.read_bytes() == DISK


def segments(*each: tuple[int, int, int]) -> bytes:
    return b"".join(struct.pack("<QII", *one) for one in each)


ONE = segments((0, 1, 0))
FAILS: dict[str, tuple[int, int, list[Descriptor], int]] = {  # type, sector, descriptors, what the status byte says
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
    "D10 barrier": (T_BARRIER, 1, READ, S_UNSUPP),
    "D10 write with a barrier": (T_BARRIER | T_OUT, 1, WRITE, S_UNSUPP),
    "D10 type nobody knows": (0x40, 1, READ, S_UNSUPP),
    "D10 all bits of the type": (0xFFFFFFFF, 1, WRITE, S_UNSUPP),
    "D12 flush with data to be written": (FLUSH, 0, READ, S_IOERR),
    "D12 flush with data": (FLUSH, 0, WRITE, S_IOERR),
    "D13 id into 19 bytes": (GET_ID, 0, [HEAD, data(19, True), STATUS], S_IOERR),
    "D13 id into nothing": (GET_ID, 0, NO_DATA, S_IOERR),
    "D13 id into a whole sector": (GET_ID, 0, READ, S_IOERR),
    "D13 id into what is for reading": (GET_ID, 0, [HEAD, data(20), STATUS], S_IOERR),
    "D16 discard of no list": (DISCARD, 0, NO_DATA, S_IOERR),
    "D16 write zeroes of no list": (WRITE_ZEROES, 0, NO_DATA, S_IOERR),
    "D16 discard of a list which is for writing": (DISCARD, 0, [HEAD, data(16, True), STATUS], S_IOERR),
    "D16 secure erase": (SECURE_ERASE, 0, [HEAD, data(16), STATUS], S_UNSUPP),
}


@pytest.mark.parametrize("rule", FAILS)
def test_a_bad_request_fails_alone_and_moves_nothing(rule: str, pc: Inside) -> None:
    kind, sector, each, status = FAILS[rule]
    if len(each) == 2:
        each = [each[0], (TABLE, 1, DESC_WRITE, 0)]
    assert request(pc, ALL, kind, sector, *each) == ((1, 0, 1), OWN, status)
    assert pc.disk.read_bytes() == DISK


BAD_LISTS: dict[str, tuple[bytes, int]] = {  # of DISCARD and of WRITE_ZEROES
    "D16 one byte less than a segment": (ONE[:-1], S_IOERR),
    "D16 one byte more": (ONE + b"\0", S_IOERR),
    "D16 range behind the last sector": (segments((SECTORS, 1, 0)), S_IOERR),
    "D16 range crosses the end": (segments((SECTORS - 1, 2, 0)), S_IOERR),
    "D16 the second range is bad": (segments((0, 1, 0), (SECTORS, 1, 0)), S_IOERR),
    "D16 sector times 512 wraps": (segments((1 << 55, 1, 0)), S_IOERR),
    "D16 sector and count wrap": (segments(((1 << 64) - 1, 2, 0)), S_IOERR),
    "D16 as many sectors as there can be": (segments((0, 0xFFFFFFFF, 0)), S_IOERR),
    "D16 more ranges than we said": (ONE * 257, S_IOERR),
    "D15 flags nobody knows": (segments((0, 1, 0x80000000)), S_UNSUPP),
    "D15 all flags": (segments((0, 1, 0xFFFFFFFF)), S_UNSUPP),
    "D15 flags in the second range": (segments((0, 1, 0), (1, 1, 2)), S_UNSUPP),
}


@pytest.mark.parametrize("kind", [DISCARD, WRITE_ZEROES], ids=["discard", "write_zeroes"])
@pytest.mark.parametrize("rule", BAD_LISTS)
def test_a_bad_list_of_ranges_fails_alone_and_erases_nothing(rule: str, kind: int, pc: Inside) -> None:
    listed, status = BAD_LISTS[rule]
    used, _, said = request(pc, ALL, kind, 0, HEAD, data(len(listed)), STATUS, data=listed)
    assert (used, said, pc.disk.read_bytes()) == ((1, 0, 1), status, DISK)


def test_D15_discard_with_unmap_is_unsupported(pc: Inside) -> None:
    used, _, said = request(pc, ALL, DISCARD, 0, HEAD, data(16), STATUS, data=segments((0, 1, 1)))
    assert (used, said, pc.disk.read_bytes()) == ((1, 0, 1), S_UNSUPP, DISK)


@pytest.mark.parametrize("kind", [FLUSH, DISCARD, WRITE_ZEROES])
def test_D14_what_was_not_negotiated_is_unsupported(kind: int, pc: Inside) -> None:
    each = NO_DATA if kind == FLUSH else [HEAD, data(16), STATUS]
    if len(each) == 2:
        each = [HEAD, (TABLE, 1, DESC_WRITE, 0)]
    used, _, said = request(pc, F_VERSION_1, kind, 0, *each, data=ONE)
    assert (used, said, pc.disk.read_bytes()) == ((1, 0, 1), S_UNSUPP, DISK)


LEGAL: dict[str, tuple[int, int, list[Descriptor], int, bytes]] = {
    "D2 header in two pieces": (
        0, 1, [(BUFFER, 8, 1, 1), (BUFFER + 8, 8, 1, 2), (OTHER, 512, NEXT_WRITE, 3), STATUS], 513, DISK[512:528],
    ),
    "D12 flush": (FLUSH, 0, [HEAD, STATUS], 1, OWN),
    "D12 flush of a sector": (FLUSH, 7, [HEAD, STATUS], 1, OWN),
    "D13 id": (GET_ID, 0, [HEAD, data(20, True), STATUS], 21, b"disk" + bytes(12)),
    "no data": (0, 0, [HEAD, STATUS], 1, OWN),
    "the last sector": (0, SECTORS - 1, READ, 513, DISK[-512:-496]),
}  # fmt: skip


@pytest.mark.parametrize("rule", LEGAL)
def test_an_odd_request_is_served(rule: str, pc: Inside) -> None:
    kind, sector, each, length, there = LEGAL[rule]
    assert request(pc, ALL, kind, sector, *each) == ((1, 0, length), there, S_OK)


def test_a_whole_request_may_be_in_one_place(pc: Inside) -> None:
    "Header, data and status are the same bytes: what is done last is what is there."
    pc.begin(BLOCK)
    pc.ask(*poke(BUFFER, HEADER.pack(0, 0, 1)))
    pc.offer(BLOCK, HEAD, (BUFFER, 512, NEXT_WRITE, 2), (BUFFER, 1, DESC_WRITE, 0))
    assert pc.answer(BLOCK) == (1, 0, 513)
    assert pc.peek(BUFFER, 16) == bytes([S_OK]) + DISK[513:528]


def test_D9_a_write_to_a_read_only_disk_fails_alone(tmp_path: Path) -> None:
    pc = Inside(tmp_path, "ro")
    try:
        for kind, listed in ((T_OUT, OWN), (T_OUT | T_BARRIER, OWN), (DISCARD, ONE), (WRITE_ZEROES, ONE)):
            each = WRITE if listed is OWN else [HEAD, data(16), STATUS]
            used, _, said = request(pc, F_VERSION_1 | F_FLUSH, kind, 1, *each, data=listed)
            assert (used, said) == ((1, 0, 1), S_IOERR if kind == T_OUT else S_UNSUPP)
            assert pc.disk.read_bytes() == DISK
    finally:
        pc.close()


def test_the_disks_configuration_is_not_the_guests_to_change(pc: Inside) -> None:
    before = [pc.read(BLOCK, mmio.CONFIG + at) for at in range(0, 256, 4)]
    there = f"{register(BLOCK, mmio.CONFIG):x} {register(BLOCK, mmio.SLOT_SIZE):x}"
    pc.ask(*[f"sweep {there} {size} 1 1 0" for size in (1, 2, 4)])
    pc.write(BLOCK, mmio.CONFIG + 32, 1, 1)
    assert [pc.read(BLOCK, mmio.CONFIG + at) for at in range(0, 256, 4)] == before
    pc.serves(BLOCK)


# Console, network and entropy


def test_E1_a_writable_buffer_for_the_console_to_print_breaks_it(pc: Inside) -> None:
    pc.begin(CONSOLE)
    pc.offer(CONSOLE, (BUFFER, 4, DESC_NEXT, 1), (OTHER, 4, DESC_WRITE, 0), queue=1)
    is_broken(pc, CONSOLE, "Input buffers in console output queue?")


def test_E1_a_readable_buffer_for_the_keyboard_breaks_the_console(pc: Inside) -> None:
    pc.begin(CONSOLE)
    pc.offer(CONSOLE, (BUFFER, 4, 0, 0))
    is_broken(pc, CONSOLE, "Output buffers in console in queue?")


def test_E1_a_writable_buffer_for_the_network_to_send_breaks_it(pc: Inside) -> None:
    pc.begin(NET)
    pc.offer(NET, (BUFFER, 72, DESC_WRITE, 0), queue=1)
    is_broken(pc, NET, "net:1: Input buffers in net output queue?")


def test_E1_a_readable_buffer_for_a_packet_to_come_breaks_it(pc: Inside) -> None:
    pc.begin(NET)
    pc.offer(NET, (BUFFER, 72, 0, 0))
    is_broken(pc, NET, "net:0: Output buffers in net input queue?")


def test_E5_every_buffer_of_a_chain_is_printed(pc: Inside) -> None:
    pc.begin(CONSOLE)
    pc.ask(*poke(BUFFER, b"all "), *poke(OTHER, b"of "), *poke(TABLE, b"it\n"))
    pc.offer(CONSOLE, (BUFFER, 4, 1, 1), (OTHER, 3, 1, 2), (TABLE, 3, 0, 0), queue=1)
    pc.screen_says(b"all of it\n")
    assert pc.answer(CONSOLE, 1) == (1, 0, 0)


def test_what_is_typed_goes_where_the_chain_says_and_no_further(pc: Inside) -> None:
    pc.begin(CONSOLE)
    pc.ask(f"fill {BUFFER:x} 20 ee", f"fill {OTHER:x} 20 ee")
    pc.offer(CONSOLE, (BUFFER, 0, NEXT_WRITE, 1), (BUFFER, 2, NEXT_WRITE, 2), (OTHER, 5, DESC_WRITE, 0))
    os.write(pc.keyboard, b"keys")
    assert pc.answer(CONSOLE) == (1, 0, 4)
    assert (pc.peek(BUFFER, 4), pc.peek(OTHER, 4)) == (b"ke\xee\xee", b"ys\xee\xee")


def test_A20_a_chain_of_no_bytes_for_the_keyboard_is_given_back(pc: Inside) -> None:
    pc.begin(CONSOLE)
    pc.offer(CONSOLE, (BUFFER, 0, DESC_WRITE, 0))
    assert pc.answer(CONSOLE) == (1, 0, 0) and pc.status(CONSOLE) == RUNNING


@pytest.mark.parametrize("size", [0, 1, 11, 12])
def test_a_packet_which_is_hardly_a_header_costs_nothing(size: int, pc: Inside) -> None:
    pc.begin(NET)
    pc.offer(NET, (BUFFER, size, 0, 0), queue=1)
    assert pc.answer(NET, 1) == (1, 0, 0) and pc.status(NET) == RUNNING
    pc.offer(NET, (BUFFER, size, 0, 0), (BUFFER, 72, 0, 0), queue=1, heads=[0, 1], idx=2)
    assert pc.answer(NET, 1, idx=2)[0] == 2
    while len(pc.cable.recv(1 << 17)) != 72:
        pass


def test_E8_a_packet_which_is_too_large_is_given_back_and_the_next_one_sent(pc: Inside) -> None:
    pc.begin(NET)
    large = [(BUFFER, 0xFFFF, DESC_NEXT, 1), (BUFFER, 100, 0, 0)]
    pc.offer(NET, *large, (BUFFER, 72, 0, 0), queue=1, heads=[0, 2], idx=2)
    assert pc.answer(NET, 1, idx=2) == (2, 0, 0)
    assert len(pc.cable.recv(1 << 17)) == 72


def test_E8_a_packet_of_all_of_memory_many_times_over_is_not_sent(pc: Inside) -> None:
    pc.begin(NET)
    all_of_it = [(0, LIMIT, DESC_NEXT if i < 254 else 0, i + 1) for i in range(255)]
    pc.offer(NET, *all_of_it, (BUFFER, 72, 0, 0), queue=1, heads=[0, 255], idx=2)
    assert pc.answer(NET, 1, idx=2) == (2, 0, 0)
    assert len(pc.cable.recv(1 << 17)) == 72


PACKET = bytes(12) + b"a packet which is longer than the buffer"
F_MRG_RXBUF = 1 << 15


@pytest.mark.parametrize("room", [0, 1, 11, 12, 17])
@pytest.mark.parametrize("features", [0, F_MRG_RXBUF], ids=["", "mergeable"])
def test_E9_a_packet_which_does_not_fit_is_lost_and_its_buffer_comes_back(features: int, room: int, pc: Inside) -> None:
    pc.begin(NET, F_VERSION_1 | features)
    pc.ask(f"fill {BUFFER:x} 100 ee", f"fill {OTHER:x} 100 ee")
    pc.offer(NET, (BUFFER, room, DESC_WRITE, 0), (OTHER, 256, DESC_WRITE, 0), heads=[0, 1], idx=2)
    pc.cable.send(PACKET)
    if features:  # more buffers are what this is for, if the first has room for a header
        pc.cable.send(PACKET)
        pc.ask(f"until {ring_of(NET).used + 2:x} 2 2")
    else:
        assert pc.answer(NET) == (1, 0, 0)
        pc.cable.send(PACKET)
        pc.answer(NET, idx=2)
        assert struct.unpack("<II", pc.peek(ring_of(NET).used + 12, 8)) == (1, len(PACKET))
        assert pc.peek(OTHER + 12, len(PACKET)) == PACKET[12:] + b"\xee" * 12
    assert pc.peek(BUFFER + room, 16) == b"\xee" * 16
    assert pc.status(NET) == RUNNING
    pc.serves(NET)


def test_E10_without_a_receive_buffer_packets_wait_and_the_guest_goes_on(pc: Inside) -> None:
    pc.begin(NET)
    for _ in range(8):
        pc.cable.send(PACKET)
    all_serve_but(pc, NET)
    pc.offer(NET, *[(BUFFER + 256 * i, 256, DESC_WRITE, 0) for i in range(8)], heads=list(range(8)), idx=8)
    assert pc.answer(NET, idx=8) == (8, 0, len(PACKET))


def test_E12_all_of_memory_full_of_surprise_is_left_when_the_guest_says_so(pc: Inside) -> None:
    "Nearly two gigabytes; and our own program is not in the way."
    pc.begin(RNG)
    rest = [(OTHER, LIMIT - OTHER, NEXT_WRITE if i < 255 else DESC_WRITE, i + 1) for i in range(256)]
    pc.offer(RNG, *rest)
    pc.reset(RNG)
    assert pc.used(RNG) == (0, 0, 0)
    all_serve_but(pc, RNG)
    pc.serves(RNG)


def test_E13_a_malformed_packet_in_one_queue_does_not_end_the_other_for_good(pc: Inside) -> None:
    pc.begin(NET)
    pc.offer(NET, (0xFFFFF000, 72, 0, 0), queue=1)
    is_broken(pc, NET, "Invalid address 0xfffff000")
    pc.begin(NET)
    pc.offer(NET, (BUFFER, 256, DESC_WRITE, 0))
    pc.cable.send(PACKET)
    assert pc.answer(NET) == (1, 0, len(PACKET))


def test_E13_a_cable_which_was_cut_costs_packets_and_no_thread(tmp_path: Path) -> None:
    pc = Inside(tmp_path)
    try:
        pc.begin(NET)
        pc.cable.close()
        pc.offer(NET, (BUFFER, 72, 0, 0), queue=1, heads=[0, 0, 0], idx=3)
        assert pc.answer(NET, 1, idx=3) == (3, 0, 0)
        all_serve_but(pc, NET)
    finally:
        pc.close()


def test_E4_a_keyboard_which_comes_to_an_end_costs_nothing(tmp_path: Path) -> None:
    pc = Inside(tmp_path)
    try:
        pc.begin(CONSOLE)
        os.close(pc.keyboard)
        pc.offer(CONSOLE, (BUFFER, 16, DESC_WRITE, 0))
        pc.ask(*poke(OTHER, b"still here\n"))
        pc.offer(CONSOLE, (OTHER, 11, 0, 0), queue=1)
        pc.screen_says(b"still here\n")
        assert pc.used(CONSOLE) == (0, 0, 0) and pc.status(CONSOLE) == RUNNING
        pc.reset(CONSOLE)
    finally:
        pc.keyboard = os.open("/dev/null", os.O_RDONLY)
        pc.close()
