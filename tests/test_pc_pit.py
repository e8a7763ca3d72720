"""The 8254 under a clock of the test's: Linux's calibration, its clock events, and no sequence which raises."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lguest_nb.pc.pit import HZ, SECOND, Pit

CONTROL, CH0, CH2, GATE = 0x43, 0x40, 0x42, 0x61
LATCH_100HZ = 11932  # PIT_LATCH of Linux with HZ=100


class Timer:
    "The chip, the test's clock, and the pulses on line 0."

    def __init__(self) -> None:
        self.now, self.step, self.ticks = 0, 0, 0
        self.pit = Pit(self.tick, self.clock)

    def tick(self) -> None:
        self.ticks += 1

    def clock(self) -> int:
        self.now += self.step
        return self.now

    def out(self, port: int, *values: int) -> None:
        for value in values:
            self.pit.write_port(port, value)

    def load(self, port: int, count: int) -> None:
        self.out(port, count & 0xFF, count >> 8)

    def wait(self, ticks: int) -> None:
        "Until exactly so many ticks of the chip have gone by."
        self.now += -(-ticks * SECOND // HZ)

    def value(self, port: int = CH0) -> int:
        return self.pit.read_port(port) | self.pit.read_port(port) << 8

    def deadline(self) -> int:
        deadline = self.pit.deadline()
        assert deadline is not None
        return deadline


@pytest.fixture
def timer() -> Timer:
    return Timer()


def test_linux_calibrates_its_time_stamp_counter_in_fifty_milliseconds(timer: Timer) -> None:
    "`pit_calibrate_tsc` of arch/x86/kernel/tsc.c."
    timer.step = 2000
    timer.out(GATE, timer.pit.read_port(GATE) & ~2 | 1)
    timer.out(CONTROL, 0xB0)
    timer.load(CH2, HZ // 20)
    before = timer.now
    loops = 0
    while not timer.pit.read_port(GATE) & 0x20:
        loops += 1
    assert abs(timer.now - before - SECOND // 20) <= 3 * timer.step
    assert loops > 1000


def test_linux_calibrates_quickly_by_the_high_byte_of_a_running_counter(timer: Timer) -> None:
    "`quick_pit_calibrate`: it reads both bytes without a latch, and waits for the high one to change."
    timer.step = 1500
    timer.out(GATE, timer.pit.read_port(GATE) & ~2 | 1)
    timer.out(CONTROL, 0xB0)
    timer.out(CH2, 0xFF, 0xFF)
    timer.pit.read_port(CH2)
    assert timer.pit.read_port(CH2) == 0xFF  # pit_verify_msb
    for expected in (0xFF, 0xFE, 0xFD):
        count = 0
        while True:
            timer.pit.read_port(CH2)
            if timer.pit.read_port(CH2) != expected:
                break
            count += 1
        assert count > 5, "pit_expect_msb gives up"


def test_a_periodic_tick_comes_at_every_multiple(timer: Timer) -> None:
    "`pit_set_periodic` of drivers/clocksource/i8253.c."
    timer.out(CONTROL, 0x34)
    timer.load(CH0, LATCH_100HZ)
    for n in range(1, 5):
        assert timer.deadline() == -(-n * LATCH_100HZ * SECOND // HZ)
        timer.now = timer.deadline() - 1
        assert timer.pit.due(timer.now) == 0
        timer.now += 1
        assert timer.pit.due(timer.now) == 1
    assert timer.ticks == 4


def test_a_one_shot_comes_once_and_each_new_count_begins_it_again(timer: Timer) -> None:
    "`pit_set_oneshot` and `pit_next_event`: mode 4, and then only counts."
    timer.out(CONTROL, 0x38)
    assert timer.pit.deadline() is None
    for count in (100, 5000, 1, 0xFFFF):
        timer.load(CH0, count)
        begun = timer.now
        assert timer.deadline() - begun == -(-(count + 1) * SECOND // HZ)
        timer.now = timer.deadline()
        assert (timer.pit.due(timer.now), timer.pit.deadline()) == (1, None)
        timer.now += 10 * SECOND
        assert timer.pit.due(timer.now) == 0
    timer.load(CH0, 5000)
    timer.load(CH0, 9000)  # before the first one was due
    assert timer.deadline() - timer.now == -(-9001 * SECOND // HZ)


def test_linux_switches_it_off_with_a_control_word_alone(timer: Timer) -> None:
    "`pit_shutdown`; a later count of zero, as for some virtual machines, is one last tick and no more."
    timer.out(CONTROL, 0x34)
    timer.load(CH0, 100)
    timer.out(CONTROL, 0x30)
    assert timer.pit.deadline() is None
    assert timer.pit.due(timer.now + SECOND) == 0
    timer.out(CH0, 0, 0)
    assert timer.deadline() == -(-65536 * SECOND // HZ)
    timer.out(CONTROL, 0x30)
    assert timer.pit.deadline() is None


def test_a_late_host_hears_of_all_ticks_and_the_line_of_one(timer: Timer) -> None:
    timer.out(CONTROL, 0x34)
    timer.load(CH0, LATCH_100HZ)
    timer.wait(10 * LATCH_100HZ + 5)
    assert (timer.pit.due(timer.now), timer.ticks) == (10, 1)
    assert timer.deadline() > timer.now


def test_time_in_the_jiffies_clock_goes_down_and_begins_again(timer: Timer) -> None:
    "`i8253_read`: latch, low, high; mode 2 never shows more than was loaded, nor zero."
    timer.out(CONTROL, 0x34)
    timer.load(CH0, LATCH_100HZ)
    for ticks, expected in ((0, LATCH_100HZ), (1, LATCH_100HZ - 1), (LATCH_100HZ - 2, 1), (1, LATCH_100HZ)):
        timer.wait(ticks)
        timer.out(CONTROL, 0x00)
        assert abs(timer.value() - expected) <= 1 or {timer.value(), expected} <= {0, 1, LATCH_100HZ}


def test_a_latch_keeps_both_bytes_of_one_moment(timer: Timer) -> None:
    timer.out(CONTROL, 0x34)
    timer.load(CH0, 0x1000)
    timer.wait(16)
    timer.out(CONTROL, 0x00)
    timer.wait(0x800)
    timer.out(CONTROL, 0x00)  # a second latch before it was read is ignored
    assert timer.value() in (0xFF0, 0xFEF)


def test_read_back_gives_status_and_then_count(timer: Timer) -> None:
    timer.out(CONTROL, 0x36)
    timer.out(CONTROL, 0xE2)  # status of channel 0
    assert timer.pit.read_port(CH0) == 0x80 | 0x40 | 0x30 | 3 << 1
    timer.load(CH0, 0x1000)
    timer.out(CONTROL, 0xC2)  # both
    assert timer.pit.read_port(CH0) == 0x80 | 0x30 | 3 << 1
    assert timer.value() == 0x1000


@pytest.mark.parametrize("access, written, count", [(1, [0x20], 0x20), (2, [0x20], 0x2000), (3, [0x20, 0x10], 0x1020)])
def test_one_byte_or_two_go_through_the_port(timer: Timer, access: int, written: list[int], count: int) -> None:
    timer.out(CONTROL, access << 4 | 4)
    timer.out(CH0, *written)
    timer.out(CONTROL, 0xD2)
    assert [timer.pit.read_port(CH0) for _ in written] == written
    assert timer.deadline() == -(-count * SECOND // HZ)


@pytest.mark.parametrize("mode, output", [(0, [0, 0, 1, 1]), (2, [1, 1, 1, 1]), (3, [1, 0, 1, 0]), (4, [1, 1, 1, 1])])
def test_the_output_of_channel_2_can_be_seen(timer: Timer, mode: int, output: list[int]) -> None:
    timer.out(GATE, 1)
    timer.out(CONTROL, 0xB0 | mode << 1)
    timer.load(CH2, 1000)
    seen = []
    for _ in output:
        seen.append(timer.pit.read_port(GATE) >> 5 & 1)
        timer.wait(501)
    assert seen == output


def test_a_gate_holds_a_one_shot_and_lets_it_go_on(timer: Timer) -> None:
    timer.out(CONTROL, 0xB0)
    timer.load(CH2, 1000)
    timer.wait(5000)
    assert not timer.pit.read_port(GATE) & 0x20
    timer.out(GATE, 1)
    timer.wait(600)
    timer.out(GATE, 0)
    timer.wait(5000)
    timer.out(GATE, 1)
    timer.wait(398)
    assert not timer.pit.read_port(GATE) & 0x20
    timer.wait(3)
    assert timer.pit.read_port(GATE) & 0x20


def test_a_trigger_is_the_gate_going_up(timer: Timer) -> None:
    timer.out(CONTROL, 0xB2)
    timer.load(CH2, 1000)
    timer.wait(2000)
    assert timer.pit.read_port(GATE) & 0x20
    timer.out(GATE, 1)
    assert not timer.pit.read_port(GATE) & 0x20
    timer.wait(1000)
    assert timer.pit.read_port(GATE) & 0x20


def test_the_refresh_bit_changes_all_the_time(timer: Timer) -> None:
    timer.step = 5_000
    assert {timer.pit.read_port(GATE) & 0x10 for _ in range(20)} == {0, 0x10}


STEPS = st.lists(
    st.tuples(
        st.sampled_from([0x40, 0x41, 0x42, 0x43, 0x61]),
        st.integers(0, 255),
        st.sampled_from([0, 1, 838, 10**6, 10**10]),
    ),
    max_size=40,
)


@given(STEPS)
def test_no_sequence_raises_and_every_answer_is_a_byte(steps: list[tuple[int, int, int]]) -> None:
    timer = Timer()
    for port, value, later in steps:
        timer.now += later
        timer.out(port, value)
        assert 0 <= timer.pit.read_port(port) <= 255


@given(STEPS)
def test_at_the_deadline_a_tick_is_due_and_the_next_one_is_later(steps: list[tuple[int, int, int]]) -> None:
    "A Host which sleeps until the deadline never wakes for nothing, and never spins."
    timer = Timer()
    for port, value, later in steps:
        timer.now += later
        timer.out(port, value)
    timer.pit.due(timer.now)
    for _ in range(3):
        deadline = timer.pit.deadline()
        if deadline is None:
            assert timer.pit.due(timer.now + 10**12) == 0
            break
        assert deadline > timer.now
        assert timer.pit.due(deadline - 1) == 0
        assert timer.pit.due(deadline) == 1
        timer.now = deadline
