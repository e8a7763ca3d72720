"""A program which finds what a processor in software gets wrong first; a real processor gets it right."""

import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("torture") / "torture.c"


def test_the_torture_finds_nothing_wrong_with_a_real_processor(tmp_path: Path) -> None:
    torture = tmp_path / "torture"
    subprocess.run(["gcc", "-O1", "-static", "-pthread", "-o", torture, SOURCE, "-lm"], check=True)
    told = subprocess.run([torture], stdout=subprocess.PIPE, text=True, timeout=60, check=True).stdout.splitlines()
    assert [line for line in told if not line.endswith(": ok")] == ["torture: all is well"]
