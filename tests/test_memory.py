"""A Guest's RAM: one mapping, one check at its door, pages for devices above it."""

import errno
import mmap
import os
from collections.abc import Callable
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lguest_nb import memory as memory_module
from lguest_nb.memory import (
    DEVICE_PAGES,
    PAGE_SIZE,
    BadAddress,
    GuestError,
    GuestMemory,
    LguestError,
    page_up,
)

pytestmark = pytest.mark.usefixtures("nothing_left")
DOORS: dict[str, Callable[[GuestMemory, int, int], object]] = {
    "check": lambda memory, address, length: memory.check(address, length),
    "view": lambda memory, address, length: memory.view(address, length).release(),
    "read": lambda memory, address, length: memory.read(address, length),
    "write": lambda memory, address, length: memory.write(address, bytes(length)),
}
BOUNDS = GuestMemory.__new__(GuestMemory)  # no mapping is needed to judge an address
BOUNDS.limit = 1 << 20
every_door = pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)


def test_a_page_is_what_it_is_on_x86() -> None:
    assert PAGE_SIZE == mmap.PAGESIZE == 4096
    assert [page_up(n) for n in (0, 1, 4095, 4096, 4097)] == [0, 4096, 4096, 4096, 8192]


def test_a_mebibyte_above_ram_is_in_reserve_for_devices(memory: GuestMemory) -> None:
    assert DEVICE_PAGES == 256
    assert memory.size == memory.limit == 1 << 20
    assert memory.maximum == len(memory.map) == 2 << 20


def test_ram_is_born_zero_and_costs_what_is_touched(memory: GuestMemory) -> None:
    assert os.fstat(memory.fd).st_blocks == 0
    assert memory.read(0, memory.size) == bytes(memory.size)
    with closing(GuestMemory(64 << 20)) as large:
        large.u8[12345678] = 1
        assert os.fstat(large.fd).st_blocks * 512 == PAGE_SIZE


@every_door
def test_the_last_byte_of_ram_is_usable(memory: GuestMemory, door: Callable[..., object]) -> None:
    door(memory, memory.limit - 1, 1)
    door(memory, 0, memory.limit)


@every_door
@pytest.mark.parametrize(
    ("address", "length"),
    [(1 << 20, 1), ((1 << 20) - 1, 2), (0, (1 << 20) + 1), ((1 << 20) + 1, 0), (-1, 1), (-4, 8)],
)
def test_one_byte_further_is_refused(
    memory: GuestMemory, door: Callable[..., object], address: int, length: int
) -> None:
    with pytest.raises(BadAddress, match="do not fit below 0x100000"):
        door(memory, address, length)


@pytest.mark.parametrize(("address", "length"), [(0xFFFFF000, 0x2000), (1 << 63, 1 << 63), (0x1000, -1), (0, 1 << 64)])
def test_an_end_which_would_wrap_is_refused(memory: GuestMemory, address: int, length: int) -> None:
    with pytest.raises(BadAddress):
        memory.check(address, length)


def test_nothing_at_the_very_end_is_nothing_wrong(memory: GuestMemory) -> None:
    memory.check(memory.limit, 0)
    assert memory.read(memory.limit, 0) == b""


@given(st.integers(-10, 1 << 21) | st.integers(), st.integers(-10, 1 << 21) | st.integers())
def test_a_range_is_good_if_each_of_its_bytes_is(address: int, length: int) -> None:
    ram = range(BOUNDS.limit)
    if length > 0:
        good = address in ram and address + length - 1 in ram
    else:
        good = length == 0 and 0 <= address <= BOUNDS.limit
    try:
        BOUNDS.check(address, length)
    except BadAddress:
        assert not good
    else:
        assert good


def test_the_error_is_the_guests_and_says_what_value_and_limit(memory: GuestMemory) -> None:
    with pytest.raises(GuestError) as caught:
        memory.check(0xABCDE0, 16)
    assert str(caught.value) == "Invalid address 0xabcde0: 16 bytes from there do not fit below 0x100000."


def test_pages_for_devices_follow_ram_and_become_the_guests(memory: GuestMemory) -> None:
    with pytest.raises(BadAddress):
        memory.check(memory.size, 1)
    assert [memory.take_pages(1), memory.take_pages(3)] == [1 << 20, (1 << 20) + 4096]
    memory.check(memory.size, 4 * 4096)
    assert memory.read(memory.size, 4 * 4096) == bytes(4 * 4096)
    with pytest.raises(BadAddress):
        memory.check(memory.size, 4 * 4096 + 1)
    assert memory.size == 1 << 20


def test_devices_cannot_have_more_pages_than_there_are(memory: GuestMemory) -> None:
    memory.take_pages(254)
    with pytest.raises(LguestError, match="Not enough memory for devices: 3 more pages .*, 2 left") as caught:
        memory.take_pages(3)
    assert not isinstance(caught.value, GuestError)
    memory.take_pages(2)
    memory.check(memory.maximum - 1, 1)


@pytest.mark.parametrize("size", [0, -4096, 1, 4095, 4097])
def test_memory_is_whole_pages_and_some_of_them(size: int) -> None:
    with pytest.raises(LguestError, match=f"not {size} bytes"):
        GuestMemory(size)


@pytest.mark.parametrize("size", [1 << 60, 1 << 80])
def test_more_than_the_address_space_is_refused_with_the_number_of_pages(size: int) -> None:
    with pytest.raises(LguestError, match=f"Mapping {size // 4096 + 256} pages .* failed"):
        GuestMemory(size)


def test_a_string_ends_at_its_nul_at_the_limit_or_when_patience_does(memory: GuestMemory) -> None:
    memory.write(0x1000, b"quiet\0splash")
    assert memory.string(0x1000, 4096) == b"quiet"
    assert memory.string(0x1006, 3) == b"spl"
    assert memory.string(0x2000, 4096) == b""
    memory.take_pages(1)
    memory.u8[memory.limit - 5 : memory.limit] = b"crash"
    memory.u8[memory.limit : memory.limit + 3] = b"not"
    assert memory.string(memory.limit - 5, 1 << 20) == b"crash"
    with pytest.raises(BadAddress):
        memory.string(memory.limit, 1)


def test_everyone_looks_at_the_same_bytes(memory: GuestMemory) -> None:
    window = memory.view(0x1000, 8)
    memory.u32[0x1000 // 4] = 0x01020304
    memory.u16[0x1004 // 2] = 0x0506
    window[6] = 7
    assert memory.read(0x1000, 8) == b"\4\3\2\1\6\5\7\0"
    assert (memory.u16.itemsize, memory.u32.itemsize) == (2, 4)
    assert os.pread(memory.fd, 8, 0x1000) == b"\4\3\2\1\6\5\7\0"
    window.release()


def test_memory_somebody_holds_is_not_unmapped_and_stays_usable(memory: GuestMemory) -> None:
    held = memory.view(0, 16)
    with pytest.raises(BufferError):
        memory.close()
    memory.u16[0] = 0x4241
    assert memory.read(0, 2) == bytes(held[:2]) == b"AB"
    held.release()


def test_linux_older_than_memfd_gives_the_same_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_module.os, "memfd_create", lambda *_: fail_with(errno.ENOSYS))
    with closing(GuestMemory(1 << 20)) as memory:
        assert memory.fd == -1
        memory.write(memory.limit - 2, b"ok")
        assert memory.string(memory.limit - 2, 9) == b"ok"


def test_no_memfd_for_another_reason_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_module.os, "memfd_create", lambda *_: fail_with(errno.EMFILE))
    with pytest.raises(LguestError, match="no memfd for the Guest's memory: Too many open files"):
        GuestMemory(1 << 20)


def fail_with(number: int) -> int:
    raise OSError(number, os.strerror(number))
