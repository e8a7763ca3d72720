"""The decoder: each access goes to the part which claimed its address, and nobody's addresses read as nothing there."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lguest_nb.memory import LguestError
from lguest_nb.pc.ports import AddressDecoder
from lguest_nb.today import RegisterBus, Space, nothing_there


class Chip:
    "Remembers the byte which was written to each port."

    def __init__(self) -> None:
        self.bytes: dict[int, int] = {}

    def read_port(self, port: int) -> int:
        return self.bytes.get(port, 0)

    def write_port(self, port: int, value: int) -> None:
        self.bytes[port] = value


class Wide:
    "Writes down what it is told, and gives more bits than anybody asked for."

    def __init__(self) -> None:
        self.heard: list[tuple[object, ...]] = []

    def read(self, space: Space, address: int, size: int) -> int:
        self.heard.append(("read", space, address, size))
        return (1 << 80) - 2

    def write(self, space: Space, address: int, size: int, value: int) -> None:
        self.heard.append(("write", space, address, size, value))


@pytest.fixture
def chip() -> Chip:
    return Chip()


@pytest.fixture
def wide() -> Wide:
    return Wide()


@pytest.fixture
def decoder(chip: Chip, wide: Wide) -> AddressDecoder:
    decoder = AddressDecoder()
    decoder.claim_bytes(0x70, 0x71, chip)
    decoder.claim_bytes(0x72, 0x73, chip)
    decoder.claim("port", 0x608, 0x60B, wide)
    decoder.claim("memory", 0xD000_0000, 0xD000_0FFF, wide)
    return decoder


def test_a_decoder_is_what_a_host_calls(decoder: AddressDecoder) -> None:
    bus: RegisterBus = decoder
    assert bus.read("memory", 0, 8) == nothing_there(8)


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_what_nobody_claims_reads_as_nothing_there_and_swallows_writes(decoder: AddressDecoder, size: int) -> None:
    for space, address in (("memory", 0x70), ("port", 0x100), ("port", 0xFFFF), ("memory", 1 << 52)):
        decoder.write(space, address, size, 0)  # type: ignore[arg-type]
        assert decoder.read(space, address, size) == nothing_there(size)  # type: ignore[arg-type]


def test_a_wide_access_to_a_byte_chip_is_cut_lowest_byte_first(decoder: AddressDecoder, chip: Chip) -> None:
    decoder.write("port", 0x70, 4, 0x44332211)
    assert chip.bytes == {0x70: 0x11, 0x71: 0x22, 0x72: 0x33, 0x73: 0x44}
    assert decoder.read("port", 0x71, 2) == 0x3322


def test_of_an_access_over_the_edge_each_byte_goes_where_it_belongs(
    decoder: AddressDecoder, chip: Chip, wide: Wide
) -> None:
    decoder.write("port", 0x72, 4, 0x44332211)
    assert chip.bytes == {0x72: 0x11, 0x73: 0x22}
    assert decoder.read("port", 0x72, 4) == 0xFFFF2211
    decoder.read("port", 0x60A, 4)
    assert wide.heard == [("read", "port", 0x60A, 1), ("read", "port", 0x60B, 1)]


def test_a_wide_part_gets_its_access_in_one_piece(decoder: AddressDecoder, wide: Wide) -> None:
    assert decoder.read("port", 0x608, 4) == 0xFFFF_FFFE
    decoder.write("memory", 0xD000_0FFC, 4, 7)
    assert wide.heard == [("read", "port", 0x608, 4), ("write", "memory", 0xD000_0FFC, 4, 7)]


@pytest.mark.parametrize("first, last", [(0x71, 0x71), (0x60, 0x70), (0x60, 0x80), (0x73, 0x99)])
def test_two_parts_at_one_port_are_refused_in_a_sentence(
    decoder: AddressDecoder, chip: Chip, first: int, last: int
) -> None:
    with pytest.raises(LguestError, match=f"claim port {first:#x} to {last:#x}: 0x7. to 0x7. is taken"):
        decoder.claim_bytes(first, last, chip)


@pytest.mark.parametrize("first, last", [(2, 1), (-1, 5), (0xFFFF, 0x10000)])
def test_a_range_which_is_none_is_refused_in_a_sentence(
    decoder: AddressDecoder, chip: Chip, first: int, last: int
) -> None:
    with pytest.raises(LguestError, match="is no range; ports end at 0xffff"):
        decoder.claim_bytes(first, last, chip)


@given(st.sampled_from(["memory", "port"]), st.integers(0, 1 << 53), st.sampled_from([1, 2, 4, 8]), st.data())
def test_no_access_raises_and_no_answer_is_too_wide(space: Space, address: int, size: int, data: st.DataObject) -> None:
    decoder, wide = AddressDecoder(), Wide()
    near = address + data.draw(st.integers(-8, 8))
    if 0 <= near < 0xFFFF:
        decoder.claim(space, near, near + 1, wide)
    decoder.write(space, address, size, data.draw(st.integers(0, nothing_there(size))))
    assert 0 <= decoder.read(space, address, size) <= nothing_there(size)


def test_what_nobody_claimed_goes_on_whole_to_the_decoder_beyond(chip: Chip, wide: Wide) -> None:
    "A Host's own chips sit before the board; an access which touches one of them is cut, all others stay in one piece."
    board = AddressDecoder()
    board.claim("port", 0x600, 0x60B, wide)
    board.claim_bytes(0x60, 0x60, chip)
    host = AddressDecoder(beyond=board)
    own = Chip()
    host.claim_bytes(0x61, 0x61, own)
    assert host.read("port", 0x608, 4) == 0xFFFF_FFFE
    host.write("port", 0x60, 4, 0x44332211)
    assert (chip.bytes, own.bytes) == ({0x60: 0x11}, {0x61: 0x22})
    assert host.read("port", 0x60, 4) == 0xFFFF2211
    assert host.read("memory", 0x60, 8) == nothing_there(8)
    assert wide.heard == [("read", "port", 0x608, 4)]
