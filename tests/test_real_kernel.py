"""A Linux kernel of your own, booted by the real command: name it in LGUEST_KERNEL to have it tried.

LGUEST_KERNEL  a 32-bit vmlinux or bzImage with lguest support (docs/kernels.md says how to configure one)
LGUEST_INITRD  an initramfs which ends in a root shell on /dev/hvc0, with busybox's commands and device nodes;
               without it, gcc makes one of linux_init.c
LGUEST_PROMPT  how the shell of LGUEST_INITRD prompts; "# " if it is not set
"""

import os
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from session import Session

KERNEL, INITRD = os.environ.get("LGUEST_KERNEL", ""), os.environ.get("LGUEST_INITRD")
TAP, ADDRESS = "192.168.19.1", "192.168.19.2"
IN_A_NAMESPACE = ["unshare", "--net"] if os.getuid() == 0 else []
# Nothing that lguest's Guests lack: they say that they are Pentiums. No library that a 64-bit machine may not have.
GCC = (
    "gcc -m32 -march=i586 -O2 -Wall -Wextra -ffreestanding -fno-pic -fno-stack-protector -fno-strict-aliasing "
    "-fcf-protection=none -nostdlib -static -s"
).split()

pytestmark = pytest.mark.skipif(not KERNEL, reason="not verified: no kernel is named in LGUEST_KERNEL")


class Init(Session):
    "tests/linux_init.c at its prompt."

    prompt = "linux> "
    reboot, power_off = "reboot", "poweroff"

    def ask(self, line: str) -> str:
        start = len(self.seen)
        self.type(f"{line}\r")
        return self.expect(f"\n{self.prompt}", start).partition("\n")[2]

    def release(self) -> str:
        return self.ask("uname")

    def read_sector(self, sector: int) -> str:
        return self.ask(f"read {sector}")

    def write_sector(self, sector: int, text: str) -> None:
        assert self.ask(f"write {sector} {text}") == "written"

    def entropy(self) -> str:
        return self.ask("entropy")

    def ping(self, whom: str, count: int) -> int:
        assert self.ask(f"address {ADDRESS}") == "up"
        return int(self.ask(f"ping {whom} {count}").removesuffix(" replies"))


class Busybox(Session):
    "A shell with busybox's commands. Marks, which our typing does not contain, stand around each answer."

    prompt = os.environ.get("LGUEST_PROMPT", "# ")
    reboot, power_off = "reboot -f", "poweroff -f"
    marks = 0

    def ask(self, line: str) -> str:
        self.marks += 1
        start = len(self.seen)
        self.type(f"echo fr''om-{self.marks}; {line}; echo t''o-{self.marks}\r")
        answer = self.expect(f"to-{self.marks}\n", start)
        self.expect(self.prompt, start + len(answer))  # what is typed before it would be echoed twice
        return answer.partition(f"from-{self.marks}\n")[2]

    def release(self) -> str:
        return self.ask("uname -r").strip()

    def read_sector(self, sector: int) -> str:
        return self.ask(f"dd if=/dev/vda bs=512 skip={sector} count=1 2>/dev/null | tr -d '\\000'").strip()

    def write_sector(self, sector: int, text: str) -> None:
        self.ask(f"echo {text} | dd of=/dev/vda bs=512 seek={sector} conv=sync 2>/dev/null; sync")

    def entropy(self) -> str:
        dump = self.ask("dd if=/dev/hwrng bs=16 count=1 2>/dev/null | hexdump -C")  # offset, bytes, |characters|
        return "".join(dump.partition("|")[0].split()[1:])

    def ping(self, whom: str, count: int) -> int:
        self.ask(f"ifconfig eth0 {ADDRESS} up")
        received = re.search(r"(\d+) packets received", self.ask(f"ping -c {count} {whom}"))
        return int(received[1]) if received else 0


def in_newc(name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> bytes:
    "A file in a cpio archive as Documentation/early-userspace/buffer-format.txt describes it: all numbers in hex."
    fields = 0, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name) + 1, 0
    entry = b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0"
    entry += bytes(-len(entry) % 4) + data
    return entry + bytes(-len(entry) % 4)


def make_initramfs(folder: Path) -> Path:
    "An initramfs with linux_init.c as its /init, and the console that the kernel opens for it."
    program, archive = folder / "init", folder / "initramfs"
    subprocess.run([*GCC, "-o", program, Path(__file__).with_name("linux_init.c")], check=True)
    archive.write_bytes(
        in_newc("dev", 0o040755)
        + in_newc("dev/console", 0o020600, device=(5, 1))
        + in_newc("init", 0o100755, program.read_bytes())
        + in_newc("TRAILER!!!", 0)
    )
    return archive


@contextmanager
def booted(folder: Path) -> Iterator[Init | Busybox]:
    "A Guest at its prompt, with `folder`/disk and all devices that we may give it."
    disk = folder / "disk"
    disk.write_bytes(bytes(1 << 20))
    net = [f"--tunnet={TAP}"] if IN_A_NAMESPACE else []
    launcher = str(Path(sys.executable).with_name("lguest-nb"))
    options = [f"--block={disk}", "--rng", *net, f"--initrd={INITRD or make_initramfs(folder)}"]
    command = [*IN_A_NAMESPACE, launcher, *options, "64", KERNEL, "console=hvc0"]
    guest = Busybox(command) if INITRD else Init(command)
    try:
        guest.expect(guest.prompt)
        yield guest
    finally:
        guest.close()
        print(guest.seen)  # pytest shows it if there was no prompt


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("linux")


@pytest.fixture(scope="module")
def guest(folder: Path) -> Iterator[Init | Busybox]:
    "One Guest for all tests but the last."
    with booted(folder) as guest:
        yield guest


def test_the_kernel_which_runs_is_the_one_named(guest: Init | Busybox) -> None:
    release = guest.release()
    assert release and release.encode() in Path(KERNEL).read_bytes()


def test_linux_reads_its_disk(guest: Init | Busybox, folder: Path) -> None:
    token = secrets.token_hex(16)
    with (folder / "disk").open("r+b") as file:
        file.seek(5 * 512)
        file.write(token.encode())
    assert guest.read_sector(5) == token


def test_linux_writes_what_was_typed_to_its_disk(guest: Init | Busybox, folder: Path) -> None:
    token = secrets.token_hex(16)
    guest.write_sector(7, token)
    assert token.encode() in (folder / "disk").read_bytes()[7 * 512 : 8 * 512]


def test_linux_gets_entropy(guest: Init | Busybox) -> None:
    first, second = guest.entropy(), guest.entropy()
    assert len(bytes.fromhex(first)) == len(bytes.fromhex(second)) == 16 and first != second


@pytest.mark.skipif(not IN_A_NAMESPACE, reason="not verified: a tap for LGUEST_KERNEL needs root")
def test_linux_pings_over_tun(guest: Init | Busybox) -> None:
    assert guest.ping(TAP, 3) == 3


def test_linux_reboots_twice_in_a_row_and_powers_off(tmp_path: Path) -> None:
    token = secrets.token_hex(16)
    with booted(tmp_path) as guest:
        guest.write_sector(9, token)
        for _ in range(2):
            start = len(guest.seen)
            guest.type(f"{guest.reboot}\r")
            guest.expect(guest.prompt, start)
            assert guest.read_sector(9) == token
        guest.type(f"{guest.power_off}\r")
        assert guest.wait_for_end() == 0


def test_gdb_stops_a_running_linux_steps_it_and_lets_it_go(tmp_path: Path) -> None:
    launcher = str(Path(sys.executable).with_name("lguest-nb"))
    options = ["--gdb=0,run", f"--initrd={INITRD or make_initramfs(tmp_path)}"]
    command = [launcher, *options, "64", KERNEL, "console=hvc0"]
    guest = Busybox(command) if INITRD else Init(command)
    try:
        guest.expect(guest.prompt)
        [port] = re.findall(r"target remote :(\d+)\n", guest.seen)
        asked = [
            f"target remote :{port}",
            "print/x $cs",
            "print $pc >= 0xc0000000",
            *["stepi"] * 20,
            "x/i $pc",
            "detach",
        ]
        gdb = ["gdb", "-nx", "-batch", *(word for line in asked for word in ("-ex", line))]
        said = subprocess.run(gdb, capture_output=True, text=True, check=True).stdout
        assert "= 0x61\n" in said and "= 1\n" in said and "=> 0xc" in said and "detached" in said
        assert guest.release()
        guest.type(f"{guest.power_off}\r")
        assert guest.wait_for_end() == 0
    finally:
        guest.close()
        print(guest.seen)
