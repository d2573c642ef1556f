"""Random access by number and study id, from folders and patterns."""

from __future__ import annotations

import copy
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from loading_cases import flip_byte

from built import read_samples
from ctgpu.errors import DecodeError, FetchError, StorageError
from ctgpu.loading import VolumeDataset
from ctgpu.shards.reader import ShardReader


def test_samples_are_those_that_any_tar_reader_sees(folder: Path) -> None:
    dataset = VolumeDataset(folder)
    expected = read_samples(folder)
    assert len(dataset) == len(expected) == 11
    assert list(dataset.study_ids) == list(expected)
    for index, (study_id, sample) in enumerate(expected.items()):
        axes = (2, 0, 1) if folder.name == "HWD" else (0, 1, 2)
        for found in (dataset[index], dataset[study_id], dataset[index - len(dataset)]):
            assert found["volume"].dtype == np.float16
            assert found["volume"].shape == (1, 24, 44, 36)
            assert np.array_equal(found["volume"][0], sample.array.transpose(axes))
            assert found["labels"].dtype == np.float32
            assert np.array_equal(found["labels"], sample.labels)
            assert (found["report"], found["study_id"]) == (sample.text, study_id)
        for key in (index, study_id, index - len(dataset)):
            assert dataset.metadata(key) == sample.metadata


def test_it_opens_without_a_tar_being_read(own: Path) -> None:
    for tar in own.glob("*.tar"):
        tar.write_bytes(b"")  # nothing of a record depends on it
    assert len(VolumeDataset(own)) == 11


def test_unknown_samples_are_lookup_errors(hwd: Path) -> None:
    dataset = VolumeDataset(hwd)
    for index in (11, -12):
        for ask in (dataset.__getitem__, dataset.metadata):
            with pytest.raises(IndexError):
                ask(index)
    for ask in (dataset.__getitem__, dataset.metadata):
        with pytest.raises(KeyError):
            ask("valid_99_a_1")
    with pytest.raises(TypeError):
        dataset[1.5]  # type: ignore[index]
    assert dataset[np.int64(3)]["study_id"] == "valid_4_a_1"  # type: ignore[index]


def test_first_verifies_once_always_always_and_off_never(own: Path) -> None:
    datasets = {name: VolumeDataset(own, verify=name) for name in ("first", "always", "off")}
    shard, entry = datasets["off"].locate(4)
    datasets["first"][4]
    flip_byte(shard.path, entry.members["bin"].offset + 5000)
    damaged = datasets["off"][4]["volume"]
    assert np.array_equal(datasets["first"][4]["volume"], damaged)
    with pytest.raises(FetchError, match=r"valid_5_a_1\.bin does not have its checksum"):
        datasets["always"][4]
    # A copy in another process has verified nothing yet.
    with pytest.raises(FetchError, match="checksum"):
        pickle.loads(pickle.dumps(datasets["first"]))[4]


def test_a_pickled_data_set_has_the_samples_of_when_it_was_opened(own: Path) -> None:
    (own / "manifest.json").unlink()  # as while the build goes on
    later = {name: (own / name).read_bytes() for name in ("shard-000000.json", "shard-000002.json")}
    for name in later:
        (own / name).unlink()
    dataset = VolumeDataset(own)
    pickled = pickle.dumps(dataset)
    for name, content in later.items():
        (own / name).write_bytes(content)
    assert len(VolumeDataset(own)) == 11
    for found in (pickle.loads(pickled), copy.deepcopy(dataset)):
        assert list(found.study_ids) == [f"valid_{n}_a_1" for n in (4, 5, 6, 10, 11)]
        for index in range(5):
            assert found[index]["study_id"] == dataset[index]["study_id"]
            assert np.array_equal(found[index]["volume"], dataset[index]["volume"])
        assert (found.spec, found.class_names) == (dataset.spec, dataset.class_names)
        assert found.index_of("valid_10_a_1") == 3
        assert found.metadata(3) == dataset.metadata(3)


def test_a_pickled_data_set_refuses_shards_that_were_rebuilt_or_removed(own: Path) -> None:
    pickled = pickle.dumps(VolumeDataset(own))
    (own / "shard-000001.tar").unlink()
    (own / "shard-000001.json").unlink()
    # Rebuilt, it holds other samples in the same places.
    shutil.copyfile(own / "shard-000000.tar", own / "shard-000002.tar")
    shutil.copyfile(own / "shard-000000.json", own / "shard-000002.json")
    found = pickle.loads(pickled)
    assert len(found) == 11
    with pytest.raises(StorageError, match=r"shard-000001\.tar.*when the data set was opened"):
        found[3]
    for key in (6, "valid_7_a_1"):
        with pytest.raises(FetchError, match="valid_7_a_1"):
            found[key]
    assert found[0]["study_id"] == "valid_1_a_1"


def test_a_pickled_data_set_is_small(hwd: Path) -> None:
    dataset = VolumeDataset(hwd)
    few = len(pickle.dumps(dataset))
    dataset.study_ids  # noqa: B018  (what is derived does not travel)
    dataset["valid_3_a_1"]
    assert len(pickle.dumps(dataset)) == few
    assert few < 3000 + 11 * 500


def test_a_shard_that_is_gone_or_cut_off_is_a_clear_error(own: Path) -> None:
    dataset = VolumeDataset(own)
    (own / "shard-000001.tar").unlink()
    with pytest.raises(StorageError, match=r"shard-000001\.tar.*when the data set was opened"):
        dataset[3]
    with (own / "shard-000002.tar").open("r+b") as tar:
        tar.truncate(50_000)
    with pytest.raises(FetchError, match=r"ends within valid_7_a_1\.bin"):
        dataset[6]


def test_its_repr_is_short(own: Path, folder: Path) -> None:
    shape = "HWD (44, 36, 24)" if folder.name == "HWD" else "DHW (24, 44, 36)"
    expected = f"VolumeDataset('{folder}': 11 samples in 4 shards, float16 {shape})"
    assert repr(VolumeDataset(folder)) == expected
    if folder.name == "HWD":
        both = VolumeDataset([folder, own])
        assert repr(both.select([0, 21])).startswith(
            f"VolumeDataset('{folder} and 1 more': 2 samples in 2 shards, "
        )


def test_metadata_that_is_not_json_is_one_sentence(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = VolumeDataset(own)
    for text in (b"", b"[1, 2]", b"\xff", b"[" * 100_000):
        monkeypatch.setattr(ShardReader, "read", lambda *_, text=text: text)
        with pytest.raises(DecodeError, match=r"valid_1_a_1\.json is not a JSON object"):
            dataset.metadata(0)
