"""The project's own tools: exports are compared, outputs are stable, and the README reads as a page."""

from pathlib import Path

import nbformat
import pytest
from check_export import differences
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from readme import shown
from run_notebooks import check, save, tidy


def write(path: Path, *sources: str) -> Path:
    cells = [new_markdown_cell("# toy\n\n> one line"), *map(new_code_cell, sources)]
    nbformat.write(new_notebook(cells=cells), path)
    return path


def test_each_way_an_export_can_be_stale_is_a_sentence() -> None:
    here = {"same.py": "a\n", "edited.py": "mine\n", "orphan.py": ""}
    there = {"same.py": "a\n", "edited.py": "theirs\n", "forgotten.py": ""}
    edited, forgotten, orphan = differences(here, there)
    assert edited.startswith("edited.py is not what the notebooks give: run `make export`.")
    assert "-mine" in edited and "+theirs" in edited
    assert forgotten == "forgotten.py is missing: run `make export`."
    assert orphan == "orphan.py comes from no notebook: remove it, or write the notebook."


def test_a_second_run_of_a_notebook_changes_nothing(tmp_path: Path) -> None:
    widgets = "from ipywidgets import Button, HBox, IntSlider\nHBox([IntSlider(3), Button(description='b')])"
    path = write(tmp_path / "toy.ipynb", "print('a')\nprint('b')\n1 / 3", "#| eval: false\n1 / 0", widgets)
    save(path)
    first = path.read_text()
    save(path)
    assert path.read_text() == first
    assert check(path) == ""


def test_a_changed_output_is_shown_as_a_diff(tmp_path: Path) -> None:
    path = write(tmp_path / "toy.ipynb", "print('old')")
    save(path)
    path.write_text(path.read_text().replace("old\\n", "ancient\\n"))
    assert "-" in (trouble := check(path)) and "ancient" in trouble and "old" in trouble


def test_what_cannot_be_seen_here_is_neither_compared_nor_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = "import os\nprint('Not seen here: a unicorn.' if os.path.exists('blind') else 'a unicorn')"
    path = write(tmp_path / "toy.ipynb", source, "print('always')")
    save(path)
    first = path.read_text()
    (tmp_path / "blind").touch()
    assert check(path) == ""
    assert "toy.ipynb: Not seen here: a unicorn." in capsys.readouterr().out
    save(path)
    assert path.read_text() == first
    path.write_text(first.replace("always\\n", "never\\n"))
    assert "never" in check(path)


def test_how_a_stream_was_cut_is_no_difference() -> None:
    said = [("stdout", "one\n"), ("stdout", "two\n"), ("stderr", "!")]
    pieces = [new_output("stream", name=name, text=text) for name, text in said]
    cell = new_code_cell("...", outputs=pieces, execution_count=7)
    cell.metadata["execution"] = {"started": "yesterday"}
    tidied = tidy(new_notebook(cells=[cell]), "toy").cells[0]
    whole = [(output.name, output.text) for output in tidied.outputs]
    assert whole == [("stdout", "one\ntwo\n"), ("stderr", "!")]
    assert tidied.execution_count == 1
    assert tidied.metadata == {}


@pytest.mark.parametrize("directive", ["#| hide", "#|hide", "#| include: false"])
def test_the_readme_leaves_hidden_cells_out(directive: str) -> None:
    assert not shown(new_code_cell(f"{directive}\nsecret()"))


def test_the_readme_shows_code_without_directives_and_links_from_the_top() -> None:
    code = new_code_cell("#| export\nx = 1")
    assert shown(code) and code.source == "x = 1"
    quiet = new_code_cell("#| echo: false\nx", outputs=[new_output("stream", text="1\n")])
    assert shown(quiet) and quiet.source == ""
    text = new_markdown_cell("[a](00_memory.ipynb) [b](../docs/index.md) [c](https://example.org) [d](#here)")
    assert shown(text)
    assert text.source == "[a](nbs/00_memory.ipynb) [b](docs/index.md) [c](https://example.org) [d](#here)"
