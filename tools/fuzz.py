"""Coverage-guided fuzzing: a hostile Guest, kernel file or descriptor page for as many minutes as you like.

Each target of `fuzz_targets.py` gets its share of the time, in a process of its own, and begins with what is kept in
tests/corpus. What reaches something new goes to build/fuzz; `--keep` takes into tests/corpus what adds to it.
An input which breaks a rule ends its target, is saved, and makes the exit status 1.
"""

import argparse
import logging
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from progress import Progress

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))  # the model and the Host without a CPU are there
CORPUS, BUILD = ROOT / "tests" / "corpus", ROOT / "build" / "fuzz"
LONGEST = 640  # bytes of an input
PATIENCE = 10  # seconds for one input; more is a hang


def fuzz(name: str, arguments: list[str]) -> None:
    "Hand target `name` to libFuzzer, with its own arguments. Does not return."
    import atheris

    with atheris.instrument_imports(include=["lguest_nb"]):
        from fuzz_targets import TARGETS
    target = TARGETS[name]()
    logging.disable()
    atheris.Setup([str(again(name)), *arguments], target)
    atheris.Fuzz()


def again(name: str) -> Path:
    "A program which is target `name`: libFuzzer starts itself anew when it merges."
    script = BUILD / f"{name}.sh"
    command = shlex.join([sys.executable, __file__, "--libfuzzer", name])
    script.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    script.chmod(0o755)
    return script


def run(name: str, log: Path, progress: Progress, *arguments: str) -> int:
    "`fuzz` in a process of its own, which writes to `log`; its exit status."
    command = [sys.executable, __file__, "--libfuzzer", name, f"-max_len={LONGEST}", f"-timeout={PATIENCE}"]
    with log.open("wb") as output:
        return progress.wait(subprocess.Popen([*command, *arguments], stdout=output, stderr=output))


def campaign(name: str, seconds: int, progress: Progress) -> bool:
    "Fuzz one target, say what came of it, and whether nothing was found."
    found, kept, log = BUILD / name, CORPUS / name, BUILD / f"{name}.log"
    found.mkdir(parents=True, exist_ok=True)
    kept.mkdir(parents=True, exist_ok=True)
    prefix = f"-artifact_prefix={BUILD}/{name}-"
    began = time.monotonic()
    options = [f"-max_total_time={seconds}", "-print_final_stats=1", prefix]
    status = run(name, log, progress, *options, str(found), str(kept))
    text = log.read_text(errors="replace")
    count = re.search(r"number_of_executed_units: (\d+)", text) or re.search(r"Done (\d+) runs", text)
    coverage = re.findall(r"cov: (\d+)", text) or ["?"]
    executions = int(count[1]) if count else 0
    spent = time.monotonic() - began
    progress.clear()
    print(f"{name:8} {executions:9,} inputs in {spent:4.0f} s, {coverage[-1]} branches: ", end="")
    print("nothing found" if status == 0 else f"exit status {status}, see {log}", flush=True)
    if status:
        saved = re.search(r"Test unit written to (\S+)", text)
        print(text.partition(" === ")[2].partition("\n==")[0] or text[-2000:])
        if saved:
            print(f"Again, without libFuzzer: {sys.executable} tools/fuzz.py --input {saved[1]} {name}")
    return status == 0


def keep(name: str, progress: Progress) -> None:
    "Leave in the corpus of `name` what has a name of words, and as few more as reach each branch that was found."
    new, kept = BUILD / f"{name}.new", CORPUS / name
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    kept.mkdir(parents=True, exist_ok=True)
    for path in kept.glob("*-*"):
        shutil.copy(path, new)
    log = BUILD / f"{name}.merge.log"
    if run(name, log, progress, "-merge=1", "-use_counters=0", str(new), str(kept), str(BUILD / name)):
        sys.exit(f"The corpus of {name} could not be merged; see {log}.")
    if "successful in" not in log.read_text(errors="replace"):
        sys.exit(f"libFuzzer did not say that it has merged the corpus of {name}; see {log}.")
    shutil.rmtree(kept)
    kept.mkdir()
    for path in new.iterdir():
        words = "-" in path.name
        shutil.copy(path, kept / (path.name if words else path.name[:12]))  # libFuzzer calls a file by its SHA-1
    progress.clear()
    print(f"{name}: {len(list(kept.iterdir()))} inputs kept")


def main() -> int:
    if sys.argv[1:2] == ["--libfuzzer"]:
        fuzz(sys.argv[2], sys.argv[3:])
    from fuzz_targets import TARGETS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1, help="for all targets together")
    parser.add_argument("--keep", action="store_true", help="do not fuzz, but take what was found into tests/corpus")
    parser.add_argument("--input", type=Path, help="do not fuzz, but give this file to the target")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; default: all")
    options = parser.parse_args()
    names = options.targets or list(TARGETS)
    if unknown := set(names) - set(TARGETS):
        parser.error(f"There is no target {min(unknown)}: I have {', '.join(TARGETS)}.")
    if options.input:
        for name in names:
            TARGETS[name]()(options.input.read_bytes())
        return 0
    if options.keep:
        with Progress("Merging what was found", len(names)) as progress:
            for name in names:
                progress.step(name)
                keep(name, progress)
        return 0
    seconds = max(1, round(60 * options.minutes / len(names)))
    well = []
    with Progress("Fuzzing", len(names)) as progress:
        for name in names:
            progress.step(f"{name}, for {seconds} s")
            well.append(campaign(name, seconds, progress))
    return 0 if all(well) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
