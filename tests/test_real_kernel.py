"""A Linux kernel of your own, booted by the real command: name it in LGUEST_KERNEL to have it tried.

LGUEST_KERNEL  a 32-bit vmlinux or bzImage with lguest support (docs/index.md says how to configure one)
LGUEST_INITRD  an initramfs which ends in a root shell on /dev/hvc0, with busybox's commands and device nodes
LGUEST_PROMPT  how that shell prompts; "# " if it is not set
"""

import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from session import Session

KERNEL, INITRD = os.environ.get("LGUEST_KERNEL"), os.environ.get("LGUEST_INITRD")
PROMPT = os.environ.get("LGUEST_PROMPT", "# ")
TAP = "192.168.19.1"
IN_A_NAMESPACE = ["unshare", "--net"] if os.getuid() == 0 else []

pytestmark = pytest.mark.skipif(
    not (KERNEL and INITRD), reason="not verified: no kernel is named in LGUEST_KERNEL and LGUEST_INITRD"
)


class Shell(Session):
    "A Linux guest's shell. Each command is followed by a mark, which the echo of the command does not contain."

    marks = 0

    def ask(self, line: str) -> str:
        self.marks += 1
        start = len(self.seen)
        self.type(f"{line}; echo do''ne-{self.marks}\r")
        answer = self.expect(f"done-{self.marks}\n", start)
        return answer.partition("\n")[2]


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(bytes(1 << 20))
    return path


@pytest.fixture
def shell(disk: Path) -> Iterator[Shell]:
    net = [f"--tunnet={TAP}"] if IN_A_NAMESPACE else []
    launcher = str(Path(sys.executable).with_name("lguest-nb"))
    options = [f"--block={disk}", "--rng", *net, f"--initrd={INITRD}"]
    session = Shell([*IN_A_NAMESPACE, launcher, *options, "64", str(KERNEL), "console=hvc0"])
    try:
        session.expect(PROMPT)
        yield session
    finally:
        session.close()


def test_linux_reads_its_disk(shell: Shell, disk: Path) -> None:
    token = secrets.token_hex(16)
    with disk.open("r+b") as file:
        file.seek(5 * 512)
        file.write(token.encode())
    assert token in shell.ask("dd if=/dev/vda bs=512 skip=5 count=1 2>/dev/null | head -c 32; echo")


def test_linux_writes_what_was_typed_to_its_disk(shell: Shell, disk: Path) -> None:
    token = secrets.token_hex(16)
    shell.ask(f"echo {token} | dd of=/dev/vda bs=512 seek=7 conv=sync 2>/dev/null; sync")
    assert token.encode() in disk.read_bytes()[7 * 512 : 8 * 512]


def test_linux_gets_entropy(shell: Shell) -> None:
    first, second = (shell.ask("dd if=/dev/hwrng bs=16 count=1 2>/dev/null | hexdump -C") for _ in range(2))
    assert first.startswith("00000000") and first != second


@pytest.mark.skipif(not IN_A_NAMESPACE, reason="not verified: a tap for LGUEST_KERNEL needs root")
def test_linux_pings_over_tun(shell: Shell) -> None:
    shell.ask("ifconfig eth0 192.168.19.2 up")
    assert "3 packets received" in shell.ask(f"ping -c 3 {TAP}")


def test_linux_reboots_twice_in_a_row_and_powers_off(shell: Shell) -> None:
    for _ in range(2):
        start = len(shell.seen)
        shell.type("reboot -f\r")
        shell.expect(PROMPT, start + len("reboot -f\r"))
    assert "42" in shell.ask("echo $((6 * 7))")
    shell.type("poweroff -f\r")
    assert shell.wait_for_end() == 0
