"""Parts of a data set: which samples, in which order, and what they carry along."""

from __future__ import annotations

import pickle
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loading_cases import flip_byte

import ctgpu
from ctgpu.errors import FetchError, UsageError
from ctgpu.loading import VolumeDataset

ACCENTED = tuple(unicodedata.normalize("NFC", name) for name in ("Müller.é", "Peña"))


def studies(*numbers: int) -> list[str]:
    return [f"valid_{n}_a_1" for n in numbers]


@pytest.mark.parametrize(
    "wanted",
    [
        studies(3, 9, 10),
        studies(10, 3, 9, 3),
        set(studies(10, 3, 9)),
        tuple(studies(9, 10, 3)),
        dict.fromkeys(studies(9, 10, 3)),
        np.array(studies(9, 10, 3)),
        [8, 2, 9],
        [-2, "valid_9_a_1", 2],
        np.array([9, 8, 2], np.uint8),
        lambda sample: sample.study_id in studies(9, 10, 3),
    ],
)
def test_a_selection_has_each_sample_once_in_the_order_of_the_data_set(
    folder: Path, wanted: Any
) -> None:
    dataset = VolumeDataset(folder)
    selected = dataset.select(wanted)
    assert list(selected.study_ids) == studies(3, 9, 10)
    assert len(selected) == 3
    for number, study_id in enumerate(selected.study_ids):
        for sample in (selected[number], selected[study_id], selected[number - 3]):
            assert sample["study_id"] == study_id
            assert np.array_equal(sample["volume"], dataset[study_id]["volume"])
        assert selected.metadata(number) == dataset.metadata(study_id)
        assert selected.index_of(study_id) == number
    with pytest.raises(IndexError):
        selected[3]
    with pytest.raises(KeyError):
        selected["valid_1_a_1"]
    assert (selected.spec, selected.class_names) == (dataset.spec, dataset.class_names)
    assert len(dataset) == 11


def test_the_function_sees_what_the_record_says(part_labelled: Path) -> None:
    dataset = VolumeDataset(part_labelled)
    assert list(dataset.select(lambda s: not s.labelled).study_ids) == studies(3, 7, 8)
    assert list(dataset.select(lambda s: s.key == "valid_2_a_1").study_ids) == studies(2)
    assert len(dataset.select(lambda s: s.labelled)) == 8


def test_nothing_may_be_selected_and_of_nothing_nothing(hwd: Path) -> None:
    dataset = VolumeDataset(hwd)
    for empty in (dataset.select([]), dataset.select(lambda _: False), dataset.take([])):
        assert len(empty) == 0
        assert empty.study_ids == ()
        assert len(empty.select(lambda _: True)) == len(empty.select([])) == 0
        assert "0 samples in 0 shards" in repr(empty)
        with pytest.raises(IndexError):
            empty[0]
        with pytest.raises(UsageError, match="there is no sample 0"):
            empty.select([0])
        assert len(pickle.loads(pickle.dumps(empty))) == 0


def test_a_study_that_several_folders_hold_is_selected_from_each(hwd: Path, own: Path) -> None:
    dataset = VolumeDataset([hwd, own])
    selected = dataset.select(studies(2, 11))
    assert list(selected.study_ids) == studies(2, 11, 2, 11)
    assert [selected.shards[n].path.parent for n in selected.shard_of] == [hwd, hwd, own, own]
    with pytest.raises(UsageError, match=r"valid_2_a_1 is in .* and 1 more more than once"):
        selected["valid_2_a_1"]
    assert dataset.select([1])["valid_2_a_1"]["study_id"] == "valid_2_a_1"


def test_what_the_data_set_does_not_hold_is_named(hwd: Path) -> None:
    dataset = VolumeDataset(hwd)
    with pytest.raises(UsageError, match=r"2 of the 3 studies .* not in .*\(a, valid_77_a_1\)"):
        dataset.select(["valid_77_a_1", "valid_1_a_1", "a"])
    with pytest.raises(UsageError, match=r"20 of the 20 studies .*\(x0, x1, x10, …\)"):
        dataset.select(f"x{n}" for n in range(20))
    with pytest.raises(UsageError, match="1 of the 1 study"):
        dataset.select(studies(1)).select(studies(2))


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("valid_1_a_1", "takes a list of study ids"),
        (b"valid_1_a_1", "takes a list of study ids"),
        (3, "takes a list of study ids"),
        (None, "takes a list of study ids"),
        ([11], "there is no sample 11"),
        ([-12], "there is no sample -12"),
        ([1.0], "1.0 is not the number of a sample"),
        ([None], "None is not the number of a sample"),
        (np.array([1.5]), "is not the number of a sample"),
        ([True, False], "not by a mask; numpy.flatnonzero"),
        (np.ones(11, bool), "not by a mask"),
    ],
)
def test_what_selects_nothing_for_certain_is_refused(hwd: Path, wanted: Any, message: str) -> None:
    dataset = VolumeDataset(hwd)
    with pytest.raises(UsageError, match=message):
        dataset.select(wanted)


def test_a_mask_of_torch_is_refused_and_its_numbers_are_taken(hwd: Path) -> None:
    torch = pytest.importorskip("torch")
    dataset = VolumeDataset(hwd)
    mask = torch.arange(11) > 8
    with pytest.raises(UsageError, match="not by a mask"):
        dataset.select(mask)
    assert list(dataset.take(mask.nonzero().flatten()).study_ids) == studies(10, 11)


def test_taking_keeps_the_order_and_repeats(folder: Path) -> None:
    dataset = VolumeDataset(folder)
    taken = dataset.take([9, 0, 9, -1, 4])
    assert list(taken.study_ids) == studies(10, 1, 10, 11, 5)
    for number, study_id in enumerate(taken.study_ids):
        assert np.array_equal(taken[number]["volume"], dataset[study_id]["volume"])
    assert list(taken.take([2, 1, 3]).study_ids) == studies(10, 1, 11)
    assert list(taken.select(studies(5, 10)).study_ids) == studies(10, 10, 5)
    assert not taken.in_stored_order
    assert dataset.in_stored_order
    assert dataset.select([9, 0]).in_stored_order
    with pytest.raises(UsageError, match=r"valid_10_a_1 is in .* more than once"):
        taken["valid_10_a_1"]


def test_a_selection_keeps_its_shards_and_says_which_are_whole(hwd: Path) -> None:
    dataset = VolumeDataset(hwd)
    assert all(shard.whole for shard in dataset.shards)
    selected = dataset.select([3, 4, 5, 6])
    assert [shard.path for shard in selected.shards] == [shard.path for shard in dataset.shards]
    assert [len(shard.samples) for shard in selected.shards] == [0, 3, 1, 0]
    assert [shard.whole for shard in selected.shards] == [False, True, False, False]
    assert [shard.whole for shard in selected.select([3]).shards] == [False] * 4
    assert selected.shard_of.tolist() == [1, 1, 1, 2]


def test_a_pickled_selection_holds_its_own_entries_alone(hwd: Path) -> None:
    dataset = VolumeDataset(hwd)
    selected = dataset.take([10, 2])
    found = pickle.loads(pickle.dumps(selected))
    assert list(found.study_ids) == studies(11, 3)
    assert found.select([0]).study_ids == ("valid_11_a_1",)
    assert np.array_equal(found[1]["volume"], dataset[2]["volume"])
    assert len(pickle.dumps(selected)) < len(pickle.dumps(dataset)) - 9 * 200


def test_what_was_verified_before_a_selection_is_verified_again(own: Path) -> None:
    dataset = VolumeDataset(own)
    dataset[4]
    selected = dataset.select([4])
    shard, entry = dataset.locate(4)
    flip_byte(shard.path, entry.members["bin"].offset + 5000)
    dataset[4]
    with pytest.raises(FetchError, match="checksum"):
        selected[0]


@pytest.fixture
def accented(tmp_path: Path, hwd: Path) -> Path:
    """A data set whose studies have names in NFD, as macOS writes them."""
    (volume, *_) = sorted((hwd.parent / "source").rglob("*.nii.gz"))
    for name in ACCENTED:
        source = tmp_path / "source" / f"{unicodedata.normalize('NFD', name)}.nii.gz"
        source.parent.mkdir(exist_ok=True)
        shutil.copy(volume, source)
    ctgpu.build(
        tmp_path / "out", source=tmp_path / "source", spec=VolumeDataset(hwd).spec, device="cpu"
    )
    return tmp_path / "out"


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_study_ids_are_compared_in_one_normal_form(accented: Path, form: str) -> None:
    dataset = VolumeDataset(accented)
    asked, other = (unicodedata.normalize(form, name) for name in ACCENTED)
    (stored,) = (s for s in dataset.study_ids if unicodedata.normalize("NFC", s) == ACCENTED[0])
    assert unicodedata.is_normalized("NFD", stored)
    assert dataset.select([asked]).study_ids == (stored,)
    assert len(dataset.select(np.array([asked, other]))) == 2
    assert dataset[asked]["study_id"] == stored
    assert dataset.metadata(asked)["study_id"] == stored
    assert dataset.study_ids[dataset.index_of(asked)] == stored
    # A key has "_" for the dot, and each in its own place.
    assert dataset.select([asked.replace(".", "_")]).study_ids == (stored,)
    with pytest.raises(UsageError, match=r"1 of the 2 studies .* \(Möller\)"):
        dataset.select([asked, "Möller"])
    with pytest.raises(KeyError):
        dataset["Möller"]
