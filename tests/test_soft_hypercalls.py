"""What the software Host does for each hypercall, and what it kills a Guest for, with the words of 2009."""

import os

import pytest
import softguest as g

from lguest_nb.host import Ending
from lguest_nb.memory import PAGE_SIZE


def died(code: bytes, reason: str, **keywords: bool) -> None:
    assert g.run(code, **keywords) == Ending("died", reason)


def test_power_down_is_a_power_off_and_any_other_text_a_crash() -> None:
    assert g.run(g.POWER_OFF) == Ending("power-off", "Power down")
    died(g.store(g.TEXT, 0x21) + g.POWER_OFF, "CRASH: !")


def test_restart_is_a_restart_whatever_the_text() -> None:
    assert g.run(g.hcall(g.SHUTDOWN, g.TEXT, 2)).how == "restart"


def test_a_shutdown_text_ends_after_127_bytes() -> None:
    guest = g.Guest(g.POWER_OFF)
    guest.put(g.TEXT, b"x" * 500)
    assert guest.run() == Ending("died", "CRASH: " + "x" * 127)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (g.hcall(g.INIT, g.DATA), "already have lguest_data"),
        (g.hcall(99), "Bad hypercall 99"),
        (g.hcall(3), "Bad hypercall 3"),
        (g.hcall(0xFFFFFFFF), "Bad hypercall 4294967295"),
        (g.hcall(g.SET_PMD), "Bad hypercall 13: this is a PAE kernel, and --host=soft runs kernels without PAE"),
        (g.hcall(g.SHUTDOWN, 0xFFFFFFF0, 1), "bad read address 0xfffffff0 len 128"),
        (g.hcall(g.SHUTDOWN, g.SIZE - 127, 1), "bad read address 0x3fff81 len 128"),
        (g.hcall(g.LOAD_TLS, g.SIZE - 23), "bad read address 0x3fffe9 len 24"),
        (g.hcall(g.SET_STACK, 0x68, 0, 1), "bad stack segment 104"),
        (g.hcall(g.SET_STACK, 0x69, 0, 3), "bad stack pages 3"),
        (g.hcall(g.LOAD_IDT, 256, 0, 0x8E00), "Setting idt entry 256"),
        (g.hcall(g.LOAD_IDT, 0, 0, 0x8500), "bad IDT type 5"),
        (g.hcall(g.LOAD_GDT, 32, 0, 0), "too many gdt entries 32"),
        (g.hcall(g.SET_PTE, 0, 0x1000, g.SIZE | 0x67), "bad page table entry"),
        (g.hcall(g.SET_PTE, 0, 0x1000, 0x10E7), "bad page table entry"),
        (g.hcall(g.SET_PTE, 0, 0xFFC00000, 0x1067), "attempt to access switcher pages"),
        (g.hcall(g.NEW_PGTABLE, g.SIZE), "bad read address 0x400000 len 4096"),
        (g.hcall(g.NEW_PGTABLE, 0xFFFFF000), "bad read address 0xfffff000 len 4096"),
    ],
)
def test_sudden_death(code: bytes, reason: str) -> None:
    died(code, reason)


def test_nothing_works_before_init() -> None:
    died(g.POWER_OFF, "hypercall 2 before INIT", init=False)


@pytest.mark.parametrize("address", [g.SIZE, g.SIZE - 1395, 0xFFFFFFFF, 0xFFFFFC00])
def test_lguest_data_must_be_in_memory(address: int) -> None:
    died(g.hcall(g.INIT, address), f"bad guest page {address:#x}", init=False)


def test_lguest_data_may_end_with_the_last_byte_and_be_unaligned() -> None:
    for address in (g.SIZE + PAGE_SIZE - 1396, 0x70001):
        guest = g.Guest(g.hcall(g.INIT, address) + g.POWER_OFF, init=False)
        assert guest.memory.take_pages(1) == g.SIZE
        guest.put(address, guest.memory.read(g.DATA, 1396))
        assert guest.run().how == "power-off"


def test_the_syscall_vector_must_be_0x80() -> None:
    guest = g.Guest()
    guest.set_words(g.DATA + 1392, 0x40)
    assert guest.run() == Ending("died", "bad syscall vector")


def test_init_fills_in_what_the_guest_needs() -> None:
    guest = g.Guest(g.POWER_OFF)
    guest.set_words(g.DATA + 1372, 1234)
    guest.run()
    assert guest.word(g.DATA + 1368) == 4 << 20
    assert guest.word(g.DATA + 1372) == 0
    assert guest.word(g.DATA + 1376) == g.SIZE - PAGE_SIZE
    assert guest.word(g.DATA + 12) > 1_700_000_000


def test_later_kernels_have_no_pgdir_field() -> None:
    guest = g.Guest(g.POWER_OFF)
    guest.set_words(g.DATA + 1376, 0x1234, 0x5678, 0xC0000000, 0x80, 0)
    assert guest.run().how == "power-off"
    assert guest.word(g.DATA + 1376) == 0x1234


def test_a_notify_goes_to_its_eventfd_and_no_further() -> None:
    fd = os.eventfd(0)
    guest = g.Guest(g.hcall(g.NOTIFY, 0x5000) * 3 + g.hcall(g.NOTIFY, 0x6000) + g.POWER_OFF).start()
    guest.host.attach_eventfd(0x5000, fd)
    assert guest.host.run().how == "power-off"
    assert os.eventfd_read(fd) == 3
    assert guest.notified == [0x6000]
    guest.close()
    os.close(fd)


def test_a_detached_eventfd_gets_nothing_more() -> None:
    fd = os.eventfd(7)
    guest = g.Guest(g.hcall(g.NOTIFY, 0x5000) + g.POWER_OFF).start()
    guest.host.attach_eventfd(0x5000, fd)
    guest.host.detach_eventfd(0x5000)
    guest.host.detach_eventfd(0x5000)
    assert guest.host.run().how == "power-off"
    assert (guest.notified, os.eventfd_read(fd)) == ([0x5000], 7)
    guest.close()
    os.close(fd)


def saved_up(guest: g.Guest, *calls: tuple[int, ...]) -> None:
    for i, call in enumerate(calls):
        guest.memory.u8[g.DATA + 24 + i] = 0
        guest.set_words(g.DATA + 88 + 20 * i, *call, *[0] * (5 - len(call)))


def test_calls_in_the_ring_come_first_in_order_and_are_marked() -> None:
    guest = g.Guest(g.hcall(g.NOTIFY, 0x9000) + g.POWER_OFF)
    saved_up(guest, (g.NOTIFY, 0x5000), (g.FLUSH_TLB, 1), (g.NOTIFY, 0x6000), (g.NOTIFY, 0x7000))
    assert guest.run().how == "power-off"
    assert guest.notified == [0x5000, 0x6000, 0x7000, 0x9000]
    assert guest.memory.read(g.DATA + 24, 64) == b"\xff" * 64


def test_a_full_ring_is_run_once_and_can_kill() -> None:
    guest = g.Guest(g.hcall(g.FLUSH_ASYNC) + g.POWER_OFF)
    saved_up(guest, *[(g.NOTIFY, 0x1000 * (i + 1)) for i in range(64)])
    assert guest.run().how == "power-off"
    assert guest.notified == [0x1000 * (i + 1) for i in range(64)]
    guest = g.Guest(g.hcall(g.FLUSH_ASYNC))
    saved_up(guest, (g.INIT, 0))
    assert guest.run() == Ending("died", "already have lguest_data")


def test_what_the_bus_raises_comes_out_of_run() -> None:
    class OhDearError(Exception):
        pass

    def oh_dear(address: int) -> None:
        raise OhDearError

    guest = g.Guest(g.hcall(g.NOTIFY, 0x5000))
    guest.on_notify = oh_dear
    with pytest.raises(OhDearError):
        guest.run()


def test_vmcall_becomes_int_0x1f_and_works_again_and_again() -> None:
    loop = g.mov(6, 5) + g.mov(g.EAX, g.NOTIFY) + g.mov(g.EBX, 0x5000) + b"\x0f\x01\xc1" + b"\x4e\x75\xef"
    guest = g.Guest(loop + g.POWER_OFF)  # ... vmcall; decl %esi; jnz the movl before
    assert guest.run().how == "power-off"
    assert guest.notified == [0x5000] * 5
    where = g.CODE + len(g.START) + 15
    assert guest.memory.read(where, 3) == b"\xcd\x1f\x90"


def test_a_vmcall_that_straddles_a_page_works_too() -> None:
    for short in (1, 2):
        at = 0x12000 - short
        code = g.mov(g.EAX, g.SHUTDOWN) + g.mov(g.EBX, g.TEXT) + g.mov(g.ECX, 1)
        guest = g.Guest(b"\xe9" + g.u32(at - 15 - (g.CODE + len(g.START) + 5)))
        guest.put(at - 15, code + b"\x0f\x01\xc1")
        assert guest.run().how == "power-off"
