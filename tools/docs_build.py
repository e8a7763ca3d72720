"""Build the site: `make docs`. A broken link, a notebook without outputs, any warning of Sphinx is an error.

docs_build.py [DIRECTORY]    pages go to DIRECTORY/html; build/docs if none is named
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import boot_picture
import docs_generate as generate
import docs_pages as pages
import nbformat
from docs_assets import AssetError, provide
from progress import Progress
from session import GuestLost

ROOT = Path(__file__).resolve().parent.parent
FROM_THE_TOP = ("CHANGELOG.md", "CONTRIBUTING.md")


def write(
    path: Path,
    text: str,
) -> None:
    "Write a source file of the site, and the folder it is in."
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def write_tour(
    notebooks: Path,  # nbs/
    sources: Path,
) -> dict[str, str]:  # module, full name → stem of the notebook it comes from
    "A page for each notebook, in the groups of the README's table, whichever notebooks there are."
    paths = sorted(path for path in notebooks.glob("[!.]*.ipynb") if path.stem != "index")
    start, tour = pages.start_and_tour(notebooks / "index.ipynb")
    (sources / "tour").mkdir(parents=True)
    (sources / "notebooks").mkdir()
    nbformat.write(start, sources / "start.ipynb")
    nbformat.write(tour, sources / "tour" / "index.ipynb")
    table = "\n".join(cell.source for cell in tour.cells)
    write(sources / "tour" / "contents.md", pages.contents(pages.groups(table, [path.stem for path in paths])))
    chapters = {}
    for path in paths:
        nbformat.write(pages.chapter(path), sources / "tour" / path.name)
        shutil.copy(path, sources / "notebooks")
        if module := pages.default_export(nbformat.read(path, as_version=4)):
            chapters[f"{generate.PACKAGE}.{module}"] = path.stem
    return chapters


def write_sources(
    sources: Path,  # to be made
) -> None:
    "Everything Sphinx will read. Raises `PageError`, `GenerateError`, and `GuestLost` if no Guest boots here."
    docs = ROOT / "docs"
    shutil.copytree(docs / "_static", sources / "_static")
    for path in docs.glob("*.md"):
        write(sources / path.name, pages.relinked(path.read_text(encoding="utf-8"), "docs", ""))
    for name in FROM_THE_TOP:
        write(sources / name, pages.relinked((ROOT / name).read_text(encoding="utf-8"), "", ""))
    shutil.copy(ROOT / "LICENSE", sources)
    chapters = write_tour(ROOT / "nbs", sources)
    write(sources / "api" / "index.md", generate.api_index(chapters))
    for module in generate.modules():
        write(sources / "api" / f"{module}.md", generate.api_page(module, chapters.get(module, "")))
    for name, table in (
        ("exercises.md", generate.exercises(sorted((ROOT / "nbs").glob("[!.]*.ipynb")))),
        ("coming-from-lguest.md", generate.coming_from_lguest(docs / "lguest_c.toml")),
        ("rows-2009.md", generate.rows_2009(ROOT / "tests" / "rows_2009.toml")),
    ):
        write(sources / name, (sources / name).read_text(encoding="utf-8") + "\n" + table)
    write(sources / "boot.svg", boot_picture.drawn(boot_picture.boot()))


def run_sphinx(
    sources: Path,
    out: Path,  # gets html/, and what Sphinx remembers
    progress: Progress,
) -> int:  # exit status
    "Sources into finished pages, which need no other host. Raises `AssetError`."
    # One more than there are processors: while pages are written, Sphinx's first process runs out of work half-way.
    jobs = str((os.cpu_count() or 1) + 1)
    options = ["-q", "-W", "--keep-going", "-E", "-j", jobs, "-c", str(ROOT / "docs"), "-d", str(out / "doctrees")]
    command = [sys.executable, "-m", "sphinx", *options, "-b", "html", str(sources), str(out / "html")]

    def pages_so_far() -> str:
        read, written = (len(list(out.glob(f"{each}/**/*"))) for each in ("doctrees", "html"))
        return f"({read} files read, {written} written)"

    # In a process of its own: what forks for each processor must not do so beside a thread which paints a line.
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    with (out / "sphinx.log").open("w+", encoding="utf-8") as log:
        status = progress.wait(subprocess.Popen(command, env=environment, stdout=log, stderr=log), pages_so_far)
        progress.clear()
        log.seek(0)
        sys.stderr.write(log.read())
    if status == 0:
        provide(out / "html", ROOT / "build" / "docs" / "npm")
    return status


def build(
    out: Path,
) -> int:  # exit status
    "The whole site, from scratch: what an earlier build left could hide a link that is broken now."
    shutil.rmtree(out / "sources", ignore_errors=True)
    shutil.rmtree(out / "html", ignore_errors=True)
    try:
        with Progress("The site", 2) as progress:
            progress.step("its sources, from notebooks, signatures and a Guest which boots")
            write_sources(out / "sources")
            progress.step("its pages, by Sphinx")
            return run_sphinx(out / "sources", out, progress)
    except (pages.PageError, generate.GenerateError, AssetError, GuestLost) as error:
        print(f"The site cannot be built: {error}", file=sys.stderr)
        return 1


def main() -> int:
    out = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT / "build" / "docs"
    started = time.monotonic()
    status = build(out)
    if status == 0:
        print(f"{out / 'html' / 'index.html'} is there, after {time.monotonic() - started:.0f} seconds.")
    return status


if __name__ == "__main__":
    sys.exit(main())
