"""Whatever happens to a writer, the next one leaves the same bytes."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import pytest
from power_cut import Killed, Machine
from shard_samples import MASKS, ODD, WHOLE_PAGES, make_plan, write_shard

from ctgpu.errors import StorageError
from ctgpu.shards.findings import shard_findings
from ctgpu.shards.folder import is_committed, remove_leftovers
from ctgpu.shards.plan import Plan
from ctgpu.shards.record import SampleEntry
from ctgpu.shards.writer import PackedSample, ShardWriter

Scenario = partial[None]

_PLANS = {
    "odd": make_plan(spec=ODD),
    "whole_pages": make_plan(spec=WHOLE_PAGES),
    "masks": make_plan(spec=ODD, masks=MASKS),
}


@pytest.fixture(autouse=True)
def _no_real_syncs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model knows what was synced; the real disk need not be bothered."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)


def _begin(folder: Path, plan: Plan) -> None:
    """Write a shard whose first sample fails."""
    if not is_committed(folder, 0):
        write_shard(folder, plan, failing=("scan_0",))


def _retry(folder: Path, plan: Plan) -> None:
    """Write it again, whole."""
    write_shard(folder, plan, replacing=is_committed(folder, 0))


def _state(folder: Path) -> dict[str, bytes]:
    """All files of the folder, but for temporary ones, which go after an hour."""
    remove_leftovers(folder)
    return {
        path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".ctgpu-tmp"
    }


# With masks, samples are odd too.
@pytest.fixture(
    params=[
        pytest.param(
            (run, name),
            id=f"{run.__name__[1:]}-{name}",
            marks=[pytest.mark.exhaustive] if name == "odd" else [],
        )
        for run, name in itertools.product((_begin, _retry), _PLANS)
    ]
)
def scenario(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Scenario]:
    """A folder to begin from, and what is done in it."""
    run, name = request.param
    plan = _PLANS[name]
    start = tmp_path / "start"
    start.mkdir()
    if run is not _begin:
        # A shard whose writer was killed once more, just before it had tidied up.
        _interrupt(start, partial(_begin, plan=plan), at=-2)
        assert (start / "shard-000000.journal").exists()
    return start, partial(run, plan=plan)


def _check(folder: Path, run: Scenario) -> None:
    """What looks committed must be whole."""
    if is_committed(folder, 0):
        assert shard_findings(folder, run.keywords["plan"], 0) == []


def _interrupt(folder: Path, run: Scenario, at: int) -> Machine:
    """Do it, and kill it at call `at`, or at the last but `-at`."""
    if at < 0:
        rehearsal = Path(tempfile.mkdtemp(dir=folder.parent))
        at += len(_run(rehearsal, run).calls)
    machine = Machine(folder, at)
    machine.fault = machine.kill
    with pytest.MonkeyPatch.context() as patch:
        machine.install(patch)
        with pytest.raises(Killed):
            run(folder)
    return machine


def _run(folder: Path, run: Scenario) -> Machine:
    """Do it undisturbed."""
    machine = Machine(folder)
    with pytest.MonkeyPatch.context() as patch:
        machine.install(patch)
        run(folder)
    return machine


def _calls(start: Path, run: Scenario, tmp_path: Path) -> tuple[int, dict[str, bytes]]:
    """How many calls an undisturbed run makes, and what it leaves."""
    folder = shutil.copytree(start, tmp_path / "undisturbed")
    calls = _run(folder, run).calls
    assert {"open", "pwrite", "ftruncate", "fsync", "rename", "unlink", "close"} <= set(calls)
    return len(calls), _state(folder)


@pytest.mark.slow
def test_kill_at_every_call(scenario: tuple[Path, Scenario], tmp_path: Path) -> None:
    start, run = scenario
    count, expected = _calls(start, run, tmp_path)
    for at in range(count):
        folder = shutil.copytree(start, tmp_path / f"killed-{at}")
        machine = _interrupt(folder, run, at)
        _check(folder, run)
        run(folder)
        assert _state(folder) == expected, f"killed at call {at}, {machine.calls[at]}"


@pytest.mark.slow
def test_killed_again_and_again(scenario: tuple[Path, Scenario], tmp_path: Path) -> None:
    start, run = scenario
    count, expected = _calls(start, run, tmp_path)
    chance = random.Random(11)
    for round_ in range(10):
        folder = shutil.copytree(start, tmp_path / f"round-{round_}")
        for _ in range(5):
            machine = Machine(folder, chance.randrange(count))
            machine.fault = machine.kill
            with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Killed):
                machine.install(patch)
                run(folder)
        run(folder)
        assert _state(folder) == expected


@pytest.mark.slow
def test_power_cut_at_every_call(scenario: tuple[Path, Scenario], tmp_path: Path) -> None:
    start, run = scenario
    count, expected = _calls(start, run, tmp_path)
    chance = random.Random(7)
    for at in range(count + 1):
        folder = shutil.copytree(start, tmp_path / f"cut-{at}")
        machine = _interrupt(folder, run, at) if at < count else _run(folder, run)
        for number, outcome in enumerate(machine.outcomes * 2):
            survivors = tmp_path / f"survivors-{at}-{number}"
            survivors.mkdir()
            machine.survivors(outcome, chance, survivors)
            _check(survivors, run)
            if at == count:
                # A finished run is durable: nothing is left to do.
                assert is_committed(survivors, 0)
            run(survivors)
            assert _state(survivors) == expected, f"power cut at call {at} of {count}"


@pytest.mark.slow
def test_storage_failing_at_every_call(scenario: tuple[Path, Scenario], tmp_path: Path) -> None:
    start, run = scenario
    count, expected = _calls(start, run, tmp_path)
    numbers = itertools.cycle([errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])

    def fault(call: str) -> None:
        number = next(numbers)
        raise OSError(number, os.strerror(number))

    for at in range(count):
        folder = shutil.copytree(start, tmp_path / f"failed-{at}")
        machine = Machine(folder, at, fault)
        with pytest.MonkeyPatch.context() as patch:
            machine.install(patch)
            with pytest.raises(StorageError) as caught:
                run(folder)
        _check(folder, run)
        assert str(folder) in str(caught.value), machine.calls[at]
        assert "\n" not in str(caught.value)
        run(folder)
        assert _state(folder) == expected, f"failed at call {at}, {machine.calls[at]}"


def test_pages_lost_by_a_failed_fsync_are_written_again(tmp_path: Path) -> None:
    plan = make_plan()
    (undisturbed := tmp_path / "undisturbed").mkdir()
    _begin(undisturbed, plan)
    (folder := tmp_path / "failing").mkdir()
    rehearsal = shutil.copytree(folder, tmp_path / "rehearsal")
    first_sync = _run(rehearsal, partial(_begin, plan=plan)).calls.index("fsync")

    def lose(call: str) -> None:
        machine.lose_unsynced()
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    machine = Machine(folder, first_sync, lose)
    with pytest.MonkeyPatch.context() as patch:
        machine.install(patch)
        with pytest.raises(StorageError, match="the device reports an error"):
            _begin(folder, plan)
    assert not is_committed(folder, 0)
    _begin(folder, plan)
    assert _state(folder) == _state(undisturbed)


def _appends(patch: pytest.MonkeyPatch) -> list[str]:
    """The keys of the samples that are written from now on."""
    keys: list[str] = []
    append = ShardWriter.append

    def counting(self: ShardWriter, sample: PackedSample) -> SampleEntry:
        keys.append(sample.key)
        return append(self, sample)

    patch.setattr(ShardWriter, "append", counting)
    return keys


def test_a_kill_costs_at_most_the_sample_in_flight(plan: Plan, tmp_path: Path) -> None:
    rehearsal = tmp_path / "rehearsal"
    rehearsal.mkdir()
    run = partial(write_shard, plan=plan)
    for at in range(len(_run(rehearsal, run).calls)):
        (folder := tmp_path / f"killed-{at}").mkdir()
        with pytest.MonkeyPatch.context() as patch:
            keys = _appends(patch)
            _interrupt(folder, run, at)
            if not is_committed(folder, 0):
                run(folder)
        assert len(keys) <= len(plan.samples) + 1


def test_a_power_cut_after_the_tar_has_its_name_costs_nothing(plan: Plan, tmp_path: Path) -> None:
    rehearsal = tmp_path / "rehearsal"
    rehearsal.mkdir()
    run = partial(write_shard, plan=plan)
    machine = _run(rehearsal, run)
    calls = machine.calls
    renamed_and_synced = next(at for at, name in machine.renames if name.endswith(".tar")) + 2
    assert calls[renamed_and_synced - 1] == "fsync"
    for at in range(renamed_and_synced, len(calls)):
        (folder := tmp_path / f"cut-{at}").mkdir()
        machine = _interrupt(folder, run, at)
        (survivors := tmp_path / f"survivors-{at}").mkdir()
        machine.survivors(machine.outcomes[0], random.Random(at), survivors)
        with pytest.MonkeyPatch.context() as patch:
            keys = _appends(patch)
            if not is_committed(survivors, 0):
                run(survivors)
        assert keys == []


_CHILD = """
import sys
from pathlib import Path
from shard_samples import make_plan, write_shard
plan = make_plan(400, samples_per_shard=400)
print("ready", flush=True)
write_shard(Path(sys.argv[1]), plan)
print("done", flush=True)
"""


@pytest.mark.slow
def test_sigkill_at_random_moments(tmp_path: Path) -> None:
    (undisturbed := tmp_path / "undisturbed").mkdir()
    plan = make_plan(400, samples_per_shard=400)
    write_shard(undisturbed, plan)
    (folder := tmp_path / "killed").mkdir()
    chance = random.Random(3)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])
    }
    kills = 0
    while not is_committed(folder, 0):
        child = subprocess.Popen(
            [sys.executable, "-c", _CHILD, str(folder)], env=environment, stdout=subprocess.PIPE
        )
        with child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            try:
                child.wait(chance.uniform(0.0, 0.05) if kills < 5 else None)
            except subprocess.TimeoutExpired:
                child.send_signal(signal.SIGKILL)
                kills += 1
    assert kills
    assert _state(folder) == _state(undisturbed)
    assert shard_findings(folder, plan, 0) == []
