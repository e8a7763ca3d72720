"""How the fuzzer's bytes become a Guest: what it wrote into its memory, and what it does while a device waits."""

import gc
import select
import struct
from collections.abc import Callable, Sequence
from functools import lru_cache, partial

from chain_model import Buffers, Entry, by_the_book

from lguest_nb.memory import PAGE_SIZE, GuestError, GuestMemory
from lguest_nb.vring import Chain, Virtqueue, ring_at
from lguest_nb.wakeup import Stopped, Wakeup

NUM = 8  # entries of the ring
RAM = 16 * PAGE_SIZE
RING = ring_at(RAM, NUM)  # two pages
LIMIT = RAM + 2 * PAGE_SIZE
USED_EVENT, AVAIL_EVENT = RING.avail + 4 + 2 * NUM, RING.used + 4 + 8 * NUM
RESERVE = 2  # pages behind the limit, which nobody may touch
BUFFERS, TABLE = 0x1000, 0x4000  # where the fuzzer's own bytes are; where indirect tables usually are
MOST_NAPS = 4096  # more than the bytes of an input can cause
# What is worth pointing at, and how much of it: the first are also the cheapest to say.
ADDRESSES = [
    *(TABLE, TABLE + 16, 0, RAM - 16, RAM, RING.desc + 16, RING.avail, RING.used, RING.used + 4),
    *(LIMIT - 1, LIMIT - 16, LIMIT - 512, LIMIT, LIMIT + 16, (1 << 32) - 16, 1 << 32, (1 << 64) - 16),
]
LENGTHS = [512, 513, 1024, 1536, 4096, 4608, 3000, 16 * NUM, RAM, LIMIT, LIMIT + 1, 1 << 31, (1 << 32) - 1]
DESC = struct.Struct("<QIHH")


class Bytes:
    "The fuzzer's bytes, and zeroes when they are used up."

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def __bool__(self) -> bool:
        return self.at < len(self.data)

    def take(self, count: int) -> bytes:
        piece = self.data[self.at : self.at + count]
        self.at += count
        return piece

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")


class Table(Sequence[Entry]):
    "A descriptor table, read straight from what the Guest's memory should hold."

    def __init__(self, image: bytearray, address: int, entries: int) -> None:
        self.image, self.address, self.entries = image, address, entries

    def __len__(self) -> int:
        return self.entries

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        at = self.address + 16 * index
        parts = [self.image[at + first : at + end] for first, end in ((0, 8), (8, 12), (12, 14), (14, 16))]
        return tuple(int.from_bytes(part, "little") for part in parts)


@lru_cache(maxsize=1)
def _endless() -> bytes:
    return bytes(i * 7 + 1 + (i >> 8) & 0xFF for i in range(1 << 16))


def pattern(start: int, count: int) -> bytes:
    "Bytes which tell where they come from, well enough."
    start &= 0xFFFF
    return (_endless() * (1 + (start + count >> 16)))[start : start + count]


def new_memory() -> GuestMemory:
    "RAM, a ring above it, and pages which must stay as they are."
    memory = GuestMemory(RAM, device_pages=(LIMIT - RAM) // PAGE_SIZE + RESERVE)
    memory.take_pages((LIMIT - RAM) // PAGE_SIZE)
    return memory


def close(memory: GuestMemory) -> None:
    "Close it, once exceptions have let go of the frames they went through."
    try:
        memory.close()
    except BufferError:
        gc.collect()
        memory.close()


def _address(source: Bytes) -> int:
    choice = source.number(1)
    if choice < 0xA0:
        return BUFFERS + 8 * choice
    return ADDRESSES[(choice - 0xA0) % len(ADDRESSES)] if choice < 0xF0 else source.number(8)


def _length(source: Bytes) -> int:
    choice = source.number(1)
    if choice < 0x80:
        return choice
    return LENGTHS[(choice - 0x80) % len(LENGTHS)] if choice < 0xF0 else source.number(4)


def _index(source: Bytes) -> int:
    choice = source.number(1)
    return choice if choice < 0xF0 else choice * 0x101


def _descriptor(source: Bytes) -> Entry:
    flags = source.number(1)
    return _address(source), _length(source), flags & 7 | (0xFFF8 if flags & 0x80 else 0), _index(source)


def _offer(image: bytearray | memoryview, head: int) -> None:
    (idx,) = struct.unpack_from("<H", image, RING.avail + 2)
    struct.pack_into("<H", image, RING.avail + 4 + 2 * (idx % NUM), head)
    struct.pack_into("<H", image, RING.avail + 2, idx + 1 & 0xFFFF)


def first_index(choice: int) -> int:
    "Where a ring's indices begin: mostly at 0, sometimes shortly before they wrap."
    return 0 if choice < 0x80 else -(choice & 0x7F) & 0xFFFF


def write_guest(source: Bytes, start: int = 0) -> bytearray:
    "All of memory, with what a Guest may have written: descriptors, heads, the bytes of requests."
    image = bytearray(LIMIT + RESERVE * PAGE_SIZE)
    image[0:BUFFERS] = pattern(0, BUFFERS)
    for table in (RING.desc, TABLE):
        for i in range(source.number(1) % (NUM + 2)):
            DESC.pack_into(image, table + 16 * i, *_descriptor(source))
    content = source.take(2 * source.number(1))
    image[BUFFERS : BUFFERS + len(content)] = content
    struct.pack_into("<HH", image, RING.avail, source.number(1), start)
    struct.pack_into("<HH", image, RING.used, 0, start)
    heads = source.number(1)
    for _ in range(heads % (NUM + 2)):
        _offer(image, _index(source))
    if heads >= 0xF0:
        struct.pack_into("<H", image, RING.avail + 2, source.number(2))
    return image


class Sleepless(Wakeup):
    "Where a service function would sleep, the Guest makes its next move; when it has none left, the thread is stopped."

    before: Callable[[], None]
    moves: Callable[[], bool]
    feed: Callable[[int], bool]
    naps = 0

    def _nap(self, something_happens: bool) -> None:
        self.naps += 1
        assert self.naps < MOST_NAPS, "the service function never comes to an end"
        if not something_happens:
            raise Stopped

    def sleep(self) -> None:
        self.before()
        self._nap(self.moves())

    def sleep_on(self, fd: int, events: int = select.POLLIN) -> None:
        poll = select.poll()
        poll.register(fd, events)
        if not poll.poll(0):
            self._nap(self.feed(fd))


class Watched(Virtqueue):
    "A queue which knows what every byte of memory must be, and that each chain is given back once."

    def __init__(
        self,
        memory: GuestMemory,
        gave_back: Callable[[bytearray, Chain, int], None],  # puts what the device should have written into the image
    ) -> None:
        super().__init__(memory, NUM, "fuzz:0")
        self.wakeup.close()
        self.wakeup = self.sleepless = Sleepless()
        self.sleepless.before = self._falls_asleep
        self.gave_back = gave_back
        self.greedy = False  # may a device take another chain before it has given one back?
        self.filling: Callable[[Chain], None]  # is told of that
        self.interrupt, self.wrote = self._interrupted, self._wrote
        self.place(RING)

    def begin(self, start: int, image: bytearray) -> None:
        "As if `start` chains had gone round, with memory as `image`."
        self.image = image
        self.outstanding: list[Chain] = []  # taken, and not given back
        self.memory.map[:] = bytes(image)
        self.place(RING)
        self.last_avail = self.used_idx = self.start = start
        self.taken = self.given = self.untold = self.promised = 0
        self.reported: list[tuple[int, int]] = []
        self.own_fault = False  # has the Guest written our flags?
        self.sleepless.naps = 0

    def put(self, address: int, data: bytes) -> None:
        "The Guest stores something."
        self._flags()
        self.image[address : address + len(data)] = data
        self.memory.u8[address : address + len(data)] = data
        wish = AVAIL_EVENT if self.event_idx else RING.used
        self.own_fault |= address < wish + 2 and address + len(data) > wish

    def offer(self, head: int) -> None:
        "The Guest makes something available."
        _offer(self.memory.u8, head)
        at = slice(RING.avail, RING.avail + 4 + 2 * NUM)
        self.image[at] = self.memory.u8[at]

    def _flags(self) -> None:
        "We may ask for kicks or for none at any time, or for one at the next buffer."
        at = AVAIL_EVENT if self.event_idx else RING.used
        wishes = [self.start + self.taken & 0xFFFF] if self.event_idx else [0, 1]
        wish = bytes(self.memory.u8[at : at + 2])
        assert wish in [each.to_bytes(2, "little") for each in wishes] or wish == self.image[at : at + 2]
        self.image[at : at + 2] = wish

    def _compare(self) -> None:
        if (now := self.memory.map[:]) != self.image:
            first = next(i for i, (a, b) in enumerate(zip(now, self.image, strict=True)) if a != b)
            raise AssertionError(f"memory at {first:#x} is {now[first]}, and must be {self.image[first]}")

    def _expected(self) -> tuple[int, Buffers, Buffers] | None:
        "Head and buffers of the next chain; None if the ring is broken. Virtio 1.2 §2.7."
        last = self.start + self.taken & 0xFFFF
        (idx,) = struct.unpack_from("<H", self.image, RING.avail + 2)
        (head,) = struct.unpack_from("<H", self.image, RING.avail + 4 + 2 * (last % NUM))
        if not self.promised:  # what one look has seen is there, whatever the index says meanwhile
            self.promised = (idx - last) % 0x10000
        if not 0 < self.promised <= NUM or head >= NUM:
            return None
        self.promised -= 1
        ring = Table(self.image, RING.desc, NUM)
        buffers = by_the_book(ring, partial(Table, self.image), LIMIT, head, self.indirect)
        return buffers and (head, *buffers)

    def take(self) -> Chain:
        assert self.greedy or not self.outstanding, "a second chain was taken before the first was given back"
        self._flags()
        self._compare()
        expected = self._expected()
        try:
            chain = super().take()
        except GuestError as e:
            assert expected is None, f"refused {expected}: {e}"
            raise
        assert (chain.head, chain.readable, chain.writable) == expected
        self.outstanding.append(chain)
        self.taken += 1
        if len(self.outstanding) > 1:
            self.filling(chain)
        return chain

    def add_used(self, chain: Chain, length: int) -> None:
        self._entered(chain, length, partial(super().add_used, chain, length))
        assert not self.outstanding, "the Guest can see one of several which belong together"
        struct.pack_into("<H", self.image, RING.used + 2, self.start + self.given & 0xFFFF)
        self._compare()

    def hold_used(self, chain: Chain, length: int) -> None:
        self._entered(chain, length, partial(super().hold_used, chain, length))
        self._compare()

    def _entered(self, chain: Chain, length: int, enter: Callable[[], None]) -> None:
        "`enter` puts it into the used ring, where the index alone says that it is there."
        assert self.outstanding and chain is self.outstanding.pop(0), "not the chain which was due to be given back"
        self.gave_back(self.image, chain, length)
        self._compare()
        self.reported = []
        slot = (self.start + self.given) % NUM
        self.given += 1
        self.untold += 1
        enter()
        assert self.reported == chain.writable, "the Host was not told of what was written"
        struct.pack_into("<II", self.image, RING.used + 4 + 8 * slot, chain.head, length)

    def _wrote(self, ranges: Sequence[tuple[int, int]]) -> None:
        self.reported += ranges
        self._compare()

    def _interrupt_if_wanted(self) -> None:
        super()._interrupt_if_wanted()
        self._is_told()

    def _interrupted(self) -> None:
        assert self.untold, "an interrupt for nothing"
        assert self._wanted(), "an interrupt which the Guest does not want"
        self.untold = 0

    def _wanted(self) -> bool:
        asked = not self.image[RING.avail] & 1
        if self.event_idx:
            (event,) = struct.unpack_from("<H", self.image, USED_EVENT)
            filled = range(self.start + self.given - self.untold, self.start + self.given)
            asked = event in {number & 0xFFFF for number in filled}
        return asked or (self.notify_on_empty and not self.more())

    def _is_told(self) -> None:
        assert not self.untold or not self._wanted(), "an interrupt is missing"
        self.untold = 0

    def _falls_asleep(self) -> None:
        assert not self.more(), "slept on a ring with something in it"
        (event,), (flags,) = (struct.unpack_from("<H", self.memory.map, at) for at in (AVAIL_EVENT, RING.used))
        wanted = event == self.start + self.taken & 0xFFFF if self.event_idx else not flags
        assert self.own_fault or wanted, "slept and does not want to be kicked"
        self.own_fault = False
        self._is_told()

    def ended(self, stopped: bool) -> None:
        "The service function is gone. A stop may leave a chain half done; a refusal leaves it as it was."
        for a, n in [segment for chain in self.outstanding if stopped for segment in chain.writable]:
            self.image[a : a + n] = self.memory.u8[a : a + n]
        self._flags()
        self._compare()
        assert self.taken - self.given == len(self.outstanding)


def move(source: Bytes, vq: Watched) -> bool:
    "The Guest does something to its ring; False if it has come to its end."
    if not source:
        return False
    kind = source.number(1)
    if kind < 0xA0:
        vq.offer(kind % NUM)
    elif kind < 0xD0:
        vq.put(RING.desc + 16 * (kind % NUM), DESC.pack(*_descriptor(source)))
    elif kind < 0xF0:
        vq.put(BUFFERS + 8 * source.number(1), source.take(kind & 15))
    else:
        vq.put(RING.desc + source.number(2) % (LIMIT - RAM - 1), source.take(2)[:2])
    return True
