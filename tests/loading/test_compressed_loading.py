"""Training on compressed shards: damage, states, ranks, selections and MONAI."""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loading_cases import STUDIES, flip_byte, studies

from ctgpu.errors import FetchError, MismatchError, UsageError
from ctgpu.loading import RawDataset, VolumeDataset, make_loader
from support.compressed_folders import compress_folder

torch = pytest.importorskip("torch")

#: What is left of them where the fifth is left out.
WITHOUT_FIFTH = [f"valid_{n}_a_1" for n in (1, 2, 3, 4, 6, 6, 7, 8, 9, 10, 11)]
HEAD_BYTES = 64 + 6 * 24


@pytest.fixture
def own_small(rice: Path, tmp_path: Path) -> Path:
    """Compressed shards that a test may damage."""
    return shutil.copytree(rice, tmp_path / "own_small")


def damage(folder: Path, number: int, at: int, extension: str = "ctz") -> None:
    shard, entry = VolumeDataset(folder).locate(number)
    flip_byte(shard.path, entry.members[extension].offset + at)


@pytest.mark.parametrize(
    ("verify", "extension", "at", "sentence"),
    [
        ("first", "ctz", 44, "its header or table does not have its checksum"),
        ("first", "ctz", HEAD_BYTES, "its tile 0 does not have its checksum"),
        ("always", "segz", 70, "its header or table does not have its checksum"),
        ("always", "segz", HEAD_BYTES + 1, "its tile 0 does not have its checksum"),
    ],
)
def test_a_damaged_sample_raises_or_the_next_one_takes_its_place(
    own_small: Path,
    verify: Any,
    extension: str,
    at: int,
    sentence: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    damage(own_small, 4, at, extension)
    for options in ({}, {"random_crop_hwd": (44, 36, 20)}):
        dataset = VolumeDataset(own_small, verify=verify)
        batches = iter(make_loader(dataset, 2, **options))  # type: ignore[arg-type]
        assert studies([next(batches), next(batches)]) == list(STUDIES[:4])
        match = rf"shard-000001\.tar: valid_5_a_1\.{extension} cannot be decoded: {sentence}; the"
        with pytest.raises(FetchError, match=match):
            next(batches)
        caplog.clear()
        loader = make_loader(dataset, 2, on_error="skip", **options)  # type: ignore[arg-type]
        assert studies(loader) == WITHOUT_FIFTH
        assert caplog.text.count(sentence) == 1
    with pytest.raises(FetchError, match=sentence):
        VolumeDataset(own_small)[4]


def test_without_verification_what_contradicts_itself_is_found_all_the_same(
    own_small: Path,
) -> None:
    shard, entry = VolumeDataset(own_small).locate(4)
    with shard.path.open("r+b") as tar:
        tar.seek(entry.members["ctz"].offset + HEAD_BYTES)
        tar.write(b"\xff" * 60)
    dataset = VolumeDataset(own_small, verify="off")
    with pytest.raises(FetchError, match=r"valid_5_a_1\.ctz cannot be decoded: its tile 0: its "):
        studies(make_loader(dataset, 2))
    assert studies(make_loader(dataset, 2, on_error="skip")) == WITHOUT_FIFTH


def test_a_tar_that_is_cut_off_costs_the_samples_behind_the_cut(own_small: Path) -> None:
    shard, entry = VolumeDataset(own_small).locate(4)
    os.truncate(shard.path, entry.members["ctz"].offset + HEAD_BYTES + 500)
    dataset = VolumeDataset(own_small)
    with pytest.raises(FetchError, match=r"shard-000001\.tar ends within valid_5_a_1\.ctz"):
        studies(make_loader(dataset, 2))
    kept = [*STUDIES[:4], *[STUDIES[6]] * 3, *STUDIES[7:]]
    assert studies(make_loader(dataset, 2, on_error="skip")) == kept


def test_a_box_beside_the_damage_is_as_good_as_ever(own_small: Path, plain: Path) -> None:
    """Only what it meets is read, and held against its checksums; each time."""
    _, entry = VolumeDataset(own_small).locate(4)
    damage(own_small, 4, entry.members["ctz"].size_bytes - 1)  # the last tile: D 16–, W 32–
    dataset = VolumeDataset(own_small)
    wanted = VolumeDataset(plain)[4]["volume"][0]
    out = np.empty((44, 32, 24), np.float16)
    for _ in range(2):
        dataset.read_into(4, out)
        assert np.array_equal(out, wanted[:, :, :32].transpose(1, 2, 0))
    met = np.empty((1, 1, 1), np.float16)
    for _ in range(2):
        with pytest.raises(FetchError, match="its tile 5 does not have its checksum"):
            dataset.read_into(4, met, (0, 32, 16))
    assert dataset.is_due(4)
    dataset.read_into(3, met, mask=np.empty((1, 1, 1), np.uint8))
    assert dataset.is_due(3)  # of which one tile was read
    whole = np.empty((44, 36, 24), np.float16)
    dataset.read_into(3, whole)
    assert dataset.is_due(3)  # and of its mask nothing
    dataset.read_into(3, whole, mask=np.empty((44, 36, 24), np.uint8))
    assert not dataset.is_due(3)


def test_a_shard_that_was_rebuilt_meanwhile_is_another(own_small: Path, plain: Path) -> None:
    dataset = VolumeDataset(own_small)
    shutil.rmtree(own_small)
    compress_folder(plain, own_small, "pack")
    with pytest.raises(FetchError, match=r"valid_1_a_1\.ctz"):
        dataset[0]
    assert VolumeDataset(own_small)[0]["volume"].any()


@pytest.mark.parametrize(
    "options",
    [
        {"shuffle": True, "seed": 3},
        {"shuffle": True, "shuffle_window_bytes": 400_000},
        {"shuffle": True, "random_crop_hwd": (20, 30, 9)},
        {"shuffle": True, "sample_weights": np.arange(11.0) ** 2},
    ],
)
def test_a_state_goes_on_over_shards_of_any_compression(
    plain: Path, rice: Path, pack: Path, options: dict[str, Any]
) -> None:
    """In the middle of an epoch, from raw ones to compressed ones and back."""
    raw, small = plain, rice
    wanted = list(make_loader(raw, 2, **options))
    for first, then in ((raw, small), (small, raw), (small, pack)):
        loader = make_loader(first, 2, **options)
        batches = iter(loader)
        begun = [next(batches), next(batches)]
        state = json.loads(json.dumps(loader.state_dict()))
        other = make_loader(then, 2, **options)
        other.load_state_dict(state)
        assert other.epoch == 0
        for one, same in zip([*begun, *other], wanted, strict=True):
            assert one["study_id"] == same["study_id"]
            assert torch.equal(one["volume"], same["volume"])
            assert torch.equal(one["mask"], same["mask"])
        # And the epoch after that.
        assert studies(other) == studies(_second_epoch(raw, options))


def _second_epoch(folder: Path, options: dict[str, Any]) -> Any:
    loader = make_loader(folder, 2, **options)
    loader.set_epoch(1)
    return loader


def test_a_state_of_other_samples_is_refused(rice: Path, plain: Path) -> None:
    state = make_loader(plain, 2).state_dict()
    with pytest.raises(MismatchError, match="the state is that of another loader"):
        make_loader(VolumeDataset(rice).select(range(10)), 2).load_state_dict(state)


def test_what_was_skipped_stays_out_when_an_epoch_is_resumed(own_small: Path) -> None:
    damage(own_small, 4, HEAD_BYTES)
    loader = make_loader(own_small, 2, on_error="skip")
    batches = iter(loader)
    seen = studies([next(batches) for _ in range(3)])
    assert seen == WITHOUT_FIFTH[:6]
    again = make_loader(own_small, 2, on_error="skip")
    again.load_state_dict(loader.state_dict())
    assert loader.state_dict()["skipped"] == [4]
    assert seen + studies(again) == WITHOUT_FIFTH


def test_ranks_and_threads_share_an_epoch(plain: Path, rice: Path) -> None:
    raw, small = plain, rice
    for rank in range(2):
        options: dict[str, Any] = {"shuffle": True, "rank": rank, "world_size": 2}
        found = list(make_loader(small, 2, num_threads=3 - rank, **options))
        wanted = list(make_loader(raw, 2, **options))
        assert [batch["study_id"] for batch in found] == [b["study_id"] for b in wanted]
        for one, other in zip(found, wanted, strict=True):
            assert torch.equal(one["volume"], other["volume"])


def test_a_data_set_goes_to_the_workers_of_the_stock_loader(rice: Path, plain: Path) -> None:
    copy = pickle.loads(pickle.dumps(VolumeDataset(rice)))
    assert copy.is_compressed
    workers = torch.utils.data.DataLoader(copy, batch_size=4, num_workers=2)
    wanted = VolumeDataset(plain)
    number = 0
    for batch in workers:
        for volume, mask in zip(batch["volume"], batch["mask"], strict=True):
            assert np.array_equal(volume.numpy(), wanted[number]["volume"])
            assert np.array_equal(mask.numpy(), wanted[number]["mask"])
            number += 1
    assert number == 11


def test_samples_without_labels_are_left_out(part_labelled: Path, tmp_path: Path) -> None:
    small = compress_folder(part_labelled, tmp_path / "small", "pack")
    for options in ({"labelled_only": True}, {"shuffle": True, "class_balanced": True}):
        found = list(make_loader(small, 3, **options))  # type: ignore[arg-type]
        wanted = list(make_loader(part_labelled, 3, **options))  # type: ignore[arg-type]
        assert studies(found) == studies(wanted)
        assert all(
            torch.equal(one["labels"].nan_to_num(7), other["labels"].nan_to_num(7))
            for one, other in zip(found, wanted, strict=True)
        )


def test_samples_that_failed_are_holes_as_ever(with_failures: Path, tmp_path: Path) -> None:
    small = compress_folder(with_failures, tmp_path / "small", "rice")
    for seed in range(3):
        found, wanted = (
            make_loader(folder, 2, shuffle=True, seed=seed, random_crop_hwd=(9, 9, 9))
            for folder in (small, with_failures)
        )
        for one, other in zip(found, wanted, strict=True):
            assert one["study_id"] == other["study_id"]
            assert torch.equal(one["volume"], other["volume"])


@pytest.mark.slow
def test_raw_volumes_take_the_place_of_compressed_shards_that_are_missing(
    hwd: Path, tmp_path: Path
) -> None:
    small = compress_folder(hwd, tmp_path / "small", "rice")
    for path in small.glob("shard-000001.*"):
        path.unlink()
    spec = VolumeDataset(hwd).spec
    online = RawDataset(hwd.parent / "source", spec=spec, shards=small, device="cpu")
    assert (online.is_compressed, online.memory_layout) == (False, "HWD")
    for options in ({"shuffle": True}, {"random_crop_hwd": (20, 30, 9)}):
        found = make_loader(online, 3, **options)  # type: ignore[arg-type]
        wanted = make_loader(hwd, 3, **options)  # type: ignore[arg-type]
        for one, other in zip(found, wanted, strict=True):
            assert one["study_id"] == other["study_id"]
            assert torch.equal(one["volume"], other["volume"])


def test_arrays_of_another_type_or_place_are_refused(rice: Path, plain: Path) -> None:
    dataset = VolumeDataset(rice)
    out = np.empty((9, 9, 9), np.float16)
    with pytest.raises(UsageError, match=r"out is float32, and .* holds float16; give it an array"):
        dataset.read_into(0, out.astype(np.float32))
    for start in ((36, 0, 0), (0, 28, 0), (0, 0, 16), (0, 0, -1)):
        with pytest.raises(UsageError, match=r"a box of \(9, 9, 9\) voxels from .* is not within"):
            dataset.read_into(0, out, start)
    apart = np.empty((18, 9, 9), np.float16)[::2]
    dataset.read_into(0, apart, (1, 2, 3))
    with pytest.raises(UsageError, match=r"out or mask is not contiguous, and volumes of .* that"):
        VolumeDataset(plain).read_into(0, apart)


@pytest.mark.slow
def test_monai_gets_the_items_of_raw_shards(plain: Path, rice: Path) -> None:
    pytest.importorskip("monai")
    from ctgpu.loading.monai import MonaiDataset

    raw, small = (MonaiDataset(folder, windows=["mediastinum"]) for folder in (plain, rice))
    for number in (0, 10):
        found, wanted = small[number], raw[number]
        assert list(found) == list(wanted)
        for name in ("image", "mask", "label"):
            assert torch.equal(torch.as_tensor(found[name]), torch.as_tensor(wanted[name]))
        assert np.array_equal(found["image"].affine, wanted["image"].affine)


def test_a_folder_says_how_it_is_compressed(rice: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        dataset = VolumeDataset(rice)
    assert caplog.text == ""
    assert json.loads((rice / "manifest.json").read_text())["compression"] == "rice"
    assert dataset.entries[0].volume_extension == "ctz"
    assert dataset.select([]).is_compressed is False
