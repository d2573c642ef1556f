"""Chosen samples, as files that say what the shards say."""

from __future__ import annotations

import os
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
from stored import chest_as, rotated, save
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


def test_a_mask_lies_on_its_volume_and_has_whole_numbers(tmp_path: Path, made: Path) -> None:
    export(made, tmp_path, to="nifti", samples=["a"])
    volume, mask = (nibabel.load(tmp_path / f"a{ending}.nii.gz") for ending in ("", ".seg"))
    np.testing.assert_array_equal(mask.affine, volume.affine)
    assert mask.get_data_dtype() == np.uint8
    wanted = VolumeDataset(made)["a"]["mask"][0].transpose(1, 2, 0)
    assert wanted.any()
    np.testing.assert_array_equal(np.asanyarray(mask.dataobj), wanted)


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
        (["lung"], r"samples has 'lung', which is the name of no sample of .*numbers below 3"),
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


def test_a_name_that_is_not_there_is_told_what_is_near_it_or_became_of_it(tmp_path: Path) -> None:
    for name in ("valid_12_a_1", "valid_13_a_1", "other"):
        save(tmp_path / f"scans/{name}.nii", chest_as("LPS"))
    (tmp_path / "scans/valid_14_a_1.nii").write_bytes(b"no scan")
    report = ctgpu.build(tmp_path / "out", source=tmp_path / "scans", spec=SPEC, device="cpu")
    assert [failure["key"] for failure in report.failures] == ["valid_14_a_1"]
    for name, wanted in (
        ("Valid_12_a_2", r"no sample of .*out; did you mean valid_12_a_1 or valid_13_a_1\?$"),
        ("valid_14_a_1", r"failed when .*out was built; .*failures\.jsonl why .*--retry-failed"),
    ):
        with pytest.raises(UsageError, match=wanted):
            export_samples(tmp_path / "out", tmp_path / "to", to="npy", samples=[name])


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
    with pytest.raises(UsageError, match=r"3 names .* could be files of one name"):
        export_samples([made, folder], tmp_path / "to", to="npy")


def test_names_that_a_file_system_may_take_for_one_are_refused(tmp_path: Path) -> None:
    for name in ("Scan", "scan", "x"):
        save(tmp_path / f"scans/{name}.nii", chest_as("LPS"))
    ctgpu.build(tmp_path / "out", source=tmp_path / "scans", spec=SPEC, device="cpu")
    with pytest.raises(UsageError, match=r"^1 name stands .* in case alone, such as scan"):
        export_samples(tmp_path / "out", tmp_path / "to", to="npy")
    exported = export(tmp_path / "out", tmp_path / "to", to="npy", samples=["Scan", "x"])
    assert [one.key for one in exported] == ["Scan", "x"]


def test_what_a_killed_export_left_is_removed(tmp_path: Path, made: Path) -> None:
    old, new, other = (
        tmp_path / name for name in (".a.npy.0a.ctgpu-tmp", ".b.npy.0b.ctgpu-tmp", ".mine.tmp")
    )
    for path in (old, new, other):
        path.write_bytes(b"half")
    for path in (old, other):
        os.utime(path, (1e9, 1e9))
    export(made, tmp_path, to="npy", samples=["a"])
    # A new one may be that of another process.
    assert (old.exists(), new.exists(), other.exists()) == (False, True, True)


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


def interpolated(scan: Any, points_mm: Any, hu: Any) -> Any:
    """A scan's HU at points of the world, and which of these lie in it; by nothing of ctgpu."""
    scipy_ndimage = pytest.importorskip("scipy.ndimage")
    at = nibabel.affines.apply_affine(np.linalg.inv(scan.affine), points_mm)
    inside = ((at >= 0) & (at <= np.array(hu.shape) - 1)).all(-1)
    return scipy_ndimage.map_coordinates(hu, at[inside].T, order=1, output=np.float64), inside


@pytest.mark.parametrize(
    "name", ["lidcidri0001_small", "ts_example_ct_sm", "ts_pulmonary_ct_cropped"]
)
@pytest.mark.parametrize("orientation", ["stored", "RAS"])
def test_an_exported_nifti_lies_over_the_real_scan(
    tmp_path: Path, real_ct: Path, name: str, orientation: str
) -> None:
    scan = nibabel.load(real_ct / f"{name}.nii.gz")
    # Askew, as patients lie; how the axes lead is the scan's own.
    askew = nibabel.Nifti1Image(np.asanyarray(scan.dataobj), rotated(7, 1) @ scan.affine)
    (tmp_path / "scans").mkdir()
    nibabel.save(askew, tmp_path / "scans/x.nii.gz")
    sizes_mm = nibabel.affines.voxel_sizes(scan.affine)
    # Cropped along one axis, padded along another.
    spacing, shares = (1.3, 1.1, 0.9), (0.6, 1.1, 0.9)
    spec = Spec(
        target_spacing_mm=tuple(float(mm * k) for mm, k in zip(sizes_mm, spacing, strict=True)),
        shape_hwd=tuple(int(n * k) for n, k in zip(scan.shape, shares, strict=True)),
    )
    if orientation != "stored":
        finest = 1.2 * float(min(sizes_mm))
        spec = Spec(
            target_spacing_mm=(finest, finest, 1.5 * finest),
            shape_hwd=(100, 130, 120),
            orientation=orientation,
        )
    report = ctgpu.build(
        tmp_path / "out", source=tmp_path / "scans", spec=spec, axes="stored", device="cpu"
    )
    assert report.exit_code == 0, report.failures
    export(tmp_path / "out", tmp_path / "to", to="nifti", hu=True)
    image = nibabel.load(tmp_path / "to/x.nii.gz")
    assert image.get_sform(coded=True)[1] == image.get_qform(coded=True)[1] == 1
    np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-3)
    if orientation != "stored":
        assert "".join(nibabel.aff2axcodes(image.affine)) == orientation
    found = np.asanyarray(image.dataobj)
    index = np.moveaxis(np.indices(found.shape), 0, -1)
    points_mm = nibabel.affines.apply_affine(image.affine, index)
    hu = np.asanyarray(askew.dataobj, np.float32).clip(-1000, 1000)
    wanted, inside = interpolated(askew, points_mm, hu)
    assert inside.sum() > 50_000
    # A fifth of a millimetre off would be 60 HU somewhere.
    lost = beside(tmp_path / "to", "x")["values"]["rounded_by_hu"]
    assert np.abs(wanted - found[inside]).max() < lost + 0.3


def test_a_scan_without_an_affine_gives_a_file_that_names_no_scanner(tmp_path: Path) -> None:
    save(tmp_path / "scans/x.nii", chest_as("LPS"), sform_code=0, qform_code=0)
    ctgpu.build(tmp_path / "out", source=tmp_path / "scans", spec=SPEC, device="cpu")
    export(tmp_path / "out", tmp_path / "to", to="nifti")
    image = nibabel.load(tmp_path / "to/x.nii.gz")
    assert image.get_sform(coded=True)[1] == image.get_qform(coded=True)[1] == 2
    metadata = VolumeDataset(tmp_path / "out").metadata(0)
    np.testing.assert_allclose(image.affine, metadata["affine"], atol=1e-4)
