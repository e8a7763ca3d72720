"""Hold a class: a JupyterHub on this machine, some students at once, a Guest in a notebook kernel for each.

Every student is driven as a browser would drive them, through the hub's proxy: REST for the server and the kernel, a
websocket for the cells. Run by root, students are users of this machine, made for the lesson and removed after it;
otherwise they share you. What it starts, it ends. It prints what it measured.
"""

import argparse
import asyncio
import os
import pwd
import signal
import statistics
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from classroom_hub import Hub, proxy_program
from classroom_machine import ClassError, make_user, remove_left_over, remove_user, runs, unreachable
from classroom_student import Student, boot, leave, sit_down, work
from progress import Progress
from tornado.httpclient import HTTPClientError


async def lesson(
    hub: Hub,
    students: list[Student],
    megabytes: int,
) -> float:  # seconds until the hub was there
    "Everybody does everything at the same time. Raises `ClassError`."
    began = time.monotonic()

    async def there() -> bool:
        await hub.ask("GET", "/hub/api/")
        return True

    with Progress("The lesson", 6) as progress:
        progress.step("the hub starts")
        await hub.until("The hub does not answer", there)
        hub_took = time.monotonic() - began
        for name, step in (
            ("everybody logs in", lambda student: sit_down(hub, student)),
            ("everybody boots a Guest", lambda student: boot(student, megabytes)),
            ("everybody types", lambda student: work(student, 10)),
            ("everybody stops their Guest", leave),
        ):
            progress.step(name)
            await asyncio.gather(*map(step, students))
        progress.step("everybody leaves")
        await asyncio.gather(*(hub.ask("DELETE", f"/hub/api/users/{student.name}/server") for student in students))

        async def gone() -> bool:
            return not any(runs(process) for student in students for process in (student.kernel, student.server))

        await hub.until("A student's server or kernel still runs", gone)
    return hub_took


def report(
    students: list[Student],
    hub_took: float,  # seconds
    place: str,  # who the students are
) -> None:
    "What was measured: over the students, the middle one and the worst."
    print(f"{len(students)} students at once on {os.cpu_count()} processors, {place}.")
    print(f"  {'the hub':32} {hub_took:13.3f} s")
    for name in students[0].seconds:
        values = [student.seconds[name] for student in students]
        print(f"  {name:32} median {statistics.median(values):6.3f} s   worst {max(values):7.3f} s")
    for name in students[0].megabytes:
        values = [student.megabytes[name] for student in students]
        print(f"  {name:32} median {statistics.median(values):6.1f} MB  most {max(values):7.1f} MB")
    whole = sum(s.megabytes["server"] + s.megabytes["kernel with a Guest"] for s in students)
    print(f"  {'all of them, without the hub':32} {whole:13.1f} MB")
    print("Every student saw their own answer, on the console and in their disk file. All processes have ended.")


def hold(
    count: int,  # of students
    megabytes: int,  # for each Guest
    proxy: Path,
) -> None:
    "The lesson, from making its students to removing them. Raises `ClassError`."
    problem = unreachable() if os.getuid() == 0 else ""
    real_users = os.getuid() == 0 and not problem
    place = "each a user of this machine" if real_users else "all of them one user of this machine"
    if problem:
        print(
            f"Students will be you: others cannot reach {problem}. CLASS_PYTHON= names another Python.",
            file=sys.stderr,
        )
    if real_users:
        remove_left_over()
    hub = None
    made: list[str] = []
    with tempfile.TemporaryDirectory(prefix="lguest-nb-class-") as directory:
        os.chmod(directory, 0o755)
        students = [
            Student(name, Path(directory, name)) for name in (f"lguest{os.getpid()}-{n}" for n in range(1, count + 1))
        ]
        try:
            for student in students:
                if real_users:
                    make_user(student.name, student.home)
                    made.append(student.name)
                else:
                    student.home.mkdir()
                disk = student.home / "disk.img"
                disk.write_bytes(bytes(64 * 512))
                if real_users:
                    user = pwd.getpwnam(student.name)
                    os.chown(disk, user.pw_uid, user.pw_gid)
            hub = Hub(Path(directory), [student.name for student in students], real_users, proxy)
            hub_took = asyncio.run(lesson(hub, students, megabytes))
        finally:
            if hub:
                hub.close()
            for student in students:
                for process in filter(None, (student.kernel, student.server)):
                    with suppress(ProcessLookupError):
                        os.kill(process, signal.SIGKILL)
            for name in made:
                remove_user(name)
    report(students, hub_took, place)


def leave_by_signal(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--students", type=int, default=3)
    parser.add_argument("--megabytes", type=int, default=64, help="of memory for each Guest")
    options = parser.parse_args()
    if options.students < 1:
        parser.error(f"There is no lesson for {options.students} students.")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave_by_signal)
    try:
        hold(options.students, options.megabytes, proxy_program(Path(sys.prefix).parent / "npm"))
    except (ClassError, HTTPClientError, TimeoutError) as problem:
        print(f"The lesson failed: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("The lesson was broken off.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
