"""Traps, interrupts and the timer of the software Host: nothing is lost, doubled, late, or where it must not be."""

import threading
import time

import pytest
import softguest as g

from lguest_nb.host import Ending, HostError

H = g.HANDLERS
ON, OFF = g.store(g.IRQ_ENABLED, 0x200), g.store(g.IRQ_ENABLED, 0)
COUNT, FRAME = g.SCRATCH, g.SCRATCH + 0x100


def died(code: bytes, reason: str) -> None:
    assert g.run(code) == Ending("died", reason)


def handler_that_counts(count: int = COUNT) -> bytes:
    "incl count; movl $0x200, irq_enabled; iret -- as lguest_iret, which is in the noirq range."
    return g.inc(count) + ON + g.IRET


# Traps


def test_a_trap_without_a_gate_kills_with_its_details() -> None:
    died(b"\x0f\x0b", f"unhandled trap 6 at {g.CODE + len(g.START):#x} (0x0)")  # ud2
    died(b"\x8b\x05" + g.u32(0x80000000), f"unhandled trap 14 at {g.CODE + len(g.START):#x} (0x80000000)")
    died(g.mov(g.EAX, 0x1234) + b"\x8e\xc0", f"unhandled trap 13 at {g.CODE + len(g.START) + 5:#x} (0x1234)")


def test_a_page_fault_pushes_its_error_code_and_leaves_cr2() -> None:
    guest = g.Guest(g.gate(14, H) + g.store(0x80001234, 1))
    guest.put(H, g.save(FRAME, g.ESP) + g.POWER_OFF)
    assert guest.run().how == "power-off"
    esp = guest.word(FRAME)
    assert guest.word(g.CR2) == 0x80001234
    error, eip, cs, flags = (guest.word(esp + 4 * i) for i in range(4))
    assert (error, eip, cs) == (2, g.CODE + len(g.START + g.gate(14, H)), 0x61)
    assert flags & 0x200 == 0  # the Guest had interrupts off, whatever the real flag


def test_the_second_and_the_hundredth_fault_are_no_double_faults() -> None:
    guest = g.Guest(g.gate(14, H) + g.mov(g.ECX, 100) + b"\xa1" + g.u32(0x80000000) + b"\x49\x75\xf8" + g.POWER_OFF)
    guest.put(H, g.inc(COUNT) + b"\x83\xc4\x04\x83\x04\x24\x05" + g.IRET)  # addl $4, %esp; addl $5, (%esp): skip it
    assert guest.run().how == "power-off"
    assert guest.word(COUNT) == 100


def test_a_frame_may_straddle_two_pages_which_are_not_neighbours() -> None:
    table = g.SIZE - 0x2000
    # page 0x61 becomes page 0x70, and the stack pointer is two words above 0x61000
    guest = g.Guest(
        g.store(table + 4 * 0x61, 0x70067) + g.hcall(g.SET_PTE, 0, 0x61000, 0x70067) + g.gate(6, H)
        + g.mov(g.ESP, 0x61008) + b"\x0f\x0b"
    )  # fmt: skip
    guest.put(H, g.save(FRAME, g.ESP) + g.POWER_OFF)
    assert guest.run().how == "power-off"
    assert guest.word(FRAME) == 0x60FFC
    assert guest.word(0x70000) == 0x61
    assert guest.word(0x60FFC) > g.CODE


def test_a_stack_at_the_end_of_the_world_kills_the_guest_only() -> None:
    died(g.mov(g.ESP, 4) + g.gate(6, H) + b"\x0f\x0b", "Bad address 0xfffffff8")
    died(g.mov(g.ESP, 0x80000000) + g.gate(6, H) + b"\x0f\x0b", "Bad address 0x7ffffff4")


def test_programs_enter_the_kernel_on_its_stack_and_return() -> None:
    guest = g.Guest(
        g.user_segments() + g.gate(0x80, H, 0xEF) + g.hcall(g.SET_STACK, 0x69, 0x2F000, 1) + g.go_to_user(0x20000)
    )
    guest.put(0x20000, g.mov(g.EAX, 5) + b"\xcd\x80" + g.mov(g.EAX, 6) + b"\xcd\x80")
    # cmpl $5, %eax; jne; movl %esp, FRAME; iret; else: power off
    guest.put(H, b"\x83\xf8\x05\x75\x07" + g.save(FRAME, g.ESP) + g.IRET + g.save(FRAME + 4, g.ESP) + g.POWER_OFF)
    assert guest.run().how == "power-off"
    assert guest.word(FRAME) == guest.word(FRAME + 4) == 0x2F000 - 20
    eip, cs, _flags, esp, ss = (guest.word(0x2F000 - 20 + 4 * i) for i in range(5))
    assert (eip, cs, esp, ss) == (0x20000 + 14, 0x73, g.USER_STACK, 0x7B)


@pytest.mark.parametrize(
    ("vector", "kind"),
    [(0x1F, 0x8E), (0x80, 0x8E), (0x21, 0xEF), (14, 0xEF), (13, 0xEF), (6, 0xEE), (3, 0x8F), (0x90, 0xEE)],
)
def test_programs_may_not_use_gates_which_are_not_theirs(vector: int, kind: int) -> None:
    guest = g.Guest(
        g.user_segments() + g.gate(vector, 0x19000, kind) + g.gate(13, H) + g.hcall(g.SET_STACK, 0x69, 0x2F000, 1)
        + g.go_to_user(0x20000)
    )  # fmt: skip
    guest.put(0x20000, bytes([0xCD, vector]))
    guest.put(H, g.save(FRAME, g.ESP) + g.POWER_OFF)
    assert guest.run().how == "power-off"
    esp = guest.word(FRAME)
    assert (guest.word(esp), guest.word(esp + 4)) == (8 * vector + 2, 0x20000)


def test_int3_is_one_byte_long_for_those_who_may_not_use_it() -> None:
    guest = g.Guest(
        g.user_segments() + g.gate(13, H) + g.hcall(g.SET_STACK, 0x69, 0x2F000, 1) + g.go_to_user(0x20000)
    )
    guest.put(0x20000, b"\xcc")
    guest.put(H, g.save(FRAME, g.ESP) + g.POWER_OFF)
    assert guest.run().how == "power-off"
    esp = guest.word(FRAME)
    assert (guest.word(esp), guest.word(esp + 4)) == (8 * 3 + 2, 0x20000)


def test_in_gives_ones_and_out_nothing() -> None:
    for code, expected in (
        (b"\xe4\x80", 0xFF), (b"\xe5\x80", 0xFFFFFFFF), (b"\xec", 0xFF), (b"\xed", 0xFFFFFFFF),
        (b"\x66\xed", 0xFFFF), (b"\x66\xe5\x80", 0xFFFF),
        (b"\xe6\x80", 0), (b"\xe7\x80", 0), (b"\xee", 0), (b"\xef", 0), (b"\x66\xef", 0), (b"\xfa", 0),
    ):  # fmt: skip
        guest = g.Guest(g.mov(g.EAX, 0) + code + g.save(FRAME, g.EAX) + g.POWER_OFF)
        assert guest.run().how == "power-off", code.hex()
        assert guest.word(FRAME) == expected, code.hex()


def test_programs_may_not_do_io() -> None:
    guest = g.Guest(
        g.user_segments() + g.gate(13, H) + g.hcall(g.SET_STACK, 0x69, 0x2F000, 1) + g.go_to_user(0x20000)
    )
    guest.put(0x20000, b"\x90\xec\xcd\x80")
    guest.put(H, g.save(FRAME, g.ESP) + g.POWER_OFF)
    assert guest.run().how == "power-off"
    error, eip, cs = (guest.word(guest.word(FRAME) + 4 * i) for i in range(3))
    assert (error, cs) == (0, 0x73)
    assert eip in (0x20000, 0x20001)  # Unicorn 2.1.3 only knows where the block began


def test_the_fpu_traps_only_while_ts_is_set() -> None:
    guest = g.Guest(b"\xd9\xe8" + g.gate(7, H) + g.hcall(g.TS, 1) + b"\xd9\xe8" + g.POWER_OFF)  # fld1
    guest.put(H, g.inc(COUNT) + g.hcall(g.TS, 0) + g.IRET)
    assert guest.run().how == "power-off"
    assert guest.word(COUNT) == 1


# Interrupts


def test_an_interrupt_ends_an_endless_loop() -> None:
    guest = g.Guest(g.gate(33, H) + ON + g.hcall(g.NOTIFY, 0x5000) + g.jump_to_self())
    guest.put(H, g.POWER_OFF)
    guest.on_notify = lambda _: threading.Thread(target=guest.host.interrupt, args=(1,)).start()
    assert guest.run().how == "power-off"


def test_the_lowest_interrupt_comes_first_and_its_gate_decides_what_follows() -> None:
    guest = g.Guest(g.gate(34, H) + g.gate(35, H + 0x100) + g.hcall(g.NOTIFY, 0x5000) + ON + g.jump_to_self())
    guest.put(H, g.inc(COUNT) + ON + g.IRET)
    guest.put(H + 0x100, g.load(g.EAX, COUNT) + g.save(COUNT + 4, g.EAX) + g.POWER_OFF)
    guest.on_notify = lambda _: [guest.host.interrupt(irq) for irq in (3, 2)]
    assert guest.run().how == "power-off"
    assert guest.word(COUNT + 4) == 1
    assert guest.host.stats()["interrupts"] == {"irq 2": 1, "irq 3": 1}


def test_interrupts_are_delivered_when_they_are_enabled_by_a_plain_store() -> None:
    # 2.6.31's lg_irq_enable never makes a hypercall for it.
    guest = g.Guest(g.gate(33, H) + g.hcall(g.NOTIFY, 0x5000) + g.store(COUNT, 7) + ON + g.jump_to_self())
    guest.put(H, g.load(g.EAX, COUNT) + g.save(COUNT + 4, g.EAX) + g.POWER_OFF)
    guest.on_notify = lambda _: guest.host.interrupt(1)
    assert guest.run().how == "power-off"
    assert guest.word(COUNT + 4) == 7
    assert guest.word(g.IRQ_PENDING) == 0


def test_a_guest_with_interrupts_off_sees_that_one_is_pending() -> None:
    guest = g.Guest(g.gate(33, H) + g.hcall(g.NOTIFY, 0x5000) + g.POWER_OFF)
    guest.on_notify = lambda _: guest.host.interrupt(1)
    assert guest.run().how == "power-off"
    assert guest.word(g.IRQ_PENDING) == 0x200


def test_a_blocked_interrupt_waits_until_it_is_unblocked() -> None:
    guest = g.Guest(
        g.store(g.BLOCKED, 2) + g.gate(33, H) + ON + g.hcall(g.NOTIFY, 0x5000) + g.store(COUNT, 7)
        + g.store(g.BLOCKED, 0) + g.jump_to_self()
    )  # fmt: skip
    guest.put(H, g.load(g.EAX, COUNT) + g.save(COUNT + 4, g.EAX) + g.POWER_OFF)
    guest.on_notify = lambda _: guest.host.interrupt(1)
    assert guest.run().how == "power-off"
    assert guest.word(COUNT + 4) == 7


def test_an_interrupt_without_a_gate_waits_for_one() -> None:
    guest = g.Guest(ON + g.hcall(g.NOTIFY, 0x5000) + g.store(COUNT, 7) + g.gate(33, H) + g.jump_to_self())
    guest.put(H, g.load(g.EAX, COUNT) + g.save(COUNT + 4, g.EAX) + g.POWER_OFF)
    guest.on_notify = lambda _: guest.host.interrupt(1)
    assert guest.run().how == "power-off"
    assert guest.word(COUNT + 4) == 7


def test_nothing_is_interrupted_between_noirq_start_and_noirq_end() -> None:
    spared = 0x20000
    body = b"".join(g.inc(COUNT) + b"\xeb\x00" for _ in range(200))  # two hundred blocks
    guest = g.Guest(
        g.gate(33, H) + ON + g.hcall(g.NOTIFY, 0x5000) + b"\xe8" + b"\0\0\0\0" + g.jump_to_self()
    )  # call spared
    call = guest.memory.map.find(b"\xe8\0\0\0\0", g.CODE)
    guest.put(call + 1, g.u32(spared - call - 5))
    guest.put(spared, body + b"\xc3")
    guest.set_words(g.DATA + 1380, spared, spared + len(body) + 1)
    guest.set_words(g.DATA, 0)
    guest.put(H, g.load(g.EAX, COUNT) + g.save(COUNT + 4, g.EAX) + g.POWER_OFF)
    # Pending, but off until the store inside of the spared code enables it.
    guest.put(spared, ON + body + b"\xc3")
    guest.set_words(g.DATA + 1384, spared + len(ON + body) + 1)
    guest.put(g.CODE, g.START + g.gate(33, H) + OFF + g.hcall(g.NOTIFY, 0x5000))
    after = g.CODE + len(g.START + g.gate(33, H) + OFF + g.hcall(g.NOTIFY, 0x5000))
    guest.put(after, b"\xe8" + g.u32(spared - after - 5) + g.jump_to_self())
    guest.on_notify = lambda _: guest.host.interrupt(1)
    assert guest.run().how == "power-off"
    assert guest.word(COUNT + 4) == 200


def test_no_interrupt_is_lost_and_no_instruction_runs_twice_in_a_storm() -> None:
    "`incl`, `lock incl` and `addl` in memory against a count in a register, until a thousand interrupts have come."
    loop = (
        g.inc(COUNT) + b"\xf0" + g.inc(COUNT + 4) + b"\x83\x05" + g.u32(COUNT + 8) + b"\x01" + b"\x47"  # incl %edi
        + b"\x81\x3d" + g.u32(COUNT + 12) + g.u32(2000)  # cmpl $2000, COUNT+12
    )  # fmt: skip
    guest = g.Guest(
        g.gate(33, H) + g.gate(34, H + 0x100) + g.mov(g.EDI, 0) + ON + g.hcall(g.NOTIFY, 0x5000)
        + loop + b"\x72" + bytes([256 - len(loop) - 2]) + g.save(COUNT + 20, g.EDI) + g.hcall(g.NOTIFY, 0x6000)
        + OFF + g.POWER_OFF
    )  # fmt: skip
    # The handlers are in the noirq range, so that they don't interrupt each other.
    guest.put(H, g.inc(COUNT + 12) + g.inc(COUNT + 12) + ON + g.IRET)
    guest.put(H + 0x100, g.inc(COUNT + 16) + ON + g.IRET)
    guest.set_words(g.DATA + 1380, H, H + 0x200)
    done = threading.Event()
    threads: list[threading.Thread] = []

    def storm(irq: int) -> None:
        while not done.is_set():
            guest.host.interrupt(irq)
            time.sleep(0)  # let somebody else have the GIL

    def notified(address: int) -> None:
        if address == 0x5000:
            threads.extend(threading.Thread(target=storm, args=(irq,)) for irq in (1, 2))
            for thread in threads:
                thread.start()
        else:
            done.set()
            for thread in threads:
                thread.join()

    guest.on_notify = notified
    assert guest.run().how == "power-off"
    assert [guest.word(COUNT + 4 * i) for i in range(3)] == [guest.word(COUNT + 20)] * 3
    delivered = guest.host.stats()["interrupts"]
    assert guest.word(COUNT + 12) == 2 * delivered["irq 1"] >= 2000
    assert guest.word(COUNT + 16) == delivered["irq 2"] > 0


def test_only_32_interrupts_exist() -> None:
    guest = g.Guest(g.POWER_OFF).start()
    for irq in (-1, 32):
        with pytest.raises(HostError, match="no interrupt"):
            guest.host.interrupt(irq)
    guest.close()


# Halting, and the timer


def test_halt_sleeps_until_the_timer_and_enables_interrupts() -> None:
    guest = g.Guest(g.gate(32, H) + g.hcall(g.CLOCKEVENT, 1_000_000) + g.hcall(g.HALT) + g.jump_to_self())
    guest.put(H, g.load(g.EAX, g.IRQ_ENABLED) + g.save(COUNT, g.EAX) + g.POWER_OFF)
    assert guest.run().how == "power-off"
    assert guest.word(COUNT) == 0  # on for the delivery, off in the handler: it is an interrupt gate


def test_a_timer_ends_an_endless_loop_and_can_be_cancelled() -> None:
    cancelled = g.hcall(g.CLOCKEVENT, 0xFFFFFFFF) + g.hcall(g.CLOCKEVENT, 0)
    guest = g.Guest(g.gate(32, H) + ON + cancelled + g.hcall(g.CLOCKEVENT, 2_000_000) + g.jump_to_self())
    guest.put(H, g.POWER_OFF)
    assert guest.run().how == "power-off"


def test_halt_with_an_interrupt_pending_does_not_sleep() -> None:
    guest = g.Guest(g.gate(33, H) + g.hcall(g.NOTIFY, 0x5000) + g.hcall(g.HALT) + g.jump_to_self())
    guest.put(H, g.POWER_OFF)
    guest.on_notify = lambda _: guest.host.interrupt(1)
    assert guest.run().how == "power-off"


def test_halt_sleeps_on_over_a_blocked_interrupt() -> None:
    guest = g.Guest(
        g.store(g.BLOCKED, 2) + g.gate(33, H) + g.gate(34, H + 0x100) + g.hcall(g.NOTIFY, 0x5000) + g.hcall(g.HALT)
        + g.jump_to_self()
    )  # fmt: skip
    guest.put(H, g.inc(COUNT))
    guest.put(H + 0x100, g.POWER_OFF)

    def notified(_: int) -> None:
        guest.host.interrupt(1)
        timer = threading.Timer(0.01, guest.host.interrupt, (2,))
        timer.daemon = True
        timer.start()

    guest.on_notify = notified
    assert guest.run().how == "power-off"
    assert guest.word(COUNT) == 0


def test_a_single_stepped_program_does_not_single_step_the_kernel() -> None:
    guest = g.Guest(
        g.user_segments() + g.gate(1, H) + g.hcall(g.SET_STACK, 0x69, 0x2F000, 1)
        + g.push(g.USER_DS) + g.push(g.USER_STACK) + g.push(0x302) + g.push(g.USER_CS) + g.push(0x20000) + g.IRET
    )  # fmt: skip
    guest.put(0x20000, b"\x90" * 16)
    guest.put(H, g.inc(COUNT) + b"\x83\x3d" + g.u32(COUNT) + b"\x05\x74\x01" + g.IRET + g.POWER_OFF)
    assert guest.run().how == "power-off"
    assert guest.word(COUNT) == 5
