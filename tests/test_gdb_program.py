"""The real gdb and the real command, as a person would use them: one on each of two terminals."""

import re
import signal
import socket
import struct
import termios
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from session import PROMPT, Session
from support import COMMAND, PATIENCE

from lguest_nb.arguments import Gdb, UsageError, parse
from lguest_nb.cli import make_host
from lguest_nb.gdb import packet
from lguest_nb.guest import build
from lguest_nb.host import HostError
from lguest_nb.hosts.soft.debug import DebugHost

pytestmark = pytest.mark.usefixtures("nothing_left")
ASKS = "(gdb) "


class Debugger(Session):
    "gdb at a terminal which is as simple as they come."

    def __init__(self, kernel: Path, port: int) -> None:
        settings = "width 0", "confirm off", "pagination off", "remotetimeout 60"  # seconds; others may be busy here
        quiet = [word for setting in settings for word in ("-ex", f"set {setting}")]
        super().__init__(["env", "TERM=dumb", "gdb", "-nx", "-q", *quiet, str(kernel)])
        self.expect(ASKS)
        self.connected = self.ask(f"target remote :{port}")

    def ask(self, line: str) -> str:
        start = len(self.seen)
        self.type(line + "\n")
        return self.expect(ASKS, start).partition("\n")[2]


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "The tiny guest, with symbols."
    return build(tmp_path_factory.mktemp("kernel") / "tiny.elf", symbols=True)


@pytest.fixture
def start(kernel: Path) -> Iterator[Callable[..., tuple[Session, int]]]:
    "The command at a terminal, and the port at which it waits for gdb."
    sessions: list[Session] = []

    def start(*arguments: str, gdb: str = "0") -> tuple[Session, int]:
        session = Session([*COMMAND, f"--gdb={gdb}", "16", str(kernel), *arguments])
        sessions.append(session)
        session.before = termios.tcgetattr(session.controller)
        session.expect(": target remote :")
        session.expect("\n", session.seen.index("target remote"))
        return session, port_of(session)

    yield start
    for session in sessions:
        session.close()


@pytest.fixture
def debug(kernel: Path) -> Iterator[Callable[[int], Debugger]]:
    "gdb, connected to a port."
    made: list[Debugger] = []

    def debug(port: int) -> Debugger:
        made.append(Debugger(kernel, port))
        return made[-1]

    yield debug
    for debugger in made:
        debugger.close()


def port_of(session: Session) -> int:
    "The latest it has named."
    return int(re.findall(r"target remote :(\d+)\n", session.seen)[-1])


def symbol(kernel: Path, name: str) -> int:
    with kernel.open("rb") as file:
        [found] = ELFFile(file).get_section_by_name(".symtab").get_symbol_by_name(name)
        return found["st_value"]


def standing(port: int) -> socket.socket:
    "A debugger of few words, for whom the Guest stands still."
    wire = socket.create_connection(("127.0.0.1", port))
    wire.settimeout(PATIENCE)
    wire.sendall(packet(b"?"))
    heard = b""
    while not heard.endswith(packet(b"T05thread:1;")) and not heard.endswith(packet(b"T02thread:1;")):
        heard += wire.recv(100)
    return wire


def test_break_look_step_go_on_and_detach(start, debug) -> None:
    guest, port = start('run="user stack; user hello; poweroff"')
    assert f"Waiting for gdb on 127.0.0.1:{port}: target remote :{port}\n" in guest.seen
    assert "tiny guest" not in guest.seen  # it hasn't begun
    gdb = debug(port)
    assert "0x00010000" in gdb.connected
    assert "the Guest's processor" in gdb.ask("info threads")
    assert gdb.ask("print/x $cs") == "$1 = 0x61\n"
    assert "vmcall" in gdb.ask("x/3i $pc").splitlines()[-1]

    gdb.ask("break page_fault")
    assert "Breakpoint 1, page_fault (f=" in gdb.ask("continue")
    assert re.search(r"#0 +page_fault .*#1 .* trap .*#2 .* common", gdb.ask("backtrace"), re.DOTALL)
    first = int(gdb.ask("output/x lguest_data.cr2"), 16)
    assert first == int(gdb.ask("output/x $cr2"), 16)
    assert 0x08300000 <= first < 0x08340000  # the program's stack
    assert int(gdb.ask("output f->vector")) == 14
    before, _ = int(gdb.ask("output/x $pc"), 16), gdb.ask("stepi")
    assert int(gdb.ask("output/x $pc"), 16) != before
    assert "u8 *page" in "".join(gdb.ask("next") for _ in range(6))  # in lines of the source in the package
    assert "trap (f=" in gdb.ask("finish")

    assert "Breakpoint 1, page_fault" in gdb.ask("continue")
    assert int(gdb.ask("output/x lguest_data.cr2"), 16) == first + 4096
    gdb.ask("set var ticks = 4711")
    assert gdb.ask("output ticks") == "4711"
    assert "E0e" in gdb.ask("set $cs = 3")
    assert "Cannot access memory" in gdb.ask("x/x 0x90000000")
    assert "interrupts wait" in gdb.ask("monitor interrupts")
    assert "detached" in gdb.ask("detach")
    assert guest.wait_for_end() == 0
    assert "three pages of stack came when I touched them\nstack: exit 0\n" in guest.seen
    assert "hello: exit 42\n" in guest.seen


def test_control_c_stops_a_guest_which_loops_with_interrupts_off(start, debug, kernel: Path) -> None:
    guest, port = start(gdb="0,run")
    guest.expect(PROMPT)
    assert f"gdb may come to 127.0.0.1:{port}: target remote :{port}\n" in guest.seen
    irq_enabled = symbol(kernel, "lguest_data")
    code = b"\xc7\x05" + struct.pack("<II", irq_enabled, 0) + b"\xeb\xfe\xb8\x39\5\0\0\xc3"  # movl; jmp .; movl; ret
    guest.ask(f"poke 0x900000 {code.hex()}")
    guest.type("call 0x900000\r")
    gdb = debug(port)
    gdb.ask("hbreak *0xc090000a")
    assert "jmp" in gdb.ask("x/i 0xc090000a")
    gdb.ask("continue")
    gdb.ask("delete")
    gdb.type("continue\n")
    gdb.expect("Continuing.", gdb.seen.rindex(ASKS))
    gdb.process.send_signal(signal.SIGINT)
    gdb.expect("Program received signal SIGINT", gdb.seen.rindex(ASKS))
    gdb.expect(ASKS, gdb.seen.rindex("SIGINT"))
    assert gdb.ask("output/x $pc") == "0xc090000a"
    assert gdb.ask("output/x lguest_data.irq_enabled") == "0x0"
    assert "jmp" in gdb.ask("x/i $pc")
    gdb.ask("set $eip = $eip + 2")
    gdb.ask("set var lguest_data.irq_enabled = 0x200")
    gdb.ask("detach")
    guest.expect("eax = 0x00000539\n")
    guest.expect(PROMPT, guest.seen.rindex("eax"))
    assert "SIGINT" not in guest.seen
    assert guest.ask("echo it lives").startswith("it lives")


def test_gdb_may_come_again_and_while_it_is_there_no_other(start, debug) -> None:
    guest, port = start(gdb="0,run")
    guest.expect(PROMPT)
    first = debug(port)
    assert re.search("Remote connection closed|Target disconnected", debug(port).connected)
    first.ask("break trap")
    first.ask("detach")
    assert "one more" in guest.ask("echo one more")
    again = debug(port)
    assert "trap" not in again.ask("info breakpoints")
    again.process.kill()
    assert again.wait_for_end() == -signal.SIGKILL
    assert "and on" in guest.ask("echo and on")


def test_gdb_which_is_killed_at_a_breakpoint_leaves_a_running_guest(start, debug) -> None:
    guest, port = start('run="user stack; poweroff"')
    gdb = debug(port)
    gdb.ask("break page_fault")
    assert "Breakpoint 1" in gdb.ask("continue")
    gdb.process.kill()
    assert guest.wait_for_end() == 0
    assert "stack: exit 0" in guest.seen


def test_the_end_of_the_guest_is_told(start, debug) -> None:
    guest, port = start("run=poweroff")
    assert "exited normally" in debug(port).ask("continue")
    assert guest.wait_for_end() == 0


def test_a_guest_which_panics_can_be_looked_at_first(start, debug) -> None:
    guest, port = start('run="panic all is lost"')
    gdb = debug(port)
    said = gdb.ask("continue")
    assert "The Guest is about to die: CRASH: all is lost\n" in said
    assert "Program received signal SIGABRT" in said
    assert "hcall" in gdb.ask("backtrace")
    assert "Program terminated with signal SIGABRT" in gdb.ask("continue")
    assert guest.wait_for_end() == 1
    assert guest.seen.endswith("lguest-nb: CRASH: all is lost\n")


def test_a_reboot_waits_for_gdb_again(start, debug) -> None:
    guest, port = start("run=reboot")
    assert "exited normally" in debug(port).ask("continue")
    guest.expect("Waiting for gdb", guest.seen.rindex("target remote"))
    guest.expect("\n", guest.seen.rindex("Waiting"))
    again = debug(port_of(guest))
    assert "0x00010000" in again.connected
    again.ask("kill")
    assert guest.wait_for_end() == 0
    assert guest.seen.endswith("You left.\n")


@pytest.mark.parametrize(
    ("leave", "status"),
    [
        (lambda session: session.type("\1x"), 0),
        (lambda session: session.type("\3\3\3"), -signal.SIGINT),
        (lambda session: session.process.send_signal(signal.SIGTERM), -signal.SIGTERM),
    ],
    ids=["^A x", "^C^C^C", "SIGTERM"],
)
@pytest.mark.parametrize("came", [False, True], ids=["nobody came", "gdb came"])
def test_a_guest_which_stands_still_can_be_left(start, leave, status: int, came: bool) -> None:
    session, port = start()
    wire = standing(port) if came else socket.socket()
    with wire:
        session.expect("to leave.")
        leave(session)
        assert session.wait_for_end() == status
        assert termios.tcgetattr(session.controller) == session.before


def test_an_inspection_works_while_it_stands(start) -> None:
    session, port = start(gdb="0,run")
    session.expect(PROMPT)
    with standing(port):
        session.type("\1i")
        session.expect("console:1: avail idx")
        session.type("echo typed meanwhile\r")
    session.expect("typed meanwhile\ntyped meanwhile\n")


def test_rubbish_at_the_door_leaves_the_guest_alone(start) -> None:
    session, port = start(gdb="0,run")
    session.expect(PROMPT)
    for rubbish in (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", bytes(range(256)) * 100, b"$", b"", b"+" * 9999):
        with socket.create_connection(("127.0.0.1", port)) as visitor:
            visitor.sendall(rubbish)
        assert "still here" in session.ask("echo still here")
    assert session.process.poll() is None


def test_two_launchers_cannot_share_a_port(start, kernel: Path) -> None:
    _, port = start()
    second = Session([*COMMAND, f"--gdb={port}", "16", str(kernel)])
    assert second.wait_for_end() == 1
    second.close()
    assert second.seen == f"lguest-nb: gdb cannot be let in at port {port} of 127.0.0.1: Address already in use.\n"


class TestCommandLine:
    def test_a_port_and_perhaps_run(self) -> None:
        asked = [parse([f"--gdb={value}", "64", "vmlinux"]).gdb for value in ("1234", "0", "65535,run")]
        assert asked == [Gdb(1234), Gdb(0), Gdb(65535, wait=False)]
        assert parse(["64", "vmlinux"]).gdb is None

    @pytest.mark.parametrize(
        "value", ["", "x", "-1", "65536", "123456", "1234,", "1234,stop", "1,run,run", "١", "0x10"]
    )
    def test_anything_else_is_refused(self, value: str) -> None:
        with pytest.raises(UsageError, match="a port from 0 to 65535"):
            parse([f"--gdb={value}", "64", "vmlinux"])

    def test_a_real_host_keeps_its_registers(self) -> None:
        for options in (["--host=lguest", "--gdb=1"], ["--gdb=1", "--host=lguest"]):
            with pytest.raises(UsageError, match="--gdb needs --host=soft"):
                parse([*options, "64", "vmlinux"])

    def test_auto_is_the_software_host_or_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert isinstance(host := make_host("auto", gdb=Gdb(0)), DebugHost)
        host.close()

        def missing(*_: object, **__: object) -> None:
            raise HostError("There is no Unicorn.")

        monkeypatch.setattr(DebugHost, "__init__", missing)
        monkeypatch.setattr("os.path.exists", lambda _: True)  # /dev/lguest, too
        with pytest.raises(HostError, match="no Unicorn"):
            make_host("auto", gdb=Gdb(0))
