"""With STRICT_SKIPS set, a skip that tests/allowed_skips.txt does not name fails the run."""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from lguest_nb.host import HostError
from lguest_nb.hosts.soft.unicorn import library

pytest_plugins = ["support", "inside"]  # fixtures for many tests
with suppress(HostError):  # there is none, and whoever cannot do without it says so
    library()  # with the C which has to be there before it: `importorskip("unicorn")` would load it alone
ALLOWED_SKIPS = Path(__file__).with_name("allowed_skips.txt")


def allowed_skips(text: str) -> Iterator[tuple[str, str]]:
    "The (test id, reason) patterns of a list of allowed skips. Raises `ValueError` for a line without ` | `."
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            test, separator, reason = line.partition(" | ")
            if not separator:
                raise ValueError(f"{ALLOWED_SKIPS.name}: `{line}` has no ` | ` between test and reason.")
            yield test.strip(), reason.strip()


def unexpected_skips(
    skips: Iterable[tuple[str, str]],  # (test id, reason)
    allowed: Iterable[tuple[str, str]],  # patterns of the same
) -> list[tuple[str, str]]:
    "The skips that no pattern allows."
    patterns = list(allowed)
    return [
        (test, reason)
        for test, reason in skips
        if not any(fnmatchcase(test, a) and fnmatchcase(reason, b) for a, b in patterns)
    ]


def skip_reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    "Why a test did not run, or was allowed to fail."
    if xfail := getattr(report, "wasxfail", ""):
        return f"xfail: {xfail}"
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return reason.removeprefix("Skipped: ")


class StrictSkips:
    "Collects skips, of tests and of whole modules, and judges them at the end."

    def __init__(self) -> None:
        self.skips: list[tuple[str, str]] = []
        self.unexpected: list[tuple[str, str]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped:
            self.skips.append((report.nodeid, skip_reason(report)))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self.skips.append((report.nodeid, skip_reason(report)))

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        allowed = allowed_skips(ALLOWED_SKIPS.read_text(encoding="utf-8"))
        self.unexpected = unexpected_skips(dict.fromkeys(self.skips), allowed)
        if self.unexpected and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.unexpected:
            terminalreporter.section("skips that tests/allowed_skips.txt does not name", red=True)
            for test, reason in self.unexpected:
                terminalreporter.line(f"{test} | {reason}")


def pytest_configure(config: pytest.Config) -> None:
    on_a_worker = hasattr(config, "workerinput")  # pytest-xdist: reports reach whoever started the workers
    if os.environ.get("STRICT_SKIPS") and not on_a_worker:
        config.pluginmanager.register(StrictSkips(), "strict-skips")
