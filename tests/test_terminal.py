"""The terminal becomes raw, and is given back whatever happens to us. Seen from the other side of a pseudo-terminal."""

import os
import pty
import select
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from support import PATIENCE

from lguest_nb.terminal import Terminal

pytestmark = pytest.mark.usefixtures("nothing_left")
LFLAG = 3


@pytest.fixture
def tty() -> Iterator[int]:
    "The end of a pseudo-terminal which a program would have as its stdin."
    ours, theirs = pty.openpty()
    yield theirs
    os.close(ours)
    os.close(theirs)


@pytest.fixture
def terminal(tty: int) -> Iterator[Terminal]:
    terminal = Terminal(tty)
    yield terminal
    terminal.give_back()


def children_of(pid: int) -> list[int]:
    "The children of a process with one thread."
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


def command_of(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def guards() -> list[int]:
    "Our children which are copies of us; other tests may have left a server of theirs, which is another program."
    ours = command_of(os.getpid())
    return [child for child in children_of(os.getpid()) if command_of(child) == ours]


def test_three_flags_are_cleared_and_nothing_else(terminal: Terminal, tty: int) -> None:
    before = termios.tcgetattr(tty)
    terminal.take()
    after = termios.tcgetattr(tty)
    assert before[LFLAG] & ~after[LFLAG] == termios.ISIG | termios.ICANON | termios.ECHO
    after[LFLAG] = before[LFLAG]
    assert after[:-1] == before[:-1]  # the last, the characters, are read as numbers in this mode


def test_giving_back_restores_all_of_it(terminal: Terminal, tty: int) -> None:
    before = termios.tcgetattr(tty)
    before[0] &= ~termios.ICRNL
    before[LFLAG] &= ~termios.ECHO
    termios.tcsetattr(tty, termios.TCSANOW, before)
    terminal.take()
    scribbled = termios.tcgetattr(tty)
    scribbled[0] |= termios.ICRNL
    termios.tcsetattr(tty, termios.TCSANOW, scribbled)
    terminal.give_back()
    assert termios.tcgetattr(tty) == before


def test_giving_back_dismisses_the_guard_and_may_be_repeated(terminal: Terminal, tty: int) -> None:
    children = guards()
    terminal.take()
    assert len(guards()) == len(children) + 1
    terminal.give_back()
    assert guards() == children
    terminal.give_back()


def test_a_guard_which_was_dismissed_changes_nothing_any_more(terminal: Terminal, tty: int) -> None:
    terminal.take()
    terminal.give_back()
    later = termios.tcgetattr(tty)
    later[LFLAG] &= ~termios.ECHO
    termios.tcsetattr(tty, termios.TCSANOW, later)
    assert guards() == []
    assert termios.tcgetattr(tty) == later


def test_it_can_be_put_back_for_a_while(terminal: Terminal, tty: int) -> None:
    before = termios.tcgetattr(tty)
    terminal.take()
    raw = termios.tcgetattr(tty)
    terminal.cooked()
    assert termios.tcgetattr(tty) == before
    terminal.raw()
    assert termios.tcgetattr(tty) == raw


def test_what_is_no_terminal_is_left_alone() -> None:
    reads, writes = os.pipe()
    terminal = Terminal(reads)
    terminal.take()
    terminal.raw()
    terminal.cooked()
    assert terminal.saved is None
    assert guards() == []
    assert not terminal.in_background()
    terminal.give_back()
    os.close(reads)
    os.close(writes)


def test_of_a_terminal_which_no_shell_shares_out_we_are_not_in_the_background(terminal: Terminal) -> None:
    assert not terminal.in_background()


def test_what_was_changed_while_it_was_lent_back_is_put_back_later(terminal: Terminal, tty: int) -> None:
    "As by `stty` between ^Z and fg."
    terminal.take()
    terminal.cooked()
    changed = termios.tcgetattr(tty)
    changed[LFLAG] &= ~termios.ECHO
    termios.tcsetattr(tty, termios.TCSANOW, changed)
    terminal.raw()
    terminal.raw()  # continued though nobody had stopped us
    assert termios.tcgetattr(tty) != changed
    terminal.give_back()
    assert termios.tcgetattr(tty) == changed


def test_a_terminal_whose_window_was_closed_raises_nothing() -> None:
    ours, theirs = pty.openpty()
    terminal = Terminal(theirs)
    terminal.take()
    os.close(ours)
    with pytest.raises(termios.error):
        termios.tcgetattr(theirs)
    terminal.cooked()
    terminal.raw()
    terminal.give_back()
    os.close(theirs)


def test_a_guard_which_somebody_killed_is_done_without(terminal: Terminal, tty: int) -> None:
    before = termios.tcgetattr(tty)
    terminal.take()
    (guard,) = guards()
    os.kill(guard, signal.SIGKILL)
    terminal.cooked()
    terminal.raw()
    terminal.give_back()
    assert termios.tcgetattr(tty) == before


def test_the_guard_holds_nothing_open_but_the_terminal_and_its_line_to_us(terminal: Terminal, tty: int) -> None:
    "Not a disk and its lock, and no pipe whose reader waits for an end."
    terminal.take()
    (guard,) = guards()
    held = [os.readlink(fd) for fd in Path(f"/proc/{guard}/fd").iterdir()]
    assert sorted(link.split(":")[0] for link in held) == sorted([os.ttyname(tty), "socket"])


BEHIND = """
import os, signal, termios
from lguest_nb.terminal import Terminal
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
before = termios.tcgetattr(0)
os.setpgid(0, 0)  # as a shell does for `&`, without the terminal
terminal = Terminal(0)
terminal.take()
assert terminal.in_background()
assert termios.tcgetattr(0) == before, "taken in the background"
terminal.give_back()
terminal.take()
os.tcsetpgrp(0, os.getpgrp())  # fg
terminal.raw()
assert termios.tcgetattr(0) != before, "not taken in the foreground"
os.tcsetpgrp(0, os.getsid(0))
mine = termios.tcgetattr(0)
terminal.raw()  # continued by bg
terminal.give_back()
assert termios.tcgetattr(0) == mine, "changed from the background"
"""


def test_in_the_background_it_is_somebody_elses() -> None:
    "A shell's, which has given it to itself; so a leader of the session, and we are its child."
    shell, terminal = pty.fork()
    if shell == 0:
        done = subprocess.run([sys.executable, "-c", BEHIND], stderr=subprocess.STDOUT)
        os._exit(done.returncode)
    said = b""
    with suppress(OSError):  # the end of a pseudo-terminal
        while more := os.read(terminal, 999):
            said += more
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(shell, 0)[1]) == 0, said.decode()


TAKES = """
import os, sys
from lguest_nb.terminal import Terminal
Terminal(0).take()
os.write(1, b"!")
os.read(2, 1)
{end}
"""


@pytest.mark.parametrize(
    "end",
    ["os.kill(os.getpid(), 9)", "os.abort()", "os._exit(3)", "raise MemoryError", "os.kill(os.getpid(), 15)"],
    ids=["SIGKILL", "abort", "exit", "exception", "SIGTERM"],
)
def test_the_guard_gives_it_back_when_we_cannot(tty: int, end: str) -> None:
    before = termios.tcgetattr(tty)
    with Victim(tty, end) as child:
        assert child.said() == b"!"
        assert termios.tcgetattr(tty) != before
        child.end()
    assert termios.tcgetattr(tty) == before


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGTSTP", "SIGTTOU"])
def test_the_guard_is_not_ended_by_what_ends_us(tty: int, number: str) -> None:
    "As when the whole foreground process group gets a signal."
    before = termios.tcgetattr(tty)
    with Victim(tty, "os.kill(os.getpid(), 9)") as child:
        assert child.said() == b"!"
        (guard,) = children_of(child.pid)
        os.kill(guard, getattr(signal, number))
        child.end()
    assert termios.tcgetattr(tty) == before


class Victim(subprocess.Popen[bytes]):
    "A process which takes the terminal, says so, and comes to its end when `go` is closed."

    def __init__(self, tty: int, end: str) -> None:
        waits, self.go = os.pipe()
        program = [sys.executable, "-c", TAKES.format(end=end)]
        super().__init__(program, stdin=tty, stdout=subprocess.PIPE, stderr=waits)
        os.close(waits)

    def said(self) -> bytes:
        "The next thing it said."
        assert self.stdout is not None
        assert select.select([self.stdout], [], [], PATIENCE)[0]
        return os.read(self.stdout.fileno(), 9)

    def end(self) -> None:
        "Let it come to its end, and its guard."
        (guard,) = children_of(self.pid)
        its_end = os.pidfd_open(guard)
        os.close(self.go)
        assert select.select([its_end], [], [], PATIENCE)[0], "the guard has not come to its end"
        os.close(its_end)
