"""How cost grows: with the depth of a ring, with queues, with a Guest's memory, with Guests on one machine."""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402
from bench import LAUNCHER, memory_in_use  # noqa: E402
from bench_rings import OURS, PEER, Bench  # noqa: E402
from session import PATIENCE, PROMPT, Session  # noqa: E402

import lguest_nb.guest  # noqa: E402

DEPTHS = (1, 2, 4, 8, 16, 32, 64, 85)  # 85 requests of three descriptors fill a ring
QUEUES = (2, 7, 13, 19, 25)  # the console has two, and the tiny Guest knows 24 devices
MEGABYTES = (2, 16, 128, 512, 2048)
GUESTS = (1, 2, 4, 8, 16)


@dataclass
class Curve:
    "One line of a plot: the median at each place, and the least and the most."

    name: str
    unit: str
    at: Sequence[int]
    values: list[list[float]]  # for each place, of each run

    def medians(self) -> list[float]:
        return [statistics.median(values) for values in self.values]


def measure(
    at: Sequence[int],
    runs: int,
    once: Callable[[int], dict[str, float]],  # by the name of the curve
    units: dict[str, str],
) -> list[Curve]:
    "All places in turn, again and again."
    curves = [Curve(name, unit, at, [[] for _ in at]) for name, unit in units.items()]
    for run in range(runs):
        for i, place in enumerate(at):
            print(f"  {'/'.join(units)}: run {run + 1} of {runs}, at {place}", file=sys.stderr)
            found = once(place)
            for curve in curves:
                curve.values[i].append(found[curve.name])
    return curves


def until_the_prompt(
    count: int,  # of Guests, started together
    megabytes: int = 16,
    devices: Sequence[str] = (),
) -> dict[str, float]:
    "Boot them, look when all are at their prompt, and what each of them takes."
    command = [str(LAUNCHER), *devices, str(megabytes), str(lguest_nb.guest.path())]
    with ExitStack() as all_of_them:
        started = time.monotonic()
        sessions = [Session(command) for _ in range(count)]
        for session in sessions:
            all_of_them.callback(session.close)
        for session in sessions:
            session.expect(PROMPT, patience=PATIENCE)
        seconds = time.monotonic() - started
        used = [memory_in_use(session.process.pid) for session in sessions]
        threads = len(list(Path(f"/proc/{sessions[0].process.pid}/task").iterdir()))
        for session in sessions:
            session.type("poweroff\r")
        for session in sessions:
            session.wait_for_end()
    each = {part: statistics.mean(memory[part] for memory in used) for part in ("Guest", "Launcher")}
    return {"prompt": seconds, "threads": threads, "Launcher": each["Launcher"], "Guest": each["Guest"]}


def report(
    title: str,
    across: str,  # what the axis along the bottom is
    curves: list[Curve],
    folder: Path,
    log: bool = False,
) -> None:
    "A table on stdout, and a picture."
    print(f"\n{title}\n  {across:<24}" + "".join(f"{place:>10,}" for place in curves[0].at))
    figure, axes = plt.subplots(1, len(curves), figsize=(5 * len(curves), 3.6), squeeze=False)
    for axis, curve in zip(axes[0], curves, strict=True):
        middle = curve.medians()
        print(f"  {f'{curve.name} ({curve.unit})':<24}" + "".join(f"{value:>10,.4g}" for value in middle))
        axis.fill_between(curve.at, [min(v) for v in curve.values], [max(v) for v in curve.values], alpha=0.2)
        axis.plot(curve.at, middle, marker="o")
        axis.set(title=curve.name, xlabel=across, ylabel=curve.unit, ylim=(0, None))
        if log:
            axis.set_xscale("log", base=2)
            axis.set_xticks(curve.at, [str(place) for place in curve.at])
    figure.tight_layout()
    name = folder / f"{title.partition(':')[0].lower().replace(' ', '-')}.svg"
    figure.savefig(name, metadata={"Date": None})
    plt.close(figure)
    print(f"  plot: {name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("build/bench"))
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    print(f"How cost grows: medians of {arguments.runs} runs.")
    boots = {"prompt": "s", "Launcher": "MB"}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), seconds=0.3)
        served = {OURS: "requests/s"} | ({PEER: "requests/s"} if shutil.which("qemu-storage-daemon") else {})

        def at_depth(depth: int) -> dict[str, float]:
            found = {OURS: bench.ours("read", depth).rate}
            if PEER in served:
                found[PEER] = bench.storage_daemon("read", depth, "threads").rate
            return found

        curves = measure(DEPTHS, arguments.runs, at_depth, served)
        report("Ring depth: reads of 4 KiB, by requests in flight", "in flight", curves, arguments.folder, log=True)
    curves = measure(
        QUEUES,
        arguments.runs,
        lambda count: until_the_prompt(1, devices=["--rng"] * (count - 2)),
        boots | {"threads": "of the Launcher"},
    )
    report("Queues: one Guest, by its queues", "queues", curves, arguments.folder)
    curves = measure(MEGABYTES, arguments.runs, lambda size: until_the_prompt(1, size), boots | {"Guest": "MB"})
    report("Memory: one Guest, by the memory it is given", "MB", curves, arguments.folder, log=True)
    curves = measure(GUESTS, arguments.runs, until_the_prompt, boots | {"Guest": "MB"})
    report("Guests: started together, by how many; memory of each", "Guests", curves, arguments.folder, log=True)


if __name__ == "__main__":
    main()
