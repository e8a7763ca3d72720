"""The finished kernel in the package is the one its sources say, and anybody with a compiler can make it again."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from lguest_nb.guest import BuildError, Pieces, build, path, sources, sources_sum

NOTEBOOKS = sorted((Path(__file__).parent.parent / "nbs").glob("6?_guest*.ipynb"))


def compiles_for_32_bits() -> bool:
    command = ["gcc", "-m32", "-ffreestanding", "-x", "c", "-c", "-o", "/dev/null", "-"]
    return bool(shutil.which("gcc")) and not subprocess.run(command, input=b"", capture_output=True).returncode


needs_compiler = pytest.mark.skipif(not compiles_for_32_bits(), reason="no gcc for 32 bits here")


def test_the_sources_are_what_the_notebooks_say(tmp_path: Path) -> None:
    pieces = Pieces()
    for notebook in NOTEBOOKS:
        for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
            if piece := re.match(r"%%piece (\S+)\n(.*)", "".join(cell["source"]), flags=re.DOTALL):
                pieces.magic(*piece.groups())
    pieces.write(tmp_path)
    assert {file.name: file.read_text(encoding="utf-8") for file in tmp_path.iterdir()} == sources()


def test_the_finished_kernel_is_made_of_these_sources() -> None:
    assert f"sources {sources_sum()}".encode() in path().read_bytes()


def test_the_finished_kernel_is_small_and_says_nothing_of_where_it_was_made() -> None:
    kernel = path().read_bytes()
    assert len(kernel) < 65536
    assert not re.search(rb"GCC: |\.c\0|/(tmp|home|root|usr)/", kernel)


@needs_compiler
def test_the_same_compiler_makes_the_same_bytes(tmp_path: Path) -> None:
    first, second = (build(tmp_path / name).read_bytes() for name in ("first", "second"))
    assert first == second


@needs_compiler
def test_a_kernel_made_here_behaves_like_the_finished_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("unicorn", reason="the software Host needs Unicorn")
    from lguest_nb import guest

    commands = ["help", "dev", "user hello", "poke 0x900000 b834120000c3", "call 0x900000", "peek 0x1000 32"]
    shipped = guest.boot(*commands)
    mine = build(tmp_path / "mine.elf")
    monkeypatch.setattr(guest, "path", lambda: mine)
    assert guest.boot(*commands) == shipped


def test_without_a_compiler_you_get_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="no compiler no-such-cc here"):
        build(tmp_path / "mine.elf", "no-such-cc")


@needs_compiler
def test_a_compiler_which_fails_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="`false tiny.h`|`false .*` failed"):
        build(tmp_path / "mine.elf", "false")
