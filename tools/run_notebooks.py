"""Run notebooks in fresh kernels and save what they print, so that a second run changes nothing.

run_notebooks.py [NOTEBOOK...]            save outputs in place; all of nbs/ if none is named
run_notebooks.py --check [NOTEBOOK...]    save nothing; fail if an output is not the one that is committed
"""

import argparse
import difflib
import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from progress import Progress

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "nbs"
CELL_LIMIT = 60  # seconds; a whole notebook should need less than 20
KERNEL = {"display_name": "python3", "language": "python", "name": "python3"}
NOT_RUN = re.compile(r"^#\|\s*(eval:\s*false|notest)\b|nbdev_export\(", re.MULTILINE)
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
NOT_SEEN = "Not seen here: "  # how a cell begins which says that this machine lacks what it wants to show
WIDGETS = "application/vnd.jupyter.widget-state+json"
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
WIDGET_REFERENCE = re.compile(r"IPY_MODEL_([0-9a-f]{32})")


class Runner(NotebookClient):
    "A notebook client that leaves alone the cells nbdev's tests leave alone."

    async def async_execute_cell(self, cell: NotebookNode, *args: Any, **kwargs: Any) -> NotebookNode:
        if cell.cell_type == "code" and NOT_RUN.search(cell.source):
            return cell
        return await super().async_execute_cell(cell, *args, **kwargs)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def joined(
    outputs: list[NotebookNode],  # of one cell
) -> list[NotebookNode]:  # with pieces of one stream put together
    "How print() was cut into messages is chance."
    whole: list[NotebookNode] = []
    for output in outputs:
        last = whole[-1] if whole else None
        if output.output_type == "stream" and last and last.get("name") == output.name:
            last.text += output.text
        else:
            whole.append(output)
    return whole


def widgets_in_order(
    state: dict[str, Any],  # widget id → its saved state
    notebook: NotebookNode,
) -> Iterator[str]:  # ids of the widgets that a reader can see, and of what those are made of
    "Widget ids as a reader meets them; what no cell shows is left out."
    seen: set[str] = set()
    ahead = [
        output["data"][WIDGET_VIEW]["model_id"]
        for cell in code_cells(notebook)
        for output in cell.get("outputs", [])
        if WIDGET_VIEW in output.get("data", {})
    ]
    while ahead:
        widget = ahead.pop(0)
        if widget in state and widget not in seen:
            seen.add(widget)
            yield widget
            ahead[:0] = WIDGET_REFERENCE.findall(json.dumps(state[widget]["state"]))


def stable_widgets(
    notebook: NotebookNode,
    name: str,  # of the notebook
) -> NotebookNode:  # the same, with widget ids that the next run will give too
    "ipywidgets draws its ids by lot; ours say which notebook it is and which widget of it."
    saved = notebook.metadata.get("widgets", {}).get(WIDGETS)
    if not saved:
        return notebook
    new = {
        old: hashlib.sha1(f"{name} {number}".encode()).hexdigest()[:32]
        for number, old in enumerate(widgets_in_order(saved["state"], notebook))
    }
    saved["state"] = {old: saved["state"][old] for old in new}
    text = json.dumps(notebook)
    for old, stable in new.items():
        text = text.replace(old, stable)
    return nbformat.from_dict(json.loads(text))


def tidy(
    notebook: NotebookNode,
    name: str,  # of the notebook
) -> NotebookNode:  # the same, with nothing in it that differs between two runs
    "Counts by order, streams in one piece, stable ids; of metadata the kernel's name and shown widgets."
    for number, cell in enumerate(code_cells(notebook), start=1):
        cell.execution_count = number
        cell.outputs = joined(cell.outputs)
        for output in cell.outputs:
            output.get("metadata", {}).clear()
            if "execution_count" in output:
                output.execution_count = number
    for cell in notebook.cells:
        cell.metadata = NotebookNode()
    notebook = stable_widgets(notebook, name)
    widgets = notebook.metadata.get("widgets")
    notebook.metadata = NotebookNode(kernelspec=KERNEL, **({"widgets": widgets} if widgets else {}))
    return notebook


def run(
    path: Path,  # of the notebook
) -> NotebookNode:  # with its outputs, tidy
    "Run a notebook in a fresh kernel. Raises nbclient's errors if a cell fails, hangs or kills the kernel."
    notebook = nbformat.read(path, as_version=4)
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    client = Runner(
        notebook,
        timeout=CELL_LIMIT,
        resources={"metadata": {"path": str(path.parent)}},
        store_widget_state=True,
        extra_arguments=["--IPKernelApp.log_level=ERROR"],  # a kernel for one local client may warn less
    )
    client.execute()
    return tidy(notebook, path.stem)


def lines_of(value: Any) -> list[str]:
    return json.dumps(value, indent=1, sort_keys=True).replace("\\n", "\n").splitlines()


def outputs(notebook: NotebookNode) -> list[str]:
    "All outputs as lines of text, each cell's under its first line of source, and then what the widgets show."
    lines = []
    for cell in code_cells(notebook):
        lines.append(f"after `{next(iter(cell.source.splitlines()), '')}`:")
        lines += lines_of(cell.outputs)
    widgets = notebook.metadata.get("widgets", {}).get(WIDGETS, {"state": {}})["state"]
    for name, widget in widgets.items():
        lines.append(f"widget {name}:")
        # which release of a library made it is no matter of ours
        lines += lines_of({k: v for k, v in widget["state"].items() if not k.endswith("_version")})
    return lines


def not_seen(
    outputs: list[NotebookNode],  # of one cell
) -> str:  # the sentence, or nothing
    "What a cell says that it could not show here."
    texts = [output.get("text", "") for output in outputs]
    return next((text.strip() for text in texts if text.startswith(NOT_SEEN)), "")


def keep_not_seen(
    committed: NotebookNode,
    now: NotebookNode,  # the same notebook, run here; what could not be seen is taken over from `committed`
) -> list[str]:  # what could not be seen
    "A machine which lacks something neither fails the outputs of one which has it, nor overwrites them."
    sentences = []
    for old, new in zip(code_cells(committed), code_cells(now), strict=True):
        if sentence := not_seen(new.outputs):
            sentences.append(sentence)
            new.outputs = old.outputs or new.outputs
    return sentences


def check(
    path: Path,  # of the notebook
) -> str:  # what differs, or nothing
    "Compare what a notebook prints now with what is committed. Prints what could not be compared here."
    committed, now = tidy(nbformat.read(path, as_version=4), path.stem), run(path)
    for sentence in dict.fromkeys(keep_not_seen(committed, now)):
        print(f"{path.name}: {sentence}", flush=True)
    texts = outputs(committed), outputs(now)
    return "\n".join(difflib.unified_diff(*texts, "committed", "this run", lineterm="", n=2))


def save(
    path: Path,  # of the notebook
) -> None:
    "Run a notebook and save it in one step: whoever reads it meanwhile sees the old or the new, whole."
    notebook = run(path)
    keep_not_seen(tidy(nbformat.read(path, as_version=4), path.stem), notebook)
    written = path.with_name(f".{path.stem}.tmp")
    nbformat.write(notebook, written)
    os.replace(written, path)


def main() -> int:
    parser = argparse.ArgumentParser(description="Run notebooks in fresh kernels and save what they print.")
    parser.add_argument("--check", action="store_true", help="save nothing, compare with what is committed")
    parser.add_argument("notebooks", nargs="*", type=Path, help="all of nbs/ if none is named")
    arguments = parser.parse_args()
    paths = arguments.notebooks or sorted(NOTEBOOKS.glob("[!.]*.ipynb"))
    if missing := [str(path) for path in paths if not path.is_file()]:
        parser.error(f"no such notebook: {', '.join(missing)}")
    failed = 0
    progress = Progress("Running notebooks", len(paths), plain=False)
    for path in paths:
        started = time.monotonic()
        progress.step(path.name)
        try:
            trouble = check(path) if arguments.check else save(path)
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            trouble = COLOUR.sub("", str(error))
        progress.clear()
        if trouble:
            failed += 1
            print(f"{path.name}:\n{trouble}", file=sys.stderr)
        else:
            print(f"{path.name}: {time.monotonic() - started:.1f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
