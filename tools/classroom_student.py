"""A student, driven as a browser would drive them: log in, open a kernel, boot a Guest, type at it, leave."""

import asyncio
import json
import secrets
import statistics
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from classroom_hub import PATIENCE, Hub
from classroom_machine import ClassError, in_memory, of_the_guest
from tornado.httpclient import HTTPRequest
from tornado.websocket import websocket_connect

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
    talk: Talk | None = None


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
