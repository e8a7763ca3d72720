"""Drivers which lost their way on virtio-mmio, by a real Guest of 64 bits: what they cannot break.

Each case is named after its rule: C for set-up, status and registers. The Guest (tests/long) does every load and store
itself, as test_bad_mmio_rings.py says; the same rules are held by a fake driver in test_mmio_bus.py.
"""

import pytest
from inside import (
    BLOCK,
    BROKEN,
    BUFFER,
    GOOD,
    LIMIT,
    NET,
    OK,
    OTHER,
    RNG,
    RUNNING,
    TABLE,
    Inside,
    all_serve_but,
    available,
    descriptors,
    is_broken,
    poke,
    register,
    ring_of,
)

from lguest_nb.block import HEADER
from lguest_nb.bus import mmio
from lguest_nb.device import F_RING_EVENT_IDX, F_RING_INDIRECT_DESC, F_VERSION_1
from lguest_nb.vring import DESC_INDIRECT, DESC_WRITE

RING = ring_of(RNG)


PARTS = {"desc": 0, "avail": 1, "used": 2}


def set_up(pc: Inside, slot: int, queue: int, num: int, *parts: int) -> int:  # is it ready?
    return pc.number(f"ring {slot:x} {queue:x} {num:x} " + " ".join(f"{part:x}" for part in parts))


REFUSED: dict[str, tuple[int, tuple[int, int, int], str]] = {  # entries and parts of a ring
    "C1 no entries": (0, RING, "a queue of 0 entries"),
    "C1 three entries": (3, RING, "a queue of 3 entries"),
    "C1 more entries than there can be": (512, RING, "a queue of 512 entries"),
    "C1 as many entries as a register holds": (0xFFFFFFFF, RING, "a queue of 4294967295 entries"),
    "C2 descriptors not aligned to 16": (256, (RING.desc + 8, RING.avail, RING.used), "is not aligned to 16"),
    "C2 available ring not aligned to 2": (256, (RING.desc, RING.avail + 1, RING.used), "is not aligned to 2"),
    "C2 used ring not aligned to 4": (256, (RING.desc, RING.avail, RING.used + 2), "is not aligned to 4"),
    "C3 descriptors cross the end of memory": (256, (LIMIT - 4080, RING.avail, RING.used), "Invalid address"),
    "C3 available ring crosses the end of memory": (256, (RING.desc, LIMIT - 514, RING.used), "Invalid address"),
    "C3 used ring crosses the end of memory": (256, (RING.desc, RING.avail, LIMIT - 2048), "Invalid address"),
    "C3 used ring above all memory": (256, (RING.desc, RING.avail, LIMIT), "Invalid address"),
    "C3 descriptors in registers": (256, (mmio.SLOT_BASE, RING.avail, RING.used), "Invalid address 0xd0000000"),
    "C3 base and size wrap": (256, (2**64 - 16, RING.avail, RING.used), "Invalid address 0xfffffffffffffff0"),
    "C3 the high half of an address": (256, (RING.desc, RING.avail, 1 << 63 | RING.used), "Invalid address"),
}


@pytest.mark.parametrize("rule", REFUSED)
def test_a_ring_which_cannot_be_is_not_ready_and_breaks_the_device_when_it_starts(rule: str, pc: Inside) -> None:
    num, parts, sentence = REFUSED[rule]
    assert pc.negotiate(RNG) == OK
    assert set_up(pc, RNG, 0, num, *parts) == 0
    pc.ask(f"forget {RNG:x}", f"kick {RNG:x} 0 3")
    assert (pc.status(RNG), pc.counts(RNG)) == (OK, (0, 0))
    pc.write(RNG, mmio.STATUS, RUNNING)
    is_broken(pc, RNG, sentence)


def test_a_driver_may_correct_itself_before_it_starts(pc: Inside) -> None:
    assert pc.negotiate(RNG) == OK
    assert set_up(pc, RNG, 0, 3, *RING) == 0
    pc.ask(f"fill {RING.desc:x} 8000 0")
    assert set_up(pc, RNG, 0, 4, *RING) == 1
    pc.write(RNG, mmio.STATUS, RUNNING)
    pc.offer(RNG, GOOD)
    assert pc.answer(RNG) == (1, 0, 16)


def test_C3_a_ring_may_end_with_memory(pc: Inside) -> None:
    assert pc.negotiate(RNG) == OK
    used = LIMIT - 2052
    pc.ask(f"fill {RING.desc:x} 8000 0", f"fill {used:x} {LIMIT - used:x} 0")
    assert set_up(pc, RNG, 0, 256, RING.desc, RING.avail, used) == 1
    pc.write(RNG, mmio.STATUS, RUNNING)
    pc.offer(RNG, GOOD)
    pc.ask(f"until {used + 2:x} ffff 1")


def test_C3_the_places_of_two_events_belong_to_the_ring(pc: Inside) -> None:
    assert pc.negotiate(RNG, F_VERSION_1 | F_RING_EVENT_IDX) == OK
    assert set_up(pc, RNG, 0, 256, RING.desc, RING.avail, LIMIT - 2052) == 0
    assert set_up(pc, RNG, 0, 256, RING.desc, LIMIT - 516, RING.used) == 0


@pytest.mark.parametrize("part", PARTS)
def test_C5_a_part_without_an_address_is_refused(part: str, pc: Inside) -> None:
    assert pc.negotiate(RNG) == OK
    pc.write(RNG, mmio.QUEUE_NUM, 8)
    for name, where in (("desc", mmio.QUEUE_DESC), ("avail", mmio.QUEUE_DRIVER), ("used", mmio.QUEUE_DEVICE)):
        if name != part:
            pc.write(RNG, where, RING[PARTS[name]])
    pc.write(RNG, mmio.QUEUE_READY, 1)
    assert pc.read(RNG, mmio.QUEUE_READY) == 0
    pc.ask(f"forget {RNG:x}")
    pc.write(RNG, mmio.STATUS, RUNNING)
    is_broken(pc, RNG, f"the {part} part has no address")


@pytest.mark.parametrize("queue", [1, 2, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_C7_a_queue_which_is_not_there_reads_as_nothing_and_hears_nothing(queue: int, pc: Inside) -> None:
    assert pc.negotiate(RNG) == OK
    assert set_up(pc, RNG, queue, 8, *RING) == 0
    assert (pc.read(RNG, mmio.QUEUE_NUM_MAX), pc.read(RNG, mmio.QUEUE_READY)) == (0, 0)
    pc.write(RNG, mmio.QUEUE_SEL, 0)
    assert (pc.read(RNG, mmio.QUEUE_NUM_MAX), pc.read(RNG, mmio.QUEUE_READY)) == (256, 0)


@pytest.mark.parametrize("queue", [1, 2, 0xFFFF, 0x10000, 0xFFFFFFFF])
def test_C8_a_kick_of_a_queue_which_is_not_there_does_nothing(queue: int, pc: Inside) -> None:
    pc.begin(RNG)
    pc.ask(*descriptors(RING.desc, GOOD), *available(RING, 0), f"kick {RNG:x} {queue:x} 64")
    all_serve_but(pc, RNG)
    assert (pc.used(RNG), pc.status(RNG), pc.counts(RNG)) == ((0, 0, 0), RUNNING, (0, 0))
    pc.ask(f"kick {RNG:x} 0")
    assert pc.answer(RNG) == (1, 0, 16)


def test_C9_a_kick_before_driver_ok_consumes_nothing(pc: Inside) -> None:
    for status in range(3):
        pc.write(RNG, mmio.STATUS, (0, 1, 3)[status])
        pc.ask(f"kick {RNG:x} 0 10")
    assert pc.negotiate(RNG) == OK
    pc.ask(f"fill {RING.desc:x} 8000 0")
    assert set_up(pc, RNG, 0, 256, *RING) == 1
    pc.offer(RNG, GOOD)
    all_serve_but(pc, RNG)
    assert pc.used(RNG) == (0, 0, 0)
    pc.write(RNG, mmio.STATUS, RUNNING)
    assert pc.answer(RNG) == (1, 0, 16)


@pytest.mark.parametrize("status", [0, 0x80 | RUNNING])
def test_C9_a_kick_after_a_reset_or_after_giving_up_consumes_nothing(status: int, pc: Inside) -> None:
    pc.begin(RNG)
    pc.write(RNG, mmio.STATUS, status)
    pc.offer(RNG, GOOD)
    pc.ask(f"kick {RNG:x} 0 10")
    all_serve_but(pc, RNG)
    assert (pc.used(RNG), pc.status(RNG), pc.counts(RNG)) == ((0, 0, 0), status, (0, 0))


NOT_ACCEPTED = {
    "C10 a feature nobody offered": F_VERSION_1 | 1 << 63,
    "C10 packed rings": F_VERSION_1 | 1 << 34,
    "C10 all of them": (1 << 64) - 1,
    "C12 no version 1": F_RING_INDIRECT_DESC,
    "C12 nothing": 0,
}


@pytest.mark.parametrize("rule", NOT_ACCEPTED)
def test_features_which_cannot_be_are_not_ok(rule: str, pc: Inside) -> None:
    assert pc.negotiate(RNG, NOT_ACCEPTED[rule]) == 3
    assert set_up(pc, RNG, 0, 8, *RING) == 0
    pc.ask(f"forget {RNG:x}")
    pc.write(RNG, mmio.STATUS, RUNNING)
    assert (pc.status(RNG), pc.counts(RNG)) == (3, (0, 0))
    pc.serves(RNG)


def test_C10_a_third_half_of_features_is_not_accepted(pc: Inside) -> None:
    "DriverFeaturesSel 2 and more is bits 64 and up: nobody offers those."
    for selector in (2, 0xFFFFFFFF):
        pc.ask(*[f"w {register(RNG, mmio.STATUS):x} 4 {status}" for status in (0, 1, 3)])
        for half, value in ((1, 1), (0, 0), (selector, 1)):
            pc.write(RNG, mmio.DRIVER_FEATURES_SEL, half)
            pc.write(RNG, mmio.DRIVER_FEATURES, value)
        pc.write(RNG, mmio.STATUS, OK)
        assert pc.status(RNG) == 3


def test_C11_features_chosen_after_features_ok_are_not_heard(pc: Inside) -> None:
    pc.begin(RNG)
    pc.write(RNG, mmio.DRIVER_FEATURES_SEL, 0)
    pc.write(RNG, mmio.DRIVER_FEATURES, F_RING_INDIRECT_DESC)
    pc.ask(*descriptors(TABLE, GOOD))
    pc.offer(RNG, (TABLE, 16, DESC_INDIRECT, 0))
    is_broken(pc, RNG, "where none may be")


SHORTCUTS = {
    "C13 driver before acknowledge": [2],
    "C13 features at once": [8],
    "C13 ready at once": [15],
    "C13 ready without features": [1, 3, 7],
    "C13 reserved bits": [0x10, 0x20, 0x100, 0x80000000],
    "C13 all set": [0xFFFFFFFF],
    "C13 only ours": [0x40],
}


@pytest.mark.parametrize("rule", SHORTCUTS)
def test_a_shortcut_is_not_taken(rule: str, pc: Inside) -> None:
    pc.reset(RNG)
    for value in SHORTCUTS[rule]:
        before = pc.status(RNG)
        pc.write(RNG, mmio.STATUS, value)
        assert pc.status(RNG) == (value if value in (1, 3) else before)
    pc.serves(RNG)


@pytest.mark.parametrize("value", [1, 3, 7, 11, 0x4F, 0x1F, 0xFFFFFF0F, RUNNING])
def test_C13_a_status_which_goes_backwards_changes_nothing(value: int, pc: Inside) -> None:
    pc.begin(RNG)
    pc.write(RNG, mmio.STATUS, value)
    assert pc.status(RNG) == RUNNING
    pc.offer(RNG, GOOD)
    assert pc.answer(RNG) == (1, 0, 16)


def test_C13_every_status_in_every_status_costs_nothing(pc: Inside) -> None:
    "256 values, upwards and downwards, and after each the next."
    pc.ask(*[f"w {register(RNG, mmio.STATUS):x} 4 {value:x}" for value in [*range(256), *range(255, -1, -1)]])
    all_serve_but(pc, RNG)
    pc.serves(RNG)


def test_a_queue_is_not_set_up_again_while_the_device_runs(pc: Inside) -> None:
    pc.begin(RNG)
    pc.write(RNG, mmio.QUEUE_READY, 0)
    assert pc.read(RNG, mmio.QUEUE_READY) == 1
    assert set_up(pc, RNG, 0, 8, 0x600000, 0x601000, 0x602000) == 1
    pc.offer(RNG, GOOD)
    assert pc.answer(RNG) == (1, 0, 16)


def test_a_queue_which_is_not_ready_is_not_served(pc: Inside) -> None:
    assert pc.negotiate(NET) == OK
    pc.ask(f"fill {ring_of(NET, 1).desc:x} 8000 0")
    assert set_up(pc, NET, 1, 256, *ring_of(NET, 1)) == 1
    pc.write(NET, mmio.STATUS, RUNNING)
    pc.offer(NET, GOOD)
    pc.offer(NET, (BUFFER, 72, 0, 0), queue=1)
    assert pc.answer(NET, 1) == (1, 0, 0) and len(pc.cable.recv(1 << 17)) == 72
    assert pc.status(NET) == RUNNING


REGISTERS = register(RNG, 0)
CONFIG = register(RNG, mmio.CONFIG)


@pytest.mark.parametrize("size", [1, 2])
def test_C16_a_register_of_32_bits_reads_as_zero_in_fewer(size: int, pc: Inside) -> None:
    assert pc.number(f"sweep {REGISTERS:x} {CONFIG - size + 1:x} {size} 1") == 0


def test_C16_what_is_wider_or_not_aligned_the_processor_asks_for_in_pieces(pc: Inside) -> None:
    magic, version = mmio.MAGIC.to_bytes(4, "little"), (2).to_bytes(4, "little")
    assert pc.read(RNG, mmio.MAGIC_VALUE, 8) == int.from_bytes(magic + version, "little")
    for offset in range(1, 4):
        whole = (magic + version)[offset : offset + 4]
        assert pc.read(RNG, offset) == int.from_bytes(whole, "little")


def test_C16_what_is_only_to_be_written_reads_as_zero(pc: Inside) -> None:
    for offset in (mmio.DEVICE_FEATURES_SEL, mmio.DRIVER_FEATURES, mmio.DRIVER_FEATURES_SEL, mmio.QUEUE_SEL,
                   mmio.QUEUE_NUM, mmio.QUEUE_NOTIFY, mmio.INTERRUPT_ACK, mmio.QUEUE_DESC, mmio.QUEUE_DESC + 4,
                   mmio.QUEUE_DRIVER, mmio.QUEUE_DRIVER + 4, mmio.QUEUE_DEVICE, mmio.QUEUE_DEVICE + 4):  # fmt: skip
        assert pc.read(RNG, offset) == 0


@pytest.mark.parametrize("value", [0, 1, 0x55555555AAAAAAAA, 0xFFFFFFFFFFFFFFFF])
@pytest.mark.parametrize("slot", range(4))
@pytest.mark.parametrize("running", [False, True])
def test_C16_every_store_of_every_size_at_every_offset_costs_nothing(
    slot: int, value: int, running: bool, pc: Inside
) -> None:
    for size in (1, 2, 4, 8):
        for step in (1, size):
            if running:
                pc.begin(slot)
            start, end = register(slot, 0), register(slot, mmio.SLOT_SIZE)
            pc.ask(f"sweep {start:x} {end:x} {size} {step} 1 {value:x}")
    all_serve_but(pc, slot)
    assert pc.read(slot, mmio.MAGIC_VALUE) == mmio.MAGIC and pc.read(slot, mmio.VERSION) == 2
    pc.serves(slot)


def test_C16_the_rest_of_a_page_and_the_slots_without_a_device_are_nothing(pc: Inside) -> None:
    for size in (1, 2, 4, 8):
        ones, step = (1 << 8 * size) - 1, size
        for first in (register(0, mmio.SLOT_SIZE), register(3, mmio.SLOT_SIZE), register(4, 0), register(9, 0)):
            count = 0xE00 // step
            found = pc.number(f"sweep {first:x} {first + 0xE00:x} {size} {step} 1 {ones:x}")
            assert found == ones * count & 0xFFFFFFFFFFFFFFFF
    for slot in range(4):
        pc.serves(slot)


@pytest.mark.parametrize("address", [LIMIT, 0x80000000, mmio.SLOT_BASE - 8, mmio.SLOT_BASE + 0x9000, 0xFFFFFFF8])
def test_what_is_neither_memory_nor_a_device_reads_as_ones(address: int, pc: Inside) -> None:
    for size in (1, 2, 4, 8):
        pc.ask(f"w {address:x} {size} 0")
        assert pc.number(f"r {address:x} {size}") == (1 << 8 * size) - 1


@pytest.mark.parametrize("edge", [LIMIT, mmio.SLOT_BASE, register(0, mmio.SLOT_SIZE), register(1, 0), register(4, 0)])
def test_C16_an_access_across_an_edge_costs_nothing(edge: int, pc: Inside) -> None:
    for size in (2, 4, 8):
        for address in range(edge - size + 1, edge):
            pc.ask(f"r {address:x} {size}", f"w {address:x} {size} 0")
    for slot in range(4):
        pc.serves(slot)


def test_C18_features_beyond_the_last_are_none_and_shared_memory_there_is_not(pc: Inside) -> None:
    for selector in (2, 3, 0x80000000, 0xFFFFFFFF):
        pc.write(RNG, mmio.DEVICE_FEATURES_SEL, selector)
        assert pc.read(RNG, mmio.DEVICE_FEATURES) == 0
        pc.write(RNG, 0xAC, selector)  # SHMSel
        assert {pc.read(RNG, at) for at in (0xB0, 0xB4, 0xB8, 0xBC)} == {0xFFFFFFFF}


@pytest.mark.parametrize("value", [0, 2, 3, 0x80000001, 0xFFFFFFFF])
def test_C20_ready_is_one_and_nothing_else(value: int, pc: Inside) -> None:
    assert pc.negotiate(RNG) == OK
    pc.write(RNG, mmio.QUEUE_NUM, 8)
    for part, where in zip(RING, (mmio.QUEUE_DESC, mmio.QUEUE_DRIVER, mmio.QUEUE_DEVICE), strict=True):
        pc.write(RNG, where, part)
    pc.write(RNG, mmio.QUEUE_READY, value)
    assert pc.read(RNG, mmio.QUEUE_READY) == 0


def test_C21_an_interrupt_which_is_masked_comes_when_it_no_longer_is(pc: Inside) -> None:
    "Three requests meanwhile: one edge is remembered, for all of them."
    pc.begin(RNG)
    line = mmio.SLOT_LINES[RNG]
    pc.ask(f"mask {1 | 1 << line:x}", *descriptors(RING.desc, GOOD))
    for idx in range(1, 4):
        pc.ask(*available(RING, 0, 0, 0, idx=idx), f"kick {RNG:x} 0", f"until {RING.used + 2:x} ffff {idx:x}")
    pc.ask(f"until {register(RNG, mmio.INTERRUPT_STATUS):x} ffff 1")
    assert pc.counts(RNG) == (0, 0)
    pc.ask("mask 1", f"wait {RNG:x} 1 0")
    assert pc.counts(RNG)[0] <= 3 and pc.read(RNG, mmio.INTERRUPT_STATUS) == 0


def test_C21_a_device_which_breaks_while_its_interrupt_is_masked_says_so_afterwards(pc: Inside) -> None:
    pc.begin(RNG)
    pc.ask(f"mask {1 | 1 << mmio.SLOT_LINES[RNG]:x}")
    pc.offer(RNG, GOOD, heads=[300])
    pc.ask(f"until {register(RNG, mmio.STATUS):x} ffff {BROKEN:x}")
    assert pc.counts(RNG) == (0, 0)
    pc.ask("mask 1")
    is_broken(pc, RNG, "Guest says index 300 is available")


def test_C21_acknowledging_what_did_not_happen_loses_nothing(pc: Inside) -> None:
    pc.begin(RNG)
    pc.ask(f"mask {1 | 1 << mmio.SLOT_LINES[RNG]:x}")
    pc.offer(RNG, GOOD)
    pc.ask(f"until {register(RNG, mmio.INTERRUPT_STATUS):x} ffff 1")
    pc.write(RNG, mmio.INTERRUPT_ACK, 0xFFFFFFFE)
    assert pc.read(RNG, mmio.INTERRUPT_STATUS) == 1
    pc.ask("mask 1", f"wait {RNG:x} 1 0")


def test_a_device_can_be_reset_a_hundred_times_with_requests_in_flight(pc: Inside) -> None:
    for round_ in range(100):
        slot = (RNG, BLOCK)[round_ % 2]
        pc.begin(slot)
        pc.ask(*poke(OTHER, HEADER.pack(0, 0, 0)))
        each = [(BUFFER, 4096, DESC_WRITE, 0)] if slot == RNG else [(OTHER, 16, 1, 1), (BUFFER, 513, DESC_WRITE, 0)]
        pc.offer(slot, *each, heads=[0] * 256, idx=256)
        pc.reset(slot)
    for slot in range(4):
        pc.serves(slot)


def test_a_storm_of_kicks_and_resets_everywhere_leaves_devices_which_work(pc: Inside) -> None:
    lines = [f"kick {slot:x} {queue:x} 100" for slot in range(9) for queue in (0, 1, 2, 0xFFFF)]
    resets = [f"w {register(slot, mmio.STATUS):x} 4 0" for slot in range(9)]
    for _ in range(5):
        for slot in range(4):
            pc.begin(slot)
        pc.ask(*lines, *resets, *lines)
    for slot in range(4):
        pc.serves(slot)
