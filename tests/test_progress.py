"""Progress is for people: a line that moves on a terminal, plain lines elsewhere, and nothing on stdout."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
from progress import Progress, steps

ROOT = Path(__file__).parent.parent


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_without_a_terminal_each_step_is_a_plain_line() -> None:
    out = io.StringIO()
    with Progress("Baking", 2, out) as progress:
        progress.step("the dough")
        progress.at(1, "not worth a line")
        progress.step("the oven")
    assert out.getvalue() == "Baking ...\nBaking 1/2: the dough\nBaking 2/2: the oven\n"


def test_on_a_terminal_there_is_one_line_and_it_goes_away() -> None:
    out = Terminal()
    with Progress("Baking", 2, out) as progress:
        progress.step("the dough")
    assert "\n" not in out.getvalue()
    assert "Baking 1/2, 0 s: the dough" in out.getvalue()
    assert out.getvalue().endswith("\r\x1b[K")


def test_a_line_never_wraps() -> None:
    out = Terminal()
    Progress("Baking", 2, out).step("x" * 1000)
    assert max(len(line) for line in out.getvalue().replace("\x1b[K", "").split("\r")) < 200


def test_somebody_elses_work_is_waited_for_and_its_status_is_told() -> None:
    out = Terminal()
    with Progress("Baking", 1, out) as progress:
        progress.step("the oven")
        for status in (0, 3):
            process = subprocess.Popen([sys.executable, "-c", f"raise SystemExit({status})"])
            assert progress.wait(process, lambda: "is hot") == status
    assert "Baking 1/1, 0 s: the oven" in out.getvalue()


def test_what_is_waited_for_is_ended_when_we_are_interrupted() -> None:
    def interrupted() -> str:
        raise KeyboardInterrupt

    progress = Progress("Baking", 1, Terminal())
    process = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    with pytest.raises(KeyboardInterrupt):
        progress.wait(process, interrupted)
    assert process.returncode


def test_a_step_for_each_item(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(steps("Baking", ["bread", "cake"])) == ["bread", "cake"]
    said = capsys.readouterr()
    assert said.out == "" and said.err == "Baking ...\nBaking 1/2: bread\nBaking 2/2: cake\n"


def test_pip_says_what_it_is_busy_with_on_stderr_and_its_failure_is_ours() -> None:
    command = [sys.executable, str(ROOT / "tools" / "pip_install.py"), "Trying", "--no-index", "no-such-thing-at-all"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0 and done.stdout == ""
    assert done.stderr.startswith("Trying ...\n") and "no-such-thing-at-all" in done.stderr
    assert "done." not in done.stderr
