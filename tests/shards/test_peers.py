"""The tars are read unchanged by everything that reads WebDatasets."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
import xxhash
from shard_samples import pack, write_shard

from ctgpu.shards.plan import Plan
from ctgpu.shards.record import ShardRecord
from support import plain_ctz

#: A shard of two samples, their volumes and masks compressed.
COMPRESSED = Path(__file__).parents[1] / "golden/version-5/rice/shard-000000.tar"


@pytest.fixture
def shard(plan: Plan, tmp_path: Path) -> Path:
    """A shard of four planned samples, one of which failed."""
    write_shard(tmp_path, plan, failing=("scan_2",))
    return tmp_path / "shard-000000.tar"


def _expected(plan: Plan) -> dict[str, dict[str, bytes]]:
    """Members by key and extension."""
    samples = {}
    for planned in plan.samples:
        if planned.key != "scan_2":
            packed = pack(plan, planned)
            samples[planned.key] = {
                extension: bytes(data) for extension, (data, _) in packed.members().items()
            }
    return samples


def test_tarfile(shard: Path, plan: Plan) -> None:
    expected = _expected(plan)
    with tarfile.open(shard, "r:") as tar:
        assert tar.getnames() == [f"{key}.{e}" for key in expected for e in expected[key]]
        for member in tar:
            key, extension = member.name.split(".")
            file = tar.extractfile(member)
            assert file is not None
            assert file.read() == expected[key][extension]
            assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o644)
            if extension in ("bin", "seg"):
                assert member.offset_data % 4096 == 0


@pytest.mark.skipif(shutil.which("tar") is None, reason="no tar program")
def test_tar_program(shard: Path, plan: Plan, tmp_path: Path) -> None:
    (target := tmp_path / "extracted").mkdir()
    done = subprocess.run(["tar", "xf", shard, "-C", target], capture_output=True, check=True)
    assert done.stderr == b""
    found = {path.name: path.read_bytes() for path in target.iterdir()}
    assert found == {
        f"{key}.{extension}": data
        for key, members in _expected(plan).items()
        for extension, data in members.items()
    }


def _read_by_webdataset(shard: Path) -> dict[str, dict[str, bytes]]:
    dataset = webdataset.WebDataset(
        str(shard), shardshuffle=False, nodesplitter=webdataset.split_by_node
    )
    return {
        sample["__key__"]: {
            extension: data for extension, data in sample.items() if not extension.startswith("__")
        }
        for sample in dataset
    }


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning"
)  # webdataset leaves its file to the collector
def test_stock_webdataset(shard: Path, plan: Plan) -> None:
    found = _read_by_webdataset(shard)
    assert found == _expected(plan)
    assert list(found) == list(_expected(plan))


def test_a_loader_of_the_old_format(shard: Path, plan: Plan) -> None:
    """It reads ``json.study_id``, ``bin`` as float16, ``cls`` as float32, ``txt`` as UTF-8."""
    expected = _expected(plan)
    loaded = []
    with tarfile.open(shard, "r|") as stream:
        sample: dict[str, bytes] = {}
        for member in stream:
            key, extension = member.name.split(".", 1)
            file = stream.extractfile(member)
            assert file is not None
            sample[extension] = file.read()
            if len(sample) == len(expected[key]):
                study = json.loads(sample["json"])["study_id"]
                volume = np.frombuffer(sample["bin"], "<f2").reshape(plan.spec.stored_shape)
                labels = np.frombuffer(sample["labels" if "labels" in sample else "cls"], "<f4")
                loaded.append((study, key, volume, labels, sample["txt"].decode()))
                sample = {}
    assert [study for study, *_ in loaded] == ["scan.0", "scan.1", "scan.3"]
    for study, key, volume, labels, text in loaded:
        assert volume.tobytes() == expected[key]["bin"]
        assert labels.shape == (2,)
        assert text == f"Bericht für {study}"


_DALI = importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali")


@pytest.mark.skipif(not _DALI, reason="nvidia-dali is not installed")
def test_wds2idx_writes_the_same_index(shard: Path, tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("wds2idx")
    target = tmp_path / "theirs.idx"
    subprocess.run([script, shard, target], capture_output=True, check=True)
    assert target.read_bytes() == shard.with_suffix(".idx").read_bytes()


@pytest.mark.skipif(not _DALI, reason="nvidia-dali is not installed")
@pytest.mark.parametrize("indexed", [True, False], ids=["index", "no_index"])
def test_dali_reader(indexed: bool, shard: Path, plan: Plan) -> None:
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def read() -> object:
        outputs = fn.readers.webdataset(
            paths=[str(shard)],
            index_paths=[str(shard.with_suffix(".idx"))] if indexed else [],
            ext=["bin", "cls", "txt", "json"],
            dtypes=[types.FLOAT16, types.FLOAT, types.UINT8, types.UINT8],
            missing_component_behavior="error",
        )
        return tuple(outputs)

    pipeline = read()
    pipeline.build()
    for members in _expected(plan).values():
        found = [np.asarray(output.as_array()[0]).tobytes() for output in pipeline.run()]
        assert found == [members[extension] for extension in ("bin", "cls", "txt", "json")]


def _compressed_members() -> dict[str, dict[str, bytes]]:
    """Members of the compressed shard by key and extension, cut out as its record says."""
    tar = COMPRESSED.read_bytes()
    return {
        entry.key: {
            extension: tar[member.offset : member.offset + member.size_bytes]
            for extension, member in entry.members.items()
        }
        for entry in ShardRecord.load(COMPRESSED.with_suffix(".json")).samples
    }


@pytest.mark.skipif(shutil.which("tar") is None, reason="no tar program")
def test_tar_program_lists_a_compressed_shard() -> None:
    done = subprocess.run(["tar", "tf", COMPRESSED], capture_output=True, text=True, check=True)
    assert (done.stdout.split(), done.stderr) == (
        [f"{key}.{e}" for key in "ab" for e in ("ctz", "segz", "cls", "txt", "json")],
        "",
    )


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning"
)  # webdataset leaves its file to the collector
def test_stock_webdataset_reads_a_compressed_shard() -> None:
    found = _read_by_webdataset(COMPRESSED)
    assert found == _compressed_members()
    assert list(found) == ["a", "b"]
    for sample in found.values():  # which the page's few lines of NumPy decode
        volume = plain_ctz.decode(sample["ctz"]).transpose(1, 2, 0)
        facts = json.loads(sample["json"])
        assert list(volume.shape) == facts["shape"]
        assert xxhash.xxh3_128_hexdigest(volume.tobytes()) == facts["xxh3_128"]


@pytest.mark.skipif(not _DALI, reason="nvidia-dali is not installed")
def test_wds2idx_writes_the_index_of_a_compressed_shard(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("wds2idx")
    target = tmp_path / "theirs.idx"
    subprocess.run([script, COMPRESSED, target], capture_output=True, check=True)
    assert target.read_bytes() == COMPRESSED.with_suffix(".idx").read_bytes()
