"""What a Ray worker does: one shard."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from driving import (
    SMALL,
    begin,
    catch,
    finish,
    owners,
)
from ray_cases import job
from scenarios import snapshot

import ctgpu
from ctgpu.distribute import ray_task
from ctgpu.distribute.ray_task import make_shard
from ctgpu.engines import open_engine
from ctgpu.errors import StorageError, UsageError


def test_a_folder_that_is_not_shared_is_named(tmp_path: Path) -> None:
    result = make_shard(job(tmp_path), "run", ctgpu.__version__, 1, 0)
    assert isinstance(result.error, StorageError)
    assert "a file system that all nodes share" in str(result.error)


def test_another_version_on_a_node_is_refused(tmp_path: Path) -> None:
    result = make_shard(job(tmp_path), "run", "0.0.0", 1, 0)
    assert isinstance(result.error, UsageError)
    assert "install the same version" in str(result.error)


@pytest.mark.slow
def test_a_shard_that_another_process_makes_is_left_to_it(
    tmp_path: Path, source: Path, undisturbed: dict[str, Any]
) -> None:
    folder = tmp_path / "out"
    first = begin("--output-dir", folder, "--source", source, *SMALL)
    try:
        (pid,) = catch(folder, 1, first)
        (shard,) = owners(folder)
        index = int(shard.removeprefix("shard-"))
        result = make_shard(job(folder), "run", ctgpu.__version__, 1, index)
        assert str(result.held).startswith(f"process {pid} on ")
    finally:
        ray_task._close_workplace()
        first.send_signal(signal.SIGCONT)
    finish(first)
    assert snapshot(folder) == undisturbed


@pytest.mark.slow
def test_a_worker_keeps_engine_and_tables_for_its_next_task(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ctgpu.build(tmp_path / "out", source=source, samples_per_shard=8, shards=range(1), device="cpu")
    opened = []

    def counting(device: str) -> Any:
        opened.append(device)
        return open_engine(device)

    monkeypatch.setattr("ctgpu.building.executor.open_engine", counting)
    try:
        results = [
            make_shard(job(tmp_path / "out"), "run", ctgpu.__version__, 1, index)
            for index in range(4)
        ]
    finally:
        ray_task._close_workplace()
    # The first one is there already.
    assert [result.report is not None for result in results] == [False, True, True, True]
    assert opened == ["cpu"]
