"""The console: what is typed goes into queue 0, what the Guest prints comes out of queue 1, and nothing gets stuck."""

import errno
import os
import pty
import termios
import threading
from collections.abc import Callable, Iterator

import pytest
from support import PATIENCE, close

from lguest_nb import console as console_module
from lguest_nb.console import F_SIZE, Console, write_all
from lguest_nb.device import VIRTIO_ID_CONSOLE
from lguest_nb.driver import Driver
from lguest_nb.memory import GuestError, GuestMemory, LguestError
from lguest_nb.vring import Virtqueue, ring_at
from lguest_nb.wakeup import Stopped, Wakeup

pytestmark = pytest.mark.usefixtures("nothing_left")


class Desk:
    "A console between two pipes, with a driver for each of its queues."

    def __init__(self) -> None:
        self.keyboard, self.typed = os.pipe()
        self.screen, self.shown = os.pipe()
        self.memory = GuestMemory(1 << 20)
        self.console = Console(self.keyboard, self.shown)
        self.interrupts = [0, 0]
        (self.rx, self.receive), (self.tx, self.transmit) = self._queue(0), self._queue(1)

    def _queue(self, i: int) -> tuple[Virtqueue, Driver]:
        vq = Virtqueue(self.memory, 16, f"console:{i}")
        vq.place(ring_at(self.memory.take_pages(2), 16))
        driver = Driver(vq, 0x10000 + 0x40000 * i, 0x40000)

        def interrupt() -> None:
            self.interrupts[i] += 1
            driver.interrupts.release()

        vq.interrupt = interrupt
        return vq, driver

    def type(self, data: bytes) -> None:
        os.write(self.typed, data)

    def in_thread(self, service: Callable[[Virtqueue], None], vq: Virtqueue) -> "Watched":
        return Watched(service, vq)

    def close(self) -> None:
        for vq in (self.rx, self.tx):
            vq.wakeup.close()
        for fd in (self.keyboard, self.typed, self.screen, self.shown):
            if fd >= 0:
                os.close(fd)
        close(self.memory)


class Watched:
    "One call of a service function on a thread, and how it ended."

    def __init__(self, service: Callable[[Virtqueue], None], vq: Virtqueue) -> None:
        self.vq, self.service = vq, service
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, name="lguest test")
        self.thread.start()

    def _run(self) -> None:
        try:
            self.service(self.vq)
        except Exception as e:
            self.error = e.with_traceback(None)

    def join(self) -> BaseException | None:
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()
        return self.error

    def stop(self) -> BaseException | None:
        self.vq.wakeup.stop()
        return self.join()


@pytest.fixture
def desk() -> Iterator[Desk]:
    desk = Desk()
    yield desk
    desk.close()


def announced(monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> threading.Semaphore:
    "Released before each call of a function."
    called, call = threading.Semaphore(0), getattr(owner, name)

    def announce(*args: object) -> object:
        called.release()
        return call(*args)

    monkeypatch.setattr(owner, name, announce)
    return called


def test_it_is_virtio_device_3_with_nothing_to_configure() -> None:
    console = Console()
    assert (console.virtio_id, console.features, console.config) == (VIRTIO_ID_CONSOLE, 0, b"")
    assert console.services == [console.input, console.output]
    assert (console.input_fd, console.output_fd) == (0, 1)
    assert console.describe() == console.name == "console"


class TestSize:
    def test_it_is_offered_today_alone_and_unknown_at_first(self) -> None:
        console = Console()
        assert (console.modern_features, console.modern_config) == (F_SIZE, bytes(12))

    def test_a_driver_which_took_it_hears_of_each_new_size(self) -> None:
        console, news = Console(), []
        console.config_changed = lambda: news.append(console.modern_config)
        console.resize(80, 24)
        assert (console.modern_config, news) == (bytes.fromhex("50001800 00000000 00000000"), [])
        console.accepted = F_SIZE
        for size in ((80, 24), (132, 43), (132, 43), (1 << 20, 1 << 20)):
            console.resize(*size)
        assert news == [bytes.fromhex("84002b00") + bytes(8), b"\xff" * 4 + bytes(8)]

    def test_a_driver_which_took_it_hears_of_the_first_size_when_it_starts(self) -> None:
        "Linux reads the size when it changes, and not before."
        console, news = Console(), []
        console.config_changed = lambda: news.append(console.modern_config)
        console.accepted = F_SIZE
        console.started()
        assert news == []
        console.accepted = 0
        console.resize(80, 24)
        console.started()
        assert news == []
        console.accepted = F_SIZE
        console.started()
        assert news == [bytes.fromhex("50001800") + bytes(8)]

    def test_nobody_else_hears_of_it(self) -> None:
        console = Console()
        console.config_changed = lambda: pytest.fail("it was not asked for")
        console.resize(132, 43)

    def test_what_the_guest_writes_there_changes_nothing(self) -> None:
        console = Console()
        console.written(8, b"!\0\0\0")
        assert console.modern_config == bytes(12)


class TestInput:
    def test_what_is_typed_arrives_in_the_guests_buffer_with_an_interrupt_at_once(self, desk: Desk) -> None:
        desk.receive.add(into=[16])
        desk.type(b"ls\r")
        desk.console.input(desk.rx)
        assert desk.interrupts[0] == 1
        assert [used.data for used in desk.receive.used()] == [b"ls\r"]

    def test_each_piece_of_input_is_an_interrupt(self, desk: Desk) -> None:
        for _ in range(3):
            desk.receive.add(into=[1])
        desk.type(b"abc")
        for count in (1, 2, 3):
            desk.console.input(desk.rx)
            assert desk.interrupts[0] == count

    def test_a_chain_is_filled_buffer_by_buffer(self, desk: Desk) -> None:
        desk.receive.add(into=[2, 3, 10])
        desk.type(b"0123456")
        desk.console.input(desk.rx)
        (used,) = desk.receive.used()
        assert (used.length, used.data) == (7, b"0123456")

    def test_bytes_land_in_the_guests_memory_without_a_copy(self, desk: Desk, monkeypatch) -> None:
        desk.receive.add(into=[16])
        desk.type(b"key")
        readv, seen = os.readv, []
        monkeypatch.setattr(
            console_module.os, "readv", lambda fd, views: seen.extend(v.obj for v in views) or readv(fd, views)
        )
        desk.console.input(desk.rx)
        assert all(obj is desk.memory.map for obj in seen) and seen
        seen.clear()

    def test_what_does_not_fit_waits_for_the_next_buffer(self, desk: Desk) -> None:
        desk.type(b"0123456789")
        for size in (4, 16):
            desk.receive.add(into=[size])
            desk.console.input(desk.rx)
        assert [used.data for used in desk.receive.used()] == [b"0123", b"456789"]

    def test_no_key_is_read_before_the_guest_has_a_buffer_for_it(self, desk: Desk, monkeypatch) -> None:
        asleep = announced(monkeypatch, desk.rx.wakeup, "sleep")
        desk.type(b"early")
        thread = desk.in_thread(desk.console.input, desk.rx)
        assert asleep.acquire(timeout=PATIENCE)
        assert isinstance(thread.stop(), Stopped)
        assert os.read(desk.keyboard, 99) == b"early"

    def test_a_stop_wakes_it_where_it_waits_for_a_key(self, desk: Desk, monkeypatch) -> None:
        waits = announced(monkeypatch, desk.rx.wakeup, "sleep_on")
        desk.receive.add(into=[16])
        thread = desk.in_thread(desk.console.input, desk.rx)
        assert waits.acquire(timeout=PATIENCE)
        assert isinstance(thread.stop(), Stopped)
        assert desk.receive.used() == []

    def test_the_end_of_input_is_one_warning_and_a_nap_until_the_stop(self, desk: Desk, monkeypatch, caplog) -> None:
        os.close(desk.typed)
        desk.typed = -1
        for _ in range(2):  # and again after a reset
            asleep = announced(monkeypatch, desk.rx.wakeup, "sleep")
            desk.receive.add(into=[16])
            thread = desk.in_thread(desk.console.input, desk.rx)
            for _ in range(3):
                assert asleep.acquire(timeout=PATIENCE)
                os.eventfd_write(desk.rx.wakeup.kicks, 1)
            assert isinstance(thread.stop(), Stopped)
            desk.rx.wakeup.rearm()
        assert caplog.messages == ["Failed to get console input, ignoring console."]
        assert desk.receive.used() == []

    def test_input_which_cannot_be_read_is_the_end_of_input_too(self, desk: Desk, monkeypatch, caplog) -> None:
        def hung_up(*_: object) -> int:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        def nap() -> None:
            raise Stopped

        monkeypatch.setattr(console_module.os, "readv", hung_up)
        monkeypatch.setattr(desk.rx.wakeup, "sleep", nap)
        desk.receive.add(into=[16])
        desk.type(b"x")
        with pytest.raises(Stopped):
            desk.console.input(desk.rx)
        assert caplog.messages == ["Failed to get console input, ignoring console."]

    def test_input_which_is_no_terminal_is_left_as_it_is(self, desk: Desk) -> None:
        before = os.get_blocking(desk.keyboard)
        desk.receive.add(into=[16])
        desk.type(b"x")
        desk.console.input(desk.rx)
        assert os.get_blocking(desk.keyboard) == before

    def test_the_terminal_is_not_the_devices_to_change(self, desk: Desk) -> None:
        ours, theirs = pty.openpty()
        desk.console.input_fd = theirs
        before = termios.tcgetattr(theirs)
        desk.receive.add(into=[16])
        os.write(ours, b"ls\n")
        desk.console.input(desk.rx)
        assert [used.data for used in desk.receive.used()] == [b"ls\n"]
        assert termios.tcgetattr(theirs) == before
        os.close(ours)
        os.close(theirs)

    def test_an_empty_chain_comes_back_empty(self, desk: Desk) -> None:
        desk.receive.add(into=[0])
        desk.type(b"x")
        desk.console.input(desk.rx)
        assert [used.length for used in desk.receive.used()] == [0]

    def test_a_readable_buffer_is_the_guests_fault(self, desk: Desk) -> None:
        desk.receive.add(out=[b"wrong way"])
        with pytest.raises(GuestError, match="Output buffers in console in queue"):
            desk.console.input(desk.rx)

    def test_a_readable_buffer_before_a_writable_one_is_no_better(self, desk: Desk) -> None:
        desk.receive.add(out=[b"wrong way"], into=[16])
        with pytest.raises(GuestError, match="Output buffers in console in queue"):
            desk.console.input(desk.rx)


class TestOutput:
    def test_what_the_guest_prints_comes_out(self, desk: Desk) -> None:
        desk.transmit.add(out=[b"Linux version 2.6.31\n"])
        desk.console.output(desk.tx)
        assert os.read(desk.screen, 99) == b"Linux version 2.6.31\n"
        assert [used.length for used in desk.transmit.used()] == [0]

    def test_all_buffers_of_a_chain_come_out_in_order(self, desk: Desk) -> None:
        desk.transmit.add(out=[b"Linux ", b"version ", b"", b"2.6.31\n"])
        desk.console.output(desk.tx)
        assert os.read(desk.screen, 99) == b"Linux version 2.6.31\n"

    def test_the_interrupt_waits_until_the_ring_runs_empty(self, desk: Desk, monkeypatch) -> None:
        asleep = announced(monkeypatch, desk.tx.wakeup, "sleep")
        for _ in range(3):
            desk.transmit.add(out=[b"."])
            desk.console.output(desk.tx)
        assert desk.interrupts[1] == 0
        thread = desk.in_thread(desk.console.output, desk.tx)
        assert asleep.acquire(timeout=PATIENCE)
        assert desk.interrupts[1] == 1
        thread.stop()

    def test_short_writes_are_continued(self, desk: Desk, monkeypatch) -> None:
        write = os.write
        monkeypatch.setattr(console_module.os, "write", lambda fd, data: write(fd, data[:3]))
        desk.transmit.add(out=[b"0123456789"])
        desk.console.output(desk.tx)
        assert os.read(desk.screen, 99) == b"0123456789"

    def test_a_full_pipe_stalls_it_and_a_stop_ends_that(self, desk: Desk, monkeypatch) -> None:
        os.set_blocking(desk.shown, False)
        with pytest.raises(BlockingIOError):
            while True:
                os.write(desk.shown, bytes(4096))
        os.set_blocking(desk.shown, True)
        waits = announced(monkeypatch, desk.tx.wakeup, "sleep_on")
        desk.transmit.add(out=[b"never seen"])
        thread = desk.in_thread(desk.console.output, desk.tx)
        assert waits.acquire(timeout=PATIENCE)
        assert isinstance(thread.stop(), Stopped)
        assert desk.transmit.used() == []

    def test_no_write_is_larger_than_a_pipe_takes_for_certain(self, desk: Desk, monkeypatch) -> None:
        sizes, write = [], os.write
        monkeypatch.setattr(console_module.os, "write", lambda fd, data: sizes.append(len(data)) or write(fd, data))
        desk.transmit.add(out=[bytes(10000)])
        desk.console.output(desk.tx)
        assert sizes == [4096, 4096, 1808]

    def test_a_stop_ends_even_output_which_never_blocks(self, desk: Desk) -> None:
        "All of RAM, many times over, to /dev/null: it must be possible to leave in between."
        sink = os.open("/dev/null", os.O_WRONLY)
        desk.console.output_fd = sink
        polls = []

        def sleep_on(fd: int, events: int = 0) -> None:
            polls.append(fd)
            if len(polls) == 10:
                desk.tx.wakeup.stop()
            desk.tx.wakeup.check()

        desk.tx.wakeup.sleep_on = sleep_on
        desk.transmit.add(out=[bytes(0x30000)])
        with pytest.raises(Stopped):
            desk.console.output(desk.tx)
        assert polls == [sink] * 10
        os.close(sink)

    def test_non_blocking_output_is_waited_for_and_left_non_blocking(self, desk: Desk, monkeypatch) -> None:
        refusals, write = iter([True, False]), os.write

        def moody(fd: int, data: memoryview) -> int:
            if next(refusals):
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            return write(fd, data)

        monkeypatch.setattr(console_module.os, "write", moody)
        os.set_blocking(desk.shown, False)
        desk.transmit.add(out=[b"hello"])
        desk.console.output(desk.tx)
        assert os.read(desk.screen, 9) == b"hello"
        assert not os.get_blocking(desk.shown)

    def test_output_stays_blocking_for_whoever_shares_it(self, desk: Desk) -> None:
        desk.transmit.add(out=[b"hello"])
        desk.console.output(desk.tx)
        assert os.get_blocking(desk.shown)

    def test_output_nobody_can_read_is_a_sentence_and_not_the_guests_fault(self, desk: Desk) -> None:
        os.close(desk.screen)
        desk.screen = -1
        desk.transmit.add(out=[b"anybody?"])
        with pytest.raises(LguestError, match="Write to stdout failed: Broken pipe") as caught:
            desk.console.output(desk.tx)
        assert not isinstance(caught.value, GuestError)

    def test_a_writable_buffer_is_the_guests_fault(self, desk: Desk) -> None:
        desk.transmit.add(into=[8])
        with pytest.raises(GuestError, match="Input buffers in console output queue"):
            desk.console.output(desk.tx)

    def test_nothing_of_a_chain_with_a_writable_buffer_is_printed(self, desk: Desk) -> None:
        desk.transmit.add(out=[b"no"], into=[8])
        with pytest.raises(GuestError, match="Input buffers in console output queue"):
            desk.console.output(desk.tx)
        os.set_blocking(desk.screen, False)
        with pytest.raises(BlockingIOError):
            os.read(desk.screen, 1)


def test_writing_nothing_waits_for_nothing() -> None:
    wakeup = Wakeup()
    write_all(wakeup, -1, b"")
    wakeup.close()
