"""Debian's kernel on our software Host beside QEMU's (TCG): booting, the network and disks, and what memory it costs.

Both get the same kernel, initramfs, disks and addresses, and take turns in one run, since a machine is never equally
fast twice: what counts is the ratio within a turn. Processor time stands beside the clock's, as others may be busy
here. The Guest's own clock is not asked: all times are taken outside of it.
"""

import argparse
import hashlib
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from debian import PROMPT, Shell
from network import Network, NoNetwork, make_network
from progress import steps
from session import GuestLost
from soak import FROM_GUEST, IDENTIFIER, PIECE, TO_GUEST, Wrong, echo_request, run_e2fs, sample

from lguest_nb.debian_guest import MEGABYTES, DebianGuest, build, make_disk
from lguest_nb.memory import LguestError
from lguest_nb.meter import Meter

LAUNCHER = Path(sys.executable).with_name("lguest-nb")
OURS, MICROVM, PC, TOLD = "lguest-nb", "QEMU microvm", "QEMU pc", "QEMU, our words"
# Of the words which our Launcher gives to every kernel these two only spare it work; so QEMU gets them as well, once.
SPARING = "noreplace-smp", "cryptomgr.notests"
QEMU = "qemu-system-x86_64"
TAP = "qemu0"
BLOCK, BLOCKS = 4096, 16384  # of the second disk, 64 MB
GOAL = 0.8  # of the better QEMU's time to /init
PINGS = 200
STREAM = 16 << 20  # bytes
SEQUENTIAL, RANDOM = (1 << 20, 64), (BLOCK, 4096)  # bytes of a request, requests


class Machines:
    "How each of them is started."

    def __init__(
        self,
        guest: DebianGuest,
        folder: Path,  # for disks
        network: Network | None,
    ) -> None:
        self.guest, self.network = guest, network
        self.disks = [folder / "tools.img", folder / "numbers.img"]
        program = folder / "diskload"
        source = Path(__file__).with_name("diskload.c")
        subprocess.run(["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-o", program, source], check=True)
        make_disk(self.disks[0], 16)
        for request in (f"write {program} diskload", "sif diskload mode 0100755"):
            run_e2fs("debugfs", "-w", "-R", request, str(self.disks[0]))
        with self.disks[1].open("wb") as file:
            for block in range(BLOCKS):
                file.write(block.to_bytes(8, "little").ljust(BLOCK, b"\0"))

    def ours(self) -> list[str]:
        "The Launcher as you would type it."
        options = ["--rng", f"--initrd={self.guest.initramfs}", *(f"--block={disk}" for disk in self.disks)]
        if self.network:
            options.append(f"--tunnet={self.network.host}")
        return [str(LAUNCHER), *options, str(MEGABYTES), str(self.guest.kernel), *self.words()]

    def qemu(
        self,
        machine: str,  # microvm, pc
        *more: str,  # words for the kernel
    ) -> list[str]:
        "The same for QEMU. The PC gets no devices: they would be on PCI, for which the initramfs has no drivers."
        devices = []
        if machine == "microvm":
            for i, disk in enumerate(self.disks):
                devices += ["-drive", f"file={disk},format=raw,if=none,id=d{i}"]
                devices += ["-device", f"virtio-blk-device,drive=d{i}"]
            devices += ["-device", "virtio-rng-device"]
            if self.network:
                devices += ["-netdev", f"tap,id=n,ifname={TAP},script=no,downscript=no"]
                devices += ["-device", "virtio-net-device,netdev=n"]
        khz = round(float(re.findall(r"cpu MHz\s*: ([\d.]+)", Path("/proc/cpuinfo").read_text())[0]) * 1000)
        words = ["console=ttyS0", "nokaslr", f"tsc_early_khz={khz}", "panic=-1", *self.words(), *more]
        memory = ["-object", f"memory-backend-memfd,id=m,size={MEGABYTES}M,share=on", "-m", str(MEGABYTES)]
        files = ["-kernel", str(self.guest.kernel), "-initrd", str(self.guest.initramfs), "-append", " ".join(words)]
        kind = ["-accel", "tcg", "-M", f"{machine},memory-backend=m", *memory]
        return [QEMU, *kind, "-nographic", "-no-reboot", *files, *devices]

    def words(self) -> list[str]:
        "What the kernel is told by both."
        return [f"ip={self.network.guest}"] if self.network else []

    def command(self, who: str) -> list[str]:
        if who == OURS:
            return self.ours()
        return self.qemu("pc") if who == PC else self.qemu("microvm", *SPARING * (who == TOLD))


def make_tap(network: Network) -> None:
    "An interface for QEMU as our Launcher makes its own. Ours has the same address, so each is there alone."
    for words in (
        f"tuntap add dev {TAP} mode tap vnet_hdr",
        f"addr add {network.host}/24 dev {TAP}",
        f"link set {TAP} up",
    ):
        subprocess.run(["ip", *words.split()], check=True)


def boot_once(command: list[str]) -> dict[str, float]:
    "Seconds from the start of the process until the kernel runs /init, by the clock and of the processor."
    began = time.monotonic()
    session = Shell(command)
    try:
        session.expect("Run /init as init process")
        seconds = time.monotonic() - began
        return {"clock": seconds, "processor": sample(session.process.pid, began).processor}
    finally:
        session.close()


class Load:
    "A Guest at its prompt, and what we have it do."

    def __init__(self, machines: Machines, who: str) -> None:
        self.network = machines.network
        self.session = Shell(machines.command(who))
        self.session.expect(PROMPT)
        self.session.ask("dmesg -n 1")

    def figures(self) -> dict[str, float]:
        "Everything once. Raises `Wrong` if an answer is not right."
        found: dict[str, float] = {}
        for name, do, request in (
            ("disk, read in a row (MB/s)", "read seq", SEQUENTIAL),
            ("disk, written in a row (MB/s)", "write seq", SEQUENTIAL),
            ("disk, random reads of 4 KiB (/s)", "read random", RANDOM),
            ("disk, random writes of 4 KiB (/s)", "write random", RANDOM),
        ):
            rate = request[1] / self.disk(do, *request)
            found[name] = rate * request[0] / 1e6 if request is SEQUENTIAL else rate
        if self.network:
            found["ping, round trip (us)"] = self.ping(self.network) * 1e6
            found["TCP from the Guest (MB/s)"] = STREAM / 1e6 / self.from_guest(self.network)
            found["TCP to the Guest (MB/s)"] = STREAM / 1e6 / self.to_guest(self.network)
        found["memory beyond the Guest's (MB)"] = sample(self.session.process.pid, 0).memory
        return found

    def disk(self, do: str, size: int, count: int) -> float:  # seconds
        began = time.monotonic()
        answer = self.session.ask(f"/disk/diskload /dev/vdb {do} {size} {count}")
        seconds = time.monotonic() - began
        if answer.strip() != f"blocks {size * count // BLOCK} wrong 0":
            raise Wrong(f"diskload {do} said {answer!r}")
        return seconds

    def ping(self, network: Network) -> float:  # seconds; the median
        times = []
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as wire:
            wire.settimeout(10)
            for number in range(PINGS):
                request = echo_request(number)
                began = time.monotonic()
                wire.sendto(request, (network.guest, 0))
                while (packet := wire.recv(2000)[20:])[:1] != b"\0" or packet[4:6] != IDENTIFIER:
                    continue
                times.append(time.monotonic() - began)
                if packet[6:] != request[6:]:
                    raise Wrong(f"ping {number} came back as {packet.hex()}")
        return statistics.median(times)

    def from_guest(self, network: Network) -> float:  # seconds
        self.session.ask(f"head -c {STREAM} /dev/urandom >/tmp/stream")
        expected = self.session.ask("md5sum </tmp/stream").split()[0]
        digest = hashlib.md5(usedforsecurity=False)
        with socket.create_server(("", FROM_GUEST)) as server:
            start = len(self.session.seen)
            self.session.type(f"nc {network.host} {FROM_GUEST} </tmp/stream\r")
            connection, _ = server.accept()
            with connection:
                began = time.monotonic()
                while piece := connection.recv(PIECE):
                    digest.update(piece)
                seconds = time.monotonic() - began
            self.session.expect("\n" + PROMPT, start)
        self.session.ask("rm /tmp/stream")
        if digest.hexdigest() != expected:
            raise Wrong(f"the stream from the Guest came as {digest.hexdigest()} and was {expected}")
        return seconds

    def to_guest(self, network: Network) -> float:  # seconds
        data = os.urandom(STREAM)
        with socket.create_server(("", TO_GUEST)) as server:
            start = len(self.session.seen)
            self.session.type(f"nc {network.host} {TO_GUEST} </dev/null >/tmp/stream\r")
            connection, _ = server.accept()
            with connection:
                began = time.monotonic()
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(PIECE):  # it closes once it has all
                    continue
                seconds = time.monotonic() - began
            self.session.expect("\n" + PROMPT, start)
        came = self.session.ask("md5sum </tmp/stream; rm /tmp/stream")
        if hashlib.md5(data, usedforsecurity=False).hexdigest() not in came:
            raise Wrong(f"the stream to the Guest came as {came}")
        return seconds

    def close(self) -> None:
        self.session.close()


def load_once(machines: Machines, who: str) -> dict[str, float]:
    "Boot, measure, leave."
    if machines.network and who != OURS:
        make_tap(machines.network)
    try:
        load = Load(machines, who)
        try:
            return load.figures()
        finally:
            load.close()
    finally:
        if machines.network and who != OURS:
            subprocess.run(["ip", "link", "del", TAP], check=True)


def row(
    name: str,
    turns: dict[str, list[float]],  # who → a figure of each turn
) -> float:  # the median of our ratios to the better other one of each turn
    "Print a figure: medians, spread, and our ratio to each other's in the same turn."
    print(f"\n{name}")
    for who, figures in turns.items():
        ratio = statistics.median(a / b for a, b in zip(turns[OURS], figures, strict=True))
        spread = f"({min(figures):,.2f} … {max(figures):,.2f})"
        note = "" if who == OURS else f"   ours is {ratio:.2f} of it"
        print(f"  {who:<16}{statistics.median(figures):>12,.2f}  {spread:<28}{note}")
    others = [figures for who, figures in turns.items() if who in (MICROVM, PC)]
    better = [min(each) for each in zip(*others, strict=True)]
    return statistics.median(a / b for a, b in zip(turns[OURS], better, strict=True))


def gather(
    what: str,
    turns: int,
    measure: dict[str, Callable[[], dict[str, float]]],  # who → one measurement
) -> dict[str, dict[str, list[float]]]:  # figure → who → values
    "Everybody in turn, and that several times."
    found: dict[str, dict[str, list[float]]] = {}
    for _ in steps(what, range(turns), lambda turn: ", ".join(measure)):
        for who, once in measure.items():
            for name, value in once().items():
                found.setdefault(name, {}).setdefault(who, []).append(value)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--turns", type=int, default=7, help="of booting")
    parser.add_argument("--loads", type=int, default=3, help="turns of network and disk")
    arguments = parser.parse_args()
    if not shutil.which(QEMU):
        print(f"There is no {QEMU} here, to compare with: apt-get install qemu-system-x86.", file=sys.stderr)
        return 2
    try:
        with Meter(sys.stderr) as meter:
            guest = build(Path("build/debian"), tell=meter)
        network = None
        with tempfile.TemporaryDirectory() as folder:
            alone = Machines(guest, Path(folder), None)
            boots = gather(
                "Booting",
                arguments.turns,
                {who: lambda who=who: boot_once(alone.command(who)) for who in (OURS, MICROVM, PC, TOLD)},  # type: ignore[misc]
            )
            try:
                network = make_network()
            except NoNetwork as reason:
                print(f"The network is left out, because {reason}.")
            machines = Machines(guest, Path(folder), network)
            loads = gather(
                "Network and disks",
                arguments.loads,
                {who: lambda who=who: load_once(machines, who) for who in (OURS, MICROVM)},  # type: ignore[misc]
            )
    except (LguestError, Wrong, GuestLost) as problem:
        print(f"{problem}", file=sys.stderr)
        return 1
    print(f"{arguments.turns} turns of booting, {arguments.loads} of loads; median, least and most; all answers right.")
    ratio = row("from the start of the process to /init, seconds of the clock", boots["clock"])
    spent = row("... and of the processor", boots["processor"])
    verdict = "met" if ratio <= GOAL else "NOT MET"
    print(f"  to reach: {GOAL} of the better QEMU: {verdict} ({ratio:.2f} by the clock, {spent:.2f} of the processor)")
    for name, figures in loads.items():
        row(name, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
