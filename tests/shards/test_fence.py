"""A writer that stands still between any two calls, and comes back when its successor is done."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from shard_samples import ODD, WHOLE_PAGES, fail, make_plan, pack

from ctgpu.errors import StorageError
from ctgpu.shards import disk, journal, writer
from ctgpu.shards.fence import Fence
from ctgpu.shards.findings import shard_findings
from ctgpu.shards.folder import is_committed, remove_leftovers
from ctgpu.shards.lease import LeaseLost
from ctgpu.shards.names import fence_name
from ctgpu.shards.plan import Plan
from ctgpu.shards.writer import ShardWriter

Run = Callable[[Path, Callable[[], None]], None]

_CHANGING = ("open", "close", "pwrite", "ftruncate", "fsync", "rename", "unlink", "mkdir")


class StandsStill:
    """Stands for :mod:`os` in the modules that write; `meanwhile` is called before call `at`."""

    def __init__(self, at: int | None, meanwhile: Callable[[str], None]) -> None:
        self._at = at
        self._meanwhile = meanwhile
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in _CHANGING:
            return real

        def call(*args: Any, **options: Any) -> Any:
            self.calls.append(name)
            if len(self.calls) - 1 == self._at:
                self._meanwhile(name)
            return real(*args, **options)

        return call

    def install(self, patch: pytest.MonkeyPatch) -> None:
        for module in (disk, journal, writer):
            patch.setattr(module, "os", self)


def write(
    plan: Plan,
    folder: Path,
    confirm: Callable[[], None],
    *,
    failing: tuple[str, ...] = (),
    replace: bool = False,
    stop_after: int | None = None,
) -> None:
    """Write shard 0, as a process that holds its lease."""
    shard = ShardWriter(
        folder,
        plan,
        0,
        replace=replace,
        confirm=confirm,
    )
    try:
        for number, sample in enumerate(shard.pending):
            if number == stop_after:
                return
            confirm()
            if sample.key in failing:
                shard.skip(fail(sample))
            else:
                shard.append(pack(plan, sample))
        shard.commit({"engine": "test"})
    finally:
        shard.abandon()


def freeze(folder: Path, run: Run, at: int | None, meanwhile: Callable[[], None]) -> list[str]:
    """Do `run`; at its changing call number `at` it stands still while `meanwhile` is done."""
    lost = False

    def confirm() -> None:
        if lost:
            raise LeaseLost("taken over")

    def stand_still(call: str) -> None:
        nonlocal lost
        patch.undo()
        meanwhile()
        lost = True
        still.install(patch)

    still = StandsStill(at, stand_still)
    with pytest.MonkeyPatch.context() as patch:
        still.install(patch)
        try:
            run(folder, confirm)
        except StorageError:
            assert lost
    return still.calls


def ready() -> None:
    """The lease is held."""


SCENARIOS = {
    "new": ({}, {"failing": ("scan_2",)}),
    "new, other failures": ({"failing": ("scan_0",)}, {"failing": ("scan_3",)}),
    "gone on with": ({"failing": ("scan_1",)}, {}),
    "replaced": ({"replace": True}, {"replace": True, "failing": ("scan_1",)}),
    "replaced, and only looked at": ({"replace": True}, None),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("spec", [ODD, WHOLE_PAGES], ids=["odd", "whole pages"])
def test_what_the_successor_committed_stays(
    name: str, spec: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    plan = make_plan(spec=spec)  # type: ignore[arg-type]
    late, successor = SCENARIOS[name]

    def prepare(folder: Path) -> None:
        folder.mkdir()
        if name == "gone on with":
            write(plan, folder, ready, stop_after=2)
        if late.get("replace"):
            write(plan, folder, ready, failing=("scan_2",))

    prepare(rehearsal := tmp_path / "rehearsal")
    run: Run = partial(write, plan, **late)  # type: ignore[arg-type]
    calls = freeze(rehearsal, run, None, ready)
    assert {"open", "pwrite", "fsync", "rename", "ftruncate", "close"} <= set(calls)
    for at, call in enumerate(calls):
        prepare(folder := tmp_path / f"frozen-{at}")
        done: dict[str, bytes] = {}

        def take_over(folder: Path = folder, done: dict[str, bytes] = done) -> None:
            if successor is not None and (successor.get("replace") or not is_committed(folder, 0)):
                write(plan, folder, ready, **successor)  # type: ignore[arg-type]
                done.update({p.name: p.read_bytes() for p in folder.glob("shard-000000.*")})

        freeze(folder, run, at, take_over)
        where = f"frozen at call {at}, {call}"
        assert is_committed(folder, 0), where
        assert shard_findings(folder, plan, 0) == [], where
        if done:
            assert {name: (folder / name).read_bytes() for name in done} == done, where
            assert not (folder / "shard-000000.tar.partial").exists(), where
        remove_leftovers(folder)
        assert [p.name for p in folder.glob(".*")] == [], where


@pytest.mark.slow
def test_a_successor_that_is_not_done_yet_finishes_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The late one goes on to its end while the successor is between two samples."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    plan = make_plan(spec=WHOLE_PAGES)
    run: Run = partial(write, plan, failing=("scan_0",))
    (rehearsal := tmp_path / "rehearsal").mkdir()
    calls = freeze(rehearsal, run, None, ready)
    for at, call in enumerate(calls):
        (folder := tmp_path / f"frozen-{at}").mkdir()
        began: list[ShardWriter] = []

        def take_over(folder: Path = folder, began: list[ShardWriter] = began) -> None:
            if is_committed(folder, 0):
                return
            successor = ShardWriter(folder, plan, 0)
            began.append(successor)
            if successor.pending:
                successor.append(pack(plan, plan.samples[len(successor.done + successor.failed)]))

        freeze(folder, run, at, take_over)
        for successor in began:
            for sample in list(successor.pending):
                successor.append(pack(plan, sample))
            successor.commit({"engine": "test"})
        assert is_committed(folder, 0), (at, call)
        assert shard_findings(folder, plan, 0) == [], (at, call)
        assert not (folder / "shard-000000.tar.partial").exists(), (at, call)


def test_the_file_that_the_late_one_has_open_is_not_gone_on_in(tmp_path: Path) -> None:
    plan = make_plan()
    late = ShardWriter(tmp_path, plan, 0)
    late.append(pack(plan, plan.samples[0]))
    before = (tmp_path / "shard-000000.tar.partial").stat().st_ino
    successor = ShardWriter(tmp_path, plan, 0)
    assert [entry.key for entry in successor.done] == ["scan_0"]
    assert (tmp_path / "shard-000000.tar.partial").stat().st_ino != before
    late.append(pack(plan, plan.samples[1]))
    successor.skip(fail(plan.samples[1]))
    late.append(pack(plan, plan.samples[2]))
    for sample in plan.samples[2:]:
        successor.append(pack(plan, sample))
    late.append(pack(plan, plan.samples[3]))
    successor.commit({})
    assert shard_findings(tmp_path, plan, 0) == []
    with pytest.raises(LeaseLost, match="another process took this one for dead"):
        late.commit({})
    late.abandon()
    assert shard_findings(tmp_path, plan, 0) == []


def test_what_ended_in_order_is_gone_on_in_place(tmp_path: Path) -> None:
    plan = make_plan()
    write(plan, tmp_path, ready, stop_after=2)
    before = (tmp_path / "shard-000000.tar.partial").stat().st_ino
    again = ShardWriter(tmp_path, plan, 0)
    assert (tmp_path / "shard-000000.tar.partial").stat().st_ino == before
    again.abandon()


@pytest.mark.parametrize("in_kernel", [True, False])
def test_a_copy_has_every_byte(
    in_kernel: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not in_kernel:
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    monkeypatch.setattr(disk, "_CHUNK_BYTES", 1000)
    content = os.urandom(10_007)
    (tmp_path / "a").write_bytes(content)
    with (tmp_path / "a").open("rb") as a, (tmp_path / "b").open("wb") as b:
        disk.copy_prefix(a.fileno(), b.fileno(), 9_001)
        with pytest.raises(OSError, match="became shorter"):
            disk.copy_prefix(a.fileno(), b.fileno(), 10_008)
    assert (tmp_path / "b").read_bytes()[:9_001] == content[:9_001]


def test_what_a_killed_successor_left_is_gone_on_with(tmp_path: Path) -> None:
    """It had taken over a writer that may still write, and died before it had copied."""
    plan = make_plan()
    late = ShardWriter(tmp_path, plan, 0)
    late.append(pack(plan, plan.samples[0]))
    before = (tmp_path / "shard-000000.tar.partial").stat().st_ino
    killed = Fence(tmp_path, 0, ready)
    assert killed.predecessor_may_write
    assert killed.take("shard-000000.tar.partial")
    # As if its process had ended: another start time than any process of this host has.
    owner = killed.path("owner.json")
    owner.write_text(owner.read_text().replace('"started": "', '"started": "9'))
    third = ShardWriter(tmp_path, plan, 0)
    assert [entry.key for entry in third.done] == ["scan_0"]
    assert (tmp_path / "shard-000000.tar.partial").stat().st_ino != before
    third.abandon()
    late.abandon()
    assert list(tmp_path.glob(fence_name(0, "*"))) == []
