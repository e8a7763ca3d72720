"""What several tests share: a ring to write by hand, forged kernels, a C compiler to ask.

tests/conftest.py makes this a plugin of pytest, for its fixtures.
"""

import gc
import os
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

from lguest_nb.memory import GuestMemory
from lguest_nb.vring import DESC, Virtqueue, ring_at
from lguest_nb.wakeup import Stopped

COMMAND = [sys.executable, "-c", "import sys; from lguest_nb.entry import main; sys.exit(main())"]  # lguest-nb
SCRIPTED = [sys.executable, str(Path(__file__).with_name("scripted_cli.py"))]  # ... with a Guest which is a scene
PATIENCE = 10  # seconds until something which should have happened at once is given up


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    "A megabyte of Guest, which nobody may hold on to."
    memory = GuestMemory(1 << 20)
    yield memory
    close(memory)


def close(memory: GuestMemory) -> None:
    "Close it, once an exception which the test caught has let go of the frames it went through."
    try:
        memory.close()
    except BufferError:
        gc.collect()
        memory.close()


def open_descriptors() -> set[str]:
    "The descriptors of this process, and what each of them is."
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
        except FileNotFoundError:  # the listing's own
            continue
    return found


def first_bytes(views: Sequence[memoryview], count: int) -> list[memoryview]:
    "What a short read or write would get of these buffers."
    room = [min(len(view), max(0, count - sum(map(len, views[:i])))) for i, view in enumerate(views)]
    return [view[:n] for view, n in zip(views, room, strict=True)]


def lguest_threads() -> list[str]:
    "The threads of ours which live."
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("lguest")]


@pytest.fixture
def nothing_left() -> Iterator[None]:
    "The test leaves no thread of ours and no descriptor behind."
    before = open_descriptors()
    yield
    assert not lguest_threads()
    if open_descriptors() - before:
        gc.collect()
    assert not open_descriptors() - before


def serving(vq: Virtqueue, service: Callable[[Virtqueue], None]) -> threading.Thread:
    "A thread which serves a queue until it is stopped."

    def serve_for_ever() -> None:
        try:
            while True:
                service(vq)
        except Stopped:
            pass

    thread = threading.Thread(target=serve_for_ever, daemon=True)
    thread.start()
    return thread


@dataclass
class Ring:
    "A ring which a test writes by hand, byte for byte, as a hostile Guest would."

    vq: Virtqueue
    interrupts: list[int] = field(default_factory=list)  # what had been taken at each interrupt

    @classmethod
    def make(cls, memory: GuestMemory, num: int = 8, name: str = "test:0") -> "Ring":
        vq = Virtqueue(memory, num, name)
        vq.place(ring_at(memory.take_pages(3), num))
        ring = cls(vq)
        vq.interrupt = lambda: ring.interrupts.append(vq.last_avail)
        return ring

    @property
    def memory(self) -> GuestMemory:
        return self.vq.memory

    def desc(self, index: int, address: int, length: int, flags: int = 0, after: int = 0) -> None:
        "Write a descriptor of the ring."
        put_desc(self.memory, self.vq.ring.desc, index, address, length, flags, after)

    def offer(self, *heads: int) -> None:
        "Make them available, whatever they are."
        for head in heads:
            idx = self.avail_idx
            self.memory.u16[self.vq.avail + 2 + idx % self.vq.num] = head
            self.avail_idx = idx + 1

    @property
    def avail_idx(self) -> int:
        return self.memory.u16[self.vq.avail + 1]

    @avail_idx.setter
    def avail_idx(self, idx: int) -> None:
        self.memory.u16[self.vq.avail + 1] = idx & 0xFFFF

    @property
    def used_idx(self) -> int:
        return self.memory.u16[self.vq.used + 1]

    @property
    def used_flags(self) -> int:
        return self.memory.u16[self.vq.used]

    def used(self) -> list[tuple[int, int]]:
        "Head and length of every chain given back, at most a ring of them."
        at = self.vq.ring.used + 4
        num = self.vq.num
        slots = [i % num for i in range(max(0, self.used_idx - num), self.used_idx)]
        return [struct.unpack_from("<II", self.memory.map, at + 8 * slot) for slot in slots]

    def start_at(self, idx: int) -> None:
        "As if `idx` chains had gone round already."
        self.vq.last_avail = self.vq.used_idx = idx
        self.avail_idx = self.memory.u16[self.vq.used + 1] = idx


def put_desc(
    memory: GuestMemory, table: int, index: int, address: int, length: int, flags: int = 0, after: int = 0
) -> None:
    "Write entry `index` of the descriptor table at `table`."
    DESC.pack_into(memory.map, table + DESC.size * index, address, length, flags, after)


@pytest.fixture
def ring(memory: GuestMemory) -> Iterator[Ring]:
    "A ring of eight in the Guest's megabyte."
    ring = Ring.make(memory)
    yield ring
    ring.vq.wakeup.close()


def naps(vq: Virtqueue) -> threading.Semaphore:
    "Released each time the thread of `vq` is about to sleep in its eventfd."
    asleep, sleep = threading.Semaphore(0), vq.wakeup.sleep

    def announced() -> None:
        asleep.release()
        sleep()

    vq.wakeup.sleep = announced  # type: ignore[method-assign]
    return asleep


_EHDR, _PHDR = struct.Struct("<16sHHIIIIIHHHHHH"), struct.Struct("<8I")


@dataclass(frozen=True)
class Piece:
    "A program header of a forged ELF file, and what it loads."

    address: int = 0x100000
    data: bytes = b"\xf4\xeb\xfd"  # hlt; jmp back
    memsz: int | None = None  # default: what `data` needs
    filesz: int | None = None
    kind: int = 1  # PT_LOAD


def forge_elf(*pieces: Piece, **header: int | bytes) -> bytes:
    "A vmlinux with these segments; `header` overrides fields of the ELF header by their names."
    pieces = pieces or (Piece(),)
    h: dict[str, int | bytes] = {
        "ident": b"\x7fELF\1\1\1",
        "type": 2,
        "machine": 3,
        "entry": pieces[0].address,
        "phoff": 52,
        "phentsize": 32,
        "phnum": len(pieces),
    }
    h |= header
    offset, table, contents = 52 + 32 * len(pieces), b"", b""
    for p in pieces:
        filesz = len(p.data) if p.filesz is None else p.filesz
        memsz = filesz if p.memsz is None else p.memsz
        virtual = (p.address + 0xC0000000) & 0xFFFFFFFF
        table += _PHDR.pack(p.kind, offset + len(contents), virtual, p.address, filesz, memsz, 7, 1)
        contents += p.data
    start = h["ident"], h["type"], h["machine"], 1, h["entry"], h["phoff"]
    return _EHDR.pack(*start, 0, 0, 52, h["phentsize"], h["phnum"], 0, 0, 0) + table + contents


def forge_bzimage(
    code: bytes = b"\xf4\xeb\xfd",
    setup_sects: int = 1,
    version: int = 0x207,
    entry: int = 0x100000,
    xloadflags: int = 0,
) -> bytes:
    "A bzImage: setup sectors with the header of the boot protocol, then `code`."
    head = bytearray(512 * ((setup_sects or 4) + 1))
    head[0x1F1] = setup_sects
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", head, 0x206, version)
    struct.pack_into("<I", head, 0x214, entry)
    struct.pack_into("<H", head, 0x236, xloadflags)
    return bytes(head) + code


@cache
def ask_c(
    headers: tuple[str, ...],  # to include
    expressions: tuple[str, ...],  # whose values are wanted
) -> dict[str, int]:
    "What the C compiler makes of integer expressions, with this machine's Linux headers."
    lines = [f"#include <{header}>" for header in ("stddef.h", "stdint.h", "stdio.h", *headers)]
    lines += ["int main(void) {"]
    lines += [f'printf("%lld\\n", (long long)({expression}));' for expression in expressions]
    lines += ["}"]
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder, "ask.c"), Path(folder, "ask")
        source.write_text("\n".join(lines))
        subprocess.run(["gcc", "-w", "-o", program, source], check=True)
        values = subprocess.run([program], check=True, capture_output=True, text=True).stdout.split()
    return dict(zip(expressions, map(int, values), strict=True))


def until(condition: Callable[[], object]) -> None:
    "Wait for what must come, and which nothing tells us of."
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        os.sched_yield()
