"""One ping through either design as strace sees it, on a tap and on a wire; and what is read out of a trace."""

import importlib
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lguest_nb.before import ping
from lguest_nb.before.ping import AFTER_2009, BEFORE_2009, beside, count, label, one_ping, trace_pings
from lguest_nb.memory import LguestError
from lguest_nb.strace import Call, parse, strace, why_not

ROOT = Path(__file__).parent.parent
HOMES = """
    before.waker before.io_thread before.mitigation before.handlers before.launcher before.host
    vring terminal console net rng block launcher threads
""".split()
CUT = """\
7 read(3<pipe:[1]>,  <unfinished ...>
8 write(4<pipe:[1]>, "x", 1 <unfinished ...>
7 <... read resumed>"x", 1) = 1
8 <... write resumed>) = 1
8 --- SIGALRM {si_signo=SIGALRM, si_code=SI_KERNEL} ---
8 rt_sigreturn({mask=[]}) = -1 EINTR (Interrupted system call)
7 read(3<pipe:[1]>,  <unfinished ...>
8 +++ exited with 0 +++
"""
ASLEEP = """\
1 write(21<anon_inode:[eventfd]>, "\\1", 8) = 8
3 read(13<anon_inode:[eventfd]>, "\\1", 8) = 8
3 writev(8</dev/net/tun>, [{iov_len=10}, {iov_len=98}], 2) = 108
2 readv(10</dev/net/tun>, [{iov_len=10}, {iov_len=1514}], 2) = 108
2 preadv2(8</dev/net/tun>, [{iov_len=10}, {iov_len=1514}], 2, -1, RWF_NOWAIT) = -1 EAGAIN
4 poll([{fd=16<pipe:[7]>, events=POLLIN}, {fd=17<anon_inode:[eventfd]>, events=POLLIN}], 2, -1) = 1
4 write(5<pipe:[8]>, "\\0", 1) = 1
4 pselect6(14, [4<pipe:[8]>], NULL, NULL, NULL, NULL) = 1 (in [4])
1 write(3</memfd:lguest>(deleted), "LHREQ_IRQ 0", 11) = 11
1 write(3</memfd:lguest>(deleted), "thread 1 MainThread", 19) = 19
1 write(3</memfd:lguest>(deleted), "thread 2 lguest net:0", 21) = 21
1 write(3</memfd:lguest>(deleted), "thread 3 lguest net:1", 21) = 21
1 write(3</memfd:lguest>(deleted), "thread 4 lguest console:0", 25) = 25
"""
needs_strace = pytest.mark.skipif(bool(why_not()), reason=f"needs strace: {why_not()}")


def test_a_call_which_was_cut_in_two_is_one_call() -> None:
    assert parse(CUT) == [
        Call(7, "read", '3<pipe:[1]>, "x", 1) = 1', 0, 2),
        Call(8, "write", '4<pipe:[1]>, "x", 1) = 1', 1, 3),
        Call(8, "SIGALRM", "", 4, 4),
        Call(8, "rt_sigreturn", "{mask=[]}) = -1 EINTR (Interrupted system call)", 5, 5),
        Call(7, "read", "3<pipe:[1]>, ", 6, None),
    ]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("write", '3</memfd:lguest>(deleted), "pread = EAGAIN", 14) = 14', "pread = EAGAIN"),
        ("write", '5<pipe:[9]>, "\\16", 1) = 1', "write(pipe)"),
        ("write", '20<anon_inode:[eventfd]>, "\\1\\0", 8) = 8', "kick"),
        ("readv", "13</dev/net/tun>, [{...}], 1) = 108", "readv(tap)"),
        ("writev", "6<socket:[4]>, [{...}], 1) = 108", "writev(tap)"),
        ("preadv2", "8</dev/net/tun>, [{...}], 3, -1, RWF_NOWAIT) = -1 EAGAIN", "preadv2(tap)"),
        ("pselect6", "14, [0<pipe:[1]>], NULL, NULL, NULL, NULL) = 1 (in [0])", "select"),
        ("poll", "[{fd=8</dev/net/tun>, events=POLLIN}], 1, 0) = 0 (Timeout)", "poll, no time"),
        ("poll", "[{fd=8</dev/net/tun>, events=POLLIN}], 1, -1", "poll"),
        ("newfstatat", '3</memfd:lguest>(deleted), "", {...}) = 0', "newfstatat"),
        ("rt_sigreturn", "{mask=[]}) = 0", "sigreturn"),
    ],
)
def test_a_call_has_a_name_anybody_understands(name: str, text: str, expected: str) -> None:
    assert label(Call(1, name, text, 0, 0)) == expected


def test_who_only_asks_or_writes_to_a_tap_does_not_sleep_in_it() -> None:
    calls = parse(ASLEEP)
    assert one_ping(calls).descriptors == {"10", "13", "16", "17", "4", "5"}


def test_lists_are_compared_line_by_line_and_nothing_is_dropped() -> None:
    rows = beside(["a", "b", "c"], ["x", "a", "c", "d"])
    assert rows == [("", "x"), ("a", "a"), ("b", ""), ("c", "c"), ("", "d")]


def test_the_lists_of_2009_have_the_lengths_which_the_message_has() -> None:
    assert (count(BEFORE_2009), count(AFTER_2009)) == (22, 7)
    assert BEFORE_2009["Launcher"].count("SIGALRM") == 1


def test_a_machine_without_strace_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert why_not().startswith("Not seen here: there is no strace")
    with pytest.raises(LguestError, match="Not seen here"):
        strace(["true"])
    fake = tmp_path / "strace"
    fake.write_text("#!/bin/sh\necho 'strace: ptrace(PTRACE_TRACEME): Operation not permitted' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert why_not() == (
        "Not seen here: strace may not trace a process here (strace: ptrace(PTRACE_TRACEME): Operation not permitted)."
    )


@needs_strace
def test_a_command_which_fails_is_a_sentence() -> None:
    with pytest.raises(LguestError, match="ended with 3: oh"):
        strace([sys.executable, "-Sc", "import sys; print('oh', file=sys.stderr); sys.exit(3)"])


@needs_strace
@pytest.mark.parametrize("on_a_wire", [False, True])
def test_a_ping_takes_the_steps_of_2009_on_either_design(on_a_wire: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if on_a_wire:
        monkeypatch.setattr(ping, "network", lambda: ([], "--wire"))
    elif ping.network()[1] == "--wire":
        pytest.skip("needs a tap device in a network namespace")
    calls, said = trace_pings("before")
    before = one_ping(calls)
    rows = [(thread, *row) for thread in BEFORE_2009 for row in beside(BEFORE_2009[thread], before.calls[thread])]
    missing = [(thread, theirs) for thread, theirs, ours in rows if not ours]
    assert "2 sent, 2 received" in said
    assert missing == [("Launcher", "pread, restarted")]
    assert before.threads == ["MainThread", "lguest waker"]
    after = one_ping(trace_pings("after")[0])
    rows = [(thread, *row) for thread in AFTER_2009 for row in beside(AFTER_2009[thread], after.calls[thread])]
    different = [(thread, theirs, ours) for thread, theirs, ours in rows if theirs != ours]
    assert different in (
        [("receive thread", "", "preadv2(tap)")],
        [("receive thread", "", "poll, no time")],  # where Linux doesn't know RWF_NOWAIT for this file
    )
    assert after.host["kick"] == 1 and after.host.get("membarrier", 0) <= len(AFTER_2009)
    assert "membarrier" not in before.host
    assert count(after.calls) < count(before.calls) / 2


@needs_strace
def test_the_folded_answer_of_the_exercise_runs_and_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = json.loads((ROOT / "nbs" / "69_the_change.ipynb").read_text())["cells"]
    (folded,) = [text for cell in cells if "```python\nlook_at" in (text := "".join(cell["source"]))]
    (code,) = re.findall(r"```python\n(look_at.*?)```", folded, re.DOTALL)
    pings: dict[str, ping.Ping] = {}
    said: dict[str, str] = {}

    def look_at(design: str, usec: int) -> None:
        calls, said[design] = trace_pings(design, usec)
        pings[design] = one_ping(calls)

    exec(code, {"look_at": look_at, "pings": pings, "said": said, "count": count, "print": lambda *what: None})
    assert "Twelve remain" in folded and count(pings["before"].calls) == 12
    assert not {"setitimer", "SIGALRM"} & set(pings["before"].calls["Launcher"])
    times = [float(ms) for ms in re.findall(r"seq \d+, ([\d.]+) ms", said["before"])]
    assert len(times) == 2


REMOVED = """
    add_device_fd block_vq enable_fd get_vq_desc handle_console_input handle_console_output handle_input
    handle_io_finish handle_net_output handle_rng_input handle_timeout handle_tun_input handle_virtblk_output io_thread
    net_enable_fd restore_term service_io setup_timeout setup_waker timeout_alarm waker
""".split()
CAME = """
    blk_request cleanup_devices console_input console_output create_thread do_thread kill_launcher net_input net_output
    reset_device rng_input start_device wait_for_vq_desc
""".split()
TABLES = (("68_before", "## Where everything went"), ("69_the_change", "## What went, and what came"))


def table_rows(notebook: str, heading: str) -> list[list[str]]:
    cells = json.loads((ROOT / "nbs" / f"{notebook}.ipynb").read_text())["cells"]
    (text,) = ["".join(cell["source"]) for cell in cells if heading in "".join(cell["source"])]
    return [line.strip("| ").split(" | ") for line in text.partition(heading)[2].splitlines() if line.startswith("| ")]


def names(text: str) -> list[str]:
    return re.findall(r"`([\w.]+)`", text)


def test_the_tables_have_each_function_which_the_commit_removed_or_brought_once() -> None:
    assert (len(REMOVED), len(CAME)) == (21, 13)
    where, change = (table_rows(*tables) for tables in TABLES)
    before = [name for row in where for name in names(row[0])]
    assert set(REMOVED) <= set(before)
    assert sorted(name for row in change for name in names(row[0]) if name in REMOVED) == REMOVED
    assert {name for row in change for cell in row for name in names(cell)} >= set(CAME)


def test_what_a_table_says_is_here_is_here() -> None:
    homes = [importlib.import_module(f"lguest_nb.{module}") for module in HOMES]
    rows = [row for tables in TABLES for row in table_rows(*tables)]
    for name in {name for row in rows for name in names(row[-1])}:
        first, *rest = name.split(".")
        owner = next((getattr(home, first) for home in homes if hasattr(home, first)), None)
        assert owner is not None, name
        source = inspect.getsource(owner)
        assert all(hasattr(owner, part) or re.search(rf"self\.{part}\b", source) for part in rest), name


def test_the_package_does_without_the_old_design() -> None:
    for path in (ROOT / "lguest_nb").rglob("*.py"):
        if "before" not in path.parts and path.name != "_modidx.py":
            assert not re.search(r"^\s*(import.*\bbefore\b|from [.\w]*\.before\b)", path.read_text(), re.M), path


def test_the_bench_is_a_command() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "bench_before.py", "--help"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and "--pings" in done.stdout
