"""What a lesson needs of this machine: users made for it, what a process costs, and whether it is still there."""

import os
import pwd
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.prefix) / "bin"
OURS = "student of a lesson held by process "  # how we know our users again, in the fifth field of the password file


class ClassError(Exception):
    "The lesson cannot be held; the sentence says why."


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def in_memory(
    process: int,  # its id
) -> float:  # MB
    "What a process costs: its own pages, and its share of those which it has in common with others (PSS)."
    for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise ClassError(f"/proc/{process}/smaps_rollup has no Pss.")


def of_the_guest(
    process: int,  # its id
) -> float:  # MB
    "What a Guest has touched of its memory: nothing else in a kernel is shared memory."
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("RssShmem:"):
            return int(line.split()[1]) / 1024
    raise ClassError(f"/proc/{process}/status has no RssShmem.")


def runs(
    process: int,  # its id
) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def remove_user(
    name: str,
) -> None:
    "End all that a user of ours still runs, and remove them. Their home is gone with the lesson's directory."
    user = pwd.getpwnam(name).pw_uid
    for entry in Path("/proc").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError, NotADirectoryError):
            if entry.name.isdigit() and entry.stat().st_uid == user:
                os.kill(int(entry.name), signal.SIGKILL)
    subprocess.run(["userdel", name], check=True, capture_output=True)


def remove_left_over() -> None:
    "Users of a lesson whose process is gone: it was killed before it could remove them."
    for user in pwd.getpwall():
        if user.pw_gecos.startswith(OURS) and not runs(int(user.pw_gecos.removeprefix(OURS))):
            remove_user(user.pw_name)


def make_user(
    name: str,
    home: Path,
) -> None:
    command = [
        "useradd",
        "--no-log-init",
        "--create-home",
        "--home-dir",
        str(home),
        "--comment",
        f"{OURS}{os.getpid()}",
    ]
    done = subprocess.run([*command, "--shell", "/bin/bash", name], capture_output=True, text=True)
    if done.returncode:
        raise ClassError(f"useradd could not make the user {name}: {done.stderr.strip()}")


def unreachable() -> str:  # the path, or nothing
    "What a student could not read of what their server is made of."
    for path in (Path(sys.executable).resolve(), BIN, ROOT / "lguest_nb"):
        for part in (path, *path.parents):
            if not part.stat().st_mode & 0o001:
                return str(part)
    return ""
