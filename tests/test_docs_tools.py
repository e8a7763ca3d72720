"""How the site is made: notebooks become pages, comments become fields, and what is amiss ends the build."""

import re
from pathlib import Path
from xml.etree import ElementTree

import boot_picture
import nbformat
import pytest
from docs_build import run_sphinx
from docs_comments import comments_of
from docs_generate import promised, rst
from docs_pages import PageError, chapter, code_page_cells, contents, groups, read, relinked, start_and_tour
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from progress import Progress

from lguest_nb.bus.lguest import LGUEST_IRQS
from lguest_nb.hosts.dev_lguest import DevLguestHost
from lguest_nb.keyboard import Keyboard
from lguest_nb.launcher import MEMORY_MAX_MB
from lguest_nb.loading import COMMAND_LINE_MAX
from lguest_nb.vring import VIRTQUEUE_NUM

# myst-parser still uses what Sphinx 11 will not have; both are pinned.
pytestmark = pytest.mark.filterwarnings("ignore:'myst_parser.*is deprecated")
ROOT = Path(__file__).parent.parent
SAID = [new_output("stream", name="stdout", text="hello\n")]
TABLE = """\
| notebook | what you can do at its end |
|---|---|
| | **Rings** |
| [00_memory](00_memory.ipynb) | hold it |
| | **Devices** |
| [20_devices](20_devices.ipynb) | say it |
"""


def write(path: Path, *cells: nbformat.NotebookNode) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    head = new_markdown_cell("# toy\n\n> one line")
    notebook = new_notebook(cells=[head, *cells], metadata={"kernelspec": {"name": "python3", "display_name": "p"}})
    nbformat.write(notebook, path)
    return path


def ran(source: str, number: int = 1) -> nbformat.NotebookNode:
    return new_code_cell(source, execution_count=number, outputs=SAID)


class TestNotebooks:
    def test_without_outputs_there_is_no_page(self, tmp_path: Path) -> None:
        with pytest.raises(PageError, match="has no outputs.*make run-notebooks"):
            read(write(tmp_path / "00_toy.ipynb", new_code_cell("print('hello')")))
        with pytest.raises(PageError, match="shows nothing"):
            read(write(tmp_path / "00_toy.ipynb", new_code_cell("x = 1", execution_count=1)))

    def test_an_error_among_the_outputs_is_no_page(self, tmp_path: Path) -> None:
        failed = ran("1 / 0")
        failed.outputs = [new_output("error", ename="ZeroDivisionError", evalue="", traceback=[])]
        with pytest.raises(PageError, match="cell 1 ended with an error"):
            read(write(tmp_path / "00_toy.ipynb", failed))

    def test_a_chapter_begins_with_its_number_and_says_where_its_code_is(self, tmp_path: Path) -> None:
        path = write(tmp_path / "07_toy.ipynb", ran("#| default_exp bus.toy"), ran("print('hello')", 2))
        first, *_ = chapter(path).cells
        assert first.source.startswith("# 07 toy\n\n> one line\n")
        assert "{py:mod}`lguest_nb.bus.toy`" in first.source and "<../notebooks/07_toy.ipynb>" in first.source

    def test_two_builds_of_a_chapter_are_the_same(self, tmp_path: Path) -> None:
        path = write(tmp_path / "07_toy.ipynb", ran("print('hello')"))
        assert nbformat.writes(chapter(path)) == nbformat.writes(chapter(path))

    def test_hidden_cells_are_left_out_and_directives_too(self) -> None:
        assert code_page_cells(ran("#| hide\nsecret()")) == []
        assert code_page_cells(ran("#| include: false\nsecret()")) == []
        (cell,) = code_page_cells(ran("#| export\nx = 1"))
        assert (cell.source, cell.metadata.tags) == ("x = 1", ["exported"])
        (cell,) = code_page_cells(ran("#| echo: false\nprint('hello')"))
        assert cell.metadata.tags == ["remove-input"] and cell.outputs == SAID

    def test_a_piece_of_a_file_is_shown_as_that_file_and_not_as_python(self) -> None:
        file, said = code_page_cells(ran("%%piece kernel.c\nint main(void);"))
        assert file.source == (
            "`````{code-block} c\n:caption: kernel.c\n:force:\n:class: file\n\nint main(void);\n`````"
        )
        assert said.metadata.tags == ["remove-input"]
        quiet = new_code_cell("%%piece tiny.ld\nENTRY(start)", execution_count=1)
        assert len(code_page_cells(quiet)) == 1


class TestLinks:
    @pytest.mark.parametrize(
        ("folder", "page", "before", "after"),
        [
            ("nbs", "tour", "12_driver.ipynb#who", "12_driver.ipynb#who"),
            ("nbs", "tour", "../docs/kernels.md", "../kernels.md"),
            ("nbs", "tour", "../LICENSE", "../LICENSE"),
            ("nbs", "", "12_driver.ipynb", "tour/12_driver.ipynb"),
            ("nbs", "tour", "index.ipynb", "../start.ipynb"),
            ("docs", "", "../nbs/30_threads.ipynb", "tour/30_threads.ipynb"),
            ("docs", "", "limits.md", "limits.md"),
            ("", "", "docs/limits.md", "limits.md"),
            ("", "", "nbs/30_threads.ipynb", "tour/30_threads.ipynb"),
            ("docs", "", "https://example.org/nbs/x", "https://example.org/nbs/x"),
            ("docs", "", "#here", "#here"),
        ],
    )
    def test_a_link_of_the_repository_is_one_of_the_site(self, folder: str, page: str, before: str, after: str) -> None:
        assert relinked(f"[a]({before})", folder, page) == f"[a]({after})"

    @pytest.mark.parametrize("link", ["[a](nowhere.ipynb)", "[a](#nowhere)", "{py:obj}`lguest_nb.vring.nowhere`"])
    def test_a_link_to_nowhere_ends_the_build(self, tmp_path: Path, link: str) -> None:
        (tmp_path / "sources").mkdir()
        (tmp_path / "sources" / "index.md").write_text(f"# Toy\n\n{link}\n")
        assert run_sphinx(tmp_path / "sources", tmp_path, Progress("A toy")) == 1


def test_the_list_of_pages_has_titles_alone_and_marks_the_page_it_is_on(tmp_path: Path) -> None:
    for name, text in (
        ("index.md", "# Toy\n\n```{toctree}\n:caption: All\n\na\nMore <sub/index>\n```\n\n## Apart\n"),
        ("a.md", "# A\n\n## A section\n"),
        ("sub/index.md", "# Sub\n\n## A section\n\n```{toctree}\nb\n```\n"),
        ("sub/b.md", "# B\n\n## A section\n\n### And one below\n"),
    ):
        (path := tmp_path / "sources" / name).parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert run_sphinx(tmp_path / "sources", tmp_path, Progress("A toy")) == 0

    def tree(page: str) -> list[tuple[str, ...]]:  # classes of an entry, where it leads, its name
        _, _, below = (tmp_path / "html" / page).read_text().partition('<div class="sidebar-tree">')
        entry = re.compile(r'<li class="toctree-l\d ?([^"]*)"><a [^>]*href="([^"]*)">(.*?)</a>')
        return entry.findall(below.partition("</div>")[0])

    top = [("", "a.html", "A"), ("has-children", "sub/index.html", "More"), ("", "sub/b.html", "B")]
    assert tree("index.html") == tree("genindex.html") == top
    assert tree("a.html")[0] == ("current current-page", "#", "A")
    assert tree("sub/index.html")[1:] == [("current has-children current-page", "#", "More"), ("", "b.html", "B")]
    here = [("", "../a.html", "A"), ("current has-children", "index.html", "More"), ("current current-page", "#", "B")]
    assert tree("sub/b.html") == here


class TestTour:
    def test_chapters_are_grouped_as_the_table_says_and_new_ones_by_their_number(self) -> None:
        stems = ["20_devices", "00_memory", "14_hostile", "90_live"]
        found = groups(TABLE, stems)
        assert found == {"Rings": ["00_memory", "14_hostile"], "Devices": ["20_devices", "90_live"]}
        assert ":caption: Rings\n\n/tour/00_memory\n/tour/14_hostile\n" in contents(found)

    def test_the_readme_is_the_quick_start_and_its_tour_a_page(self, tmp_path: Path) -> None:
        text = f"## Start\n\n[a](00_memory.ipynb)\n\n## The tour\n\n{TABLE}\n## Licence\n\nGPL\n"
        start, tour = start_and_tour(write(tmp_path / "index.ipynb", new_markdown_cell(text)))
        assert [cell.source for cell in start.cells] == ["# Quick start", "## Start\n\n[a](tour/00_memory.ipynb)"]
        assert tour.cells[0].source.startswith("# The tour\n") and "GPL" not in tour.cells[0].source

    def test_without_its_tour_the_readme_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(PageError, match="no section `The tour`"):
            start_and_tour(write(tmp_path / "index.ipynb", new_markdown_cell("## Start")))


class TestReference:
    def test_comments_tell_of_parameters_results_fields_and_constants(self, tmp_path: Path) -> None:
        path = tmp_path / "toy.py"
        path.write_text(
            "LIMIT = 0x10  # bytes\n"
            "class Toy:\n"
            "    size: int  # of it\n"
            "    def put(\n"
            "        self,\n"
            "        what: int,  # a byte\n"
            "        *more: int,\n"
            "    ) -> int:  # how many\n"
            "        return 1  # always\n"
        )
        told = comments_of(path)
        assert (told["LIMIT"].value, told["LIMIT"].expression) == ("bytes", "0x10")
        assert told["Toy.size"].value == "of it"
        assert told["Toy.put"].parameters == {"what": "a byte"}
        assert told["Toy.put"].returns == "how many"

    def test_stars_and_bars_of_a_docstring_are_no_markup(self) -> None:
        assert rst("*a|b_ and `x_*`") == r"\*a\|b\_ and ``x_*``"

    def test_a_method_takes_over_what_its_protocol_promises(self) -> None:
        assert "pending" in promised(DevLguestHost, "interrupt")
        assert promised(Keyboard, "close") == ""  # which is no Host, although it can be closed


def test_the_readmes_picture_is_what_a_guest_says_today() -> None:
    "All but the sixteen bytes of entropy, which are new each time."

    def written(svg: str) -> list[str]:
        return [re.sub(r"^[0-9a-f]{32}$", "entropy", text) for text in re.findall(r">([^<\n]+)</text>", svg)]

    kept = (ROOT / "docs" / "_static" / "boot.svg").read_text(encoding="utf-8")
    assert written(kept) == written(boot_picture.drawn(boot_picture.boot())), "make picture"


def test_the_picture_of_debian_is_of_a_whole_visit() -> None:
    "It's drawn where there is a network, so only its parts can be looked for here."
    svg = (ROOT / "docs" / "_static" / "debian.svg").read_text(encoding="utf-8").replace("\xa0", " ")
    shown = "\n".join(each.text or "" for each in ElementTree.fromstring(svg).iter() if each.tag.endswith("text"))
    answers = ("Run /init", "LNRO0005:00", "hello from Debian", "virtio1", "reboot: Power down")
    for words in (*boot_picture.DEBIAN_TYPED, *answers):
        assert words in shown, "make picture"


def test_the_limits_which_a_page_names_are_those_of_the_code() -> None:
    text = (ROOT / "docs" / "limits.md").read_text(encoding="utf-8")
    for sentence in (
        f"1 to {MEMORY_MAX_MB} MB",
        f"{LGUEST_IRQS - 1} in all | there are {LGUEST_IRQS} interrupts",
        f"entries of a ring | {VIRTQUEUE_NUM} |",
        f"command line | {COMMAND_LINE_MAX} bytes",
    ):
        assert sentence in text
