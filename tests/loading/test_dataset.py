"""Random access by number and study id, from folders and patterns."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from built import read_samples
from ctgpu.errors import FetchError, MismatchError, StorageError, UsageError
from ctgpu.loading import VolumeDataset
from ctgpu.shards.reader import ShardReader


def flip_byte(tar: Path, offset: int) -> None:
    with tar.open("r+b") as file:
        file.seek(offset)
        (value,) = file.read(1)
        file.seek(offset)
        file.write(bytes([value ^ 0x10]))


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
        assert json.loads(dataset.metadata(index)) == sample.metadata


def test_it_opens_without_a_tar_being_read(own: Path) -> None:
    for tar in own.glob("*.tar"):
        tar.write_bytes(b"")  # nothing of a record depends on it
    assert len(VolumeDataset(own)) == 11


@pytest.mark.parametrize(
    ("pattern", "studies"),
    [
        ("shard-*.tar", range(1, 12)),
        ("shard-*", range(1, 12)),
        ("shard-{000001..000002}.tar", range(4, 10)),
        ("shard-00000[03].tar", (1, 2, 3, 10, 11)),
        ("shard-000003.tar", (10, 11)),
    ],
)
def test_patterns_name_shards(hwd: Path, pattern: str, studies: Any) -> None:
    dataset = VolumeDataset(str(hwd / pattern))
    assert list(dataset.study_ids) == [f"valid_{n}_a_1" for n in studies]


def test_what_cannot_be_opened_is_refused_with_the_way_out(own: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("empty", "empty/shard-*.tar"):
        with pytest.raises(UsageError, match="names no finished shard"):
            VolumeDataset(tmp_path / name)
    with pytest.raises(UsageError, match=r"shard-000007\.tar is not there.*not finished"):
        VolumeDataset(own / "shard-000007.tar")
    with pytest.raises(UsageError, match="verify is 'sometimes'"):
        VolumeDataset(own, verify="sometimes")  # type: ignore[arg-type]
    manifest = json.loads((own / "manifest.json").read_text())
    (own / "manifest.json").write_text(json.dumps(manifest | {"fingerprint": "another"}))
    with pytest.raises(MismatchError, match="belongs to another data set"):
        VolumeDataset(own)
    (own / "manifest.json").write_text("[]")
    with pytest.raises(UsageError, match="ctgpu manifest"):
        VolumeDataset(own)
    # Without a manifest, as during a build, the plan says the same.
    (own / "manifest.json").unlink()
    (own / "shard-000002.json").unlink()
    assert len(VolumeDataset(own)) == 8


def test_a_shape_that_the_bytes_do_not_have_is_refused_when_opened(own: Path) -> None:
    manifest = json.loads((own / "manifest.json").read_text())
    manifest["spec"]["shape_hwd"] = [44, 36, 25]
    (own / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(MismatchError, match=r"valid_1_a_1\.bin has 76032 bytes.*asks for 79200"):
        VolumeDataset(own)


def test_folders_join_where_their_specs_agree(folder: Path, hwd: Path, tmp_path: Path) -> None:
    shutil.copytree(hwd, tmp_path / "a")
    shutil.copytree(folder, tmp_path / "b")
    pattern = str(tmp_path / "*" / "shard-*.tar")
    if folder.name == "DHW":
        with pytest.raises(MismatchError, match="not made to the same spec"):
            VolumeDataset(pattern)
        return
    dataset = VolumeDataset(pattern)
    assert len(dataset) == 22
    assert dataset[0]["study_id"] == dataset[11]["study_id"] == "valid_1_a_1"
    with pytest.raises(UsageError, match="more than once"):
        dataset["valid_1_a_1"]


def test_unknown_samples_are_lookup_errors(hwd: Path) -> None:
    dataset = VolumeDataset(hwd)
    for index in (11, -12):
        with pytest.raises(IndexError):
            dataset[index]
    with pytest.raises(KeyError):
        dataset["valid_99_a_1"]


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


@pytest.mark.parametrize("box", [(3, 36, 24), (5, 7, 24), (5, 7, 9), (44, 1, 1), (24, 3, 3)])
def test_a_box_reads_no_more_than_its_rows(
    folder: Path, box: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = VolumeDataset(folder, verify="first")
    stored = dataset.spec.stored_shape
    box = tuple(min(k, n) for k, n in zip(box, stored, strict=True))  # type: ignore[assignment]
    start = tuple(min(2, n - k) for k, n in zip(box, stored, strict=True))
    whole = np.empty(stored, np.float16)
    dataset.read_into(3, whole)
    expected = whole[tuple(slice(a, a + k) for a, k in zip(start, box, strict=True))]
    read_bytes = []
    read_part = ShardReader.read_part

    def counted(self: ShardReader, entry: Any, extension: str, at: int, out: memoryview) -> None:
        read_bytes.append(len(out) if extension == "bin" else 0)
        read_part(self, entry, extension, at, out)

    monkeypatch.setattr(ShardReader, "read_part", counted)
    out = np.empty(box, np.float16)
    dataset.read_into(3, out, start)  # type: ignore[arg-type]
    assert np.array_equal(out, expected)
    row = stored[2]
    assert sum(read_bytes) == 2 * box[0] * ((box[1] - 1) * row + box[2])
    # Where the volume was not verified yet, all of it is read, and checked.
    read_bytes.clear()
    dataset.read_into(4, out, start)  # type: ignore[arg-type]
    assert sum(read_bytes) == dataset.spec.size_bytes


def test_a_shard_that_is_gone_or_cut_off_is_a_clear_error(own: Path) -> None:
    dataset = VolumeDataset(own)
    (own / "shard-000001.tar").unlink()
    with pytest.raises(StorageError, match=r"shard-000001\.tar.*when the data set was opened"):
        dataset[3]
    with (own / "shard-000002.tar").open("r+b") as tar:
        tar.truncate(50_000)
    with pytest.raises(FetchError, match=r"ends within valid_7_a_1\.bin"):
        dataset[6]
