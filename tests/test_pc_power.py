"""Off, and again: each way which Linux tries works once, and nothing else is mistaken for one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lguest_nb.host import Ending
from lguest_nb.pc.power import Power
from lguest_nb.today import nothing_there

OFF, RESTART = Ending("power-off"), Ending("restart")
CONTROL, TIMER, CF9 = 0x604, 0x608, 0xCF9


class Machine:
    def __init__(self) -> None:
        self.now = 0
        self.endings: list[Ending] = []
        self.power = Power(self.endings.append, lambda: self.now)

    def out(self, port: int, value: int, size: int = 1) -> None:
        if port in (0x60, 0x64):
            self.power.write_port(port, value)
        else:
            self.power.write("port", port, size, value)

    def get(self, port: int, size: int = 1) -> int:
        return self.power.read_port(port) if port in (0x60, 0x64) else self.power.read("port", port, size)


@pytest.fixture
def machine() -> Machine:
    return Machine()


def test_linux_switches_off_by_sleep_type_and_then_enable(machine: Machine) -> None:
    "`acpi_hw_legacy_sleep`: the control register twice, the second time with SLP_EN."
    control = machine.get(CONTROL, 2)
    assert control & 1, "ACPI is on"
    machine.out(CONTROL, control | 5 << 10, 2)
    assert not machine.endings
    machine.out(CONTROL, control | 5 << 10 | 1 << 13, 2)
    assert machine.endings == [OFF]
    assert machine.get(CONTROL, 2) & 1 << 13 == 0


@pytest.mark.parametrize("sleep_type", [0, 1, 2, 3, 4, 6, 7])
def test_no_other_sleep_ends_anything(machine: Machine, sleep_type: int) -> None:
    machine.out(CONTROL, sleep_type << 10 | 1 << 13, 2)
    assert not machine.endings


def test_linux_restarts_by_the_acpi_register(machine: Machine) -> None:
    machine.out(CF9, 6)
    assert machine.endings == [RESTART]


def test_linux_restarts_by_cf9_in_two_steps(machine: Machine) -> None:
    "`native_machine_emergency_restart`, BOOT_CF9_FORCE."
    cf9 = machine.get(CF9) & ~6
    machine.out(CF9, cf9 | 2)
    assert not machine.endings
    machine.out(CF9, cf9 | 6)
    assert machine.endings == [RESTART]


def test_linux_restarts_by_the_keyboard_which_is_never_busy(machine: Machine) -> None:
    "BOOT_KBD: `kb_wait`, and 0xFE."
    assert machine.get(0x64) & 2 == 0
    machine.out(0x64, 0xFE)
    assert machine.endings == [RESTART]


def test_linux_finds_no_keyboard_controller_and_stops_looking() -> None:
    "`i8042_flush`: after sixteen bytes and one more there is no controller."
    machine = Machine()
    count = 0
    while machine.get(0x64) & 1 and count <= 16:
        machine.get(0x60)
        count += 1
    assert count == 17


@pytest.mark.parametrize("value", [0x20, 0x60, 0xA7, 0xAA, 0xAD, 0xD1, 0xD3, 0xF1, 0xFF])
def test_no_other_command_of_the_keyboard_controller_restarts(machine: Machine, value: int) -> None:
    machine.out(0x64, value)
    machine.out(0x60, 0xFE)
    assert not machine.endings


def test_a_search_for_pci_finds_nothing_and_restarts_nothing(machine: Machine) -> None:
    "`pci_check_type1`, and then every function of a bus; the second byte of the address lies over 0xCF9."
    machine.out(0xCFB, 1)
    assert machine.get(0xCF8, 4) == 0xFFFF_FFFF
    machine.out(0xCF8, 0x8000_0000, 4)
    assert machine.get(0xCF8, 4) != 0x8000_0000
    for function in range(256):
        machine.out(0xCF8, 0x8000_0000 | function << 8, 4)
        assert machine.get(0xCFC, 4) == 0xFFFF_FFFF
    machine.out(0xCF8, 0x0600, 2)
    assert not machine.endings


def test_only_the_first_way_counts(machine: Machine) -> None:
    machine.out(CONTROL, 5 << 10 | 1 << 13, 2)
    machine.out(CF9, 6)
    machine.out(0x64, 0xFE)
    assert machine.endings == [OFF]


def test_the_timer_moves_and_comes_round_after_24_bits(machine: Machine) -> None:
    "`init_acpi_pm_clocksource` wants it to move, and to go back once in a round at most."
    seen = []
    for machine.now in range(0, 10**10, 10**7):
        seen.append(machine.get(TIMER, 4))
    assert sum(later < earlier for earlier, later in zip(seen, seen[1:], strict=False)) == 2
    assert max(seen) < 1 << 24
    machine.now = 10**9
    assert machine.get(TIMER, 4) == 3_579_545


def test_pieces_of_a_register_are_its_pieces(machine: Machine) -> None:
    machine.out(0x600, 0x0120_FFFF, 4)
    assert machine.get(0x600, 2) == 0  # status: nothing has happened
    assert machine.get(0x602, 2) == 0x0120
    machine.out(0x603, 0xFF)
    assert (machine.get(0x602), machine.get(0x603)) == (0x20, 0xFF)
    machine.out(0x605, 5 << 2 | 1 << 5)  # the upper half of control alone
    assert machine.endings == [OFF]


@given(
    st.lists(
        st.tuples(
            st.sampled_from([*range(0x600, 0x60C), *range(0xCF8, 0xD00), 0x60, 0x64]),
            st.sampled_from([1, 2, 4]),
            st.integers(0, (1 << 32) - 1),
        ),
        max_size=40,
    )
)
def test_no_sequence_raises_and_it_ends_once_at_most(steps: list[tuple[int, int, int]]) -> None:
    machine = Machine()
    for port, size, value in steps:
        if port in (0x60, 0x64):
            size = 1
        machine.out(port, value & nothing_there(size), size)
        assert 0 <= machine.get(port, size) <= nothing_there(size)
    assert len(machine.endings) <= 1
