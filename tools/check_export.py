"""Are lguest_nb/ and README.md what the notebooks give? Exports into a copy and compares."""

import difflib
import os
import shutil
import subprocess
import sys
import tempfile
from itertools import islice
from pathlib import Path

from progress import Progress
from readme import readme

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "lguest_nb"
DIFF_LINES = 20  # of each file, so that a forgotten export does not bury its own first line


def modules(
    root: Path,  # a project, this one or its copy
) -> dict[str, str]:  # path inside the project → text
    "Every Python file of the package."
    files = (root / PACKAGE).rglob("*.py")
    return {str(file.relative_to(root)): file.read_text(encoding="utf-8") for file in sorted(files)}


def exported(
    copy: Path,  # an empty directory
) -> dict[str, str]:  # path inside the project → text
    "What `nbdev_export` writes when it starts with no package, so that a module without a notebook shows."
    shutil.copy(ROOT / "settings.ini", copy)
    shutil.copytree(ROOT / "nbs", copy / "nbs", ignore=shutil.ignore_patterns(".*"))
    (copy / PACKAGE).mkdir()
    command = [sys.executable, "-c", "from nbdev.doclinks import nbdev_export; nbdev_export()"]
    # The copy must be found before the package that is installed: the module index imports what it indexes.
    environment = os.environ | {"PYTHONPATH": str(copy)}
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"nbdev_export failed on the notebooks:\n{done.stdout}{done.stderr}")
    return modules(copy)


def differences(
    here: dict[str, str],  # what is committed
    there: dict[str, str],  # what the notebooks give
) -> list[str]:  # one sentence for each file, some with the first lines of a diff
    "What somebody has to do something about."
    found = []
    for path in sorted(here.keys() | there.keys()):
        if path not in there:
            found.append(f"{path} comes from no notebook: remove it, or write the notebook.")
        elif path not in here:
            found.append(f"{path} is missing: run `make export`.")
        elif here[path] != there[path]:
            texts = here[path].splitlines(), there[path].splitlines()
            lines = difflib.unified_diff(*texts, path, "from the notebooks", lineterm="", n=1)
            head = "\n".join(f"    {line}" for line in islice(lines, DIFF_LINES))
            found.append(f"{path} is not what the notebooks give: run `make export`.\n{head}")
    return found


def main() -> int:
    what = Progress("Exporting the notebooks into a copy")
    with what, tempfile.TemporaryDirectory(prefix="lguest-nb-export-") as directory:
        there = exported(Path(directory))
    here = modules(ROOT) | {"README.md": (ROOT / "README.md").read_text(encoding="utf-8")}
    found = differences(here, there | {"README.md": readme()})
    for sentence in found:
        print(sentence, file=sys.stderr)
    if not found:
        print(f"{len(here)} files of {PACKAGE}/ and README.md are what the notebooks give.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
