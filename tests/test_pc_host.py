"""The software Host for today's kernels: what Unicorn lacks, with and without the cure, and a PcHost's promises."""

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from long_guest import (
    ALIAS,
    DATA_ALIAS,
    HOLE,
    HOLE_TABLE,
    NOT_RAM,
    PROGRAM,
    RAM,
    STACK,
    Written,
    assemble,
    small_pc,
)
from support import PATIENCE

from lguest_nb.bus.mmio import LockedReasons
from lguest_nb.host import Ending, HostError
from lguest_nb.hosts.pc.cpu import LongCpu
from lguest_nb.hosts.pc.host import SoftPcHost
from lguest_nb.hosts.soft import unicorn as u
from lguest_nb.hosts.soft.engine import Engine
from lguest_nb.hosts.soft.machine import Timer
from lguest_nb.hosts.soft.unicorn import ffi
from lguest_nb.memory import GuestMemory
from lguest_nb.pc.pic import PicPair


def no_read(*where: object) -> int:
    raise AssertionError(f"nothing is there to be read: {where}")


def no_write(*where: object) -> None:
    raise AssertionError(f"nothing is there to be written: {where}")


class Stock(Engine):
    "Unicorn as it comes, in 64-bit mode: the same program, without the cure."

    def __init__(self, memory: GuestMemory, model: int | None = None) -> None:
        super().__init__(u.MODE_64, model)
        self.map(0, memory.map, memory.limit)
        for register, value in ((u.CR3, 0x9000), (u.CR4, 0x20), (u.CR0, 0x80000011), (u.RSP, STACK)):
            self.set(register, value)

    def set(self, register: int, value: int) -> None:
        self.check(self.lib.uc_reg_write(self.uc, register, ffi.new("uint64_t *", value)))

    def get(self, register: int) -> int:
        value = ffi.new("uint64_t *")
        self.lib.uc_reg_read(self.uc, register, value)
        return int(value[0])

    def go(self, address: int = PROGRAM) -> int:
        return int(self.lib.uc_emu_start(self.uc, address, 0, 0, 0))


@contextmanager
def stock(program: str, model: int | None = None) -> Iterator[tuple[Stock, GuestMemory]]:
    memory, _ = small_pc(program)
    engine = Stock(memory, model)
    yield engine, memory
    engine.close()
    memory.close()


@contextmanager
def processor(
    program: str, acknowledge: Callable[[], int] | None = lambda: -1
) -> Iterator[tuple[LongCpu, GuestMemory]]:
    memory, boot = small_pc(program)
    cpu = LongCpu(memory.map, memory.limit, no_read, no_write, acknowledge)
    cpu.begin(memory, boot)
    yield cpu, memory
    cpu.close()
    memory.close()


@contextmanager
def pc(program: str, bus: Written | None = None) -> Iterator[tuple[SoftPcHost, GuestMemory]]:
    memory, boot = small_pc(program)
    host = SoftPcHost()
    host.start(memory, boot, bus or Written())
    yield host, memory
    host.close()
    memory.close()


def register(host: SoftPcHost, which: int) -> int:
    return host._started().get(which)


# What Unicorn lacks.

PATCHED = f"""
    efer 0x800                  # NXE: there are pages which cannot be executed
    mov $0x200000, %eax
    call *%rax
    mov %eax, %r12d
    movb $0, {DATA_ALIAS} + 0x800   # this one is noticed, and nobody looks again
    movb $2, {DATA_ALIAS} + 1       # the immediate of the function's mov
    mov $0x200000, %eax
    call *%rax
    mov %eax, %r13d
    hlt
"""
FUNCTION = assemble("mov $1, %eax; ret", 0x200000)


def test_code_changed_through_another_virtual_address_is_changed() -> None:
    with processor(PATCHED) as (cpu, memory):
        memory.write(0x200000, FUNCTION)
        assert cpu.run() == "halted"
        assert (cpu.get(u.R12), cpu.get(u.R13)) == (1, 2)


def test_stock_unicorn_runs_the_old_code_when_it_was_changed_through_another_virtual_address() -> None:
    with stock(PATCHED) as (engine, memory):
        memory.write(0x200000, FUNCTION)
        assert engine.go() == 0
        assert (engine.get(u.R12), engine.get(u.R13)) == (1, 1)


TWICE = """
    movabs $0x200040, %rbx
    xor %eax, %eax
again:
    incq (%rbx)
    incq %rax
    jmp again
"""


def test_a_stop_from_another_thread_never_makes_an_instruction_happen_twice() -> None:
    with processor(TWICE) as (cpu, memory):
        go, done = threading.Semaphore(0), False

        def stop() -> None:
            while go.acquire() and not done:
                cpu.stop()

        thread = threading.Thread(target=stop)
        thread.start()
        for _ in range(500):
            go.release()
            assert cpu.run() == "asked"
            assert int.from_bytes(memory.read(0x200040, 8), "little") == cpu.get(u.RAX)
        done = True
        go.release()
        thread.join()


def test_stock_unicorn_makes_some_instructions_happen_twice_when_stopped() -> None:
    with stock(TWICE) as (engine, memory):
        done = threading.Event()

        def stop() -> None:
            while not done.wait(100e-6):
                engine.lib.uc_emu_stop(engine.uc)

        thread = threading.Thread(target=stop)
        thread.start()
        address = PROGRAM
        for _ in range(10_000):
            engine.go(address)
            address = engine.get(u.RIP)
            if int.from_bytes(memory.read(0x200040, 8), "little") > engine.get(u.RAX) + 1:
                break
        else:
            pytest.fail("10000 stops, and no instruction has happened twice: then the cure isn't needed any more")
        done.set()
        thread.join()


FROM_USER = """
    efer 1                      # SCE: there are system calls
    msr 0xc0000081, 0, 0x00230010       # STAR: the kernel's segments are 0x10 and 0x18
    msr 0xc0000082, long, 0             # LSTAR
    msr 0xc0000083, compat, 0           # CSTAR
    msr 0xc0000084, 0x47700, 0          # FMASK
    pushq $0x2b
    pushq $0x8800
    pushq $0x202
    pushq $CS
    lea user(%rip), %rax
    push %rax
    iretq
long:
    mov $64, %ebx
    hlt
compat:
    mov $32, %ebx
    hlt
user:
    stc
    syscall
behind:
"""
KERNEL_FLAGS = 0x3  # of 0x203, FMASK takes the interrupt flag


def test_syscall_enters_the_kernel() -> None:
    program = f"CS = 0x33\n{FROM_USER}"
    with processor(program) as (cpu, _):
        assert cpu.run() == "halted"
        assert cpu.get(u.RBX) == 64
        assert cpu.get(u.RCX) == PROGRAM + len(assemble(program))
        assert cpu.get(u.R11) == 0x203
        assert (cpu.get(u.CS), cpu.get(u.SS), cpu.get(u.EFLAGS)) == (0x10, 0x18, KERNEL_FLAGS)
        assert cpu.counts[256] == 1


# A program at level 3. Its task is at 0x3000, the stack for level 0 ends at 0x8000, and port 0x99 alone is permitted.
LEVEL_3 = """
    table
    gate 1, handler
    gate 6, handler
    gate 13, handler
    mov $0x538, %edi            # the entry behind those of the table: a task at 0x3000, of 0x88 bytes
    movl $0x30000088, (%rdi)
    movl $0x8900, 4(%rdi)
    movq $0, 8(%rdi)
    lgdt 7f(%rip)
    jmp 6f
7:  .word 0x47
    .quad 0x500
6:  movq $0x8000, 0x3004
    movw $0x68, 0x3066
    mov $-1, %rax
    mov %rax, 0x3068
    mov %rax, 0x3070
    mov %rax, 0x3078
    movw $0xffff, 0x3080
    movb $0xfd, 0x307b          # 0x68 + 0x99 / 8: bit 1
    mov $0x38, %eax
    ltr %ax
    efer 1
    msr 0xc0000081, 0, 0x00230010
    msr 0xc0000083, entered, 0
    msr 0xc0000084, 0x200, 0    # SYSCALL switches interrupts off
    pushq $0x2b
    pushq $0x8800
    pushq $FLAGS
    pushq $CS
    lea user(%rip), %rax
    push %rax
    iretq
handler:
    pop %rbx                    # the error code, or where it was
    mov $77, %r12d
    hlt
entered:
    mov $88, %r12d
    hlt
user:
"""


@contextmanager
def level_3(what: str, selector: int = 0x33, flags: int = 0x202, bus: Written | None = None) -> Iterator[SoftPcHost]:
    "A Guest whose program at level 3 has done `what`."
    with pc(f"CS = {selector}; FLAGS = {flags}\n{LEVEL_3}\n{what}", bus) as (host, _):
        assert "interrupts off" in host.run().reason
        yield host


@pytest.mark.parametrize("what", ["out %al, $0x98", "in $0x9a, %al", "out %ax, $0x99", "in $0x98, %eax"])
def test_a_program_may_not_use_ports(what: str) -> None:
    bus = Written()
    with level_3(what, bus=bus) as host:
        assert (register(host, u.R12), register(host, u.RBX)) == (77, 0)
        assert not bus.reads and not bus.writes


@pytest.mark.parametrize(
    ("what", "flags"), [("out %al, $0x99", 0x202), ("out %al, $0x98", 0x3202)], ids=["map", "level of the flags"]
)
def test_a_program_may_use_ports_which_are_permitted(what: str, flags: int) -> None:
    bus = Written()
    with level_3(f"{what}; cli; hlt", flags=flags, bus=bus) as host:
        assert register(host, u.R12) == 77  # at the cli, or the hlt
        assert len(bus.writes) == 1


@pytest.mark.parametrize("vector", [0, 13, 0x81, 255])
def test_the_error_code_of_int_through_a_gate_which_is_no_gate_names_the_gate(vector: int) -> None:
    with level_3(f"int ${vector}") as host:
        assert register(host, u.RBX) == 8 * vector + 2


def test_int1_is_a_debug_exception_and_comes_back_behind_itself() -> None:
    program = "table; gate 1, handler; .byte 0xf1; inc %ebx; hlt; handler: mov $4, %ebx; iretq"
    with processor(program) as (cpu, _):
        assert cpu.run() == "halted"
        assert (cpu.get(u.RBX), cpu.counts[1], cpu.counts[6]) == (5, 1, 0)


@pytest.mark.parametrize("selector", [0x33, 0x23], ids=["64 bits", "32 bits"])
def test_sysenter_is_no_instruction_in_long_mode_for_a_processor_of_amd_s(selector: int) -> None:
    with level_3("sysenter", selector) as host:
        assert register(host, u.R12) == 77


def test_syscall_in_32_bits_enters_the_kernel_where_cstar_says() -> None:
    with level_3("syscall", 0x23) as host:
        assert register(host, u.R12) == 88
        assert (register(host, u.CS), register(host, u.SS)) == (0x10, 0x18)


def test_stock_unicorn_steps_over_syscall() -> None:
    with stock("mov $7, %ebx; syscall; mov $8, %ebx; hlt") as (engine, _):
        assert engine.go() == 0
        assert engine.get(u.RBX) == 8


def test_syscall_which_is_not_enabled_is_an_invalid_instruction() -> None:
    program = "table; gate 6, handler; here: syscall; hlt; handler: pop %rax; hlt"
    with processor(program) as (cpu, _):
        assert cpu.run() == "halted"
        assert assemble(program)[cpu.get(u.RAX) - PROGRAM :][:1] == assemble("syscall")[:1]
        assert cpu.counts[6] == 1


def test_int_through_an_empty_gate_faults_at_the_int_itself() -> None:
    program = """
        table
        gate 13, handler
        lea here(%rip), %rbx
    here:
        int $0x81
        hlt
    handler:
        pop %rcx
        pop %rax
        hlt
    """
    with processor(program) as (cpu, _):
        assert cpu.run() == "halted"
        assert cpu.get(u.RAX) == cpu.get(u.RBX)


def test_int_comes_back_behind_itself() -> None:
    with processor("table; gate 0x81, handler; int $0x81; inc %ebx; hlt; handler: mov $4, %ebx; iretq") as (cpu, _):
        assert cpu.run() == "halted"
        assert cpu.get(u.RBX) == 5


FAULTS = f"""
    table
    gate 14, handler
    mov ${HOLE}, %rbx
    mov $1000, %ecx
again:
    movl $1, (%rbx)             # not mapped: the handler maps it, and unmaps it again
    movq $0, {HOLE_TABLE}
    invlpg (%rbx)
    dec %ecx
    jnz again
    hlt
handler:
    pop %rdx                    # error code: a store, and nothing is there
    cmp $2, %edx
    jne wrong
    mov %cr2, %rdx
    cmp %rdx, %rbx
    jne wrong
    movq $0x200003, {HOLE_TABLE}
    inc %r12
    iretq
wrong:
    cli
    hlt
"""


def test_a_thousand_page_faults_in_a_row_are_page_faults() -> None:
    with processor(FAULTS) as (cpu, _):
        assert cpu.run() == "halted"
        assert (cpu.get(u.RCX), cpu.get(u.R12), cpu.counts[14], cpu.counts[8]) == (0, 1000, 1000, 0)


def test_stock_unicorn_ends_at_the_first_exception() -> None:
    with stock("xor %ecx, %ecx; div %ecx; hlt") as (engine, _):
        assert engine.go() == 21  # UC_ERR_EXCEPTION


WRITABLE = f"""
    mov ${ALIAS}, %rbx
    mov $0xc3, %al              # ret
    mov %al, (%rbx)
    mov $100000, %ecx
again:
    movl %ecx, 64(%rbx)         # a store into the page from which we run
    dec %ecx
    jnz again
    call *%rbx
    movb $0xf4, (%rbx)          # and now it is hlt
    jmp *%rbx
"""


def test_a_page_can_be_written_and_executed_by_turns() -> None:
    with processor(WRITABLE) as (cpu, memory):
        assert cpu.run() == "halted"
        assert cpu.get(u.RIP) == ALIAS + 1


# LOCK.

LOCKED_WRONGLY = [
    "btc %esp, %ecx", "bts %eax, %ebx", "btr %edx, %ecx", "btsl $3, %eax", "btrl $3, %eax", "btcl $3, %eax",
    "btl $3, (%ebx)", "bt %eax, (%ebx)", "add %eax, %ebx", "add (%ebx), %eax", "addl $1, %eax", "cmp %eax, (%ebx)",
    "cmpl $1, (%ebx)", "incl %eax", "decb %al", "notl %eax", "negb %al", "mull (%ebx)", "xchg %eax, %ecx",
    "xadd %eax, %ebx", "cmpxchg %eax, %ebx", "mov %eax, (%ebx)", "movl $1, (%ebx)", "push %eax", "nop", "ret", "int3",
    "cpuid", "rdtsc", "movzbl (%ebx), %eax", "shll (%ebx)", "test %eax, (%ebx)", "leal (%ebx), %eax", "pushl (%ebx)",
    "imul (%ebx), %eax", "movaps (%ebx), %xmm0", "fld1", "hlt",
]  # fmt: skip
LOCKED_WELL = [
    "btc %eax, (%ebx)", "btsl $3, (%ebx)", "btr %eax, (%ebx)", "add %eax, (%ebx)", "orb %al, (%ebx)", "adcl $1, (%ebx)",
    "sbbw $1, (%ebx)", "andl $1, (%ebx)", "sub %eax, (%ebx)", "xorl $300, (%ebx)", "incl (%ebx)", "decb (%ebx)",
    "notl (%ebx)", "negb (%ebx)", "xchg %eax, (%ebx)", "xadd %eax, (%ebx)", "cmpxchg %ecx, (%ebx)", "cmpxchg8b (%ebx)",
]  # fmt: skip


def locked(instruction: str) -> str:
    "With lock before it, which the assembler refuses to write where it is wrong."
    return f".byte 0xf0; {instruction}"


@pytest.mark.parametrize("instruction", LOCKED_WRONGLY)
def test_lock_before_what_cannot_be_locked_is_an_invalid_instruction(instruction: str) -> None:
    program = f"table; gate 6, handler; mov $0x200000, %ebx; {locked(instruction)}; hlt; handler: pop %rsi; hlt"
    long_mode = instruction.replace("push %eax", "push %rax").replace("pushl", "pushq")
    with processor(program.replace(instruction, long_mode)) as (cpu, memory):
        before = memory.read(0x200000, 64)
        assert cpu.run() == "halted"
        assert cpu.counts[6] == 1
        assert memory.u8[cpu.get(u.RSI)] == 0xF0  # where it faulted
        assert memory.read(0x200000, 64) == before


@pytest.mark.parametrize("instruction", LOCKED_WELL)
def test_lock_before_what_can_be_locked_is_obeyed(instruction: str) -> None:
    with processor(f"mov $0x200000, %ebx; xor %eax, %eax; {locked(instruction)}; hlt") as (cpu, memory):
        assert cpu.run() == "halted"
        assert cpu.counts[6] == 0


@pytest.mark.parametrize("instruction", ["btc %esp, %ecx", "incl %eax", "nop"])
def test_the_guest_of_2009_cannot_end_our_process_with_a_lock_either(instruction: str) -> None:
    memory = GuestMemory(1 << 20, 0)
    code = assemble(f".code32; {locked(instruction)}; hlt", 0x1000)
    memory.write(0x1000, code)
    engine = Engine()
    engine.map(0, memory.map, memory.limit)
    assert engine.lib.uc_emu_start(engine.uc, 0x1000, 0, 0, 0) == 10  # UC_ERR_INSN_INVALID
    engine.close()
    memory.close()


def test_lock_on_the_last_byte_of_a_page_faults_at_the_next_page() -> None:
    program = f"""
        table
        gate 14, handler
        movq $0x200007, {HOLE_TABLE}
        movb $0xf0, 0x200fff            # lock, and the next page isn't there
        mov ${HOLE} + 0xfff, %rax
        jmp *%rax
    handler:
        mov %cr2, %rbx
        hlt
    """
    with processor(program) as (cpu, _):
        assert cpu.run() == "halted"
        assert cpu.get(u.RBX) == HOLE + 0x1000


# How it ends.


def test_a_triple_fault_is_told_with_registers() -> None:
    with pc("xor %ecx, %ecx; div %ecx; hlt") as (host, _):
        ending = host.run()
        assert ending.how == "died"
        assert ending.reason.startswith(f"triple fault: RIP={PROGRAM + 2:x} ")
        assert "\n" not in ending.reason


def test_a_guest_which_halts_with_interrupts_off_has_died() -> None:
    with pc("cli; hlt") as (host, _):
        assert host.run().reason.startswith("halted for good, with interrupts off: ")


@pytest.mark.parametrize("where", [NOT_RAM, RAM], ids=["registers", "above RAM"])
def test_a_guest_which_jumps_to_where_no_code_is_ends_itself_alone(where: int) -> None:
    with pc(f"mov ${where}, %rax; jmp *%rax", Written(value=0xFFFFFFFF)) as (host, _):
        assert host.run().how == "died"


def test_a_stop_before_run_is_not_lost() -> None:
    with pc("1: jmp 1b") as (host, _):
        host.stop()
        assert host.run() == Ending("stopped")


@pytest.mark.parametrize("program", ["1: jmp 1b", "sti; 1: hlt; jmp 1b"], ids=["busy", "asleep"])
def test_a_stop_from_another_thread_ends_a_guest(program: str) -> None:
    with pc(f"out %al, $0x99; {program}", Written(lambda *_: began.set())) as (host, _):
        began = threading.Event()
        thread = threading.Thread(target=lambda: began.wait() and host.stop())
        thread.start()
        assert host.run() == Ending("stopped")
        thread.join()


def test_the_first_ending_counts() -> None:
    with pc("out %al, $0x99; 1: jmp 1b", Written(lambda *_: host.end(Ending("power-off")))) as (host, _):
        ending = host.run()
        host.stop()
        assert (ending, host.run()) == (Ending("power-off"), Ending("power-off"))


def test_what_the_bus_raises_comes_out_of_run(capfd: pytest.CaptureFixture[str]) -> None:
    class Broken(Exception):
        pass

    def broken(*_: object) -> None:
        raise Broken

    with pc("out %al, $0x99; mov $1, %ebx; 1: jmp 1b", Written(broken)) as (host, _):
        with pytest.raises(Broken):
            host.run()
    assert capfd.readouterr() == ("", "")


# Registers.


@pytest.mark.parametrize(("size", "name"), [(1, "al"), (2, "ax"), (4, "eax")])
def test_a_port_is_read_and_written_in_the_size_the_guest_uses(size: int, name: str) -> None:
    bus = Written(value=0x1122334455667788)
    with pc(f"xor %eax, %eax; mov $0x3f8, %edx; in %dx, %{name}; out %{name}, %dx; cli; hlt", bus) as (host, _):
        host.run()
        expected = 0x1122334455667788 & (1 << 8 * size) - 1
        assert bus.reads == [("port", 0x3F8, size)]
        assert bus.writes == [("port", 0x3F8, size, expected)]
        assert register(host, u.RAX) == expected


def test_a_wide_access_which_begins_at_another_chip_s_port_reaches_ours_with_its_second_byte() -> None:
    bus = Written(value=0xAA)
    program = "mov $0x0355, %ax; out %ax, $0x60; xor %eax, %eax; in $0x60, %ax; cli; hlt"
    with pc(program, bus) as (host, _):
        host.run()
        assert bus.writes == [("port", 0x60, 1, 0x55)]
        assert bus.reads == [("port", 0x60, 1)]
        assert register(host, u.RAX) & 0x3FF == 0x3AA  # of port 0x61, what was written: the gate and the speaker


@pytest.mark.parametrize(("size", "name"), [(1, "al"), (2, "ax"), (4, "eax")])
def test_a_register_in_memory_is_read_and_written_in_the_size_the_guest_uses(size: int, name: str) -> None:
    bus = Written(value=0x55667788)
    program = f"mov ${NOT_RAM} + 0x100, %ebx; xor %eax, %eax; mov (%rbx), %{name}; mov %{name}, 8(%rbx); cli; hlt"
    with pc(program, bus) as (host, _):
        host.run()
        expected = 0x55667788 & (1 << 8 * size) - 1
        assert bus.reads == [("memory", NOT_RAM + 0x100, size)]
        assert bus.writes == [("memory", NOT_RAM + 0x108, size, expected)]
        assert register(host, u.RAX) == expected


def test_the_last_byte_of_ram_is_ram_and_the_next_one_is_not() -> None:
    bus = Written(value=0x5A)
    with pc(f"movb $7, {RAM - 1}; movb $8, {RAM}; cli; hlt", bus) as (host, memory):
        host.run()
        assert memory.u8[RAM - 1] == 7
        assert bus.writes == [("memory", RAM, 1, 8)]


def test_a_kick_of_the_right_value_rings_its_eventfd_and_no_other() -> None:
    bus = Written()
    notify = NOT_RAM + 0x50
    kicks = "; ".join(f"movl ${n}, (%rbx)" for n in (0, 1, 1, 2))
    with pc(f"mov ${notify}, %ebx; {kicks}; movl $5, 0x1000(%rbx); cli; hlt", bus) as (host, _):
        first, second, any_value = (os.eventfd(0, os.EFD_NONBLOCK) for _ in range(3))
        host.attach_eventfd(notify, first, 0)
        host.attach_eventfd(notify, second, 1)
        host.attach_eventfd(notify + 0x1000, any_value)
        host.run()
        assert [os.eventfd_read(fd) for fd in (first, second, any_value)] == [1, 2, 1]
        assert bus.writes == [("memory", notify, 4, 2)]
        assert "kicks: 4" in host.report()
        for fd in (first, second, any_value):
            os.close(fd)


@pytest.mark.parametrize(("store", "size"), [("movb", 1), ("movw", 2)])
def test_a_store_which_is_no_whole_register_rings_nothing(store: str, size: int) -> None:
    bus = Written()
    with pc(f"mov ${NOT_RAM}, %ebx; {store} $1, (%rbx); cli; hlt", bus) as (host, _):
        fd = os.eventfd(0, os.EFD_NONBLOCK)
        host.attach_eventfd(NOT_RAM, fd, 1)
        host.run()
        assert bus.writes == [("memory", NOT_RAM, size, 1)]
        with pytest.raises(BlockingIOError):
            os.eventfd_read(fd)
        os.close(fd)


def test_a_doorbell_which_was_taken_off_leads_to_the_bus_again() -> None:
    bus = Written()
    with pc(f"mov ${NOT_RAM}, %ebx; movl $1, (%rbx); cli; hlt", bus) as (host, _):
        fd = os.eventfd(0, os.EFD_NONBLOCK)
        host.attach_eventfd(NOT_RAM, fd, 1)
        host.attach_eventfd(NOT_RAM, fd, 1)
        host.detach_eventfd(NOT_RAM, 2)
        host.detach_eventfd(NOT_RAM, 1)
        host.run()
        with pytest.raises(BlockingIOError):
            os.eventfd_read(fd)
        assert bus.writes == [("memory", NOT_RAM, 4, 1)]
        os.close(fd)


def test_too_many_doorbells_are_refused_with_a_sentence_and_leave_nothing_open() -> None:
    with pc("hlt") as (host, _):
        fd = os.eventfd(0)
        for n in range(256):
            host.attach_eventfd(NOT_RAM, fd, n)
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(HostError, match="no room for one more doorbell"):
            host.attach_eventfd(NOT_RAM, fd, 256)
        assert len(os.listdir("/proc/self/fd")) == before
        os.close(fd)


# Interrupts.

LISTENING = """
    table
    controllers 0xdf            # line 5 alone
    gate 0x25, handler
"""
HANDLER = """
handler:
    inc %r12
    send 0x20, 0x20
    iretq
"""


@pytest.mark.parametrize(
    ("window", "taken"),
    [("nop", 0), ("sti; nop; cli", 1), ("sti; cli", 0), ("sti; nop; nop; cli", 1)],
    ids=["off", "on", "shadow of sti", "on for longer"],
)
def test_an_interrupt_is_taken_when_the_guest_allows_it_and_not_right_after_sti(window: str, taken: int) -> None:
    bus = Written(lambda *_: host.interrupt(5))
    with pc(f"{LISTENING} out %al, $0x99; {window}; hlt; {HANDLER}", bus) as (host, _):
        assert "interrupts off" in host.run().reason
        assert register(host, u.R12) == taken


def test_an_interrupt_from_another_thread_wakes_a_halted_guest() -> None:
    program = f"{LISTENING} again: out %al, $0x99; sti; hlt; cli; cmp $100, %r12; jne again; hlt; {HANDLER}"
    ready = threading.Semaphore(0)

    def device() -> None:
        for _ in range(100):
            ready.acquire()
            host.interrupt(5)

    with pc(program, Written(lambda *_: ready.release())) as (host, _):
        thread = threading.Thread(target=device)
        thread.start()
        assert "interrupts off" in host.run().reason
        thread.join()
        assert register(host, u.R12) == 100


def test_an_interrupt_from_another_thread_reaches_a_busy_guest() -> None:
    program = f"{LISTENING} sti; out %al, $0x99; 1: cmp $1, %r12; jne 1b; cli; hlt; {HANDLER}"
    with pc(program, Written(lambda *_: ready.set())) as (host, _):
        ready = threading.Event()
        thread = threading.Thread(target=lambda: ready.wait() and host.interrupt(5))
        thread.start()
        assert "interrupts off" in host.run().reason
        thread.join()
        assert register(host, u.R12) == 1


def test_an_interrupt_which_was_masked_before_it_was_taken_is_not_taken() -> None:
    program = f"{LISTENING} out %al, $0x99; send 0x21, 0xff; sti; nop; nop; cli; hlt; {HANDLER}"
    with pc(program, Written(lambda *_: host.interrupt(5))) as (host, _):
        host.run()
        assert register(host, u.R12) == 0


@pytest.mark.parametrize("line", [-1, 16])
def test_a_line_which_there_is_not_is_refused_with_a_sentence(line: int) -> None:
    with pytest.raises(HostError, match=rf"no interrupt {line}: a PC has lines from 0 to 15"):
        SoftPcHost().interrupt(line)


@pytest.mark.parametrize("seed", range(20))
def test_the_controllers_in_c_are_those_in_python(seed: int) -> None:
    dice = random.Random(seed)
    ports = [port for first, last in PicPair.PORTS for port in range(first, last + 1)]
    commands = [0x11, 0x11, 0x12, 0x20, 0x20, 0x0A, 0x0B, 0x0C, 0x48, 0x68, 0x80, 0x00, 0xA0, *range(0x60, 0x68)]
    python = PicPair()
    with processor("hlt", acknowledge=None) as (cpu, _):
        for _ in range(1500):
            what = dice.random()
            port = dice.choice(ports)
            if what < 0.3:
                line = dice.randrange(16)
                python.raise_line(line)
                cpu.pulse(line)
            elif what < 0.5:
                expected = python.acknowledge() if python.pending() else -1
                assert cpu.c.machine_acknowledge(cpu.machine) == expected
            elif what < 0.7:
                assert cpu.read_port(port) == python.read_port(port), hex(port)
            else:
                value = dice.choice(commands) if dice.random() < 0.6 else dice.getrandbits(8) & dice.getrandbits(8)
                python.write_port(port, value)
                cpu.write_port(port, value)
            assert cpu.pending() == python.pending()


def test_a_wide_access_reaches_the_controllers_byte_by_byte() -> None:
    program = "mov $0xfe0b, %eax; out %ax, $0x20; in $0x20, %ax; mov %eax, %r12d; cli; hlt"
    with pc(program) as (host, _):
        host.run()
        assert register(host, u.R12) == 0xFE00


# Reasons for an interrupt, in the processor's keeping.

STATUS, ACK = NOT_RAM + 0x60, NOT_RAM + 0x64


def test_reasons_which_the_host_keeps_are_read_and_cleared_by_the_guest_without_its_bus() -> None:
    program = f"""
        mov ${STATUS}, %ebx
        mov (%rbx), %r12d
        movl $6, 4(%rbx)
        mov (%rbx), %r13d
        cli; hlt
    """
    with pc(program, Written()) as (host, _):
        reasons = host.keep_reasons(STATUS)
        reasons.set(1)
        reasons.set(2)
        host.run()
        assert (register(host, u.R12), register(host, u.R13), reasons.get()) == (3, 1, 1)
        reasons.clear(0xFFFFFFFF)
        assert reasons.get() == 0


@pytest.mark.parametrize(("store", "size"), [("movb", 1), ("movw", 2)])
def test_a_store_which_is_no_whole_register_acknowledges_nothing(store: str, size: int) -> None:
    bus = Written()
    with pc(f"mov ${ACK}, %ebx; {store} $1, (%rbx); movl $1, -4(%rbx); cli; hlt", bus) as (host, _):
        reasons = host.keep_reasons(STATUS)
        reasons.set(1)
        host.run()
        assert reasons.get() == 1
        assert bus.writes == [("memory", ACK, size, 1), ("memory", STATUS, 4, 1)]


def test_reasons_in_c_are_those_in_python() -> None:
    dice = random.Random(2009)
    with pc("cli; hlt") as (host, _):
        kept, locked = host.keep_reasons(STATUS), LockedReasons()
        other = host.keep_reasons(STATUS + 0x1000)
        for _ in range(500):
            bits, what = dice.getrandbits(32), dice.choice(("set", "clear"))
            for reasons in (kept, locked):
                getattr(reasons, what)(bits)
            assert kept.get() == locked.get()
        assert other.get() == 0


def test_no_reason_is_lost_between_four_threads_and_a_guest_which_acknowledges_them() -> None:
    program = f"""
        {LISTENING}
        mov ${STATUS}, %ebx
        out %al, $0x98              # it listens
    1:  sti; hlt; jmp 1b
    handler:
        send 0x20, 0x20
        mov (%rbx), %eax
        mov %eax, 4(%rbx)
        out %eax, $0x99
        iretq
    """
    seen = [threading.Semaphore(0) for _ in range(4)]
    left, listens = threading.Semaphore(0), threading.Event()
    late: list[int] = []

    def heard(_space: object, port: int, bits: int) -> None:
        if port == 0x98:
            listens.set()
            return
        for n, each in enumerate(seen):
            if bits >> n & 1:
                each.release()

    def device(n: int) -> None:
        listens.wait()
        for _ in range(100):
            reasons.set(1 << n)
            host.interrupt(5)
            if not seen[n].acquire(timeout=60):
                late.append(n)
                break
        left.release()

    with pc(program, Written(heard)) as (host, _):
        reasons = host.keep_reasons(STATUS)
        threads = [threading.Thread(target=device, args=(n,)) for n in range(4)]
        threads.append(threading.Thread(target=lambda: [left.acquire() for _ in range(4)] and host.stop()))
        for thread in threads:
            thread.start()
        assert host.run().how == "stopped"
        for thread in threads:
            thread.join()
        assert late == []


def test_too_many_registers_of_reasons_are_refused_with_a_sentence() -> None:
    with pc("hlt") as (host, _):
        for n in range(32):
            host.keep_reasons(NOT_RAM + 0x1000 * n)
        with pytest.raises(HostError, match="no room for one more register of reasons"):
            host.keep_reasons(NOT_RAM)


def test_reasons_are_harmless_after_the_end() -> None:
    with pc("cli; hlt") as (host, _):
        reasons = host.keep_reasons(STATUS)
    reasons.set(1)
    reasons.clear(1)
    assert reasons.get() == 0


# Sleeping after HLT.


def test_a_halted_guest_goes_on_after_an_interrupt_and_not_because_code_was_changed_under_it() -> None:
    program = f"""
        {LISTENING}
    again:
        mov %r12, %r13
        out %al, $0x99
        sti
        hlt
        cli
        cmp %r13, %r12
        je bad                      # woken, and by nothing
        cmp $100, %r12
        jne again
    bad:
        hlt
        {HANDLER}
    """
    ready = threading.Semaphore(0)

    def device() -> None:
        for _ in range(100):
            ready.acquire()
            host.wrote([(PROGRAM, 16)])
            host.interrupt(5)

    with pc(program, Written(lambda *_: ready.release())) as (host, _):
        thread = threading.Thread(target=device)
        thread.start()
        host.run()
        assert register(host, u.R12) == 100
        thread.join()


def test_an_interrupt_which_was_masked_meanwhile_does_not_end_a_halt() -> None:
    program = f"""
        table
        controllers 0xcf
        gate 0x24, handler
        gate 0x25, handler
        out %al, $0x99              # line 5 goes up,
        send 0x21, 0xef             # and is masked: line 4 alone
        out %al, $0x9a              # who shall pulse that one
        sti
        hlt
        cli
        mov %r12, %r13
        hlt
        {HANDLER}
    """
    threads: list[threading.Thread] = []

    def heard(_space: object, port: int, *_: object) -> None:
        if port == 0x99:
            host.interrupt(5)
        else:
            threads.append(threading.Thread(target=host.interrupt, args=(4,)))
            threads[-1].start()

    with pc(program, Written(heard)) as (host, _):
        host.run()
        threads[0].join()
        assert (register(host, u.R12), register(host, u.R13)) == (1, 1)


# A serial port's bytes, in the processor's keeping.

DATA, MAY = 0x3F8, 0x3FD


def saying(text: str) -> str:
    "A Guest which asks and sends, for each byte; the last answer is in R12."
    return f"""
        lea 3f(%rip), %rsi
        mov $4f - 3f, %ecx
    1:  mov ${MAY}, %dx
        in %dx, %al
        movzx %al, %r12d
        lodsb
        mov ${DATA}, %dx
        out %al, %dx
        dec %ecx
        jnz 1b
        cli; hlt
    3:  .ascii "{text}"
    4:
    """


def test_bytes_for_an_open_box_do_not_reach_the_bus_and_ring_once() -> None:
    bus = Written(value=0x20)
    with pc(saying("hello"), bus) as (host, _):
        fd = os.eventfd(0, os.EFD_NONBLOCK)
        box = host.keep_outbox(DATA, MAY, fd)
        box.open(0x61)
        host.run()
        assert (register(host, u.R12), bus.reads, bus.writes) == (0x61, [], [])
        assert (os.eventfd_read(fd), box.take(), box.take()) == (1, b"hello", b"")
        os.close(fd)


def test_a_box_which_is_shut_leaves_both_ports_to_the_bus_and_keeps_what_it_has() -> None:
    bus = Written(lambda *_: box.open(0x60), value=0x20)
    with pc(saying("abcd"), bus) as (host, _):
        fd = os.eventfd(0, os.EFD_NONBLOCK)
        box = host.keep_outbox(DATA, MAY, fd)
        host.run()
        assert bus.writes == [("port", DATA, 1, ord("a"))]
        box.shut()
        assert (register(host, u.R12), box.take()) == (0x60, b"bcd")
        os.close(fd)


def test_a_full_box_leaves_the_next_byte_to_the_bus() -> None:
    bus = Written(value=0x20)
    program = f"mov $65540, %ecx; mov ${DATA}, %dx; 1: mov %cl, %al; out %al, %dx; dec %ecx; jnz 1b; cli; hlt"
    with pc(program, bus) as (host, _):
        fd = os.eventfd(0, os.EFD_NONBLOCK)
        box = host.keep_outbox(DATA, MAY, fd)
        box.open(0x60)
        host.run()
        sent = bytes(n & 0xFF for n in range(65540, 0, -1))
        assert box.take() == sent[:65536]
        assert bytes(value for *_, value in bus.writes) == sent[65536:]
        os.close(fd)


@pytest.mark.parametrize(("register_", "size"), [("ax", 2), ("eax", 4)])
def test_a_wide_access_goes_past_an_open_box(register_: str, size: int) -> None:
    bus = Written()
    with pc(f"mov $0x41, %eax; mov ${DATA}, %dx; out %{register_}, %dx; in %dx, %{register_}; cli; hlt", bus) as (
        host,
        _,
    ):
        fd = os.eventfd(0, os.EFD_NONBLOCK)
        box = host.keep_outbox(DATA, DATA, fd)
        box.open(0x60)
        host.run()
        assert (bus.writes, bus.reads, box.take()) == ([("port", DATA, size, 0x41)], [("port", DATA, size)], b"")
        os.close(fd)


def test_a_host_keeps_one_box_which_is_harmless_after_the_end() -> None:
    fd = os.eventfd(0)
    with pc("cli; hlt") as (host, _):
        box = host.keep_outbox(DATA, MAY, fd)
        with pytest.raises(HostError, match="keeps an outbox already"):
            host.keep_outbox(DATA, MAY, fd)
    box.open(0x60)
    box.shut()
    assert box.take() == b""
    with pytest.raises(HostError, match="has not been started"):
        host.keep_outbox(DATA, MAY, fd)
    os.close(fd)


# What was translated is found again only as long as it is true.

FLUSHES = {
    "invlpg": "invlpg (%rbx)",
    "cr3": "mov %cr3, %rdx; mov %rdx, %cr3",
    "cr4": "mov %cr4, %rdx; xor $0x80, %dl; mov %rdx, %cr4",
}


@pytest.mark.parametrize("flush", FLUSHES.values(), ids=list(FLUSHES))
def test_a_call_through_a_register_goes_where_the_page_tables_say_since_the_last_flush(flush: str) -> None:
    call = "mov $100, %ecx; 1: call *%rbx; dec %ecx; jnz 1b"
    program = f"""
        mov ${ALIAS} + 0x180000, %ebx
        {call}
        mov %eax, %r12d
        movq $0x87, 0xc000          # the same virtual address is another physical one
        {flush}
        {call}
        mov %eax, %r13d
        movq $0x200087, 0xc000      # and the first one again
        {flush}
        {call}
        mov %eax, %ebp
        hlt
    """
    with processor(program) as (cpu, memory):
        memory.write(0x380000, FUNCTION)
        memory.write(0x180000, assemble("mov $2, %eax; ret", 0x180000))
        assert cpu.run() == "halted"
        assert [cpu.get(r) for r in (u.R12, u.R13, u.RBP)] == [1, 2, 1]


def test_a_call_through_a_register_finds_the_code_which_was_stored_there_last() -> None:
    program = """
        mov $0x200000, %ebx
        xor %r12d, %r12d
        mov $1, %ecx
    1:  movb %cl, 1(%rbx)           # the immediate of the function's mov
        call *%rbx
        call *%rbx
        add %eax, %r12d
        inc %ecx
        cmp $101, %ecx
        jne 1b
        hlt
    """
    with processor(program) as (cpu, memory):
        memory.write(0x200000, FUNCTION)
        assert cpu.run() == "halted"
        assert cpu.get(u.R12) == 5050


def test_an_engine_on_the_same_thread_does_not_hide_that_code_was_dropped() -> None:
    program = """
        mov $0x200000, %ebx
        mov $0x300000, %ebp
    1:  hlt
        movb $2, (%rbp)             # first into data, and then into the function's mov
        call *%rbx
        mov %eax, %r12d
        jmp 1b
    """
    with processor(program) as (cpu, memory):
        memory.write(0x200000, FUNCTION)
        for _ in range(3):
            assert cpu.run() == "halted"
        assert cpu.get(u.R12) == 1
        with stock("mov $1, %eax; hlt") as (engine, _):
            assert engine.go() == 0
            cpu.set(u.RBP, 0x200001)
            assert cpu.run() == "halted"
            assert cpu.get(u.R12) == 2


def test_more_places_than_are_remembered_are_all_found() -> None:
    program = """
    2:  mov $0x200000, %ebx
    1:  call *%rbx                  # a function in every sixteen bytes: 65,536 of them
        add %rax, %r12
        add $16, %ebx
        cmp $0x300000, %ebx
        jne 1b
        dec %r13d
        jnz 2b
        hlt
    """
    with processor(program) as (cpu, memory):
        memory.write(
            0x200000,
            b"".join(FUNCTION[:1] + n.to_bytes(4, "little") + FUNCTION[5:] + bytes(10) for n in range(1 << 16)),
        )
        cpu.set(u.R13, 2)
        assert cpu.run() == "halted"
        assert cpu.get(u.R12) == sum(range(1 << 16)) * 2


# Code which arrives by DMA.

CALLING = """
    out %al, $0x99
1:  mov $0x200000, %eax
    call *%rax
    mov %eax, 0x300000
    incq 0x300008
    jmp 1b
"""


def test_after_wrote_no_instruction_from_before_runs() -> None:
    began = threading.Event()
    seen = []

    def device() -> None:
        began.wait()
        for n in range(2, 100):
            memory.write(0x200000, FUNCTION[:1] + n.to_bytes(4, "little") + FUNCTION[5:])
            host.wrote([(0x200000, len(FUNCTION))])
            rounds = memory.u8[0x300008:0x300010].cast("Q")
            before = rounds[0]
            while rounds[0] < before + 2:  # the round in which it came, and one which is new
                time.sleep(0)
            seen.append((n, memory.u32[0x300000 // 4]))
            rounds.release()
        host.stop()

    with pc(CALLING, Written(lambda *_: began.set())) as (host, memory):
        memory.write(0x200000, FUNCTION)
        thread = threading.Thread(target=device)
        thread.start()
        host.run()
        thread.join()
    assert seen == [(n, n) for n in range(2, 100)]


def test_pages_which_never_held_code_cost_no_stop() -> None:
    with processor("hlt") as (cpu, _):
        cpu.run()
        assert cpu.holds_code(PROGRAM, 1)
        assert not cpu.holds_code(0x200000, 0x200000)
        assert not cpu.holds_code(PROGRAM, 0)
        assert not cpu.holds_code(RAM - 1, 1)


def test_a_page_which_lost_its_code_costs_no_stop_either() -> None:
    with processor("hlt") as (cpu, _):
        cpu.run()
        cpu.drop_code(PROGRAM, 4096)
        assert not cpu.holds_code(PROGRAM, 4096)


def test_a_bus_may_wait_for_a_thread_which_tells_of_code() -> None:
    "A reset joins the device's thread, and that one is in `wrote`."

    def reset(*_: object) -> None:
        thread = threading.Thread(target=host.wrote, args=([(PROGRAM, 4096)],))
        thread.start()
        thread.join()

    with pc("out %al, $0x99; cli; hlt", Written(reset)) as (host, _):
        assert "interrupts off" in host.run().reason


def test_wrote_fence_and_stop_are_harmless_before_the_start_and_after_the_end() -> None:
    with pc("cli; hlt") as (host, _):
        host.run()
        host.wrote([(PROGRAM, 1)])
        host.fence()
    for unused in (host, SoftPcHost()):
        unused.wrote([(PROGRAM, 1)])
        unused.fence()
        unused.interrupt(5)
        unused.stop()
        unused.close()


# Time.


def test_the_time_stamp_counter_counts_nanoseconds() -> None:
    times = []
    program = """
        rdtsc
        mov %eax, %r12d
        out %al, $0x99
        rdtsc
        mov %eax, %r13d
        cli
        hlt
    """
    before = time.monotonic_ns()
    with pc(program, Written(lambda *_: times.append(time.monotonic_ns()))) as (host, _):
        opened = time.monotonic_ns()
        host.run()
        first, last = register(host, u.R12), register(host, u.R13)
    assert before + first <= times[0] <= opened + last


def test_an_alarm_which_is_set_while_the_timer_is_closed_does_not_keep_its_thread_asleep() -> None:
    "The function is at work when `close` comes, and sets an alarm (here: none) when `close` has set the last one."
    timer, entered, closing = Timer(), threading.Event(), threading.Event()

    def function() -> None:
        entered.set()
        closing.wait(PATIENCE)
        timer.arm(0)

    timer.start(function)
    timer.arm(1)
    assert entered.wait(PATIENCE)
    closer = threading.Thread(target=timer.close, daemon=True)
    closer.start()
    while not timer._closing:
        closer.join(0.001)
    with timer._lock:  # so `close` has come as far as its wait for the thread
        closing.set()
    closer.join(PATIENCE)
    assert not closer.is_alive()


# What it says of itself.


def cpuid(leaf: int, runs: Callable[[str], tuple[int, ...]]) -> tuple[int, ...]:
    return runs(f"mov ${leaf:#x}, %eax; xor %ecx, %ecx; cpuid; hlt")


def ours(program: str) -> tuple[int, ...]:
    with processor(program) as (cpu, _):
        assert cpu.run() == "halted"
        return tuple(cpu.get(each) for each in (u.RAX, u.RBX, u.RCX, u.RDX))


def unicorn_s(program: str) -> tuple[int, ...]:
    with stock(program, u.CPU_X86_OPTERON_G4) as (engine, _):
        assert engine.go() == 0
        return tuple(engine.get(each) for each in (u.RAX, u.RBX, u.RCX, u.RDX))


@pytest.mark.parametrize("leaf", [0, 1, 7, 0xD, 0x80000001, 0x80000007, 0x8000000A, 0x8000001A])
def test_a_leaf_which_says_nothing_of_guessing_is_unicorn_s_own(leaf: int) -> None:
    assert cpuid(leaf, ours) == cpuid(leaf, unicorn_s)


def test_the_processor_says_that_it_does_not_guess() -> None:
    "AMD64 manual, volume 3, appendix E: Fn8000_0008_EBX bits 26 and 29, Fn8000_0021_EAX bit 8."
    (_, before, *_), (_, after, *_) = cpuid(0x80000008, unicorn_s), cpuid(0x80000008, ours)
    assert (before & (1 << 26 | 1 << 29), after) == (0, before | 1 << 26 | 1 << 29)
    assert cpuid(0x80000000, ours)[0] == 0x80000021
    assert cpuid(0x80000021, ours) == (1 << 8, 0, 0, 0)


@pytest.mark.parametrize("leaf", [0x8000001B, 0x8000001F, 0x80000020])
def test_a_leaf_between_the_opteron_s_last_and_ours_is_empty(leaf: int) -> None:
    assert cpuid(leaf, ours) == (0, 0, 0, 0)


# Opening and closing.


def test_fifty_pcs_one_after_the_other_leave_nothing_behind() -> None:
    def one() -> None:
        with pc("out %al, $0x99; cli; hlt") as (host, _):
            assert host.run().how == "died"

    def what_is_there() -> tuple[int, int, int]:
        maps = Path("/proc/self/maps").read_text()
        return len(os.listdir("/proc/self/fd")), threading.active_count(), maps.count("lguest-nb guest memory")

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1])

    for _ in range(10):
        one()
    before, pages = what_is_there(), resident()
    for _ in range(50):
        one()
    assert what_is_there() == before
    assert resident() - pages < 50 * 16  # 64 kB each, of allocator's crumbs; an engine has some megabytes


def test_two_pcs_at_once_do_not_disturb_each_other() -> None:
    with processor(PATCHED) as (one, memory), processor(FAULTS) as (other, _):
        memory.write(0x200000, FUNCTION)
        thread = threading.Thread(target=other.run)
        thread.start()
        one.run()
        thread.join()
        assert (one.get(u.R13), other.get(u.R12)) == (2, 1000)


def test_a_second_start_is_refused_with_a_sentence() -> None:
    with pc("hlt") as (host, memory):
        with pytest.raises(HostError, match="started already"):
            host.start(memory, small_pc("hlt")[1], Written())


def test_run_belongs_on_the_thread_which_called_start() -> None:
    errors: list[BaseException] = []
    with pc("hlt") as (host, _):

        def elsewhere() -> None:
            with suppress(HostError):
                host.run()
                return
            errors.append(HostError())

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert len(errors) == 1


def test_a_host_which_was_not_started_says_so() -> None:
    with pytest.raises(HostError, match="not been started"):
        SoftPcHost().run()


def test_more_memory_than_fits_below_the_registers_is_refused_with_a_sentence() -> None:
    memory = GuestMemory(NOT_RAM + 4096, 0)
    with pytest.raises(HostError, match="can have 3328 MB of memory at most, not 3329 MB"):
        SoftPcHost().start(memory, small_pc("hlt")[1], Written())
    memory.close()


# Loading.


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


START = """
from lguest_nb.host import HostError
from lguest_nb.hosts.pc.interpose import Machine
import mmap
try:
    Machine(mmap.mmap(-1, 1 << 20), 1 << 20, None, None, None).close()
    print("opened")
except HostError as e:
    print(e)
"""


def test_importing_the_package_loads_neither_unicorn_nor_what_completes_it() -> None:
    code = "import lguest_nb.hosts.pc.host; maps = open('/proc/self/maps').read()"
    assert python(f"{code}; print('unicorn' in maps, 'interpose.' in maps)").stdout == "False False\n"


def test_a_guest_of_2009_first_does_not_keep_one_of_today_from_starting() -> None:
    assert python(f"from lguest_nb.hosts.soft.engine import Engine\nEngine().close()\n{START}").stdout == "opened\n"


def test_unicorn_loaded_by_somebody_else_is_told_with_a_sentence_and_harms_no_guest_of_2009() -> None:
    code = f"import unicorn\nfrom lguest_nb.hosts.soft.engine import Engine\nEngine().close()\n{START}"
    assert "must be loaded before Unicorn, and something in this process" in python(code).stdout


def test_a_missing_compiler_is_told_with_a_sentence_and_harms_no_guest_of_2009() -> None:
    hide = """
from pathlib import Path
from lguest_nb.hosts.soft import unicorn
unicorn.INTERPOSERS = Path("/nowhere")
from lguest_nb.hosts.soft.engine import Engine
Engine().close()
"""
    assert "apt-get install gcc libc6-dev" in python(hide + START).stdout


def test_a_unicorn_which_does_not_export_what_we_replace_is_told_with_a_sentence(tmp_path: Path) -> None:
    subprocess.run(["cc", "-shared", "-o", tmp_path / "other.so", "-x", "c", "/dev/null"], check=True)
    code = f"""
import os
from lguest_nb.hosts.soft.unicorn import ffi, interposer, text
other = ffi.dlopen({str(tmp_path / "other.so")!r}, os.RTLD_NOW)
print(text(interposer().interpose_bind({str(tmp_path / "other.so")!r}.encode())))
"""
    assert python(code).stdout.startswith("This build of Unicorn does not export ")


def test_the_abort_which_lock_is_cured_of_is_there_without_the_cure() -> None:
    code = locked("btc %esp, %ecx")
    program = assemble(f"{code}; hlt", 0x1000)
    stock = f"""
from unicorn import UC_ARCH_X86, UC_MODE_64, Uc
uc = Uc(UC_ARCH_X86, UC_MODE_64)
uc.mem_map(0, 1 << 16)
uc.mem_write(0x1000, {program!r})
uc.emu_start(0x1000, 0x1000 + {len(program)})
"""
    assert python(stock).returncode == -6  # SIGABRT
