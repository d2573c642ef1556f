"""Masks that were built, held against their files, and drawn beside them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ctgpu
from ctgpu.checking.compare import compare_samples
from ctgpu.checking.facts import inspect_samples, stored_mask
from ctgpu.checking.sheet import draw_originals
from ctgpu.checking.verify import verify_folder
from ctgpu.errors import DecodeError
from ctgpu.shards.plan import Plan
from ctgpu.shards.writer import PackedSample
from ctgpu.sources.tar_samples import samples_of_tar
from ctgpu.spec import Spec
from ctgpu.testing.masks import LABELS, labels_of, lay_out_with_masks
from support.compressed_folders import compress_folder
from support.masks import replace_mask, rewritten
from support.phantoms import SPACING_MM, chest

SPEC = Spec(target_spacing_mm=(4.0, 4.0, 6.0), shape_hwd=(48, 44, 36), layout="DHW")
SCANS = {name: chest((60, 56, 40), number).voxels for number, name in enumerate(("a", "b"))}


@pytest.fixture(scope="module", params=[False, True], ids=["numbers", "binary"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scans with masks, in one file each or one for each label; and what is built of them."""
    root = tmp_path_factory.mktemp("made")
    description = lay_out_with_masks(root / "source", SCANS, SPACING_MM, binary=request.param)
    report = ctgpu.build(
        root / "out", source=root / "source", dataset=description, spec=SPEC, device="cpu"
    )
    assert report.exit_code == 0, report.failures
    return root


def faults(folder: Path, source: Path | None = None) -> dict[str, tuple[str, ...]]:
    return {found.key: found.faults for found in compare_samples(folder, source=source)}


def test_masks_that_were_built_pass(made: Path) -> None:
    assert faults(made / "out") == {"a": (), "b": ()}
    assert faults(made / "out", made / "source") == {"a": (), "b": ()}
    assert verify_folder(made / "out").findings == []
    assert list(Plan.load(made / "out").masks.labels) == sorted(LABELS)  # type: ignore[union-attr]


def test_one_voxel_of_a_mask_is_found(made: Path, tmp_path: Path) -> None:
    def change(sample: PackedSample) -> PackedSample:
        assert sample.mask is not None
        mask = sample.mask.copy()
        if sample.key == "b":
            mask[mask.size // 2] ^= 1
        return replace_mask(sample, mask, dtype="uint8")

    folder = rewritten(made / "out", tmp_path / "out", change)
    assert verify_folder(folder).findings == []  # it is what was written
    found = faults(folder, made / "source")
    assert found["a"] == ()
    assert found["b"] == ("the mask differs from that of its original in 1 of 76,032 voxels",)


def test_a_mask_that_its_json_does_not_know_is_none(made: Path, tmp_path: Path) -> None:
    def change(sample: PackedSample) -> PackedSample:
        stated = {n: v for n, v in json.loads(sample.metadata).items() if n != "mask"}
        return replace(sample, metadata=json.dumps(stated).encode())

    folder = rewritten(made / "out", tmp_path / "out", change)
    wanted = ("it has no mask, and its original has one",)
    assert faults(folder, made / "source") == {"a": wanted, "b": wanted}


def test_masks_of_another_type_are_said_to_be(made: Path, tmp_path: Path) -> None:
    def change(sample: PackedSample) -> PackedSample:
        assert sample.mask is not None
        return replace_mask(sample, sample.mask.astype("<u2").view(np.uint8), dtype="uint16")

    plan = Plan.load(made / "out")
    assert plan.masks is not None
    wide = replace(plan, masks=replace(plan.masks, dtype="uint16"))
    folder = rewritten(made / "out", tmp_path / "out", change, wide)
    assert faults(folder, made / "source") == {"a": (), "b": ()}
    (folder / "plan.json").unlink()
    Plan.create(folder, plan)
    wanted = ("the mask is uint16; wanted uint8",)
    assert faults(folder, made / "source") == {"a": wanted, "b": wanted}


def test_a_mask_that_is_gone_is_a_fault_of_its_sample(made: Path, tmp_path: Path) -> None:
    source = shutil.copytree(made / "source", tmp_path / "source")
    (*_, gone) = [*source.glob("labels/b.nii.gz"), *source.glob("b/segmentations/lung.nii.gz")]
    gone.unlink()
    found = faults(made / "out", source)
    assert found["a"] == ()
    assert gone.relative_to(source).as_posix() in found["b"][0]


def test_originals_are_drawn_with_their_masks(made: Path) -> None:
    views: list[Any] = [view for _, view in inspect_samples(made / "out")]
    originals = list(draw_originals(made / "out", made / "source", ["a", "b"]))
    for name, view, original in zip("ab", views, originals, strict=True):
        assert original.mask is not None
        assert np.array_equal(original.mask, labels_of(SCANS[name]))
        assert view.mask.shape == SPEC.shape_hwd
        assert set(np.unique(view.mask)) <= {0, *LABELS.values()}
        # Where the stored mask says bone, the stored volume is dense.
        assert view.hu[view.mask == LABELS["bone"]].mean() > 200
        assert view.hu[view.mask == LABELS["lung"]].mean() < -500


def test_compressed_masks_are_those_that_were_stored(made: Path, tmp_path: Path) -> None:
    raw = made / "out"
    small, tar = compress_folder(raw, tmp_path / "small", "rice"), "shard-000000.tar"
    for sample, plain in zip(samples_of_tar(small / tar), samples_of_tar(raw / tar), strict=True):
        found, wanted = (stored_mask(one, SPEC.stored_shape) for one in (sample, plain))
        assert found is not None
        assert wanted is not None
        assert found.dtype == wanted.dtype
        assert np.array_equal(found, wanted)
        assert wanted.any()
    with pytest.raises(DecodeError, match=r"b\.segz cannot be decoded: its .*; make the sample"):
        stored_mask(sample, (36, 48, 45))
    content = bytearray((small / tar).read_bytes())
    content[sample.members["segz"].offset + sample.members["segz"].size_bytes - 1] ^= 1
    (small / tar).write_bytes(content)
    *_, damaged = samples_of_tar(small / tar)
    with pytest.raises(DecodeError, match=r"b\.segz cannot be decoded: its tile \d+ does not have"):
        stored_mask(damaged, SPEC.stored_shape)
