"""What a hypercall and a trap cost on the software Host, seen from the Guest: loops of a few instructions, timed.

A Guest runs an empty loop, and the same loop with one thing more in it; the difference is what that thing costs: the
way out of the translated code, our Python, and the way back. The limits are what the first sketch of such a Host needed
on Unicorn 2.1.4, the upper end of each range.
"""

import argparse
import os
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from progress import steps

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))  # the instructions are there

import softguest as g  # noqa: E402

HANDLER, LEAVE, USER_CODE, DOORBELL = 0x18000, 0x19000, 0x20000, 0x300000
FAULT = b"\xa1" + g.u32(0x80000000)  # movl 0x80000000, %eax
SKIP_FAULT = b"\x83\xc4\x04\x83\x04\x24\x05" + g.IRET  # addl $4, %esp; addl $5, (%esp)
CALL = b"\xcd\x80"  # int $0x80
INTO_RING_3 = g.user_segments() + g.hcall(g.SET_STACK, 0x69, 0x2F000, 1) + g.gate(0x80, HANDLER, 0xEF)
INTO_RING_3 += g.gate(3, LEAVE, 0xEF) + g.go_to_user(USER_CODE)


@dataclass(frozen=True)
class Cost:
    "One thing to be measured."

    name: str
    limit: float  # microseconds
    body: bytes  # of the loop, which leaves edi alone
    before: bytes = b""
    handler: bytes = g.IRET  # what the Guest does about the trap
    user: bool = False  # in ring 3


COSTS = [
    Cost("LOAD_IDT_ENTRY", 3, g.gate(0x40, HANDLER)),
    Cost("LOAD_GDT_ENTRY", 3, g.hcall(g.LOAD_GDT, 14, 0x0000FFFF, 0x00CFFA00)),
    Cost("SET_PTE", 9, g.hcall(g.SET_PTE, 0, 0x61000, 0x61067)),
    Cost("NOTIFY of an eventfd", 11, g.hcall(g.NOTIFY, DOORBELL)),
    Cost("int $0x80 and iret", 8, CALL, user=True),
    Cost("page fault and iret", 15, FAULT, g.gate(14, HANDLER), SKIP_FAULT),
]


def run_once(
    cost: Cost,
    turns: int,  # of the loop
    body: bytes,  # cost.body, or nothing
) -> float:  # seconds
    "How long a Guest takes to go round a loop and power off."
    loop = g.mov(g.EDI, turns) + body + b"\x4f\x0f\x85" + g.u32(-(len(body) + 7))  # 1: body; decl %edi; jnz 1b
    guest = g.Guest(cost.before + (INTO_RING_3 if cost.user else loop + g.POWER_OFF))
    guest.put(HANDLER, cost.handler)
    guest.put(LEAVE, g.POWER_OFF)
    guest.put(USER_CODE, loop + b"\xcc")  # int3
    kicks = os.eventfd(0)
    try:
        guest.start()
        guest.host.attach_eventfd(DOORBELL, kicks)
        started = time.perf_counter()
        ending = guest.host.run()
        seconds = time.perf_counter() - started
    finally:
        guest.close()
        os.close(kicks)
    if ending.how != "power-off":
        sys.exit(f"The Guest which was to measure {cost.name} {ending.how}: {ending.reason}")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--turns", type=int, default=20000, help="of each loop")
    arguments = parser.parse_args()
    sys.setswitchinterval(50e-6)  # as the command does
    found: dict[str, list[float]] = {}
    for _ in steps("The Host", range(arguments.runs), lambda run: ", ".join(cost.name for cost in COSTS)):
        for cost in COSTS:
            seconds = run_once(cost, arguments.turns, cost.body) - run_once(cost, arguments.turns, b"")
            found.setdefault(cost.name, []).append(seconds / arguments.turns * 1e6)
    print(f"What it costs on the software Host, microseconds: {arguments.runs} runs of {arguments.turns} each.\n")
    print(f"  {'':<22}{'median':>8} {'(least … most)':>18}{'limit':>8}")
    for cost in COSTS:
        times = found[cost.name]
        spread = f"({min(times):.1f} … {max(times):.1f})"
        verdict = "" if statistics.median(times) <= cost.limit else "  NOT MET"
        print(f"  {cost.name:<22}{statistics.median(times):>8.1f} {spread:>18}{cost.limit:>8g}{verdict}")


if __name__ == "__main__":
    main()
