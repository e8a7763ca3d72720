"""A device from outside the package: found by its name, refused by a sentence, and served to a real Guest."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from session import PATIENCE, Session
from support import COMMAND

pytest.importorskip("unicorn", reason="the software Host needs Unicorn")

from lguest_nb.arguments import parse
from lguest_nb.bus.lguest import LguestBus
from lguest_nb.cli import make_device
from lguest_nb.device import Device
from lguest_nb.guest import boot, command_line, path, poke_available, poke_descriptors, poke_line
from lguest_nb.memory import GuestMemory, LguestError
from lguest_nb.plugin import PluginError, load_device
from lguest_nb.vring import DESC_NEXT, DESC_WRITE, ring_at

pytestmark = pytest.mark.usefixtures("nothing_left")
# -P: the current directory is not on sys.path, as it is not for an installed command.
INSTALLED = [COMMAND[0], "-P", *COMMAND[1:]]
RING = ring_at(0x1001000, 256)  # of the first device in 16 MB
ACCEPTED = 0x1000000 + 5 + 8 + 1  # its accepted features: behind the header, one queue, and what is offered
BUFFER, ANSWER = 0x900000, 0x901000

MIRROR = '''
from lguest_nb.device import Device
from lguest_nb.memory import GuestError

F_LOUD = 1 << 3


class Mirror(Device):
    "Gives back what it is given, last byte first; in capitals for a driver which likes that."

    def __init__(self, motto="nothing"):
        super().__init__("mirror", 222, F_LOUD, motto.encode())

    @property
    def services(self):
        return [self.reflect]

    def reflect(self, vq):
        chain = vq.wait()
        data = b"".join(map(bytes, chain.out_views()))[::-1]
        if data == b"rorriM":
            raise GuestError("A mirror does not look at itself.")
        if data == b"thgil":
            raise ValueError("the mirror is broken")
        answer = data.upper() if self.accepted & F_LOUD else data
        view = chain.in_views()[0]
        view[: len(answer)] = answer
        vq.add_used(chain, len(answer))
'''
MISTAKES = """
from lguest_nb.device import Device
from lguest_nb.memory import LguestError


class Forgetful(Device):
    def __init__(self):
        self.name = "forgetful"


class Idle(Device):
    def __init__(self):
        super().__init__("idle", 7)


class Picky(Device):
    services = ()

    def __init__(self, sides):
        if int(sides) < 2:
            raise LguestError(f"A die has 2 sides at least, not {sides}.")
        super().__init__("picky", 7)


class Called(Device):
    def __init__(self):
        super().__init__("called", 7)
        self.services = [self.serve()]

    def serve(self):
        pass

    services = None


class Wordy(Device):
    services = ()

    def __init__(self):
        super().__init__("wordy", 7, config="words")


class Quitter(Device):
    def __init__(self):
        raise SystemExit("I'd rather not")


class Silent(Device):
    services = ()

    def __init__(self):
        super().__init__("silent", 7)

    def describe(self):
        raise ValueError("no words")


class Clinging(Device):
    services = ()

    def __init__(self):
        super().__init__("clinging", 7)

    def close(self):
        raise ValueError("no")


class NoDevice:
    pass


def function():
    return Picky("6")
"""


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    "A directory which has nothing to do with us, with a package and some bad modules in it."
    (tmp_path / "toys").mkdir()
    (tmp_path / "toys" / "__init__.py").touch()
    (tmp_path / "toys" / "mirror.py").write_text(MIRROR)
    (tmp_path / "mistakes.py").write_text(MISTAKES)
    (tmp_path / "misspelt.py").write_text("class Dice(Device:\n")
    (tmp_path / "needy.py").write_text("import a_module_nobody_has\n")
    (tmp_path / "rude.py").write_text("import sys\nsys.exit('go away')\n")
    (tmp_path / "empty.py").touch()
    (tmp_path / "getopt.py").write_text("raise RuntimeError('I am not the library')\n")
    return tmp_path


@pytest.fixture
def importable(outside: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    "The same, where Python looks, and forgotten afterwards."
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", [*sys.path, str(outside)])
    yield outside
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(outside)):
            del sys.modules[name]


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*INSTALLED, *arguments], cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True)


class Shell(Session):
    "The tiny Guest's shell behind the real command, started in some directory."

    def __init__(self, cwd: Path, *arguments: str) -> None:
        super().__init__(["env", "-C", str(cwd), *INSTALLED, *arguments])

    def peek(self, address: int, count: int) -> bytes:  # at most 16
        return bytes.fromhex("".join(self.ask(f"peek {address:#x} {count}").split("  |")[0].split()[1:]))

    def wait_for_used(self, count: int) -> None:
        deadline = time.monotonic() + PATIENCE
        while self.peek(RING.used + 2, 2) != count.to_bytes(2, "little"):
            assert time.monotonic() < deadline, "the device gave nothing back"


def request(message: bytes, room: int = 64) -> list[str]:
    "What to type, for one request to a device which nobody has kicked yet."
    return [
        poke_line(BUFFER, message),
        poke_descriptors(RING, (BUFFER, len(message), DESC_NEXT, 1), (ANSWER, room, DESC_WRITE, 0)),
        poke_available(RING, 0),
        f"kick {RING.desc:#x}",
    ]


@pytest.mark.parametrize(("accepted", "answer"), [(0, b"olleh"), (1 << 3, b"OLLEH")])
def test_the_tiny_guest_talks_to_a_device_of_a_package_in_the_current_directory(
    outside: Path, accepted: int, answer: bytes
) -> None:
    shell = Shell(outside, "--device=toys.mirror:Mirror=a = b", "--rng", "16", str(path()))
    try:
        shell.expect("tiny> ")
        listed = shell.ask("dev")
        assert "0: type 222 ? at 0x1000000, status 0, not started" in listed
        assert "features offered 08, accepted 00" in listed
        assert f"config {b'a = b'.hex(' ')}" in listed
        assert "1: type 4 rng" in listed
        for line in (poke_line(ACCEPTED, bytes([accepted])), *request(b"hello")):
            shell.ask(line)
        shell.wait_for_used(1)
        assert shell.peek(RING.used + 4, 8) == bytes([0, 0, 0, 0, 5, 0, 0, 0])
        assert shell.peek(ANSWER, 6) == answer + b"\0"
        shell.type("poweroff\r")
        assert shell.wait_for_end() == 0
    finally:
        shell.close()


def test_devices_of_ones_own_stand_in_line_with_the_others() -> None:
    args = parse(["--rng", "--device=a:B=c=d", "--block=x", "--device", "a.b:C", "16", "vmlinux"])
    assert args.devices == [("rng", ""), ("device", "a:B=c=d"), ("block", "x"), ("device", "a.b:C")]


def test_the_current_directory_comes_last(importable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(importable)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(importable))])
    before = list(sys.path)
    for _ in range(2):
        assert make_device("device", "toys.mirror:Mirror").name == "mirror"
    assert sys.path == [*before, str(importable)]


def test_an_argument_is_everything_behind_the_first_equals_sign(importable: Path) -> None:
    assert load_device("toys.mirror:Mirror").config == b"nothing"
    assert load_device("toys.mirror:Mirror=").config == b""
    assert load_device("toys.mirror:Mirror=a:b=c d").config == b"a:b=c d"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "'' does not name a device: it is MODULE:CLASS or MODULE:CLASS=ARGUMENT"),
        ("mirror", "'mirror' does not name a device"),
        ("toys/mirror.py:Mirror", "does not name a device"),
        (":Mirror", "does not name a device"),
        ("toys.mirror:", "does not name a device"),
        ("toys..mirror:Mirror", "does not name a device"),
        (".mirror:Mirror", "does not name a device"),
        ("nowhere:Mirror", "There is no module 'nowhere': neither in a directory of sys.path nor"),
        ("toys.nowhere:Mirror", "There is no module 'toys.nowhere'"),
        ("nowhere.mirror:Mirror", "There is no module 'nowhere'"),
        ("needy:Mirror", "The module 'needy' needs another: No module named 'a_module_nobody_has'."),
        ("misspelt:Dice", "The module 'misspelt' cannot be imported: SyntaxError: "),
        ("rude:Dice", "The module 'rude' cannot be imported: SystemExit: go away."),
        ("toys.mirror:Miror", "has no class 'Miror'; its subclasses of Device are: Mirror."),
        ("empty:Dice", "has no class 'Dice'; it has no subclass of Device at all."),
        ("random:Random", "has something else by the name of 'Random'; it has no subclass of Device"),
        ("sys:path", r"The module 'sys' \(a part of Python\) has something else by the name of 'path'"),
        ("mistakes:NoDevice", "has something else by the name of 'NoDevice'"),
        ("mistakes:function", "has something else by the name of 'function'"),
        ("mistakes:Forgetful", r"is not a complete device: its constructor does not call super\(\).__init__"),
        ("mistakes:Idle", "could not be made: NotImplementedError: The device idle has no service functions."),
        ("mistakes:Called", "is not a complete device: None in its services is no function."),
        ("mistakes:Wordy", "is not a complete device: its config is 'words', not bytes."),
        ("mistakes:Quitter", "mistakes:Quitter could not be made: SystemExit: I'd rather not."),
        ("mistakes:Idle=busy", "mistakes:Idle could not be made: TypeError: .*takes 1 positional argument"),
        ("mistakes:Picky", "could not be made: TypeError: .*missing 1 required positional argument: 'sides'."),
        ("mistakes:Picky=six", "could not be made: ValueError: invalid literal for int"),
    ],
)
def test_what_is_no_device_is_refused_by_a_sentence(importable: Path, text: str, sentence: str) -> None:
    with pytest.raises(PluginError, match=sentence) as refused:
        load_device(text)
    assert str(refused.value).endswith(".") and not str(refused.value).endswith("..")


def test_a_constructors_own_sentence_is_left_alone(importable: Path) -> None:
    with pytest.raises(LguestError, match="^A die has 2 sides at least, not 1.$"):
        load_device("mistakes:Picky=1")


@pytest.mark.parametrize("text", ["nowhere:Mirror", "rude:Dice", "mistakes:Idle", "mistakes:Picky=1", "nonsense"])
def test_the_command_says_it_in_one_line(outside: Path, text: str) -> None:
    done = run(f"--device={text}", "16", str(path()), cwd=outside)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("lguest-nb: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("virtio_id", [0, 256, -1])
def test_a_type_which_the_bus_cannot_write_down_is_refused(virtio_id: int) -> None:
    "Zero ends the list, so a device of that type would hide all the others."

    class Odd(Device):
        services = ()

    memory = GuestMemory(1 << 20)
    bus = LguestBus(memory, print, print)
    with pytest.raises(LguestError, match=f"The type of odd is {virtio_id}; on this bus it is 1 to 255"):
        bus.add(Odd("odd", virtio_id))
    bus.close()
    memory.close()


def test_what_the_guest_did_wrong_costs_the_guest(importable: Path) -> None:
    _, ending = boot(*request(b"Mirror"), "sleep 60000", devices=[load_device("toys.mirror:Mirror")])
    assert (ending.how, ending.reason) == ("died", "A mirror does not look at itself.")


def test_what_the_device_did_wrong_is_raised_where_the_guest_was_run(importable: Path) -> None:
    with pytest.raises(ValueError, match="the mirror is broken") as raised:
        boot(*request(b"light"), "sleep 60000", devices=[load_device("toys.mirror:Mirror")])
    assert raised.value.__notes__ == ["in the thread of mirror:0"]


def of(text: str, module: str) -> str:
    return f"lguest-nb: This should not have happened{text}. It is a defect in the module '{module}'.\n"


@pytest.mark.parametrize("verbose", [False, True])
def test_the_command_blames_the_module_of_the_device_which_was_wrong(outside: Path, verbose: bool) -> None:
    "And not us, who only called it. Who wants to mend it asks for the traceback."
    words = ["--device=toys.mirror:Mirror", "16", str(path()), command_line(*request(b"light"), "sleep 60000")]
    done = run(*["--verbose"] * verbose, *words, cwd=outside)
    assert done.returncode == 1
    sentence = of(" in the thread of mirror:0: ValueError: the mirror is broken", "toys.mirror")
    assert done.stderr.endswith(sentence)
    assert ("Traceback" in done.stderr) == ('raise ValueError("the mirror is broken")' in done.stderr) == verbose


@pytest.mark.parametrize(("name", "said"), [("Silent", "no words"), ("Clinging", "no")])
def test_the_command_blames_it_for_what_it_does_on_the_main_thread_too(outside: Path, name: str, said: str) -> None:
    done = run(f"--device=mistakes:{name}", "16", str(path()), command_line("poweroff"), cwd=outside)
    assert done.returncode == 1
    assert done.stderr.endswith(of(f": ValueError: {said}", "mistakes"))


def test_a_directory_which_was_removed_is_no_place_to_look_for_a_device(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    command = f'rmdir {gone}; exec "$@"'
    line = ["sh", "-c", command, "sh", *INSTALLED, "--device=nowhere:Mirror", "16", str(path())]
    done = subprocess.run(line, cwd=gone, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert (done.returncode, done.stderr[:40]) == (1, "lguest-nb: There is no module 'nowhere':")


def test_a_careless_device_cannot_write_outside_a_buffer(importable: Path) -> None:
    with pytest.raises(ValueError, match="memoryview"):
        boot(*request(b"hello", room=4), "sleep 60000", devices=[load_device("toys.mirror:Mirror")])
