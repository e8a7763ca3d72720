"""The clock with a battery, under a clock of the test's: as Linux reads it, sets it, and waits for it."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lguest_nb.pc.rtc import LAST, REG_A, REG_B, REG_C, REG_D, SECOND, SET, TIME, UIP, Rtc

JUNE = datetime(2009, 6, 12, 22, 27, 9, tzinfo=UTC)


class Battery:
    "The clock, and what Linux's CMOS_READ and CMOS_WRITE do."

    def __init__(self, memory: int = 256 << 20) -> None:
        self.now = int(JUNE.timestamp()) * SECOND
        self.rtc = Rtc(memory, lambda: self.now)

    def get(self, index: int) -> int:
        self.rtc.write_port(0x70, index)
        return self.rtc.read_port(0x71)

    def put(self, index: int, value: int) -> None:
        self.rtc.write_port(0x70, index)
        self.rtc.write_port(0x71, value)

    def word(self, index: int) -> int:
        return self.get(index) | self.get(index + 1) << 8

    def time(self) -> list[int]:
        return [self.get(register) for register in TIME]


@pytest.fixture
def battery() -> Battery:
    return Battery()


def test_linux_reads_the_date_in_decimal_with_its_century(battery: Battery) -> None:
    assert battery.time() == [0x09, 0x27, 0x22, 0x06, 0x12, 0x06, 0x09, 0x20]  # the 6th day is a Friday
    assert battery.get(REG_B) & 0x06 == 0x02
    assert (battery.get(REG_C), battery.get(REG_D)) == (0, 0x80)


def test_linux_never_reads_while_the_time_changes(battery: Battery) -> None:
    "`mc146818_avoid_UIP`: seconds, UIP, the rest, UIP again, and the same seconds."
    battery.now += SECOND - 244_001
    assert not battery.get(REG_A) & UIP
    battery.now += 1
    assert battery.get(REG_A) & UIP
    battery.now += 244_000
    assert not battery.get(REG_A) & UIP
    assert battery.get(0) == 0x10


def test_linux_sets_the_time_of_its_own_and_not_ours(battery: Battery) -> None:
    "`mc146818_set_time`: SET, a divider which stands, the registers, and everything back."
    control, divider = battery.get(REG_B), battery.get(REG_A)
    battery.put(REG_B, control | SET)
    battery.put(REG_A, divider | 0x70)
    for register, value in zip((9, 8, 7, 4, 2, 0, 0x32), (0x38, 0x01, 0x19, 0x03, 0x14, 0x07, 0x20), strict=True):
        battery.put(register, value)
    battery.now += 5 * SECOND
    assert battery.get(0) == 0x07, "it stands while it is set"
    battery.put(REG_B, control)
    battery.put(REG_A, divider)
    battery.now += 3 * SECOND
    assert battery.time() == [0x10, 0x14, 0x03, 0x03, 0x19, 0x01, 0x38, 0x20]


@pytest.mark.parametrize("register, value", [(7, 0x31), (0, 0x60), (8, 0x13), (9, 0xFA), (4, 0x24)])
def test_what_is_no_date_is_not_taken(battery: Battery, register: int, value: int) -> None:
    battery.put(register, value)
    assert battery.time() == [0x09, 0x27, 0x22, 0x06, 0x12, 0x06, 0x09, 0x20]


def test_binary_and_twelve_hours_are_the_guests_choice(battery: Battery) -> None:
    battery.put(REG_B, 0x06)
    assert battery.time() == [9, 27, 22, 6, 12, 6, 9, 20]
    battery.put(REG_B, 0x00)
    assert battery.get(4) == 0x80 | 0x10
    battery.put(4, 0x12)
    battery.put(REG_B, 0x02)
    assert battery.get(4) == 0x00  # twelve in the morning is midnight


@pytest.mark.parametrize(
    "memory, above, above_16",
    [(512 << 10, 0, 0), (64 << 20, 63 << 10, 48 << 4), (256 << 20, 0xFFFF, 240 << 4), (3328 << 20, 0xFFFF, 3312 << 4)],
)
def test_the_memory_is_as_large_as_an_old_program_can_be_told(memory: int, above: int, above_16: int) -> None:
    battery = Battery(memory)
    assert [battery.word(at) for at in (0x15, 0x17, 0x30, 0x34)] == [640, above, above, above_16]


def test_the_checksum_of_the_first_bytes_is_right(battery: Battery) -> None:
    assert sum(battery.get(i) for i in range(0x10, 0x2E)) == battery.get(0x2E) << 8 | battery.get(0x2F)


def test_the_mask_of_the_nmi_chooses_no_other_byte(battery: Battery) -> None:
    assert battery.get(0x80 | 7) == 0x12


def test_the_last_second_of_all_does_not_raise(battery: Battery) -> None:
    for register, value in zip(TIME, (0x59, 0x59, 0x23, 0x06, 0x31, 0x12, 0x99, 0x99), strict=True):
        battery.put(REG_B, 0x82)
        battery.put(register, value)
    battery.put(REG_B, 0x02)
    battery.now += 10**6 * SECOND
    assert battery.time()[:3] == [0x59, 0x59, 0x23]
    battery.now = (LAST + 5) * SECOND
    assert battery.time()[-1] == 0x99


@given(
    st.lists(
        st.tuples(st.sampled_from([0x70, 0x71]), st.integers(0, 255), st.sampled_from([0, 1, SECOND, 10**18])),
        max_size=60,
    )
)
def test_no_sequence_raises_and_every_answer_is_a_byte(steps: list[tuple[int, int, int]]) -> None:
    battery = Battery()
    for port, value, later in steps:
        battery.now += later
        battery.rtc.write_port(port, value)
        assert 0 <= battery.rtc.read_port(port) <= 255


@given(st.lists(st.tuples(st.sampled_from([*TIME, REG_B]), st.integers(0, 255)), max_size=40))
def test_no_way_to_set_it_raises(steps: list[tuple[int, int]]) -> None:
    battery = Battery()
    for index, value in steps:
        battery.put(index, value)
        battery.now += SECOND
        assert all(0 <= byte <= 255 for byte in battery.time())
