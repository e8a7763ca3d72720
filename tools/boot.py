"""Boot the tiny Guest: at a terminal for you, otherwise for a visit that proves each device.

A device is proved by a value that only that device could have carried. The exit status is 0 only if all that
was possible here was proved; what REQUIRE names (of net,block,rng,console) must have been possible.
"""

import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from network import Network, NoNetwork, frames, make_network
from session import PROMPT, GuestLost, Session

import lguest_nb.guest

LAUNCHER = Path(sys.executable).with_name("lguest-nb")
MEGABYTES = 32
SECTOR = 512
SECTORS = 2048
DEVICES = ("block", "console", "rng", "net")


def make_disk(
    path: Path,  # of a file to be
) -> None:
    "A disk with something to read in every sector."
    with path.open("wb") as disk:
        for number in range(SECTORS):
            text = f"This is sector {number} of {SECTORS} of a scratch disk; it goes when you leave.\n"
            disk.write(text.encode().ljust(SECTOR, b"\0"))


def command_line(
    disk: Path,
    network: Network | None,
) -> list[str]:
    "The Launcher as you would type it."
    options = [f"--block={disk}", "--rng"]
    arguments = []
    if network:
        options.append(f"--tunnet={network.host}")
        arguments.append(f"ip={network.guest}")
    return [str(LAUNCHER), *options, str(MEGABYTES), str(lguest_nb.guest.path()), *arguments]


class NotProved(Exception):
    "What we saw instead of the proof."


def prove_block(session: Session, disk: Path) -> str:
    "A number that only the disk file knows comes out on the console."
    number, sector = secrets.token_hex(16), random.randrange(SECTORS)
    with disk.open("r+b") as file:
        file.seek(sector * SECTOR)
        file.write(number.encode().ljust(SECTOR, b"\0"))
    answer = session.ask(f"disk read {sector}")
    if number not in answer:
        raise NotProved(f"sector {sector} of the disk file holds {number}, and the Guest read {answer!r}")
    return f"{number}, put into sector {sector} of the disk file, came out on the console"


def prove_console(session: Session, disk: Path) -> str:
    "A number that was only typed ends up in the disk file."
    number, sector = secrets.token_hex(16), random.randrange(SECTORS)
    answer = session.ask(f"disk write {sector} {number}")
    with disk.open("rb") as file:
        file.seek(sector * SECTOR)
        there = file.read(SECTOR)
    if number.encode() not in there:
        raise NotProved(f"{number} is not in sector {sector} of the disk file; the Guest said {answer!r}")
    return f"{number}, typed at the console, is in sector {sector} of the disk file"


def prove_rng(session: Session) -> str:
    "Two reads of entropy differ."
    first, second = session.ask("rng 16").strip(), session.ask("rng 16").strip()
    if len(first) < 32 or first == second:
        raise NotProved(f"two reads of 16 bytes of entropy gave {first!r} and {second!r}")
    return f"two reads of entropy differ: {first} and {second}"


def prove_net(session: Session, network: Network) -> str:
    "The tap device's counters move with a ping, by as many frames as there were echoes."
    pings = random.randrange(3, 8)
    before = frames()
    answer = session.ask(f"ping {network.host} {pings}")
    moved = {name: (sent - before[name][0], got - before[name][1]) for name, (sent, got) in frames().items()}
    taps = [name for name, (sent, got) in moved.items() if sent >= pings and got >= pings]
    if not taps:
        raise NotProved(f"{pings} pings moved the interfaces' counters by {moved}; the Guest said {answer!r}")
    sent, got = moved[taps[0]]
    return f"{pings} pings moved {taps[0]} by {sent} frames from the Guest and {got} to it"


def visit(
    disk: Path,
    network: Network | None,
) -> dict[str, bool]:  # device → was it proved
    "Ask the Guest for each proof, print a line for each, and power it off. Raises `GuestLost`."
    proofs: dict[str, Callable[[Session], str]] = {
        "block": lambda session: prove_block(session, disk),
        "console": lambda session: prove_console(session, disk),
        "rng": prove_rng,
    }
    if network:
        proofs["net"] = lambda session: prove_net(session, network)
    proved = {}
    session = Session(command_line(disk, network))
    try:
        session.expect(PROMPT)
        for device, proof in proofs.items():
            try:
                said, proved[device] = proof(session), True
            except NotProved as instead:
                said, proved[device] = f"NOT PROVED: {instead}", False
            print(f"{device}: {said}.", flush=True)
        session.type("poweroff\r")
        status = session.wait_for_end()
        if status:
            raise GuestLost(f"powered off, and the Launcher ended with status {status}")
        print("The Guest powered off.", flush=True)
    except GuestLost as lost:
        raise GuestLost(f"{lost}. Its last words:\n{session.seen[-2000:]}") from None
    finally:
        session.close()
    return proved


def stay(
    disk: Path,
    network: Network | None,
) -> int:  # exit status
    "Hand the terminal to the Guest until one of you leaves."
    print("Type `help` at the Guest's prompt; `poweroff` or ^C^C^C leaves.", flush=True)
    # The keys are the Guest's now. A handler that does nothing is ours alone: the Launcher starts without it.
    signal.signal(signal.SIGINT, lambda number, frame: None)
    process = subprocess.Popen(command_line(disk, network))
    try:
        status = process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    if status == -signal.SIGINT:
        print("\nYou left by ^C^C^C.")
        return 0
    return status if status >= 0 else 128 - status


def main() -> int:
    required = os.environ.get("REQUIRE", "").replace(",", " ").split()
    if unknown := set(required) - set(DEVICES):
        print(f"REQUIRE names {', '.join(sorted(unknown))}; there are {', '.join(DEVICES)}.", file=sys.stderr)
        return 2
    network = None
    try:
        network = make_network()
        print(f"net: the Host is {network.host} and the Guest {network.guest}, {network.place}.", flush=True)
    except NoNetwork as reason:
        print(f"net: left out, because {reason}.", flush=True)
    # A signal that ends us ends in an exception, so that the scratch disk and the Launcher go too.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="lguest-nb-") as directory:
        disk = Path(directory) / "disk"
        make_disk(disk)
        if sys.stdin.isatty():
            return stay(disk, network)
        try:
            proved = visit(disk, network)
        except GuestLost as lost:
            print(f"The Guest {lost}", file=sys.stderr)
            return 1
    missing = [device for device in required if not proved.get(device)]
    if missing:
        print(f"REQUIRE asks for {', '.join(missing)}, which was not proved.", file=sys.stderr)
    return 0 if all(proved.values()) and not missing else 1


if __name__ == "__main__":
    sys.exit(main())
