"""The Host on /dev/kvm: what C says of its structures, what it answers a Guest, how it ends, and what it refuses.

On a machine whose /dev/kvm emulates (no vmx, no svm) only small Guests run, in 64-bit mode and without SSE: these do.
Where there is no /dev/kvm the tests which need one are skipped.
"""

import os
import re
import signal
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from inside import BLOCK, BUFFER, CONSOLE, NET, RNG, Inside, is_broken
from long_guest import RAM, Written, small_pc
from support import COMMAND, PATIENCE, ask_c, close, open_descriptors

from lguest_nb import cli
from lguest_nb.arguments import parse
from lguest_nb.host import Ending, HostError
from lguest_nb.hosts.kvm import host as kvm_host
from lguest_nb.hosts.kvm import vm as kvm
from lguest_nb.hosts.kvm.host import KvmPcHost
from lguest_nb.hosts.kvm.vm import ffi, has_virtualization, open_kvm, runs_linux
from lguest_nb.knock import KNOCK
from lguest_nb.memory import GuestMemory
from lguest_nb.vring import DESC_WRITE


def why_not() -> str:
    "Why there is no KVM here; empty if there is."
    try:
        open_kvm().close()
        return ""
    except HostError as e:
        return str(e)


WHY_NOT = why_not()
on_kvm = pytest.mark.skipif(bool(WHY_NOT), reason=f"not verified, for want of a /dev/kvm: {WHY_NOT}")
NOTIFY = 0xD000_0050


# What C says.

STRUCTURES = [
    "kvm_userspace_memory_region", "kvm_pit_config", "kvm_ioeventfd", "kvm_irqfd", "kvm_regs", "kvm_segment",
    "kvm_dtable", "kvm_sregs", "kvm_cpuid_entry2", "kvm_cpuid2", "kvm_msr_entry", "kvm_msrs",
]  # fmt: skip
SHARED = [
    "immediate_exit", "exit_reason", "io.direction", "io.size", "io.port", "io.count", "io.data_offset",
    "mmio.phys_addr", "mmio.data", "mmio.len", "mmio.is_write", "internal.suberror", "hw.hardware_exit_reason",
]  # fmt: skip
NUMBERS = [
    "GET_API_VERSION", "CREATE_VM", "CHECK_EXTENSION", "GET_VCPU_MMAP_SIZE", "GET_SUPPORTED_CPUID", "CREATE_VCPU",
    "SET_TSS_ADDR", "CREATE_IRQCHIP", "RUN", "SET_USER_MEMORY_REGION", "IRQFD", "CREATE_PIT2", "IOEVENTFD", "GET_REGS",
    "SET_REGS", "GET_SREGS", "SET_SREGS", "SET_MSRS", "SET_CPUID2",
]  # fmt: skip


def told(expressions: list[str]) -> list[int]:
    return list(ask_c(("linux/kvm.h", "linux/kvm_para.h"), tuple(expressions)).values())


@pytest.mark.skipif(not Path("/usr/include/linux/kvm.h").exists(), reason="not verified, for want of <linux/kvm.h>")
class TestLayout:
    def test_the_structures_are_those_of_linux(self) -> None:
        expressions, ours = [], []
        for name in STRUCTURES:
            expressions.append(f"sizeof(struct {name})")
            ours.append(ffi.sizeof(f"struct {name}"))
            for field, where in ffi.typeof(f"struct {name}").fields:
                if field not in ("pad", "padding"):
                    expressions.append(f"offsetof(struct {name}, {field})")
                    ours.append(where.offset)
        assert ours == told(expressions)

    def test_the_shared_page_is_that_of_linux(self) -> None:
        ours = [ffi.offsetof("struct kvm_run", *field.split(".")) for field in SHARED]
        assert ours == told([f"offsetof(struct kvm_run, {field})" for field in SHARED])

    def test_the_requests_are_those_of_linux(self) -> None:
        assert [getattr(kvm, f"KVM_{name}") for name in NUMBERS] == told([f"KVM_{name}" for name in NUMBERS])

    def test_the_capabilities_and_constants_are_those_of_linux(self) -> None:
        assert list(kvm.NEEDED.values()) == told([f"KVM_CAP_{name}" for name in kvm.NEEDED])
        exits = ["IO", "MMIO", "SHUTDOWN", "FAIL_ENTRY", "INTERNAL_ERROR"]
        assert [getattr(kvm_host, f"EXIT_{name}") for name in exits] == told([f"KVM_EXIT_{name}" for name in exits])
        flags = ["IOEVENTFD_FLAG_DATAMATCH", "IOEVENTFD_FLAG_DEASSIGN", "PIT_SPEAKER_DUMMY", "API_VERSION"]
        ours = [kvm._DATAMATCH, kvm._DEASSIGN, kvm._SPEAKER, kvm.API_VERSION]
        assert ours == told([f"KVM_{name}" for name in flags])
        clocks = ["CLOCKSOURCE", "NOP_IO_DELAY", "CLOCKSOURCE2", "CLOCKSOURCE_STABLE_BIT"]
        bits = told([f"KVM_FEATURE_{name}" for name in clocks])
        assert sum(1 << bit for bit in bits) == kvm._CLOCKS


# Who may have one.


class TestRefusals:
    @pytest.mark.parametrize(
        ("path", "sentence"),
        [
            ("/dev/kvm-of-2005", r"There is no /dev/kvm-of-2005: Linux has it with .* --host=soft needs no module\."),
            ("/dev/null", r"KVM: asking /dev/null for its version failed: Inappropriate ioctl for device\."),
            ("/dev", r"Opening /dev failed: Is a directory\. Is virtualization switched off in the BIOS\?"),
        ],
    )
    def test_what_is_no_kvm_is_refused_by_a_sentence(self, path: str, sentence: str) -> None:
        before = open_descriptors()
        with pytest.raises(HostError) as e:
            open_kvm(path)
        assert re.fullmatch(sentence, str(e.value))
        assert open_descriptors() == before

    def test_who_may_not_open_it_hears_of_the_group(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> int:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(os, "open", refuse)
        with pytest.raises(HostError, match="may not open /dev/kvm: it is for root and for members of the group kvm"):
            open_kvm()

    @on_kvm
    def test_another_version_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(kvm, "API_VERSION", 13)
        before = open_descriptors()
        with pytest.raises(HostError, match=r"/dev/kvm speaks version 12 of KVM's API, and not 13\."):
            open_kvm()
        assert open_descriptors() == before

    @on_kvm
    def test_a_kvm_which_lacks_something_is_refused_by_its_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(kvm.NEEDED, "TELEPATHY", 9999)
        with pytest.raises(HostError, match="no KVM_CAP_TELEPATHY yet"):
            open_kvm()

    def test_kvm_is_had_only_by_asking_and_said_to_run_linux_only_with_virtualization(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        cpuinfo = tmp_path / "cpuinfo"
        for flags, has in (("fpu vmx", True), ("svm fpu", True), ("fpu svm_lock", False), ("", False)):
            cpuinfo.write_text(f"vmx flags\t: this is no flag: svm\nflags\t\t: {flags}\nbugs\t\t: vmx\n")
            assert has_virtualization(str(cpuinfo)) == has
        monkeypatch.setattr(kvm, "has_virtualization", lambda: False)
        assert not runs_linux()
        monkeypatch.setattr(kvm, "has_virtualization", lambda: True)
        assert runs_linux() == (not WHY_NOT)
        for name in ("auto", "soft"):
            assert not isinstance(cli.make_pc_host(name), KvmPcHost)

    @on_kvm
    def test_who_asks_for_a_kvm_without_virtualization_gets_it_and_a_warning(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(kvm, "has_virtualization", lambda: False)
        assert isinstance(cli.make_pc_host("kvm"), KvmPcHost)
        assert "neither vmx nor svm" in caplog.text

    def test_a_kernel_of_2009_is_refused(self) -> None:
        with pytest.raises(HostError, match="/dev/kvm runs 64-bit kernels here, and this is a 32-bit one"):
            cli.make_host("kvm")
        assert parse(["--host=kvm", "64", "vmlinux"]).host == "kvm"


# A Guest in it.


@contextmanager
def pc(program: str, bus: Written | None = None) -> Iterator[tuple[KvmPcHost, GuestMemory]]:
    "A PC on KVM with a program in it; if it does not end, it is stopped."
    before = open_descriptors()
    memory, boot = small_pc(program)
    host = KvmPcHost()
    watch = threading.Timer(PATIENCE, host.end, [Ending("died", "it never ended")])
    try:
        host.start(memory, boot, bus or Written())
        watch.start()
        yield host, memory
    finally:
        watch.cancel()
        with suppress(RuntimeError):
            watch.join()
        host.close()
        close(memory)
    assert open_descriptors() == before


OFF = "out %al, $0x80\n"  # ... and what follows is never executed


class Board(Written):
    "A Bus on which whatever is written to port 0x80 stops the Host."

    def __init__(self, value: int = 0) -> None:
        super().__init__(self._look, value)
        self.host: KvmPcHost | None = None

    def _look(self, space: str, address: int, value: int) -> None:
        if (space, address) == ("port", 0x80):
            assert self.host is not None
            self.host.stop()


@contextmanager
def board(program: str, value: int = 0) -> Iterator[tuple[KvmPcHost, GuestMemory, Board]]:
    "A PC which is off once its program has written to port 0x80."
    bus = Board(value)
    with pc(program, bus) as (host, memory):
        bus.host = host
        yield host, memory, bus


@on_kvm
class TestAnswers:
    def test_the_guest_begins_where_and_as_the_software_host_has_it(self) -> None:
        with pc("ud2") as (host, _):
            ending = host.run()
        assert ending.how == "died"
        for register in ("RIP=100000", "RSP=8ff0", "RSI=10000", "CR0=80000031", "CR3=9000", "CR4=20", "EFER=500"):
            assert register in ending.reason

    def test_ports_are_asked_with_their_width(self) -> None:
        program = """
            mov $0x44332211, %eax
            mov $0x123, %edx
            out %al, %dx
            out %ax, %dx
            out %eax, %dx
            in %dx, %eax
            mov %eax, 0x200000
            in %dx, %ax
            mov %eax, 0x200004
            in %dx, %al
        """
        with board(program + OFF, 0x189ABCDEF) as (host, memory, bus):
            host.run()
            assert memory.read(0x200000, 8) == b"\xef\xcd\xab\x89" * 2
        told = [("port", 0x123, 1, 0x11), ("port", 0x123, 2, 0x2211), ("port", 0x123, 4, 0x44332211)]
        assert bus.writes[:-1] == told
        assert bus.reads == [("port", 0x123, 4), ("port", 0x123, 2), ("port", 0x123, 1)]

    def test_a_string_of_bytes_goes_out_one_by_one(self) -> None:
        program = """
            mov $text, %esi
            mov $0x3f8, %edx
            mov $5, %ecx
            rep outsb
            out %al, $0x80
        text: .ascii "hello"
        """
        with board(program) as (host, _, bus):
            assert host.run() == Ending("stopped")
        assert bytes(value for _, port, _, value in bus.writes if port == 0x3F8) == b"hello"

    def test_a_string_of_words_comes_in_one_by_one(self) -> None:
        program = "mov $0x200000, %edi; mov $0x170, %edx; mov $3, %ecx; rep insw\n"
        with board(program + OFF, 0xBEEF) as (host, memory, bus):
            host.run()
            assert memory.read(0x200000, 8) == b"\xef\xbe" * 3 + bytes(2)
        assert bus.reads == [("port", 0x170, 2)] * 3

    def test_registers_are_asked_with_their_width(self) -> None:
        program = """
            movabs $0x8877665544332211, %rax
            mov $0xd0000100, %edi
            mov %al, (%rdi)
            mov %ax, 2(%rdi)
            mov %eax, 4(%rdi)
            mov %rax, 8(%rdi)
            movzbl 16(%rdi), %ebx
            mov %rbx, 0x200000
        """
        with board(program + OFF, 0xFF7F) as (host, memory, bus):
            host.run()
            assert int.from_bytes(memory.read(0x200000, 8), "little") == 0x7F
        assert bus.writes[:-1] == [
            ("memory", 0xD0000100, 1, 0x11),
            ("memory", 0xD0000102, 2, 0x2211),
            ("memory", 0xD0000104, 4, 0x44332211),
            ("memory", 0xD0000108, 8, 0x8877665544332211),
        ]
        assert bus.reads == [("memory", 0xD0000110, 1)]

    def test_an_access_over_a_pages_end_is_asked_for_in_widths_which_a_bus_knows(self) -> None:
        program = "mov $0xd0000ffd, %edi; movabs $0x8877665544332211, %rax; mov %rax, (%rdi)\n"
        with board(program + OFF) as (host, _, bus):
            host.run()
        told = bus.writes[:-1]
        assert {size for _, _, size, _ in told} <= {1, 2, 4, 8}
        each = {at + i: value >> 8 * i & 0xFF for _, at, size, value in told for i in range(size)}
        assert each == {0xD0000FFD + i: 0x11 * (i + 1) for i in range(8)}

    def test_what_a_bus_raises_comes_out(self) -> None:
        def refuse(*_: object) -> None:
            raise ZeroDivisionError

        with pc("out %al, $0x81", Written(refuse)) as (host, _), pytest.raises(ZeroDivisionError):
            host.run()

    def test_the_last_byte_of_memory_is_memory_and_the_next_is_not(self) -> None:
        program = f"movb $7, {RAM - 1}; movb $8, {RAM}\n"
        with board(program + OFF) as (host, memory, bus):
            host.run()
            assert memory.read(RAM - 1, 1) == b"\7"
        assert bus.writes[0] == ("memory", RAM, 1, 8)

    def test_the_processor_is_number_0_and_alone(self) -> None:
        program = """
            mov $1, %eax
            cpuid
            mov %ebx, 0x200000
            mov $0x40000001, %eax
            cpuid
            mov %eax, 0x200004
        """
        with board(program + OFF) as (host, memory, _):
            host.run()
            numbers = memory.read(0x200002, 2)
            services = int.from_bytes(memory.read(0x200004, 4), "little")
        assert numbers == b"\x01\x00"
        assert not services & ~kvm._CLOCKS


# Doorbells and lines.

HALTS = f"""
    sti
    hlt
    cli
    dec %ebx                    # as often as it says, from `again` on
    jnz again
    {OFF}
handler:
    push %rax
    send 0x20, 0x20
    pop %rax
    iretq
"""
PINGS = 200
PING = f"""
    controllers 0xdf
    gate 0x25, handler
    table
    mov ${NOTIFY}, %edi
    mov ${PINGS}, %ebx
again:
    movl $1, (%rdi)             # a kick; its interrupt ends the HLT
    {HALTS}
"""
KICK = f"mov ${NOTIFY}, %edi; movl $0, (%rdi); movl $1, (%rdi); movl $1, (%rdi); movw $1, (%rdi)\n"


@on_kvm
class TestEventfds:
    def test_a_kick_its_service_and_its_interrupt_never_come_to_the_bus(self) -> None:
        kicks, moments = os.eventfd(0), []

        def serve() -> None:
            while len(moments) < PINGS:
                os.read(kicks, 8)
                moments.append(time.perf_counter_ns())
                host.interrupt(5)

        with board(PING) as (host, _, bus):
            host.attach_eventfd(NOTIFY, kicks, 1)
            thread = threading.Thread(target=serve, daemon=True)
            thread.start()
            assert host.run() == Ending("stopped")
            thread.join()
            assert host.report() == "exits for ports: 1"
        os.close(kicks)
        assert (len(moments), len(bus.writes)) == (PINGS, 1)
        between = statistics.median(b - a for a, b in zip(moments, moments[1:], strict=False))
        print(f"from kick to kick, with service and interrupt: {between / 1000:.0f} µs")

    def test_a_bell_hears_its_own_value_alone_and_all_four_bytes_of_it(self) -> None:
        kicks = os.eventfd(0)
        with board(KICK + OFF) as (host, _, bus):
            host.attach_eventfd(NOTIFY, kicks, 1)
            host.run()
        assert os.eventfd_read(kicks) == 2
        os.close(kicks)
        assert bus.writes[:-1] == [("memory", NOTIFY, 4, 0), ("memory", NOTIFY, 2, 1)]

    def test_a_bell_without_a_value_hears_them_all(self) -> None:
        kicks = os.eventfd(0)
        with board(KICK + OFF) as (host, _, bus):
            host.attach_eventfd(NOTIFY, kicks)
            host.run()
        assert os.eventfd_read(kicks) == 3
        os.close(kicks)
        assert len(bus.writes) == 2

    def test_where_a_bell_was_taken_down_the_bus_is_told_again(self) -> None:
        with board(KICK + OFF) as (host, _, bus):
            for _ in range(2):  # the second one in the place of the first, which is closed by then
                kicks = os.eventfd(0)
                host.attach_eventfd(NOTIFY, kicks, 1)
                os.close(kicks)
            host.detach_eventfd(NOTIFY, 1)
            host.detach_eventfd(NOTIFY, 1)  # there is none
            host.run()
        assert len(bus.writes) == 5

    def test_a_bell_which_cannot_be_hung_costs_no_descriptor(self) -> None:
        with pc(OFF) as (host, _):
            before = open_descriptors()
            with open(os.devnull) as file, pytest.raises(HostError, match=r"hanging a doorbell at 0xd0000050 failed"):
                host.attach_eventfd(NOTIFY, file.fileno(), 1)
            assert open_descriptors() == before

    def test_the_timer_ticks_without_us(self) -> None:
        program = f"""
            controllers 0xfe
            gate 0x20, handler
            table
            send 0x43, 0x34         # channel 0, both bytes, mode 2
            send 0x40, 0xa9
            send 0x40, 0x04         # a millisecond
            mov $3, %ebx
        again:
            {HALTS}
        """
        with board(program) as (host, _, bus):
            assert host.run() == Ending("stopped")
            assert host.report() == "exits for ports: 1"
        assert len(bus.writes) == 1

    def test_interrupts_which_do_not_exist_are_refused_and_late_ones_are_harmless(self) -> None:
        with pc(OFF) as (host, _):
            host.interrupt(2)
            for line in (-1, 16):
                with pytest.raises(HostError, match=f"There is no interrupt {line}: a PC has lines from 0 to 15"):
                    host.interrupt(line)
        host.interrupt(5)


# How it ends.


@on_kvm
class TestEndings:
    def test_a_triple_fault_is_a_death_with_registers(self) -> None:
        with pc("lidt 0x200000; ud2") as (host, _):
            ending = host.run()
        assert ending.how == "died" and re.match(r"triple fault: RIP=10[0-9a-f]{4} RSP=8ff0 ", ending.reason)

    @pytest.mark.parametrize("program", ["jmp .", "cli; hlt", "again: in $0x81, %al; jmp again"])
    def test_a_stop_reaches_a_guest_which_runs_sleeps_or_asks(self, program: str) -> None:
        "Also one which KVM would never come back from by itself."
        with pc(program) as (host, _):
            stopper = threading.Thread(target=host.stop)
            stopper.start()
            assert host.run() == Ending("stopped")
            stopper.join()

    def test_no_stop_is_missed_whenever_it_comes(self) -> None:
        "Between the look at the ending and KVM_RUN there is a moment in which a signal alone would be lost."
        for _ in range(30):
            with pc("cli; hlt") as (host, _):
                go = threading.Barrier(2)
                stopper = threading.Thread(target=lambda host=host, go=go: (go.wait(), host.stop()))
                stopper.start()
                go.wait()
                assert host.run() == Ending("stopped")
                stopper.join()

    def test_a_stop_before_the_start_counts(self) -> None:
        memory, boot = small_pc("jmp .")
        host = KvmPcHost()
        host.stop()
        host.start(memory, boot, Written())
        assert host.run() == Ending("stopped")
        host.close()
        memory.close()

    def test_the_first_ending_counts(self) -> None:
        with pc("jmp .") as (host, _):
            host.end(Ending("power-off"))
            host.stop()
            assert host.run() == host.run() == Ending("power-off")

    def test_a_guest_which_was_stopped_goes_on_to_be_stopped(self) -> None:
        "A signal of somebody else's is no ending."
        with pc("cli; hlt") as (host, _):
            me = threading.get_ident()

            def knock() -> None:
                for _ in range(20):
                    signal.pthread_kill(me, KNOCK)
                host.stop()

            thread = threading.Thread(target=knock)
            thread.start()
            assert host.run() == Ending("stopped")
            thread.join()

    def test_only_the_thread_which_started_it_runs_it(self) -> None:
        refused: list[str] = []

        def run() -> None:
            try:
                host.run()
            except HostError as e:
                refused.append(str(e))

        with pc(OFF) as (host, _):
            thread = threading.Thread(target=run)
            thread.start()
            thread.join()
        assert refused == ["run() belongs on the thread which called start(), as the processor does."]

    def test_it_says_what_is_wrong_with_how_it_is_used(self) -> None:
        host = KvmPcHost("/dev/kvm-of-2005")
        with pytest.raises(HostError, match="has not been started"):
            host.run()
        before, (memory, boot) = open_descriptors(), small_pc(OFF)
        with pytest.raises(HostError, match=r"There is no /dev/kvm-of-2005"):
            host.start(memory, boot, Written())
        memory.close()
        assert open_descriptors() <= before
        with pc(OFF) as (started, memory), pytest.raises(HostError, match="a second Guest needs a second Host"):
            started.start(memory, boot, Written())

    def test_memory_which_reaches_into_the_devices_is_refused(self) -> None:
        memory, boot = GuestMemory(0xD000_1000, 0), small_pc(OFF)[1]
        with pytest.raises(HostError, match="3328 MB of memory at most, not 3329 MB"):
            KvmPcHost().start(memory, boot, Written())
        memory.close()

    def test_memory_is_held_as_long_as_kvm_has_its_address(self) -> None:
        with pc(OFF) as (_, memory), pytest.raises(BufferError):
            memory.close()


# The whole Launcher, with the devices that everybody else has.


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inside]:
    running = Inside(tmp_path_factory.mktemp("kvm"), host="kvm")
    yield running
    running.close()


@on_kvm
class TestDevices:
    @pytest.mark.parametrize("slot", [RNG, CONSOLE, BLOCK, NET])
    def test_each_device_serves_on_kvm(self, machine: Inside, slot: int) -> None:
        machine.serves(slot)
        machine.reset(slot)

    def test_a_broken_ring_breaks_its_device_only_and_a_reset_revives_it(self, machine: Inside) -> None:
        machine.begin(RNG)
        machine.offer(RNG, (BUFFER, 16, DESC_WRITE, 0), heads=(999,))
        is_broken(machine, RNG, "999")
        for slot in (RNG, CONSOLE, BLOCK, NET):
            machine.reset(slot)


@on_kvm
def test_the_command_says_so_where_a_kernel_gets_nowhere(tmp_path: Path) -> None:
    "A kernel of two instructions, which switches the PC off, from the command line."
    from lguest_nb.linux64 import ELF_X86_64

    code = bytes.fromhex("66ba0406b80034000066efebfe")  # mov $0x604, %dx; mov $0x3400, %eax; out %ax, %dx; jmp .
    header = ELF_X86_64.header.pack(b"\x7fELF\2\1\1", 2, 62, 1, 0x1000000, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    program = ELF_X86_64.program.pack(1, 7, 120, 0, 0x1000000, len(code), len(code), 1 << 21)
    kernel = tmp_path / "kernel"
    kernel.write_bytes(header + program + code)
    words = [*COMMAND, "--host=kvm", "--stats", "32", str(kernel)]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    lines = done.stderr.splitlines()
    assert lines[-1] == "exits for ports: 1"
    assert any("neither vmx nor svm" in line for line in lines) == (not has_virtualization())
