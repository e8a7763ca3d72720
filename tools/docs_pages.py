"""From notebooks to pages of the site.

nbdev has a pipeline for this (`proc_nbs`), which is not used: it runs cells, sends links to the host that settings.ini
names, and hides what `#| export` marks, whereas here the code is the text. To read a notebook takes fewer lines than to
undo that.
"""

import posixpath
import re
from collections.abc import Iterable
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

DIRECTIVE = re.compile(r"^#\|[ \t]*(\S+?):?(?:[ \t]+(.*?))?[ \t]*$", re.MULTILINE)
FILE_MAGIC = re.compile(r"%%(?:piece|writefile) +(\S+)\n")  # a cell which is a file, or the next piece of one
LANGUAGES = {".c": "c", ".h": "c", ".S": "gas", ".py": "python"}
GROUP_ROW = re.compile(r"\| \| \*\*(.+)\*\* \|")
NOTEBOOK_ROW = re.compile(r"\| \[(\w+)\]\(\1\.ipynb\) \|")
RELATIVE_LINK = re.compile(r"\]\((?!\w+:|/|#)([^)#\s]+)")
HEADING = re.compile(r"^(?=## )", re.MULTILINE)
TOUR = "The tour"
ELSEWHERE = {"Licence"}  # a section of the README that the site has another place for
LANGUAGE = {"name": "python", "pygments_lexer": "ipython3"}


class PageError(Exception):
    "A notebook cannot be a page; the sentence says why, and what to do."


def directives(
    source: str,  # of a code cell
) -> dict[str, str]:  # name → argument
    "The nbdev directives of a cell."
    return {name: argument or "" for name, argument in DIRECTIVE.findall(source)}


def read(
    path: Path,
) -> NotebookNode:
    "A notebook with its outputs. Raises `PageError` if it was not run."
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        raise PageError(f"{path} has no outputs, or not those of one run from top to bottom: make run-notebooks.")
    if code and not any(cell.outputs for cell in code):
        raise PageError(f"{path} shows nothing: no cell of it has an output.")
    for cell in code:
        if any(output.output_type == "error" for output in cell.outputs):
            raise PageError(f"{path}: cell {cell.execution_count} ended with an error.")
    return notebook


def code_page_cells(
    cell: NotebookNode,  # of code
) -> list[NotebookNode]:
    "A code cell as the site shows it: without directives, and a cell which holds a file as that file."
    said = directives(cell.source)
    if "hide" in said or said.get("include") == "false":
        return []
    source = DIRECTIVE.sub("", cell.source).strip("\n")
    tags = ["exported"] if "export" in said or "exports" in said else []
    if said.get("echo") == "false":
        tags.append("remove-input")
    cells = []
    if magic := FILE_MAGIC.match(source):
        name = magic[1]
        language = LANGUAGES.get(Path(name).suffix, "text")
        text = source[magic.end() :].strip("\n")
        fence = f"`````{{code-block}} {language}\n:caption: {name}\n:force:\n:class: file\n\n{text}\n`````"
        cells.append(new_markdown_cell(fence))
        tags.append("remove-input")
    if cell.outputs or ("remove-input" not in tags and source):
        shown = new_code_cell(source, outputs=cell.outputs, execution_count=cell.execution_count)
        shown.metadata["tags"] = tags
        cells.append(shown)
    return cells


def default_export(
    notebook: NotebookNode,
) -> str:  # such as `hosts.soft.cpu`, or nothing
    "The module which a notebook exports to."
    for cell in notebook.cells:
        if cell.cell_type == "code" and "default_exp" in (said := directives(cell.source)):
            return said["default_exp"]
    return ""


def facts(
    stem: str,  # of the notebook's file name
    module: str,  # which it exports to, or nothing
) -> str:
    "A line under the title: where the code of the chapter is to be had."
    download = f"{{download}}`the notebook <../notebooks/{stem}.ipynb>`"
    module = f"Exports {{py:mod}}`lguest_nb.{module}`. " if module else ""
    return f":::{{container}} facts\n{module}To run it yourself: {download}.\n:::"


def chapter(
    path: Path,  # of a notebook
) -> NotebookNode:
    "The page of one notebook, its number before its title. Raises `PageError`."
    notebook = read(path)
    number, _, _ = path.stem.partition("_")
    first, *rest = notebook.cells
    title, _, deck = first.source.partition("\n")
    if first.cell_type != "markdown" or not title.startswith("# "):
        raise PageError(f"{path} does not begin with its title.")
    head = f"# {number} {title[2:]}\n{deck}\n\n{facts(path.stem, default_export(notebook))}"
    return page([new_markdown_cell(head), *shown(rest, "tour")], notebook)


def shown(
    cells: Iterable[NotebookNode],  # of a notebook
    page_folder: str,  # of the site
) -> list[NotebookNode]:
    "What of these the site shows."
    found = []
    for cell in cells:
        if cell.cell_type == "code":
            found += code_page_cells(cell)
        elif cell.cell_type == "markdown":
            found.append(new_markdown_cell(relinked(cell.source, "nbs", page_folder)))
    return found


def page(
    cells: list[NotebookNode],
    notebook: NotebookNode,  # they are from; its widgets' state comes along
) -> NotebookNode:
    "A notebook whose metadata are what myst-nb needs."
    made = new_notebook(cells=cells)
    made.metadata = NotebookNode(kernelspec=notebook.metadata.kernelspec, language_info=LANGUAGE)
    if "widgets" in notebook.metadata:
        made.metadata.widgets = notebook.metadata.widgets
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number}"  # nbformat would draw lots, and no two builds would be the same
    return made


def relinked(
    text: str,  # Markdown
    folder: str,  # of the repository, where it is; empty for the top
    page_folder: str,  # of the site, where it goes
) -> str:
    """Relative links as the site has them: docs/ is its root, nbs/ is tour/, and the rest is where it is here.

    The README's notebook is the quick start, for whoever links to it.

    A link to what the site does not have leads nowhere afterwards, and Sphinx says so.
    """

    def moved(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, link[1]))
        first, _, rest = target.partition("/")
        if target == "nbs/index.ipynb":
            first, rest = "docs", "start.ipynb"
        place = {"nbs": f"tour/{rest}", "docs": rest}.get(first, target)
        return "](" + posixpath.relpath(place, page_folder or ".")

    return RELATIVE_LINK.sub(moved, text)


def sections(
    cells: Iterable[NotebookNode],
) -> list[tuple[str, list[NotebookNode]]]:  # heading, or nothing for what is before the first; cells
    "A notebook cut at its headings of the second level."
    found: list[tuple[str, list[NotebookNode]]] = [("", [])]
    for cell in cells:
        if cell.cell_type != "markdown":
            found[-1][1].append(cell)
            continue
        for piece in filter(None, HEADING.split(cell.source)):
            if piece.startswith("## "):
                found.append((piece[3:].partition("\n")[0].strip(), []))
            found[-1][1].append(new_markdown_cell(piece.strip("\n")))
    return found


def start_and_tour(
    path: Path,  # of nbs/index.ipynb
) -> tuple[NotebookNode, NotebookNode]:
    "The README's notebook as two pages: how to start, and the table of all chapters. Raises `PageError`."
    notebook = read(path)
    found = sections(notebook.cells)
    if TOUR not in [heading for heading, _ in found]:
        raise PageError(f"{path} has no section `{TOUR}`, of which the site makes its table of contents.")
    start, tour = [new_markdown_cell("# Quick start")], []
    for heading, cells in found:
        if heading == TOUR:
            tour = [new_markdown_cell(cells[0].source.removeprefix("#")), *cells[1:]]
        elif heading and heading not in ELSEWHERE:
            start += cells
    return page(shown(start, ""), notebook), page(shown(tour, "tour"), notebook)


def groups(
    table: str,  # Markdown, with the tour's table in it
    stems: Iterable[str],  # of all notebooks
) -> dict[str, list[str]]:  # heading → notebooks in order
    "The chapters under the table's headings; one which is not in the table yet stands where its number says."
    heading, listed = TOUR, {}
    for line in table.splitlines():
        if row := GROUP_ROW.match(line):
            heading = row[1]
        elif row := NOTEBOOK_ROW.match(line):
            listed[row[1]] = heading
    found: dict[str, list[str]] = {}
    heading = next(iter(listed.values()), TOUR)
    for stem in sorted(stems):
        heading = listed.get(stem, heading)
        found.setdefault(heading, []).append(stem)
    return found


def contents(
    found: dict[str, list[str]],  # heading → notebooks in order
) -> str:
    "The tour as Sphinx's tables of contents."
    trees = []
    for heading, stems in found.items():
        lines = "\n".join(f"/tour/{stem}" for stem in stems)
        trees.append(f"```{{toctree}}\n:hidden:\n:caption: {heading}\n\n{lines}\n```\n")
    return "\n".join(trees)
