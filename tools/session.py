"""A Guest on a terminal of its own, with us at the keyboard. Standard library only, as `make boot` needs."""

import os
import pty
import select
import signal
import subprocess
import time
from collections.abc import Sequence

PROMPT = "tiny> "
PATIENCE = 60.0  # seconds without what we wait for, after which the Guest hangs; it needs far less than one


class GuestLost(Exception):
    "The Guest ended, or fell silent, before it said what it should."


class Session:
    """A command which runs on a pseudo-terminal: what it writes, we read; what we type, it reads.

    It's the command's controlling terminal, as yours is your shell's: without one, a ^C typed while the terminal is
    not raw would be a signal to nobody.
    """

    def __init__(
        self,
        command: Sequence[str],  # program and arguments
    ) -> None:
        self.seen = ""  # all it has written, without the carriage returns a terminal adds
        self.controller, terminal = pty.openpty()
        try:
            self.process = subprocess.Popen(
                ["setsid", "--ctty", *command], stdin=terminal, stdout=terminal, stderr=terminal
            )
        finally:
            os.close(terminal)

    def read_some(
        self,
        deadline: float,  # on the monotonic clock
    ) -> bool:  # False at the end of the output
        "Wait for more output and take it. Raises `GuestLost` when the deadline passes first."
        ready, _, _ = select.select([self.controller], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise GuestLost("fell silent")
        try:
            piece = os.read(self.controller, 4096)
        except OSError:  # EIO: nobody holds the other side of the terminal any more
            piece = b""
        self.seen += piece.decode(errors="replace").replace("\r", "")
        return bool(piece)

    def expect(
        self,
        text: str,  # what should come
        start: int = 0,  # where in `seen` to look from
        patience: float = PATIENCE,  # seconds
    ) -> str:  # what came before it
        "Read until the command writes `text`. Raises `GuestLost` if it never does."
        deadline = time.monotonic() + patience
        while (found := self.seen.find(text, start)) < 0:
            try:
                more = self.read_some(deadline)
            except GuestLost as lost:
                raise GuestLost(f"{lost} for {patience:g} seconds, where {text!r} should have come") from None
            if not more:
                status = self.process.wait()
                raise GuestLost(f"ended with status {status}, where {text!r} should have come")
        return self.seen[start:found]

    def type(
        self,
        text: str,  # what the keyboard sends; Enter is a carriage return
    ) -> None:
        "Type at the command's terminal."
        typed = text.encode()
        while typed:
            typed = typed[os.write(self.controller, typed) :]

    def ask(
        self,
        line: str,  # a command of the tiny Guest's shell
    ) -> str:  # its answer, without our own echo
        "Type a line at the prompt and wait for the next prompt."
        start = len(self.seen)
        self.type(line + "\r")
        _, _, answer = self.expect("\n" + PROMPT, start).partition("\n")
        return answer

    def wait_for_end(
        self,
        patience: float = PATIENCE,  # seconds
    ) -> int:  # exit status; negative for a signal
        "Read what is left and wait for the command to exit. Raises `GuestLost` if it stays."
        deadline = time.monotonic() + patience
        while self.read_some(deadline):
            pass
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        "End the command if it is still there, and give the terminal back."
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        os.close(self.controller)
