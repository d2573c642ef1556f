"""What earlier versions wrote is resumed, verified and loaded by this one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ctgpu
from built import read_samples, tar_bytes
from ctgpu.building.convert import convert_tars
from ctgpu.checking.verify import verify_folder
from ctgpu.loading import VolumeDataset, make_loader
from ctgpu.shards.folder import summaries
from ctgpu.shards.plan import Plan
from ctgpu.shards.record import ShardRecord, checksum
from support import plain_ctz

GOLDEN = Path(__file__).parent / "golden"
#: What says what only the second version of the format can say.
SECOND = "version-2"
#: What describes its data set, which only plans of the third version do.
THIRD = "version-3"
#: What has masks, which take the fourth version of plans and the third of records.
FOURTH = "version-4"
#: What is compressed, which takes the fifth version of plans and the fourth of records.
FIFTH = "version-5"
WRITERS = sorted(
    {path.name for path in GOLDEN.iterdir() if path.is_dir()} - {SECOND, THIRD, FOURTH, FIFTH}
)


@pytest.fixture(params=WRITERS)
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of what one version wrote."""
    return Path(shutil.copytree(GOLDEN / request.param, tmp_path / "golden"))


def expected(golden: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((golden / "expected.json").read_bytes())
    return found


def holds(found: Any, wanted: Any) -> bool:
    """Whether `found` says all that `wanted` does; objects may say more."""
    if isinstance(wanted, dict):
        return isinstance(found, dict) and all(
            k in found and holds(found[k], v) for k, v in wanted.items()
        )
    return bool(found == wanted)


def assert_samples(folder: Path, wanted: dict[str, Any]) -> None:
    """Volume, mask, labels and report byte for byte; the JSON may have gained fields."""
    found = read_samples(folder)
    assert list(found) == list(wanted)
    for key, sample in found.items():
        assert checksum(sample.volume) == wanted[key]["bin"]
        assert (sample.mask and checksum(sample.mask)) == wanted[key].get("seg")
        assert checksum(sample.labels.tobytes()) == wanted[key]["cls"]
        assert checksum(sample.text.encode()) == wanted[key]["txt"]
        assert holds(sample.metadata, wanted[key]["json"])


def assert_loaded(sample: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Volume and mask of a dataset (C, D, H, W) are those that were stored as H, W, D."""
    for member, name in (("bin", "volume"), ("seg", "mask")):
        (stored,) = sample[name].transpose(0, 2, 3, 1)
        assert checksum(stored.tobytes()) == wanted[member]


@pytest.mark.parametrize("name", ["ct-rate", "plain", "converted"])
def test_what_lies_there_is_not_damaged(golden: Path, name: str) -> None:
    folder = golden / name / "shards"
    damaged = {finding.file for finding in verify_folder(folder).findings if finding.damaged}
    # Two of the builds were killed before they wrote a manifest.
    derived = {"manifest.json", "failures.jsonl"}
    assert damaged == (set() if name == "converted" else derived)


@pytest.mark.parametrize(("name", "exit_code"), [("ct-rate", 1), ("plain", 0), ("converted", 0)])
def test_a_stopped_build_is_gone_on_with(golden: Path, name: str, exit_code: int) -> None:
    folder, source = golden / name / "shards", golden / name / "source"
    committed = tar_bytes(folder)
    if name == "converted":
        report = convert_tars(source, folder, device="cpu")
    else:
        report = ctgpu.build(folder, source=source, device="cpu")
    assert report.exit_code == exit_code
    assert {n: b for n, b in tar_bytes(folder).items() if n in committed} == committed
    assert_samples(folder, expected(golden)[name])
    assert verify_folder(folder).findings == []
    if name == "ct-rate":
        assert [failure["key"] for failure in report.failures] == ["valid_3_a_1"]
    assert len(report.manifest["class_names"]) == 18


def test_what_a_killed_build_had_written_is_kept(golden: Path) -> None:
    written: list[str] = []

    def watch(event: object) -> None:
        if isinstance(event, ctgpu.building.events.SampleWritten):
            written.append(event.key)

    folder, source = golden / "ct-rate/shards", golden / "ct-rate/source"
    ctgpu.build(folder, source=source, device="cpu", watch=watch)
    assert written == ["valid_6_a_1", "valid_7_a_1"]


def test_a_failed_sample_is_retried(golden: Path) -> None:
    folder, source = golden / "ct-rate/shards", golden / "ct-rate/source"
    ctgpu.build(folder, source=source, device="cpu")
    good = source / "dataset/valid_fixed/valid_2/valid_2_a/valid_2_a_1.nii.gz"
    shutil.copy(good, source / "dataset/valid_fixed/valid_3/valid_3_a/valid_3_a_1.nii.gz")
    report = ctgpu.build(folder, source=source, device="cpu", retry_failed=True)
    assert report.exit_code == 0
    wanted = expected(golden)["ct-rate"]
    found = read_samples(folder)
    assert set(found) == {*wanted, "valid_3_a_1"}
    assert checksum(found["valid_3_a_1"].volume) == wanted["valid_2_a_1"]["bin"]
    assert verify_folder(folder).findings == []


def test_a_loader_goes_on_from_an_old_state(golden: Path) -> None:
    pytest.importorskip("torch")
    dataset = VolumeDataset(golden / "ct-rate/shards")
    loader = make_loader(dataset, batch_size=1, shuffle=True, seed=7)
    loader.load_state_dict(expected(golden)["loader_state"])
    assert [batch["study_id"] for batch in loader] == expected(golden)["loader_rest"]


@pytest.fixture
def second(tmp_path: Path) -> Path:
    """A copy of what was written of the second version."""
    return Path(shutil.copytree(GOLDEN / SECOND, tmp_path / "golden"))


@pytest.mark.parametrize(
    ("name", "committed", "dtype"), [("oriented", 1, "int16"), ("percentiles", 1, "uint8")]
)
def test_a_folder_of_the_second_version_is_gone_on_with(
    second: Path, name: str, committed: int, dtype: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder, source = second / name / "shards", second / name / "source"
    assert not any(f.damaged for f in verify_folder(folder).findings if f.file[:5] == "shard")
    before = tar_bytes(folder)
    assert len(before) == committed
    plan = (folder / "plan.json").read_bytes()
    report = ctgpu.build(folder, source=source, device="cpu")
    assert (report.exit_code, report.manifest["sample_dtype"]) == (0, dtype)
    assert {n: b for n, b in tar_bytes(folder).items() if n in before} == before
    assert (folder / "plan.json").read_bytes() == plan == Plan.load(folder).to_json()
    assert_samples(folder, expected(second)[name])
    assert verify_folder(folder).findings == []
    # Of scans stored as RAS and LPS, all turned to PLS.
    assert "mixes orientations" not in caplog.text


def test_a_finished_folder_of_the_second_version_has_its_bytes(second: Path) -> None:
    folder = second / "percentiles/shards"
    assert verify_folder(folder).findings == []
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    ctgpu.build(folder, source=second / "percentiles/source", device="cpu")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (shard,) = folder.glob("shard-*.json")
    record = ShardRecord.load(shard)
    assert record.to_json() == shard.read_bytes()
    sample = VolumeDataset(folder)["scan-0"]
    assert sample["volume"].dtype == np.uint8
    assert (
        checksum(sample["volume"].transpose(0, 2, 3, 1).tobytes())
        == (expected(second)["percentiles"]["scan-0"]["bin"])
    )


@pytest.mark.parametrize("stated", [False, True])
def test_a_folder_of_a_described_data_set_is_gone_on_with(tmp_path: Path, stated: bool) -> None:
    third = Path(shutil.copytree(GOLDEN / THIRD, tmp_path / "golden"))
    folder, source = third / "described/shards", third / "described/source"
    before = tar_bytes(folder)
    assert len(before) == 1
    plan = (folder / "plan.json").read_bytes()
    report = ctgpu.build(
        folder,
        source=source,
        dataset=third / "described/mine.toml" if stated else None,
        device="cpu",
    )
    assert (report.exit_code, report.data_set) == (0, "Mine")
    assert {n: b for n, b in tar_bytes(folder).items() if n in before} == before
    assert (folder / "plan.json").read_bytes() == plan == Plan.load(folder).to_json()
    assert_samples(folder, expected(third)["described"])
    assert verify_folder(folder).findings == []
    assert ctgpu.relabel(folder, source=source).relabelled == []
    assert report.manifest["class_names"] == ["nodule", "effusion"]


def test_a_folder_with_masks_is_gone_on_with(tmp_path: Path) -> None:
    fourth = Path(shutil.copytree(GOLDEN / FOURTH, tmp_path / "golden"))
    folder, source = fourth / "masked/shards", fourth / "masked/source"
    before = tar_bytes(folder)
    assert len(before) == 1
    plan = (folder / "plan.json").read_bytes()
    written: list[str] = []

    def watch(event: object) -> None:
        if isinstance(event, ctgpu.building.events.SampleWritten):
            written.append(event.key)

    report = ctgpu.build(folder, source=source, device="cpu", watch=watch)
    assert written == ["d", "e"]
    assert [failure["key"] for failure in report.failures] == ["b"]  # of a mask of another shape
    assert {n: b for n, b in tar_bytes(folder).items() if n in before} == before
    assert (folder / "plan.json").read_bytes() == plan == Plan.load(folder).to_json()
    assert_samples(folder, expected(fourth)["masked"])
    assert verify_folder(folder).findings == []
    dataset = VolumeDataset(folder)
    assert dataset.mask_labels == {"body": 1, "bone": 300}
    assert sorted(np.unique(dataset["a"]["mask"])) == [0, 1, 300]
    assert sorted(np.unique(dataset["d"]["mask"])) == [0, 1]  # it has no file for the other


@pytest.fixture
def fifth(tmp_path: Path) -> Path:
    """A copy of what was written of the fifth version."""
    return Path(shutil.copytree(GOLDEN / FIFTH, tmp_path / "golden"))


def test_a_compressed_folder_is_gone_on_with(fifth: Path) -> None:
    folder, before = fifth / "rice", tar_bytes(fifth / "rice")
    assert list(before) == ["shard-000000.tar"]
    plan = (folder / "plan.json").read_bytes()
    written: list[str] = []

    def watch(event: object) -> None:
        if isinstance(event, ctgpu.building.events.SampleWritten):
            written.append(event.key)

    report = ctgpu.build(folder, source=fifth / "source", device="cpu", watch=watch)
    assert (report.exit_code, report.manifest["compression"]) == (0, "rice")
    assert written == ["d"]  # the others are in the finished shard, and in the other's partial
    assert {n: b for n, b in tar_bytes(folder).items() if n in before} == before
    assert (folder / "plan.json").read_bytes() == plan == Plan.load(folder).to_json()
    assert verify_folder(folder).findings == []
    wanted = expected(fifth)["rice"]
    dataset = VolumeDataset(folder)
    for name in wanted:
        assert_loaded(dataset[name], wanted[name])
        assert dataset.metadata(name) == wanted[name]["json"]


@pytest.mark.parametrize(("name", "coding", "kind"), [("rice", 1, 3), ("pack", 0, 2)])
def test_a_compressed_volume_is_what_its_page_says(
    fifth: Path, name: str, coding: int, kind: int
) -> None:
    record = ShardRecord.load(fifth / name / "shard-000000.json")
    tar = (fifth / name / "shard-000000.tar").read_bytes()
    for entry in record.samples:
        wanted = expected(fifth)[name][entry.key]
        assert list(entry.members) == ["ctz", "segz", "cls", "txt", "json"]
        for extension, holds_what, of_kind in (("ctz", "bin", kind), ("segz", "seg", 0)):
            offset, size = entry.members[extension].offset, entry.members[extension].size_bytes
            member = tar[offset : offset + size]
            assert (member[:4], member[4], member[5]) == (b"CTZ\1", of_kind, coding)
            stored = plain_ctz.decode(member).transpose(1, 2, 0)  # to H, W, D
            assert checksum(stored.tobytes()) == wanted[holds_what]


@pytest.mark.parametrize(("name", "other"), [("rice", "pack"), ("pack", "rice")])
def test_a_compressed_folder_is_recoded(fifth: Path, name: str, other: str) -> None:
    before = tar_bytes(fifth / name)
    wanted = expected(fifth)[name]
    raw, back = fifth / "raw", fifth / "back"
    convert_tars(fifth / name, raw, compress="none")
    stored = read_samples(raw)
    assert_samples(raw, {key: wanted[key] for key in stored})
    assert len(stored) == sum(s.num_samples for s in summaries(fifth / name))
    convert_tars(raw, fifth / "other", compress=other)
    assert Plan.load(fifth / "other").compression == other
    convert_tars(fifth / "other", back, compress=name)
    assert tar_bytes(back) == before
    assert (back / "plan.json").read_bytes() == (fifth / name / "plan.json").read_bytes()


def test_a_finished_compressed_folder_has_its_bytes(fifth: Path) -> None:
    folder = fifth / "pack"
    assert verify_folder(folder).findings == []
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert ctgpu.build(folder, source=fifth / "source", device="cpu").written == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    record = ShardRecord.load(folder / "shard-000000.json")
    assert record.to_json() == before["shard-000000.json"]
    assert json.loads(before["manifest.json"])["manifest_format"] == "ctgpu-manifest-4"
    (wanted,) = expected(fifth)["pack"].values()
    assert_loaded(VolumeDataset(folder)[0], wanted)
