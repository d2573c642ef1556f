"""``run_preprocess.py --preset`` times a preset beside its project's pipeline, on the same scan."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.harness.asking import RESULTS
from benchmarks.peers.volumes import PIPELINES
from benchmarks.questions import preprocess
from ctgpu.spec import Spec

#: Half a step of float16 below 1, of 2,000 HU.
ROUNDING_HU = 2**-12 * 2000 + 0.01


@pytest.mark.slow
@pytest.mark.parametrize("preset", PIPELINES)
def test_both_make_the_same(tmp_path: Path, preset: str) -> None:
    pytest.importorskip("monai")
    written = tmp_path / "result.json"
    preprocess.main(["--quick", "--preset", preset, "--json", str(written)])
    result = json.loads(written.read_text())
    assert result["benchmark"] == f"preprocess_{preset}"
    assert len(result["contenders"]) == 2
    assert result["apart_hu"]["largest"] < ROUNDING_HU


def test_what_was_measured_is_the_preset_of_today() -> None:
    result = json.loads((RESULTS / "preprocess_merlin.json").read_text())
    assert Spec.from_dict(result["spec"]) == Spec.preset("merlin")
    assert result["apart_hu"]["largest"] < ROUNDING_HU
