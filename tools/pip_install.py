"""pip install, which takes a minute or more: what it is busy with, and not all that it could say.

pip_install.py WHAT ARGUMENT...    WHAT is what to call it; the arguments are those of `pip install`
"""

import re
import subprocess
import sys

from progress import Progress

FOUND = re.compile(r"\s*(?:Collecting|Requirement already satisfied:) ([\w.-]+)")
AT_LAST = "Installing collected packages"


def install(
    what: str,  # is being done, for people
    arguments: list[str],  # of pip install
) -> int:  # exit status of pip
    "Packages are counted as pip meets them; how many there will be, nobody knows. Its complaints are left to it."
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar=off", *arguments]
    with Progress(what) as progress, subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as pip:
        assert pip.stdout is not None
        packages = 0
        for line in pip.stdout:
            if found := FOUND.match(line):
                packages += 1
                progress.at(packages, found[1])
            elif line.startswith(AT_LAST):
                progress.step("putting them in place")
    if pip.returncode == 0:
        print(f"{what} ... done.", file=sys.stderr)
    return pip.returncode


if __name__ == "__main__":
    sys.exit(install(sys.argv[1], sys.argv[2:]))
