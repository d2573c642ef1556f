"""Batches: what is in them, how long they live, where they resume."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loading_cases import studies, volumes

from built import read_samples
from ctgpu.errors import DeviceError, MismatchError, UsageError
from ctgpu.loading import VolumeDataset, make_loader
from ctgpu.shards.record import ShardRecord

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("batch_size", [1, 4])
def test_batches_hold_the_samples_in_order(folder: Path, batch_size: int) -> None:
    expected, tars = volumes(folder), read_samples(folder)
    loader = make_loader(folder, batch_size)
    seen = []
    for batch in loader:
        count = len(batch["study_id"])
        assert batch["volume"].shape == (count, 1, 24, 44, 36)
        assert batch["volume"].dtype == torch.float16
        assert batch["labels"].shape == (count, 18)
        assert batch["labels"].dtype == torch.float32
        for row, study_id in enumerate(batch["study_id"]):
            assert torch.equal(batch["volume"][row], expected[study_id])
            assert batch["labels"][row].tolist() == tars[study_id].labels.tolist()
            assert batch["report"][row] == tars[study_id].text
        seen += batch["study_id"]
    assert seen == list(expected)
    assert len(loader) == -(-11 // batch_size)


def test_epochs_follow_each_other_in_another_order(hwd: Path) -> None:
    loader = make_loader(hwd, 2, shuffle=True, seed=5)
    first, second = studies(loader), studies(loader)
    assert sorted(first) == sorted(second)
    assert first != second
    assert loader.epoch == 2
    again = make_loader(hwd, 3, shuffle=True, seed=5)
    again.set_epoch(1)
    assert studies(again) == second
    again.set_epoch(0)
    assert studies(again) == first
    # Who counts steps asks for none beyond the last, and still gets another epoch.
    counted = make_loader(hwd, 2, shuffle=True, seed=5)
    for epoch in (first, second):
        batches = iter(counted)
        assert [s for _ in range(6) for s in next(batches)["study_id"]] == epoch


def test_what_is_left_is_dropped_or_kept(hwd: Path) -> None:
    dropping = make_loader(hwd, 4, drop_last=True)
    assert [len(batch["study_id"]) for batch in dropping] == [4, 4]
    assert len(dropping) == 2
    assert [len(batch["study_id"]) for batch in make_loader(hwd, 4)] == [4, 4, 3]
    with pytest.raises(UsageError, match="do not fill one step of 2 ranks × 8"):
        next(iter(make_loader(hwd, 8, drop_last=True, rank=0, world_size=2)))


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_share_one_order_in_equal_steps(hwd: Path, world_size: int) -> None:
    whole = studies(make_loader(hwd, shuffle=True, seed=1))
    for drop_last in (False, True):
        loaders = [
            make_loader(
                hwd, 2, shuffle=True, seed=1, drop_last=drop_last, rank=rank, world_size=world_size
            )
            for rank in range(world_size)
        ]
        assert len({len(loader) for loader in loaders}) == 1
        steps = zip(*loaders, strict=True)
        together = [s for step in steps for batch in step for s in batch["study_id"]]
        if drop_last:
            assert together == whole[: len(together)]
            assert len(whole) - len(together) < 2 * world_size
        else:
            assert together[: len(whole)] == whole
            assert together[len(whole) :] == whole[: len(together) - len(whole)]
            assert len(together) - len(whole) < world_size


@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 2), (2, 1), (4, 2), (2, 3)])
def test_it_resumes_exactly_at_every_step_on_any_number_of_ranks(
    hwd: Path, before: int, after: int
) -> None:
    def make(rank: int, world_size: int) -> Any:
        return make_loader(hwd, 1, shuffle=True, seed=9, rank=rank, world_size=world_size)

    loader = make(0, 1)
    loader.set_epoch(1)
    whole, next_epoch = studies(loader), studies(loader)
    for stop in range(-(-11 // before) + 1):
        first = make(before - 1, before)
        first.set_epoch(1)
        batches = iter(first)
        for _ in range(stop):
            next(batches)
        state = json.loads(json.dumps(first.state_dict()))
        del batches
        rest = [make(rank, after) for rank in range(after)]
        for other in rest:
            other.load_state_dict(state)
            other.set_epoch(1)  # as training loops do; it is the epoch of the state
        together = [s for step in zip(*rest, strict=True) for b in step for s in b["study_id"]]
        left = whole[min(stop * before, 11) :]
        assert together[: len(left)] == left
        assert len(together) - len(left) < after
        assert [studies(other)[0] for other in rest] == [next_epoch[rank] for rank in range(after)]


def test_the_state_counts_what_was_handed_out_not_what_was_read_ahead(hwd: Path) -> None:
    loader = make_loader(hwd, 2, prefetch_bytes=1 << 30)
    batches = iter(loader)
    next(batches)
    assert loader.state_dict()["position"] == 2
    other = make_loader(hwd, 4)  # of another batch size
    other.load_state_dict(loader.state_dict())
    assert studies(other) == [f"valid_{n}_a_1" for n in range(3, 12)]
    batches.close()  # type: ignore[attr-defined]
    # An iteration that was given up begins again.
    assert studies(loader)[0] == "valid_1_a_1"


def test_the_state_of_another_loader_is_refused(hwd: Path) -> None:
    state = make_loader(hwd, shuffle=True, seed=1).state_dict()
    with pytest.raises(MismatchError, match=r"seed: found 1, wanted 2"):
        make_loader(hwd, shuffle=True, seed=2).load_state_dict(state)
    part = make_loader(str(hwd / "shard-{000000..000001}.tar"), shuffle=True, seed=1)
    with pytest.raises(MismatchError, match="samples: found"):
        part.load_state_dict(state)
    for broken in ({}, state | {"epoch": "1"}, state | {"position": 12}):
        with pytest.raises(UsageError):
            make_loader(hwd, shuffle=True, seed=1).load_state_dict(broken)


def test_a_transform_takes_the_batch_that_is_handed_out(hwd: Path) -> None:
    def double(batch: dict[str, Any]) -> dict[str, Any]:
        return {"x": batch["volume"].float() * 2, "y": batch["labels"]}

    expected = volumes(hwd)
    first = next(iter(make_loader(hwd, transform=double)))
    assert set(first) == {"x", "y"}
    assert torch.equal(first["x"][0], expected["valid_1_a_1"].float() * 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"num_threads": 0}, "num_threads is 0"),
        ({"on_error": "ignore"}, "on_error is 'ignore'"),
        ({"window": "liver"}, "window is 'liver'.*lung"),
        ({"window": (5.0, 5.0)}, "hu_window"),
        ({"window": (2000.0, 3000.0)}, "choose a window within"),
        ({"random_crop_hwd": (45, 1, 1)}, "must fit within"),
        ({"random_crop_hwd": (5, 5)}, "must fit within"),
        ({"device": "mps"}, "device is mps"),
        ({"rank": 1}, "give both"),
        ({"rank": 2, "world_size": 2}, "give both"),
    ],
)
def test_arguments_outside_their_domain_are_refused(
    hwd: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        make_loader(hwd, **options)


def test_a_missing_device_is_an_error_with_the_way_out(hwd: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(DeviceError, match=r"finds no CUDA device.*device='cpu'"):
        make_loader(hwd, device="cuda")


def test_a_missing_torch_is_an_error_with_the_way_out(
    hwd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(DeviceError, match=r"pip install .*\[torch\]'"):
        make_loader(hwd)


@pytest.mark.gpu
def test_batches_on_the_gpu_are_those_of_the_host(folder: Path) -> None:
    two: dict[str, Any] = {"windows": ["mediastinum", (-1000, 400)]}
    for options in ({}, {"window": "lung"}, two, {"random_crop_hwd": (20, 20, 20)}):
        host = make_loader(folder, 2, shuffle=True, copy=True, **options)
        device = make_loader(folder, 2, shuffle=True, device="cuda", **options)
        for epoch in range(2):
            for expected, found in zip(list(host), list(device), strict=True):
                assert found["volume"].is_cuda, epoch
                assert found["volume"].is_contiguous()
                assert torch.equal(found["volume"].cpu(), expected["volume"])
                assert torch.equal(found["labels"].cpu(), expected["labels"])
                assert found["study_id"] == expected["study_id"]


def test_defect_13_shapes_are_checked_and_ranks_end_together(hwd: Path, own: Path) -> None:
    # The old loader reshaped by byte count, made float32 of it on the host, shuffled in a buffer of
    # 1,000 volumes per worker, and gave ranks epochs of different length.
    (own / "manifest.json").write_text((own / "manifest.json").read_text().replace("44,", "22,", 2))
    with pytest.raises(MismatchError, match="the data set's spec asks"):
        make_loader(own)
    size_bytes = VolumeDataset(hwd).spec.size_bytes
    lengths = []
    for rank in range(4):
        loader = make_loader(
            hwd, 1, shuffle=True, rank=rank, world_size=4, prefetch_bytes=size_bytes, copy=False
        )
        batches = 0
        for batch in loader:
            assert batch["volume"].dtype == torch.float16
            assert batch["volume"].stride()[2:] == (1, 36 * 24, 24)  # as it is stored
            batches += 1
        lengths.append(batches)
        assert loader.buffer_bytes <= 3 * (size_bytes + 4096)
    assert lengths == [3, 3, 3, 3]


def test_importing_needs_no_torch() -> None:
    import subprocess

    program = "import sys; import ctgpu.loading; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_dataset_serves_the_stock_torch_loader(hwd: Path) -> None:
    dataset = VolumeDataset(hwd)
    expected = volumes(hwd)
    for batch in torch.utils.data.DataLoader(dataset, batch_size=4, num_workers=0):  # type: ignore[arg-type, var-annotated]
        assert batch["volume"].dtype == torch.float16
        for row, study_id in enumerate(batch["study_id"]):
            assert torch.equal(batch["volume"][row], expected[study_id])
            assert np.isin(batch["labels"][row].numpy(), [0, 1]).all()


def test_a_selection_of_everything_has_the_order_of_the_whole(own: Path) -> None:
    # Of one shard every sample failed: an end mark alone.
    record = ShardRecord.load(own / "shard-000001.json")
    emptied = replace(record, size_bytes=1024, samples=[])
    (own / "shard-000001.json").write_bytes(emptied.to_json())
    (own / "shard-000001.tar").write_bytes(bytes(1024))
    dataset = VolumeDataset(own)
    assert len(dataset) == 8
    for options in ({}, {"shuffle_window_bytes": 1}, {"shuffle": False}):
        options = {"shuffle": True, "seed": 4} | options
        whole = make_loader(dataset, **options)
        chosen = make_loader(dataset.select(range(8)), **options)
        chosen.load_state_dict(whole.state_dict())
        assert studies(chosen) == studies(whole)


def test_the_state_of_another_selection_is_refused(hwd: Path, own: Path) -> None:
    both = VolumeDataset([hwd, own])
    chosen = both.select(range(6))
    options: dict[str, Any] = {"shuffle": True, "seed": 1}
    loader = make_loader(chosen, 2, **options)
    next(iter(loader))
    state = json.loads(json.dumps(loader.state_dict()))
    again = make_loader(VolumeDataset([hwd, own]).select(range(6)), 2, **options)
    again.load_state_dict(state)
    assert again.state_dict() == state
    others = {
        "fewer": both.select(range(5)),
        "others": both.select(range(1, 7)),
        "the same studies of another folder": both.select(range(11, 17)),
        "another order": both.take([1, 0, 2, 3, 4, 5]),
        "one of them twice": both.take([0, 1, 2, 3, 4, 4]),
        "the same samples, shards of which others are not known": VolumeDataset(
            hwd / "shard-{000000..000001}.tar"
        ),
    }
    for name, other in others.items():
        loader = make_loader(other, 2, **options)
        with pytest.raises(MismatchError, match="found"):
            loader.load_state_dict(state)
        assert loader.state_dict()["position"] == 0, name


def test_a_state_that_says_nothing_of_shards_is_taken_as_before(hwd: Path) -> None:
    loader = make_loader(hwd, 2, shuffle=True, seed=1)
    whole = studies(loader)
    loader.set_epoch(0)
    batches = iter(loader)
    next(batches)
    state = loader.state_dict()
    del state["shards"]  # as the first release wrote it
    again = make_loader(hwd, 2, shuffle=True, seed=1)
    again.load_state_dict(state)
    assert studies(again) == whole[2:]


def test_its_repr_says_what_it_loads(hwd: Path) -> None:
    loader = make_loader(hwd, 2, shuffle=True)
    assert repr(loader) == f"VolumeLoader({loader.dataset!r}, batch_size=2, shuffle=True)"
    assert len(repr(loader)) < 300
