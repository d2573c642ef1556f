"""Plugin of pytest: how each test ended, written as soon as it has, one line of JSON each.

    python -m pytest -p outcomes --outcomes=FILE

A report of pytest's own is written when it ends, and not where it is ended.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where to write."""
    parser.addoption("--outcomes", type=Path, required=True, help="file of JSON lines to write")


def pytest_configure(config: pytest.Config) -> None:
    """Write from now on."""
    path: Path = config.getoption("--outcomes")
    path.write_bytes(b"")
    config.pluginmanager.register(Recorder(path))


class Recorder:
    """Adds a line when a test begins, and one when it is known how it ended."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._skipped = False

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Before the fixtures."""
        self._add(nodeid, "begun")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """After the fixtures, the test, and what the fixtures do then."""
        if hasattr(report, "wasxfail"):
            self._add(report.nodeid, "passed")
        elif report.when == "call" or not report.passed:
            self._add_report(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A module that cannot be imported, or skips itself."""
        if not report.passed:
            self._add_report(report)

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Where whole modules were skipped, it is not that there are no tests."""
        if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and self._skipped:
            session.exitstatus = pytest.ExitCode.OK

    def _add_report(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        in_call = getattr(report, "when", "") == "call"
        outcome = "error" if report.failed and not in_call else report.outcome
        self._skipped |= report.skipped
        why = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
        self._add(report.nodeid, outcome, why.removeprefix("Skipped: "))

    def _add(self, test: str, outcome: str, why: str = "") -> None:
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"test": test, "outcome": outcome, "why": why}) + "\n")
