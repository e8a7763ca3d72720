"""What a tool says while it works, on stderr: on a terminal one line which moves, elsewhere a plain line for each step.

Standard library only, and none of it on stdout: that may be read by a program.
"""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, TextIO, TypeVar

SOON = 0.1  # seconds between two pictures of the line, as fast as anybody reads
Item = TypeVar("Item")


class Progress:
    "What is being done, how much of it is done, and what is next. Use it as a context, so that the line goes away."

    def __init__(
        self,
        what: str,  # is being done
        total: int = 0,  # steps, if that is known
        out: TextIO | None = None,  # or stderr
        plain: bool = True,  # is each step worth a line where nothing moves?
    ) -> None:
        self.what, self.total, self.plain = what, total, plain
        self.out = out or sys.stderr
        self.moves = self.out.isatty()
        self.done, self.name = 0, ""
        self.began, self.drawn = time.monotonic(), 0.0
        self._show("", first=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.clear()

    def step(
        self,
        name: str,  # of what begins now
    ) -> None:
        "The next step begins."
        self.done += 1
        self.name = name
        self._show(name)

    def at(
        self,
        done: int,  # steps, of `total`
        name: str = "",  # what is going on
    ) -> None:
        "So far we are. Cheap: most calls draw nothing, and nothing at all where no line moves."
        self.done = done
        if self.moves and time.monotonic() - self.drawn >= SOON:
            self._show(name)

    def wait(
        self,
        process: "subprocess.Popen[Any]",  # a step which is somebody else's work
        said: Callable[[], str] = str,  # how far it is, if one can tell
    ) -> int:  # its exit status
        "Until it has ended. Ends it, should we be interrupted."
        with process:
            try:
                while process.poll() is None:
                    self.at(self.done, f"{self.name} {said()}".rstrip() if self.moves else "")
                    try:
                        process.wait(SOON if self.moves else None)
                    except subprocess.TimeoutExpired:
                        continue
            except BaseException:
                process.kill()
                raise
        return process.returncode

    def clear(self) -> None:
        "Take the moving line away, so that something else can be written."
        if self.moves:
            self.out.write("\r\x1b[K")
            self.out.flush()

    def _show(self, name: str, first: bool = False) -> None:
        count = f" {self.done}/{self.total}" if self.total else f" {self.done}" if self.done else ""
        if self.moves:
            seconds = time.monotonic() - self.began
            line = f"{self.what}{count}, {seconds:.0f} s{': ' + name if name else ''}"
            self.out.write("\r\x1b[K" + line[: shutil.get_terminal_size().columns - 1])
            self.drawn = time.monotonic()
        elif first:
            self.out.write(f"{self.what} ...\n")
        elif self.plain:
            self.out.write(f"{self.what}{count}: {name}\n")
        self.out.flush()


def steps(
    what: str,  # is being done
    items: Sequence[Item],
    name: Callable[[Item], str] = str,
) -> Iterator[Item]:
    "Each of `items`, which is a step."
    with Progress(what, len(items)) as progress:
        for item in items:
            progress.step(name(item))
            yield item
