"""What drivers of today ask of a disk, over virtio 1.2: flushes, holes, names, a cache with a switch."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_block import CONTENT, SECTORS, SIZE, UNTOUCHED, Lab, failing, laboratory, syncs

from lguest_nb import block_today
from lguest_nb.block import F_BARRIER, F_RO, F_SEG_MAX, HEADER, S_IOERR, S_OK, S_UNSUPP, SECTOR, T_BARRIER, T_OUT
from lguest_nb.block_today import (
    F_BLK_SIZE,
    F_CONFIG_WCE,
    F_DISCARD,
    F_FLUSH,
    F_WRITE_ZEROES,
    MOST_RANGES,
    MOST_SECTORS,
    NEEDS,
    RANGE,
    T_DISCARD,
    T_FLUSH,
    T_GET_ID,
    T_WRITE_ZEROES,
    UNMAP,
    WRITEBACK,
    Range,
    discard,
    disk_id,
    parse_ranges,
    write_zeroes,
)
from lguest_nb.device import F_VERSION_1, RING_BITS
from lguest_nb.vring import Stopped

LINUX = F_VERSION_1 | F_SEG_MAX | F_BLK_SIZE | F_FLUSH | F_CONFIG_WCE | F_DISCARD | F_WRITE_ZEROES
ERASING = [T_DISCARD, T_WRITE_ZEROES]


def begin(lab: Lab, accepted: int) -> None:
    "As a Bus does it when the driver is ready."
    lab.disk.accepted = accepted
    lab.disk.started()


@pytest.fixture
def linux(tmp_path: Path) -> Iterator[Lab]:
    "With a driver which has accepted everything."
    with laboratory(tmp_path / "disk.img") as lab:
        begin(lab, LINUX)
        yield lab


def ask(lab: Lab, kind: int, *data: bytes, want: list[int] | None = None, sector: int = 0) -> tuple[int, int, bytes]:
    "Status, used length, and the bytes in front of the status."
    used, answer = lab.send([HEADER.pack(kind, 0, sector), *data], [*(want or []), 1])
    return answer[-1], used.length, answer[:-1]


# Interrupts


@pytest.mark.parametrize(
    ("requests", "event", "heard_at"),
    [(1, 0, [1]), (1, 0xFFFF, []), (2, 0, [2]), (2, 1, [2]), (3, 2, [3]), (3, 3, [])],
)
def test_a_driver_which_sleeps_until_the_last_request_is_served_hears_of_it_at_once(
    linux: Lab, requests: int, event: int, heard_at: list[int]
) -> None:
    vq, heard = linux.vq, []
    vq.event_idx, vq.notify_on_empty = True, False
    vq.memory.u16[vq.used_event] = event
    vq.interrupt = lambda: heard.append(vq.used_idx)
    for _ in range(requests):
        linux.driver.add(out=[HEADER.pack(0, 0, 0)], into=[SECTOR, 1])
    for _ in range(requests):
        linux.disk.blk_request(vq)
    assert heard == heard_at


# The two offers


@pytest.mark.parametrize(
    ("how", "old", "modern"),
    [
        ({}, F_BARRIER | F_SEG_MAX, LINUX & ~F_VERSION_1),
        ({"snapshot": True}, F_BARRIER | F_SEG_MAX, LINUX & ~F_VERSION_1),
        ({"read_only": True}, F_BARRIER | F_SEG_MAX | F_RO, F_RO | F_SEG_MAX | F_BLK_SIZE | F_FLUSH),
    ],
    ids=["rw", "snapshot", "ro"],
)
def test_2009_is_offered_what_it_was_and_today_more(
    tmp_path: Path, how: dict[str, bool], old: int, modern: int
) -> None:
    with laboratory(tmp_path / "disk.img", **how) as lab:
        assert (lab.disk.features, lab.disk.modern_features) == (old, modern)
        assert not lab.disk.modern_features & RING_BITS
        assert not lab.disk.modern_features & F_BARRIER
        assert len(lab.disk.config) == 16


def test_the_config_of_today_begins_with_that_of_2009_and_has_limits(linux: Lab) -> None:
    config = linux.disk.modern_config
    assert config[:16] == linux.disk.config
    numbers = block_today.CONFIG.unpack(config)
    assert numbers == (SECTORS, 0, 254, 512, 1, 0, MOST_SECTORS, MOST_RANGES, 8, MOST_SECTORS, MOST_RANGES, 1)


@pytest.mark.parametrize("kind", NEEDS)
def test_a_kind_whose_feature_was_not_accepted_is_unsupported(linux: Lab, kind: int) -> None:
    begin(linux, LINUX & ~NEEDS[kind])
    data, want = ([RANGE.pack(0, 1, 0)], []) if kind in ERASING else ([], [20] if kind == T_GET_ID else [])
    assert ask(linux, kind, *data, want=want)[:2] == (S_UNSUPP, 1)
    assert linux.content() == CONTENT


@pytest.mark.parametrize("kind", [2, 3, 5, 6, 7, 9, 10, 12, 14, 16, 0x7FFFFFFF, T_BARRIER, T_BARRIER | T_FLUSH])
def test_a_number_nobody_knows_is_unsupported(linux: Lab, kind: int) -> None:
    assert ask(linux, kind, bytes(SECTOR))[:2] == (S_UNSUPP, 1)
    assert linux.content() == CONTENT


# Flush


def test_a_flush_makes_durable_what_was_acknowledged(linux: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = syncs(monkeypatch)
    assert linux.write(0, b"w" * SECTOR) == (S_OK, 1)
    assert ask(linux, T_FLUSH) == (S_OK, 1, b"")
    assert calls == ["write", "sync"]


def test_a_flush_which_fails_is_an_error(linux: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fdatasync", failing(errno.EIO))
    assert ask(linux, T_FLUSH)[0] == S_IOERR


def test_a_flush_of_a_sector_is_a_flush_and_one_with_data_an_error(linux: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = syncs(monkeypatch)
    assert ask(linux, T_FLUSH, sector=1 << 63)[0] == S_OK
    assert ask(linux, T_FLUSH, bytes(SECTOR)) == (S_IOERR, 1, b"")
    assert ask(linux, T_FLUSH, want=[SECTOR]) == (S_IOERR, 1, bytes([UNTOUCHED]) * SECTOR)
    assert calls == ["sync"]


@pytest.mark.parametrize("how", ["read_only", "snapshot"])
def test_what_has_nothing_to_lose_flushes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    calls = syncs(monkeypatch)
    with laboratory(tmp_path / "disk.img", **{how: True}) as lab:
        begin(lab, LINUX)
        assert ask(lab, T_FLUSH)[0] == S_OK
    assert calls == []


# The cache


@pytest.mark.parametrize(
    ("accepted", "durable"),
    [
        (0, False),  # 2009: FLUSH was not even offered
        (F_VERSION_1, True),  # offered and not taken
        (F_VERSION_1 | F_FLUSH, False),
        (F_VERSION_1 | F_FLUSH | F_CONFIG_WCE, False),
        (F_VERSION_1 | F_CONFIG_WCE, True),
    ],
)
def test_who_could_flush_and_cannot_gets_writethrough(
    linux: Lab, monkeypatch: pytest.MonkeyPatch, accepted: int, durable: bool
) -> None:
    begin(linux, accepted)
    calls = syncs(monkeypatch)
    assert linux.write(0, b"w" * SECTOR) == (S_OK, 1)
    assert calls == (["write", "sync"] if durable else ["write"])
    if accepted & F_CONFIG_WCE:
        assert linux.disk.modern_config[WRITEBACK] == (not durable)


def test_the_driver_switches_its_cache_off_and_on(linux: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = syncs(monkeypatch)
    for written, read, expected in ((0, 0, ["write", "sync"]), (1, 1, ["write"]), (0, 0, ["write", "sync"])):
        linux.disk.written(WRITEBACK, bytes([written]))
        assert linux.disk.modern_config[WRITEBACK] == read
        linux.write(0, b"w" * SECTOR)
        assert calls == expected
        calls.clear()
    linux.disk.written(WRITEBACK, b"\x80")
    assert linux.disk.modern_config[WRITEBACK] == 1


def test_zeroes_too_are_durable_in_writethrough(linux: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = syncs(monkeypatch)
    linux.disk.written(WRITEBACK, b"\0")
    assert ask(linux, T_WRITE_ZEROES, RANGE.pack(0, 1, 0))[0] == S_OK
    assert calls == ["sync"]


@pytest.mark.parametrize("offset, data", [(0, bytes(32)), (33, bytes(40)), (1 << 20, b"\0"), (WRITEBACK, b"")])
def test_nothing_else_in_the_config_is_the_drivers(linux: Lab, offset: int, data: bytes) -> None:
    before = linux.disk.modern_config
    linux.disk.written(offset, data)
    assert linux.disk.modern_config == before
    assert not linux.disk.writethrough


def test_a_write_across_the_byte_of_the_cache_changes_that_byte_alone(linux: Lab) -> None:
    before = linux.disk.modern_config
    linux.disk.written(WRITEBACK - 2, b"\xff\xff\0\xff")
    after = linux.disk.modern_config
    assert [i for i in range(60) if before[i] != after[i]] == [WRITEBACK]


def test_a_driver_which_did_not_take_config_wce_switches_nothing(linux: Lab) -> None:
    begin(linux, F_VERSION_1 | F_FLUSH)
    linux.disk.written(WRITEBACK, b"\0")
    assert not linux.disk.writethrough


# The name


def test_the_name_is_the_files_in_twenty_bytes(linux: Lab) -> None:
    assert ask(linux, T_GET_ID, want=[20]) == (S_OK, 21, b"disk.img".ljust(20, b"\0"))
    assert ask(linux, T_GET_ID, want=[3, 17])[2] == b"disk.img".ljust(20, b"\0")


@pytest.mark.parametrize("want", [[], [1], [19], [21], [512]])
def test_a_name_wants_twenty_bytes_of_room(linux: Lab, want: list[int]) -> None:
    assert ask(linux, T_GET_ID, want=want) == (S_IOERR, 1, bytes([UNTOUCHED]) * sum(want))


@pytest.mark.parametrize("path", ["/a/" + "x" * 40, "/ü/ü.img", "disk"])
def test_a_name_is_ascii_and_not_longer_than_its_place(path: str) -> None:
    assert len(disk_id(path)) == 20
    assert disk_id(path).isascii()


# Forgetting


def expected(*erased: tuple[int, int]) -> bytes:
    "The disk with these sectors zeroed: first, count."
    content = bytearray(CONTENT)
    for first, count in erased:
        content[first * SECTOR : (first + count) * SECTOR] = bytes(count * SECTOR)
    return bytes(content)


@pytest.mark.parametrize("flags", [0, UNMAP])
def test_zeroes_are_written_in_every_range(linux: Lab, flags: int) -> None:
    ranges = RANGE.pack(1, 2, flags) + RANGE.pack(15, 1, flags) + RANGE.pack(4, 0, flags)
    assert ask(linux, T_WRITE_ZEROES, ranges) == (S_OK, 1, b"")
    assert linux.content() == expected((1, 2), (15, 1))


def test_a_list_of_ranges_may_come_in_pieces(linux: Lab) -> None:
    ranges = RANGE.pack(1, 2, 0) + RANGE.pack(15, 1, 0)
    assert ask(linux, T_WRITE_ZEROES, ranges[:5], ranges[5:20], ranges[20:])[0] == S_OK
    assert linux.content() == expected((1, 2), (15, 1))


def test_what_is_discarded_gives_its_room_back(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    with laboratory(path) as lab:
        begin(lab, LINUX)
        os.truncate(path, 1 << 20)
        with open(path, "r+b") as file:
            file.write(b"\xaa" * (1 << 20))
            os.fsync(file.fileno())
            before = os.stat(path).st_blocks
            lab.disk.size = 1 << 20
            assert ask(lab, T_DISCARD, RANGE.pack(0, 1024, 0)) == (S_OK, 1, b"")
            os.fsync(file.fileno())
        assert os.stat(path).st_blocks < before
        assert os.stat(path).st_size == 1 << 20


def test_where_no_holes_can_be_made_a_discard_is_advice_and_zeroes_are_written(
    linux: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_today, "_fallocate", lambda *_: False)
    assert ask(linux, T_DISCARD, RANGE.pack(0, SECTORS, 0))[0] == S_OK
    assert linux.content() == CONTENT
    assert ask(linux, T_WRITE_ZEROES, RANGE.pack(2, 3, UNMAP))[0] == S_OK
    assert linux.content() == expected((2, 3))


@pytest.mark.parametrize("flags, modes", [(0, [0x10]), (UNMAP, [0x02, 0x10])])
def test_only_unmap_gives_blocks_back(
    linux: Lab, monkeypatch: pytest.MonkeyPatch, flags: int, modes: list[int]
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(block_today, "_fallocate", lambda fd, mode, *_: asked.append(mode))
    assert ask(linux, T_WRITE_ZEROES, RANGE.pack(2, 3, flags))[0] == S_OK
    assert asked == modes


def test_a_full_disk_fails_that_request_alone(linux: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as full:
        full.setattr(block_today, "_fallocate", failing(errno.ENOSPC))
        assert ask(linux, T_WRITE_ZEROES, RANGE.pack(2, 3, 0))[0] == S_IOERR
    assert linux.content() == CONTENT
    assert ask(linux, T_WRITE_ZEROES, RANGE.pack(2, 3, 0))[0] == S_OK


def test_a_file_in_memory_knows_holes_and_no_zeroed_ranges() -> None:
    "No stand-in: tmpfs refuses ZERO_RANGE with EOPNOTSUPP, and the zeroes are written."
    fd = os.memfd_create("disk", os.MFD_CLOEXEC)
    try:
        for unmap in (False, True):
            os.pwrite(fd, b"\xaa" * (3 << 20), 0)
            write_zeroes(fd, 4096, (2 << 20) + 512, unmap, lambda: None)
            content = os.pread(fd, 4 << 20, 0)
            assert content == b"\xaa" * 4096 + bytes((2 << 20) + 512) + b"\xaa" * ((1 << 20) - 4096 - 512)
        before = os.fstat(fd).st_blocks
        assert discard(fd, 0, 4096)
        assert os.fstat(fd).st_blocks == before - 8
        assert os.fstat(fd).st_size == 3 << 20
    finally:
        os.close(fd)


def test_a_stop_in_the_middle_of_writing_zeroes_is_obeyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_today, "_fallocate", lambda *_: False)
    checks: list[int] = []

    def check() -> None:
        checks.append(1)
        if len(checks) == 3:
            raise Stopped

    with open(tmp_path / "file", "w+b") as file:
        with pytest.raises(Stopped):
            write_zeroes(file.fileno(), 0, 8 << 20, False, check)
    assert len(checks) == 3


@pytest.mark.parametrize("kind", ERASING)
@pytest.mark.parametrize("flags", [2, 4, 1 << 31, 0xFFFFFFFF])
def test_a_flag_nobody_knows_is_unsupported(linux: Lab, kind: int, flags: int) -> None:
    good = RANGE.pack(0, 1, 0)
    assert ask(linux, kind, good + RANGE.pack(4, 1, flags))[0] == S_UNSUPP
    assert linux.content() == CONTENT


def test_unmap_is_no_flag_of_a_discard(linux: Lab) -> None:
    assert ask(linux, T_DISCARD, RANGE.pack(0, 1, UNMAP))[0] == S_UNSUPP
    assert linux.content() == CONTENT


BAD_LISTS = {
    "empty": b"",
    "half a range": RANGE.pack(0, 1, 0) + bytes(8),
    "one byte": b"\0",
    "too many": RANGE.pack(0, 1, 0) * (MOST_RANGES + 1),
    "beyond the end": RANGE.pack(0, 1, 0) + RANGE.pack(SECTORS, 1, 0),
    "across the end": RANGE.pack(SECTORS - 1, 2, 0),
    "too long": RANGE.pack(0, MOST_SECTORS + 1, 0),
    "a wrapping sector": RANGE.pack(1 << 55, 1, 0),
    "the last sector there is": RANGE.pack((1 << 64) - 1, 0xFFFFFFFF, 0),
}


@pytest.mark.parametrize("data", BAD_LISTS.values(), ids=BAD_LISTS)
@pytest.mark.parametrize("kind", ERASING)
def test_a_bad_list_of_ranges_is_an_error_and_nothing_is_forgotten(linux: Lab, kind: int, data: bytes) -> None:
    assert ask(linux, kind, *[data] * bool(data)) == (S_IOERR, 1, b"")
    assert linux.content() == CONTENT


def test_a_huge_list_is_not_copied(linux: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_today, "parse_ranges", failing(errno.E2BIG))
    assert ask(linux, T_DISCARD, bytes(0x20000), bytes(0x20000))[0] == S_IOERR


@pytest.mark.parametrize("kind", ERASING)
def test_a_buffer_on_the_wrong_side_is_an_error(linux: Lab, kind: int) -> None:
    assert ask(linux, kind, RANGE.pack(0, 1, 0), want=[16]) == (S_IOERR, 1, bytes([UNTOUCHED]) * 16)
    assert linux.content() == CONTENT


@given(st.binary(max_size=80), st.integers(1, 1 << 20))
def test_no_list_of_ranges_leaves_the_disk(data: bytes, sectors: int) -> None:
    for offset, length, _ in parse_ranges(data, sectors * SECTOR) or []:
        assert 0 <= offset <= offset + length <= sectors * SECTOR
        assert length <= MOST_SECTORS * SECTOR


def test_a_list_is_what_it_says() -> None:
    assert parse_ranges(RANGE.pack(1, 2, 3), SIZE) == [Range(SECTOR, 2 * SECTOR, 3)]


# Other disks


@pytest.mark.parametrize("kind", ERASING)
def test_a_read_only_disk_forgets_nothing(tmp_path: Path, kind: int) -> None:
    with laboratory(tmp_path / "disk.img", read_only=True) as lab:
        begin(lab, LINUX)
        assert ask(lab, kind, RANGE.pack(0, 1, 0))[0] == S_IOERR
        assert lab.content() == CONTENT


@pytest.mark.parametrize("kind", ERASING)
@pytest.mark.parametrize("holes", [True, False])
def test_a_snapshot_forgets_in_its_overlay_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: int, holes: bool
) -> None:
    with laboratory(tmp_path / "disk.img", snapshot=True) as lab:
        begin(lab, LINUX)
        lab.write(4, b"w" * 2 * SECTOR)
        if not holes:
            monkeypatch.setattr(block_today, "_fallocate", lambda *_: False)
        assert ask(lab, kind, RANGE.pack(3, 2, 0) + RANGE.pack(14, 2, 0))[0] == S_OK
        status, _, data = lab.read(0, SIZE)
        assert (status, lab.content()) == (S_OK, CONTENT)
        written = bytearray(CONTENT)
        written[4 * SECTOR : 6 * SECTOR] = b"w" * 2 * SECTOR
        if holes or kind == T_WRITE_ZEROES:
            written[3 * SECTOR : 5 * SECTOR] = written[14 * SECTOR :] = bytes(2 * SECTOR)
        assert data == written


def test_zeroes_in_a_file_cut_short_can_be_read(linux: Lab) -> None:
    os.truncate(linux.path, SECTOR)
    assert ask(linux, T_WRITE_ZEROES, RANGE.pack(8, 8, UNMAP))[0] == S_OK
    assert linux.read(8, 8 * SECTOR) == (S_OK, 8 * SECTOR + 1, bytes(8 * SECTOR))


def test_the_serving_of_2009_looks_at_none_of_it(linux: Lab) -> None:
    begin(linux, 0)
    assert linux.write(0, b"b" * SECTOR, T_OUT | T_BARRIER) == (S_OK, 1)
    assert not linux.disk.writethrough
