"""SIGKILL, SIGINT, SIGTERM and two processes at once: nothing finished is lost, nothing differs."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scenarios import (
    REPOSITORY,
    SAMPLES_PER_SHARD,
    SPEC,
    kill_and_resume,
    kill_at_calls,
    make_plan_of,
    make_source,
    pretend_committed,
    snapshot,
)

import ctgpu
from ctgpu.shards.folder import summaries
from ctgpu.shards.manifest import write_manifest
from ctgpu.shards.record import ShardSummary
from ctgpu.testing.hub import LocalHub
from ctgpu.volume.ref import SampleRef
from support.command_line import run_here
from support.phantoms import COARSE_SPEC

SAMPLES = 12
SMALL = ("--shape", "90,90,50", "--spacing", "4,4,6", "--samples-per-shard", SAMPLES_PER_SHARD)


@pytest.mark.slow
def test_killed_builds_resume_at_the_sample_and_leave_the_same_bytes(tmp_path: Path) -> None:
    result = kill_and_resume(tmp_path, samples=SAMPLES, kills=12, seed=5)
    assert result.kills >= 12
    assert len(result.moments) >= 3
    assert result.different == []
    assert result.written_twice == []
    assert max(result.redone) <= result.in_flight


@pytest.mark.slow
@pytest.mark.parametrize("recoded", [False, True])
def test_killed_where_it_compresses_it_leaves_the_same_bytes(tmp_path: Path, recoded: bool) -> None:
    make_source(tmp_path / "source", 5, broken=3)
    options: dict[str, Any] = {"source": str(tmp_path / "source")}
    options |= {"samples_per_shard": 2, "num_workers": 1}
    if recoded:
        ctgpu.build(tmp_path / "home", **options, spec=COARSE_SPEC, compress="pack", device="cpu")
    (tmp_path / "out").mkdir()
    result = kill_at_calls(
        tmp_path / "out",
        options | {"spec": COARSE_SPEC.to_dict(), "compress": "rice"},
        recode=tmp_path / "home" if recoded else None,
        points=10,
    )
    assert result.kills == 10
    assert len(result.moments) >= 3
    assert len(result.went_on_with) >= 3
    assert result.written_twice == []
    assert result.different == []


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("source")
    make_source(root, SAMPLES)
    return root


@pytest.fixture
def hub(source: Path) -> Iterator[LocalHub]:
    with LocalHub(source) as served:
        yield served


@pytest.fixture(scope="module")
def undisturbed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a build leaves that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed") / "out"
    with LocalHub(source) as hub:
        ctgpu.build(
            folder,
            repo_id=hub.repo_id,
            endpoint=hub.url,
            spec=SPEC,
            samples_per_shard=SAMPLES_PER_SHARD,
            device="cpu",
        )
    return snapshot(folder)


def begin(hub: LocalHub, folder: Path, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "ctgpu.cli", "build", "--output-dir", str(folder)),
            *("--device", "cpu", "--log-format", "json", *map(str, arguments)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"},
    )


def wait_until(reached: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not reached():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.001)


def samples_in(journal: Path) -> int:
    return journal.read_bytes().count(b'"sample":') if journal.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"]
)
def test_a_signal_ends_a_build_whose_download_stalls(
    tmp_path: Path,
    hub: LocalHub,
    undisturbed: dict[str, Any],
    number: signal.Signals,
    code: int,
) -> None:
    folder = tmp_path / "the output"
    process = begin(hub, folder, "--repo-id", hub.repo_id, "--num-workers", 1, *SMALL)
    wait_until(lambda: samples_in(folder / "shard-000000.journal") > 0, process)
    hub.faults.bodies = ["stall"]
    wait_until(lambda: not hub.faults.bodies, process)
    process.send_signal(number)
    # A silent server is borne with for 30 s; the process must not use that up.
    _, errors = process.communicate(timeout=20)
    assert process.returncode == code, errors
    assert f"Go on with: ctgpu build --output-dir '{folder}'" in errors
    assert "Traceback" not in errors
    assert not list(folder.glob("*.lease.*"))
    again = begin(hub, folder)
    _, errors = again.communicate(timeout=60)
    assert again.returncode == 0, errors
    assert snapshot(folder) == undisturbed


@pytest.mark.slow
def test_a_second_signal_ends_the_process_at_once(
    tmp_path: Path, hub: LocalHub, undisturbed: dict[str, Any]
) -> None:
    process = begin(hub, tmp_path / "out", "--repo-id", hub.repo_id, *SMALL)
    wait_until(lambda: samples_in(tmp_path / "out/shard-000000.journal") > 0, process)
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode in (130, -signal.SIGINT), errors
    assert "Traceback" not in errors
    again = begin(hub, tmp_path / "out")
    assert again.wait(timeout=60) == 0
    again.communicate()
    assert snapshot(tmp_path / "out") == undisturbed


#: Gives a conversion the time to be stopped in the middle.
SLOWLY = """
import time
from ctgpu.building import recoding
restore = recoding.restore_sample
def slowly(*arguments):
    time.sleep(0.2)
    return restore(*arguments)
recoding.restore_sample = slowly
from ctgpu.cli import main
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"]
)
def test_a_signal_ends_a_recoding_which_goes_on(
    tmp_path: Path, source: Path, number: signal.Signals, code: int
) -> None:
    options: dict[str, Any] = {"source": source, "spec": SPEC, "device": "cpu", "limit": 8}
    options |= {"samples_per_shard": SAMPLES_PER_SHARD}
    for compress in ("pack", "rice"):
        ctgpu.build(tmp_path / compress, **options, compress=compress)
    folder = tmp_path / "the output"
    command = ["convert", "--input-pattern", tmp_path / "pack", "--output-dir", folder]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOWLY, *map(str, command), "--compress", "rice"],
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )
    wait_until(lambda: samples_in(folder / "shard-000000.journal") > 0, process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == code, errors
    (again,) = re.findall(r"Go on with: ctgpu (.*)", errors)
    assert "Traceback" not in errors
    assert not list(folder.glob("*.lease.*"))
    assert len(list(folder.glob("shard-*.tar"))) < 2
    assert run_here(*shlex.split(again)).returncode == 0
    assert snapshot(folder) == snapshot(tmp_path / "rice")


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True], ids=["both_live", "one_killed"])
def test_two_processes_share_a_folder(
    tmp_path: Path, hub: LocalHub, undisturbed: dict[str, Any], killed: bool
) -> None:
    folder = tmp_path / "out"
    arguments = (hub, folder, "--repo-id", hub.repo_id, "--num-workers", 1, *SMALL)
    processes = [begin(*arguments)]
    if killed:
        # It dies in the middle of a shard, which the other one waits for and takes over.
        wait_until(lambda: samples_in(folder / "shard-000000.journal") > 1, processes[0])
        processes[0].send_signal(signal.SIGSTOP)
    processes.append(begin(*arguments))
    if killed:
        wait_until(lambda: len(list(folder.glob(".session-*"))) == 2, processes[1])
        processes[0].kill()
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [-9 if killed else 0, 0], outputs
    committed: Counter[int] = Counter()
    for _, errors in outputs:
        lines = [json.loads(line) for line in errors.splitlines()]
        committed.update(line["shard"] for line in lines if line.get("event") == "ShardCommitted")
    assert committed == Counter(range(3))
    assert snapshot(folder) == undisturbed


def test_the_manifest_has_a_shard_that_was_committed_while_it_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = {"kind": "hub", "location": "nobody/has-it", "revision": "0" * 40}
    last = SampleRef.of_file("dataset/valid_fixed/valid_1_a_1.nii.gz", 1 << 27)
    plan = make_plan_of(tmp_path / "out", 2, 3, source, last)
    pretend_committed(tmp_path / "out", plan, range(1))

    def slowly(folder: Path) -> list[ShardSummary]:
        found = summaries(folder)
        pretend_committed(folder, plan, range(1, 2))
        return found

    monkeypatch.setattr("ctgpu.shards.manifest.summaries", slowly)
    assert write_manifest(tmp_path / "out")["total_shards"] == 2
