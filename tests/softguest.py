"""Guests of a few instructions for the tests of the software Host.

There is no assembler in the test requirements, so here are the dozen instructions which the tests want, each a
function with the listing beside it. Everything runs at Guest-physical = virtual addresses, on the page tables which the
Host built.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable

from lguest_nb.host import BootState, Ending
from lguest_nb.hosts.soft.host import SoftHost
from lguest_nb.memory import GuestMemory

SIZE = 4 << 20
CODE, HANDLERS, STACK, USER_STACK, DATA, TEXT, SCRATCH = 0x10000, 0x18000, 0x30000, 0x34000, 0x40000, 0x50000, 0x60000
IRQ_ENABLED, BLOCKED, CR2, IRQ_PENDING = DATA, DATA + 4, DATA + 8, DATA + 20
(FLUSH_ASYNC, INIT, SHUTDOWN, NEW_PGTABLE, FLUSH_TLB, LOAD_IDT, SET_STACK, TS, CLOCKEVENT, HALT) = (
    0, 1, 2, 4, 5, 6, 7, 8, 9, 10,
)  # fmt: skip
SET_PMD, SET_PTE, SET_PGD, LOAD_TLS, NOTIFY, LOAD_GDT, SEND_INTERRUPTS = 13, 14, 15, 16, 17, 18, 19
EAX, ECX, EDX, EBX, ESP, EBP, ESI, EDI = range(8)
USER_CS, USER_DS = 0x73, 0x7B


def u32(value: int) -> bytes:
    return (value & 0xFFFFFFFF).to_bytes(4, "little")


def mov(register: int, value: int) -> bytes:  # b8+r imm32   movl $value, %register
    return bytes([0xB8 + register]) + u32(value)


def store(address: int, value: int) -> bytes:  # c7 05 addr imm32   movl $value, address
    return b"\xc7\x05" + u32(address) + u32(value)


def load(register: int, address: int) -> bytes:  # 8b 05+r*8 addr   movl address, %register
    return bytes([0x8B, 0x05 | register << 3]) + u32(address)


def save(address: int, register: int) -> bytes:  # 89 05+r*8 addr   movl %register, address
    return bytes([0x89, 0x05 | register << 3]) + u32(address)


def inc(address: int) -> bytes:  # ff 05 addr   incl address
    return b"\xff\x05" + u32(address)


def push(value: int) -> bytes:  # 68 imm32   pushl $value
    return b"\x68" + u32(value)


def hcall(number: int, *arguments: int) -> bytes:  # cd 1f   int $0x1f
    registers = (EBX, ECX, EDX, ESI)
    return mov(EAX, number) + b"".join(mov(r, a) for r, a in zip(registers, arguments, strict=False)) + b"\xcd\x1f"


def jump_to_self() -> bytes:  # eb fe   1: jmp 1b
    return b"\xeb\xfe"


def gate(vector: int, handler: int, kind: int = 0x8E) -> bytes:
    "kind: 8e is an interrupt gate, 8f a trap gate, ef one for programs"
    return hcall(LOAD_IDT, vector, handler & 0xFFFF | 0x610000, handler & 0xFFFF0000 | kind << 8)


def user_segments() -> bytes:
    return hcall(LOAD_GDT, 14, 0x0000FFFF, 0x00CFFA00) + hcall(LOAD_GDT, 15, 0x0000FFFF, 0x00CFF200)


def go_to_user(eip: int) -> bytes:  # pushl ss, esp, eflags, cs, eip; iret
    return push(USER_DS) + push(USER_STACK) + push(0x202) + push(USER_CS) + push(eip) + b"\xcf"


IRET = b"\xcf"
POWER_OFF = hcall(SHUTDOWN, TEXT, 1)
START = mov(ESP, STACK) + hcall(INIT, DATA)


class Guest:
    "Memory with boot parameters, an empty `struct lguest_data`, and whatever code the test puts in."

    def __init__(self, code: bytes = b"", size: int = SIZE, init: bool = True, timed: bool = False) -> None:
        self.memory = GuestMemory(size)
        self.memory.write(0x2D8, size.to_bytes(8, "little"))
        self.memory.write(DATA + 24, b"\xff" * 64)
        for offset, value in ((1388, 0xC0000000), (1392, 0x80)):
            self.memory.u32[(DATA + offset) // 4] = value
        self.memory.write(TEXT, b"Power down\0")
        self.put(CODE, (START if init else b"") + code)
        self.host = SoftHost(timed)
        self.notified: list[int] = []
        self.on_notify: Callable[[int], None] = self.notified.append

    def put(self, address: int, code: bytes) -> None:
        self.memory.write(address, code)

    def word(self, address: int) -> int:
        return self.memory.u32[address // 4]

    def set_words(self, address: int, *words: int) -> None:
        self.memory.write(address, array("I", words).tobytes())

    def notify(self, address: int) -> None:
        self.on_notify(address)

    def start(self) -> Guest:
        self.host.start(self.memory, BootState(CODE), self)
        return self

    def run(self) -> Ending:
        try:
            return self.start().host.run()
        finally:
            self.host.close()

    def close(self) -> None:
        self.host.close()
        self.memory.close()


def run(code: bytes, **keywords: bool) -> Ending:
    "Run these instructions after INIT to their end."
    guest = Guest(code, **keywords)
    try:
        return guest.run()
    finally:
        guest.close()
