"""The decoder in a stock webdataset pipeline."""

from __future__ import annotations

import gc
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loading_cases import flip_byte

from built import read_samples
from ctgpu.errors import DecodeError
from ctgpu.loading import VolumeDataset
from ctgpu.loading.webdataset import decoder

webdataset = pytest.importorskip("webdataset")


@pytest.mark.filterwarnings(
    # webdataset leaves the tars that it opened to the garbage collector.
    "ignore::ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
)
def test_a_stock_pipeline_gives_the_same_samples(folder: Path) -> None:
    urls = str(folder / "shard-{000000..000003}.tar")
    source = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False)
    dataset = VolumeDataset(folder)
    found = list(source.map(decoder))
    assert len(found) == 11
    for index, sample in enumerate(found):
        expected = dataset[index]
        assert np.array_equal(sample["volume"], expected["volume"])
        assert sample["volume"].dtype == np.float16
        assert np.array_equal(sample["labels"], expected["labels"])
        assert (sample["report"], sample["study_id"]) == (expected["report"], expected["study_id"])
        # As an augmentation in place does it.
        for name in ("volume", "labels"):
            sample[name] *= 0
            assert not sample[name].any()
    del source
    gc.collect()


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
)
def test_a_stock_pipeline_selects_by_study_id(hwd: Path) -> None:
    urls = str(hwd / "shard-{000000..000003}.tar")
    source = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False)
    ids = {"valid_2_a_1", "valid_11_a_1"}
    found = source.map(decoder).select(lambda sample: sample["study_id"] in ids)
    assert [sample["study_id"] for sample in found] == ["valid_2_a_1", "valid_11_a_1"]
    del source, found
    gc.collect()


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
)
@pytest.mark.parametrize("name", ["x[ab]", "x{1,2}"])
def test_a_stock_pipeline_takes_the_tars_of_any_pattern(own: Path, name: str) -> None:
    folder = own.rename(own.with_name(name))
    dataset = VolumeDataset(folder / "shard-*.tar")
    urls = [str(shard.path) for shard in dataset.shards]
    source = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False)
    assert [sample["study_id"] for sample in source.map(decoder)] == list(dataset.study_ids)
    del source
    gc.collect()


@pytest.mark.parametrize(
    "change",
    [
        {"bin": b"\0" * 10},
        {"json": b"{}"},
        {"json": b"not json"},
        {"cls": b"123"},
        {"txt": b"\xff"},
        {"bin": np.zeros(3)},
    ],
)
def test_what_is_not_a_sample_is_refused(hwd: Path, change: dict[str, Any]) -> None:
    sample = read_samples(hwd)["valid_1_a_1"]
    good = {
        "__key__": "valid_1_a_1",
        "bin": sample.volume,
        "cls": sample.labels.tobytes(),
        "txt": sample.text.encode(),
        "json": json.dumps(sample.metadata).encode(),
    }
    assert decoder(good)["study_id"] == "valid_1_a_1"
    with pytest.raises(DecodeError, match=r"valid_1_a_1 is not a sample of ctgpu.*decode"):
        decoder(good | change)
    for dtype in ("float64", "<f2", ["float16"], None):
        stated = json.dumps(sample.metadata | {"dtype": dtype}).encode()
        with pytest.raises(DecodeError, match=r"valid_1_a_1 is not a sample.*\(it is .*HWD"):
            decoder(good | {"json": stated})
    del good["cls"]
    with pytest.raises(DecodeError, match="valid_1_a_1 lacks cls"):
        decoder(good)


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
)
def test_a_stock_pipeline_among_ranks_wants_to_be_told_how_to_share(
    hwd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls = [str(shard.path) for shard in VolumeDataset(hwd).shards]
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ValueError, match="explicit nodesplitter"):
        list(webdataset.WebDataset(urls, shardshuffle=False))
    seen: list[str] = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        source = webdataset.WebDataset(
            urls, shardshuffle=False, nodesplitter=webdataset.split_by_node
        )
        seen += [sample["study_id"] for sample in source.map(decoder)]
        del source
        gc.collect()
    assert sorted(seen) == sorted(VolumeDataset(hwd).study_ids)


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
)
def test_a_stock_pipeline_gives_compressed_samples_as_they_were(pair: tuple[Path, Path]) -> None:
    raw, small = (VolumeDataset(folder) for folder in pair)
    urls = [str(shard.path) for shard in small.shards]
    source = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False)
    found = list(source.map(decoder))
    assert [sample["study_id"] for sample in found] == list(raw.study_ids)
    for index, sample in enumerate(found):
        wanted = raw[index]
        for name in ("volume", "mask", "labels"):
            assert sample[name].dtype == wanted[name].dtype
            assert np.array_equal(sample[name], wanted[name], equal_nan=True)
            sample[name] *= 0
        assert sample["volume"].flags.c_contiguous
        assert sample["report"] == wanted["report"]
    del source
    gc.collect()


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
)
def test_a_stock_pipeline_says_which_member_is_damaged(rice: Path, tmp_path: Path) -> None:
    own = shutil.copytree(rice, tmp_path / "own")
    dataset = VolumeDataset(own)
    for number, extension in ((1, "ctz"), (5, "segz")):
        shard, entry = dataset.locate(number)
        flip_byte(shard.path, entry.members[extension].offset + 64 + 6 * 24)
    urls = [str(shard.path) for shard in dataset.shards]
    source = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False)
    batches = iter(source.map(decoder))
    assert next(batches)["study_id"] == "valid_1_a_1"
    damaged = r"^valid_2_a_1\.ctz cannot be decoded: its tile 0 does not have .*; `ctgpu verify`"
    with pytest.raises(DecodeError, match=damaged):
        next(batches)
    errors: list[Exception] = []
    kept = [s["study_id"] for s in source.map(decoder, handler=lambda e: errors.append(e) or True)]
    assert kept == [study for n, study in enumerate(dataset.study_ids) if n not in (1, 5)]
    assert "valid_6_a_1.segz cannot be decoded: its tile 0" in str(errors[1])
    del source, batches
    gc.collect()


def members_of(folder: Path) -> dict[str, Any]:
    """The first sample as webdataset hands it over."""
    with tarfile.open(folder / "shard-000000.tar") as archive:
        infos = list(archive)[:5]
        contents = {i.name.partition(".")[2]: archive.extractfile(i).read() for i in infos}  # type: ignore[union-attr]
    assert set(contents) == {"ctz", "segz", "cls", "txt", "json"}
    return {"__key__": "valid_1_a_1", **contents}


@pytest.mark.parametrize(
    ("stated", "sentence"),
    [
        ({"shape": [44, 36, 25]}, r"ctz cannot be decoded: its "),
        ({"shape": [24, 44, 36]}, r"ctz cannot be decoded: its "),
        ({"layout": "DHW"}, r"ctz cannot be decoded: its "),
        ({"shape": [10**6, 10**6, 10**6]}, "ctz cannot be decoded: the shape .* 1 to 65535"),
        ({"shape": [0, 36, 24]}, "ctz cannot be decoded: the shape .* 1 to 65535"),
        ({"dtype": "bfloat16"}, "ctz cannot be decoded: it holds float16, and bfloat16 was"),
        ({"dtype": "uint8"}, "ctz cannot be decoded: it holds float16, and uint8 was wanted"),
        ({"mask": {"dtype": "uint16"}}, "segz cannot be decoded: it holds uint8, and uint16"),
        ({"mask": None}, "is not a sample of ctgpu"),
        ({"shape": [24]}, r"is not a sample of ctgpu \(its shape is \(24,\)\)"),
        ({"shape": ["a", 36, 24]}, "is not a sample of ctgpu"),
    ],
)
def test_a_json_that_is_another_samples_is_found(
    rice: Path, stated: dict[str, Any], sentence: str
) -> None:
    good = members_of(rice)
    facts = json.loads(good["json"]) | stated
    with pytest.raises(DecodeError, match=rf"valid_1_a_1[. ]{sentence}"):
        decoder(good | {"json": json.dumps(facts).encode()})


def test_what_a_compressed_sample_lacks_is_named(rice: Path) -> None:
    good = members_of(rice)
    assert decoder(good)["mask"].shape == (1, 24, 44, 36)
    for extension, sentence in (
        ("json", "valid_1_a_1 lacks json"),
        ("cls", "valid_1_a_1 lacks cls"),
        ("ctz", "valid_1_a_1 lacks bin"),
    ):
        with pytest.raises(DecodeError, match=sentence):
            decoder({name: value for name, value in good.items() if name != extension})
    assert "mask" not in decoder({name: v for name, v in good.items() if name != "segz"})
