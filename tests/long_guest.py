"""A Guest in 64-bit mode, small enough for one test: assembled when the test runs, in four megabytes, and its PC."""

import struct
from collections.abc import Callable
from functools import cache

from lguest_nb.hosts.pc import small
from lguest_nb.memory import GuestMemory
from lguest_nb.today import LongBoot, Space

PROGRAM, STACK = 0x100000, 0x8FF0
GDT, PAGE_TABLES, RAM = 0x500, 0x9000, 4 << 20
ALIAS = 0x40000000  # the two megabytes from 0x200000 once more, at another virtual address
DATA_ALIAS = ALIAS + 0x200000  # and once more, as data; not to be touched before EFER.NXE is set
NOT_RAM = 0xD0000000  # the same virtual and physical; and up to the end of that gigabyte
HOLE = 0x80000000  # nothing is mapped in this gigabyte; its table's entries are at HOLE_TABLE
HOLE_TABLE = 0xF000
_SEGMENTS = (
    0,
    0,
    0x00AF_9B00_0000_FFFF,  # 0x10: code, 64 bits, level 0
    0x00CF_9300_0000_FFFF,  # 0x18: data, level 0
    0x00CF_FB00_0000_FFFF,  # 0x20: code, 32 bits, level 3
    0x00CF_F300_0000_FFFF,  # 0x28: data, level 3
    0x00AF_FB00_0000_FFFF,  # 0x30: code, 64 bits, level 3
)
MACROS = """
.macro send port, value
    mov $\\value, %al
    out %al, $\\port
.endm
.macro controllers mask         # both 8259A: vectors from 0x20, and which lines of the first are masked
    send 0x20, 0x11
    send 0x21, 0x20
    send 0x21, 0x04
    send 0x21, 0x01
    send 0x21, \\mask
.endm
.macro gate vector, handler     # an entry of the table at 0x1000
    mov $0x1000 + 16 * \\vector, %edi
    mov $\\handler, %eax
    mov %ax, (%rdi)
    movw $0x10, 2(%rdi)
    movw $0x8e00, 4(%rdi)
    shr $16, %eax
    mov %ax, 6(%rdi)
.endm
.macro table
    lidt 9f(%rip)
    jmp 8f
9:  .word 0xfff
    .quad 0x1000
8:
.endm
.macro msr number, low, high
    mov $\\number, %ecx
    mov $\\low, %eax
    mov $\\high, %edx
    wrmsr
.endm
.macro efer bits
    mov $0xc0000080, %ecx
    rdmsr
    or $\\bits, %eax
    wrmsr
.endm
"""


@cache
def assemble(source: str, address: int = PROGRAM) -> bytes:
    "What the assembler makes of these lines and `MACROS`, to stand at `address`."
    return small.assemble(f"{MACROS}\n.text\n{source}", address)


def entries(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}Q", *values)


def small_pc(program: str | bytes) -> tuple[GuestMemory, LongBoot]:
    "Memory with `program` at `PROGRAM`, and how to begin there. Everything may be used at level 3."
    memory = GuestMemory(RAM, 0)
    memory.write(GDT, entries(*_SEGMENTS))
    memory.write(PAGE_TABLES, entries(0xA007))
    memory.write(0xA000, entries(0xB007, 0xC007, 0xE007, 0xD007))
    memory.write(0xB000, entries(*(n << 21 | 0x87 for n in range(512))))
    memory.write(0xC000, entries(0x200087, 1 << 63 | 0x200087))
    memory.write(0xD000, entries(*(0xC000_0000 + (n << 21) | 0x87 for n in range(512))))
    memory.write(0xE000, entries(HOLE_TABLE | 7))
    memory.write(PROGRAM, assemble(program) if isinstance(program, str) else program)
    return memory, LongBoot(PROGRAM, 0x10000, PAGE_TABLES, GDT, 8 * len(_SEGMENTS) - 1, STACK)


class Written:
    "A Bus which remembers what was written, and reads as what it is told to."

    def __init__(self, on_write: Callable[[Space, int, int], None] = lambda *_: None, value: int = 0) -> None:
        self.writes: list[tuple[Space, int, int, int]] = []
        self.reads: list[tuple[Space, int, int]] = []
        self._on_write, self._value = on_write, value

    def read(self, space: Space, address: int, size: int) -> int:
        self.reads.append((space, address, size))
        return self._value

    def write(self, space: Space, address: int, size: int, value: int) -> None:
        self.writes.append((space, address, size, value))
        self._on_write(space, address, value)
