"""A picture of a Guest which boots, of a real one: a shell on a pseudo-terminal starts it, and its screen is drawn.

boot_picture.py FILE.svg [DEBIAN.svg]    `make picture` draws both, and they are committed

The site draws the tiny Guest's itself each time it is made. Debian's it takes as committed: that one needs a kernel
which is not in this repository, and which `make picture` fetches as `make debian` does.
"""

import fcntl
import html
import re
import shutil
import signal
import struct
import sys
import tempfile
import termios
from collections.abc import Callable, Iterator
from pathlib import Path

import pyte
from pyte.screens import Char
from session import PROMPT, Session

import lguest_nb.guest
from lguest_nb.debian_guest import build
from lguest_nb.meter import Meter

COLUMNS, LINES, DEBIAN_LINES = 96, 30, 40
CELL, LINE, FONT = 9.0, 20, 15  # pixels
MARGIN, BAR = 22, 38
SHELL_PROMPT = "$ "
NO_BREAK = "\xa0"  # a space which no renderer of SVG swallows
TYPED = [  # at the Guest's prompt
    "dev",
    "disk write 3 hello from the Guest",
    "rng 16",
    "user hello",
    "poweroff",
]
DEBIAN = Path("build/debian")  # where `make debian` makes its Guest
DEBIAN_PROMPT = "guest# "
DEBIAN_TYPED = [
    "uname -srm",
    "grep LNRO /proc/iomem",
    "echo hello from Debian >/disk/hello; cat /disk/hello",
    "head -c 16 /dev/hwrng | hexdump -e '16/1 \"%02x\"'; echo",
    "grep XT-PIC /proc/interrupts",
]
COLOURS = {"default": "#d7e0d2", "red": "#f08a6b", "green": "#a6cf8b", "brown": "#e3bd72", "blue": "#8fb8de"}
SCREEN, FRAME, DIM, BRIGHT, TITLE = "#14191b", "#232b2e", "#93a19a", "#ffffff", "#aab6b0"


def screen_of(
    directory: Path,  # in which the shell starts
    lines: int,  # of the terminal
    visit: Callable[[Session], None],  # what is typed, from the shell's first prompt to its last
) -> pyte.Screen:
    "What a terminal of that size shows after a visit. Raises `GuestLost`."
    path = f"PATH={Path(sys.executable).parent}:/usr/bin:/bin"
    shell = ["/bin/sh", "+m"]  # without job control, for which it would have to own the terminal
    session = Session(["/usr/bin/env", "-i", f"--chdir={directory}", path, f"PS1={SHELL_PROMPT}", "TERM=linux", *shell])
    fcntl.ioctl(session.controller, termios.TIOCSWINSZ, struct.pack("4H", lines, COLUMNS, 0, 0))
    screen = pyte.Screen(COLUMNS, lines)
    try:
        session.expect(SHELL_PROMPT)
        visit(session)
    finally:
        # As a terminal does which is closed: at its prompt a shell is deaf to SIGTERM, and to wait that out takes 5 s.
        session.process.send_signal(signal.SIGHUP)
        session.close()
    pyte.ByteStream(screen).feed(session.seen.replace("\n", "\r\n").encode())
    return screen


def type_and_expect(session: Session, line: str, text: str) -> None:
    "Type a line, and read until `text` comes after it."
    start = len(session.seen)
    session.type(f"{line}\r")
    session.expect(text, start)


def boot() -> pyte.Screen:
    "Boot the tiny Guest as you would, type at it, and leave what a terminal shows."

    def visit(session: Session) -> None:
        type_and_expect(session, "lguest-nb --rng --block=disk.img 32 tiny-guest.elf", PROMPT)
        for line in TYPED[:-1]:
            session.ask(line)
        type_and_expect(session, TYPED[-1], f"\n{SHELL_PROMPT}")

    with tempfile.TemporaryDirectory(prefix="lguest-nb-") as name:
        directory = Path(name)
        shutil.copy(lguest_nb.guest.path(), directory / "tiny-guest.elf")
        with (directory / "disk.img").open("wb") as disk:
            disk.truncate(1 << 20)
        return screen_of(directory, LINES, visit)


def boot_debian() -> pyte.Screen:
    "The same with Debian's kernel; the Guest is made if there is none yet. Raises `LguestError` and `GuestLost`."
    with Meter(sys.stderr) as meter:
        guest = build(DEBIAN, tell=meter)

    def visit(session: Session) -> None:
        command = " ".join(guest.arguments()).replace(f"{DEBIAN}/", "")
        type_and_expect(session, f"lguest-nb {command}".replace("disk.img", "disk.img,snapshot"), f"\n{DEBIAN_PROMPT}")
        for line in DEBIAN_TYPED:
            type_and_expect(session, line, f"\n{DEBIAN_PROMPT}")
        type_and_expect(session, "poweroff", f"\n{SHELL_PROMPT}")
        session.seen = re.sub(r"\x1b\[6n", "", session.seen)  # a question of busybox's shell, which nobody sees

    return screen_of(DEBIAN.absolute(), DEBIAN_LINES, visit)


def runs(
    row: list[Char],
) -> Iterator[tuple[int, str, Char]]:  # first column, text, how it looks
    "Pieces of a line in which all characters look the same."
    start = 0
    for column in range(1, len(row) + 1):
        if column == len(row) or row[column]._replace(data="") != row[start]._replace(data=""):
            yield start, "".join(char.data for char in row[start:column]), row[start]
            start = column


def text_element(
    line: int,
    column: int,
    text: str,
    colour: str,
) -> str:
    "One piece of a line, as wide as its cells whatever font the reader has."
    stripped = text.rstrip()
    left = len(stripped) - len(stripped.lstrip())
    stripped = stripped.lstrip()
    if not stripped:
        return ""
    x, y = MARGIN + (column + left) * CELL, BAR + MARGIN + line * LINE + FONT - 3
    width = len(stripped) * CELL
    stripped = stripped.replace(" ", NO_BREAK)
    return (
        f'<text x="{x:g}" y="{y:g}" textLength="{width:g}" lengthAdjust="spacingAndGlyphs" '
        f'fill="{colour}">{html.escape(stripped, quote=False)}</text>'
    )


def drawn(
    screen: pyte.Screen,
    title: str = "lguest-nb: a Guest on the software Host",
) -> str:  # SVG
    "A terminal as a picture: what was typed brighter than what was answered."
    width = 2 * MARGIN + COLUMNS * CELL
    used = max((number for number, row in enumerate(screen.display) if row.strip()), default=0) + 1
    height = BAR + 2 * MARGIN + used * LINE
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" font-family="IBM Plex Mono, DejaVu Sans Mono, monospace" font-size="{FONT}">',
        f'<rect width="{width:g}" height="{height:g}" rx="10" fill="{SCREEN}"/>',
        f'<path d="M0 {BAR}V10A10 10 0 0 1 10 0H{width - 10:g}A10 10 0 0 1 {width:g} 10V{BAR}Z" fill="{FRAME}"/>',
        *(f'<circle cx="{MARGIN + 18 * i}" cy="{BAR / 2:g}" r="5.5" fill="#4a565a"/>' for i in range(3)),
        f'<text x="{width / 2:g}" y="{BAR / 2 + 5:g}" text-anchor="middle" fill="{TITLE}" font-size="13">'
        f"{title}</text>",
    ]
    for number in range(used):
        row = [screen.buffer[number][column] for column in range(COLUMNS)]
        display = screen.display[number]
        prompt = next((p for p in (PROMPT, DEBIAN_PROMPT, SHELL_PROMPT) if display.startswith(p)), "")
        for column, text, look in runs(row):
            colour = COLOURS.get(look.fg, COLOURS["default"])
            if prompt and column == 0:
                parts.append(text_element(number, 0, text[: len(prompt)], DIM))
                column, text, colour = len(prompt), text[len(prompt) :], BRIGHT
            parts.append(text_element(number, column, text, colour))
    return "\n".join(filter(None, parts)) + "\n</svg>\n"


def main() -> None:
    Path(sys.argv[1]).write_text(drawn(boot()), encoding="utf-8")
    for name in sys.argv[2:]:
        Path(name).write_text(drawn(boot_debian(), "lguest-nb: Debian's own kernel on the same Host"), encoding="utf-8")


if __name__ == "__main__":
    main()
