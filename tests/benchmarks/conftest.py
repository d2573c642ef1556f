"""Every benchmark's quick form, run once however many tests look at it."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
from quick_runs import Quick, run_quick


@pytest.fixture(scope="session")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Quick]:
    """Runs a benchmark by its script's name, without suffix; all results lie in one folder."""
    folder = tmp_path_factory.mktemp("results")
    return functools.cache(lambda name: run_quick(name, folder))
