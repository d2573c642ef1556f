"""A real Ray cluster on this machine builds the same bytes, whatever happens to its parts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from driving import (
    HERE,
    SMALL,
    WITHIN_S,
    RayCluster,
    begin,
    catch,
    committed_in,
    environment,
    finish,
    owners,
)
from scenarios import snapshot

import ctgpu
from ctgpu.building.executor import BuildJob
from ctgpu.building.request import Part, Request
from ctgpu.distribute import ray as on_ray
from ctgpu.distribute import ray_task
from ctgpu.distribute.ray_resources import Resources, task_resources
from ctgpu.distribute.ray_task import make_shard
from ctgpu.engines import open_engine
from ctgpu.errors import DeviceError, StorageError, UsageError
from ctgpu.testing.ctrate import Volume, chest_phantom, lay_out_ct_rate

pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with RayCluster(2) as running:
        yield running


def on(cluster: RayCluster, folder: Path, *arguments: object) -> subprocess.Popen[str]:
    return begin("--output-dir", folder, "--ray", cluster.address, *arguments)


@pytest.mark.slow
def test_a_cluster_builds_the_same_bytes(
    tmp_path: Path, cluster: RayCluster, source: Path, undisturbed: dict[str, Any]
) -> None:
    folder = tmp_path / "out"
    log = finish(on(cluster, folder, "--source", source, *SMALL))
    assert sorted(committed_in(log)) == [0, 1, 2, 3]
    assert snapshot(folder) == undisturbed
    again = finish(on(cluster, folder))
    assert committed_in(again) == []
    assert snapshot(folder) == undisturbed


@pytest.mark.slow
def test_real_ct_is_built_the_same(tmp_path: Path, cluster: RayCluster, real_ct: Path) -> None:
    options = ("--source", real_ct, "--spacing-fallback", "header", "--shape", "160,160,80")
    options += ("--spacing", "2.5,2.5,5", "--samples-per-shard", 2)
    finish(begin("--output-dir", tmp_path / "alone", *options))
    finish(on(cluster, tmp_path / "out", *options))
    made = snapshot(tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.tar"))) == 5
    assert made == snapshot(tmp_path / "alone")


@pytest.mark.slow
def test_a_worker_killed_in_a_shard_is_replaced(
    tmp_path: Path, cluster: RayCluster, source: Path, undisturbed: dict[str, Any]
) -> None:
    folder = tmp_path / "out"
    driver = on(cluster, folder, "--source", source, *SMALL)
    for pid in catch(folder, 1, driver):
        os.kill(pid, signal.SIGKILL)
    log = finish(driver)
    assert Counter(committed_in(log)) == Counter(range(4))
    assert snapshot(folder) == undisturbed


@pytest.mark.slow
def test_a_node_lost_in_a_shard_is_done_without(
    tmp_path: Path, cluster: RayCluster, source: Path, undisturbed: dict[str, Any]
) -> None:
    folder = tmp_path / "out"
    driver = on(cluster, folder, "--source", source, *SMALL)
    caught = catch(folder, 2, driver)
    assert len({psutil.Process(pid).ppid() for pid in caught}) == 2
    try:
        assert len(cluster.lose_node(caught)) == 1
        log = finish(driver)
    finally:
        cluster.tell("add")
    assert Counter(committed_in(log)) == Counter(range(4))
    assert snapshot(folder) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"]
)
def test_a_cancelled_build_goes_on_without_the_cluster(
    tmp_path: Path,
    cluster: RayCluster,
    source: Path,
    undisturbed: dict[str, Any],
    number: signal.Signals,
    code: int,
) -> None:
    folder = tmp_path / "out"
    driver = on(cluster, folder, "--source", source, *SMALL)
    caught = catch(folder, 1, driver)
    driver.send_signal(number)
    for pid in caught:
        os.kill(pid, signal.SIGCONT)
    log = finish(driver, code)
    assert f"ctgpu build --output-dir {folder} --ray {cluster.address}" in log
    assert not owners(folder)
    finish(begin("--output-dir", folder))
    assert snapshot(folder) == undisturbed


@pytest.mark.slow
def test_a_killed_driver_leaves_what_another_goes_on_with(
    tmp_path: Path, cluster: RayCluster, source: Path, undisturbed: dict[str, Any]
) -> None:
    folder = tmp_path / "out"
    driver = on(cluster, folder, "--source", source, *SMALL)
    caught = catch(folder, 1, driver)
    driver.kill()
    driver.communicate()
    for pid in caught:
        os.kill(pid, signal.SIGCONT)
    finish(on(cluster, folder))
    assert snapshot(folder) == undisturbed


@pytest.mark.slow
def test_two_drivers_share_a_folder(
    tmp_path: Path, cluster: RayCluster, source: Path, undisturbed: dict[str, Any]
) -> None:
    folder = tmp_path / "out"
    drivers = [on(cluster, folder, "--source", source, *SMALL) for _ in range(2)]
    committed = Counter[int]()
    for driver in drivers:
        committed.update(committed_in(finish(driver)))
    assert committed == Counter(range(4))
    assert snapshot(folder) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize(("times", "code"), [(2, 0), (1000, 3)], ids=["passes", "stays"])
def test_a_failing_shard_is_tried_again_and_then_reported(
    tmp_path: Path, cluster: RayCluster, times: int, code: int
) -> None:
    spacing_mm = (3.5, 3.0, 5.0)
    shapes = [(90, 80, 60), (90, 80, 62), (90, 80, 60)]
    lay_out_ct_rate(
        tmp_path / "source",
        {
            f"valid_{n}_a_1": Volume(chest_phantom(shape, spacing_mm, n), spacing_mm)
            for n, shape in enumerate(shapes, 1)
        },
    )
    (tmp_path / "failures").mkdir()
    result = subprocess.run(
        [
            *(sys.executable, str(HERE / "breaking.py"), cluster.address),
            *(str(tmp_path / "out"), str(tmp_path / "source"), json.dumps(shapes[1])),
            *(str(times), str(tmp_path / "failures")),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=WITHIN_S,
        env=environment(),
    )
    assert result.returncode == code, result.stdout + result.stderr
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    if code:
        assert "1 of 3 shards could not be made, shard 000001" in result.stdout
        assert "the device is on fire" in result.stdout
        assert [shard["shard_index"] for shard in manifest["shards"]] == [0, 2]
        assert len(list((tmp_path / "failures").iterdir())) == 3
    else:
        assert manifest["total_samples"] == 3
        assert len(list((tmp_path / "failures").iterdir())) == 2


# Resources


def node(machine: str, alive: bool = True, **resources: float) -> dict[str, Any]:
    return {"Alive": alive, "NodeManagerHostname": machine, "Resources": resources}


@pytest.mark.parametrize(
    ("nodes", "device", "num_workers", "expected"),
    [
        ([node("a", CPU=64)], "cpu", None, Resources(4, 0, 16, 16)),
        ([node("a", CPU=64), node("b", CPU=2)], "cpu", None, Resources(2, 0, 33, 32)),
        ([node("a", CPU=64), node("b", CPU=2)], "auto", 8, Resources(8, 0, 8, 8)),
        ([node("a", CPU=8), node("a", CPU=8)], "cpu", None, Resources(4, 0, 4, 4)),
        ([node("a", CPU=64, GPU=8)], "auto", None, Resources(8, 1, 8, 8)),
        ([node("a", CPU=64, GPU=8), node("b", CPU=96)], "cuda", None, Resources(8, 1, 8, 8)),
        ([node("a", CPU=64, GPU=8)], "cpu", None, Resources(4, 0, 16, 16)),
        ([node("a", CPU=2, GPU=4)], "cuda", None, Resources(1, 1, 2, 2)),
        ([node("a", CPU=4), node("b", False, CPU=99)], "cpu", None, Resources(4, 0, 1, 1)),
    ],
)
def test_a_task_takes_one_gpu_or_some_cores(
    nodes: list[dict[str, Any]], device: str, num_workers: int | None, expected: Resources
) -> None:
    assert task_resources(nodes, device, num_workers) == expected


def test_a_gpu_by_number_is_refused() -> None:
    with pytest.raises(UsageError, match="with --ray write cuda"):
        task_resources([node("a", CPU=4, GPU=1)], "cuda:0", None)


@pytest.mark.parametrize(
    ("nodes", "device", "num_workers"),
    [([node("a", CPU=4)], "cpu", 5), ([node("a", CPU=4)], "cuda", None), ([node("a")], "cpu", 1)],
)
def test_a_cluster_without_room_for_a_task_is_refused(
    nodes: list[dict[str, Any]], device: str, num_workers: int | None
) -> None:
    with pytest.raises(DeviceError, match="no node of the Ray cluster has"):
        task_resources(nodes, device, num_workers)


# The task


def job(folder: Path, **changes: Any) -> BuildJob:
    values: dict[str, Any] = {
        "device": "cpu",
        "num_workers": 1,
        "memory_limit_bytes": 1 << 30,
        "part": Part(processes_per_machine=4),
    }
    return BuildJob(folder=folder, request=Request(**(values | changes)))


def test_memory_is_divided_among_the_tasks_of_a_machine(tmp_path: Path) -> None:
    assert job(tmp_path).memory_share_bytes == 1 << 28


def test_other_machines_are_told_nothing_relative(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_local")
    monkeypatch.setenv("HF_ENDPOINT", "http://localhost:1")
    given = job(Path("out"), source=Path("source"), part=Part(0, 3, 4))
    told = on_ray._for_workers(given, Resources(2, 0, 5, 4))
    assert (told.folder, told.request.source) == (tmp_path / "out", tmp_path / "source")
    assert (told.request.token, told.request.part.count) == (None, 15)
    assert told.request.part.processes_per_machine == 16
    of_hub = on_ray._for_workers(job(Path("out"), device="auto"), Resources(2, 1, 5, 4))
    assert (of_hub.request.token, of_hub.request.endpoint) == ("hf_local", "http://localhost:1")
    assert of_hub.request.device == "cuda"
    assert "hf_local" not in repr(of_hub)


def test_a_folder_that_is_not_shared_is_named(tmp_path: Path) -> None:
    result = make_shard(job(tmp_path), "run", ctgpu.__version__, 1, 0)
    assert isinstance(result.error, StorageError)
    assert "a file system that all nodes share" in str(result.error)


def test_another_version_on_a_node_is_refused(tmp_path: Path) -> None:
    result = make_shard(job(tmp_path), "run", "0.0.0", 1, 0)
    assert isinstance(result.error, UsageError)
    assert "install the same version" in str(result.error)


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
