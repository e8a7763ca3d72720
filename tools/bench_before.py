"""Both designs in numbers: how long a ping takes, how many a Guest answers in a second, and what Python's locks add."""

import argparse
import os
import re
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
from datetime import date

from progress import Progress

from lguest_nb.before.__main__ import checksum, launcher_of
from lguest_nb.before.ping import PINGED, network, one_ping, trace_pings
from lguest_nb.console import Console
from lguest_nb.guest import command_line, path
from lguest_nb.net import Net
from lguest_nb.strace import why_not

DESIGNS = ("before", "after")
GUEST = "192.168.19.2"
PATIENCE = 60  # seconds
REQUEST = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 84, 0, 0, 64, 1, 0, socket.inet_aton(PINGED), socket.inet_aton(GUEST))


def ping_packet(
    sequence: int,
    header: int,  # bytes of virtio's, in front of it
) -> bytes:
    "An echo request of 98 bytes and its virtio header."
    echo = struct.pack("!BBHHH", 8, 0, 0, 1, sequence & 0xFFFF) + bytes(56)
    echo = echo[:2] + struct.pack("!H", checksum(echo)) + echo[4:]
    return bytes(header) + b"\xff" * 6 + b"\2wire\0" + b"\x08\0" + REQUEST + echo


def flood(
    wire: socket.socket,
    card: Net,  # at its other end
    count: int,  # answers to wait for
    under_way: int,  # requests at a time
) -> float:  # answers in a second
    "Ping the Guest as fast as it answers."
    wire.settimeout(0.05)
    while True:  # until it is there
        wire.send(ping_packet(0, card.header))
        try:
            wire.recv(2000)
            break
        except TimeoutError:
            continue
    wire.settimeout(0.3)
    try:
        while True:  # what is still on its way from then
            wire.recv(2000)
    except TimeoutError:
        pass
    wire.settimeout(10)
    for number in range(under_way):
        wire.send(ping_packet(number, card.header))
    began = time.perf_counter()
    for number in range(count):
        wire.recv(2000)
        wire.send(ping_packet(number, card.header))
    return count / (time.perf_counter() - began)


def flood_once(
    design: str,
    count: int,
    under_way: int,
) -> None:
    "In a process of its own: boot, flood, print the answers in a second."
    ours, wire = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    keys, _keyboard = os.pipe()
    with launcher_of(design) as launcher:
        card = Net(ours.detach())
        launcher.add(card)
        launcher.add(Console(keys, os.open(os.devnull, os.O_WRONLY)))
        launcher.load(str(path()), command_line(ip=GUEST))

        def flooding() -> None:
            try:
                print(flood(wire, card, count, under_way))
            finally:
                launcher.stop()

        thread = threading.Thread(target=flooding)
        thread.start()
        launcher.run()
        thread.join()


def answers(
    design: str,
    under_way: int,
    runs: int,
) -> float:  # in a second; the median
    command = [sys.executable, __file__, f"--flood={design}", f"--under-way={under_way}"]
    found = []
    for _ in range(runs):
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
        found.append(float(done.stdout))
    return statistics.median(found)


def latencies(
    design: str,
    count: int,
) -> list[float]:  # milliseconds
    "What the Guest says of its pings. Not of the first one, which has to ask for an address."
    prefix, card = network()
    command = [*prefix, sys.executable, "-m", "lguest_nb.before", f"--design={design}", card]
    done = subprocess.run(
        [*command, f"ping {PINGED} {count + 1}"], input="", capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    return [float(ms) for ms in re.findall(r"seq \d+, ([\d.]+) ms", done.stdout)][1:]


def python_calls(
    design: str,
    runs: int,
) -> list[int]:  # of each run: locks and memory
    return [one_ping(trace_pings(design)[0]).python for _ in range(runs)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the Launcher before and after June 2009.")
    parser.add_argument("--pings", type=int, default=25)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--flood", choices=DESIGNS, help=argparse.SUPPRESS)
    parser.add_argument("--under-way", type=int, default=1, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.flood:
        flood_once(options.flood, 2000, options.under_way)
        return
    with Progress("Before and after", 4) as progress:
        rows = measured(options.pings, options.runs, progress)
    where = "a wire" if network()[1] == "--wire" else "a tap"
    print(f"Measured on {date.today():%d %B %Y}, {os.cpu_count()} cores, with {where}:\n")
    print("| | before | after |\n|---|---|---|")
    for name, values in rows:
        print(f"| {name} | {' | '.join(values)} |")


def measured(
    pings: int,  # of each design
    runs: int,  # of a flood
    progress: Progress,
) -> list[tuple[str, list[str]]]:  # what, and its values before and after
    "All that is measured, in words."
    rows: list[tuple[str, list[str]]] = []
    progress.step("the Guest pings")
    times = [latencies(design, pings) for design in DESIGNS]
    rows.append(("a ping from the Guest, median", [f"{statistics.median(ms):.2f} ms" for ms in times]))
    rows.append(("nine of ten are faster than", [f"{statistics.quantiles(ms, n=10)[-1]:.2f} ms" for ms in times]))
    for under_way in (1, 8):
        progress.step(f"the Guest is pinged, {under_way} under way")
        per_second = [f"{answers(design, under_way, runs):,.0f} /s" for design in DESIGNS]
        rows.append((f"pings to the Guest, {under_way} under way", per_second))
    if problem := why_not():
        progress.clear()
        print(problem)
    else:
        progress.step("the system calls of a ping")
        python = [python_calls(design, runs) for design in DESIGNS]
        rows.append(("Python's system calls in one ping", [f"{min(calls)} to {max(calls)}" for calls in python]))
    return rows


if __name__ == "__main__":
    main()
