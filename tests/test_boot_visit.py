"""`make boot` proves every device by a value only that device could have carried, and leaves a terminal as it was.

It runs as a user runs it: tools/boot.py in a process of its own, with the real command and the Guest that ships.
"""

import os
import pty
import shutil
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from ipaddress import IPv4Network
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import network  # noqa: E402
from session import GuestLost, Session  # noqa: E402

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
    proved = {line.partition(":")[0] for line in done.stdout.splitlines()}
    assert {"block", "console", "rng", "net"} <= proved
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


