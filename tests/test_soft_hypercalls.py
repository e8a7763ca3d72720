"""What the software Host does for each hypercall, and what it kills a Guest for, with the words of 2009."""

import os
import threading

import pytest
import softguest as g
from hypothesis import given, settings
from hypothesis import strategies as st

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


def later(guest: g.Guest, kernel_address: int = 0xC0000000, noirq: tuple[int, int] = (0x1234, 0x5678)) -> None:
    "`struct lguest_data` as it is from 2.6.37 on: without `pgdir`, and so all behind it four bytes lower."
    guest.set_words(g.DATA + 1376, *noirq, kernel_address, 0x80, 0)


def test_later_kernels_have_no_pgdir_field() -> None:
    guest = g.Guest(g.POWER_OFF)
    later(guest)
    assert guest.run().how == "power-off"
    assert guest.word(g.DATA + 1376) == 0x1234


def test_both_abis_say_where_no_interrupt_may_come() -> None:
    "What was pending is delivered behind `noirq_end`, and an endless loop before it is not left."
    for abi in ("2009", "later"):
        inside = g.CODE + len(g.START)
        guest = g.Guest(g.gate(33, g.HANDLERS) + g.hcall(g.NOTIFY, 0x5000) + b"\x90" * 32 + g.jump_to_self())
        end = inside + len(g.gate(33, g.HANDLERS) + g.hcall(g.NOTIFY, 0x5000)) + 31
        if abi == "later":
            later(guest, noirq=(inside, end))
        else:
            guest.set_words(g.DATA + 1380, inside, end)
        guest.put(g.HANDLERS, b"\x8b\x1c\x24" + g.save(g.SCRATCH, g.EBX) + g.POWER_OFF)  # movl (%esp), %ebx
        guest.set_words(g.DATA, 0x200)
        guest.on_notify = lambda _, guest=guest: guest.host.interrupt(1)  # type: ignore[misc]
        assert guest.run().how == "power-off"
        assert guest.word(g.SCRATCH) >= end, abi


@pytest.mark.parametrize("abi", ["2009", "later"])
def test_both_abis_start_where_virtual_is_physical_and_find_themselves_3_gb_higher_too(abi: str) -> None:
    "The old ones jump up on the Host's tables; the later ones go on at physical addresses, and make tables themselves."
    directory, table = 0x80000, 0x81000
    up = b"\xe9" + g.u32(0xC0000000 + 0x20000 - (g.CODE + len(g.START) + 5))
    make = b"".join(g.store(directory + 4 * slot, table | 0x67) for slot in (0, 768))
    make += g.hcall(g.NEW_PGTABLE, directory)
    code = up if abi == "2009" else make + b"\xe9" + g.u32(
        0xC0000000 + 0x20000 - (g.CODE + len(g.START) + len(make) + 5)
    )  # fmt: skip
    guest = g.Guest(code)
    guest.set_words(table, *[page << 12 | 0x67 for page in range(1024)])
    if abi == "later":
        later(guest)
    guest.put(0x20000, g.store(0xC0000000 + g.SCRATCH, 0x600D) + g.POWER_OFF)
    assert guest.run().how == "power-off"
    assert guest.word(g.SCRATCH) == 0x600D


@pytest.mark.parametrize("abi", ["2009", "later"])
def test_a_kernel_in_the_hosts_own_four_megabytes_is_refused(abi: str) -> None:
    guest = g.Guest(g.POWER_OFF)
    if abi == "later":
        later(guest, kernel_address=0xFFC00000)
    else:
        guest.set_words(g.DATA + 1388, 0xFFC00000)
    assert guest.run() == Ending("died", "bad kernel address 0xffc00000")


@pytest.mark.parametrize("split", [1, 2, 3], ids=lambda gigabytes: f"kernel of {gigabytes} GB")
def test_a_pae_kernel_is_named_when_it_shows_its_page_tables(split: int) -> None:
    "`initial_page_table` in arch/x86/kernel/head_32.S, for 1, 2 or 3 gigabytes of kernel."
    pdpt, tables = 0x80000, [0x81001 + 0x1000 * i for i in range(split)]
    low = [tables[0], 0]
    upper = [word for table in tables for word in (table, 0)]
    guest = g.Guest(g.hcall(g.NEW_PGTABLE, pdpt) + g.POWER_OFF)
    later(guest)
    guest.set_words(pdpt, *(low + [0] * (6 - len(upper)) + upper))
    ending = guest.run()
    assert ending.how == "died"
    assert ending.reason.startswith("the page directory at 0x80000 is that of a PAE kernel: --host=soft runs kernels")


def test_no_page_directory_of_two_levels_is_taken_for_one_of_pae() -> None:
    "Empty, full, with empty slots, or accessed: as kernels make them."
    directory, table = 0x80000, 0x81000
    for flags, slots in ((0x67, range(1024)), (0x63, (0, 6, 768)), (0x67, (0, 2, 4, 6, 768)), (0x21, (0, 6, 768))):
        guest = g.Guest(g.hcall(g.NEW_PGTABLE, directory) + g.POWER_OFF)
        guest.set_words(table, *[page << 12 | 0x67 for page in range(1024)])
        for slot in slots:
            guest.set_words(directory + 4 * slot, table | flags)
        assert guest.run().how == "power-off"


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


WILD = [0, 1, 3, 0x1000, g.DATA, g.SIZE - 128, g.SIZE - 1, g.SIZE]
WILD += [0x7FFFFFFF, 0xC0000000, 0xFFC00000, 0xFFFFF000, 0xFFFFFFFF]
CALLS = [number for number in range(22) if number != g.HALT]  # which would sleep for ever


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(CALLS), *[st.sampled_from(WILD)] * 4), min_size=1, max_size=4), st.booleans())
def test_wild_pointers_in_hypercalls_end_the_guest_or_nothing(calls: list[tuple[int, ...]], saved: bool) -> None:
    "One at a time or saved up in the ring: it goes on, or it ends with a sentence, and nothing is ever raised."
    one_by_one = b"".join(g.hcall(*call) for call in calls if not saved)
    guest = g.Guest(one_by_one + g.hcall(g.FLUSH_ASYNC) + g.POWER_OFF)
    if saved:
        saved_up(guest, *calls)
    ending = guest.run()
    guest.memory.close()
    assert ending.how in ("power-off", "restart", "died")
    assert ending.how != "died" or ending.reason and "\n" not in ending.reason


@pytest.mark.parametrize("at", [0, 2, 0xFFF, g.SIZE - 1396, 0x2FFC0, g.CODE - 700])
def test_lguest_data_anywhere_in_memory_is_the_guests_own_problem(at: int) -> None:
    "Over the boot parameters, its own stack or its own code: it runs on, or dies."
    guest = g.Guest(g.mov(g.ESP, g.STACK) + g.hcall(g.INIT, at) + g.POWER_OFF, init=False)
    for offset, value in ((1388, 0xC0000000), (1392, 0x80)):
        guest.memory.write(at + offset, value.to_bytes(4, "little"))
    guest.memory.write(at + 24, b"\xff" * 64)
    assert guest.run().how in ("power-off", "died")


def test_a_guest_which_gives_itself_no_time_between_two_timer_interrupts_can_be_stopped() -> None:
    "It orders the next one for a nanosecond from now, in each of them."
    guest = g.Guest(g.gate(32, g.HANDLERS) + g.hcall(g.CLOCKEVENT, 1) + g.hcall(g.NOTIFY, 0x5000) + g.jump_to_self())
    guest.put(g.HANDLERS, g.hcall(g.CLOCKEVENT, 1) + g.inc(g.SCRATCH) + g.store(g.IRQ_ENABLED, 0x200) + g.IRET)
    guest.set_words(g.IRQ_ENABLED, 0x200)
    guest.on_notify = lambda _: threading.Thread(target=guest.host.stop).start()
    assert guest.run() == Ending("stopped", "")
