"""A trace has every kick, chain, interrupt, start and reset, in order, and costs nothing where there is none."""

import fcntl
import itertools
import json
import logging
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes import FakeHost, ScriptedHost, connect
from session import Session
from support import COMMAND, PATIENCE, SCRIPTED, forge_elf, naps

from lguest_nb import guest, trace
from lguest_nb.arguments import UsageError, parse
from lguest_nb.device import Device
from lguest_nb.driver import Driver
from lguest_nb.inspect import devices_state, queue_state, thread_state
from lguest_nb.launcher import Launcher
from lguest_nb.memory import GuestMemory, LguestError
from lguest_nb.rng import Rng
from lguest_nb.threads import reset_device, start_device
from lguest_nb.trace import ChromeTrace, Sink, Tracer, open_trace
from lguest_nb.vring import Virtqueue, ring_at
from lguest_nb.wakeup import Doorbell

pytestmark = pytest.mark.usefixtures("nothing_left")


class Giver(Device):
    "Writes three bytes and gives the buffer back."

    def __init__(self) -> None:
        super().__init__("giver", 99)

    @property
    def services(self):
        return [self.serve]

    def serve(self, vq: Virtqueue) -> None:
        chain = vq.wait()
        vq.add_used(chain, 3 if chain.writable else 0)


class Lab:
    "A device with one queue on a Host without a CPU."

    def __init__(self, memory: GuestMemory) -> None:
        self.host, self.device = FakeHost(), Giver()
        self.vq = Virtqueue(memory, 8, "giver:0")
        self.vq.place(ring_at(memory.take_pages(2), 8))
        self.vq.doorbell = Doorbell(self.vq.ring.desc)
        self.vq.interrupt = lambda: self.host.interrupt(1)
        self.device.queues.append(self.vq)

    def live(self, *requests: tuple[list[bytes], list[int]], resets: int = 1) -> None:
        "Start, serve requests which come with one kick to a sleeping thread, reset."
        asleep = naps(self.vq)
        driver = connect(self.host, self.vq, 1, 0x10000)
        start_device(self.device, self.host, lambda error: None)
        assert asleep.acquire(timeout=PATIENCE)
        for out, into in requests:
            driver.add(out, into)
        if requests:
            driver.kick()
            driver.wait_used(len(requests))
            assert asleep.acquire(timeout=PATIENCE)
        for _ in range(resets):
            reset_device(self.device, self.host)


@pytest.fixture
def lab(memory: GuestMemory) -> Iterator[Lab]:
    lab = Lab(memory)
    yield lab
    reset_device(lab.device, lab.host)
    lab.vq.wakeup.close()


def ticks():
    "A clock which is a microsecond later whenever somebody looks."
    return itertools.count(step=1000).__next__


def traced(lab: Lab, path: Path, *requests: tuple[list[bytes], list[int]]) -> str:
    tracer = open_trace(str(path), ticks())
    tracer.watch(lab.device)
    lab.live(*requests)
    tracer.close()
    return path.read_text()


ONE = ([b"12345"], [16, 4])


class TestReadable:
    def test_every_event_of_a_life_with_its_time_and_thread(self, lab: Lab, tmp_path: Path) -> None:
        text = traced(lab, tmp_path / "trace", ONE, ([b"x"], []))
        mine, its = threading.current_thread().name, "lguest giver:0"
        assert [line.split("  ") for line in squeeze(text)] == [
            ["0.000001", mine, "giver", "start"],
            ["0.000002", its, "giver:0", "kick"],
            ["0.000003", its, "giver:0", "take", "head 0, readable 5, writable 20"],
            ["0.000004", its, "giver:0", "used", "head 0, length 3"],
            ["0.000005", its, "giver:0", "take", "head 3, readable 1, writable 0"],
            ["0.000006", its, "giver:0", "used", "head 3, length 0"],
            ["0.000007", its, "giver:0", "interrupt"],
            ["0.000008", mine, "giver", "reset"],
        ]

    def test_a_stop_is_not_a_kick(self, lab: Lab, tmp_path: Path) -> None:
        assert "kick" not in traced(lab, tmp_path / "trace")

    def test_a_device_which_is_reset_and_started_again_is_still_watched(self, lab: Lab, tmp_path: Path) -> None:
        path = tmp_path / "trace"
        tracer = open_trace(str(path))
        tracer.watch(lab.device)
        for _ in range(2):
            lab.live(resets=1)
        tracer.close()
        assert [line.split()[-1] for line in squeeze(path.read_text())] == ["start", "reset"] * 2

    def test_what_goes_out_is_written_before_it_goes(self, lab: Lab, tmp_path: Path) -> None:
        path, seen = tmp_path / "trace", []
        driver = Driver(lab.vq, 0x10000, 0x1000)
        lab.vq.interrupt = lambda: seen.append(path.read_text().split()[-1])
        lab.vq.wrote = lambda ranges: seen.append("used" if "used" in path.read_text() else "nothing")
        tracer = open_trace(str(path))
        tracer.watch(lab.device)
        driver.add([b"x"], [8])
        lab.device.serve(lab.vq)
        lab.vq.trigger()
        tracer.close()
        assert seen == ["used", "interrupt"]


def squeeze(text: str) -> list[str]:
    "Its lines, with columns two spaces apart."
    return ["  ".join(part.strip() for part in line.split("  ") if part.strip()) for line in text.splitlines()]


class TestChrome:
    def events(self, text: str) -> list[dict]:
        assert text.startswith("[\n") and text.endswith("\n]\n")
        return json.loads(text)

    def test_it_is_one_array_of_the_same_events(self, lab: Lab, tmp_path: Path) -> None:
        events = self.events(traced(lab, tmp_path / "trace.json", ONE))
        instants = [e for e in events if e["ph"] == "i"]
        assert [e["name"] for e in instants] == ["start", "kick", "take", "used", "interrupt", "reset"]
        assert [e["ts"] for e in instants] == [1, 2, 3, 4, 5, 6]  # microseconds
        assert instants[2]["args"] == {"head": 0, "readable": 5, "writable": 20}
        assert instants[3]["args"] == {"head": 0, "length": 3}
        assert instants[3]["cat"] == "giver:0"
        assert all({"pid", "tid", "ts", "s"} <= e.keys() for e in instants)

    def test_each_thread_is_introduced_once_before_its_first_event(self, lab: Lab, tmp_path: Path) -> None:
        names: dict[int, str] = {}
        for event in self.events(traced(lab, tmp_path / "trace.json", ONE, ONE)):
            if event["ph"] == "M":
                assert event["name"] == "thread_name" and event["tid"] not in names
                names[event["tid"]] = event["args"]["name"]
            assert event["tid"] in names
        assert sorted(names.values()) == sorted([threading.current_thread().name, "lguest giver:0"])

    def test_a_chain_is_a_bar_from_taken_to_used(self, lab: Lab, tmp_path: Path) -> None:
        events = self.events(traced(lab, tmp_path / "trace.json", ONE, ([b"x"], [])))
        bars = [(e["ph"], e["id"], e["name"], e["cat"]) for e in events if e["ph"] in "be"]
        assert bars == [(ph, head, "chain", "giver:0") for head in (0, 3) for ph in "be"]

    def test_an_empty_one_is_an_empty_array(self, tmp_path: Path) -> None:
        tracer = open_trace(str(tmp_path / "trace.json"))
        tracer.close()
        assert self.events((tmp_path / "trace.json").read_text()) == []

    def test_at_every_moment_the_file_lacks_only_its_end(self, tmp_path: Path) -> None:
        path = tmp_path / "trace.json"
        tracer = open_trace(str(path))
        for i in range(4):
            assert len(json.loads(path.read_text() + "]")) == (i + 1 if i else 0)
            tracer.note("kick", "queue")
        tracer.close()

    def test_names_may_hold_anything(self, tmp_path: Path) -> None:
        tracer = open_trace(str(tmp_path / "trace.json"))
        tracer.note("start", 'a "device" \\ \n\udcff')
        tracer.close()
        assert self.events((tmp_path / "trace.json").read_text())[1]["cat"] == 'a "device" \\ \n\udcff'


class TestTracer:
    def test_a_queue_which_nobody_watches_has_only_what_its_class_has(self, lab: Lab) -> None:
        lab.live(ONE)
        assert not {"take", "add_used", "hold_used", "wait", "trigger", "more"} & vars(lab.vq).keys()

    def test_a_chain_which_is_held_back_is_noted_when_it_is_given(self, lab: Lab, tmp_path: Path, monkeypatch) -> None:
        def serve(vq: Virtqueue) -> None:
            vq.hold_used(vq.wait(), 1)
            vq.add_used(vq.wait(), 2)

        monkeypatch.setattr(lab.device, "serve", serve)
        lines = squeeze(traced(lab, tmp_path / "trace", ([], [4]), ([], [4])))
        assert [line.rpartition("  ")[2] for line in lines if "used" in line.split("  ")] == [
            "head 0, length 1",
            "head 1, length 2",
        ]

    def test_it_is_one_write_for_each_event(self, tmp_path: Path, monkeypatch) -> None:
        for name in ("trace", "trace.json"):
            tracer = open_trace(str(tmp_path / name))
            writes, write = [], os.write
            monkeypatch.setattr(trace.os, "write", lambda fd, data, w=writes, f=write: (w.append(data), f(fd, data))[1])
            tracer.note("take", "q", head=1, readable=2, writable=3)
            tracer.note("used", "q", head=1, length=3)
            monkeypatch.undo()
            tracer.close()
            assert len(writes) == 2

    @pytest.mark.parametrize("name", ["trace", "trace.json"])
    def test_many_threads_write_whole_lines_in_order_of_time(self, tmp_path: Path, name: str) -> None:
        path = tmp_path / name
        tracer = open_trace(str(path))
        start = threading.Barrier(8)

        def work() -> None:
            start.wait()
            for i in range(200):
                tracer.note("used", "q", head=i, length=i)

        threads = [threading.Thread(target=work, name=f"worker {i}") for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        tracer.close()
        if name.endswith(".json"):
            times = [e["ts"] for e in json.loads(path.read_text()) if e["ph"] == "i"]
        else:
            lines = squeeze(path.read_text())
            assert all(len(line.split("  ")) == 5 for line in lines)
            times = [float(line.split("  ")[0]) for line in lines]
        assert len(times) == 1600
        assert times == sorted(times)

    def test_after_the_end_nothing_is_written(self, tmp_path: Path) -> None:
        path = tmp_path / "trace.json"
        tracer = open_trace(str(path))
        tracer.close()
        tracer.note("kick", "q")
        tracer.close()
        assert path.read_text() == "[\n\n]\n"

    def test_devices_which_are_added_later_are_watched_too(self, tmp_path: Path) -> None:
        path = tmp_path / "trace"

        def drivers(host: ScriptedHost) -> None:
            for place in host.bus.places:
                host.memory.u8[place.status] = 7
                host.bus.notify(place.address)

        tracer = open_trace(str(path))
        with Launcher(2, ScriptedHost(drivers)) as launcher:
            launcher.add(Rng())
            launcher.trace(tracer)
            launcher.add(Rng())
            launcher.run()
        tracer.close()
        assert [line.split()[-1] for line in path.read_text().splitlines()] == ["start", "start", "reset", "reset"]


class TestSink:
    def test_a_file_which_cannot_be_opened_is_a_sentence(self) -> None:
        with pytest.raises(LguestError, match="Failed to open /no/such/trace for writing: No such file"):
            open_trace("/no/such/trace")

    def test_a_full_disk_is_one_warning_and_the_guest_goes_on(self, lab: Lab, caplog) -> None:
        with caplog.at_level(logging.WARNING, "lguest_nb"):
            tracer = open_trace("/dev/full")
            tracer.watch(lab.device)
            lab.live(ONE, ONE)
            tracer.close()
        assert [record.getMessage() for record in caplog.records] == [
            "Failed to write to /dev/full: No space left on device; it ends here."
        ]

    def test_a_short_write_is_continued(self, tmp_path: Path, monkeypatch) -> None:
        sink, write = Sink(str(tmp_path / "trace")), os.write
        monkeypatch.setattr(trace.os, "write", lambda fd, data: write(fd, data[:3]))
        sink.write(b"0123456789")
        sink.close()
        assert (tmp_path / "trace").read_bytes() == b"0123456789"

    def test_a_pipe_which_somebody_made_non_blocking_is_waited_for(self) -> None:
        readable, writable = os.pipe()
        fcntl.fcntl(writable, fcntl.F_SETPIPE_SZ, 4096)
        os.set_blocking(writable, False)
        sink = Sink("")
        sink.fd = writable
        thread = threading.Thread(target=sink.write, args=(b"." * 10000,))
        thread.start()
        got = b""
        while len(got) < 10000:
            got += os.read(readable, 10000)
        thread.join()
        assert not sink.broken
        os.close(readable), os.close(writable)

    def test_stderr_is_not_closed(self, capfd) -> None:
        tracer = open_trace("", ticks())
        tracer.note("kick", "q")
        tracer.close()
        os.fstat(2)
        assert "q           kick" in capfd.readouterr().err

    def test_the_end_does_not_wait_for_a_thread_which_is_stuck(self, monkeypatch) -> None:
        monkeypatch.setattr(trace, "PATIENCE", 0.01)
        readable, writable = os.pipe()
        sink = Sink("")
        sink.fd = writable
        tracer = Tracer(sink, ChromeTrace())
        os.set_blocking(writable, False)
        with pytest.raises(BlockingIOError):
            while True:
                os.write(writable, b".")
        os.set_blocking(writable, True)
        stuck = threading.Thread(target=tracer.note, args=("kick", "q"))
        stuck.start()
        while not tracer._lock.locked():
            os.sched_yield()
        tracer.close()
        assert not tracer.closed
        reader = threading.Thread(target=lambda: [None for _ in iter(lambda: os.read(readable, 4096), b"")])
        reader.start()
        stuck.join()
        os.close(writable)
        reader.join()
        os.close(readable)


class TestState:
    def test_without_a_ring_or_a_thread_it_says_so(self, memory: GuestMemory) -> None:
        device = Giver()
        device.queues.append(Virtqueue(memory, 8, "giver:0"))
        assert devices_state([device]) == "giver: not running\n  giver:0: no ring, no thread"
        device.queues[0].wakeup.close()

    def test_a_sleeping_queue_and_what_waits_in_it(self, lab: Lab) -> None:
        lab.live(ONE, resets=0)
        Driver(lab.vq, 0x18000, 0x1000).add([b"x"])  # without a kick
        while "asleep" not in thread_state(lab.vq.thread):
            os.sched_yield()
        assert devices_state([lab.device]).splitlines() == [
            "giver: running, accepted 0x0",
            "  giver:0: avail idx 2, taken 1, used idx 1 (1 waiting, 0 in work, 0 not announced), "
            "flags none, asleep until a kick",
        ]

    def test_indices_wrap_and_their_differences_do_not(self, lab: Lab) -> None:
        vq = lab.vq
        vq.last_avail, vq.used_idx, vq.pending_used = 2, 0xFFFF, 1
        vq.memory.u16[vq.avail + 1] = 4
        vq.memory.u16[vq.avail] = vq.memory.u16[vq.used] = 1
        assert devices_state([lab.device]).splitlines()[1] == (
            "  giver:0: avail idx 4, taken 2, used idx 65535 (2 waiting, 3 in work, 1 not announced), "
            "flags NO_INTERRUPT NO_NOTIFY, no thread"
        )

    def test_a_queue_with_event_indices_shows_them_instead_of_flags(self, lab: Lab) -> None:
        vq = lab.vq
        vq.event_idx = True
        vq.place(vq.ring)
        vq.memory.u16[vq.used_event], vq.memory.u16[vq.avail_event] = 6, 65535
        vq.memory.u16[vq.avail] = vq.memory.u16[vq.used] = 1  # which mean nothing now
        assert queue_state(vq).endswith("0 not announced), used_event 6, avail_event 65535, no thread")

    def test_a_thread_at_work_is_in_a_function_and_a_dead_one_is_dead(self) -> None:
        inside, go_on = threading.Event(), os.eventfd(0)

        def toil() -> None:
            inside.set()
            os.eventfd_read(go_on)

        thread = threading.Thread(target=toil)
        assert thread_state(thread) == "no thread"
        thread.start()
        inside.wait()
        while "toil" not in (state := thread_state(thread)):
            os.sched_yield()
        assert state.startswith("working in ")
        os.eventfd_write(go_on, 1)
        thread.join()
        os.close(go_on)
        assert thread_state(thread) == "its thread has ended"

    def test_after_the_end_a_launcher_says_so(self) -> None:
        with Launcher(2, ScriptedHost()) as launcher:
            launcher.add(Rng())
            assert launcher.state().startswith("rng: not running\n  rng:0: ")
        assert launcher.state() == "The Guest is over."


class TestCommandLine:
    def test_its_file_is_optional(self) -> None:
        assert parse(["64", "vmlinux"]).trace is None
        assert parse(["--trace", "64", "vmlinux"]).trace == ""
        assert parse(["64", "vmlinux", "--trace"]).trace == ""
        assert parse(["--trace=a.json", "64", "vmlinux"]).trace == "a.json"
        assert parse(["--trace", "64", "vmlinux", "--trace=b"]).trace == "b"

    def test_behind_two_dashes_it_is_the_kernels(self) -> None:
        args = parse(["64", "vmlinux", "--", "--trace"])
        assert (args.trace, args.command_line) == (None, "--trace")

    def test_pcap_wants_a_file(self) -> None:
        assert parse(["--pcap=a", "64", "vmlinux"]).pcap == "a"
        assert parse(["--pcap", "a", "64", "vmlinux"]).pcap == "a"
        with pytest.raises(UsageError, match="option --pcap requires argument"):
            parse(["64", "vmlinux", "--pcap"])

    def test_a_real_guests_requests_are_in_its_trace(self, tmp_path: Path) -> None:
        path, disk = tmp_path / "trace.json", tmp_path / "disk"
        disk.write_bytes(bytes(8 * 512))
        options = [f"--trace={path}", f"--block={disk}", "16", str(guest.path())]
        line = guest.command_line("disk write 3 hello", "disk read 3", "poweroff")
        done = subprocess.run([*COMMAND, *options, line], stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr
        events = [e for e in json.loads(path.read_text()) if e.get("cat") == "block:0" and e["ph"] == "i"]
        requests = [(e["name"], e["args"]) for e in events if e["name"] in ("take", "used")]
        (write, wrote), *_, (read, got) = pairs(requests)  # in between it looks at what it wrote
        assert (write["readable"], write["writable"], wrote["length"]) == (16 + 512, 1, 1)
        assert (read["readable"], read["writable"], got["length"]) == (16, 512 + 1, 513)
        assert write["head"] == wrote["head"] and read["head"] == got["head"]
        assert {"kick", "interrupt"} <= {e["name"] for e in events}

    def test_to_stderr_it_is_readable(self, tmp_path: Path) -> None:
        options = ["--trace", "16", str(guest.path()), guest.command_line("poweroff")]
        done = subprocess.run(
            [*COMMAND, *options], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0
        assert any(line.endswith("console     start") for line in done.stderr.splitlines())
        assert squeeze(done.stderr)[-1].endswith("console  reset")

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
    def test_a_signal_ends_the_file_properly(self, tmp_path: Path, number: signal.Signals) -> None:
        path = self.killed_by(tmp_path, number)
        assert "kick" in {e["name"] for e in json.loads(path.read_text())}

    def test_a_sigkill_loses_only_the_end(self, tmp_path: Path) -> None:
        path = self.killed_by(tmp_path, signal.SIGKILL)
        assert "kick" in {e["name"] for e in json.loads(path.read_text() + "]")}

    def killed_by(self, tmp_path: Path, number: signal.Signals) -> Path:
        "The trace of a Guest which prints its prompt and is killed."
        path = tmp_path / "trace.json"
        session = Session([*COMMAND, f"--trace={path}", "16", str(guest.path())])
        try:
            session.expect("tiny> ")
            session.ask("help")
            session.process.send_signal(number)
            assert session.wait_for_end() == -number
        finally:
            session.close()
        return path

    def test_a_file_which_cannot_be_had_is_a_sentence_before_the_guest(self, tmp_path: Path) -> None:
        kernel = tmp_path / "vmlinux"
        kernel.write_bytes(forge_elf())
        for option in ("--trace=/no/such/file", "--pcap=/no/such/file"):
            done = subprocess.run(
                [*SCRIPTED, f"--trace={tmp_path}/t", option, "2", str(kernel)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                env=os.environ | {"SCENE": "power-off"},
                timeout=60,
            )
            assert (done.returncode, done.stdout) == (1, "")
            assert done.stderr == "lguest-nb: Failed to open /no/such/file for writing: No such file or directory.\n"


def pairs(requests: list[tuple[str, dict[str, int]]]) -> list[tuple[dict[str, int], dict[str, int]]]:
    "What was said of a request when it was taken and when it was given back, of a device which serves one by one."
    assert [name for name, _ in requests] == ["take", "used"] * (len(requests) // 2)
    values = [values for _, values in requests]
    return list(zip(values[::2], values[1::2], strict=True))
