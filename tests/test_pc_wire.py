"""The serial cable: every byte in order, a slow reader waits for nobody, and both threads can always be stopped."""

import os
import threading
from collections.abc import Iterator

import pytest
from support import PATIENCE

from lguest_nb.memory import LguestError
from lguest_nb.pc.uart import BACKLOG, DATA_READY, LSR, RBR, THR_EMPTY, Uart, nothing
from lguest_nb.pc.wire import Wire, keys_for_uart

pytestmark = pytest.mark.usefixtures("nothing_left")
COM1 = 0x3F8


class Desk:
    "A chip, a cable, a pipe for the keys and one for the screen."

    def __init__(self) -> None:
        self.keyboard, self.keys = os.pipe()
        self.screen, self.shown = os.pipe()
        self.uart = Uart(COM1, nothing)
        self.failures: list[BaseException] = []
        self.failed = threading.Event()
        self.wire = Wire(self.uart, self.keyboard, self.shown, self.fail)
        self.wire.start()

    def fail(self, error: BaseException) -> None:
        self.failures.append(error)
        self.failed.set()

    def print(self, data: bytes) -> None:
        for byte in data:
            self.uart.write_port(COM1 + RBR, byte)

    def read(self, count: int) -> bytes:
        data = b""
        while len(data) < count and (more := os.read(self.screen, count - len(data))):
            data += more
        return data

    def typed(self, count: int) -> bytes:
        "What the Guest reads; each byte is waited for."
        data, came = bytearray(), threading.Event()
        while len(data) < count:
            if self.uart.read_port(COM1 + LSR) & DATA_READY:
                data.append(self.uart.read_port(COM1 + RBR))
            else:
                came.wait(0.001)
        return bytes(data)

    def close(self) -> None:
        self.wire.close()
        for fd in (self.keyboard, self.keys, self.screen, self.shown):
            if fd >= 0:
                os.close(fd)


@pytest.fixture
def desk() -> Iterator[Desk]:
    desk = Desk()
    yield desk
    desk.close()


def test_what_the_guest_prints_comes_out_in_order(desk: Desk) -> None:
    text = bytes(range(256)) * 20
    desk.print(text)
    assert desk.read(len(text)) == text


def test_a_file_which_is_typed_arrives_whole_through_a_fifo_of_sixteen(desk: Desk) -> None:
    text = bytes(range(256)) * 4
    os.write(desk.keys, text)
    assert desk.typed(len(text)) == text


def test_the_end_of_the_keys_is_no_failure(desk: Desk) -> None:
    os.close(desk.keys)
    desk.keys = -1
    desk.wire._typist.join(PATIENCE)
    assert not desk.wire._typist.is_alive()
    desk.print(b"still here")
    assert desk.read(10) == b"still here"
    assert not desk.failures


def test_a_reader_who_does_not_read_never_blocks_the_cpu_thread(desk: Desk) -> None:
    "Nobody reads the pipe: the queue fills up, the port is not ready, and printing still returns."
    count = 0
    while desk.uart.read_port(COM1 + LSR) & THR_EMPTY and count < 4 * BACKLOG:
        desk.print(b".")
        count += 1
    assert BACKLOG <= count < 4 * BACKLOG
    desk.wire.stop()


def test_finish_waits_for_a_slow_reader_and_loses_nothing(desk: Desk) -> None:
    text = bytes(range(251)) * 600
    desk.print(text)
    waiter = threading.Thread(target=desk.wire.finish)
    waiter.start()
    assert desk.read(len(text)) == text
    waiter.join(PATIENCE)
    assert not waiter.is_alive()


def test_what_is_sent_between_the_last_look_and_the_end_is_written(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    take, waiter, looked = desk.uart.take, threading.Thread(target=desk.wire.finish), threading.Event()

    def last_look() -> bytes:
        data = take()
        if not data and not looked.is_set():
            desk.print(b"Power down\n")
            waiter.start()
            while not desk.wire._finishing:
                waiter.join(0.001)
            looked.set()
        return data

    monkeypatch.setattr(desk.uart, "take", last_look)
    desk.print(b"$")
    assert looked.wait(PATIENCE)
    waiter.join(PATIENCE)
    assert not waiter.is_alive()
    os.close(desk.shown)
    desk.shown = -1
    assert desk.read(99) == b"$Power down\n"


def test_stop_ends_a_finish_which_waits_for_nobody(desk: Desk) -> None:
    desk.print(bytes(BACKLOG * 3))
    waiter = threading.Thread(target=desk.wire.finish)
    waiter.start()
    desk.wire.stop()
    waiter.join(PATIENCE)
    assert not waiter.is_alive()


def test_a_stop_while_the_fifo_is_full_ends_the_typist(desk: Desk) -> None:
    os.write(desk.keys, bytes(100))
    desk.typed(1)
    desk.wire.stop()
    assert not desk.wire._typist.is_alive()


def test_a_screen_which_is_gone_is_told_once_and_finish_still_returns(desk: Desk) -> None:
    os.close(desk.screen)
    desk.screen = -1
    desk.print(b"anybody?")
    assert desk.failed.wait(PATIENCE)
    desk.wire.finish()
    assert [type(error) for error in desk.failures] == [LguestError]
    assert "Write to stdout failed: Broken pipe." in str(desk.failures[0])


@pytest.mark.parametrize(
    "line, uart",
    [
        ("", False),
        ("quiet panic=-1", False),
        ("console=hvc0", False),
        ("console=ttyS0", True),
        ("console=ttyS0,115200n8 quiet", True),
        ("console=hvc0 console=ttyS0", True),
        ("console=ttyS0 console=hvc0", False),
        ("console=ttyS1", False),
        ("earlyprintk=serial,ttyS0 console=hvc0", False),
        ("console=hvc0 -- console=ttyS0", False),
    ],
)
def test_the_last_console_gets_the_keys(line: str, uart: bool) -> None:
    assert keys_for_uart(line) is uart
