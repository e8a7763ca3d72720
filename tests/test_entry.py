"""^C while Python still imports ends the command as C programs end: by the signal, and without a traceback."""

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import PATIENCE

LAUNCHER = Path(sys.executable).with_name("lguest-nb")  # what an installation made of `console_scripts`
HAND = """
import os, signal, sys

class Hand:
    "Stands in front of all imports."

    def find_spec(self, name, path=None, target=None):
        if where := os.environ.get("HAND_AT"):
            if name == where:
                {act}
        elif "lguest_nb.entry" in sys.modules:
            os.write(2, name.encode() + b"\\n")

sys.meta_path.insert(0, Hand())
"""
INTERRUPT = "os.kill(os.getpid(), signal.SIGINT)"
WAIT = "os.write(1, b'importing\\n'); signal.pause()"


def with_hand(
    folder: Path,
    act: str,  # what happens in front of an import
    at: str = "",  # of this module; or all are told on stderr
) -> dict[str, str]:  # an environment
    "Have Python run a sitecustomize which interferes with imports."
    (folder / "sitecustomize.py").write_text(HAND.format(act=act))
    return os.environ | {"PYTHONPATH": str(folder), "HAND_AT": at}


def imported(folder: Path) -> list[str]:
    "The modules which the command imports once it has begun, in their order."
    done = subprocess.run(
        [LAUNCHER, "--version"], env=with_hand(folder, "pass"), capture_output=True, text=True, check=True
    )
    return done.stderr.split()


def test_an_interrupt_in_front_of_any_import_ends_it_by_the_signal_and_in_silence(tmp_path: Path) -> None:
    names = imported(tmp_path)
    assert {"lguest_nb.cli", "lguest_nb.launcher", "lguest_nb.session", "getopt"} <= set(names)
    for name in names:
        done = subprocess.run([LAUNCHER, "--version"], env=with_hand(tmp_path, INTERRUPT, name), capture_output=True)
        assert (name, done.returncode, done.stdout, done.stderr) == (name, -signal.SIGINT, b"", b"")


@pytest.fixture
def importing(tmp_path: Path) -> Iterator[tuple[int, int]]:
    "The command on a terminal which is its own, asleep in the middle of its imports: process and terminal."
    environment = with_hand(tmp_path, WAIT, "lguest_nb.launcher")
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(LAUNCHER, [str(LAUNCHER), "64", "vmlinux"], environment)
    yield pid, terminal
    os.close(terminal)


def said(terminal: int) -> bytes:
    "Some more of it; nothing when the last one has left the terminal."
    try:
        return os.read(terminal, 4096)
    except OSError:
        return b""


def test_control_c_at_a_terminal_while_it_imports_leaves_no_traceback(importing: tuple[int, int]) -> None:
    pid, terminal = importing
    seen = b""
    while b"importing\r\n" not in seen and (more := said(terminal)):
        seen += more
    assert seen == b"importing\r\n"
    os.write(terminal, b"\x03")
    while more := said(terminal):
        seen += more
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGINT
    assert seen.removeprefix(b"importing\r\n") in (b"", b"^C")  # the terminal's own echo


def test_importing_the_entry_changes_nothing_and_brings_nothing_along() -> None:
    code = (
        "import signal, sys; before = signal.getsignal(signal.SIGINT); import lguest_nb.entry; "
        "assert signal.getsignal(signal.SIGINT) is before; "
        "print([name for name in sys.modules if name.startswith('lguest_nb')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.stdout, done.stderr) == ("['lguest_nb', 'lguest_nb.entry']\n", "")
