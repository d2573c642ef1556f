"""The DALI pipeline on the CPU, with the real package where it is installed."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loading_cases import flip_byte

from built import read_samples
from ctgpu.errors import DeviceError, UsageError
from ctgpu.loading import VolumeDataset
from ctgpu.loading.dali import pipeline


def dali() -> Any:
    return pytest.importorskip("nvidia.dali", reason="nvidia-dali is not installed")


def run(built: Any, batches: int) -> list[tuple[bytes, Any, Any, str]]:
    """(metadata, volume, labels, report) of each sample."""
    samples = []
    for _ in range(batches):
        volume, labels, report, metadata = built.run()
        for row in range(len(volume)):
            samples.append(
                (
                    bytes(np.asarray(metadata[row])),
                    np.asarray(volume[row]),
                    np.asarray(labels[row]),
                    bytes(np.asarray(report[row])).decode(),
                )
            )
    return samples


def ids(samples: list[tuple[bytes, Any, Any, str]]) -> list[str]:
    return [json.loads(sample[0])["study_id"] for sample in samples]


@pytest.mark.slow
def test_dali_gives_the_same_bits(folder: Path) -> None:
    dali()
    dataset = VolumeDataset(folder)
    expected = list(read_samples(folder).values())
    found = run(pipeline(folder, 4), 3)[:11]
    for index, (metadata, volume, labels, report) in enumerate(found):
        assert json.loads(metadata) == dataset.metadata(index)
        assert volume.dtype == np.float16
        assert np.array_equal(volume, expected[index].array)
        assert np.array_equal(labels, expected[index].labels)
        assert report == expected[index].text


def test_dali_shuffles_within_its_bytes_and_shares_among_ranks(hwd: Path) -> None:
    dali()
    size_bytes = VolumeDataset(hwd).spec.size_bytes
    in_order = [s[0] for s in run(pipeline(hwd, 1), 11)]
    shuffled = run(pipeline(hwd, 1, shuffle=True, seed=3, shuffle_bytes=4 * size_bytes), 11)
    assert sorted(s[0] for s in shuffled) == sorted(in_order)
    assert [s[0] for s in shuffled] != in_order
    ranks = [run(pipeline(hwd, 2, rank=rank, world_size=2), 3) for rank in range(2)]
    assert {s[0] for rank in ranks for s in rank} == set(in_order)


@pytest.mark.slow
def test_dali_reads_what_was_selected_and_nothing_else(hwd: Path, own: Path) -> None:
    dali()
    dataset = VolumeDataset([hwd, own]).select([0, 2, 3, 4, 5, 10, 12, 21])
    found = run(pipeline(dataset, 2), 4)
    assert ids(found) == list(dataset.study_ids)
    for index, (_, volume, _, _) in enumerate(found):
        whole = dataset[index]["volume"][0]  # (D, H, W)
        assert np.array_equal(volume, whole.transpose(1, 2, 0))
    shuffled = run(pipeline(dataset, 1, shuffle=True, seed=1), 8)
    assert sorted(ids(shuffled)) == sorted(dataset.study_ids)


def test_dali_refuses_an_order_that_shards_do_not_have(hwd: Path) -> None:
    dali()
    dataset = VolumeDataset(hwd)
    for numbers in ([1, 0], [2, 2], [3, 0, 1]):
        with pytest.raises(UsageError, match="in another order than its shards"):
            pipeline(dataset.take(numbers))
    with pytest.raises(UsageError, match=r"0 samples .* has no samples to load"):
        pipeline(dataset.select([]))


@pytest.mark.parametrize("name", ["x[ab]", "x{1,2}"])
def test_dali_takes_the_tars_of_any_pattern(own: Path, name: str) -> None:
    dali()
    folder = own.rename(own.with_name(name))
    dataset = VolumeDataset(folder)
    found = run(pipeline(folder / "shard-{000000..000001}.tar", 1), 6)
    assert ids(found) == list(dataset.study_ids[:6])


def test_a_missing_index_or_package_is_an_error_with_the_way_out(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "nvidia.dali", None)
        with pytest.raises(DeviceError, match=r"pip install .*\[dali\]'"):
            pipeline(own)
    dali()
    (own / "shard-000001.idx").unlink()
    with pytest.raises(UsageError, match=r"shard-000001\.idx is not there"):
        pipeline(own)


@pytest.mark.slow
def test_dali_gives_compressed_volumes_as_they_were(pair: tuple[Path, Path]) -> None:
    dali()
    raw, small = (VolumeDataset(folder) for folder in pair)
    found = run(pipeline(small, 4, num_threads=3), 3)[:11]
    assert ids(found) == list(raw.study_ids)
    for index, (_, volume, labels, report) in enumerate(found):
        wanted = raw[index]
        axes = (1, 2, 0) if raw.spec.layout == "HWD" else (0, 1, 2)
        assert volume.dtype == np.float16
        assert np.array_equal(volume, wanted["volume"][0].transpose(axes))
        assert np.array_equal(labels, wanted["labels"])
        assert report == wanted["report"]


@pytest.mark.slow
def test_dali_gives_raw_and_compressed_volumes_together(plain: Path, rice: Path) -> None:
    dali()
    dataset = VolumeDataset([plain, rice]).select([0, 2, 9, 10, 11, 13, 21])
    found = run(pipeline(dataset, 2, shuffle=True, seed=2, shuffle_bytes=1 << 18), 4)[:7]
    assert sorted(ids(found)) == sorted(dataset.study_ids)
    whole = VolumeDataset(plain)
    for metadata, volume, *_ in found:
        wanted = whole[json.loads(metadata)["study_id"]]["volume"][0]
        assert np.array_equal(volume, wanted.transpose(1, 2, 0))


def test_dali_says_which_compressed_volume_is_damaged(rice: Path, tmp_path: Path) -> None:
    dali()
    own = shutil.copytree(rice, tmp_path / "own")
    shard, entry = VolumeDataset(own).locate(1)
    flip_byte(shard.path, entry.members["ctz"].offset + entry.members["ctz"].size_bytes - 1)
    damaged = r"the volume of valid_2_a_1 cannot be decoded: its tile 5 does not have its checksum"
    with pytest.raises(RuntimeError, match=damaged):
        pipeline(own, 2).run()
