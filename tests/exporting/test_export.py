"""Chosen samples, as files that say what the shards say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from exporting_cases import SCANS, SHAPE, SPEC, beside, build, contents, export, flip_byte

import ctgpu
from ctgpu.errors import UsageError
from ctgpu.exporting import export_samples
from ctgpu.loading import VolumeDataset
from ctgpu.spec import Spec
from ctgpu.testing.masks import LABELS
from stored import chest_as, save
from support.compressed_folders import compress_folder
from support.phantoms import SPACING_MM


def test_arrays_are_those_that_are_stored(tmp_path: Path, made: Path) -> None:
    exported = export(made, tmp_path / "to", to="npy")
    dataset = VolumeDataset(made)
    assert [one.key for one in exported] == ["7", "a", "b"]
    for number, one in enumerate(exported):
        names = [f"{one.key}.npy", f"{one.key}.seg.npy", f"{one.key}.json"]
        assert [path.name for path in one.files] == names
        sample = dataset[number]
        for path, name in zip(one.files, ("volume", "mask"), strict=False):
            wanted = sample[name][0].transpose(1, 2, 0)
            found = np.load(path)
            assert found.dtype == wanted.dtype
            np.testing.assert_array_equal(found, wanted)
        said = beside(tmp_path / "to", one.key)
        assert said["sample"] == dataset.metadata(number)
        assert said["axes"] == "HWD"
        assert said["mask_labels"] == dict(LABELS)
        assert said["files"] == names[:2]


def test_axes_of_arrays_are_in_the_stored_order(tmp_path: Path) -> None:
    made = build(tmp_path, replace(SPEC, layout="DHW"))
    export(made, tmp_path / "to", to="npy", samples=["a"])
    dhw = VolumeDataset(made)["a"]["volume"][0]
    np.testing.assert_array_equal(np.load(tmp_path / "to/a.npy"), dhw)
    assert beside(tmp_path / "to", "a")["axes"] == "DHW"
    # A NIfTI has its axes as ever.
    export(made, tmp_path / "as", to="nifti", samples=["a"])
    found = np.asanyarray(nibabel.load(tmp_path / "as/a.nii.gz").dataobj)
    np.testing.assert_array_equal(found, dhw.transpose(1, 2, 0).astype(np.float32))


@pytest.mark.parametrize("to", ["npy", "nifti"])
def test_compressed_shards_give_the_same_files(tmp_path: Path, made: Path, to: Any) -> None:
    packed = compress_folder(made, tmp_path / "packed", "rice")
    for where, place in ((made, "one"), (packed, "other")):
        export(where, tmp_path / place, to=to, samples=["a"])
    assert contents(tmp_path / "one") == contents(tmp_path / "other")


@pytest.mark.parametrize(
    "spec",
    [
        Spec(dtype="float16"),
        Spec(dtype="float16", precision="2^-10"),
        Spec(dtype="bfloat16", layout="DHW"),
        Spec(dtype="uint8", hu_window=(-1350, 150)),
        Spec(dtype="int16"),
        Spec(dtype="float16", normalise="zscore"),
    ],
    ids=lambda spec: f"{spec.dtype}-{spec.precision}-{spec.normalise}",
)
def test_hu_are_those_of_the_scan_up_to_what_is_said_to_be_lost(tmp_path: Path, spec: Spec) -> None:
    made = build(tmp_path, replace(spec, target_spacing_mm=SPACING_MM, shape_hwd=SHAPE))
    export(made, tmp_path / "to", to="nifti", samples=["a"], hu=True)
    image = nibabel.load(tmp_path / "to/a.nii.gz")
    values = beside(tmp_path / "to", "a")["values"]
    lo, hi = spec.hu_window or (-1000, 1000)
    assert values["clipped_to_hu"] == [lo, hi]
    assert values["unit"] == "HU"
    lost = np.abs(np.asanyarray(image.dataobj, np.float64) - SCANS["a"].clip(lo, hi)).max()
    assert lost <= values["rounded_by_hu"] + 1e-3
    # It says no more than there may be: a few HU of bfloat16 and of 8 bits, else a fraction.
    assert values["rounded_by_hu"] < (4 if spec.dtype in ("bfloat16", "uint8") else 1)
    assert image.get_data_dtype() == (np.int16 if spec.stores_hu else np.float32)


def test_bfloat16_becomes_float32_of_the_same_numbers(tmp_path: Path) -> None:
    made = build(tmp_path, replace(SPEC, dtype="bfloat16"))
    export(made, tmp_path / "to", to="npy", samples=["a"])
    found = np.load(tmp_path / "to/a.npy")
    assert found.dtype == np.float32
    bits = VolumeDataset(made)["a"]["volume"][0].transpose(1, 2, 0)
    np.testing.assert_array_equal(found.view(np.uint32) >> 16, bits)


@pytest.mark.parametrize(
    ("samples", "keys"),
    [
        (["b", "a"], ["a", "b"]),
        ([0], ["7"]),
        (["7"], ["7"]),  # a name, where there is such a name
        (["0", "-1", "b"], ["7", "b"]),
        (None, ["7", "a", "b"]),
    ],
)
def test_samples_are_chosen_by_name_and_number(
    tmp_path: Path, made: Path, samples: Any, keys: list[str]
) -> None:
    exported = export(made, tmp_path, to="npy", samples=samples)
    assert [one.key for one in exported] == keys


@pytest.mark.parametrize(
    ("samples", "wanted"),
    [
        (["c"], r"samples has 'c', which is the name of no sample of .*numbers below 3"),
        (["3"], "there is no sample 3"),
        ([True], "chosen by their numbers, not by a mask"),
        ([1.5], "samples is 1.5"),
        ("a", "it takes a list of names and numbers"),
        ([], "holds no sample"),
    ],
)
def test_what_is_not_there_is_refused(
    tmp_path: Path, made: Path, samples: Any, wanted: str
) -> None:
    with pytest.raises(UsageError, match=wanted):
        export_samples(made, tmp_path / "to", to="npy", samples=samples)
    assert not (tmp_path / "to").exists()


def test_a_damaged_sample_is_told_of_and_the_rest_exported(tmp_path: Path, folder: Path) -> None:
    shard, entry = VolumeDataset(folder).locate(1)
    flip_byte(shard.path, entry.members["bin"].offset + 1000)
    exported = export(folder, tmp_path / "to", to="nifti")
    faults = [one.fault for one in exported]
    assert faults[0] is None is faults[2]
    assert "a.bin does not have its checksum" in (faults[1] or "")
    assert exported[1].files == ()
    assert sorted(contents(tmp_path / "to")) == [
        *("7.json", "7.nii.gz", "7.seg.nii.gz", "b.json", "b.nii.gz", "b.seg.nii.gz"),
    ]


def test_a_file_is_replaced_only_where_that_is_asked_for(tmp_path: Path, made: Path) -> None:
    (tmp_path / "a.seg.npy").write_bytes(b"mine")
    with pytest.raises(UsageError, match=r"a\.seg\.npy would be replaced;.*--force"):
        export_samples(made, tmp_path, to="npy")
    assert contents(tmp_path) == {"a.seg.npy": b"mine"}
    export(made, tmp_path, to="npy", samples=["b"])  # other names
    assert (tmp_path / "a.seg.npy").read_bytes() == b"mine"
    assert len(export(made, tmp_path, to="npy", force=True)) == 3
    assert np.load(tmp_path / "a.seg.npy").shape == SPEC.shape_hwd


def test_no_mask_of_another_data_set_is_left(tmp_path: Path, made: Path) -> None:
    save(tmp_path / "scans/a.nii", chest_as("LPS"))
    ctgpu.build(tmp_path / "out", source=tmp_path / "scans", spec=SPEC, device="cpu")
    export(made, tmp_path / "to", to="npy", samples=["a", "b"])
    export(tmp_path / "out", tmp_path / "to", to="npy", force=True)
    assert sorted(contents(tmp_path / "to")) == [
        *("a.json", "a.npy", "b.json", "b.npy", "b.seg.npy"),
    ]


def test_the_folder_of_a_data_set_takes_no_files(folder: Path) -> None:
    before = contents(folder)
    for place in (folder, folder / ".." / folder.name):
        with pytest.raises(UsageError, match="is the folder of a data set"):
            export_samples(folder, place, to="npy", force=True)
    assert contents(folder) == before


def test_samples_of_one_name_are_refused(tmp_path: Path, made: Path, folder: Path) -> None:
    with pytest.raises(UsageError, match="could be files of one name"):
        export_samples([made, folder], tmp_path / "to", to="npy")


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"to": "mha"}, "to is 'mha'; it is npy"),
        ({"hu": 1}, "hu is 1"),
        ({"force": "no"}, "force is 'no'"),
    ],
)
def test_another_argument_is_refused(
    tmp_path: Path, made: Path, change: dict[str, Any], wanted: str
) -> None:
    with pytest.raises(UsageError, match=wanted):
        export_samples(made, tmp_path / "to", **({"to": "npy"} | change))


def centre_mm(image: Any, above: float) -> Any:
    """Where what is brighter than `above` has its centre in the world."""
    weight = np.maximum(np.asanyarray(image.dataobj, np.float64) - above, 0)
    index = [
        np.average(np.arange(n), weights=weight.sum(tuple({0, 1, 2} - {axis})))
        for axis, n in enumerate(weight.shape)
    ]
    return nibabel.affines.apply_affine(image.affine, index)


@pytest.mark.parametrize(
    "name", ["lidcidri0001_small", "ts_example_ct_sm", "ts_pulmonary_ct_cropped"]
)
@pytest.mark.parametrize("orientation", ["stored", "RAS"])
def test_an_exported_nifti_lies_over_the_real_scan(
    tmp_path: Path, real_ct: Path, name: str, orientation: str
) -> None:
    scan = nibabel.load(real_ct / f"{name}.nii.gz")
    voxels = np.asanyarray(scan.dataobj, np.float32).clip(-1000, 280)
    # Off the centre along every axis, so that no turn or shift puts it elsewhere unseen; what is
    # around it is even, so that resampling leaves its centre where it is.
    middle = [int(n * at) for n, at in zip(voxels.shape, (0.4, 0.55, 0.62), strict=True)]
    for half, hu in ((8, 300), (3, 900)):
        voxels[tuple(slice(max(0, m - half), m + half) for m in middle)] = hu
    marked = nibabel.Nifti1Image(voxels.astype(np.int16), scan.affine)
    (tmp_path / "scans").mkdir()
    nibabel.save(marked, tmp_path / "scans/x.nii.gz")
    h, w, d = nibabel.affines.voxel_sizes(scan.affine)
    spec = Spec(
        target_spacing_mm=(1.3 * h, 1.1 * w, 0.9 * d),
        shape_hwd=tuple(int(0.9 * n) for n in voxels.shape),
        orientation=orientation,
    )
    if orientation != "stored":
        spec = replace(spec, target_spacing_mm=(1.2 * min(h, w, d),) * 3, shape_hwd=(160, 170, 180))
    report = ctgpu.build(
        tmp_path / "out", source=tmp_path / "scans", spec=spec, axes="stored", device="cpu"
    )
    assert report.exit_code == 0, report.failures
    export(tmp_path / "out", tmp_path / "to", to="nifti", hu=True)
    image = nibabel.load(tmp_path / "to/x.nii.gz")
    assert image.get_sform(coded=True)[1] == 1
    if orientation != "stored":
        assert "".join(nibabel.aff2axcodes(image.affine)) == orientation
    off = np.abs(centre_mm(image, 301) - centre_mm(marked, 301))
    assert off.max() < 0.2 * min(spec.target_spacing_mm)


def test_a_scan_without_an_affine_gives_a_file_that_names_no_scanner(tmp_path: Path) -> None:
    save(tmp_path / "scans/x.nii", chest_as("LPS"), sform_code=0, qform_code=0)
    ctgpu.build(tmp_path / "out", source=tmp_path / "scans", spec=SPEC, device="cpu")
    export(tmp_path / "out", tmp_path / "to", to="nifti")
    image = nibabel.load(tmp_path / "to/x.nii.gz")
    assert image.get_sform(coded=True)[1] == image.get_qform(coded=True)[1] == 2
    metadata = VolumeDataset(tmp_path / "out").metadata(0)
    np.testing.assert_allclose(image.affine, metadata["affine"], atol=1e-4)
