"""A real tap device, in a network namespace of its own: whatever Linux does there, the card can live with it.

Each test runs its scene in a child process, which leaves the machine's own network alone.
"""

import errno
import fcntl
import os
import select
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lguest_nb.device import F_VERSION_1
from lguest_nb.driver import Driver
from lguest_nb.memory import GuestMemory, LguestError
from lguest_nb.net import IFNAMSIZ, VNET_HEADER, Net, configure, ifreq, parse_tunnet, setup_tun_net
from lguest_nb.net_today import (
    F_GUEST_CSUM,
    F_GUEST_ECN,
    F_GUEST_TSO4,
    F_MRG_RXBUF,
    MODERN_HEADER,
    NUM_BUFFERS,
)
from lguest_nb.vring import Virtqueue, ring_at
from lguest_nb.wakeup import Stopped

ROOT = Path(__file__).parent.parent
NO_TAP = 77  # exit status of a child which may not have one
SIOCGIFADDR, SIOCGIFFLAGS, SIOCGIFHWADDR, SIOCBRADDBR = 0x8915, 0x8913, 0x8927, 0x89A0  # <linux/sockios.h>
ETH_P_ALL, ETH_P_IP, ETH_P_TEST = 3, 0x0800, 0x88B5
SOL_PACKET, PACKET_VNET_HDR = 263, 15  # <linux/if_packet.h>
NEEDS_CSUM, GSO_TCPV4 = 1, 1  # <linux/virtio_net.h>
TODAY = F_VERSION_1 | F_MRG_RXBUF
RTM_DELLINK, NLM_F_REQUEST = 17, 1

HOST, GUEST, MAC = "192.168.19.1", "192.168.19.2", bytes.fromhex("020000000001")
EVERYBODY = b"\xff" * 6


class Guest:
    "A card with both of its threads, and the drivers of somebody who has only just learned to talk."

    def __init__(self, card: Net, accepted: int) -> None:
        self.card, self.memory = card, GuestMemory(1 << 20)
        self.rx, self.tx = self._driver("net:0", 0x10000), self._driver("net:1", 0x80000)
        self._begin(accepted)

    def _begin(self, accepted: int) -> None:
        self.card.accepted = accepted
        self.card.started()
        queues = zip(self.card.services, (self.rx.vq, self.tx.vq), strict=True)
        self.threads = [threading.Thread(target=self._serve, args=pair) for pair in queues]
        for thread in self.threads:
            thread.start()

    def _driver(self, name: str, buffers: int) -> Driver:
        vq = Virtqueue(self.memory, 256, name)
        vq.place(ring_at(self.memory.take_pages(3), 256))
        return Driver(vq, buffers, 0x70000)

    @staticmethod
    def _serve(service: object, vq: Virtqueue) -> None:
        assert callable(service)
        try:
            while True:
                service(vq)
        except Stopped:
            pass

    def send(self, frame: bytes, header: bytes = b"") -> None:
        self.tx.add(out=[header.ljust(self.card.header, b"\0"), frame])
        self.tx.kick()
        assert self.tx.wait_used()[0].length == 0

    def post(self, *into: int) -> None:
        self.rx.add(into=into)
        self.rx.kick()

    def frame(self) -> bytes:  # without the virtio header; nothing for one which was lost
        return self.rx.wait_used()[0].data[self.card.header :]

    def merged(self) -> tuple[bytes, bytes, int]:
        "For a driver which took MRG_RXBUF: the header's first ten bytes, the frame, and how many buffers they came in."
        done = self.rx.wait_used()
        (count,) = NUM_BUFFERS.unpack_from(done[0].data, VNET_HEADER)
        assert len(done) == count, "the driver sees all of a packet, or nothing"
        packet = b"".join(used.data for used in done)
        return packet[:VNET_HEADER], packet[MODERN_HEADER:], count

    def _stop(self) -> None:
        for driver in (self.rx, self.tx):
            driver.vq.wakeup.stop()
        for thread in self.threads:
            thread.join(10)
            assert not thread.is_alive()

    def begin_again(self, accepted: int) -> None:
        "Another driver takes the card over."
        self._stop()
        for driver in (self.rx, self.tx):
            driver.vq.wakeup.rearm()
        self._begin(accepted)

    def close(self) -> None:
        self._stop()
        self.card.close()
        self.memory.close()


@contextmanager
def guest(tunnet: str, accepted: int = 0) -> Iterator[Guest]:
    it = Guest(setup_tun_net(tunnet), accepted)
    try:
        yield it
    finally:
        it.close()


def asked(request: int, interface: str) -> bytes:
    "What Linux says about an interface."
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        return fcntl.ioctl(sock, request, ifreq(interface, b""))[IFNAMSIZ:]


def switch(interface: str, flags: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, 0x8914, ifreq(interface, struct.pack("=H", flags)))


def delete(interface: str) -> None:
    "As `ip link delete` does it."
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        message = struct.pack("=BxHiII", socket.AF_UNSPEC, 0, socket.if_nametoindex(interface), 0, 0)
        sock.send(struct.pack("=IHHII", 16 + len(message), RTM_DELLINK, NLM_F_REQUEST, 1, 0) + message)


def on_the_wire(interface: str, frame: bytes) -> None:
    "Let the Host's kernel send a frame out of the interface."
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind((interface, 0))
        sock.send(frame)


def checksum(data: bytes) -> int:  # RFC 1071
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    return ~(total % 0xFFFF) & 0xFFFF


def large_tcp(payload: bytes) -> tuple[bytes, bytes]:
    "A header which asks for it to be cut to size, and a TCP packet which is larger than any wire allows."
    host, us = socket.inet_aton(HOST), socket.inet_aton(GUEST)
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 40 + len(payload), 1, 0x4000, 64, 6, 0, host, us)
    header = header[:10] + struct.pack("!H", checksum(header)) + header[12:]
    pseudo = ~checksum(struct.pack("!4s4sHH", host, us, 6, 20 + len(payload))) & 0xFFFF
    tcp = struct.pack("!HHIIBBHHH", 80, 1234, 1, 1, 0x50, 0x10, 1000, pseudo, 0)
    frame = MAC + b"\2host\0" + b"\x08\x00" + header + tcp + payload
    return struct.pack("<BBHHHH", NEEDS_CSUM, GSO_TCPV4, 54, 1000, 34, 16), frame


def large_on_the_wire(interface: str, header: bytes, frame: bytes) -> None:
    "As `on_the_wire`, for a packet which the sender leaves to be cut and summed."
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        sock.bind((interface, 0))
        sock.send(header + frame)


# The scenes


def scene_a_guest_pings_its_host() -> None:
    host, us = socket.inet_aton(HOST), socket.inet_aton(GUEST)
    with guest(f"{HOST}:{MAC.hex(':')}") as it:
        it.post(10, 1514)
        request = struct.pack("!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, 1, MAC, us, bytes(6), host)
        it.send(EVERYBODY + MAC + b"\x08\x06" + request)
        answer = it.frame()
        whose = asked(SIOCGIFHWADDR, "tap0")[2:8]
        assert answer[:14] == MAC + whose + b"\x08\x06"
        assert answer[20:42] == b"\x00\x02" + whose + host + MAC + us

        echo = struct.pack("!BBHHH", 8, 0, 0, 0x1234, 1) + b"Are you there?"
        echo = echo[:2] + struct.pack("!H", checksum(echo)) + echo[4:]
        header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(echo), 1, 0, 64, 1, 0, us, host)
        header = header[:10] + struct.pack("!H", checksum(header)) + header[12:]
        it.post(10, 1514)
        it.send(whose + MAC + b"\x08\x00" + header + echo)
        answer = it.frame()
        assert answer[26:34] == host + us
        assert (answer[34], answer[42:]) == (0, b"Are you there?")


def scene_the_hosts_end_has_its_address_and_is_up() -> None:
    with guest(HOST) as it:
        assert it.card.describe() == f"tun tap0: {HOST}"
        assert asked(SIOCGIFADDR, "tap0")[4:8] == socket.inet_aton(HOST)
        assert asked(SIOCGIFFLAGS, "tap0")[0] & 1
        with guest("192.168.20.1") as other:
            assert other.card.describe() == "tun tap1: 192.168.20.1"


def scene_a_tap_becomes_a_port_of_a_bridge() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            fcntl.ioctl(sock, SIOCBRADDBR, b"br0".ljust(IFNAMSIZ, b"\0"))
        except OSError as e:
            print(f"this kernel has no bridges: {e.strerror}")
            sys.exit(NO_TAP)
    with guest("bridge:br0") as it:
        assert it.card.describe() == "tun tap0 attached to bridge: br0"
        assert asked(SIOCGIFFLAGS, "tap0")[0] & 1
        try:
            configure("tap0", parse_tunnet("bridge:br0"))
        except LguestError as e:
            assert str(e).startswith("Can't add tap0 to bridge br0: Device or resource busy"), e
        else:
            raise AssertionError("it was no port yet")


def scene_a_bridge_which_is_not_there_leaves_no_tap() -> None:
    try:
        setup_tun_net("bridge:nobody")
    except LguestError as e:
        assert str(e).startswith("Can't add tap0 to bridge nobody: "), e
    assert "tap0" not in [name for _, name in socket.if_nameindex()]


def scene_a_frame_which_does_not_fit_is_lost_and_the_next_one_is_not() -> None:
    frame = EVERYBODY + bytes(6) + struct.pack("!H", ETH_P_TEST) + b"x" * 100
    with guest(HOST) as it:
        for room, expected in ((10, 113), b""), ((10, 114), frame), ((9,), b""), ((10, 1514), frame):
            it.post(*room)
            on_the_wire("tap0", frame)
            assert it.frame() == expected, room


def scene_bad_packets_are_lost_alone() -> None:
    with guest(HOST) as it, socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as ears:
        ears.bind(("tap0", ETH_P_TEST))
        ears.settimeout(10)
        it.send(b"")
        it.send(b"short")
        it.tx.add(out=[b"\x01" + b"\xff" * 9, EVERYBODY + MAC + bytes(50)])  # a checksum beyond its end
        it.tx.kick()
        assert it.tx.wait_used()[0].length == 0
        frame = EVERYBODY + MAC + struct.pack("!H", ETH_P_TEST) + b"a good one".ljust(46)
        it.send(frame)
        assert ears.recv(2000) == frame


def scene_an_interface_which_is_down_is_only_silent() -> None:
    frame = EVERYBODY + bytes(6) + struct.pack("!H", ETH_P_TEST) + b"x" * 100
    with guest(HOST) as it:
        it.post(10, 1514)
        switch("tap0", 0)
        it.send(frame)
        assert it.card.said == {"%s: Write to tun failed: Input/output error; such packets are lost"}
        assert it.rx.used() == []
        switch("tap0", 1)
        on_the_wire("tap0", frame)
        assert it.frame() == frame


def scene_a_deleted_interface_makes_no_busy_thread() -> None:
    with guest(HOST) as it:
        it.post(10, 1514)
        delete("tap0")
        poll = select.poll()
        poll.register(it.card.tap, select.POLLIN)
        poll.poll(10_000)
        while not it.card.said:
            pass
        (said,) = it.card.said
        assert said == "%s: Failed to read from tun: %s; nothing will be received any more"
        before = os.times()
        poll.unregister(it.card.tap)
        poll.poll(200)
        assert os.times().user + os.times().system - before.user - before.system < 0.1
        it.send(EVERYBODY + MAC + bytes(50))
        assert f"%s: Write to tun failed: {os.strerror(errno.EBADFD)}; such packets are lost" in it.card.said


def scene_a_guest_of_today_gets_large_packets_uncut_in_small_buffers() -> None:
    payload = bytes(range(250)) * 120
    header, frame = large_tcp(payload)
    with guest(HOST, TODAY | F_GUEST_CSUM | F_GUEST_TSO4) as it:
        for _ in range(40):
            it.post(1536)
        large_on_the_wire("tap0", header, frame)
        told, received, count = it.merged()
        assert told[:2] == bytes([NEEDS_CSUM, GSO_TCPV4])
        assert told[4:] == header[4:]
        assert received == frame
        assert count == -(-(MODERN_HEADER + len(frame)) // 1536)


def scene_a_large_packet_waits_for_the_buffers_which_are_missing() -> None:
    header, frame = large_tcp(bytes(8000))
    with guest(HOST, TODAY | F_GUEST_CSUM | F_GUEST_TSO4) as it:
        it.post(1536)
        large_on_the_wire("tap0", header, frame)
        for _ in range(5):
            assert it.rx.used() == []
            it.post(1536)
        assert it.merged()[1] == frame


def scene_what_a_guest_did_not_take_linux_does_for_it() -> None:
    header, frame = large_tcp(bytes(2000))
    for accepted, flags in ((TODAY | F_GUEST_CSUM | F_GUEST_ECN, NEEDS_CSUM), (TODAY | F_GUEST_TSO4, 0)):
        with guest(HOST, accepted) as it:
            for half in (0, 1):
                it.post(1536)
                if not half:
                    large_on_the_wire("tap0", header, frame)
                told, received, count = it.merged()
                assert (told[0] & NEEDS_CSUM, told[1], count) == (flags, 0, 1), (half, told)
                assert len(received) == 54 + 1000
                if not flags:
                    addresses = received[26:34] + struct.pack("!HH", 6, 1020)
                    assert checksum(addresses + received[34:]) == 0xFFFF  # which is a zero too


def scene_the_next_driver_may_have_another_opinion() -> None:
    header, frame = large_tcp(bytes(2000))
    with guest(HOST, TODAY | F_GUEST_CSUM | F_GUEST_TSO4) as it:
        it.post(2100)
        large_on_the_wire("tap0", header, frame)
        assert len(it.frame()) == 2054
        it.begin_again(0)
        it.post(2100), it.post(2100)
        large_on_the_wire("tap0", header, frame)
        assert [len(used.data) - VNET_HEADER for used in it.rx.wait_used(2)] == [1054, 1054]


def scene_a_guest_of_today_sends_large_packets() -> None:
    header, frame = large_tcp(bytes(range(250)) * 80)
    with guest(HOST, TODAY) as it, socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as ears:
        ears.bind(("tap0", ETH_P_IP))
        ears.settimeout(10)
        it.send(frame, header)
        assert ears.recv(1 << 17) == frame
        it.send(frame[:60], bytes(10) + b"\xff\xff")  # num_buffers is nobody's business on the way out
        assert ears.recv(1 << 17) == frame[:60]


def scene_lies_in_a_header_of_today_cost_that_packet_alone() -> None:
    header, frame = large_tcp(bytes(2000))
    lies = [
        b"\xff" * 12,
        struct.pack("<BBHHHH", NEEDS_CSUM, 0, 0, 0, 0xFFFF, 0xFFFF),
        struct.pack("<BBHHHH", 0, GSO_TCPV4, 0xFFFF, 1000, 0, 0),
        struct.pack("<BBHHHH", NEEDS_CSUM, GSO_TCPV4, 54, 0, 34, 16),
        struct.pack("<BBHHHH", NEEDS_CSUM, 0x7F, 54, 1000, 34, 16),
    ]
    with guest(HOST, TODAY) as it, socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as ears:
        ears.bind(("tap0", ETH_P_TEST))
        ears.settimeout(10)
        for lie in lies:
            it.send(frame, lie)
        for length in (0, 1, 10, 11):
            it.tx.add(out=[bytes(length)])
            it.tx.kick()
            assert it.tx.wait_used()[0].length == 0
        good = EVERYBODY + MAC + struct.pack("!H", ETH_P_TEST) + b"a good one".ljust(46)
        it.send(good)
        assert ears.recv(2000) == good


def play(scene: str) -> None:
    "In the child: a namespace, then the scene."
    from network import NoNetwork, enter_own_namespace, try_a_tap

    if not enter_own_namespace():
        print("no network namespace for us here")
        sys.exit(NO_TAP)
    try:
        try_a_tap()
    except NoNetwork as e:
        print(e)
        sys.exit(NO_TAP)
    quiet = Path("/proc/sys/net/ipv6/conf/default/disable_ipv6")
    if quiet.exists():
        quiet.write_text("1")  # or it would say hello on each interface
    globals()[scene]()


@pytest.mark.parametrize("scene", [name.removeprefix("scene_") for name in dir() if name.startswith("scene_")])
def test_on_a_real_tap(scene: str) -> None:
    done = subprocess.run(
        [sys.executable, __file__, f"scene_{scene}"],
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tools'}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    if done.returncode == NO_TAP:
        pytest.skip(f"needs a tap device: {done.stdout.strip()}")
    assert done.returncode == 0, done.stdout + done.stderr


if __name__ == "__main__":
    play(sys.argv[1])
