"""The disk: what a request may do to the file, and what it costs when it is a bad one."""

import errno
import logging
import os
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import first_bytes

from lguest_nb.block import (
    F_BARRIER,
    F_SEG_MAX,
    HEADER,
    IOV_MAX,
    S_IOERR,
    S_OK,
    S_UNSUPP,
    SECTOR,
    T_BARRIER,
    T_OUT,
    T_SCSI_CMD,
    Block,
    split,
    transfer,
)
from lguest_nb.device import F_VERSION_1, VIRTIO_ID_BLOCK
from lguest_nb.driver import Driver, Used
from lguest_nb.memory import GuestMemory, LguestError
from lguest_nb.vring import DESC, DESC_NEXT, DESC_WRITE, Segment, Virtqueue, ring_at, total
from lguest_nb.wakeup import Stopped

SECTORS = 16
SIZE = SECTORS * SECTOR
CONTENT = bytes(i % 251 for i in range(SIZE))
UNTOUCHED = 0xEE  # in each buffer before the device sees it


@dataclass
class Lab:
    "A disk of sixteen sectors, its queue, and a driver."

    disk: Block
    vq: Virtqueue
    driver: Driver
    path: Path
    announced: list[tuple[int, int]]  # ranges the queue told the Host about

    def send(self, out: list[bytes], into: list[int]) -> tuple[Used, bytes]:
        "One chain: how it came back, and all of its writable bytes."
        head = self.driver.add(out=out, into=into)
        answer = self.driver.requests[head].answer
        for address, length in answer:
            self.vq.memory.write(address, bytes([UNTOUCHED]) * length)
        self.disk.blk_request(self.vq)
        (used,) = self.driver.used()
        assert used.head == head
        return used, b"".join(self.vq.memory.read(*segment) for segment in answer)

    def write(self, sector: int, data: bytes, kind: int = T_OUT) -> tuple[int, int]:  # status, used length
        used, answer = self.send([HEADER.pack(kind, 0, sector), *([data] if data else [])], [1])
        return answer[-1], used.length

    def read(self, sector: int, length: int, kind: int = 0) -> tuple[int, int, bytes]:
        "Status, used length, data."
        used, answer = self.send([HEADER.pack(kind, 0, sector)], [length, 1] if length else [1])
        return answer[-1], used.length, answer[:-1]

    def content(self) -> bytes:
        return self.path.read_bytes()


@contextmanager
def laboratory(path: Path, **how: bool) -> Iterator[Lab]:
    "With a new disk of sixteen sectors at `path`."
    path.write_bytes(CONTENT)
    memory, disk = GuestMemory(1 << 20), Block(path, **how)
    vq = Virtqueue(memory, 256, "block:0")
    vq.place(ring_at(memory.take_pages(3), 256))
    announced: list[tuple[int, int]] = []
    vq.wrote = announced.extend
    disk.queues.append(vq)
    yield Lab(disk, vq, Driver(vq, 0x10000, 0x80000), path, announced)
    disk.close()
    vq.wakeup.close()
    memory.close()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with laboratory(tmp_path / "disk.img") as lab:
        yield lab


def failing(number: int) -> Callable[..., int]:
    "A system call which fails."

    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    return fail


# What the Guest is told


def test_it_is_virtio_device_2_with_one_queue(lab: Lab) -> None:
    assert (lab.disk.name, lab.disk.virtio_id) == ("block", VIRTIO_ID_BLOCK) == ("block", 2)
    assert lab.disk.services == [lab.disk.blk_request]


def test_barrier_and_seg_max_are_the_features(lab: Lab) -> None:
    assert lab.disk.features == F_BARRIER | F_SEG_MAX == 0x05


def test_config_is_capacity_no_size_max_and_254_segments(lab: Lab) -> None:
    assert lab.disk.config == bytes.fromhex("10000000 00000000 00000000 fe000000")


def test_the_verbose_user_reads_its_sectors(lab: Lab) -> None:
    assert lab.disk.describe() == "virtblock 16 sectors"


# Which file will do


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(LguestError, match="Failed to open .*/nothing: No such file"):
        Block(tmp_path / "nothing")


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LguestError, match="Failed to open .*: Is a directory"):
        Block(tmp_path)


def test_what_is_no_file_is_refused_without_advice_to_truncate_it() -> None:
    with pytest.raises(LguestError, match="/dev/zero is neither a file nor a block device.$"):
        Block("/dev/zero")


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(LguestError, match="is empty; `truncate -s 64M .*` would mend that"):
        Block(tmp_path / "empty")


@pytest.mark.parametrize("size", [1, 511, 513, 1023])
def test_half_a_sector_at_the_end_is_refused(tmp_path: Path, size: int) -> None:
    (tmp_path / "odd").write_bytes(bytes(size))
    with pytest.raises(LguestError, match=f"has {size} bytes, not a whole number of 512-byte sectors"):
        Block(tmp_path / "odd")


def test_the_cure_for_half_a_sector_is_a_cure(tmp_path: Path) -> None:
    (tmp_path / "odd").write_bytes(bytes(1000))
    assert os.system(f"truncate -s %512 {tmp_path / 'odd'}") == 0
    disk = Block(tmp_path / "odd")
    assert disk.describe() == "virtblock 2 sectors"
    disk.close()


def test_a_file_without_an_end_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(LguestError, match="has no end to seek to"):
        Block(tmp_path / "pipe")


def test_a_refused_file_is_not_left_open(tmp_path: Path) -> None:
    (tmp_path / "odd").write_bytes(bytes(1000))
    before = os.listdir("/proc/self/fd")
    with pytest.raises(LguestError):
        Block(tmp_path / "odd")
    assert os.listdir("/proc/self/fd") == before


def test_closing_twice_closes_once(lab: Lab) -> None:
    lab.disk.close()
    lab.disk.close()
    assert lab.disk.fd == -1


# Reading and writing


def test_a_read_gives_the_sectors_and_counts_data_and_status(lab: Lab) -> None:
    assert lab.read(3, 2 * SECTOR) == (S_OK, 2 * SECTOR + 1, CONTENT[3 * SECTOR : 5 * SECTOR])


def test_a_write_lands_in_its_sectors_alone_and_counts_one_byte(lab: Lab) -> None:
    data = b"w" * 2 * SECTOR
    assert lab.write(3, data) == (S_OK, 1)
    assert lab.content() == CONTENT[: 3 * SECTOR] + data + CONTENT[5 * SECTOR :]


def test_the_last_sector_is_usable(lab: Lab) -> None:
    assert lab.write(SECTORS - 1, b"z" * SECTOR) == (S_OK, 1)
    assert lab.read(SECTORS - 1, SECTOR) == (S_OK, SECTOR + 1, b"z" * SECTOR)


def test_the_whole_disk_can_be_one_request(lab: Lab) -> None:
    assert lab.read(0, SIZE) == (S_OK, SIZE + 1, CONTENT)


def test_254_segments_of_data_are_one_request(lab: Lab) -> None:
    used, answer = lab.send([HEADER.pack(0, 0, 0)], [32] * 253 + [SIZE - 32 * 253, 1])
    assert (used.length, answer) == (SIZE + 1, CONTENT + b"\0")


def test_no_data_at_all_is_no_error(lab: Lab) -> None:
    assert lab.read(0, 0)[:2] == (S_OK, 1)
    assert lab.write(0, b"") == (S_OK, 1)
    assert lab.content() == CONTENT


def test_ioprio_is_ignored(lab: Lab) -> None:
    _, answer = lab.send([HEADER.pack(0, 0xFFFFFFFF, 2)], [SECTOR, 1])
    assert answer == CONTENT[2 * SECTOR : 3 * SECTOR] + b"\0"


def test_data_is_moved_without_a_copy_in_python(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[memoryview] = []
    pwritev, preadv = os.pwritev, os.preadv
    monkeypatch.setattr(os, "pwritev", lambda fd, views, at: moved.extend(views) or pwritev(fd, views, at))
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: moved.extend(views) or preadv(fd, views, at))
    lab.write(0, b"w" * SECTOR)
    lab.read(0, SECTOR)
    assert [view.obj is lab.vq.memory.map for view in moved] == [True, True]
    moved.clear()


def test_the_host_hears_of_every_byte_which_was_written(lab: Lab) -> None:
    lab.read(0, SECTOR)
    lengths = [length for _, length in lab.announced]
    assert lengths == [SECTOR, 1]


# Framing


def test_a_header_may_come_in_pieces(lab: Lab) -> None:
    header = HEADER.pack(T_OUT, 0, 1)
    used, answer = lab.send([header[:4], header[4:5], header[5:] + b"a" * 100, b"a" * 412], [1])
    assert (used.length, answer) == (1, b"\0")
    assert lab.content()[SECTOR : 2 * SECTOR] == b"a" * SECTOR


def test_the_status_is_the_last_writable_byte_wherever_it_is_cut(lab: Lab) -> None:
    for into in ([SECTOR + 1], [SECTOR, 1], [100, 412, 1], [100, 413]):
        used, answer = lab.send([HEADER.pack(0, 0, 1)], into)
        assert (used.length, answer) == (SECTOR + 1, CONTENT[SECTOR : 2 * SECTOR] + b"\0")


def test_an_indirect_chain_is_a_request_too(lab: Lab) -> None:
    lab.driver.add(out=[HEADER.pack(0, 0, 5)], into=[SECTOR, 1], indirect=True)
    lab.disk.blk_request(lab.vq)
    assert lab.driver.used()[0].data == CONTENT[5 * SECTOR : 6 * SECTOR] + b"\0"


@pytest.mark.parametrize(
    "out, into",
    [([HEADER.pack(0, 0, 0)], []), ([], [SECTOR, 1]), ([bytes(15)], [1]), ([bytes(15)], [SECTOR, 1])],
    ids=["no status", "no header", "half a header", "half a header of a read"],
)
def test_what_is_no_request_comes_back_with_length_0(
    lab: Lab, caplog: pytest.LogCaptureFixture, out: list[bytes], into: list[int]
) -> None:
    used, answer = lab.send(out, into)
    assert used.length == 0
    assert set(answer) <= {UNTOUCHED}
    head, text = 0, caplog.messages[0]
    assert text.startswith(f"Bad virtblk cmd {head} out={len(out)} in={len(into)}")
    assert lab.read(0, SECTOR)[0] == S_OK


# Types


@pytest.mark.parametrize("kind", [T_SCSI_CMD, T_SCSI_CMD | T_OUT, T_SCSI_CMD | T_BARRIER])
def test_scsi_is_unsupported_whatever_else_is_asked(lab: Lab, caplog: pytest.LogCaptureFixture, kind: int) -> None:
    assert lab.write(0, b"s" * SECTOR, kind) == (S_UNSUPP, 1)
    assert lab.content() == CONTENT
    assert caplog.messages == ["Scsi commands unsupported"]


@pytest.mark.parametrize("kind", [4, 8, 11, 13, T_OUT | 4, 0x40000000, 0x7FFFFFFC])
def test_a_type_bit_nobody_offered_is_unsupported(lab: Lab, kind: int) -> None:
    assert lab.write(0, b"s" * SECTOR, kind) == (S_UNSUPP, 1)
    assert lab.read(0, SECTOR, kind)[:2] == (S_UNSUPP, 1)
    assert lab.content() == CONTENT


def syncs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    "What reaches the file, in order."
    calls: list[str] = []
    pwritev, preadv = os.pwritev, os.preadv
    monkeypatch.setattr(os, "fdatasync", lambda fd: calls.append("sync"))
    monkeypatch.setattr(os, "pwritev", lambda *a: calls.append("write") or pwritev(*a))
    monkeypatch.setattr(os, "preadv", lambda *a: calls.append("read") or preadv(*a))
    return calls


def test_a_barrier_syncs_before_and_after(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = syncs(monkeypatch)
    assert lab.write(0, b"b" * SECTOR, T_OUT | T_BARRIER) == (S_OK, 1)
    assert lab.read(0, SECTOR, T_BARRIER)[0] == S_OK
    assert calls == ["sync", "write", "sync", "sync", "read", "sync"]


def test_an_ordinary_write_does_not_sync(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = syncs(monkeypatch)
    lab.write(0, b"b" * SECTOR)
    assert calls == ["write"]


def test_a_modern_driver_has_no_barriers(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = syncs(monkeypatch)
    lab.disk.accepted = F_VERSION_1
    assert lab.write(0, b"b" * SECTOR, T_OUT | T_BARRIER) == (S_UNSUPP, 1)
    assert lab.write(0, b"b" * SECTOR) == (S_OK, 1)
    assert calls == ["write"]


# Limits


@pytest.mark.parametrize("how", [{}, {"read_only": True}, {"snapshot": True}], ids=["rw", "ro", "snapshot"])
def test_reading_nothing_at_the_very_end_is_no_error(tmp_path: Path, how: dict[str, bool]) -> None:
    with laboratory(tmp_path / "disk.img", **how) as lab:
        assert lab.read(SIZE // SECTOR, 0) == (S_OK, 1, b"")


@pytest.mark.parametrize("sector", [SECTORS, SECTORS + 1, 1 << 55, 1 << 63, (1 << 64) - 1])
@pytest.mark.parametrize("kind", [0, T_OUT])
def test_nothing_is_beyond_the_end(lab: Lab, sector: int, kind: int) -> None:
    if kind:
        assert lab.write(sector, b"x" * SECTOR) == (S_IOERR, 1)
    else:
        assert lab.read(sector, SECTOR) == (S_IOERR, 1, bytes([UNTOUCHED]) * SECTOR)
    assert lab.content() == CONTENT


def test_a_write_past_the_end_lands_nowhere(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    assert lab.write(SECTORS - 1, b"x" * 2 * SECTOR) == (S_IOERR, 1)
    assert lab.content() == CONTENT
    assert caplog.messages == [f"Write past end {SIZE - SECTOR}+{2 * SECTOR}: the disk has {SIZE} bytes"]


def test_a_read_past_the_end_is_refused_whole(lab: Lab) -> None:
    status, length, data = lab.read(SECTORS - 1, 2 * SECTOR)
    assert (status, length, set(data)) == (S_IOERR, 1, {UNTOUCHED})


def test_a_file_grown_meanwhile_is_no_larger_disk(lab: Lab) -> None:
    os.truncate(lab.path, 2 * SIZE)
    assert lab.read(SECTORS, SECTOR)[0] == S_IOERR


@pytest.mark.parametrize("length", [1, 100, 511, 513])
def test_data_is_whole_sectors(lab: Lab, length: int) -> None:
    assert lab.write(0, b"x" * length) == (S_IOERR, 1)
    assert lab.read(0, length)[:2] == (S_IOERR, 1)
    assert lab.content() == CONTENT


def test_data_on_the_wrong_side_is_an_error_and_does_not_move(lab: Lab) -> None:
    used, answer = lab.send([HEADER.pack(0, 0, 0), b"r" * SECTOR], [SECTOR, 1])
    assert (used.length, answer) == (1, bytes([UNTOUCHED]) * SECTOR + bytes([S_IOERR]))
    used, answer = lab.send([HEADER.pack(T_OUT, 0, 0), b"w" * SECTOR], [SECTOR, 1])
    assert (used.length, answer) == (1, bytes([UNTOUCHED]) * SECTOR + bytes([S_IOERR]))
    assert lab.content() == CONTENT


# A file which does not play along


def test_a_read_from_a_file_cut_short_is_no_success(lab: Lab) -> None:
    os.truncate(lab.path, 3 * SECTOR + 100)
    status, length, _ = lab.read(3, SECTOR)
    assert (status, length) == (S_IOERR, 1)
    assert lab.read(2, SECTOR)[0] == S_OK


def test_short_reads_and_writes_are_continued(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    preadv, pwritev, calls = os.preadv, os.pwritev, []

    def short(call: Callable[..., int]) -> Callable[..., int]:
        def seven(fd: int, views: list[memoryview], offset: int) -> int:
            calls.append(offset)
            return call(fd, first_bytes(views, 7), offset)

        return seven

    monkeypatch.setattr(os, "preadv", short(preadv))
    monkeypatch.setattr(os, "pwritev", short(pwritev))
    used, answer = lab.send([HEADER.pack(0, 0, 1)], [10, 502, 1])
    assert answer == CONTENT[SECTOR : 2 * SECTOR] + b"\0"
    assert lab.write(4, bytes(reversed(CONTENT[:SECTOR]))) == (S_OK, 1)
    assert lab.content()[4 * SECTOR : 5 * SECTOR] == CONTENT[:SECTOR][::-1]
    assert calls == [at + 7 * i for at in (SECTOR, 4 * SECTOR) for i in range(74)]


def test_a_write_which_lands_in_part_is_no_success(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    pwritev, takes = os.pwritev, [100, 0]
    monkeypatch.setattr(os, "pwritev", lambda fd, views, at: pwritev(fd, first_bytes(views, takes.pop(0)), at))
    assert lab.write(0, b"w" * SECTOR) == (S_IOERR, 1)
    assert takes == []


def test_no_call_has_more_buffers_than_linux_takes(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(i % 251 for i in range(3000)))
    segments = [(0x40000 + 2 * i, 1) for i in range(2500)]
    with open(tmp_path / "file", "rb") as file:
        assert transfer(os.preadv, file.fileno(), lab.vq, segments, 2500, 100) == 2500 > 2 * IOV_MAX
    assert lab.vq.memory.read(0x40000, 5000)[::2] == (tmp_path / "file").read_bytes()[100:2600]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EFBIG, errno.EDQUOT])
def test_a_host_error_fails_that_request_alone(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(os, "pwritev", failing(number))
        broken.setattr(os, "preadv", failing(number))
        assert lab.write(2, b"w" * SECTOR) == (S_IOERR, 1)
        assert lab.read(2, SECTOR)[:2] == (S_IOERR, 1)
    assert lab.write(2, b"w" * SECTOR) == (S_OK, 1)
    assert caplog.messages == [f"The disk {lab.path} failed at sector 2: {os.strerror(number)}"]


def test_a_barrier_which_cannot_be_synced_is_an_error(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fdatasync", failing(errno.EIO))
    assert lab.write(0, b"w" * SECTOR, T_OUT | T_BARRIER) == (S_IOERR, 1)
    assert lab.content() == CONTENT


def test_a_file_which_may_not_grow_is_an_io_error(lab: Lab) -> None:
    "A real refusal by the kernel: the limit on the size of files is below the sector."
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4 * SECTOR, hard))
        refused = lab.write(5, b"w" * SECTOR)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert refused == (S_IOERR, 1)
    assert lab.write(5, b"w" * SECTOR) == (S_OK, 1)


def test_the_host_hears_of_what_a_failed_read_left_behind(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    preadv, turns = os.preadv, [1]

    def once(*arguments: Any) -> int:
        if not turns:
            raise OSError(errno.EIO, "worn out")
        turns.pop()
        return preadv(arguments[0], first_bytes(arguments[1], 100), arguments[2])

    monkeypatch.setattr(os, "preadv", once)
    status, length, data = lab.read(0, SECTOR)
    assert (status, length, data[:100]) == (S_IOERR, 1, CONTENT[:100])
    assert [length for _, length in lab.announced][:2] == [SECTOR, 1]


def test_each_kind_of_complaint_is_made_once(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    for sector in range(100):
        lab.write(SECTORS + sector, b"x" * SECTOR)
        lab.write(0, b"", T_SCSI_CMD)
        lab.send([b"?"], [1])
    assert len(caplog.messages) == 3


def test_verbose_reads_and_writes_are_logged_by_sector(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    lab.write(3, b"w" * SECTOR)
    assert caplog.messages == []
    with caplog.at_level(logging.INFO, "lguest_nb"):
        lab.disk.started()
        lab.write(3, b"w" * SECTOR)
        lab.read(2, 2 * SECTOR)
    assert caplog.messages == ["WRITE to sector 3: 512", "READ from sector 2: 1024"]


# The ring


def test_the_header_is_read_once(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    "A Guest which changes the header while we work changes nothing."
    lab.driver.add(out=[HEADER.pack(T_OUT, 0, 1), b"w" * SECTOR], into=[1])
    pwritev = os.pwritev

    def scribble(*arguments: Any) -> int:
        lab.vq.memory.write(lab.driver.buffers, HEADER.pack(T_SCSI_CMD, 0, 9))
        return pwritev(*arguments)

    monkeypatch.setattr(os, "pwritev", scribble)
    lab.disk.blk_request(lab.vq)
    assert lab.driver.used()[0].data == bytes([S_OK])
    assert lab.content()[SECTOR : 2 * SECTOR] == b"w" * SECTOR


def test_requests_are_interrupted_for_when_the_ring_runs_empty(lab: Lab) -> None:
    interrupts: list[int] = []
    lab.vq.interrupt = lambda: interrupts.append(len(lab.driver.used()))
    for sector in range(8):
        lab.driver.add(out=[HEADER.pack(0, 0, sector)], into=[SECTOR, 1])
    for _ in range(8):
        lab.disk.blk_request(lab.vq)
    assert interrupts == []
    lab.vq.wakeup.stop()
    with pytest.raises(Stopped):
        lab.disk.blk_request(lab.vq)
    lab.vq.trigger()
    assert interrupts == [8]


def test_a_stop_in_the_middle_of_a_huge_request_is_obeyed(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    preadv, calls = os.preadv, []

    def byte_by_byte(fd: int, views: list[memoryview], offset: int) -> int:
        calls.append(offset)
        if len(calls) == 3:
            lab.vq.wakeup.stop()
        return preadv(fd, first_bytes(views, 1), offset)

    monkeypatch.setattr(os, "preadv", byte_by_byte)
    lab.driver.add(out=[HEADER.pack(0, 0, 0)], into=[SECTOR, 1])
    with pytest.raises(Stopped):
        lab.disk.blk_request(lab.vq)
    assert len(calls) == 3
    assert lab.driver.used() == []


def test_a_thread_serves_a_burst(lab: Lab) -> None:
    def serve_for_ever() -> None:
        try:
            while True:
                lab.disk.blk_request(lab.vq)
        except Stopped:
            pass

    thread = threading.Thread(target=serve_for_ever, daemon=True)
    thread.start()
    for sector in range(SECTORS):
        lab.driver.add(out=[HEADER.pack(0, 0, sector)], into=[SECTOR, 1])
        lab.driver.kick()
    answers = b"".join(used.data[:-1] for used in lab.driver.wait_used(SECTORS))
    lab.vq.wakeup.stop()
    thread.join()
    assert answers == CONTENT


# The knife


@given(st.lists(st.tuples(st.integers(0, 1 << 33), st.integers(1, 9)), max_size=9), st.integers(0, 90))
def test_split_loses_nothing_and_leaves_nothing_empty(segments: list[Segment], count: int) -> None:
    first, rest = split(segments, count)
    assert [at + i for at, n in first + rest for i in range(n)] == [at + i for at, n in segments for i in range(n)]
    assert total(first) == min(count, total(segments))
    assert all(length for _, length in first + rest)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1 << 33), st.booleans()), min_size=1, max_size=6))
def test_no_chain_changes_the_size_of_the_disk(
    tmp_path_factory: pytest.TempPathFactory, chain: list[tuple[int, int, bool]]
) -> None:
    "Any type, any sector, any shape: the head comes back, and the file keeps its length."
    path = tmp_path_factory.mktemp("disk") / "disk.img"
    path.write_bytes(CONTENT)
    memory, disk = GuestMemory(1 << 16), Block(path)
    vq = Virtqueue(memory, 8, "block:0")
    vq.place(ring_at(memory.take_pages(2), 8))
    driver = Driver(vq, 0x1000, 0x1000)
    order = sorted(chain, key=lambda part: part[2])
    for i, (kind, number, writable) in enumerate(order):
        length = (16, 512, 1, number % 1500)[kind]
        memory.write(0x1000 * (i + 1), HEADER.pack(number & 3, 0, number % 20))
        flags = (DESC_WRITE if writable else 0) | (DESC_NEXT if i + 1 < len(order) else 0)
        DESC.pack_into(memory.map, vq.ring.desc + 16 * i, 0x1000 * (i + 1), length, flags, i + 1)
    driver.make_available(0)
    disk.blk_request(vq)
    assert memory.u16[vq.used + 1] == 1
    assert path.stat().st_size == SIZE
    disk.close()
    vq.wakeup.close()
    memory.close()
