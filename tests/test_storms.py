"""Lifecycle storms: whatever is started, reset, stopped or rebooted, however often, nothing of it is left over."""

import gc
import os
import shlex
import socket
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeHost, connect
from session import Session
from support import COMMAND, PATIENCE, close, lguest_threads, open_descriptors

from lguest_nb.block import HEADER, SECTOR, T_OUT, Block
from lguest_nb.bus.lguest import LguestBus
from lguest_nb.console import Console
from lguest_nb.device import Device
from lguest_nb.driver import Driver
from lguest_nb.guest import boot, command_line, path
from lguest_nb.host import Ending
from lguest_nb.launcher import Launcher
from lguest_nb.memory import GuestMemory
from lguest_nb.net import VNET_HEADER, Net, setup_tun_net
from lguest_nb.rng import Rng
from lguest_nb.vring import VIRTQUEUE_NUM, Virtqueue, ring_size

ROOT = Path(__file__).parent.parent
RESETS, WARM_UP = 1000, 50
NO_TAP = 77  # exit status of a child which may not have one
POWER_OFF = Ending("power-off", "Power down")


# What may be left over


@dataclass(frozen=True)
class Belongings:
    "What this process has."

    threads: set[str]
    tasks: int  # threads as Linux sees them, those of C libraries as well
    children: str
    descriptors: set[str]
    blocks: int  # of Python's allocator
    resident: int  # kB
    memories: int  # mappings of some Guest's memory

    @classmethod
    def now(cls) -> "Belongings":
        gc.collect()
        return cls(
            {thread.name for thread in threading.enumerate()},
            len(os.listdir("/proc/self/task")),
            "".join(Path(f"/proc/self/task/{task}/children").read_text() for task in os.listdir("/proc/self/task")),
            open_descriptors(),
            sys.getallocatedblocks(),
            int(Path("/proc/self/statm").read_text().split()[1]) * 4,
            Path("/proc/self/maps").read_text().count("guest memory"),
        )


@contextmanager
def nothing_is_left_over(
    times: int,  # how often whatever happens will happen
    resident: int,  # kB which it may cost each time
) -> Iterator[None]:
    "After a warm-up: the same threads, descriptors and children; less than one Python object for each time."
    before = Belongings.now()
    yield
    after = Belongings.now()
    assert after.threads == before.threads
    assert after.tasks == before.tasks
    assert after.children == before.children
    assert after.descriptors == before.descriptors
    assert after.blocks - before.blocks < times
    assert after.resident - before.resident < resident * times
    assert after.memories == before.memories


# Resets under load


class ForgetfulHost(FakeHost):
    "A Host without a CPU, which does not remember a thousand resets."

    def detach_eventfd(self, address: int, value: int | None = None) -> None:
        super().detach_eventfd(address, value)
        for record in (self.calls, self.interrupts, self.written):
            record.clear()


class Bench:
    "One device on the bus of 2009, and its driver is us."

    def __init__(self, device: Device) -> None:
        self.memory, self.host, self.device = GuestMemory(4 << 20), ForgetfulHost(), device
        self.failures: list[BaseException] = []
        self.bus = LguestBus(self.memory, bytes, self.failures.append)
        self.bus.host = self.host
        self.bus.add(device)
        self.place = self.bus.places[0]
        self.served = threading.Semaphore(0)  # released for each chain which is given back
        for vq in device.queues:
            self._announce(vq)

    def _announce(self, vq: Virtqueue) -> None:
        add_used = vq.add_used

        def announced(*arguments: object) -> None:
            add_used(*arguments)  # type: ignore[arg-type]
            self.served.release()

        vq.add_used = announced  # type: ignore[method-assign]

    def _status(self, value: int) -> None:
        self.memory.u8[self.place.status] = value
        self.bus.notify(self.place.address)

    def start(self) -> list[Driver]:
        "As a driver does it: for each queue its other side."
        assert self.is_clean(), "somebody has touched the ring after a reset"
        drivers = [
            connect(self.host, vq, 1 + i, 0x100000 * (1 + i), 0x100000) for i, vq in enumerate(self.device.queues)
        ]
        self.served = threading.Semaphore(0)
        self._status(7)
        return drivers

    def reset(self) -> None:
        self._status(0)
        assert not self.host.eventfds and not self.device.running
        assert not lguest_threads(), "the reset has not waited for a thread"
        assert self.is_clean()

    def is_clean(self) -> bool:
        size = ring_size(VIRTQUEUE_NUM)
        return all(self.memory.read(vq.ring.desc, size) == bytes(size) for vq in self.device.queues)

    def close(self) -> None:
        self.bus.close()
        close(self.memory)
        assert not self.failures


Load = Callable[[list[Driver]], None]


def kick(*drivers: Driver) -> None:
    for driver in drivers:
        driver.kick()


class Pump:
    "Threads which keep a descriptor busy from its other side until it is closed."

    def __init__(self, *jobs: Callable[[], object]) -> None:
        self.threads = [threading.Thread(target=self._run, args=[job]) for job in jobs]
        for thread in self.threads:
            thread.start()

    @staticmethod
    def _run(job: Callable[[], object]) -> None:
        with suppress(OSError):
            while job():
                pass

    def join(self) -> None:
        for thread in self.threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()


@contextmanager
def busy_rng(tmp_path: Path) -> Iterator[tuple[Device, Load]]:
    def load(drivers: list[Driver]) -> None:
        for _ in range(32):
            drivers[0].add(into=[512])
        kick(*drivers)

    yield Rng("/dev/urandom"), load


@contextmanager
def busy_block(tmp_path: Path) -> Iterator[tuple[Device, Load]]:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(64 * SECTOR))

    def load(drivers: list[Driver]) -> None:
        for sector in range(16):
            drivers[0].add(out=[HEADER.pack(T_OUT, 0, sector), b"x" * SECTOR], into=[1])
            drivers[0].add(out=[HEADER.pack(0, 0, sector)], into=[SECTOR, 1])
        kick(*drivers)

    yield Block(disk), load


@contextmanager
def busy_net(tmp_path: Path) -> Iterator[tuple[Device, Load]]:
    ours, wire = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    packet = bytes(VNET_HEADER) + b"\xff" * 60
    pump = Pump(lambda: wire.send(packet), lambda: wire.recv(4096))

    def load(drivers: list[Driver]) -> None:
        receive, transmit = drivers
        for _ in range(16):
            receive.add(into=[VNET_HEADER, 1514])
            transmit.add(out=[bytes(VNET_HEADER), b"\xff" * 60])
        kick(*drivers)

    yield Net(ours.detach()), load
    wire.shutdown(socket.SHUT_RDWR)
    pump.join()
    wire.close()


@contextmanager
def busy_console(tmp_path: Path) -> Iterator[tuple[Device, Load]]:
    (typed, keyboard), (screen, shown) = os.pipe(), os.pipe()
    pump = Pump(lambda: os.write(keyboard, b"so much to say " * 7), lambda: os.read(screen, 1 << 16))

    def load(drivers: list[Driver]) -> None:
        receive, transmit = drivers
        for _ in range(16):
            receive.add(into=[64])
            transmit.add(out=[b"hello, " * 30])
        kick(*drivers)

    yield Console(typed, shown), load
    os.close(typed)
    os.close(shown)
    pump.join()
    os.close(keyboard)
    os.close(screen)


def reset_in_the_middle(bench: Bench, load: Load, times: int) -> None:
    "Load, reset, and again: sometimes after everything was answered, mostly before."
    for i in range(times):
        drivers = bench.start()
        load(drivers)
        for _ in range(i % 4):  # none, or some of the requests
            assert bench.served.acquire(timeout=PATIENCE)
        bench.reset()


@pytest.mark.parametrize("busy", [busy_rng, busy_block, busy_net, busy_console], ids=lambda f: f.__name__[5:])
def test_a_thousand_resets_under_load(busy: Callable, tmp_path: Path) -> None:
    with busy(tmp_path) as (device, load):
        bench = Bench(device)
        reset_in_the_middle(bench, load, WARM_UP)
        with nothing_is_left_over(RESETS, resident=4):
            reset_in_the_middle(bench, load, RESETS)
        load(bench.start())
        assert bench.served.acquire(timeout=PATIENCE), "it serves no more"
        bench.close()


# A reset while a thread is stuck


def wait_until_stuck(bench: Bench, queue: int) -> Callable[[], None]:
    "A function which returns when the thread of a queue sleeps on a descriptor, or naps after its end."
    wakeup, stuck = bench.device.queues[queue].wakeup, threading.Semaphore(0)
    places = [(wakeup, "sleep_on"), (wakeup, "sleep")]
    if isinstance(bench.device, Net):
        places.append((bench.device.reader, "readv"))
    for place, name in places:
        sleep = getattr(place, name)

        def announced(*arguments: Any, sleep: Callable[..., Any] = sleep) -> Any:
            stuck.release()
            return sleep(*arguments)

        setattr(place, name, announced)

    def wait() -> None:
        assert stuck.acquire(timeout=PATIENCE)

    return wait


def full_pipe() -> list[int]:
    "Both ends of a pipe into which nothing more goes."
    ends = list(os.pipe())
    os.set_blocking(ends[1], False)
    for size in (4096, 1):
        with suppress(BlockingIOError):
            while os.write(ends[1], bytes(size)):
                pass
    os.set_blocking(ends[1], True)
    return ends


def test_reset_joins_while_stdout_is_a_full_pipe() -> None:
    ends, null = full_pipe(), os.open(os.devnull, os.O_RDWR)
    bench = Bench(Console(null, ends[1]))
    until_it_is_stuck = wait_until_stuck(bench, 1)
    for _ in range(RESETS // 10):
        (_, transmit) = bench.start()
        transmit.add(out=[b"nobody reads this"])
        transmit.kick()
        until_it_is_stuck()
        bench.reset()
    bench.close()
    for fd in (*ends, null):
        os.close(fd)


@pytest.mark.parametrize("how", ["at its end", "closed", "silent"])
def test_reset_joins_while_stdin_is(how: str) -> None:
    (keyboard, typed), output = os.pipe(), os.open(os.devnull, os.O_WRONLY)
    if how != "silent":
        os.close(typed)
    if how == "closed":
        os.close(keyboard)
    bench = Bench(Console(keyboard, output))
    until_it_is_stuck = wait_until_stuck(bench, 0)
    for _ in range(RESETS // 10):
        (receive, _) = bench.start()
        receive.add(into=[16])
        receive.kick()
        until_it_is_stuck()
        bench.reset()
    bench.close()
    os.close(output)
    for fd in {"silent": [keyboard, typed], "at its end": [keyboard], "closed": []}[how]:
        os.close(fd)


def scene_reset_joins_while_the_tap_is_down() -> None:
    from test_net_tap import HOST, switch

    card = setup_tun_net(HOST)
    bench = Bench(card)
    until_it_is_stuck = wait_until_stuck(bench, 0)
    switch("tap0", 0)
    for _ in range(RESETS // 10):
        receive, transmit = bench.start()
        receive.add(into=[VNET_HEADER, 1514])
        transmit.add(out=[bytes(VNET_HEADER), b"\xff" * 60])
        kick(receive, transmit)
        assert bench.served.acquire(timeout=PATIENCE)
        until_it_is_stuck()
        bench.reset()
    bench.close()
    assert "tap0" not in [name for _, name in socket.if_nameindex()]


def enter_a_network() -> None:
    "A namespace in which we may have taps; or this process ends."
    from network import NoNetwork, enter_own_namespace, try_a_tap

    try:
        if not enter_own_namespace():
            raise NoNetwork("no network namespace for us here")
        try_a_tap()
    except NoNetwork as e:
        print(e)
        sys.exit(NO_TAP)


def test_reset_joins_while_the_tap_is_down() -> None:
    done = subprocess.run(
        [sys.executable, __file__, scene_reset_joins_while_the_tap_is_down.__name__],
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tools'}"},
        capture_output=True,
        text=True,
    )
    if done.returncode == NO_TAP:
        pytest.skip(f"needs a tap device: {done.stdout.strip()}")
    assert done.returncode == 0, done.stdout + done.stderr


# Whole Guests


MakeDevices = Callable[[], list[Device]]


@pytest.fixture
def devices(tmp_path: Path) -> Iterator[MakeDevices]:
    "A disk, a source of randomness, and a card whose cable leads to us: new ones for each Guest."
    disk = tmp_path / "disk"
    disk.write_bytes(b"disk" * 1024)
    ours, wire = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    yield lambda: [Block(disk), Rng(), Net(os.dup(ours.fileno()))]
    ours.close()
    wire.close()


class Run:
    "The tiny Guest on a thread, with a pipe for a screen."

    def __init__(self, devices: list[Device], *commands: str) -> None:
        pytest.importorskip("unicorn", reason="the software Host needs Unicorn")
        from lguest_nb.hosts.soft.host import SoftHost

        (self.typed, self.keyboard), (self.screen, self.output) = os.pipe(), os.pipe()
        self.launcher = Launcher(16, SoftHost(), self.output)
        for device in (*devices, Console(self.typed, self.output)):
            self.launcher.add(device)
        self.launcher.load(str(path()), command_line(*commands))
        self.ending: Ending | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        with self.launcher:
            self.ending = self.launcher.run()

    def until(self, text: bytes) -> None:
        said = b""
        while text not in said:
            said += os.read(self.screen, 4096)

    def stop(self) -> None:
        self.launcher.stop()
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()
        assert self.ending == Ending("stopped"), self.ending
        for fd in (self.typed, self.keyboard, self.screen, self.output):
            os.close(fd)


def boot_and_power_off(devices: MakeDevices) -> None:
    said, ending = boot("disk read 0", "rng 8", "reset 0", "start 0", devices=devices())
    assert ending == POWER_OFF, said


def stop_at_once(devices: MakeDevices) -> None:
    Run(devices()).stop()


def stop_at_the_prompt(devices: MakeDevices) -> None:
    run = Run(devices(), "disk read 0")
    run.until(b"\ntiny> ")
    run.stop()


def stop_while_it_hangs(devices: MakeDevices) -> None:
    run = Run(devices(), "echo begin", "hang")
    run.until(b"tiny> hang")
    run.stop()


def stop_while_its_output_goes_nowhere(devices: MakeDevices) -> None:
    "It prints 64 KB and more, and nobody reads them after the first."
    run = Run(devices(), "peek 0x100000 0x20000")
    run.until(b"00100000 ")
    run.stop()


LIVES = [boot_and_power_off, stop_at_once, stop_at_the_prompt, stop_while_it_hangs, stop_while_its_output_goes_nowhere]


@pytest.mark.parametrize("life", LIVES, ids=lambda life: life.__name__)
def test_two_hundred_guests_in_one_process(life: Callable[[MakeDevices], None], devices: MakeDevices) -> None:
    "200 of each kind, in turn, leave nothing."
    pytest.importorskip("unicorn", reason="the software Host needs Unicorn")
    for _ in range(20):
        life(devices)
    with nothing_is_left_over(200, resident=64):
        for _ in range(200):
            life(devices)


@pytest.mark.parametrize("device", range(4), ids=["block", "rng", "net", "console"])
def test_a_guest_resets_and_starts_a_device_a_hundred_times(device: int, devices: MakeDevices) -> None:
    pytest.importorskip("unicorn", reason="the software Host needs Unicorn")
    said, ending = boot(*[f"reset {device}", f"start {device}"] * 100, "disk read 0", "rng 4", devices=devices())
    assert ending == POWER_OFF, said
    assert "|diskdiskdiskdisk|" in said and said.count(f"start {device}") == 100


# The command


def in_a_network_if_possible(*arguments: str) -> None:
    "In the child: become the command, with a tap if we may have one."
    from network import NoNetwork, enter_own_namespace, try_a_tap

    with suppress(NoNetwork):
        if enter_own_namespace():
            try_a_tap()
            arguments = ("--tunnet=192.168.19.1", *arguments)
    os.execv(sys.executable, [*COMMAND, *arguments])


def what_it_has(pid: int) -> dict[str, object]:
    "Of a process at its Guest's prompt; without numbers which the kernel deals out anew."
    proc = Path(f"/proc/{pid}")
    links = [os.readlink(fd).partition(":[")[0] for fd in (proc / "fd").iterdir()]
    return {
        "descriptors": sorted(links),
        "tasks": len(list((proc / "task").iterdir())),
        "children": len((proc / "task" / str(pid) / "children").read_text().split()),
        "interfaces": [line.split(":")[0].strip() for line in (proc / "net" / "dev").read_text().splitlines()[2:]],
    }


def test_ten_reboots_in_a_row_are_one_process_with_the_same_belongings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("unicorn", reason="the software Host needs Unicorn")
    (tmp_path / "disk").write_bytes(b"disk" * 128)
    arguments = [f"--block={tmp_path / 'disk'}", "--rng", "16", str(path())]
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tools'}")
    session = Session([sys.executable, __file__, in_a_network_if_possible.__name__, *arguments])
    before = termios.tcgetattr(session.controller)
    try:
        session.expect("\ntiny> ")
        has = [what_it_has(session.process.pid)]
        for i in range(10):
            assert f"reboot {i}" in session.ask(f"disk write 0 reboot {i}")
            assert "tiny guest, made of sources" in session.ask("reboot")
            assert f"reboot {i}" in session.ask("disk read 0")
            has.append(what_it_has(session.process.pid))
        assert has == has[:1] * 11
        session.type("poweroff\r")
        assert session.wait_for_end() == 0
        assert termios.tcgetattr(session.controller) == before
    finally:
        session.close()


@pytest.mark.parametrize("redirection", ["<&-", ">&-", "<&- >&-", "<&- >&- 2>&-", "</dev/null"])
def test_a_guest_runs_whatever_is_closed(redirection: str, tmp_path: Path) -> None:
    pytest.importorskip("unicorn", reason="the software Host needs Unicorn")
    (tmp_path / "disk").write_bytes(b"disk" * 128)
    run = 'run="reset 1; start 1; disk write 0 as it should be; poweroff"'
    words = [*COMMAND, f"--block={tmp_path / 'disk'}", "16", str(path()), run]
    assert subprocess.run(f"{shlex.join(words)} {redirection}", shell=True, capture_output=True).returncode == 0
    assert (tmp_path / "disk").read_bytes() == b"as it should be".ljust(512, b"\0")


if __name__ == "__main__":
    if sys.argv[1] == in_a_network_if_possible.__name__:
        in_a_network_if_possible(*sys.argv[2:])
    enter_a_network()
    globals()[sys.argv[1]]()
