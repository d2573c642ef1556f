"""A short run of the decoders' fuzzer; the long one is ``make fuzz``."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzzing import run_fuzzer


@pytest.mark.slow
def test_a_short_seeded_run_finds_nothing(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris is not installed")
    run_fuzzer(Path(__file__).with_name("fuzz_decode.py"), tmp_path, 4000, 4096)
