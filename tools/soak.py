"""A Guest of Debian's kernel with all its devices busy at once for MINUTES, and everything it does checked.

Each strand of work is a loop in the Guest (tools/soak.sh) or here, and each of its rounds is checked: sums of what went
through a disk and a network, numbered lines of a console. What must not happen: a wrong byte, a strand which stands
still while others go on (that would be a lost wake-up), memory, descriptors or threads of the Launcher which grow.
"""

import argparse
import hashlib
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from debian import PROMPT, command_line
from network import Network, NoNetwork, make_network
from progress import Progress
from session import PATIENCE, GuestLost, Session

from lguest_nb.before.__main__ import checksum
from lguest_nb.debian_guest import DebianGuest, build, make_disk
from lguest_nb.memory import LguestError
from lguest_nb.meter import Meter

DIRECTORY = Path("build/debian")
SCRIPT = Path(__file__).with_name("soak.sh")
DISK_MEGABYTES = 64
STANDSTILL = 60.0  # seconds without a round of one strand; each needs a few hundredths of that
GROWTH_MAX = 8.0  # MB which the Launcher may be bigger at the end than when it was warm
JUDGED_AFTER = 60.0  # seconds between the two: until then translated code piles up, and says nothing
PIECE = 1 << 16
FROM_GUEST, TO_GUEST = 5001, 5002  # TCP ports
ECHOES, WINDOW, ECHO_FRAME = 50, 8, 98  # pings of a round, at a time, and bytes of each
IDENTIFIER = (os.getpid() & 0xFFFF).to_bytes(2, "big")  # of our pings
PAUSE = 0.02  # seconds between rounds, so that the Guest's processor is idle now and then
ZEROS = 100  # digits of a line's second number


class Wrong(Exception):
    "What should not have been seen."


@dataclass
class Strand:
    "How far a loop is. Its rounds are numbered, so that none can be missing."

    name: str
    rounds: int = 0
    bytes: int = 0
    last: float = 0.0  # when its last round ended; monotonic
    longest: float = 0.0  # seconds between the ends of two rounds

    def went_on(
        self,
        number: int,  # of the round which has ended
        size: int = 0,  # bytes which went through
    ) -> None:
        "Raises `Wrong` if it's not the next one."
        if number != self.rounds + 1:
            raise Wrong(f"{self.name}: after round {self.rounds} came {number}")
        now = time.monotonic()
        self.longest = max(self.longest, now - self.last)
        self.rounds, self.bytes, self.last = number, self.bytes + size, now


@dataclass
class Checks:
    "What the Guest says, line by line, and what it should have said."

    strands: dict[str, Strand]
    on_disk: dict[str, str] = field(default_factory=dict)  # file of the Guest's → its MD5
    entropy: set[str] = field(default_factory=set)
    sent: dict[int, tuple[str, int]] = field(default_factory=dict)  # of the rounds "down": MD5 and bytes
    received: dict[int, tuple[str, int]] = field(default_factory=dict)  # ... and "up"
    told: list[str] = field(default_factory=list)  # what is left

    def line(
        self,
        text: str,  # of the console, without its end
    ) -> None:
        "Raises `Wrong` for a line which no strand writes, or one that is not right."
        name, _, rest = text.partition(" ")
        check: Callable[[int, list[str]], int] | None = getattr(self, f"check_{name}", None)
        if check is None or name not in self.strands:
            if name in ("sectors", "interrupts", "snmp", "ended"):
                self.told.append(text)
                return
            raise Wrong(f"the console has a line which nobody wrote: {text[:200]!r}")
        number, *words = rest.split(" ")
        if not number.isdigit():
            raise Wrong(f"the console has a line without a number: {text[:200]!r}")
        self.strands[name].went_on(int(number), check(int(number), words))

    def check_line(self, number: int, words: list[str]) -> int:
        if words != [f"{number:0{ZEROS}}"]:
            raise Wrong(f"line {number} goes on with {words}")
        return len(f"line {number} ") + ZEROS + 1

    def check_key(self, number: int, words: list[str]) -> int:
        return len(f"key {number}\n")

    def check_disk(self, number: int, words: list[str]) -> int:
        file, written, read = words
        if written != read:
            raise Wrong(f"round {number} wrote {written} to {file} and read {read}")
        self.on_disk[file] = written
        return (number * 37 % 16 + 1) * 65536 + number

    def check_rng(self, number: int, words: list[str]) -> int:
        if not re.fullmatch("[0-9a-f]{512}", words[0]) or words[0] in self.entropy:
            raise Wrong(f"entropy {number} is {words[0]!r}, or the same as before")
        self.entropy.add(words[0])
        return 256

    def check_up(self, number: int, words: list[str]) -> int:
        written, answer = words
        here, size = self.received.pop(number, ("nothing", 0))
        if not written == answer == here:
            raise Wrong(f"stream {number} from the Guest was {written}, came as {here}, and the answer was {answer}")
        return size

    def check_down(self, number: int, words: list[str]) -> int:
        here, size = self.sent.pop(number, ("nothing", 0))
        if words != [here]:
            raise Wrong(f"stream {number} to the Guest was {here}, and came as {words}")
        return size

    def check_ping(self, number: int, words: list[str]) -> int:
        """The exact count comes at the end, from both kernels (`check_pings`).

        Busybox's ping has a small socket buffer, into which our flood falls as well, so that an answer which has
        come may be thrown away there.
        """
        said = " ".join(words)
        found = re.search(r"\b(\d+) packets received", said)
        if not found or found[1] == "0":
            raise Wrong(f"round {number} of pings ended with {said!r}")
        return 2 * ECHO_FRAME * int(found[1])

    def check_pings(self) -> str:  # a sentence about it
        "Each of the kernels has seen each packet of the other. Raises `Wrong`."
        guest = icmp("\n".join(line.removeprefix("snmp ") for line in self.told if line.startswith("snmp ")))
        host = icmp(Path("/proc/self/net/snmp").read_text())
        for sent, came in (("OutEchos", "InEchos"), ("OutEchoReps", "InEchoReps")):
            for one, other in ((guest, host), (host, guest)):
                if one[sent] != other[came]:
                    raise Wrong(f"{sent} is {one[sent]} on one side, and {came} is {other[came]} on the other")
        return (
            f"{guest['OutEchos']:,} pings from the Guest and {host['OutEchos']:,} to it, and all answers, were counted "
            "by both kernels, and none is missing"
        )


def icmp(
    text: str,  # of /proc/net/snmp
) -> dict[str, int]:
    "The counters of ICMP by their names."
    names, values = (line.split()[1:] for line in text.splitlines() if line.startswith("Icmp:"))
    return dict(zip(names, map(int, values), strict=True))


def echo_request(number: int) -> bytes:
    "An ICMP message with bytes which no other one has."
    body = IDENTIFIER + number.to_bytes(2, "big") + os.urandom(56)
    return b"\x08\0" + checksum(b"\x08\0\0\0" + body).to_bytes(2, "big") + body


class Servers:
    "Our ends of the streams and pings, each with a thread. The first failure is kept."

    def __init__(
        self,
        network: Network,
        checks: Checks,
        fail: Callable[[str], None],
    ) -> None:
        self.network, self.checks, self.fail = network, checks, fail
        self.stopping = threading.Event()
        self.under_way: dict[int, bytes] = {}  # pings: number → request
        self.listeners = []
        for port, serve in ((FROM_GUEST, self.receive), (TO_GUEST, self.send)):
            listener = socket.create_server(("", port))
            self.listeners.append(listener)
            self.spawn(lambda listener=listener, serve=serve: self.accept(listener, serve))  # type: ignore[misc]

    def spawn(self, work: Callable[[], None]) -> threading.Thread:
        def run() -> None:
            try:
                work()
            except Exception as problem:
                if not self.stopping.is_set():
                    self.fail(str(problem))

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    def accept(self, listener: socket.socket, serve: Callable[[int, socket.socket], None]) -> None:
        number = 0
        while True:
            connection, _ = listener.accept()
            number += 1
            with connection:
                serve(number, connection)

    def receive(self, number: int, connection: socket.socket) -> None:
        size, digest = 0, hashlib.md5(usedforsecurity=False)
        while piece := connection.recv(PIECE):
            digest.update(piece)
            size += len(piece)
        self.checks.received[number] = digest.hexdigest(), size
        connection.sendall(digest.hexdigest().encode())

    def send(self, number: int, connection: socket.socket) -> None:
        data = os.urandom((number * 31 % 16 + 1) * 65536 + number)
        self.checks.sent[number] = hashlib.md5(data, usedforsecurity=False).hexdigest(), len(data)
        connection.sendall(data)

    def flood(self) -> None:
        """Ping the Guest as fast as it answers, some at a time. Each answer must come, with the bytes that were sent.

        `ping -f` takes an answer for lost which is only late: it waits no longer than two of the longest so far.
        """
        strand = self.checks.strands["flood"]
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as wire:
            wire.settimeout(STANDSTILL)
            while not self.stopping.is_set():
                for number in range(1, ECHOES + 1):
                    self.under_way[number] = request = echo_request(number)
                    wire.sendto(request, (self.network.guest, 0))
                    if len(self.under_way) == WINDOW:
                        self.take_answer(wire)
                while self.under_way:
                    self.take_answer(wire)
                strand.went_on(strand.rounds + 1, 2 * ECHO_FRAME * ECHOES)
                self.stopping.wait(PAUSE)

    def take_answer(self, wire: socket.socket) -> None:
        "One more has come back. Raises `Wrong`."
        while True:
            packet = wire.recv(2000)[20:]  # without the IP header
            if packet[:1] == b"\0" and packet[4:6] == IDENTIFIER:
                break
        number = int.from_bytes(packet[6:8], "big")
        request = self.under_way.pop(number, b"")
        if packet[8:] != request[8:]:
            raise Wrong(f"the answer to ping {number} is {packet.hex()}, and the request was {request.hex()}")

    def close(self) -> None:
        self.stopping.set()
        for listener in self.listeners:
            listener.close()


@dataclass(frozen=True)
class Sample:
    "What a process has."

    at: float  # seconds since the strands began
    memory: float  # MB, without the Guest's own, which is shared
    descriptors: int
    threads: int
    processor: float  # seconds


def sample(
    process: int,  # its id
    began: float,
) -> Sample:
    status = Path(f"/proc/{process}/status").read_text()
    numbers = {name: int(value) for name, value in re.findall(r"^(\w+):\s+(\d+)", status, re.M)}
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return Sample(
        time.monotonic() - began,
        (numbers["RssAnon"] + numbers["RssFile"]) / 1024,
        len(os.listdir(f"/proc/{process}/fd")),
        numbers["Threads"],
        (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"),
    )


def growth(
    samples: list[Sample],
    warm: float,  # seconds after which it's warm
) -> tuple[Sample, Sample]:  # when it was warm, and at the end: medians of a tenth of the time each
    hot = [each for each in samples if each.at >= warm] or samples[-1:]
    tenth = max(1, len(hot) // 10)

    def middle(some: list[Sample]) -> Sample:
        return Sample(*(statistics.median(getattr(s, name) for s in some) for name in Sample.__dataclass_fields__))

    return middle(hot[:tenth]), middle(hot[-tenth:])


class Soak:
    "One Guest, and everything that goes on in it and around it."

    def __init__(
        self,
        guest: DebianGuest,
        disk: Path,  # an image with soak.sh in it, which the Guest will write to
        network: Network | None,
    ) -> None:
        self.disk, self.network = disk, network
        names = ["line", "key", "disk", "rng", *(["up", "down", "ping", "flood"] if network else [])]
        self.checks = Checks({name: Strand(name) for name in names})
        self.problem = self.counted = ""  # what went wrong, and what both kernels have counted
        self.typed = 0  # keys
        command = command_line(guest, network)
        command[command.index(f"--block={guest.disk}")] = f"--block={disk}"
        self.session = Session(command)
        self.samples: list[Sample] = []

    def fail(self, what: str) -> None:
        self.problem = self.problem or what

    def take_lines(self) -> None:
        "Check what the Guest has said so far. Raises `Wrong`, and `GuestLost` if it ended."
        try:
            if not self.session.read_some(time.monotonic() + 0.1):
                raise GuestLost(f"ended with status {self.session.process.wait()}")
        except GuestLost as lost:
            if str(lost) != "fell silent":  # for a tenth of a second, which is no long time
                raise
        *lines, self.session.seen = self.session.seen.split("\n")
        for line in lines:
            self.checks.line(line)

    def boot(self) -> None:
        "To the shell, and from there to the strands."
        self.session.expect(PROMPT)
        self.session.type(f"sh /disk/soak.sh {self.network.host if self.network else ''}\r")
        self.session.expect("\nbegun\n")
        self.session.seen = self.session.seen.partition("\nbegun\n")[2]

    def key(self) -> None:
        "Type a number, once the last one has come back."
        keys = self.checks.strands["key"]
        if self.typed == keys.rounds and time.monotonic() > keys.last + 0.2:
            self.typed += 1
            self.session.type(f"key {self.typed}\r")

    def look_for_standstill(self) -> None:
        "Raises `Wrong` if a strand stands still. If all do, it's not a lost wake-up but a dead Guest: as bad."
        now = time.monotonic()
        for strand in self.checks.strands.values():
            if now - strand.last > STANDSTILL:
                others = {each.name: f"{now - each.last:.1f}" for each in self.checks.strands.values()}
                raise Wrong(f"{strand.name} stands still after round {strand.rounds}; seconds since: {others}")

    def run(
        self,
        seconds: float,
        progress: Progress,
    ) -> None:
        "All of it. Raises `Wrong` and `GuestLost`."
        began = time.monotonic()
        for strand in self.checks.strands.values():
            strand.last = began
        servers = Servers(self.network, self.checks, self.fail) if self.network else None
        flood = servers.spawn(servers.flood) if servers else None
        try:
            looked = 0.0
            while (passed := time.monotonic() - began) < seconds:
                self.take_lines()
                self.key()
                if passed - looked >= 1:
                    looked = passed
                    self.samples.append(sample(self.session.process.pid, began))
                    self.look_for_standstill()
                    progress.at(int(passed), f"{self.samples[-1].memory:.1f} MB")
                if self.problem:
                    raise Wrong(self.problem)
            if servers and flood:
                servers.stopping.set()
                flood.join(PATIENCE)
            self.session.type("stop\r")
            deadline = time.monotonic() + PATIENCE
            while "ended" not in self.checks.told:
                self.take_lines()
                if time.monotonic() > deadline:
                    raise GuestLost(f"did not stop within {PATIENCE:g} s")
            self.samples.append(sample(self.session.process.pid, began))
            if self.problem:
                raise Wrong(self.problem)
        finally:
            if servers:
                servers.close()
        if self.network:
            self.counted = self.checks.check_pings()
        self.session.type("poweroff\r")
        if status := self.session.wait_for_end():
            raise GuestLost(f"powered off, and the Launcher ended with status {status}")

    def check_image(self) -> int:  # files
        "The file system is whole, and each file in it is what the Guest last wrote. Raises `Wrong`."
        checked = run_e2fs("e2fsck", "-fn", str(self.disk))
        if checked.returncode:
            raise Wrong(f"e2fsck on the disk file says: {checked.stdout.decode()[-500:]}")
        for name, expected in self.checks.on_disk.items():
            found = hashlib.md5(run_e2fs("debugfs", "-R", f"cat {name}", str(self.disk)).stdout).hexdigest()
            if found != expected:
                raise Wrong(f"{name} in the disk file is {found}, and the Guest wrote {expected}")
        return len(self.checks.on_disk)

    def report(self, seconds: float) -> None:
        "The figures, on stdout."
        print(f"  {'strand':<8}{'rounds':>9}{'MB':>10}{'MB/s':>8}{'longest pause, s':>19}")
        for s in self.checks.strands.values():
            megabytes = s.bytes / 1e6
            print(f"  {s.name:<8}{s.rounds:>9,}{megabytes:>10,.1f}{megabytes / seconds:>8.3f}{s.longest:>19.2f}")
        for line in self.checks.told:
            if not line.startswith(("snmp", "ended")):
                print(f"  {line}")

    def check_growth(self, warm: float) -> None:
        "Print it, and raise `Wrong` if the Launcher has grown."
        first, last = growth(self.samples, warm)
        most = max(self.samples, key=lambda each: each.memory)
        print(
            f"  Launcher, beyond the Guest's memory: {first.memory:.1f} MB after {first.at:.0f} s, "
            f"{last.memory:.1f} MB after {last.at:.0f} s, at most {most.memory:.1f}; "
            f"descriptors {first.descriptors:g} and {last.descriptors:g}, threads {first.threads:g} and "
            f"{last.threads:g}; {last.processor:.0f} s of processor time."
        )
        trend = self.samples[:: max(1, len(self.samples) // 16)]
        print("  MB at seconds:", ", ".join(f"{each.memory:.1f} at {each.at:.0f}" for each in trend))
        if last.at - first.at < JUDGED_AFTER:
            print(f"  That is too short to say whether its memory grows: {JUDGED_AFTER:g} s are needed.")
        elif last.memory - first.memory > GROWTH_MAX:
            raise Wrong(f"the Launcher grew by {last.memory - first.memory:.1f} MB; {GROWTH_MAX:g} are allowed")
        if last.descriptors > first.descriptors or last.threads > first.threads:
            raise Wrong("the Launcher has more descriptors or threads than when it was warm")


def run_e2fs(program: str, *words: str) -> subprocess.CompletedProcess[bytes]:
    "One of ext4's tools, which may be where only root looks."
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    return subprocess.run([shutil.which(program, path=path) or program, *words], capture_output=True)


def make_soak_disk(path: Path) -> None:
    "A file system with the Guest's part of the work in it."
    make_disk(path, DISK_MEGABYTES)
    done = run_e2fs("debugfs", "-w", "-R", f"write {SCRIPT} soak.sh", str(path))
    if b"soak.sh" not in run_e2fs("debugfs", "-R", "ls", str(path)).stdout:
        raise LguestError(f"debugfs did not put soak.sh on the disk: {done.stderr.decode().strip()}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=1.0)
    arguments = parser.parse_args()
    seconds = arguments.minutes * 60
    for number in (signal.SIGTERM, signal.SIGHUP):  # so that the Launcher goes too
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
    disk = DIRECTORY / f"soak-{os.getpid()}.img"
    try:
        with Meter(sys.stderr) as meter:
            guest = build(DIRECTORY, tell=meter)
        make_soak_disk(disk)
        network = None
        try:
            network = make_network()
            socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()
        except PermissionError:
            network = None
            print("The network is left out, because nobody here may send pings (that takes CAP_NET_RAW).")
        except NoNetwork as reason:
            print(f"The network is left out, because {reason}.")
        soak = Soak(guest, disk, network)
        try:
            soak.boot()
            with Progress("Soaking", int(seconds), plain=False) as progress:
                soak.run(seconds, progress)
        finally:
            soak.session.close()
        soak.report(seconds)
        if network:
            print(f"  {soak.counted}.")
        print(f"  {soak.check_image()} files in the disk file are what the Guest wrote, and its file system is whole.")
        soak.check_growth(seconds / 5)
    except LguestError as e:
        print(e, file=sys.stderr)
        return 1
    except (Wrong, GuestLost) as problem:
        print(f"The soak failed: {problem}.", file=sys.stderr)
        return 1
    finally:
        disk.unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
