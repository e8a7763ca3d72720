"""Every exercise: its stub is met kindly, the answer in its fold is right, and wrong ones are found out."""

import re
import shutil
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import nbformat
import pytest

from lguest_nb import exercises, your_walk
from lguest_nb.exercises import GRADERS, STEPS, Case, at_most, exercise, verdict
from lguest_nb.memory import LguestError

pytestmark = pytest.mark.usefixtures("nothing_left")
NOTEBOOKS = Path(__file__).parent.parent / "nbs"
HEADING = re.compile(r"^## Exercise: \S", re.MULTILINE)
FOLD = re.compile(r"<details>\n<summary>.+</summary>\n\n```python\n(.+?)\n```\n\n.+\n\n</details>", re.DOTALL)
GRADE = re.compile(r'from lguest_nb\.exercises import grade\n\ngrade\("(.+)", (\w+)\)')


class Exercise:
    "What a notebook says in its section."

    def __init__(self, statement: str, stub: str, graded: nbformat.NotebookNode, fold: str) -> None:
        self.statement, self.stub = statement, stub
        call = GRADE.fullmatch(graded.source)
        answer = FOLD.fullmatch(fold)
        assert call and answer, f"{statement[:60]} is not in the form of an exercise"
        (self.name, self.variable), self.answer = call.groups(), answer[1]
        self.printed = "".join(output.get("text", "") for output in graded.outputs)

    def verdict(self, code: str) -> str:
        names: dict[str, Any] = {}
        exec(code, names)
        return verdict(self.name, names[self.variable])


@cache
def all_of_them() -> dict[str, Exercise]:
    found = {}
    for path in sorted(NOTEBOOKS.glob("[!.]*.ipynb")):
        cells = nbformat.read(path, 4).cells
        for i, cell in enumerate(cells):
            if cell.cell_type == "markdown" and HEADING.search(cell.source):
                kinds = [each.cell_type for each in cells[i : i + 4]]
                assert kinds == ["markdown", "code", "code", "markdown"], path.name
                made = Exercise(cell.source, cells[i + 1].source, cells[i + 2], cells[i + 3].source)
                assert made.name.startswith(f"{path.stem}: ")
                assert cells[-1].cell_type == "code" or i + 4 < len(cells), f"{path.name} has no hand-over"
                found[made.name] = made
    return found


each = pytest.mark.parametrize("name", all_of_them())


def test_every_grader_has_its_exercise_and_every_exercise_its_grader() -> None:
    with pytest.raises(LguestError, match=r"There is no exercise 'no such thing'; those there are: 00_memory: fits,"):
        verdict("no such thing", None)
    assert set(GRADERS) == set(all_of_them())
    assert len({name.partition(":")[0] for name in GRADERS}) >= 29


@each
def test_a_stub_is_told_kindly_that_there_is_nothing_yet(name: str) -> None:
    it = all_of_them()[name]
    said = it.verdict(it.stub)
    assert said.startswith("not yet: ")
    assert it.printed == f"{said}\n"


@each
def test_the_folded_answer_is_right(name: str) -> None:
    it = all_of_them()[name]
    assert re.fullmatch(rf"right: {name}, in all \d+ cases?\.", it.verdict(it.answer))


WRONG = [  # exercise, and what is wrong instead of what in its answer
    ("00_memory: fits", "address <= limit and length <= limit - address", "address + length <= limit"),
    ("00_memory: fits", "address <= limit and length <= limit - address", "length <= limit - address"),
    ("00_memory: fits", "<= limit - address", "< limit - address"),
    ("00_memory: fits", "address <= limit and", "address < limit and address + length < limit and"),
    ("04_meter: joined", "sum(done_of)", "done"),
    ("04_meter: joined", "done_of[number] = done", "done_of[number] += done"),
    ("04_meter: joined", "sum(sizes) if all(sizes) else 0", "sum(sizes)"),
    ("04_meter: joined", "sum(done_of), whole", "sum(done_of), _total"),
    ("04_meter: joined", "tell(what,", "tell(_what,"),
    ("04_meter: joined", "sum(done_of)", "sum(sizes[:number]) + done"),
    (
        "04_meter: joined",
        "    return [part(number) for number in range(len(sizes))]",
        "    found = []\n    for n in range(len(sizes)):\n        found += [lambda *a: part(n)(*a)]\n    return found",
    ),
    ("05_loading: initrd_at", "page_up(length)", "length"),
    ("05_loading: initrd_at", "- tables <", "<"),
    ("05_loading: initrd_at", "- tables <", "- tables <="),
    ("05_loading: initrd_at", "if not length:", "if False:"),
    ("10_vring: places", "16 * num", "8 * num"),
    ("10_vring: places", "+ 4095) & ~4095", ")"),
    ("10_vring: places", "slot = idx % num", "slot = idx"),
    ("10_vring: places", "slot = idx % num", "slot = (idx + 1) % num"),
    ("10_vring: places", "avail + 4 + 2 * slot", "avail + 2 * slot"),
    ("10_vring: places", "avail + 4 + 2 * slot", "avail + 4 + 8 * slot"),
    ("10_vring: places", "used + 4 + 8 * slot", "used + 8 * slot"),
    ("10_vring: places", "used + 4 + 8 * slot", "used + 4 + 4 * slot"),
    ("10_vring: next_one", "while not q.more()", "if not q.more()"),
    ("10_vring: next_one", "        if not q.more():\n            q.sleep()", "        q.sleep()"),
    ("10_vring: next_one", "        q.fence()\n", ""),
    ("10_vring: next_one", "q.allow_kicks()\n        q.fence()\n", "q.fence()\n        q.allow_kicks()\n"),
    ("10_vring: next_one", "        q.allow_kicks()\n", ""),
    ("10_vring: next_one", "\n        q.forbid_kicks()", ""),
    ("10_vring: next_one", "        if not q.more():\n            q.sleep()\n", ""),
    ("10_vring: next_one", "while not q.more():\n", "while not q.more():\n        q.sleep()\n"),
    ("11_wakeup: thread", "[bed.kicks, bed.stop]", "[bed.kicks]"),
    ("11_wakeup: thread", "            return", "            bed.read(bed.stop)\n            return"),
    ("11_wakeup: thread", "        bed.read(bed.kicks)\n", ""),
    (
        "11_wakeup: thread",
        "        bed.read(bed.kicks)\n        bed.serve()",
        "        bed.serve()\n        bed.read(bed.kicks)",
    ),
    ("11_wakeup: thread", "if bed.stop in ready", "if bed.kicks not in ready"),
    ("11_wakeup: thread", "if bed.stop in ready", "if ready == [bed.stop]"),
    ("11_wakeup: thread", "        ready =", "        bed.read(bed.kicks)\n        ready ="),
    ("11_wakeup: thread", "    while True", "    if True"),
    ("12_driver: collect", "seen != idx", "seen < idx"),
    ("12_driver: collect", "[seen % len(ring)]", "[seen]"),
    ("12_driver: collect", "(seen + 1) & 0xFFFF", "seen + 1"),
    ("14_hostile_rings: refused", "df", "bdf"),
    ("14_hostile_rings: refused", "df", "d"),
    ("16_your_walk: walk", "steps > num", "steps >= num"),
    ("16_your_walk: walk", "steps > num", "steps > entries"),
    ("16_your_walk: walk", "steps > num", "False"),
    ("16_your_walk: walk", "        steps += 1\n", "        steps += length > 0\n"),
    ("16_your_walk: walk", "after >= entries", "after > entries"),
    ("16_your_walk: walk", "after >= entries", "after >= num"),
    ("16_your_walk: walk", "flags & 2 and writes", "flags & 2 and writable"),
    ("16_your_walk: walk", "flags & 2 and writes", "flags & 2 and writes and length"),
    ("16_your_walk: walk", "if flags & 4", "if flags == 4"),
    ("16_your_walk: walk", "if inside or not indirect", "if not indirect"),
    ("16_your_walk: walk", "if inside or not indirect", "if inside"),
    ("16_your_walk: walk", "if flags & 1:\n                raise", "if False:\n                raise"),
    ("16_your_walk: walk", "length == 0 or ", ""),
    ("16_your_walk: walk", " or length % 16", ""),
    ("16_your_walk: walk", "        if length:\n", "        if True:\n"),
    ("16_your_walk: walk", "        memory.check(address, length)\n        if not", "        if not"),
    ("16_your_walk: walk", "memory.check(address, length)\n            table", "table"),
    ("16_your_walk: walk", "index, 16))\n        if", "index, 16))\n        memory.read(table, 16)\n        if"),
    ("20_devices: reflect", "return written", "return len(data)"),
    ("20_devices: reflect", "for view in chain.in_views()", "for view in chain.in_views()[:1]"),
    ("20_devices: reflect", "view[: len(piece)] = piece", "view[:] = data"),
    ("21_lguest_bus: devices", "2 * features", "features"),
    ("21_lguest_bus: devices", "8 * queues", "8"),
    ("21_lguest_bus: devices", "at < len(page) and ", ""),
    ("22_console: turn", "        if q.owed:\n            q.interrupt()\n", ""),
    ("22_console: turn", "        if q.owed:\n            q.interrupt()\n", "        q.interrupt()\n"),
    ("22_console: turn", "    q.give_back(count)", "    q.give_back(count)\n    q.interrupt()"),
    ("22_console: turn", "    count = q.read_now(view)\n    if not count:", "    if True:"),
    ("22_console: turn", "        count = q.read(view)\n", "        pass\n"),
    ("22_console: turn", "q.give_back(count)", "q.give_back(len(view))"),
    ("22_console: turn", "        if q.owed:", "        count = q.read(view)\n        if q.owed:"),
    ("23_keyboard: Counter", "self.times.clear()", "pass"),
    ("23_keyboard: Counter", "- self.times[0] <= 1", "- self.times[1] <= 1"),
    ("24_block: serve", "    if kind not in (0, 1):\n        return 2, b\"\"\n", ""),
    ("24_block: serve", "kind not in (0, 1)", "kind & ~3"),
    ("24_block: serve", "length % disk.sector or ", ""),
    ("24_block: serve", " or length > disk.size - offset", ""),
    ("24_block: serve", "length > disk.size - offset", "length >= disk.size - offset"),
    ("24_block: serve", "length > disk.size - offset", "offset > disk.size"),
    ("24_block: serve", "while len(got) < length", "if length"),
    ("24_block: serve", "                return 1, b\"\"\n", "                break\n"),
    ("24_block: serve", "            if not piece:\n                return 1, b\"\"\n", ""),
    ("24_block: serve", "except OSError", "except ValueError"),
    ("24_block: serve", "pread(offset + len(got), ", "pread(offset, "),
    ("25_snapshot: read", "sector - offset % sector", "length"),
    ("25_snapshot: read", "sector - offset % sector", "sector"),
    ("26_net: finish", "if not flags & 1", "if flags != 1"),
    ("26_net: finish", "if not flags & 1", "if not flags"),
    ("26_net: finish", "at + 2 > len(frame)", "at >= len(frame)"),
    ("26_net: finish", "at + 2 > len(frame)", "at + 2 >= len(frame)"),
    ("26_net: finish", "at + 2 > len(frame)", "start > len(frame)"),
    ("26_net: finish", "frame[start:] + bytes((len(frame) - start) % 2)", "bytes(len(frame) - start) + frame[start:]"),
    ("26_net: finish", "while total", "if total"),
    ("26_net: finish", "while total > 0xFFFF:", "while False:"),
    ("26_net: finish", "~total", "total"),
    ("26_net: finish", "    summed =", "    frame[at : at + 2] = bytes(2)\n    summed ="),
    ("26_net: finish", "summed = frame[start:]", "summed = frame[at:]"),
    ("27_block_today: forget", "if not data or", "if"),
    ("27_block_today: forget", "or len(data) % 16", ""),
    ("27_block_today: forget", " or len(data) > 256 * 16", ""),
    ("27_block_today: forget", "> 256 * 16", ">= 256 * 16"),
    ("27_block_today: forget", "sector + count > len(disk)", "sector + count >= len(disk)"),
    ("27_block_today: forget", "sector + count > len(disk)", "sector > len(disk)"),
    ("27_block_today: forget", "if sector + count > len(disk) // 512", "if count > 8"),
    ("27_block_today: forget", "if flags & ~1 or (flags and kind == 11)", "if flags & ~1"),
    ("27_block_today: forget", "if flags & ~1 or (flags and kind == 11)", "if flags"),
    ("27_block_today: forget", "            return 2", "            return 1"),
    (
        "27_block_today: forget",
        "    for sector, count, _ in ranges:\n        disk",
        "        disk",
    ),
    ("27_net_today: spread", "room < len(packet)", "room <= len(packet)"),
    ("27_net_today: spread", "            return None", "            break"),
    ("27_net_today: spread", 'count.to_bytes(2, "little")', 'len(lengths).to_bytes(2, "little")'),
    ("27_net_today: spread", '"little"', '"big"'),
    ("27_net_today: spread", "packet[:10] + count", "count"),
    ("27_net_today: spread", 'packet[:10] + count.to_bytes(2, "little") + packet[12:]', "packet"),
    ("27_net_today: spread", "for length in lengths[:count]", "for length in lengths"),
    ("27_net_today: spread", "count += 1\n    rest", "count = -(-len(packet) // lengths[0])\n    rest"),
    (
        "27_net_today: spread",
        "    return pieces",
        "    pieces[0] = packet[:10] + count.to_bytes(2, 'little') + packet[12 : lengths[0]]\n    return pieces",
    ),
    ("28_rng: fill", "while view:", "if view:"),
    ("28_rng: fill", "count += given", "count = given"),
    ("28_rng: fill", "view = view[given:]", "view = view[len(view):]"),
    ("30_threads: reset", "    device.detach()\n", ""),
    ("30_threads: reset", "queue.flag()\n        queue.wake()\n", "queue.wake()\n        queue.flag()\n"),
    ("30_threads: reset", "        queue.wake()\n", ""),
    ("30_threads: reset", "        queue.flag()\n", ""),
    ("30_threads: reset", "if not queue.mine", "if True"),
    ("30_threads: reset", "            queue.join()\n", "            pass\n"),
    ("30_threads: reset", "queue.join()\n        queue.wipe()", "queue.wipe()\n            queue.join()"),
    ("30_threads: reset", "        queue.wipe()", "        pass"),
    ("31_inspect: suspect", "if avail != taken", "if avail > taken"),
    ("31_inspect: suspect", "if taken != used", "if taken > used"),
    ("31_inspect: suspect", '"kick" if asleep else "device"', '"kick"'),
    ("31_inspect: suspect", '"interrupt" if unannounced else "Guest"', '"Guest"'),
    ("31_inspect: suspect", "    if taken != used:", "    if unannounced:\n        return 1\n    if taken != used:"),
    ("31_inspect: suspect", "if taken != used:", "if taken != used and not asleep:"),
    ("32_own_device: serve", "    if sum(map(len, views)) < len(answer):\n        return 0\n", ""),
    ("32_own_device: serve", "n = min(len(view), len(answer))", "n = len(view)"),
    ("32_own_device: serve", "            vq.wakeup.check()\n", ""),
    ("32_own_device: serve", "for start in range(0, len(view), 65536):", "for start in (0,):"),
    ("32_own_device: serve", "missing = 4 - len(header)", "missing = 4"),
    ("32_own_device: serve", "count = int.from_bytes(header,", "count = int.from_bytes(chain.out_views()[0][:4],"),
    ("32_own_device: serve", "missing : missing + count - seen", "missing:"),
    ("32_own_device: serve", " and seen == count", ""),
    ("32_own_device: serve", "len(header) == 4 and ", ""),
    ("32_own_device: serve", "    vq.add_used(chain, put", "    if answer:\n        vq.add_used(chain, put"),
    ("32_own_device: serve", "put(chain.in_views(), answer))", "put(chain.in_views(), answer) and len(answer) + 1)"),
    ("36_measure: compare", "not turns or ", ""),
    ("36_measure: compare", " or any(None in turn for turn in turns)", ""),
    ("36_measure: compare", "any(None in turn for turn in turns)", "any(ours is None for ours, _ in turns)"),
    ("36_measure: compare", "ours / theirs for ours, theirs in turns", "theirs / ours for ours, theirs in turns"),
    ("36_measure: compare", "(low + high) / 2", "high"),
    ("36_measure: compare", "(low + high) / 2", "low"),
    ("36_measure: compare", "(low + high) / 2", "sum(ratios) / len(ratios)"),
    ("36_measure: compare", "(low + high) / 2", "sum(a for a, _ in turns) / sum(b for _, b in turns)"),
    ("36_measure: compare", "theirs in turns)", "theirs in zip(*map(sorted, zip(*turns))))"),
    ("36_measure: compare", "= sorted(ours / theirs for ours, theirs in turns)", "= [a / b for a, b in turns]"),
    (
        "41_knock: bed",
        '        yield "enter"\n        if not (yield "stopping?"):\n',
        '        if not (yield "stopping?"):\n            yield "enter"\n',
    ),
    ("41_knock: bed", "while (yield", "if (yield"),
    ("41_knock: bed", '        yield "leave"\n', ""),
    ("41_knock: bed", 'if not (yield "stopping?")', "if True"),
    ("41_knock: bed", '            yield "sleep"', "            pass"),
    (
        "41_knock: bed",
        '        yield "stop"\n        while (yield "inside?"):\n            yield "signal"',
        '        while (yield "inside?"):\n            yield "signal"\n        yield "stop"',
    ),
    (
        "44_terminal: keeper",
        "            self.terminal.tell(self.saved)\n",
        "            self.terminal.set(set())\n            self.terminal.tell(self.saved)\n",
    ),
    (
        "44_terminal: keeper",
        "            self.terminal.set(self.saved)\n            self.terminal.tell(None)",
        "            self.terminal.tell(None)\n            self.terminal.set(self.saved)",
    ),
    ("44_terminal: keeper", "        if self.saved is None:", "        if True:"),
    ("44_terminal: keeper", "            self.saved = None", ""),
    ("44_terminal: keeper", "            self.terminal.tell(self.saved)\n", ""),
    ("44_terminal: keeper", 'self.saved - {"ISIG", "ICANON", "ECHO"}', "set()"),
    ("46_arguments: option", "[word] if word in takes else ", ""),
    ("46_arguments: option", "if len(fits) != 1", "if not fits"),
    ("46_arguments: option", "if attached or not takes[name]", "if value or not takes[name]"),
    ("46_arguments: option", "    if attached and not takes[name]:\n        raise", "    if False:\n        raise"),
    ("46_arguments: option", "if len(words) < 2", 'if words[1].startswith("-")'),
    ("46_arguments: option", "words[1], 2", "words[1], 1"),
    ("46_arguments: option", 'partition("=")', 'partition("=")[:2] + (words[0].split("=")[-1],)'),
    ("46_arguments: option", "name.startswith(word)", "name == word"),
    ("46_arguments: option", "name.startswith(word)]", "name.startswith(word)][:1]"),
    ("46_arguments: option", "value if takes[name] else None", "value"),
    ("47_trace: served", "taken.pop((where, head))", "taken[where, 0]"),
    ("47_trace: served", "taken[where, head] = time", "taken.setdefault((where, head), time)"),
    ("47_trace: served", "(where, head)))", "next(k for k in taken if k[0] == where)))"),
    ("47_trace: served", "    return result", "    return sorted(result)"),
    ("48_pcap: packets", '("little", "big")', '("little",)'),
    ("48_pcap: packets", "parts * unit", "parts"),
    ("48_pcap: packets", "0xA1B2C3D4: 1000, ", ""),
    ("48_pcap: packets", "        at += 16 + here", "        at += 16 + words[3]"),
    ("48_pcap: packets", "        if len(frame) < here:\n            break\n", ""),
    ("48_pcap: packets", "while at + 16 <= len(data)", "while at < len(data)"),
    ("48_pcap: packets", "found, at = [], 24", "found, at = [], 16"),
    ("48_pcap: packets", 'raise ValueError("this is no pcap file")', "return []"),
    ("51_calibrate: locate", "(0x5EED0001, 0xA112FFFE)", "(0x5EED0001,)"),
    ("51_calibrate: locate", "(0x5EED0001, 0xA112FFFE)", "(1, 2)"),
    ("51_calibrate: locate", "(0x5EED0001, 0xA112FFFE)", "(0x5EED0001, 0x5EED0001)"),
    ("51_calibrate: locate", "(0x5EED0001, 0xA112FFFE)", "(0x5EED0002, 0xA112FFFE)"),
    ("51_calibrate: locate", "(0x5EED0001, 0xA112FFFE)", "(0x5EED0001, 0x7112FFFE)"),
    ("51_calibrate: locate", "list(plant(value))", "plant(value)"),
    ("51_calibrate: locate", "if len(places) != 1", "if not places"),
    ("51_calibrate: locate", "all(words", "any(words"),
    ("53_segments: segment", " | 0xFFF\n", "\n"),
    ("53_segments: segment", " | high & 0xFF000000", ""),
    ("53_segments: segment", " | high & 0xF0000", ""),
    ("53_segments: segment", "if high & 1 << 23:", "if True:"),
    ("54_page_tables: walk", "or table >= limit", ""),
    ("54_page_tables: walk", "not table & 1 or", ""),
    ("54_page_tables: walk", "if not page & 1:", "if not page:"),
    ("54_page_tables: walk", "(table & ~0xFFF)", "table"),
    ("54_page_tables: walk", "return page & ~0xFFF |", "return page |"),
    ("55_lguest_data: may_interrupt", "word(348) == 0x80", "True"),
    ("55_lguest_data: may_interrupt", "word(348) == 0x80", "False"),
    ("55_lguest_data: may_interrupt", '        raise ValueError("bad syscall vector")', "        told = 344"),
    ("55_lguest_data: may_interrupt", "<= eip < word(told + 1)", "<= eip <= word(told + 1)"),
    ("55_lguest_data: may_interrupt", "<= eip < word(told + 1)", "< eip < word(told + 1)"),
    ("55_lguest_data: may_interrupt", "bool(word(0) & 0x200)", "word(0) == 0x200"),
    ("55_lguest_data: may_interrupt", "bool(word(0) & 0x200)", "bool(word(0))"),
    ("55_lguest_data: may_interrupt", "not word(1) >> irq & 1", "not word(1)"),
    ("55_lguest_data: may_interrupt", " and not word(1) >> irq & 1", ""),
    ("55_lguest_data: may_interrupt", '"little"', '"big"'),
    ("56_interrupts: frame", "if error is not None:", "if error:"),
    ("56_interrupts: frame", "if level != 1:", "if True:"),
    ("56_interrupts: frame", " if enabled else eflags & ~0x200", ""),
    ("56_interrupts: frame", "        esp = stack\n", ""),
    ("57_hypercalls: call", "    do(real)\n    return True", "    return not do(real)"),
    ("57_hypercalls: call", "for _ in range(len(ring.status))", "while True"),
    ("57_hypercalls: call", "entry = ring.next", "entry = _"),
    ("57_hypercalls: call", "(entry + 1) % len(ring.status)", "entry + 1"),
    (
        "57_hypercalls: call",
        "        ring.status[entry] = 0xFF\n        if stop:\n            return False\n",
        "        if stop:\n            return False\n        ring.status[entry] = 0xFF\n",
    ),
    ("57_hypercalls: call", "            return False", "            break"),
    ("57_machine: on_trap", "    if not by_int:", "    if not by_int and vector != 0x1F:"),
    ("57_machine: on_trap", " and cs & 3 == 1", ""),
    ("57_machine: on_trap", "cs & 3 == 1", "cs == 0x61"),
    ("57_machine: on_trap", " and not guest.waiting", ""),
    (
        "57_machine: on_trap",
        "    if guest.pending",
        "    if guest.halted:\n        guest.stop()\n    elif guest.pending",
    ),
    ("60_guest: wait_for", '        yield "off"\n    yield "on"', '    yield "on"'),
    ("60_guest: wait_for", '    yield "on"', ""),
    (
        "60_guest: wait_for",
        '    yield "off"\n    while not (yield "done?"):\n',
        '    while not (yield "done?"):\n        yield "off"\n',
    ),
    ("60_guest: wait_for", "while not", "if not"),
    ("60_guest: wait_for", '        yield "halt"\n', '        yield "on"\n'),
    ("62_guest_drivers: give_back", "next[last] = free", "next[head] = free"),
    ("62_guest_drivers: give_back", "    next[last] = free\n", ""),
    ("62_guest_drivers: give_back", "flags[last] & 1", "flags[last] == 1"),
    ("62_guest_drivers: give_back", "flags[last] & 1", "flags[last]"),
    ("62_guest_drivers: give_back", "head, 1\n", "head, 0\n"),
    ("62_guest_drivers: give_back", "return head", "return last"),
    ("64_guest_shell: request", "        poke_available(ring, 0),\n", ""),
    ("65_waker: breaks", "listening = set(wanted)", "listening = wanted"),
    ("65_waker: breaks", '("watch", "back")', '("back",)'),
    ("65_waker: breaks", '("watch", "back")', '("watch",)'),
    ("65_waker: breaks", '("watch", "back")', '("watch", "ignore", "back")'),
    ("65_waker: breaks", "readable and not waiting", "readable"),
    ("65_waker: breaks", "            waiting = True", "            pass"),
    ("65_waker: breaks", "sorted(listening & readable))", "[fd])"),
    ("65_waker: breaks", "            waiting = True", "            waiting = True\n            readable.clear()"),
    ("65_waker: breaks", "            readable.discard(fd)", "            pass"),
    ("66_io_thread: heard", "max(now, arrival) + takes", "now + takes"),
    ("66_io_thread: heard", "max(now, arrival) + takes", "arrival + takes"),
    ("66_io_thread: heard", "<= now", "< now"),
    ("66_io_thread: heard", "untold == every or not waiting", "not waiting"),
    ("66_io_thread: heard", "untold == every or not waiting", "untold == every"),
    ("66_io_thread: heard", "            untold = 0\n", ""),
    ("66_io_thread: heard", "[now] * untold", "[now]"),
    ("66_io_thread: heard", "untold == every", "n % every == every - 1"),
    ("66_mitigation: waits", "now >= rings", "now > rings"),
    ("66_mitigation: waits", "result.append(0)", "result.append(usec)"),
    (
        "66_mitigation: waits",
        "result.append(rings - now)",
        "result.append(rings - now)\n            rings = now + usec",
    ),
    ("66_mitigation: waits", "if rings is None or now >= rings:", "rings = rings or usec\n        if rings <= 0:"),
    ("66_mitigation: waits", "rings = now + usec", "rings = (rings or now) + usec"),
    ("66_mitigation: waits", "            rings = now + usec", "            rings = now - now % (usec or 1) + usec"),
    ("67_handlers: Input", "            self.loop.want_kicks(True)\n", ""),
    ("67_handlers: Input", "        self.loop.want_kicks(False)\n", ""),
    ("67_handlers: Input", "\n        self.loop.watch()", ""),
    ("67_handlers: Input", "            return False", "            return True"),
    ("67_handlers: Input", "        return True", "        return False"),
    ("67_handlers: Input", "        return True", "        return self.loop.has_buffer()"),
    ("67_handlers: Input", "        if not self.loop.has_buffer():", "        if False:"),
    ("70_life: read_back", "if status == 15", "if True"),
    ("70_life: read_back", "if status == 15", "if status & 15 == 15"),
    ("70_life: read_back", "                status |= 64", "                status = 64"),
    ("70_life: read_back", "0: (1, 3)", "0: (1,)"),
    ("70_life: read_back", "3: (11,)", "3: (11, 15)"),
    ("70_life: read_back", "11: (15,)", "11: (15, 3)"),
    ("70_life: read_back", "(fine or value & ~64 != 11)", "True"),
    ("70_life: read_back", "(fine or value & ~64 != 11)", "fine"),
    ("70_life: read_back", "steps.get(status, ())", "steps.get(status & 15, ())"),
    ("70_life: read_back", "value & ~64 in steps", "value in steps"),
    ("70_life: read_back", "            status = 0\n", "            status &= 64\n"),
    ("70_life: read_back", "value & ~64 == status & ~64 | 128", "value == status | 128 != 207"),
    ("70_mmio: driven", '        yield "publish"\n        yield "set"', '        yield "set"\n        yield "publish"'),
    ("70_mmio: driven", 'yield "set"\n        yield "pulse"', 'yield "pulse"\n        yield "set"'),
    ("70_mmio: driven", 'yield "ack"\n            yield "look"', 'yield "look"\n            yield "ack"'),
    ("70_mmio: driven", '            yield "ack"\n', ""),
    ("70_mmio: driven", 'if (yield "read")', 'if not (yield "read")'),
    ("71_decompress: unpack", "> size", ">= size"),
    ("71_decompress: unpack", "    if len(unpacked) < size", "    if not unpacked"),
    (
        "71_decompress: unpack",
        "        unpacked += piece\n",
        "        if not piece:\n            break\n        unpacked += piece\n",
    ),
    ("71_decompress: unpack", "        unpacked += piece\n        if", "        if"),
    ("74_pic: best", "        if isr >> line & 1:\n            return None\n", ""),
    ("74_pic: best", "if isr >> line & 1", "if isr & ~imr & 1 << line"),
    ("74_pic: best", " and not imr >> line & 1", ""),
    ("74_pic: best", "(lowest + distance)", "(distance - 1)"),
    ("74_pic: best", "range(1, 9)", "range(1, 8)"),
    ("74_pic: best", "range(1, 9)", "range(8)"),
    (
        "74_wire: printer",
        "        over = cable.over()\n        data = cable.take()\n",
        "        data = cable.take()\n        over = cable.over()\n",
    ),
    ("74_wire: printer", "        if over:", "        if cable.over():"),
    ("74_wire: printer", "        over = cable.over()\n", "        cable.sleep()\n        over = cable.over()\n"),
    ("74_wire: printer", "        cable.sleep()", "        pass"),
    ("74_wire: printer", "while data:\n            data", "if data:\n            data"),
    ("74_wire: printer", "data[cable.write(data):]", "data[:cable.write(data) and 0]"),
    ("74_wire: printer", "        data = cable", "        if over:\n            return\n        data = cable"),
    ("75_pit: next_rise", "began - -rise * 1_000_000_000 // 1_193_182", "began + rise * 1_000_000_000 // 1_193_182"),
    ("75_pit: next_rise", "began - -rise * 1_000_000_000 // 1_193_182", "began + round(rise * 1e9 / 1_193_182)"),
    ("75_pit: next_rise", "n = n or 65536\n", "n = n or 1\n"),
    ("75_pit: next_rise", "(ticks // n + 1)", "-(-ticks // n)"),
    ("75_pit: next_rise", "(now - began)", "now"),
    ("75_pit: next_rise", "return began - ", "return -"),
    ("71_linux64: e820", "length > 0", "length >= 0"),
    ("71_linux64: e820", "min(below, 0x9FC00)", "0x9FC00"),
    ("71_linux64: e820", "below - 0x100000", "below"),
    ("71_linux64: e820", "below - 0x100000", "size - 0x100000"),
    ("71_linux64: e820", "(1 << 32, size - below)", "(1 << 32, size - (1 << 32))"),
    ("71_linux64: e820", ", (1 << 32, size - below)", ""),
    ("72_acpi: opened", "0x0F if more else 0x3F", "0x0F"),
    ("72_acpi: opened", "<< 4", "<< 6"),
    ("72_acpi: opened", '"little"', '"big"'),
    ("72_acpi: opened", "1 + more <= length", "more < length - 1"),
    ("72_acpi: opened", "1 + more <= length <= len(aml)", "length <= len(aml)"),
    ("72_acpi: opened", "1 + more <= length <= len(aml)", "1 + more <= length"),
    ("72_acpi: opened", "if more and aml[0] & 0x30", "if False"),
    ("72_acpi: opened", "aml[1 + more : length]", "aml[1 + more : 1 + more + length]"),
    ("72_acpi: opened", "if not aml", "if False"),
    ("73_ports: split", "size == 1 or wide", "wide"),
    ("73_ports: split", "wide and first <= address and last <= end", "wide"),
    ("73_ports: split", "wide and first <= address", "wide"),
    ("73_ports: split", "wide and first <= address and last <= end", "False"),
    ("73_ports: split", "address <= end", "address < end"),
    ("73_ports: split", "first <= last", "first < last"),
    ("73_ports: split", "first <= last and address <= end", "first <= address <= end"),
    ("74_uart: send", "        if status == 0xFF:\n            return False\n", ""),
    ("74_uart: send", "while not (status := inb(0x3FD)) & 0x20:\n            pass", "status = inb(0x3FD)"),
    ("74_uart: send", "& 0x20", "& 0x10"),
    ("74_uart: send", "& 0x20", "== 0"),
    ("74_uart: send", '.replace(b"\\n", b"\\r\\n")', ""),
    ("74_uart: send", 'b"\\r\\n"', 'b"\\n\\r"'),
    ("74_uart: send", "        outb(0x3F8, byte)", "        outb(0x3F8, byte & 0x7F)"),
    ("75_rtc: now", "        while cmos(0x0A) & 0x80:\n            pass\n", ""),
    ("75_rtc: now", "while cmos(0x0A) & 0x80", "if cmos(0x0A) & 0x80"),
    ("75_rtc: now", "if read == before", "if True"),
    ("75_rtc: now", "if read == before", "if not cmos(0x0A) & 0x80 and cmos(0x00) == read[2]"),
    ("75_rtc: now", "10 * (byte >> 4) + byte % 16", "byte"),
    (
        "75_rtc: now",
        "    while True:\n        while cmos(0x0A) & 0x80:\n            pass\n",
        "    while cmos(0x0A) & 0x80:\n        pass\n    while True:\n",
    ),
    ("76_power: ending", " and value >> 10 & 7 == 5", ""),
    ("76_power: ending", " and value & 1 << 13", ""),
    ("76_power: ending", "value >> 10 & 7", "value >> 10 & 5"),
    ("76_power: ending", "(port, size) == (0x604, 2)", "size == 2"),
    ("76_power: ending", "(port, size) == (0xCF9, 1) and value & 4", "port == 0xCF8 and value & 0x400"),
    ("76_power: ending", "(0xCF9, 1) and value & 4", "(0xCF9, 1)"),
    (
        "76_power: ending",
        "(port, size) == (0xCF9, 1) and value & 4",
        "port <= 0xCF9 < port + size and value >> 8 * (0xCF9 - port) & 4",
    ),
    ("76_power: ending", " and not value & 1", ""),
    ("76_power: ending", "value >= 0xF0", "value == 0xFE"),
    ("76_power: ending", "(port, size) == (0x64, 1)", "port in (0x60, 0x64)"),
    ("76_the_pc: loop", "        pc.due()\n", ""),
    ("76_the_pc: loop", "pc.pending() and pc.allowed()", "pc.pending()"),
    ("76_the_pc: loop", "pc.pending() and pc.allowed()", "pc.allowed()"),
    ("76_the_pc: loop", "pc.sleep(pc.deadline())", "pc.sleep(None)"),
    ("76_the_pc: loop", "elif pc.halted():\n            pc.sleep", "if pc.halted():\n            pc.sleep"),
    ("76_the_pc: loop", "        elif pc.halted():\n            pc.sleep(pc.deadline())\n", ""),
    ("76_the_pc: loop", "pc.sleep(pc.deadline())", "pc.sleep(pc.deadline() + 5)"),
    ("76_the_pc: loop", "while not pc.over()", "if not pc.over()"),
    ("77_interpose: called", "library == caller and name in own", "library == caller and name in own | _"),
    ("77_interpose: called", "library == caller and name in own", "name in own"),
    ("77_interpose: called", "library == caller and name in own", "False"),
    ("77_interpose: called", "for library, offers, _ in loaded", "for library, offers, _ in reversed(loaded)"),
    ("78_x86_64: walk", "all_of_them & e,", "e,"),
    ("78_x86_64: walk", "one_of_them | e", "e"),
    ("78_x86_64: walk", "shift in (30, 21)", "shift == 21"),
    ("78_x86_64: walk", "if e & 0x80 and shift in (30, 21):", "if shift == 12:"),
    ("78_x86_64: walk", " & ~offset |", " |"),
    ("78_x86_64: walk", "code | 1", "code"),
    ("78_x86_64: walk", "if not e & 1:", "if not e:"),
    ("78_x86_64: walk", "| fetch << 4", "| fetch << 3"),
    ("78_x86_64: walk", "write and not all_of_them & 2", "write and user and not all_of_them & 2"),
    ("78_x86_64: walk", "fetch and one_of_them >> 63", "fetch and user and one_of_them >> 63"),
    ("79_pc_host: enter", "(rsp if stack is None else stack) & ~15", "rsp if stack is None else stack"),
    ("79_pc_host: enter", "(rsp if stack is None else stack) & ~15", "rsp & ~15"),
    ("79_pc_host: enter", "[ss, rsp, rflags, cs, rip]", "[ss, top, rflags, cs, rip]"),
    ("79_pc_host: enter", "[ss, rsp, rflags, cs, rip]", "[ss, rsp, rflags, cs, rip][2 * (stack is None) :]"),
    ("79_pc_host: enter", "[ss, rsp, rflags, cs, rip]", "[rip, cs, rflags, rsp, ss]"),
    ("79_pc_host: enter", "if error is not None", "if error"),
    ("79_pc_host: enter", "gate[6:12]", "gate[6:8]"),
    ("79_pc_host: enter", " if gate[5] & 1 == 0 else rflags", ""),
    ("79_pc_host: enter", "gate[5] & 1 == 0", "gate[5] == 0x8E"),
    ("79_pc_launcher: last", "            found = value", "            return value"),
    ("79_pc_launcher: last", "(?:\"[^\"]*\"|[^ \"])+", "[^ ]+"),
    ("79_pc_launcher: last", "            break\n", "            continue\n"),
    ("79_pc_launcher: last", 'word == "--"', '"--" in word'),
    ("79_pc_launcher: last", 'left.replace("-", "_") == name.replace("-", "_")', "left == name"),
    ("79_pc_launcher: last", 'left.replace("-", "_") == name', "left == name"),
    ("79_pc_launcher: last", 'word.partition("=")', 'word.replace("-", "_").partition("=")'),
    ("79_pc_launcher: last", 'word.partition("=")', 'word.rpartition("=")'),
    ("79_pc_launcher: last", '== name.replace("-", "_")', 'in (name, f"early{name}")'),
    ("79_pc_launcher: last", "    return found", "    return found or None"),
    ("80_debian: members", "end + end % 2", "end"),
    ("80_debian: members", 'head[58:] != b"`\\n" or ', ""),
    ("80_debian: members", " or not size.isdigit()", ""),
    ("80_debian: members", "if end > len(data)", "if False"),
    ("80_debian: members", "while at < len(data)", "while at + 60 <= len(data)"),
    ("80_debian: members", "head[:16].rstrip()", "head[:16].split()[0]"),
    ("81_initramfs: entries", "at + 110 + length + 3 & ~3", "at + 110 + (length + 3 & ~3)"),
    ("81_initramfs: entries", "start + size + 3 & ~3", "start + size"),
    ("81_initramfs: entries", "if start + size > len(archive)", "if False"),
    ("81_initramfs: entries", ' or head[:6] != b"070701"', ""),
    ("81_initramfs: entries", "at + 109 + length", "at + 110 + length"),
    ("82_debian_guest: save", 'f".disk.{me}.part"', '".disk.part"'),
    ("82_debian_guest: save", 'f".disk.{me}.part"', '"disk"'),
    ("82_debian_guest: save", '    yield "add", part\n    yield "rename"', '    yield "rename"'),
    ("82_debian_guest: save", "    yield \"rename\"", "    yield \"remove\", \"disk\"\n    yield \"rename\""),
    ("82_debian_guest: save", '    yield "rename", part, "disk"', ""),
    ("85_debuggable: registers", '"little"', '"big"'),
    ("85_debuggable: registers", "at += bits // 4", "at += 8"),
    ("85_debuggable: registers", "at : at + bits // 4", "at : at + 8"),
    ("85_debuggable: registers", 'None if "x" in digits else ', ""),
    ("85_debuggable: registers", 'None if "x" in digits', 'None if "x" in reply'),
    ("86_gdb: payload", "sum(body) % 256", "sum(body)"),
    ("86_gdb: payload", "int(digits, 16)", "int(digits.replace(b'A', b'0'), 16)"),
    ("86_gdb: payload", 'elif byte == ord("}")', "elif False"),
    ("87_brakes: Vandal", "        if address not in self.saved:\n", "        if True:\n"),
    ("87_brakes: Vandal", "        if address in self.saved:\n", "        if True:\n"),
    ("87_brakes: Vandal", "self.saved.pop(address)", "self.saved[address]"),
    ("87_brakes: Vandal", "            if at in self.saved:", "            if False:"),
    ("87_brakes: Vandal", "            else:\n                self", "            if True:\n                self"),
    ("87_brakes: Vandal", "address <= at < address + length", "at == address"),
    ("87_brakes: Vandal", "address <= at < address + length", "address < at < address + length"),
    ("87_brakes: Vandal", "address <= at < address + length", "False"),
    ("88_standstill: step", "while not guest.stopping()", "while True"),
    ("88_standstill: step", "if guest.run_one():\n                return", "guest.run_one()\n            return"),
    ("88_standstill: step", "            guest.serve()\n", ""),
    ("88_standstill: step", "            guest.deliver()\n            return", "            guest.deliver()"),
    ("88_standstill: step", "            guest.sleep()", "            guest.sleep()\n            return"),
    ("88_standstill: step", "        if not guest.halted():", "        if not guest.halted() and not guest.pending():"),
    ("88_standstill: step", "        elif guest.pending():\n            guest.deliver()\n            return\n", ""),
    ("89_gdb_server: served", 'sorted(ready, key=lambda pair: pair[0] == "door")', "ready"),
    ("89_gdb_server: served", 'pair[0] == "door"', 'pair[0] != "door"'),
    ("89_gdb_server: served", "                if stopped:\n", "                if here:\n"),
    ("89_gdb_server: served", "                if stopped:\n", "                if True:\n"),
    ("89_gdb_server: served", "                if not stopped:\n", "                if True:\n"),
    ("89_gdb_server: served", '["gone", "go"] if stopped else ["gone"]', '["gone", "go"]'),
    ("89_gdb_server: served", '(b"+", b"-", b"\\x03")', "()"),
    ("89_gdb_server: served", "here = stopped = False\n    return", "here = False\n    return"),
    ("89_gdb_server: served", "here = stopped = False\n    return", "stopped = False\n    return"),
    ("89_gdb_server: served", '"shown out" if here else "in"', '"shown out" if stopped else "in"'),
    ("92_terminal_view: runs", 'cells[end - 1] == ("", " ")', 'cells[end - 1][1] == " "'),
    ("92_terminal_view: runs", 'while end and cells[end - 1] == ("", " ")', "while False"),
    ("92_terminal_view: runs", "+ escape(letter)", "+ letter"),
    ("92_terminal_view: runs", "(style, escape(letter))", "(style, letter)"),
    ("92_terminal_view: runs", "if found and found[-1][0] == style", "if found and style == '' != letter.strip()"),
    ("92_terminal_view: runs", "if found and found[-1][0] == style", "if False"),
    ("92_terminal_view: runs", "in cells[:end]", "in [c for c in cells if c[1] != ' ']"),
    ("93_ring: steady", "        last = now\n", ""),
    ("93_ring: steady", "range(7)", "range(9)"),
    ("93_ring: steady", "range(7)", "iter(int, 1)"),
    ("96_timeline: together", "working >= 2", "working == 2"),
    ("96_timeline: together", "working >= 2", "working > 2"),
    ("96_timeline: together", "working >= 2", "working >= 1"),
    ("96_timeline: together", "changes = sorted(", "changes = list("),
    (
        "96_timeline: together",
        "    changes = ",
        "    return sum(max(0, min(a[1], b[1]) - max(a[0], b[0])) for n, a in enumerate(spans) for b in spans[:n])\n"
        "    changes = ",
    ),
    (
        "96_timeline: together",
        "    changes = ",
        "    spans = sorted(spans)\n"
        "    return sum(max(0, a[1] - b[0]) for a, b in zip(spans, spans[1:]))\n    changes = ",
    ),
    ("97_memory_map: unclaimed", "at = max(at, last)", "at = last"),
    ("97_memory_map: unclaimed", "            if first >= end:\n                break\n", ""),
    ("97_memory_map: unclaimed", "sorted(regions)", "regions"),
    ("97_memory_map: unclaimed", "if at < first:", "if at <= first:"),
    ("97_memory_map: unclaimed", "        if at < end:", "        if at <= end:"),
    ("97_memory_map: unclaimed", "        if at < end:\n            found.append((at, end))\n", ""),
    ("97_memory_map: unclaimed", "found.append((at, first))", "found = [(at, first)]"),
    ("98_neighbour: patched", "while total > 0xFFFF", "if total > 0xFFFF"),
    ("98_neighbour: patched", "    while total > 0xFFFF:\n        total = (total & 0xFFFF) + (total >> 16)\n", ""),
    ("98_neighbour: patched", 'total += ~int.from_bytes(old[at : at + 2], "big") & 0xFFFF', "pass"),
    ("98_neighbour: patched", "total += ~int", "total += int"),
    ("98_neighbour: patched", 'new[at : at + 2], "big"', 'new[at : at + 2], "little"'),
    ("98_neighbour: patched", "range(0, len(old), 2)", "range(0, 2, 2)"),
    ("98_neighbour: patched", "total = ~checksum & 0xFFFF", "total = checksum"),
    ("98_neighbour: patched", "    return ~total", "    return total"),
    ("98_neighbour: patched", "return ~total & 0xFFFF", "return ~total & 0xFFFF or 0xFFFF"),
    ("35_host: day", 'fds.get((address, None), "bus")', '"bus"'),
    (
        "35_host: day",
        'fds.get((address, value), fds.get((address, None), "bus"))',
        'fds.get((address, value)) or fds.get((address, None)) or "bus"',
    ),
    ("35_host: day", "fds[address, value] = fd", "fds[address, None] = fd"),
    ("35_host: day", "fds.pop(tuple(rest), None)", "fds.pop(tuple(rest))"),
    ("35_host: day", "fds.pop(tuple(rest), None)", "fds = {key: fd for key, fd in fds.items() if key[0] != rest[0]}"),
    ("35_host: day", "stopping or what", "running and what"),
    ("35_host: day", "if running and stopping", "if stopping"),
    ("35_host: day", 'rest[0] == "Power down"', 'rest[0].startswith("Power down")'),
    ("35_host: day", 'running or what == "run"', "True"),
    (
        "40_launcher: lived",
        "    with ExitStack() as last:\n        for make in makers:\n            last.callback(make())\n"
        "        return run()",
        "    made = [make() for make in makers]\n    try:\n        return run()\n    finally:\n"
        "        for give_back in made[::-1]:\n            give_back()",
    ),
    ("40_launcher: lived", "for make in makers:", "for make in reversed(makers):"),
    ("40_launcher: lived", "        return run()", "    return run()"),
    (
        "40_launcher: lived",
        "        return run()",
        "        try:\n            return run()\n        except LookupError:\n            return None",
    ),
    (
        "40_launcher: lived",
        "        for make in makers:\n            last.callback(make())\n        return run()",
        "        made = []\n        last.callback(lambda: [give_back() for give_back in made])\n"
        "        for make in makers:\n            made.append(make())\n        return run()",
    ),
    ("40_launcher: lived", "last.callback(make())", "last.callback(lambda made=make: made()())"),
    ("45_session: obeyed", "            waiting.discard(opposite.get(name))\n", ""),
    ("45_session: obeyed", '"CONT": "TSTP", ', ""),
    ("45_session: obeyed", ', "TSTP": "CONT"', ""),
    ("45_session: obeyed", "sorted(waiting, key=numbers.get)", "sorted(waiting)"),
    ("45_session: obeyed", "                return told", "                break"),
    (
        "45_session: obeyed",
        "        for name in sorted(waiting, key=numbers.get)",
        "        for name in dict.fromkeys(burst)",
    ),
    (
        "45_session: obeyed",
        "    for burst in bursts:\n        waiting = set()",
        "    waiting = set()\n    for burst in bursts:",
    ),
    ("50_engine: Guard", "except BaseException", "except Exception"),
    ("50_engine: Guard", "self.failure or e", "e"),
    ("50_engine: Guard", "                self.stop()\n", ""),
    ("50_engine: Guard", "                return otherwise\n", ""),
    ("50_engine: Guard", "failure, self.failure = self.failure, None", "failure = self.failure"),
    ("50_engine: Guard", "return function(*arguments)", "return function(*arguments) or otherwise"),
    ("50_engine: Guard", "        start()\n", "        self.failure = start()\n"),
    ("52_cpu: ranges", "    if first:\n        found.append((0, first - 1))", "    found.append((0, first - 1))"),
    ("52_cpu: ranges", "first - 1", "first"),
    ("52_cpu: ranges", "[(end, last)]", "[(end + 1, last)]"),
    ("52_cpu: ranges", "    if everywhere:\n        return [(0, last)]\n", ""),
    ("52_cpu: ranges", "    if first:\n        found.append((0, first - 1))\n", ""),
    ("52_cpu: ranges", "found = [(end, last)]", "found = [(first, last)]"),
    (
        "58_soft_host: run",
        "        host.clear()\n        if host.stopping():\n            return\n",
        "        if host.stopping():\n            return\n        host.clear()\n",
    ),
    ("58_soft_host: run", "            host.deliver()\n", "            host.deliver()\n        host.clear()\n"),
    ("58_soft_host: run", "        host.clear()\n", ""),
    (
        "58_soft_host: run",
        "        if host.stopping():\n            return\n        if host.pending():\n            host.deliver()\n",
        "        if host.pending():\n            host.deliver()\n        if host.stopping():\n            return\n",
    ),
    ("58_soft_host: run", "        if host.halted():\n            host.sleep()\n        else:\n", "        if True:\n"),
    ("58_soft_host: run", "            host.sleep()", "            pass"),
    ("58_soft_host: run", "        if host.pending():\n            host.deliver()\n", ""),
    ("58_soft_host: run", "            return", "            pass"),
    ("65_break: preads", 'said.append("NOTIFY")\n            inside = False', 'said.append("NOTIFY")'),
    ("65_break: preads", 'said.append("EAGAIN")\n            inside = False', 'said.append("EAGAIN")'),
    ("65_break: preads", "            waiting = []\n", ""),
    ("65_break: preads", "said += waiting", "said += waiting[:1]"),
    ("65_break: preads", "said += waiting", "said += waiting[::-1]"),
    ("65_break: preads", "if inside and waiting", "if inside and waiting and who"),
    ("65_break: preads", "if inside and waiting", "if waiting and event != 'back'"),
    ("68_before: run_guest", "while ready := loop.select()", "if ready := loop.select()"),
    (
        "68_before: run_guest",
        "                if not loop.serve(fd):\n                    loop.ignore(fd)",
        "                loop.serve(fd)",
    ),
    ("68_before: run_guest", "        loop.unbreak()", "            loop.unbreak()"),
    ("68_before: run_guest", "            continue\n", ""),
    ("68_before: run_guest", "for fd in ready:", "for fd in 'abc':"),
    ("68_before: run_guest", "                    loop.ignore(fd)", "                    return"),
    ("68_before: run_guest", "        loop.unbreak()", "        pass"),
    ("42_dev_lguest: kicked", "    for request in requests:", "    for request in reversed(requests):"),
    ("42_dev_lguest: kicked", "number == 4 and rest[0]", "rest[0]"),
    ("42_dev_lguest: kicked", "number == 4 and", "number in (3, 4) and"),
    ("42_dev_lguest: kicked", "number == 4", "len(rest) == 2"),
    ("42_dev_lguest: kicked", '"little"', '"big"'),
    ("42_dev_lguest: kicked", "range(0, len(request), size)", "range(0, len(request), 4)"),
    (
        "42_dev_lguest: kicked",
        "rest[0] == address:\n            return rest[1]",
        "rest[0] == address and rest[1]:\n            return rest[1]",
    ),
    ("42_dev_lguest: kicked", "rest[0] == address", "rest[0] <= address"),
    ("46_cli: harmless", "c.isprintable()", "c >= ' '"),
    ("46_cli: harmless", "c.isprintable()", "' ' <= c != '\\x7f'"),
    ("46_cli: harmless", "c.isprintable()", "' ' <= c < '\\x7f'"),
    ("46_cli: harmless", "c.isprintable()", "ord(c) & 0x7f >= 32 and ord(c) != 0x7f"),
    ("46_cli: harmless", "c.isprintable()", "c.isprintable() or c == '\\n'"),
    ("46_cli: harmless", 'c.encode("unicode_escape").decode()', '"?"'),
    ("46_cli: harmless", 'c.encode("unicode_escape").decode()', '""'),
    ("46_entry: early", "[*module, *main.body]", "[*main.body, *module]"),
    ("46_entry: early", "[*module, *main.body]", "module"),
    ("46_entry: early", "[*module, *main.body]", "main.body"),
    ("46_entry: early", "[*module, *main.body]", "ast.walk(ast.parse(source))"),
    ("46_entry: early", "found += [each.name for each in statement.names]", "found.append(statement.names[0].name)"),
    ("46_entry: early", "each.name for", "each.asname or each.name for"),
    ("46_entry: early", "            break", "            pass"),
    ("46_entry: early", "found.append(statement.module)", "found += [each.name for each in statement.names]"),
    ("48_unicorn: layout", "at + -at % widest", "at"),
    ("48_unicorn: layout", "at + -at % widest", "at + -at % word"),
    ("48_unicorn: layout", "        at += -at % step\n", ""),
    ("48_unicorn: layout", "min(size, word)", "size"),
    ("48_unicorn: layout", "min(size, word)", "word"),
    ("48_unicorn: layout", "at += -at % step", "at += at % step"),
    ("48_unicorn: layout", "max(widest, step)", "step"),
    (
        "69_today: handler",
        "    device.ack(reasons)\n    for reason in (1, 2):\n        if reasons & reason:\n"
        "            device.serve(reason)",
        "    for reason in (1, 2):\n        if reasons & reason:\n            device.serve(reason)\n"
        "    device.ack(reasons)",
    ),
    ("69_today: handler", "device.ack(reasons)", "device.ack(3)"),
    ("69_today: handler", "    device.ack(reasons)\n", ""),
    ("69_today: handler", "device.ack(reasons)", "device.ack(device.status())"),
    ("69_today: handler", "if reasons & reason", "if reasons == reason"),
    ("69_today: handler", "            device.serve(reason)", "            device.serve(reasons)"),
    ("69_today: handler", "for reason in (1, 2)", "for reason in (1,)"),
    ("77_small_guest: jump", "(here + 1 + size)", "here"),
    ("77_small_guest: jump", "(here + 1 + size)", "(here + 2)"),
    ("77_small_guest: jump", "(here + 1 + size)", "(here + size)"),
    ("77_small_guest: jump", "<= far <", "< far <"),
    ("77_small_guest: jump", "<= far < 1", "<= far <= 1"),
    ("77_small_guest: jump", '"little"', '"big"'),
    ("77_small_guest: jump", '((b"\\xeb", 1), (b"\\xe9", 4))', '[(b"\\xe9", 4)]'),
    ("77_small_guest: jump", "1 << 8 * size - 1", "1 << 7"),
    (
        "77_small_guest: jump",
        '    raise ValueError(f"from {here:#x} to {there:#x} is too far for a jump")',
        "    return b''",
    ),
    ("90_live: Ear", "text in self.last[len(self.last) - new :]", "text in self.last"),
    ("90_live: Ear", "text in self.last[len(self.last) - new :]", "text in self.last[-new:]"),
    ("90_live: Ear", "text in self.last[len(self.last) - new :]", "text in self.last[mark:]"),
    ("90_live: Ear", "self.last = (self.last + piece)[-self.kept :]", "self.last = piece[-self.kept :]"),
    ("90_live: Ear", "[-self.kept :]", ""),
    ("90_live: Ear", "[-self.kept :]", "[: self.kept]"),
    ("90_live: Ear", "return self.so_far", "return len(self.last)"),
    ("90_live: Ear", "min(self.so_far - mark, len(self.last))", "self.so_far - mark"),
    ("91_view: typed", 'if len(key) == 1 else "")', ")"),
    ("91_view: typed", "key.upper()", "key"),
    ("91_view: typed", " and \"alt\" not in held", ""),
    ("91_view: typed", ' or (key == "Tab" and "shift" in held)', ""),
    ("91_view: typed", '"meta" in held or ', ""),
    ("91_view: typed", "64 <= code < 96", "65 <= code < 91"),
    ("91_view: typed", " if 64 <= code < 96 else \"\"", ""),
    ("91_view: typed", '"\\r"', '"\\n"'),
    ("91_view: typed", "ord(key.upper()) if len(key) == 1 else 0", "ord(key[0].upper())"),
    ("94_slow_motion: goes_on", "what <= when", "False"),
    (
        "94_slow_motion: goes_on",
        'what == "stop" or what <= when:\n            return when',
        'what == "stop":\n            return when\n        if what <= when:\n            return what',
    ),
    ("94_slow_motion: goes_on", "        delay = what", "        delay = when + what"),
    ("94_slow_motion: goes_on", "        if delay <= when:\n            return delay\n", ""),
    ("94_slow_motion: goes_on", "            return when", "            return delay"),
    ("94_slow_motion: goes_on", "        delay = what\n", ""),
    ("94_slow_motion: goes_on", "    return delay", "    return max(delay, when)"),
    ("95_ring_view: history", "behind = (idx - 1 - slot) % num", "behind = (idx - slot) % num"),
    ("95_ring_view: history", "number if number >= 0 else None", "number"),
    ("95_ring_view: history", "number >= 0", "number > 0"),
    ("95_ring_view: history", "number = idx - 1 - behind", "number = idx - behind"),
    ("95_ring_view: history", "number = idx - 1 - behind", "number = slot"),
    ("95_ring_view: history", "number = idx - 1 - behind", "number = idx // num * num + slot"),
    ("68_either: diary", 'elif " = " not in what', "else"),
    ("68_either: diary", 'what.split(" ", 2)', 'what.split()[:3]'),
    (
        "68_either: diary",
        "lists = {name: [] for name in names.values()}",
        "lists = {names[n]: [] for n, _ in calls if n in names}",
    ),
    (
        "68_either: diary",
        "        if number in names:\n            lists[names[number]]",
        "        if True:\n            lists.setdefault(names.get(number, number), [])",
    ),
    ("68_either: diary", "names[named] = name", "names[number] = name"),
    ("68_either: diary", "    for number, what in calls:", "    for number, what in sorted(calls):"),
    ("69_the_change: cost", "(begins or ends)", "(begins and ends)"),
    ("69_the_change: cost", "(begins or ends)", "begins"),
    ("69_the_change: cost", "(begins or ends)", "ends"),
    (
        "69_the_change: cost",
        "ends = ended is not None and first < ended < last",
        "ends = ended is None or ended > first",
    ),
    ("69_the_change: cost", "first < ended < last", "first <= ended < last"),
    ("69_the_change: cost", "first <= began < last", "first < began < last"),
    ("69_the_change: cost", ' and " = " not in what', ""),
    ("69_the_change: cost", ' and what not in ("futex", "madvise")', ""),
    ("69_the_change: cost", "ended is not None and ", ""),
    ("68_strace: asleep", "sleeping.pop(thread, None)", "sleeping.pop(thread)"),
    ("68_strace: asleep", 'what.endswith("<unfinished ...>")', '"<unfinished ...>" in what'),
    ("68_strace: asleep", '("<... ", "+++ ")', '"<... "'),
    ("68_strace: asleep", '("<... ", "+++ ")', '("<... ", "+++ ", "--- ")'),
    ("68_strace: asleep", "line.split(maxsplit=1)", 'line.split(" ", 1)'),
    ("68_strace: asleep", 'sleeping[thread] = what.partition("(")[0]', "sleeping[thread] = what"),
    (
        "68_strace: asleep",
        "            sleeping.pop(thread, None)",
        "            name = what.split()[1]\n            sleeping = {t: c for t, c in sleeping.items() if c != name}",
    ),
]


@pytest.mark.parametrize(("name", "right", "wrong"), WRONG, ids=[f"{n}: {r} -> {w}" for n, r, w in WRONG])
def test_an_answer_which_only_looks_right_is_found_out(name: str, right: str, wrong: str) -> None:
    it = all_of_them()[name]
    assert right in it.answer, "the answer reads differently now: change this list"
    assert re.match(r"look again: \d+ of \d+ cases went wrong\.\n", it.verdict(it.answer.replace(right, wrong, 1)))


RIGHT_TOO = [  # exercise, what is in its answer, and what would do as well
    ("66_mitigation: waits", "if rings is None or now >= rings", "if not result or now >= rings"),
    ("96_timeline: together", "working >= 2", "working > 1"),
    ("70_mmio: driven", '            yield "look"', '            yield "look"\n            yield "look"'),
    ("74_pic: best", "irr >> line & 1 and not imr >> line & 1", "(irr & ~imr) >> line & 1"),
    ("71_decompress: unpack", "    if len(unpacked) < size", "    if len(unpacked) != size"),
    ("71_linux64: e820", "length > 0", "length >= 1"),
    ("73_ports: split", "first <= last and address <= end", "not (last < first or end < address)"),
    ("77_interpose: called", "    return None", "    return"),
    ("82_debian_guest: save", 'f".disk.{me}.part"', 'f"{me}"'),
    ("10_vring: places", "slot = idx % num", "slot = idx & (num - 1)"),
    ("10_vring: next_one", "        if not q.more():\n", "        while not q.more():\n"),
    ("22_console: turn", "    if not count:", "    while not count:"),
    ("24_block: serve", "length > disk.size - offset", "offset + length > disk.size"),
    ("26_net: finish", "    while total > 0xFFFF:\n        total = ", "    for _ in range(3):\n        total = "),
    ("30_threads: reset", "queue.wake()\n    for queue in device.queues:\n", "queue.wake()\n"),
    ("31_inspect: suspect", "if taken != used", "if (taken - used) & 0xFFFF"),
    ("32_own_device: serve", "65536", "4096"),
    ("67_handlers: Input", "        self.loop.watch()", "        self.loop.read()\n        self.loop.watch()"),
    ("51_calibrate: locate", "if len(places) != 1", "if len(places) > 1"),
    ("97_memory_map: unclaimed", "first >= end", "first > end"),
    ("48_unicorn: layout", "at += -at % step", "at = (at + step - 1) // step * step"),
    ("52_cpu: ranges", "return [(0, last)]", "return [(1, 0)]"),
    ("58_soft_host: run", "if host.pending()", "while host.pending()"),
    ("68_before: run_guest", "for fd in ready:", "for fd in ready[:1]:"),
    ("69_today: handler", "(1, 2)", "(2, 1)"),
    ("94_slow_motion: goes_on", "delay <= when", "delay < when"),
]


@pytest.mark.parametrize(("name", "right", "other"), RIGHT_TOO, ids=[name for name, *_ in RIGHT_TOO])
def test_another_right_answer_is_right_too(name: str, right: str, other: str) -> None:
    it = all_of_them()[name]
    assert right in it.answer, "the answer reads differently now: change this list"
    assert it.verdict(it.answer.replace(right, other)).startswith("right: ")


def test_the_books_own_counter_of_c_has_the_flaw_which_its_exercise_is_about() -> None:
    code = """
from lguest_nb.keyboard import AbortCounter

class Counter:
    def __init__(self):
        self.now = 0
        self.counter = AbortCounter(clock=lambda: self.now)

    def feed(self, data, now):
        self.now = now
        return self.counter.feed(data)
"""
    assert "the last three are within a second" in all_of_them()["23_keyboard: Counter"].verdict(code)


class TestTheWalksSuite:
    def test_every_kept_input_which_has_a_name_of_words_is_there_and_the_dice_too(self) -> None:
        said = [case.said for case in GRADERS["16_your_walk: walk"](lambda *_: None)]
        kept = {path.name for path in (Path(__file__).parent / "corpus" / "walk").iterdir()}
        assert {f"the kept input {name}" for name in kept} <= set(said)
        assert sum(name.startswith("round ") for name in said) == 400

    def test_the_models_verdicts_are_not_all_the_same(self) -> None:
        wants = [case.want for case in GRADERS["16_your_walk: walk"](lambda *_: None) if case.said.startswith("round")]
        refused = wants.count(your_walk.GuestError)
        assert 40 < refused < 360

    def test_the_librarys_own_walk_says_the_same_to_every_ring_with_a_name(self) -> None:
        from lguest_nb.memory import GuestError, GuestMemory
        from lguest_nb.vring import walk_chain

        for named in your_walk.NAMED:
            memory = GuestMemory(your_walk.LIMIT, device_pages=0)
            memory.write(0, your_walk.memory_of(named))
            got: object = None
            try:
                chain = walk_chain(memory, your_walk.RING, your_walk.NUM, 0, named.negotiated)
                got = (chain.readable, chain.writable)
                del chain
            except GuestError:
                pass
            assert got == named.want, named.name
            memory.close()

    def test_an_installed_package_has_the_named_rings_and_says_what_is_missing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert "400 rings thrown by dice" in your_walk.what_there_is()
        monkeypatch.setattr(your_walk, "CLONE", tmp_path)
        assert "A clone of the repository has" in your_walk.what_there_is(tmp_path)
        it = all_of_them()["16_your_walk: walk"]
        assert it.verdict(it.answer) == f"right: {it.name}, in all {2 * len(your_walk.NAMED) + 1} cases."


class TestTheGrader:
    @pytest.fixture
    def asked(self, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
        "The verdict on an answer which should be `want`, or refuse."

        def ask(answer: Callable[[], object], want: object = 1) -> str:
            monkeypatch.setattr(exercises, "GRADERS", dict(GRADERS))
            exercise("toy: it")(lambda it: [Case("it()", it, want, "so it is")])
            return verdict("toy: it", answer)

        return ask

    def test_a_crash_is_a_sentence_with_the_readers_own_line(self, asked: Callable[..., str]) -> None:
        def crash() -> int:
            return {}["nothing"]  # type: ignore[no-any-return]

        line = crash.__code__.co_firstlineno + 1
        said = asked(crash)
        assert f"it() raises KeyError in line {line} of crash: 'nothing', and should be 1: so it is." in said
        assert "Traceback" not in said

    def test_an_answer_which_leaves_python_stays_in(self, asked: Callable[..., str]) -> None:
        assert "it() raises SystemExit" in asked(sys.exit)

    def test_an_endless_answer_is_ended_after_so_many_steps(self, asked: Callable[..., str]) -> None:
        def endless() -> None:
            while True:
                try:
                    while True:
                        pass
                except Exception:
                    continue

        assert f"has not come to an end after {STEPS} steps" in asked(endless)

    def test_a_refusal_must_be_of_the_right_kind(self, asked: Callable[..., str]) -> None:
        def refuse() -> None:
            raise LookupError("no")

        assert asked(refuse, LookupError).startswith("right")
        assert "must be refused with a OSError" in asked(refuse, OSError)
        assert "it() is 1, and must be refused with a OSError" in asked(lambda: 1, OSError)

    def test_three_mistakes_are_told_and_the_rest_is_counted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(exercises, "GRADERS", dict(GRADERS))
        exercise("toy: it")(lambda it: [Case("it()", it, i, "why") for i in range(9)])
        said = verdict("toy: it", lambda: 4)
        assert said.startswith("look again: 8 of 9 cases went wrong.\n") and said.count("\n") == 3

    def test_a_debugger_is_put_back(self) -> None:
        before = sys.gettrace()

        def debugger(*_: object) -> None:
            return None

        sys.settrace(debugger)
        try:
            at_most(10, lambda: None)
            assert sys.gettrace() is debugger
        finally:
            sys.settrace(before)

    @pytest.mark.parametrize("answer", [None, 7, "x", print], ids=repr)
    @each
    def test_nonsense_is_answered_with_sentences(self, name: str, answer: object) -> None:
        assert verdict(name, answer).startswith("look again: ")


def test_nothing_of_the_tests_is_needed_to_import_it(tmp_path: Path) -> None:
    "As after an installation: the package alone, in another place."
    import subprocess

    shutil.copytree(Path(exercises.__file__).parent, tmp_path / "lguest_nb")
    program = "import lguest_nb.your_walk as w, lguest_nb.marking; print(w.what_there_is())"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert "A clone of the repository has" in done.stdout, done.stderr
