"""Randomness: the whole buffer is filled, in bounded pieces, from a source which may be slow or broken."""

import errno
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support import serving

from lguest_nb.device import VIRTIO_ID_RNG
from lguest_nb.driver import Driver, Used
from lguest_nb.memory import GuestError, GuestMemory, LguestError
from lguest_nb.rng import PIECE, Rng
from lguest_nb.vring import DESC, DESC_NEXT, DESC_WRITE, Virtqueue, ring_at
from lguest_nb.wakeup import Stopped


@dataclass
class Lab:
    "A queue and its driver; the device is made by each test."

    memory: GuestMemory
    vq: Virtqueue
    driver: Driver

    def ask(self, rng: Rng, *lengths: int) -> Used:
        self.driver.add(into=lengths)
        rng.rng_input(self.vq)
        (used,) = self.driver.used()
        return used

    def serving(self, rng: Rng) -> threading.Thread:
        "A thread which serves the queue until it is stopped."
        return serving(self.vq, rng.rng_input)


@pytest.fixture
def lab() -> Iterator[Lab]:
    memory = GuestMemory(1 << 20)
    vq = Virtqueue(memory, 256, "rng:0")
    vq.place(ring_at(memory.take_pages(3), 256))
    yield Lab(memory, vq, Driver(vq, 0x10000, 0xF0000))
    vq.wakeup.close()
    memory.close()


@pytest.fixture
def source(tmp_path: Path) -> Iterator[tuple[Rng, int]]:
    "A device whose source is a pipe, and the pipe's other end."
    os.mkfifo(tmp_path / "pipe")
    rng = Rng(tmp_path / "pipe")
    end = os.open(tmp_path / "pipe", os.O_WRONLY)
    yield rng, end
    rng.close()
    os.close(end)


def opened_for_reading(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    opened: list[tuple[Any, ...]] = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda *a: opened.append(a) or real(*a))
    return opened


def test_it_is_virtio_device_4_with_one_queue_and_nothing_to_configure() -> None:
    rng = Rng()
    assert (rng.name, rng.virtio_id, rng.features, rng.config) == ("rng", VIRTIO_ID_RNG, 0, b"")
    assert VIRTIO_ID_RNG == 4
    assert rng.services == [rng.rng_input]
    assert rng.describe() == "rng"
    rng.close()


def test_its_source_is_dev_random_never_blocking_and_never_written(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = opened_for_reading(monkeypatch)
    Rng().close()
    assert opened == [("/dev/random", os.O_RDONLY | os.O_NONBLOCK)]


def test_a_source_which_cannot_be_opened_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(LguestError, match="Failed to open .*/nothing: No such file or directory."):
        Rng(tmp_path / "nothing")


def test_closing_twice_closes_once() -> None:
    rng = Rng()
    rng.close()
    rng.close()
    assert rng.fd == -1


def test_the_whole_chain_is_filled_and_counted(lab: Lab) -> None:
    rng = Rng()
    used = lab.ask(rng, 16, 1, 100000)
    assert used.length == 16 + 1 + 100000
    assert bytes(64) not in used.data
    rng.close()


def test_two_answers_differ(lab: Lab) -> None:
    rng = Rng()
    assert lab.ask(rng, 32).data != lab.ask(rng, 32).data
    rng.close()


def test_short_reads_are_continued_over_all_buffers(lab: Lab, tmp_path: Path) -> None:
    content = bytes(i % 251 for i in range(1000))
    (tmp_path / "file").write_bytes(content)
    rng = Rng(tmp_path / "file")
    readv = os.readv
    with pytest.MonkeyPatch.context() as slow:
        slow.setattr(os, "readv", lambda fd, views: readv(fd, [views[0][:7]]))
        assert lab.ask(rng, 10, 500, 490).data == content
    rng.close()


def test_no_more_is_read_than_was_asked_for(lab: Lab, source: tuple[Rng, int]) -> None:
    rng, end = source
    os.write(end, b"0123456789")
    assert lab.ask(rng, 4).data == b"0123"
    assert os.read(rng.fd, 100) == b"456789"


def test_a_chain_of_no_bytes_comes_back_with_none(lab: Lab) -> None:
    rng = Rng()
    assert lab.ask(rng, 0) == Used(0, 0, b"")
    rng.close()


def test_bytes_land_in_the_guests_memory_without_a_copy(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    views: list[memoryview] = []
    readv = os.readv
    monkeypatch.setattr(os, "readv", lambda fd, given: views.extend(given) or readv(fd, given))
    rng = Rng()
    lab.ask(rng, 32)
    assert [view.obj is lab.memory.map for view in views] == [True]
    views.clear()
    rng.close()


def test_the_host_hears_of_every_byte(lab: Lab) -> None:
    announced: list[tuple[int, int]] = []
    lab.vq.wrote = announced.extend
    rng = Rng()
    lab.ask(rng, 32, 64)
    assert [length for _, length in announced] == [32, 64]
    rng.close()


def test_no_interrupt_before_the_ring_runs_empty(lab: Lab) -> None:
    rng = Rng()
    for _ in range(3):
        lab.ask(rng, 16)
    assert not lab.driver.interrupts.acquire(blocking=False)
    thread = lab.serving(rng)
    assert lab.driver.interrupts.acquire(timeout=10)
    lab.vq.wakeup.stop()
    thread.join()
    rng.close()


def test_something_to_read_is_the_guests_fault(lab: Lab) -> None:
    rng = Rng()
    lab.driver.add(out=[b"take this"], into=[16])
    with pytest.raises(GuestError, match=r"rng:0: Output buffers in rng\?"):
        rng.rng_input(lab.vq)
    rng.close()


def test_the_end_of_the_source_is_a_sentence(lab: Lab) -> None:
    rng = Rng("/dev/null")
    lab.driver.add(into=[16])
    with pytest.raises(LguestError, match="Read from /dev/null gave 0 bytes"):
        rng.rng_input(lab.vq)
    rng.close()


def test_a_broken_source_is_not_the_guests_fault(lab: Lab) -> None:
    rng = Rng("/dev/null")
    lab.driver.add(into=[16])
    try:
        rng.rng_input(lab.vq)
    except LguestError as e:
        assert not isinstance(e, GuestError)
    rng.close()


def test_an_error_of_the_source_is_a_sentence(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "readv", fail)
    rng = Rng()
    lab.driver.add(into=[16])
    with pytest.raises(LguestError, match="Read from /dev/random gave an error: Input/output error."):
        rng.rng_input(lab.vq)
    rng.close()


def test_a_source_which_somebody_else_emptied_is_waited_for_again(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    readv, thefts = os.readv, [1, 1, 1]

    def sometimes(*arguments: Any) -> int:
        if thefts:
            thefts.pop()
            raise BlockingIOError(errno.EAGAIN, "stolen")
        return readv(*arguments)

    monkeypatch.setattr(os, "readv", sometimes)
    rng = Rng()
    assert lab.ask(rng, 16).length == 16
    rng.close()


def test_no_read_is_longer_than_a_piece_and_each_is_waited_for(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int | str] = []
    readv, sleep_on = os.readv, lab.vq.wakeup.sleep_on
    monkeypatch.setattr(os, "readv", lambda fd, views: steps.append(len(views[0])) or readv(fd, views))
    monkeypatch.setattr(lab.vq.wakeup, "sleep_on", lambda fd: steps.append("poll") or sleep_on(fd))
    rng = Rng()
    lab.ask(rng, 2 * PIECE + 5)
    assert sum(step for step in steps if isinstance(step, int)) == 2 * PIECE + 5
    assert max(step for step in steps if isinstance(step, int)) == PIECE == 65536
    assert steps[::2] == ["poll"] * (len(steps) // 2)
    rng.close()


def test_a_stop_wakes_a_thread_which_waits_for_entropy(lab: Lab, source: tuple[Rng, int]) -> None:
    rng, end = source
    lab.driver.add(into=[16])
    os.write(end, b"half a w")
    thread = lab.serving(rng)
    while lab.memory.read(lab.driver.buffers, 8) != b"half a w":
        pass
    lab.vq.wakeup.stop()
    thread.join(10)
    assert not thread.is_alive()
    assert lab.driver.used() == []


def test_a_stop_ends_a_request_for_4_gib(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = GuestMemory(32 << 20)
    vq = Virtqueue(memory, 256, "rng:0")
    vq.place(ring_at(memory.take_pages(3), 256))
    driver = Driver(vq, 0x1000, 0x1000)
    for i in range(256):
        flags, after = (DESC_WRITE | DESC_NEXT, i + 1) if i < 255 else (DESC_WRITE, 0)
        DESC.pack_into(memory.map, vq.ring.desc + 16 * i, 16 << 20, 16 << 20, flags, after)
    reads: list[int] = []
    readv = os.readv

    def third_time(fd: int, views: list[memoryview]) -> int:
        reads.append(len(views[0]))
        if len(reads) == 3:
            vq.wakeup.stop()
        return readv(fd, views)

    monkeypatch.setattr(os, "readv", third_time)
    rng = Rng()
    driver.make_available(0)
    with pytest.raises(Stopped):
        rng.rng_input(vq)
    assert len(reads) == 3
    assert driver.used() == []
    rng.close()
    vq.wakeup.close()
    memory.close()
