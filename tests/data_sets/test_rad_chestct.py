"""RAD-ChestCT as its release is laid out: bare arrays of slices, rows and columns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ctgpu
from built import read_samples
from ctgpu.errors import UsageError
from ctgpu.loading import VolumeDataset, make_loader
from ctgpu.shards.plan import Plan
from ctgpu.spec import Spec
from support.data_set_copies import (
    FINE_SPEC,
    SHAPE_HWD,
    build,
    check,
    lay_out_rad_chestct,
    marked,
    nothing_to_do,
    rad_chestct_cells,
    relabelled,
    write_nifti,
    write_npz,
    write_table,
)

NAMES = ("trn00001", "trn00002", "trn00007", "val00003", "val00005", "tst00004")
LABELS = "imgtrain_Abnormality_and_Location_Labels.csv"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    volumes = {name: marked(seed) for seed, name in enumerate(NAMES)}
    root = tmp_path_factory.mktemp("rad") / "RAD-ChestCT"
    return lay_out_rad_chestct(root, volumes, tables="tables", images="npz")


def made(folder: Path, source: Path, **options: Any) -> ctgpu.BuildReport:
    return build(folder, source, dataset="rad-chestct", **({"spec": FINE_SPEC} | options))


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_each_split_is_told_by_the_names(tmp_path: Path, source: Path, split: str) -> None:
    report = made(tmp_path / "out", source, split=split)
    prefix = {"train": "trn", "valid": "val", "test": "tst"}[split]
    own = [name for name in NAMES if name.startswith(prefix)]
    samples = read_samples(tmp_path / "out")
    assert list(samples) == own
    assert report.exit_code == 0
    # A prefix of a name is another class: nodulegr1cm is none of nodule's places.
    assert report.manifest["class_names"] == ["nodule", "nodulegr1cm"]
    for name, sample in samples.items():
        first, large, second = rad_chestct_cells(name)
        wanted = np.array([max(first, second), large], "<f4")
        assert sample.labels.tobytes() == wanted.tobytes()
        assert sample.text == ""
        assert sample.metadata["report"] == {}
        facts = sample.metadata["source"]
        assert facts["shape"] == list(SHAPE_HWD)
        assert facts["spacing_mm"] == [0.8, 0.8, 0.8]
        assert facts["spacing_source"] == "description"
        assert (facts["orientation"], facts["affine_source"]) == ("PLI", "assumed")
        assert facts["intensity"] == {"source": "hu", "slope": 1.0, "intercept": 0.0}
    check(tmp_path / "out", source, len(own))


def test_without_a_word_it_is_the_validation_split(tmp_path: Path, source: Path) -> None:
    assert made(tmp_path / "out", source).manifest["split"] == "valid"
    assert list(read_samples(tmp_path / "out")) == ["val00003", "val00005"]


@pytest.mark.parametrize("as_file", [".npz", ".nii.gz"])
@pytest.mark.parametrize("orientation", ["stored", "LPS"])
def test_the_voxels_are_those_of_the_same_scan_in_another_file(
    tmp_path: Path, source: Path, as_file: str, orientation: str
) -> None:
    """No axis is taken for another one, and none is walked from its end."""
    spec = Spec(target_spacing_mm=(1.0, 0.9, 1.2), shape_hwd=(16, 9, 5), orientation=orientation)
    made(tmp_path / "out", source, split="train", spec=spec)
    for seed, name in enumerate(NAMES[:3]):
        hu, path = marked(seed), tmp_path / "plain" / f"{name}{as_file}"
        if as_file == ".npz":
            write_npz(path, data=hu, spacing_mm=np.full(3, 0.8))
        else:
            write_nifti(path, hu, (0.8, 0.8, 0.8), "PLI")
    other = {} if as_file == ".nii.gz" else {"assume_orientation": "PLI"}
    build(tmp_path / "other", tmp_path / "plain", spec=spec, **other)
    found, wanted = read_samples(tmp_path / "out"), read_samples(tmp_path / "other")
    assert list(found) == list(wanted) == list(NAMES[:3])
    for name, sample in found.items():
        assert sample.volume == wanted[name].volume
        # A NIfTI's numbers are float32's.
        for fact in ("affine", "spacing_mm"):
            assert np.allclose(sample.metadata[fact], wanted[name].metadata[fact], atol=1e-6)


@pytest.mark.parametrize(("tables", "images"), [("", ""), ("tables", "images/a/b"), ("", "npz")])
def test_it_is_found_wherever_users_have_put_it(
    tmp_path: Path, source: Path, tables: str, images: str
) -> None:
    volumes = {name: marked(seed) for seed, name in enumerate(NAMES)}
    root = lay_out_rad_chestct(tmp_path / "copy", volumes, tables=tables, images=images)
    made(tmp_path / "out", root, split="train")
    made(tmp_path / "first", source, split="train")
    found, wanted = read_samples(tmp_path / "out"), read_samples(tmp_path / "first")
    for name in NAMES[:3]:
        assert found[name].volume == wanted[name].volume
        assert found[name].labels.tobytes() == wanted[name].labels.tobytes()


@pytest.mark.slow
def test_of_84_classes_at_52_places_each_is_one_label(tmp_path: Path) -> None:
    root = lay_out_rad_chestct(tmp_path / "copy", {"val00001": marked(0)})
    columns = [f"class_{c}*place_{p}" for c in range(84) for p in range(52)]
    cells = [int(c % 3 == 0 and p == 51) for c in range(84) for p in range(52)]
    write_table(
        root / "imgvalid_Abnormality_and_Location_Labels.csv",
        ("NoteAcc_DEID", *columns),
        [("val00001", *cells)],
    )
    report = made(tmp_path / "out", root)
    assert report.manifest["class_names"] == [f"class_{c}" for c in range(84)]
    (sample,) = read_samples(tmp_path / "out").values()
    assert sample.labels.tobytes() == np.array([c % 3 == 0 for c in range(84)], "<f4").tobytes()
    (batch,) = make_loader(tmp_path / "out", 1)
    assert tuple(batch["labels"].shape) == (1, 84)


def test_a_volume_without_a_row_has_no_label_and_a_bad_row_fails_its_sample(
    tmp_path: Path,
) -> None:
    names = ("val00001", "val00002", "val00003")
    root = lay_out_rad_chestct(tmp_path / "copy", {n: marked(k) for k, n in enumerate(names)})
    write_table(
        root / "imgvalid_Abnormality_and_Location_Labels.csv",
        ("NoteAcc_DEID", "nodule*left", "nodule*right"),
        [("val00001", "", 1), ("val00003", 2, 0)],
    )
    report = made(tmp_path / "out", root)
    samples = read_samples(tmp_path / "out")
    assert np.array_equal(samples["val00001"].labels, [1])
    assert np.isnan(samples["val00002"].labels).tolist() == [True]
    (failure,) = report.failures
    assert failure["key"] == "val00003"
    assert "nodule*left '2'" in failure["message"]
    assert "from 0 to 1" in failure["message"]


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"scan": marked(0)}, "no array 'ct', only scan"),
        ({"ct": marked(0)[..., None]}, "(15, 12, 9, 1); wanted three axes"),
        ({"ct": np.array([{}])}, "pickled"),
    ],
)
def test_an_archive_of_something_else_is_a_failed_sample(
    tmp_path: Path, arrays: dict[str, Any], said: str
) -> None:
    root = lay_out_rad_chestct(tmp_path / "copy", {"val00001": marked(0), "val00002": marked(1)})
    write_npz(root / "val00002.npz", **arrays)
    report = made(tmp_path / "out", root)
    (failure,) = report.failures
    assert failure["key"] == "val00002"
    assert said in failure["message"]
    assert list(read_samples(tmp_path / "out")) == ["val00001"]


def test_of_several_arrays_the_named_one_is_the_scan(tmp_path: Path) -> None:
    """A mask beside it, and what another program calls the volume, are none."""
    root = lay_out_rad_chestct(tmp_path / "copy", {"val00001": marked(0)})
    made(tmp_path / "alone", root)
    ct = np.ascontiguousarray(marked(0).transpose(2, 0, 1))
    write_npz(root / "val00001.npz", volume=np.zeros_like(ct), ct=ct, mask=ct > 0)
    made(tmp_path / "beside", root)
    alone, beside = read_samples(tmp_path / "alone"), read_samples(tmp_path / "beside")
    assert beside["val00001"].volume == alone["val00001"].volume


def test_a_spacing_of_the_file_itself_goes_first_and_follows_its_axes(tmp_path: Path) -> None:
    root = lay_out_rad_chestct(tmp_path / "copy", {"val00001": marked(0)})
    ct = np.ascontiguousarray(marked(0).transpose(2, 0, 1))
    d, h, w = 1.25, 0.75, 0.5
    write_npz(root / "val00001.npz", ct=ct, spacing_mm=np.array([d, h, w]))
    made(tmp_path / "out", root)
    write_nifti(tmp_path / "plain/val00001.nii.gz", marked(0), (h, w, d), "PLI")
    build(tmp_path / "other", tmp_path / "plain", spec=FINE_SPEC)
    found, wanted = (read_samples(tmp_path / n)["val00001"] for n in ("out", "other"))
    facts = found.metadata["source"]
    assert (facts["spacing_mm"], facts["spacing_source"]) == ([h, w, d], "header")
    assert found.volume == wanted.volume


def test_a_table_that_changed_is_written_again(tmp_path: Path) -> None:
    names = NAMES[:3]
    root = lay_out_rad_chestct(tmp_path / "copy", {n: marked(k) for k, n in enumerate(names)})
    made(tmp_path / "out", root, split="train")
    nothing_to_do(tmp_path / "out", source=root, dataset="rad-chestct")
    nothing_to_do(tmp_path / "out")
    before = read_samples(tmp_path / "out")
    header = ("NoteAcc_DEID", "nodule*right_upper", "nodulegr1cm*lung", "nodule*left_lower")
    rows = [("trn00001", 0, 1, 0), ("trn00002", *rad_chestct_cells("trn00002"))]
    write_table(root / LABELS, header, rows)
    report = relabelled(tmp_path / "out")
    assert sorted(report.relabelled) == ["trn00001", "trn00007"]
    after = read_samples(tmp_path / "out")
    assert np.array_equal(after["trn00001"].labels, [0, 1])
    assert np.array_equal(after["trn00002"].labels, before["trn00002"].labels)
    assert np.isnan(after["trn00007"].labels).all()
    assert [s.volume for s in after.values()] == [s.volume for s in before.values()]
    check(tmp_path / "out", root, 3)


def test_the_plan_has_its_description_and_its_facts(tmp_path: Path, source: Path) -> None:
    made(tmp_path / "out", source, split="train")
    stated = json.loads((tmp_path / "out/plan.json").read_bytes())
    assert stated["format"] == "ctgpu-plan-3"
    assert stated["data_set"]["name"] == "RAD-ChestCT"
    assert stated["selection"]["assume_orientation"] == "PLI"
    plan = Plan.load(tmp_path / "out")
    assert {sample.provenance for sample in plan.samples} == {"fixed"}
    assert plan.to_json() == (tmp_path / "out/plan.json").read_bytes()


def test_another_orientation_may_be_stated_in_place_of_its_own(
    tmp_path: Path, source: Path
) -> None:
    made(tmp_path / "out", source, assume_orientation="ALS")
    facts = {s.metadata["source"]["orientation"] for s in read_samples(tmp_path / "out").values()}
    assert facts == {"ALS"}
    assert Plan.load(tmp_path / "out").selection["assume_orientation"] == "ALS"


def test_its_own_splits_go_before_those_by_patient(tmp_path: Path, source: Path) -> None:
    with pytest.raises(UsageError, match="RAD-ChestCT has splits of its own, train, valid, test"):
        made(tmp_path / "out", source, split="train", split_by="patient", fractions="0.5,0.5")
    with pytest.raises(UsageError, match="RAD-ChestCT has train, valid, test: pass one"):
        made(tmp_path / "out", source, split="validation")


def test_a_loader_gives_its_labels(tmp_path: Path, source: Path) -> None:
    made(tmp_path / "out", source, split="train")
    dataset = VolumeDataset(tmp_path / "out", verify="always")
    assert dataset.class_names == ("nodule", "nodulegr1cm")
    shapes = [tuple(batch["labels"].shape) for batch in make_loader(dataset, 2)]
    assert shapes == [(2, 2), (1, 2)]
