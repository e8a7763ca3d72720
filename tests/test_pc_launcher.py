"""PcLauncher, and the command which uses it for 64-bit kernels: its options, and every way in which it ends.

The Guest is tests/long's: its shell is COM1, and so it is asked for by `console=ttyS0`.
"""

import fcntl
import json
import os
import signal
import struct
import subprocess
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from inside import BUFFER, GOOD, WORDS, Talk, build_guest, poke
from session import Session
from support import COMMAND, PATIENCE, forge_elf

pytest.importorskip("unicorn", reason="the software Host needs Unicorn")

from lguest_nb import cli
from lguest_nb.arguments import parse
from lguest_nb.block import S_IOERR, S_OK, SECTOR, T_IN, T_OUT
from lguest_nb.bus import mmio
from lguest_nb.hosts.pc.host import SoftPcHost
from lguest_nb.loading import LoadError
from lguest_nb.memory import LguestError
from lguest_nb.pc.acpi import PM1A_CONTROL, RESET_PORT, RESET_VALUE, SLEEP_TYPE_OFF
from lguest_nb.pc.launcher import MEMORY_MAX_MB, PANIC, PcLauncher, with_words
from lguest_nb.pc.power import SLEEP_NOW
from lguest_nb.rng import Rng
from lguest_nb.session import HINT, KEYS
from lguest_nb.vring import DESC_NEXT, DESC_WRITE

pytestmark = pytest.mark.usefixtures("nothing_left")
POWER_OFF = f"out {PM1A_CONTROL:x} 2 {SLEEP_TYPE_OFF << 10 | SLEEP_NOW:x}"
RESET = f"out {RESET_PORT:x} 1 {RESET_VALUE:x}"
WARM = "w 472 2 1234"  # what Linux says first if it was its panic which wants the reset
FOR_EVER = "until 100000 0 1"
SHELL = "console=ttyS0"
DISK = bytes(range(256)) * 8
ONE, TWO = range(2)  # slots, by how many queues tests/inside.py thinks that they have
CARDS = """
import os

from lguest_nb.net import Net


class Card(Net):
    "A card whose cable leads nowhere."

    def __init__(self, where):
        super().__init__(os.open(where, os.O_RDWR))
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Talk]]:
    "`lguest-nb` with these options, in the test's directory, where a disk and a module with a card are."
    (tmp_path / "disk").write_bytes(DISK)
    (tmp_path / "cards.py").write_text(CARDS)
    started: list[Talk] = []

    def talk(*options: str) -> Talk:
        started.append(Talk([*COMMAND, *options, "16", str(build_guest()), SHELL], tmp_path / "log"))
        return started[-1]

    yield talk
    for each in started:
        each.close()


def switch_off(guest: Talk) -> None:
    guest.say(POWER_OFF)
    assert guest.process.wait(PATIENCE) == 0


def verdict(guest: Talk, kind: int, sector: int) -> int:
    "What the disk says to a request for one sector, whose data is at BUFFER."
    guest.begin(ONE)
    guest.ask(*poke(WORDS, struct.pack("<IIQ", kind, 0, sector)))
    data = DESC_NEXT | (DESC_WRITE if kind == T_IN else 0)
    guest.offer(ONE, (WORDS, 16, DESC_NEXT, 1), (BUFFER, SECTOR, data, 2), (WORDS + 16, 1, DESC_WRITE, 0))
    guest.answer(ONE)
    return guest.peek(WORDS + 16, 1)[0]


class TestOptions:
    def test_all_of_them_together_write_down_what_the_guest_did(self, start, tmp_path: Path) -> None:
        options = ["--rng", "--device=cards:Card=/dev/null", "--trace=trace.json", "--pcap=packets", "--stats"]
        guest = start(*options)
        guest.begin(ONE)
        guest.offer(ONE, GOOD)
        assert guest.answer(ONE) == (1, 0, 16)
        guest.begin(TWO)
        guest.ask(*poke(WORDS, bytes(12) + b"frame" * 12))
        guest.offer(TWO, (WORDS, 12 + 60, 0, 0), queue=1)
        assert guest.answer(TWO, 1) == (1, 0, 0)
        switch_off(guest)
        events = json.loads((tmp_path / "trace.json").read_text())
        seen = {(event.get("cat"), event["name"]) for event in events}
        assert {("rng:0", what) for what in ("kick", "take", "used", "interrupt")} <= seen
        assert {("net:1", what) for what in ("kick", "take", "used", "interrupt")} <= seen
        assert {("rng", "start"), ("net", "start")} <= seen
        assert (tmp_path / "packets").read_bytes()[24 + 16 :] == b"frame" * 12
        stats = dict(line.rsplit(": ", 1) for line in guest.log.read_text().splitlines())
        assert int(stats["kicks"]) == 2 and int(stats["interrupts"]) >= 2

    def test_verbose_says_what_happens_in_order(self, tmp_path: Path) -> None:
        (tmp_path / "disk").write_bytes(DISK)
        line = [*COMMAND, "-v", "--host=soft", "--rng", "--block=disk,ro", "16", build_guest(), SHELL, "and more"]
        done = subprocess.run(line, input=f"{POWER_OFF}\n", capture_output=True, text=True, cwd=tmp_path, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
        *first, last = done.stdout.splitlines()
        assert last.startswith("here I am ok")
        assert first[:3] == [
            "device 1: rng",
            "device 2: virtblock 4 sectors, read-only",
            f"command line: {with_words(SHELL, SoftPcHost.clock_words)} and more",
        ]
        assert first[-2].startswith("64-bit kernel: entry 0x1") and first[-1].startswith("Guest: 0x1000000 bytes")

    def test_a_trace_on_stderr_has_a_line_for_each_event(self, start) -> None:
        guest = start("--rng", "--trace")
        guest.begin(ONE)
        guest.reset(ONE)
        switch_off(guest)
        events = [line.split()[-2:] for line in guest.log.read_text().splitlines()]
        assert ["rng", "start"] in events and ["rng", "reset"] in events


class TestDisks:
    def test_what_the_guest_writes_is_in_the_file(self, start, tmp_path: Path) -> None:
        guest = start("--block=disk")
        guest.ask(f"fill {BUFFER:x} {SECTOR:x} ee")
        assert verdict(guest, T_OUT, 1) == S_OK
        switch_off(guest)
        assert (tmp_path / "disk").read_bytes() == DISK[:SECTOR] + b"\xee" * SECTOR + DISK[2 * SECTOR :]

    @pytest.mark.parametrize(("how", "said"), [("ro", S_IOERR), ("snapshot", S_OK)])
    def test_neither_read_only_nor_as_a_snapshot_does_a_disk_change(
        self, start, tmp_path: Path, how: str, said: int
    ) -> None:
        guest = start(f"--block=disk,{how}")
        guest.ask(f"fill {BUFFER:x} {SECTOR:x} ee")
        assert verdict(guest, T_OUT, 1) == said
        assert verdict(guest, T_IN, 1) == S_OK
        assert guest.peek(BUFFER, 2) == (b"\xee\xee" if how == "snapshot" else DISK[:2])
        switch_off(guest)
        assert (tmp_path / "disk").read_bytes() == DISK


class TestEndings:
    def test_a_power_off_is_status_0_and_prints_only_what_the_guest_printed(self, start) -> None:
        guest = start("--rng")
        switch_off(guest)
        assert guest.log.read_text() == ""

    def test_a_panic_is_status_1_and_a_sentence(self, start) -> None:
        guest = start()
        guest.say(WARM, RESET)
        assert guest.process.wait(PATIENCE) == 1
        assert guest.log.read_text() == f"lguest-nb: {PANIC}\n"

    def test_a_processor_which_cannot_go_on_is_status_1_and_a_sentence(self, start) -> None:
        guest = start()
        guest.say("fill 100000 8000 ff")  # its program, and the table of what to do about that
        assert guest.process.wait(PATIENCE) == 1
        assert guest.log.read_text().startswith("lguest-nb: ") and guest.log.read_text().count("\n") == 1
        assert "defect" not in guest.log.read_text()

    def test_a_reset_is_the_same_command_again_in_the_same_process_with_the_same_files(self, start) -> None:
        guest = start("--rng", "--device=cards:Card=/dev/null", "--block=disk")
        pid, descriptors = guest.process.pid, []
        for _ in range(3):
            descriptors.append(len(os.listdir(f"/proc/{pid}/fd")))
            guest.say(RESET)
            while guest.answers(1) != ["here I am ok"]:
                pass
        assert len(set(descriptors)) == 1
        switch_off(guest)
        assert guest.log.read_text() == ""

    @pytest.mark.parametrize(
        ("number", "doing"), [(signal.SIGTERM, FOR_EVER), (signal.SIGHUP, ""), (signal.SIGINT, FOR_EVER)]
    )
    def test_a_signal_ends_it_as_that_signal(self, start, number: signal.Signals, doing: str) -> None:
        guest = start("--trace=trace.json")
        guest.ask("count 0")
        if doing:
            guest.say(doing)
        guest.process.send_signal(number)
        assert guest.process.wait(PATIENCE) == -number
        assert (guest.log.parent / "trace.json").read_text().endswith("]\n")

    def test_nobody_who_reads_what_it_prints_is_status_1_and_a_sentence(self, start) -> None:
        guest = start()
        assert guest.process.stdout is not None
        guest.process.stdout.close()
        guest.say("count 0")
        try:
            assert guest.process.wait(PATIENCE) == 1
        finally:
            guest.process.stdout = open(os.devnull, "rb")
        assert "Broken pipe" in guest.log.read_text() and guest.log.read_text().count("\n") == 1


@pytest.fixture
def terminal() -> Iterator[Session]:
    "The command at a terminal, where the Guest waits for a line."
    session = Session([*COMMAND, "--rng", "16", str(build_guest()), SHELL])
    before = termios.tcgetattr(session.controller)
    session.expect("here I am ok")
    assert termios.tcgetattr(session.controller) != before
    yield session
    try:
        assert session.process.poll() is not None
        assert termios.tcgetattr(session.controller) == before
    finally:
        session.close()


class TestAtATerminal:
    @pytest.mark.parametrize("doing", ["", FOR_EVER])
    def test_three_control_c_end_it_as_a_sigint_with_the_terminal_as_it_was(
        self, terminal: Session, doing: str
    ) -> None:
        terminal.type(f"{doing}\n\3\3\3")
        assert terminal.wait_for_end() == -signal.SIGINT

    def test_the_keys_behind_control_a_are_not_for_the_guest(self, terminal: Session) -> None:
        terminal.expect(HINT)
        terminal.type("\1h")
        terminal.expect(KEYS)
        terminal.type("\1i")
        terminal.expect("rng: not running")
        terminal.type("count 0\n")
        terminal.expect(" 0 0 ok\n")
        assert "what?" not in terminal.seen
        terminal.type("\1\1\n")  # this one is
        terminal.expect("what?")
        terminal.type(f"{FOR_EVER}\n\1x")
        assert terminal.wait_for_end() == 0
        assert terminal.seen.endswith("You left.\n")


def in_vain(*line: str) -> str:
    "What the command says when it cannot even begin."
    done = subprocess.run([*COMMAND, *line], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("lguest-nb: ") and done.stderr.count("\n") == 1
    return done.stderr.removeprefix("lguest-nb: ")


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ("--host=lguest", "/dev/lguest runs 32-bit kernels with lguest support, and this is a 64-bit one"),
            ("--gdb=0", "--gdb can look into 32-bit Guests only, and this is a 64-bit kernel."),
        ],
    )
    def test_what_is_for_the_other_kind_of_kernel_is_a_sentence(self, options: str, said: str) -> None:
        with pytest.raises(LguestError, match=said):
            cli.make_launcher(parse([options, "16", str(build_guest())]), 0)

    @pytest.mark.parametrize("megabytes", [0, 1, MEMORY_MAX_MB + 1, 999999999])
    def test_memory_which_cannot_be_is_a_sentence(self, megabytes: int) -> None:
        with pytest.raises(LguestError, match=f"can have 2 to {MEMORY_MAX_MB} MB of memory, not {megabytes}"):
            cli.make_launcher(parse([str(megabytes), str(build_guest())]), 0)

    @pytest.mark.parametrize("megabytes", [2, MEMORY_MAX_MB])
    def test_the_least_and_the_most_memory_can_be_had(self, megabytes: int) -> None:
        line = [*COMMAND, str(megabytes), str(build_guest()), SHELL]
        done = subprocess.run(line, input=f"{POWER_OFF}\n", capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("here I am ok")

    def test_what_does_not_fit_says_how_much_would(self, tmp_path: Path) -> None:
        initrd = tmp_path / "initrd"
        initrd.write_bytes(bytes(1 << 20))
        said = in_vain(f"--initrd={initrd}", "2", str(build_guest()))
        assert said.startswith(f"The initrd {initrd} has 1048576 bytes and must end at or below 0x200000")

    def test_a_missing_disk_and_one_in_use_are_sentences(self, tmp_path: Path) -> None:
        disk = tmp_path / "disk"
        line = [f"--block={disk}", "16", str(build_guest())]
        assert in_vain(*line).startswith(f"Failed to open {disk}: No such file or directory")
        disk.write_bytes(DISK)
        with disk.open() as other:
            fcntl.flock(other, fcntl.LOCK_SH)
            assert in_vain(*line).startswith(f"The disk {disk} is in use by another Launcher")

    def test_a_kernel_for_another_processor_is_called_by_its_name(self, tmp_path: Path) -> None:
        kernel = tmp_path / "vmlinux"
        kernel.write_bytes(forge_elf(ident=b"\x7fELF\2\1\1", machine=183))
        assert in_vain("16", str(kernel)).startswith("This is a 64-bit ELF file for arm64.")

    def test_a_module_without_the_class_is_a_sentence(self) -> None:
        said = in_vain("--device=lguest_nb.rng:Nothing", "16", str(build_guest()))
        assert "has no class 'Nothing'" in said


@pytest.fixture
def launcher() -> Iterator[PcLauncher]:
    screen = os.open(os.devnull, os.O_WRONLY)
    launcher = PcLauncher(16, SoftPcHost(), screen)
    yield launcher
    launcher.close()
    os.close(screen)


class TestLauncher:
    def test_without_a_kernel_there_is_nothing_to_run(self, launcher: PcLauncher) -> None:
        with pytest.raises(LguestError, match="There is no kernel in this Guest's memory yet."):
            launcher.run()

    def test_what_was_never_run_can_be_closed(self, launcher: PcLauncher) -> None:
        launcher.add(Rng("/dev/zero"))
        launcher.load(str(build_guest()))
        launcher.stop()

    def test_there_are_as_many_devices_as_lines(self, launcher: PcLauncher) -> None:
        for _ in mmio.SLOT_LINES:
            launcher.add(Rng("/dev/zero"))
        with pytest.raises(LguestError, match=f"Too many devices: rng would be number {len(mmio.SLOT_LINES) + 1}"):
            launcher.add(Rng("/dev/zero"))

    def test_a_kernel_which_was_refused_leaves_room_for_another(self, launcher: PcLauncher, tmp_path: Path) -> None:
        (tmp_path / "nothing").touch()
        with pytest.raises(LoadError, match="is an empty file"):
            launcher.load(str(tmp_path / "nothing"))
        launcher.load(str(build_guest()))

    def test_a_stop_from_another_thread_ends_it_and_is_no_death(self, launcher: PcLauncher) -> None:
        launcher.load(str(build_guest()))
        told = threading.Timer(0, launcher.stop)
        told.start()
        assert launcher.run().how == "stopped"
        told.join()
