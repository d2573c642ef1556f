"""A finished data set is re-read, and whatever is not as it was written is named."""

from __future__ import annotations

import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import ctgpu
from ctgpu.building.events import Event, SampleWritten
from ctgpu.checking import verify
from ctgpu.checking.verify import verify_folder
from ctgpu.errors import UsageError
from ctgpu.shards.record import ShardRecord
from ctgpu.spec import Spec
from ctgpu.testing.ctrate import lay_out_ct_rate
from support.compressed_folders import compress_folder
from support.phantoms import chests, study_ids


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("source")
    volumes = chests(study_ids(7), (40, 36, 24), first_seed=1)
    paths = lay_out_ct_rate(root, volumes)
    os.truncate(paths["valid_4_a_1"], 2000)
    return root


def build(folder: Path, source: Path, **options: Any) -> None:
    ctgpu.build(
        folder,
        source=source,
        spec=Spec(target_spacing_mm=(4.0, 4.0, 6.0), shape_hwd=(35, 30, 21)),
        samples_per_shard=3,
        device="cpu",
        **options,
    )


@pytest.fixture
def built(tmp_path: Path, source: Path) -> Path:
    """Six samples of seven, in three shards."""
    build(tmp_path / "out", source)
    return tmp_path / "out"


def test_a_good_folder_is_as_it_was_written(built: Path) -> None:
    progress = []
    result = verify_folder(built, checked=lambda *counts: progress.append(counts))
    assert (result.findings, result.exit_code) == ([], 0)
    assert (result.shards, result.samples, result.failed_samples) == (3, 6, 1)
    assert result.size_bytes == sum(path.stat().st_size for path in built.glob("*.tar"))
    assert progress == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.slow
def test_a_flipped_bit_anywhere_is_found_and_its_file_named(built: Path) -> None:
    chance = random.Random(1)
    record = ShardRecord.load(built / "shard-000001.json")
    for path in sorted(built.iterdir()):
        content = path.read_bytes()
        end = len(content)
        if path.name == "shard-000001.json":
            # Behind its first line and its samples stand facts about the run, free to differ.
            end = content.index(b'"run":')
        elif path.suffix == ".json" and path.stem.startswith("shard"):
            continue
        for _ in range(20):
            bit = chance.randrange(8 * end)
            flipped = bytearray(content)
            flipped[bit // 8] ^= 1 << bit % 8
            path.write_bytes(flipped)
            files = {finding.file for finding in verify_folder(built).findings}
            assert files, f"bit {bit} of {path.name}"
            if path.suffix in (".tar", ".idx"):
                assert files == {path.name}
        path.write_bytes(content)
    assert verify_folder(built).findings == []
    assert record == ShardRecord.load(built / "shard-000001.json")


def test_the_damaged_sample_is_named(built: Path) -> None:
    record = ShardRecord.load(built / "shard-000001.json")
    with (built / "shard-000001.tar").open("r+b") as tar:
        tar.seek(record.samples[1].members["bin"].offset + 1000)
        tar.write(b"\xff\xff\xff")
    (finding,) = verify_folder(built).findings
    assert finding.problem == f"{record.samples[1].key}.bin does not have its checksum"


def test_swapped_records_and_a_truncated_tar_are_found(built: Path) -> None:
    one, two = built / "shard-000000.json", built / "shard-000002.json"
    one_text, two_text = one.read_bytes(), two.read_bytes()
    one.write_bytes(two_text)
    two.write_bytes(one_text)
    os.truncate(built / "shard-000001.tar", 5000)
    result = verify_folder(built)
    assert {one.name, two.name, "shard-000001.tar"} <= {f.file for f in result.findings}
    assert result.exit_code == 1


def test_an_interrupted_build_is_not_finished_but_not_damaged(tmp_path: Path, source: Path) -> None:
    def interrupt(event: Event) -> None:
        if isinstance(event, SampleWritten) and event.key == "valid_5_a_1":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "out", source, watch=interrupt)
    result = verify_folder(tmp_path / "out")
    unfinished = [finding.file for finding in result.findings if not finding.damaged]
    assert unfinished[0] == "shard-000001.tar.partial"
    assert len(unfinished) == 2
    assert result.exit_code == 1


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a folder"):
        verify_folder(tmp_path / "none")


def test_its_result_has_a_short_repr(built: Path) -> None:
    (built / "shard-000000.tar").write_bytes(b"")
    result = verify_folder(built)
    assert result.findings
    assert repr(result) == (
        f"Verification({str(built)!r}: {result.samples} samples in {result.shards} shards, "
        f"{result.failed_samples} failed, {len(result.findings)} findings)"
    )


def test_threads_that_decode_fit_the_memory(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One at least, and of what is compressed no more than volumes fit."""
    small = compress_folder(built, tmp_path / "small", "pack")
    volume_bytes = 35 * 30 * 21 * 2
    asked: list[int] = []

    class Pool(ThreadPoolExecutor):
        def __init__(self, threads: int) -> None:
            asked.append(threads)
            super().__init__(threads)

    monkeypatch.setattr(verify, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(verify, "usable_cores", lambda: 6)
    for folder, memory_bytes, wanted in (
        (built, 0, 6),
        (small, 0, 1),
        (small, 3 * volume_bytes, 3),
        (small, 1 << 40, 6),
    ):
        monkeypatch.setattr(verify, "default_memory_limit_bytes", lambda n=memory_bytes: n)
        assert verify_folder(folder).findings == []
        assert asked.pop() == wanted
