"""What drivers/lguest/lguest_user.c answers, for a test: every request checked, and a Guest which is a generator.

The Guest yields the addresses it pokes, HALT to sleep until an interrupt, or BUSY to compute for a moment; it is sent
the interrupts which are pending. It ends with the text of its SHUTDOWN hypercall, or RESTART, or is `Killed`.
"""

import errno
import os
import struct
import threading
from collections.abc import Generator
from inspect import getgeneratorstate
from typing import Any, Final, Literal

from cffi import FFI

HALT: Final = "halt"
BUSY: Final = "busy"
RESTART: Final = "restart"
Step = int | Literal["halt", "busy"]
Guest = Generator[Step, list[int], str]
INITIALIZE, GETDMA, IRQ, BREAK, EVENTFD = range(5)
ARGUMENTS = {INITIALIZE: 3, IRQ: 1, EVENTFD: 2}
LGUEST_IRQS = 32

ffi = FFI()
ffi.cdef("ssize_t read(int, void *, size_t); int poll(void *, unsigned long, int);")
libc: Any = ffi.dlopen(None)


class Killed(Exception):
    "The module kills the Guest, with a text of its own."


class Standin:
    "One open /dev/lguest."

    def __init__(self, guest: Guest | None = None, word_size: int = struct.calcsize("L"), answer: int = 3) -> None:
        self.guest, self.word_size, self.answer = guest, word_size, answer
        self.code = {4: "I", 8: "Q"}[word_size]
        self.requests: list[tuple[int, ...]] = []
        self.raw: list[bytes] = []
        self.reads: list[int] = []
        self.refuse: dict[int, int] = {}  # request: errno
        self.owner: int | None = None
        self.dead: bytes | Literal["restart"] | None = None
        self.eventfds: list[tuple[int, int]] = []  # address and a descriptor of our own, in order
        self.irqs: list[int] = []
        self.running = self.closed = False
        self._interrupted = os.eventfd(0, os.EFD_CLOEXEC)
        self._waits = False

    def write(self, request: bytes) -> int:
        if self.closed:
            raise self.error(errno.EBADF)
        assert type(request) is bytes and len(request) % self.word_size == 0
        number, *arguments = struct.unpack(f"<{len(request) // self.word_size}{self.code}", request)
        self.raw.append(request)
        self.requests.append((number, *arguments))
        if number != INITIALIZE and self.owner is None:
            raise self.error(errno.EINVAL)
        if number != INITIALIZE and self.dead:
            raise self.error(errno.ENOENT)
        if number in self.refuse:
            raise self.error(self.refuse[number])
        if number not in ARGUMENTS:
            raise self.error(errno.EINVAL)
        assert len(arguments) == ARGUMENTS[number], f"{request!r} is not as long as the request"
        return (self._initialize, self._irq, self._eventfd)[number // 2](*arguments)

    def _initialize(self, base: int, pages: int, entry: int) -> int:
        if self.owner is not None:
            raise self.error(errno.EBUSY)
        self.owner = threading.get_ident()
        self.base, self.pages, self.entry = base, pages, entry
        return self.answer * self.word_size

    def _irq(self, irq: int) -> int:
        if irq >= LGUEST_IRQS:
            raise self.error(errno.EINVAL)
        self.irqs.append(irq)
        os.eventfd_write(self._interrupted, 1)
        return 0

    def _eventfd(self, address: int, fd: int) -> int:
        if not address:
            raise self.error(errno.EINVAL)
        if os.readlink(f"/proc/self/fd/{fd}") != "anon_inode:[eventfd]" if is_open(fd) else True:
            raise self.error(errno.EINVAL if is_open(fd) else errno.EBADF)
        self.eventfds.append((address, os.dup(fd)))
        return 0

    def memory(self, address: int, length: int) -> bytes:
        "What the Guest sees there, through the base which was written."
        return bytes(ffi.buffer(ffi.cast("char *", self.base + address), length))

    def pread(self, size: int) -> bytes:
        self.reads.append(size)
        if self.owner is None:
            raise self.error(errno.EINVAL)
        if self.owner != threading.get_ident():
            raise self.error(errno.EPERM)
        if self.dead == "restart":
            raise self.error(errno.ERESTART)
        if self.dead:
            return (self.dead + b"\0")[:size]
        self.running = True
        try:
            return self._run()
        finally:
            self.running = False

    def _run(self) -> bytes:
        assert self.guest is not None
        while True:
            if self._waits:
                self._halt()
            try:
                step = self._step(self.guest)
            except StopIteration as end:
                self.dead = "restart" if end.value == RESTART else b"CRASH: " + str(end.value).encode("latin-1")
            except Killed as e:
                self.dead = str(e).encode()
            if self.dead:
                raise self.error(errno.ERESTART if self.dead == "restart" else errno.ENOENT)
            if isinstance(step, int):
                fd = next((fd for address, fd in self.eventfds if address == step), None)
                if fd is None:
                    return struct.pack(f"<{self.code}", step)
                os.eventfd_write(fd, 1)
            elif step == HALT:
                self._waits = True
            elif libc.poll(ffi.NULL, 0, 1) < 0:
                raise self.error(ffi.errno)

    def _halt(self) -> None:
        "Sleep until an interrupt or a signal."
        if libc.read(self._interrupted, ffi.new("uint64_t *"), 8) < 0:
            raise self.error(ffi.errno)
        self._waits = False

    def _step(self, guest: Guest) -> Step:
        "The Guest runs until it needs the module."
        if getgeneratorstate(guest) == "GEN_CREATED":
            return next(guest)
        irqs, self.irqs = self.irqs, []
        return guest.send(irqs)

    def error(self, number: int) -> OSError:
        return OSError(number, os.strerror(number))

    def close(self) -> None:
        assert not self.closed and not self.running
        self.closed = True
        for _, fd in self.eventfds:
            os.close(fd)
        os.close(self._interrupted)


def is_open(fd: int) -> bool:
    return os.path.exists(f"/proc/self/fd/{fd}")
