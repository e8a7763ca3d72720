"""The whole board: every part is at its ports, and a kernel may ask anywhere without breaking anything."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lguest_nb.host import Ending
from lguest_nb.pc.acpi import MmioSlot, acpi_tables
from lguest_nb.pc.pic import PicPair
from lguest_nb.pc.pit import Pit
from lguest_nb.pc.platform import Platform
from lguest_nb.pc.ports import AddressDecoder
from lguest_nb.today import RegisterBus, Space, nothing_there

THE_90S_END = 946_684_799_000_000_000


class Pc:
    "The board, with the chips of a software Host before it."

    def __init__(self) -> None:
        self.now = 0
        self.endings: list[Ending] = []
        self.pic = PicPair()
        self.pit = Pit(lambda: self.pic.raise_line(0), self.clock)
        self.platform = Platform(256 << 20, self.pic.raise_line, self.endings.append, self.clock, self.day)
        self.bus = AddressDecoder(beyond=self.platform.bus)
        for first, last in PicPair.PORTS:
            self.bus.claim_bytes(first, last, self.pic)
        for first, last in Pit.PORTS:
            self.bus.claim_bytes(first, last, self.pit)

    def clock(self) -> int:
        self.now += 1000
        return self.now

    def day(self) -> int:
        return THE_90S_END + self.now

    def out(self, port: int, *values: int) -> None:
        for value in values:
            self.bus.write("port", port, 1, value)

    def get(self, port: int) -> int:
        return self.bus.read("port", port, 1)


@pytest.fixture
def pc() -> Iterator[Pc]:
    yield Pc()


def test_every_part_is_where_a_kernel_looks_for_it(pc: Pc) -> None:
    for port in (0x2F8, 0x3E8, 0x2E8, 0x1F0, 0x170, 0x92, 0x80, 0x379, 0x3C0):
        assert pc.get(port) == 0xFF, f"{port:#x} should be nobody"
    found = {port for port in range(0x10000) if pc.get(port) != 0xFF}
    assert found >= {0x20, 0x40, 0x61, 0x64, 0x71, 0x3F9, 0x3FD, 0x4D0, 0x600, 0x604, 0x608}
    assert not pc.endings


def test_the_registers_which_acpi_names_are_there(pc: Pc) -> None:
    tables = acpi_tables([MmioSlot(0xD000_0000, 0x1000, 5)])
    fadt = next(table for table in tables.values() if table[:4] == b"FACP")
    event, control, timer = (int.from_bytes(fadt[at : at + 4], "little") for at in (56, 64, 76))
    assert pc.bus.read("port", event, 2) == 0
    assert pc.bus.read("port", control, 2) & 1
    assert pc.bus.read("port", timer, 4) < 1 << 24
    reset, value = int.from_bytes(fadt[120:128], "little"), fadt[128]
    pc.out(reset, value)
    assert pc.endings == [Ending("restart")]


def test_the_serial_ports_interrupt_arrives_as_line_4(pc: Pc) -> None:
    pc.out(0x20, 0x11)
    pc.out(0x21, 0x30, 4, 1, 0xEF)
    pc.out(0x3F9, 1)
    assert not pc.pic.pending()
    pc.platform.uart.receive(b"a")
    assert pc.pic.acknowledge() == 0x34


def test_the_timer_arrives_as_line_0(pc: Pc) -> None:
    pc.out(0x20, 0x11)
    pc.out(0x21, 0x30, 4, 1, 0xFE)
    pc.out(0x43, 0x38)
    pc.out(0x40, 0xFF, 0x01)
    deadline = pc.pit.deadline()
    assert deadline is not None
    pc.pit.due(deadline - 1)
    assert not pc.pic.pending()
    pc.pit.due(deadline)
    assert pc.pic.acknowledge() == 0x30


def test_the_gate_beside_the_keyboard_controller_is_the_hosts(pc: Pc) -> None:
    "Ports 0x60, 0x61 and 0x64 belong to three parts on two decoders."
    pc.out(0x61, 1)
    assert pc.bus.read("port", 0x60, 4) & 0xFFFF_01FF == 0xFFFF_0100
    assert pc.get(0x64) & 3 == 1


def test_the_two_clocks_are_the_callers(pc: Pc) -> None:
    pc.out(0x70, 9)
    assert pc.get(0x71) == 0x99
    pc.now += 2_000_000_000
    assert pc.get(0x71) == 0x00


def test_a_device_is_claimed_in_memory_and_reached_through_both(pc: Pc) -> None:
    class Slot:
        def read(self, space: Space, address: int, size: int) -> int:
            return address & 0xFFF

        def write(self, space: Space, address: int, size: int, value: int) -> None:
            pass

    slot: RegisterBus = Slot()
    pc.platform.bus.claim("memory", 0xD000_1000, 0xD000_1FFF, slot)
    assert pc.bus.read("memory", 0xD000_1070, 4) == 0x70
    assert pc.bus.read("memory", 0xD000_2000, 4) == nothing_there(4)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["port", "memory"]),
            st.one_of(
                st.integers(0, 0xFFFF),
                st.sampled_from([0x20, 0xA1, 0x40, 0x43, 0x61, 0x64, 0x70, 0x3F8, 0x3FB, 0x4D0, 0x604, 0x608, 0xCF8]),
                st.integers(0, 1 << 53),
            ),
            st.sampled_from([1, 2, 4, 8]),
            st.integers(0, (1 << 64) - 1),
        ),
        max_size=50,
    )
)
def test_no_sequence_of_reads_and_writes_raises(steps: list[tuple[Space, int, int, int]]) -> None:
    pc = Pc()
    for space, address, size, value in steps:
        pc.bus.write(space, address, size, value & nothing_there(size))
        assert 0 <= pc.bus.read(space, address, size) <= nothing_there(size)
        pc.pit.due(pc.now)
        if pc.pic.pending():
            assert 0 <= pc.pic.acknowledge() <= 255
    assert len(pc.endings) <= 1
