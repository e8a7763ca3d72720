"""The software Host under a debugger: it stands where it should, does everything once, and loses nothing."""

import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import softguest as g
from support import PATIENCE

from lguest_nb.debuggable import I386, SIGABRT, SIGINT, SIGTRAP, Stop, TargetError
from lguest_nb.host import Ending
from lguest_nb.hosts.soft.debug import DebugHost

pytestmark = pytest.mark.usefixtures("nothing_left")
H = g.HANDLERS
ON, OFF = g.store(g.IRQ_ENABLED, 0x200), g.store(g.IRQ_ENABLED, 0)
COUNT = g.SCRATCH
NUMBERS = {register.name: number for number, register in enumerate(I386)}
STEPPED = Stop(SIGTRAP)
HIT = Stop(SIGTRAP, breakpoint=True)
PAUSED = Stop(SIGINT)
OFF_POWER = Ending("power-off", "Power down")


class Debugged(g.Guest):
    "A Guest whose CPU thread is another one, with the test as its debugger."

    def __init__(self, code: bytes = b"", init: bool = True, wait: bool = True) -> None:
        super().__init__(code, init=init)
        self.host = self.debug = DebugHost(wait=wait)
        self.stops: queue.SimpleQueue[Stop | Ending | None] = queue.SimpleQueue()
        self.debug.on_stop = lambda: self.stops.put(self.debug.stopped())
        self.thread = threading.Thread(target=self._run, name="lguest CPU")

    def _run(self) -> None:
        self.start()
        self.debug.run()

    def go(self) -> "Debugged":
        self.thread.start()
        return self

    def wait(self) -> Stop | Ending | None:
        return self.stops.get(timeout=PATIENCE)

    def step(self) -> int:
        "One instruction; where it has led."
        self.debug.resume(step=True)
        assert self.wait() == STEPPED
        return self.eip

    def run_on(self) -> Stop | Ending | None:
        self.debug.resume(step=False)
        return self.wait()

    def run_to(self, address: int) -> None:
        "To a breakpoint which is there for the purpose."
        self.debug.set_breakpoint(address)
        assert self.run_on() == HIT
        self.debug.clear_breakpoint(address)
        assert self.eip == address

    def get(self, name: str) -> int:
        return int.from_bytes(self.debug.read_register(NUMBERS[name]), "little")

    def set(self, name: str, value: int) -> None:
        self.debug.write_register(NUMBERS[name], value.to_bytes(4, "little"))

    @property
    def eip(self) -> int:
        return self.get("eip")

    def close(self) -> None:
        self.host.stop()
        if self.thread.ident is not None:
            self.thread.join()
        super().close()


Make = Callable[..., Debugged]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[Debugged] = []

    def make(*arguments: bytes, **keywords: bool) -> Debugged:
        made.append(Debugged(*arguments, **keywords))
        return made[-1]

    yield make
    for guest in made:
        guest.close()


def at(*before: bytes) -> int:
    "Where the code behind these pieces stands."
    return g.CODE + len(g.START) + sum(map(len, before))


class TestSteps:
    def test_it_stands_before_its_first_instruction(self, make: Make) -> None:
        guest = make(g.POWER_OFF).go()
        assert guest.wait() == STEPPED
        assert (guest.eip, guest.get("esp"), guest.get("cs")) == (g.CODE, 0, 0x61)
        assert guest.run_on() == OFF_POWER

    def test_each_instruction_is_one_step(self, make: Make) -> None:
        pieces = [
            b"\x90",
            g.mov(g.EAX, 7),
            b"\x40",
            g.save(COUNT, g.EAX),
            g.inc(COUNT),
            b"\x85\xc0",
            b"\x75\x01",
            b"\xf4",
        ]
        guest = make(b"".join(pieces) + b"\x90" + g.POWER_OFF).go()
        guest.wait()
        guest.run_to(at())
        seen = [guest.step() for _ in pieces]
        ends = [at(*pieces[: n + 1]) for n in range(len(pieces))]
        assert seen == [*ends[:6], ends[7], ends[7] + 1]  # testl, jne over the hlt, nop
        assert guest.word(COUNT) == 9

    def test_a_hypercall_is_one_step_and_is_done_once(self, make: Make) -> None:
        call = g.hcall(g.NOTIFY, 0x5000)
        guest = make(call + g.POWER_OFF).go()
        guest.wait()
        guest.run_to(at(call) - 2)
        assert guest.step() == at(call)
        assert guest.notified == [0x5000]  # the Bus has heard of it before we stand
        assert guest.run_on() == OFF_POWER
        assert guest.notified == [0x5000]

    def test_the_first_hypercall_too_and_a_vmcall_which_is_rewritten(self, make: Make) -> None:
        guest = make(init=False)
        code = g.mov(g.EAX, g.INIT) + g.mov(g.EBX, g.DATA) + b"\x0f\x01\xc1" + g.POWER_OFF
        guest.put(g.CODE, code)
        guest.go().wait()
        assert [guest.step() for _ in range(4)] == [g.CODE + n for n in (5, 10, 12, 13)]
        assert guest.memory.read(g.CODE + 10, 3) == b"\xcd\x1f\x90"
        assert guest.run_on() == OFF_POWER
        assert guest.host.stats()["hypercalls"]["LGUEST_INIT"] == 1

    def test_a_fault_leads_into_its_handler_and_iret_back(self, make: Make) -> None:
        setup = g.gate(14, H)
        guest = make(setup + b"\xa1" + g.u32(0x80000000) + b"\x90" + g.POWER_OFF)
        guest.put(H, b"\x83\xc4\x04\x83\x04\x24\x05" + g.IRET)  # addl $4, %esp; addl $5, (%esp): skip it
        guest.go().wait()
        guest.run_to(at(setup))
        assert guest.step() == H
        assert guest.get("cr2") == 0x80000000
        assert [guest.step() for _ in range(4)] == [H + 3, H + 7, at(setup) + 5, at(setup) + 6]

    def test_an_instruction_which_cannot_be_fetched_leads_into_the_handler(self, make: Make) -> None:
        setup = g.gate(14, H)
        guest = make(setup + b"\xb8" + g.u32(0x80000000) + b"\xff\xe0")  # movl, jmp *%eax
        guest.put(H, b"\x90" * 9)
        guest.go().wait()
        guest.run_to(at(setup) + 5)
        assert [guest.step(), guest.step()] == [H, H + 1]  # the jump has no other end than the fault
        guest.set("eip", 0x80000000)
        assert [guest.step(), guest.step()] == [H, H + 1]

    def test_into_a_program_and_out_again(self, make: Make) -> None:
        setup = g.user_segments() + g.gate(0x80, H, 0xEF) + g.hcall(g.SET_STACK, 0x69, 0x2F000, 1)
        pushes = g.go_to_user(0x20000)[:-1]
        guest = make(setup + pushes + g.IRET)
        guest.put(0x20000, b"\x90\xcd\x80\x90")
        guest.put(H, b"\x90" + g.IRET)
        guest.go().wait()
        guest.run_to(at(setup, pushes))
        assert guest.step() == 0x20000
        assert (guest.get("cs"), guest.get("esp")) == (g.USER_CS, g.USER_STACK)
        assert [guest.step() for _ in range(4)] == [0x20001, H, H + 1, 0x20003]
        assert guest.word(0x2F000 - 12) & 0x100 == 0  # there is no TF in the frame

    def test_a_guests_flags_never_show_that_it_is_stepped(self, make: Make) -> None:
        guest = make(b"\x9c\x58" + g.save(COUNT, g.EAX) + g.POWER_OFF).go()  # pushfl; popl %eax
        guest.wait()
        guest.run_to(at())
        assert [guest.step() for _ in range(3)] == [at() + 1, at() + 2, at() + 2 + len(g.save(COUNT, g.EAX))]
        assert guest.word(COUNT) & 0x100 == 0

    def test_a_store_over_the_next_instruction_is_done_once_and_then_executed(self, make: Make) -> None:
        store = b"\xc6\x05" + g.u32(at() + 7) + b"\x41"  # movb $0x41, behind it: incl %ecx
        guest = make(store + b"\x90" + g.POWER_OFF).go()
        guest.wait()
        guest.run_to(at())
        before = guest.get("ecx")
        assert [guest.step(), guest.step()] == [at() + 7, at() + 8]
        assert guest.get("ecx") == before + 1

    def test_one_iteration_of_a_rep_is_one_step(self, make: Make) -> None:
        setup = g.mov(g.ECX, 3) + g.mov(g.EDI, COUNT) + g.mov(g.EAX, 0x55)
        guest = make(setup + b"\xf3\xaa" + g.POWER_OFF).go()
        guest.wait()
        guest.run_to(at(setup))
        seen = []
        while guest.eip == at(setup):
            guest.step()
            seen.append((guest.get("ecx"), guest.memory.read(COUNT, 3).hex()))
        assert seen[:3] == [(2, "550000"), (1, "555500"), (0, "555555")]
        assert len(seen) <= 4  # QEMU looks at %ecx once more

    def test_a_jump_to_itself_can_be_stepped(self, make: Make) -> None:
        guest = make(g.jump_to_self()).go()
        guest.wait()
        guest.run_to(at())
        assert [guest.step(), guest.step()] == [at(), at()]

    def test_the_step_which_switches_it_off_is_its_last(self, make: Make) -> None:
        guest = make(g.POWER_OFF).go()
        guest.wait()
        guest.run_to(at(g.POWER_OFF) - 2)
        guest.debug.resume(step=True)
        assert guest.wait() == OFF_POWER


class TestInterrupts:
    def standing(self, make: Make, code: bytes, where: int) -> Debugged:
        "At `where`, with interrupt 1 pending and a handler which counts."
        guest = make(g.gate(33, H) + code)
        guest.put(H, g.inc(COUNT) + ON + g.IRET)
        guest.go().wait()
        guest.run_to(where)
        guest.host.interrupt(1)
        return guest

    def test_a_step_keeps_them_waiting_and_going_on_does_not(self, make: Make) -> None:
        code = ON + b"\x90\x90\x90"
        guest = self.standing(make, code + g.POWER_OFF, at(g.gate(33, H), ON))
        assert guest.step() == at(g.gate(33, H), ON) + 1
        assert guest.step() == at(g.gate(33, H), ON) + 2
        assert guest.word(COUNT) == 0
        assert guest.run_on() == OFF_POWER
        assert guest.word(COUNT) == 1

    def test_it_leads_into_the_handler_for_those_who_want_it(self, make: Make) -> None:
        guest = self.standing(make, ON + b"\x90" + g.POWER_OFF, at(g.gate(33, H), ON))
        assert "are delivered" in guest.debug.command("interrupts on")
        assert guest.step() == H
        assert "wait" in guest.debug.command("interrupts off")
        assert "wait" in guest.debug.command("help")
        assert guest.run_on() == OFF_POWER
        assert guest.word(COUNT) == 1

    def test_a_step_over_a_store_which_enables_them(self, make: Make) -> None:
        setup = g.gate(33, H) + OFF
        guest = make(setup + ON + b"\x90" + g.POWER_OFF)
        guest.put(H, g.inc(COUNT) + ON + g.IRET)
        guest.go().wait()
        guest.run_to(at(setup))
        guest.host.interrupt(1)
        assert guest.step() == at(setup, ON)
        assert guest.run_on() == OFF_POWER
        assert guest.word(COUNT) == 1

    def test_a_halted_guest_steps_into_the_handler_which_wakes_it(self, make: Make) -> None:
        setup, halt = g.gate(33, H), g.hcall(g.HALT)
        guest = make(setup + halt + g.POWER_OFF)
        guest.put(H, g.inc(COUNT) + ON + g.IRET)
        guest.go().wait()
        guest.run_to(at(setup, halt) - 2)
        assert guest.step() == at(setup, halt)  # it has halted, and that was an instruction
        guest.debug.resume(step=True)
        with pytest.raises(queue.Empty):
            guest.stops.get(timeout=0.05)
        guest.host.interrupt(1)
        assert guest.wait() == STEPPED
        assert guest.eip == H
        assert guest.run_on() == OFF_POWER

    def test_whoever_loses_patience_with_a_halted_guest_stops_the_step(self, make: Make) -> None:
        halt = g.hcall(g.HALT)
        guest = make(halt + g.jump_to_self()).go()
        guest.wait()
        guest.run_to(at(halt) - 2)
        guest.step()
        guest.debug.resume(step=True)
        guest.debug.pause()
        assert guest.wait() == PAUSED
        assert guest.eip == at(halt)

    def test_none_is_lost_while_it_stands(self, make: Make) -> None:
        setup = b"".join(g.gate(32 + irq, H) for irq in (1, 2, 3))
        loop = b"\x83\x3d" + g.u32(COUNT) + b"\x03\x75\xf7"  # 1: cmpl $3, COUNT; jne 1b
        guest = make(setup + ON + loop + g.POWER_OFF)
        guest.put(H, g.inc(COUNT) + ON + g.IRET)
        guest.go().wait()
        guest.run_to(at(setup, ON))
        for irq in (3, 1, 2):
            guest.host.interrupt(irq)
        assert guest.run_on() == OFF_POWER
        assert guest.host.stats()["interrupts"] == {"irq 1": 1, "irq 2": 1, "irq 3": 1}

    def test_the_timer_goes_on_while_it_stands(self, make: Make) -> None:
        setup = g.gate(32, H) + ON + g.hcall(g.CLOCKEVENT, 1_000_000)
        guest = make(setup + g.jump_to_self())
        guest.put(H, g.POWER_OFF)
        guest.go().wait()
        guest.run_to(at(setup))
        deadline = time.monotonic() + PATIENCE
        machine = guest.host.machine
        assert machine is not None
        while not machine.interrupts.pending and time.monotonic() < deadline:
            time.sleep(0.001)
        assert guest.run_on() == OFF_POWER


class TestBreakpoints:
    LOOP = g.mov(g.ECX, 20) + b"\x43\x49\x75\xfc"  # movl $20, %ecx; 1: incl %ebx; decl %ecx; jne 1b

    def count_hits(self, guest: Debugged, address: int) -> int:
        "Go on as gdb does: off the breakpoint by a step, then on."
        guest.debug.set_breakpoint(address)
        hits, why = 0, guest.run_on()
        while why == HIT:
            assert guest.eip == address
            hits += 1
            guest.debug.clear_breakpoint(address)
            guest.step()
            guest.debug.set_breakpoint(address)
            why = guest.run_on()
        assert why == OFF_POWER
        return hits

    @pytest.mark.parametrize("offset", [5, 6, 7])
    def test_each_pass_is_one_hit(self, make: Make, offset: int) -> None:
        guest = make(self.LOOP + g.POWER_OFF).go()
        guest.wait()
        assert self.count_hits(guest, at() + offset) == 20

    def test_each_pass_is_one_hit_in_a_storm_of_interrupts(self, make: Make) -> None:
        guest = make(g.gate(33, H) + g.gate(34, H) + ON + self.LOOP + OFF + g.POWER_OFF)
        guest.put(H, g.inc(COUNT) + ON + g.IRET)
        guest.set_words(g.DATA + 1380, H, H + 0x100)
        guest.go().wait()
        over = threading.Event()

        def storm() -> None:
            while not over.is_set():
                guest.host.interrupt(1)
                guest.host.interrupt(2)
                time.sleep(0)

        thread = threading.Thread(target=storm)
        thread.start()
        try:
            assert self.count_hits(guest, at(g.gate(33, H), g.gate(34, H), ON) + 5) == 20
        finally:
            over.set()
            thread.join()
        assert guest.word(COUNT) == sum(guest.host.stats()["interrupts"].values()) > 0

    def test_it_is_invisible(self, make: Make) -> None:
        code = g.load(g.EAX, at() + 6) + g.save(COUNT, g.EAX) + g.mov(g.EDX, 0x12345678) + g.POWER_OFF
        guest = make(code).go()
        guest.wait()
        before = guest.memory.read(g.CODE, 4096)
        for address in (at() + 6, at() + 12):
            guest.debug.set_breakpoint(address)
            assert guest.run_on() == HIT
            assert guest.eip == address
            assert guest.memory.read(g.CODE, 4096) == before == guest.debug.read(g.CODE, 4096)
            guest.step()
        assert guest.run_on() == OFF_POWER
        assert guest.word(COUNT) == int.from_bytes(code[6:10], "little")  # it has read its own code

    def test_flags_survive_between_a_comparison_and_its_jump(self, make: Make) -> None:
        compare = g.mov(g.EAX, 5) + b"\x83\xf8\x05"  # cmpl $5, %eax
        guest = make(compare + b"\x75\x05" + g.mov(g.EDX, 1) + g.POWER_OFF).go()  # jne over the movl
        guest.wait()
        guest.run_to(at(compare))
        assert guest.get("eflags") & 0x40
        assert guest.step() == at(compare) + 2
        assert guest.step() == at(compare) + 7
        assert guest.get("edx") == 1

    def test_code_which_was_translated_before_is_stopped_too(self, make: Make) -> None:
        guest = make(g.jump_to_self(), wait=False).go()
        guest.debug.pause()
        assert guest.wait() == PAUSED
        guest.debug.resume(step=False)
        time.sleep(0.02)
        guest.debug.pause()
        assert guest.wait() == PAUSED
        guest.debug.set_breakpoint(at())
        assert guest.run_on() == HIT
        guest.debug.clear_breakpoint(at())
        guest.debug.resume(step=False)
        with pytest.raises(queue.Empty):
            guest.stops.get(timeout=0.05)

    def test_it_is_virtual_and_may_be_set_before_anything_is_there(self, make: Make) -> None:
        table = g.SIZE - 0x2000
        setup = g.store(table + 4 * 0x61, 0x70067) + g.hcall(g.SET_PTE, 0, 0x61000, 0x70067)  # page 0x61 becomes 0x70
        guest = make(setup + g.mov(g.EAX, 0x61000) + b"\xff\xe0")  # jmp *%eax
        guest.put(0x70000, g.POWER_OFF)
        guest.go().wait()
        for address in (0x70000, 0x61000, 0x90000000):
            guest.debug.set_breakpoint(address)
        assert guest.run_on() == HIT
        assert guest.eip == 0x61000

    def test_it_is_still_there_when_a_device_has_overwritten_the_page(self, make: Make) -> None:
        program, one, two = 0x22000, g.mov(g.EAX, 1) + b"\xc3", g.mov(g.EAX, 2) + b"\xc3"

        def call(where: int) -> bytes:
            return b"\xe8" + g.u32(program - where - 5)

        first = call(at())
        middle = first + g.hcall(g.NOTIFY, 0x5000)
        guest = make(middle + call(at(middle)) + g.POWER_OFF)
        guest.put(program, one)

        def load_second(_: int) -> None:
            guest.put(program, two)
            guest.host.wrote([(program, len(two))])

        guest.on_notify = load_second
        guest.go().wait()
        guest.debug.set_breakpoint(program + 5)  # the ret
        assert guest.run_on() == HIT
        assert guest.get("eax") == 1
        guest.step()
        assert guest.run_on() == HIT
        assert guest.get("eax") == 2
        assert guest.memory.read(program, len(two)) == two
        guest.debug.release()
        assert guest.wait() == OFF_POWER

    def test_what_a_device_writes_while_it_stands_is_what_runs(self, make: Make) -> None:
        loop = b"\x90" * 4 + g.jump_to_self()
        guest = make(loop).go()
        guest.wait()
        guest.run_to(at() + 4)  # so that this page holds code

        def device() -> None:
            guest.put(at() + 4, g.POWER_OFF)
            guest.host.wrote([(at() + 4, len(g.POWER_OFF))])

        thread = threading.Thread(target=device)
        thread.start()
        thread.join(PATIENCE)
        assert not thread.is_alive()  # nobody waited for the CPU, which stands
        assert guest.run_on() == OFF_POWER

    def test_in_the_handler_of_an_interrupt(self, make: Make) -> None:
        setup = g.gate(33, H) + ON + g.hcall(g.NOTIFY, 0x5000)
        guest = make(setup + g.jump_to_self())
        guest.put(H, g.POWER_OFF)
        guest.on_notify = lambda _: guest.host.interrupt(1)
        guest.go().wait()
        guest.debug.set_breakpoint(H)
        assert guest.run_on() == HIT
        assert guest.eip == H

    def test_nothing_is_done_twice_or_left_out_however_often_it_is_paused(self, make: Make) -> None:
        loop = g.inc(COUNT) + b"\xf0" + g.inc(COUNT + 4) + b"\x47"  # incl, lock incl, incl %edi
        guest = make(g.mov(g.EDI, 0) + loop + b"\xeb" + bytes([256 - len(loop) - 2]), wait=False).go()
        guest.debug.pause()
        guest.wait()
        for _ in range(200):
            done = guest.word(COUNT)
            guest.debug.resume(step=False)
            while guest.word(COUNT) == done:
                time.sleep(0)
            guest.debug.pause()
            assert guest.wait() == PAUSED
        guest.run_to(at(g.mov(g.EDI, 0)))
        assert guest.word(COUNT) == guest.word(COUNT + 4) == guest.get("edi") > 0


class TestComingAndGoing:
    def test_a_loop_with_interrupts_off_can_be_paused(self, make: Make) -> None:
        guest = make(OFF + g.jump_to_self()).go()
        guest.wait()
        guest.debug.resume(step=False)
        guest.debug.pause()
        assert guest.wait() == PAUSED
        assert g.CODE <= guest.eip <= at(OFF)

    def test_a_loop_in_the_noirq_range_can_be_paused(self, make: Make) -> None:
        guest = make(g.hcall(g.NOTIFY, 0x5000) + g.jump_to_self())
        guest.set_words(g.DATA + 1380, 0, 0xFFFFFFFF)
        guest.on_notify = lambda _: guest.debug.pause()
        guest.go().wait()
        assert guest.run_on() == PAUSED

    def test_a_halted_guest_can_be_paused_and_sleeps_on(self, make: Make) -> None:
        setup = g.gate(33, H) + g.hcall(g.HALT)
        guest = make(setup + g.POWER_OFF)
        guest.put(H, g.POWER_OFF)
        guest.go().wait()
        guest.run_to(at(setup) - 2)
        guest.debug.resume(step=False)
        guest.debug.pause()
        assert guest.wait() == PAUSED
        guest.debug.resume(step=False)
        guest.host.interrupt(1)
        assert guest.wait() == OFF_POWER

    def test_a_halted_guest_whose_eip_is_set_goes_there(self, make: Make) -> None:
        setup = g.hcall(g.HALT)
        guest = make(setup + g.jump_to_self())
        guest.put(H, g.POWER_OFF)
        guest.go().wait()
        guest.run_to(at(setup) - 2)
        guest.step()
        guest.set("eip", H)
        assert guest.run_on() == OFF_POWER

    @pytest.mark.parametrize("started", [False, True])
    def test_stop_ends_one_which_stands(self, make: Make, started: bool) -> None:
        guest = make(g.jump_to_self()).go()
        guest.wait()
        if started:
            guest.run_to(at())
        guest.host.stop()
        assert guest.wait() == Ending("stopped")

    def test_without_waiting_it_runs_and_one_may_come_later_and_again(self, make: Make) -> None:
        guest = make(g.jump_to_self(), wait=False).go()
        for _ in range(3):
            guest.debug.pause()
            assert guest.wait() == PAUSED
            guest.debug.set_breakpoint(at())
            guest.debug.release()
        with pytest.raises(queue.Empty):
            guest.stops.get(timeout=0.05)

    def test_a_pause_of_one_which_stands_is_forgotten(self, make: Make) -> None:
        guest = make(g.POWER_OFF).go()
        guest.wait()
        guest.debug.pause()
        assert guest.run_on() == OFF_POWER

    def test_a_dying_guest_stands_and_then_dies(self, make: Make) -> None:
        reason = f"unhandled trap 6 at {at():#x} (0x0)"
        guest = make(b"\x0f\x0b").go()
        guest.wait()
        assert guest.run_on() == Stop(SIGABRT, words=f"The Guest is about to die: {reason}")
        assert guest.eip == at()
        assert guest.run_on() == Ending("died", reason)

    def test_a_panicking_guest_stands_too(self, make: Make) -> None:
        guest = make(g.hcall(g.SHUTDOWN, g.TEXT, 1))
        guest.put(g.TEXT, b"no init\0")
        guest.go().wait()
        assert guest.run_on() == Stop(SIGABRT, words="The Guest is about to die: CRASH: no init")
        guest.debug.release()
        assert guest.wait() == Ending("died", "CRASH: no init")

    def test_one_which_nobody_looks_at_just_dies(self, make: Make) -> None:
        guest = make(b"\x0f\x0b", wait=False).go()
        assert isinstance(guest.wait(), Ending)

    def test_what_the_bus_raises_is_an_end_too(self, make: Make) -> None:
        guest = make(g.hcall(g.NOTIFY, 0x5000))
        failures: list[BaseException] = []

        def run() -> None:
            try:
                guest._run()
            except ZeroDivisionError as e:
                failures.append(e)

        guest.thread = threading.Thread(target=run, name="lguest CPU")
        guest.on_notify = lambda _: [1 // 0]
        guest.go().wait()
        assert guest.run_on() == Ending("died")
        guest.thread.join()
        assert failures


class TestLooking:
    @pytest.fixture
    def guest(self, make: Make) -> Debugged:
        guest = make(b"\xd9\xe8" + g.jump_to_self()).go()  # fld1
        guest.wait()
        guest.run_to(at() + 2)
        return guest

    def test_registers_can_be_set_and_stay(self, guest: Debugged) -> None:
        names = "eax ecx edx ebx esp ebp esi edi".split()
        for n, name in enumerate(names):
            guest.set(name, 0x1000 * n + 0x70005)
        guest.step()
        assert [guest.get(name) for name in names] == [0x1000 * n + 0x70005 for n in range(8)]

    def test_the_fpu_is_there(self, guest: Debugged) -> None:
        assert guest.debug.read_register(NUMBERS["st0"]).hex() == "0000000000000080ff3f"  # 1.0
        assert guest.get("fstat") >> 11 & 7 == 7
        guest.debug.write_register(NUMBERS["st0"], bytes.fromhex("00000000000000800040"))  # 2.0
        guest.step()
        assert guest.debug.read_register(NUMBERS["st0"]).hex() == "00000000000000800040"

    def test_flags_which_are_computed_can_be_set_and_others_cannot(self, guest: Debugged) -> None:
        before = guest.get("eflags")
        guest.set("eflags", before ^ 0x41)
        guest.step()
        assert guest.get("eflags") == before ^ 0x41
        with pytest.raises(TargetError, match="eflags"):
            guest.set("eflags", before ^ 0x200)

    @pytest.mark.parametrize("name", ["cs", "ss", "ds", "es", "fs", "gs", "cr2", "cr3"])
    def test_what_would_leave_the_guests_world_cannot_be_set(self, guest: Debugged, name: str) -> None:
        with pytest.raises(TargetError, match=f"{name} of a Guest"):
            guest.set(name, 0x73)

    def test_cr3_is_the_guests_own(self, guest: Debugged) -> None:
        assert guest.get("cr3") == g.SIZE - 0x1000

    def test_memory_is_read_as_far_as_there_is_any(self, guest: Debugged) -> None:
        end = guest.memory.limit
        assert guest.debug.read(0xC0000000 + g.CODE, 5) == guest.memory.read(g.CODE, 5)
        assert len(guest.debug.read(end - 0x1800, 0x2000)) <= 0x1800
        for address in (0x80000000, 0xFFC02000, 0xFFFFFFFF):
            with pytest.raises(TargetError, match=f"{address:#x}"):
                guest.debug.read(address, 1)
            with pytest.raises(TargetError, match=f"{address:#x}"):
                guest.debug.write(address, b"x")

    def test_code_which_is_written_is_what_runs(self, guest: Debugged) -> None:
        guest.step()
        guest.debug.write(0xC0000000 + at() + 2, g.POWER_OFF)
        assert guest.run_on() == OFF_POWER

    def test_a_page_which_the_guest_may_not_write_we_may(self, guest: Debugged) -> None:
        table = g.SIZE - 0x2000
        guest.set_words(table + 4 * 0x61, 0x61005)
        guest.debug.write(0x61000, b"hello")
        assert guest.memory.read(0x61000, 5) == b"hello"

    def test_nothing_can_be_looked_at_while_it_runs_or_afterwards(self, guest: Debugged) -> None:
        guest.debug.resume(step=False)
        with pytest.raises(TargetError, match="is running"):
            guest.debug.read(g.CODE, 1)
        guest.host.stop()
        assert guest.wait() == Ending("stopped")
        with pytest.raises(TargetError):
            guest.get("eax")


def test_a_host_which_nobody_debugs_has_no_brakes() -> None:
    program = "import lguest_nb.cli, lguest_nb.guest, sys; lguest_nb.guest.boot(); "
    program += "print([name for name in sys.modules if 'brakes' in name or 'gdb' in name or 'debug' in name])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
