"""Whole rings of the fuzzer's, driven through each service function of each device.

What comes out is `GuestError` or `Stopped`; every byte of memory and of the disk is what a plain model says.
"""

import array
import errno
import fcntl
import os
import select
import socket
import struct
import termios
from collections import deque

from fuzz_guest import NUM, Bytes, Watched, close, first_index, move, new_memory, pattern, write_guest

from lguest_nb.block import F_VERSION_1, Block
from lguest_nb.block_today import F_DISCARD, F_FLUSH, F_WRITE_ZEROES
from lguest_nb.console import Console
from lguest_nb.device import Device
from lguest_nb.memory import GuestError
from lguest_nb.net import Net
from lguest_nb.net_today import F_MRG_RXBUF
from lguest_nb.rng import Rng
from lguest_nb.vring import Chain, full_barrier
from lguest_nb.wakeup import Stopped

MOST_CHAINS = 32  # served in one run
DISK = 8 * 512
FLUSH, GET_ID, DISCARD, WRITE_ZEROES = 4, 8, 11, 13


class Served:
    "A ring of the fuzzer's, served by one of a device's service functions until it is broken or nothing moves."

    def __init__(self) -> None:
        self.memory = new_memory()
        self.vq = Watched(self.memory, self.gave_back)
        self.vq.sleepless.moves, self.vq.sleepless.feed = self.moves, self.feed
        self.device = self.make()

    def make(self) -> Device:
        raise NotImplementedError

    def begin(self) -> None:
        "What the device has behind it is as it was."

    def gave_back(self, image: bytearray, chain: Chain, length: int) -> None:
        "Make `image` what memory must be now. Raises `AssertionError` if the device did what it should not."
        raise NotImplementedError

    def feed(self, fd: int) -> bool:
        "The device waits for `fd`: make it ready, or return False."
        raise NotImplementedError

    def guest(self, start: int) -> bytearray:
        "What is in memory before the device looks at it for the first time."
        return write_guest(self.source, start)

    def moves(self) -> bool:
        return move(self.source, self.vq)

    def __call__(self, data: bytes) -> None:
        self.source = Bytes(data)
        self.choice = self.source.number(1)
        self.vq.event_idx = bool(self.choice & 64)
        self.begin()
        self.vq.fence = self.moves if self.choice & 4 else full_barrier  # where a Guest may be quicker than us
        self.vq.indirect, self.vq.notify_on_empty = not self.choice & 8, not self.choice & 16
        start = first_index(self.source.number(1))
        self.vq.begin(start, self.guest(start))
        services = self.device.services
        service = services[self.choice % len(services)]
        try:
            while self.vq.taken < MOST_CHAINS:
                service(self.vq)
            assert not self.vq.outstanding, "a service function returned and kept its chain"
        except GuestError as e:
            self.vq.ended(stopped=False)
            assert str(e).endswith(("?", ".")), f"{e!r} is not a sentence"
        except Stopped:
            self.vq.ended(stopped=True)

    def readable(self, image: bytearray, chain: Chain) -> bytes:
        return b"".join(image[a : a + n] for a, n in chain.readable)

    def room(self, chain: Chain) -> int:
        return sum(n for _, n in chain.writable)

    def bytes_of(self, chain: Chain) -> list[int]:
        "The addresses of the first bytes which are to be written."
        return [a + i for a, n in chain.writable for i in range(min(n, 16))][:16]

    def scatter(self, image: bytearray, chain: Chain, data: bytes) -> None:
        "Fill the writable buffers in their order, as far as `data` goes."
        for address, length in chain.writable:
            piece, data = data[:length], data[length:]
            image[address : address + len(piece)] = piece

    def close(self) -> None:
        self.device.close()
        self.vq.wakeup.close()
        close(self.memory)


class Piped(Served):
    "A device which reads a pipe: what the fuzzer puts in is what must come out, once."

    def begin(self) -> None:
        if left := self.waiting():
            os.read(self.reads, left)
        self.fed = self.eaten = 0

    def waiting(self) -> int:
        count = array.array("i", [0])
        fcntl.ioctl(self.reads, termios.FIONREAD, count)
        return count[0]

    def put(self, count: int) -> bool:
        self.fed += os.write(self.writes, pattern(self.fed, count))
        return count > 0

    def eat(self, image: bytearray, chain: Chain, length: int) -> None:
        assert length <= self.room(chain)
        assert self.waiting() == self.fed - self.eaten - length, "bytes were read and not delivered"
        self.scatter(image, chain, pattern(self.eaten, length))
        self.eaten += length


class ConsoleQueues(Piped):
    "Queue 0 gets what is in one pipe; what is in queue 1 gets into another."

    def make(self) -> Device:
        self.reads, self.writes = os.pipe()
        self.said_reads, self.says = os.pipe()
        os.set_blocking(self.said_reads, False)
        self.said = b""
        return Console(self.reads, self.says)

    def begin(self) -> None:
        super().begin()
        self.drain()
        self.said = b""

    def drain(self) -> None:
        try:
            while more := os.read(self.said_reads, 1 << 16):
                self.said += more
        except BlockingIOError:
            return

    def feed(self, fd: int) -> bool:
        if fd == self.says:
            self.drain()
            return True
        return self.put(self.source.number(1))

    def gave_back(self, image: bytearray, chain: Chain, length: int) -> None:
        if self.choice % 2 == 0:
            assert not chain.readable and bool(length) == bool(chain.writable)
            self.eat(image, chain, length)
            return
        self.drain()
        assert not chain.writable and length == 0
        assert self.said == self.readable(image, chain)
        self.said = b""

    def close(self) -> None:
        super().close()
        for fd in (self.reads, self.writes, self.said_reads, self.says):
            os.close(fd)


class RngQueue(Piped):
    "Each buffer is filled to its end."

    def make(self) -> Device:
        self.reads, self.writes = os.pipe()
        return Rng(f"/proc/self/fd/{self.reads}")

    def feed(self, fd: int) -> bool:
        return self.put(64 * self.source.number(1))

    def gave_back(self, image: bytearray, chain: Chain, length: int) -> None:
        assert not chain.readable and length == self.room(chain)
        self.eat(image, chain, length)

    def close(self) -> None:
        super().close()
        os.close(self.reads)
        os.close(self.writes)


class EventRing(RngQueue):
    "The same, on a ring with event indices."

    def begin(self) -> None:
        super().begin()
        self.vq.event_idx = True


class NetQueues(Served):
    "Queue 0 gets packets, queue 1 sends them; a pair of sockets is the tap. Virtio 1.2 §5.1.6."

    def make(self) -> Device:
        tap, self.peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.peer.setblocking(False)
        card = Net(tap.detach())
        card.reader.readv = self.read  # type: ignore[method-assign]
        self.read_at_once, card.read_now = card.read_now, self.read_now  # type: ignore[method-assign]
        return card

    def begin(self) -> None:
        for fd in (self.peer.fileno(), self.device.tap):
            while select.select([fd], [], [], 0)[0]:
                os.read(fd, 1)
        self.packets: deque[bytes] = deque()
        merges = F_MRG_RXBUF if self.choice & 32 else 0
        self.device.accepted = (F_VERSION_1 if self.choice & 2 else 0) | merges
        self.device.started()
        self.header = 12 if self.device.accepted else 10
        self.vq.greedy, self.vq.filling = merges and self.choice % 2 == 0, self.fill

    def read(self, views: list[memoryview]) -> int:
        "Where the thread would sleep in a read."
        self.vq.wakeup.sleep_on(self.device.tap)
        if sum(map(len, views)) < self.header:  # a tap has no patience with that
            self.packets[0] = b""
            self.arrived(len(os.read(self.device.tap, 1)))
            raise OSError(errno.EINVAL, "Invalid argument")
        return self.arrived(os.readv(self.device.tap, views))

    def read_now(self, views: list[memoryview]) -> int | None:
        length = self.read_at_once(views)
        return length if length is None else self.arrived(length)

    def arrived(self, length: int) -> int:
        "The device has read a packet into its only chain, and keeps what did not fit."
        self.packet, self.filled, self.buffers = self.packets.popleft(), 0, 0
        (chain,) = self.vq.outstanding
        self.fill(chain)
        return length

    def fill(self, chain: Chain) -> None:
        "The packet goes on at the beginning of `chain`: each is full before the next is begun."
        if not chain.readable:
            self.scatter(self.vq.image, chain, self.packet[self.filled :])
            self.filled += self.room(chain)

    def feed(self, fd: int) -> bool:
        for _ in range(1 + self.source.number(1) % 2):
            if length := self.source.number(2) % 3000:
                self.packets.append(pattern(length, length + (12 if self.header == 12 else 0)))
                self.peer.send(self.packets[-1])
        return bool(self.packets)

    def gave_back(self, image: bytearray, chain: Chain, length: int) -> None:
        if self.choice % 2 == 0:
            assert not chain.readable
            self.was_given(image, chain, length)
            return
        packet = self.readable(image, chain)
        assert not chain.writable and length == 0
        sent = [packet] if 0 < len(packet) <= self.header + 65550 else []
        assert [self.peer.recv(1 << 17) for _ in range(len(sent))] == sent
        assert not select.select([self.peer], [], [], 0)[0], "a packet was sent which should not have been"

    def was_given(self, image: bytearray, chain: Chain, length: int) -> None:
        "The whole packet, in one chain after the other, and the first says in how many; or nothing of it in any."
        if not self.buffers:
            chains = [chain, *self.vq.outstanding]
            self.buffers, self.left = len(chains), len(self.packet)
            if self.filled < self.left:
                self.left = 0
                tried = not self.vq.greedy or self.room(chain) < self.header
                assert tried or sum(len(each.writable) or 1 for each in chains) >= NUM, "it might have fitted"
            if self.left and self.header == 12:
                count = zip(self.bytes_of(chain)[10:12], struct.pack("<H", self.buffers), strict=True)
                for address, byte in count:
                    image[address] = byte
        assert length == min(self.left, self.room(chain))
        self.left -= length

    def close(self) -> None:
        super().close()
        self.peer.close()


class BlockQueue(Served):
    "A disk of eight sectors, and a model of what a request does to it. Virtio 1.2 §5.2.6."

    read_only = False

    def make(self) -> Device:
        self.file = os.memfd_create("disk")
        os.ftruncate(self.file, DISK)
        return Block(f"/proc/self/fd/{self.file}")

    def begin(self) -> None:
        size = 3 * 512 + 100 if self.choice & 1 else DISK  # cut short behind our back
        self.disk = bytearray(pattern(1, size))
        os.ftruncate(self.file, 0)
        os.pwrite(self.file, self.disk, 0)
        self.accepted = F_VERSION_1 if self.choice & 2 else 0
        if self.choice & 34 == 34:
            self.accepted |= F_FLUSH | F_DISCARD | F_WRITE_ZEROES
        self.device.accepted = self.accepted
        self.device.started()

    def gave_back(self, image: bytearray, chain: Chain, length: int) -> None:
        out, room = self.readable(image, chain), self.room(chain)
        if len(out) < 16 or not room:
            assert length == 0
        else:
            status = self.obey(image, chain, *struct.unpack_from("<IIQ", out), out[16:], room - 1)
            address, last = chain.writable[-1]
            image[address + last - 1] = status
            assert length == (room if status == 0 else 1)
        self.look()

    def look(self) -> None:
        "Is everything on the disk which should be, and nothing else?"
        assert os.pread(self.file, 2 * DISK, 0) == self.disk

    def obey(self, image: bytearray, chain: Chain, kind: int, _: int, sector: int, out: bytes, into: int) -> int:
        "The status of a request for a well-behaved disk, and its effects."
        modern = self.accepted & F_VERSION_1
        if modern and kind == GET_ID:
            if out or into != 20:
                return 1
            self.scatter(image, chain, str(self.file).encode().ljust(20, b"\0"))
            return 0
        if kind == FLUSH and self.accepted & F_FLUSH:
            return 1 if out or into else 0
        if self.accepted & {DISCARD: F_DISCARD, WRITE_ZEROES: F_WRITE_ZEROES}.get(kind, 0):
            return 1 if into or self.read_only else self.erase(out, kind)
        barrier = kind >= 1 << 31
        if kind & 0x7FFFFFFE or (barrier and modern):
            return 2
        length = len(out) if kind & 1 else into
        if length % 512 or 512 * sector + length > DISK or (into if kind & 1 else out):
            return 1
        start = 512 * sector
        if kind & 1:
            if self.read_only:
                return 1
            if length:
                self.disk += bytes(max(0, start - len(self.disk)))
                self.disk[start : start + length] = out
            return 0
        data = bytes(self.disk[start : start + length])
        self.scatter(image, chain, data)
        return 0 if len(data) == length else 1

    def erase(self, out: bytes, kind: int) -> int:
        "Virtio 1.2 §5.2.6.2: the status, and what is zero afterwards; a memfd can have holes."
        if not out or len(out) % 16 or len(out) > 256 * 16:
            return 1
        ranges = list(struct.iter_unpack("<QII", out))
        if any(512 * (sector + count) > DISK for sector, count, _ in ranges):
            return 1
        if any(flags & ~(kind == WRITE_ZEROES) for _, _, flags in ranges):
            return 2
        for start, length in ((512 * sector, 512 * count) for sector, count, _ in ranges if count):
            self.disk += bytes(max(0, start + length - len(self.disk)))
            self.disk[start : start + length] = bytes(length)
        return 0

    def close(self) -> None:
        super().close()
        os.close(self.file)
