"""`make soak` notices what must not happen, and a short one of it passes; `make bench-debian` gets right answers.

The Guest is Debian's kernel, whose packages apt must be able to fetch, or have fetched into build/debian.
"""

import fcntl
import re
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import bench_debian
import pytest
import soak as soak_script
from soak import GROWTH_MAX, STANDSTILL, Checks, Sample, Soak, Strand, Wrong, echo_request, growth, icmp

from lguest_nb.debian import DebianError
from lguest_nb.debian_guest import DebianGuest, build

ROOT = Path(__file__).parent.parent
NAMES = ("line", "key", "disk", "rng", "up", "down", "ping", "flood")


@pytest.fixture
def debian() -> Iterator[DebianGuest]:
    "Its files in build/debian, for one test at a time."
    directory = ROOT / "build/debian"
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield build(directory)
        except DebianError as e:
            pytest.skip(f"not verified, for want of Debian's packages: {e}")


@pytest.fixture
def checks() -> Checks:
    return Checks({name: Strand(name) for name in NAMES})


def console_line(number: int, digits: int | None = None) -> str:
    return f"line {number} {digits or number:0100d}"


def test_lines_in_order_are_counted(checks: Checks) -> None:
    for number in range(1, 4):
        checks.line(console_line(number))
    assert (checks.strands["line"].rounds, checks.strands["line"].bytes) == (3, 3 * 108)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (console_line(3), "line: after round 1 came 3"),
        (console_line(1), "line: after round 1 came 1"),
        (console_line(2, 3), "line 2 goes on with"),
        (console_line(2)[:-1], "line 2 goes on with"),
        ("li" + console_line(2), "a line which nobody wrote"),
        ("line two 2", "a line without a number"),
        ("", "a line which nobody wrote"),
        ("disk 1 soak.1 aa ab", "round 1 wrote aa to soak.1 and read ab"),
        ("rng 1 00", "entropy 1 is '00'"),
        ("up 1 aa aa", "stream 1 from the Guest was aa, came as nothing"),
        ("down 1 aa", "stream 1 to the Guest was nothing, and came as"),
        ("ping 1 50 packets transmitted, 0 packets received", "round 1 of pings"),
    ],
)
def test_what_is_lost_doubled_mixed_or_changed_is_noticed(checks: Checks, line: str, says: str) -> None:
    checks.line(console_line(1))
    with pytest.raises(Wrong, match=re.escape(says)):
        checks.line(line)


def test_entropy_which_comes_twice_is_noticed(checks: Checks) -> None:
    checks.line("rng 1 " + "5a" * 256)
    with pytest.raises(Wrong, match="entropy 2"):
        checks.line("rng 2 " + "5a" * 256)


def test_a_stream_is_right_if_all_three_agree_on_its_sum(checks: Checks) -> None:
    checks.received[1], checks.sent[1] = ("aa", 10), ("bb", 20)
    checks.line("up 1 aa aa")
    checks.line("down 1 bb")
    assert checks.strands["up"].bytes == 10 and checks.strands["down"].bytes == 20


def test_a_packet_which_only_one_kernel_counted_is_noticed(checks: Checks, monkeypatch: pytest.MonkeyPatch) -> None:
    def table(sent: int, came: int) -> str:
        return f"Icmp: InEchos OutEchos InEchoReps OutEchoReps\nIcmp: {came} {sent} {sent} {came}\n"

    host = table(9, 5)
    monkeypatch.setattr(soak_script, "Path", lambda name: SimpleNamespace(read_text=lambda: host))
    checks.told = [f"snmp {line}" for line in table(5, 9).splitlines()]
    assert checks.check_pings().startswith("5 pings from the Guest and 9 to it")
    host = table(10, 5)
    with pytest.raises(Wrong, match="OutEchos is 10 on one side, and InEchos is 9 on the other"):
        checks.check_pings()
    assert icmp(host)["OutEchos"] == 10


def test_an_echo_request_has_a_right_checksum() -> None:
    words = struct.unpack("!32H", echo_request(7))
    assert sum(words) % 0xFFFF == 0
    assert echo_request(7) != echo_request(7)


def half_a_soak(checks: Checks) -> Soak:
    "One without a Guest."
    soak = object.__new__(Soak)
    soak.checks, soak.samples = checks, []
    return soak


def test_one_strand_which_stands_still_is_a_lost_wake_up(checks: Checks, monkeypatch: pytest.MonkeyPatch) -> None:
    soak, now = half_a_soak(checks), 1000.0
    monkeypatch.setattr(soak_script.time, "monotonic", lambda: now)
    for strand in checks.strands.values():
        strand.last = now
    now += STANDSTILL
    soak.look_for_standstill()
    for name in NAMES[1:]:
        checks.strands[name].went_on(1)
    now += 1
    with pytest.raises(Wrong, match="line stands still after round 0"):
        soak.look_for_standstill()


def samples(memory: float = 0, descriptors: int = 0, threads: int = 0) -> list[Sample]:
    "A hundred seconds, of which the first are those of something which gets warm, and what grows from then on."
    cold = [Sample(float(i), 10.0 * i, 5, 3, 0.0) for i in range(9)]
    return cold + [
        Sample(10.0 + i, 90 + memory * i / 90, 30 + descriptors * i // 45, 11 + threads * i // 45, 0.0)
        for i in range(91)
    ]


@pytest.mark.parametrize(
    ("grown", "says"),
    [
        (samples(memory=1.3 * GROWTH_MAX), "the Launcher grew by"),
        (samples(descriptors=1), "more descriptors or threads"),
        (samples(threads=1), "more descriptors or threads"),
    ],
)
def test_growth_is_noticed_and_getting_warm_is_none(checks: Checks, grown: list[Sample], says: str) -> None:
    soak = half_a_soak(checks)
    soak.samples = samples()
    soak.check_growth(10)
    assert growth(samples(), 10)[0].memory == growth(samples(), 10)[1].memory == 90
    soak.samples = grown
    with pytest.raises(Wrong, match=says):
        soak.check_growth(10)


class Wire:
    "Gives what a Guest answers."

    def __init__(self, *packets: bytes) -> None:
        self.packets = list(packets)

    def recv(self, size: int) -> bytes:
        return bytes(20) + self.packets.pop(0)


def test_an_answer_with_other_bytes_is_noticed_and_other_people_s_is_not_ours() -> None:
    servers = object.__new__(soak_script.Servers)
    request = echo_request(1)
    servers.under_way = {1: request}
    answer = b"\0\0" + request[2:]
    servers.take_answer(cast(socket.socket, Wire(request, b"\0\0" + bytes(62), answer)))
    assert not servers.under_way
    servers.under_way = {1: request}
    with pytest.raises(Wrong, match="the answer to ping 1 is"):
        servers.take_answer(cast(socket.socket, Wire(answer[:-1] + bytes([answer[-1] ^ 1]))))


def test_the_guest_s_part_is_a_script() -> None:
    assert subprocess.run(["sh", "-n", ROOT / "tools/soak.sh"], capture_output=True, text=True).stderr == ""


def test_a_short_soak_passes_with_every_device_at_work(debian: DebianGuest) -> None:
    others = set((ROOT / "build/debian").glob("soak-*.img"))
    done = subprocess.run(
        [sys.executable, ROOT / "tools/soak.py", "--minutes", "0.05"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rounds = dict(re.findall(r"^  (\w+) +([\d,]+) +[\d.,]+ ", done.stdout, re.M))
    assert set(rounds) == set(NAMES), done.stdout
    assert "0" not in rounds.values()
    assert "counted by both kernels, and none is missing" in done.stdout
    assert "files in the disk file are what the Guest wrote" in done.stdout
    assert set((ROOT / "build/debian").glob("soak-*.img")) <= others


def test_the_bench_looks_at_what_the_guest_read(
    debian: DebianGuest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_debian, "BLOCKS", 512)
    monkeypatch.setattr(bench_debian, "SEQUENTIAL", (1 << 20, 2))
    monkeypatch.setattr(bench_debian, "RANDOM", (4096, 64))
    machines = bench_debian.Machines(debian, tmp_path, None)
    figures = bench_debian.load_once(machines, bench_debian.OURS)
    assert len(figures) == 5 and all(figure > 0 for figure in figures.values())
    machines.disks[1].write_bytes(bytes(512 * 4096))
    with pytest.raises(Wrong, match="diskload read seq said 'blocks 512 wrong 511"):
        bench_debian.load_once(machines, bench_debian.OURS)


def test_a_ratio_is_that_of_each_turn_and_of_the_better_one(capsys: pytest.CaptureFixture[str]) -> None:
    turns = {"lguest-nb": [1.0, 4.0, 2.0], "QEMU microvm": [2.0, 4.0, 5.0], "QEMU pc": [4.0, 8.0, 2.5]}
    assert bench_debian.row("seconds", turns) == 0.8
    assert "ours is 0.50 of it" in capsys.readouterr().out
