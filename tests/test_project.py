"""The project keeps its own rules: metadata in one place, notebooks as prose, nobody's machine in it."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from configparser import ConfigParser
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from conftest import allowed_skips, unexpected_skips

import lguest_nb

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "nbs").glob("[!.]*.ipynb"))
MODULES = sorted(path for path in (ROOT / "lguest_nb").rglob("*.py") if path.name != "_modidx.py")
MODULE_LINES = 350
DRAWN_COLUMNS = 89  # of a drawing; what fits between the site's two margins on a laptop
FIXED_NAMES = ["00_memory", "10_vring", "20_devices", "30_threads", "index"]
SETTINGS = ConfigParser(delimiters=["="])
SETTINGS.read(ROOT / "settings.ini", encoding="utf-8")


def cells(notebook: Path, kind: str) -> list[dict[str, Any]]:
    every = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in every if cell["cell_type"] == kind]


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def tracked_files() -> list[Path]:
    "What a clone would hold: tracked, or about to be."
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def test_settings_ini_is_where_the_metadata_comes_from() -> None:
    settings = SETTINGS["DEFAULT"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert lguest_nb.__version__ == settings["version"]
    assert metadata.version("lguest-nb") == settings["version"]
    assert metadata.metadata("lguest-nb")["Summary"] == settings["description"]
    assert project["name"] == settings["lib_name"]
    assert project["requires-python"] == f">={settings['min_python']}"


def test_the_notebooks_with_fixed_names_are_there() -> None:
    assert set(FIXED_NAMES) <= {notebook.stem for notebook in NOTEBOOKS}


def test_the_tour_lists_every_notebook_in_order() -> None:
    tour = "".join(source(cell) for cell in cells(ROOT / "nbs" / "index.ipynb", "markdown"))
    listed = re.findall(r"^\| \[(\w+)\]\(\1\.ipynb\)", tour, re.MULTILINE)
    assert listed == [notebook.stem for notebook in NOTEBOOKS if notebook.stem != "index"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
class TestNotebook:
    def test_begins_with_its_title_and_one_line(self, notebook: Path) -> None:
        first = source(json.loads(notebook.read_text(encoding="utf-8"))["cells"][0])
        assert re.match(r"# \S.*\n\n> \S.*", first), f"{notebook.name} begins with {first[:80]!r}"

    def test_has_its_outputs_committed(self, notebook: Path) -> None:
        code = cells(notebook, "code")
        counts = [cell["execution_count"] for cell in code]
        assert counts == list(range(1, len(code) + 1)), f"{notebook.name}: make run-notebooks"
        assert not code or any(cell["outputs"] for cell in code), f"{notebook.name} shows nothing"

    def test_no_output_is_an_error(self, notebook: Path) -> None:
        kinds = {output["output_type"] for cell in cells(notebook, "code") for output in cell["outputs"]}
        assert "error" not in kinds

    def test_has_more_words_than_code(self, notebook: Path) -> None:
        words, code = (
            sum(len(source(cell).split()) for cell in cells(notebook, kind)) for kind in ("markdown", "code")
        )
        assert words > code, f"{notebook.name} has {words} words of prose and {code} of code"


COURSE = [  # up to the Launcher, and then a PC
    notebook for notebook in NOTEBOOKS if notebook.stem < "40" or "69_today" <= notebook.stem < "85"
]


class TestChapterOfTheCourse:
    @pytest.mark.parametrize("notebook", COURSE, ids=lambda path: path.stem)
    def test_ends_by_handing_over_to_the_next(self, notebook: Path) -> None:
        last = json.loads(notebook.read_text(encoding="utf-8"))["cells"][-1]
        following = NOTEBOOKS[NOTEBOOKS.index(notebook) + 1].name
        assert last["cell_type"] == "markdown"
        assert f"]({following})" in source(last), f"{notebook.name} does not lead to {following}"

    @pytest.mark.parametrize("notebook", COURSE, ids=lambda path: path.stem)
    def test_draws_what_it_is_about(self, notebook: Path) -> None:
        told = "\n".join(source(cell) for cell in cells(notebook, "markdown"))
        drawings = re.findall(r"^```text\n(.+?)^```$", told, re.MULTILINE | re.DOTALL)
        assert any(set(drawing) & set("─│├▶►") for drawing in drawings)
        widest = max((line for drawing in drawings for line in drawing.splitlines()), key=len)
        assert len(widest) <= DRAWN_COLUMNS, f"{len(widest)} columns are cut off on the site: {widest}"


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_is_one_idea(module: Path) -> None:
    lines = module.read_text(encoding="utf-8").count("\n")
    assert lines < MODULE_LINES, f"{module.relative_to(ROOT)} has {lines} lines"


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_library_never_changes_its_process_on_import(module: Path) -> None:
    "Statements of a module define; none calls into the process it finds itself in."
    forbidden = {"signal.signal", "os.kill", "os.killpg", "sys.exit", "sys.setswitchinterval", "tcsetattr"}
    for statement in ast.parse(module.read_text(encoding="utf-8")).body:
        if not isinstance(statement, ast.FunctionDef | ast.ClassDef):
            calls = {ast.unparse(node.func) for node in ast.walk(statement) if isinstance(node, ast.Call)}
            assert not calls & forbidden


def test_nothing_tells_whose_machine_it_was_made_on() -> None:
    places = {f"/{name}/" for name in ("work", "root", "home")} | {"../" + "shared"}
    places |= {f"{directory}/" for directory in (ROOT, Path.home()) if directory != Path("/")}
    found = [
        f"{path.relative_to(ROOT)}: {place}"
        for path in tracked_files()
        for place in sorted(places)
        if place.encode() in path.read_bytes()
    ]
    assert not found


def test_a_skip_is_allowed_by_test_and_by_reason() -> None:
    allowed = list(allowed_skips("# comment\n\ntests/test_a.py::* | *no kernel*\n"))
    skips = [("tests/test_a.py::one", "no kernel given"), ("tests/test_a.py::two", "tired"), ("b", "")]
    assert unexpected_skips(skips, allowed) == skips[1:]
    with pytest.raises(ValueError, match="has no ` | `"):
        list(allowed_skips("tests/test_a.py::one"))


def third_party_imports(notebook: Path) -> set[str]:
    "What its cells import that neither Python nor this project brings."
    imported = re.findall(r"^\s*(?:from|import)\s+(\w+)", "\n".join(map(source, cells(notebook, "code"))), re.MULTILINE)
    written = re.findall(
        r"(\w+)\.py\b", notebook.read_text(encoding="utf-8")
    )  # a module which the notebook itself writes
    return set(imported) - sys.stdlib_module_names - {"lguest_nb", *written}


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_whoever_installs_the_notebooks_extra_can_run_every_notebook(notebook: Path) -> None:
    "That is what `make lab` and Binder do."
    settings = SETTINGS["DEFAULT"]
    kinds = ("requirements", "soft_requirements", "live_requirements", "notebooks_requirements")
    brought = {re.split("[<>=]", each)[0] for kind in kinds for each in settings[kind].split()}
    brought.add("traitlets")  # anywidget's and ipywidgets' own foundation
    packages = metadata.packages_distributions()
    missing = [name for name in third_party_imports(notebook) if not brought & set(packages.get(name, []))]
    assert not missing


def test_binder_installs_what_the_project_says() -> None:
    requirements, python = ((ROOT / "binder" / name).read_text() for name in ("requirements.txt", "runtime.txt"))
    lines = [line for line in requirements.splitlines() if not line.startswith("#")]
    assert lines == ["-e .[notebooks]"]
    assert "notebooks" in (metadata.metadata("lguest-nb").get_all("Provides-Extra") or [])
    asked = re.fullmatch(r"python-(\d+)\.(\d+)\n", python)
    assert asked and tuple(map(int, asked.groups())) >= tuple(map(int, SETTINGS["DEFAULT"]["min_python"].split(".")))
