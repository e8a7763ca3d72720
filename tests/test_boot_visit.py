"""`make boot` proves each device by a value only that device could have carried, and gives the terminal back.

tools/boot.py runs as a user runs it: in a process of its own, with the real command and the Guest that ships.
"""

import os
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from ipaddress import IPv4Network
from pathlib import Path
from typing import cast

import boot as boot_script
import pytest
from network import Network, NoNetwork, free_network, networks_in_use
from session import PROMPT, GuestLost, Session

ROOT = Path(__file__).parent.parent
BOOT = [sys.executable, str(ROOT / "tools" / "boot.py")]
NO_TUN = ["unshare", "--mount", "sh", "-c", 'mount --bind /dev/null /dev/net/tun && exec "$@"', "sh"]


def visit(*command: str, require: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | ({} if require is None else {"REQUIRE": require})
    return subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=200
    )


def test_the_visit_proves_every_device_that_is_possible_here() -> None:
    done = visit(*BOOT)
    assert done.returncode == 0, done.stdout + done.stderr
    said = dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
    assert {"block", "console", "rng", "net"} <= said.keys()
    assert "NOT PROVED" not in done.stdout
    assert done.stdout.endswith("The Guest powered off.\n")


def test_the_visit_refuses_to_require_a_device_it_does_not_know() -> None:
    done = visit(*BOOT, require="block,sound")
    assert done.returncode == 2
    assert done.stderr == "REQUIRE names sound; there are block, console, rng, net.\n"


@pytest.mark.skipif(os.getuid() != 0, reason="hiding /dev/net/tun needs root")
@pytest.mark.parametrize(("require", "status"), [("", 0), ("block,rng,console", 0), ("net,block", 1)])
def test_a_network_that_cannot_be_is_left_out_with_a_reason(require: str, status: int) -> None:
    done = visit(*NO_TUN, *BOOT, require=require)
    assert done.returncode == status, done.stdout + done.stderr
    assert done.stdout.startswith("net: left out, because /dev/net/tun gives us no tap device: ")
    assert ("REQUIRE asks for net, which was not proved." in done.stderr) == (status == 1)


class AtATerminal(Session):
    "`make boot` with somebody at the keyboard, who remembers how the terminal was."

    def __init__(self) -> None:
        super().__init__(BOOT)
        self.before = self.settings()

    def settings(self) -> list[object]:
        return termios.tcgetattr(self.controller)


@pytest.fixture
def boot() -> Iterator[AtATerminal]:
    session = AtATerminal()
    try:
        session.expect(PROMPT)
        assert session.settings() != session.before, "the terminal never became the Guest's"
        yield session
    finally:
        session.close()


def test_at_a_terminal_you_read_the_disk_and_power_off(boot: AtATerminal) -> None:
    assert "poweroff" in boot.ask("help")
    assert "This is sector 7 of 2048" in boot.ask("disk read 7")
    boot.type("poweroff\r")
    assert boot.wait_for_end() == 0
    assert boot.settings() == boot.before


def test_three_times_control_c_leaves_and_the_terminal_is_as_it_was(boot: AtATerminal) -> None:
    for _ in range(3):
        boot.type("\x03")
        time.sleep(0.05)  # as keys come: one at a time
    assert boot.wait_for_end() == 0
    assert boot.seen.endswith("You left by ^C^C^C.\n")
    assert boot.settings() == boot.before


def test_ending_it_from_outside_takes_guest_and_disk_along(boot: AtATerminal) -> None:
    disk = next(word for word in processes_below(boot.process.pid)[0] if word.startswith("--block="))
    assert Path(disk.removeprefix("--block=")).exists()
    boot.process.terminate()
    assert boot.wait_for_end() == 143
    assert not Path(disk.removeprefix("--block=")).exists()
    assert boot.settings() == boot.before


def processes_below(parent: int) -> list[list[str]]:
    "The command lines of a process's children."
    found = []
    for children in Path(f"/proc/{parent}/task").glob("*/children"):
        for child in children.read_text().split():
            found.append(Path(f"/proc/{child}/cmdline").read_text().split("\0"))
    return found


def test_a_guest_that_falls_silent_or_ends_is_reported_with_what_was_awaited() -> None:
    for command, trouble in [("sleep 9", "fell silent for 0.1 seconds"), ("exit 3", "ended with status 3")]:
        session = Session(["sh", "-c", command])
        try:
            with pytest.raises(GuestLost, match=f"{trouble}, where 'tiny> ' should have come"):
                session.expect(PROMPT, patience=0.1 if "sleep" in command else 10)
        finally:
            session.close()


class Forger:
    "A Guest which answers everything with what it always says."

    def ask(self, line: str) -> str:
        return "0123456789abcdef" * 2


def test_a_guest_that_makes_its_answers_up_proves_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    boot_script.make_disk(disk)
    forger = cast(Session, Forger())
    for proof in (
        lambda: boot_script.prove_block(forger, disk),
        lambda: boot_script.prove_console(forger, disk),
        lambda: boot_script.prove_rng(forger),
        lambda: boot_script.prove_net(forger, Network("192.168.19.1", "192.168.19.2", "nowhere")),
    ):
        with pytest.raises(boot_script.NotProved):
            proof()


def test_a_free_network_is_one_without_a_route() -> None:
    table = """Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT
eth0 00000000 0101A8C0 0003 0 0 0 00000000 0 0 0
tap0 0013A8C0 00000000 0001 0 0 0 00FFFFFF 0 0 0
eth1 0014A8C0 00000000 0001 0 0 0 00FEFFFF 0 0 0
"""
    used = networks_in_use(table)
    assert used == [IPv4Network("192.168.19.0/24"), IPv4Network("192.168.20.0/23")]
    assert free_network(used) == IPv4Network("192.168.22.0/24")
    with pytest.raises(NoNetwork, match="has a route here already"):
        free_network([IPv4Network("192.168.0.0/16")])
