"""Every notebook is a test: its cells run as nbdev runs them, and what it prints is what is committed.

nbdev's own runner waits for ever for a cell that hangs, and passes when a thread died of an exception or when
threads and processes are left behind. So each notebook gets a session of its own, a limit, and a look at what
remains of it.
"""

import os
import signal
import subprocess
import sys
import time
import warnings
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "nbs").glob("[!.]*.ipynb"))
LIMIT = 120  # seconds, after which a notebook hangs
PROMISED = 20  # seconds in which a notebook should be through
GRACE = 2  # seconds that a child has to notice that the notebook is gone

RUN = """
import os, sys, threading, traceback
from pathlib import Path

from nbdev.config import get_config
from nbdev.test import test_nb

died = []

def excepthook(arguments):
    died.append(arguments.thread)
    traceback.print_exception(arguments.exc_type, arguments.exc_value, arguments.exc_traceback)

threading.excepthook = excepthook
config = get_config()
passed, _ = test_nb(Path(sys.argv[1]), skip_flags=config.tst_flags.split(), basepath=config.config_path)
left = [t.name for t in threading.enumerate() if t is not threading.main_thread() and not t.daemon]
if died:
    print(f"Threads that died of an exception: {died}", file=sys.stderr)
if left:
    print(f"Threads still running at the end: {left}", file=sys.stderr)
sys.stdout.flush()
sys.stderr.flush()
os._exit(0 if passed and not died and not left else 1)
"""


def processes_in_session(session: int) -> list[str]:
    "Command lines of the processes of a session that are alive."
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, _, its_session = stat.read_text().rpartition(")")[2].split()[:4]
            if int(its_session) == session and state != "Z":
                words = stat.with_name("cmdline").read_bytes().split(b"\0")
                found.append(b" ".join(words).decode(errors="replace").strip())
    return found


def left_behind(session: int) -> list[str]:
    "The processes that are still there after a moment of grace."
    deadline = time.monotonic() + GRACE
    while (found := processes_in_session(session)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_passes(notebook: Path, tmp_path: Path) -> None:
    started = time.monotonic()
    said = tmp_path / "output"  # a file, not a pipe, which a child left behind would hold open
    with said.open("wb") as output:
        runner = subprocess.Popen(
            [sys.executable, "-c", RUN, str(notebook)],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status: int | None = runner.wait(LIMIT)
            children = left_behind(runner.pid)
        except subprocess.TimeoutExpired:
            status, children = None, []
        finally:
            with suppress(ProcessLookupError):
                os.killpg(runner.pid, signal.SIGKILL)
            runner.wait()
    text = said.read_text(errors="replace")[-6000:]
    if status is None:
        pytest.fail(f"{notebook.name} did not end in {LIMIT} seconds.\n{text}", pytrace=False)
    if status:
        pytest.fail(f"{notebook.name} failed.\n{text}", pytrace=False)
    if children:
        pytest.fail(f"{notebook.name} left processes behind: {children}\n{text}", pytrace=False)
    seconds = time.monotonic() - started
    if seconds > PROMISED:
        warnings.warn(f"{notebook.name} took {seconds:.0f} seconds, more than {PROMISED}.", stacklevel=1)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_outputs_are_what_the_notebook_prints(notebook: Path) -> None:
    command = [sys.executable, str(ROOT / "tools" / "run_notebooks.py"), "--check", str(notebook)]
    limit = 2 * LIMIT
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=limit)
    if done.returncode:
        said = (done.stdout + done.stderr)[-6000:]
        pytest.fail(f"{said}\nIf that is what it should print: make run-notebooks", pytrace=False)
