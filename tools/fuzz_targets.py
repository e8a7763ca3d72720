"""What there is to fuzz: each target makes a Guest of some bytes, and raises unless the rules hold.

No atheris here: `tools/fuzz.py` brings it, and tests/test_fuzz_corpus.py runs the kept inputs without it.
"""

import os
import select
import struct
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Protocol

from chain_model import by_the_book
from fakes import FakeHost
from fuzz_disk import DrivenDisk
from fuzz_guest import LIMIT, NUM, RING, Bytes, Table, close, new_memory, pattern, write_guest
from fuzz_services import BlockQueue, ConsoleQueues, EventRing, NetQueues, RngQueue
from mmio_driver import MmioDriver, new_bus

from lguest_nb.bus import mmio
from lguest_nb.bus.lguest import RING_PAGES, LguestBus, Place
from lguest_nb.device import Device, Service
from lguest_nb.loading import LOWEST, LoadError, load_initrd, load_kernel
from lguest_nb.memory import PAGE_SIZE, BadAddress, GuestError, GuestMemory
from lguest_nb.vring import Virtqueue, ring_size, walk_chain
from lguest_nb.wakeup import Wakeup


class Target(Protocol):
    "Something made once and called for each input."

    def __call__(self, data: bytes) -> None:
        "Raises if a rule does not hold."
        ...

    def close(self) -> None: ...


class Walk:
    "`walk_chain` against the plain model of the specification."

    def __init__(self) -> None:
        self.memory = new_memory()

    def __call__(self, data: bytes) -> None:
        source = Bytes(data)
        choice = source.number(1)
        image = write_guest(source)
        self.memory.map[:] = bytes(image)
        head, negotiated = choice % NUM, choice < 0xC0
        expected = by_the_book(Table(image, RING.desc, NUM), partial(Table, image), LIMIT, head, negotiated)
        try:
            chain = walk_chain(self.memory, RING.desc, NUM, head, negotiated)
        except GuestError as e:
            assert expected is None, f"refused a good chain {expected}: {e}"
        else:
            assert (chain.readable, chain.writable) == expected
        assert self.memory.map[:] == image

    def close(self) -> None:
        close(self.memory)


class Loader:
    "A kernel file of the fuzzer's: it is refused by a `LoadError`, or it is in memory exactly as it says."

    SIZE = (1 << 20) + 16 * PAGE_SIZE  # of RAM: a bzImage goes to 1 MiB

    def __init__(self) -> None:
        self.memory = GuestMemory(self.SIZE, device_pages=1)
        self.files = [os.memfd_create(name) for name in ("kernel", "initrd")]
        self.clean = self.memory.map[:]

    def __call__(self, data: bytes) -> None:
        source = Bytes(data)
        initrd = pattern(0, 64 * source.number(2))
        tail = pattern(0, 1024 * source.number(1))
        kernel = source.take(len(data)) + tail
        for fd, contents in zip(self.files, (kernel, initrd), strict=True):
            os.ftruncate(fd, 0)
            os.pwrite(fd, contents, 0)
        image = bytearray(self.clean)
        try:
            loaded = load_kernel(self.memory, f"/proc/self/fd/{self.files[0]}")
            self.place(image, kernel, loaded.entry, loaded.end)
            assert self.memory.map[:] == image
            placed = load_initrd(self.memory, f"/proc/self/fd/{self.files[1]}", loaded)
            assert loaded.end <= placed.address and placed.address + placed.size == self.SIZE
            image[placed.address : placed.address + len(initrd)] = initrd
            assert self.memory.map[:] == image
        except (LoadError, BadAddress) as e:
            assert str(e).endswith("."), f"{e!r} is not a sentence"
            elf = kernel.startswith(b"\x7fELF")
            assert not elf or self.memory.map[:] == image, "a refused ELF file has touched memory"
        if self.memory.map[:] != self.clean:
            self.memory.map[:] = self.clean

    def place(self, image: bytearray, kernel: bytes, entry: int, end: int) -> None:
        "Put into `image` what a good kernel brings. Elf32_Phdr, or Documentation/x86/boot.txt."
        if not kernel.startswith(b"\x7fELF"):
            start = 512 * (1 + (kernel[0x1F1] or 4))
            image[1 << 20 : (1 << 20) + len(kernel) - start] = kernel[start:]
            assert 1 << 20 <= entry < end == (1 << 20) + len(kernel) - start
            return
        (table,), (count,) = struct.unpack_from("<I", kernel, 28), struct.unpack_from("<H", kernel, 44)
        loaded = []
        for i in range(count):
            kind, offset, _, address, filesz, memsz = struct.unpack_from("<6I", kernel, table + 32 * i)
            if kind == 1:
                assert LOWEST <= address <= address + filesz <= address + memsz <= self.SIZE
                assert offset + filesz <= len(kernel)
                image[address : address + filesz] = kernel[offset : offset + filesz]
                loaded.append((address, address + memsz))
        loaded.sort()
        assert all(a[1] <= b[0] for a, b in pairwise(loaded)), "segments lie over each other"
        assert len(image) == len(self.clean) and LOWEST <= entry < end == loaded[-1][1]

    def close(self) -> None:
        close(self.memory)
        for fd in self.files:
            os.close(fd)


class Parrot(Device):
    "Gives everything back as it came."

    def __init__(self, name: str, features: int, config: bytes, queues: int) -> None:
        super().__init__(name, 40, features, config)
        self.count = queues

    @property
    def services(self) -> Sequence[Service]:
        return [self.repeat] * self.count

    def repeat(self, vq: Virtqueue) -> None:
        vq.add_used(vq.wait(), 0)
        vq.trigger()


class Napping(Wakeup):
    "Tells whether its thread waits for a kick."

    waits = False

    def sleep(self) -> None:
        self.waits = True
        select.select([self.kicks], [], [])
        self.waits = False  # before the kick is gone: who finds no kick, and then this, knows that it was not woken
        super().sleep()

    def asleep(self) -> bool:
        return not select.select([self.kicks], [], [], 0)[0] and self.waits


def settle(device: Device) -> None:
    "Until each thread sleeps or is gone, so that a run does not depend on the scheduler."
    for vq in device.queues:
        assert isinstance(vq.wakeup, Napping)
        while vq.thread is not None and vq.thread.is_alive() and not vq.wakeup.asleep():
            time.sleep(0)


def nap(device: Device) -> None:
    "Give its queues beds which tell whether somebody sleeps in them."
    for vq in device.queues:
        vq.wakeup.close()
        vq.wakeup = Napping()


class BusScribbles:
    "Notifies of any address and a descriptor page full of scribbles, against `update_device_status` in lguest.c."

    RAM = 2 * PAGE_SIZE
    MOST = 24  # things which the Guest does: starting a thread is not cheap

    def __call__(self, data: bytes) -> None:
        source = Bytes(data)
        self.memory = GuestMemory(self.RAM, device_pages=1 + 3 * RING_PAGES + 1)
        self.host, self.said, self.failures = FakeHost(), [], []
        self.bus = LguestBus(self.memory, self.said.append, self.failures.append)
        self.bus.host = self.host
        for device in (Parrot("two", 0x30000005, b"config", 2), Parrot("one", 0, b"", 1)):
            self.bus.add(device)
            nap(device)
        self.running = [False, False]
        try:
            for _ in range(self.MOST):
                if source:
                    self.act(source)
        finally:
            self.bus.close()
            limit = self.memory.limit
            spare = bytes(self.memory.u8[limit:])
            close(self.memory)
        assert not any(spare), "somebody wrote beyond the limit"
        assert all(isinstance(e, GuestError) for e in self.failures), self.failures
        assert not [t for t in threading.enumerate() if t.name.startswith("lguest")]

    def act(self, source: Bytes) -> None:
        "The Guest stores something, or says *look here*."
        kind = source.number(1)
        place = self.bus.places[kind >> 7]
        if kind % 4 == 0:
            self.memory.u8[place.status] = source.number(1)
        elif kind % 4 == 1:
            at = self.bus.page + source.number(2) % (self.memory.limit - self.bus.page)
            self.memory.u8[at] = source.number(1)
        elif kind % 4 == 2:
            text = source.take(kind >> 2 & 15)
            self.memory.write(self.RAM - 32, text)
        else:
            address = self.address(source)
            if kind & 4 or not self.host.kick(address):  # not every Host keeps the eventfd's promise
                self.notify(address)
            for each in self.bus.places:
                settle(each.device)

    def address(self, source: Bytes) -> int:
        places = self.bus.places
        interesting = [place.address for place in places]
        interesting += [vq.ring.desc for place in places for vq in place.device.queues]
        interesting += [self.RAM - 32, 0, self.memory.limit - 1, self.memory.limit, self.memory.maximum]
        choice = source.number(1)
        return interesting[choice % len(interesting)] if choice < 0xE0 else source.number(8)

    def notify(self, address: int) -> None:
        expected = self.expected(address)
        heard = len(self.said)
        try:
            self.bus.notify(address)
        except GuestError as e:
            assert expected is None, f"{address:#x} was good: {e}"
        else:
            said = b"".join(self.said[heard:])
            assert b"\0" not in said and len(said) < self.memory.limit
            assert said == expected or address >= self.RAM, "the Guest said something else"
        self.compare()
        for place in self.bus.places:
            if address == place.address and not self.memory.u8[place.status]:
                self.is_new(place)

    def expected(self, address: int) -> bytes | None:
        "What is printed, or None if it is an error; and which devices run afterwards."
        for i, place in enumerate(self.bus.places):
            rings = [vq.ring.desc for vq in place.device.queues]
            status = self.memory.u8[place.status]
            if address == place.address:
                self.running[i] = bool(status) and status < 0x80 and (self.running[i] or bool(status & 4))
                return b""
            if address in rings:
                if self.running[i]:
                    return None
                self.running[i] = True
                return b""
        if address >= self.memory.limit:
            return None
        return bytes(self.memory.u8[address : self.memory.limit]).split(b"\0")[0]

    def compare(self) -> None:
        assert [place.device.running for place in self.bus.places] == self.running
        claimed = set()
        for place, running in zip(self.bus.places, self.running, strict=True):
            device = place.device
            assert device.accepted & ~device.features == 0
            assert [vq.thread is not None for vq in device.queues] == [running] * device.count
            if running:
                claimed |= {(vq.ring.desc, None) for vq in device.queues}
        assert set(self.host.eventfds) == claimed

    def is_new(self, place: Place) -> None:
        "After a reset nothing of before is left, in the page, in the rings or with us."
        assert not any(self.memory.read(place.accepted, place.feature_len))
        for vq in place.device.queues:
            assert not any(self.memory.read(vq.ring.desc, ring_size(vq.num)))
            assert (vq.last_avail, vq.used_idx, vq.pending_used) == (0, 0, 0)

    def close(self) -> None:
        "Nothing is kept between two runs."


class Registers:
    "Any access to a page of virtio-mmio, and anything in the rings: nothing raises, and a reset makes a new device."

    RAM = 0x20000
    MOST = 40  # things which the Guest does
    LADDER = (0, 1, 3, 11, 15)
    VALUES = (*LADDER, 2, 4, 8, 64, 128, 255, 256, 257, 0x1000, RAM - 16, RAM, 1 << 31, (1 << 32) - 16, (1 << 32) - 1)

    def __call__(self, data: bytes) -> None:
        source = Bytes(data)
        self.memory = GuestMemory(self.RAM)
        self.bus, self.host, failures = new_bus(self.memory)
        self.device = Parrot("parrot", 5, b"some config", 2)
        self.bus.add(self.device)
        nap(self.device)
        self.driver = MmioDriver(self.bus, self.host)
        try:
            self.climb(source.number(1))
            for _ in range(self.MOST):
                if source:
                    self.act(source)
                    settle(self.device)
                    self.compare()
            self.driver.start()
            assert self.driver.ask(1, out=(b"hello",)).length == 0, "a reset did not revive it"
        finally:
            self.bus.close()
            close(self.memory)
        assert not failures, failures
        assert not self.host.eventfds

    def climb(self, choice: int) -> None:
        "So far the driver is a good one."
        features = sum(1 << bit for i, bit in enumerate((28, 29)) if choice >> 2 + i & 1) | 1 << 32
        if choice % 4:
            self.driver.negotiate(features)
        if choice % 4 > 1:
            self.driver.place()
        if choice % 4 > 2:
            self.driver.status = 15
        settle(self.device)

    def act(self, source: Bytes) -> None:
        kind = source.number(1)
        offset = source.number(1)
        if kind < 0x80:  # a register
            self.driver.write(4 * (offset % 64), self.value(source))
        elif kind < 0xA0:  # a bad access, if it is one
            size = 1 << kind % 4
            self.driver.write(2 * offset, self.value(source) & (1 << 8 * size) - 1, size)
            assert 0 <= self.driver.read(2 * offset, size) < 1 << 8 * size
        elif kind < 0xC0:
            self.driver.kick(offset % 3)
        else:
            at = 0x4000 + 0x1000 * (kind % 8) + offset
            self.memory.write(at, source.take(kind >> 3 & 7))

    def value(self, source: Bytes) -> int:
        choice = source.number(1)
        return self.VALUES[choice % len(self.VALUES)] if choice < 0xE0 else source.number(4)

    def compare(self) -> None:
        "What can be seen of it goes together."
        status, vqs = self.driver.status, self.device.queues
        alive = [vq.thread is not None and vq.thread.is_alive() for vq in vqs]
        assert status & ~0xC0 in self.LADDER
        if status & 0xC0 or not status & 4:
            assert not any(alive), f"a thread lives with status {status:#x}"
        else:
            assert alive == [vq.ready for vq in vqs]
        assert {vq.num for vq in vqs if vq.ready} <= {1 << i for i in range(9)}
        assert self.device.accepted == 0 if status & 0x3F < 11 else self.device.accepted & 1 << 32
        assert self.driver.read(mmio.INTERRUPT_STATUS) in range(4)

    def close(self) -> None:
        "Nothing is kept between two runs."


TARGETS: dict[str, Callable[[], Target]] = {
    "walk": Walk,
    "console": ConsoleQueues,
    "block": BlockQueue,
    "disk": DrivenDisk,
    "net": NetQueues,
    "rng": RngQueue,
    "loader": Loader,
    "bus": BusScribbles,
    "events": EventRing,
    "mmio": Registers,
}
