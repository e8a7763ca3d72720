"""The ring: what a Guest may write into it, what it must not, and what each of that is answered with."""

import os
import threading
from collections.abc import Iterator

import pytest
from chain_model import Entry, by_the_book
from hypothesis import given, settings
from hypothesis import strategies as st
from support import PATIENCE, Ring, ask_c, naps, put_desc

from lguest_nb import vring
from lguest_nb.driver import Driver
from lguest_nb.memory import BadAddress, GuestError, GuestMemory
from lguest_nb.vring import (
    AVAIL_NO_INTERRUPT,
    DESC,
    DESC_INDIRECT,
    DESC_NEXT,
    DESC_WRITE,
    ENOUGH,
    USED_NO_NOTIFY,
    VIRTQUEUE_NUM,
    BrokenRing,
    RingLayout,
    Virtqueue,
    passed,
    ring_at,
    ring_size,
    walk_chain,
)
from lguest_nb.wakeup import Stopped

pytestmark = pytest.mark.usefixtures("nothing_left")
TABLE = 0x4000  # where tests put indirect tables
HEADERS = ("linux/virtio_ring.h",)


def chain_of(ring: Ring, head: int = 0, indirect: bool = True) -> vring.Chain:
    return walk_chain(ring.memory, ring.vq.ring.desc, ring.vq.num, head, indirect)


class TestLayout:
    def test_a_descriptor_is_virtio_ring_hs(self) -> None:
        fields = ("addr", "len", "flags", "next")
        told = ask_c(HEADERS, (*(f"offsetof(struct vring_desc, {f})" for f in fields), "sizeof(struct vring_desc)"))
        assert list(told.values()) == [0, 8, 12, 14, DESC.size]
        packed = DESC.pack(0x1122334455667788, 0x99AABBCC, 0xDDEE, 0xFF01)
        assert packed.hex() == "8877665544332211ccbbaa99eedd01ff"

    def test_flags_are_virtio_ring_hs(self) -> None:
        names = ("NEXT", "WRITE", "INDIRECT")
        told = ask_c(HEADERS, (*(f"VRING_DESC_F_{n}" for n in names), "VRING_AVAIL_F_NO_INTERRUPT"))
        assert list(told.values()) == [DESC_NEXT, DESC_WRITE, DESC_INDIRECT, AVAIL_NO_INTERRUPT] == [1, 2, 4, 1]
        assert list(ask_c(HEADERS, ("VRING_USED_F_NO_NOTIFY",)).values()) == [USED_NO_NOTIFY] == [1]

    @pytest.mark.parametrize("num", [1, 2, 8, 128, 256, 1024])
    def test_a_ring_in_one_piece_is_vring_inits(self, num: int) -> None:
        made = f"({{ struct vring r; vring_init(&r, {num}, (void *)0, 4096); r; }})"
        parts = ("desc", "avail", "used", f"used->ring + {num}")
        told = ask_c(HEADERS, tuple(f"(uintptr_t)({made}.{part})" for part in parts))
        assert list(told.values()) == [*ring_at(0, num), ring_size(num)]
        assert ring_at(0x5000, num) == RingLayout(*(0x5000 + part for part in ring_at(0, num)))

    def test_a_ring_of_256_takes_three_pages(self) -> None:
        assert VIRTQUEUE_NUM == 256
        assert ring_size(VIRTQUEUE_NUM) == 10244
        assert ring_at(0, VIRTQUEUE_NUM) == (0, 4096, 8192)

    def test_the_available_ring_is_flags_idx_and_heads(self, ring: Ring) -> None:
        told = ask_c(HEADERS, tuple(f"offsetof(struct vring_avail, {f})" for f in ("flags", "idx", "ring")))
        flags, idx, heads = told.values()
        avail = ring.vq.ring.avail
        ring.desc(5, 0x1000, 16)
        ring.memory.write(avail + heads, bytes([5, 0]))
        ring.memory.write(avail + idx, bytes([1, 0]))
        assert ring.vq.wait().head == 5
        ring.memory.write(avail + flags, bytes([1, 0]))
        ring.offer(5)
        ring.vq.add_used(ring.vq.wait(), 0)
        ring.vq.notify_on_empty = False
        ring.vq.trigger()
        assert ring.interrupts == []

    def test_the_used_ring_is_flags_idx_and_pairs(self, ring: Ring) -> None:
        places = ("offsetof(struct vring_used, idx)", "offsetof(struct vring_used, ring)")
        told = ask_c(HEADERS, (*places, "sizeof(struct vring_used_elem)", "offsetof(struct vring_used_elem, len)"))
        assert list(told.values()) == [2, 4, 8, 4]
        ring.desc(6, 0x1000, 0x300, DESC_WRITE)
        ring.offer(6)
        ring.vq.add_used(ring.vq.wait(), 0x201)
        assert ring.memory.read(ring.vq.ring.used, 20).hex() == "000001000600000001020000" + "00" * 8

    @pytest.mark.parametrize(("part", "alignment"), [(0, 16), (1, 2), (2, 4)])
    def test_a_part_which_is_not_aligned_is_refused_and_nothing_has_changed(
        self, ring: Ring, part: int, alignment: int
    ) -> None:
        before = ring.vq.ring
        parts = list(ring_at(0x8000, 8))
        parts[part] += alignment
        ring.vq.place(RingLayout(*parts))
        ring.vq.place(before)
        parts[part] -= alignment // 2
        with pytest.raises(BrokenRing, match=f"not aligned to {alignment}"):
            ring.vq.place(RingLayout(*parts))
        assert ring.vq.ring == before

    @pytest.mark.parametrize("part", range(3))
    def test_a_part_outside_memory_is_refused_and_its_last_byte_may_be_rams(self, ring: Ring, part: int) -> None:
        sizes = (16 * 8, 4 + 2 * 8, 4 + 8 * 8)
        parts = list(ring_at(0x8000, 8))
        parts[part] = ring.memory.limit - sizes[part]
        ring.vq.place(RingLayout(*parts))
        for address in (parts[part] + 16, 1 << 32, (1 << 64) - 16):
            parts[part] = address
            with pytest.raises(BadAddress):
                ring.vq.place(RingLayout(*parts))


class TestChain:
    def test_the_readable_part_comes_first_then_the_writable(self, ring: Ring) -> None:
        ring.desc(3, 0x1000, 16, DESC_NEXT, 0)
        ring.desc(0, 0x2000, 512, DESC_NEXT | DESC_WRITE, 7)
        ring.desc(7, 0x3000, 1, DESC_WRITE)
        chain = chain_of(ring, 3)
        assert (chain.head, chain.readable, chain.writable) == (
            3,
            [(0x1000, 16)],
            [(0x2000, 512), (0x3000, 1)],
        )

    def test_views_are_the_guests_own_bytes(self, ring: Ring) -> None:
        ring.memory.write(0x1000, b"for us")
        ring.desc(0, 0x1000, 6, DESC_NEXT, 1)
        ring.desc(1, 0x2000, 4, DESC_WRITE)
        chain = chain_of(ring)
        assert [bytes(view) for view in chain.out_views()] == [b"for us"]
        chain.in_views()[0][:] = b"back"
        assert ring.memory.read(0x2000, 5) == b"back\0"

    def test_a_chain_as_long_as_the_ring_is_legal(self, ring: Ring) -> None:
        for i in range(8):
            ring.desc(i, 0x1000 + i, 1, DESC_NEXT if i < 7 else 0, i + 1)
        assert len(chain_of(ring).readable) == 8

    @pytest.mark.parametrize("loop", [(0,), (0, 1), (0, 1, 2, 3, 4, 5, 6, 7)], ids=len)
    def test_a_looped_chain_is_refused(self, ring: Ring, loop: tuple[int, ...]) -> None:
        for i, after in zip(loop, (*loop[1:], 0), strict=True):
            ring.desc(i, 0x1000, 1, DESC_NEXT, after)
        with pytest.raises(BrokenRing, match="Looped descriptor: .* the ring's 8 descriptors"):
            chain_of(ring)

    @pytest.mark.parametrize("after", [8, 9, 0xFFFF])
    def test_next_beyond_the_table_is_refused(self, ring: Ring, after: int) -> None:
        ring.desc(0, 0x1000, 1, DESC_NEXT, after)
        with pytest.raises(BrokenRing, match=f"Desc next is {after}, but the table has 8"):
            chain_of(ring)

    def test_next_without_its_flag_means_nothing(self, ring: Ring) -> None:
        ring.desc(0, 0x1000, 1, 0, 0xFFFF)
        assert chain_of(ring).readable == [(0x1000, 1)]

    def test_a_readable_buffer_after_a_writable_one_is_refused(self, ring: Ring) -> None:
        ring.desc(0, 0x1000, 1, DESC_NEXT | DESC_WRITE, 1)
        ring.desc(1, 0x2000, 1)
        with pytest.raises(BrokenRing, match="Descriptor has out after in: the buffer at 0x2000"):
            chain_of(ring)

    def test_even_an_empty_readable_buffer_after_a_writable_one_is_refused(self, ring: Ring) -> None:
        ring.desc(0, 0x1000, 0, DESC_NEXT | DESC_WRITE, 1)
        ring.desc(1, 0x2000, 0)
        with pytest.raises(BrokenRing, match="out after in"):
            chain_of(ring)

    @pytest.mark.parametrize(
        ("address", "length"),
        [
            (0xFFFFF, 0xFFFFFFFF),
            (1 << 32, 1),
            ((1 << 64) - 1, 1),
            ((1 << 64) - 16, 0xFFFFFFFF),
            (0xFFFFF000, 0x2000),
        ],
    )
    @pytest.mark.parametrize("flags", [0, DESC_WRITE])
    def test_a_buffer_outside_memory_is_refused_however_it_wraps(
        self, ring: Ring, address: int, length: int, flags: int
    ) -> None:
        ring.desc(0, address, length, flags)
        with pytest.raises(BadAddress, match=f"Invalid address {address:#x}: {length} bytes"):
            chain_of(ring)

    def test_a_buffer_may_end_with_the_last_byte_and_begin_with_the_first(self, ring: Ring) -> None:
        ring.desc(0, ring.memory.limit - 16, 16, DESC_NEXT, 1)
        ring.desc(1, 0, 16, DESC_WRITE)
        chain = chain_of(ring)
        assert (chain.readable, chain.writable) == ([(ring.memory.limit - 16, 16)], [(0, 16)])
        ring.desc(0, ring.memory.limit - 16, 17)
        with pytest.raises(BadAddress):
            chain_of(ring)

    def test_empty_buffers_are_left_out_and_a_chain_of_them_is_empty(self, ring: Ring) -> None:
        ring.desc(0, 0x1000, 0, DESC_NEXT, 1)
        ring.desc(1, 0x2000, 0, DESC_NEXT | DESC_WRITE, 2)
        ring.desc(2, 0x3000, 1, DESC_WRITE)
        ring.desc(3, 0x1000, 0)
        assert (chain_of(ring).readable, chain_of(ring).writable) == ([], [(0x3000, 1)])
        assert (chain_of(ring, 3).readable, chain_of(ring, 3).writable) == ([], [])

    def test_unknown_flag_bits_are_ignored(self, ring: Ring) -> None:
        ring.desc(0, 0x1000, 1, DESC_NEXT | 0xFFF8, 1)
        ring.desc(1, 0x2000, 1, DESC_WRITE | 0x8000)
        chain = chain_of(ring)
        assert (chain.readable, chain.writable) == ([(0x1000, 1)], [(0x2000, 1)])

    def test_a_buffer_may_be_the_ring_itself(self, ring: Ring) -> None:
        layout = ring.vq.ring
        ring.desc(0, layout.desc, 128, DESC_NEXT | DESC_WRITE, 1)
        ring.desc(1, layout.avail, 20, DESC_NEXT | DESC_WRITE, 2)
        ring.desc(2, layout.used, 68, DESC_WRITE)
        ring.offer(0)
        chain = ring.vq.wait()
        for view in chain.in_views():
            view[:] = bytes([0xEE]) * len(view)
        ring.vq.add_used(chain, 216)
        assert chain.writable == [(layout.desc, 128), (layout.avail, 20), (layout.used, 68)]
        with pytest.raises(BrokenRing, match="Guest moved used index from 1 to 61166"):
            ring.vq.wait()

    def test_each_descriptor_is_read_once_and_the_copy_is_used(self, ring: Ring, monkeypatch) -> None:
        ring.desc(0, 0x1000, 4, DESC_NEXT, 1)
        ring.desc(1, 0x2000, 8, DESC_WRITE)
        reads = Tampering()
        monkeypatch.setattr(vring, "DESC", reads)
        chain = chain_of(ring)
        assert reads.places == [ring.vq.ring.desc, ring.vq.ring.desc + 16]
        assert (chain.readable, chain.writable) == ([(0x1000, 4)], [(0x2000, 8)])
        assert chain.in_views()[0].nbytes == 8


class Tampering:
    "`DESC` with a Guest which changes each descriptor the moment it was read."

    size = DESC.size

    def __init__(self) -> None:
        self.places: list[int] = []

    def unpack_from(self, buffer, offset: int) -> tuple[int, ...]:
        entry = DESC.unpack_from(buffer, offset)
        self.places.append(offset)
        DESC.pack_into(buffer, offset, 1 << 60, 0xFFFFFFFF, DESC_NEXT | DESC_INDIRECT, 0xFFFF)
        return entry


class TestIndirect:
    def table(self, ring: Ring, *entries: tuple[int, ...], flags: int = 0, length: int | None = None) -> None:
        "Descriptor 0 stands for a table of `entries`."
        for i, entry in enumerate(entries):
            put_desc(ring.memory, TABLE, i, *entry)
        ring.desc(0, TABLE, 16 * len(entries) if length is None else length, DESC_INDIRECT | flags)

    def test_a_table_stands_for_its_chain(self, ring: Ring) -> None:
        self.table(ring, (0x1000, 16, DESC_NEXT, 2), (0, 0), (0x2000, 32, DESC_WRITE))
        chain = chain_of(ring)
        assert (chain.head, chain.readable, chain.writable) == (0, [(0x1000, 16)], [(0x2000, 32)])

    def test_one_behind_ordinary_descriptors_is_followed_too(self, ring: Ring) -> None:
        self.table(ring, (0x2000, 32, DESC_WRITE))
        ring.desc(5, 0x1000, 16, DESC_NEXT, 0)
        chain = chain_of(ring, 5)
        assert (chain.readable, chain.writable) == ([(0x1000, 16)], [(0x2000, 32)])

    def test_the_write_flag_of_the_descriptor_which_points_there_is_ignored(self, ring: Ring) -> None:
        self.table(ring, (0x1000, 16), flags=DESC_WRITE)
        assert chain_of(ring).readable == [(0x1000, 16)]

    def test_it_must_have_been_negotiated(self, ring: Ring) -> None:
        self.table(ring, (0x1000, 16))
        with pytest.raises(BrokenRing, match="not negotiated"):
            chain_of(ring, indirect=False)

    def test_a_virtqueue_without_the_feature_refuses_it(self, ring: Ring) -> None:
        self.table(ring, (0x1000, 16))
        ring.vq.indirect = False
        ring.offer(0)
        with pytest.raises(BrokenRing, match="not negotiated"):
            ring.vq.wait()

    def test_a_table_inside_a_table_is_refused(self, ring: Ring) -> None:
        self.table(ring, (TABLE, 16, DESC_INDIRECT))
        with pytest.raises(BrokenRing, match="inside another"):
            chain_of(ring)

    def test_a_table_must_be_the_end_of_its_chain(self, ring: Ring) -> None:
        self.table(ring, (0x1000, 16), flags=DESC_NEXT)
        with pytest.raises(BrokenRing, match="not the end of its chain"):
            chain_of(ring)

    @pytest.mark.parametrize("length", [0, 1, 4, 8, 15, 17, 31])
    def test_a_size_which_is_no_number_of_entries_is_refused(self, ring: Ring, length: int) -> None:
        self.table(ring, (0x1000, 16), length=length)
        with pytest.raises(BrokenRing, match=f"Invalid size for indirect buffer table: {length} bytes"):
            chain_of(ring)

    @pytest.mark.parametrize("address", [(1 << 64) - 16, 1 << 32])
    def test_a_table_outside_memory_is_refused(self, ring: Ring, address: int) -> None:
        ring.desc(0, address, 32, DESC_INDIRECT)
        with pytest.raises(BadAddress, match=f"Invalid address {address:#x}: 32 bytes"):
            chain_of(ring)

    def test_a_table_may_end_with_the_last_byte_and_not_beyond(self, ring: Ring) -> None:
        last = ring.memory.limit - 16
        put_desc(ring.memory, last, 0, 0x1000, 16)
        ring.desc(0, last, 16, DESC_INDIRECT)
        assert chain_of(ring).readable == [(0x1000, 16)]
        ring.desc(0, last, 32, DESC_INDIRECT)
        with pytest.raises(BadAddress):
            chain_of(ring)

    def test_a_loop_inside_is_refused(self, ring: Ring) -> None:
        self.table(ring, (0x1000, 1, DESC_NEXT, 1), (0x1000, 1, DESC_NEXT, 0))
        with pytest.raises(BrokenRing, match="Looped descriptor"):
            chain_of(ring)

    def test_next_is_compared_with_the_tables_own_length(self, ring: Ring) -> None:
        self.table(ring, (0x1000, 1, DESC_NEXT, 2), (0x1000, 1))
        with pytest.raises(BrokenRing, match="Desc next is 2, but the table has 2"):
            chain_of(ring)

    @pytest.mark.parametrize("entries", [8, 9, 300])
    def test_a_table_may_be_longer_than_the_ring_but_not_its_chain(self, ring: Ring, entries: int) -> None:
        more = [(0x1000, 1, DESC_NEXT, i + 1) for i in range(entries - 1)]
        self.table(ring, *more, (0x1000, 1))
        if entries == 8:
            assert len(chain_of(ring).readable) == 8
        else:
            with pytest.raises(BrokenRing, match="more than the ring's 8 descriptors"):
                chain_of(ring)
        put_desc(ring.memory, TABLE, 0, 0x1000, 1)
        assert len(chain_of(ring).readable) == 1

    def test_it_counts_with_what_stood_before_it(self, ring: Ring) -> None:
        self.table(ring, *((0x1000, 1, DESC_NEXT, i + 1) for i in range(7)), (0x1000, 1))
        ring.desc(5, 0x1000, 1, DESC_NEXT, 0)
        with pytest.raises(BrokenRing, match="more than the ring's 8 descriptors"):
            chain_of(ring, 5)


class TestIndices:
    def test_an_index_taken_back_between_the_look_and_the_taking_is_refused(self, ring: Ring) -> None:
        "Or a chain which is not available any more would be served from a stale slot."
        ring.desc(0, 0x1000, 4, DESC_WRITE)
        ring.offer(0)
        ring.vq.add_used(ring.vq.take(), 0)
        ring.offer(0)
        assert ring.vq.more()
        ring.avail_idx = 1
        with pytest.raises(BrokenRing, match="Guest moved used index from 1 to 1, not 1 to 8 ahead"):
            ring.vq.take()

    def test_what_one_look_at_the_index_has_promised_is_taken_and_then_we_look_again(self, ring: Ring) -> None:
        "The slots up to there were filled before the index moved; what it says meanwhile is for the next look."
        ring.desc(0, 0x1000, 4, DESC_WRITE)
        ring.desc(1, 0x2000, 4, DESC_WRITE)
        ring.offer(0, 1, 0)
        assert ring.vq.wait().head == 0
        ring.avail_idx = 1
        assert [ring.vq.wait().head, ring.vq.wait().head] == [1, 0]
        for take in (ring.vq.wait, ring.vq.take):
            with pytest.raises(BrokenRing, match="Guest moved used index from 3 to 1, not 1 to 8 ahead"):
                take()

    def test_a_ring_placed_anew_has_promised_nothing(self, ring: Ring) -> None:
        ring.offer(0, 0, 0)
        ring.vq.take()
        ring.vq.place(ring.vq.ring)
        ring.avail_idx = 0
        with pytest.raises(BrokenRing, match="Guest moved used index from 0 to 0, not 1 to 8 ahead"):
            ring.vq.take()

    @pytest.mark.parametrize("ahead", [9, 100, 0x8000, 0xFFFF])
    @pytest.mark.parametrize("taken", [0, 5, 0xFFFF])
    def test_an_index_further_ahead_than_the_ring_is_long_is_refused(self, ring: Ring, taken: int, ahead: int) -> None:
        ring.start_at(taken)
        ring.avail_idx = taken + ahead
        said = f"test:0: Guest moved used index from {taken} to {ring.avail_idx}"
        for _ in range(2):
            with pytest.raises(BrokenRing, match=said):
                ring.vq.wait()
        assert ring.vq.last_avail == taken

    def test_an_index_moved_backwards_is_refused(self, ring: Ring) -> None:
        ring.offer(0, 0, 0)
        for _ in range(3):
            ring.vq.take()
        for idx in (2, 0):
            ring.avail_idx = idx
            with pytest.raises(BrokenRing, match=f"from 3 to {idx}"):
                ring.vq.wait()

    def test_a_full_ring_is_legal(self, ring: Ring) -> None:
        ring.desc(0, 0x1000, 1)
        ring.offer(*[0] * 8)
        assert [ring.vq.wait().head for _ in range(8)] == [0] * 8
        assert not ring.vq.more()

    @pytest.mark.parametrize("head", [8, 0x100, 0xFFFF])
    def test_a_head_beyond_the_ring_is_refused(self, ring: Ring, head: int) -> None:
        ring.offer(head)
        with pytest.raises(BrokenRing, match=f"test:0: Guest says index {head} is available, and the ring has 8"):
            ring.vq.wait()

    def test_indices_run_through_65535_to_0(self, ring: Ring) -> None:
        ring.start_at(0xFFFE)
        for head in range(4):
            ring.desc(head, 0x1000, 1)
            ring.offer(head)
            ring.vq.add_used(ring.vq.wait(), head)
        assert (ring.vq.last_avail, ring.vq.used_idx, ring.used_idx) == (2, 2, 2)
        assert ring.used() == [(2, 2), (3, 3)]
        at = ring.vq.ring.used + 4 + 8 * 6  # slots 6 and 7 of 8
        assert ring.memory.read(at, 16).hex(" ", 4) == "00000000 00000000 01000000 01000000"

    def test_what_we_count_is_never_read_back_from_the_guest(self, ring: Ring) -> None:
        ring.desc(0, 0x1000, 1)
        ring.offer(0, 0)
        ring.vq.add_used(ring.vq.wait(), 0)
        ring.memory.u16[ring.vq.used + 1] = 0x1234
        ring.vq.add_used(ring.vq.wait(), 0)
        assert (ring.used_idx, ring.vq.last_avail) == (2, 2)

    def test_every_error_of_a_chain_names_the_queue(self, ring: Ring) -> None:
        ring.desc(0, 1 << 40, 1)
        ring.offer(0)
        with pytest.raises(BadAddress, match="^test:0: Invalid address"):
            ring.vq.wait()

    def test_placing_a_ring_begins_at_its_beginning(self, ring: Ring) -> None:
        ring.desc(0, 0x1000, 1)
        ring.offer(0)
        ring.vq.add_used(ring.vq.wait(), 0)
        ring.vq.place(ring.vq.ring)
        assert (ring.vq.last_avail, ring.vq.used_idx, ring.vq.pending_used) == (0, 0, 0)


class TestUsed:
    def test_the_entry_is_there_before_the_index_moves(self, ring: Ring) -> None:
        ring.desc(3, 0x1000, 8, DESC_WRITE)
        ring.offer(3)
        order = Stores(ring.vq)
        ring.vq.add_used(ring.vq.wait(), 5)
        assert order.made[-3:] == [("head", 3), ("length", 5), ("index", 1)]

    def test_the_host_hears_of_all_we_may_have_written_before_the_guest_does(self, ring: Ring) -> None:
        ring.desc(0, 0x1000, 8, DESC_NEXT | DESC_WRITE, 1)
        ring.desc(1, 0x2000, 4, DESC_WRITE)
        ring.offer(0)
        order = Stores(ring.vq)
        ring.vq.add_used(ring.vq.wait(), 0)
        assert order.made[:2] == [("wrote", (0x1000, 8)), ("wrote", (0x2000, 4))]
        assert order.made[-1] == ("index", 1)

    def test_a_chain_without_a_writable_part_wrote_nothing(self, ring: Ring) -> None:
        ring.desc(3, 0x1000, 8)
        ring.offer(3)
        order = Stores(ring.vq)
        ring.vq.add_used(ring.vq.wait(), 0)
        assert order.made == [("head", 3), ("length", 0), ("index", 1)]

    def test_nothing_given_back_is_no_interrupt(self, ring: Ring) -> None:
        ring.vq.trigger()
        ring.desc(0, 0x1000, 1)
        ring.offer(0)
        ring.vq.add_used(ring.vq.wait(), 0)
        ring.vq.trigger()
        ring.vq.trigger()
        assert ring.interrupts == [1]

    def test_many_given_back_are_one_interrupt(self, ring: Ring) -> None:
        ring.desc(0, 0x1000, 1)
        ring.offer(0, 0, 0)
        for _ in range(3):
            ring.vq.add_used(ring.vq.wait(), 0)
        ring.vq.trigger()
        assert ring.interrupts == [3]

    @pytest.mark.parametrize("flags", [1, 3, 0xFFFF])
    def test_a_guest_which_wants_silence_hears_only_of_the_last(self, ring: Ring, flags: int) -> None:
        ring.memory.u16[ring.vq.avail] = flags
        ring.desc(0, 0x1000, 1)
        ring.offer(0, 0, 0)
        for _ in range(3):
            ring.vq.add_used(ring.vq.wait(), 0)
            ring.vq.trigger()
        assert ring.interrupts == [3]

    def test_without_notify_on_empty_silence_is_silence(self, ring: Ring) -> None:
        ring.vq.notify_on_empty = False
        ring.memory.u16[ring.vq.avail] = AVAIL_NO_INTERRUPT
        ring.desc(0, 0x1000, 1)
        ring.offer(0)
        ring.vq.add_used(ring.vq.wait(), 0)
        ring.vq.trigger()
        assert ring.interrupts == []

    @pytest.mark.parametrize("flags", [0, 2, 0xFFFE])
    def test_flag_bits_nobody_has_defined_are_no_wish_for_silence(self, ring: Ring, flags: int) -> None:
        ring.memory.u16[ring.vq.avail] = flags
        ring.desc(0, 0x1000, 1)
        ring.offer(0, 0)
        ring.vq.add_used(ring.vq.wait(), 0)
        ring.vq.trigger()
        assert ring.interrupts == [1]

    def test_the_wish_for_silence_is_looked_at_behind_a_full_barrier(self, ring: Ring) -> None:
        "A Guest which takes its wish back just before the barrier is heard."
        ring.memory.u16[ring.vq.avail] = AVAIL_NO_INTERRUPT
        ring.desc(0, 0x1000, 1)
        ring.offer(0, 0)
        ring.vq.add_used(ring.vq.wait(), 0)
        ring.vq.fence = lambda: ring.memory.u16.__setitem__(ring.vq.avail, 0)
        ring.vq.trigger()
        assert ring.interrupts == [1]

    def test_what_is_held_is_seen_with_the_next_one(self, ring: Ring) -> None:
        told: list[tuple[int, int]] = []
        ring.vq.wrote = told.extend
        for head in range(3):
            ring.desc(head, 0x1000 * (head + 1), 16, DESC_WRITE)
        ring.start_at(0xFFFE)
        ring.offer(0, 1, 2)
        ring.vq.hold_used(ring.vq.wait(), 16)
        ring.vq.hold_used(ring.vq.wait(), 16)
        assert (ring.used_idx, ring.interrupts) == (0xFFFE, [])
        assert told == [(0x1000, 16), (0x2000, 16)]
        ring.vq.add_used(ring.vq.wait(), 4)
        assert ring.used_idx == 1
        slots = [ring.vq.entries + 2 * slot for slot in (6, 7, 0)]
        assert [(ring.memory.u32[at], ring.memory.u32[at + 1]) for at in slots] == [(0, 16), (1, 16), (2, 4)]
        ring.vq.trigger()
        assert len(ring.interrupts) == 1


class Stores:
    "Writes down, in order, what `add_used` stores into the used ring."

    def __init__(self, vq: Virtqueue) -> None:
        self.made: list[tuple[str, object]] = []
        self.vq, self.real = vq, vq.memory
        slot = (vq.ring.used >> 2) + 1
        self.names = {("u32", slot): "head", ("u32", slot + 1): "length", ("u16", vq.used + 1): "index"}
        vq.wrote = lambda ranges: self.made.extend(("wrote", tuple(r)) for r in ranges)
        vq.memory = self  # type: ignore[assignment]

    def __getattr__(self, name: str) -> object:
        return Recorded(self, name) if name in ("u16", "u32") else getattr(self.real, name)


class Recorded:
    "One of the typed views of `Stores`."

    def __init__(self, stores: Stores, name: str) -> None:
        self.stores, self.name, self.view = stores, name, getattr(stores.real, name)

    def __getitem__(self, index: int) -> int:
        return self.view[index]

    def __setitem__(self, index: int, value: int) -> None:
        self.view[index] = value
        self.stores.made.append((self.stores.names.get((self.name, index), "?"), value))


class Served:
    "A thread which serves a ring for ever, and what became of it."

    def __init__(self, ring: Ring) -> None:
        self.ring, self.asleep = ring, naps(ring.vq)
        self.heads: list[int] = []
        self.flags: list[int] = []  # used.flags at each chain
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, name="lguest test")
        self.thread.start()

    def _run(self) -> None:
        try:
            while True:
                chain = self.ring.vq.wait()
                self.flags.append(self.ring.used_flags)
                self.heads.append(chain.head)
                self.ring.vq.add_used(chain, 0)
        except (Stopped, GuestError) as e:
            self.error = e

    def until_asleep(self) -> None:
        assert self.asleep.acquire(timeout=PATIENCE)

    def kick(self) -> None:
        os.eventfd_write(self.ring.vq.wakeup.kicks, 1)

    def stop(self) -> None:
        self.ring.vq.wakeup.stop()
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()


@pytest.fixture
def served(ring: Ring) -> Iterator[Served]:
    ring.desc(0, 0x1000, 1)
    served = Served(ring)
    yield served
    served.stop()


class TestWaiting:
    def test_it_sleeps_until_the_kick_and_again_when_the_ring_is_empty(self, served: Served) -> None:
        served.until_asleep()
        served.ring.offer(0, 0)
        served.kick()
        served.until_asleep()
        assert served.heads == [0, 0]

    def test_the_interrupt_comes_once_before_it_sleeps(self, served: Served) -> None:
        served.until_asleep()
        served.ring.offer(*[0] * 8)
        served.kick()
        served.until_asleep()
        assert served.ring.interrupts == [8]

    def test_kicks_are_wanted_asleep_and_unwanted_awake(self, served: Served) -> None:
        served.until_asleep()
        assert served.ring.used_flags == 0
        served.ring.offer(0, 0)
        served.kick()
        served.until_asleep()
        assert served.flags == [USED_NO_NOTIFY] * 2
        assert served.ring.used_flags == 0

    def test_kicks_with_nothing_new_do_nothing(self, served: Served) -> None:
        served.until_asleep()
        for _ in range(3):
            served.kick()
            served.until_asleep()
        assert (served.heads, served.ring.interrupts) == ([], [])

    def test_many_kicks_wake_once(self, ring: Ring) -> None:
        ring.desc(0, 0x1000, 1)
        ring.offer(0)
        for _ in range(40):
            os.eventfd_write(ring.vq.wakeup.kicks, 1)
        ring.vq.wait()
        ring.vq.wakeup.sleep()
        ring.vq.wakeup.stop()
        with pytest.raises(Stopped):
            ring.vq.wakeup.sleep()

    def test_a_buffer_added_while_kicks_are_being_allowed_is_found(self, ring: Ring, monkeypatch) -> None:
        "The Guest looked at NO_NOTIFY a moment too early and will not kick: `wait` must look once more."
        ring.desc(0, 0x1000, 1)
        seen = []

        def barrier() -> None:
            seen.append(ring.used_flags)
            ring.offer(0)

        ring.vq.fence = barrier
        monkeypatch.setattr(ring.vq.wakeup, "sleep", lambda: pytest.fail("slept on a ring with a buffer in it"))
        ring.memory.u16[ring.vq.used] = USED_NO_NOTIFY
        assert ring.vq.wait().head == 0
        assert seen == [0]
        assert ring.used_flags == USED_NO_NOTIFY

    def test_a_stop_wakes_the_sleeper_and_ends_it(self, served: Served) -> None:
        served.until_asleep()
        served.stop()
        assert isinstance(served.error, Stopped)

    def test_a_broken_ring_is_raised_where_it_is_noticed(self, served: Served) -> None:
        served.until_asleep()
        served.ring.avail_idx = 999
        served.kick()
        served.thread.join(PATIENCE)
        assert isinstance(served.error, BrokenRing)

    def test_one_piece_of_memory_in_two_queues_is_no_concern_of_ours(self, memory: GuestMemory) -> None:
        first, second = Ring.make(memory), Ring.make(memory)
        second.vq.place(first.vq.ring)
        first.desc(0, 0x1000, 4, DESC_WRITE)
        first.offer(0)
        for ring in (first, second):
            ring.vq.add_used(ring.vq.wait(), 4)
        assert first.used_idx == 1
        for ring in (first, second):
            ring.vq.wakeup.close()


def test_a_wish_for_an_interrupt_needs_no_fence_and_silence_does(ring: Ring) -> None:
    "An interrupt too many is harmless; a Guest which has just changed its mind would wait for ever."
    fences: list[int] = []
    ring.vq.fence = lambda: fences.append(len(ring.interrupts))
    ring.desc(0, 0x1000, 4, DESC_WRITE)
    for silent in (0, AVAIL_NO_INTERRUPT):
        ring.offer(0, 0)
        ring.memory.u16[ring.vq.avail] = silent
        ring.vq.add_used(ring.vq.take(), 4)
        ring.vq.trigger()
    assert (ring.interrupts, fences) == ([1], [1])

    def changes_its_mind() -> None:
        ring.memory.u16[ring.vq.avail] = 0

    ring.vq.fence = changes_its_mind
    ring.vq.add_used(ring.vq.take(), 4)
    ring.vq.trigger()
    assert ring.interrupts == [1, 3]


# The property: against the plain model of chain_model.py.
NUM, LIMIT, INSIDE = 4, 0x10000, 6  # entries of the ring; end of memory; entries of the indirect table
RING_DESC = 0x8000
ADDRESSES = [0, 0x1000, LIMIT - 8, LIMIT - 1, LIMIT, 1 << 32, (1 << 64) - 4]
descriptors = st.tuples(
    st.sampled_from(ADDRESSES),
    st.sampled_from([0, 1, 8, 9, 0xFFFFFFFF]),
    st.sampled_from([0, 1, 1, 1, 2, 3, 3, 0xFFF8, 0xFFF9]),
    st.integers(0, NUM + 2),
)
pointers = st.tuples(
    st.sampled_from([TABLE, TABLE, TABLE, LIMIT - 16, LIMIT]),
    st.sampled_from([0, 8, 16, 32, 16 * INSIDE, 16 * INSIDE + 1]),
    st.sampled_from([4, 4, 4, 5, 6]),
    st.integers(0, NUM),
)
tables = st.lists(descriptors | descriptors | pointers, min_size=NUM, max_size=NUM)
insides = st.lists(descriptors | descriptors | descriptors | pointers, min_size=INSIDE, max_size=INSIDE)


@pytest.fixture(scope="module")
def small() -> Iterator[GuestMemory]:
    memory = GuestMemory(LIMIT, device_pages=0)
    yield memory
    memory.close()


@settings(max_examples=400, deadline=None)
@given(tables, insides, st.integers(0, NUM - 1), st.booleans())
def test_a_chain_is_walked_as_the_specification_says(small, table, inside, head, negotiated) -> None:
    for i, entry in enumerate(table):
        put_desc(small, RING_DESC, i, *entry)
    for i, entry in enumerate(inside):
        put_desc(small, TABLE, i, *entry)

    def table_at(address: int, entries: int) -> list[Entry]:
        return inside[:entries] if address == TABLE else [(0, 0, 0, 0)]

    expected = by_the_book(table, table_at, LIMIT, head, negotiated)
    try:
        chain = walk_chain(small, RING_DESC, NUM, head, negotiated)
    except GuestError:
        assert expected is None
    else:
        assert (chain.readable, chain.writable) == expected


class TestDriver:
    "The Guest's side in Python, on which the tests of all devices lean."

    @pytest.fixture
    def driver(self, ring: Ring) -> Driver:
        return Driver(ring.vq, 0x10000, 0x1000)

    @pytest.mark.parametrize("indirect", [False, True])
    def test_what_it_adds_is_what_a_device_takes(self, driver: Driver, indirect: bool) -> None:
        driver.add(out=[b"one", b"two"], into=[8, 4], indirect=indirect)
        chain = driver.vq.wait()
        assert [bytes(view) for view in chain.out_views()] == [b"one", b"two"]
        chain.in_views()[0][:6] = b"answer"
        driver.vq.add_used(chain, 6)
        driver.vq.trigger()
        (used,) = driver.wait_used()
        assert (used.head, used.length, used.data) == (chain.head, 6, b"answer")
        assert sorted(driver.free) == list(range(8))

    def test_it_kicks_only_where_a_kick_is_wanted(self, driver: Driver) -> None:
        driver.memory.u16[driver.vq.used] = USED_NO_NOTIFY
        assert not driver.kick()
        driver.memory.u16[driver.vq.used] = 0
        assert driver.kick()
        driver.vq.wakeup.sleep()


# Event indices, against virtio 1.2 §2.7.7.2 and §2.7.10.1 said with sets of entry numbers, where nothing can wrap.


class Asleep(Exception):
    "The queue has lain down."


def entries(first: int, count: int) -> set[int]:
    "The numbers of so many entries of a ring, as they are written into an event field."
    return {i % 0x10000 for i in range(first, first + count)}


MOVES = st.one_of(
    st.tuples(st.just("offer"), st.integers(1, 8)),
    st.tuples(st.just("serve"), st.integers(1, 20)),
    st.tuples(st.just("trigger"), st.just(0)),
    st.tuples(st.just("sleep"), st.just(0)),
    st.tuples(st.just("used_event"), st.integers(-3, 20) | st.integers(0, 0xFFFF)),
    st.tuples(st.just("flags"), st.integers(0, 0xFFFF)),
)


@settings(max_examples=300, deadline=None)
@given(start=st.sampled_from([0, 5, 0x7FFF, 0xFFF0, 0xFFFD, 0xFFFF]), moves=st.lists(MOVES, max_size=40))
def test_event_indices_lose_no_wake_up_and_add_no_interrupt(start: int, moves: list[tuple[str, int]]) -> None:
    memory = GuestMemory(1 << 16)
    ring = Ring.make(memory)
    vq, u16 = ring.vq, memory.u16
    vq.event_idx, vq.notify_on_empty = True, False
    vq.place(vq.ring)
    vq.last_avail = vq.used_idx = ring.avail_idx = u16[vq.used + 1] = start
    for i in range(vq.num):
        ring.desc(i, 0x1000, 1)

    def sleep() -> None:
        raise Asleep

    vq.wakeup.sleep = sleep  # type: ignore[method-assign]
    offered = taken = looked = start  # these count on and never wrap
    expected = 0  # interrupts

    def looks_at_used_event() -> None:
        nonlocal looked, expected
        expected += u16[vq.used_event] in entries(looked, taken - looked)
        looked = taken

    def rests() -> None:
        with pytest.raises(Asleep):
            vq.wait()
        looks_at_used_event()
        assert u16[vq.avail_event] in entries(offered, 1), "the next buffer would not be kicked for"

    try:
        for move, number in moves:
            if move == "offer":
                for _ in range(min(number, vq.num - (offered - taken))):
                    ring.offer(offered % vq.num)
                    offered += 1
            elif move == "serve":
                for _ in range(min(number, offered - taken)):
                    vq.add_used(vq.wait(), 0)
                    taken += 1
                    if taken - looked == ENOUGH:
                        looks_at_used_event()
            elif move == "trigger":
                vq.trigger()
                looks_at_used_event()
            elif move == "sleep" and offered == taken:
                rests()
            elif move == "used_event":
                u16[vq.used_event] = (taken + number) % 0x10000
            elif move == "flags":
                u16[vq.avail] = number
            assert len(ring.interrupts) == expected
            assert ring.used_flags == 0, "with event indices our flags stay 0"
    finally:
        vq.wakeup.close()
        memory.close()


def test_a_used_event_which_moves_at_the_last_moment_is_heard(ring: Ring) -> None:
    "The Guest names the entry which we have just filled, and we look behind the fence."
    ring.vq.event_idx, ring.vq.notify_on_empty = True, False
    ring.vq.place(ring.vq.ring)
    ring.memory.u16[ring.vq.used_event] = 7
    ring.desc(0, 0x1000, 1)
    ring.offer(0)
    ring.vq.fence = lambda: ring.memory.u16.__setitem__(ring.vq.used_event, 0)
    ring.vq.add_used(ring.vq.wait(), 0)
    ring.vq.trigger()
    assert ring.interrupts == [1]


def test_a_buffer_added_while_avail_event_is_being_written_is_found(ring: Ring) -> None:
    ring.vq.event_idx = True
    ring.vq.place(ring.vq.ring)
    ring.desc(0, 0x1000, 1)
    ring.memory.u16[ring.vq.avail_event] = 0x1234
    seen: list[int] = []

    def barrier() -> None:
        seen.append(ring.memory.u16[ring.vq.avail_event])
        ring.offer(0)

    ring.vq.fence = barrier
    ring.vq.wakeup.sleep = lambda: pytest.fail("slept on a ring with a buffer in it")  # type: ignore[method-assign]
    assert ring.vq.wait().head == 0
    assert seen == [0]


@pytest.mark.parametrize("num", [1, 8, 256])
def test_the_event_fields_are_virtio_ring_hs(memory: GuestMemory, num: int) -> None:
    made = f"({{ struct vring r; vring_init(&r, {num}, (void *)0, 4096); r; }})"
    fields = ("vring_used_event", "vring_avail_event")
    told = ask_c(HEADERS, tuple(f"({{ struct vring r = {made}; (uintptr_t)&{field}(&r); }})" for field in fields))
    vq = Virtqueue(memory, num)
    vq.place(ring_at(0, num))
    assert list(told.values()) == [2 * vq.used_event, 2 * vq.avail_event]
    vq.wakeup.close()


@given(event=st.integers(0, 0xFFFF), idx=st.integers(0, 0xFFFF), count=st.integers(0, 300))
def test_whether_an_event_was_passed_is_a_question_of_sets(event: int, idx: int, count: int) -> None:
    assert passed(event, idx, count) == (event in entries(idx - count, count))
