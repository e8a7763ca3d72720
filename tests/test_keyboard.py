"""Three ^C get you out whatever the Guest is doing, and everything else which is typed reaches it."""

import errno
import fcntl
import os
import pty
import threading
import tty
from collections.abc import Iterator

import pytest
from support import PATIENCE, lguest_threads

from lguest_nb import keyboard as keyboard_module
from lguest_nb.keyboard import AbortCounter, Keyboard

pytestmark = pytest.mark.usefixtures("nothing_left")


class Clock:
    "Seconds which pass when the test says so."

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class TestCounter:
    @pytest.fixture
    def clock(self) -> Clock:
        return Clock()

    @pytest.fixture
    def counter(self, clock: Clock) -> AbortCounter:
        return AbortCounter(clock)

    def test_the_third_in_a_row_aborts(self, counter: AbortCounter) -> None:
        assert [counter.feed(b"\x03") for _ in range(3)] == [False, False, True]

    def test_two_or_four_are_not_three_twice(self, counter: AbortCounter) -> None:
        assert [counter.feed(b"\x03") for _ in range(5)] == [False, False, True, False, False]

    @pytest.mark.parametrize("other", [b"x", b"\r", b"\x04", b"\x00", b"\x83"])
    def test_any_other_key_starts_anew(self, counter: AbortCounter, other: bytes) -> None:
        typed = [b"\x03", b"\x03", other, b"\x03", b"\x03"]
        assert [counter.feed(data) for data in typed] == [False] * 5
        assert counter.feed(b"\x03")

    def test_each_byte_counts_however_they_were_read(self, counter: AbortCounter) -> None:
        assert counter.feed(b"\x03\x03\x03")
        assert not counter.feed(b"\x03\x03")
        assert counter.feed(b"\x03rest")
        assert counter.feed(b"before\x03\x03\x03")

    @pytest.mark.parametrize(
        ("first", "third", "aborts"),
        [
            (100.0, 100.0, True),
            (100.0, 101.9, True),  # the second which follows is whole
            (100.9, 101.0, True),
            (100.9, 102.0, False),
            (100.0, 102.0, False),
            (100.0, 99.0, True),  # a clock put back
        ],
    )
    def test_the_third_comes_in_the_second_of_the_first_or_the_next(
        self, counter: AbortCounter, clock: Clock, first: float, third: float, aborts: bool
    ) -> None:
        clock.now = first
        counter.feed(b"\x03")
        clock.now = third
        counter.feed(b"\x03")
        assert counter.feed(b"\x03") == aborts

    def test_three_which_were_too_slow_are_forgotten(self, counter: AbortCounter, clock: Clock) -> None:
        counter.feed(b"\x03\x03")
        clock.now += 2
        assert not counter.feed(b"\x03")
        assert not counter.feed(b"\x03\x03")
        assert counter.feed(b"\x03")


class Fingers:
    "A keyboard on a pipe or a terminal, and who types."

    def __init__(self, terminal: bool) -> None:
        self.ours, self.source = pty.openpty() if terminal else reversed(os.pipe())
        if terminal:
            tty.setraw(self.source)
        self.aborts = threading.Semaphore(0)
        self.keyboard = Keyboard(self.source, self.aborts.release)

    def type(self, data: bytes) -> None:
        while data:
            data = data[os.write(self.ours, data) :]

    def read(self, count: int) -> bytes:
        "Exactly that many bytes, as the console would read them."
        got = b""
        while len(got) < count and (more := os.read(self.keyboard.typed, count - len(got))):
            got += more
        return got

    def leave(self) -> None:
        if self.ours >= 0:
            os.close(self.ours)
        self.ours = -1


def fingers(terminal: bool) -> Iterator[Fingers]:
    fingers = Fingers(terminal)
    yield fingers
    fingers.keyboard.close()
    fingers.leave()
    os.close(fingers.source)


@pytest.fixture
def pipe() -> Iterator[Fingers]:
    yield from fingers(terminal=False)


@pytest.fixture
def terminal() -> Iterator[Fingers]:
    yield from fingers(terminal=True)


def test_what_is_typed_is_passed_on(pipe: Fingers) -> None:
    pipe.keyboard.start()
    pipe.type(b"root\r")
    assert pipe.read(5) == b"root\r"


def test_three_control_c_abort_though_nobody_reads_them_and_reach_the_guest_too(terminal: Fingers) -> None:
    terminal.keyboard.start()
    terminal.type(b"\x03\x03\x03")
    assert terminal.aborts.acquire(timeout=PATIENCE)
    assert terminal.read(3) == b"\x03\x03\x03"


def test_it_reads_on_after_an_abort(pipe: Fingers) -> None:
    pipe.keyboard.start()
    for _ in range(2):
        pipe.type(b"\x03\x03\x03")
        assert pipe.aborts.acquire(timeout=PATIENCE)


def test_keys_into_a_hung_guest_are_dropped_and_control_c_still_counts(terminal: Fingers) -> None:
    fcntl.fcntl(terminal.keyboard._into, fcntl.F_SETPIPE_SZ, 4096)
    terminal.keyboard.start()
    for _ in range(5):
        terminal.type(b"." * 1000)
    terminal.type(b"\x03\x03\x03")
    assert terminal.aborts.acquire(timeout=PATIENCE)


def test_of_a_script_nothing_is_dropped(pipe: Fingers) -> None:
    fcntl.fcntl(pipe.keyboard._into, fcntl.F_SETPIPE_SZ, 4096)
    pipe.keyboard.start()
    script = bytes(range(4, 256)) * 100
    typist = threading.Thread(target=lambda: (pipe.type(script), pipe.leave()))
    typist.start()
    assert pipe.read(len(script)) == script
    assert pipe.read(1) == b""
    typist.join()


def test_the_end_of_the_input_is_the_end_of_the_pipe(pipe: Fingers) -> None:
    pipe.keyboard.start()
    pipe.type(b"bye")
    pipe.leave()
    assert pipe.read(99) == b"bye"


@pytest.mark.parametrize("number", [errno.EIO, errno.EBADF, errno.EISDIR])
def test_a_terminal_which_hung_up_is_an_end_too(pipe: Fingers, monkeypatch, number: int) -> None:
    read, source = os.read, pipe.source

    def refuse(fd: int, count: int) -> bytes:
        if fd == source:
            raise OSError(number, os.strerror(number))
        return read(fd, count)

    monkeypatch.setattr(keyboard_module.os, "read", refuse)
    pipe.keyboard.start()
    pipe.type(b"x")
    assert pipe.read(99) == b""


def test_a_key_which_somebody_else_took_is_waited_for_again(pipe: Fingers, monkeypatch) -> None:
    read, source, refusals = os.read, pipe.source, [1]

    def moody(fd: int, count: int) -> bytes:
        if fd == source and refusals:
            refusals.pop()
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return read(fd, count)

    monkeypatch.setattr(keyboard_module.os, "read", moody)
    pipe.keyboard.start()
    pipe.type(b"x")
    assert pipe.read(1) == b"x"


def test_control_c_counts_when_the_console_is_gone(pipe: Fingers) -> None:
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, pipe.keyboard.typed)
    os.close(null)
    pipe.keyboard.start()
    pipe.type(b"lost")
    pipe.type(b"\x03\x03\x03")
    assert pipe.aborts.acquire(timeout=PATIENCE)


def test_the_source_stays_as_blocking_as_it_was(pipe: Fingers) -> None:
    pipe.keyboard.start()
    assert os.get_blocking(pipe.source)


def test_closing_wakes_it_where_it_waits_for_a_key_or_for_room(pipe: Fingers) -> None:
    fcntl.fcntl(pipe.keyboard._into, fcntl.F_SETPIPE_SZ, 4096)
    pipe.keyboard.start()
    assert lguest_threads() == ["lguest keyboard"]
    pipe.type(bytes(20000))  # and nobody reads


def test_one_which_never_started_can_be_closed(terminal: Fingers) -> None:
    assert lguest_threads() == []
