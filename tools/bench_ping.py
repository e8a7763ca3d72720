"""One ping through the shipped Launcher, as strace sees it: every call of every thread, beside the lists of 2009."""

import argparse
import statistics
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from progress import steps

from lguest_nb.before.ping import AFTER_2009, BEFORE_2009, PINGED, beside, count, label, network
from lguest_nb.guest import command_line, path
from lguest_nb.memory import LguestError
from lguest_nb.strace import Call, strace, why_not

LAUNCHER = Path(sys.executable).with_name("lguest-nb")
GUEST = "192.168.19.2"
MEGABYTES = 16
TRANSMIT, RECEIVE, CPU = "transmit thread", "receive thread", "CPU thread"
SERVICE = (TRANSMIT, RECEIVE)
MOST_CALLS, MOST_POLLS = 7, 1  # the goal: what the C program of 2009 took, in which nothing polls
POLLS = ("poll", "ppoll", "select", "pselect6", "epoll_wait", "epoll_pwait")
WORDS_TO_HOST = sum(call == "LHREQ_IRQ" for calls in AFTER_2009.values() for call in calls)


@dataclass
class OnePing:
    "What strace saw from the kick until both service threads slept again."

    calls: list[Call]  # of every thread, in the order in which they began
    roles: dict[int, str]  # thread → who it is
    kick: Call  # with which it begins

    def of(self, *roles: str) -> list[Call]:
        return [call for call in self.calls if self.roles[call.thread] in roles]


def last(
    calls: Sequence[Call],
    what: str,
) -> Call:
    "The last of them. Raises `LguestError` if there is none."
    if not calls:
        raise LguestError(f"The trace shows no {what}, so there's no ping to be found in it.")
    return calls[-1]


def find_ping(
    calls: Sequence[Call],  # of a whole run
) -> OnePing:
    "The last ping in it. Threads are known by what they do. Raises `LguestError` if there is none."
    labels = [(call, label(call)) for call in calls]
    sent = last([c for c, name in labels if name == "writev(tap)" and c.text.endswith(" = 108")], "packet of 108 bytes")
    reads = [c for c in done(labels, "read(eventfd)") if c.thread == sent.thread and c.began < sent.began]
    woken = last(reads, "thread which it woke").ended
    kick = last([c for c, name in labels if name == "kick" and woken is not None and c.began < woken], "kick")
    got = last([c for c in done(labels, "readv(tap)") if c.text.endswith(" = 108")], "answer")
    asleep = [
        next((c for c, name in labels if c.thread == before.thread and name == bed and c.began > before.began), None)
        for before, bed in ((sent, "read(eventfd)"), (got, "readv(tap)"))
    ]
    end = max(last([c for c in [call] if c is not None], "service thread asleep again").began for call in asleep)
    during = [c for c in calls if c.began <= end and not slept_through(c, kick.began, end)]
    return OnePing(during, who_is_who(labels, {sent.thread: TRANSMIT, got.thread: RECEIVE, kick.thread: CPU}), kick)


def done(labels: Sequence[tuple[Call, str]], name: str) -> list[Call]:
    return [call for call, its in labels if its == name and call.ended is not None]


def slept_through(
    call: Call,
    begin: int,  # line of the trace
    end: int,
) -> bool:
    "Was it over before, or did it begin before and not come back until after?"
    return call.began < begin and (call.ended is None or not begin < call.ended <= end)


def who_is_who(
    labels: Sequence[tuple[Call, str]],
    roles: dict[int, str],
) -> dict[int, str]:  # thread → who it is, for all of them
    "Strace knows numbers; the shipped command names nobody. But you know them by what they do."
    for call, name in labels:
        if call.thread in roles:
            continue
        if "[timerfd]" in call.text and name.startswith("read"):
            roles[call.thread] = "Host's clock"
        elif call.name == "write" and call.text.startswith("1<"):
            roles[call.thread] = "console thread"
    return {call.thread: roles.get(call.thread, "another thread") for call, _ in labels}


def run_once() -> OnePing:
    "Boot, ping twice, and look at the second: the first has to ask for an address. Raises `LguestError`."
    prefix, card = network()
    if card == "--wire":
        raise LguestError("Not seen here: it takes a tap device, as root or in a network namespace of one's own.")
    words = command_line(f"ping {PINGED} 2", "sleep 1000", "poweroff", ip=GUEST)
    calls, said = strace([str(LAUNCHER), card, str(MEGABYTES), str(path()), words], prefix)
    if "2 sent, 2 received" not in said:
        raise LguestError(f"The Guest got no answer: {said[-200:]!r}")
    return find_ping(calls)


def is_futex(call: Call) -> bool:
    return call.name.startswith("futex")


def own(calls: Sequence[Call]) -> list[Call]:
    "System calls, beside the futexes: a signal is none."
    return [call for call in calls if not is_futex(call) and not call.name.startswith("SIG")]


def measure(ping: OnePing) -> dict[str, int]:
    "Everything is counted, and each call in one of the rows which have no `of them`."
    service, cpu = ping.of(*SERVICE), ping.of(CPU)
    others = [call for call in ping.calls if ping.roles[call.thread] not in (*SERVICE, CPU)]
    return {
        "calls of the two service threads": len(own(service)),
        "    of them polls": sum(call.name in POLLS for call in service),
        "    of them membarriers": sum(call.name == "membarrier" for call in service),
        "futexes of the two service threads": sum(map(is_futex, service)),
        "calls of the CPU thread": len(own(cpu)),
        "futexes of the CPU thread": sum(map(is_futex, cpu)),
        "calls of all other threads": len(own(others)),
        "futexes of all other threads": sum(map(is_futex, others)),
        "signals": sum(call.name.startswith("SIG") for call in ping.calls),
    }


def table(measured: Sequence[dict[str, int]]) -> list[str]:
    lines = [f"{'':<36}{'median':>8}{'min':>6}{'max':>6}"]
    for name in measured[0]:
        values = [row[name] for row in measured]
        lines.append(f"{name:<36}{statistics.median(values):>8g}{min(values):>6}{max(values):>6}")
    return lines


def verdict(measured: Sequence[dict[str, int]]) -> str:
    calls = statistics.median(row["calls of the two service threads"] for row in measured)
    polls = statistics.median(row["    of them polls"] for row in measured)
    met = "met" if calls <= MOST_CALLS and polls <= MOST_POLLS else "MISSED"
    goal = f"at most {MOST_CALLS} calls of the service threads beside the futexes, at most {MOST_POLLS} of them a poll"
    interrupts = f"with the {WORDS_TO_HOST} interrupts it would be {calls + WORDS_TO_HOST:g}"
    return f"goal: {goal}: {met} (the medians are {calls:g} and {polls:g}; {interrupts})"


def lists(ping: OnePing) -> list[str]:
    "The service threads beside their list of 2009, then everybody else."
    lines = [f"{'':<18}{'June 2009, after':<22}here"]
    for role in SERVICE:
        calls = ping.of(role)
        for left, right in beside(AFTER_2009[role], [label(call) for call in own(calls)]):
            for theirs, ours in [(left, right)] if left == right else [(left, ""), ("", right)]:
                if theirs or ours:
                    lines.append(f"{role:<18}{theirs or '·····':<22}{ours or '·····'}")
        lines.append(f"{role:<18}{'':<22}(futex: {sum(map(is_futex, calls))})")
    for role in sorted(set(ping.roles.values()) - set(SERVICE)):
        calls = ping.of(role)
        for call in own(calls):
            lines.append(f"{role:<18}{'':<22}{label(call)}")
        if futexes := sum(map(is_futex, calls)):
            lines.append(f"{role:<18}{'':<22}(futex: {futexes})")
    return lines


def raw(ping: OnePing) -> list[str]:
    "Every line, nothing left out."
    return [
        f"{ping.roles[call.thread]:<18}{call.name}({call.text[:150]}{' …' if call.ended is None else ''}"
        for call in ping.calls
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description="Count the system calls of one ping through the shipped Launcher.")
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--list", action="store_true", help="print every call of one ping, and no more")
    options = parser.parse_args()
    if options.runs < 1:
        parser.error(f"--runs is 1 or more, not {options.runs}")
    if problem := why_not():
        print(problem)
        return 0
    try:
        runs = range(1 if options.list else options.runs)
        pings = [run_once() for _ in steps("Pinging under strace", runs, lambda run: "boot, ping, power off")]
    except LguestError as e:
        print(e, file=sys.stderr)
        return 1
    if options.list:
        print(*raw(pings[0]), sep="\n")
        return 0
    measured = [measure(ping) for ping in pings]
    typical = sorted(pings, key=lambda ping: len(own(ping.of(*SERVICE))))[len(pings) // 2]
    print(f"One ping through {LAUNCHER.name}, from the kick until both service threads sleep again.")
    print(f"{len(pings)} runs under strace; this is the middle one:\n")
    print(*lists(typical), sep="\n")
    print(f"\nIn June 2009 it was {count(AFTER_2009)} calls after the change. {WORDS_TO_HOST} of them are LHREQ_IRQ,")
    print("a write to the kernel, and to a Host in software a method call.")
    print(f"Before the change it was {count(BEFORE_2009)} calls and a signal:")
    for thread, calls in BEFORE_2009.items():
        print(textwrap.fill(f"{thread}: {', '.join(calls)}", 110, initial_indent="  ", subsequent_indent="    "))
    print()
    print(*table(measured), sep="\n")
    print(f"\n{verdict(measured)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
