"""The desk as somebody sees it: JupyterLab in a browser, a Guest in a cell, keys, a slider, and nothing odd.

The browser is Debian's Chromium (tools/test_packages.sh), driven by Playwright, which downloads nothing.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from playwright.sync_api import ConsoleMessage, Locator, Page, Request, expect, sync_playwright

PATIENCE = 60_000  # milliseconds: this machine may have other things to do
CHROMIUM = "/usr/bin/chromium"
QUIET = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
QUIET += "--disable-component-update --disable-sync"
QUIET_LAB = {
    "notification": {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True},
    "themes": {"theme": "JupyterLab Light"},
}
DESK = """\
from lguest_nb.guest import command_line
from lguest_nb.live.desk import Desk
from lguest_nb.live.neighbour import neighbourly

desk = Desk(neighbourly, arguments=command_line(ip="10.0.0.2")).start()
desk"""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def answers(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def descendants(parent: int) -> set[int]:
    "The processes which `parent` has started, and theirs."
    children: dict[int, set[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:  # it has ended meanwhile
                continue
            children.setdefault(int(stat.rpartition(")")[2].split()[1]), set()).add(int(entry.name))
    found, ahead = set(), [parent]
    while ahead:
        new = children.get(ahead.pop(), set()) - found
        found |= new
        ahead += new
    return found


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[str]:
    "The address of a JupyterLab with one notebook, desk.ipynb, and of nobody's settings."
    notebooks, settings = tmp_path / "notebooks", tmp_path / "settings" / "@jupyterlab" / "apputils-extension"
    notebooks.mkdir()
    settings.mkdir(parents=True)
    for name, value in QUIET_LAB.items():
        (settings / f"{name}.jupyterlab-settings").write_text(json.dumps(value))
    spec = {"name": "python3", "display_name": "python3", "language": "python"}
    cells = [new_code_cell(DESK), new_code_cell("print('the kernel is alive:', 6 * 7)")]
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": spec}), notebooks / "desk.ipynb")
    places = {f"JUPYTER_{what}_DIR": str(tmp_path / what) for what in ("CONFIG", "DATA", "RUNTIME")}
    places |= {"JUPYTERLAB_SETTINGS_DIR": str(tmp_path / "settings"), "IPYTHONDIR": str(tmp_path / "ipython")}
    port = free_port()
    options = ["--no-browser", "--allow-root", f"--ServerApp.root_dir={notebooks}", "--IdentityProvider.token=t"]
    options += [f"--ServerApp.port={port}", "--ServerApp.port_retries=0", "--ServerApp.ip=127.0.0.1"]
    options += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options], env=os.environ | places, stdin=subprocess.DEVNULL,
            stdout=log, stderr=log,
        )  # fmt: skip
    try:
        while not answers(port):
            assert server.poll() is None, (tmp_path / "log").read_text()
        yield f"http://127.0.0.1:{port}"
    finally:
        mine = descendants(server.pid)
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(60)
        finally:
            for pid in mine:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


class Sight:
    "A page, and what must not happen in it."

    def __init__(self, page: Page, address: str) -> None:
        self.page, self.host = page, urlsplit(address).netloc
        self.odd: list[str] = []
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.odd.append(f"error: {error}"))
        page.on("request", self._request)

    def _console(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.odd.append(f"console: {message.text}")

    def _request(self, request: Request) -> None:
        where = urlsplit(request.url)
        if where.scheme not in ("data", "blob") and where.netloc != self.host:
            self.odd.append(f"request: {request.url}")

    def view(self, title: str) -> Locator:
        "One of the views of the desk."
        return self.page.locator(".lguest-live", has=self.page.locator(f".controls b:text-is('{title}')")).last

    def run_all(self) -> None:
        self.page.get_by_role("menuitem", name="Run", exact=True).click()
        self.page.get_by_text("Run All Cells", exact=True).click()

    def type(self, text: str) -> None:
        "Into the terminal."
        self.view("Terminal").locator(".picture").click()
        self.page.keyboard.type(text)


@pytest.fixture
def sight(lab: str, tmp_path: Path) -> Iterator[Sight]:
    "The notebook, open in a browser; its kernel is ready."
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET.split())
        page = browser.new_page(viewport={"width": 1280, "height": 2600})
        page.set_default_timeout(PATIENCE)
        expect.set_options(timeout=PATIENCE)
        sight = Sight(page, lab)
        page.goto(f"{lab}/lab/tree/desk.ipynb?token=t&reset")
        expect(page.locator("#jp-main-statusbar")).to_contain_text("| Idle")  # the kernel's, once it is connected
        yield sight
        browser.close()


def test_a_reader_boots_types_watches_and_slows_down_a_guest(sight: Sight) -> None:
    sight.run_all()
    terminal, ring, timeline, memory = (sight.view(name) for name in ("Terminal", "Ring", "Timeline", "Memory"))
    expect(terminal.locator(".picture")).to_contain_text("tiny>")
    expect(terminal.locator(".status")).to_have_text("It runs.")
    expect(memory.locator(".picture")).to_contain_text("console:1: used")

    # Type, and see the answer; what a Guest prints is never markup.
    sight.type("echo <b>typed</b> & seen\n")
    expect(terminal.locator(".picture")).to_contain_text(re.compile(r"echo <b>typed</b> & seen\s+<b>typed</b> & seen"))
    assert terminal.locator(".picture b").count() == 0

    # The ring of the console's output has moved, and moves again.
    index = ring.locator("svg text", has_text="our idx")
    before = index.text_content()
    sight.type("echo more\n")
    expect(index).not_to_have_text(before or "")

    # A ping, followed through the threads.
    sight.type("ping 10.0.0.1 1")
    timeline.locator("[data-do=record]").click()
    sight.type("\n")
    expect(terminal.locator(".picture")).to_contain_text("1 sent, 1 received")
    expect(timeline.locator("svg .lane", has_text="net:1")).to_be_visible()
    timeline.locator("[data-do=scale]").click()

    # Slow motion: each step can be read, and a restart doesn't wait for it.
    slider = ring.locator("input[type=range]")
    slider.fill("6")
    expect(ring.locator("output")).to_have_text("3000 ms a step")
    sight.type("x")
    expect(ring.locator(".picture")).to_contain_text("slow motion:")
    terminal.locator("[data-do=restart]").click()
    expect(terminal.locator(".status")).to_have_text("It runs; this is life number 2.", timeout=2500)
    slider.fill("0")
    expect(terminal.locator(".picture")).to_contain_text(re.compile(r"life number 2.*tiny>", re.DOTALL))

    # Another queue.
    ring.locator("select").select_option("net:0")
    expect(ring.locator(".head")).to_contain_text("net:0")

    # A Guest which dies takes nothing with it; the cell runs again, and there's another.
    sight.type("panic for a test\n")
    expect(terminal.locator(".status")).to_have_text("It died: CRASH: for a test")
    sight.run_all()
    expect(sight.view("Terminal").locator(".status")).to_have_text("It runs.")
    expect(sight.page.locator(".jp-OutputArea-output", has_text="the kernel is alive: 42")).to_be_visible()
    sight.view("Terminal").locator("[data-do=stop]").click()
    expect(sight.view("Terminal").locator(".status")).to_have_text("You stopped it.")
    assert sight.odd == []
