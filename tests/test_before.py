"""The Launcher of before June 2009: resumable breaks, one loop, nothing left over, the same Guest as today."""

import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pytest
import softguest as g
from support import PATIENCE, lguest_threads

from lguest_nb.before.__main__ import answer, checksum, setup_wire
from lguest_nb.before.handlers import handlers_of
from lguest_nb.before.host import BreakableHost, Doorway, Notified
from lguest_nb.before.io_thread import IoThread
from lguest_nb.before.launcher import BeforeLauncher
from lguest_nb.before.mitigation import Alarm, Mitigation
from lguest_nb.before.waker import Waker
from lguest_nb.block import Block
from lguest_nb.console import Console
from lguest_nb.device import Device
from lguest_nb.driver import Driver
from lguest_nb.guest import boot, command_line, path
from lguest_nb.host import BootState, Ending
from lguest_nb.memory import GuestMemory, LguestError
from lguest_nb.net import Net
from lguest_nb.rng import Rng
from lguest_nb.vring import USED_NO_NOTIFY, Virtqueue, ring_at

pytestmark = pytest.mark.usefixtures("nothing_left")
ROOT = Path(__file__).parent.parent


# The door: LHREQ_BREAK and pread

Make = Callable[[bytes], g.Guest]


@pytest.fixture
def guest() -> Iterator[Make]:
    "Guests of a few instructions, on a Host with a door."
    made: list[g.Guest] = []

    def make(code: bytes) -> g.Guest:
        guest = g.Guest(code)
        guest.host = BreakableHost()
        guest.host.start(guest.memory, BootState(g.CODE), Doorway())
        made.append(guest)
        return guest

    yield make
    for guest in made:
        guest.close()


def door(guest: g.Guest) -> BreakableHost:
    assert isinstance(guest.host, BreakableHost)
    return guest.host


def breaking(host: BreakableHost) -> threading.Thread:
    "Somebody who breaks it out as fast as it can, until `stop`."

    def rude() -> None:
        while not host.over:
            host.break_out(True)

    thread = threading.Thread(target=rude)
    thread.start()
    return thread


def test_every_notify_comes_out_once_and_in_order_whatever_breaks_in_between(guest: Make) -> None:
    addresses = [0x5000 + 4 * i for i in range(300)]
    host = door(guest(b"".join(g.hcall(g.NOTIFY, a) for a in addresses) + g.POWER_OFF))
    thread, heard = breaking(host), []
    while not isinstance(word := host.pread(), Ending):
        if word is None:
            host.break_out(False)
        else:
            heard.append(word)
    host.stop()
    thread.join(PATIENCE)
    assert heard == addresses
    assert word == Ending("power-off", "Power down")


def test_a_thousand_breaks_lose_no_instruction_and_run_none_twice(guest: Make) -> None:
    enough = g.SCRATCH + 8
    turn = g.inc(g.SCRATCH) + b"\xeb\x00" + g.inc(g.SCRATCH + 4) + b"\x83\x3d" + g.u32(enough) + b"\x00"
    it = guest(turn + b"\x74" + bytes([256 - len(turn) - 2]) + g.POWER_OFF)
    host = door(it)
    thread, breaks = breaking(host), 0
    while not isinstance(word := host.pread(), Ending):
        assert word is None
        breaks += 1
        it.set_words(enough, breaks >= 1000)
        host.break_out(False)
    host.stop()
    thread.join(PATIENCE)
    assert breaks >= 1000 and word.how == "power-off"
    assert it.word(g.SCRATCH) == it.word(g.SCRATCH + 4) > 0


def test_a_break_wakes_a_halted_guest_and_it_halts_again(guest: Make) -> None:
    host = door(guest(g.hcall(g.HALT) + g.jump_to_self()))
    for _ in range(3):
        thread = threading.Thread(target=host.break_out, args=(True,))
        thread.start()
        assert host.pread() is None
        assert thread.is_alive()  # it waits until we have looked around
        host.break_out(False)
        thread.join(PATIENCE)
    host.stop()
    assert host.pread() == Ending("stopped")


def test_a_break_before_pread_is_not_lost(guest: Make) -> None:
    host = door(guest(g.jump_to_self()))
    thread = threading.Thread(target=host.break_out, args=(True,))
    thread.start()
    while not host.broken:
        os.sched_yield()
    assert host.pread() is None and host.pread() is None  # and stays until it is taken back
    host.break_out(False)
    thread.join(PATIENCE)


def test_stop_is_for_good_and_lets_go_whoever_waits_in_a_break(guest: Make) -> None:
    host = door(guest(g.jump_to_self()))
    thread = threading.Thread(target=host.break_out, args=(True,))
    thread.start()
    while not host.broken:
        os.sched_yield()
    host.stop()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    host.break_out(False)
    assert host.pread() == Ending("stopped")
    host.break_out(True)  # nobody waits any more


def test_the_door_knows_no_devices() -> None:
    with pytest.raises(Notified, match="0x5000"):
        Doorway().notify(0x5000)


# The Waker


def test_the_waker_ends_when_the_launcher_has_closed_its_pipe() -> None:
    waker = Waker(lambda on: None)
    waker.start()
    waker.close()
    never = Waker(lambda on: None)
    never.close()


def test_the_waker_looks_at_what_it_was_told_of_while_it_slept() -> None:
    broken, go_on = threading.Semaphore(0), threading.Semaphore(0)

    def break_out(on: bool) -> None:
        broken.release()
        go_on.acquire()

    waker, (reader, writer) = Waker(break_out), os.pipe()
    waker.start()
    os.write(writer, b"x")
    waker.watch(reader)
    assert broken.acquire(timeout=PATIENCE)
    waker.ignore(reader)
    go_on.release()
    waker.close()
    assert not broken.acquire(blocking=False)
    os.close(reader)
    os.close(writer)


# The alarm and what it learns


@pytest.mark.parametrize(
    ("sent", "usec"),
    [([], 500), ([0], 499), ([5], 499), ([5, 4], 509), ([5, 5, 5], 497), ([9, 2] * 10, 590), ([1] * 600, 1)],
)
def test_the_time_out_grows_by_ten_for_fewer_packets_and_shrinks_by_one_otherwise(sent: list[int], usec: int) -> None:
    mitigation = Mitigation()
    for count in sent:
        mitigation.adapt(count)
    assert mitigation.usec == usec


def test_the_alarm_rings_in_a_pipe_and_gives_the_signal_back() -> None:
    before = signal.getsignal(signal.SIGALRM)
    alarm = Alarm()
    alarm.rang()  # though it has not
    alarm.set(1)
    assert select.select([alarm.fd], [], [], PATIENCE)[0]
    alarm.rang()
    assert not select.select([alarm.fd], [], [], 0)[0]
    alarm.close()
    assert signal.getsignal(signal.SIGALRM) is before


def test_only_the_main_thread_may_have_the_alarm() -> None:
    said: list[str] = []

    def elsewhere() -> None:
        try:
            BeforeLauncher(4, BreakableHost())
        except LguestError as e:
            said.append(str(e))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join(PATIENCE)
    assert "main thread" in said[0]


class FakeAlarm:
    "Rings when a test says so."

    def __init__(self) -> None:
        self.fd, self._rings = os.pipe()
        self.usecs: list[int] = []

    def set(self, usec: int) -> None:
        self.usecs.append(usec)

    def ring(self) -> None:
        os.write(self._rings, b"\0")

    def rang(self) -> None:
        os.read(self.fd, 32)

    def close(self) -> None:
        os.close(self.fd)
        os.close(self._rings)


class Card:
    "A card in the loop of a Launcher whose Guest is the test."

    def __init__(self, **options: int) -> None:
        ours, self.wire = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.alarm = FakeAlarm()
        self.launcher = BeforeLauncher(4, BreakableHost(), alarm=self.alarm, **options)
        self.net = Net(ours.detach())
        self.launcher.add(self.net)
        self.interrupts: list[str] = []
        self.launcher.bus.host = self.launcher.host
        place = self.launcher.bus.places[0]
        self.launcher.handlers[place] = handlers_of(self.net, self.launcher)
        self.launcher.waker.watch(self.net.tap)
        self.launcher.waker.watch(self.alarm.fd)
        self.launcher.memory.u8[place.status] = 3
        self.receive, self.transmit = (Driver(vq, 0x10000 * (i + 1), 0x10000) for i, vq in enumerate(self.net.queues))
        for vq in self.net.queues:
            vq.interrupt = lambda vq=vq: self.interrupts.append(vq.name)  # type: ignore[misc]

    def send(self, packet: bytes) -> bool:  # did the Guest have to kick?
        self.transmit.add(out=[bytes(10), packet])
        vq = self.net.queues[1]
        if vq.memory.u16[vq.used] & USED_NO_NOTIFY:
            return False
        assert vq.doorbell is not None
        self.launcher.handle_output(vq.doorbell.address)
        return True

    def close(self) -> None:
        self.launcher.close()
        self.wire.close()


@pytest.fixture
def card() -> Iterator[Card]:
    card = Card()
    yield card
    card.close()


def test_after_a_packet_the_guest_is_silenced_until_the_alarm(card: Card) -> None:
    assert card.send(b"one") and card.alarm.usecs == [500]
    assert not card.send(b"two") and not card.send(b"three")
    assert card.wire.recv(99)[10:] == b"one"
    assert not select.select([card.wire], [], [], 0)[0]
    card.alarm.ring()
    card.launcher.handle_input()
    assert [card.wire.recv(99)[10:] for _ in range(2)] == [b"two", b"three"]
    assert card.launcher.mitigation.usec == 499  # two, after none
    assert card.send(b"four") and card.alarm.usecs == [500, 499]
    card.alarm.ring()
    card.launcher.handle_input()
    assert card.launcher.mitigation.usec == 509  # none, after two


def test_without_mitigation_every_packet_is_a_kick() -> None:
    card = Card(usec=0)
    assert card.send(b"one") and card.send(b"two")
    assert card.alarm.usecs == []
    card.close()


def test_a_packet_without_a_buffer_switches_the_input_off_and_a_kick_switches_it_on(card: Card) -> None:
    vq = card.net.queues[0]
    card.wire.send(bytes(60))
    card.launcher.handle_input()  # comes back, though the packet is still there
    assert card.net.tap not in card.launcher.waker.infds
    assert not vq.memory.u16[vq.used] & USED_NO_NOTIFY
    card.receive.add(into=[1518])
    assert vq.doorbell is not None
    card.launcher.handle_output(vq.doorbell.address)
    assert card.net.tap in card.launcher.waker.infds
    assert vq.memory.u16[vq.used] & USED_NO_NOTIFY
    card.launcher.handle_input()
    assert [len(used.data) for used in card.receive.used()] == [60] and card.interrupts == ["net:0"]


def test_a_packet_which_does_not_fit_is_lost_alone(card: Card) -> None:
    card.receive.add(into=[60]), card.receive.add(into=[60])
    card.wire.send(bytes(61)), card.wire.send(b"x" * 60)
    card.launcher.handle_input()
    assert [used.length for used in card.receive.used()] == [0, 60]


def test_a_kick_before_the_driver_has_said_anything_is_refused(card: Card) -> None:
    card.launcher.memory.u8[card.launcher.bus.places[0].status] = 0
    assert card.send(b"early")
    assert "%s gave early output" in card.net.said and not select.select([card.wire], [], [], 0)[0]


def test_a_device_which_sleeps_is_refused(card: Card) -> None:
    with pytest.raises(LguestError, match="nobody may"):
        handlers_of(Device("mine", 99), card.launcher)


# The I/O thread


def test_a_failed_request_ends_the_run_with_what_it_raised(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(512))
    memory, block, failures = GuestMemory(1 << 20), Block(disk), []
    vq = Virtqueue(memory, 8, "block:0")
    vq.place(ring_at(memory.take_pages(3), 8))
    block.queues.append(vq)
    failed = threading.Event()
    io = IoThread(block, lambda e: (failures.append(e), failed.set()))  # type: ignore[func-returns-value]
    memory.u16[vq.avail + 1] = 9  # nine heads in a ring of eight
    io.handle_virtblk_output(vq, False)
    assert failed.wait(PATIENCE) and "Guest moved used index" in str(failures[0])
    failures.clear()
    io.close()
    block.close()
    vq.wakeup.close()
    memory.close()


# The whole of it


def both(run: Callable[..., object], *arguments: object) -> tuple[object, object]:
    "The same on either design."
    return run(*arguments), run(*arguments, host=BreakableHost(), design=BeforeLauncher)


def test_the_guest_cannot_tell_the_designs_apart(tmp_path: Path) -> None:
    script = (
        "dev", "disk write 3 hello", "disk barrier 4 there", "disk read 3", "disk read 8", "rng 16", "echo one",
        "reset 0", "start 0", "disk read 4", "reset 1", "start 1", "rng 4", "user hello", "oops",
    )  # fmt: skip

    def run(**design: object) -> object:
        disk = tmp_path / "disk"
        disk.write_bytes(bytes(8 * 512))
        said, ending = boot(*script, devices=[Block(disk), Rng("/dev/zero")], **design)  # type: ignore[arg-type]
        return said, ending, disk.read_bytes()

    since, before = both(run)
    assert since == before
    assert "hello" in str(since) and "I/O error" in str(since)


@pytest.mark.parametrize("script", [("panic enough",), ("kick 0x7fffffff",), ("reboot",)])
def test_both_designs_end_in_the_same_way(script: tuple[str, ...]) -> None:
    since, before = both(lambda **design: boot(*script, **design))
    assert since == before


def test_a_broken_ring_kills_the_guest_with_the_same_sentence(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(512))

    def run(**design: object) -> object:
        break_it = ("poke 0x1002002 ff ff", "kick 0x1001000", "halt")
        return boot(*break_it, devices=[Block(disk)], **design)[1]  # type: ignore[arg-type]

    since, before = both(run)
    assert since == before
    assert "block:0: Guest moved used index from 0 to 65535" in str(since)


def launched(*commands: str, input_fd: int, output_fd: int, ip: str = "") -> BeforeLauncher:
    launcher = BeforeLauncher(16, BreakableHost(), output_fd)
    launcher.add(Console(input_fd, output_fd))
    launcher.load(str(path()), command_line(*commands, ip=ip))
    return launcher


def test_the_console_echoes_what_is_typed() -> None:
    (keys, keyboard), (screen, shown) = os.pipe(), os.pipe()
    os.write(keyboard, b"echo typed\rpoweroff\r")
    with launched(input_fd=keys, output_fd=shown) as launcher:
        assert launcher.run() == Ending("power-off", "Power down")
    said = os.read(screen, 65536)
    assert said.count(b"typed") == 2  # once as it was typed, once from the command
    for fd in (keys, keyboard, screen, shown):
        os.close(fd)


def test_the_end_of_input_is_not_the_end_of_the_guest() -> None:
    output = os.memfd_create("output")
    with open(os.devnull) as nothing:
        with launched("sleep 50", "poweroff", input_fd=nothing.fileno(), output_fd=output) as launcher:
            assert launcher.run().how == "power-off"
    os.close(output)


def test_three_ctrl_c_end_it() -> None:
    keys, keyboard = os.pipe()
    output = os.memfd_create("output")
    os.write(keyboard, b"\3\3\3")
    with launched(input_fd=keys, output_fd=output) as launcher:
        assert launcher.run() == Ending("stopped")
    for fd in (keys, keyboard, output):
        os.close(fd)


def test_stop_ends_it_even_while_it_prints_to_somebody_who_does_not_read() -> None:
    (keys, keyboard), (screen, shown) = os.pipe(), os.pipe()
    os.set_blocking(shown, False)
    while True:
        try:
            os.write(shown, bytes(4096))
        except BlockingIOError:
            break
    os.set_blocking(shown, True)
    with launched(input_fd=keys, output_fd=shown) as launcher:
        timer = threading.Timer(0.2, launcher.stop)
        timer.start()
        assert launcher.run() == Ending("stopped")
        timer.join()
    for fd in (keys, keyboard, screen, shown):
        os.close(fd)


def test_a_device_of_ones_own_is_refused_with_a_sentence_and_nothing_is_left() -> None:
    class Mine(Device):
        services = property(lambda self: [lambda vq: None])  # type: ignore[assignment]

    output = os.memfd_create("output")
    with BeforeLauncher(16, BreakableHost(), output) as launcher:
        launcher.add(Mine("mine", 42))
        launcher.load(str(path()))
        with pytest.raises(LguestError, match="nobody may"):
            launcher.run()
    os.close(output)


def test_a_ping_is_answered_and_nothing_of_the_loop_is_left() -> None:
    said, ending = boot(
        "ping 192.168.19.1 2", devices=[setup_wire()], ip="192.168.19.2", host=BreakableHost(), design=BeforeLauncher
    )
    assert "2 sent, 2 received" in said and ending.how == "power-off"
    for thread in threading.enumerate():
        if thread.name == "the wire":
            thread.join(PATIENCE)
    assert not lguest_threads()


def test_who_answers_on_the_wire_does_sums_right() -> None:
    header = bytes.fromhex("4500001d000040004001b983c0a81302c0a81301")
    pong = answer(bytes(12) + b"\x08\0" + header + b"\x08\0\0\0\1\2\0\3h" + b"padding")
    assert pong is not None and pong[34] == 0 and pong[42:] == b"h"
    assert checksum(pong[34:] + b"\0") in (0, 0xFFFF)
    assert answer(bytes(12) + b"\x08\0" + header[:9] + b"\x11" + header[10:] + bytes(9)) is None


# As somebody uses it


@pytest.mark.parametrize("design", ["before", "after"])
def test_either_design_can_be_typed_into(design: str) -> None:
    command = ["-m", "lguest_nb.before", f"--design={design}"]
    session = pexpect.spawn(sys.executable, command, timeout=30, encoding="utf-8")
    session.expect("tiny> ")
    session.send("echo here I am\r")
    session.expect("here I am.*here I am")
    session.send("poweroff\r")
    session.expect(pexpect.EOF)
    session.close()
    assert session.exitstatus == 0


def test_a_signal_gets_it_out_of_a_guest_which_hangs() -> None:
    session = pexpect.spawn(sys.executable, ["-m", "lguest_nb.before"], timeout=30, encoding="utf-8")
    session.expect("tiny> ")
    session.send("hang\r")
    session.expect("hang")
    os.kill(session.pid, signal.SIGINT)
    session.expect(pexpect.EOF)
    session.close()
    assert session.exitstatus == 130


@pytest.mark.parametrize("nonsense", ["--usec=-1", "--design=later", "--block=/nowhere/at/all"])
def test_nonsense_is_answered_with_a_sentence(nonsense: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lguest_nb.before", nonsense, "echo"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode in (1, 2) and done.stderr.strip() and "Traceback" not in done.stderr
