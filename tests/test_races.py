"""A Guest which rewrites what we read while we read it: it is served or refused, and nothing else ever happens."""

import os
import random
import select
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import close

from lguest_nb.block import HEADER, T_OUT, Block
from lguest_nb.console import Console
from lguest_nb.device import Device
from lguest_nb.memory import GuestError, GuestMemory
from lguest_nb.net import Net
from lguest_nb.rng import Rng
from lguest_nb.vring import (
    DESC,
    DESC_INDIRECT,
    DESC_NEXT,
    DESC_WRITE,
    RingLayout,
    Virtqueue,
    ring_at,
    walk_chain,
)
from lguest_nb.wakeup import Stopped

pytestmark = pytest.mark.usefixtures("nothing_left")
SIZE, NUM = 1 << 18, 8
HEADERS, BUFFERS, TABLE = 0x4000, 0x8000, 0x10000
ROUNDS, ENOUGH = 100000, 200  # at most so many, until so many were served and as many refused


class Scribbler(threading.Thread):
    "The Guest's other processor: it writes into a ring and its tables, plausible and impossible things in turn."

    def __init__(self, memory: GuestMemory, ring: RingLayout, seed: int) -> None:
        super().__init__(daemon=True)
        self.memory, self.ring, self.dice = memory, ring, random.Random(seed)
        self.finished, self.wrote = threading.Event(), threading.Semaphore(0)

    def descriptor(self) -> tuple[int, int, int, int]:
        choice = self.dice.choice
        address = choice([HEADERS, BUFFERS, TABLE, self.ring.avail, self.ring.used, 0, SIZE - 16, SIZE, 2**64 - 16])
        length = choice([16, 16, 512, 512, 1, 0, 64, 4096, 2**32 - 1])
        flags = choice([0, DESC_NEXT, DESC_NEXT, DESC_WRITE, DESC_NEXT | DESC_WRITE, DESC_INDIRECT, 0xFFFF])
        return address, length, flags, choice(range(NUM + 1))

    def run(self) -> None:
        memory, dice = self.memory, self.dice
        while not self.finished.is_set():
            table = dice.choice([self.ring.desc, self.ring.desc, TABLE])
            DESC.pack_into(memory.map, table + DESC.size * dice.randrange(NUM), *self.descriptor())
            memory.u16[(self.ring.avail >> 1) + dice.choice([2, 3, 4, 5])] = dice.choice([0, 1, 2, 7, 8, 0xFFFF])
            kind, sector = dice.choice([0, T_OUT, 2, 8, 1 << 31]), dice.choice([0, 3, 4, 2**63])
            HEADER.pack_into(memory.map, HEADERS, kind, 0, sector)
            memory.u16[(self.ring.used >> 1) + 1] = dice.randrange(0x10000)
            memory.u16[(self.ring.avail >> 1) + 1] = dice.choice([5, 5, 5, 8, 1, 0, 9, 0x8000])
            self.wrote.release()

    def something_new(self) -> None:
        "Wait until it has written since the last time."
        while self.wrote.acquire(blocking=False):
            pass
        self.wrote.acquire()

    def __enter__(self) -> "Scribbler":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.finished.set()
        self.join()


@pytest.fixture
def often() -> Iterator[None]:
    "Threads take turns as often as at the command line, so that a reader is interrupted in the middle."
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def room() -> Iterator[GuestMemory]:
    memory = GuestMemory(SIZE)
    yield memory
    close(memory)


@contextmanager
def disk(tmp_path: Path) -> Iterator[tuple[Device, int]]:
    (tmp_path / "disk").write_bytes(bytes(4 * 512))
    yield Block(tmp_path / "disk"), 0
    assert (tmp_path / "disk").stat().st_size == 4 * 512


@contextmanager
def entropy(_: Path) -> Iterator[tuple[Device, int]]:
    yield Rng("/dev/zero"), 0


@contextmanager
def sender(_: Path) -> Iterator[tuple[Device, int]]:
    yield Net(os.open("/dev/null", os.O_RDWR)), 1


@contextmanager
def receiver(_: Path) -> Iterator[tuple[Device, int]]:
    yield Net(os.open("/dev/zero", os.O_RDWR)), 0


@contextmanager
def screen(_: Path) -> Iterator[tuple[Device, int]]:
    null = os.open(os.devnull, os.O_RDWR)
    yield Console(null, null), 1
    os.close(null)


class NoSleep(Stopped):
    "The ring is empty, and nobody will kick."


def never(*_: object) -> None:
    raise NoSleep


Make = Callable[[Path], object]


@pytest.mark.parametrize("make", [disk, entropy, sender, receiver, screen], ids=lambda make: make.__name__)
def test_a_device_serves_or_refuses_whatever_its_ring_becomes_under_its_hands(
    make: Make, room: GuestMemory, tmp_path: Path, often: None
) -> None:
    ring = ring_at(room.take_pages(2), NUM)
    vq = Virtqueue(room, NUM, "race:0")
    vq.wakeup.sleep = never  # type: ignore[method-assign]
    served = refused = 0
    with make(tmp_path) as (device, queue), Scribbler(room, ring, seed=1) as guest:  # type: ignore[attr-defined]
        for _ in range(ROUNDS):
            guest.something_new()
            vq.place(ring)
            try:
                for _ in range(NUM):
                    device.services[queue](vq)
                    served += 1
            except GuestError as e:
                assert "\n" not in str(e) and str(e)[-1] in ".?"
                refused += 1
            except NoSleep:
                pass
            if min(served, refused) >= ENOUGH:
                break
        device.close()
    vq.wakeup.close()
    assert min(served, refused) >= ENOUGH


def test_a_chain_which_is_taken_while_it_changes_is_one_which_was_checked(room: GuestMemory, often: None) -> None:
    "And the walk comes to an end, though the circle is drawn while it goes round."
    ring = ring_at(room.take_pages(2), NUM)
    taken = 0
    with Scribbler(room, ring, seed=2) as guest:
        for _ in range(ROUNDS):
            guest.something_new()
            try:
                chain = walk_chain(room, ring.desc, NUM, 0)
            except GuestError:
                continue
            taken += 1
            if taken == ENOUGH:
                break
            parts = chain.readable + chain.writable
            assert len(parts) <= NUM
            assert all(0 < n and 0 <= a and a + n <= room.limit for a, n in parts)
            assert [len(view) for view in chain.out_views() + chain.in_views()] == [n for _, n in parts]
    assert taken == ENOUGH


@pytest.mark.parametrize("used", ["desc", "avail"])
def test_a_used_ring_on_top_of_another_part_is_the_guests_problem(room: GuestMemory, used: str) -> None:
    "No bus of 2009 places them so; a later one lets the driver do it."
    base = ring_at(0x8000, NUM)
    vq = Virtqueue(room, NUM, "odd:0")
    vq.wakeup.sleep = never  # type: ignore[method-assign]
    for offset in (0, 4, 8, 12, 16):
        room.write(base.desc, bytes(0x1000))
        vq.place(RingLayout(base.desc, base.avail, getattr(base, used) + offset & -4))
        for i in range(NUM):
            DESC.pack_into(room.map, base.desc + DESC.size * i, BUFFERS, 4, DESC_WRITE, 0)
        room.u16[vq.avail + 1] = NUM
        with pytest.raises((GuestError, NoSleep)):
            for _ in range(3 * NUM):
                vq.add_used(vq.wait(), 4)
    vq.wakeup.close()


def test_a_device_may_write_over_its_own_ring_and_is_refused_or_goes_on(room: GuestMemory) -> None:
    "Every place in it at which a sixteen-byte buffer can begin."
    ring = ring_at(0x8000, NUM)
    vq = Virtqueue(room, NUM, "self:0")
    vq.wakeup.sleep = never  # type: ignore[method-assign]
    rng = Rng("/dev/urandom")
    for at in range(ring.desc, ring.used + 80, 2):
        room.write(ring.desc, bytes(0x1100))
        vq.place(ring)
        for i in range(NUM):
            DESC.pack_into(room.map, ring.desc + DESC.size * i, at, 16, DESC_WRITE, 0)
            room.u16[vq.avail + 2 + i] = i
        room.u16[vq.avail + 1] = NUM
        with pytest.raises((GuestError, NoSleep)):
            for _ in range(4 * NUM):
                rng.rng_input(vq)
    rng.close()
    vq.wakeup.close()


def test_a_status_byte_which_is_the_header_of_the_next_request_hurts_nobody(room: GuestMemory, tmp_path: Path) -> None:
    "Two requests in the ring; the answer to the first is the type of the second."
    (tmp_path / "disk").write_bytes(b"x" * 2048)
    disk, vq = Block(tmp_path / "disk"), Virtqueue(room, NUM, "block:0")
    vq.place(ring_at(room.take_pages(2), NUM))
    room.write(HEADERS, HEADER.pack(T_OUT, 0, 99))
    room.write(HEADERS + 16, HEADER.pack(T_OUT, 0, 0))
    first = [(HEADERS, 16, DESC_NEXT, 1), (HEADERS + 16, 1, DESC_WRITE, 0)]
    second = [(HEADERS + 16, 16, DESC_NEXT, 3), (BUFFERS, 512, DESC_NEXT | DESC_WRITE, 4)]
    for i, each in enumerate([*first, *second, (BUFFERS + 512, 1, DESC_WRITE, 0)]):
        DESC.pack_into(room.map, vq.ring.desc + DESC.size * i, *each)
    room.u16[vq.avail + 2], room.u16[vq.avail + 3], room.u16[vq.avail + 1] = 0, 2, 2
    disk.blk_request(vq)  # fails: 1 is written where the type of the next one is, which is OUT already
    disk.blk_request(vq)
    assert room.u16[vq.used + 1] == 2
    assert (tmp_path / "disk").read_bytes() == b"x" * 2048
    disk.close()
    vq.wakeup.close()


def test_polling_a_broken_descriptor_never_spins_past_a_stop(room: GuestMemory) -> None:
    "A device whose own descriptor is always ready, and a Guest which always has a buffer: the stop is seen."
    vq = Virtqueue(room, NUM, "rng:0")
    vq.place(ring_at(room.take_pages(2), NUM))
    DESC.pack_into(room.map, vq.ring.desc, BUFFERS, 512, DESC_WRITE, 0)
    rng, seen = Rng("/dev/zero"), []
    sleep_on = vq.wakeup.sleep_on

    def counting(fd: int, events: int = select.POLLIN) -> None:
        seen.append(fd)
        room.u16[vq.avail + 1] = len(seen) + 1 & 0xFFFF  # one more, always
        if len(seen) == 500:
            vq.wakeup.stop()
        sleep_on(fd, events)

    vq.wakeup.sleep_on = counting  # type: ignore[method-assign]
    room.u16[vq.avail + 1] = 1
    with pytest.raises(Stopped):
        while True:
            rng.rng_input(vq)
    assert len(seen) == 500
    rng.close()
    vq.wakeup.close()
