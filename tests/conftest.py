"""What every test may ask for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

from hermetic import begin_again_in_utf8, shut_out

# Before test modules are imported, and with them what reads the environment once.
shut_out()

# The same examples in every run, however slow the machine.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")

pytest_configure = begin_again_in_utf8

REPOSITORY = Path(__file__).resolve().parent.parent


def _real_ct_folder() -> Path | None:
    named = os.environ.get("CTGPU_REAL_CT")
    for folder in (named, REPOSITORY.parent / "shared" / "real_ct"):
        if folder and next(Path(folder).glob("*.nii.gz"), None):
            return Path(folder)
    return None


@pytest.fixture(scope="session")
def real_ct() -> Path:
    """The folder of real CT volumes; the test is skipped where there is none."""
    folder = _real_ct_folder()
    if folder is None:
        pytest.skip("no real CT volumes: set CTGPU_REAL_CT to a folder that holds them")
    return folder


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip ``gpu`` tests, visibly, where no CUDA device can be used; leave out exhaustive ones."""
    if any(item.get_closest_marker(name) for item in items for name in ("gpu", "large")):
        from ctgpu.engines import available_engines

        reason = available_engines()["cuda"]
        # Where gpu/check.py has found a device, one that cannot be used now is a failure.
        if reason is not None and "CTGPU_CHECK_STAGE" not in os.environ:
            for item in items:
                if item.get_closest_marker("gpu"):
                    item.add_marker(pytest.mark.skip(reason=reason))
                if item.get_closest_marker("large"):
                    item.add_marker("exhaustive")
    if "exhaustive" not in config.getoption("markexpr"):
        exhaustive = [item for item in items if item.get_closest_marker("exhaustive")]
        config.hook.pytest_deselected(items=exhaustive)
        items[:] = [item for item in items if item not in exhaustive]
    for item in items:
        # With `--dist loadgroup` a file's tests stay together, as with `loadfile`, unless they say
        # with which others they run one after the other.
        if not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Take the group off a test's name, where xdist has put it, so that ``--lf`` knows the test."""
    name, _, group = report.nodeid.rpartition("@")
    if name and "]" not in group and "PYTEST_XDIST_WORKER" not in os.environ:
        report.nodeid = name
