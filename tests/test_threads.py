"""One thread and one eventfd for each virtqueue: start, kick, reset, and what a raising service function costs."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import pytest
from fakes import FakeHost, connect
from support import PATIENCE, lguest_threads, naps

from lguest_nb.device import Device
from lguest_nb.driver import Driver
from lguest_nb.host import HostError
from lguest_nb.memory import GuestMemory
from lguest_nb.threads import reset_device, start_device
from lguest_nb.vring import USED_NO_NOTIFY, Virtqueue, ring_at
from lguest_nb.wakeup import Doorbell

pytestmark = pytest.mark.usefixtures("nothing_left")


class Giver(Device):
    "Gives every buffer back, and does something else first if a test wants it to."

    def __init__(self) -> None:
        super().__init__("giver", 99)
        self.first: Callable[[Virtqueue], None] = lambda vq: None
        self.served: dict[int, set[int]] = {0: set(), 1: set()}  # threads, for each queue

    @property
    def services(self) -> Sequence[Callable[[Virtqueue], None]]:
        return [self.serve, self.serve]

    def serve(self, vq: Virtqueue) -> None:
        chain = vq.wait()
        self.served[self.queues.index(vq)].add(threading.get_ident())
        self.first(vq)
        vq.add_used(chain, 0)


class Bench:
    "A device with two queues on a Host, and a list of what it raised."

    def __init__(self, memory: GuestMemory) -> None:
        self.memory, self.host, self.device = memory, FakeHost(), Giver()
        self.failures: list[BaseException] = []
        self.failed = threading.Event()
        for i in range(2):
            vq = Virtqueue(memory, 8, f"giver:{i}")
            vq.place(ring_at(memory.take_pages(2), 8))
            vq.doorbell = Doorbell(vq.ring.desc)
            vq.interrupt = [lambda: self.host.interrupt(1), lambda: self.host.interrupt(2)][i]
            self.device.queues.append(vq)

    @property
    def queues(self) -> list[Virtqueue]:
        return self.device.queues

    def start(self) -> None:
        start_device(self.device, self.host, self._note)

    def _note(self, error: BaseException) -> None:
        self.failures.append(error.with_traceback(None))
        self.failed.set()

    def reset(self) -> None:
        reset_device(self.device, self.host)

    def driver(self, i: int) -> Driver:
        return connect(self.host, self.queues[i], 1 + i, 0x10000 + 0x8000 * i)

    def kick(self, i: int) -> bool:
        return self.host.kick(self.queues[i].ring.desc)


@pytest.fixture
def bench(memory: GuestMemory) -> Iterator[Bench]:
    bench = Bench(memory)
    yield bench
    bench.reset()
    for vq in bench.queues:
        vq.wakeup.close()


def test_each_queue_has_a_thread_and_an_eventfd_of_its_own(bench: Bench) -> None:
    bench.start()
    assert sorted(lguest_threads()) == ["lguest giver:0", "lguest giver:1"]
    for i in range(2):
        driver = bench.driver(i)
        driver.add(out=[b"x"])
        bench.kick(i)
        driver.wait_used()
    first, second = bench.device.served[0], bench.device.served[1]
    assert len(first) == len(second) == 1 and first != second
    assert len(set(bench.host.eventfds.values())) == 2


def test_a_kick_of_one_queue_does_not_wake_the_other(bench: Bench) -> None:
    asleep = [naps(vq) for vq in bench.queues]
    bench.start()
    for each in asleep:
        assert each.acquire(timeout=PATIENCE)
    bench.kick(1)
    assert asleep[1].acquire(timeout=PATIENCE)
    assert not asleep[0].acquire(blocking=False)


def test_service_is_called_again_and_again(bench: Bench) -> None:
    bench.start()
    driver = bench.driver(0)
    for _ in range(20):
        driver.add(out=[b"x"])
        bench.kick(0)
        driver.wait_used()


def test_kicks_are_unwanted_from_the_start_until_the_thread_sleeps(bench: Bench) -> None:
    go_on = threading.Event()
    bench.device.first = lambda vq: go_on.wait()
    asleep = naps(bench.queues[0])
    driver = bench.driver(0)
    driver.add(out=[b"x"])
    bench.start()
    assert driver.memory.u16[bench.queues[0].used] == USED_NO_NOTIFY
    go_on.set()
    assert asleep.acquire(timeout=PATIENCE)
    assert driver.memory.u16[bench.queues[0].used] == 0


def test_the_eventfd_is_attached_before_the_thread_runs(bench: Bench, monkeypatch) -> None:
    monkeypatch.setattr(threading.Thread, "start", lambda thread: seen.append(len(bench.host.eventfds)))
    seen: list[int] = []
    bench.start()
    assert seen == [2, 2]
    for vq in bench.queues:
        vq.thread = None


def test_a_reset_stops_and_joins_every_thread(bench: Bench) -> None:
    bench.start()
    bench.reset()
    assert lguest_threads() == []
    assert (bench.device.running, bench.host.eventfds) == (False, {})
    assert [vq.thread for vq in bench.queues] == [None, None]


def test_a_reset_waits_for_the_request_which_is_being_served(bench: Bench) -> None:
    busy, go_on, done = threading.Event(), threading.Event(), []

    def slowly(vq: Virtqueue) -> None:
        busy.set()
        go_on.wait(PATIENCE)
        done.append(vq.name)

    bench.device.first = slowly
    bench.start()
    bench.driver(0).add(out=[b"x"])
    bench.kick(0)
    assert busy.wait(PATIENCE)
    stopped, stop = threading.Event(), bench.queues[1].wakeup.stop
    bench.queues[1].wakeup.stop = lambda: (stop(), stopped.set())  # type: ignore[method-assign]
    reset = threading.Thread(target=bench.reset, name="lguest test reset")
    reset.start()
    assert stopped.wait(PATIENCE)
    assert reset.is_alive() and not done
    go_on.set()
    reset.join(PATIENCE)
    assert done == ["giver:0"]
    assert lguest_threads() == []


def test_after_a_reset_nothing_of_ours_touches_the_ring(bench: Bench) -> None:
    bench.start()
    driver = bench.driver(0)
    driver.add(out=[b"x"])
    bench.kick(0)
    driver.wait_used()
    bench.reset()
    vq = bench.queues[0]
    bench.memory.u8[vq.ring.desc : vq.ring.desc + 8192] = bytes([0xEE]) * 8192
    os.eventfd_write(vq.wakeup.kicks, 1)
    assert bench.memory.read(vq.ring.desc, 8192) == bytes([0xEE]) * 8192


def test_detached_before_stopped_so_that_a_late_kick_is_an_early_one(bench: Bench) -> None:
    order: list[tuple[str, int]] = []

    def noting(stop: Callable[[], None], address: int) -> None:
        order.append(("stop", address))
        stop()

    bench.start()
    detach = bench.host.detach_eventfd
    bench.host.detach_eventfd = lambda *a: (order.append(("detach", a[0])), detach(*a))  # type: ignore
    for vq in bench.queues:
        noted = partial(noting, vq.wakeup.stop, vq.ring.desc)
        vq.wakeup.stop = noted  # type: ignore[method-assign]
    bench.reset()
    for vq in bench.queues:
        assert order.index(("detach", vq.ring.desc)) < order.index(("stop", vq.ring.desc))


def test_the_eventfd_of_a_queue_is_the_same_for_life(bench: Bench) -> None:
    seen = []
    for _ in range(3):
        bench.start()
        seen.append(dict(bench.host.eventfds))
        bench.reset()
    assert seen[0] == seen[1] == seen[2]


def test_a_device_can_be_reset_a_hundred_times(bench: Bench) -> None:
    for _ in range(100):
        for vq in bench.queues:
            bench.memory.u8[vq.ring.desc : vq.ring.desc + 8192] = bytes(8192)
            vq.place(vq.ring)
        bench.start()
        drivers = [bench.driver(i) for i in range(2)]
        for i, driver in enumerate(drivers):
            driver.add(out=[b"x"])
            bench.kick(i)
        for driver in drivers:
            driver.wait_used()
        bench.reset()
        assert lguest_threads() == []
    assert bench.failures == []


def test_resetting_what_does_not_run_does_nothing(bench: Bench) -> None:
    bench.reset()
    assert bench.host.calls == []


def test_a_thread_may_reset_its_own_device(bench: Bench) -> None:
    "It does not wait for itself, but for the other thread of its device."
    others = []

    def give_up(vq: Virtqueue) -> None:
        bench.reset()
        others.append([name for name in lguest_threads() if name != f"lguest {vq.name}"])

    bench.device.first = give_up
    bench.start()
    thread = bench.queues[0].thread
    bench.driver(0).add(out=[b"x"])
    bench.kick(0)
    assert thread is not None
    thread.join(PATIENCE)
    assert others == [[]]
    assert lguest_threads() == []


@pytest.mark.parametrize("error", [RuntimeError("boom"), SystemExit(3), KeyboardInterrupt()], ids=repr)
def test_what_a_service_raises_is_reported_and_ends_its_thread_alone(bench: Bench, error: BaseException, capfd) -> None:
    def boom(vq: Virtqueue) -> None:
        if vq is bench.queues[0]:
            raise error

    bench.device.first = boom
    bench.start()
    victim = bench.queues[0].thread
    bench.driver(0).add(out=[b"x"])
    bench.kick(0)
    assert bench.failed.wait(PATIENCE)
    assert victim is not None
    victim.join(PATIENCE)
    assert bench.failures == [error]
    assert "giver:0" in str(getattr(error, "__notes__", ""))
    other = bench.driver(1)
    other.add(out=[b"x"])
    bench.kick(1)
    other.wait_used()
    assert capfd.readouterr() == ("", "")


def test_a_stop_is_no_failure(bench: Bench) -> None:
    bench.start()
    bench.reset()
    assert bench.failures == []


def test_threads_do_not_keep_a_process_alive(bench: Bench) -> None:
    bench.start()
    assert all(vq.thread is not None and vq.thread.daemon for vq in bench.queues)


def test_a_host_which_refuses_an_eventfd_leaves_no_thread(bench: Bench) -> None:
    def refuse(address: int, fd: int, value: int | None = None) -> None:
        if address == bench.queues[1].ring.desc:
            raise HostError("No more eventfds.")
        bench.host.eventfds[address, value] = fd

    bench.host.attach_eventfd = refuse  # type: ignore[method-assign]
    with pytest.raises(HostError, match="No more eventfds"):
        bench.start()
    assert lguest_threads() == []
    assert not bench.device.running
    bench.reset()
    assert bench.host.eventfds == {}


def test_a_queue_without_a_ring_is_not_served(bench: Bench) -> None:
    bench.queues[0].ready = False
    bench.start()
    assert lguest_threads() == ["lguest giver:1"]
    assert list(bench.host.eventfds) == [(bench.queues[1].ring.desc, None)]
