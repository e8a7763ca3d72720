"""Malformed rings, written by a real Guest: what it costs on the bus of 2009, and that it costs no more.

Each case is named after its rule: A for the available ring and the chains of any device, B for indirect tables. The
tiny Guest's shell writes the ring by `poke` and wakes the device by `kick`; the same rules are held by fake drivers in
test_vring.py. A ring which no driver would write kills the Guest, with one sentence; a bad request fails alone.
"""

import os
import select
import struct
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import PATIENCE

pytest.importorskip("unicorn", reason="the software Host needs Unicorn")

from lguest_nb.block import HEADER, S_IOERR, T_OUT, Block
from lguest_nb.console import Console
from lguest_nb.device import F_RING_INDIRECT_DESC, Device
from lguest_nb.guest import boot, path, poke_available, poke_descriptors, poke_line
from lguest_nb.host import BootState, Bus, Ending
from lguest_nb.hosts.soft.host import SoftHost
from lguest_nb.launcher import Launcher
from lguest_nb.memory import GuestMemory
from lguest_nb.rng import Rng
from lguest_nb.vring import DESC, DESC_INDIRECT, DESC_NEXT, DESC_WRITE, ENOUGH, VIRTQUEUE_NUM, Virtqueue, ring_at

pytestmark = pytest.mark.usefixtures("nothing_left")

RING = ring_at(0x1001000, VIRTQUEUE_NUM)  # of the first device in 16 MB
SECOND = ring_at(0x1004000, VIRTQUEUE_NUM)  # and of the next one, if the first has one queue
ACCEPTED = 0x1000000 + 5 + 8 + 4  # the rng's accepted features, if it has four bytes of them
LIMIT = 0x1001000 + 3 * 3 * 4096  # where memory ends with one ring for the device and two for the console
BUFFER, OTHER, TABLE = 0x900000, 0x910000, 0x920000
WAIT, HOOK, WAIT_RING = 0x9F0000, 0x9F1000, 0x9F2000  # a kick of these reaches the test
POWER_OFF = Ending("power-off", "Power down")
KICK = f"kick {RING.desc:#x}"
GOOD = (BUFFER, 16, DESC_WRITE, 0)  # a descriptor with which nothing is wrong
NEXT_WRITE = DESC_NEXT | DESC_WRITE


class PatientHost(SoftHost):
    """The software Host; if the Guest kicks WAIT, it stands still until one more interrupt of a device has come.

    After a kick of WAIT_RING it stands until all have come which a full ring brings.
    """

    def __init__(
        self,
        irqs: range,  # of the devices to wait for
        hooks: Sequence[Callable[[], None]],  # one for each kick of HOOK
    ) -> None:
        super().__init__()
        self.irqs, self.hooks, self.heard, self.count = irqs, iter(hooks), threading.Semaphore(0), 0

    def start(self, memory: GuestMemory, boot: BootState, bus: Bus) -> None:
        self.to_bus = bus.notify
        super().start(memory, boot, self)

    def notify(self, address: int) -> None:
        if address in (WAIT, WAIT_RING):
            for _ in range(1 if address == WAIT else VIRTQUEUE_NUM // ENOUGH):
                assert self.heard.acquire(timeout=PATIENCE), "the device is silent"
        elif address == HOOK:
            next(self.hooks)()
        else:
            self.to_bus(address)

    def interrupt(self, irq: int) -> None:
        super().interrupt(irq)
        if irq in self.irqs:
            self.count += 1
            self.heard.release()

    def stop(self) -> None:
        super().stop()
        self.heard.release()


@dataclass
class Outcome:
    "What became of a Guest, and of its device."

    ending: Ending
    peeked: list[bytes]  # sixteen bytes for each `peek`
    interrupts: int
    said: str

    @property
    def used(self) -> tuple[int, int, int]:  # idx, and the first entry's head and length
        "From a `peek` at the used ring."
        _, idx, head, length = struct.unpack_from("<HHII", self.peeked[0])
        return idx, head, length


def attack(
    *commands: str,
    device: Device | None = None,  # or a source of 01 02 03 ... which offers indirect tables
    more: Sequence[Device] = (),
    irqs: range = range(1, 2),  # which the Guest waits for by WAIT
    hooks: Sequence[Callable[[], None]] = (),
    typed: bool = False,  # too much for the command line
) -> Outcome:
    "Reset the first device, run these commands, and have a look."
    devices = [device or Counter(), *more]
    host = PatientHost(irqs, hooks)
    if typed:
        said, ending = type_all(["reset 0", *commands, "poweroff"], devices, host)
    else:
        said, ending = boot("reset 0", *commands, devices=devices, host=host)
    answers = [part.split("\n")[1] for part in said.split("tiny> ")[1:] if part.startswith("peek")]
    peeked = [bytes.fromhex("".join(answer.split("  |")[0].split()[1:])) for answer in answers]
    return Outcome(ending, peeked, host.count, said)


def type_all(commands: list[str], devices: Sequence[Device], host: PatientHost) -> tuple[str, Ending]:
    "As `boot`, but by the keyboard."
    output, (keyboard, into) = os.memfd_create("output"), os.pipe()
    try:
        assert os.write(into, "".join(f"{line}\n" for line in commands).encode()) < 65536
        with Launcher(16, host, output) as launcher:
            for device in (*devices, Console(keyboard, output)):
                launcher.add(device)
            launcher.load(str(path()))
            ending = launcher.run()
        return os.pread(output, 1 << 22, 0).decode(), ending
    finally:
        for fd in (output, keyboard, into):
            os.close(fd)


class Counter(Rng):
    "An rng with a predictable source: 01 02 03 ..."

    def __init__(self, features: int = F_RING_INDIRECT_DESC) -> None:
        super().__init__("/dev/zero")
        self.features, self.given = features, 0

    def _read(self, view: memoryview) -> int:
        view[:] = bytes((self.given + i + 1) & 0xFF for i in range(len(view)))
        self.given += len(view)
        return len(view)


def dies(sentence: str, *commands: str, **how: object) -> None:
    "The Guest dies of what it did, with this in the sentence, and does nothing any more."
    outcome = attack(*commands, KICK, f"kick {WAIT:#x}", "echo alive", **how)  # type: ignore[arg-type]
    assert outcome.ending.how == "died", outcome.said
    assert sentence in outcome.ending.reason, outcome.ending.reason
    assert outcome.ending.reason[-1] in ".?" and "\n" not in outcome.ending.reason
    assert "echo" not in outcome.said


def lives(*commands: str, **how: object) -> Outcome:
    "The request is answered, and so is a good one after it."
    more = [
        poke_descriptors(RING, (OTHER, 16, DESC_WRITE, 0), first=9),
        poke_line(RING.avail + 6, b"\x09\0"),  # slot 1
        poke_line(RING.avail + 2, b"\x02\0"),  # idx
        KICK,
        f"kick {WAIT:#x}",
        f"peek {RING.used:#x} 16",
        f"peek {RING.used + 16:#x} 16",
    ]
    first = [KICK, f"kick {WAIT:#x}", f"peek {RING.used:#x} 16", f"peek {BUFFER:#x} 16"]
    outcome = attack(*commands, *first, *more, **how)  # type: ignore[arg-type]
    assert outcome.ending == POWER_OFF, outcome.said
    second = b"".join(outcome.peeked[-2:])
    assert struct.unpack_from("<HHIIII", second)[1::3] == (2, 9), "the next request was not answered"
    return outcome


def chain(*descriptors: tuple[int, int, int, int], heads: Sequence[int] = (0,), **avail: int) -> list[str]:
    "Descriptors from the table's beginning, and what is made available."
    return [poke_descriptors(RING, *descriptors), poke_available(RING, *heads, **avail)]


def accepting_indirect(*lines: str) -> list[str]:
    return [poke_line(ACCEPTED, F_RING_INDIRECT_DESC.to_bytes(4, "little")), *lines]


def table(*descriptors: tuple[int, int, int, int]) -> str:
    "An indirect table at TABLE."
    return poke_line(TABLE, b"".join(DESC.pack(*each) for each in descriptors))


LOOP = [(BUFFER, 4, NEXT_WRITE, 1), (BUFFER, 4, NEXT_WRITE, 0)]
FATAL = {
    "A1 available index jumps forward": (chain(GOOD, idx=257), "Guest moved used index from 0 to 257"),
    "A1 as far as it goes": (chain(GOOD, idx=0x8000), "Guest moved used index from 0 to 32768"),
    "A2 available index behind what was taken": (chain(GOOD, idx=0xFFFF), "Guest moved used index from 0 to 65535"),
    "A5 head is the size of the ring": (chain(GOOD, heads=[256]), "Guest says index 256 is available"),
    "A5 head is as large as it goes": (chain(GOOD, heads=[0xFFFF]), "Guest says index 65535 is available"),
    "A8 next is the size of the ring": (chain((BUFFER, 4, NEXT_WRITE, 256)), "Desc next is 256"),
    "A8 next is as large as it goes": (chain((BUFFER, 4, NEXT_WRITE, 0xFFFF)), "Desc next is 65535"),
    "A9 descriptor is its own next": (chain((BUFFER, 4, NEXT_WRITE, 0)), "Looped descriptor"),
    "A9 two descriptors in a circle": (chain(*LOOP), "Looped descriptor"),
    "A9 circle of descriptors without a byte": (chain((0, 0, NEXT_WRITE, 0)), "Looped descriptor"),
    "A12 buffer above all memory": (chain((0xFFFFF000, 16, DESC_WRITE, 0)), "Invalid address 0xfffff000"),
    "A12 buffer one byte too long": (chain((LIMIT - 15, 16, DESC_WRITE, 0)), f"Invalid address {LIMIT - 15:#x}"),
    "A12 buffer starts where memory ends": (chain((LIMIT, 1, DESC_WRITE, 0)), f"Invalid address {LIMIT:#x}"),
    "A13 end wraps in 32 bits": (chain((0xFFFFFFF0, 0x20, DESC_WRITE, 0)), "Invalid address 0xfffffff0"),
    "A13 end wraps in 64 bits": (chain((2**64 - 16, 0x20, DESC_WRITE, 0)), "Invalid address 0xfffffffffffffff0"),
    "A13 length is all 32 bits": (chain((BUFFER, 0xFFFFFFFF, DESC_WRITE, 0)), f"Invalid address {BUFFER:#x}"),
    "A13 address is above 4 GB": (chain((1 << 32 | BUFFER, 16, DESC_WRITE, 0)), "Invalid address 0x100900000"),
    "A17 buffer is the available ring": (
        [*chain((RING.avail, 4, DESC_WRITE, 0)), KICK, f"kick {WAIT:#x}"],
        "Guest moved used index from 1 to 1027",  # the source's third and fourth byte
    ),
    "A22 readable after writable": (chain((BUFFER, 4, NEXT_WRITE, 1), (OTHER, 4, 0, 0)), "out after in"),
    "A23 nothing but a readable buffer": (chain((BUFFER, 16, 0, 0)), "Output buffers in rng?"),
    "A25 all flags": (chain((TABLE, 16, 0xFFFF, 0)), f"Indirect table at {TABLE:#x} where none may be"),
    "B1 indirect table, not negotiated": (chain((TABLE, 16, DESC_INDIRECT, 0)), "where none may be"),
}
INDIRECT = {  # what stands in the table, and the descriptor which leads there
    "A25 all flags": ([GOOD], (TABLE, 16, 0xFFFF, 0), "is not the end of its chain"),
    "B2 table inside a table": (
        [(TABLE, 16, DESC_INDIRECT, 0)], (TABLE, 16, DESC_INDIRECT, 0), "where none may be: inside another",
    ),
    "B3 indirect and next": ([GOOD], (TABLE, 16, DESC_INDIRECT | DESC_NEXT, 1), "is not the end of its chain"),
    "B6 size is no multiple of 16": ([GOOD], (TABLE, 17, DESC_INDIRECT, 0), "17 bytes, not a multiple of 16"),
    "B6 size is less than a descriptor": ([GOOD], (TABLE, 15, DESC_INDIRECT, 0), "15 bytes, not a multiple of 16"),
    "B7 size is zero": ([GOOD], (TABLE, 0, DESC_INDIRECT, 0), "indirect buffer table: 0 bytes"),
    "B9 table above all memory": ([GOOD], (0xFFFFF000, 16, DESC_INDIRECT, 0), "Invalid address 0xfffff000"),
    "B9 table crosses the end of memory": ([GOOD], (LIMIT - 16, 32, DESC_INDIRECT, 0), "Invalid address"),
    "B9 table wraps": ([GOOD], (2**64 - 16, 32, DESC_INDIRECT, 0), "Invalid address 0xfffffffffffffff0"),
    "B10 loop inside the table": (LOOP, (TABLE, 32, DESC_INDIRECT, 0), "Looped descriptor"),
    "B10 next is the size of the table": (
        [(BUFFER, 4, NEXT_WRITE, 2), GOOD], (TABLE, 32, DESC_INDIRECT, 0), "Desc next is 2",
    ),
    "B10 next would do in the ring": ([(BUFFER, 4, NEXT_WRITE, 1)], (TABLE, 16, DESC_INDIRECT, 0), "Desc next is 1"),
}  # fmt: skip


@pytest.mark.parametrize("rule", FATAL)
def test_kills_the_guest(rule: str) -> None:
    lines, sentence = FATAL[rule]
    dies(sentence, *lines)


@pytest.mark.parametrize("rule", INDIRECT)
def test_kills_the_guest_by_an_indirect_table(rule: str) -> None:
    entries, leads_there, sentence = INDIRECT[rule]
    dies(sentence, *accepting_indirect(table(*entries), *chain(leads_there)))


LONG = [(BUFFER + 16 * i, 1, NEXT_WRITE, i + 1) for i in range(VIRTQUEUE_NUM)]
HARMLESS = {  # and how long the answer is
    "A14 buffer ends with memory": (chain((LIMIT - 16, 16, DESC_WRITE, 0)), 16),
    "A18 buffer at address zero": (chain((0, 16, DESC_WRITE, 0)), 16),
    "A19 buffer of no bytes among others": (chain((BUFFER, 0, NEXT_WRITE, 1), (BUFFER, 16, DESC_WRITE, 0)), 16),
    "A19 buffer of no bytes at an odd place": (chain((LIMIT, 0, NEXT_WRITE, 1), (BUFFER, 16, DESC_WRITE, 0)), 16),
    "A20 chain of no bytes": (chain((BUFFER, 0, DESC_WRITE, 0)), 0),
    "A25 flags nobody knows": (chain((BUFFER, 16, 0xFFF8 | DESC_WRITE, 7)), 16),
    "A26 available flags nobody knows": (chain(GOOD, flags=0xFFFE), 16),
    "A26 interrupts unwanted, ring empty": (chain(GOOD, flags=0xFFFF), 16),
    "A17 buffer is the descriptor table": (chain((RING.desc, 4096, DESC_WRITE, 0)), 4096),
    "A17 buffer is the used ring": (chain((RING.used, 2052, DESC_WRITE, 0)), 2052),
    "A29 kicked often": ([KICK] * 20 + chain(GOOD), 16),
}


@pytest.mark.parametrize("rule", HARMLESS)
def test_is_answered_as_if_nothing_were_odd(rule: str) -> None:
    lines, length = HARMLESS[rule]
    outcome = lives(*lines)
    assert outcome.used == (1, 0, length)
    assert outcome.interrupts == 2


def test_A4_a_ring_may_be_exactly_full() -> None:
    filled = attack(*chain(GOOD, idx=256), KICK, f"kick {WAIT_RING:#x}", f"peek {RING.used:#x} 16")
    assert (filled.ending, filled.used) == (POWER_OFF, (256, 0, 16))


def test_A3_the_index_wraps_to_zero_as_if_nothing_were_odd() -> None:
    rounds = [i * 256 & 0xFFFF for i in range(1, 258)]
    lines = [f"{poke_line(RING.avail + 2, struct.pack('<H', idx))}\n{KICK}\nkick {WAIT_RING:#x}" for idx in rounds]
    once_round = attack(*chain((0, 0, DESC_WRITE, 0), idx=0), *lines, f"peek {RING.used:#x} 16", typed=True)
    assert (once_round.ending, once_round.used) == (POWER_OFF, (256, 0, 0)), once_round.said[-300:]


def test_A2_the_available_index_moves_backwards() -> None:
    first = [*chain(GOOD), KICK, f"kick {WAIT:#x}"]
    dies("Guest moved used index from 1 to 0", *first, poke_available(RING, 0, idx=0))


@pytest.fixture
def tables(tmp_path: Path) -> Block:
    "A disk with a descriptor table of 256 linked entries in its first eight sectors, the last of them open-ended."
    disk = tmp_path / "tables"
    disk.write_bytes(b"".join(DESC.pack(*each) for each in LONG))
    return Block(disk)


def test_A11_a_chain_of_all_descriptors_is_legal(tables: Block) -> None:
    last = poke_descriptors(RING, (BUFFER, 1, DESC_WRITE, 0), first=255)
    outcome = attack(
        *[f"disk load 0 {RING.desc:#x} 8", last, poke_available(RING, 0), KICK, f"kick {WAIT:#x}"],
        f"peek {RING.used:#x} 16",
        more=[tables],
    )
    assert (outcome.ending, outcome.used) == (POWER_OFF, (1, 0, 256))


def test_A10_one_descriptor_more_than_the_ring_has_is_too_many(tables: Block) -> None:
    "255 in the ring, then a table with two."
    last = poke_descriptors(RING, (TABLE, 32, DESC_INDIRECT, 0), first=255)
    entries = table((BUFFER, 1, NEXT_WRITE, 1), (BUFFER, 1, DESC_WRITE, 0))
    lines = accepting_indirect(f"disk load 0 {RING.desc:#x} 8", last, entries, poke_available(RING, 0))
    dies("more than the ring's 256 descriptors", *lines, more=[tables])


def test_B4_a_table_which_is_said_to_be_writable_is_a_table() -> None:
    lines = accepting_indirect(table(GOOD), *chain((TABLE, 16, DESC_INDIRECT | DESC_WRITE, 0)))
    assert lives(*lines).used == (1, 0, 16)


def test_B1_what_was_not_offered_cannot_be_accepted() -> None:
    "All accepted bits set, by a Guest which was offered none of them."
    lines = [poke_line(ACCEPTED, b"\xff" * 4), *chain((TABLE, 16, DESC_INDIRECT, 0))]
    dies("where none may be", *lines, device=Counter(features=1 << 31))


class TestDisk:
    "A read into what is only for reading, a write out of what is only for writing: nothing moves."

    @pytest.mark.parametrize("kind", [0, T_OUT])
    def test_A23_data_on_the_wrong_side_does_not_move(self, tmp_path: Path, kind: int) -> None:
        (tmp_path / "disk").write_bytes(b"disk" * 128)
        data = (OTHER, 512, DESC_NEXT, 2) if kind == 0 else (OTHER, 512, NEXT_WRITE, 2)
        outcome = attack(
            poke_line(BUFFER, HEADER.pack(kind, 0, 0)),
            poke_line(OTHER, b"the Guest's own."),
            *chain((BUFFER, 16, DESC_NEXT, 1), data, (TABLE, 1, DESC_WRITE, 0)),
            *[poke_line(TABLE, b"\xee"), KICK, f"kick {WAIT:#x}"],
            *[f"peek {address:#x} 16" for address in (RING.used, OTHER, TABLE)],
            *["reset 0", "start 0", "disk read 0"],
            device=Block(tmp_path / "disk"),
        )
        assert (outcome.ending, outcome.used) == (POWER_OFF, (1, 0, 1))
        assert outcome.peeked[1] == b"the Guest's own."
        assert outcome.peeked[2][0] == S_IOERR
        assert "|diskdiskdiskdisk|" in outcome.said
        assert (tmp_path / "disk").read_bytes() == b"disk" * 128


class Slow(Rng):
    "An rng with nothing to give until the mouse moves."

    def __init__(self, pipe: Path) -> None:
        os.mkfifo(pipe)
        super().__init__(pipe)
        self.mouse = os.open(pipe, os.O_WRONLY)
        self.asleep = threading.Semaphore(0)

    def rng_input(self, vq: Virtqueue) -> None:
        sleep_on = vq.wakeup.sleep_on

        def announced(fd: int, events: int = select.POLLIN) -> None:
            self.asleep.release()
            sleep_on(fd, events)

        vq.wakeup.sleep_on = announced  # type: ignore[method-assign]
        try:
            super().rng_input(vq)
        finally:
            vq.wakeup.sleep_on = sleep_on  # type: ignore[method-assign]

    def until_it_waits(self) -> None:
        assert self.asleep.acquire(timeout=PATIENCE)

    def move(self) -> None:
        os.write(self.mouse, b"0123456789abcdef" * 2)

    def close(self) -> None:
        super().close()
        os.close(self.mouse)


class TestInFlight:
    "A request which the device has taken, and cannot serve yet: the Guest has time to change its mind."

    @pytest.fixture
    def slow(self, tmp_path: Path) -> Slow:
        return Slow(tmp_path / "mouse")

    def test_A24_a_descriptor_is_read_once(self, slow: Slow) -> None:
        outcome = attack(
            *[*chain(GOOD), KICK, f"kick {HOOK:#x}"],
            *[poke_descriptors(RING, (OTHER, 32, DESC_WRITE, 0)), f"kick {HOOK:#x}", f"kick {WAIT:#x}"],
            *[f"peek {address:#x} 16" for address in (RING.used, BUFFER, OTHER)],
            device=slow,
            hooks=[slow.until_it_waits, slow.move],
        )
        assert (outcome.ending, outcome.used) == (POWER_OFF, (1, 0, 16))
        assert outcome.peeked[1:] == [b"0123456789abcdef", bytes(16)]

    def test_A24_a_ring_which_breaks_afterwards_costs_nothing_before(self, slow: Slow) -> None:
        outcome = attack(
            *[*chain(GOOD), KICK, f"kick {HOOK:#x}"],
            *[poke_descriptors(RING, (0xFFFFFFFF, 1, 0xFFFF, 0xFFFF)), f"kick {HOOK:#x}", f"kick {WAIT:#x}"],
            f"peek {RING.used:#x} 16",
            device=slow,
            hooks=[slow.until_it_waits, slow.move],
        )
        assert (outcome.ending, outcome.used) == (POWER_OFF, (1, 0, 16))

    def test_A29_kicks_meanwhile_are_one_wake_up(self, slow: Slow) -> None:
        outcome = attack(
            *[*chain(GOOD), KICK, f"kick {HOOK:#x}", *[KICK] * 20, f"kick {HOOK:#x}", f"kick {WAIT:#x}"],
            *[KICK, f"peek {RING.used:#x} 16"],
            device=slow,
            hooks=[slow.until_it_waits, slow.move],
        )
        assert (outcome.ending, outcome.used, outcome.interrupts) == (POWER_OFF, (1, 0, 16), 1)

    def test_A30_what_is_added_meanwhile_needs_no_kick(self, slow: Slow) -> None:
        outcome = attack(
            *[*chain(GOOD, (OTHER, 16, DESC_WRITE, 0)), KICK, f"kick {HOOK:#x}"],
            *[poke_available(RING, 0, 1), f"kick {HOOK:#x}", f"kick {WAIT:#x}", f"peek {RING.used:#x} 16"],
            device=slow,
            hooks=[slow.until_it_waits, slow.move],
        )
        assert (outcome.ending, outcome.used) == (POWER_OFF, (2, 0, 16))


def test_A32_two_queues_may_share_their_memory() -> None:
    second = f"kick {SECOND.desc:#x}"
    outcome = attack(
        "reset 1",
        *chain(GOOD),
        *[poke_descriptors(SECOND, GOOD), poke_available(SECOND, 0), KICK, second, *[f"kick {WAIT:#x}"] * 2],
        *[f"peek {ring.used:#x} 16" for ring in (RING, SECOND)],
        more=[Counter()],
        irqs=range(1, 3),
    )
    assert outcome.ending == POWER_OFF
    assert outcome.peeked[0][2:] == outcome.peeked[1][2:] == bytes.fromhex("0100 00000000 10000000 00000000")


def test_A32_two_devices_may_be_told_of_the_same_chain() -> None:
    "The buffer of the second is the ring of the first, which has been asleep since its last answer."
    both = [*chain(GOOD), KICK, f"kick {WAIT:#x}"]
    attack_the_ring = [poke_descriptors(SECOND, (RING.avail, 4, DESC_WRITE, 0)), poke_available(SECOND, 0)]
    again = [f"kick {SECOND.desc:#x}", f"kick {WAIT:#x}"]
    sentence = "rng:0: Guest moved used index from 1 to 1027"
    dies(sentence, *both, "reset 1", *attack_the_ring, *again, more=[Counter()], irqs=range(1, 3))
