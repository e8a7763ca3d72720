"""The least of virtio-mmio (virtio 1.2 §4.2) that a driver needs, to prove that a Device does not know its Bus.

Not the bus which today's kernels get: no interrupt coalescing, no 64-bit anything, no shared memory.
"""

from contextlib import suppress
from functools import partial

from lguest_nb.device import F_RING_INDIRECT_DESC, STATUS_DRIVER_OK, Device
from lguest_nb.host import Host
from lguest_nb.memory import GuestError, GuestMemory
from lguest_nb.threads import reset_device, start_device
from lguest_nb.vring import RingLayout, Virtqueue
from lguest_nb.wakeup import Doorbell

MAGIC, VERSION, DEVICE_ID = 0x000, 0x004, 0x008
DEVICE_FEATURES, DEVICE_FEATURES_SEL, DRIVER_FEATURES, DRIVER_FEATURES_SEL = 0x010, 0x014, 0x020, 0x024
QUEUE_SEL, QUEUE_NUM_MAX, QUEUE_NUM, QUEUE_READY, QUEUE_NOTIFY = 0x030, 0x034, 0x038, 0x044, 0x050
INTERRUPT_STATUS, INTERRUPT_ACK, STATUS = 0x060, 0x064, 0x070
QUEUE_DESC, QUEUE_DRIVER, QUEUE_DEVICE = 0x080, 0x090, 0x0A0  # each a low half, and a high one 4 bytes on
STATUS_FEATURES_OK, STATUS_NEEDS_RESET = 8, 0x40
USED_BUFFER, CONFIG_CHANGE = 1, 2
F_VERSION_1 = 1 << 32
MOST = 64  # entries of a queue


class BareMmioBus:
    "One device behind a page of registers at `base`; the rings are where the Guest's driver puts them."

    def __init__(self, memory: GuestMemory, host: Host, device: Device, base: int, irq: int) -> None:
        self.memory, self.host, self.device, self.base, self.irq = memory, host, device, base, irq
        self.features = device.features | F_VERSION_1 | F_RING_INDIRECT_DESC
        self.failures: list[BaseException] = []
        for i in range(len(device.services)):
            vq = Virtqueue(memory, MOST, f"{device.name}:{i}")
            vq.doorbell = Doorbell(base + QUEUE_NOTIFY, i)
            vq.interrupt = partial(self._interrupt, USED_BUFFER)
            vq.wrote = host.wrote
            device.queues.append(vq)
        self._forget()

    def _forget(self) -> None:
        "What a reset does to the registers."
        self.status = self.interrupt_status = self.accepted = self.selected = 0
        self.selectors = {DEVICE_FEATURES_SEL: 0, DRIVER_FEATURES_SEL: 0}
        for vq in self.device.queues:
            vq.ready = False
        self.parts = [{QUEUE_DESC: 0, QUEUE_DRIVER: 0, QUEUE_DEVICE: 0} for _ in self.device.queues]
        self.nums = [MOST] * len(self.device.queues)

    def read(self, offset: int) -> int:
        "The Guest reads a register."
        values = {
            MAGIC: 0x74726976,
            VERSION: 2,
            DEVICE_ID: self.device.virtio_id,
            DEVICE_FEATURES: self.features >> 32 * self.selectors[DEVICE_FEATURES_SEL] & 0xFFFFFFFF,
            QUEUE_NUM_MAX: MOST if self._queue else 0,
            QUEUE_READY: int(self._queue is not None and self._queue.ready),
            INTERRUPT_STATUS: self.interrupt_status,
            STATUS: self.status,
        }
        return values.get(offset, 0)

    def write(self, offset: int, value: int) -> None:
        "The Guest writes a register; a kick comes here only where no eventfd claims it, and is then too early."
        if offset == STATUS:
            self._set_status(value)
        elif offset in self.selectors:
            self.selectors[offset] = value
        elif offset == DRIVER_FEATURES and not self.status & STATUS_FEATURES_OK:
            self.accepted |= value << 32 * self.selectors[DRIVER_FEATURES_SEL]
        elif offset == QUEUE_SEL:
            self.selected = value
        elif offset == INTERRUPT_ACK:
            self.interrupt_status &= ~value
        elif self._queue and not self._queue.ready:
            self._set_up(self._queue, self.selected, offset, value)

    @property
    def _queue(self) -> Virtqueue | None:
        "The one which QueueSel selects, if there is one."
        return self.device.queues[self.selected] if self.selected < len(self.device.queues) else None

    def _set_up(self, vq: Virtqueue, i: int, offset: int, value: int) -> None:
        part, high = offset & ~4, offset & 4
        if offset == QUEUE_NUM and 0 < value <= MOST and value & (value - 1) == 0:
            self.nums[i] = value
        elif part in self.parts[i]:
            keep = 0xFFFFFFFF if high else 0xFFFFFFFF << 32
            self.parts[i][part] = self.parts[i][part] & keep | value << (32 if high else 0)
        elif offset == QUEUE_READY and value == 1:
            parts, vq.num = self.parts[i], self.nums[i]
            with suppress(GuestError):
                vq.place(RingLayout(parts[QUEUE_DESC], parts[QUEUE_DRIVER], parts[QUEUE_DEVICE]))

    def _set_status(self, value: int) -> None:
        if value == 0:
            reset_device(self.device, self.host)
            self._forget()
            return
        if value & STATUS_FEATURES_OK and (self.accepted & ~self.features or not self.accepted & F_VERSION_1):
            value &= ~STATUS_FEATURES_OK
        self.status |= value
        if value & STATUS_DRIVER_OK and not self.device.running:
            self._start()

    def _start(self) -> None:
        self.device.accepted = self.accepted
        for vq in self.device.queues:
            vq.indirect = bool(self.accepted & F_RING_INDIRECT_DESC)
            vq.notify_on_empty = False
        start_device(self.device, self.host, self._failed)

    def _failed(self, error: BaseException) -> None:
        "On the thread of the queue which is broken: it asks the others to stop, and the reset waits for all."
        for vq in self.device.queues:
            vq.wakeup.stop()
        self._needs_reset(error)

    def _needs_reset(self, error: BaseException) -> None:
        self.failures.append(error)
        self.status |= STATUS_NEEDS_RESET
        if self.status & STATUS_DRIVER_OK:
            self._interrupt(CONFIG_CHANGE)

    def _interrupt(self, why: int) -> None:
        self.interrupt_status |= why
        self.host.interrupt(self.irq)

    def close(self) -> None:
        reset_device(self.device, self.host)
        for vq in self.device.queues:
            vq.wakeup.close()
