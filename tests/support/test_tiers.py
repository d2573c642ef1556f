"""Which tests run when, and in which order: what takes minutes waits until it is asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ctgpu.engines import available_engines

REPOSITORY = Path(__file__).resolve().parents[2]
FILES = ("tests/engines/test_cuda_ptx.py", "tests/gpu/test_cuda_engine.py")


def collected(*arguments: str) -> list[str]:
    """Names of the test functions that pytest would run, in order."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", *arguments, *FILES]
    ran = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    names = (line.split("::")[1] for line in ran.stdout.splitlines() if "::" in line)
    return [name.split("[")[0] for name in names]


@pytest.mark.slow
def test_what_takes_minutes_runs_only_when_it_is_asked_for() -> None:
    usual, asked = collected(), collected("-m", "exhaustive")
    assert "test_the_usual_kernels_give_exact_arithmetic" in usual
    assert "test_every_kernel_gives_exact_arithmetic" in asked
    assert "test_a_full_volume_has_the_bits_of_the_cpu_engine" in asked
    assert not set(usual) & set(asked)
    # The longer file first, whatever the order that they are named in.
    assert usual.index("test_a_batch_of_everything") < usual.index(
        "test_the_usual_kernels_give_exact_arithmetic"
    )
    if available_engines()["cuda"] is None:
        pytest.skip("this machine has a GPU, so large tests are no matter of minutes")
    assert "test_every_memory_order" in usual
    assert "test_the_usual_volume" in asked
    # Left in, to be skipped visibly: it needs a real one.
    assert "test_beside_torch_on_its_stream" in usual


def test_each_long_file_is_there(pytestconfig: pytest.Config) -> None:
    root = pytestconfig.pluginmanager.get_plugin(str(REPOSITORY / "tests/conftest.py"))
    assert root is not None
    there = {path.name for path in (REPOSITORY / "tests").rglob("test_*.py")}
    assert set(root.LONG_FILES) <= there
    assert len(set(root.LONG_FILES)) == len(root.LONG_FILES)


def test_a_process_takes_whole_files_in_their_order() -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    assert "--dist loadfile --no-loadscope-reorder" in makefile
    assert "\t$(PYTEST) -m 'not slow'\n" in makefile
