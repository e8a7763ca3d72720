"""Malformed rings on virtio-mmio, by a real Guest of 64 bits: what breaks, and who goes on.

Each case is named after its rule: A for the available ring and the chains of any device, B for indirect tables. The
Guest (tests/long) does every load and store itself, as it is told over COM1; processor, registers, eventfds, threads
and devices are the real ones, in a process of their own. The same rules are held by fake drivers in test_vring.py.
"""

import os
import select
import struct

import pytest
from inside import (
    BLOCK,
    BUFFER,
    CONSOLE,
    GOOD,
    LIMIT,
    NET,
    OK,
    OTHER,
    QUEUES,
    RNG,
    RUNNING,
    TABLE,
    Descriptor,
    Inside,
    all_serve_but,
    available,
    descriptors,
    is_broken,
    poke,
    ring_of,
)
from support import PATIENCE

from lguest_nb.block import HEADER
from lguest_nb.bus import mmio
from lguest_nb.device import F_RING_EVENT_IDX, F_RING_INDIRECT_DESC, F_VERSION_1
from lguest_nb.vring import DESC_INDIRECT, DESC_NEXT, DESC_WRITE, VIRTQUEUE_NUM

NEXT_WRITE = DESC_NEXT | DESC_WRITE
TABLES = F_VERSION_1 | F_RING_INDIRECT_DESC
RING = ring_of(RNG)


LOOP = [(BUFFER, 4, NEXT_WRITE, 1), (BUFFER, 4, NEXT_WRITE, 0)]
BREAKS: dict[str, tuple[list[Descriptor], dict[str, object], str]] = {
    "A1 available index jumps forward": ([GOOD], {"idx": 257}, "Guest moved used index from 0 to 257"),
    "A1 as far as it goes": ([GOOD], {"idx": 0x8000}, "Guest moved used index from 0 to 32768"),
    "A2 available index behind what was taken": ([GOOD], {"idx": 0xFFFF}, "Guest moved used index from 0 to 65535"),
    "A5 head is the size of the ring": ([GOOD], {"heads": [256]}, "Guest says index 256 is available"),
    "A5 head is as large as it goes": ([GOOD], {"heads": [0xFFFF]}, "Guest says index 65535 is available"),
    "A8 next is the size of the ring": ([(BUFFER, 4, NEXT_WRITE, 256)], {}, "Desc next is 256"),
    "A8 next is as large as it goes": ([(BUFFER, 4, NEXT_WRITE, 0xFFFF)], {}, "Desc next is 65535"),
    "A9 descriptor is its own next": ([(BUFFER, 4, NEXT_WRITE, 0)], {}, "Looped descriptor"),
    "A9 two descriptors in a circle": (LOOP, {}, "Looped descriptor"),
    "A9 circle of descriptors without a byte": ([(0, 0, NEXT_WRITE, 0)], {}, "Looped descriptor"),
    "A12 buffer in the registers of a device": (
        [(mmio.SLOT_BASE, 16, DESC_WRITE, 0)], {}, f"Invalid address {mmio.SLOT_BASE:#x}",
    ),
    "A12 buffer above all memory": ([(0xFFFFF000, 16, DESC_WRITE, 0)], {}, "Invalid address 0xfffff000"),
    "A12 buffer one byte too long": ([(LIMIT - 15, 16, DESC_WRITE, 0)], {}, f"Invalid address {LIMIT - 15:#x}"),
    "A12 buffer starts where memory ends": ([(LIMIT, 1, DESC_WRITE, 0)], {}, f"Invalid address {LIMIT:#x}"),
    "A13 end wraps in 32 bits": ([(0xFFFFFFF0, 0x20, DESC_WRITE, 0)], {}, "Invalid address 0xfffffff0"),
    "A13 end wraps in 64 bits": ([(2**64 - 16, 0x20, DESC_WRITE, 0)], {}, "Invalid address 0xfffffffffffffff0"),
    "A13 length is all 32 bits": ([(BUFFER, 0xFFFFFFFF, DESC_WRITE, 0)], {}, f"Invalid address {BUFFER:#x}"),
    "A13 address is above 4 GB": ([(1 << 32 | BUFFER, 16, DESC_WRITE, 0)], {}, "Invalid address 0x100900000"),
    "A15 buffer crosses the end of memory": ([(LIMIT - 8, 4096, DESC_WRITE, 0)], {}, f"Invalid address {LIMIT - 8:#x}"),
    "A22 readable after writable": ([(BUFFER, 4, NEXT_WRITE, 1), (OTHER, 4, 0, 0)], {}, "out after in"),
    "A23 nothing but a readable buffer": ([(BUFFER, 16, 0, 0)], {}, "Output buffers in rng?"),
    "A25 all flags": ([(TABLE, 16, 0xFFFF, 0)], {}, f"Indirect table at {TABLE:#x} where none may be"),
    "B1 indirect table, not negotiated": ([(TABLE, 16, DESC_INDIRECT, 0)], {}, "where none may be"),
}  # fmt: skip
BREAKS_BY_A_TABLE: dict[str, tuple[list[Descriptor], Descriptor, str]] = {
    "A25 all flags": ([GOOD], (TABLE, 16, 0xFFFF, 0), "is not the end of its chain"),
    "B2 table inside a table": (
        [(TABLE, 16, DESC_INDIRECT, 0)], (TABLE, 16, DESC_INDIRECT, 0), "where none may be: inside another",
    ),
    "B3 indirect and next": ([GOOD], (TABLE, 16, DESC_INDIRECT | DESC_NEXT, 1), "is not the end of its chain"),
    "B6 size is no multiple of 16": ([GOOD], (TABLE, 17, DESC_INDIRECT, 0), "17 bytes, not a multiple of 16"),
    "B6 size is less than a descriptor": ([GOOD], (TABLE, 15, DESC_INDIRECT, 0), "15 bytes, not a multiple of 16"),
    "B7 size is zero": ([GOOD], (TABLE, 0, DESC_INDIRECT, 0), "indirect buffer table: 0 bytes"),
    "B9 table in the registers of a device": (
        [GOOD], (mmio.SLOT_BASE, 16, DESC_INDIRECT, 0), f"Invalid address {mmio.SLOT_BASE:#x}",
    ),
    "B9 table crosses the end of memory": ([GOOD], (LIMIT - 16, 32, DESC_INDIRECT, 0), "Invalid address"),
    "B9 table wraps": ([GOOD], (2**64 - 16, 32, DESC_INDIRECT, 0), "Invalid address 0xfffffffffffffff0"),
    "B10 loop inside the table": (LOOP, (TABLE, 32, DESC_INDIRECT, 0), "Looped descriptor"),
    "B10 next is the size of the table": (
        [(BUFFER, 4, NEXT_WRITE, 2), GOOD], (TABLE, 32, DESC_INDIRECT, 0), "Desc next is 2",
    ),
    "B10 next would do in the ring": ([(BUFFER, 4, NEXT_WRITE, 1)], (TABLE, 16, DESC_INDIRECT, 0), "Desc next is 1"),
}  # fmt: skip
EVENTS = pytest.mark.parametrize("events", [0, F_RING_EVENT_IDX], ids=["", "event_idx"])


@EVENTS
@pytest.mark.parametrize("rule", BREAKS)
def test_breaks_its_device(rule: str, events: int, pc: Inside) -> None:
    each, how, sentence = BREAKS[rule]
    pc.begin(RNG, F_VERSION_1 | events)
    pc.offer(RNG, *each, **how)  # type: ignore[arg-type]
    is_broken(pc, RNG, sentence)


@EVENTS
@pytest.mark.parametrize("rule", BREAKS_BY_A_TABLE)
def test_breaks_its_device_by_an_indirect_table(rule: str, events: int, pc: Inside) -> None:
    entries, leads_there, sentence = BREAKS_BY_A_TABLE[rule]
    pc.begin(RNG, TABLES | events)
    pc.ask(*descriptors(TABLE, *entries))
    pc.offer(RNG, leads_there)
    is_broken(pc, RNG, sentence)


@pytest.mark.parametrize("slot", [CONSOLE, BLOCK, NET])
def test_a_malformed_ring_breaks_any_device(slot: int, pc: Inside) -> None:
    pc.begin(slot)
    pc.offer(slot, GOOD, heads=[300], queue=QUEUES[slot] - 1)
    is_broken(pc, slot, "Guest says index 300 is available")


def test_both_queues_of_a_device_broken_at_once_are_one_interrupt(pc: Inside) -> None:
    pc.begin(NET)
    for queue in range(2):
        ring = ring_of(NET, queue)
        pc.ask(*descriptors(ring.desc, GOOD), *available(ring, 300))
    pc.ask(f"kick {NET:x} 0", f"kick {NET:x} 1")
    is_broken(pc, NET, "Guest says index 300 is available")


def test_A2_the_available_index_moves_backwards(pc: Inside) -> None:
    pc.begin(RNG)
    pc.offer(RNG, GOOD)
    assert pc.answer(RNG) == (1, 0, 16)
    pc.offer(RNG, GOOD, idx=0)
    is_broken(pc, RNG, "Guest moved used index from 1 to 0")


def test_A17_a_buffer_which_is_the_available_ring(pc: Inside) -> None:
    pc.begin(RNG)
    pc.offer(RNG, (RING.avail, 4, DESC_WRITE, 0))
    is_broken(pc, RNG, "Guest moved used index from 1 to 1027")  # the source's third and fourth byte


HARMLESS: dict[str, tuple[list[Descriptor], dict[str, object], int]] = {  # and how long the answer is
    "A14 buffer ends with memory": ([(LIMIT - 16, 16, DESC_WRITE, 0)], {}, 16),
    "A18 buffer at address zero": ([(0, 16, DESC_WRITE, 0)], {}, 16),
    "A19 buffer of no bytes among others": ([(BUFFER, 0, NEXT_WRITE, 1), (BUFFER, 16, DESC_WRITE, 0)], {}, 16),
    "A19 buffer of no bytes at an odd place": ([(LIMIT, 0, NEXT_WRITE, 1), (BUFFER, 16, DESC_WRITE, 0)], {}, 16),
    "A20 chain of no bytes": ([(BUFFER, 0, DESC_WRITE, 0)], {}, 0),
    "A25 flags nobody knows": ([(BUFFER, 16, 0xFFF8 | DESC_WRITE, 7)], {}, 16),
    "A26 available flags nobody knows": ([GOOD], {"flags": 0xFFFE}, 16),
    "A17 buffer is the descriptor table": ([(RING.desc, 4096, DESC_WRITE, 0)], {}, 4096),
    "A17 buffer is the used ring": ([(RING.used, 2052, DESC_WRITE, 0)], {}, 2052),
}


@EVENTS
@pytest.mark.parametrize("rule", HARMLESS)
def test_is_answered_as_if_nothing_were_odd(rule: str, events: int, pc: Inside) -> None:
    each, how, length = HARMLESS[rule]
    pc.begin(RNG, F_VERSION_1 | events)
    pc.ask(*descriptors(RING.desc, *each), *available(RING, 0, **how), f"kick {RNG:x} 0", f"wait {RNG:x} 1 0")  # type: ignore[arg-type]
    assert pc.used(RNG) == (1, 0, length)
    pc.ask(*descriptors(RING.desc + 16 * 9, GOOD), *available(RING, 0, 9), f"kick {RNG:x} 0")
    assert pc.answer(RNG, idx=2)[0] == 2
    assert struct.unpack("<II", pc.peek(RING.used + 12, 8)) == (9, 16)
    assert pc.counts(RNG)[1] == 0 and pc.status(RNG) == RUNNING


def test_A26_interrupts_unwanted_are_not_sent(pc: Inside) -> None:
    pc.begin(RNG)
    pc.ask(*descriptors(RING.desc, GOOD), *available(RING, 0, flags=0xFFFF), f"kick {RNG:x} 0")
    assert pc.answer(RNG) == (1, 0, 16)
    pc.serves(BLOCK)
    assert pc.counts(RNG) == (0, 0)


@pytest.mark.parametrize("num", [1, 2, 256])
def test_A4_a_ring_may_be_exactly_full(num: int, pc: Inside) -> None:
    pc.begin(RNG, num=num)
    pc.offer(RNG, GOOD, heads=[0] * num, idx=num)
    assert pc.answer(RNG, idx=num) == (num, 0, 16)
    assert pc.status(RNG) == RUNNING


@pytest.mark.parametrize("num", [1, 2, 256])
def test_A1_one_more_than_the_ring_has_is_too_many(num: int, pc: Inside) -> None:
    pc.begin(RNG, num=num)
    pc.offer(RNG, GOOD, idx=num + 1)
    is_broken(pc, RNG, f"Guest moved used index from 0 to {num + 1}")


def test_A3_the_index_wraps_to_zero_as_if_nothing_were_odd(pc: Inside) -> None:
    pc.begin(RNG)
    pc.ask(*descriptors(RING.desc, (0x8000, 0, DESC_WRITE, 0)))
    for i in range(1, 258):
        idx = i * 256 & 0xFFFF
        pc.ask(*poke(RING.avail + 2, struct.pack("<H", idx)), f"kick {RNG:x} 0")
        pc.answer(RNG, idx=idx)
    assert pc.used(RNG) == (256, 0, 0) and pc.status(RNG) == RUNNING


def long_chain(count: int) -> list[Descriptor]:
    return [(OTHER + i, 1, NEXT_WRITE if i + 1 < count else DESC_WRITE, i + 1) for i in range(count)]


def test_A11_a_chain_of_all_descriptors_is_legal(pc: Inside) -> None:
    pc.begin(RNG)
    pc.offer(RNG, *long_chain(VIRTQUEUE_NUM))
    assert pc.answer(RNG) == (1, 0, 256)


def test_A10_one_descriptor_more_than_the_ring_has_is_too_many(pc: Inside) -> None:
    "255 in the ring, then a table with two."
    pc.begin(RNG, TABLES)
    pc.ask(*descriptors(TABLE, *long_chain(2)))
    pc.offer(RNG, *long_chain(VIRTQUEUE_NUM)[:-1], (TABLE, 32, DESC_INDIRECT, 0))
    is_broken(pc, RNG, "more than the ring's 256 descriptors")


def test_A10_a_table_longer_than_a_short_ring_is_too_long(pc: Inside) -> None:
    pc.begin(RNG, TABLES, num=4)
    pc.ask(*descriptors(TABLE, *long_chain(5)))
    pc.offer(RNG, (TABLE, 16 * 5, DESC_INDIRECT, 0))
    is_broken(pc, RNG, "more than the ring's 4 descriptors")


def test_B4_a_table_which_is_said_to_be_writable_is_a_table(pc: Inside) -> None:
    pc.begin(RNG, TABLES)
    pc.ask(*descriptors(TABLE, GOOD))
    pc.offer(RNG, (TABLE, 16, DESC_INDIRECT | DESC_WRITE, 0))
    assert pc.answer(RNG) == (1, 0, 16)


def test_A29_kicks_with_nothing_new_are_no_interrupts(pc: Inside) -> None:
    pc.begin(RNG)
    pc.offer(RNG, GOOD)
    pc.ask(f"wait {RNG:x} 1 0", f"kick {RNG:x} 0 1000")
    pc.serves(BLOCK)
    assert (pc.counts(RNG), pc.used(RNG)) == ((1, 0), (1, 0, 16))


def test_A32_two_queues_may_share_their_memory(pc: Inside) -> None:
    pc.begin(RNG)
    pc.begin(NET)
    pc.offer(NET, (RING.avail, 12, 0, 0), queue=1)  # sends the other's ring as a packet
    assert pc.answer(NET, 1) == (1, 0, 0)
    pc.offer(RNG, GOOD)
    assert pc.answer(RNG) == (1, 0, 16)
    assert len(pc.cable.recv(1 << 17)) == 12


def test_A32_a_device_may_break_the_ring_of_another(pc: Inside) -> None:
    pc.begin(RNG)
    pc.begin(BLOCK)
    pc.ask(*poke(BUFFER, HEADER.pack(0, 0, 0)))
    pc.offer(BLOCK, (BUFFER, 16, DESC_NEXT, 1), (RING.avail, 512, NEXT_WRITE, 2), (OTHER, 1, DESC_WRITE, 0))
    assert pc.answer(BLOCK) == (1, 0, 513)
    pc.ask(f"kick {RNG:x} 0")
    is_broken(pc, RNG, "Guest moved used index from 0 to 770")  # bytes 2 and 3 of the disk


def test_two_rings_in_the_same_place(pc: Inside) -> None:
    "C4, and worse: both queues of the card, and all parts of each, at one address."
    at = 0x600000
    assert pc.negotiate(NET) == OK
    pc.ask(f"fill {at:x} 8000 0", *[f"ring {NET:x} {queue} 100 {at:x} {at:x} {at:x}" for queue in range(2)])
    pc.ask(f"forget {NET:x}")
    pc.write(NET, mmio.STATUS, RUNNING)
    pc.ask(*poke(at, b"\1\0\1\0" + bytes(12)), f"kick {NET:x} 0 10", f"kick {NET:x} 1 10")
    all_serve_but(pc, NET)
    pc.reset(NET)
    pc.serves(NET)


# The console's screen is a pipe: when it is full, a request is in the middle for as long as we like


BIG = 0x100000  # bytes, more than a pipe holds
TEXT = 0xA00000  # where they are


@pytest.fixture
def busy(pc: Inside) -> Inside:
    "The console has taken a chain, and cannot print all of it."
    pc.begin(CONSOLE)
    pc.ask(f"fill {TEXT:x} {BIG:x} 61", f"fill {TEXT + BIG:x} {BIG:x} 62")
    pc.offer(CONSOLE, (TEXT, BIG, 0, 0), queue=1)
    pc.screen_says(b"a")
    return pc


OUT = ring_of(CONSOLE, 1)


def test_A24_a_descriptor_is_read_once(busy: Inside) -> None:
    busy.ask(*descriptors(OUT.desc, (TEXT + BIG, BIG, DESC_WRITE, 0)))
    busy.screen_says(b"a" * (BIG - 1))
    assert busy.answer(CONSOLE, 1) == (1, 0, 0) and busy.status(CONSOLE) == RUNNING


def test_A24_a_ring_which_breaks_afterwards_costs_nothing_before(busy: Inside) -> None:
    busy.ask(*descriptors(OUT.desc, (0xFFFFFFFF, 1, 0xFFFF, 0xFFFF)))
    busy.screen_says(b"a" * (BIG - 1))
    assert busy.answer(CONSOLE, 1) == (1, 0, 0)


def test_A29_kicks_meanwhile_are_one_wake_up(busy: Inside) -> None:
    busy.ask(f"kick {CONSOLE:x} 1 2000")
    busy.screen_says(b"a" * (BIG - 1))
    busy.ask(f"wait {CONSOLE:x} 1 0")
    busy.serves(BLOCK)
    assert (busy.counts(CONSOLE), busy.used(CONSOLE, 1)) == ((1, 0), (1, 0, 0))


def test_A30_what_is_added_meanwhile_needs_no_kick(busy: Inside) -> None:
    busy.ask(*descriptors(OUT.desc + 16, (TEXT + BIG, 4, 0, 0)), *available(OUT, 0, 1))
    busy.screen_says(b"a" * (BIG - 1) + b"bbbb")
    assert busy.answer(CONSOLE, 1, idx=2)[0] == 2


def test_a_reset_while_the_queue_is_busy_touches_nothing_afterwards(busy: Inside) -> None:
    busy.reset(CONSOLE)
    assert busy.used(CONSOLE, 1) == (0, 0, 0)
    os.read(busy.screen, BIG)
    while select.select([busy.screen], [], [], 0)[0]:
        os.read(busy.screen, BIG)
    busy.serves(CONSOLE)
    all_serve_but(busy, CONSOLE)


def test_E2_all_of_memory_to_print_thirty_times_over_is_left_when_the_guest_says_so(pc: Inside) -> None:
    pc.begin(CONSOLE)
    pc.offer(CONSOLE, *[(0, LIMIT, DESC_NEXT if i < 29 else 0, i + 1) for i in range(30)], queue=1)
    assert select.select([pc.screen], [], [], PATIENCE)[0]
    pc.reset(CONSOLE)
    while select.select([pc.screen], [], [], 0)[0]:
        os.read(pc.screen, BIG)
    pc.serves(CONSOLE)


def test_a_queue_which_breaks_while_the_other_is_busy_stops_both(busy: Inside) -> None:
    busy.ask(*available(ring_of(CONSOLE, 0), 300), f"kick {CONSOLE:x} 0", f"wait {CONSOLE:x} 0 1")
    while select.select([busy.screen], [], [], 0)[0]:
        os.read(busy.screen, BIG)
    is_broken(busy, CONSOLE, "Guest says index 300 is available")
