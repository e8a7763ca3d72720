"""Boot Debian's kernel with tests/torture as its first program, often: of each size, with and without mitigations.

The settings take turns, so that what is slow or broken for a while hits all of them alike. What a boot said is thrown
away if it passed, and kept in build/torture if it didn't; then the exit status is 1.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lguest_nb.debian import Apt, fetch, unpack
from lguest_nb.debian_guest import DebianGuest, make_disk
from lguest_nb.initramfs import CpioWriter, in_order
from lguest_nb.memory import LguestError
from lguest_nb.meter import Meter, Tell, quietly

SOURCES = Path(__file__).parent.parent / "tests/torture"
LAUNCHER = (sys.executable, "-c", "import sys; from lguest_nb.entry import main; sys.exit(main())")
DRIVERS = ("virtio_mmio", "virtio_blk", "virtio_console")
SIZES = (64, 256, 2048)  # megabytes
MITIGATIONS = ("", "mitigations=off")
# Of 64 MB this kernel takes 44, and what its tracing wants of the rest leaves too little for /init: memory runs out.
# There is no word which switches tracing off alone, but a kernel which is locked down does without. (QEMU 7.2 with
# -m 64, as -M pc or microvm, does not get as far as the kernel's first message with these files.)
FEW, WITHOUT_TRACING = 64, "lockdown=confidentiality"
SELF_TESTS = "cryptomgr.notests=0"  # which our command line leaves out: the kernel checks its own arithmetic, and ours
WELL = "torture: all is well"
PATIENCE = 180  # seconds for one boot, of which it needs ten


def compile_torture(
    program: Path,  # to be made
) -> None:
    "Make the program of tests/torture. Raises `CalledProcessError`."
    sources = sorted(SOURCES.glob("*.c"))
    subprocess.run(["gcc", "-O1", "-Wall", "-s", "-static", "-pthread", "-o", program, *sources, "-lm"], check=True)


class Torture(DebianGuest):
    "The same files of a Guest which tortures its processor: its initramfs has a program and three drivers."

    @classmethod
    def build(
        cls,
        directory: Path,  # for its files
        packages: Path,  # a directory which keeps what was fetched
        tell: Tell = quietly,  # how far it is
    ) -> "Torture":
        "Fetch, compile and pack. Raises `LguestError`."
        guest = cls(directory)
        directory.mkdir(parents=True, exist_ok=True)
        packages.mkdir(parents=True, exist_ok=True)
        deb, _ = fetch(Apt(packages.resolve(), tell))
        with tempfile.TemporaryDirectory(dir=directory) as unpacked:
            unpack(deb, Path(unpacked))
            (kernel,) = Path(unpacked).glob("boot/vmlinuz-*")
            (order,) = Path(unpacked).rglob("modules.order")
            modules = in_order(order.parent, DRIVERS)
            kernel.replace(guest.kernel)
        program = directory / "torture"
        compile_torture(program)
        with guest.initramfs.open("wb") as file:
            cpio = CpioWriter(file)
            for name in ("dev", "proc", "disk"):
                cpio.directory(name)
            cpio.regular("init", program.read_bytes(), 0o755)
            for n, contents in enumerate(modules.values()):
                cpio.regular(f"lib/modules/{n}.ko", contents)
            cpio.close()
        make_disk(guest.disk, 16)
        return guest

    def boot(
        self,
        megabytes: int,  # of memory
        words: Sequence[str],  # for the kernel
    ) -> tuple[bool, str]:  # was all well, and what it said
        "Once, from power-on to power-off."
        command = [*LAUNCHER, f"--block={self.disk}", f"--initrd={self.initramfs}", "--host=soft"]
        command += [str(megabytes), str(self.kernel), SELF_TESTS, *words, *[WITHOUT_TRACING] * (megabytes <= FEW)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            output, _ = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            output, _ = process.communicate()
            return False, f"{output.decode(errors='replace')}\nIt was still there after {PATIENCE} seconds.\n"
        said = output.decode(errors="replace").replace("\r", "")
        bad = [line for line in said.splitlines() if line.startswith("torture: ") and not line.endswith(": ok")]
        return process.returncode == 0 and bad == [WELL], f"{said}\nexit status {process.returncode}\n"


@dataclass
class Row:
    "One setting, and how it went."

    megabytes: int
    words: str
    passed: int = 0
    seconds: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        name = f"{self.megabytes} MB, {self.words or 'default mitigations'}"
        times = f"{min(self.seconds):.1f} / {statistics.median(self.seconds):.1f} / {max(self.seconds):.1f} s"
        return f"{name:<34} {self.passed:>3} of {len(self.seconds):<3} {times}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Boot a Guest which tortures its processor, many times.")
    parser.add_argument("--boots", type=int, default=20, help="of each kind (20)")
    parser.add_argument("--directory", type=Path, default=Path("build/torture"), help="for its files (build/torture)")
    parser.add_argument("--packages", type=Path, default=Path("build/debian/packages"), help="where packages are kept")
    args = parser.parse_args()
    try:
        with Meter(sys.stderr) as meter:
            guest = Torture.build(args.directory, args.packages, meter)
    except (LguestError, subprocess.CalledProcessError) as e:
        print(e, file=sys.stderr)
        return 1
    rows = [Row(megabytes, words) for megabytes in SIZES for words in MITIGATIONS]
    for n in range(args.boots):
        for row in rows:
            begun = time.monotonic()
            well, said = guest.boot(row.megabytes, row.words.split())
            row.seconds.append(time.monotonic() - begun)
            row.passed += well
            if not well:
                log = args.directory / f"failed-{row.megabytes}-{row.words or 'default'}-{n + 1}.log"
                log.write_text(said)
                print(f"{log}: this boot did not pass.", flush=True)
        done = f"{sum(row.passed for row in rows)} of {sum(len(row.seconds) for row in rows)} passed"
        print(f"{n + 1} of {args.boots} rounds: {done}.", file=sys.stderr, flush=True)
    print("setting                            passed    fastest / median / slowest boot")
    print("\n".join(map(str, rows)))
    return 0 if all(row.passed == args.boots for row in rows) else 1


if __name__ == "__main__":
    os.chdir(Path(__file__).parent.parent)
    sys.exit(main())
