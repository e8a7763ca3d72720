"""The Launcher puts everything together in the right order, and whatever happens takes it apart again."""

import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from fakes import ScriptedHost, Step, connect
from support import PATIENCE, Piece, forge_elf, lguest_threads

from lguest_nb import launcher as launcher_module
from lguest_nb.block import Block
from lguest_nb.console import Console
from lguest_nb.device import Device
from lguest_nb.host import BootState, Ending, HostError, shutdown_ending
from lguest_nb.launcher import MEMORY_MAX_MB, Launcher, check_processor, memory_bytes
from lguest_nb.loading import LoadError, room_for_tables
from lguest_nb.memory import GuestError, LguestError
from lguest_nb.net import Net
from lguest_nb.rng import Rng
from lguest_nb.vring import Virtqueue

pytestmark = pytest.mark.usefixtures("nothing_left")
MB = 1 << 20


class Raiser(Device):
    "A device whose service functions do what the test wants, after one chain has come."

    def __init__(self, *deeds: Callable[[Virtqueue], None]) -> None:
        super().__init__("raiser", 99)
        self.deeds, self.closed = deeds, 0

    @property
    def services(self) -> Sequence[Callable[[Virtqueue], None]]:
        return [lambda vq, deed=deed: deed(vq) for deed in self.deeds]

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def kernel(tmp_path: Path) -> str:
    path = tmp_path / "vmlinux"
    path.write_bytes(forge_elf(Piece(data=b"kernel" + bytes(58)), entry=0x100020))
    return str(path)


@pytest.fixture
def screen() -> Iterator[tuple[int, int]]:
    "Where a test reads what the Guest printed, and where it prints."
    reads, writes = os.pipe()
    yield reads, writes
    os.close(reads)
    os.close(writes)


def status(value: int, device: int = -1) -> Step:
    "The step of a script in which a driver writes a status."

    def step(host: ScriptedHost) -> int:
        place = host.bus.places[device]
        host.memory.u8[place.status] = value
        return place.address

    return step


def poke(address: int) -> Step:
    return lambda host: address


def kick(queue: int = 0, device: int = -1, idx: int | None = None) -> Step:
    "The step in which a driver makes `idx` heads available and kicks."

    def step(host: ScriptedHost) -> int:
        vq = host.bus.places[device].device.queues[queue]
        if idx is not None:
            host.memory.u16[vq.avail + 1] = idx
        return vq.ring.desc

    return step


def until_stopped(host: ScriptedHost) -> None:
    assert host.stopped.wait(PATIENCE)


class TestMemory:
    @pytest.mark.parametrize("megabytes", [1, 64, 512, MEMORY_MAX_MB])
    def test_it_is_counted_in_mebibytes(self, megabytes: int) -> None:
        assert memory_bytes(megabytes) == megabytes * MB

    @pytest.mark.parametrize("megabytes", [0, -1, MEMORY_MAX_MB + 1, 1 << 30, 1 << 80])
    def test_what_no_32_bit_guest_can_have_is_refused_with_the_limit(self, megabytes: int) -> None:
        with pytest.raises(LguestError, match=f"1 to {MEMORY_MAX_MB} MB of memory, not {megabytes}"):
            memory_bytes(megabytes)

    def test_the_most_leaves_room_for_devices_below_the_hosts_4_mb(self) -> None:
        assert MEMORY_MAX_MB * MB + 256 * 4096 <= 0xFFC00000 <= (MEMORY_MAX_MB + 2) * MB

    @pytest.mark.parametrize("machine", ["aarch64", "riscv64", "ppc64le"])
    def test_another_processor_is_told_so(self, monkeypatch, machine: str) -> None:
        monkeypatch.setattr(launcher_module.platform, "machine", lambda: machine)
        with pytest.raises(LguestError, match=f"x86 processors only, .* this one is {machine}"):
            check_processor()

    @pytest.mark.parametrize("machine", ["x86_64", "i386", "i686"])
    def test_every_x86_will_do(self, monkeypatch, machine: str) -> None:
        monkeypatch.setattr(launcher_module.platform, "machine", lambda: machine)
        check_processor()


class TestDevices:
    def test_they_get_addresses_interrupts_and_rings_in_their_order(self, tmp_path: Path) -> None:
        disk = tmp_path / "disk"
        disk.write_bytes(bytes(512))
        with Launcher(1, ScriptedHost()) as launcher:
            devices = [Rng(), Block(disk), Net(os.open("/dev/null", os.O_RDWR)), Console()]
            for device in devices:
                launcher.add(device)
            assert launcher.devices == [place.device for place in launcher.bus.places] == devices
            rings = [vq.ring.desc for device in devices for vq in device.queues]
            assert rings == [MB + 4096 * (1 + 3 * i) for i in range(6)]
            for vq in (vq for device in devices for vq in device.queues):
                launcher.bus.host = launcher.host
                vq.interrupt()
            assert launcher.host.interrupts == [1, 2, 3, 4, 5, 6]

    def test_verbose_numbers_them_from_1(self, tmp_path: Path, caplog) -> None:
        caplog.set_level(logging.INFO, "lguest_nb")
        disk = tmp_path / "disk"
        disk.write_bytes(bytes(1024))
        with Launcher(1, ScriptedHost()) as launcher:
            for device in (Block(disk), Rng(), Net(os.open("/dev/null", os.O_RDWR), None, "tap7: 10.0.0.1"), Console()):
                launcher.add(device)
        said = [message for message in caplog.messages if message.startswith("device")]
        assert said == [
            "device 1: virtblock 2 sectors",
            "device 2: rng",
            "device 3: tun tap7: 10.0.0.1",
            "device 4: console",
        ]

    def test_the_launcher_gives_back_a_device_which_the_bus_refused(self) -> None:
        raiser = Raiser(*[lambda vq: None] * 32)
        with Launcher(1, ScriptedHost()) as launcher, pytest.raises(LguestError, match="Too many devices"):
            launcher.add(raiser)
        assert raiser.closed == 1


class TestLoad:
    def test_the_order_is_kernel_then_initrd_then_parameters(self, kernel: str, tmp_path: Path, monkeypatch) -> None:
        order = []
        for name in ("load_kernel", "load_initrd", "write_boot_params"):
            call = getattr(launcher_module, name)
            monkeypatch.setattr(
                launcher_module, name, lambda *a, name=name, call=call: (order.append(name), call(*a))[1]
            )
        (tmp_path / "initrd").write_bytes(b"070701")
        with Launcher(1 + 1, ScriptedHost()) as launcher:
            launcher.load(kernel, "quiet", str(tmp_path / "initrd"))
        assert order == ["load_kernel", "load_initrd", "write_boot_params"]

    def test_all_of_it_is_in_memory_before_the_host_starts(self, kernel: str, tmp_path: Path) -> None:
        (tmp_path / "initrd").write_bytes(b"070701")

        class Looks(ScriptedHost):
            def start(self, memory, boot, bus) -> None:
                super().start(memory, boot, bus)
                self.seen = memory.read(0x100000, 6), memory.string(0x1000, 99), memory.read(2 * MB - 4096, 6)
                self.e820, self.ramdisk = memory.u32[0x2D8 // 4], memory.u32[0x21C // 4]
                self.limit = memory.limit

        host = Looks()
        with Launcher(2, host) as launcher:
            launcher.add(Console())
            launcher.load(kernel, "root=/dev/vda quiet", str(tmp_path / "initrd"))
            assert launcher.run() == Ending("power-off", "Power down")
        assert host.seen == (b"kernel", b"root=/dev/vda quiet", b"070701")
        assert (host.e820, host.ramdisk) == (2 * MB, 4096)
        assert host.boot == BootState(0x100020)
        assert host.limit == 2 * MB + 4096 * 7

    def test_a_kernel_without_initrd_leaves_room_for_the_page_tables(self, tmp_path: Path) -> None:
        most = 2 * MB - room_for_tables(2 * MB) - 0x100000
        path = tmp_path / "vmlinux"
        for memsz in (most, most + 1):
            path.write_bytes(forge_elf(Piece(memsz=memsz)))
            with Launcher(2, ScriptedHost()) as launcher:
                if memsz == most:
                    launcher.load(str(path))
                else:
                    with pytest.raises(LoadError, match="with the page tables that does not fit into 2 MB"):
                        launcher.load(str(path))

    def test_the_first_page_tables_are_left_to_the_host(self, kernel: str, tmp_path: Path) -> None:
        (tmp_path / "initrd").write_bytes(b"070701")
        with Launcher(8, ScriptedHost()) as launcher:
            launcher.load(kernel, "", str(tmp_path / "initrd"))
            room = room_for_tables(8 * MB)
            assert launcher.memory.read(8 * MB - 4096 - room, room) == bytes(room)


class TestRun:
    def test_what_the_host_says_of_the_end_is_the_end(self, kernel: str) -> None:
        for ending in (
            Ending("restart"),
            Ending("died", "CRASH: panic"),
            Ending("stopped"),
            shutdown_ending("Power down"),
        ):
            with Launcher(2, ScriptedHost(lambda host, ending=ending: ending)) as launcher:
                launcher.load(kernel)
                assert launcher.run() == ending

    def test_only_power_down_exactly_is_peaceful(self) -> None:
        assert shutdown_ending("Power down") == Ending("power-off", "Power down")
        for text in ("power down", "Power down ", "", "Power down\n", "VFS: Unable to mount root fs"):
            assert shutdown_ending(text) == Ending("died", f"CRASH: {text}")

    def test_start_and_run_are_on_the_thread_which_called_run(self, kernel: str) -> None:
        threads = []

        class Notes(ScriptedHost):
            def start(self, *args) -> None:
                threads.append(threading.get_ident())
                super().start(*args)

        with Launcher(2, Notes(lambda host: threads.append(threading.get_ident()))) as launcher:
            launcher.load(kernel)
            launcher.run()
        assert threads == [threading.get_ident()] * 2

    def test_verbose_says_what_the_guest_has(self, kernel: str, caplog) -> None:
        caplog.set_level(logging.INFO, "lguest_nb")
        with Launcher(2, ScriptedHost()) as launcher:
            launcher.run()
        assert "Guest: 0x200000 bytes, limit 0x201000" in caplog.messages

    def test_early_text_goes_to_the_output_before_there_is_a_console(self, kernel: str, screen) -> None:
        def hello(host: ScriptedHost) -> int:
            host.memory.write(0x5000, b"Linux version 2.6.31\n\0not this")
            return 0x5000

        with Launcher(2, ScriptedHost(hello), output_fd=screen[1]) as launcher:
            launcher.load(kernel)
            launcher.run()
        assert os.read(screen[0], 999) == b"Linux version 2.6.31\n"

    def test_a_full_pipe_does_not_keep_early_text_from_being_stopped(self, kernel: str, screen) -> None:
        os.set_blocking(screen[1], False)
        with pytest.raises(BlockingIOError):
            while True:
                os.write(screen[1], bytes(4096))
        os.set_blocking(screen[1], True)

        def hello(host: ScriptedHost) -> int:
            host.memory.write(0x5000, b"stuck\0")
            stopper.start()
            return 0x5000

        with Launcher(2, ScriptedHost(hello), output_fd=screen[1]) as launcher:
            stopper = threading.Thread(target=launcher.stop)
            launcher.load(kernel)
            assert launcher.run() == Ending("stopped")
        stopper.join()

    def test_a_console_works_both_ways(self, kernel: str, screen) -> None:
        keys, typed = os.pipe()

        def converse(host: ScriptedHost) -> None:
            rx, tx = host.bus.places[-1].device.queues
            receive, transmit = connect(host, rx, 1, 0x10000), connect(host, tx, 2, 0x20000)
            transmit.add(out=[b"login: "])
            receive.add(into=[64])
            for vq in (tx, rx):
                host.kick(vq.ring.desc)
            transmit.wait_used()
            os.write(typed, b"root\r")
            assert [used.data for used in receive.wait_used()] == [b"root\r"]

        with Launcher(2, ScriptedHost(status(7), converse)) as launcher:
            launcher.add(Console(keys, screen[1]))
            launcher.load(kernel)
            assert launcher.run().how == "power-off"
        assert os.read(screen[0], 99) == b"login: "
        os.close(keys)
        os.close(typed)


class TestDeath:
    def run(self, *script: Step, device: Device | None = None) -> Ending:
        host = ScriptedHost(*script)
        with Launcher(2, host) as launcher:
            launcher.add(device or Console())
            ending = launcher.run()
        assert host.closed == 1
        return ending

    def test_a_broken_ring_kills_the_guest_with_a_sentence(self) -> None:
        ending = self.run(status(7), kick(1, idx=999), until_stopped)
        said = "console:1: Guest moved used index from 0 to 999, not 1 to 256 ahead."
        assert ending == Ending("died", said)

    def test_the_first_failure_counts(self) -> None:
        ending = self.run(status(7), kick(1, idx=999), until_stopped, kick(0, idx=998))
        assert ending.reason.startswith("console:1:")

    @pytest.mark.parametrize(
        ("script", "reason"),
        [
            ([poke(0xFFFFF000)], "Bad NOTIFY 0xfffff000: "),
            (
                [status(7), lambda host: host.bus.notify(host.bus.places[0].device.queues[0].ring.desc)],
                "Notification on running",
            ),
        ],
    )
    def test_a_wrong_notify_kills_the_guest(self, script, reason: str) -> None:
        ending = self.run(*script)
        assert ending.how == "died"
        assert ending.reason.startswith(reason)

    @pytest.mark.parametrize("queue", [0, 1])
    def test_what_a_service_function_raises_comes_out_of_run(self, queue: int) -> None:
        error = RuntimeError("boom")

        def boom(vq: Virtqueue) -> None:
            window = vq.wait().in_views()  # held by the frame when it raises
            raise error from LguestError(str(len(window)))

        def serve(vq: Virtqueue) -> None:
            vq.add_used(vq.wait(), 0)

        deeds = [serve, serve]
        deeds[queue] = boom
        with pytest.raises(RuntimeError) as caught:
            self.run(status(7), kick(queue, idx=1), until_stopped, device=Raiser(*deeds))
        assert caught.value is error
        assert lguest_threads() == []

    def test_a_guest_error_of_a_device_is_a_death(self) -> None:
        def accuse(vq: Virtqueue) -> None:
            vq.wait()
            raise GuestError("Output buffers in rng?")

        ending = self.run(status(7), kick(0, idx=1), until_stopped, device=Raiser(accuse))
        assert ending == Ending("died", "Output buffers in rng?")

    def test_a_host_which_cannot_start_is_not_the_guests_fault(self) -> None:
        class Unavailable(ScriptedHost):
            def start(self, *args: object) -> None:
                raise HostError("No /dev/lguest here.")

        host = Unavailable()
        with pytest.raises(HostError, match="No /dev/lguest here"), Launcher(2, host) as launcher:
            launcher.add(Console())
            launcher.run()
        assert host.closed == 1

    def test_an_exception_with_a_window_on_memory_does_not_keep_the_memory(self) -> None:
        "What goes wrong on the CPU thread holds frames too."

        class Clumsy(ScriptedHost):
            def run(self) -> Ending:
                window = self.memory.view(0, 16)
                raise HostError(f"The processor failed with {len(window)} bytes in its hands.")

        with pytest.raises(HostError, match="failed with 16 bytes"), Launcher(2, Clumsy()) as launcher:
            launcher.run()

    def test_stop_ends_it_from_any_thread(self) -> None:
        def stop(host: ScriptedHost) -> None:
            stopper.start()
            until_stopped(host)

        host = ScriptedHost(stop, lambda host: Ending("died", "went on"))
        with Launcher(2, host) as launcher:
            stopper = threading.Thread(target=launcher.stop)
            assert launcher.run() == Ending("stopped")
        stopper.join()

    def test_a_stop_in_the_middle_of_which_run_returned_touches_nothing_that_was_closed(self) -> None:
        launcher = Launcher(2, ScriptedHost())
        launcher.close()
        launcher.stop()

    def test_closing_stops_devices_first_and_gives_everything_back(self) -> None:
        order: list[str] = []
        raiser = Raiser(lambda vq: vq.wait())
        raiser.close = lambda: order.append(f"device, {len(lguest_threads())} threads")  # type: ignore[method-assign]
        host = ScriptedHost(status(7))
        host.close = lambda: order.append("host")  # type: ignore[method-assign]
        with Launcher(2, host) as launcher:
            launcher.add(raiser)
            launcher.run()
        assert order == ["device, 0 threads", "host"]
        assert host.eventfds == {}
        assert launcher.memory.fd == -1

    def test_a_device_which_cannot_be_closed_keeps_nothing_else_open(self) -> None:
        raiser = Raiser(lambda vq: vq.wait())
        raiser.close = lambda: 1 // 0  # type: ignore[method-assign, return-value]
        host = ScriptedHost(status(7))
        with pytest.raises(ZeroDivisionError), Launcher(2, host) as launcher:
            launcher.add(raiser)
            launcher.run()
        assert (host.closed, launcher.memory.fd) == (1, -1)

    def test_this_process_and_its_terminal_are_left_alone(self, monkeypatch) -> None:
        for name in ("kill", "killpg", "_exit", "abort"):
            monkeypatch.setattr(os, name, lambda *_, name=name: pytest.fail(f"os.{name} was called"))
        monkeypatch.setattr(launcher_module.logging.root, "handlers", [])
        self.run(status(7), kick(1, idx=999), until_stopped)
