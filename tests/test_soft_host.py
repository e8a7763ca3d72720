"""The verbs of the software Host, from every thread and in every order; and the code which arrives by DMA."""

import gc
import os
import threading
from itertools import pairwise

import pytest
import softguest as g
from hypothesis import given
from hypothesis import strategies as st

from lguest_nb.host import BootState, Ending, HostError
from lguest_nb.hosts.soft import engine, unicorn
from lguest_nb.hosts.soft.host import SoftHost
from lguest_nb.hosts.soft.machine import page_runs

H = g.HANDLERS


def test_stop_ends_an_endless_loop_from_another_thread() -> None:
    guest = g.Guest(g.hcall(g.NOTIFY, 0x5000) + g.jump_to_self())
    guest.on_notify = lambda _: threading.Thread(target=guest.host.stop).start()
    assert guest.run() == Ending("stopped", "")


def test_stop_ends_a_loop_in_the_noirq_range_even_if_that_is_everything() -> None:
    guest = g.Guest(g.hcall(g.NOTIFY, 0x5000) + g.jump_to_self())
    guest.set_words(g.DATA + 1380, 0, 0xFFFFFFFF)
    guest.on_notify = lambda _: threading.Thread(target=guest.host.stop).start()
    assert guest.run() == Ending("stopped", "")


def test_stop_wakes_a_halted_guest_and_works_before_run() -> None:
    guest = g.Guest(g.hcall(g.NOTIFY, 0x5000) + g.hcall(g.HALT))
    guest.on_notify = lambda _: threading.Thread(target=guest.host.stop).start()
    assert guest.run() == Ending("stopped", "")
    guest = g.Guest(g.jump_to_self())
    guest.host.stop()
    assert guest.run() == Ending("stopped", "")


def test_stop_during_a_storm_of_traps() -> None:
    guest = g.Guest(g.gate(6, H) + g.hcall(g.NOTIFY, 0x5000) + b"\x0f\x0b")
    guest.put(H, g.IRET)
    guest.on_notify = lambda _: threading.Thread(target=guest.host.stop).start()
    assert guest.run() == Ending("stopped", "")


def test_everything_is_harmless_before_start_and_after_close() -> None:
    host = SoftHost()
    host.interrupt(1)
    host.wrote([(0, 4096)])
    host.close()
    host.close()
    guest = g.Guest(g.POWER_OFF)
    guest.run()
    guest.host.interrupt(1)
    guest.host.stop()
    guest.host.wrote([(0, 1 << 20)])
    with pytest.raises(HostError, match="not been started"):
        host.run()


def test_a_host_is_started_once_and_run_on_the_same_thread() -> None:
    guest = g.Guest(g.POWER_OFF).start()
    with pytest.raises(HostError, match="started already"):
        guest.host.start(guest.memory, BootState(0), guest)
    problems: list[str] = []

    def elsewhere() -> None:
        try:
            guest.host.run()
        except HostError as e:
            problems.append(str(e))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert "thread which called start" in problems[0]
    guest.close()


def test_lguest_knows_no_values_and_no_address_0_for_its_eventfds() -> None:
    guest = g.Guest(g.POWER_OFF).start()
    fd = os.eventfd(0)
    for address, value in ((0, None), (0x5000, 3)):
        with pytest.raises(HostError):
            guest.host.attach_eventfd(address, fd, value)
    os.close(fd)
    guest.close()


def test_boot_parameters_which_do_not_fit_are_a_sentence() -> None:
    for offset, value in ((0x2D8, g.SIZE * 2), (0x21C, g.SIZE), (0x2DC, 1)):
        guest = g.Guest(g.POWER_OFF)
        guest.set_words(offset, value)
        with pytest.raises(HostError, match="boot parameters"):
            guest.start()
        guest.close()


def resident() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096


# Code that arrives by DMA

ONE, TWO = g.mov(g.EAX, 1) + b"\xc3", g.mov(g.EAX, 2) + b"\xc3"
PROGRAM = 0x22000


def call(address: int, at: int) -> bytes:
    return b"\xe8" + g.u32(address - at - 5)


def two_programs(between: bytes) -> g.Guest:
    "Calls PROGRAM twice with `between` in between, and keeps what it returned."
    code = g.START + call(PROGRAM, g.CODE + len(g.START)) + g.save(g.SCRATCH, g.EAX) + between
    code += call(PROGRAM, g.CODE + len(code)) + g.save(g.SCRATCH + 4, g.EAX) + g.POWER_OFF
    guest = g.Guest(init=False)
    guest.put(g.CODE, code)
    guest.put(PROGRAM, ONE)
    return guest


def results(guest: g.Guest) -> tuple[int, int]:
    assert guest.run().how == "power-off"
    return guest.word(g.SCRATCH), guest.word(g.SCRATCH + 4)


def load_second(guest: g.Guest) -> None:
    guest.put(PROGRAM, TWO)
    guest.host.wrote([(PROGRAM, len(TWO))])


def test_two_programs_in_turn_in_the_same_page_by_the_cpu_thread() -> None:
    guest = two_programs(g.hcall(g.NOTIFY, 0x5000))
    guest.on_notify = lambda _: load_second(guest)
    assert results(guest) == (1, 2)


def test_two_programs_in_turn_while_the_bus_joins_the_thread_which_loads() -> None:
    guest = two_programs(g.hcall(g.NOTIFY, 0x5000))

    def notified(_: int) -> None:
        thread = threading.Thread(target=load_second, args=(guest,))
        thread.start()
        thread.join()

    guest.on_notify = notified
    assert results(guest) == (1, 2)


def test_two_programs_in_turn_while_the_guest_is_halted() -> None:
    guest = two_programs(g.gate(33, H) + g.hcall(g.NOTIFY, 0x5000) + g.hcall(g.HALT))
    guest.put(H, g.IRET)

    def service() -> None:
        load_second(guest)
        guest.host.interrupt(1)

    guest.on_notify = lambda _: threading.Thread(target=service).start()
    assert results(guest) == (1, 2)


def test_two_programs_in_turn_while_the_guest_is_running() -> None:
    spin = b"\x83\x3d" + g.u32(g.SCRATCH + 8) + b"\x00\x74\xf7"  # 1: cmpl $0, SCRATCH+8; je 1b
    guest = two_programs(g.hcall(g.NOTIFY, 0x5000) + spin)

    def service() -> None:
        load_second(guest)
        guest.memory.u32[(g.SCRATCH + 8) // 4] = 1

    guest.on_notify = lambda _: threading.Thread(target=service).start()
    assert results(guest) == (1, 2)


def test_a_guest_whose_every_block_ends_in_a_trap_can_be_loaded_anew() -> None:
    # Unicorn tells us of no translation before it has seen a first block to its end, and a trap is not an end.
    code = g.START + g.hcall(g.NOTIFY, 0x5000)
    rest = g.mov(g.EAX, g.SHUTDOWN) + g.mov(g.EBX, g.TEXT) + g.mov(g.ECX, 1) + b"\xcd\x1f"
    guest = g.Guest(init=False)
    guest.put(g.CODE, code + b"\x90" + b"\xe9" + g.u32(-len(code) - 6 + len(g.START)) + rest)  # nop; jmp to the NOTIFY

    def notified(_: int) -> None:
        if len(guest.notified) == 3:
            guest.put(g.CODE + len(code), b"\xeb\x04")  # jmp over the jmp
            guest.host.wrote([(g.CODE + len(code), 2)])
        guest.notified.append(1)

    guest.on_notify = notified
    assert guest.run().how == "power-off"
    assert len(guest.notified) == 4
    assert guest.host.stats()["code"]["pages"] > 0


def test_pages_which_never_held_code_cost_nothing() -> None:
    guest = g.Guest(g.hcall(g.NOTIFY, 0x5000) + g.POWER_OFF)
    kicked: list[bool] = []

    def notified(_: int) -> None:
        guest.host.wrote([(g.SCRATCH, 4096), (0x100000, 0), (0x3FFFFF, 1)])
        kicked.append(bool(guest.host.stats()["code"]["dropped"]))

    guest.on_notify = notified
    assert guest.run().how == "power-off"
    assert kicked == [False]


@given(st.lists(st.tuples(st.integers(0, 9000), st.integers(0, 5000)), max_size=6))
def test_the_pages_of_a_request_are_each_counted_once(ranges: list[tuple[int, int]]) -> None:
    runs = page_runs(ranges)
    touched = {byte // 4096 for address, length in ranges for byte in range(address, address + length)}
    assert [page for run in runs for page in run] == sorted(touched)
    assert all(a.stop < b.start for a, b in pairwise(runs))


def test_a_request_for_all_of_memory_256_times_over_is_looked_through_once() -> None:
    "It took seconds for a Guest of 4 GB, in which nothing could be stopped."
    assert page_runs([(0, 4 << 30)] * 256) == [range(1 << 20)]
    guest = two_programs(g.hcall(g.NOTIFY, 0x5000))

    def notified(_: int) -> None:
        guest.put(PROGRAM, TWO)
        guest.host.wrote([(0, g.SIZE)] * 256)

    guest.on_notify = notified
    assert results(guest) == (1, 2)


def test_a_guest_which_rewrites_its_code_for_ever_has_no_more_than_a_buffer_of_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    "Each version is translated. A thousand versions of a long program, and room for some of them."
    assert engine.TRANSLATIONS == 64 << 20
    monkeypatch.setattr(engine, "TRANSLATIONS", 8 << 20)
    loop = g.inc(PROGRAM + 1) + b"\xe8" + g.u32(PROGRAM - (g.CODE + len(g.START) + 11))  # the call's next instruction
    again = b"\x3d" + g.u32(1000) + b"\x75" + bytes([(-len(loop) - 7) & 0xFF])  # cmpl $4000, %eax; jne loop
    guest = g.Guest(loop + again + g.POWER_OFF)
    guest.put(PROGRAM, g.mov(g.EAX, 0) + g.inc(g.SCRATCH) * 400 + b"\xc3")
    guest.start()
    before = resident()
    assert guest.host.run().how == "power-off"
    assert int.from_bytes(guest.memory.read(PROGRAM + 1, 4), "little") == 1000
    assert resident() - before < 24 << 20
    guest.close()


def test_code_changed_through_another_mapping_is_noticed() -> None:
    # The Guest itself writes the second program, at 3 GB above the address where it runs.
    stores = b"".join(g.store(0xC0000000 + PROGRAM + i, int.from_bytes(TWO[i : i + 4], "little")) for i in (0, 4))
    assert results(two_programs(stores)) == (1, 2)


def test_the_same_code_under_two_addresses_is_dropped_under_both() -> None:
    high = PROGRAM + 0xC0000000
    code = g.START + call(high, g.CODE + len(g.START)) + g.save(g.SCRATCH, g.EAX) + g.hcall(g.NOTIFY, 0x5000)
    code += call(high, g.CODE + len(code)) + g.save(g.SCRATCH + 4, g.EAX) + g.POWER_OFF
    guest = g.Guest(init=False)
    guest.put(g.CODE, code)
    guest.put(PROGRAM, ONE)
    guest.on_notify = lambda _: load_second(guest)
    assert results(guest) == (1, 2)


# Coming and going


def test_two_hundred_hosts_leave_nothing_behind() -> None:
    guest = g.Guest(g.POWER_OFF)
    guest.run()
    gc.collect()

    def belongings() -> tuple[int, int, int]:
        with open("/proc/self/maps") as maps:
            return len(os.listdir("/proc/self/fd")), threading.active_count(), sum(1 for _ in maps)

    for i in range(200):
        guest.host = SoftHost()
        assert guest.run().how == "power-off"
        if i == 20:
            before, used = belongings(), resident()
    gc.collect()
    after = belongings()
    assert after[:2] == before[:2]
    assert after[2] <= before[2] + 8
    assert resident() - used < 30 << 20
    guest.memory.close()


def test_memory_can_be_closed_after_the_host() -> None:
    guest = g.Guest(g.POWER_OFF)
    guest.run()
    guest.memory.close()


def test_an_untried_unicorn_is_a_sentence() -> None:
    with pytest.raises(HostError, match=r"Unicorn 3\.0\.0.*pip install"):
        unicorn.check_version(0x030000FF)


def test_a_missing_unicorn_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unicorn.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(HostError, match="pip install unicorn"):
        unicorn.find_library()
