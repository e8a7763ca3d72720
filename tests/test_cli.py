"""The command line of 2009: what it understands, how it ends, and what it leaves behind."""

import errno
import logging
import os
import pty
import shlex
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes import FakeHost, ScriptedHost
from session import Session
from support import COMMAND, PATIENCE, SCRIPTED, forge_elf, lguest_threads

import lguest_nb
from lguest_nb import arguments, cli
from lguest_nb.arguments import Arguments, UsageError, parse
from lguest_nb.cli import complain, explain, make_device
from lguest_nb.console import Console
from lguest_nb.host import Ending, HostError
from lguest_nb.launcher import Launcher
from lguest_nb.memory import LguestError
from lguest_nb.rng import Rng

pytestmark = pytest.mark.usefixtures("nothing_left")


class TestParse:
    def test_memory_kernel_and_the_kernels_arguments(self) -> None:
        args = parse(["64", "vmlinux", "root=/dev/vda", "quiet"])
        assert (args.megabytes, args.kernel, args.command_line) == (64, "vmlinux", "root=/dev/vda quiet")

    def test_arguments_are_joined_with_single_spaces_as_they_are(self) -> None:
        assert parse(["64", "vmlinux", "a  b", "", "c"]).command_line == "a  b  c"
        assert parse(["64", "vmlinux"]).command_line == ""

    def test_devices_keep_their_order(self) -> None:
        args = parse("--rng --block=b --tunnet=10.0.0.1 --block=a --rng 64 vmlinux".split())
        wanted = [("rng", ""), ("block", "b"), ("tunnet", "10.0.0.1"), ("block", "a"), ("rng", "")]
        assert args.devices == wanted

    @pytest.mark.parametrize("flag", ["-v", "--verbose", "--verb"])
    @pytest.mark.parametrize("place", [0, 1, 3])
    def test_verbose_is_verbose_wherever_it_stands(self, flag: str, place: int) -> None:
        argv = ["--rng", "64", "vmlinux"]
        argv.insert(place, flag)
        assert parse(argv).verbose
        assert not parse(["64", "vmlinux"]).verbose

    def test_options_may_follow_the_kernel_until_two_dashes(self) -> None:
        args = parse("64 vmlinux quiet --rng -- --block=no".split())
        assert (args.devices, args.command_line) == ([("rng", "")], "quiet --block=no")

    def test_a_value_may_be_attached_or_not(self) -> None:
        assert parse("--block disk.img 64 vmlinux".split()) == parse("--block=disk.img 64 vmlinux".split())
        assert parse("--tunnet 10.0.0.1 --initrd rd 64 vmlinux".split()).megabytes == 64

    def test_a_tunnet_is_not_understood_before_it_is_made(self) -> None:
        bridge = "bridge:br0:00:01:02:03:04:05"
        assert parse([f"--tunnet={bridge}", "64", "vmlinux"]).devices == [("tunnet", bridge)]

    def test_the_last_initrd_wins(self) -> None:
        assert parse("--initrd=a --initrd=b 64 vmlinux".split()).initrd == "b"
        assert parse("64 vmlinux".split()).initrd is None

    def test_options_may_be_shortened_as_getopt_long_allows(self) -> None:
        args = parse("--blo=a --ini=b --ho=soft 64 vmlinux".split())
        assert (args.devices, args.initrd, args.host) == ([("block", "a")], "b", "soft")

    @pytest.mark.parametrize("host", ["auto", "soft", "lguest"])
    def test_the_hosts_have_names(self, host: str) -> None:
        assert parse([f"--host={host}", "64", "vmlinux"]).host == host

    def test_nothing_asked_for_is_nothing(self) -> None:
        assert parse(["64", "vmlinux"]) == Arguments(megabytes=64, kernel="vmlinux")

    @pytest.mark.parametrize(
        ("line", "said"),
        [
            ("", "Memory size and kernel are missing"),
            ("--rng --block=disk", "Memory size and kernel are missing"),
            ("64", "The kernel is missing"),
            ("--rng 64", "The kernel is missing"),
            ("64k vmlinux", "a number of megabytes, not '64k'"),
            ("vmlinux 64", "a number of megabytes, not 'vmlinux'"),
            ("٦٤ vmlinux", "a number of megabytes, not '٦٤'"),
            ("-64 vmlinux", "Unknown argument"),
            ("--frobnicate 64 vmlinux", "Unknown argument: option --frobnicate not recognized"),
            ("--sharenet=x 64 vmlinux", "Unknown argument: option --sharenet not recognized"),
            ("--lguest-mem 64 vmlinux", "Unknown argument: option --lguest-mem not recognized"),
            ("-x 64 vmlinux", "Unknown argument: option -x not recognized"),
            ("64 vmlinux --block", "Unknown argument: option --block requires argument"),
            ("--rng=x 64 vmlinux", "Unknown argument: option --rng must not have an argument"),
            ("--host=xen 64 vmlinux", "There is no Host 'xen'; it is one of auto, soft, kvm, lguest"),
            ("9" * 5000 + " vmlinux", "megabytes"),
        ],
    )
    def test_what_makes_no_sense_is_a_sentence(self, line: str, said: str) -> None:
        with pytest.raises(UsageError, match=said):
            parse(line.split(" ") if line else [])

    def test_help_and_version_want_no_kernel(self) -> None:
        assert "--tunnet" in parse(["--help"]).show
        assert parse(["--version"]).show == f"lguest-nb {lguest_nb.__version__}"

    def test_help_names_every_option(self) -> None:
        shown = parse(["--help"]).show
        for option in arguments._OPTIONS:
            assert f"--{option.rstrip('=')}" in shown


def failing_start(*_: object) -> None:
    "What CPython does when Linux gives it no thread."
    raise RuntimeError("can't start new thread")


class TestSentences:
    def test_what_could_move_the_cursor_is_escaped(self, capsys) -> None:
        complain("CRASH: \x1b[2J\x07\n\udcff ☺")
        assert capsys.readouterr().err == "lguest-nb: CRASH: \\x1b[2J\\x07\\n\\udcff ☺\n"

    def test_our_own_errors_are_sentences_and_others_are_defects_of_ours(self) -> None:
        assert explain(LguestError("No room.")) == "No room."
        assert "ZeroDivisionError: by zero. It is a defect" in explain(ZeroDivisionError("by zero"))

    @pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
    def test_what_the_machine_has_no_more_of_is_no_defect(self, number: int) -> None:
        what = os.strerror(number)
        said = f"This machine gives us no more: {what}. `ulimit -a` shows what one process may have."
        assert explain(OSError(number, what)) == said
        assert "It is a defect in lguest-nb." in explain(OSError(errno.EBADF, "Bad file descriptor"))

    def test_a_thread_which_cannot_be_had_is_no_defect(self) -> None:
        with pytest.MonkeyPatch.context() as none_left:
            none_left.setattr(threading, "_start_new_thread", failing_start)
            with pytest.raises(RuntimeError) as raised:
                threading.Thread(target=print).start()
        assert explain(raised.value).startswith("This machine gives us no more: can't start new thread.")

    def test_verbose_goes_to_stdout_and_warnings_to_stderr(self, capfd) -> None:
        say = cli._Say()
        for level in (logging.INFO, logging.WARNING):
            say.emit(logging.LogRecord("lguest_nb", level, "", 0, "level %d", (level,), None))
        out, err = capfd.readouterr()
        assert (out, err) == ("level 20\n", "lguest-nb: level 30\n")


class TestHosts:
    def test_auto_is_soft(self, monkeypatch) -> None:
        monkeypatch.setitem(sys.modules, "lguest_nb.hosts.soft.host", Module(lambda timed: ("soft", timed)))
        assert cli.make_host("auto", True) == ("soft", True)

    def test_auto_is_dev_lguest_where_there_is_no_unicorn_but_the_device(self, monkeypatch) -> None:
        def absent(timed: bool) -> None:
            raise HostError("There is no Unicorn.")

        monkeypatch.setitem(sys.modules, "lguest_nb.hosts.soft.host", Module(absent))
        monkeypatch.setitem(sys.modules, "lguest_nb.hosts.dev_lguest", Module(lambda: "lguest"))
        monkeypatch.setattr(cli.os.path, "exists", lambda path: path == "/dev/lguest")
        assert cli.make_host("auto") == "lguest"
        monkeypatch.setattr(cli.os.path, "exists", lambda path: False)
        with pytest.raises(HostError, match="There is no Unicorn"):
            cli.make_host("auto")

    def test_with_dev_lguest_nothing_of_the_soft_host_is_imported(self, monkeypatch) -> None:
        monkeypatch.setitem(sys.modules, "lguest_nb.hosts.soft.host", None)
        monkeypatch.setitem(sys.modules, "lguest_nb.hosts.dev_lguest", Module(lambda: "lguest"))
        assert cli.make_host("lguest") == "lguest"

    def test_importing_the_command_imports_neither_unicorn_nor_jupyter(self) -> None:
        heavy = "import sys, lguest_nb.cli; print([m for m in ('unicorn', 'IPython', 'fastcore') if m in sys.modules])"
        done = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True)
        assert done.stdout == "[]\n"


class Module:
    "Stands for a module of a Host."

    def __init__(self, make: object) -> None:
        self.SoftHost = self.DevLguestHost = make


class TestDevices:
    def test_each_option_makes_its_device(self, tmp_path: Path, monkeypatch) -> None:
        monkeypatch.setattr(cli, "parse_block", lambda text: ("block", text))
        monkeypatch.setattr(cli, "setup_tun_net", lambda text: ("net", text))
        assert make_device("block", "disk") == ("block", "disk")
        assert make_device("tunnet", "10.0.0.1") == ("net", "10.0.0.1")
        rng = make_device("rng", "")
        assert isinstance(rng, Rng)
        rng.close()


@pytest.fixture
def kernel(tmp_path: Path) -> str:
    path = tmp_path / "vmlinux"
    path.write_bytes(forge_elf())
    return str(path)


@pytest.fixture
def disk(tmp_path: Path) -> str:
    path = tmp_path / "disk"
    path.write_bytes(bytes(1024))
    return str(path)


class TestBoot:
    "In this process, with a Host without a CPU, and /dev/null for a keyboard."

    @pytest.fixture(autouse=True)
    def keyboard(self, monkeypatch) -> Iterator[None]:
        null = os.open("/dev/null", os.O_RDONLY)
        real = cli.Keyboard
        monkeypatch.setattr(cli, "Keyboard", lambda fd, aborted: real(null, aborted))
        monkeypatch.setattr(cli, "Terminal", lambda fd: NoTerminal())
        handlers = {number: signal.getsignal(number) for number in range(1, 32)}
        yield
        for number, handler in handlers.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)
        os.close(null)

    def boot(self, *line: str, host: FakeHost | None = None) -> int:
        return cli.boot(parse(list(line)), lambda args, typed: Launcher(args.megabytes, host or ScriptedHost()))[1]

    def test_the_console_is_always_the_last_device(self, kernel: str, disk: str) -> None:
        seen = []
        host = ScriptedHost(lambda host: seen.extend(p.device for p in host.bus.places))
        assert self.boot("--rng", f"--block={disk}", "2", kernel, f"--block={disk},ro", host=host) == 0
        assert [device.name for device in seen] == ["rng", "block", "block", "console"]
        assert isinstance(seen[-1], Console)

    def test_kernel_initrd_and_arguments_are_loaded(self, kernel: str, disk: str) -> None:
        seen = []

        def look(host: ScriptedHost) -> None:
            seen.append((host.memory.size, host.memory.string(0x1000, 99), host.memory.u32[0x21C // 4]))

        self.boot(f"--initrd={disk}", "3", kernel, "quiet", "ro", host=ScriptedHost(look))
        assert seen == [(3 << 20, b"quiet ro", 4096)]

    @pytest.mark.parametrize(
        ("ending", "status", "said"),
        [
            (Ending("power-off", "Power down"), 0, ""),
            (Ending("restart"), 0, ""),
            (Ending("stopped"), 0, ""),
            (Ending("died", "CRASH: no init"), 1, "lguest-nb: CRASH: no init\n"),
        ],
    )
    def test_the_status_says_how_it_ended(self, kernel: str, ending: Ending, status: int, said: str, capsys) -> None:
        assert self.boot("2", kernel, host=ScriptedHost(lambda host: ending)) == status
        assert said in capsys.readouterr().err

    def test_nothing_is_left(self, kernel: str) -> None:
        host = ScriptedHost()
        self.boot("--rng", "2", kernel, host=host)
        assert lguest_threads() == []
        assert host.closed == 1

    def test_stats_are_the_hosts_own_report(self, kernel: str, capsys) -> None:
        assert self.boot("--stats", "2", kernel) == 0
        assert "0 interrupts" in capsys.readouterr().err

    def test_verbose_names_may_be_any_bytes(self, capfd) -> None:
        record = logging.LogRecord("lguest_nb", logging.INFO, "", 0, "initrd %s", (os.fsdecode(b"\xff"),), None)
        cli._Say().emit(record)
        assert capfd.readouterr().out

    def test_the_terminal_is_taken_after_loading_and_given_back(self, kernel: str, monkeypatch) -> None:
        order: list[str] = []
        monkeypatch.setattr(cli, "Terminal", lambda fd: NoTerminal(order))
        load = cli.Launcher.load
        monkeypatch.setattr(cli.Launcher, "load", lambda *a: (load(*a), order.append("load")))
        self.boot("2", kernel, host=ScriptedHost(lambda host: order.append("run")))
        assert order == ["load", "take", "run", "give back"]

    def test_a_missing_kernel_takes_no_terminal(self, monkeypatch) -> None:
        order: list[str] = []
        monkeypatch.setattr(cli, "Terminal", lambda fd: NoTerminal(order))
        with pytest.raises(LguestError, match="Failed to open kernel /no/such"):
            self.boot("2", "/no/such/kernel")
        assert order == []


class NoTerminal:
    "A terminal which writes down what is done to it."

    fd = -1

    def __init__(self, order: list[str] | None = None) -> None:
        self.order = [] if order is None else order

    def take(self) -> None:
        self.order.append("take")

    def give_back(self) -> None:
        self.order.append("give back")


def run(
    *line: str, command: list[str] = COMMAND, stdin: int = subprocess.DEVNULL, **environment: str
) -> subprocess.CompletedProcess[str]:
    "The command in a process of its own, until it ends."
    return subprocess.run(
        [*command, *line], stdin=stdin, capture_output=True, text=True, env=os.environ | environment, timeout=60
    )


class TestCommand:
    @pytest.mark.parametrize("line", [[], ["64"], ["--rng"], ["--frobnicate", "64", "vmlinux"], ["64k", "vmlinux"]])
    def test_wrong_usage_is_status_2_and_the_usage_on_stderr(self, line: list[str]) -> None:
        done = run(*line)
        assert (done.returncode, done.stdout) == (2, "")
        first, usage = done.stderr.split("\n", 1)
        assert first.startswith("lguest-nb: ")
        assert usage.startswith("Usage: lguest-nb [--verbose] [--tunnet=")
        for part in (
            "[--block=<file>[,ro|,snapshot]]...",
            "[--rng]",
            "[--initrd=<file>]",
            "<mem-in-mb> <kernel> [kernel arguments...]",
        ):
            assert part in usage

    def test_help_is_status_0_on_stdout(self) -> None:
        done = run("--help")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("Usage: lguest-nb")

    def test_version_is_status_0_on_stdout(self) -> None:
        done = run("--version")
        assert (done.returncode, done.stdout, done.stderr) == (0, f"lguest-nb {lguest_nb.__version__}\n", "")

    @pytest.mark.parametrize(
        ("line", "said"),
        [
            (["64", "/no/such/kernel"], "Failed to open kernel /no/such/kernel: No such file or directory."),
            (["0", "KERNEL"], "A Guest can have 1 to 4090 MB of memory, not 0."),
            (["--block=/no/such/disk", "64", "KERNEL"], "Failed to open /no/such/disk"),
            (["64", "/dev/null"], "This doesn't look like a bzImage to me: /dev/null is an empty file."),
            (["--initrd=/no/rd", "64", "KERNEL"], "Failed to open initrd /no/rd"),
        ],
    )
    def test_what_cannot_be_is_one_sentence_and_status_1(self, kernel: str, line: list[str], said: str) -> None:
        done = run(*[kernel if a == "KERNEL" else a for a in line], command=SCRIPTED, SCENE="power-off")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(f"lguest-nb: {said}")
        assert done.stderr.count("\n") == 1

    @pytest.mark.parametrize("descriptors", range(5, 24, 3))
    def test_too_few_descriptors_are_one_sentence_and_status_1(self, descriptors: int) -> None:
        guest = str(Path(lguest_nb.__file__).parent / "data" / "tiny-guest.elf")
        line = shlex.join([*COMMAND, "--rng", "16", guest, 'run="poweroff"'])
        done = subprocess.run(
            ["sh", "-c", f"ulimit -n {descriptors}; exec {line}"],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        if done.returncode:
            assert done.returncode == 1
            last = done.stderr.splitlines()[-1]
            assert last.startswith("lguest-nb: ") and "oo many" in last and "defect" not in last
            assert "Traceback" not in done.stderr

    def test_a_power_off_is_status_0_and_prints_only_what_the_guest_printed(self, kernel: str) -> None:
        done = run("2", kernel, command=SCRIPTED, SCENE="power-off")
        assert (done.returncode, done.stdout, done.stderr) == (0, "hello\n", "")

    def test_a_death_is_status_1_and_its_reason_escaped(self, kernel: str) -> None:
        done = run("2", kernel, command=SCRIPTED, SCENE="panic")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == "lguest-nb: CRASH: \\x1b[2Jno init\\x07\n"

    def test_verbose_says_what_happens_in_order(self, kernel: str, disk: str) -> None:
        done = run("-v", "--rng", f"--block={disk}", "2", kernel, command=SCRIPTED, SCENE="power-off")
        assert done.stdout.splitlines() == [
            "Virtqueue page 0x201000",
            "device 1: rng",
            "Virtqueue page 0x204000",
            "device 2: virtblock 2 sectors",
            "Virtqueue page 0x207000",
            "Virtqueue page 0x20a000",
            "device 3: console",
            "Section 0: size 3 addr 0x100000",
            "Guest: 0x200000 bytes, limit 0x20d000",
            "Notify on address 0x5000",
            "hello",
        ]

    def test_a_reboot_is_the_same_command_again_in_the_same_process(self, kernel: str, tmp_path: Path) -> None:
        reboots = tmp_path / "reboots"
        reboots.write_text("")
        keys, nobody = os.pipe()  # at its end, the keyboard would close a descriptor while the Guest counts them
        try:
            done = run("--rng", "2", kernel, command=SCRIPTED, stdin=keys, SCENE="reboot", REBOOTS=str(reboots))
        finally:
            os.close(keys)
            os.close(nobody)
        assert (done.returncode, done.stderr) == (0, "")
        lives = [line.split() for line in reboots.read_text().splitlines() if line]
        assert len(lives) == 3
        assert len({pid for pid, _ in lives}) == 1
        assert len({descriptors for _, descriptors in lives}) == 1, "a reboot leaves descriptors behind"

    def test_a_reboot_finds_relative_paths_again(self, kernel: str, tmp_path: Path) -> None:
        reboots = tmp_path / "reboots"
        reboots.write_text("")
        line = [*SCRIPTED, "2", Path(kernel).name]
        environment = os.environ | {"SCENE": "reboot", "REBOOTS": str(reboots)}
        done = subprocess.run(line, stdin=subprocess.DEVNULL, env=environment, cwd=tmp_path, timeout=60)
        assert done.returncode == 0

    @pytest.mark.parametrize("scene", ["refuse", "defect"])
    def test_what_the_host_raises_is_one_sentence_and_status_1(self, kernel: str, scene: str) -> None:
        done = run("2", kernel, command=SCRIPTED, SCENE=scene)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.count("\n") == 1
        assert ("The Host cannot go on." if scene == "refuse" else "It is a defect in lguest-nb") in done.stderr

    @pytest.mark.parametrize("service", ["blk_request", "net_input", "net_output", "rng_input", "input", "output"])
    @pytest.mark.parametrize("raises", ["sentence", "defect"])
    def test_what_a_service_function_raises_is_one_sentence_and_status_1(
        self, kernel: str, disk: str, service: str, raises: str
    ) -> None:
        devices = ["--rng", f"--block={disk}", "--tunnet=10.0.0.1"]
        done = run(*devices, "2", kernel, command=SCRIPTED, SCENE="drivers", BROKEN=service, RAISES=raises)
        assert done.returncode == 1
        complaints = [line for line in done.stderr.splitlines() if "ignoring console" not in line]
        assert len(complaints) == 1
        assert f"{service} of head 0 went wrong" in complaints[0]

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
    @pytest.mark.parametrize("scene", ["wait", "deaf"])
    def test_a_signal_ends_it_as_that_signal(self, kernel: str, number: signal.Signals, scene: str) -> None:
        environment = os.environ | {"SCENE": scene}
        with subprocess.Popen(
            [*SCRIPTED, "2", kernel], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=environment
        ) as process:
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
            process.send_signal(number)
            assert process.wait(PATIENCE) == -number


class TestAtATerminal:
    @pytest.fixture
    def at(self, kernel: str, monkeypatch) -> Iterator[object]:
        sessions = []

        def start(scene: str, **environment: str) -> tuple[Session, list[object]]:
            for name, value in {"SCENE": scene, **environment}.items():
                monkeypatch.setenv(name, value)
            session = Session([*SCRIPTED, "2", kernel])
            sessions.append(session)
            before = termios.tcgetattr(session.controller)
            return session, before

        yield start
        for session in sessions:
            session.close()

    def test_three_control_c_end_it_as_a_sigint_with_the_terminal_as_it_was(self, at) -> None:
        session, before = at("wait")
        session.expect("ready")
        assert termios.tcgetattr(session.controller) != before
        session.type("\x03\x03\x03")
        assert session.wait_for_end() == -signal.SIGINT
        assert termios.tcgetattr(session.controller) == before

    def test_no_signal_is_lost_which_comes_before_the_main_thread_sleeps(self, at) -> None:
        for number in (signal.SIGINT, signal.SIGTERM) * 5:
            session, _ = at("wait")
            session.expect("ready")  # the CPU thread says so, a moment after it was started
            session.process.send_signal(number)
            assert session.wait_for_end() == -number

    def test_two_control_c_and_another_key_do_not(self, at) -> None:
        session, before = at("wait")
        session.expect("ready")
        session.type("\x03\x03x")
        session.type("\x03\x03x")
        session.process.send_signal(signal.SIGTERM)
        assert session.wait_for_end() == -signal.SIGTERM
        assert termios.tcgetattr(session.controller) == before

    def test_a_guest_whose_cpu_cannot_be_stopped_is_left_all_the_same(self, at) -> None:
        session, before = at("deaf")
        session.expect("ready")
        session.type("\x03\x03\x03")
        assert session.wait_for_end() == -signal.SIGINT
        assert termios.tcgetattr(session.controller) == before

    @pytest.mark.parametrize("scene", ["power-off", "panic", "defect"])
    def test_every_end_gives_the_terminal_back(self, at, scene: str) -> None:
        session, before = at(scene)
        assert session.wait_for_end() == (0 if scene == "power-off" else 1)
        assert termios.tcgetattr(session.controller) == before

    @pytest.mark.parametrize("service", ["input", "output"])
    def test_a_service_function_which_raises_gives_the_terminal_back(self, at, service: str) -> None:
        session, before = at("drivers", BROKEN=service)
        session.type("x")
        assert session.wait_for_end() == 1
        assert session.seen.count("went wrong") == 1
        assert termios.tcgetattr(session.controller) == before

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
    def test_a_signal_gives_the_terminal_back(self, at, number: signal.Signals) -> None:
        session, before = at("wait")
        session.expect("ready")
        session.process.send_signal(number)
        assert session.wait_for_end() == -number
        assert termios.tcgetattr(session.controller) == before

    def test_even_a_sigkill_gives_the_terminal_back(self, at) -> None:
        session, before = at("sigkill")
        assert session.wait_for_end() == -signal.SIGKILL  # all who held the terminal have gone, the guard too
        assert termios.tcgetattr(session.controller) == before

    def test_suspended_it_lends_the_terminal_back_and_takes_it_again_in_the_foreground(
        self, kernel: str, monkeypatch
    ) -> None:
        monkeypatch.setenv("SCENE", "wait")
        pid, terminal = pty.fork()
        if pid == 0:
            os.execv(SCRIPTED[0], [*SCRIPTED, "2", kernel])
        try:
            before = termios.tcgetattr(terminal)
            while b"ready" not in os.read(terminal, 999):
                pass
            raw = termios.tcgetattr(terminal)
            assert raw != before
            os.kill(pid, signal.SIGTSTP)
            assert os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1])
            assert termios.tcgetattr(terminal) == before
            os.kill(pid, signal.SIGCONT)
            deadline = time.monotonic() + PATIENCE
            while termios.tcgetattr(terminal) != raw:
                assert time.monotonic() < deadline
            os.write(terminal, b"\x03\x03\x03")
            assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGINT
            assert termios.tcgetattr(terminal) == before
            pid = 0
        finally:
            if pid:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            os.close(terminal)

    def test_a_window_which_changes_its_size_is_news_for_the_console(self, kernel: str, monkeypatch) -> None:
        monkeypatch.setenv("SCENE", "size")
        pid, terminal = pty.fork()
        if pid == 0:
            termios.tcsetwinsize(0, (24, 80))
            os.execv(SCRIPTED[0], [*SCRIPTED, "2", kernel])
        try:
            said = b""
            for size in ("80 columns, 24 rows", "132 columns, 43 rows"):
                while size.encode() not in said:
                    said += os.read(terminal, 999)
                termios.tcsetwinsize(terminal, (43, 132))
            assert os.waitpid(pid, 0)[1] == 0
            pid = 0
        finally:
            if pid:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            os.close(terminal)


class TestClosedDescriptors:
    @pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
    def test_a_closed_standard_descriptor_never_becomes_the_disk(self, closed: str, disk: str) -> None:
        before = Path(disk).read_bytes()
        guest = str(Path(lguest_nb.__file__).parent / "data" / "tiny-guest.elf")
        line = shlex.join([*COMMAND, f"--block={disk}", "16", guest, 'run="dev; poweroff"'])
        done = subprocess.run(["sh", "-c", f"{line} {closed}"], stdin=subprocess.DEVNULL, timeout=60)
        assert done.returncode == 0
        assert Path(disk).read_bytes() == before
