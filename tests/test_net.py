"""The network card: what it promises, how packets go through it, how it asks for a tap. No rights needed."""

import errno
import fcntl
import os
import select
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from support import serving

from lguest_nb import net
from lguest_nb.device import VIRTIO_ID_NET
from lguest_nb.driver import Driver
from lguest_nb.memory import GuestError, GuestMemory, LguestError
from lguest_nb.net import MOST, VNET_HEADER, Net, TunnetArgument, open_tap, parse_tunnet, setup_tun_net
from lguest_nb.vring import Virtqueue, ring_at

MAC = bytes.fromhex("020000000001")
HEADER = bytes(VNET_HEADER)
PACKET = HEADER + bytes(range(60))
OPEN = os.open
SOCKET = socket.socket  # the real one, while another stands in for it


@dataclass
class Lab:
    "A card whose tap is one end of a pair of sockets, and a driver for each queue."

    card: Net
    wire: socket.socket
    memory: GuestMemory
    drivers: list[Driver] = field(default_factory=list)

    @property
    def rx(self) -> Driver:
        return self.drivers[0]

    @property
    def tx(self) -> Driver:
        return self.drivers[1]

    def send(self, *out: bytes) -> int:  # used length
        self.tx.add(out=out)
        self.card.net_output(self.tx.vq)
        (used,) = self.tx.used()
        return used.length

    def receive(self, *into: int) -> tuple[int, bytes]:
        "Used length, and what the Guest's driver takes it for."
        self.rx.add(into=into)
        self.card.net_input(self.rx.vq)
        (used,) = self.rx.used()
        return used.length, used.data

    def serving(self, driver: Driver) -> threading.Thread:
        "A thread which serves a queue until it is stopped."
        return serving(driver.vq, self.card.services[self.drivers.index(driver)])


@contextmanager
def laboratory(mac: bytes | None = None) -> Iterator[Lab]:
    "With a card which has just been made."
    wire, tap = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    wire.settimeout(10)
    it = Lab(Net(tap.detach(), mac), wire, GuestMemory(1 << 20))
    for i in range(2):
        vq = Virtqueue(it.memory, 256, f"net:{i}")
        vq.place(ring_at(it.memory.take_pages(3), 256))
        it.drivers.append(Driver(vq, 0x10000 + 0x70000 * i, 0x70000))
    yield it
    it.card.close()
    wire.close()
    for driver in it.drivers:
        driver.vq.wakeup.close()
    it.memory.close()


@pytest.fixture
def lab() -> Iterator[Lab]:
    with laboratory() as lab:
        yield lab


def failing(number: int) -> Callable[..., int]:
    "A system call which fails."

    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    return fail


# What the Guest is told


@pytest.mark.parametrize("mac, features", [(None, "83 3b 00 11"), (MAC, "a3 3b 00 11")])
def test_features_are_those_of_2009_byte_for_byte(mac: bytes | None, features: str) -> None:
    with closing(Net(os.open(os.devnull, os.O_RDWR), mac)) as card:
        assert card.features.to_bytes(4, "little").hex(" ") == features


@pytest.mark.parametrize("mac, config", [(None, bytes(8)), (MAC, MAC + b"\0\0")])
def test_config_is_the_mac_and_a_status_of_zero(mac: bytes | None, config: bytes) -> None:
    with closing(Net(os.open(os.devnull, os.O_RDWR), mac)) as card:
        assert card.config == config


def test_a_mac_of_another_length_is_refused() -> None:
    with pytest.raises(LguestError, match="six bytes, not the 5 of 02:00:00:00:00"):
        Net(-1, MAC[:5])


def test_it_is_virtio_device_1_and_queue_0_receives(lab: Lab) -> None:
    assert (lab.card.name, lab.card.virtio_id) == ("net", VIRTIO_ID_NET) == ("net", 1)
    assert lab.card.services == [lab.card.net_input, lab.card.net_output]


def test_the_packet_header_has_ten_bytes() -> None:
    assert VNET_HEADER == 10


def test_closing_twice_closes_once(lab: Lab) -> None:
    lab.card.close()
    lab.card.close()
    assert lab.card.tap == -1


# Sending


def test_all_buffers_of_a_chain_are_one_packet(lab: Lab) -> None:
    assert lab.send(HEADER, PACKET[10:30], PACKET[30:]) == 0
    assert lab.wire.recv(2000) == PACKET


def test_one_writev_sends_a_packet_without_a_copy(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[memoryview]] = []
    writev = os.writev
    monkeypatch.setattr(os, "writev", lambda fd, views: calls.append(views) or writev(fd, views))
    lab.send(HEADER, PACKET[10:])
    ((first, second),) = calls
    assert first.obj is second.obj is lab.memory.map
    calls.clear()
    del first, second


def test_a_writable_buffer_in_the_output_queue_is_the_guests_fault(lab: Lab) -> None:
    lab.tx.add(out=[PACKET], into=[64])
    with pytest.raises(GuestError, match=r"net:1: Input buffers in net output queue\?"):
        lab.card.net_output(lab.tx.vq)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO, errno.EBADFD, errno.ENOBUFS, errno.EAGAIN])
def test_a_packet_the_tap_refuses_is_lost_alone(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(os, "writev", failing(number))
        for _ in range(10):
            assert lab.send(PACKET) == 0
    assert caplog.messages == [f"net:1: Write to tun failed: {os.strerror(number)}; such packets are lost"]
    assert lab.send(PACKET) == 0
    assert lab.wire.recv(2000) == PACKET


def test_a_packet_larger_than_any_can_be_is_dropped(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    assert lab.send(HEADER, bytes(65550)) == 0
    assert len(lab.wire.recv(1 << 17)) == MOST == 65560
    for _ in range(2):
        assert lab.send(HEADER, bytes(65551)) == 0
    assert caplog.messages == ["net:1: a packet of more than 65560 bytes was not sent"]
    lab.wire.setblocking(False)
    with pytest.raises(BlockingIOError):
        lab.wire.recv(1 << 17)


def test_a_burst_of_sent_packets_is_given_back_with_one_interrupt(lab: Lab) -> None:
    for _ in range(5):
        lab.tx.add(out=[PACKET])
        lab.card.net_output(lab.tx.vq)
    assert len(lab.tx.used()) == 5
    assert not lab.tx.interrupts.acquire(blocking=False)
    thread = lab.serving(lab.tx)
    assert lab.tx.interrupts.acquire(timeout=10)
    lab.tx.vq.wakeup.stop()
    thread.join()
    assert not lab.tx.interrupts.acquire(blocking=False)


# Receiving


def preadv2(fd: int, views: list[memoryview], offset: int, flags: int) -> int:
    "What every Linux does with a tap, and Linux 6.4 and later with a socket too."
    assert (offset, flags) == (-1, os.RWF_NOWAIT)
    with socket.socket(fileno=os.dup(fd)) as tap:
        return tap.recvmsg_into(views, 0, socket.MSG_DONTWAIT)[0]


def test_a_packet_fills_the_buffers_in_order_and_its_length_counts_the_header(lab: Lab) -> None:
    lab.wire.send(PACKET)
    assert lab.receive(10, 20, 1500) == (len(PACKET), PACKET)


def test_a_packet_is_read_without_a_copy_and_one_byte_more_than_there_is(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    readv = lab.card.reader.readv
    monkeypatch.setattr(lab.card.reader, "readv", lambda views: calls.append(views) or readv(views))
    monkeypatch.setattr(os, "preadv", lambda fd, views, *how: calls.append(views) or preadv2(fd, views, *how))
    for _ in range(2):
        lab.wire.send(PACKET)
        lab.receive(10, 1514)
    for head, body, spare in calls:
        assert head.obj is body.obj is lab.memory.map
        assert len(spare) == 1
    assert len(calls) == 2
    calls.clear()
    del head, body


def test_a_readable_buffer_in_the_input_queue_is_the_guests_fault(lab: Lab) -> None:
    lab.rx.add(out=[b"?"], into=[1524])
    with pytest.raises(GuestError, match=r"net:0: Output buffers in net input queue\?"):
        lab.card.net_input(lab.rx.vq)


def test_a_packet_which_fits_exactly_is_a_packet(lab: Lab) -> None:
    lab.wire.send(PACKET)
    assert lab.receive(len(PACKET)) == (len(PACKET), PACKET)


@pytest.mark.parametrize("room", [len(PACKET) - 1, 11, 1])
def test_a_packet_which_does_not_fit_is_lost_alone(lab: Lab, caplog: pytest.LogCaptureFixture, room: int) -> None:
    for _ in range(3):
        lab.wire.send(PACKET)
        assert lab.receive(room) == (0, b"")
    assert caplog.messages == [f"net:0: a packet did not fit into the Guest's {room} bytes and is lost"]
    lab.wire.send(PACKET)
    assert lab.receive(1524) == (len(PACKET), PACKET)


def test_a_buffer_of_no_bytes_costs_a_packet_and_comes_back(lab: Lab) -> None:
    lab.wire.send(PACKET)
    assert lab.receive(0) == (0, b"")
    lab.wire.send(PACKET)
    assert lab.receive(1524)[0] == len(PACKET)


def test_a_buffer_too_short_for_the_header_is_given_back(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    "A tap says EINVAL then, and the packet is gone."
    monkeypatch.setattr(lab.card.reader, "readv", failing(errno.EINVAL))
    monkeypatch.setattr(os, "preadv", failing(errno.EINVAL))
    for _ in range(2):
        lab.wire.send(PACKET)
        assert lab.receive(9) == (0, b"")


def test_the_host_hears_of_what_a_lost_packet_left_behind(lab: Lab) -> None:
    announced: list[tuple[int, int]] = []
    lab.rx.vq.wrote = announced.extend
    lab.wire.send(PACKET)
    lab.receive(10, 20)
    assert [length for _, length in announced] == [10, 20]


def test_a_burst_is_interrupted_for_when_the_tap_has_no_more(lab: Lab) -> None:
    interrupts: list[int] = []

    def on_interrupt() -> None:
        interrupts.append(len(lab.rx.used()))
        lab.wire.send(PACKET)  # so that the service function does not wait for ever

    lab.rx.vq.interrupt = on_interrupt
    for _ in range(5):
        lab.rx.add(into=[1524])
    for _ in range(3):
        lab.wire.send(PACKET)
    for expected in ([], [], [], [3], [3, 1]):
        lab.card.net_input(lab.rx.vq)
        assert interrupts == expected


@pytest.mark.parametrize("knows", ["NOWAIT", "only poll"])
def test_in_a_burst_a_packet_is_asked_for_without_waiting(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, knows: str
) -> None:
    calls: list[str] = []
    sleep, readv, poll = lab.card.reader.readv, os.readv, select.poll
    monkeypatch.setattr(lab.card.reader, "readv", lambda *a: calls.append("sleep") or sleep(*a))
    monkeypatch.setattr(os, "preadv", lambda *a: calls.append("preadv") or preadv2(*a))
    monkeypatch.setattr(os, "readv", lambda *a: calls.append("readv") or readv(*a))
    monkeypatch.setattr(select, "poll", lambda: calls.append("poll") or poll())
    if knows == "only poll":
        monkeypatch.setattr(os, "preadv", failing(errno.EOPNOTSUPP))
    for _ in range(3):
        lab.wire.send(PACKET)
        lab.rx.add(into=[1524])
    for _ in range(3):
        lab.card.net_input(lab.rx.vq)
    assert calls == ["sleep", *(["preadv"] if knows == "NOWAIT" else ["poll", "readv"]) * 2]
    assert [used.data for used in lab.rx.used()] == [PACKET] * 3


def test_an_interrupt_is_sent_when_the_guest_has_no_more_buffers(lab: Lab) -> None:
    lab.wire.send(PACKET)
    lab.wire.send(PACKET)
    lab.rx.add(into=[1524])
    thread = lab.serving(lab.rx)
    assert len(lab.rx.wait_used()) == 1
    lab.rx.add(into=[1524])
    lab.rx.kick()
    assert lab.rx.wait_used()[0].length == len(PACKET)
    lab.rx.vq.wakeup.stop()
    thread.join()


def test_without_a_buffer_the_packet_stays_in_the_tap(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    asleep, sleep, reads = threading.Event(), lab.rx.vq.wakeup.sleep, []
    readv = lab.card.reader.readv
    monkeypatch.setattr(lab.card.reader, "readv", lambda *a: reads.append(1) or readv(*a))
    monkeypatch.setattr(os, "preadv", failing(errno.EAGAIN))
    monkeypatch.setattr(lab.rx.vq.wakeup, "sleep", lambda: (asleep.set(), sleep()))
    lab.wire.send(PACKET)
    thread = lab.serving(lab.rx)
    assert asleep.wait(10)
    assert reads == []
    lab.rx.add(into=[1524])
    lab.rx.kick()
    assert lab.rx.wait_used()[0].data == PACKET
    lab.rx.vq.wakeup.stop()
    thread.join()
    assert reads == [1]


def test_a_stop_wakes_a_thread_which_waits_for_a_packet(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting, readv = threading.Event(), lab.card.reader.readv
    monkeypatch.setattr(lab.card.reader, "readv", lambda views: waiting.set() or readv(views))
    lab.rx.add(into=[1524])
    thread = lab.serving(lab.rx)
    assert waiting.wait(10)
    lab.rx.vq.wakeup.stop()
    thread.join(10)
    assert not thread.is_alive()
    assert lab.rx.used() == []


def test_a_tap_which_somebody_made_non_blocking_is_waited_for_all_the_same(lab: Lab) -> None:
    polls: list[int] = []
    wakeup, sleep_on = lab.rx.vq.wakeup, lab.rx.vq.wakeup.sleep_on
    wakeup.sleep_on = lambda fd, events=0: polls.append(fd) or lab.wire.send(PACKET)  # type: ignore[assignment]
    os.set_blocking(lab.card.tap, False)
    assert lab.receive(1524) == (len(PACKET), PACKET)
    assert polls == [lab.card.tap]
    wakeup.sleep_on = sleep_on  # type: ignore[method-assign]
    lab.rx.add(into=[1524])
    thread = lab.serving(lab.rx)
    wakeup.stop()
    thread.join()


def test_a_knock_at_another_door_is_no_packet_and_no_end(lab: Lab) -> None:
    readv, knocks = lab.card.reader.readv, [InterruptedError(), InterruptedError()]

    def interrupted(views: list[memoryview]) -> int:
        if knocks:
            raise knocks.pop()
        lab.wire.send(PACKET)
        return readv(views)

    lab.card.reader.readv = interrupted  # type: ignore[method-assign]
    assert lab.receive(1524) == (len(PACKET), PACKET)
    assert not knocks


@pytest.mark.parametrize("how", ["deleted", "closed"])
def test_a_tap_which_is_gone_is_said_once_and_not_asked_again(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    reads: list[int] = []
    napping, sleep = threading.Event(), lab.rx.vq.wakeup.sleep
    readv = failing(errno.EBADFD) if how == "deleted" else lab.card.reader.readv
    monkeypatch.setattr(lab.card.reader, "readv", lambda *a: reads.append(1) or readv(*a))
    monkeypatch.setattr(lab.rx.vq.wakeup, "sleep", lambda: (napping.set(), sleep()))
    lab.wire.close()
    lab.rx.add(into=[1524])
    thread = lab.serving(lab.rx)
    assert napping.wait(10)
    for _ in range(3):
        os.eventfd_write(lab.rx.vq.wakeup.kicks, 1)
    lab.rx.vq.wakeup.stop()
    thread.join(10)
    assert not thread.is_alive()
    assert reads == [1]
    (said,) = caplog.messages
    reason = os.strerror(errno.EBADFD) if how == "deleted" else "end of file"
    assert said == f"net:0: Failed to read from tun: {reason}; nothing will be received any more"
    assert lab.send(PACKET) == 0  # into the void


def test_what_came_before_the_tap_went_is_interrupted_for(lab: Lab) -> None:
    lab.wire.send(PACKET)
    lab.wire.close()
    for _ in range(2):
        lab.rx.add(into=[1524])
    thread = lab.serving(lab.rx)
    assert lab.rx.wait_used()[0].data == PACKET
    lab.rx.vq.wakeup.stop()
    thread.join()


# What --tunnet means


@pytest.mark.parametrize(
    "text, meaning",
    [
        ("192.168.19.1", TunnetArgument(None, "192.168.19.1", None)),
        ("0.0.0.0", TunnetArgument(None, "0.0.0.0", None)),
        ("255.255.255.255", TunnetArgument(None, "255.255.255.255", None)),
        ("010.000.000.001", TunnetArgument(None, "10.0.0.1", None)),
        ("192.168.19.1:02:00:00:00:00:01", TunnetArgument(None, "192.168.19.1", MAC)),
        ("10.0.0.1:aB:cD:0:1:e:F", TunnetArgument(None, "10.0.0.1", bytes.fromhex("abcd00010e0f"))),
        ("bridge:br0", TunnetArgument("br0", "0.0.0.0", None)),
        ("bridge:br0:02:00:00:00:00:01", TunnetArgument("br0", "0.0.0.0", MAC)),
        ("bridge:" + "b" * 15, TunnetArgument("b" * 15, "0.0.0.0", None)),
        ("bridge:192.168.19.1", TunnetArgument("192.168.19.1", "0.0.0.0", None)),
    ],
)
def test_tunnet_is_an_address_or_a_bridge_and_perhaps_a_mac(text: str, meaning: TunnetArgument) -> None:
    assert parse_tunnet(text) == meaning


@pytest.mark.parametrize(
    "address",
    [
        "",
        "192.168.19",
        "192.168.19.1.1",
        "192.168.19.256",
        "-1.0.0.1",
        "1.2.3.4 ",
        "1.2.3.4x",
        "1.2.3.0x4",
        "br0",
    ]
    + ["1.2.3.4\n", "\u0661.2.3.4", "1..2.3", "0001.2.3.4", "BRIDGE"],
)
def test_an_address_is_four_numbers_up_to_255(address: str) -> None:
    with pytest.raises(LguestError, match="Failed to parse IP address '") as e:
        parse_tunnet(address)
    assert f"'{address}'" in str(e.value)


@pytest.mark.parametrize("mac", ["", "02", "02:00:00:00:00", "02:00:00:00:00:01:", "02:00:00:00:00:01:02"])
@pytest.mark.parametrize("where", ["10.0.0.1", "bridge:br0"])
def test_a_mac_is_six_bytes_exactly(where: str, mac: str) -> None:
    with pytest.raises(LguestError, match=f"Failed to parse mac address '{mac}'"):
        parse_tunnet(f"{where}:{mac}")


@pytest.mark.parametrize("mac", ["0g:00:00:00:00:01", "002:00:00:00:00:01", "02-00-00-00-00-01", " 2:0:0:0:0:1"])
def test_a_mac_is_made_of_hex_bytes(mac: str) -> None:
    with pytest.raises(LguestError, match="Failed to parse mac address"):
        parse_tunnet(f"10.0.0.1:{mac}")


@pytest.mark.parametrize("name", ["", "b" * 16, "\u00fc" * 8])
def test_a_bridge_has_a_name_which_an_interface_can_have(name: str) -> None:
    with pytest.raises(LguestError, match="must specify bridge name"):
        parse_tunnet(f"bridge:{name}")


# Asking Linux for a tap


@dataclass
class Kernel:
    "Stands where Linux's network would be: writes down what it is asked for, and refuses what it is told to."

    asked: list[tuple[str, Any]] = field(default_factory=list)
    refuses: dict[str, int] = field(default_factory=dict)
    tap: int = -1

    def answer(self, what: str, details: Any = None) -> None:
        self.asked.append((what, details))
        if what in self.refuses:
            raise OSError(self.refuses[what], os.strerror(self.refuses[what]))

    def open(self, path: str, flags: int) -> int:
        if path == os.devnull:
            return OPEN(path, flags)
        self.answer("open", (path, flags))
        self.tap = os.eventfd(0)
        return self.tap

    def ioctl(self, fd: int, request: int, argument: int | bytes) -> int | bytes:
        names = {getattr(net, name): name for name in dir(net) if name.startswith(("TUNSET", "SIOC"))}
        self.answer(names[request], argument)
        if request == net.TUNSETIFF:
            assert isinstance(argument, bytes)
            return b"tap7".ljust(16, b"\0") + argument[16:]
        return argument if isinstance(argument, bytes) else 0

    def socket(self, *kind: int) -> socket.socket:
        self.answer("socket", kind)
        return SOCKET(*kind)

    def if_nametoindex(self, name: str) -> int:
        self.answer("if_nametoindex", name)
        return 77

    def closed(self) -> bool:
        try:
            os.fstat(self.tap)
        except OSError:
            return True
        return False


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    it = Kernel()
    with monkeypatch.context() as replaced:
        replaced.setattr(os, "open", it.open)
        replaced.setattr(fcntl, "ioctl", it.ioctl)
        replaced.setattr(socket, "socket", it.socket)
        replaced.setattr(socket, "if_nametoindex", it.if_nametoindex)
        yield it
    if not it.closed():
        os.close(it.tap)


def ifreq(name: str, value: bytes) -> bytes:
    return name.encode().ljust(16, b"\0") + value.ljust(24, b"\0")


TAP_ASKED = [
    ("open", ("/dev/net/tun", os.O_RDWR)),
    ("TUNSETIFF", ifreq("tap%d", struct.pack("<H", 0x5002))),
    ("TUNSETOFFLOAD", 0x0F),
    ("TUNSETNOCSUM", 1),
    ("socket", (socket.AF_INET, socket.SOCK_DGRAM)),
]
UP = ("SIOCSIFFLAGS", ifreq("tap7", b"\1\0"))


def test_a_routed_tap_is_asked_for_in_this_order(kernel: Kernel) -> None:
    card = setup_tun_net("192.168.19.1:02:00:00:00:00:01")
    address = ifreq("tap7", b"\2\0\0\0\xc0\xa8\x13\x01")
    assert kernel.asked == [*TAP_ASKED, ("SIOCSIFADDR", address), UP]
    assert (card.tap, card.config[:6], card.describe()) == (kernel.tap, MAC, "tun tap7: 192.168.19.1")
    card.close()


def test_a_bridged_tap_is_put_onto_the_bridge_and_has_no_address(kernel: Kernel) -> None:
    card = setup_tun_net("bridge:br0")
    assert kernel.asked == [
        *TAP_ASKED,
        ("if_nametoindex", "tap7"),
        ("SIOCBRADDIF", ifreq("br0", struct.pack("<i", 77))),
        ("SIOCSIFADDR", ifreq("tap7", b"\2\0\0\0\0\0\0\0")),
        UP,
    ]
    assert card.describe() == "tun tap7 attached to bridge: br0"
    assert not card.features & net.F_MAC
    card.close()


def test_the_request_numbers_are_those_of_linux() -> None:
    tun = (net.TUNSETIFF, net.TUNSETOFFLOAD, net.TUNSETNOCSUM)
    assert tun == (0x400454CA, 0x400454D0, 0x400454C8)
    assert (net.SIOCBRADDIF, net.SIOCSIFADDR, net.SIOCSIFFLAGS) == (0x89A2, 0x8916, 0x8914)


def test_nonsense_is_refused_before_a_tap_is_made(kernel: Kernel) -> None:
    with pytest.raises(LguestError, match="Failed to parse IP address"):
        setup_tun_net("192.168.19.999")
    assert kernel.asked == []


def test_that_checksums_cannot_be_skipped_does_not_matter(kernel: Kernel) -> None:
    kernel.refuses["TUNSETNOCSUM"] = errno.EINVAL
    assert open_tap() == (kernel.tap, "tap7")


@pytest.mark.parametrize(
    "what, number, sentence",
    [
        ("open", errno.ENOENT, "Failed to open /dev/net/tun: No such .*; `modprobe tun` may bring it"),
        ("open", errno.EACCES, "Failed to open /dev/net/tun: Permission denied; it wants to be read and"),
        ("TUNSETIFF", errno.EPERM, "Configuring /dev/net/tun failed: .* It takes CAP_NET_ADMIN"),
        ("TUNSETIFF", errno.EBUSY, "Configuring /dev/net/tun failed: Device or resource busy.$"),
        ("TUNSETOFFLOAD", errno.EINVAL, "Could not set features for tun device: Invalid argument"),
        ("socket", errno.EAFNOSUPPORT, "Opening an IP socket failed: Address family not supported"),
        ("if_nametoindex", errno.ENODEV, "The interface tap7 does not exist!"),
        ("SIOCBRADDIF", errno.ENODEV, "Can't add tap7 to bridge br0: No such device"),
        ("SIOCBRADDIF", errno.EPERM, "Can't add tap7 to bridge br0: .* It takes CAP_NET_ADMIN"),
        ("SIOCSIFADDR", errno.EINVAL, "Setting tap7 interface address failed: Invalid argument"),
        ("SIOCSIFFLAGS", errno.EIO, "Bringing interface tap7 up failed: Input/output error"),
    ],
)
def test_each_refusal_is_a_sentence_and_leaves_no_tap(kernel: Kernel, what: str, number: int, sentence: str) -> None:
    kernel.refuses[what] = number
    with pytest.raises(LguestError, match=sentence):
        setup_tun_net("bridge:br0")
    assert kernel.asked[-1][0] == what
    assert kernel.closed()


def test_a_card_whose_thread_could_not_be_called_away_is_refused_and_its_tap_closed(kernel: Kernel) -> None:
    signal.signal(signal.SIGURG, lambda *_: None)
    try:
        with pytest.raises(LguestError, match=r"handles SIGURG"):
            setup_tun_net("192.168.19.1")
    finally:
        signal.signal(signal.SIGURG, signal.SIG_DFL)
    assert kernel.closed()
