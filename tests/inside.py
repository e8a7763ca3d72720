"""The other end of COM1 of tests/long's Guest: commands to it, and what drivers do with them.

tests/conftest.py makes this a plugin of pytest, for the fixture `pc`. On this bus a malformed ring breaks its device:
it says so, once, and nobody else notices; a reset revives it. `is_broken` holds a device to all of that.
"""

import os
import select
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest
from support import PATIENCE

from lguest_nb.bus import mmio
from lguest_nb.device import F_VERSION_1
from lguest_nb.vring import DESC, DESC_WRITE, RingLayout

RNG, CONSOLE, BLOCK, NET = range(4)  # slots
QUEUES = (1, 2, 1, 2)
OK = 11  # status: acknowledged, a driver, features
RUNNING, BROKEN = 15, 0x4F
LIMIT = 16 << 20  # where RAM ends
BUFFER, OTHER, TABLE, WORDS = 0x900000, 0x910000, 0x920000, 0x930000
GOOD = (BUFFER, 16, DESC_WRITE, 0)  # a descriptor with which nothing is wrong
SECTORS, DISK = 8, bytes(range(256)) * 16
Descriptor = tuple[int, int, int, int]
_FLAGS = (
    "-O2 -m64 -ffreestanding -fno-pic -no-pie -static -nostdlib -mno-red-zone -mgeneral-regs-only -fno-stack-protector "
    "-fno-asynchronous-unwind-tables -Wall -Wextra -Werror -Wl,-N,-Ttext=0x100000,--build-id=none"
)


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    "Gone when this process ends."
    return tempfile.TemporaryDirectory(prefix="lguest-long-")


@cache
def build_guest() -> Path:
    "The Guest, compiled."
    here, elf = Path(__file__).parent, Path(_folder().name, "guest.elf")
    sources = here / "long/start.S", here / "long/guest.c"
    made = subprocess.run(["gcc", *_FLAGS.split(), "-o", elf, *sources], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr  # where it may be that nobody likes memory which is writable and code
    return elf


def ring_of(slot: int, queue: int = 0) -> RingLayout:
    at = 0x200000 + 0x100000 * slot + 0x20000 * queue
    return RingLayout(at, at + 0x2000, at + 0x4000)


def poke(address: int, data: bytes) -> list[str]:
    return [f"poke {address + i:x} {data[i : i + 1024].hex()}" for i in range(0, len(data), 1024)]


def descriptors(at: int, *each: Descriptor) -> list[str]:
    return poke(at, b"".join(DESC.pack(*one) for one in each))


def available(ring: RingLayout, *heads: int, idx: int | None = None, flags: int = 0) -> list[str]:
    count = len(heads) if idx is None else idx
    return poke(ring.avail, struct.pack(f"<{2 + len(heads)}H", flags, count & 0xFFFF, *heads))


def register(slot: int, offset: int) -> int:
    return mmio.SLOT_BASE + mmio.SLOT_STRIDE * slot + offset


class Talk:
    "A process with the Guest in it, whose COM1 is its standard input and output."

    def __init__(self, command: Sequence[str], log: Path, pass_fds: Sequence[int] = ()) -> None:
        "Runs where the log is."
        self.log, self._heard = log, b""
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                pass_fds=pass_fds,
                cwd=log.parent,
            )
        self.answers(1)

    def close(self) -> None:
        for end in (self.process.stdin, self.process.stdout):
            assert end is not None
            end.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def answers(self, count: int) -> list[str]:
        "So many lines from COM1."
        out = self.process.stdout
        assert out is not None
        while self._heard.count(b"\n") < count:
            if not select.select([out], [], [], PATIENCE)[0]:
                said = self._heard[-200:]
                self.process.kill()
                pytest.fail(f"the Guest is silent, after {said!r}; {self.log.read_text()[-2000:]}")
            if not (data := os.read(out.fileno(), 65536)):
                status = self.process.wait(PATIENCE)
                pytest.fail(f"the Launcher ended with status {status}: {self.log.read_text()[-2000:]}")
            self._heard += data
        *lines, self._heard = self._heard.split(b"\n", count)
        return [line.decode().strip() for line in lines]

    def say(self, *commands: str) -> None:
        "Send these lines, and wait for nothing."
        assert self.process.stdin is not None
        self.process.stdin.write("".join(f"{line}\n" for line in commands).encode())
        self.process.stdin.flush()

    def ask(self, *commands: str) -> list[str]:
        "Have them obeyed, and what it says to each: without the `ok`."
        self.say(*commands)
        said = self.answers(len(commands))
        for command, answer in zip(commands, said, strict=True):
            assert answer.endswith("ok"), (command, answer)
        return [answer.removesuffix("ok").strip() for answer in said]

    def fault(self, command: str) -> tuple[int, int, int]:
        "Have it try this in vain: vector, error code and CR2."
        self.say(command)
        word, *numbers = self.answers(1)[0].split()
        assert word == "fault", (command, word, numbers)
        vector, error, cr2 = (int(n, 16) for n in numbers)
        return vector, error, cr2

    def number(self, command: str) -> int:
        return int(self.ask(command)[0], 16)

    def read(self, slot: int, offset: int, size: int = 4) -> int:
        return self.number(f"r {register(slot, offset):x} {size}")

    def write(self, slot: int, offset: int, value: int, size: int = 4) -> None:
        self.ask(f"w {register(slot, offset):x} {size} {value:x}")

    def status(self, slot: int) -> int:
        return self.read(slot, mmio.STATUS)

    def peek(self, address: int, length: int) -> bytes:
        return bytes.fromhex(self.ask(f"peek {address:x} {length:x}")[0])

    def counts(self, slot: int) -> tuple[int, int]:
        "Interrupts for used buffers, and for the configuration."
        used, config = self.ask(f"count {slot:x}")[0].split()
        return int(used, 16), int(config, 16)

    def used(self, slot: int, queue: int = 0) -> tuple[int, int, int]:
        "The index, and the first entry's head and length."
        _, idx, head, length = struct.unpack("<HHII", self.peek(ring_of(slot, queue).used, 12))
        return idx, head, length

    def negotiate(self, slot: int, features: int = F_VERSION_1) -> int:  # the status then
        "From reset to FEATURES_OK."
        return self.number(f"start {slot:x} {features:x}")

    def begin(self, slot: int, features: int = F_VERSION_1, num: int = 256) -> None:
        "From reset to DRIVER_OK, with rings of zeroes."
        assert self.negotiate(slot, features) == OK
        for queue in range(QUEUES[slot]):
            ring = ring_of(slot, queue)
            where = " ".join(f"{part:x}" for part in ring)
            self.ask(f"fill {ring.desc:x} 8000 0")
            assert self.number(f"ring {slot:x} {queue:x} {num:x} {where}") == 1
        self.ask(f"forget {slot:x}")
        self.write(slot, mmio.STATUS, RUNNING)
        assert self.status(slot) == RUNNING

    def reset(self, slot: int) -> None:
        self.write(slot, mmio.STATUS, 0)
        assert self.status(slot) == 0

    def offer(self, slot: int, *each: Descriptor, queue: int = 0, heads: Sequence[int] = (0,), idx: int = 1) -> None:
        "Put descriptors into the ring, make some available, and kick."
        ring = ring_of(slot, queue)
        self.ask(*descriptors(ring.desc, *each), *available(ring, *heads, idx=idx), f"kick {slot:x} {queue:x}")

    def answer(self, slot: int, queue: int = 0, idx: int = 1) -> tuple[int, int, int]:
        "What it gets back, once there is so much."
        self.ask(f"until {ring_of(slot, queue).used + 2:x} ffff {idx:x}")
        return self.used(slot, queue)


class Inside(Talk):
    "One process with one Guest in it, which has one device of each kind."

    def __init__(self, folder: Path, how: str = "rw", host: str = "soft") -> None:
        self.disk = folder / "disk"
        self.disk.write_bytes(DISK)
        self.cable, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        keys, self.keyboard = os.pipe()
        self.screen, screen = os.pipe()
        given = (theirs.fileno(), keys, screen)
        words = [str(build_guest()), str(self.disk), how, *map(str, given), host]
        program = Path(__file__).with_name("hostile_pc.py")
        try:
            super().__init__([sys.executable, str(program), *words], folder / "log", pass_fds=given)
        finally:
            theirs.close()
            os.close(keys)
            os.close(screen)

    def close(self) -> None:
        super().close()
        self.cable.close()
        os.close(self.keyboard)
        os.close(self.screen)

    def screen_says(self, text: bytes) -> None:
        "The console prints this next."
        seen = b""
        while len(seen) < len(text):
            assert select.select([self.screen], [], [], PATIENCE)[0], f"it was not printed, after {seen!r}"
            seen += os.read(self.screen, len(text) - len(seen))
        assert seen == text

    def rng_serves(self) -> None:
        "From reset: sixteen bytes."
        self.begin(RNG)
        self.offer(RNG, GOOD)
        assert self.answer(RNG) == (1, 0, 16)
        assert self.peek(BUFFER, 16) == bytes(range(1, 17))

    def console_serves(self) -> None:
        self.begin(CONSOLE)
        self.ask(*poke(WORDS, b"all is well\n"))
        self.offer(CONSOLE, (WORDS, 12, 0, 0), queue=1)
        self.screen_says(b"all is well\n")
        assert self.answer(CONSOLE, 1) == (1, 0, 0)

    def disk_serves(self) -> None:
        self.begin(BLOCK)
        self.ask(*poke(WORDS, struct.pack("<IIQ", 0, 0, 1)), f"fill {WORDS + 64:x} 400 ee")
        self.offer(BLOCK, (WORDS, 16, 1, 1), (WORDS + 64, 512, 3, 2), (WORDS + 1000, 1, 2, 0))
        assert self.answer(BLOCK) == (1, 0, 513)
        assert self.peek(WORDS + 64, 16) == DISK[512:528] and self.peek(WORDS + 1000, 1) == b"\0"

    def card_serves(self) -> None:
        self.begin(NET)
        self.offer(NET, (WORDS, 12 + 60, 0, 0), queue=1)
        assert self.answer(NET, 1) == (1, 0, 0)
        assert select.select([self.cable], [], [], PATIENCE)[0] and len(self.cable.recv(1 << 17)) == 72

    def serves(self, slot: int) -> None:
        "From reset, one request."
        (self.rng_serves, self.console_serves, self.disk_serves, self.card_serves)[slot]()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Inside]]:
    running: list[Inside] = []
    yield running
    for one in running:
        one.close()


@pytest.fixture
def pc(shared: list[Inside], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inside]:
    "A Guest, which many tests use one after another; the same process must still be there after each."
    if not shared or shared[-1].process.poll() is not None:
        shared.append(Inside(tmp_path_factory.mktemp("pc")))
    guest = shared[-1]
    yield guest
    assert guest.process.poll() is None
    for slot in range(4):
        guest.reset(slot)


def all_serve_but(pc: Inside, slot: int) -> None:
    "The other devices do their work."
    for other in {RNG, CONSOLE, BLOCK, NET} - {slot}:
        pc.serves(other)


def is_broken(pc: Inside, slot: int, sentence: str) -> None:
    "It says so once, in every way; the others serve; it touches nothing; a reset revives it."
    used, config = pc.ask(f"wait {slot:x} 0 1")[0].split()
    assert (pc.status(slot), int(config, 16)) == (BROKEN, 1)
    said = pc.log.read_text().splitlines()[-1]
    assert "is broken, until its driver resets it: " in said and sentence in said
    assert said[-1] in ".?"
    lines = len(pc.log.read_text().splitlines())
    before = [pc.peek(ring_of(slot, queue).used, 64) for queue in range(QUEUES[slot])]
    pc.ask(*[f"kick {slot:x} {queue:x} 5" for queue in range(QUEUES[slot])])
    all_serve_but(pc, slot)
    assert [pc.peek(ring_of(slot, queue).used, 64) for queue in range(QUEUES[slot])] == before
    assert (pc.status(slot), pc.counts(slot)) == (BROKEN, (int(used, 16), 1))
    assert len(pc.log.read_text().splitlines()) == lines
    pc.reset(slot)
    pc.serves(slot)
