"""Builds with compression: the same samples as without, in fewer bytes."""

from __future__ import annotations

import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash

from built import decoded, read_samples
from ctgpu.building.builder import bytes_to_write
from ctgpu.building.convert import convert_tars
from ctgpu.building.pipeline import COMPRESS
from ctgpu.building.relabelling import relabel
from ctgpu.checking.verify import verify_folder
from ctgpu.codec.whole import head_of
from ctgpu.errors import DecodeError, EnvironmentFailure, MismatchError, StorageError
from ctgpu.machine import SMALL_MEMBERS_BYTES
from ctgpu.shards.plan import Plan
from ctgpu.shards.recode import compress_sample
from ctgpu.shards.record import ShardRecord
from ctgpu.shards.writer import PackedSample
from ctgpu.spec import Spec
from ctgpu.testing.masks import lay_out_with_masks
from support.building import builds
from support.data_set_copies import marked, stop_after
from support.phantoms import SPACING_MM
from support.tables import LABELS, all_positive, mend

#: Three unequal axes, none a multiple of a tile's.
SPEC = Spec(target_spacing_mm=(6.0, 5.0, 7.0), shape_hwd=(44, 52, 37))
build = builds(spec=SPEC, samples_per_shard=2, order="path")


def members(folder: Path) -> dict[str, bytes]:
    """Every member of a folder by its name, read with nothing but ``tarfile``."""
    found = {}
    for path in sorted(folder.glob("shard-*.tar")):
        with tarfile.open(path) as archive:
            for info in archive:
                found[info.name] = archive.extractfile(info).read()  # type: ignore[union-attr]
                if info.name.endswith((".ctz", ".segz")):
                    assert info.offset_data % 4096 == 0
    return found


def assert_same_samples(folder: Path, raw: Path, coding: str) -> None:
    """Hold a compressed data set against the one without compression."""
    found, wanted, plan = members(folder), members(raw), Plan.load(raw)
    payloads, names = {".bin": ".ctz", ".seg": ".segz"}, []
    for name, content in wanted.items():
        stem, extension = name[: name.index(".")], name[name.index(".") :]
        if extension not in payloads:
            assert found[name] == content
            names.append(name)
            continue
        compressed = payloads[extension]
        names.append(stem + compressed)
        member = found[stem + compressed]
        assert decoded(member) == content
        head = head_of(np.frombuffer(member, np.uint8))
        assert head.xxh3_128 == xxhash.xxh3_128_hexdigest(content)
        assert (head.coding, head.layout) == (coding, plan.spec.layout)
        assert (head.kind == "grid") == (plan.spec.precision != "exact" and compressed == ".ctz")
        assert len(member) < 0.9 * len(content)
    assert list(found) == names
    assert verify_folder(folder).findings == []


def assert_same_files(folder: Path, other: Path) -> None:
    """The same files, but for what a record says of its run."""
    assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in other.iterdir())
    for path in folder.iterdir():
        one, two = path.read_bytes(), (other / path.name).read_bytes()
        if path.name.startswith("shard-") and path.suffix == ".json":
            one, two = (json.loads(content) | {"run": None} for content in (one, two))
        assert one == two, path.name


@pytest.mark.parametrize("coding", ["pack", "rice"])
@pytest.mark.parametrize(
    "spec",
    [
        SPEC,
        replace(SPEC, layout="DHW", dtype="int16"),
        replace(SPEC, dtype="uint8"),
        replace(SPEC, layout="DHW", dtype="bfloat16", normalise="zscore"),
        replace(SPEC, output_range=(0.0, 1.0), layout="DHW"),
        replace(SPEC, precision="2^-10"),
    ],
    ids=["float16", "int16", "uint8", "bfloat16", "unit range", "precision"],
)
def test_what_is_decoded_is_what_is_stored_without(
    tmp_path: Path, laid_out: Path, spec: Spec, coding: str
) -> None:
    raw = build(tmp_path / "raw", laid_out, spec=spec, limit=3)
    report = build(tmp_path / "small", laid_out, spec=spec, limit=3, compress=coding)
    assert (report.written, report.exit_code) == (3, 0)
    assert_same_samples(tmp_path / "small", tmp_path / "raw", coding)
    assert report.stored_bytes < 0.9 * raw.stored_bytes == 0.9 * 3 * spec.size_bytes
    assert report.pipeline is not None
    assert COMPRESS in [stage.name for stage in report.pipeline.stages]
    assert report.manifest["compression"] == coding
    assert report.manifest | {"fingerprint": ""} != raw.manifest
    assert report.manifest["fingerprint"] == raw.manifest["fingerprint"]
    assert f"compression: {coding}" in report.training_yaml()


def test_masks_are_compressed_too(tmp_path: Path) -> None:
    scans = {name: marked(seed, (40, 36, 30)) for seed, name in enumerate("abc")}
    dataset = lay_out_with_masks(tmp_path / "source", scans, SPACING_MM)
    options: dict[str, Any] = {"dataset": dataset, "split": "train"}
    build(tmp_path / "raw", tmp_path / "source", **options)
    build(tmp_path / "small", tmp_path / "source", **options, compress="rice")
    found, wanted = members(tmp_path / "small"), members(tmp_path / "raw")
    plan = Plan.load(tmp_path / "small")
    assert plan.masks is not None
    for name in "abc":
        assert decoded(found[f"{name}.segz"]) == wanted[f"{name}.seg"]
        assert found[f"{name}.json"] == wanted[f"{name}.json"]
    assert plan.version == 5
    record = ShardRecord.load(tmp_path / "small/shard-000000.json")
    assert record.version == 4


@pytest.mark.parametrize(
    ("begun", "others"),
    [("rice", ("none", "pack")), ("pack", ("none", "rice")), ("none", ("pack", "rice"))],
)
def test_a_stopped_build_goes_on_as_it_was_begun(
    tmp_path: Path, laid_out: Path, begun: str, others: tuple[str, ...]
) -> None:
    build(tmp_path / "whole", laid_out, limit=4, compress=begun)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "out", laid_out, limit=4, compress=begun, watch=stop_after(3))
    for other in others:
        with pytest.raises(
            MismatchError,
            match=f"compression: found '{begun}', wanted '{other}'.* to go on with it",
        ):
            build(tmp_path / "out", laid_out, compress=other)
    # Said again or not.
    assert build(tmp_path / "out", laid_out, compress=begun, shards=range(1, 2)).written == 1
    assert build(tmp_path / "out", laid_out).exit_code == 0
    assert_same_files(tmp_path / "out", tmp_path / "whole")


def test_everything_is_made_again_where_that_is_asked_for(tmp_path: Path, laid_out: Path) -> None:
    out = tmp_path / "out"
    build(out, laid_out, limit=3, compress="rice")
    shutil.copytree(out, tmp_path / "before")
    inodes = {path.name: path.stat().st_ino for path in out.glob("*.tar")}
    assert build(out, laid_out, force=True).written == 3
    assert all(path.stat().st_ino != inodes[path.name] for path in out.glob("*.tar"))
    assert_same_files(out, tmp_path / "before")


def test_what_failed_is_made_later_and_compressed_like_the_rest(
    tmp_path: Path, source: Path
) -> None:
    build(tmp_path / "whole", source, limit=4, compress="pack")
    (broken,) = source.rglob("valid_1_a_2.nii.gz")
    content = broken.read_bytes()
    broken.write_bytes(content[:1000].ljust(len(content), b"\0"))
    report = build(tmp_path / "out", source, limit=4, compress="pack")
    assert [failure["key"] for failure in report.failures] == ["valid_1_a_2"]
    untouched = (tmp_path / "out/shard-000001.tar").stat().st_ino
    broken.write_bytes(content)
    mended = build(tmp_path / "out", source, retry_failed=True)
    assert (mended.written, mended.exit_code) == (1, 0)
    assert_same_files(tmp_path / "out", tmp_path / "whole")
    assert (tmp_path / "out/shard-000001.tar").stat().st_ino == untouched


def test_other_labels_leave_compressed_volumes_as_they_are(tmp_path: Path, source: Path) -> None:
    build(tmp_path / "raw", source, limit=4)
    build(tmp_path / "small", source, limit=4, compress="rice")
    mend(source / LABELS, "valid_1_a_2", all_positive)
    for name in ("raw", "small"):
        assert relabel(tmp_path / name).relabelled == ["valid_1_a_2"]
    assert read_samples(tmp_path / "small")["valid_1_a_2"].labels.all()
    assert_same_samples(tmp_path / "small", tmp_path / "raw", "rice")
    # One of another compression came from elsewhere.
    for name in ("shard-000001.tar", "shard-000001.json"):
        shutil.copy(tmp_path / "raw" / name, tmp_path / "small" / name)
    with pytest.raises(StorageError, match=r"shard-000001\.tar holds volumes that are not compre"):
        relabel(tmp_path / "small")


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the compression of one sample raise, as often as it is tried."""

    def make(key: str, error: Exception) -> None:
        def compress(sample: PackedSample, *rest: Any) -> PackedSample:
            if sample.key == key:
                raise error
            return compress_sample(sample, *rest)

        monkeypatch.setattr("ctgpu.building.in_flight.compress_sample", compress)

    return make


@pytest.mark.parametrize("error", [DecodeError("it is odd"), ZeroDivisionError("by zero")])
def test_what_cannot_be_compressed_is_in_the_ledger_and_the_rest_is_made(
    tmp_path: Path, laid_out: Path, failing: Any, error: Exception
) -> None:
    failing("valid_1_a_2", error)
    report = build(tmp_path / "out", laid_out, limit=4, compress="rice")
    assert (report.written, report.exit_code) == (3, 1)
    (failure,) = report.failures
    assert (failure["key"], failure["message"]) == ("valid_1_a_2", str(error))
    assert failure["stage"] == getattr(error, "stage", COMPRESS)
    failing("nothing", error)
    assert build(tmp_path / "out", retry_failed=True).exit_code == 0
    build(tmp_path / "whole", laid_out, limit=4, compress="rice")
    assert_same_files(tmp_path / "out", tmp_path / "whole")


@pytest.mark.parametrize("error", [StorageError("the disk is gone"), MemoryError()])
def test_a_machine_that_fails_while_it_compresses_ends_the_build_and_blames_no_sample(
    tmp_path: Path, laid_out: Path, failing: Any, error: Exception
) -> None:
    failing("valid_2_a_1", error)
    with pytest.raises(EnvironmentFailure, match=str(error) or "memory"):
        build(tmp_path / "out", laid_out, limit=4, compress="rice")
    failing("nothing", error)
    assert build(tmp_path / "out").exit_code == 0
    build(tmp_path / "whole", laid_out, limit=4, compress="rice")
    assert_same_files(tmp_path / "out", tmp_path / "whole")


def test_a_budget_that_holds_no_sample_takes_them_one_after_the_other(
    tmp_path: Path, laid_out: Path
) -> None:
    options: dict[str, Any] = {"limit": 3, "compress": "rice"}
    build(tmp_path / "whole", laid_out, **options)
    report = build(tmp_path / "out", laid_out, **options, memory_limit_bytes=1)
    assert report.pipeline is not None
    # A scan of 100 × 96 × 64 of two bytes, and what is made of it.
    assert report.pipeline.peak_reserved_bytes > 2 * 100 * 96 * 64 + SPEC.size_bytes
    assert_same_files(tmp_path / "out", tmp_path / "whole")


def test_a_build_asks_for_room_as_if_nearly_nothing_could_be_compressed(
    tmp_path: Path, laid_out: Path
) -> None:
    needed = {}
    for compress in ("none", "rice"):
        folder = build(tmp_path / compress, laid_out, compress=compress, shards=range(1)).folder
        plan = Plan.load(folder)
        sample_bytes = plan.expected_bytes + SMALL_MEMBERS_BYTES
        # A shard that is there makes room once it is made again, and not before.
        needed[compress] = bytes_to_write(folder, plan, range(3))
        assert needed[compress] == 6 * sample_bytes
        assert bytes_to_write(folder, plan, [2]) == 2 * sample_bytes
    assert 0.9 < needed["rice"] / needed["none"] < 1


@pytest.mark.slow
def test_real_ct_is_compressed_and_recoded(tmp_path: Path, real_ct: Path) -> None:
    spec = Spec(target_spacing_mm=(1.5, 1.5, 3.0), shape_hwd=(200, 210, 50))
    for compress in ("none", "rice"):
        report = build(tmp_path / compress, real_ct, spec=spec, limit=3, compress=compress)
        assert (report.written, report.exit_code) == (3, 0)
    assert_same_samples(tmp_path / "rice", tmp_path / "none", "rice")
    for before, after in (("none", "rice"), ("rice", "none")):
        convert_tars(tmp_path / before, tmp_path / f"{after} again", compress=after)
        assert_same_files(tmp_path / f"{after} again", tmp_path / after)
