"""The pair of 8259A: priorities, edges and levels, and the sequences with which Linux looks for it and uses it."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lguest_nb.pc.pic import CASCADE, PicPair

BASE = 0x30  # ISA_IRQ_VECTOR(0)
MASTER, MASTER_MASK, SLAVE, SLAVE_MASK, ELCR = 0x20, 0x21, 0xA0, 0xA1, 0x4D0
DEVICE_LINES = [line for line in range(16) if line != CASCADE]
ORDER: list[int] = [0, 1, *range(8, 16), 3, 4, 5, 6, 7]  # from important to not


def initialised(auto_end: bool = False, mask: int = 0) -> PicPair:
    "As `init_8259A` of Linux leaves it, with these lines masked."
    pic = PicPair()
    for port, value in (
        (MASTER_MASK, 0xFF),
        (MASTER, 0x11),
        (MASTER_MASK, BASE),
        (MASTER_MASK, 1 << CASCADE),
        (MASTER_MASK, 3 if auto_end else 1),
        (SLAVE, 0x11),
        (SLAVE_MASK, BASE + 8),
        (SLAVE_MASK, CASCADE),
        (SLAVE_MASK, 3 if auto_end else 1),
        (MASTER_MASK, mask & 0xFF),
        (SLAVE_MASK, mask >> 8),
    ):
        pic.write_port(port, value)
    return pic


def end(pic: PicPair, line: int) -> None:
    "As `mask_and_ack_8259A` ends it, without its mask."
    if line & 8:
        pic.write_port(SLAVE, 0x60 + (line & 7))
        pic.write_port(MASTER, 0x60 + CASCADE)
    else:
        pic.write_port(MASTER, 0x60 + line)


def taken(pic: PicPair) -> int:
    assert pic.pending()
    return pic.acknowledge() - BASE


def test_linux_finds_it_by_the_mask_it_wrote() -> None:
    "`probe_8259A`: what was written to the master's mask is read back."
    pic = PicPair()
    pic.write_port(SLAVE_MASK, 0xFF)
    pic.write_port(MASTER_MASK, 0xFF & ~(1 << CASCADE))
    assert pic.read_port(MASTER_MASK) == 0xFB


def test_nothing_is_pending_before_anybody_programmed_it() -> None:
    pic = PicPair()
    for line in range(16):
        pic.raise_line(line)
    assert not pic.pending()


@pytest.mark.parametrize("line", DEVICE_LINES)
def test_a_line_arrives_as_its_vector_and_again_only_after_its_end(line: int) -> None:
    pic = initialised()
    pic.raise_line(line)
    assert taken(pic) == line
    pic.raise_line(line)
    assert not pic.pending()
    end(pic, line)
    assert taken(pic) == line
    end(pic, line)
    assert not pic.pending()


def test_the_slave_comes_between_lines_1_and_3() -> None:
    pic = initialised()
    for line in range(16):
        pic.raise_line(line)
    seen = []
    while pic.pending():
        seen.append(taken(pic))
        end(pic, seen[-1])
    assert seen == ORDER


def test_a_more_important_line_interrupts_a_less_important_one() -> None:
    pic = initialised()
    pic.raise_line(4)
    assert taken(pic) == 4
    pic.raise_line(5)
    assert not pic.pending()
    pic.raise_line(14)
    assert taken(pic) == 14
    pic.raise_line(0)
    assert taken(pic) == 0


def test_an_edge_while_masked_is_remembered() -> None:
    pic = initialised(mask=0xFFFB)
    pic.raise_line(11)
    assert not pic.pending()
    pic.write_port(SLAVE_MASK, 0xF7)
    assert taken(pic) == 11


def test_an_unmasked_slave_behind_a_masked_cascade_is_silent() -> None:
    pic = initialised(mask=1 << CASCADE)
    pic.raise_line(8)
    assert not pic.pending()


def test_a_line_which_stays_up_is_one_edge() -> None:
    pic = initialised()
    pic.set_line(5, True)
    assert taken(pic) == 5
    end(pic, 5)
    pic.set_line(5, True)
    assert not pic.pending()


def test_a_level_comes_again_until_it_goes_down_and_a_pulse_is_too_short() -> None:
    pic = initialised()
    pic.write_port(ELCR, 1 << 5)
    pic.raise_line(5)
    assert not pic.pending()
    pic.set_line(5, True)
    for _ in range(2):
        assert taken(pic) == 5
        end(pic, 5)
    pic.set_line(5, False)
    assert not pic.pending()


def test_six_lines_cannot_be_levels() -> None:
    pic = PicPair()
    pic.write_port(ELCR, 0xFF)
    pic.write_port(ELCR + 1, 0xFF)
    assert (pic.read_port(ELCR), pic.read_port(ELCR + 1)) == (0xF8, 0xDE)


@pytest.mark.parametrize("line, spurious", [(5, 7), (10, 7)])
def test_what_is_gone_before_it_is_acknowledged_is_line_7_and_not_in_service(line: int, spurious: int) -> None:
    "Linux's `i8259A_irq_real` reads the register of what is in service, and finds nothing."
    pic = initialised()
    pic.write_port(ELCR + (line >> 3), 1 << (line & 7))
    pic.set_line(line, True)
    pic.set_line(line, False)
    assert pic.acknowledge() == BASE + spurious
    for port in (MASTER, SLAVE):
        pic.write_port(port, 0x0B)
        assert pic.read_port(port) == 0
        pic.write_port(port, 0x0A)


def test_requests_and_service_are_read_as_linux_asks_for_them() -> None:
    pic = initialised()
    pic.raise_line(10)
    assert (pic.read_port(MASTER), pic.read_port(SLAVE)) == (1 << CASCADE, 1 << 2)
    taken(pic)
    pic.write_port(SLAVE, 0x0B)
    assert (pic.read_port(MASTER), pic.read_port(SLAVE)) == (0, 1 << 2)


def test_automatic_end_needs_none() -> None:
    pic = initialised(auto_end=True)
    for _ in range(2):
        pic.raise_line(9)
        pic.raise_line(8)
        assert [taken(pic), taken(pic), pic.pending()] == [8, 9, False]


def test_the_special_mask_lets_a_masked_line_in_service_stand_in_nobodys_way() -> None:
    pic = initialised()
    pic.raise_line(3)
    assert taken(pic) == 3
    pic.raise_line(4)
    pic.write_port(MASTER, 0x68)
    pic.write_port(MASTER_MASK, 1 << 3)
    assert taken(pic) == 4
    pic.write_port(MASTER, 0x48)
    pic.raise_line(5)
    assert not pic.pending()


def test_rotation_makes_the_line_which_ended_the_least_important() -> None:
    pic = initialised()
    pic.raise_line(4)
    taken(pic)
    pic.write_port(MASTER, 0xA0)  # rotate on non-specific end
    for line in (3, 4, 5):
        pic.raise_line(line)
    assert taken(pic) == 5


def test_a_poll_names_the_line_and_acknowledges_it() -> None:
    pic = initialised()
    pic.raise_line(6)
    for expected in (0x86, 0x00):
        pic.write_port(MASTER, 0x0C)
        assert pic.read_port(MASTER) == expected
    assert not pic.pending()


def test_special_fully_nested_lets_a_more_important_line_of_the_slave_through() -> None:
    pic = initialised()
    for value, port in ((0x11, MASTER), (BASE, MASTER_MASK), (4, MASTER_MASK), (0x11, MASTER_MASK)):
        pic.write_port(port, value)
    pic.raise_line(10)
    assert taken(pic) == 10
    pic.raise_line(11)
    assert not pic.pending()
    pic.raise_line(9)
    assert taken(pic) == 9


def test_devices_raise_their_lines_from_any_thread() -> None:
    pic = initialised()
    threads = [threading.Thread(target=pic.raise_line, args=(line,)) for line in DEVICE_LINES for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seen = []
    while pic.pending():
        seen.append(taken(pic))
        end(pic, seen[-1])
    assert seen == ORDER


class AgainstAPlainModel(RuleBasedStateMachine):
    "A PC's fifteen lines as one list in order of importance: what may come next is a question of positions."

    def __init__(self) -> None:
        super().__init__()
        self.pic = initialised()
        self.requested: set[int] = set()
        self.masked: set[int] = set()
        self.up: set[int] = set()
        self.levels: set[int] = set()
        self.serving: list[int] = []

    def next(self) -> int | None:
        for line in ORDER:
            if line in self.serving or (line & 8 and any(s & 8 for s in self.serving)):
                return None  # nor anything behind it: of the slave there is one at a time
            if line in self.requested - self.masked and not (line & 8 and CASCADE in self.masked):
                return line
        return None

    @rule(line=st.sampled_from(DEVICE_LINES), up=st.booleans())
    def move(self, line: int, up: bool) -> None:
        self.pic.set_line(line, up)
        if line in self.levels:
            (self.requested.add if up else self.requested.discard)(line)
        elif up and line not in self.up:
            self.requested.add(line)
        (self.up.add if up else self.up.discard)(line)

    @rule(lines=st.sets(st.integers(0, 15)))
    def mask(self, lines: set[int]) -> None:
        self.masked = lines
        bits = sum(1 << line for line in lines)
        self.pic.write_port(MASTER_MASK, bits & 0xFF)
        self.pic.write_port(SLAVE_MASK, bits >> 8)

    @rule(line=st.sampled_from([3, 4, 5, 6, 7, 9, 10, 11, 12, 14, 15]))
    def toggle_level(self, line: int) -> None:
        self.levels ^= {line}
        self.requested.discard(line)
        if line in self.levels and line in self.up:
            self.requested.add(line)
        bits = sum(1 << line for line in self.levels)
        self.pic.write_port(ELCR, bits & 0xFF)
        self.pic.write_port(ELCR + 1, bits >> 8)

    @precondition(lambda self: self.pic.pending())
    @rule()
    def acknowledge(self) -> None:
        line = self.next()
        assert line is not None
        assert self.pic.acknowledge() - BASE == line
        if line not in self.levels:
            self.requested.discard(line)
        self.serving.append(line)

    @precondition(lambda self: self.serving)
    @rule()
    def end_of_interrupt(self) -> None:
        end(self.pic, self.serving.pop())

    @invariant()
    def pending_is_what_the_model_says(self) -> None:
        assert self.pic.pending() == (self.next() is not None)


TestAgainstAPlainModel = AgainstAPlainModel.TestCase


@given(
    st.lists(
        st.tuples(
            st.sampled_from([MASTER, MASTER_MASK, SLAVE, SLAVE_MASK, ELCR, ELCR + 1, -1, -2]), st.integers(0, 255)
        ),
        max_size=60,
    )
)
def test_no_sequence_raises_and_every_answer_is_a_byte(steps: list[tuple[int, int]]) -> None:
    pic = PicPair()
    for port, value in steps:
        if port == -1:
            pic.set_line(value & 15, bool(value & 16))
        elif port == -2:
            assert 0 <= pic.acknowledge() <= 255
        else:
            pic.write_port(port, value)
            assert 0 <= pic.read_port(port) <= 255
