"""The counting of one ping's system calls: what is read out of a trace of the shipped Launcher."""

import subprocess
import sys
from pathlib import Path

import bench_ping
import pytest
from bench_ping import CPU, RECEIVE, TRANSMIT, find_ping, lists, measure, raw, table, verdict

from lguest_nb.before.ping import AFTER_2009, label
from lguest_nb.memory import LguestError
from lguest_nb.strace import parse, why_not

ROOT = Path(__file__).parent.parent
TRACE = """\
40 read(24<anon_inode:[timerfd]>,  <unfinished ...>
33 write(1<pipe:[9]>, "64 bytes from 192.168.19.1: seq 1", 33) = 33
33 read(20<anon_inode:[eventfd]>,  <unfinished ...>
31 read(16<anon_inode:[eventfd]>, "\\1\\0\\0\\0\\0\\0\\0\\0", 8) = 8
31 writev(11</dev/net/tun>, [{iov_len=10}, {iov_len=98}], 2) = 108
31 membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0) = 0
30 readv(13</dev/net/tun>, [{iov_len=10}, {iov_len=1514}, {iov_len=1}], 3) = 108
31 read(16<anon_inode:[eventfd]>,  <unfinished ...>
30 readv(13</dev/net/tun>,  <unfinished ...>
28 write(26<anon_inode:[eventfd]>, "\\1\\0\\0\\0\\0\\0\\0\\0", 8 <unfinished ...>
31 <... read resumed>"\\1\\0\\0\\0\\0\\0\\0\\0", 8) = 8
28 <... write resumed>) = 8
31 futex(0x7f661054e6f4, FUTEX_WAIT_PRIVATE, 2, NULL <unfinished ...>
28 futex(0x7f661054e6f4, FUTEX_WAKE_PRIVATE, 1) = 1
31 <... futex resumed>) = 0
31 writev(11</dev/net/tun>, [{iov_len=10}, {iov_len=98}], 2) = 108
30 <... readv resumed>[{iov_len=10}, {iov_len=1514}, {iov_len=1}], 3) = 108
28 timerfd_settime(24<anon_inode:[timerfd]>, 0, {it_value={tv_sec=1, tv_nsec=0}}, NULL) = 0
30 preadv2(11</dev/net/tun>, [{iov_len=10}, {iov_len=1514}, {iov_len=1}], 3, -1, RWF_NOWAIT) = -1 EAGAIN (Resource ...)
40 <... read resumed>"\\1\\0\\0\\0\\0\\0\\0\\0", 8) = 8
30 --- SIGURG {si_signo=SIGURG, si_code=SI_TKILL} ---
30 membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0) = 0
31 read(16<anon_inode:[eventfd]>,  <unfinished ...>
28 futex(0x7f661054e6f4, FUTEX_WAIT_PRIVATE, 2, NULL <unfinished ...>
30 readv(13</dev/net/tun>,  <unfinished ...>
28 <... futex resumed>) = 0
28 write(28<anon_inode:[eventfd]>, "\\1\\0\\0\\0\\0\\0\\0\\0", 8) = 8
33 <... read resumed>"\\1\\0\\0\\0\\0\\0\\0\\0", 8) = 8
33 write(1<pipe:[9]>, "64 bytes from 192.168.19.1: seq 2", 33) = 33
"""
COUNTS = {
    "calls of the two service threads": 7,
    "    of them polls": 0,
    "    of them membarriers": 1,
    "futexes of the two service threads": 1,
    "calls of the CPU thread": 2,
    "futexes of the CPU thread": 2,
    "calls of all other threads": 1,
    "futexes of all other threads": 0,
    "signals": 1,
}


def test_the_last_ping_lasts_from_its_kick_until_both_threads_sleep() -> None:
    ping = find_ping(parse(TRACE))
    assert (ping.kick.began, ping.calls[-1].began) == (9, 24)
    assert [call.name for call in ping.of(TRANSMIT)] == ["read", "futex", "writev", "read"]
    assert [call.name for call in ping.of(RECEIVE)] == ["readv", "preadv2", "SIGURG", "membarrier", "readv"]


def test_threads_are_known_by_what_they_do() -> None:
    roles = find_ping(parse(TRACE)).roles
    assert roles == {40: "Host's clock", 33: "console thread", 31: TRANSMIT, 30: RECEIVE, 28: CPU}


def test_each_call_is_counted_once() -> None:
    ping = find_ping(parse(TRACE))
    counts = measure(ping)
    assert counts == COUNTS
    assert sum(n for name, n in counts.items() if "of them" not in name) == len(ping.calls) == len(raw(ping))


def test_who_slept_all_the_while_has_done_nothing() -> None:
    assert "console thread" not in {line[:18].strip() for line in raw(find_ping(parse(TRACE)))}


def test_a_lock_has_a_row_of_its_own_and_a_missing_call_is_dots() -> None:
    lines = [" ".join(line.split()) for line in lists(find_ping(parse(TRACE)))]
    assert "transmit thread LHREQ_IRQ ·····" in lines and "transmit thread (futex: 1)" in lines
    assert "CPU thread timerfd_settime" in lines and "CPU thread (futex: 2)" in lines


@pytest.mark.parametrize(("calls", "polls", "word"), [(7, 1, "met"), (8, 0, "MISSED"), (7, 2, "MISSED")])
def test_the_goal_is_held_against_the_median_and_never_fitted(calls: int, polls: int, word: str) -> None:
    row = COUNTS | {"calls of the two service threads": calls, "    of them polls": polls}
    assert f": {word} (the medians are {calls} and {polls};" in verdict([row, row, COUNTS | {"signals": 9}])


def test_the_table_has_median_least_and_most() -> None:
    rows = [COUNTS | {"signals": n} for n in (0, 5, 1)]
    assert table(rows)[-1].split() == ["signals", "1", "0", "5"]


@pytest.mark.parametrize("without", ["writev", "31 read(16", "28 write(26", "readv(13"])
def test_a_trace_without_a_ping_is_a_sentence(without: str) -> None:
    trace = "".join(line for line in TRACE.splitlines(True) if without not in line)
    with pytest.raises(LguestError, match="no ping to be found"):
        find_ping(parse(trace))


def test_a_machine_without_a_tap_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_ping, "network", lambda: ([], "--wire"))
    with pytest.raises(LguestError, match="Not seen here: it takes a tap"):
        bench_ping.run_once()


@pytest.mark.skipif(bool(why_not()), reason=f"needs strace: {why_not()}")
def test_the_shipped_launcher_sleeps_where_that_of_2009_did() -> None:
    if bench_ping.network()[1] == "--wire":
        pytest.skip("needs a tap device in a network namespace")
    ping = bench_ping.run_once()
    calls = {role: [label(call) for call in bench_ping.own(ping.of(role))] for role in bench_ping.SERVICE}
    for role, its in calls.items():
        theirs = [call for call in AFTER_2009[role] if call != "LHREQ_IRQ"]
        assert [call for call in its if call in theirs] == theirs
    assert len(set(ping.roles.values()) & {TRANSMIT, RECEIVE, CPU}) == 3


def test_it_is_a_command_which_refuses_no_runs() -> None:
    command = [sys.executable, str(ROOT / "tools" / "bench_ping.py"), "--runs=0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "--runs is 1 or more, not 0" in done.stderr
