"""Short runs of the codec's fuzzers, over members and over tiles; the long ones: ``make fuzz``."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from fuzzing import run_fuzzer

from support.compiling import REPOSITORY, built, built_for_arm


@pytest.mark.slow
def test_a_short_seeded_run_over_members_finds_nothing(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris is not installed")
    run_fuzzer(Path(__file__).with_name("fuzz_ctz.py"), tmp_path, 5000, 4096)


# Its harness runs on random inputs in `make sanitize`; clang takes a minute to compile it.
@pytest.mark.exhaustive
def test_a_short_seeded_run_over_tiles_finds_nothing(tmp_path: Path) -> None:
    compiler = shutil.which("clang++")
    if compiler is None:
        pytest.skip("clang++ is not installed")
    harness = built(
        "fuzz_ctz",
        REPOSITORY / "build" / "fuzz",
        *(f"CMAKE_CXX_COMPILER={compiler}", "CTGPU_FUZZ=ON", "CTGPU_SANITIZE=ON"),
    )
    run_fuzzer(harness, tmp_path, 1000, 2048)


@pytest.mark.slow
def test_neon_agrees_on_random_inputs() -> None:
    command = [*built_for_arm("test_ctz"), "--random", "300", "7"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
