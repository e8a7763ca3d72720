"""At a terminal ^A is for the Launcher: leave, look inside, help; whatever the Guest does. A script's ^A is its own."""

import os
import pty
import signal
import subprocess
import termios
import threading
import tty
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from session import PROMPT, Session
from support import COMMAND, PATIENCE, SCRIPTED, forge_elf

from lguest_nb import guest
from lguest_nb.keyboard import EscapeKey, Keyboard
from lguest_nb.session import HINT, KEYS

pytestmark = pytest.mark.usefixtures("nothing_left")


class TestKey:
    @pytest.fixture
    def done(self) -> list[str]:
        return []

    @pytest.fixture
    def key(self, done: list[str]) -> EscapeKey:
        return EscapeKey({name: lambda name=name: done.append(name) for name in "xih"})

    def test_what_has_no_control_a_is_passed_on_as_it_is(self, key: EscapeKey, done: list[str]) -> None:
        data = bytes(range(2, 256)) + b"\0xih"
        assert key.feed(data) is data
        assert done == []

    @pytest.mark.parametrize("name", ["x", "i", "h"])
    def test_a_command_is_done_and_not_passed_on(self, key: EscapeKey, done: list[str], name: str) -> None:
        assert key.feed(b"before\1" + name.encode() + b"after") == b"beforeafter"
        assert done == [name]

    def test_it_may_come_in_two_reads(self, key: EscapeKey, done: list[str]) -> None:
        assert [key.feed(data) for data in (b"a\1", b"ix", b"x")] == [b"a", b"x", b"x"]
        assert done == ["i"]

    @pytest.mark.parametrize("second", [b"\1", b"a"])
    def test_control_a_and_itself_or_an_a_is_one_control_a(
        self, key: EscapeKey, done: list[str], second: bytes
    ) -> None:
        assert key.feed(b"\1" + second + b"x") == b"\1x"
        assert done == []

    def test_two_pairs_are_two(self, key: EscapeKey, done: list[str]) -> None:
        assert key.feed(b"\1\1\1\1\1h") == b"\1\1"
        assert done == ["h"]

    @pytest.mark.parametrize("other", [b"?", b"X", b"\0", b"\xff", b"\r", b"\3"])
    def test_any_other_key_is_help(self, key: EscapeKey, done: list[str], other: bytes) -> None:
        assert key.feed(b"\1" + other + b"y") == b"y"
        assert done == ["h"]


class TestKeyboard:
    @pytest.fixture
    def make(self) -> Iterator[Callable[[bool], tuple[int, Keyboard, list[str]]]]:
        made = []

        def make(terminal: bool) -> tuple[int, Keyboard, list[str]]:
            ours, source = pty.openpty() if terminal else reversed(os.pipe())
            if terminal:
                tty.setraw(source)
            done: list[str] = []
            aborted.clear()
            keyboard = Keyboard(source, aborted.set)
            keyboard.escape = EscapeKey({"h": lambda: done.append("h")})
            keyboard.start()
            made.append((keyboard, ours, source))
            return ours, keyboard, done

        aborted = self.aborted = threading.Event()
        yield make
        for keyboard, *fds in made:
            keyboard.close()
            for fd in fds:
                os.close(fd)

    def test_at_a_terminal_it_is_taken_out(self, make) -> None:
        fingers, keyboard, done = make(True)
        os.write(fingers, b"l\1hs\1a.")
        got = b""
        while not got.endswith(b"."):
            got += os.read(keyboard.typed, 99)
        assert (got, done) == (b"ls\1.", ["h"])

    def test_a_script_is_passed_through_unchanged(self, make) -> None:
        fingers, keyboard, done = make(False)
        script = b"\1h\1x\1\1\1a." * 100
        os.write(fingers, script)
        got = b""
        while len(got) < len(script):
            got += os.read(keyboard.typed, 9999)
        assert (got, done) == (script, [])

    def test_three_control_c_abort_though_one_of_them_was_escaped(self, make) -> None:
        fingers, _, _ = make(True)
        os.write(fingers, b"\1\3\3\3")
        assert self.aborted.wait(PATIENCE)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Session]]:
    "The command on a terminal, with a Guest which is a scene of scripted_cli.py, or the tiny guest."
    kernel = tmp_path / "vmlinux"
    kernel.write_bytes(forge_elf())
    sessions = []

    def start(scene: str = "", *options: str) -> Session:
        line = [*SCRIPTED, *options, "2", str(kernel)] if scene else [*COMMAND, *options, "16", str(guest.path())]
        os.environ["SCENE"] = scene
        sessions.append(Session(line))
        sessions[-1].before = termios.tcgetattr(sessions[-1].controller)
        return sessions[-1]

    yield start
    os.environ.pop("SCENE", None)
    for session in sessions:
        session.close()


def as_it_was(session: Session) -> bool:
    return termios.tcgetattr(session.controller) == session.before


class TestAtATerminal:
    def test_how_to_leave_is_said_once_at_the_start(self, start) -> None:
        session = start("power-off")
        assert session.wait_for_end() == 0
        assert session.seen.count(HINT + "\n") == 1
        assert session.seen.index(HINT) < session.seen.index("hello")

    @pytest.mark.parametrize("scene", ["wait", "deaf", ""])
    def test_x_leaves_with_status_0_and_the_terminal_as_it_was(self, start, scene: str) -> None:
        session = start(scene)
        session.expect("ready" if scene else PROMPT)
        session.type("\1x")
        assert session.wait_for_end() == 0
        assert session.seen.endswith("You left.\n")
        assert session.seen.count("You left.") == 1
        assert as_it_was(session)

    def test_x_leaves_before_the_guest_has_said_anything(self, start) -> None:
        session = start("")
        session.expect(HINT)
        session.type("\1x")
        assert session.wait_for_end() == 0
        assert as_it_was(session)

    def test_h_lists_the_keys_and_the_guest_never_sees_them(self, start) -> None:
        session = start()
        session.expect(PROMPT)
        session.type("\1h")
        session.expect(KEYS + "\n")
        assert "I do not know" not in session.ask("help")
        session.type("\1x")
        assert session.wait_for_end() == 0

    def test_i_shows_every_queue_and_its_thread(self, start) -> None:
        session = start("", "--rng")
        session.expect(PROMPT)
        session.type("\1i")
        session.expect("console:1: avail idx")
        session.expect("asleep until a kick\n", session.seen.index("console:1"))
        state = session.seen
        assert "rng: running, accepted 0x" in state
        assert "console: running, accepted 0x" in state
        assert "console:0: avail idx 1, taken 1, used idx 0 (0 waiting, 1 in work" in state
        assert "asleep until its own device is ready" in state

    @pytest.mark.parametrize("scene", ["wait", "deaf"])
    def test_i_and_h_work_while_the_guest_hangs(self, start, scene: str) -> None:
        session = start(scene)
        session.expect("ready")
        session.type("\1i\1h")
        session.expect("console: not running")
        session.expect("^C^C^C leave at once")

    def test_three_control_c_still_die_of_sigint(self, start) -> None:
        session = start("wait")
        session.expect("ready")
        session.type("\1\3\3\3")
        assert session.wait_for_end() == -signal.SIGINT
        assert as_it_was(session)

    def test_a_trace_is_finished_when_you_leave(self, start, tmp_path: Path) -> None:
        for scene in ("deaf", ""):
            path = tmp_path / f"trace-{scene}.json"
            session = start(scene, f"--trace={path}")
            session.expect("ready" if scene else PROMPT)
            session.type("\1x")
            assert session.wait_for_end() == 0
            assert path.read_text().endswith("\n]\n")


def test_without_a_terminal_there_is_no_hint_and_no_escape(start) -> None:
    line = [*COMMAND, "16", str(guest.path())]
    done = subprocess.run(line, input="\1x\1hecho\r\rpoweroff\r", capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert HINT not in done.stderr and "You left." not in done.stderr and "^A" not in done.stderr
