"""Boot the tiny Guest: at a terminal for you, otherwise for a visit that proves each device.

A device is proved by a value that only that device could have carried. The exit status is 0 only if all that
was possible here was proved; what REQUIRE names (of net,block,rng,console) must have been possible.
"""

import random
import secrets
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from network import Network
from session import PROMPT, Session
from visit import NotProved, end_by_exception, network_if_possible, prove_net, required_devices, stay, verdict, visit

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


def visit_tiny(
    disk: Path,
    network: Network | None,
) -> dict[str, bool]:  # device → was it proved
    "Pay the tiny Guest a visit. Raises `GuestLost`."
    session = Session(command_line(disk, network))
    proofs: dict[str, Callable[[], str]] = {
        "block": lambda: prove_block(session, disk),
        "console": lambda: prove_console(session, disk),
        "rng": lambda: prove_rng(session),
    }
    if network:
        proofs["net"] = lambda: prove_net(session, network)
    return visit(session, PROMPT, proofs)


def main() -> int:
    required = required_devices(DEVICES)
    network = network_if_possible()
    end_by_exception()
    with tempfile.TemporaryDirectory(prefix="lguest-nb-") as directory:
        disk = Path(directory) / "disk"
        make_disk(disk)
        if sys.stdin.isatty():
            hint = "Type `help` at the Guest's prompt; `poweroff` or ^C^C^C leaves."
            return stay(command_line(disk, network), hint)
        return verdict(lambda: visit_tiny(disk, network), required)


if __name__ == "__main__":
    sys.exit(main())
