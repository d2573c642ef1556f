"""What a build makes of each field of the contract, and says of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
import pytest
from typer.testing import CliRunner

import ctgpu
from built import read_samples
from ctgpu.cli.commands import app
from ctgpu.errors import MismatchError, UsageError
from ctgpu.shards.plan import Plan
from ctgpu.spec import Spec
from ctgpu.volume.stored import numbers_of, numpy_dtype
from stored import chest_as, save

KEY = "valid_1_a_1"
#: Three unequal axes, none cropped.
SPEC = Spec(target_spacing_mm=(6.0, 5.0, 7.0), shape_hwd=(44, 52, 46))


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One chest, stored as RAS."""
    folder = tmp_path_factory.mktemp("scans")
    save(folder / f"{KEY}.nii", chest_as("RAS"))
    return folder


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same chest as an array that does not say how it lies: as LPS."""
    folder = tmp_path_factory.mktemp("bare")
    voxels = np.asarray(chest_as("LPS").dataobj)
    np.savez(folder / f"{KEY}.npz", volume=voxels, spacing=np.array([3.5, 3.0, 5.0]))
    return folder


def made(folder: Path, source: Path, spec: Spec, **options: Any) -> tuple[npt.NDArray[Any], Any]:
    """The stored numbers of the one sample as (H, W, D) float32, and its JSON."""
    report = ctgpu.build(folder, source=source, spec=spec, device="cpu", **options)
    assert report.failures == []
    sample = read_samples(folder)[KEY]
    stored = np.frombuffer(sample.volume, numpy_dtype(spec.dtype)).reshape(spec.stored_shape)
    numbers = numbers_of(stored, spec.dtype)
    return numbers if spec.layout == "HWD" else numbers.transpose(1, 2, 0), sample.metadata


def test_an_orientation_turns_the_volume_and_says_so(tmp_path: Path, scans: Path) -> None:
    as_stored, before = made(tmp_path / "stored", scans, SPEC)
    turned, after = made(tmp_path / "turned", scans, replace(SPEC, orientation="LPS"))
    np.testing.assert_allclose(turned, as_stored[::-1, ::-1], atol=2e-3)
    assert "orientation" not in before
    assert after["orientation"] == "LPS"
    assert after["source"] == before["source"]
    assert "".join(nibabel.aff2axcodes(np.array(after["affine"]))) == "LPS"


def test_spacing_and_shape_follow_the_axes_of_the_output(tmp_path: Path, scans: Path) -> None:
    spec = Spec(
        target_spacing_mm=(7.0, 5.0, 6.0), shape_hwd=(46, 52, 44), orientation="SPL", layout="DHW"
    )
    turned, facts = made(tmp_path / "turned", scans, spec)
    lps, _ = made(tmp_path / "lps", scans, replace(SPEC, orientation="LPS"))
    # Blended in another order of axes.
    np.testing.assert_allclose(turned, lps.transpose(2, 1, 0), atol=2e-3)
    assert facts["spacing_mm"] == pytest.approx([7.0, 5.0, 6.0], rel=0.03)
    assert facts["source"]["shape"] == [72, 80, 60]
    assert facts["source"]["spacing_mm"] == pytest.approx([3.5, 3.0, 5.0])


def test_what_states_no_orientation_is_turned_only_if_one_is_assumed(
    tmp_path: Path, bare: Path, scans: Path
) -> None:
    spec = replace(SPEC, orientation="RAS")
    report = ctgpu.build(tmp_path / "refused", source=bare, spec=spec, device="cpu")
    (failure,) = report.failures
    assert "--assume-orientation" in failure["message"]
    assert "RAS" in failure["message"]

    turned, facts = made(tmp_path / "assumed", bare, spec, assume_orientation="lps")
    wanted, _ = made(tmp_path / "wanted", scans, spec)
    assert np.array_equal(turned, wanted)
    assert facts["source"]["affine_source"] == "assumed"
    assert facts["source"]["orientation"] == "LPS"
    assert Plan.load(tmp_path / "assumed").selection["assume_orientation"] == "LPS"
    with pytest.raises(MismatchError, match=r"selection\.assume_orientation: found 'LPS'"):
        ctgpu.build(tmp_path / "assumed", source=bare, device="cpu", assume_orientation="RAS")


def test_what_was_not_assumed_is_not_in_a_plan(tmp_path: Path, scans: Path) -> None:
    made(tmp_path / "shards", scans, SPEC)
    assert "assume_orientation" not in Plan.load(tmp_path / "shards").selection
    with pytest.raises(MismatchError, match="assume_orientation: found None, wanted 'LPS'"):
        ctgpu.build(tmp_path / "shards", source=scans, device="cpu", assume_orientation="LPS")


@pytest.mark.parametrize("layout", ["HWD", "DHW"])
@pytest.mark.parametrize("dtype", ["bfloat16", "int16", "uint8"])
def test_every_type_holds_the_same_volume(
    tmp_path: Path, scans: Path, dtype: Any, layout: Any
) -> None:
    plain = replace(SPEC, layout=layout)
    wanted, _ = made(tmp_path / "float16", scans, plain)
    spec = replace(plain, dtype=dtype)
    numbers, facts = made(tmp_path / dtype, scans, spec)
    scale, offset = spec.scale_offset
    hu = (numbers.astype(np.float64) - offset) / scale
    step_hu = {"bfloat16": 4.0, "int16": 0.5, "uint8": 1000 / 255}[dtype]
    # Both are rounded: float16 to half a HU at most.
    assert np.abs(hu - 1000.0 * wanted).max() <= step_hu + 0.5
    assert facts["dtype"] == facts["volume_dtype"] == dtype
    manifest = json.loads((tmp_path / dtype / "manifest.json").read_text())
    assert manifest["sample_dtype"] == dtype


def test_what_a_volume_was_normalised_by_is_recorded(tmp_path: Path, scans: Path) -> None:
    voxels = np.asarray(chest_as("RAS").dataobj).astype(np.float64)
    own = replace(SPEC, hu_window=None, normalise="zscore", shape_hwd=(60, 60, 60))
    score, facts = made(tmp_path / "zscore", scans, own)
    known = facts["normalisation"]
    assert known["mean"] == pytest.approx(voxels.mean(), rel=1e-6)
    assert known["std"] == pytest.approx(voxels.std(), rel=1e-6)
    assert known["scale"] == pytest.approx(1 / voxels.std(), rel=1e-6)
    lowest = (voxels.min() - voxels.mean()) / voxels.std()
    assert known["pad_value"] == pytest.approx(lowest, rel=1e-6)
    assert score[0, 0, 0] == np.float16(lowest)  # padding

    spec = replace(own, normalise="percentiles", percentiles=(1, 90), output_range=(0, 1))
    share, facts = made(tmp_path / "percentiles", scans, spec)
    lo, hi = np.percentile(voxels, (1, 90))
    assert facts["normalisation"]["percentile_lo"] == pytest.approx(lo)
    assert facts["normalisation"]["percentile_hi"] == pytest.approx(hi)
    assert (share.min(), share.max()) == (0, 1)


def test_a_volume_of_one_value_cannot_be_normalised_by_itself(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.full((9, 8, 7), 40, np.int16), np.diag([3.0, 3, 3, 1]))
    save(tmp_path / "scans" / f"{KEY}.nii", image)
    spec = replace(SPEC, hu_window=None, normalise="minmax")
    report = ctgpu.build(
        tmp_path / "shards", source=tmp_path / "scans", spec=spec, device="cpu", hu_guard="warn"
    )
    (failure,) = report.failures
    assert "'minmax'" in failure["message"]
    assert "the volume's range is 0 HU" in failure["message"]


def test_another_contract_is_refused_field_by_field(tmp_path: Path, scans: Path) -> None:
    folder = tmp_path / "shards"
    made(folder, scans, replace(SPEC, dtype="int16"))
    # A field that plans leave out at its default still differs from one that they state.
    with pytest.raises(MismatchError, match=r"spec\.dtype: found 'int16', wanted 'float16'"):
        ctgpu.build(folder, source=scans, spec=SPEC, device="cpu")
    other = replace(SPEC, dtype="int16", orientation="LPS")
    with pytest.raises(MismatchError, match=r"spec\.orientation: found 'stored', wanted 'LPS'"):
        ctgpu.build(folder, source=scans, spec=other, device="cpu")
    assert ctgpu.build(folder, source=scans, device="cpu").written == 0


def test_all_of_it_is_said_on_the_command_line(tmp_path: Path, scans: Path) -> None:
    line = (
        "--spacing 6,5,7 --shape 50,52,46 --orientation lps --grid origin --hu-window none "
        "--normalise percentiles --percentiles 1,99 --output-range 0,1 --standardise 0.5,0.25 "
        "--pad-value -3 --dtype bfloat16 --layout DHW --device cpu"
    )
    shards = tmp_path / "shards"
    ran = CliRunner().invoke(
        app, ["build", "--source", str(scans), "--output-dir", str(shards), *line.split()]
    )
    assert ran.exit_code == 0, ran.output
    assert Plan.load(shards).spec == Spec(
        target_spacing_mm=(6, 5, 7),
        shape_hwd=(50, 52, 46),
        orientation="LPS",
        grid="origin",
        hu_window=None,
        normalise="percentiles",
        percentiles=(1, 99),
        output_range=(0, 1),
        standardise=(0.5, 0.25),
        pad_value=-3,
        dtype="bfloat16",
        layout="DHW",
    )


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--pad-value black", "--pad-value is 'black'; write a number, such as -1"),
        ("--hu-window nothing", "--hu-window is 'nothing'; write 2 numbers"),
        ("--orientation LRS", "--orientation is 'LRS'; it is stored, or three letters"),
        ("--assume-orientation chest", "--assume-orientation is 'CHEST'; it is three letters"),
        ("--dtype int16 --output-range 0,1", "--dtype is 'int16' and output_range is (0.0, 1.0)"),
        ("--grid origin --fit stretch", "--grid is 'origin' and fit is 'stretch'"),
        ("--normalise percentiles --percentiles 1,99", "--hu-window is (-1000.0, 1000.0) and"),
        ("--dtype float32", "--dtype is 'float32'; it is one of float16, bfloat16"),
    ],
)
def test_a_contradiction_is_one_sentence(
    tmp_path: Path, scans: Path, options: str, sentence: str
) -> None:
    shards = tmp_path / "shards"
    ran = CliRunner().invoke(
        app, ["build", "--source", str(scans), "--output-dir", str(shards), *options.split()]
    )
    assert isinstance(ran.exception, UsageError)
    assert sentence in str(ran.exception)
    assert not shards.exists()


def test_volumes_that_are_adopted_have_no_other_contract(tmp_path: Path, scans: Path) -> None:
    made(tmp_path / "first", scans, SPEC)
    pattern = tmp_path / "first" / "shard-*.tar"
    with pytest.raises(UsageError, match=r"adopted as they are.*dtype 'int16' is asked for"):
        ctgpu.convert_tars(pattern, tmp_path / "other", spec=replace(SPEC, dtype="int16"))
    made(tmp_path / "second", scans, replace(SPEC, output_range=(0.0, 1.0)))
    pattern = tmp_path / "second" / "shard-*.tar"
    with pytest.raises(UsageError, match=r"output_range \[0.0, 1.0\] is stated in"):
        ctgpu.convert_tars(pattern, tmp_path / "other")
    assert not (tmp_path / "other").exists()
