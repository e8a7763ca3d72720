"""A Guest can only hurt itself: whatever its tables, stacks and code, it ends with a sentence, and nobody else does."""

import random
import threading

import pytest
import softguest as g

from lguest_nb.host import Ending

H = g.HANDLERS
DIRECTORY, TABLE = g.SIZE - 0x1000, g.SIZE - 0x2000  # as the Host built them
ELSEWHERE = 0x20000000  # slot 128, page 0
OWN_TABLE = 0x80000


def mapped(entry: int) -> bytes:
    "Instructions which map ELSEWHERE to what `entry` says."
    slot = ELSEWHERE >> 22
    point = g.store(OWN_TABLE, entry) + g.store(DIRECTORY + 4 * slot, OWN_TABLE | 0x67)
    return point + g.hcall(g.SET_PGD, DIRECTORY, slot)


@pytest.mark.parametrize("page", [0xFFC00067, 0xFFC01067, 0xFFC02067])
def test_the_switcher_cannot_be_written_through_any_mapping(page: int) -> None:
    switcher = g.Guest(mapped(page) + g.store(ELSEWHERE, 0xDEADBEEF) + g.POWER_OFF)
    switcher.start()
    assert switcher.host.machine is not None
    before = switcher.host.machine.switcher.words.tolist()
    assert switcher.host.run() == Ending("died", "attempt to access switcher pages")
    after = switcher.host.machine.switcher.words.tolist()
    # But the processor itself sets "accessed" and "dirty", and does so wherever a page table leads it.
    assert {b ^ a for b, a in zip(before, after, strict=True)} <= {0, 0x20, 0x40, 0x60, before[128] ^ after[128]}
    switcher.close()


def test_the_switcher_cannot_be_written_where_it_is() -> None:
    guest = g.Guest(g.gate(14, H) + g.store(0xFFC00060, 0))
    guest.put(H, g.POWER_OFF)
    assert guest.run().how == "power-off"
    assert guest.word(g.CR2) == 0xFFC00060


def test_the_last_slot_of_a_page_directory_is_ignored() -> None:
    # A GDT of its own, with a call gate to privilege level 0 in it: lcall $0x30, $0 would go through it.
    fake = g.SCRATCH
    guest = g.Guest(
        g.store(OWN_TABLE, fake | 0x67) + g.store(DIRECTORY + 4092, OWN_TABLE | 0x67)
        + g.hcall(g.SET_PGD, DIRECTORY, 1023) + g.hcall(g.NEW_PGTABLE, DIRECTORY) + g.gate(13, H)
        + b"\x9a" + g.u32(0) + b"\x30\x00"
    )  # fmt: skip
    guest.set_words(fake + 0x30, 0x00080000 | g.CODE & 0xFFFF, 0x0000EC00)
    guest.set_words(fake + 0x08, 0x0000FFFF, 0x00CF9B00)
    guest.put(H, g.POWER_OFF)
    assert guest.run().how == "power-off"


def test_call_gates_and_other_special_descriptors_are_not_installed() -> None:
    for high in (0xEC00, 0x8900, 0x8200, 0xE500, 0x8B00, 0x8700):
        guest = g.Guest(
            g.hcall(g.LOAD_GDT, 9, 0x00600000 | H & 0xFFFF, high | H & 0xFFFF0000) + g.gate(13, H + 0x100)
            + g.gate(11, H + 0x100) + b"\x9a" + g.u32(0) + b"\x49\x00"
        )  # fmt: skip
        guest.put(H, g.hcall(99))
        guest.put(H + 0x100, g.POWER_OFF)
        assert guest.run().how == "power-off"


def test_no_segment_has_privilege_level_0() -> None:
    # A code segment of level 0 becomes one of level 1, and a return to level 0 is a fault.
    far_return = g.push(0x48) + g.push(H + 64) + b"\xcb"
    guest = g.Guest(g.hcall(g.LOAD_GDT, 9, 0xFFFF, 0x00CF9A00) + g.gate(13, H) + far_return)
    guest.put(H, g.POWER_OFF)
    guest.put(H + 64, g.hcall(99))
    assert guest.run().how == "power-off"


@pytest.mark.parametrize("entry", [g.SIZE | 0x67, 0xF0000067, 0xFFFFF067, 0xFFBFF067])
@pytest.mark.parametrize(
    "access",
    [g.load(g.EAX, ELSEWHERE), g.store(ELSEWHERE, 1), g.inc(ELSEWHERE), g.mov(g.EAX, ELSEWHERE) + b"\xff\xe0"],
    ids=["read", "write", "both", "run"],
)
def test_memory_which_is_not_there_kills(entry: int, access: bytes) -> None:
    assert g.run(mapped(entry) + access + g.POWER_OFF) == Ending("died", "bad page table entry")


def test_page_tables_which_are_not_there_kill() -> None:
    slot = ELSEWHERE >> 22
    code = g.store(DIRECTORY + 4 * slot, 0xF0000067) + g.hcall(g.SET_PGD, DIRECTORY, slot)
    assert g.run(code) == Ending("died", "bad page directory entry")
    code = g.store(DIRECTORY + 4 * slot, 0xF0000067) + g.hcall(g.NEW_PGTABLE, DIRECTORY) + g.load(g.EAX, ELSEWHERE)
    assert g.run(code + g.POWER_OFF).how == "died"


def test_a_slot_the_guest_never_told_us_of_is_found() -> None:
    slot = ELSEWHERE >> 22
    code = g.store(OWN_TABLE, 0x70067) + g.store(DIRECTORY + 4 * slot, OWN_TABLE | 0x67) + g.store(ELSEWHERE, 5)
    guest = g.Guest(code + g.POWER_OFF)
    assert guest.run().how == "power-off"
    assert guest.word(0x70000) == 5


@pytest.mark.parametrize("address", [0xFFFFFFFC, 0xFFC00000, 0xFFC01000])
def test_a_programs_wild_pointer_into_the_last_megabytes_is_a_page_fault(address: int) -> None:
    guest = g.Guest(g.user_segments() + g.gate(14, H) + g.hcall(g.SET_STACK, 0x69, 0x2F000, 1) + g.go_to_user(0x20000))
    guest.put(0x20000, g.load(g.EAX, address))
    guest.put(H, g.POWER_OFF)
    assert guest.run().how == "power-off"
    assert guest.word(g.CR2) == address


def test_kernel_stacks_anywhere_are_survived() -> None:
    for esp in (0, 4, 0xFFC00100, 0xFFFFFFFF, 0x80000000, g.SIZE + 8, 3):
        guest = g.Guest(
            g.user_segments() + g.gate(0x80, H, 0xEF) + g.hcall(g.SET_STACK, 0x69, esp, 1) + g.go_to_user(0x20000)
        )
        guest.put(0x20000, b"\xcd\x80")
        guest.put(H, g.POWER_OFF)
        ending = guest.run()
        assert ending.how in ("died", "power-off")
        assert ending.how == "power-off" or ending.reason.startswith("Bad address") or "bad write" in ending.reason


@pytest.mark.parametrize("level", [1, 3])
def test_guests_of_random_bytes_end_with_a_sentence(level: int) -> None:
    chance = random.Random(2009 + level)
    for _ in range(25):
        handlers = b"".join(g.gate(v, H + 16 * v) for v in range(20) if v not in (2, 8, 15))
        code = chance.randbytes(4000)
        if level == 3:
            enter = g.user_segments() + handlers + g.hcall(g.SET_STACK, 0x69, 0x2F000, 1) + g.go_to_user(0x20000)
            guest = g.Guest(enter)
            guest.put(0x20000, code)
        else:
            guest = g.Guest(handlers + code)
        for vector in range(20):  # drop the error code, step over one byte, go on
            pushes_error = vector in (8, 10, 11, 12, 13, 14, 17)
            guest.put(H + 16 * vector, b"\x83\xc4\x04" * pushes_error + b"\x83\x04\x24\x01" + g.IRET)
        clock = threading.Timer(0.02, guest.host.stop)
        clock.daemon = True
        clock.start()
        ending = guest.run()
        clock.cancel()
        assert ending.how in ("died", "stopped", "power-off", "restart")
