"""A disk which is driven by a driver of today, of which the fuzzer decides what it wants and where it is wrong."""

import os
import struct
from itertools import pairwise

from fuzz_guest import BUFFERS, DESC, LIMIT, RESERVE, RING, TABLE, close, pattern
from fuzz_services import DISCARD, DISK, FLUSH, GET_ID, WRITE_ZEROES, BlockQueue

from lguest_nb.block import F_VERSION_1, Block
from lguest_nb.block_today import F_CONFIG_WCE, F_DISCARD, F_FLUSH, F_WRITE_ZEROES
from lguest_nb.device import Device
from lguest_nb.memory import PAGE_SIZE
from lguest_nb.snapshot import Overlay
from lguest_nb.vring import Chain

IN, OUT, BARRIER = 0, 1, 1 << 31


class DrivenDisk(BlockQueue):
    """Such a disk and a driver of today, who is mostly right: ranges to forget, flushes, a cache switched on and off.

    What the driver was promised to keep must have been in the file when that was last brought to the disk.
    """

    KINDS = (IN, OUT, DISCARD, WRITE_ZEROES, FLUSH, GET_ID, DISCARD, WRITE_ZEROES, OUT, 3, BARRIER | OUT)
    FEATURES = (F_FLUSH, F_CONFIG_WCE, F_DISCARD, F_WRITE_ZEROES)
    MODES = ("rw", "rw", "ro", "snapshot")
    FAR = (8, 9, 1 << 22, (1 << 22) + 1, 1 << 31, (1 << 32) - 8, (1 << 32) - 1, 1 << 55, (1 << 63) - 4, (1 << 64) - 1)
    FLAGS = (0, 0, 1, 1, 2, 3, 1 << 31, (1 << 32) - 1)
    ROOMS = (1, 513, 21, 1025, 2, 0, 512, 20, 4097)  # bytes to write into, the status among them
    SLOTS, DATA = 4, 0x5000  # for requests which wait at once: 8 KiB from DATA, and a table
    WRITEBACK = 32  # where in struct virtio_blk_config it is

    def make(self) -> Device:
        self.disks: dict[str, tuple[int, Block]] = {}
        for mode in sorted(set(self.MODES)):
            self.file = os.memfd_create(mode)
            os.ftruncate(self.file, DISK)
            path = f"/proc/self/fd/{self.file}"
            device = Block(path, read_only=mode == "ro", snapshot=mode == "snapshot")
            device._sync = self.synced  # type: ignore[method-assign]
            self.disks[mode] = self.file, device
        self.config = device.modern_config
        return device

    def synced(self) -> None:
        self.durable = os.pread(self.file, 2 * DISK, 0)

    def begin(self) -> None:
        "A disk, and what the driver accepts of what it offers."
        self.mode = self.MODES[self.choice & 3]
        self.read_only = self.mode == "ro"
        self.file, self.device = self.disks[self.mode]
        if self.device.overlay is not None:
            self.device.overlay.close()
            self.device.overlay = Overlay(DISK, 512)
        accepts = self.source.number(1)
        self.accepted = F_VERSION_1 | sum(bit for i, bit in enumerate(self.FEATURES) if accepts >> i & 1)
        self.accepted &= self.device.modern_features | F_VERSION_1
        self.disk = bytearray(pattern(1, DISK))
        self.durable = b""
        os.pwrite(self.file, self.disk, 0)
        self.device.modern_config, self.device.accepted = self.config, self.accepted
        self.device.started()
        self.writeback = self.accepted & (F_FLUSH | F_CONFIG_WCE) != F_CONFIG_WCE
        self.requests = 0
        self.stable()

    def guest(self, start: int) -> bytearray:
        "An empty ring."
        image = bytearray(LIMIT + RESERVE * PAGE_SIZE)
        image[0:BUFFERS] = pattern(0, BUFFERS)
        struct.pack_into("<HH", image, RING.avail, 0, start)
        struct.pack_into("<HH", image, RING.used, 0, start)
        return image

    def moves(self) -> bool:
        "The driver writes into the configuration, or has a request, or several."
        if not self.source:
            return False
        what = self.source.number(1)
        if what >= 0xC0:
            self.choose_cache(what & 63, self.source.take(1 + self.source.number(1) % 4))
            return True
        for _ in range(1 + (what >> 4) % 3):
            self.request(what & 15)
        return True

    def choose_cache(self, offset: int, data: bytes) -> None:
        "Virtio 1.2 §5.2.5.1: `writeback` is the driver's, and nothing else."
        self.device.written(offset, data)
        at = self.WRITEBACK - offset
        if 0 <= at < len(data):
            self.writeback = data[at] != 0
        self.stable()

    def stable(self) -> None:
        "Is the configuration as it should be?"
        at = self.WRITEBACK
        assert self.device.modern_config == self.config[:at] + bytes([self.writeback]) + self.config[at + 1 :]

    def far(self, choice: int, most: int) -> int:
        return choice % 10 if choice < 0xE0 else self.FAR[choice % len(self.FAR)] % most

    def request(self, kind: int) -> None:
        "One request, cut into pieces somewhere."
        source, kind = self.source, self.KINDS[kind % len(self.KINDS)]
        sector = self.far(source.number(1), 1 << 64)
        out = struct.pack("<IIQ", kind, 0, sector)
        shape = source.number(1)
        if kind & 0xFF in (DISCARD, WRITE_ZEROES):
            out += self.ranges()
        elif kind & 1:
            out += pattern(sector + shape, 512 * (shape & 3))
        if shape & 4:
            out += b"more"[: 1 + source.number(1) % 4]
        room = self.ROOMS[source.number(1) % len(self.ROOMS)] if shape & 8 or kind in (IN, GET_ID) else 1
        pieces = [(n, 0) for n in self.cut(len(out), shape >> 4 & 3)]
        pieces += [(n, 2) for n in self.cut(room, shape >> 6)]
        self.make_available(out, pieces)

    def ranges(self) -> bytes:
        "Some parts of the disk, most of them inside."
        count = self.source.number(1)
        if count >= 0xF0:
            return self.one_range() * (254 + count % 4)
        return b"".join(self.one_range() for _ in range(count % 5))

    def one_range(self) -> bytes:
        first, length, flags = (self.source.number(1) for _ in range(3))
        flags = self.FLAGS[flags % (2 if flags < 0x80 else len(self.FLAGS))]
        return struct.pack("<QII", self.far(first, 1 << 64), self.far(length, 1 << 32), flags)

    def cut(self, length: int, knives: int) -> list[int]:
        "`length` in so many pieces and one."
        edges = sorted(self.source.number(1) * length // 255 for _ in range(knives))
        return [b - a for a, b in pairwise([0, *edges, length])]

    def make_available(self, out: bytes, pieces: list[tuple[int, int]]) -> None:
        "Put it into memory, with a table of its own or straight into the ring, and offer it."
        slot = self.requests % self.SLOTS
        self.requests += 1
        at = self.DATA + 0x2000 * slot
        self.vq.put(at, out)
        table, head = (RING.desc, 0) if self.choice & 8 else (TABLE + 256 * slot, slot)
        for i, (length, flags) in enumerate(pieces):
            flags |= (i + 1 < len(pieces)) * 1
            self.vq.put(table + 16 * i, DESC.pack(at, length, flags, i + 1))
            at += length
        if head or table != RING.desc:
            self.vq.put(RING.desc + 16 * head, DESC.pack(table, 16 * len(pieces), 4, 0))
        self.vq.offer(head)

    def obey(self, image: bytearray, chain: Chain, kind: int, _: int, sector: int, out: bytes, into: int) -> int:
        "The same, and what is promised afterwards."
        status = super().obey(image, chain, kind, _, sector, out, into)
        cached = self.writeback if self.accepted & F_CONFIG_WCE else self.accepted & F_FLUSH
        promised = kind == FLUSH or (kind in (OUT, DISCARD, WRITE_ZEROES) and not cached)
        if status == 0 and promised and self.mode == "rw":
            assert self.durable == self.disk, "acknowledged, and not on the disk"
        return status

    def look(self) -> None:
        overlay, kept = self.device.overlay, os.pread(self.file, 2 * DISK, 0)
        if overlay is None:
            assert kept == self.disk
            return
        assert kept == pattern(1, DISK), "a snapshot's file has changed"
        here = [overlay.run(at, 512)[0] for at in range(0, DISK, 512)]
        seen = [os.pread(overlay.fd if new else self.file, 512, 512 * i) for i, new in enumerate(here)]
        assert b"".join(seen) == self.disk

    def close(self) -> None:
        for file, device in self.disks.values():
            device.close()
            os.close(file)
        self.vq.wakeup.close()
        close(self.memory)
