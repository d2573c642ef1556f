"""An index by which stock Megatron-Energon reads shards of ctgpu."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import shutil
import sqlite3
import struct
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from exporting_cases import contents

from ctgpu.checking.verify import verify_folder
from ctgpu.errors import UsageError
from ctgpu.exporting import write_energon_index
from ctgpu.loading import VolumeDataset
from ctgpu.shards.record import checksum
from support.compressed_folders import compress_folder

# What a user of Energon writes: a cooker, and the loop.
_STOCK = """
import json, sys, warnings
from pathlib import Path

warnings.simplefilter("ignore")

from megatron.energon import (
    Cooker, DefaultTaskEncoder, Sample, WorkerConfig, basic_sample_keys, edataclass,
    get_loader, get_train_dataset, stateless,
)
from ctgpu.loading.webdataset import decoder
from ctgpu.shards.record import checksum


@edataclass
class Scan(Sample):
    volume: object
    mask: object
    study_id: str


@stateless
def cook(sample):
    made = decoder(sample)
    scan = {name: made[name] for name in ("volume", "mask", "study_id")}
    return Scan(**basic_sample_keys(sample), **scan)


class Encoder(DefaultTaskEncoder):
    cookers = [Cooker(cook, has_subflavors={"source": "ctgpu"})]


samples = get_train_dataset(
    sys.argv[1],
    worker_config=WorkerConfig(rank=0, world_size=1, num_workers=0),
    batch_size=None,
    shuffle_buffer_size=None,
    max_samples_per_sequence=None,
    task_encoder=Encoder(),
    repeat=False,
)
print(json.dumps({
    sample.study_id: [checksum(sample.volume.tobytes()), checksum(sample.mask.tobytes())]
    for sample in get_loader(samples)
}))
"""
_PREPARE = """
import sys
from megatron.energon.flavors.webdataset.prepare import WebdatasetPreparator

WebdatasetPreparator.prepare_dataset(
    sys.argv[1], sys.argv[2:], split_parts_ratio=[("train", 1.0)], shuffle_seed=None, workers=1
)
"""


def rows(database: Path) -> list[list[tuple[Any, ...]]]:
    """Samples and members, and how the database is made."""
    with contextlib.closing(sqlite3.connect(database)) as opened:
        return [
            opened.execute(f"SELECT * FROM {table} ORDER BY {order}").fetchall()
            for table, order in (
                ("samples", "tar_file_id, sample_index"),
                ("sample_parts", "tar_file_id, sample_index, content_byte_offset"),
            )
        ]


def offsets(path: Path) -> list[int]:
    return [value for (value,) in struct.iter_unpack("<Q", path.read_bytes())]


def test_the_index_says_what_the_tars_hold(folder: Path) -> None:
    indexed = write_energon_index(folder)
    assert (indexed.shards, indexed.samples, indexed.split) == (2, 3, "train")
    samples, parts = rows(folder / ".nv-meta/index.sqlite")
    wanted_samples, wanted_parts = [], []
    tars = sorted(folder.glob("*.tar"))
    for number, tar in enumerate(tars):
        begins: dict[str, int] = {}
        with tarfile.open(tar) as archive:
            for info in archive:
                key, _, extension = info.name.partition(".")
                begins.setdefault(key, info.offset)
                place = len(begins) - 1
                wanted_parts.append((number, place, extension, info.offset_data, info.size))
            ends = [*begins.values(), archive.offset]
        assert offsets(tar.with_name(f"{tar.name}.idx")) == ends
        wanted_samples += [
            (number, key, place, ends[place], ends[place + 1] - ends[place])
            for place, key in enumerate(begins)
        ]
    assert samples == wanted_samples
    assert parts == wanted_parts
    meta = folder / ".nv-meta"
    names = [tar.name for tar in tars]
    assert json.loads((meta / ".info.json").read_bytes()) == {
        "shard_counts": {names[0]: 2, names[1]: 1}
    }
    assert json.loads((meta / "split.yaml").read_bytes()) == {
        "split_parts": {"train": names, "val": [], "test": []},
        "exclude": [],
    }


def test_it_is_the_same_again_and_no_part_of_the_data_set(folder: Path) -> None:
    before = contents(folder)
    write_energon_index(folder)
    first = contents(folder / ".nv-meta")
    write_energon_index(folder)
    assert contents(folder / ".nv-meta") == first
    assert verify_folder(folder).findings == []
    shutil.rmtree(folder / ".nv-meta")
    for path in folder.glob("*.tar.idx"):
        path.unlink()
    assert contents(folder) == before


def test_a_dataset_that_someone_has_changed_is_kept(folder: Path) -> None:
    assert not write_energon_index(folder).kept_dataset
    dataset = folder / ".nv-meta/dataset.yaml"
    made = dataset.read_text()
    dataset.write_text("mine")
    assert write_energon_index(folder).kept_dataset
    assert dataset.read_text() == "mine"
    assert not write_energon_index(folder, force=True).kept_dataset
    assert dataset.read_text() == made


def test_shards_may_be_for_validation(folder: Path) -> None:
    assert write_energon_index(folder, split="val").split == "val"
    parts = json.loads((folder / ".nv-meta/split.yaml").read_bytes())["split_parts"]
    assert [len(parts[name]) for name in ("train", "val", "test")] == [0, 2, 0]
    with pytest.raises(UsageError, match="split is 'valid'; it is train or val or test"):
        write_energon_index(folder, split="valid")  # type: ignore[arg-type]


def test_what_is_no_folder_of_shards_is_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(UsageError, match=r"shard-000000\.tar is no folder; .* beside the tars"):
        write_energon_index(folder / "shard-000000.tar")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="names no finished shard"):
        write_energon_index(tmp_path / "empty")
    assert list((tmp_path / "empty").iterdir()) == []


def is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # a package above it
        return False


stock = pytest.mark.skipif(
    not is_installed("megatron.energon"), reason="megatron-energon is not installed"
)


def run(script: str, *arguments: object) -> str:
    ended = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@stock
@pytest.mark.slow
@pytest.mark.parametrize("compression", [None, "rice"])
def test_stock_energon_reads_the_samples(
    tmp_path: Path, folder: Path, compression: str | None
) -> None:
    if compression is not None:
        folder = compress_folder(folder, tmp_path / "packed", compression)
    write_energon_index(folder)
    dataset = VolumeDataset(folder)
    wanted = {
        sample["study_id"]: [checksum(sample[name].tobytes()) for name in ("volume", "mask")]
        for sample in map(dataset.__getitem__, range(len(dataset)))
    }
    assert json.loads(run(_STOCK, folder).splitlines()[-1]) == wanted


@stock
@pytest.mark.slow
def test_energon_itself_would_write_the_same(tmp_path: Path, folder: Path) -> None:
    write_energon_index(folder)
    names = sorted(path.name for path in folder.glob("*.tar"))
    (tmp_path / "theirs").mkdir()
    for name in names:
        shutil.copy(folder / name, tmp_path / "theirs")
    run(_PREPARE, tmp_path / "theirs", *names)
    for name in names:
        assert offsets(tmp_path / f"theirs/{name}.idx") == offsets(folder / f"{name}.idx")
    ours, theirs = (place / ".nv-meta/index.sqlite" for place in (folder, tmp_path / "theirs"))
    assert rows(ours) == rows(theirs)
