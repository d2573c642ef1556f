"""The decoder in a stock webdataset pipeline."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

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
