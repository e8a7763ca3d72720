"""Live views without a browser: a Guest beside you, and what each view makes of it before anybody paints it."""

import os
import re
import signal
import subprocess
import sys
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fakes import FakeHost, ScriptedHost
from hypothesis import given
from hypothesis import strategies as st
from support import PATIENCE, Ring, lguest_threads, naps, until

from lguest_nb.device import F_VERSION_1, Device, Service
from lguest_nb.driver import Driver
from lguest_nb.guest import DATA, Pieces, command_line
from lguest_nb.host import Ending
from lguest_nb.launcher import Launcher
from lguest_nb.live import ring as ring_module
from lguest_nb.live.guest import LiveGuest
from lguest_nb.live.memory_map import overlap, paint_map, regions, touched
from lguest_nb.live.neighbour import answer, neighbourly
from lguest_nb.live.ring import ATTEMPTS, Reading, read_once, read_twice, snapshot
from lguest_nb.live.ring_view import ROWS, RingView, choose_rows, paint_ring, window
from lguest_nb.live.slow import STEPS, SlowMotion
from lguest_nb.live.terminal import Terminal, TerminalView
from lguest_nb.live.timeline import CPU, Recorder, TimelineView, paint_timeline, timeline
from lguest_nb.live.view import View
from lguest_nb.memory import GuestMemory, LguestError
from lguest_nb.threads import reset_device, start_device
from lguest_nb.trace import Event
from lguest_nb.vring import DESC_INDIRECT, DESC_NEXT, DESC_WRITE, Virtqueue
from lguest_nb.wakeup import Doorbell

NOTEBOOKS = sorted((Path(__file__).parent.parent / "nbs").glob("9?_*.ipynb"))


@pytest.fixture
def guest(nothing_left: None) -> Iterator[LiveGuest]:
    "The tiny Guest; the software Host runs it."
    guest = LiveGuest(name="tested")
    yield guest
    guest.stop()
    assert guest.wait(PATIENCE)


def python(code: str) -> str:
    "What a fresh Python says."
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return (done.stdout + done.stderr).strip()


class TestWhoNeedsIt:
    def test_neither_the_package_nor_the_command_line_imports_what_live_views_need(self) -> None:
        code = "import sys, lguest_nb, lguest_nb.cli, lguest_nb.live.guest, lguest_nb.live.ring, lguest_nb.live.slow\n"
        code += "print(sorted({'anywidget', 'ipywidgets', 'pyte', 'traitlets', 'IPython'} & set(sys.modules)))"
        assert python(code) == "[]"

    @pytest.mark.parametrize("lacking, module", [("anywidget", "view"), ("pyte", "terminal"), ("ipywidgets", "desk")])
    def test_who_lacks_it_is_told_in_a_sentence(self, lacking: str, module: str) -> None:
        hook = "class No:\n def find_spec(self, name, path=None, target=None):\n"
        hook += f"  if name == {lacking!r}: raise ModuleNotFoundError(name=name)\n"
        code = f"import sys\n{hook}sys.meta_path.insert(0, No())\nimport lguest_nb.memory\n"
        code += f"try: import lguest_nb.live.{module}\n"
        code += "except lguest_nb.memory.LguestError as e: print(isinstance(e, ImportError), e)"
        said = python(code)
        assert said.startswith(f"True Live views need the Python package {lacking}, which is not installed: `pip ")


class TestGuest:
    def test_it_talks_and_stops_and_leaves_nothing(self, guest: LiveGuest) -> None:
        guest.start()
        assert guest.ask("echo hello").splitlines() == ["echo hello", "hello", "tiny> "]
        assert guest.status() == "It runs."
        guest.stop()
        assert guest.wait(PATIENCE)
        assert guest.status() == "You stopped it."

    def test_a_death_is_a_sentence_and_the_process_goes_on(self, guest: LiveGuest) -> None:
        guest.start().ask("")
        guest.type(b"panic enough\r")
        assert guest.wait(PATIENCE)
        assert guest.status() == "It died: CRASH: enough"

    def test_a_reboot_is_another_life_with_other_devices(self, guest: LiveGuest) -> None:
        made = []

        def card() -> Device:
            made.append(neighbourly())
            return made[-1]

        guest.devices = (card,)
        guest.start().ask("")
        before = guest.heard_so_far
        guest.type(b"reboot\r")
        guest._wait_for("tiny> ", before + len("reboot"), PATIENCE)
        assert guest.lives == 2 and len(made) == 2
        assert guest.status() == "It runs; this is life number 2."

    def test_restart_works_while_it_runs_and_when_it_is_over(self, guest: LiveGuest) -> None:
        guest.start().ask("")
        guest.restart()
        guest._wait_for("tiny> ", guest.heard_so_far, PATIENCE)
        guest.stop()
        assert guest.wait(PATIENCE)
        guest.restart()
        assert guest.ask("echo third").splitlines()[1] == "third"
        assert guest.lives == 3

    def test_a_second_guest_of_that_name_takes_the_place_of_the_first(self, guest: LiveGuest) -> None:
        guest.start().ask("")
        second = LiveGuest(name="tested").start()
        assert guest.status() == "You stopped it."
        assert second.status() == "It runs."
        second.stop()
        assert second.wait(PATIENCE)

    def test_it_can_be_stopped_before_it_runs(self, nothing_left: None) -> None:
        building, go_on = threading.Event(), threading.Event()

        def slowly() -> Device:
            building.set()
            assert go_on.wait(PATIENCE)
            return neighbourly()

        guest = LiveGuest(slowly, name="stopped early").start()
        assert building.wait(PATIENCE)
        guest.stop()
        go_on.set()
        assert guest.wait(PATIENCE)
        assert guest.status() == "You stopped it."

    def test_typing_never_waits_even_if_nobody_reads(self, guest: LiveGuest) -> None:
        assert guest.type(b"nobody is there") == 0
        guest.start().ask("")
        guest.type(b"hang\r")
        while guest.type(bytes(4096)):
            pass

    def test_a_kernel_which_cannot_be_loaded_is_a_sentence(self, nothing_left: None) -> None:
        guest = LiveGuest(kernel="/nowhere/vmlinux", name="lost").start()
        assert guest.wait(PATIENCE)
        assert guest.status() == "Failed to open kernel /nowhere/vmlinux: No such file or directory."

    def test_signals_the_terminal_and_settings_are_left_alone(self, guest: LiveGuest) -> None:
        def state() -> list[object]:
            return [signal.getsignal(n) for n in signal.valid_signals()] + [sys.getswitchinterval()]

        before = state()
        guest.start().ask("")
        assert state() == before

    def test_whoever_looks_keeps_the_memory_and_nobody_looks_after_the_end(self, guest: LiveGuest) -> None:
        guest.start().ask("")
        with guest.look() as launcher:
            assert launcher is not None
            guest.stop()
            assert launcher.memory.read(0, 1) is not None
        assert guest.wait(PATIENCE)
        with guest.look() as launcher:
            assert launcher is None

    def test_a_defect_of_ours_ends_the_guest_and_not_the_process(self, nothing_left: None) -> None:
        def broken(host: ScriptedHost) -> Ending:
            raise RuntimeError("what?")

        guest = LiveGuest(name="broken", host=lambda: ScriptedHost(broken)).start()
        assert guest.wait(PATIENCE)
        assert guest.status() == "This should not have happened: RuntimeError: what?. It is a defect in lguest-nb."


class TestTerminal:
    def test_what_a_guest_prints_is_text_and_never_markup(self) -> None:
        terminal = Terminal(40, 2)
        terminal.feed(b"<script>alert('&')</script>")
        assert "&lt;script&gt;alert(&#x27;&amp;&#x27;)&lt;/script&gt;" in terminal.html()

    def test_letters_and_sequences_may_be_cut_anywhere(self) -> None:
        data = "ä\x1b[31mröt\x1b[0m €".encode()
        whole = Terminal(20, 2)
        whole.feed(data)
        for at in range(len(data)):
            parts = Terminal(20, 2)
            parts.feed(data[:at])
            parts.feed(data[at:])
            assert parts.text() == "ä" + "röt €" and parts.html() == whole.html()

    def test_a_line_feed_goes_to_the_left(self) -> None:
        terminal = Terminal(20, 4)
        terminal.feed(b"one\ntwo\x1bcthree\nfour")
        assert terminal.text() == "three\nfour"

    def test_what_scrolls_off_is_kept_but_not_for_ever(self) -> None:
        terminal = Terminal(10, 2)
        for n in range(1000):
            terminal.feed(b"%d\n" % n)
        lines = terminal.text().splitlines()
        assert lines[-1] == "999" and 250 < len(lines) < 350

    def test_questions_are_answered(self) -> None:
        typed: list[bytes] = []
        Terminal(20, 2, typed.append).feed(b"ab\x1b[6n")
        assert typed == [b"\x1b[1;3R"]

    @given(st.binary(max_size=300), st.sampled_from([b"", b"\x1b[", b"\x1b[?", b"\x1b]", b"\x1b(", b"\x1b#"]))
    def test_no_bytes_are_its_end(self, data: bytes, start: bytes) -> None:
        terminal = Terminal(20, 3)
        terminal.feed(start + data)
        terminal.feed(b"\x07\x07\x1b\\\x18\x1bc\x0fok")  # the ends of all which may have begun
        assert "<script" not in terminal.html()
        assert terminal.text().endswith("ok")

    def test_its_colours_are_colours(self) -> None:
        terminal = Terminal(40, 2)
        terminal.feed(b"\x1b[38;5;196mred\x1b[48;2;1;2;3m\x1b[7mreversed\x1b[0m\x1b[1;4;9mlines\x1b[999m")
        styles = re.findall(r'style="([^"]*)"', terminal.html())
        assert styles[0] == "color:#ff0000"
        assert all(re.fullmatch(r"[a-z0-9:#; -]*", each) for each in styles)


class TestSnapshot:
    def test_each_descriptor_has_the_owner_that_it_has(self, ring: Ring) -> None:
        ring.desc(0, 0x1000, 8)
        ring.desc(1, 0x2000, 8, DESC_NEXT, 3)
        ring.desc(3, 0x3000, 8, DESC_WRITE)
        ring.desc(4, 0x4000, 8)
        ring.offer(0, 1, 4)
        ring.vq.add_used(ring.vq.take(), 0)
        ring.vq.take()
        shot = snapshot(ring.vq)
        assert shot.owners == ("guest", "work", "blank", "work", "waiting", "blank", "blank", "blank")
        assert [[link.number for link in chain.links] for chain in shot.work] == [[1, 3]]
        assert [chain.head for chain in shot.waiting] == [4]
        assert (shot.avail_idx, shot.taken, shot.given, shot.pending, shot.exact) == (3, 2, 1, 1, True)

    def test_a_snapshot_writes_nothing_and_keeps_no_view(self, ring: Ring) -> None:
        ring.desc(0, 0x1000, 8)
        ring.offer(0)
        before = bytes(ring.memory.u8)
        snapshot(ring.vq)
        assert bytes(ring.memory.u8) == before and ring.interrupts == []

    def test_indices_may_wrap(self, ring: Ring) -> None:
        ring.start_at(65534)
        for head in range(3):
            ring.desc(head, 0x1000, 8)
            ring.offer(head)
        ring.vq.add_used(ring.vq.take(), 0)
        ring.vq.take()
        shot = snapshot(ring.vq)
        assert [c.head for c in shot.work] == [1] and [c.head for c in shot.waiting] == [2]

    def test_event_indices_are_there_if_they_were_agreed_on_and_flags_if_not(self, ring: Ring) -> None:
        u16, vq = ring.memory.u16, ring.vq
        u16[vq.used_event], u16[vq.avail_event] = 3, 2  # which nobody has agreed on
        u16[vq.used] = 1
        shot = snapshot(vq)
        assert (shot.flags, shot.used_event, shot.avail_event) == (("NO_NOTIFY",), None, None)
        assert "_event" not in paint_ring(shot)
        vq.event_idx = True
        shot = snapshot(vq)
        assert (shot.flags, shot.used_event, shot.avail_event) == ((), 3, 2)
        assert (len(shot.avail), len(shot.used)) == (8, 8)
        picture = paint_ring(shot)
        assert "avail_event 2 ▸" in picture and "◂ used_event 3" in picture
        assert "kick at 2, interrupt at 3" in picture

    def test_an_event_index_which_moves_between_two_readings_is_a_change(self, ring: Ring) -> None:
        ring.vq.event_idx = True
        before = read_once(ring.vq)
        ring.memory.u16[ring.vq.used_event] += 1
        assert read_once(ring.vq) != before

    def test_a_ring_which_never_stands_still_is_blurred(self, ring: Ring, monkeypatch: pytest.MonkeyPatch) -> None:
        count = 0

        def restless(vq: Virtqueue) -> Reading:
            nonlocal count
            count += 1
            return read_once(vq)._replace(taken=count)

        monkeypatch.setattr(ring_module, "read_once", restless)
        assert read_twice(ring.vq)[1] is False
        assert count == ATTEMPTS + 1
        assert "blurred" in paint_ring(snapshot(ring.vq))

    def test_one_change_in_between_costs_one_more_reading(self, ring: Ring, monkeypatch: pytest.MonkeyPatch) -> None:
        taken = iter([1, 2, 2])
        monkeypatch.setattr(ring_module, "read_once", lambda vq: read_once(vq)._replace(taken=next(taken)))
        reading, exact = read_twice(ring.vq)
        assert (reading.taken, exact) == (2, True)

    def test_chains_which_go_back_out_of_order_are_a_guess(self, ring: Ring) -> None:
        for head in range(3):
            ring.desc(head, 0x1000, 8)
            ring.offer(head)
        first, second = ring.vq.take(), ring.vq.take()
        ring.vq.add_used(second, 0)
        assert not snapshot(ring.vq).ordered
        assert "a guess" in paint_ring(snapshot(ring.vq))
        ring.vq.add_used(first, 0)

    @given(data=st.data())
    def test_no_ring_a_guest_can_write_is_an_error(self, data: st.DataObject) -> None:
        memory = GuestMemory(1 << 16)
        try:
            ring = Ring.make(memory)
            near = st.one_of(st.integers(0, 9), st.integers(0, 0xFFFF))
            for index in range(8):
                address = data.draw(st.one_of(st.just(ring.vq.ring.desc), st.integers(0, 2**64 - 1)))
                length = data.draw(st.sampled_from([0, 16, 48, 50, 0xFFFFFFFF]))
                ring.desc(index, address, length, data.draw(st.integers(0, 7)), data.draw(near))
                memory.u16[ring.vq.avail + 2 + index] = data.draw(near)
            memory.u16[ring.vq.avail + 1] = data.draw(near)
            shot = snapshot(ring.vq)
            assert len(choose_rows(shot)) <= 2 * ROWS
            ElementTree.fromstring(f"<div>{paint_ring(shot)}</div>".replace("&middot;", ""))
            ring.vq.wakeup.close()
        finally:
            memory.close()


class TestRingPicture:
    def test_a_large_ring_shows_what_is_ours_first(self, memory: GuestMemory) -> None:
        ring = Ring.make(memory, 256)
        for head in range(0, 40):
            ring.desc(head, 0x1000, 8)
        for head in (200, 210):
            ring.desc(head, 0x1000, 8)
            ring.offer(head)
        numbers = [row.link.number for row in choose_rows(snapshot(ring.vq))]
        assert len(numbers) == ROWS and numbers[-2:] == [200, 210]
        ring.vq.wakeup.close()

    def test_an_indirect_table_stands_below_its_descriptor(self, ring: Ring) -> None:
        ring.desc(2, 0x8000, 32, DESC_INDIRECT)
        for i, after in enumerate((1, 0)):
            ring.memory.write(0x8000 + 16 * i, (0x9000).to_bytes(8, "little") + bytes([8, 0, 0, 0, 1 - i, 0, after, 0]))
        ring.offer(2)
        rows = choose_rows(snapshot(ring.vq))
        assert [(row.link.number, row.link.inside) for row in rows][2:5] == [(2, False), (0, True), (1, True)]

    def test_a_window_is_of_slots_of_the_ring(self) -> None:
        assert all(len(set(window(256, idx))) == ROWS and idx % 256 in window(256, idx) for idx in range(0, 65536, 97))

    def test_marks_of_the_same_slot_stand_below_each_other(self, ring: Ring) -> None:
        ring.vq.event_idx = True
        marks = re.findall(r'y="([0-9.]+)" class="small mark" text-anchor="end">([^<]+)', paint_ring(snapshot(ring.vq)))
        assert [text for _, text in marks] == ["taken 0 ▸", "Guest&#x27;s idx 0 ▸", "avail_event 0 ▸"]
        assert [float(low) - float(high) for (high, _), (low, _) in zip(marks, marks[1:], strict=False)] == [11, 11]

    def test_a_name_is_text(self, ring: Ring) -> None:
        ring.vq.name = "<b>"
        assert "<b>&lt;b&gt;</b>" in paint_ring(snapshot(ring.vq))

    def test_an_unchanged_ring_is_the_same_picture(self, ring: Ring) -> None:
        assert paint_ring(snapshot(ring.vq)) == paint_ring(snapshot(ring.vq))


class Echo(Device):
    "Gives back what it gets."

    def __init__(self) -> None:
        super().__init__("echo", 99)

    @property
    def services(self) -> list[Service]:
        return [self.echo]

    def echo(self, vq: Virtqueue) -> None:
        vq.add_used(vq.wait(), 0)


@pytest.fixture
def echo(ring: Ring) -> Iterator[tuple[Echo, Driver]]:
    "A device whose one queue is `echo:0`."
    echo = Echo()
    ring.vq.name, ring.vq.doorbell = "echo:0", Doorbell(ring.vq.ring.desc)
    echo.queues.append(ring.vq)
    yield echo, Driver(ring.vq, 0x10000, 0x1000)
    reset_device(echo, FakeHost())


def begin(echo: Echo) -> None:
    start_device(echo, FakeHost(), lambda error: None)


class TestSlowMotion:
    def test_a_reset_does_not_wait_for_it(self, echo: tuple[Echo, Driver]) -> None:
        device, driver = echo
        slow = SlowMotion()
        slow.watch(device)
        slow.slow_down("echo:0", 1e6)
        begin(device)
        driver.add(out=[b"x"])
        driver.kick()
        until(lambda: slow.paused)
        reset_device(device, FakeHost())  # an hour would be a failure of its own kind
        assert slow.paused == {} and not lguest_threads()

    def test_the_slider_counts_for_a_step_which_waits_already(self, echo: tuple[Echo, Driver]) -> None:
        device, driver = echo
        slow = SlowMotion()
        slow.watch(device)
        slow.slow_down("echo:0", 1e6)
        begin(device)
        driver.add(out=[b"x"])
        driver.kick()
        until(lambda: slow.paused)
        slow.slow_down("echo:0", 0)
        assert driver.wait_used()[0].head == 0

    def test_each_step_of_a_chain_can_be_seen(self, echo: tuple[Echo, Driver]) -> None:
        device, driver = echo
        seen: list[str] = []

        class Watch(SlowMotion):
            def note(self, what: str, where: str, **values: int) -> None:
                seen.append(what)
                super().note(what, where, **values)

        asleep = naps(device.queues[0])
        slow = Watch()
        slow.watch(device)
        slow.slow_down("echo:0", 1e-3)
        begin(device)
        assert asleep.acquire(timeout=PATIENCE)
        driver.add(out=[b"x"])
        driver.kick()
        driver.wait_used()
        assert seen == ["start", "kick", "take", "used", "interrupt"]

    def test_other_queues_are_left_alone_and_choosing_one_releases_the_last(self, echo: tuple[Echo, Driver]) -> None:
        device, _ = echo
        slow = SlowMotion()
        slow.watch(device)
        view = RingView(slow=slow, queues=device.queues)
        view.actions["pace"]("4")
        assert slow.delay("echo:0") == STEPS[4] / 1000
        view.actions["pace"]("-7")
        assert slow.delay("echo:0") == 0
        view.actions["pace"]("3")
        view.actions["queue"]("<nothing>")
        assert slow.delay("echo:0") == 0
        assert "<nothing>" not in view.controls


class TestTimeline:
    def test_a_chain_is_asleep_then_working_then_asleep(self, echo: tuple[Echo, Driver]) -> None:
        device, driver = echo
        recorder = Recorder()
        asleep = naps(device.queues[0])
        recorder.watch(device)
        begin(device)
        assert asleep.acquire(timeout=PATIENCE)
        until(lambda: recorder.state("echo:0") == "asleep")
        recorder.record()
        driver.add(out=[b"x"])
        driver.kick()
        driver.wait_used()
        assert asleep.acquire(timeout=PATIENCE)
        events, before = recorder.so_far()
        assert [event.what for event in events] == ["kick", "take", "used", "interrupt", "sleep"]
        assert before["echo:0"] == "asleep"
        line = timeline(events, before)
        assert [(span.state, span.first, span.end) for span in line.spans] == [("working", 0, 4), ("asleep", 4, 5)]
        assert [mark.what for mark in line.marks] == ["kick", "take", "used", "interrupt"]

    def test_a_recording_has_an_end(self) -> None:
        recorder = Recorder(most=3)
        recorder.record()
        for _ in range(10):
            recorder.note("kick", "q:0")
        assert len(recorder.so_far()[0]) == 3 and not recorder.recording

    def test_it_is_drawn_both_ways_and_escaped(self) -> None:
        happened = ((0, "<q>", "kick"), (3_000_000, CPU, "halt"), (3_000_001, "<q>", "sleep"))
        events = [Event(time, "", where, what, {}) for time, where, what in happened]
        line = timeline(events, {CPU: "working", "<q>": "asleep"}, [CPU])
        for to_scale in (False, True):
            picture = paint_timeline(line, to_scale)
            assert "&lt;q&gt;" in picture and "<q>" not in picture
            ElementTree.fromstring(f"<div>{picture}</div>")
        assert paint_timeline(timeline([], {})) == "<p>Nothing is recorded yet.</p>"

    def test_a_key_goes_through_the_threads_of_a_guest(self, guest: LiveGuest) -> None:
        recorder = Recorder()
        guest.watchers = [recorder]
        view = TimelineView(guest, recorder)
        guest.start().ask("")
        quiet = {CPU: "asleep", "console:0": "waiting", "console:1": "asleep"}
        until(lambda: {lane: recorder.state(lane) for lane in quiet} == quiet)
        view.actions["record"](None)
        guest.type(b"x")
        until(lambda: ("console:1", "used") in [(e.where, e.what) for e in recorder.so_far()[0]])
        events = [(e.where, e.what) for e in recorder.so_far()[0]]
        seen = iter(events)  # in this order; the CPU is not in it, for a timer tick may have woken it before we did
        assert all(step in seen for step in [("console:0", "ready"), ("console:0", "interrupt"), ("console:1", "kick")])
        assert (CPU, "resume") in events
        guest.stop()
        view.finish()
        assert "<svg" in view.picture


class TestMemoryMap:
    def test_only_pages_which_were_touched_are_there(self) -> None:
        memory = GuestMemory(1 << 20)
        memory.write(0x3FFF, b"12")
        assert touched(memory) == [(0x3000, 0x5000)]
        assert overlap(touched(memory), 0x4000, 0x9000) == 0x1000
        memory.close()

    def test_every_region_lies_beside_the_others(self, nothing_left: None) -> None:
        from lguest_nb.guest import path

        with Launcher(4, FakeHost()) as launcher:
            launcher.add(neighbourly())
            launcher.load(str(path()))
            found = regions(launcher, str(path()))
            picture = paint_map(found, touched(launcher.memory), launcher.memory.size, launcher.memory.maximum)
        assert all(a.end <= b.start for a, b in zip(found, found[1:], strict=False))
        assert found[-1].end == (4 << 20) + 256 * 4096
        assert {"kernel", "boot", "tables", "ring", "descriptors", "none"} == {region.kind for region in found}
        ElementTree.fromstring(f"<div>{picture}</div>")
        assert not any(t.name == "lguest neighbour" for t in threading.enumerate())

    def test_a_guest_cannot_confuse_it(self, nothing_left: None) -> None:
        with Launcher(4, FakeHost()) as launcher:
            launcher.memory.write(0x218, b"\xff" * 8)
            assert "initrd" not in {region.kind for region in regions(launcher, "/nowhere")}


class TestNeighbour:
    @given(st.binary(max_size=120))
    def test_rubbish_has_no_answer_and_is_no_error(self, packet: bytes) -> None:
        assert answer(packet, b"\n\0\0\1") is None

    @given(st.binary(min_size=28, max_size=28), st.integers(0, 0xFFFF))
    def test_arp_is_answered_for_its_own_address_only(self, body: bytes, operation: int) -> None:
        arp = b"\0\1\x08\0\6\4" + operation.to_bytes(2, "big") + body[:20]
        request = bytes(10) + b"\xff" * 6 + body[:6] + b"\x08\x06" + arp
        reply = answer(request, arp[24:28])
        assert (reply is not None) == (operation == 1)
        if reply is not None:
            assert reply[10:16] == body[:6] and reply[30:32] == b"\0\2" and reply[38:42] == arp[24:28]
        assert answer(request, bytes(b ^ 1 for b in arp[24:28])) is None

    def test_it_speaks_the_header_which_the_card_has_negotiated(self, nothing_left: None) -> None:
        card = neighbourly("10.0.0.1")
        asked = b"\0\1\x08\0\6\4\0\1" + b"\2guest" + b"\n\0\0\2" + bytes(6) + b"\n\0\0\1"
        frame = b"\xff" * 6 + b"\2guest" + b"\x08\x06" + asked
        for accepted, header in ((0, 10), (F_VERSION_1, 12)):
            card.accepted = accepted
            card.started()
            os.write(card.tap, bytes(header) + frame)
            reply = os.read(card.tap, 2000)
            assert (len(reply), reply[:header], reply[header : header + 6]) == (header + 42, bytes(header), b"\2guest")
        card.close()

    def test_a_guest_can_ping_it(self, guest: LiveGuest) -> None:
        guest.devices = (neighbourly,)
        guest.arguments = command_line(ip="10.0.0.2")
        guest.start()
        assert "2 sent, 2 received" in guest.ask("ping 10.0.0.1 2")


class Plain(View):
    def draw(self) -> str | None:
        return "<p>here</p>"

    @property
    def actions(self) -> dict[str, Callable[[object], object]]:
        return {"refuse": self.refuse}

    def refuse(self, value: object) -> None:
        raise LguestError(f"Not {value}.")


class TestView:
    @pytest.mark.parametrize("message", [{}, {"do": "paint"}, {"do": "__init__"}, {"do": None}, {"what": 1}])
    def test_what_is_not_in_its_table_is_not_done(self, message: dict[str, object]) -> None:
        view = Plain()
        view._told(view, message, [])
        assert (view.picture, view.status) == ("<p>here</p>", "")

    def test_a_refusal_is_its_status(self) -> None:
        view = Plain()
        view._told(view, {"do": "refuse", "value": 5}, [])
        assert view.status == "Not 5."

    def test_what_was_said_is_done_in_the_order_in_which_it_was_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        view, done = Plain(), []
        monkeypatch.setattr(view, "refuse", done.append)
        for page, at in (("a", 1), ("b", 0), ("a", 2), ("a", 0), ("b", 1), ("a", 4), ("a", 3)):
            view._told(view, {"do": "refuse", "value": f"{page}{at}", "view": page, "at": at}, [])
        assert done == ["b0", "a0", "a1", "a2", "b1", "a3", "a4"]

    def test_hello_is_answered(self, monkeypatch: pytest.MonkeyPatch) -> None:
        view, sent = Plain(), []
        monkeypatch.setattr(view, "send", sent.append)
        view._told(view, {"do": "hello"}, [])
        assert sent == [{"alive": True}]

    def test_one_which_cannot_paint_says_so_once(self) -> None:
        class Bad(Plain):
            tries = 0

            def draw(self) -> str | None:
                Bad.tries += 1
                raise ZeroDivisionError("oh")

        view = Bad()
        view.paint()
        assert Bad.tries == 1 and "ZeroDivisionError" in view.status

    def test_of_each_kind_a_guest_has_one(self, guest: LiveGuest) -> None:
        first, second = TerminalView(guest), TerminalView(guest)
        ring = RingView(guest)
        assert guest.listeners == [second, ring]
        guest.start().ask("echo seen by the second")
        guest.type(b"poweroff\r")
        second.finish()
        ring.finish()
        assert "seen by the second" in second.transcript and first.transcript == ""
        assert "seen by the second" in second.picture
        assert "the Guest is over" in ring.picture
        assert second.status == "It switched itself off: Power down."

    def test_a_view_which_comes_late_sees_what_was_said(self, guest: LiveGuest) -> None:
        guest.start().ask("echo before anybody looked")
        view = TerminalView(guest)
        assert "before anybody looked" in view.transcript
        guest.stop()
        view.finish()

    def test_the_javascript_is_what_the_notebook_says(self, tmp_path: Path) -> None:
        import json

        pieces = Pieces()
        for notebook in NOTEBOOKS:
            for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
                if piece := re.match(r"%%piece (\S+)\n(.*)", "".join(cell["source"]), flags=re.DOTALL):
                    pieces.magic(*piece.groups())
        assert pieces.write(tmp_path) == ["view.js"]
        assert (tmp_path / "view.js").read_text() == (DATA / "live" / "view.js").read_text()

    def test_nothing_in_a_page_comes_from_elsewhere(self) -> None:
        for file in (DATA / "live").iterdir():
            assert not re.search(r"https?:|@import|url\((?!#)|import\(", file.read_text()), file.name


def test_a_flood_is_painted_rarely_and_read_at_once(guest: LiveGuest) -> None:
    view = TerminalView(guest)
    guest.start().ask("")
    before = guest.heard_so_far
    guest.type(b"peek 0x100000 60000\r")
    guest._wait_for("tiny> ", before, PATIENCE)
    guest.stop()
    view.finish()
    assert len(view.picture) < 60_000
