"""A capture holds every packet of every card, whole and in order, as any reader of pcap files expects it."""

import logging
import os
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from fakes import ScriptedHost
from support import SCRIPTED, forge_elf

from lguest_nb import guest
from lguest_nb.driver import Driver
from lguest_nb.launcher import Launcher
from lguest_nb.memory import GuestMemory
from lguest_nb.net import MOST, VNET_HEADER, Net
from lguest_nb.pcap import SNAPLEN, Pcap
from lguest_nb.rng import Rng
from lguest_nb.session import Instruments
from lguest_nb.vring import Virtqueue, ring_at

pytestmark = pytest.mark.usefixtures("nothing_left")
HEADER = bytes(range(1, VNET_HEADER + 1))
FRAME = bytes.fromhex("020000000002 020000000001 88b5") + b"Knock, knock."


@dataclass
class Packet:
    "What a reader finds in a capture."

    time: int  # nanoseconds
    frame: bytes
    length: int  # of the packet when it went by


def read_pcap(path: Path) -> list[Packet]:
    "Every packet, read by man 5 pcap-savefile and nothing else."
    data = path.read_bytes()
    fractions = {b"\xd4\xc3\xb2\xa1": 1000, b"\x4d\x3c\xb2\xa1": 1}[data[:4]]  # little endian
    major, minor, zone, accuracy, snaplen, link = struct.unpack("<HHiIII", data[4:24])
    assert (major, minor, zone, accuracy, link) == (2, 4, 0, 0, 1)
    at, packets = 24, []
    while at < len(data):
        seconds, fraction, kept, length = struct.unpack("<IIII", data[at : at + 16])
        assert kept <= snaplen and kept <= length and fraction * fractions < 10**9
        frame = data[at + 16 : at + 16 + kept]
        assert len(frame) == kept, "the last packet is cut short"
        packets.append(Packet(seconds * 10**9 + fraction * fractions, frame, length))
        at += 16 + kept
    return packets


class Lab:
    "A card on a pair of sockets, with a driver for each queue."

    def __init__(self) -> None:
        self.wire, tap = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.memory, self.card, self.drivers = GuestMemory(2 << 20), Net(tap.detach()), []
        for i in range(2):
            vq = Virtqueue(self.memory, 8, f"net:{i}")
            vq.place(ring_at(self.memory.take_pages(2), 8))
            self.card.queues.append(vq)
            self.drivers.append(Driver(vq, 0x10000 + 0x80000 * i, 0x70000))

    def send(self, *out: bytes) -> None:
        self.drivers[1].add(out=out)
        self.card.net_output(self.drivers[1].vq)
        self.drivers[1].used()

    def receive(self, packet: bytes, *into: int) -> None:
        self.drivers[0].add(into=into)
        self.wire.send(packet)
        self.card.net_input(self.drivers[0].vq)
        self.drivers[0].used()

    def close(self) -> None:
        self.card.close()
        self.wire.close()
        for vq in self.card.queues:
            vq.wakeup.close()
        self.memory.close()


@pytest.fixture
def lab() -> Iterator[Lab]:
    lab = Lab()
    yield lab
    lab.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "wire.pcap"


@pytest.fixture
def pcap(path: Path, lab: Lab) -> Iterator[Pcap]:
    pcap = Pcap(str(path))
    pcap.watch(lab.card)
    yield pcap
    pcap.close()


def test_both_directions_without_the_virtio_header(lab: Lab, pcap: Pcap, path: Path) -> None:
    lab.send(HEADER, FRAME)
    lab.receive(HEADER + FRAME[::-1], 1514)
    assert [packet.frame for packet in read_pcap(path)] == [FRAME, FRAME[::-1]]


def test_however_the_guest_cuts_its_buffers(lab: Lab, pcap: Pcap, path: Path) -> None:
    packet = HEADER + FRAME
    lab.send(packet)
    lab.send(packet[:3], packet[3:12], packet[12:])
    lab.receive(packet, 4, 9, 1, 1000)
    lab.receive(packet, len(packet))
    assert [packet.frame for packet in read_pcap(path)] == [FRAME] * 4


def test_times_are_the_walls(lab: Lab, pcap: Pcap, path: Path) -> None:
    before = time.time_ns()
    lab.send(HEADER, FRAME)
    lab.receive(HEADER + FRAME, 1514)
    first, second = (packet.time for packet in read_pcap(path))
    assert before <= first <= second <= time.time_ns()


def test_the_largest_packet_is_kept_whole(lab: Lab, pcap: Pcap, path: Path) -> None:
    frame = os.urandom(MOST - VNET_HEADER)
    lab.send(HEADER, frame)
    (packet,) = read_pcap(path)
    assert (packet.frame, packet.length) == (frame, len(frame))


def test_longer_than_any_reader_expects_is_cut(pcap: Pcap, path: Path) -> None:
    pcap.packet(bytes(SNAPLEN + 5), False)
    (packet,) = read_pcap(path)
    assert (len(packet.frame), packet.length) == (SNAPLEN, SNAPLEN + 5)


def test_what_was_not_sent_or_did_not_fit_is_not_there(lab: Lab, pcap: Pcap, path: Path) -> None:
    lab.send(bytes(MOST), b"one too many")
    lab.receive(HEADER + FRAME, len(HEADER + FRAME) - 1)
    assert read_pcap(path) == []


def test_a_packet_which_the_tap_refuses_is_there_as_the_guest_sent_it(lab: Lab, pcap: Pcap, path: Path) -> None:
    lab.wire.close()
    lab.send(HEADER, FRAME)
    assert [packet.frame for packet in read_pcap(path)] == [FRAME]


def test_a_question_is_there_before_its_answer(lab: Lab, pcap: Pcap, path: Path, monkeypatch) -> None:
    writev = os.writev
    seen = []
    monkeypatch.setattr(os, "writev", lambda *a: (seen.append(len(read_pcap(path))), writev(*a))[1])
    lab.send(HEADER, FRAME)
    assert seen == [1]


def test_a_guest_with_huge_buffers_costs_us_only_the_packet(lab: Lab, pcap: Pcap, path: Path) -> None:
    import tracemalloc

    vq, driver = lab.drivers[0].vq, lab.drivers[0]
    driver.add(into=[1 << 18] + [1] * 2)
    lab.wire.send(HEADER + FRAME)
    tracemalloc.start()
    lab.card.net_input(vq)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 17
    assert [packet.frame for packet in read_pcap(path)] == [FRAME]


def test_without_it_a_card_copies_nothing(lab: Lab) -> None:
    assert lab.card.tapped is None


def test_each_packet_is_one_write_and_none_comes_after_the_end(pcap: Pcap, path: Path) -> None:
    pcap.packet(FRAME, True)
    size = path.stat().st_size
    assert size == 24 + 16 + len(FRAME)
    pcap.close()
    pcap.packet(FRAME, True)
    pcap.close()
    assert path.stat().st_size == size


def test_many_threads_write_whole_packets_in_order_of_time(pcap: Pcap, path: Path) -> None:
    frames = [bytes([i]) * (100 + i) for i in range(8)]
    start = threading.Barrier(8)

    def work(frame: bytes) -> None:
        start.wait()
        for _ in range(100):
            pcap.packet(frame, True)

    threads = [threading.Thread(target=work, args=(frame,)) for frame in frames]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    packets = read_pcap(path)
    assert sorted(packet.frame for packet in packets) == sorted(frames * 100)
    assert [p.time for p in packets] == sorted(p.time for p in packets)


def test_a_full_disk_is_one_warning_and_the_network_goes_on(lab: Lab, caplog) -> None:
    with caplog.at_level(logging.WARNING, "lguest_nb"):
        pcap = Pcap("/dev/full")
        pcap.watch(lab.card)
        lab.send(HEADER, FRAME)
        pcap.close()
    assert lab.wire.recv(2000) == HEADER + FRAME
    assert [record.getMessage() for record in caplog.records] == [
        "Failed to write to /dev/full: No space left on device; it ends here."
    ]


def test_every_card_and_nothing_else_is_watched(path: Path) -> None:
    with Instruments(None, str(path)) as instruments, Launcher(2, ScriptedHost()) as launcher:
        cards = [Net(os.open("/dev/null", os.O_RDWR)) for _ in range(2)]
        for device in (cards[0], Rng(), cards[1]):
            launcher.add(device)
        instruments.attach(launcher)
        for card in cards:
            assert card.tapped is not None
            card.tapped(FRAME, True)
    assert len(read_pcap(path)) == 2


def test_a_real_guests_ping_is_in_it(path: Path) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    held = [os.dup(end.fileno()) for end in (ours, theirs)]  # a card which is closed first leaves the wire up
    pcap, card = Pcap(str(path)), Net(ours.detach(), b"\2guest")
    pcap.watch(card)
    other = [Net(theirs.detach(), b"\2other")]
    partner = threading.Thread(target=lambda: guest.boot("sleep 3000", devices=other, ip="10.0.0.2"))
    partner.start()
    said, _ = guest.boot("sleep 500", "ping 10.0.0.2 2", devices=[card], ip="10.0.0.1")
    partner.join()
    pcap.close()
    for fd in held:
        os.close(fd)
    assert "2 sent, 2 received" in said
    kinds = [(p.frame[12:14].hex(), p.frame[6:12]) for p in read_pcap(path)]
    assert [kind for kind in kinds if kind[0] == "0806"][:2] == [("0806", b"\2guest"), ("0806", b"\2other")]
    assert [kind for kind in kinds if kind[0] == "0800"] == [("0800", b"\2guest"), ("0800", b"\2other")] * 2


def test_the_option_makes_the_file(tmp_path: Path, path: Path) -> None:
    kernel = tmp_path / "vmlinux"
    kernel.write_bytes(forge_elf())
    options = [f"--pcap={path}", "--tunnet=10.0.0.1", "2", str(kernel)]
    environment = os.environ | {"SCENE": "power-off"}
    done = subprocess.run([*SCRIPTED, *options], stdin=subprocess.DEVNULL, env=environment, timeout=60)
    assert done.returncode == 0
    assert read_pcap(path) == []
