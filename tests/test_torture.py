"""A program which finds what a processor in software gets wrong first; a real processor gets it right."""

import subprocess
from pathlib import Path

from torture import WELL, Torture, compile_torture

PACKAGES = Path(__file__).parent.parent / "build/debian/packages"  # where `make debian` keeps them, too


def test_the_torture_finds_nothing_wrong_with_a_real_processor(tmp_path: Path) -> None:
    program = tmp_path / "torture"
    compile_torture(program)
    command = [program, tmp_path]
    told = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60, check=True).stdout.splitlines()
    assert [line for line in told if not line.endswith(": ok")] == [WELL]


def test_the_torture_finds_nothing_wrong_with_ours(tmp_path: Path) -> None:
    guest = Torture.build(tmp_path, PACKAGES)
    well, said = guest.boot(256, [])
    assert well, said
