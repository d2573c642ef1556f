"""``--delete-after`` deletes what was converted, and nothing else."""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ctgpu
from built import tar_bytes
from ctgpu.building.cleaner import not_carried
from ctgpu.building.convert import convert_tars
from ctgpu.building.events import Event, ShardCommitted
from ctgpu.errors import MismatchError, UsageError
from ctgpu.testing.ctrate import Volume, chest_phantom, lay_out_ct_rate
from raw_tars import SPEC, lay_out, samples, write_tar
from support.building import conversions
from support.phantoms import SPACING_MM


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Two tars of two samples."""
    return lay_out(tmp_path / "raw", samples(0), samples(2))


convert = conversions(spec=SPEC, samples_per_shard=2)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


BOTH = ["shard-000000.tar", "shard-000001.tar"]


def kept_because(caplog: pytest.LogCaptureFixture, tar: str) -> str:
    lines = [r.getMessage() for r in caplog.records if f"{tar} is kept: " in r.getMessage()]
    assert len(lines) == 1
    return lines[0].partition(" is kept: ")[2]


def test_what_is_converted_is_deleted(tmp_path: Path, raw: Path) -> None:
    assert convert(raw, tmp_path / "out", delete_after=True).exit_code == 0
    assert names(raw) == []


def test_tars_of_another_folder_are_never_deleted(tmp_path: Path, raw: Path) -> None:
    """The same names, numbers and sizes of samples, as another split has."""
    other = lay_out(tmp_path / "valid", samples(10), samples(12))
    copy = Path(shutil.copytree(raw, tmp_path / "backup"))
    convert(raw, tmp_path / "out")
    for folder in (other, copy):
        with pytest.raises(UsageError, match="not those in"):
            convert(folder, tmp_path / "out", delete_after=True)
        assert names(folder) == BOTH
    assert convert(raw, tmp_path / "out", delete_after=True).exit_code == 0
    assert names(other) == names(copy) == BOTH


@pytest.mark.parametrize("spelling", ["{out}", "{out}/shard-*.tar", "{link}", "{links}"])
def test_the_output_is_never_taken_for_the_input(spelling: str, tmp_path: Path, raw: Path) -> None:
    out = tmp_path / "out"
    convert(raw, out)
    before = tar_bytes(out)
    (tmp_path / "link").symlink_to(out)
    (tmp_path / "links").mkdir()
    for name in BOTH:
        (tmp_path / "links" / name).symlink_to(out / name)
    pattern = spelling.format(out=out, link=tmp_path / "link", links=tmp_path / "links")
    with pytest.raises(UsageError):
        convert(Path(pattern), out, delete_after=True)
    with pytest.raises(UsageError):
        convert(Path(pattern), out)
    assert tar_bytes(out) == before


def test_inputs_that_are_links_into_the_output_are_kept(
    tmp_path: Path, raw: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    convert(raw, out)
    before = tar_bytes(out)
    for name in BOTH:
        (raw / name).unlink()
        (raw / name).symlink_to(out / name)
    with pytest.raises(UsageError, match="itself holds tars"):
        convert(raw, out, delete_after=True)
    assert tar_bytes(out) == before


def test_a_corrected_tar_of_the_same_sizes_is_kept(
    tmp_path: Path, raw: Path, caplog: pytest.LogCaptureFixture
) -> None:
    convert(raw, tmp_path / "out")
    corrected = samples(0)
    corrected["scan_1"]["bin"] = corrected["scan_0"]["bin"]
    write_tar(raw / "shard-000000.tar", corrected)
    convert(raw, tmp_path / "out", delete_after=True)
    assert names(raw) == ["shard-000000.tar"]
    assert "scan_1.bin is not what was converted" in kept_because(caplog, "shard-000000.tar")


def npz(**arrays: Any) -> bytes:
    archive = io.BytesIO()
    np.savez_compressed(archive, **arrays)
    return archive.getvalue()


VOXELS = chest_phantom((64, 60, 40), SPACING_MM, 0)
FACTS = json.loads(samples(0, 1)["scan_0"]["json"])
LABELS = np.zeros(18, "<f4")


def described(**facts: Any) -> bytes:
    return json.dumps(FACTS | facts).encode()


#: Members that are added to, or take the place of, those of a sample; and why its tar is kept.
KEPT: dict[str, tuple[Mapping[str, bytes], str]] = {
    "a segmentation": ({"seg.npz": npz(a=VOXELS)}, "no output holds scan_0.seg.npz"),
    "boxes": ({"boxes": b"1 2 3"}, "no output holds scan_0.boxes"),
    "a second volume": ({"nii.gz": b"\x1f\x8b"}, "no output holds scan_0.nii.gz"),
    "a second volume that is better": ({"npz": npz(a=VOXELS)}, "no output holds scan_0.npz"),
    "facts": ({"json": described(PatientAge="063Y")}, "its JSON states PatientAge"),
    "another study": ({"json": described(study_id="other")}, "its JSON states study_id"),
    "facts within facts": ({"json": described(box={"a": 1})}, "its JSON states box"),
    "no number": (
        {"json": described().replace(b'"RescaleSlope": 1', b'"RescaleSlope": NaN')},
        "its JSON states RescaleSlope",
    ),
    "a fact twice": ({"json": b'{"study_id": "lost", ' + described()[1:]}, "study_id twice"),
    "a report in Latin-1": ({"txt": "Verkl\xe4rung".encode("latin-1")}, "is not UTF-8"),
    "labels twice": (
        {"labels": LABELS.tobytes(), "cls": (LABELS + 1).tobytes()},
        "no output holds scan_0.cls",
    ),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_no_output_holds_is_not_deleted(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    members, reason = KEPT[name]
    content = samples(0)
    content["scan_0"] |= members
    raw = lay_out(tmp_path / "raw", content, samples(2))
    assert convert(raw, tmp_path / "out", delete_after=True).exit_code == 0
    assert names(raw) == ["shard-000000.tar"]
    assert reason in kept_because(caplog, "shard-000000.tar")


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"volume": VOXELS, "mask": VOXELS > 0}, "its archive holds mask"),
        ({"volume": VOXELS, "data": VOXELS}, "its archive holds data"),
        ({"arr_0": VOXELS, "metadata": {"SeriesUID": "1.2"}}, "its metadata states SeriesUID"),
        ({"arr_0": VOXELS, "metadata": {"RescaleSlope": 1}}, None),
        ({"scan": VOXELS}, None),
    ],
)
def test_archives_are_looked_into(
    arrays: dict[str, Any],
    reason: str | None,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if "metadata" in arrays:
        text = json.dumps(arrays["metadata"]).encode()
        arrays = arrays | {"metadata": np.frombuffer(text, np.uint8)}
    sample = {"npz": npz(**arrays), "json": described()}
    raw = lay_out(tmp_path / "raw", {"scan_0": sample})
    assert convert(raw, tmp_path / "out", delete_after=True).exit_code == 0
    assert names(raw) == ([] if reason is None else ["shard-000000.tar"])
    if reason is not None:
        assert reason in kept_because(caplog, "shard-000000.tar")


def test_what_follows_the_end_mark_is_not_deleted(
    tmp_path: Path, raw: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (raw / "shard-000001.tar").open("ab") as tar:
        tar.write(bytes(1024) + b"appended by a careless tool" + bytes(1000))
    convert(raw, tmp_path / "out", delete_after=True)
    assert names(raw) == ["shard-000001.tar"]
    assert "follows the end" in kept_because(caplog, "shard-000001.tar")


def test_a_tar_with_a_failed_sample_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = samples(0)
    content["scan_1"]["bin"] = b"too short"
    raw = lay_out(tmp_path / "raw", content, samples(2))
    assert convert(raw, tmp_path / "out", delete_after=True).exit_code == 1
    assert names(raw) == ["shard-000000.tar"]
    assert "scan_1 has failed" in kept_because(caplog, "shard-000000.tar")


def test_a_retried_tar_is_deleted_in_the_same_run(tmp_path: Path) -> None:
    content = samples(0)
    good = content["scan_1"]["json"]
    content["scan_1"]["json"] = b"{"
    raw = lay_out(tmp_path / "raw", content)
    assert convert(raw, tmp_path / "out").exit_code == 1
    content["scan_1"]["json"] = good
    write_tar(raw / "shard-000000.tar", content)
    assert convert(raw, tmp_path / "out", delete_after=True, retry_failed=True).exit_code == 0
    assert names(raw) == []


def test_tars_that_were_not_planned_are_kept(
    tmp_path: Path, raw: Path, caplog: pytest.LogCaptureFixture
) -> None:
    convert(raw, tmp_path / "out")
    write_tar(raw / "shard-000002.tar", samples(4))
    convert(raw, tmp_path / "out", delete_after=True)
    assert names(raw) == ["shard-000002.tar"]
    assert "was not there when" in kept_because(caplog, "shard-000002.tar")


def test_a_sample_added_to_a_converted_tar_keeps_it(
    tmp_path: Path, raw: Path, caplog: pytest.LogCaptureFixture
) -> None:
    convert(raw, tmp_path / "out")
    write_tar(raw / "shard-000001.tar", samples(2) | samples(9, 1))
    convert(raw, tmp_path / "out", delete_after=True)
    assert names(raw) == ["shard-000001.tar"]
    assert "scan_9.bin was not converted" in kept_because(caplog, "shard-000001.tar")


def test_a_tar_that_is_replaced_while_it_is_looked_at_is_kept(
    tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from ctgpu.building import cleaner

    convert(raw, tmp_path / "out")
    usual = cleaner.scan_tar

    def replace(fd: int, path: Path) -> Any:
        yield from usual(fd, path)
        write_tar(tmp_path / "new.tar", samples(20))
        os.replace(tmp_path / "new.tar", path)

    monkeypatch.setattr(cleaner, "scan_tar", replace)
    convert(raw, tmp_path / "out", delete_after=True)
    assert names(raw) == BOTH
    assert "changed while it was looked at" in kept_because(caplog, "shard-000000.tar")


def test_a_shard_that_is_damaged_after_it_was_verified_saves_its_tar(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Two tars make one shard; after the first deletion the shard's samples go bad."""
    raw = lay_out(tmp_path / "raw", samples(0, 1), samples(1, 1))
    out = tmp_path / "out"
    convert(raw, out)
    from ctgpu.building import cleaner

    usual = cleaner.disk.remove

    def remove(path: Path) -> bool:
        removed = usual(path)
        if path.parent == raw:
            with (out / "shard-000000.tar").open("r+b") as tar:
                tar.seek(5000)
                tar.write(b"\xff\x00\xff")
        return removed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cleaner.disk, "remove", remove)
        with pytest.raises(ctgpu.errors.StorageError, match="nothing was deleted"):
            convert(raw, out, delete_after=True)
    assert names(raw) == ["shard-000001.tar"]


def test_what_will_be_deleted_is_said_before_the_first_is(
    tmp_path: Path, raw: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[tuple[int, int]] = []

    def watch(event: Event) -> None:
        if isinstance(event, ShardCommitted):
            said = sum("deletes" in r.getMessage() for r in caplog.records)
            seen.append((said, len(names(raw))))

    with caplog.at_level(logging.INFO):
        convert(raw, tmp_path / "out", delete_after=True, watch=watch)
    assert seen[0] == (1, 2)
    (line,) = (r.getMessage() for r in caplog.records if "deletes" in r.getMessage())
    assert str(raw) in line
    assert "2, shard-000000.tar, shard-000001.tar" in line


def test_a_dry_run_deletes_and_converts_nothing(
    tmp_path: Path, raw: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="holds no plan"):
        convert(raw, out, delete_after=True, dry_run=True)
    convert(raw, out, shards=range(1))
    before = names(out)
    with caplog.at_level(logging.INFO):
        report = convert(raw, out, delete_after=True, dry_run=True)
    assert report.manifest["total_samples"] == 2
    assert names(out) == before
    assert names(raw) == BOTH
    (line,) = (r.getMessage() for r in caplog.records if "would be deleted" in r.getMessage())
    assert "shard-000000.tar" in line
    assert "shard-000001.tar" not in line
    assert "not all of it is converted" in kept_because(caplog, "shard-000001.tar")
    with pytest.raises(UsageError, match="give both"):
        convert(raw, out, dry_run=True)


def test_what_an_earlier_version_converted_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    golden = Path(__file__).parent.parent / "golden/1ecd6b5/converted"
    folder = Path(shutil.copytree(golden, tmp_path / "converted"))
    plan = (folder / "shards/plan.json").read_text()
    origin = json.loads(plan)["source"]["path"]
    there = plan.replace(origin, str(folder / "source/*.tar"))
    (folder / "shards/plan.json").write_text(there)
    convert_tars(folder / "source", folder / "shards", device="cpu", delete_after=True)
    # The second was converted by this version.
    assert names(folder / "source") == ["shard-000000.tar"]
    assert "did not record what it had read" in kept_because(caplog, "shard-000000.tar")


def test_facts_are_held_against_what_the_output_says() -> None:
    output = {
        "study_id": "a",
        "layout": "HWD",
        "report": {"Findings_EN": "Clear."},
        "source": {
            "shape": [4, 5, 6],
            "dtype": "int16",
            "spacing_mm": [0.7, 0.7, 1.5],
            "affine": np.eye(4).tolist(),
            "affine_source": "header",
            "intensity": {"slope": 1.0, "intercept": 0.0},
            "stated_rescale": [1.0, -1024.0],
        },
    }
    carried = {
        "study_id": "a",
        "volume_shape": [4, 5, 6],
        "volume_dtype": "<i2",
        "XYSpacing": "[0.7, 0.7]",
        "ZSpacing": 1.5,
        "RescaleSlope": "1",
        "RescaleIntercept": -1024,
        "Findings_EN": "Clear.",
        "Impressions_EN": "",
        "affine": np.eye(4).tolist(),
        "report": {"Findings_EN": "Clear."},
        "preprocessed": False,
        "nothing": None,
    }
    assert not_carried(carried, output) == []
    for name, other in {
        "study_id": "b",
        "volume_shape": [5, 4, 6],
        "volume_dtype": "int32",
        "ZSpacing": 1.25,
        "RescaleIntercept": -1000,
        "Findings_EN": "Not clear.",
        "affine": np.diag([2, 1, 1, 1]).tolist(),
        "report": {"Findings_EN": "Not clear."},
        "PatientAge": "063Y",
    }.items():
        assert name in not_carried(carried | {name: other}, output)


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A finished build of a folder."""
    volume = Volume(VOXELS, SPACING_MM)
    lay_out_ct_rate(tmp_path / "source", {"valid_1_a_1": volume})
    ctgpu.build(tmp_path / "out", source=tmp_path / "source", spec=SPEC, device="cpu")
    return tmp_path / "out"


def test_another_source_of_a_finished_build_is_refused(tmp_path: Path, finished: Path) -> None:
    lay_out_ct_rate(tmp_path / "other", {"valid_2_a_1": Volume(VOXELS, SPACING_MM)})
    with pytest.raises(MismatchError, match="does not hold the volumes that were planned"):
        ctgpu.build(finished, source=tmp_path / "other", device="cpu")
    with pytest.raises(UsageError, match="is not a folder"):
        ctgpu.build(finished, source=tmp_path / "none", device="cpu")
    with pytest.raises(UsageError):
        ctgpu.build(finished, source=tmp_path / "none" / "*.tar", device="cpu")


def test_the_source_of_a_finished_build_may_have_moved(tmp_path: Path, finished: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    moved = (tmp_path / "source").rename(tmp_path / "elsewhere/source")
    assert ctgpu.build(finished, source=moved, device="cpu").exit_code == 0
    next(moved.rglob("*.nii.gz")).unlink()
    with pytest.raises(UsageError):
        ctgpu.build(finished, source=moved, device="cpu")


def test_what_was_not_looked_at_is_said(
    tmp_path: Path, finished: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert ctgpu.build(finished, device="cpu").exit_code == 0
    (line,) = (r.getMessage() for r in caplog.records if "not looked at" in r.getMessage())
    assert str(tmp_path / "source") in line
