"""What every process of a build knows, and the executor of this one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ctgpu.building import executor
from ctgpu.building.events import ignore
from ctgpu.building.executor import BuildJob, LocalExecutor, default_workers
from ctgpu.building.request import Part, Request
from ctgpu.engines import open_engine
from ctgpu.errors import MismatchError, UsageError
from ctgpu.shards.plan import Plan
from support.building import builds
from support.phantoms import COARSE_SPEC

build = builds(spec=COARSE_SPEC, samples_per_shard=2)


def job(folder: Path, **options: Any) -> BuildJob:
    return BuildJob(folder=folder, request=Request(**({"device": "cpu"} | options)))


def test_memory_is_divided_among_the_tasks_of_a_machine(tmp_path: Path) -> None:
    shared = job(tmp_path, memory_limit_bytes=1 << 30, part=Part(processes_per_machine=4))
    assert shared.memory_share_bytes == 1 << 28


def test_without_a_limit_the_machine_decides_and_a_byte_is_left_to_everyone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "default_memory_limit_bytes", lambda: 1000)
    assert job(tmp_path).memory_share_bytes == 1000
    crowded = job(tmp_path, memory_limit_bytes=3, part=Part(processes_per_machine=4))
    assert crowded.memory_share_bytes == 1


@pytest.mark.parametrize(("cores", "threads"), [(1, 4), (4, 4), (9, 9), (64, 16)])
def test_files_are_fetched_side_by_side_on_any_machine(
    monkeypatch: pytest.MonkeyPatch, cores: int, threads: int
) -> None:
    monkeypatch.setattr(executor, "usable_cores", lambda: cores)
    assert default_workers() == threads


def test_an_engine_that_is_given_is_the_one_that_computes(tmp_path: Path) -> None:
    engine = open_engine("cpu")
    assert job(tmp_path, device=engine).open_engine() is engine
    engine.close()
    with pytest.raises(UsageError, match="device is 'tpu'"):
        job(tmp_path, device="tpu").open_engine()


def test_what_is_pending_is_what_is_not_there_or_is_asked_for_again(
    tmp_path: Path, source: Path
) -> None:
    (bad,) = source.rglob("valid_2_a_1.nii.gz")
    bad.write_bytes(b"nothing")
    out = tmp_path / "out"
    build(out, source, shards=range(2))
    plan = Plan.load(out)
    assert job(out).pending(plan) == [2]
    # The failed sample is in the second shard.
    assert job(out, retry_failed=True).pending(plan) == [1, 2]
    assert job(out, force=True).pending(plan) == [0, 1, 2]


def test_the_source_of_a_plan_holds_all_that_is_pending(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out"
    build(out, source, shards=range(1))
    plan = Plan.load(out)
    job(out).open_source(plan).source.close()
    (made,) = source.rglob("valid_1_a_1.nii.gz")
    made.unlink()
    job(out).open_source(plan).source.close()
    (pending,) = source.rglob("valid_10_a_2.nii.gz")
    pending.unlink()
    with pytest.raises(MismatchError, match="does not hold the volumes that were planned"):
        job(out).open_source(plan)


def test_this_process_makes_the_shards_that_it_is_told_to(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out"
    build(out, source, shards=range(1))
    plan = Plan.load(out)
    here = LocalExecutor()
    here.open(job(out))
    try:
        written, report = here.make(plan, [2], None, ignore)
    finally:
        here.close()
    assert (written, report.samples) == (2, 2)
    assert job(out).pending(plan) == [1]


def test_what_could_not_be_opened_is_closed_without_a_word(tmp_path: Path) -> None:
    here = LocalExecutor()
    here.close()
    with pytest.raises(UsageError):
        here.open(job(tmp_path, device="tpu"))
    here.close()
