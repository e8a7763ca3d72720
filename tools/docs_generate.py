"""Pages which are made from the code and from tables, so that they cannot say what is not so."""

import importlib
import inspect
import pkgutil
import re
import tomllib
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
from docs_comments import Told, comments_of

import lguest_nb

PACKAGE = "lguest_nb"
HIDDEN = {"_modidx"}  # nbdev's index
HALF = 0.5  # of a protocol's methods; whoever has fewer only has a word in common
VALUE_COLUMNS = 70  # a longer value is not shown
CODE = re.compile(r"(`[^`]+`)")
RST_SPECIAL = re.compile(r"([\\*_|])")
EXERCISE = re.compile(r"## Exercise: (.+)")
ROW_SECTIONS = {  # of tests/rows_2009.toml
    "1": "Constants and layouts",
    "2": "Command line",
    "3": "Start-up",
    "4": "Loading a kernel and an initrd",
    "5": "Virtqueues",
    "6": "Devices",
    "7": "Network set-up",
    "8": "The run loop",
}


class GenerateError(Exception):
    "A table names something that is not there; the sentence says what."


def rst(
    text: str,  # Markdown of docstrings and comments: prose with names in code type
) -> str:
    "The same for Sphinx, which reads docstrings as reStructuredText."
    pieces = CODE.split(text)
    return "".join(f"`{piece}`" if i % 2 else RST_SPECIAL.sub(r"\\\1", piece) for i, piece in enumerate(pieces))


@cache
def modules() -> list[str]:
    "Full names of all modules with something in them."
    every = pkgutil.walk_packages(lguest_nb.__path__, f"{PACKAGE}.")
    return [found.name for found in every if not found.ispkg and found.name.rpartition(".")[2] not in HIDDEN]


@cache
def protocols() -> list[type]:
    "The classes which say what others must have: `Host`, `Bus` ..."
    every = [thing for name in modules() for thing in vars(importlib.import_module(name)).values()]
    ours = [thing for thing in every if inspect.isclass(thing) and thing.__module__.startswith(PACKAGE)]
    return list(dict.fromkeys(thing for thing in ours if getattr(thing, "_is_protocol", False)))


def promised(
    holder: type,  # a class, which need not name the protocol it follows
    method: str,
) -> str:
    "What a method without a docstring does, in the words of the protocol of which its class has most."
    fitting = [each for each in protocols() if method in vars(each)]
    if not fitting:
        return ""

    def share(protocol: type) -> float:
        names = [name for name, thing in vars(protocol).items() if inspect.isfunction(thing) and name[0] != "_"]
        return sum(name in dir(holder) for name in names) / len(names)

    best = max(fitting, key=share)
    return (inspect.getdoc(getattr(best, method)) or "") if share(best) > HALF else ""


def resolve(
    path: str,  # such as `lguest_nb.vring.Virtqueue.wait`
) -> tuple[ModuleType, str, Any]:  # its module, its name in there, itself
    "Find an object of the package by its path. Raises `GenerateError`."
    for name in sorted(modules(), key=len, reverse=True):
        if not path.startswith(f"{name}."):
            continue
        module, inner = importlib.import_module(name), path.removeprefix(f"{name}.")
        found: Any = module
        try:
            for part in inner.split("."):
                found = getattr(found, part)
        except AttributeError:
            break
        return module, inner, found
    raise GenerateError(f"There is no {path} in the package any more.")


def summary(
    path: str,  # of an object
) -> str:
    "The first sentence of what an object says about itself. Raises `GenerateError` if it says nothing."
    module, inner, found = resolve(path)
    said = inspect.getdoc(found) if inspect.isclass(found) or callable(found) else None
    if said is None and callable(found):
        said = promised(getattr(module, inner.partition(".")[0]), inner.rpartition(".")[2])
    if said is None and module.__file__:
        said = comments_of(Path(module.__file__))[inner].value or f"The constant `{inner}`."
    if not said:
        raise GenerateError(f"{path} has no docstring of which a summary could be made.")
    paragraph = " ".join(said.partition("\n\n")[0].split())
    end = paragraph.find(". ")
    return paragraph if end < 0 else paragraph[: end + 1]


def link(
    path: str,  # of an object
) -> str:
    "A link to its entry in the reference, under its own name and its class's."
    _, inner, _ = resolve(path)
    return f"{{py:obj}}`{inner} <{path}>`"


def table(
    heads: list[str],
    rows: list[list[str]],  # Markdown
    name: str,  # a class for the style sheet
) -> str:
    "A table in MyST."
    lines = [heads, ["---"] * len(heads), *rows]
    body = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return f":::{{container}} {name}\n{body}\n:::\n"


def coming_from_lguest(
    functions: Path,  # docs/lguest_c.toml
) -> str:
    "Function by function from lguest.c to ours. Raises `GenerateError`."
    text = []
    for section, rows in tomllib.loads(functions.read_text(encoding="utf-8")).items():
        lines = []
        for function, row in rows.items():
            here = [f"{link(path)}: {summary(path)}" for path in row["here"]]
            difference = [f"*{row['difference']}*"] if "difference" in row else []
            lines.append([f"`{function}`{{.c}}", "<br>".join([*here, *difference])])
        text.append(f"## {section}\n\n" + table(["lguest.c", "here"], lines, "functions"))
    return "\n".join(text)


def rows_2009(
    rows: Path,  # tests/rows_2009.toml
) -> str:
    "What the Launcher of 2009 did, what holds here, and which tests hold it."
    text = []
    for section, found in tomllib.loads(rows.read_text(encoding="utf-8")).items():
        lines = []
        for name, row in found.items():
            tests = "<br>".join(f"`{test.partition('::')[2].replace('::', ' ')}`" for test in row["tests"])
            label = f"{section}.{name}" if name.isdigit() else name.replace("_", " ")
            lines.append([label, " ".join(row["holds"].split()), tests])
        text.append(f"## {ROW_SECTIONS[section]}\n\n" + table(["", "what holds", "tests"], lines, "rows"))
    return "\n".join(text)


def exercises(
    notebooks: list[Path],
) -> str:
    "A line for each exercise, in the order of the chapters."
    lines = []
    for path in notebooks:
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "markdown" and (found := EXERCISE.match(cell.source)):
                anchor = re.sub(r"[^\w -]", "", f"exercise {found[1]}".lower()).replace(" ", "-")
                page = f"tour/{path.stem}.ipynb"
                lines.append([f"[{path.stem}]({page})", f"[{found[1]}]({page}#{anchor})"])
    return table(["chapter", "exercise"], lines, "rows")


def constants(
    module: str,  # full name
) -> list[tuple[str, Told]]:
    "The public constants of a module, in the order of its source, without its logger."
    found = importlib.import_module(module)
    told = comments_of(Path(found.__file__ or ""))
    public = [name for name in found.__all__ if name in told and name != "log"]
    return [(name, told[name]) for name in public if told[name].expression is not None]


def api_page(
    module: str,  # full name
    chapter: str,  # stem of the notebook it comes from, or nothing
) -> str:
    "The reference of one module: what can be called, and then its constants, which autodoc leaves out."
    told = f"Told in [{chapter}](../tour/{chapter}.ipynb).\n\n" if chapter else ""
    lines = [f".. automodule:: {module}", "", f".. py:currentmodule:: {module}", ""]
    lines += [".. rubric:: Constants", ""] * bool(constants(module))
    for name, constant in constants(module):
        lines.append(f".. py:data:: {name}")
        if constant.expression and len(constant.expression) <= VALUE_COLUMNS and "\n" not in constant.expression:
            lines.append(f"   :value: {constant.expression}")
        lines += ["", f"   {rst(constant.value)}", ""]
    body = "\n".join(lines)
    return f"# {module.removeprefix(f'{PACKAGE}.')}\n\n{told}````{{eval-rst}}\n{body}\n````\n"


def api_index(
    chapters: dict[str, str],  # module → stem of its notebook
) -> str:
    "All modules, each with its one line."
    rows = []
    for module in modules():
        chapter = chapters.get(module, "")
        doc = (inspect.getdoc(importlib.import_module(module)) or "").splitlines()
        told = f"[{chapter}](../tour/{chapter}.ipynb)" if chapter else ""
        rows.append([f"[{module.removeprefix(f'{PACKAGE}.')}]({module}.md)", *(doc[:1] or [""]), told])
    trees = "\n".join(f"/api/{module}" for module in modules())
    return (
        "# Reference\n\nEvery public name of the package, made from its signatures, docstrings and comments. "
        "It is the tour that says why.\n\n"
        + table(["module", "", "chapter"], rows, "modules")
        + f"\n```{{toctree}}\n:hidden:\n\n{trees}\n```\n"
    )
