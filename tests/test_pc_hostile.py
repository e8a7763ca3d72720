"""A Guest of 64 bits attacks the processor: whatever it does, it may lose its own life by it, and nobody else's.

Each attack is a program for tests/long_guest.py's small PC, with and without a table for its exceptions, in a process
of its own: what a crash of ours costs is one test. A Guest which dies has a sentence, with the registers; one which
halts is fine. test_soft_hostile.py is the same for a Guest of 2009.
"""

import pytest
from attack import attack

# Every exception comes to `caught`, and there may be SSE.
TABLE = """
    table
    xor %r8d, %r8d
1:  mov %r8d, %edi
    shl $4, %edi
    add $0x1000, %edi
    mov $caught, %eax
    mov %ax, (%rdi)
    movw $0x10, 2(%rdi)
    movw $0x8e00, 4(%rdi)
    shr $16, %eax
    mov %ax, 6(%rdi)
    inc %r8d
    cmp $0x80, %r8d
    jb 1b
    mov %cr4, %rax
    or $0x600, %eax
    mov %rax, %cr4
    jmp begin
caught: hlt
begin:
"""
LEVEL_3 = "pushq $0x2b; pushq $0x8000; pushq $2; pushq $0x33; pushq $1f; iretq; 1:"
DESCRIPTOR = "movq $0x3f, 0x3000; movw $0x500, 0x3002; movq $0, 0x3004; lgdt 0x3000;"  # a longer table: 0x28 is ours
ATTACKS = {
    # What is not memory
    "jump into registers": "mov $0xd0000000, %eax; jmp *%rax",
    "call into registers": "mov $0xd0000000, %eax; call *%rax; hlt",
    "return into registers": "pushq $0xffffffffd0000000; ret",
    "code which runs off the end of memory": "movb $0x90, 0x3fffff; mov $0x3fffff, %eax; jmp *%rax",
    "an instruction across the end of memory": "movw $0x00e8, 0x3ffffe; mov $0x3ffffe, %eax; jmp *%rax",
    "stack in registers": "mov $0xd0000100, %esp; push %rax; pop %rax; call 1f; 1: enter $64, $31; leave; pushfq; hlt",
    "exception with its stack in registers": "mov $0xd0000100, %esp; ud2",
    "exception with its stack across the end of memory": "mov $0x400010, %esp; ud2",
    "interrupt return from registers": "mov $0xd0000000, %esp; iretq",
    "far return from registers": "mov $0xd0000000, %esp; lretq",
    "far jump by registers": "ljmp *0xffffffffd0000000",
    "rep movs over the end of memory": "mov $0x200003, %esi; mov $0x3ff001, %edi; mov $0x10000, %ecx; rep movsb; hlt",
    "rep movs from registers to registers": (
        "mov $0xd0000000, %esi; mov $0xd0000ffd, %edi; mov $0x100, %ecx; rep movsl; rep movsq; hlt"
    ),
    "rep stos far beyond memory": "mov $0x3ff000, %edi; mov $0x4000, %ecx; rep stosq; hlt",
    "ins and outs in registers": (
        "mov $0xd0000000, %edi; mov %edi, %esi; mov $0x80, %edx; mov $64, %ecx; rep insb; mov $64, %ecx; rep outsl; hlt"
    ),
    "ins over the end of memory": "mov $0x3fffe0, %edi; mov $0x80, %edx; mov $64, %ecx; rep insb; hlt",
    "unaligned, across the end of memory": "mov 0x3ffffc, %rax; mov %rax, 0x3ffffc; mov 0x3fffff, %ax; hlt",
    "unaligned, across the end of a slot": "mov $0xd00001fd, %edi; mov (%rdi), %rbx; mov %rbx, (%rdi); hlt",
    "unaligned, across the end of a page": "mov $0xd0000ffd, %edi; mov (%rdi), %rbx; mov %rbx, (%rdi); hlt",
    "locked, in registers": (
        "mov $0xd0000070, %edi; lock xadd %ebx, (%rdi); lock cmpxchg %ebx, (%rdi); lock incb (%rdi); lock incw (%rdi); "
        "lock incq (%rdi); lock notl (%rdi); lock negq (%rdi); lock btsl $3, (%rdi); xchg %rax, (%rdi); "
        "xchg %al, (%rdi); "
        "hlt"
    ),
    "cmpxchg8b in registers": "mov $0xd0000070, %edi; lock cmpxchg8b (%rdi); cmpxchg8b (%rdi); hlt",
    "cmpxchg16b in registers": "mov $0xd0000070, %edi; lock cmpxchg16b (%rdi); cmpxchg16b (%rdi); hlt",
    "locked, across the end of memory": "lock incq 0x3ffffe; lock xaddl %eax, 0x3ffffd; hlt",
    "cmpxchg16b across the end of memory": "mov $0x3ffff8, %edi; lock cmpxchg16b (%rdi); hlt",
    "xsave in registers": "mov $0xd0000000, %edi; mov $-1, %eax; mov $-1, %edx; xsave (%rdi); xrstor (%rdi); hlt",
    "fxsave in registers": "mov $0xd0000000, %edi; fxsave (%rdi); fxrstor (%rdi); hlt",
    "fxrstor of rubbish": "mov $0x200000, %edi; mov $0x200, %ecx; mov $0xff, %al; rep stosb; fxrstor 0x200000; hlt",
    "floating point in registers": (
        "mov $0xd0000000, %edi; fninit; fldt (%rdi); fstpt (%rdi); fldl (%rdi); fildq (%rdi); fistpq (%rdi); "
        "fbld (%rdi); "
        "fbstp (%rdi); fnsave (%rdi); frstor (%rdi); fldenv (%rdi); fnstenv (%rdi); hlt"
    ),
    "sse in registers": (
        "mov $0xd0000000, %edi; movups (%rdi), %xmm0; movups %xmm0, 4(%rdi); movaps (%rdi), %xmm1; "
        "movntdq %xmm1, (%rdi); "
        "maskmovdqu %xmm0, %xmm1; movups 0x3ffff8, %xmm0; movups %xmm0, 0x3ffff8; hlt"
    ),
    "clflush and invlpg of registers": "mov $0xd0000000, %edi; clflush (%rdi); prefetchnta (%rdi); invlpg (%rdi); hlt",
    "monitor registers": "mov $0xd0000000, %eax; xor %ecx, %ecx; xor %edx, %edx; monitor; mwait; hlt",
    # Tables in the wrong place
    "page tables in registers": "mov $0xd0000000, %eax; mov %rax, %cr3; hlt",
    "page tables where memory ends": "mov $0x400000, %eax; mov %rax, %cr3; hlt",
    "page tables far above memory": "movabs $0x7ffffffff000, %rax; mov %rax, %cr3; hlt",
    "page tables beyond all addresses": "movabs $0x10000000000, %rax; mov %rax, %cr3; hlt",
    "page tables at all ones": "mov $-1, %rax; mov %rax, %cr3; hlt",
    "page tables which lead into registers": (
        "movq $0xffffffffd0000007, 0xa000; mov %cr3, %rax; mov %rax, %cr3; nop; hlt"
    ),
    "page tables which lead to themselves": "movq $0x9007, 0x9008; mov %cr3, %rax; mov %rax, %cr3; "
    "movabs $0x8000000000, %rdi; mov (%rdi), %rax; mov %rax, (%rdi); hlt",
    "segments in registers": (
        "movw $0xffff, 0x3000; movl $0xd0000000, 0x3002; movl $0, 0x3006; lgdt 0x3000; mov $0x18, %eax; "
        "mov %eax, %ds; hlt"
    ),
    "segments across the end of memory": (
        "movw $0xffff, 0x3000; movl $0x3ffffc, 0x3002; movl $0, 0x3006; lgdt 0x3000; pushq $0; pushq $1f; lretq; 1: hlt"
    ),
    "segments where nothing is mapped": (
        "movw $0xffff, 0x3000; movl $0x80000000, 0x3002; movl $0, 0x3006; lgdt 0x3000; mov $0x18, %eax; "
        "mov %eax, %ss; hlt"
    ),
    "exceptions' table in registers": (
        "movw $0xffff, 0x3000; movl $0xd0000000, 0x3002; movl $0, 0x3006; lidt 0x3000; int $0x80; hlt"
    ),
    "exceptions' table where nothing is mapped": (
        "movw $0xffff, 0x3000; movl $0x80000000, 0x3002; movl $0, 0x3006; lidt 0x3000; int $0x80; hlt"
    ),
    "no exceptions' table": "movw $0, 0x3000; lidt 0x3000; ud2",
    "tables from registers, and into them": (
        "mov $0xd0000000, %edi; sgdt (%rdi); sidt (%rdi); str (%rdi); sldt (%rdi); smsw (%rdi); lgdt (%rdi); "
        "mov $0x10, %eax; mov %eax, %ds; hlt"
    ),
    "a local table in registers": (
        f"{DESCRIPTOR} movabs $0xd00082000000ffff, %rax; mov %rax, 0x528; movq $0, 0x530; mov $0x28, %eax; lldt %ax; "
        "mov $7, %eax; mov %eax, %ds; hlt"
    ),
    # Tasks
    "an exception at level 3, and no task was ever loaded": f"{LEVEL_3} ud2",
    "an interrupt at level 3, and no task was ever loaded": f"{LEVEL_3} int $0x40",
    "a page fault at level 3, and no task was ever loaded": f"{LEVEL_3} mov 0xffffffff80000000, %eax",
    "no task, explicitly": f"xor %eax, %eax; ltr %ax; {LEVEL_3} ud2",
    "no task, and an exception with a stack of its own": "xor %eax, %eax; ltr %ax; movb $3, 0x1064; ud2",
    "a task in registers": (
        f"{DESCRIPTOR} movabs $0xd000890000000067, %rax; mov %rax, 0x528; movq $0, 0x530; mov $0x28, %eax; ltr %ax; "
        f"{LEVEL_3} ud2"
    ),
    "a task of one byte": (
        f"{DESCRIPTOR} movabs $0x0000890030000000, %rax; mov %rax, 0x528; movq $0, 0x530; mov $0x28, %eax; ltr %ax; "
        f"{LEVEL_3} ud2"
    ),
    "jump to a task": (
        f"{DESCRIPTOR} movabs $0x0000890020000067, %rax; mov %rax, 0x528; movl $0, 0x3000; movw $0x28, 0x3004; "
        "ljmp *0x3000; hlt"
    ),
    "a gate to a task": f"{DESCRIPTOR} table; movabs $0x0000e50000280000, %rax; mov %rax, 0x1400; int $0x40; hlt",
    "call by a gate": (
        "movabs $0x00008c0000100000, %rax; mov %rax, 0x510; movl $0, 0x3000; movw $0x10, 0x3004; lcall *0x3000; hlt"
    ),
    # Control registers and modes
    "cr0 without anything": "xor %eax, %eax; mov %rax, %cr0; hlt",
    "cr0 without paging": "mov $0x31, %eax; mov %rax, %cr0; hlt",
    "cr0 with everything": "mov $-1, %rax; mov %rax, %cr0; hlt",
    "cr4 without anything": "xor %eax, %eax; mov %rax, %cr4; hlt",
    "cr4 with everything": "mov $-1, %rax; mov %rax, %cr4; hlt",
    "five levels of tables": "mov $0x1020, %eax; mov %rax, %cr4; mov $0x9000, %eax; mov %rax, %cr3; hlt",
    "cr8": "mov $15, %eax; mov %rax, %cr8; mov %cr8, %rax; hlt",
    "lmsw": "mov $0xffff, %eax; lmsw %ax; xor %eax, %eax; lmsw %ax; smsw %eax; hlt",
    "wbinvd": "wbinvd; invd; hlt",
    "efer without anything": "msr 0xc0000080, 0, 0; nop; hlt",
    "efer with everything": "msr 0xc0000080, -1, -1; syscall; hlt",
    "out of long mode, bit by bit": (
        "pushq $0x20; pushq $1f; lretq; .code32; 1: mov %cr0, %eax; and $0x7fffffff, %eax; mov %eax, %cr0; "
        "mov $0xc0000080, %ecx; xor %eax, %eax; xor %edx, %edx; wrmsr; mov %eax, %cr4; mov %eax, %cr0; hlt; .code64"
    ),
    "sysret to where no address is": "efer 1; movabs $0x800000000000, %rcx; mov $-1, %r11; sysretq",
    "sysret, and everything in its flags": "efer 1; mov $0x100000, %ecx; mov $-1, %r11; sysretq",
    "sysenter": "msr 0x174, 0x10, 0; msr 0x175, 0, 0; msr 0x176, 0xd0000000, 0; sysenter; hlt",
    "sysexit": "sysexitl",
    "interrupt return with everything in its flags": (
        "pushq $0x18; pushq $0x8000; pushq $-1; pushq $0x10; pushq $1f; iretq; 1: cli; hlt"
    ),
    "interrupt return to nowhere": "pushq $0x33; pushq $0; pushq $-1; pushq $0xffff; pushq $0; iretq",
    "jump to where no address is": "movabs $0x800000000000, %rax; jmp *%rax",
    "stack where no address is": "movabs $0x800000000000, %rsp; push %rax; hlt",
    "stack below zero": "xor %esp, %esp; push %rax; hlt",
    "all model-specific registers, read and written": (
        "xor %esi, %esi; 1: mov %esi, %ecx; rdmsr; wrmsr; mov $-1, %eax; mov %eax, %edx; cmp $0x1b, %ecx; "
        "je 2f; wrmsr; "
        "2: inc %esi; cmp $0x1000, %esi; jb 1b; hlt"
    ),
    "the extended ones": (
        "mov $0xc0000081, %esi; 1: mov %esi, %ecx; rdmsr; not %eax; not %edx; wrmsr; inc %esi; cmp $0xc0000200, %esi; "
        "jb 1b; hlt"
    ),
    "an interrupt controller in registers": (
        "msr 0x1b, 0xd0000900, 0; mov 0xffffffffd0000920, %eax; msr 0x1b, 0xfffffd00, 0; msr 0x830, -1, -1; "
        "mov $0x802, %ecx; rdmsr; hlt"
    ),
    "every leaf of cpuid": (
        "xor %esi, %esi; 1: mov %esi, %eax; xor %ecx, %ecx; cpuid; lea 0x80000000(%rsi), %eax; cpuid; "
        "lea 0x40000000(%rsi), %eax; mov $-1, %ecx; cpuid; inc %esi; cmp $0x40, %esi; jb 1b; mov $-1, %eax; cpuid; hlt"
    ),
    "xsetbv with everything": (
        "mov %cr4, %rax; or $0x40600, %eax; mov %rax, %cr4; mov $-1, %eax; xor %ecx, %ecx; xsetbv; hlt"
    ),
    "bases of segments where no address is": (
        "mov %cr4, %rax; or $0x10000, %eax; mov %rax, %cr4; movabs $0x800000000000, %rax; wrgsbase %rax; "
        "mov %gs:0, %eax; hlt"
    ),
    "system management": "rsm; hlt",
    "a virtual machine of its own": (
        "efer 0x1000; msr 0xc0010117, 0x200000, 0; mov $0x201000, %eax; vmload; vmrun; vmsave; hlt"
    ),
    "a virtual machine in registers": "efer 0x1000; mov $0xd0000000, %eax; vmload; vmrun; hlt",
    "calls for somebody who is not there": "vmmcall; vmcall; hlt",
    "debug registers": "mov $1f, %eax; mov %rax, %db0; mov $-1, %rax; mov %rax, %db6; mov %rax, %db7; 1: nop; nop; hlt",
    "step by step": "pushfq; orq $0x100, (%rsp); popfq; nop; nop; hlt",
    "int 1 by its short name": ".byte 0xf1; hlt",
    "an instruction of too many bytes": ".rept 15; .byte 0x2e; .endr; nop; hlt",
    "lock in front of everything": ".irp op, 0x90, 0xf4, 0xc3, 0xe8, 0xff; .byte 0xf0, \\op; .endr; hlt",
    "instructions of later years": (
        "vmovups 0x200000, %ymm0; .byte 0x62, 0xf1, 0x7c, 0x48, 0x10, 0x00; xbegin 1f; xend; 1: xtest; rdpkru; hlt"
    ),
}


@pytest.mark.parametrize("table", ["", TABLE], ids=["", "exceptions caught"])
@pytest.mark.parametrize("what", ATTACKS)
def test_costs_the_guest_its_life_at_most(what: str, table: str) -> None:
    ending = attack(table + ATTACKS[what])
    assert ending.how == "died" and "RIP=" in ending.reason and "\n" not in ending.reason


EVERYWHERE = """
    xor %esi, %esi
1:  mov %esi, %edx              # every port but those which end a Guest
    cmp $0x64, %edx
    je 2f
    cmp $0x604, %edx
    je 2f
    cmp $0xcf9, %edx
    je 2f
    in %dx, %al
    out %al, %dx
    in %dx, %ax
    not %eax
    out %al, %dx
2:  inc %esi
    cmp $0x10000, %esi
    jb 1b
    hlt
"""


def test_a_storm_over_all_ports_costs_nothing() -> None:
    assert attack(EVERYWHERE, board=True).how == "died"


VALUES = (0, 1, 0x5A, 0x7F, 0x80, 0xFFFFFFFF)


@pytest.mark.parametrize("size", ["%al", "%ax", "%eax"])
@pytest.mark.parametrize("first", [0x20, 0x40, 0x60, 0x70, 0xA0, 0x3F8, 0x4D0, 0x600, 0xCF8])
def test_any_value_in_any_chip_costs_the_guest_its_life_at_most(first: int, size: str) -> None:
    "Each in each register, upwards and downwards; some of them end a Guest."
    ports = [*range(first, first + 8), *range(first + 7, first - 1, -1)]
    each = [(value, port) for value in VALUES for port in ports]
    lines = [f"mov ${port}, %edx; in %dx, {size}; mov ${value}, %eax; out {size}, %dx" for value, port in each]
    assert attack("\n".join([*lines, "hlt"]), board=True).how in ("died", "power-off", "restart")
