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
    SAMPLES_PER_SHARD,
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
from ray_cases import job
from scenarios import snapshot

from ctgpu.building.request import Part
from ctgpu.distribute import ray as on_ray
from ctgpu.distribute.ray_resources import Resources
from ctgpu.testing.ctrate import lay_out_ct_rate
from support.phantoms import chest

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


# The executor knows nothing of what is in a shard.
@pytest.mark.exhaustive
def test_compressed_shards_are_those_of_one_process(
    tmp_path: Path, cluster: RayCluster, source: Path
) -> None:
    options = ("--source", source, *SMALL, "--limit", 2 * SAMPLES_PER_SHARD, "--compress", "rice")
    finish(begin("--output-dir", tmp_path / "alone", *options))
    driver = on(cluster, tmp_path / "out", *options)
    report, errors = driver.communicate(timeout=WITHIN_S)
    assert driver.returncode == 0, errors
    made = snapshot(tmp_path / "out")
    assert made == snapshot(tmp_path / "alone")
    records = [made[name] for name in made if name.startswith("shard-") and name.endswith(".json")]
    members = [sample["members"] for record in records for sample in record["samples"]]
    assert len(members) == 2 * SAMPLES_PER_SHARD
    # What was written is counted as it lies in the shards, which others wrote.
    assert json.loads(report)["stored_bytes"] == sum(sample["ctz"][1] for sample in members)


@pytest.mark.exhaustive
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
    shapes = [(90, 80, 60), (90, 80, 62), (90, 80, 60)]
    lay_out_ct_rate(
        tmp_path / "source",
        {f"valid_{n}_a_1": chest(shape, n) for n, shape in enumerate(shapes, 1)},
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
