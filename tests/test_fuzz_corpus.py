"""What the fuzzer has kept still runs, and would notice if a rule were broken. Needs no fuzzer."""

import inspect
import logging
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import fuzz_targets
import pytest
from fuzz_targets import TARGETS, Target

from lguest_nb import block, block_today, loading, vring
from lguest_nb.block import Block
from lguest_nb.bus import life
from lguest_nb.bus.lguest import LguestBus
from lguest_nb.bus.life import Life, SetUp
from lguest_nb.console import Console
from lguest_nb.memory import GuestMemory
from lguest_nb.net import Net
from lguest_nb.rng import Rng
from lguest_nb.snapshot import Overlay
from lguest_nb.vring import Virtqueue

pytestmark = pytest.mark.usefixtures("nothing_left")
CORPUS = Path(__file__).with_name("corpus")
MOST_FILES, MOST_BYTES = 200, 200_000


def inputs(name: str, pattern: str = "*") -> list[Path]:
    return sorted((CORPUS / name).glob(pattern))


@pytest.fixture
def made() -> Iterator[Callable[[str], Target]]:
    "Makes targets, and closes them."
    targets: list[Target] = []

    def make(name: str) -> Target:
        targets.append(TARGETS[name]())
        return targets[-1]

    yield make
    for target in targets:
        target.close()


@pytest.mark.parametrize("name", TARGETS)
def test_every_kept_input_holds_the_rules(name: str, made: Callable[[str], Target]) -> None:
    target = made(name)
    for path in inputs(name):
        try:
            target(path.read_bytes())
        except Exception as e:
            e.add_note(f"again: tools/fuzz.py --input {path} {name}")
            raise


def test_the_corpus_is_small_and_complete() -> None:
    files = [path for path in CORPUS.rglob("*") if path.is_file()]
    assert {path.parent.name for path in files} == set(TARGETS)
    assert len(files) < MOST_FILES
    assert sum(path.stat().st_size for path in files) < MOST_BYTES


Owner = type | ModuleType
MISTAKES: list[tuple[str, Owner, str, str, str]] = [  # target, where, function, and what is wrong instead of what
    ("walk", vring, "walk_chain", "head, num", "head, num + 1"),
    ("walk", vring, "walk_chain", "after >= entries", "after > entries"),
    ("walk", vring, "walk_chain", "elif segments is writable:", "elif segments is writable and length:"),
    ("walk", vring, "walk_chain", "length // 16, False", "length // 16, indirect"),
    ("walk", vring, "walk_chain", "flags, indirect)", "flags, True)"),
    ("walk", vring, "_check_indirect", "flags & DESC_NEXT", "False"),
    ("walk", vring, "_check_indirect", "not length or", ""),
    ("walk", GuestMemory, "check", "self.limit - address", "self.limit - address - 1"),
    ("walk", GuestMemory, "check", "self.limit - address", "self.maximum - address"),
    ("console", Console, "input", "chain.readable", "False"),
    ("console", Console, "output", "chain.writable", "False"),
    ("console", Console, "input", "vq.add_used(chain, count)", "if count: vq.add_used(chain, count)"),
    ("walk", vring, "walk_chain", "flags &= ORDINARY", "pass"),
    ("block", Block, "_read", "or length > self.size - offset", ""),
    ("block", Block, "_write", "or length > self.size - offset", ""),
    ("block", Block, "_read", "or length % SECTOR", ""),
    ("block", Block, "_write", "or length % SECTOR", ""),
    ("block", Block, "_write", "from_disk or", ""),
    ("block", Block, "_read", "to_disk or", ""),
    ("block", Block, "_read", "moved == length", "True"),
    ("block", block, "parse_request", "or not writable", ""),
    ("net", Net, "_receive", "*chain.in_views(), self.spare", "*chain.in_views()"),
    ("net", Net, "net_output", "> self.most", "> 2 * self.most"),
    ("net", Net, "net_input", "len(chains)", "1"),
    ("net", Net, "net_input", "vq.hold_used(chain, part)", "vq.add_used(chain, part)"),
    ("net", Net, "net_input", "length -= part", "pass"),
    ("net", Net, "_spill", "and room >= self.header", ""),
    ("net", Net, "started", "merges or self.accepted & F_VERSION_1", "merges"),
    ("net", Virtqueue, "hold_used", "self.pending_used += 1", "pass"),
    ("net", Virtqueue, "hold_used", "self.wrote(chain.writable)", "pass"),
    ("disk", Block, "_write", "if self.writethrough:", "if False:"),
    ("disk", Block, "_erase", "if self.writethrough:", "if False:"),
    ("disk", Block, "_obey_today", "if not name:", "if False:"),
    ("disk", Block, "_erase", "today.UNMAP if zeroes else 0", "today.UNMAP"),
    ("disk", Block, "_erase", "self.overlay.wrote(offset, length)", "pass"),
    ("disk", Overlay, "preadv", "if not views:", "if False:"),
    ("disk", block_today, "parse_ranges", "size - r.offset", "size"),
    ("disk", block_today, "config_after", "data[at] != 0", "data[0] != 0"),
    ("disk", block_today, "writethrough", "config[WRITEBACK] if accepted & F_CONFIG_WCE else", ""),
    ("rng", Rng, "rng_input", "count += given", "count = given"),
    ("rng", Virtqueue, "_look", "<= self.num", "<= self.num + 1"),
    ("rng", Virtqueue, "take", ">= self.num", "> self.num"),
    ("rng", Virtqueue, "take", "self.ahead -= 1", "pass"),
    ("console", Virtqueue, "take", "if not self.ahead:", "if True:"),
    ("rng", Virtqueue, "wait", "if not self.more():", "if True:"),
    ("rng", Virtqueue, "wait", "u16[self.used] = 0", "pass"),
    ("rng", Virtqueue, "take", ", self.indirect)", ")"),
    ("console", Virtqueue, "_interrupt_if_wanted", "asked or", ""),
    ("console", Virtqueue, "_interrupt_if_wanted", "asked or", "True or"),
    ("console", Virtqueue, "_interrupt_if_wanted", "self.notify_on_empty and not self.more()", "False"),
    ("rng", Virtqueue, "add_used", "self.wrote(chain.writable)", "pass"),
    ("rng", Virtqueue, "add_used", "(idx + 1) & 0xFFFF", "idx + 1"),
    ("loader", loading, "_check_segments", "s.address < end", "s.address < LOWEST"),
    ("loader", loading, "_check_segments", "end > size", "end > size + 1"),
    ("loader", loading, "load_initrd", "< kernel.end", "< 0"),
    ("bus", LguestBus, "_reset", "vq.place(vq.ring)", "pass"),
    ("bus", LguestBus, "accept", "& device.features", ""),
    ("bus", LguestBus, "_status_changed", "status & STATUS_FAILED", "False"),
    ("events", vring, "passed", "< count", "<= count"),
    ("events", vring, "passed", "event - 1", "event"),
    ("events", Virtqueue, "wait", "u16[self.avail_event] = self.last_avail", "pass"),
    ("events", Virtqueue, "no_kicks", "not self.event_idx", "True"),
    ("mmio", life, "legal", "now in _FROM.get(after, ())", "True"),
    ("mmio", Life, "_break", "self.status |= STATUS_NEEDS_RESET", "pass"),
    ("mmio", Life, "_accept", "or not chosen & F_VERSION_1", ""),
    ("mmio", Life, "_may_set_up", "== STATUS_FEATURES_OK", ">= 0"),
    ("mmio", SetUp, "place", "0 < self.num <= VIRTQUEUE_NUM", "True"),
]


@pytest.mark.parametrize(
    ("name", "owner", "function", "right", "wrong"),
    MISTAKES,
    ids=[f"{function}: {wrong or 'without ' + right}" for _, _, function, right, wrong in MISTAKES],
)
def test_a_mistake_would_be_noticed(
    name: str,
    owner: Owner,
    function: str,
    right: str,
    wrong: str,
    made: Callable[[str], Target],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    "The inputs which have a name of words, with one small mistake put into the library."
    caplog.set_level(logging.CRITICAL)
    source = textwrap.dedent(inspect.getsource(getattr(owner, function)))
    assert right in source, f"{function} reads differently now: change this list"
    names = vars(owner if isinstance(owner, ModuleType) else inspect.getmodule(owner)).copy()
    exec(source.replace(right, wrong, 1), names)
    for user in {owner, vring, fuzz_targets} if isinstance(owner, ModuleType) else {owner}:
        if hasattr(user, function):
            monkeypatch.setattr(user, function, names[function])
    target = made(name)
    with pytest.raises(Exception):  # noqa: B017  whatever the mistake leads to
        for path in inputs(name, "*-*"):
            target(path.read_bytes())
