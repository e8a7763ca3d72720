"""A real Guest on a real pseudo-terminal: however it ends, and whenever, the terminal is as it was."""

import os
import pty
import select
import shlex
import signal
import sys
import termios
from collections.abc import Callable, Iterator, Sequence

import pytest
from session import PROMPT, Session
from support import COMMAND, PATIENCE, until

pytest.importorskip("unicorn", reason="the software Host needs Unicorn")

from lguest_nb.guest import command_line, path
from lguest_nb.session import HINT

pytestmark = pytest.mark.usefixtures("nothing_left")
CONTROL_C = "\x03"
WITHOUT_OUR_C = """
import sys
from pathlib import Path

from lguest_nb.hosts.soft import unicorn

unicorn.INTERPOSERS = Path("/nonexistent")
from lguest_nb.entry import main

sys.exit(main())
"""
Start = Callable[..., Session]


@pytest.fixture
def start() -> Iterator[Start]:
    "The command on a terminal, with a Guest which runs some commands; and how the terminal was before."
    sessions: list[Session] = []

    def start(*commands: str, program: Sequence[str] = ()) -> Session:
        "No core files, since some of these die of an abort."
        line = program or [*COMMAND, "16", str(path()), *([command_line(*commands)] if commands else [])]
        sessions.append(Session(["sh", "-c", 'ulimit -c 0; exec "$@"', "sh", *line]))
        sessions[-1].before = termios.tcgetattr(sessions[-1].controller)
        return sessions[-1]

    yield start
    for session in sessions:
        session.close()


def ends(session: Session, status: int) -> None:
    "With this status, and everybody who held the terminal has left it as it was."
    assert session.wait_for_end() == status, session.seen[-500:]
    assert termios.tcgetattr(session.controller) == session.before


def is_raw(session: Session) -> bool:
    return not termios.tcgetattr(session.controller)[3] & (termios.ISIG | termios.ICANON | termios.ECHO)


MOMENTS = {  # what the Guest does, and what is waited for
    "before it has said a word": ([], HINT),
    "at its prompt": ([], PROMPT),
    "while it spins with interrupts off": (["hang"], "hang\n"),
    "while it sleeps for ever": (["halt"], "halt\n"),
    "while it prints all of its memory": (["peek 0x10000 0x8000"], "00010100 "),
    "while a program of it loops": (["user loop"], "user loop\n"),
    "while it resets its console for ever": (["reset 0", "hang"], "hang\n"),
}


@pytest.mark.parametrize("together", [True, False], ids=["in one read", "one by one"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_three_control_c_leave(start: Start, moment: str, together: bool) -> None:
    commands, said = MOMENTS[moment]
    session = start(*commands)
    session.expect(said)
    for keys in [CONTROL_C * 3] if together else [CONTROL_C] * 3:
        session.type(keys)
    ends(session, -signal.SIGINT)


def test_three_control_c_leave_where_the_terminal_stands_still(start: Start) -> None:
    "^S stops its output, and the Guest prints on."
    session = start("peek 0x10000 0x8000")
    session.expect("00010100 ")
    session.type("\x13" + CONTROL_C * 3)
    ends(session, -signal.SIGINT)


def test_three_control_c_after_many_other_keys_which_nobody_reads(start: Start) -> None:
    session = start("hang")
    session.expect("hang\n")
    for _ in range(100):
        session.type("x" * 1000)
    session.type(CONTROL_C * 3)
    ends(session, -signal.SIGINT)


@pytest.mark.parametrize("command", ["panic no init found", "oops", "hcall 99"])
def test_a_guest_which_dies_gives_the_terminal_back_and_a_late_control_c_is_the_shells(
    start: Start, command: str
) -> None:
    session = start()
    session.expect(PROMPT)
    session.type(CONTROL_C * 2 + "\r")
    session.expect(PROMPT, len(session.seen))
    session.type(f"{command}\r")
    ends(session, 1)
    assert "\nlguest-nb: " in session.seen


def test_a_power_off_gives_the_terminal_back(start: Start) -> None:
    ends(start("poweroff"), 0)


@pytest.mark.parametrize("commands", [[], ["hang"]], ids=["at its prompt", "hung"])
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGKILL", "SIGQUIT", "SIGABRT", "SIGSEGV", "SIGUSR1"])
def test_a_signal_gives_the_terminal_back(start: Start, name: str, commands: list[str]) -> None:
    "Those which we catch, and those which we don't or can't."
    session, number = start(*commands), getattr(signal, name)
    session.expect("hang\n" if commands else PROMPT)
    assert is_raw(session)
    session.process.send_signal(number)
    ends(session, -number)


def test_an_abort_inside_the_emulator_gives_the_terminal_back(start: Start) -> None:
    "The one instruction which Unicorn dies of, `lock btc %eax, %eax`: without our C nothing keeps it from that."
    words = ["16", str(path()), command_line("poke 0x900000 f00fbbc0c3", "call 0x900000")]
    session = start(program=[sys.executable, "-c", WITHOUT_OUR_C, *words])
    ends(session, -signal.SIGABRT)


class Shell:
    "An interactive shell with job control, on a terminal which it is the master of."

    def __init__(self) -> None:
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.execve("/bin/sh", ["sh", "-i"], os.environ | {"PS1": "shell$ ", "ENV": "/dev/null"})
        self.seen = ""

    def type(self, keys: str) -> None:
        os.write(self.terminal, keys.encode())

    def expect(self, text: str) -> None:
        "From where the last one ended."
        while text not in self.seen:
            assert select.select([self.terminal], [], [], PATIENCE)[0], f"no {text!r} in {self.seen!r}"
            self.seen += os.read(self.terminal, 4096).decode(errors="replace").replace("\r", "")
        self.seen = self.seen.partition(text)[2]

    def flags(self) -> int:
        return termios.tcgetattr(self.terminal)[3] & (termios.ISIG | termios.ICANON | termios.ECHO)

    def foreground(self) -> int:
        return os.tcgetpgrp(self.terminal)

    def close(self) -> None:
        os.close(self.terminal)  # everybody on it gets a SIGHUP
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


@pytest.fixture
def shell() -> Iterator[Shell]:
    shell = Shell()
    shell.expect("shell$ ")
    yield shell
    shell.close()


LINE = shlex.join([*COMMAND, "16", str(path())])


def test_stopped_and_continued_by_a_shell_it_takes_the_terminal_again(shell: Shell) -> None:
    "What a ^Z is elsewhere; here that is a key for the Guest, and somebody has to send SIGTSTP."
    as_it_was = shell.flags()
    shell.type(f"{LINE}\n")
    shell.expect(PROMPT)
    assert shell.flags() == 0
    for _ in range(2):
        os.kill(shell.foreground(), signal.SIGTSTP)
        shell.expect("shell$ ")
        assert shell.flags() == as_it_was
        shell.type("echo 1 of $((40 + 2))\n")
        shell.expect("1 of 42\n")
        shell.type("fg\n")
        until(lambda: shell.flags() == 0)
        shell.type("\recho hello\r")
        shell.expect("\nhello\n")
    shell.type(CONTROL_C * 3)
    shell.expect("shell$ ")
    assert shell.flags() == as_it_was
    shell.type("echo status $?\n")
    shell.expect("status 130\n")


def test_in_the_background_it_leaves_the_terminal_to_the_shell(shell: Shell) -> None:
    as_it_was = shell.flags()
    shell.type(f"{LINE} &\n")
    shell.expect(PROMPT)
    assert shell.flags() == as_it_was
    shell.type("echo 1 of $((40 + 2))\n")
    shell.expect("1 of 42\n")
    assert shell.flags() == as_it_was
    # It stands still by now, since it may not read the keyboard; `jobs` lets the shell hear of its end.
    shell.type("kill -KILL $!; while kill -0 $! 2>/dev/null; do jobs >/dev/null; done; echo $((40 + 3)) gone\n")
    shell.expect("43 gone\n")
    assert shell.flags() == as_it_was


def test_many_signals_at_once_end_it_as_the_first_of_them(start: Start) -> None:
    "A window which is closed sends two SIGHUPs and a SIGCONT, and a machine which shuts down a SIGTERM."
    storm = (signal.SIGHUP, signal.SIGTSTP, signal.SIGCONT, signal.SIGHUP, signal.SIGTERM, signal.SIGINT) * 3
    for _ in range(5):
        session = start("hang")
        session.expect("hang\n")
        for number in storm:
            session.process.send_signal(number)
        assert session.wait_for_end() in (-signal.SIGHUP, -signal.SIGTERM, -signal.SIGINT)
        assert termios.tcgetattr(session.controller) == session.before


def test_stopped_and_told_to_go_on_again_and_again_it_goes_on(start: Start) -> None:
    "As a shell does it: no program which handles SIGTSTP can hear a SIGCONT from before it stood still."
    session = start()
    session.expect(PROMPT)
    for _ in range(20):
        session.process.send_signal(signal.SIGTSTP)
        assert os.waitid(os.P_PID, session.process.pid, os.WSTOPPED) is not None
        session.process.send_signal(signal.SIGCONT)
    session.type(CONTROL_C * 3)  # at a terminal which is not raw again yet, the first of them is a SIGINT
    ends(session, -signal.SIGINT)


def test_a_window_which_is_closed_ends_it_by_sighup() -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(COMMAND[0], [*COMMAND, "16", str(path())])
    said = b""
    while PROMPT.encode() not in said:
        said += os.read(terminal, 4096)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGHUP
