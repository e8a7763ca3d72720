"""Write README.md, which is nbs/index.ipynb in Markdown."""

import re
from pathlib import Path

import nbformat
from docs_pages import DIRECTIVE, directives
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "nbs" / "index.ipynb"
README = ROOT / "README.md"

NOTEBOOK_LINK = re.compile(r"\]\((?!\w+:|/|#|\.\./)([^)]+)\)")


def shown(
    cell: nbformat.NotebookNode,  # changed in place
) -> bool:  # belongs in the README
    "Take nbdev's directives out of a cell, and links as GitHub needs them, one directory up."
    if cell.cell_type == "markdown":
        cell.source = NOTEBOOK_LINK.sub(r"](nbs/\1)", cell.source).replace("](../", "](")
        return True
    said = directives(cell.source)
    if "hide" in said or said.get("include") == "false":
        return False
    cell.source = "" if said.get("echo") == "false" else DIRECTIVE.sub("", cell.source).strip("\n")
    return bool(cell.source or cell.get("outputs"))


def readme() -> str:
    "What README.md should hold."
    notebook = nbformat.read(SOURCE, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if shown(cell)]
    notebook.metadata.language_info = {"name": "python"}  # so that code fences say so
    text, _ = MarkdownExporter().from_notebook_node(notebook)
    text = re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)
    text = re.sub(r"\n{3,}", "\n\n", text).strip("\n")
    return f"<!-- Made from nbs/index.ipynb by `make export`. Edit there. -->\n\n{text}\n"


def main() -> None:
    README.write_text(readme(), encoding="utf-8")


if __name__ == "__main__":
    main()
