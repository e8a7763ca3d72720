"""The 16550A: the 8250 driver of Linux believes in it, nothing is lost, and the CPU thread never waits."""

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lguest_nb.pc.uart import BACKLOG, FIFO, IER, IIR, LCR, LSR, MCR, MSR, RBR, SCR, Uart

FCR, EFR, EXCR1, THR = 2, 2, 2, 0
THRE, TEMT, DR = 0x20, 0x40, 0x01
NO_INT = 1


class Port:
    "The chip as `serial_in` and `serial_out` of Linux see it, and the pulses on its line."

    def __init__(self) -> None:
        self.pulses = 0
        self.uart = Uart(0x3F8, self.pulse)

    def pulse(self) -> None:
        self.pulses += 1

    def get(self, register: int) -> int:
        return self.uart.read_port(0x3F8 + register)

    def put(self, register: int, value: int) -> None:
        self.uart.write_port(0x3F8 + register, value)

    def pulsed(self) -> int:
        count, self.pulses = self.pulses, 0
        return count


@pytest.fixture
def port() -> Port:
    return Port()


def size_of_fifo(port: Port) -> int:
    "`size_fifo` of 8250_port.c: 256 bytes go round the loop, and what the FIFO held comes back."
    port.put(FCR, 0x07)
    port.put(MCR, 0x10)
    port.put(LCR, 0x80)
    port.put(0, 1)
    port.put(1, 0)
    port.put(LCR, 0x03)
    for count in range(256):
        port.put(THR, count)
    count = 0
    while port.get(LSR) & DR and count < 256:
        assert port.get(RBR) == count
        count += 1
    port.put(MCR, 0)
    return count


def test_linux_autoconfig_says_16550a(port: Port) -> None:
    "`autoconfig` and `autoconfig_16550a` of drivers/tty/serial/8250/8250_port.c, in their order."
    port.put(IER, 0)
    assert port.get(IER) & 0x0F == 0
    port.put(IER, 0x0F)
    assert port.get(IER) == 0x0F
    port.put(IER, 0)
    port.put(MCR, 0x10 | 0x0A)
    assert port.get(MSR) & 0xF0 == 0x90
    port.put(MCR, 0)
    port.put(LCR, 0xBF)
    port.put(EFR, 0)
    port.put(LCR, 0)
    port.put(FCR, 1)
    assert port.get(IIR) >> 6 == 3  # not an 8250, a 16450 or a broken 16550
    for mode in (0x80, 0xBF):  # no 16650, no 16850
        port.put(LCR, mode)
        assert port.get(EFR) != 0
    port.put(LCR, 0)
    before = port.get(MCR)
    for modem in (before, before ^ 0x10):  # no SuperIO of National's
        port.put(LCR, 0)
        port.put(MCR, modem)
        port.put(LCR, 0xE0)
        assert (port.get(EXCR1) ^ before) & 0x10 == 0
    port.put(LCR, 0)
    port.put(MCR, before)
    port.put(FCR, 1)
    first = port.get(IIR) >> 5
    port.put(LCR, 0x80)
    port.put(FCR, 0x21)
    assert (first, port.get(IIR) >> 5) == (6, 6)  # no TI 16750
    port.put(LCR, 0)
    port.put(IER, 0x40)
    assert port.get(IER) & 0x40 == 0  # no XScale
    assert size_of_fifo(port) == FIFO
    assert port.uart.take() == b""


def test_the_transmitters_interrupt_comes_again_whenever_it_is_enabled(port: Port) -> None:
    "`serial8250_do_startup` looks for UARTs where it does not (UART_BUG_THRE, UART_BUG_TXEN)."
    for _ in range(3):
        port.put(IER, 2)
        assert port.get(LSR) & TEMT
        assert not port.get(IIR) & NO_INT
        port.put(IER, 0)
        assert port.get(IIR) & NO_INT


def test_an_early_console_polls_and_writes(port: Port) -> None:
    for byte in b"early\n":
        assert port.get(LSR) & THRE
        port.put(THR, byte)
    assert (port.uart.take(), port.pulsed()) == (b"early\n", 0)


def test_the_8250_driver_sends_in_its_interrupts_until_it_has_no_more(port: Port) -> None:
    "`serial8250_handle_irq` fills the FIFO once for each interrupt, and the line pulses for each next one."
    text, sent = deque(bytes(range(100))), 0
    port.put(FCR, 1)
    port.put(IER, 2)
    while text:
        assert port.pulsed(), f"the driver waits for an interrupt after {sent} bytes"
        while not port.get(IIR) & NO_INT:
            if not text:
                port.put(IER, 0)
            for _ in range(min(FIFO, len(text))):
                port.put(THR, text.popleft())
                sent += 1
            if sent % 48 == 0:
                break  # leave, so that the next byte needs an interrupt
    assert port.uart.take() == bytes(range(100))


def test_keys_arrive_with_one_edge_and_the_handler_empties_the_fifo(port: Port) -> None:
    port.put(FCR, 1)
    port.put(IER, 5)
    assert port.uart.receive(b"ls\r") == 3
    assert port.pulsed() == 1
    assert port.get(IIR) & 0x0E == 4
    seen = bytearray()
    while port.get(LSR) & DR:
        seen.append(port.get(RBR))
    assert bytes(seen) == b"ls\r"
    assert port.get(IIR) & NO_INT
    port.uart.receive(b"x")
    assert port.pulsed() == 1


def test_keys_which_came_before_the_driver_interrupt_once_it_listens(port: Port) -> None:
    port.uart.receive(b"early")
    assert port.pulsed() == 0
    port.put(IER, 1)
    assert port.pulsed() == 1


def test_a_byte_received_is_named_before_a_byte_to_send(port: Port) -> None:
    port.put(IER, 3)
    port.uart.receive(b"a")
    assert port.get(IIR) & 0x0E == 4
    port.get(RBR)
    assert port.get(IIR) & 0x0E == 2
    assert port.get(IIR) & NO_INT


def test_writing_does_not_pulse_for_a_byte_which_has_long_been_there(port: Port) -> None:
    port.put(IER, 1)
    port.uart.receive(b"a")
    assert port.pulsed() == 1
    port.put(THR, 65)
    assert port.pulsed() == 0


def test_a_full_fifo_takes_no_more_and_asks_for_more_when_it_is_empty(port: Port) -> None:
    asked: list[bool] = []
    port.uart.room = lambda: asked.append(True)
    assert port.uart.receive(bytes(100)) == FIFO
    assert port.uart.receive(b"a") == 0
    for _ in range(FIFO - 1):
        port.get(RBR)
    assert not asked
    port.get(RBR)
    assert asked == [True]


def test_a_reader_who_sleeps_makes_the_chip_slow_and_not_the_guest(port: Port) -> None:
    for _ in range(BACKLOG):
        port.put(THR, 46)
    assert port.get(LSR) & (THRE | TEMT) == 0
    port.put(IER, 2)
    assert port.get(IIR) & NO_INT
    assert port.pulsed() == 0
    assert len(port.uart.take()) == BACKLOG
    assert port.pulsed() == 1
    assert port.get(LSR) & THRE
    assert port.get(IIR) & 0x0F == 2


def test_the_loop_keeps_what_is_sent_and_what_is_typed_apart(port: Port) -> None:
    port.put(MCR, 0x10)
    assert port.uart.receive(b"typed") == 0
    port.put(THR, 7)
    assert (port.get(RBR), port.uart.take()) == (7, b"")
    port.put(MCR, 0)
    assert port.uart.receive(b"typed") == 5


def test_the_speed_and_the_scratch_register_are_remembered(port: Port) -> None:
    port.put(SCR, 0xA5)
    port.put(LCR, 0x83)
    port.put(0, 0x34)
    port.put(1, 0x12)
    assert (port.get(0), port.get(1), port.get(LCR), port.get(SCR)) == (0x34, 0x12, 0x83, 0xA5)
    port.put(LCR, 0x03)
    assert (port.get(RBR), port.get(IER), port.uart.take()) == (0, 0, b"")


def test_the_other_end_of_the_cable_is_always_there(port: Port) -> None:
    assert port.get(MSR) == 0xB0


@given(
    st.lists(
        st.one_of(
            st.tuples(st.integers(0, 7), st.integers(0, 255)),
            st.tuples(st.just(-1), st.binary(max_size=20)),
            st.tuples(st.just(-2), st.just(0)),
        ),
        max_size=60,
    )
)
def test_no_sequence_raises_and_a_wanted_interrupt_was_pulsed(steps: list[tuple[int, int | bytes]]) -> None:
    port, wanted = Port(), False
    for register, value in steps:
        if isinstance(value, bytes):
            assert 0 <= port.uart.receive(value) <= len(value)
        elif register == -2:
            port.uart.take()
        else:
            port.put(register, value)
            assert 0 <= port.get(register) <= 255
        now = port.uart._reason() != NO_INT
        assert port.pulsed() or not now or wanted, "the chip wants an interrupt, and nobody heard"
        wanted = now


class Box:
    "An outbox of a few bytes, kept where the Guest's two ports are."

    SIZE = 5

    def __init__(self) -> None:
        self.status: int | None = None
        self.bytes = b""

    def open(self, status: int) -> None:
        self.status = status

    def shut(self) -> None:
        self.status = None

    def take(self) -> bytes:
        taken, self.bytes = self.bytes, b""
        return taken


class BoxedPort(Port):
    "A chip which was lent a box; a Host asks the box first."

    def __init__(self) -> None:
        super().__init__()
        self.box = Box()
        self.uart.lend(self.box)

    @property
    def _is_open(self) -> bool:
        return self.box.status is not None and len(self.box.bytes) < Box.SIZE

    def get(self, register: int) -> int:
        if register == LSR and self._is_open:
            assert self.box.status is not None
            return self.box.status
        return super().get(register)

    def put(self, register: int, value: int) -> None:
        if register == THR and self._is_open:
            self.box.bytes += bytes([value])
        else:
            super().put(register, value)


ACTS = st.one_of(
    st.tuples(st.just("put"), st.integers(0, 7), st.sampled_from((0, 1, 2, 3, 0x07, 0x10, 0x41, 0x80, 0xFF))),
    st.tuples(st.just("put"), st.just(THR), st.integers(0, 255)),
    st.tuples(st.just("get"), st.integers(0, 7), st.just(0)),
    st.tuples(st.just("take"), st.just(0), st.just(0)),
    st.tuples(st.just("receive"), st.integers(1, 4), st.integers(0, 255)),
)


@given(st.lists(ACTS, max_size=60))
def test_a_chip_with_a_box_is_a_chip_without_one(acts: list[tuple[str, int, int]]) -> None:
    plain, boxed = Port(), BoxedPort()
    sent = {plain: b"", boxed: b""}
    for act, register, value in acts:
        answers = []
        for port in (plain, boxed):
            if act == "put":
                port.put(register, value)
            elif act == "get":
                answers.append(port.get(register))
            elif act == "receive":
                answers.append(port.uart.receive(bytes([value] * register)))
            else:
                sent[port] += port.uart.take()
            answers.append(port.pulsed())
        assert answers[: len(answers) // 2] == answers[len(answers) // 2 :]
    assert sent[plain] + plain.uart.take() == sent[boxed] + boxed.uart.take()
