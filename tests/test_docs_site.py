"""The site as a reader meets it: every link leads somewhere, and no page needs another host.

`make test` builds the site first; these tests look at what is in build/docs/html.
"""

import threading
from collections.abc import Iterator
from functools import cache, partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag

import nbformat
import pytest
from docs_generate import modules, resolve
from docs_pages import page
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from playwright.sync_api import Browser, BrowserContext, Page, Request, sync_playwright
from run_notebooks import WIDGET_VIEW, save

ROOT = Path(__file__).parent.parent
SITE = ROOT / "build" / "docs" / "html"
NOTEBOOKS = sorted(path for path in (ROOT / "nbs").glob("[!.]*.ipynb") if path.stem != "index")
CHROMIUM = "/usr/bin/chromium"
QUIET = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync --disable-component-update".split()
ALONE = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
LEAST_CONTRAST = 4.5  # WCAG 2.2, level AA, for text


@pytest.fixture(scope="session")
def site() -> Path:
    if not (SITE / "index.html").exists():
        pytest.fail("There is no site in build/docs/html: make docs", pytrace=False)
    return SITE


class Links(HTMLParser):
    "Where a page points, what it loads, and where it can be pointed at."

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.next = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
            if given.get("class") == "next-page":
                self.next = given["href"]
        elif tag == "link" and "href" in given:
            self.loads.append(given["href"])
        if "src" in given:
            self.loads.append(given["src"])


@cache
def links(path: Path) -> Links:
    return Links(path.read_text(encoding="utf-8"))


def pages(site: Path) -> list[Path]:
    return sorted(site.rglob("*.html"))


def is_elsewhere(link: str) -> bool:
    return link.startswith(("http:", "https:", "//", "mailto:"))


def broken(source: Path, link: str) -> str:
    "What is wrong with a link, or nothing."
    address, fragment = urldefrag(link)
    target = (source.parent / unquote(address.partition("?")[0])).resolve() if address else source
    if not target.is_file():
        return "is not there"
    if fragment and target.suffix == ".html" and unquote(fragment) not in links(target).anchors:
        return "has no such place"
    return ""


def test_every_link_leads_somewhere(site: Path) -> None:
    wrong = [
        f"{source.relative_to(site)}: {link} {trouble}"
        for source in pages(site)
        for link in [*links(source).links, *links(source).loads]
        if not is_elsewhere(link) and not link.startswith("data:") and (trouble := broken(source, link))
    ]
    assert not wrong


def test_no_page_is_written_to_load_anything_from_elsewhere(site: Path) -> None:
    wrong = [f"{source.name}: {load}" for source in pages(site) for load in links(source).loads if is_elsewhere(load)]
    assert not wrong


def test_the_tour_goes_from_chapter_to_chapter_in_order(site: Path) -> None:
    walked, here = [], site / "tour" / f"{NOTEBOOKS[0].stem}.html"
    while here.parent.name == "tour":
        walked.append(here.stem)
        here = (here.parent / links(here).next).resolve()
    assert walked == [notebook.stem for notebook in NOTEBOOKS]


def test_every_output_of_a_notebook_is_on_its_page(site: Path) -> None:
    for notebook in NOTEBOOKS:
        cells = [cell for cell in nbformat.read(notebook, 4).cells if cell.cell_type == "code"]
        hidden = [cell for cell in cells if "#| hide" in cell.source]
        printed = [output for cell in cells if cell not in hidden for output in cell.outputs]
        widgets = [output for output in printed if WIDGET_VIEW in output.get("data", {})]
        text = (site / "tour" / f"{notebook.stem}.html").read_text(encoding="utf-8")
        assert text.count('<div class="output ') == len(printed) - len(widgets), notebook.name
        assert text.count(f'<script type="{WIDGET_VIEW}">') == len(widgets), notebook.name


def test_every_public_name_has_its_place_in_the_reference(site: Path) -> None:
    missing = []
    for module in modules():
        anchors = links(site / "api" / f"{module}.html").anchors
        public = [name for name in resolve_all(module) if name != "log"]
        missing += [f"{module}.{name}" for name in public if f"{module}.{name}" not in anchors]
    assert not missing


def resolve_all(module: str) -> list[str]:
    "The names which a module exports."
    return list(resolve(f"{module}.__all__")[2])


def test_the_reference_has_comments_as_fields_and_a_way_into_the_source(site: Path) -> None:
    text = (site / "api" / "lguest_nb.memory.html").read_text(encoding="utf-8")
    entry = text[text.index('id="lguest_nb.memory.GuestMemory.check"') :].partition("</dl>\n</dd>")[0]
    assert "Guest-physical" in entry and "Parameters" in entry
    assert "../_modules/lguest_nb/memory.html#GuestMemory.check" in entry


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    "The site, served to this machine alone."
    yield from served(site)


def served(directory: Path) -> Iterator[str]:
    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *arguments: Any) -> None:
            "Say nothing."

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(directory)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    "A browser for these tests alone: other tests count the children of this process."
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*QUIET, ALONE])
        yield browser
        browser.close()


class Visitor:
    "A reader's browser, which reaches no other host, and writes down what a page asks for and what goes wrong."

    def __init__(self, browser: Browser, address: str, **how: Any) -> None:
        self.address, self.troubles = address, list[str]()
        self.context: BrowserContext = browser.new_context(**({"viewport": DESK} | how))
        self.page: Page = self.context.new_page()
        self.page.on("request", self._request)
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.troubles.append(f"{self.page.url}: {error}"))
        self.page.on("response", self._response)

    def _request(self, request: Request) -> None:
        if not request.url.startswith((self.address, "data:", "blob:")):
            self.troubles.append(f"{self.page.url} asks for {request.url}")

    def _console(self, message: Any) -> None:
        if message.type == "error":
            self.troubles.append(f"{self.page.url}: {message.text}")

    def _response(self, response: Any) -> None:
        if response.status >= 400:
            self.troubles.append(f"{self.page.url}: {response.url} gives {response.status}")

    def see(self, path: str) -> Page:
        self.page.goto(self.address + path, wait_until="load")
        self.page.evaluate("document.fonts.ready")
        return self.page


@pytest.fixture
def visitor(browser: Browser, address: str) -> Iterator[Visitor]:
    visitor = Visitor(browser, address)
    yield visitor
    visitor.context.close()


COLUMNS = """() => {
  const rule = document.createElement('canvas').getContext('2d'), wrong = new Set();
  for (const pre of document.querySelectorAll('article div.highlight pre')) {
    const style = getComputedStyle(pre);
    rule.font = `${style.fontSize} ${style.fontFamily}`;
    const cell = rule.measureText('x').width;
    for (const c of new Set(pre.textContent)) {
      if (c > '~' && Math.abs(rule.measureText(c).width - cell) > cell / 50) wrong.add(c);
    }
  }
  return [...wrong];
}"""


def test_no_page_asks_another_host_or_has_an_error_and_all_fit_a_phone(
    site: Path, address: str, browser: Browser
) -> None:
    wide, crooked = [], []
    visitor = Visitor(browser, address, viewport=PHONE)
    for path in pages(site):
        page = visitor.see(str(path.relative_to(site)))
        if uneven := page.evaluate(COLUMNS):
            crooked.append(f"{path.name}: {uneven}")
        if (width := page.evaluate("document.documentElement.scrollWidth")) > PHONE["width"]:
            wide.append(f"{path.name}: {width}")
    visitor.context.close()
    assert not visitor.troubles
    assert not wide, "these pages are wider than a phone"
    assert not crooked, "in these pages drawings have characters of another width"


def test_a_page_which_asks_another_host_is_noticed(address: str, browser: Browser) -> None:
    visitor = Visitor(browser, address)
    visitor.see("index.html").evaluate("fetch('https://example.org/font.woff2').catch(() => null)")
    visitor.context.close()
    assert any("asks for https://example.org/font.woff2" in trouble for trouble in visitor.troubles)


CONTRAST = """([selector]) => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  let least = Infinity;
  for (const element of document.querySelectorAll(selector)) {
    const style = getComputedStyle(element);
    const ink = light(rgb(element instanceof SVGElement ? style.fill : style.color));
    let place = element, ground = [0, 0, 0, 0];
    for (; place && (ground[3] ?? 1) === 0; place = place.parentElement) {
      ground = rgb(getComputedStyle(place).backgroundColor);
    }
    const paper = light(ground);
    least = Math.min(least, (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05));
  }
  return least;
}"""


@pytest.mark.parametrize("light", ["light", "dark"])
def test_text_and_drawings_are_legible_by_day_and_by_night(browser: Browser, address: str, light: str) -> None:
    visitor = Visitor(browser, address, color_scheme=light)
    visitor.see("architecture.html").wait_for_selector(f'pre.mermaid[data-drawn="{light}"] svg')
    seen = {
        name: visitor.page.evaluate(CONTRAST, [name])
        for name in ("article p", ".drawing text", "pre.mermaid tspan, .messageText")
    }
    visitor.see("tour/10_vring.html")
    names = (
        "article p",
        ".highlight pre",
        ".highlight span",
        ".cell_output pre",
        ".facts",
        "article a",
        ".sidebar-tree a",
    )
    seen |= {name: visitor.page.evaluate(CONTRAST, [name]) for name in names}
    visitor.context.close()
    assert {name: ratio for name, ratio in seen.items() if not LEAST_CONTRAST <= ratio < 22} == {}


def test_the_list_of_chapters_begins_where_the_reader_is(visitor: Visitor) -> None:
    for path in ("tour/00_memory.html", "tour/95_ring_view.html"):
        seen = visitor.see(path).locator(".sidebar-tree .current-page > .reference").bounding_box()
        assert seen is not None and 0 < seen["y"] < DESK["height"] - seen["height"]
    assert not visitor.troubles


def test_a_line_of_code_of_100_columns_fits_on_a_desk(visitor: Visitor) -> None:
    page = visitor.see("tour/95_ring_view.html")
    widths = page.evaluate("""() => {
      const rule = document.createElement('canvas').getContext('2d');
      const pre = document.querySelector('article div.cell_input pre'), style = getComputedStyle(pre);
      rule.font = `${style.fontSize} ${style.fontFamily}`;
      return [100 * rule.measureText('x').width, pre.clientWidth - parseFloat(style.paddingLeft) * 2];
    }""")
    assert widths[0] <= widths[1]


def test_the_light_can_be_switched_and_drawings_follow(visitor: Visitor) -> None:
    page = visitor.see("architecture.html")
    page.wait_for_selector("pre.mermaid[data-drawn] svg")
    grounds = set()
    for _ in range(3):  # auto, and each of the two by hand
        page.locator("button.theme-toggle:visible").first.click()
        grounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        page.wait_for_function(
            "document.querySelector('pre.mermaid').dataset.drawn === "
            "(document.body.dataset.theme === 'dark' ? 'dark' : 'light')"
        )
    assert len(grounds) == 2
    assert not visitor.troubles


def test_searching_finds_prose_and_names(visitor: Visitor) -> None:
    for words, expected in (("eventfd", "30_threads"), ("walk_chain", "lguest_nb.vring")):
        page = visitor.see(f"search.html?q={words}")
        page.wait_for_function("/found/.test(document.querySelector('#search-results .search-summary')?.textContent)")
        found = page.eval_on_selector_all("#search-results li a", "all => all.map(a => a.href)")
        assert any(expected in link for link in found), found
    assert not visitor.troubles


def test_the_picture_on_the_first_page_is_of_a_real_run(site: Path, visitor: Visitor) -> None:
    picture = next((site / "_images").glob("boot*.svg")).read_text(encoding="utf-8").replace("\xa0", " ")
    assert "tiny guest, made of sources" in picture and "hello from ring 3" in picture
    page = visitor.see("index.html")
    assert page.evaluate("document.querySelector('img.screen').naturalWidth") > 800


WIDGETS = """
import anywidget, traitlets
from ipywidgets import IntSlider, VBox

class Echo(anywidget.AnyWidget):
    _esm = "export default { render({ model, el }) { el.innerHTML = '<b class=echo>' + model.get('said') + '</b>' } }"
    said = traitlets.Unicode("a ring, at rest").tag(sync=True)

VBox([IntSlider(3, description="kicks"), Echo()])
"""


def test_a_widgets_saved_state_is_shown_without_a_kernel_and_without_another_host(
    tmp_path: Path, browser: Browser
) -> None:
    from docs_build import run_sphinx
    from progress import Progress

    notebook = tmp_path / "toy.ipynb"
    cells = [new_markdown_cell("# toy\n\nA dollar costs $$1 = 1$$."), new_code_cell(WIDGETS.strip())]
    nbformat.write(new_notebook(cells=cells), notebook)
    save(notebook)
    ran = nbformat.read(notebook, 4)
    (tmp_path / "sources").mkdir()
    nbformat.write(page(ran.cells, ran), tmp_path / "sources" / "index.ipynb")
    assert run_sphinx(tmp_path / "sources", tmp_path, Progress("A toy")) == 0
    serving = served(tmp_path / "html")
    try:
        visitor = Visitor(browser, next(serving))
        seen = visitor.see("index.html")
        assert seen.inner_text(".echo") == "a ring, at rest"
        assert seen.inner_text(".widget-slider .widget-label") == "kicks"
        seen.wait_for_selector("mjx-container svg")
        visitor.context.close()
    finally:
        next(serving, None)
    assert not visitor.troubles
