"""Packaging metadata comes from settings.ini, which nbdev reads too; edit it there, not here."""

import platform
from configparser import ConfigParser
from pathlib import Path

from setuptools import Extension, find_packages, setup

HERE = Path(__file__).parent
parser = ConfigParser(delimiters=["="])
parser.read(HERE / "settings.ini", encoding="utf-8")
settings = parser["DEFAULT"]

package = settings["lib_path"]
has_unicorn = " or ".join(f'platform_machine == "{machine}"' for machine in settings["soft_machines"].split())

# The C which completes Unicorn for 64-bit Guests. It needs a compiler and the headers of libc, but none of Python's.
# Where there is no compiler, or no Unicorn, the package is installed without it, and says so when it is missed.
C_FILES = f"{package}/data/x86_64"
interposer = Extension(
    f"{package}.data.x86_64.interpose",
    sources=sorted(str(path.relative_to(HERE)) for path in (HERE / C_FILES).glob("*.c")),
    depends=[f"{C_FILES}/interpose.h"],
    extra_compile_args=["-fvisibility=hidden"],
    py_limited_api=True,
    optional=True,
)

EXTRAS = {
    "live": ["live"],
    "notebooks": ["notebooks", "live"],
    "class": ["class", "notebooks", "live"],
    "bench": ["bench"],
    "docs": ["docs", "live"],
    "dev": ["dev", "notebooks", "live", "bench"],
}


def requirements(*parts: str) -> list[str]:
    return [requirement for part in parts for requirement in settings[f"{part}_requirements"].split()]


setup(
    version=settings["version"],
    description=settings["description"],
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    keywords=settings["keywords"].split(),
    author=settings["author"],
    author_email=settings["author_email"],
    url=settings["git_url"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Environment :: Console",
        "Framework :: Jupyter",
        "Intended Audience :: Education",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Topic :: System :: Emulators",
    ],
    ext_modules=[interposer] if platform.machine() in settings["soft_machines"].split() else [],
    packages=find_packages(include=[package, f"{package}.*"]),
    package_data={package: ["data/**"]},
    exclude_package_data={package: ["data/**/*.so"]},
    install_requires=[
        *settings["requirements"].split(),
        *(f"{requirement}; {has_unicorn}" for requirement in settings["soft_requirements"].split()),
    ],
    extras_require={extra: requirements(*parts) for extra, parts in EXTRAS.items()},
    entry_points={
        "console_scripts": settings["console_scripts"].split(),
        "nbdev": [f"{package}={package}._modidx:d"],
    },
)
