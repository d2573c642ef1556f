"""One scan in every format that is read gives one sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK

import ctgpu
from built import Sample, read_samples
from ctgpu.spec import Spec
from ctgpu.testing.ctrate import chest_phantom
from support.itk_images import SPACING_MM, image_of

SPEC = Spec(target_spacing_mm=(1, 1, 2), shape_hwd=(24, 28, 20), orientation="RAS")
# NIfTI holds float32, and these are the same there.
EXACT_SPACING_MM = (0.75, 0.625, 1.5)
FORMATS = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd", ".nhdr")


def build(source: Path, folder: Path, **options: Any) -> dict[str, Sample]:
    options = {"spec": SPEC, "dataset": "plain", "device": "cpu"} | options
    report = ctgpu.build(output_dir=folder, source=source, **options)
    assert report.exit_code == 0, report
    return read_samples(folder)


@pytest.mark.parametrize("direction", ["LPS", "RAS", "SLP"])
@pytest.mark.parametrize("compress", [False, True], ids=["plain", "packed"])
def test_the_same_bits_of_every_format(tmp_path: Path, compress: bool, direction: str) -> None:
    image = image_of(chest_phantom((40, 36, 30), SPACING_MM, seed=4), direction)
    image.SetSpacing(EXACT_SPACING_MM)
    made = {}
    for suffix in FORMATS:
        source = tmp_path / suffix[1:]
        source.mkdir()
        SimpleITK.WriteImage(image, str(source / f"a{suffix}"), useCompression=compress)
        options = {"axes": "stored"} if direction == "SLP" else {}
        made[suffix] = build(source, tmp_path / f"out{suffix}", **options)["a"]
    for suffix, sample in made.items():
        assert sample.volume == made[".nii.gz"].volume, suffix
        assert sample.metadata["shape"] == [24, 28, 20]


def test_a_bare_array_takes_spacing_and_axes_from_its_description(tmp_path: Path) -> None:
    voxels = chest_phantom((40, 36, 30), SPACING_MM, seed=4)
    (tmp_path / "arrays").mkdir()
    np.save(tmp_path / "arrays" / "a.npy", np.ascontiguousarray(voxels.transpose(2, 0, 1)))
    (tmp_path / "mine.toml").write_text(
        'name = "mine"\n[volumes]\norientation = "LPS"\n'
        '[arrays]\naxes = "DHW"\nspacing_mm = [0.7, 0.8, 1.5]\n'
    )
    (tmp_path / "image").mkdir()
    SimpleITK.WriteImage(image_of(voxels), str(tmp_path / "image" / "a.mha"))
    bare = build(tmp_path / "arrays", tmp_path / "out", dataset=tmp_path / "mine.toml")
    image = build(tmp_path / "image", tmp_path / "out-image")
    assert bare["a"].volume == image["a"].volume


@pytest.mark.slow
def test_real_ct_in_every_format(real_ct: Path, tmp_path: Path) -> None:
    path = sorted(real_ct.glob("*.nii.gz"))[0]
    image = SimpleITK.ReadImage(str(path))
    made = {}
    for suffix in FORMATS:
        source = tmp_path / suffix[1:]
        source.mkdir()
        SimpleITK.WriteImage(image, str(source / f"a{suffix}"))
        made[suffix] = build(source, tmp_path / f"out{suffix}", spec=Spec(orientation="RAS"))
    for suffix, samples in made.items():
        assert samples["a"].volume == made[".nii.gz"]["a"].volume, suffix
