"""How long the tiny Guest takes to be there, from the start of the process, and what memory it costs."""

import argparse
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

from progress import steps
from session import PATIENCE, PROMPT, Session

import lguest_nb.guest

LAUNCHER = Path(sys.executable).with_name("lguest-nb")
GOALS = {"first output": 0.3, "prompt": 0.6}  # seconds
TOUCHED = 40  # MB which the Guest has its disk read into, to see what touching them costs


def memory_in_use(
    process: int,  # its id
) -> dict[str, float]:  # MB
    "What a process has touched: the Guest's memory is shared, the Launcher's own is not."
    status = Path(f"/proc/{process}/status").read_text()
    found = re.findall(r"^Rss(\w+):\s+(\d+) kB", status, re.MULTILINE)
    megabytes = {kind: int(kilobytes) / 1024 for kind, kilobytes in found}
    return {"Guest": megabytes["Shmem"], "Launcher": megabytes["Anon"] + megabytes["File"]}


def start_once(
    megabytes: int,  # of memory for the Guest
    disk: str,  # path of a disk of TOUCHED megabytes
) -> tuple[dict[str, float], dict[str, float]]:  # seconds, MB
    "Boot to the prompt, have the Guest use some memory, look, and leave."
    started = time.monotonic()
    session = Session([str(LAUNCHER), f"--block={disk}", str(megabytes), str(lguest_nb.guest.path())])
    try:
        session.read_some(started + PATIENCE)
        seconds = {"first output": time.monotonic() - started}
        session.expect(PROMPT)
        seconds["prompt"] = time.monotonic() - started
        session.ask(f"disk load 0 0x1000000 {TOUCHED * 2048}")
        used = memory_in_use(session.process.pid)
        session.type("poweroff\r")
        session.wait_for_end()
    finally:
        session.close()
    return seconds, used


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure start-up and memory of the tiny Guest.")
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--megabytes", type=int, default=512)
    arguments = parser.parse_args()
    with tempfile.NamedTemporaryFile() as disk:
        disk.truncate(TOUCHED << 20)
        turns = steps("Starting a Guest", range(arguments.runs), lambda turn: "up to its prompt")
        runs = [start_once(arguments.megabytes, disk.name) for _ in turns]
    for name, goal in GOALS.items():
        seconds = [times[name] for times, _ in runs]
        print(
            f"{name}: median {statistics.median(seconds):.2f} s of {len(seconds)} runs,"
            f" {min(seconds):.2f} to {max(seconds):.2f} s (goal: {goal} s)"
        )
    for part in ("Guest", "Launcher"):
        used = statistics.median(memory[part] for _, memory in runs)
        print(f"memory of the {part}: {used:.1f} MB; the Guest was given {arguments.megabytes} MB and used {TOUCHED}")


if __name__ == "__main__":
    main()
