"""The Host over /dev/lguest says what the 2009 Launcher said, byte for byte, and loses neither a kick nor a stop."""

import errno
import logging
import os
import platform
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from lguest_standin import BREAK, BUSY, EVENTFD, GETDMA, HALT, INITIALIZE, IRQ, RESTART, Guest, Killed, Standin

import lguest_nb.memory
from lguest_nb.bus.lguest import LguestBus
from lguest_nb.device import STATUS_DRIVER_OK, Device
from lguest_nb.driver import Driver
from lguest_nb.host import BootState, Ending, Host, HostError
from lguest_nb.hosts import dev_lguest
from lguest_nb.hosts.dev_lguest import DevLguest, DevLguestHost, Parker, open_dev_lguest, word, words
from lguest_nb.knock import KNOCK, RESEND, Bedroom, knock_handler
from lguest_nb.memory import GuestMemory
from lguest_nb.vring import Virtqueue

PATIENCE = 30  # seconds until a test which hangs has failed
MAP_32BIT = 0x40  # x86-64: an address which fits the unsigned long of a 32-bit program
WORD_SIZES = [4, 8] if platform.machine() in ("x86_64", "i386", "i686") else [struct.calcsize("L")]
ENTRY = 0x100000


class Recorder:
    "A Bus which keeps what it hears, and may do something about it."

    def __init__(self, act: Callable[[int], None] = lambda address: None) -> None:
        self.heard: list[int] = []
        self.threads: set[int] = set()
        self.act = act

    def notify(self, address: int) -> None:
        self.heard.append(address)
        self.threads.add(threading.get_ident())
        self.act(address)


@pytest.fixture(params=WORD_SIZES, ids=lambda size: f"{8 * size}-bit")
def word_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    size: int = request.param
    if size == 4:
        flags = lguest_nb.memory.MAP_NORESERVE | MAP_32BIT
        monkeypatch.setattr(lguest_nb.memory, "MAP_NORESERVE", flags)
    return size


@pytest.fixture
def memory(word_size: int) -> Iterator[GuestMemory]:
    memory = GuestMemory(1 << 20)
    yield memory
    memory.close()


@pytest.fixture
def eventfd() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_CLOEXEC)
    yield fd
    os.close(fd)


@pytest.fixture(autouse=True)
def the_process_is_as_before() -> Iterator[None]:
    def look() -> tuple[int, bool, int]:
        return threading.active_count(), caught(), open_files()

    before = look()
    yield
    deadline = time.monotonic() + 2  # for threads which are just about to end
    while look() != before and time.monotonic() < deadline:
        time.sleep(0.001)
    assert look() == before, "threads, a handler or files were left"


def caught() -> bool:
    "Does the process have a handler for the signal?"
    return bool(signals("SigCgt") >> (KNOCK - 1) & 1)


def signals(kind: str) -> int:
    "One of the masks in /proc/self/status."
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(kind)).split()[1], 16)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def on_a_thread(function: Callable[[], Any]) -> "Future[Any]":
    "What it returns or raises, from a thread of its own."
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as e:
            future.set_exception(e)

    threading.Thread(target=run, daemon=True).start()
    return future


def until(condition: Callable[[], object]) -> None:
    "Wait for something which another thread is about to do."
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.001)


class Machine:
    "A Host on a stand-in, started; the thread which makes it is the CPU thread."

    def __init__(self, guest: Guest, memory: GuestMemory, word_size: int, bus: Any = None) -> None:
        self.bus = bus or Recorder()
        self.module = Standin(guest, word_size)
        self.host = DevLguestHost(lambda: self.module, word_size)
        self.host.start(memory, BootState(ENTRY), self.bus)

    def __enter__(self) -> "Machine":
        return self

    def __exit__(self, *_: object) -> None:
        self.host.close()
        assert self.module.closed


@pytest.fixture
def machine(memory: GuestMemory, word_size: int) -> Callable[..., Machine]:
    return lambda guest, bus=None: Machine(guest, memory, word_size, bus)


def script(*steps: Any, end: str = "Power down") -> Guest:
    for step in steps:
        _ = yield step  # not `yield from`: a tuple can't be sent the interrupts
    return end


# The stand-in itself: lguest-2009.md 9.1 to 9.3.


class TestStandin:
    def open(self, guest: Guest | None = None) -> Standin:
        module = Standin(guest, 4)
        assert module.write(words(4, INITIALIZE, 0, 1, 2)) == 12
        return module

    def refused(self, number: int, act: Callable[[], object]) -> None:
        with pytest.raises(OSError) as caught:
            act()
        assert caught.value.errno == number

    def test_initialize_comes_first_and_once(self) -> None:
        module = Standin(script(), 4)
        self.refused(errno.EINVAL, lambda: module.write(words(4, IRQ, 1)))
        self.refused(errno.EINVAL, lambda: module.pread(4))
        module.write(words(4, INITIALIZE, 0, 1, 2))
        self.refused(errno.EBUSY, lambda: module.write(words(4, INITIALIZE, 0, 1, 2)))
        module.close()

    @pytest.mark.parametrize("request_", [(GETDMA, 1), (BREAK, 1), (5, 1), (IRQ, 32), (EVENTFD, 0, 0)])
    def test_invalid_requests(self, request_: tuple[int, ...]) -> None:
        module = self.open()
        self.refused(errno.EINVAL, lambda: module.write(words(4, *request_)))
        module.close()

    def test_an_eventfd_must_be_one(self) -> None:
        module = self.open()
        self.refused(errno.EBADF, lambda: module.write(words(4, EVENTFD, 0x1000, 9999)))
        with open(os.devnull) as file:
            self.refused(errno.EINVAL, lambda: module.write(words(4, EVENTFD, 0x1000, file.fileno())))
        module.close()

    def test_the_first_eventfd_of_an_address_gets_all_its_kicks(self) -> None:
        "Row 11.5: what the 2009 Launcher did at each start of a device, and why it went deaf."
        module = self.open(script(0x1000, 0x1000))
        first, second = os.eventfd(0), os.eventfd(0, os.EFD_NONBLOCK)
        module.write(words(4, EVENTFD, 0x1000, first))
        module.write(words(4, EVENTFD, 0x1000, second))
        self.refused(errno.ENOENT, lambda: module.pread(4))
        assert os.eventfd_read(first) == 2
        self.refused(errno.EAGAIN, lambda: os.eventfd_read(second))
        module.close()
        os.close(first)
        os.close(second)

    def test_only_the_thread_which_initialized_reads(self) -> None:
        module = self.open(script(0x1000))
        self.refused(errno.EPERM, lambda: on_a_thread(lambda: module.pread(4)).result(PATIENCE))
        assert module.pread(4) == words(4, 0x1000)
        module.close()

    def test_the_dead_only_say_why(self) -> None:
        module = self.open(script(end="Oops"))
        self.refused(errno.ENOENT, lambda: module.pread(4))
        self.refused(errno.ENOENT, lambda: module.write(words(4, IRQ, 1)))
        assert module.pread(1023) == b"CRASH: Oops\0"
        assert module.pread(4) == b"CRAS"
        module.close()

    def test_a_restart_is_an_errno_for_ever(self) -> None:
        module = self.open(script(end=RESTART))
        for _ in range(2):
            self.refused(85, lambda: module.pread(4))
        module.close()


# Words and the file.


def test_words_are_those_of_the_strace_of_2009() -> None:
    assert words(4, IRQ, 3) == b"\2\0\0\0\3\0\0\0"
    assert words(8, IRQ, 3) == b"\2\0\0\0\0\0\0\0\3\0\0\0\0\0\0\0"
    assert word(b"\0p\0\4") == 0x4007000
    assert words(dev_lguest.WORD, 1, 2) == struct.pack("@2L", 1, 2)


class TestRealFile:
    "The file operations with real system calls, on files which exist everywhere."

    def test_reads_at_offset_0_and_writes(self, tmp_path: Path) -> None:
        path = tmp_path / "lguest"
        path.write_bytes(words(4, 0x4007000) + b"rest")
        file = open_dev_lguest(str(path))
        assert [file.pread(4), file.pread(4)] == [words(4, 0x4007000)] * 2
        assert file.write(words(4, IRQ, 3)) == 8
        assert path.read_bytes() == b"\2\0\0\0\3\0\0\0"
        file.close()

    def test_shows_errnos(self, tmp_path: Path) -> None:
        path = tmp_path / "pipe"
        os.mkfifo(path)
        file = DevLguest(str(path))
        with pytest.raises(OSError) as caught:
            file.pread(4)
        assert caught.value.errno == errno.ESPIPE
        file.close()

    def test_is_not_inherited(self, tmp_path: Path) -> None:
        (tmp_path / "lguest").touch()
        file = DevLguest(str(tmp_path / "lguest"))
        assert not os.get_inheritable(file._fd)
        file.close()

    def test_a_missing_one_is_a_sentence(self, tmp_path: Path) -> None:
        with pytest.raises(HostError, match=r"There is no .*/lguest: the module lg .* in 4\.14.*--host=soft"):
            open_dev_lguest(str(tmp_path / "lguest"))

    def test_a_forbidden_one_is_a_sentence(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def forbidden(*_: object) -> int:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

        monkeypatch.setattr(os, "open", forbidden)
        with pytest.raises(HostError, match="You may not open /dev/lguest: it is root's"):
            open_dev_lguest()

    def test_a_device_node_without_its_module_is_a_sentence(self, tmp_path: Path) -> None:
        path = str(tmp_path / "node")
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path)
            with pytest.raises(HostError, match="failed: No such device or address. Is the module lg loaded?"):
                open_dev_lguest(path)


# One request for each verb.


class TestStart:
    def test_initialize_byte_for_byte(self, memory: GuestMemory, word_size: int) -> None:
        memory.write(0x5000, b"kernel")
        memory.take_pages(1 + 3)
        module = Standin(script(), word_size)
        host: Host = DevLguestHost(lambda: module, word_size)
        host.start(memory, BootState(ENTRY), Recorder())
        assert module.requests == [(INITIALIZE, module.base, 256 + 4, ENTRY)]
        code = {4: "<4I", 8: "<4Q"}[word_size]
        assert module.raw == [struct.pack(code, 0, module.base, 260, ENTRY)]
        assert module.memory(0x5000, 6) == b"kernel"
        host.close()

    def test_the_word_is_the_machines_own(self) -> None:
        memory, module = GuestMemory(1 << 20), Standin(script())
        host = DevLguestHost(lambda: module)
        host.start(memory, BootState(ENTRY), Recorder())
        assert module.raw == [struct.pack("@4L", 0, module.base, 256, ENTRY)]
        host.close()
        memory.close()

    def test_memory_stays_while_the_module_has_its_address(self, machine: Any, memory: GuestMemory) -> None:
        with machine(script()):
            with pytest.raises(BufferError):
                memory.close()

    @pytest.mark.parametrize(
        "number, sentence",
        [
            (errno.EBUSY, "Device or resource busy (this file has a Guest already)."),
            (errno.EINVAL, "Invalid argument (this is not the lguest of Linux 2.6.31 to 3.19)."),
            (errno.ENOMEM, "Cannot allocate memory."),
        ],
    )
    def test_a_refusal_gives_everything_back(
        self, memory: GuestMemory, word_size: int, number: int, sentence: str
    ) -> None:
        module = Standin(script(), word_size)
        module.refuse[INITIALIZE] = number
        host = DevLguestHost(lambda: module, word_size)
        with pytest.raises(HostError) as caught:
            host.start(memory, BootState(ENTRY), Recorder())
        assert str(caught.value) == f"Writing to /dev/lguest failed: {sentence}"
        assert module.closed
        with pytest.raises(HostError, match="start one first"):
            host.run()
        host.close()

    def test_a_file_which_is_busy(self, memory: GuestMemory, word_size: int) -> None:
        module = Standin(script(), word_size)
        module.write(words(word_size, INITIALIZE, 0, 1, 2))
        with pytest.raises(HostError, match="this file has a Guest already"):
            DevLguestHost(lambda: module, word_size).start(memory, BootState(ENTRY), Recorder())

    def test_no_file_no_traces(self, memory: GuestMemory) -> None:
        host = DevLguestHost(lambda: open_dev_lguest("/dev/lguest-of-2009"))
        with pytest.raises(HostError, match="There is no /dev/lguest-of-2009"):
            host.start(memory, BootState(ENTRY), Recorder())
        host.close()

    def test_twice_is_refused(self, machine: Any, memory: GuestMemory) -> None:
        with machine(script()) as m, pytest.raises(HostError, match="has a Guest already"):
            m.host.start(memory, BootState(ENTRY), m.bus)

    def test_a_newer_module_is_remarked_upon(
        self, memory: GuestMemory, word_size: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        "Linux 4.0 takes four arguments."
        with caplog.at_level(logging.WARNING):
            host = DevLguestHost(lambda: Standin(script(), word_size, answer=4), word_size)
            host.start(memory, BootState(ENTRY), Recorder())
        assert f"answers {4 * word_size} to INITIALIZE" in caplog.text
        host.close()


class TestEventfd:
    def test_attach_byte_for_byte_and_once(self, machine: Any, eventfd: int, word_size: int) -> None:
        with machine(script(0x8000, 0x8000)) as m:
            m.host.attach_eventfd(0x8000, eventfd)
            m.host.detach_eventfd(0x8000)
            m.host.attach_eventfd(0x8000, eventfd)
            assert m.module.raw[1:] == [words(word_size, 4, 0x8000, eventfd)]
            assert m.host.run() == Ending("power-off", "Power down")
            assert (m.bus.heard, os.eventfd_read(eventfd)) == ([], 2)

    def test_another_eventfd_is_refused(self, machine: Any, eventfd: int) -> None:
        with machine(script()) as m:
            m.host.attach_eventfd(0x8000, eventfd)
            with pytest.raises(HostError, match=f"0x8000 failed: /dev/lguest keeps {eventfd}"):
                m.host.attach_eventfd(0x8000, 0)

    def test_values_are_not_supported(self, machine: Any, eventfd: int) -> None:
        with machine(script()) as m, pytest.raises(HostError, match="0x8000, value 0, failed"):
            m.host.attach_eventfd(0x8000, eventfd, 0)

    @pytest.mark.parametrize("address, fd, sentence", [(0, None, "the address is 0"), (0x8000, 9999, "no open file")])
    def test_refusals(self, machine: Any, eventfd: int, address: int, fd: int | None, sentence: str) -> None:
        with machine(script()) as m:
            with pytest.raises(HostError, match=sentence):
                m.host.attach_eventfd(address, eventfd if fd is None else fd)
            m.host.attach_eventfd(0x8000, eventfd)  # a refused one has left nothing behind

    def test_detaching_what_was_never_attached(self, machine: Any) -> None:
        with machine(script()) as m:
            m.host.detach_eventfd(0x8000)
            assert m.host.run().how == "power-off"


class TestInterrupt:
    def test_byte_for_byte_from_any_thread(self, machine: Any, word_size: int) -> None:
        def guest() -> Guest:
            irqs = yield HALT
            return str(irqs)

        with machine(guest()) as m:
            on_a_thread(lambda: m.host.interrupt(3)).result(PATIENCE)
            assert m.module.raw[1:] == [words(word_size, 2, 3)]
            assert m.host.run() == Ending("died", "CRASH: [3]")

    def test_wakes_a_guest_which_halts(self, machine: Any, memory: GuestMemory) -> None:
        ready: Future[Any] = Future()

        def cpu() -> Ending:
            with machine(script(HALT)) as m:
                ready.set_result(m)
                ending: Ending = m.host.run()
                return ending

        ending = on_a_thread(cpu)
        m = ready.result(PATIENCE)
        until(lambda: m.module.running)
        m.host.interrupt(1)
        assert ending.result(PATIENCE).how == "power-off"

    def test_is_harmless_after_death_and_after_close(self, machine: Any) -> None:
        with machine(script()) as m:
            m.host.run()
            m.host.interrupt(1)
            assert m.module.requests[-1] == (IRQ, 1)
        m.host.interrupt(1)

    def test_out_of_range(self, machine: Any) -> None:
        with machine(script()) as m, pytest.raises(HostError, match="Triggering irq 32 failed: .*interrupts 0 to 31"):
            m.host.interrupt(32)

    def test_an_answer_which_is_not_0(self, machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        with machine(script()) as m:
            monkeypatch.setattr(m.module, "_irq", lambda irq: 8)
            with pytest.raises(HostError, match="Triggering irq 1 failed: /dev/lguest answers 8"):
                m.host.interrupt(1)


# The loop.


class TestRun:
    def test_notifies_come_to_the_bus_on_the_cpu_thread(self, machine: Any, word_size: int) -> None:
        with machine(script(0x5000, 0xFFFFF000, 0x5000)) as m:
            assert m.host.run() == Ending("power-off", "Power down")
            assert m.bus.heard == [0x5000, 0xFFFFF000, 0x5000]
            assert m.bus.threads == {threading.get_ident()}
            assert m.module.reads == [word_size] * 4 + [1023]
            assert m.host.report().startswith("/dev/lguest handed 3 notifies to us")

    @pytest.mark.parametrize(
        "text, ending",
        [
            ("Power down", Ending("power-off", "Power down")),
            ("Power down ", Ending("died", "CRASH: Power down ")),
            ("CRASH: Power down", Ending("died", "CRASH: CRASH: Power down")),
            ("", Ending("died", "CRASH: ")),
            ("Attempted to kill init!", Ending("died", "CRASH: Attempted to kill init!")),
            ("\xff\x1b[2J", Ending("died", "CRASH: \\xff\x1b[2J")),
            ("x" * 2000, Ending("died", "CRASH: " + "x" * 1016)),
        ],
        ids=range(7),
    )
    def test_death_and_its_reason(self, machine: Any, text: str, ending: Ending) -> None:
        with machine(script(end=text)) as m:
            assert m.host.run() == ending

    def test_killed_by_the_module(self, machine: Any) -> None:
        def guest() -> Guest:
            yield 0x5000
            raise Killed("unhandled trap 14 at 0xc0101234 (0x0)")

        with machine(guest()) as m:
            assert m.host.run() == Ending("died", "unhandled trap 14 at 0xc0101234 (0x0)")

    def test_restart(self, machine: Any, word_size: int) -> None:
        with machine(script(end=RESTART)) as m:
            assert m.host.run() == Ending("restart")
            assert m.module.reads == [word_size]

    def test_what_the_bus_raises_comes_out_and_the_guest_can_go_on(self, machine: Any) -> None:
        def act(address: int) -> None:
            if address == 0x6000:
                raise ZeroDivisionError

        with machine(script(0x5000, 0x6000, 0x7000), Recorder(act)) as m:
            with pytest.raises(ZeroDivisionError):
                m.host.run()
            assert m.host.run().how == "power-off"
            assert m.bus.heard == [0x5000, 0x6000, 0x7000]

    def test_another_thread_may_not(self, machine: Any) -> None:
        with machine(script()) as m, pytest.raises(HostError, match="only the thread which started a Guest may run it"):
            on_a_thread(m.host.run).result(PATIENCE)

    def test_other_errors_are_a_sentence(self, machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        def fault(size: int) -> bytes:
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))

        with machine(script()) as m:
            monkeypatch.setattr(m.module, "pread", fault)
            with pytest.raises(HostError, match="^Running guest failed: Bad address.$"):
                m.host.run()
            monkeypatch.setattr(m.module, "pread", lambda size: bytes(12))
            with pytest.raises(HostError, match="^Running guest failed: 12 bytes came back"):
                m.host.run()

    def test_a_signal_is_not_an_end(self, machine: Any) -> None:
        "EINTR comes out of the read, and the Host reads again."
        ready: Future[Any] = Future()

        def cpu() -> Ending:
            with machine(script(HALT, 0x5000)) as m:
                ready.set_result((m, threading.get_ident()))
                ending: Ending = m.host.run()
                return ending

        ending = on_a_thread(cpu)
        m, thread = ready.result(PATIENCE)

        def interrupted(reads: int) -> bool:
            signal.pthread_kill(thread, KNOCK)
            return len(m.module.reads) > reads

        for reads in range(1, 20):
            until(partial(interrupted, reads))
        m.host.interrupt(1)
        assert ending.result(PATIENCE).how == "power-off"
        assert m.bus.heard == [0x5000]


# Stopping.


def for_ever(step: Any) -> Guest:
    while True:
        yield step


class TestStop:
    @pytest.mark.parametrize("step", [HALT, BUSY, 0x5000])
    @pytest.mark.parametrize("wait", [True, False])
    def test_from_another_thread(self, machine: Any, step: Any, wait: bool) -> None:
        ready: Future[Any] = Future()

        def cpu() -> Ending:
            with machine(for_ever(step)) as m:
                ready.set_result(m)
                ending: Ending = m.host.run()
                return ending

        ending = on_a_thread(cpu)
        m = ready.result(PATIENCE)
        if wait:
            until(lambda: m.module.running)
        m.host.stop()
        assert ending.result(PATIENCE) == Ending("stopped")

    def test_before_run_and_more_than_once(self, machine: Any) -> None:
        with machine(for_ever(HALT)) as m:
            m.host.stop()
            m.host.stop()
            assert m.host.run() == m.host.run() == Ending("stopped")
            assert m.module.reads == []

    def test_from_the_bus(self, machine: Any) -> None:
        with machine(for_ever(0x5000), Recorder(lambda address: m.host.stop())) as m:
            assert m.host.run() == Ending("stopped")
            assert m.bus.heard == [0x5000]

    def test_on_a_thread_which_the_bus_waits_for(self, machine: Any) -> None:
        "A service thread which fails while it is being joined: `stop` must not wait for the CPU thread."
        with machine(for_ever(0x5000), Recorder(lambda address: on_a_thread(m.host.stop).result(PATIENCE))) as m:
            assert m.host.run() == Ending("stopped")

    @pytest.mark.parametrize("flag", ["stop", "_rung"])
    def test_between_the_look_and_the_door(self, machine: Any, monkeypatch: pytest.MonkeyPatch, flag: str) -> None:
        "Too late for `run` to see it and too early to wake anybody: so it looks again inside."
        with machine(script(0x5000)) as m:
            monkeypatch.setattr(m.host._lines, "early_kicks", lambda: m.host.stop() or [])
            step = m.host._step

            def late(file: Standin) -> Ending | None:
                getattr(m.host, flag)()
                ending: Ending | None = step(file)
                return ending

            monkeypatch.setattr(m.host, "_step", late)
            assert m.host.run() == Ending("stopped")
            assert m.module.reads == []

    def test_with_the_signal_blocked(self, machine: Any) -> None:
        ready: Future[Any] = Future()

        def cpu() -> tuple[Ending, set[Any]]:
            signal.pthread_sigmask(signal.SIG_BLOCK, {KNOCK})
            with machine(for_ever(HALT)) as m:
                ready.set_result(m)
                return m.host.run(), signal.pthread_sigmask(signal.SIG_BLOCK, [])

        ending = on_a_thread(cpu)
        m = ready.result(PATIENCE)
        until(lambda: m.module.running)
        m.host.stop()
        assert ending.result(PATIENCE) == (Ending("stopped"), {KNOCK})

    def test_at_any_moment(self, machine: Any) -> None:
        "Two hundred stops, each a little later than the one before."
        for i in range(200):
            ready: Future[Any] = Future()

            def cpu(ready: "Future[Any]" = ready) -> Ending:
                with machine(for_ever(HALT)) as m:
                    ready.set_result(m)
                    ending: Ending = m.host.run()
                    return ending

            ending = on_a_thread(cpu)
            m = ready.result(PATIENCE)
            time.sleep(i * 2e-6)
            m.host.stop()
            assert ending.result(PATIENCE) == Ending("stopped")


class TestSignal:
    def test_the_handler_is_there_from_start_to_close(self, machine: Any) -> None:
        assert not caught()
        with machine(script()):
            with machine(script()):
                assert caught()
            assert caught()
        assert not caught()
        signal.pthread_kill(threading.get_ident(), KNOCK)  # one which comes late

    def test_python_does_not_hear_of_it(self, machine: Any) -> None:
        with machine(script()):
            signal.pthread_kill(threading.get_ident(), KNOCK)
            assert signal.getsignal(KNOCK) == signal.SIG_DFL

    def test_somebody_elses_handler_stays(self, memory: GuestMemory, word_size: int) -> None:
        before = signal.signal(KNOCK, lambda *_: None)
        try:
            with pytest.raises(HostError, match="handles SIGURG"):
                DevLguestHost(lambda: Standin(), word_size).start(memory, BootState(ENTRY), Recorder())
            assert caught()
        finally:
            signal.signal(KNOCK, before)

    def test_a_handler_which_came_later_stays(self, machine: Any) -> None:
        heard: list[int] = []
        try:
            with machine(script()):
                before = signal.signal(KNOCK, lambda number, _: heard.append(number))
            signal.raise_signal(KNOCK)
            assert heard == [KNOCK]
        finally:
            signal.signal(KNOCK, before)

    def test_ignored_before_ignored_after(self, machine: Any) -> None:
        before = signal.signal(KNOCK, signal.SIG_IGN)
        try:
            with machine(script()):
                assert caught()
            assert signals("SigIgn") >> (KNOCK - 1) & 1
        finally:
            signal.signal(KNOCK, before)

    def test_a_knock_between_door_and_bed_is_repeated(self) -> None:
        "The sleeper lies down long after the first knock."
        module, room, inside = Standin(script(HALT), 4), Bedroom(), threading.Event()

        def sleeper() -> None:
            module.write(words(4, INITIALIZE, 0, 1, 2))
            with room, pytest.raises(InterruptedError):
                inside.set()
                time.sleep(3 * RESEND)
                module.pread(4)

        knock_handler.take()
        sleeping = on_a_thread(sleeper)
        inside.wait(PATIENCE)
        room.knock()
        sleeping.result(PATIENCE)
        knock_handler.give_back()
        module.close()

    def test_ones_own_door_and_an_empty_room(self) -> None:
        room = Bedroom()
        room.knock()
        with room:
            room.knock()


# Resets, and kicks which nobody serves.


class Giver(Device):
    "Two queues; gives every buffer back."

    def __init__(self) -> None:
        super().__init__("giver", virtio_id=99, features=0b11)

    def serve(self, vq: Virtqueue) -> None:
        vq.add_used(vq.wait(), 0)

    @property
    def services(self) -> list[Callable[[Virtqueue], None]]:
        return [self.serve, self.serve]


class Computer:
    "A Guest with a driver for `Giver` on a real LguestBus, on a Host on a stand-in."

    def __init__(self, memory: GuestMemory, word_size: int) -> None:
        self.memory = memory
        self.failures: list[BaseException] = []
        self.bus = LguestBus(memory, lambda text: None, self.failures.append)
        self.giver = Giver()
        self.bus.add(self.giver)
        self.place = self.bus.places[0]
        self.rings = [vq.doorbell.address for vq in self.giver.queues if vq.doorbell]
        self.log: list[str] = []
        self.module = Standin(self.guest(), word_size)
        self.host = DevLguestHost(lambda: self.module, word_size)
        self.bus.host = self.host

    def guest(self) -> Guest:
        return script()

    def run(self) -> Ending:
        "On the thread which calls."
        self.host.start(self.memory, BootState(ENTRY), self.bus)
        try:
            ending = self.host.run()
            assert not self.failures
            return ending
        finally:
            self.bus.close()
            self.host.close()

    def status(self, status: int) -> Iterator[int]:
        self.memory.u8[self.place.status] = status
        yield self.place.address

    def drivers(self) -> list[Driver]:
        "The Guest's side of the rings, as of now."
        return [Driver(vq, 0x10000 * (1 + i), 0x10000) for i, vq in enumerate(self.giver.queues)]

    def exchange(self, queue: int, requests: int = 1) -> Guest:
        "Kick a queue and wait for its buffers, as a driver does. Its interrupts go through the module."
        vq = self.giver.queues[queue]
        driver = Driver(vq, 0x10000, 0x10000)
        vq.interrupt = lambda: self.host.interrupt(1 + queue)
        for _ in range(requests):
            seen = driver.seen
            driver.add(into=[16])
            yield self.rings[queue]
            while driver.seen == seen and self.memory.u16[vq.used + 1] == seen:
                yield HALT
            driver.used()
        return ""


def alive() -> list[str]:
    return [thread.name for thread in threading.enumerate() if "parker" in thread.name]


class TestReset:
    def test_a_driver_which_is_loaded_again(self, memory: GuestMemory, word_size: int) -> None:
        "Early kick, kicks, reset, early kick, kicks, reset, DRIVER_OK, kicks."

        class Reloaded(Computer):
            def guest(self) -> Guest:
                for start in ("early", "early", "DRIVER_OK", "early", "DRIVER_OK"):
                    if start == "DRIVER_OK":
                        yield from self.status(STATUS_DRIVER_OK)
                        assert self.giver.running
                    assert self.giver.running == (start == "DRIVER_OK")
                    for queue in (1, 0, 1):
                        yield from self.exchange(queue, 3)
                        assert self.giver.running
                    yield from self.status(0)
                    assert not self.giver.running
                return "Power down"

        computer = Reloaded(memory, word_size)
        assert computer.run() == Ending("power-off", "Power down")
        attached = [request[1] for request in computer.module.requests if request[0] == EVENTFD]
        assert attached == computer.rings

    @pytest.mark.parametrize("stale_kicks", [0, 3])
    def test_what_is_left_in_an_eventfd_is_no_early_kick(
        self, memory: GuestMemory, word_size: int, stale_kicks: int
    ) -> None:
        "The stop's own write, and kicks from before the reset. The features are what would go wrong."

        class Left(Computer):
            def guest(self) -> Guest:
                yield from self.status(STATUS_DRIVER_OK)
                for vq in self.giver.queues:
                    os.eventfd_write(vq.wakeup.kicks, stale_kicks)
                yield from self.status(0)
                for _ in range(30):
                    yield BUSY
                    assert not self.giver.running, "a stale count has started the device"
                self.memory.u8[self.place.accepted] = 0b10
                yield from self.status(STATUS_DRIVER_OK)
                assert self.giver.accepted == 0b10
                return "Power down"

        assert Left(memory, word_size).run().how == "power-off"

    def test_a_reset_while_the_service_thread_is_busy(self, memory: GuestMemory, word_size: int) -> None:
        "Then nobody reads the count which `stop` writes."
        busy, go_on = threading.Event(), threading.Event()

        class Slow(Giver):
            def serve(self, vq: Virtqueue) -> None:
                chain = vq.wait()
                busy.set()
                go_on.wait(PATIENCE)
                vq.add_used(chain, 0)

        class Busy(Computer):
            def guest(self) -> Guest:
                yield from self.status(STATUS_DRIVER_OK)
                driver = Driver(self.giver.queues[0], 0x10000, 0x10000)
                driver.add(into=[16])
                yield self.rings[0]
                busy.wait(PATIENCE)
                threading.Timer(0.02, go_on.set).start()
                yield from self.status(0)
                for _ in range(30):
                    yield BUSY
                    assert not self.giver.running
                return "Power down"

        computer = Busy(memory, word_size)
        computer.giver.__class__ = Slow
        assert computer.run().how == "power-off"

    def test_an_early_kick_is_heard_on_the_cpu_thread_with_the_guest_standing_still(
        self, machine: Any, eventfd: int
    ) -> None:
        def act(address: int) -> None:
            assert not m.module.running
            m.host.interrupt(1)
            if address == 0x6000:
                m.host.detach_eventfd(0x8000)

        def guest() -> Guest:
            yield 0x6000
            for kicks in range(2, 12):
                yield 0x8000
                while len(m.bus.heard) < kicks:
                    yield HALT
            return "Power down"

        with machine(guest(), Recorder(act)) as m:
            m.host.attach_eventfd(0x8000, eventfd)
            assert m.host.run().how == "power-off"
            assert m.bus.heard == [0x6000] + [0x8000] * 10
            assert m.bus.threads == {threading.get_ident()}

    def test_a_kick_which_finds_its_address_attached_again_is_left_to_the_eventfd(
        self, machine: Any, eventfd: int
    ) -> None:
        "Both rings of a device are kicked early; the first kick attaches both."
        other = os.eventfd(0, os.EFD_CLOEXEC)

        def act(address: int) -> None:
            m.host.interrupt(1)
            for ring, fd in ((0x8000, eventfd), (0x9000, other)):
                if address == 0x6000:
                    m.host.detach_eventfd(ring)
                else:
                    m.host.attach_eventfd(ring, fd)

        def guest() -> Guest:
            yield 0x6000
            os.eventfd_write(eventfd, 1)
            yield 0x9000
            while len(m.bus.heard) < 2:
                yield HALT
            yield BUSY
            return "Power down"

        with machine(guest(), Recorder(act)) as m:
            act(0x8000)
            assert m.host.run().how == "power-off"
            assert m.bus.heard[0] == 0x6000 and len(m.bus.heard) == 2
            left = other if m.bus.heard[1] == 0x8000 else eventfd
            assert os.eventfd_read(left) == 1
        os.close(other)

    def test_what_the_bus_raises_of_an_early_kick_comes_out_of_run(self, machine: Any, eventfd: int) -> None:
        def act(address: int) -> None:
            if address == 0x8000:
                raise ZeroDivisionError
            m.host.detach_eventfd(0x8000)

        with machine(script(0x6000, 0x8000, HALT), Recorder(act)) as m:
            m.host.attach_eventfd(0x8000, eventfd)
            with pytest.raises(ZeroDivisionError):
                m.host.run()

    def test_stop_while_a_kick_is_parked(self, machine: Any, eventfd: int) -> None:
        def act(address: int) -> None:
            if address == 0x8000:
                m.host.stop()
            else:
                m.host.detach_eventfd(0x8000)

        with machine(script(0x6000, 0x8000, HALT), Recorder(act)) as m:
            m.host.attach_eventfd(0x8000, eventfd)
            assert m.host.run() == Ending("stopped")

    def test_a_thousand_resets_leak_nothing(self, memory: GuestMemory, word_size: int) -> None:
        seen: set[tuple[int, int]] = set()

        class Reset(Computer):
            def guest(self) -> Guest:
                for i in range(1000):
                    if i % 10:
                        yield from self.status(STATUS_DRIVER_OK)
                    yield from self.exchange(i % 2)
                    yield from self.status(0)
                    seen.add((len(alive()), open_files()))
                return "Power down"

        computer = Reset(memory, word_size)
        assert computer.run().how == "power-off"
        assert len(seen) == 1 and next(iter(seen))[0] == 1
        assert len(computer.module.eventfds) == 2
        assert not alive()

    def test_a_kick_races_with_driver_ok(self, memory: GuestMemory, word_size: int) -> None:
        "An early kick of one queue, and at once DRIVER_OK: whoever is first, every buffer comes back."

        class Race(Computer):
            def guest(self) -> Guest:
                for i in range(300):
                    vq = self.giver.queues[i % 2]
                    driver = Driver(vq, 0x10000, 0x10000)
                    vq.interrupt = partial(self.host.interrupt, 1 + i % 2)
                    seen = driver.seen
                    driver.add(into=[16])
                    yield self.rings[i % 2]
                    yield from self.status(STATUS_DRIVER_OK)
                    while self.memory.u16[vq.used + 1] == seen:
                        yield HALT
                    yield from self.status(0)
                return "Power down"

        assert Race(memory, word_size).run().how == "power-off"

    def test_parked_but_not_run_any_more(self, machine: Any, eventfd: int) -> None:
        "Closing does not depend on how `run` ended."

        def act(address: int) -> None:
            m.host.detach_eventfd(0x8000)

        with machine(script(0x6000, 0x7000), Recorder(act)) as m:
            m.host.attach_eventfd(0x8000, eventfd)
            assert m.host.run().how == "power-off"
            assert alive()
            os.eventfd_write(eventfd, 1)
        assert not alive()
        m.host.close()


def test_the_parker_reports_each_ring_once(eventfd: int) -> None:
    rung = threading.Semaphore(0)
    parker = Parker(rung.release)
    parker.start()
    parker.watch(eventfd)
    for _ in range(3):
        os.eventfd_write(eventfd, 1)
        assert rung.acquire(timeout=PATIENCE)
    assert not rung.acquire(timeout=0.02)
    parker.leave(eventfd)
    os.eventfd_write(eventfd, 1)
    assert not rung.acquire(timeout=0.02)
    parker.end()


def test_nothing_heavy_is_imported() -> None:
    "An i386 machine next to a real /dev/lguest has Python and cffi, and nothing else."
    modules = "hosts.dev_lguest bus.lguest memory vring device threads host knock loading console driver".split()
    code = "import sys\n" + "".join(f"import lguest_nb.{name}\n" for name in modules)
    code += "print(sorted({'unicorn', 'IPython', 'ipywidgets', 'fastcore', 'nbdev', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
