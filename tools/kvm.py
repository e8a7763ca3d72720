"""Measure a kick on /dev/kvm, and boot Debian's own kernel there, with a visit that proves each device.

Where the processor has virtualization that happens here. Elsewhere QEMU is the machine: its emulator has AMD's
virtualization, so Debian's kernel on it has a real KVM, and on that runs the package, in an image of Debian's packages.
The files are in build/kvm and build/debian. The exit status is 0 only if all that was possible was proved; what REQUIRE
names (of net,block,rng,console) must have been possible.
"""

import os
import re
import selectors
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from debian import DEVICES, DIRECTORY, PROMPT, Shell, visit_debian
from visit import end_by_exception, network_if_possible, required_devices, verdict

from lguest_nb.debian import Apt, DebianError, Package, fetch, unpack
from lguest_nb.debian_guest import DebianGuest, build, whole_or_nothing
from lguest_nb.host import Ending, HostError
from lguest_nb.hosts.kvm.host import KvmPcHost
from lguest_nb.hosts.kvm.vm import has_virtualization, open_kvm, runs_linux
from lguest_nb.hosts.pc.small import small_guest
from lguest_nb.initramfs import CpioWriter, in_order
from lguest_nb.memory import LguestError
from lguest_nb.meter import Meter, Tell, quietly
from lguest_nb.today import Space

ROOT = Path(__file__).resolve().parent.parent
MACHINE = Path("build/kvm")
HERE = "--here"  # said to ourselves, on the machine which QEMU is
PATIENCE = 900.0  # seconds for what takes a Guest in an emulator a tenth of that
ENDED = "kvm: the exit status is "

# What the machine has installed: Python and what the package needs, and what a visit needs.
PACKAGES = ("python3", "python3-cffi", "python3-lz4", "binutils", "e2fsprogs", "util-linux", "busybox-static")
DRIVERS = ("virtio_pci", "virtio_blk", "kvm_amd", "tun")
MACHINE_MB, DISK_MB = 1024, 1024
INIT = f"""\
#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 PYTHONPATH=/lguest-nb PYTHONDONTWRITEBYTECODE=1
/bin/busybox --install -s
mount -t proc proc /proc
mount -t devtmpfs dev /dev
for module in $(cat /lib/modules/order); do
    insmod /lib/modules/$module.ko
done
mount -t ext4 -o noatime /dev/vda /machine
for place in proc sys dev dev/pts tmp; do
    mkdir -p /machine/$place
done
mount -t proc proc /machine/proc
mount -t sysfs sys /machine/sys
mount --bind /dev /machine/dev
mkdir -p /dev/pts
mount -t devpts pts /machine/dev/pts
mount -t tmpfs tmp /machine/tmp
ifconfig lo 127.0.0.1
cd /machine/lguest-nb
for word in $(cat /proc/cmdline); do
    case $word in REQUIRE=*) export "$word"; esac
done
chroot /machine /bin/sh -c 'cd /lguest-nb; exec /usr/bin/python3 tools/kvm.py {HERE}'
echo "{ENDED}$?"
poweroff -f
"""
COMMAND = """\
#!/usr/bin/python3
import sys
from lguest_nb.entry import main
sys.exit(main())
"""


# On a machine with a KVM.

PINGS = 2000
BELL = 0x3000_0050  # where a small Guest has no RAM, and its page tables do not end yet
PING = f"""
    mov $0x11, %al              # both interrupt controllers: vectors from 0x20, and line 5 alone
    out %al, $0x20
    mov $0x20, %al
    out %al, $0x21
    mov $4, %al
    out %al, $0x21
    mov $1, %al
    out %al, $0x21
    mov $0xdf, %al
    out %al, $0x21
    mov $handler, %eax          # the gate of vector 0x25
    mov $0x1250, %edi
    mov %ax, (%rdi)
    movw $0x10, 2(%rdi)
    movw $0x8e00, 4(%rdi)
    shr $16, %eax
    mov %ax, 6(%rdi)
    lidt table(%rip)
    mov ${BELL:#x}, %edi
    mov ${PINGS}, %ebx
again:
    movl $1, (%rdi)
    sti
    hlt
    cli
    dec %ebx
    jnz again
    out %al, $0x80
handler:
    push %rax
    mov $0x20, %al
    out %al, $0x20
    pop %rax
    iretq
table:
    .word 0xfff
    .quad 0x1000
"""


class Off:
    "A Bus on which the first write to a port is the end of the Host."

    def __init__(self, host: KvmPcHost) -> None:
        self.host = host

    def read(self, space: Space, address: int, size: int) -> int:
        return 0

    def write(self, space: Space, address: int, size: int, value: int) -> None:
        self.host.stop()


def measure_kicks() -> str:
    "From kick to kick, with service thread and interrupt: what it takes, in a sentence."
    memory, boot = small_guest(PING)
    host, kicks, moments = KvmPcHost(), os.eventfd(0), []

    def serve() -> None:
        while len(moments) < PINGS:
            os.read(kicks, 8)
            moments.append(time.perf_counter_ns())
            host.interrupt(5)

    host.start(memory, boot, Off(host))
    host.attach_eventfd(BELL, kicks, 1)
    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    watch = threading.Timer(PATIENCE / 10, host.end, [Ending("died", "its interrupts do not come")])
    watch.start()
    ending = host.run()
    watch.cancel()
    if ending.how != "stopped":
        raise HostError(f"The Guest which was to be measured {ending.how}: {ending.reason}")
    thread.join()
    exits = host.report()
    host.close()
    memory.close()
    os.close(kicks)
    each = sorted(after - before for before, after in zip(moments, moments[1:], strict=False))
    shortest, middle = each[0] / 1000, statistics.median(each) / 1000
    return f"{PINGS} times: {shortest:.0f} µs at least, {middle:.0f} µs in the middle ({exits})"


class PatientShell(Shell):
    "A Guest which may take its time, and says how long it took to its first prompt."

    def __init__(self, command: Sequence[str]) -> None:
        self._began: float | None = time.monotonic()
        super().__init__(command)

    def expect(self, text: str, start: int = 0, patience: float = PATIENCE) -> str:
        before = super().expect(text, start, patience)
        if text == PROMPT and self._began is not None:
            print(f"boot: {time.monotonic() - self._began:.1f} s from the command to the Guest's prompt.", flush=True)
            self._began = None
        return before


@dataclass(frozen=True)
class OnKvm(DebianGuest):
    "The same files, and another Host."

    def arguments(self) -> list[str]:
        return ["--host=kvm", *super().arguments()]


def here(
    required: Sequence[str],  # devices which must have been proved
) -> int:  # exit status
    "Measure and visit, on this machine's KVM."
    try:
        open_kvm().close()
        print(f"kick, service, interrupt, {measure_kicks()}.", flush=True)
    except HostError as e:
        print(e, file=sys.stderr)
        return 1
    network = network_if_possible()
    return verdict(lambda: visit_debian(OnKvm(DIRECTORY), network, PatientShell), required)


# The machine which QEMU is.


def packages(
    apt: Apt,
) -> list[Path]:  # of .deb files
    "`PACKAGES` and all they need, fetched. Raises `DebianError`."
    lists = ["-o", f"Dir::State::Lists={apt.cache / 'lists'}"] if apt.own_lists else []
    with tempfile.TemporaryDirectory() as empty:  # apt neither has anything installed there nor fetched
        status = Path(empty) / "status"
        status.touch()
        places = ["-o", f"Dir::State::status={status}", "-o", f"Dir::Cache::archives={empty}", *lists]
        told = apt_get("install", "-y", "--print-uris", "--no-install-recommends", *places, *PACKAGES)
        # An installation is told with MD5 sums, and a download with better ones: the first is for the names only.
        names = re.findall(r"^'\S+' (\S+?)_\S+\.deb \d+", told, re.M)
        told = apt_get("download", "--print-uris", *lists, *names, where=Path(empty))
    wanted = re.findall(r"^'(\S+)' ((\S+?)_\S+\.deb) (\d+) (SHA\d+:[0-9a-f]+)$", told, re.M)
    if len(wanted) != len(names):
        raise DebianError(f"apt knows of {len(names)} packages, and where {len(wanted)} of them are.")
    return [apt.download(Package(name, file, int(size), digits, uri)) for uri, file, name, size, digits in wanted]


def apt_get(
    *words: str,  # arguments
    where: Path | None = None,  # directory
) -> str:  # its output
    "Raises `DebianError`."
    command = ["apt-get", "-qq", "-o", "APT::Sandbox::User=", *words]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=where)
    if done.returncode:
        raise DebianError(f"apt-get {words[0]} failed: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout


def write_root(
    root: Path,  # an empty directory
    debs: Sequence[Path],
    guest: DebianGuest,  # to be booted there
) -> None:
    "Everything on the machine's disk. Raises `DebianError`."
    for deb in debs:
        unpack(deb, root)
    for name in ("lguest_nb", "tools"):
        ignored = shutil.ignore_patterns("__pycache__", "*.so")
        shutil.copytree(ROOT / name, root / "lguest-nb" / name, ignore=ignored)
    theirs = root / "lguest-nb" / DIRECTORY
    theirs.mkdir(parents=True)
    for file in (guest.kernel, guest.initramfs, guest.disk):
        subprocess.run(["cp", "--sparse=always", file, theirs], check=True)
    command = root / "usr/bin/lguest-nb"
    command.write_text(COMMAND)
    command.chmod(0o755)
    if not (root / "bin/sh").exists():
        (root / "bin/sh").symlink_to("busybox")


def write_machine(
    directory: Path,  # where its files are to be
    guest: DebianGuest,  # which is to be booted on it, and whose kernel it has, too
    tell: Tell = quietly,  # how far it is
) -> None:
    "Make initramfs and disk. Raises `DebianError` and `OSError`."
    fetched = guest.directory / "packages"
    kernel, busybox = fetch(Apt(fetched.resolve(), tell))
    (directory / "packages").mkdir(parents=True, exist_ok=True)
    apt = Apt((directory / "packages").resolve(), tell)
    try:
        debs = packages(apt)
    except DebianError:
        apt.update()
        debs = packages(apt)
    with tempfile.TemporaryDirectory(dir=directory, prefix=".unpacked-") as scratch:
        unpacked, root = Path(scratch) / "kernel", Path(scratch) / "root"
        for deb in (kernel, busybox):
            unpack(deb, unpacked)
        tree = next(unpacked.rglob("modules.order")).parent
        with whole_or_nothing(directory / "initramfs") as part, part.open("wb") as file:
            cpio = CpioWriter(file)
            for name in ("bin", "sbin", "usr/bin", "usr/sbin", "proc", "dev", "machine"):
                cpio.directory(name)
            cpio.character_device("dev/console", 5, 1)
            cpio.regular("bin/busybox", (unpacked / "bin/busybox").read_bytes(), 0o755)
            cpio.link("bin/sh", "busybox")
            cpio.regular("init", INIT.encode(), 0o755)
            modules = in_order(tree, DRIVERS)
            for name, contents in modules.items():
                cpio.regular(f"lib/modules/{name}.ko", contents)
            cpio.regular("lib/modules/order", "\n".join(modules).encode())
            cpio.close()
        root.mkdir()
        write_root(root, debs, guest)
        mkfs = shutil.which("mkfs.ext4", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
        assert mkfs is not None, "the Guest's disk was made with it"
        with whole_or_nothing(directory / "disk.img") as part:
            part.touch()
            os.truncate(part, DISK_MB << 20)
            subprocess.run([mkfs, "-q", "-F", "-d", root, part], stdin=subprocess.DEVNULL, check=True)


def run_machine(
    directory: Path,  # with its files
    kernel: Path,
    required: Sequence[str],  # devices which must have been proved
) -> int:  # exit status
    "Boot it, and pass on what it says."
    words = "console=ttyS0 quiet panic=-1 nokaslr tsc_early_khz=2000000"
    if required:
        words += f" REQUIRE={','.join(required)}"
    command = [
        "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-m", str(MACHINE_MB),
        "-display", "none", "-monitor", "none", "-serial", "stdio", "-nic", "none", "-no-reboot",
        "-kernel", kernel, "-initrd", directory / "initramfs", "-append", words,
        "-drive", f"file={directory / 'disk.img'},if=virtio,format=raw,snapshot=on",
    ]  # fmt: skip
    status, deadline = 1, time.monotonic() + PATIENCE
    try:
        qemu = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    except FileNotFoundError:
        print("There is no qemu-system-x86_64 here, and no virtualization either: apt-get install qemu-system-x86.",
              file=sys.stderr)  # fmt: skip
        return 1
    assert qemu.stdout is not None
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(qemu.stdout, selectors.EVENT_READ)
            seen = b""
            while selector.select(max(0.0, deadline - time.monotonic())):
                if not (piece := os.read(qemu.stdout.fileno(), 4096)):
                    break
                *lines, seen = (seen + piece).replace(b"\r", b"").split(b"\n")
                for line in (each.decode(errors="replace") for each in lines):
                    if line.startswith(ENDED):
                        status = int(line.removeprefix(ENDED))
                    else:
                        print(line, flush=True)
            else:
                print(f"The machine did not come to its end in {PATIENCE:g} seconds.", file=sys.stderr)
    finally:
        qemu.kill()
        qemu.wait()
        qemu.stdout.close()
    return status


def main() -> int:
    required = required_devices(DEVICES)
    end_by_exception()
    if sys.argv[1:] == [HERE]:
        return here(required)
    try:
        with Meter(sys.stderr) as meter:
            guest = build(DIRECTORY, tell=meter)
            if runs_linux():
                return here(required)
            MACHINE.mkdir(parents=True, exist_ok=True)
            write_machine(MACHINE, guest, meter)
    except LguestError as e:
        print(e, file=sys.stderr)
        return 1
    why = "its KVM may not be used" if has_virtualization() else "this processor has no virtualization"
    print(f"QEMU emulates a machine with AMD's, since {why}; all times are its.", flush=True)
    return run_machine(MACHINE, guest.kernel, required)


if __name__ == "__main__":
    sys.exit(main())
