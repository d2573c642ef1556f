"""Data sets of every kind of contract: what was built passes, what is foreign is found."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from checking_cases import raw_tar

import ctgpu
from ctgpu.buffers import BufferPool
from ctgpu.checking.compare import Comparison, compare_samples
from ctgpu.checking.facts import SampleFacts, inspect_samples
from ctgpu.checking.sheet import View, draw_originals
from ctgpu.checking.verify import verify_folder
from ctgpu.errors import DecodeError
from ctgpu.sources.tar_samples import fetch_volume, samples_of_tar
from ctgpu.spec import Spec
from stored import SPACING_MM, chest_as, save
from support.building import rewrite

KEY = "scan_1"
#: Three unequal axes; the first is cropped by an even number, the last padded.
SPEC = Spec(target_spacing_mm=(7.0, 6.0, 8.0), shape_hwd=(34, 40, 41))
OWN = Spec(
    target_spacing_mm=(7.0, 6.0, 8.0), shape_hwd=(34, 40, 41), hu_window=None, normalise="minmax"
)
CONTRACTS = {
    "orientation": replace(SPEC, orientation="PLS", layout="DHW"),
    "origin": replace(SPEC, grid="origin"),
    "contain": replace(SPEC, fit="contain"),
    "stretch": Spec(shape_hwd=(34, 40, 41), fit="stretch", output_range=(0, 1)),
    "standardised": replace(SPEC, output_range=(0, 1), standardise=(0.45, 0.22)),
    "percentiles": replace(OWN, normalise="percentiles", percentiles=(0.5, 99.5)),
    "percentiles in uint8": replace(
        OWN, normalise="percentiles", percentiles=(1, 99), dtype="uint8", clip="after"
    ),
    "minmax": OWN,
    "zscore": replace(SPEC, normalise="zscore", dtype="bfloat16"),
    "int16": replace(SPEC, dtype="int16", orientation="LPS"),
    "all HU": replace(SPEC, hu_window=None, dtype="int16"),
    "uint8": replace(SPEC, dtype="uint8", hu_window=(-1350, 150)),
    "bfloat16": replace(SPEC, dtype="bfloat16", layout="DHW"),
    "2^-10": replace(SPEC, precision="2^-10", layout="DHW"),
    "2^-11 of a z-score": replace(SPEC, precision="2^-11", normalise="zscore"),
}


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One chest that is stored as RAS."""
    folder = tmp_path_factory.mktemp("scans")
    save(folder / f"{KEY}.nii", chest_as("RAS"))
    return folder


@pytest.fixture(scope="module")
def built(scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The data set of a contract, built once."""
    root = tmp_path_factory.mktemp("built")

    def of(name: str) -> Path:
        folder = root / name / "out"
        if not folder.exists():
            ctgpu.build(folder, source=scans, spec=CONTRACTS[name], device="cpu")
        return folder

    return of


def compared(folder: Path, scans: Path, spec: Spec | None = None) -> Comparison:
    (comparison,) = compare_samples(folder, source=scans, spec=spec)
    return comparison


def looked_at(where: Path) -> tuple[SampleFacts, View]:
    (pair,) = inspect_samples(where)
    return pair


@pytest.mark.parametrize("name", CONTRACTS)
def test_what_was_built_passes(built: Callable[[str], Path], scans: Path, name: str) -> None:
    folder = built(name)
    assert verify_folder(folder).findings == []
    comparison = compared(folder, scans)
    assert comparison.passed, comparison.faults


@pytest.mark.parametrize("name", CONTRACTS)
def test_every_contract_is_shown_in_hu(
    built: Callable[[str], Path], scans: Path, name: str
) -> None:
    spec, folder = CONTRACTS[name], built(name)
    facts, view = looked_at(folder)
    assert facts.preprocessed
    assert (facts.dtype, facts.shape) == (spec.dtype, spec.stored_shape)
    (original,) = draw_originals(folder, scans, [KEY])
    assert view.hu.shape == spec.shape_hwd
    assert original.spacing_mm == pytest.approx(SPACING_MM)
    lo, hi = spec.hu_window or (original.hu.min(), original.hu.max())
    if name.startswith("percentiles"):
        lo, hi = np.percentile(original.hu, spec.percentiles)
    # The middle of the output is that of the patient: the heart and lungs around it.
    middle = tuple(slice(n // 2 - 6, n // 2 + 6) for n in view.hu.shape)
    in_original = tuple(slice(n // 2 - 12, n // 2 + 12) for n in original.hu.shape)
    wanted = np.median(np.clip(original.hu[in_original], lo, hi))
    assert np.median(view.hu[middle]) == pytest.approx(wanted, abs=25)
    assert view.hu.min() >= lo - 10
    assert view.hu.max() <= hi + 10


def test_the_affine_of_a_sample_leads_where_the_output_leads(
    built: Callable[[str], Path],
) -> None:
    for name, codes in (("orientation", "PLS"), ("int16", "LPS"), ("uint8", "RAS")):
        facts, _ = looked_at(built(name))
        assert facts.orientation is not None
        assert facts.orientation.codes == codes


@pytest.mark.parametrize(
    ("name", "contract", "cause"),
    [
        (
            "int16",
            {"orientation": "RAS"},
            "in the order (0, 1, 2) of the reference's, 0 and 1 backwards",
        ),
        ("orientation", {"orientation": "PRS"}, "(0, 1, 2) of the reference's, 2 backwards"),
        ("int16", {"dtype": "float16"}, "the volume is int16 (34, 40, 41); wanted float16"),
        ("bfloat16", {"dtype": "float16"}, "is bfloat16 (41, 34, 40); wanted float16 (41, 34, 40)"),
        ("uint8", {"hu_window": (-1000, 1000)}, "another HU window"),
        ("int16", {"hu_window": (-160, 240)}, "lies elsewhere"),
        ("standardised", {"standardise": (0.5, 0.5)}, "another HU window"),
        ("origin", {"grid": "extent"}, "lies elsewhere"),
        ("contain", {"fit": "spacing"}, "lies elsewhere"),
        ("percentiles", {"percentiles": (5, 95)}, "another HU window"),
        ("zscore", {"hu_window": (-500, 500)}, "another HU window"),
        ("uint8", {"pad_value": 1.0}, "of its voxels differ"),
        (
            "2^-10",
            {"precision": "exact"},
            "its precision is 2^-10, and that of the reference exact",
        ),
        (
            "2^-10",
            {"precision": "2^-11"},
            "its precision is 2^-10, and that of the reference 2^-11",
        ),
    ],
    ids=str,
)
def test_what_was_made_to_another_contract_is_found(
    built: Callable[[str], Path], scans: Path, name: str, contract: dict[str, object], cause: str
) -> None:
    comparison = compared(built(name), scans, replace(CONTRACTS[name], **contract))
    assert not comparison.passed
    assert cause in comparison.faults[0]


@pytest.mark.parametrize("name", ["int16", "uint8", "bfloat16"])
def test_a_damaged_voxel_is_found(
    built: Callable[[str], Path], scans: Path, tmp_path: Path, name: str
) -> None:
    def spoil(key: str, extension: str, content: bytes) -> bytes:
        middle = len(content) // 2
        return (
            content[:middle] + b"\x3c\x3d" + content[middle + 2 :]
            if extension == "bin"
            else content
        )

    folder = rewrite(built(name), tmp_path / "bad", spoil)
    assert not compared(folder, scans).passed


def test_a_tar_alone_says_how_it_is_stored(built: Callable[[str], Path], tmp_path: Path) -> None:
    for name in ("int16", "bfloat16", "uint8"):
        tar = tmp_path / f"{name}.tar"
        tar.write_bytes((built(name) / "shard-000000.tar").read_bytes())
        facts, view = looked_at(tar)
        assert facts.dtype == name
        assert facts.preprocessed
        assert -1001 <= view.hu.min() < view.hu.max() <= 1001
        (sample,) = samples_of_tar(tar)
        pool = BufferPool()
        with pytest.raises(DecodeError, match=f"bytes of {name}; wanted float16"):
            fetch_volume(sample, tar.name, pool.acquire, facts.shape).decode(pool)


def test_raw_and_preprocessed_int16_are_told_apart(tmp_path: Path) -> None:
    raw = raw_tar(tmp_path / "raw/a.tar", None)
    facts, _ = looked_at(raw)
    assert (facts.dtype, facts.preprocessed) == ("int16", False)
    (tmp_path / "raw/manifest.json").write_text(
        json.dumps({"preprocessed": True, "sample_shape": [2, 3, 4]})
    )
    assert looked_at(raw)[0].preprocessed
