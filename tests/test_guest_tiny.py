"""The tiny Guest does what its shell promises, in any size of memory, on the software Host."""

import os
import re
import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

pytest.importorskip("unicorn", reason="the software Host needs Unicorn")

from lguest_nb.block import Block
from lguest_nb.console import Console
from lguest_nb.device import Device
from lguest_nb.guest import boot, command_line, path, poke_available, poke_descriptors, poke_line, sources_sum
from lguest_nb.host import Ending
from lguest_nb.launcher import Launcher
from lguest_nb.memory import LguestError
from lguest_nb.net import Net
from lguest_nb.rng import Rng
from lguest_nb.vring import DESC_NEXT, DESC_WRITE, ring_at

POWER_OFF = Ending("power-off", "Power down")
FIRST_RING = 0x1001000  # of the first device in 16 MB: behind the descriptor page
PROMPT = "tiny> "


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    "Eight sectors, of which the first says so, and two are programs."
    file = tmp_path / "disk"
    programs = [b"\xb8" + bytes([n]) * 4 + b"\xc3" for n in (0x11, 0x22)]
    contents = [b"This is sector zero.", b"", *programs, b"", b"", b"", b"last"]
    file.write_bytes(b"".join(sector.ljust(512, b"\0") for sector in contents))
    return file


def answers(said: str) -> list[str]:
    "What was said after each prompt."
    return [part.partition("\n")[2] for part in said.split(PROMPT)[1:]]


def ask(*commands: str, devices: Sequence[Device] = (), megabytes: int = 16) -> list[str]:
    said, ending = boot(*commands, devices=devices, megabytes=megabytes)
    assert ending == POWER_OFF, said
    return answers(said)[: len(commands)]


def test_says_what_it_was_made_of() -> None:
    said, ending = boot()
    assert ending == POWER_OFF
    assert f"sources {sources_sum()}: 16384 KB" in said


def test_help_names_every_command() -> None:
    [help_text] = ask("help")
    names = {line.split()[0] for line in help_text.splitlines()}
    assert {"dev", "disk", "rng", "ping", "time", "user", "peek", "poke", "kick", "call", "reset", "start"} <= names


def test_dev_lists_what_the_descriptor_page_has(disk: Path) -> None:
    [dev] = ask("dev", devices=[Rng(), Block(disk)])
    assert [line for line in dev.splitlines() if line[0].isdigit()] == [
        "0: type 4 rng at 0x1000000, status 7",
        "1: type 2 block at 0x100000d, status 7",
        "2: type 3 console at 0x100002c, status 7",
    ]
    assert "features offered 05, accepted 05" in dev
    assert "config 08 00 00 00 00 00 00 00" in dev


def test_disk_reads_writes_and_refuses(disk: Path) -> None:
    size, first, wrote, refused, last = ask(
        "disk", "disk read 0", "disk write 3 some words", "disk read 8", "disk read 7", devices=[Block(disk)]
    )
    assert size == "disk 0: 8 sectors of 512 bytes\n"
    assert first.endswith("\nThis is sector zero.\n")
    assert wrote.endswith("\nsome words\n")
    assert "I/O error at sector 8" in refused
    assert last.endswith("\nlast\n")
    assert disk.read_bytes()[3 * 512 :][:512] == b"some words".ljust(512, b"\0")


def test_a_second_disk_is_another_one(disk: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"other".ljust(1024, b"\0"))
    size, first, none = ask("disk 1", "disk 1 read 0", "disk 2", devices=[Block(disk), Block(other)])
    assert size == "disk 1: 2 sectors of 512 bytes\n"
    assert first.endswith("\nother\n")
    assert none == "there is no disk 2\n"


def test_a_program_from_disk_replaces_the_one_before(disk: Path) -> None:
    commands = ["disk load 2 0x900000", "call 0x900000", "disk load 3 0x900000", "call 0x900000"]
    _, first, _, second = ask(*commands, devices=[Block(disk)])
    assert (first, second) == ("eax = 0x11111111\n", "eax = 0x22222222\n")


def test_rng_gives_as_many_bytes_as_asked(tmp_path: Path) -> None:
    source = tmp_path / "random"
    source.write_bytes(bytes(range(64)))
    [drawn] = ask("rng 40", devices=[Rng(source)])
    assert bytes.fromhex(drawn) == bytes(range(40))


def test_ring_3_does_well_or_dies_alone() -> None:
    [user] = ask("user")
    assert user.splitlines() == [
        "user hello: hello from ring 3, I can ask the time, there is no call 99",
        "hello: exit 42",
        "user stack: three pages of stack came when I touched them",
        "stack: exit 0",
        *(line for line in user.splitlines() if ": killed at 0804" in line),
        "user cheat: cheat: exit 0",
    ]
    why = dict(re.findall(r"user (\w+): killed at \w+: (.*)", user))
    assert why == {
        "kernel": "write to c0010000, which is not its own",
        "null": "read of 00000010, where there is nothing",
        "cli": "trap 13",
        "divide": "trap 0",
        "loop": "its time is up",
    }


def test_peek_sees_what_poke_wrote() -> None:
    _, seen, line, called = ask(
        poke_line(0x900000, bytes(range(20))), "peek 0x900000 20", "peek 0x1000 16", "poke 0x910000 b834120000c3"
    )
    assert seen.splitlines()[0] == "00900000  00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f  |................|"
    assert seen.splitlines()[1].startswith("00900010  10 11 12 13    ")
    assert '|run="poke' in line
    assert called == ""


def test_a_kicked_string_is_printed() -> None:
    said, _ = boot(poke_line(0x900000, b"I made this myself\n\0"), "kick 0x900000")
    assert "I made this myself\n" in said


def test_ports_are_empty_slots() -> None:
    assert ask("in 0x60", "out 0x80 1") == ["0xffffffff\n", ""]


@pytest.mark.parametrize("megabytes", [1, 2, 5, 1015, 1017, 2048])
def test_runs_in_any_memory(megabytes: int, disk: Path) -> None:
    top = megabytes << 20
    load, seen, _, called, user = ask(
        f"disk load 0 {top - 0x20000 - 512:#x}",
        f"peek {top - 0x20000 - 512:#x} 16",
        f"poke {top - 32:#x} b834120000c3" if megabytes < 1016 else "echo",
        f"call {top - 32:#x}" if megabytes < 1016 else "echo eax = 0x00001234",
        "user hello",
        devices=[Block(disk), Rng()],
        megabytes=megabytes,
    )
    assert "|This is sector z|" in seen
    assert called == "eax = 0x00001234\n"
    assert "ring 3" in user


def test_time_is_the_hosts() -> None:
    import time

    before = time.time()
    [now] = ask("time")
    stamp = time.strftime("%Y-%m-%d", time.gmtime(before))
    assert stamp in now or time.strftime("%Y-%m-%d", time.gmtime()) in now


@pytest.mark.parametrize(
    ("command", "ending"),
    [
        ("poweroff", POWER_OFF),
        ("panic it is late", Ending("died", "CRASH: it is late")),
        ("panic", Ending("died", "CRASH: you asked for it")),
    ],
)
def test_endings(command: str, ending: Ending) -> None:
    assert boot(command)[1] == ending


def test_reboot_is_a_restart() -> None:
    assert boot("reboot")[1].how == "restart"


def test_a_fault_in_the_kernel_is_told_and_ends_it() -> None:
    said, ending = boot("oops")
    assert ending.how == "died" and re.fullmatch(r"CRASH: trap 14 at c00\w+", ending.reason)
    assert "trap 14 (error 0) in the kernel" in said and "cr2 00000010" in said


def test_a_bad_hypercall_kills() -> None:
    ending = boot("hcall 99")[1]
    assert ending.how == "died" and "Bad hypercall 99" in ending.reason


def test_a_device_comes_back_after_reset(disk: Path) -> None:
    _, refused, _, read = ask("reset 0", "disk read 0", "start 0", "disk read 0", devices=[Block(disk)])
    assert refused == "the disk is not started\n"
    assert read.endswith("\nThis is sector zero.\n")


def test_even_the_console_comes_back() -> None:
    _, early, _, late = ask("reset 0", "echo early", "start 0", "echo late")
    assert (early, late) == ("early\n", "late\n")


def test_a_ring_made_by_hand_is_served(tmp_path: Path) -> None:
    source = tmp_path / "random"
    source.write_bytes(bytes(range(1, 65)))
    ring = ring_at(FIRST_RING, 256)
    *_, used, filled = ask(
        "reset 0",
        poke_descriptors(ring, (0x900000, 8, DESC_WRITE | DESC_NEXT, 1), (0x900100, 8, DESC_WRITE, 0)),
        poke_available(ring, 0),
        f"kick {FIRST_RING:#x}",
        "sleep 200",
        f"peek {ring.used + 2:#x} 10",
        "peek 0x900100 8",
        devices=[Rng(source)],
    )
    assert used.split()[1:11] == "01 00 00 00 00 00 10 00 00 00".split()
    assert filled.split()[1:9] == "09 0a 0b 0c 0d 0e 0f 10".split()


def test_a_bad_ring_made_by_hand_kills() -> None:
    ring = ring_at(FIRST_RING, 256)
    bad = poke_descriptors(ring, (0xFFFFF000, 16, DESC_WRITE, 0))
    said, ending = boot("reset 0", bad, poke_available(ring, 0), f"kick {FIRST_RING:#x}", "sleep 1000", devices=[Rng()])
    assert ending.how == "died", said


@pytest.fixture
def wire() -> Iterator[list[int]]:
    "Two ends of a cable; a copy of each stays open, so that neither side sees the other one leave."
    ends = [end.detach() for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)]
    held = [os.dup(end) for end in ends]
    yield ends
    for end in held:
        os.close(end)


@pytest.mark.parametrize("mac", [None, b"\2guest"])
def test_two_guests_ping_each_other(wire: list[int], mac: bytes | None) -> None:
    other = threading.Thread(target=lambda: boot("sleep 4000", devices=[Net(wire[1], b"\2other")], ip="10.0.0.2"))
    other.start()
    said, ending = boot(
        "sleep 500",
        "ping 10.0.0.2 3",
        "ping 10.0.0.2 1 1472",
        "ping 10.0.0.2 1 1473",
        devices=[Net(wire[0], mac)],
        ip="10.0.0.1",
    )
    other.join()
    assert ending == POWER_OFF
    _, small, large, too_large, _ = answers(said)
    assert "3 sent, 3 received" in small and "64 bytes from 10.0.0.2: seq 3" in small
    assert "1480 bytes from 10.0.0.2" in large
    assert "at most 1472" in too_large


def test_ping_gives_up_on_nobody(wire: list[int]) -> None:
    said, _ = boot("ping 10.0.0.9 1", devices=[Net(wire[0])], ip="10.0.0.1")
    assert "10.0.0.9 does not answer ARP" in said


class Typist:
    "The tiny Guest in a thread of its own, with us at its keyboard."

    def __init__(self, *devices: Device) -> None:
        from lguest_nb.hosts.soft.host import SoftHost

        self.said = b""
        typed, self.keyboard = os.pipe()
        self.screen, output = os.pipe()
        self.fds = [typed, self.keyboard, self.screen, output]
        self.ending: Ending | None = None
        ready = threading.Event()

        def run() -> None:
            with Launcher(16, SoftHost(), output) as launcher:
                for device in (*devices, Console(typed, output)):
                    launcher.add(device)
                launcher.load(str(path()))
                self.launcher = launcher
                ready.set()
                self.ending = launcher.run()

        self.thread = threading.Thread(target=run)
        self.thread.start()
        ready.wait()

    def until(self, text: bytes) -> bytes:
        while text not in self.said:
            self.said += os.read(self.screen, 4096)
        before, _, self.said = self.said.partition(text)
        return before

    def type(self, text: bytes) -> None:
        os.write(self.keyboard, text)

    def close(self) -> None:
        if self.ending is None:
            self.launcher.stop()
        self.thread.join()
        for fd in self.fds:
            os.close(fd)


@pytest.fixture
def typist() -> Iterator[Typist]:
    one = Typist()
    yield one
    one.close()


def test_it_listens(typist: Typist) -> None:
    typist.until(b"tiny> ")
    for number in range(5):
        typist.type(b"echo number %d\r" % number)
        assert typist.until(b"tiny> ") == b"echo number %d\nnumber %d\n" % (number, number)


def test_nothing_typed_early_is_lost() -> None:
    for number in range(10):
        one = Typist()
        try:
            one.type(b"echo early %d\n" % number)
            one.until(b"\nearly %d\n" % number)
        finally:
            one.close()


def test_it_edits_lines(typist: Typist) -> None:
    typist.until(b"tiny> ")
    typist.type(b"echx\x7fo one\n")
    assert typist.until(b"tiny> ").endswith(b"\none\n")
    typist.type(b"nonsense\x03")
    typist.until(b"^C\ntiny> ")
    typist.type(b"nonsense\x15echo two\n")
    assert typist.until(b"tiny> ").endswith(b"\ntwo\n")


def test_it_takes_more_than_one_buffer_at_once(typist: Typist) -> None:
    typist.until(b"tiny> ")
    typist.type(b"".join(b"echo line %d\n" % number for number in range(200)) + b"poweroff\n")
    typist.until(b"\nline 199\n")
    typist.thread.join()
    assert typist.ending == POWER_OFF


def test_a_hung_guest_can_be_stopped(typist: Typist) -> None:
    typist.until(b"tiny> ")
    typist.type(b"hang\n")
    typist.until(b"hang\n")
    typist.launcher.stop()
    typist.thread.join()
    assert typist.ending == Ending("stopped", "")


def test_command_lines_with_a_meaning_are_refused() -> None:
    assert command_line("dev", "poweroff", ip="10.0.0.2") == 'ip=10.0.0.2 run="dev; poweroff"'
    with pytest.raises(LguestError, match="have a meaning"):
        command_line('echo "')
    with pytest.raises(LguestError, match="1000 do"):
        poke_line(0, bytes(1001))
