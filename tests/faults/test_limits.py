"""Too little memory, too few files, bad output folders: a wait, or one sentence and a code."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from scenarios import (
    REPOSITORY,
    SPEC,
    build_measured,
    declare_huge_volumes,
    make_source,
    small_disk,
    snapshot,
)

import ctgpu
from ctgpu.buffers import BufferPool, ByteBudget
from ctgpu.building.events import Event, SampleWritten
from ctgpu.building.pipeline import Failure, Pipeline, Stages, Workers
from ctgpu.errors import EnvironmentFailure, FetchError, StorageError, UsageError
from ctgpu.testing.ctrate import Volume, chest_phantom, lay_out_ct_rate

HUGE_BYTES = 2 * 1024 * 1024 * 2000


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("source")
    make_source(root, 6)
    return root


def run(
    *arguments: object, limits: Sequence[str] = (), before: str = "", device: str = "cpu"
) -> subprocess.CompletedProcess[str]:
    """``ctgpu build``, under limits as ``ulimit`` takes them."""
    shell = before + "".join(f"ulimit {limit} && " for limit in limits) + 'exec "$@"'
    return subprocess.run(
        [
            *("bash", "-c", shell, "bash", sys.executable, "-m", "ctgpu.cli", "build"),
            *("--device", device, "--shape", "90,90,50", "--spacing", "4,4,6"),
            *map(str, arguments),
        ],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        timeout=60,
        check=False,
    )


def is_one_sentence(result: subprocess.CompletedProcess[str], code: int) -> bool:
    """Whether the command ended with `code` and a single line of its own."""
    ours = [line for line in result.stderr.splitlines() if line.startswith("ctgpu: ")]
    return result.returncode == code and len(ours) == 1 and "Traceback" not in result.stderr


# Memory


def test_huge_volumes_wait_for_the_budget_under_32_workers() -> None:
    """Reservations of volumes of 4.2 GB each, three of which fit, and one that never does."""
    budget = ByteBudget(3 * HUGE_BYTES + (1 << 20))
    lock = threading.Lock()
    in_flight: dict[int, int] = {}
    peak = 0

    def note(task: int, size_bytes: int) -> None:
        nonlocal peak
        with lock:
            in_flight[task] = size_bytes
            peak = max(peak, sum(in_flight.values()))

    def footprint(task: int) -> int:
        return 4 * HUGE_BYTES if task == 20 else HUGE_BYTES

    def fetch(task: int) -> int:
        note(task, footprint(task))
        time.sleep(0.001)
        return task

    def write(task: int, result: int | Failure) -> None:
        with lock:
            if task == 20:
                assert in_flight.keys() == {20}
            written.append(task)
            del in_flight[task]

    written: list[int] = []
    stages: Stages[int, int, int, int] = Stages(
        footprint=footprint,
        fetch=fetch,
        fetched_footprint=lambda task, fetched: footprint(task),
        decode=lambda task, fetched: fetched,
        decoded_footprint=lambda task, decoded: footprint(task),
        make=lambda batch: [task for task, _ in batch],
        made_footprint=footprint,
        write=write,
        discard=lambda unused: None,
    )
    report = Pipeline(stages, Workers.for_machine(32, 2), budget).run(range(60))
    assert written == list(range(60))
    assert peak == report.peak_reserved_bytes == 4 * HUGE_BYTES
    assert budget.used_bytes == 0


def test_a_build_of_volumes_declared_huge_waits_and_ends(tmp_path: Path) -> None:
    make_source(tmp_path / "source", 6)
    declare_huge_volumes(tmp_path / "source")
    limit_bytes = 2 * HUGE_BYTES + (64 << 20)
    report = ctgpu.build(
        tmp_path / "out",
        source=tmp_path / "source",
        spec=SPEC,
        device="cpu",
        num_workers=32,
        memory_limit_bytes=limit_bytes,
    )
    assert report.written == 6
    assert report.pipeline is not None
    assert HUGE_BYTES < report.pipeline.peak_reserved_bytes <= limit_bytes


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
def test_memory_of_a_process_stays_within_the_budget(tmp_path: Path) -> None:
    """Sixteen volumes of 21 MB (as stored, raw and made: 57 MB) under a budget of two."""
    spacing_mm = (1.5, 1.5, 1.5)
    voxels = chest_phantom((220, 220, 220), spacing_mm)
    paths = lay_out_ct_rate(
        tmp_path / "source", {"valid_1_a_1": Volume(voxels, spacing_mm)}, nested=False, tables=()
    )
    for n in range(2, 17):
        os.link(paths["valid_1_a_1"], paths["valid_1_a_1"].with_name(f"valid_{n}_a_1.nii.gz"))
    spec = ctgpu.Spec(target_spacing_mm=spacing_mm, shape_hwd=(220, 220, 220))
    limit_bytes = 120 << 20
    figures = build_measured(
        tmp_path / "out", tmp_path / "source", spec, limit_bytes=limit_bytes, workers=32
    )
    assert figures["written"] == 16
    assert figures["peak_reserved_bytes"] <= limit_bytes
    # Stacks of 70 threads, arenas, and what is not counted in a sample.
    slack_bytes = 100 << 20
    assert figures["peak_rss_bytes"] <= figures["imports_rss_bytes"] + limit_bytes + slack_bytes


@pytest.mark.slow
def test_memory_that_runs_out_ends_the_run_and_not_every_sample(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **options: Any) -> Any:
        raise OSError(12, "Cannot allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr("ctgpu.buffers.mmap.mmap", refuse)
        with pytest.raises(MemoryError):
            BufferPool().acquire(1 << 20)
        with pytest.raises(EnvironmentFailure, match="lower --memory-limit or --num-workers"):
            ctgpu.build(tmp_path / "out", source=source, spec=SPEC, device="cpu")
    assert ctgpu.build(tmp_path / "out", device="cpu").written == 6


@pytest.mark.slow
def test_a_volume_larger_than_memory_is_a_failed_sample(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ctgpu.building.shard_maker.available_memory_bytes", lambda: 800_000)
    report = ctgpu.build(tmp_path / "out", source=source, spec=SPEC, device="cpu")
    assert len(report.failures) == 6
    assert "at most 800,000 are accepted" in report.failures[0]["message"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_workers": 0}, "num_workers is 0"),
        ({"num_workers": -1}, "num_workers is -1"),
        ({"num_workers": 10**9}, "num_workers is 1000000000"),
        ({"num_workers": 2.5}, "num_workers is 2.5"),
        ({"memory_limit_bytes": 0}, "memory_limit_bytes is 0"),
        ({"memory_limit_bytes": -1}, "memory_limit_bytes is -1"),
        ({"memory_limit_bytes": 10**400}, "memory_limit_bytes is 1000"),
        ({"memory_limit_bytes": 1e9}, "memory_limit_bytes is 1000000000.0"),
        ({"limit": 0}, "limit is 0"),
        ({"limit": 10**400}, "limit is 1000"),
        ({"samples_per_shard": 10**400}, "samples_per_shard is 1000"),
        ({"seed": 10**400}, "seed is 1000"),
        ({"shards": range(0)}, r"shards is range\(0, 0\)"),
        ({"shards": range(-2, 1)}, r"shards is range\(-2, 1\)"),
        ({"shards": range(0, 4, 2)}, r"shards is range\(0, 4, 2\)"),
        ({"shards": range(10**400)}, r"shards is range.*; the plan has"),
    ],
    ids=str,
)
def test_a_number_out_of_its_range_is_refused(
    tmp_path: Path, source: Path, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UsageError, match=f"^{sentence}"):
        ctgpu.build(tmp_path / "out", source=source, spec=SPEC, device="cpu", **options)
    assert not list((tmp_path / "out").glob("shard-*"))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_workers": 0}, "num_workers is 0"),
        ({"num_workers": 10**9}, "num_workers is 1000000000"),
        ({"memory_limit_bytes": 0}, "memory_limit_bytes is 0"),
        ({"calibrate": -1}, "calibrate is -1"),
    ],
    ids=str,
)
def test_a_number_out_of_its_range_is_refused_by_the_estimate_too(
    tmp_path: Path, source: Path, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UsageError, match=f"^{sentence}"):
        ctgpu.estimate_build(tmp_path, source=source, **options)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the address space")
@pytest.mark.parametrize("address_space_kb", [600_000, 900_000])
def test_too_little_memory_for_threads_or_modules_exits_3(
    tmp_path: Path, source: Path, address_space_kb: int
) -> None:
    result = run(
        *("--output-dir", tmp_path / "out", "--source", source, "--num-workers", 64),
        # Stacks so large that the threads which stay to the end do not fit; others end at once.
        limits=["-s 250000", f"-v {address_space_kb}"],
    )
    assert is_one_sentence(result, 3), result.stderr
    assert "memory ran out" in result.stderr or "no more threads" in result.stderr
    assert not (tmp_path / "out" / "manifest.json").exists()


# Threads


@contextmanager
def few_processes(most: int) -> Iterator[Path]:
    """A control group in which so many processes and threads may run, by its list of members."""
    group = Path("/sys/fs/cgroup/pids") / f"ctgpu-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group may be made here: {error}")
    try:
        (group / "pids.max").write_text(str(most))
        yield group / "cgroup.procs"
    finally:
        group.rmdir()


@pytest.mark.slow
@pytest.mark.parametrize("most", [2, 3, 4, 5])
def test_too_few_threads_exit_3_and_no_sample_is_blamed(
    tmp_path: Path, source: Path, most: int
) -> None:
    arguments = ("--output-dir", tmp_path / "out", "--source", source, "--num-workers", 8)
    with few_processes(most) as members:
        result = run(*arguments, before=f"echo $$ > {members} && ")
        assert is_one_sentence(result, 3), result.stderr
        assert "no more threads can be started here" in result.stderr
        assert not list((tmp_path / "out").glob("shard-*.tar"))
    again = run(*arguments)
    assert again.returncode == 0, again.stderr
    assert not (tmp_path / "out" / "failures.jsonl").read_text()


@pytest.mark.slow
def test_too_few_threads_for_torch_exit_3_before_its_openmp_ends_the_process_with_1(
    tmp_path: Path, source: Path
) -> None:
    pytest.importorskip("torch")
    arguments = ("--output-dir", tmp_path / "out", "--source", source)
    with few_processes(2) as members:
        result = run(*arguments, before=f"echo $$ > {members} && ", device="reference")
    assert is_one_sentence(result, 3), result.stderr
    assert "no more threads can be started here" in result.stderr


@pytest.mark.parametrize("started", range(12))
def test_a_thread_that_cannot_be_started_is_a_failure_of_the_environment(
    tmp_path: Path, source: Path, started: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever it is, of the pipeline or of the leases, and the folder goes on afterwards."""
    start = threading.Thread.start
    left = started

    def refuse(thread: threading.Thread) -> None:
        nonlocal left
        if not left:
            raise RuntimeError("can't start new thread")
        left -= 1
        start(thread)

    options: dict[str, Any] = {"source": source, "spec": SPEC, "device": "cpu", "num_workers": 8}
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(EnvironmentFailure, match="no more threads can be started"):
            ctgpu.build(tmp_path / "out", **options)
    for lease in (tmp_path / "out").glob("*.lease.*"):
        lease.unlink()
    assert ctgpu.build(tmp_path / "out", **options).written == 6


# What runs out in a stage


SHORTAGES = {
    "too many files": OSError(errno.EMFILE, "Too many open files"),
    "too many files are open on this machine": OSError(errno.ENFILE, "Too many open files"),
    "memory ran out": OSError(errno.ENOMEM, "Cannot allocate memory"),
    "memory ran": MemoryError("3 GB"),
    "no space is left": OSError(errno.ENOSPC, "No space left on device"),
    "no more threads": RuntimeError("can't start new thread"),
}


@pytest.mark.parametrize("stage", ["fetch", "decode", "make", "write"])
@pytest.mark.parametrize("sentence", SHORTAGES)
def test_what_runs_out_in_any_stage_ends_the_run_and_blames_no_sample(
    stage: str, sentence: str
) -> None:
    class Refused(FetchError):
        pass

    def run_out(*arguments: Any) -> Any:
        try:
            raise SHORTAGES[sentence]
        except Exception as error:
            if stage == "write":
                raise
            raise Refused("v.npz cannot be read") from error

    results: list[int | Failure] = []
    work: dict[str, Any] = {
        "fetch": lambda task: task,
        "decode": lambda task, fetched: fetched,
        "make": lambda batch: [task for task, _ in batch],
        "write": lambda task, result: results.append(result),
    }
    stages: Stages[int, int, int, int] = Stages(
        footprint=lambda task: 1,
        fetched_footprint=lambda task, fetched: 1,
        decoded_footprint=lambda task, decoded: 1,
        made_footprint=lambda task: 1,
        discard=lambda unused: None,
        **(work | {stage: run_out}),
    )
    with pytest.raises(EnvironmentFailure, match=f"^{sentence}"):
        Pipeline(stages, Workers(2, 2, 1), ByteBudget(1 << 20)).run(range(4))
    assert results == []


def test_a_folder_whose_files_cannot_be_opened_for_want_of_descriptors_blames_no_sample(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_open = os.open

    def refuse(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if str(path).endswith(".nii.gz"):
            raise OSError(errno.EMFILE, "Too many open files", str(path))
        return real_open(path, flags, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(EnvironmentFailure, match="too many files are open"):
            ctgpu.build(tmp_path / "out", source=source, spec=SPEC, device="cpu")
    assert ctgpu.build(tmp_path / "out", device="cpu").failures == []


# Files


@pytest.mark.slow
def test_a_low_limit_of_open_files_is_raised_where_that_is_allowed(
    tmp_path: Path, source: Path
) -> None:
    result = run(
        *("--output-dir", tmp_path / "out", "--source", source, "--num-workers", 16),
        *("--samples-per-shard", 1),
        limits=["-Sn 30"],
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_too_few_open_files_are_refused_before_the_work(tmp_path: Path, source: Path) -> None:
    arguments = ("--output-dir", tmp_path / "out", "--samples-per-shard", 1)
    result = run(*arguments, "--source", source, "--num-workers", 32, limits=["-n 48"])
    assert is_one_sentence(result, 3), result.stderr
    assert "only 48 files may be open at a time" in result.stderr
    assert not list((tmp_path / "out").glob("shard-*"))


@pytest.mark.slow
def test_64_open_files_are_enough(tmp_path: Path, source: Path) -> None:
    result = run("--output-dir", tmp_path / "out", "--source", source, limits=["-n 64"])
    assert result.returncode == 0, result.stderr


# Output folders


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("x" * 300, "File name too long"),
        ("/".join(["x" * 200] * 25), "File name too long"),
        ("file/out", "Not a directory"),
        ("file", "Not a directory"),
    ],
    ids=["long_name", "long_path", "below_a_file", "a_file"],
)
def test_an_output_folder_that_cannot_be_is_one_sentence(
    tmp_path: Path, source: Path, name: str, sentence: str
) -> None:
    (tmp_path / "file").touch()
    result = run("--output-dir", tmp_path / name, "--source", source)
    assert is_one_sentence(result, 3), result.stderr
    assert sentence in result.stderr


@pytest.mark.slow
def test_a_read_only_file_system_is_one_sentence(tmp_path: Path, source: Path) -> None:
    try:
        with small_disk(tmp_path / "disk", 16 << 20) as disk:
            begun = run("--output-dir", disk / "begun", "--source", source, "--limit", 1)
            assert begun.returncode == 0, begun.stderr
            subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
            new = run("--output-dir", disk / "new", "--source", source)
            again = run("--output-dir", disk / "begun", "--force")
    except PermissionError as error:
        pytest.skip(f"no file system may be mounted here: {error}")
    for result in (new, again):
        assert is_one_sentence(result, 3), result.stderr
        assert "read-only" in result.stderr


def test_an_output_folder_that_vanishes_stops_the_build_at_the_next_sample(
    tmp_path: Path, source: Path
) -> None:
    folder, away = tmp_path / "out", tmp_path / "away"
    written = []

    def move_away(event: Event) -> None:
        if isinstance(event, SampleWritten):
            written.append(event.key)
            if len(written) == 2:
                folder.rename(away)

    with pytest.raises(StorageError, match="the folder has vanished") as caught:
        ctgpu.build(folder, source=source, spec=SPEC, device="cpu", watch=move_away)
    assert caught.value.exit_code == 3
    assert len(written) == 2
    away.rename(folder)
    # The leases are those of this very process, which is alive.
    for lease in folder.glob("*.lease.*"):
        lease.unlink()
    assert ctgpu.build(folder, device="cpu").written == 4
    ctgpu.build(tmp_path / "whole", source=source, spec=SPEC, device="cpu")
    assert snapshot(folder) == snapshot(tmp_path / "whole")
