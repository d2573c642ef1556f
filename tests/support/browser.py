"""The system's own browser, in which pages are looked at; without one those tests are skipped."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
#: On a machine that has other things to do.
PATIENCE_MS = 120_000


@contextmanager
def started_browser() -> Iterator[Any]:
    """One that playwright drives."""
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"there is no browser to look with: install one of {', '.join(BROWSERS)}")
    # As root, which containers often run as, it refuses to start in its sandbox.
    flags = ["--no-sandbox"] if os.geteuid() == 0 else []
    with driver.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=path, args=flags, timeout=PATIENCE_MS)
        yield opened
        opened.close()
