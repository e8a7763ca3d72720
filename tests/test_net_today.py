"""What drivers of today ask of a network card. No rights needed; for a real tap see tests/test_net_tap.py."""

import errno
import fcntl
import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_net import MAC, Lab, failing, laboratory

from lguest_nb import net_today
from lguest_nb.device import F_VERSION_1, RING_BITS
from lguest_nb.memory import GuestError
from lguest_nb.net import F_MAC, FEATURES, LAZINESS, VNET_HEADER
from lguest_nb.net_today import (
    F_GUEST_CSUM,
    F_GUEST_ECN,
    F_GUEST_TSO4,
    F_GUEST_TSO6,
    F_MRG_RXBUF,
    F_STATUS,
    MODERN_HEADER,
    NUM_BUFFERS,
    TUNSETOFFLOAD,
    TUNSETVNETHDRSZ,
    offload_of,
    put,
    tell_tap,
)
from lguest_nb.vring import Stopped

TODAY = F_VERSION_1 | F_MRG_RXBUF
RUBBISH = 0xEE  # in each of the Guest's buffers
HEADER = bytes(range(1, 11))  # which goes through unchanged
FRAME = bytes(range(256)) * 300


def begin(lab: Lab, accepted: int) -> None:
    "As a Bus does it when the driver is ready."
    lab.card.accepted = accepted
    lab.card.started()


@pytest.fixture
def today() -> Iterator[Lab]:
    "With a driver which took VERSION_1 and MRG_RXBUF."
    with laboratory() as lab:
        begin(lab, TODAY)
        yield lab


def post(lab: Lab, *into: int) -> None:
    head = lab.rx.add(into=into)
    for address, length in lab.rx.requests[head].answer:
        lab.memory.write(address, bytes([RUBBISH]) * length)


def arrive(lab: Lab, length: int, header: int = MODERN_HEADER) -> list[tuple[int, bytes]]:
    "A frame of that length is on the wire, and received: used lengths and data."
    lab.wire.send(HEADER.ljust(header, b"\0") + FRAME[:length])
    lab.card.net_input(lab.rx.vq)
    return [(used.length, used.data) for used in lab.rx.used()]


# Interrupts


@pytest.mark.parametrize(
    ("event", "at_once"), [(0, True), (0xFFFF, False), (1, False)], ids=["asleep", "awake", "later"]
)
def test_a_driver_which_sleeps_until_this_packet_hears_of_it_before_we_look_for_the_next_one(
    today: Lab, event: int, at_once: bool
) -> None:
    vq = today.rx.vq
    vq.event_idx, vq.notify_on_empty = True, False
    vq.memory.u16[vq.used_event] = event
    heard: list[int] = []
    vq.interrupt = lambda: heard.append(vq.used_idx)
    for _ in range(2):
        post(today, 2000)
        today.wire.send(HEADER.ljust(MODERN_HEADER, b"\0") + FRAME[:100])
    today.card.net_input(vq)
    assert heard == ([1] if at_once else [])
    today.card.net_input(vq)
    assert heard == {0: [1], 1: [2]}.get(event, [])


# The two offers


@pytest.mark.parametrize("mac", [None, MAC])
def test_2009_is_offered_what_it_was_and_today_two_more(mac: bytes | None) -> None:
    with laboratory(mac) as lab:
        bit = F_MAC if mac else 0
        assert lab.card.features == FEATURES | bit
        assert lab.card.modern_features == LAZINESS | F_STATUS | F_MRG_RXBUF | bit
        assert not lab.card.modern_features & RING_BITS
        assert lab.card.config == (mac or bytes(6)) + b"\0\0"
        assert lab.card.modern_config == (mac or bytes(6)) + b"\1\0"


# The header


@pytest.mark.parametrize("accepted, header", [(0, 10), (F_VERSION_1, 12), (F_MRG_RXBUF, 12), (TODAY, 12)])
def test_how_long_a_header_is_depends_on_what_was_accepted(accepted: int, header: int) -> None:
    with laboratory() as lab:
        begin(lab, accepted)
        assert lab.card.header == header
        post(lab, 1536)
        ((length, data),) = arrive(lab, 60, header)
        assert (length, data[:10], data[header:]) == (header + 60, HEADER, FRAME[:60])
        assert data[10:header] == (b"\1\0" if header == 12 else b"")


@pytest.mark.parametrize("into", [(12, 1514), (10, 1516), (11, 1, 60), (3, 4, 3, 1, 1, 60)])
def test_the_number_of_buffers_is_written_wherever_the_header_is_cut(today: Lab, into: tuple[int, ...]) -> None:
    post(today, *into)
    ((length, data),) = arrive(today, 60)
    assert (length, data) == (72, HEADER + b"\1\0" + FRAME[:60])


@given(st.lists(st.integers(0, 5), max_size=8), st.integers(0, 12), st.binary(max_size=4))
def test_put_writes_what_fits_and_nothing_else(lengths: list[int], at: int, data: bytes) -> None:
    buffers = [bytearray(b"." * length) for length in lengths]
    whole = bytearray(b"." * sum(lengths))
    expected = bytes(whole[:at]) + data + bytes(whole[at + len(data) :])
    put([memoryview(buffer) for buffer in buffers], at, data)
    assert b"".join(buffers) == (expected[: len(whole)] if at < len(whole) else whole)


def test_what_is_sent_is_sent_with_its_header(today: Lab) -> None:
    assert today.send(bytes(12), FRAME[:60]) == 0
    assert today.wire.recv(2000) == bytes(12) + FRAME[:60]


def test_the_largest_packet_is_two_bytes_larger(today: Lab, caplog: pytest.LogCaptureFixture) -> None:
    assert today.send(bytes(12), bytes(65550)) == 0
    assert len(today.wire.recv(1 << 17)) == 65562
    assert today.send(bytes(12), bytes(65551)) == 0
    assert caplog.messages == ["net:1: a packet of more than 65562 bytes was not sent"]


def test_who_listens_gets_frames_without_the_longer_header(today: Lab) -> None:
    heard: list[tuple[bytes, bool]] = []
    today.card.tapped = lambda frame, outgoing: heard.append((frame, outgoing))
    today.send(bytes(12), FRAME[:60])
    for _ in range(3):
        post(today, 1536)
    arrive(today, 3000)
    assert heard == [(FRAME[:60], True), (FRAME[:3000], False)]


# Several buffers


@pytest.mark.parametrize("length", [60, 1524, 1525, 3060, 3061, 9000, 65550])
def test_a_packet_fills_as_many_buffers_as_it_needs(today: Lab, length: int) -> None:
    for _ in range(50):
        post(today, 1536)
    done = arrive(today, length)
    count = -(-(length + 12) // 1536)
    assert [n for n, _ in done] == [1536] * (count - 1) + [length + 12 - 1536 * (count - 1)]
    assert b"".join(data for _, data in done) == HEADER + NUM_BUFFERS.pack(count) + FRAME[:length]


def test_buffers_of_many_pieces_are_filled_in_order(today: Lab) -> None:
    for _ in range(9):
        post(today, 100, 7, 1, 300)
    done = arrive(today, 2000)
    assert b"".join(data for _, data in done)[12:] == FRAME[:2000]
    assert today.rx.vq.memory.u16[today.rx.vq.avail + 1] - today.rx.vq.last_avail == 9 - len(done)


def test_the_guest_sees_all_buffers_of_a_packet_or_none(today: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    vq = today.rx.vq
    hold, add = vq.hold_used, vq.add_used
    look = lambda: seen.append(today.memory.u16[vq.used + 1])  # noqa: E731
    monkeypatch.setattr(vq, "hold_used", lambda *a: (hold(*a), look()))
    monkeypatch.setattr(vq, "add_used", lambda *a: (add(*a), look()))
    for _ in range(3):
        post(today, 1536)
    arrive(today, 4000)
    assert seen == [0, 0, 3]


def test_one_interrupt_is_for_a_whole_packet(today: Lab) -> None:
    for _ in range(3):
        post(today, 1536)
    arrive(today, 4000)
    today.rx.vq.trigger()
    assert today.rx.interrupts.acquire(blocking=False)
    assert not today.rx.interrupts.acquire(blocking=False)


def test_a_small_packet_is_read_without_a_copy_and_takes_one_buffer(
    today: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    readv = today.card.reader.readv
    monkeypatch.setattr(today.card.reader, "readv", lambda views: calls.append(views) or readv(views))
    for _ in range(5):
        post(today, 1536)
    arrive(today, 60)
    ((first, spare),) = calls
    assert first.obj is today.memory.map
    assert spare is today.card.spare
    assert today.rx.vq.last_avail == 1
    calls.clear()
    del first, spare


def test_a_packet_waits_for_buffers_which_the_guest_has_yet_to_post(today: Lab) -> None:
    post(today, 1536)
    thread = today.serving(today.rx)
    today.wire.send(bytes(12) + FRAME[:3000])
    assert today.rx.used() == []
    post(today, 1536)
    today.rx.kick()
    done = today.rx.wait_used(2)
    assert b"".join(used.data for used in done)[12:] == FRAME[:3000]
    today.rx.vq.wakeup.stop()
    thread.join()


def test_a_stop_wakes_a_thread_which_waits_for_more_buffers(today: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(today.rx.vq.wakeup, "sleep", today.rx.vq.wakeup.check)
    post(today, 1536)
    take, taken = today.rx.vq.take, []
    monkeypatch.setattr(today.rx.vq, "take", lambda: taken.append(1) or take())
    today.wire.send(bytes(12) + FRAME[:3000])
    monkeypatch.setattr(today.rx.vq, "fence", lambda: today.rx.vq.wakeup.stop() if taken else None)
    with pytest.raises(Stopped):
        today.card.net_input(today.rx.vq)
    assert today.rx.used() == []


def test_a_packet_for_which_the_whole_ring_is_too_small_is_lost_alone(
    today: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(256):
        post(today, 20)
    done = arrive(today, 6000)
    assert [n for n, _ in done] == [0] * 256
    assert caplog.messages == ["net:0: a packet did not fit into the Guest's 5120 bytes and is lost"]
    post(today, 1536)
    assert arrive(today, 60)[0][0] == 72


@pytest.mark.parametrize("room", [0, 1, 10, 11])
def test_a_buffer_without_room_for_the_header_costs_that_packet(today: Lab, room: int) -> None:
    post(today, room)
    assert [n for n, _ in arrive(today, 60)] == [0]
    post(today, 1536)
    assert arrive(today, 60)[0][0] == 72


def test_a_packet_larger_than_any_can_be_is_lost(today: Lab) -> None:
    for _ in range(100):
        post(today, 1536)
    assert [n for n, _ in arrive(today, 68000)] == [0]
    assert arrive(today, 60)[0][0] == 72


def test_a_readable_buffer_among_several_is_the_guests_fault(today: Lab) -> None:
    post(today, 1536)
    today.rx.add(out=[b"?"])
    today.wire.send(bytes(12) + FRAME[:3000])
    with pytest.raises(GuestError, match=r"net:0: Output buffers in net input queue\?"):
        today.card.net_input(today.rx.vq)


def test_without_mrg_rxbuf_a_packet_has_one_buffer_or_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    with laboratory() as lab:
        begin(lab, F_VERSION_1)
        for _ in range(3):
            post(lab, 1536)
        assert [n for n, _ in arrive(lab, 3000)] == [0]
        assert caplog.messages == ["net:0: a packet did not fit into the Guest's 1536 bytes and is lost"]


# What the tap is told


@pytest.mark.parametrize(
    ("accepted", "offload"),
    [
        (0, 0),
        (F_GUEST_CSUM, 1),
        (F_GUEST_CSUM | F_GUEST_TSO4, 3),
        (F_GUEST_CSUM | F_GUEST_TSO6, 5),
        (F_GUEST_CSUM | F_GUEST_TSO4 | F_GUEST_TSO6 | F_GUEST_ECN, 15),
        (F_GUEST_CSUM | F_GUEST_ECN, 1),
        (F_GUEST_TSO4 | F_GUEST_TSO6 | F_GUEST_ECN, 0),
        (LAZINESS, 15),
    ],
)
def test_a_tap_leaves_to_the_guest_what_it_took(accepted: int, offload: int) -> None:
    assert offload_of(accepted) == offload


def test_the_tap_is_told_at_each_start(today: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, object]] = []
    monkeypatch.setattr(fcntl, "ioctl", lambda fd, request, argument: told.append((request, argument)))
    begin(today, TODAY | F_GUEST_CSUM)
    begin(today, 0)
    assert told == [
        (TUNSETVNETHDRSZ, b"\x0c\0\0\0"),
        (TUNSETOFFLOAD, 1),
        (TUNSETVNETHDRSZ, b"\x0a\0\0\0"),
        (TUNSETOFFLOAD, 0),
    ]


def test_a_socket_which_plays_a_tap_has_nothing_to_be_told(caplog: pytest.LogCaptureFixture) -> None:
    with laboratory() as lab:
        tell_tap(lab.card.tap, 12, 15)
    with open(os.devnull) as null:
        tell_tap(null.fileno(), 12, 15)
    assert caplog.messages == []


def test_a_tap_which_does_not_want_to_is_a_line_in_the_log(
    today: Lab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(net_today.fcntl, "ioctl", failing(errno.EINVAL))
    begin(today, TODAY)
    assert caplog.messages == ["The tap does not take headers of 12 bytes, or offload 0x0: Invalid argument"]
    assert VNET_HEADER < today.card.header == MODERN_HEADER
