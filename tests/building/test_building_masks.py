"""Builds of scans with masks: what is stored, what fails, and what stays as it was."""

from __future__ import annotations

import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
import pytest

import ctgpu
from built import read_samples, tar_bytes
from ctgpu.buffers import BufferPool
from ctgpu.building.masks import merge_mask, read_mask
from ctgpu.data_sets import Description, named
from ctgpu.data_sets.writing import to_toml
from ctgpu.errors import DecodeError, GeometryError, MismatchError, UsageError
from ctgpu.sources import open_source
from ctgpu.testing.masks import LABELS, labels_of, lay_out_with_masks, write_nifti
from ctgpu.volume.masks import MaskFormat
from ctgpu.volume.raw import RawVolume
from support.data_set_copies import SPEC, build, marked, stop_after
from support.phantoms import SPACING_MM

NAMES = ("a", "b", "c")
#: Of scans whose axes lead to the patient's back, left and feet.
AFFINE = np.array([[0, -3.0, 0, 40], [-3.5, 0, 0, 55], [0, 0, -5.0, 9], [0, 0, 0, 1.0]])


def stored_masks(folder: Path) -> dict[str, npt.NDArray[Any]]:
    """Every mask of a folder by key, read with nothing but ``tarfile``."""
    found = {}
    for path in sorted(folder.glob("shard-*.tar")):
        with tarfile.open(path) as archive:
            for info in archive:
                if info.name.endswith(".seg"):
                    metadata = json.loads(archive.extractfile(f"{info.name[:-4]}.json").read())  # type: ignore[union-attr]
                    content = archive.extractfile(info).read()  # type: ignore[union-attr]
                    shape, dtype = metadata["shape"], metadata["mask"]["dtype"]
                    found[info.name[:-4]] = np.frombuffer(content, dtype).reshape(shape)
                    assert info.offset_data % 4096 == 0
    return found


def lay_out(root: Path, **options: Any) -> tuple[Path, Path]:
    """A source of three scans, and its description."""
    scans = {name: marked(seed) for seed, name in enumerate(NAMES)}
    return root, lay_out_with_masks(root, scans, SPACING_MM, affine=AFFINE, **options)


def changed(description: Path, **masks: Any) -> Path:
    """Another description beside one, whose masks are different."""
    content = named(description).content
    content["masks"] = {**content["masks"], **masks}
    path = description.with_name("changed.toml")
    path.write_text(to_toml(Description.of(content)), "utf-8")
    return path


def only_failure(folder: Path, source: Path, dataset: Path, **options: Any) -> str:
    """What the ledger says of the one sample of three that failed."""
    report = build(folder, source, dataset=dataset, split="train", **options)
    assert (report.written, report.exit_code) == (2, 1)
    assert len(stored_masks(folder)) == 2
    (failure,) = report.failures
    return str(failure["message"])


@pytest.mark.parametrize("binary", [False, True], ids=["numbers", "a file for each label"])
def test_a_mask_lies_beside_each_volume_on_its_very_grid(tmp_path: Path, binary: bool) -> None:
    source, dataset = lay_out(tmp_path / "source", binary=binary)
    spec = replace(SPEC, orientation="LPS", layout="DHW")
    report = build(tmp_path / "out", source, dataset=dataset, split="train", spec=spec)
    assert (report.written, report.exit_code) == (3, 0)
    assert report.manifest["masks"] == {"dtype": "uint8", "labels": dict(LABELS)}
    masks = stored_masks(tmp_path / "out")
    assert list(masks) == list(NAMES)
    for seed, (name, sample) in enumerate(read_samples(tmp_path / "out").items()):
        hu = marked(seed)
        path = tmp_path / f"{name}.nii.gz"
        write_nifti(path, hu, AFFINE)
        volume, mask = ctgpu.preprocess(path, spec=spec, device="cpu", mask=labels_of(hu))
        assert np.array_equal(masks[name], mask)
        assert sample.volume == volume.tobytes()
        assert {0, LABELS["body"], LABELS["bone"]} <= set(np.unique(mask))
        assert sample.metadata["mask"]["files"] == (3 if binary else 1)
        assert sample.metadata["mask"]["overlap_voxels"] == 0


def test_volumes_are_the_same_with_and_without(tmp_path: Path) -> None:
    source, dataset = lay_out(tmp_path / "source")
    bare = tmp_path / "bare.toml"
    content = named(dataset).content
    del content["masks"]
    bare.write_text(to_toml(Description.of(content)), "utf-8")
    build(tmp_path / "with", source, dataset=dataset, split="train")
    build(tmp_path / "left out", source, dataset=dataset, split="train", masks=False)
    build(tmp_path / "bare", source, dataset=bare, split="train")
    with_masks, left_out, never = (
        read_samples(tmp_path / name) for name in ("with", "left out", "bare")
    )
    for name in NAMES:
        assert with_masks[name].volume == left_out[name].volume == never[name].volume
        assert "mask" not in left_out[name].metadata
        # But for the revision, which counts the files of the masks.
        same = {**left_out[name].metadata, "source": None}
        assert same == {**never[name].metadata, "source": None}
    plans = {n: json.loads((tmp_path / n / "plan.json").read_text()) for n in ("with", "left out")}
    assert plans["with"]["format"] == "ctgpu-plan-4"
    assert plans["left out"]["selection"]["masks"] is False
    assert "masks" not in plans["left out"]
    assert plans["with"]["fingerprint"] == plans["left out"]["fingerprint"]
    build(tmp_path / "with", source, masks=True)
    build(tmp_path / "left out", source, masks=False)
    with pytest.raises(MismatchError, match="masks"):
        build(tmp_path / "with", source, masks=False)


def test_a_build_goes_on_and_masks_are_the_same_bytes(tmp_path: Path) -> None:
    source, dataset = lay_out(tmp_path / "source", binary=True)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    build(whole, source, dataset=dataset, split="train")
    with pytest.raises(KeyboardInterrupt):
        build(stopped, source, dataset=dataset, split="train", watch=stop_after(1))
    assert build(stopped).exit_code == 0
    # One sample at a time, whose memory is all that there is.
    build(tmp_path / "small", source, dataset=dataset, split="train", memory_limit_bytes=1)
    assert tar_bytes(whole) == tar_bytes(stopped) == tar_bytes(tmp_path / "small")


def test_where_labels_overlap_the_higher_number_wins(tmp_path: Path) -> None:
    source, dataset = lay_out(tmp_path / "source", binary=True)
    lung = source / "b" / "segmentations" / "lung.nii.gz"
    write_nifti(lung, np.ones(marked(1).shape, np.float32), AFFINE)
    build(tmp_path / "out", source, dataset=dataset, split="train")
    labels = labels_of(marked(1))
    merged = np.where(labels == LABELS["bone"], labels, LABELS["lung"]).astype(np.uint8)
    _, wanted = ctgpu.preprocess(
        marked(1), SPACING_MM, SPEC, "cpu", mask=merged, assume_orientation="PLI"
    )
    assert np.array_equal(stored_masks(tmp_path / "out")["b"], wanted)
    mask = read_samples(tmp_path / "out")["b"].metadata["mask"]
    assert mask["overlap_voxels"] == np.count_nonzero(labels == 1) + np.count_nonzero(labels == 7)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    source, dataset = lay_out(tmp_path / "source", binary=True)
    segmentations = source / "b" / "segmentations"
    (segmentations / "lung.nii.gz").unlink()
    message = only_failure(tmp_path / "refused", source, dataset)
    assert message.startswith("b/segmentations/lung.nii.gz, of the mask of b/ct.nii.gz, is not")
    empty = changed(dataset, absent="empty")
    report = build(tmp_path / "empty", source, dataset=empty, split="train")
    assert report.exit_code == 0
    mask = stored_masks(tmp_path / "empty")["b"]
    assert set(np.unique(mask)) == {0, LABELS["body"], LABELS["bone"]}
    assert read_samples(tmp_path / "empty")["b"].metadata["mask"]["files"] == 2
    # Without a single one, it rather is the wrong folder.
    shutil.rmtree(segmentations)
    message = only_failure(tmp_path / "none", source, empty)
    assert message.startswith("none of the 3 files of the mask of b/ct.nii.gz is there")


def test_one_file_that_may_be_absent_is_an_empty_mask(tmp_path: Path) -> None:
    source, dataset = lay_out(tmp_path / "source")
    (source / "labels" / "c.nii.gz").unlink()
    build(tmp_path / "out", source, dataset=changed(dataset, absent="empty"), split="train")
    masks = stored_masks(tmp_path / "out")
    assert masks["a"].any()
    assert not masks["c"].any()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda v, a: (v[:, :-1], a), "has 15 × 11 × 9 voxels, and its volume 15 × 12 × 9"),
        (
            lambda v, a: (v, a + 0.5 * np.eye(4)[:, [3, 3, 3, 3]] * 0 + np.eye(4) * 0.5),
            "mm from its",
        ),
        (
            lambda v, a: (np.where(v == 7, 5, v).astype(np.uint8), a),
            "has a voxel of 5; wanted 0 and",
        ),
        (lambda v, a: (v * np.float32(0.5), a), "has a voxel of 0.5; wanted 0 and the numbers"),
    ],
    ids=["shape", "affine", "an unknown number", "a fraction"],
)
def test_a_mask_that_is_not_the_volumes_is_a_failed_sample(
    tmp_path: Path, change: Any, said: str
) -> None:
    source, dataset = lay_out(tmp_path / "source")
    path = source / "labels" / "b.nii.gz"
    image: Any = nibabel.load(path)
    write_nifti(path, *change(np.asarray(image.dataobj), image.affine))
    message = only_failure(tmp_path / "out", source, dataset)
    assert message.startswith("labels/b.nii.gz ")
    assert said in message
    # Mended, it is made.
    write_nifti(path, labels_of(marked(1)), AFFINE)
    assert build(tmp_path / "out", source, retry_failed=True).exit_code == 0
    assert len(stored_masks(tmp_path / "out")) == 3


def test_a_damaged_mask_is_a_failed_sample(tmp_path: Path) -> None:
    source, dataset = lay_out(tmp_path / "source")
    path = source / "labels" / "b.nii.gz"
    path.write_bytes(path.read_bytes()[:90])
    assert "b.nii.gz" in only_failure(tmp_path / "out", source, dataset)


def test_numbers_above_255_are_stored_as_uint16(tmp_path: Path) -> None:
    source, dataset = lay_out(tmp_path / "source")
    for seed, name in enumerate(NAMES):
        labels = labels_of(marked(seed)).astype(np.uint16)
        labels[labels == 7] = 1000
        write_nifti(source / "labels" / f"{name}.nii.gz", labels, AFFINE)
    high = changed(dataset, labels={"body": 1, "lung": 2, "bone": 1000})
    build(tmp_path / "high", source, dataset=high, split="train")
    nameless = changed(dataset, labels={}, dtype="uint16")
    build(tmp_path / "nameless", source, dataset=nameless, split="train")
    masks, same = stored_masks(tmp_path / "high"), stored_masks(tmp_path / "nameless")
    for name in NAMES:
        assert masks[name].dtype == np.uint16
        assert set(np.unique(masks[name])) == {0, 1, 2, 1000}
        assert np.array_equal(masks[name], same[name])
    narrow = changed(dataset, labels={})
    report = build(tmp_path / "narrow", source, dataset=narrow, split="train")
    assert "a voxel of 1000; wanted whole numbers from 0 to 255" in report.failures[0]["message"]


def test_crop_to_the_mask(tmp_path: Path) -> None:
    source, dataset = lay_out(tmp_path / "source")
    for name in NAMES:
        labels = np.zeros(marked(0).shape, np.uint8)
        if name != "b":
            labels[2:9, 5:9, 3:7] = 2
        write_nifti(source / "labels" / f"{name}.nii.gz", labels, AFFINE)
    spec = replace(SPEC, crop="mask", margin_mm=3.4)
    message = only_failure(tmp_path / "out", source, dataset, spec=spec)
    assert message.startswith("crop is 'mask', and no voxel of the mask has a label")
    for sample in read_samples(tmp_path / "out").values():
        assert sample.metadata["source"]["crop_box"] == [[1, 10], [3, 11], [2, 8]]


def test_masks_that_cannot_be_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    source, dataset = lay_out(tmp_path / "source")
    plain: dict[str, Any] = {"dataset": "plain", "split": "train"}
    with pytest.raises(UsageError, match=r"crop is 'mask', which needs the masks of .*it has none"):
        build(tmp_path / "out", source, spec=replace(SPEC, crop="mask"), **plain)
    with pytest.raises(UsageError, match=r"masks were asked for, and .* has none"):
        build(tmp_path / "out", source, masks=True, **plain)
    by_mask = {"dataset": dataset, "split": "train", "spec": replace(SPEC, crop="mask")}
    with pytest.raises(UsageError, match="they are left out"):
        build(tmp_path / "out", source, masks=False, **by_mask)
    assert not (tmp_path / "out").exists()
    tar = tmp_path / "x.tar"
    with tarfile.open(tar, "w") as archive:
        archive.add(source / "images" / "a.nii.gz", "a.nii.gz")
    with pytest.raises(UsageError, match="which are not read from tars"):
        build(tmp_path / "out", tar, dataset=dataset, split="train")


def test_the_revision_counts_the_masks(tmp_path: Path) -> None:
    source, dataset = lay_out(tmp_path / "source")

    def revision() -> str:
        opened = open_source(source=source, data_set=named(dataset))
        opened.list_volumes("train")
        return opened.identity()["revision"]

    before = revision()
    assert revision() == before
    write_nifti(source / "labels" / "b.nii.gz", np.zeros((15, 12, 9), np.uint8), AFFINE)
    other = revision()
    (source / "labels" / "b.nii.gz").unlink()
    assert len({before, other, revision()}) == 3


def test_no_file_is_held_when_one_cannot_be_merged(tmp_path: Path) -> None:
    source, dataset = lay_out(tmp_path / "source", binary=True)
    opened = open_source(source=source, data_set=named(dataset))
    ref = opened.list_volumes("train")[1]
    masks = MaskFormat("uint8", LABELS)
    lent = Counted()
    raw = RawVolume(marked(1), SPACING_MM, AFFINE)
    labels = read_mask(opened, ref, raw, masks, lent)
    assert np.array_equal(labels.voxels, labels_of(marked(1)))
    assert lent.out == 1
    labels.release()
    files = opened.fetch_mask(ref, lent.acquire)
    with pytest.raises(GeometryError):
        merge_mask(files, RawVolume(marked(1)[1:], SPACING_MM, AFFINE), masks, lent)
    (source / ref.path).with_name("segmentations").joinpath("bone.nii.gz").write_bytes(b"bone")
    with pytest.raises(DecodeError):
        read_mask(opened, ref, raw, masks, lent)
    assert lent.out == 0


class Counted(BufferPool):
    """Knows how many of its buffers are out."""

    out = 0

    def acquire(self, size_bytes: int) -> Any:
        self.out += 1
        return super().acquire(size_bytes)

    def _give_back(self, memory: Any) -> None:
        self.out -= 1
        super()._give_back(memory)
