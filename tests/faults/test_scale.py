"""Many samples and shards: planned from a listing, gone on with from names, no tar opened.

What it takes is measured by ``benchmarks/run_reliability.py``.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from scenarios import (
    make_plan_of,
    plan_measured,
    pretend_committed,
    resume_measured,
    run_measured,
)

from ctgpu.shards.plan import Plan
from ctgpu.volume.ref import SampleRef


@pytest.mark.slow
def test_thousands_of_samples_are_planned_from_listing_and_tables(tmp_path: Path) -> None:
    figures = plan_measured(tmp_path, 2_500)
    assert (figures["samples"], figures["shards"]) == (2_500, 20)
    plan = Plan.load(tmp_path / "planned")
    assert [sample.key for sample in plan.samples][:3] == [
        "train_1_a_1",
        "train_1_a_2",
        "train_2_a_1",
    ]
    assert len({sample.checksum for sample in plan.samples}) == 2_500


@pytest.mark.slow
def test_a_finished_build_is_run_again_without_opening_a_tar(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    source = {"kind": "hub", "location": "nobody/has-it", "revision": "0" * 40}
    last = SampleRef.of_file("dataset/valid_fixed/valid_1_a_1.nii.gz", 1 << 27)
    plan = make_plan_of(folder, 60, 16, source, last)
    pretend_committed(folder, plan, range(60))
    figures = run_measured(folder)
    assert figures["tars_opened"] == []
    assert (figures["written"], figures["total_samples"]) == (0, 60 * 16)


@pytest.mark.slow
def test_a_resumed_build_opens_no_tar_but_its_own(tmp_path: Path) -> None:
    figures = resume_measured(tmp_path, committed=100)
    assert (figures["written"], figures["total_samples"]) == (1, 101)
    assert figures["tars_opened"] == []
