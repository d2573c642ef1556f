"""What every test may ask for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

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

#: Files whose tests kill processes, limit memory or start Ray: one process runs them all.
PROCESS_FILES = ("test_ray.py", "test_ray_cluster.py", "test_kills.py", "test_limits.py")

#: Files whose tests take half a minute or more, all together: the longest come first.
LONG_FILES = (
    *PROCESS_FILES,
    "test_wheel.py",
    *("test_quick.py", "test_docs.py", "test_defects.py", "test_crash.py", "test_check.py"),
    *("test_cuda.py", "test_cuda_engine.py", "test_cpu_bits.py", "test_cpu.py"),
    *("test_cuda_tiles.py", "test_whole_check.py", "test_endless_hub.py"),
    *("test_hu_scale.py", "test_terminal.py", "test_nvrtc.py", "test_install.py", "test_exits.py"),
    *("test_hostile_dicom.py", "test_examples.py"),
)


def _real_ct_folder() -> Path | None:
    named = os.environ.get("CTGPU_REAL_CT")
    for folder in (named, REPOSITORY.parent / "shared" / "real_ct"):
        if folder and next(Path(folder).glob("*.nii.gz"), None):
            return Path(folder)
    return None


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist, which machines that only check a GPU lack
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hand out files, as ``--dist loadfile`` does, but :data:`PROCESS_FILES` to one worker."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "processes" if file.rpartition("/")[2] in PROCESS_FILES else file

    return ByFile(config, log)


@pytest.fixture(scope="session")
def real_ct() -> Path:
    """The folder of real CT volumes; the test is skipped where there is none."""
    folder = _real_ct_folder()
    if folder is None:
        pytest.skip("no real CT volumes: set CTGPU_REAL_CT to a folder that holds them")
    return folder


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip ``gpu`` tests where there is no device; leave out exhaustive ones; long files first."""
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
    # A worker takes file after file: with a long one at the end, the others would wait for it.
    places = {name: place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))
