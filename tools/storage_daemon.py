"""qemu-storage-daemon as the other side of a ring: somebody to be measured against, through vhost-user.

Vhost-user is how QEMU hands rings to another program: a Unix socket, a message for each thing that program has to know,
and descriptors along with the messages. (docs/interop/vhost-user.rst in QEMU.) This is the least of it which makes
qemu-storage-daemon serve the ring of a Guest's memory that is ours.
"""

import array
import os
import socket
import struct
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

from lguest_nb.memory import GuestMemory
from lguest_nb.vring import VIRTQUEUE_NUM, RingLayout

HEADER = struct.Struct("<III")  # request, flags (1: version), bytes which follow
REGION = struct.Struct("<IIQQQQ")  # how many, padding, Guest-physical address, size, our address, offset in the file
VRING_ADDRESS = struct.Struct("<IIQQQQ")  # index, flags, our addresses of descriptors, used, avail, log
GET_FEATURES, SET_FEATURES, SET_OWNER, SET_MEM_TABLE = 1, 2, 3, 5
SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE = 8, 9, 10
SET_VRING_KICK, SET_VRING_CALL = 12, 13
GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES, SET_VRING_ENABLE = 15, 16, 18
F_PROTOCOL_FEATURES, F_VERSION_1 = 1 << 30, 1 << 32
PROTOCOL_CONFIG = 1 << 9
USER_BASE = 1 << 40  # where we say that the memory is in our address space; only differences to it count
PATIENCE = 10  # seconds until a daemon which says nothing is an error


class FrontEnd:
    "Our end of a vhost-user socket."

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(os.fspath(path))

    def tell(self, request: int, payload: bytes, *fds: int) -> None:
        "Send one message, and descriptors with it."
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.socket.sendmsg([HEADER.pack(request, 1, len(payload)) + payload], rights)

    def ask(self, request: int) -> int:
        "Send one message, and wait for the number which answers it."
        self.tell(request, b"")
        answer, _, length = HEADER.unpack(self.socket.recv(HEADER.size, socket.MSG_WAITALL))
        assert (answer, length) == (request, 8)
        return int.from_bytes(self.socket.recv(8, socket.MSG_WAITALL), "little")

    def hand_over(
        self,
        memory: GuestMemory,
        ring: RingLayout,
        kick: int,  # eventfd
        call: int,  # eventfd
    ) -> None:
        "Let the daemon serve queue 0, at `ring`."
        offered = self.ask(GET_FEATURES)
        self.tell(SET_OWNER, b"")
        if offered & F_PROTOCOL_FEATURES:
            self.tell(SET_PROTOCOL_FEATURES, struct.pack("<Q", self.ask(GET_PROTOCOL_FEATURES) & PROTOCOL_CONFIG))
        self.tell(SET_FEATURES, struct.pack("<Q", offered & (F_VERSION_1 | F_PROTOCOL_FEATURES)))
        self.tell(SET_MEM_TABLE, REGION.pack(1, 0, 0, memory.maximum, USER_BASE, 0), memory.fd)
        self.tell(SET_VRING_NUM, struct.pack("<II", 0, VIRTQUEUE_NUM))
        self.tell(SET_VRING_BASE, struct.pack("<II", 0, 0))
        at = [USER_BASE + part for part in (ring.desc, ring.used, ring.avail)]
        self.tell(SET_VRING_ADDR, VRING_ADDRESS.pack(0, 0, *at, 0))
        self.tell(SET_VRING_KICK, struct.pack("<Q", 0), kick)
        self.tell(SET_VRING_CALL, struct.pack("<Q", 0), call)
        if offered & F_PROTOCOL_FEATURES:
            self.tell(SET_VRING_ENABLE, struct.pack("<II", 0, 1))
        self.ask(GET_FEATURES)  # answered after all of that was done


class StorageDaemon:
    "A qemu-storage-daemon which serves one disk image, for as long as the `with` lasts."

    def __init__(
        self,
        disk: str,  # path of the image
        aio: str,  # threads (its default) or io_uring
        cpu: int,  # which processor it may use
    ) -> None:
        self.disk, self.aio, self.cpu = disk, aio, cpu

    def __enter__(self) -> "StorageDaemon":
        self.folder = tempfile.TemporaryDirectory()
        path = Path(self.folder.name, "socket")
        listener = socket.socket(socket.AF_UNIX)  # made here, so that there is nothing to wait for
        listener.bind(os.fspath(path))
        listener.listen(1)
        os.set_inheritable(listener.fileno(), True)
        self.process = subprocess.Popen(
            [
                *("taskset", "-c", str(self.cpu), "qemu-storage-daemon"),
                *("--blockdev", f"driver=file,node-name=disk,aio={self.aio},filename={self.disk}"),
                *("--export", "type=vhost-user-blk,id=export,node-name=disk,writable=on,num-queues=1"
                              f",addr.type=fd,addr.str={listener.fileno()}"),
            ],
            pass_fds=[listener.fileno()],
        )
        listener.close()
        self.front_end = FrontEnd(path)
        return self

    def processor_time(self) -> float:  # seconds
        "What all its threads have spent so far, those which have ended too."
        return time.clock_gettime(~self.process.pid << 3 | 2)  # <linux/posix-timers.h>: MAKE_PROCESS_CPUCLOCK

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.front_end.socket.close()
        self.process.kill()  # and not SIGTERM, on which it has been seen to hang
        self.process.wait()
        self.folder.cleanup()
