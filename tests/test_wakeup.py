"""A thread's bed: every way to sleep ends with a kick or a stop, and neither gets lost."""

import os
import select
import threading
from collections.abc import Iterator, Sequence
from queue import SimpleQueue

import pytest
from support import PATIENCE

from lguest_nb.knock import Reader
from lguest_nb.wakeup import Stopped, Wakeup

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture
def wakeup() -> Iterator[Wakeup]:
    wakeup = Wakeup()
    yield wakeup
    wakeup.close()


def test_a_stop_before_the_sleep_is_not_slept_through(wakeup: Wakeup) -> None:
    wakeup.stop()
    for sleep in (wakeup.sleep, lambda: wakeup.sleep_on(select.EPOLLIN), wakeup.check):
        with pytest.raises(Stopped):
            sleep()


def test_whoever_reads_elsewhere_is_called_away_by_a_stop_and_may_come_again(wakeup: Wakeup) -> None:
    reads, writes = os.pipe()
    reader, buffer, said = Reader(reads), memoryview(bytearray(4)), SimpleQueue[object]()

    def sleep() -> None:
        try:
            said.put(wakeup.sleep_in(reader, [buffer]))
        except Stopped:
            said.put("stopped")

    for night in range(100):
        thread = threading.Thread(target=sleep)
        thread.start()
        if night % 2:
            os.write(writes, b"word")
            assert said.get(timeout=PATIENCE) == 4
        wakeup.stop()
        thread.join()
        if not night % 2:
            assert said.get(timeout=PATIENCE) == "stopped"
        wakeup.rearm()
    reader.close()
    for fd in (reads, writes):
        os.close(fd)


def test_a_knock_which_is_not_for_us_is_slept_on(wakeup: Wakeup) -> None:
    answers = iter([InterruptedError(), InterruptedError(), 7])

    class Restless:
        def readv(self, views: Sequence[memoryview]) -> int:
            answer = next(answers)
            if isinstance(answer, InterruptedError):
                raise answer
            return answer

        def call_away(self) -> None: ...

        def make_bed(self) -> None: ...

    assert wakeup.sleep_in(Restless(), []) == 7


def test_a_kick_before_a_reset_is_kept_for_after_it(wakeup: Wakeup) -> None:
    os.eventfd_write(wakeup.kicks, 1)
    wakeup.stop()
    wakeup.rearm()
    wakeup.sleep()
    wakeup.check()


def test_rearming_what_nobody_stopped_does_not_wait(wakeup: Wakeup) -> None:
    wakeup.rearm()
    wakeup.stop()
    wakeup.stop()
    wakeup.rearm()
    wakeup.rearm()
    wakeup.check()


def test_a_ready_descriptor_ends_the_wait_and_so_does_its_end(wakeup: Wakeup) -> None:
    reads, writes = os.pipe()
    os.write(writes, b"x")
    wakeup.sleep_on(reads)
    os.read(reads, 1)
    wakeup.sleep_on(writes, select.POLLOUT)
    os.close(writes)
    wakeup.sleep_on(reads)
    os.close(reads)
