"""Ranks that are given, that a process group tells, and that only the environment names."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_dali import dali, ids, run

from ctgpu.errors import UsageError
from ctgpu.loading import make_loader
from ctgpu.loading.dali import pipeline
from ctgpu.loading.ranks import _warn_of_ranks, distributed_place, given_place, processes_here


@pytest.fixture(autouse=True)
def _not_warned_yet(caplog: pytest.LogCaptureFixture) -> None:
    _warn_of_ranks.cache_clear()
    caplog.set_level(logging.WARNING, "ctgpu")


def name_ranks(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def in_a_group(monkeypatch: pytest.MonkeyPatch, rank: int, world_size: int) -> None:
    """What torch.distributed answers in a process of a group, which no other joins here."""
    distributed = pytest.importorskip("torch.distributed")
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_rank", lambda: rank)
    monkeypatch.setattr(distributed, "get_world_size", lambda: world_size)


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({}, []),
        ({"RANK": "", "WORLD_SIZE": ""}, []),
        ({"RANK": "0", "WORLD_SIZE": "1"}, []),
        ({"RANK": "0", "WORLD_SIZE": "4"}, ["RANK is 0 and WORLD_SIZE 4, but torch.distributed"]),
        ({"RANK": "3"}, ["RANK is 3 and WORLD_SIZE 1, but torch.distributed"]),
    ],
)
def test_ranks_without_a_process_group_are_warned_once(
    hwd: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    variables: dict[str, str],
    says: list[str],
) -> None:
    name_ranks(monkeypatch, variables)
    for _ in range(2):
        assert sum(len(batch["study_id"]) for batch in make_loader(hwd)) == 11
    about_ranks = [text for text in caplog.messages if "RANK" in text]
    assert len(about_ranks) == len(says)
    assert all(text.startswith(start) for text, start in zip(about_ranks, says, strict=True))


def test_ranks_that_are_named_are_not_warned(
    hwd: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    name_ranks(monkeypatch, {"RANK": "1", "WORLD_SIZE": "4"})
    assert len(make_loader(hwd, rank=1, world_size=4)) == 3
    assert "RANK" not in caplog.text


def test_dali_warns_too_that_every_rank_reads_everything(
    hwd: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    dali()
    name_ranks(monkeypatch, {"RANK": "1", "WORLD_SIZE": "2"})
    for _ in range(2):
        assert len(ids(run(pipeline(hwd, 1), 11))) == 11
    (message,) = [text for text in caplog.messages if "RANK" in text]
    assert message.startswith("RANK is 1 and WORLD_SIZE 2, but torch.distributed is not init")
    _warn_of_ranks.cache_clear()
    caplog.clear()
    pipeline(hwd, 1, rank=1, world_size=2)
    assert caplog.messages == []


def test_dali_takes_its_share_from_the_process_group(
    hwd: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    dali()
    name_ranks(monkeypatch, {"RANK": "1", "WORLD_SIZE": "2"})
    in_a_group(monkeypatch, 1, 2)
    found = run(pipeline(hwd, 1), 5)
    assert ids(found) == ids(run(pipeline(hwd, 1, rank=1, world_size=2), 5))
    assert ids(found) != ids(run(pipeline(hwd, 1, rank=0, world_size=2), 5))
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("rank", "world_size"),
    [(0, None), (None, 2), (2, 2), (-1, 2), ("0", "2"), (0.0, 2), (0, 0)],
)
def test_ranks_that_do_not_fit_are_refused(hwd: Path, rank: Any, world_size: Any) -> None:
    with pytest.raises(UsageError, match=r"rank is .* and world_size .*; give both as whole"):
        make_loader(hwd, rank=rank, world_size=world_size)
    with pytest.raises(UsageError, match="give both"):
        given_place(rank, world_size)


def test_a_process_group_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    name_ranks(monkeypatch, {"RANK": "1", "WORLD_SIZE": "2"})
    in_a_group(monkeypatch, 3, 8)
    assert distributed_place() == (3, 8)
    assert given_place(None, None) is None


def test_to_ask_for_the_group_imports_no_torch() -> None:
    program = (
        "import sys; from ctgpu.loading.ranks import distributed_place; "
        "print(distributed_place(), 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.split("\n")[0] == "(0, 1) False"


def test_processes_of_one_machine_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert processes_here() == 1
    for stated, found in (("4", 4), ("1", 1), ("0", 1), ("", 1), ("many", 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", stated)
        assert processes_here() == found


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on one core
def test_workers_of_a_torch_dataloader_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.utils.data
    from torch.utils.data import DataLoader

    class Counting(torch.utils.data.Dataset[int]):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> int:
            return processes_here()

    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    counted = DataLoader(Counting(), num_workers=2, multiprocessing_context="fork")
    assert [int(count) for count in counted] == [4, 4, 4]
