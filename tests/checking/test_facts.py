"""What is said about samples and files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checking_cases import build, raw_tar
from typer.testing import CliRunner

from built import read_samples
from ctgpu.checking.facts import inspect_samples, stored_mask
from ctgpu.checking.sheet import label_words
from ctgpu.cli.commands import app
from ctgpu.errors import DecodeError, UsageError
from ctgpu.sources.tar_samples import samples_of_tar
from ctgpu.testing.ctrate import LABEL_NAMES
from stored import chest_as, save
from support.compressed_folders import compress_folder
from support.masks import LABELS, mask_of, with_masks
from support.phantoms import SPACING_MM


def test_facts_of_a_preprocessed_sample(tmp_path: Path, source: Path) -> None:
    folder = build(tmp_path / "out", source)
    (facts, view), (second, _) = inspect_samples(folder)
    assert (facts.key, facts.file, second.key) == (
        *("valid_1_a_1", "shard-000000.tar"),
        "valid_2_a_1",
    )
    assert (facts.shape, facts.layout, facts.dtype) == ((80, 72, 40), "HWD", "float16")
    assert facts.members["bin"] == 2 * 80 * 72 * 40
    assert facts.preprocessed
    assert -1 <= facts.lowest < facts.mean < facts.highest <= 1
    assert facts.spacing_mm == pytest.approx((4.0, 4.0, 6.0), rel=0.03)
    assert facts.labels is not None
    assert len(facts.labels) == 18
    assert "Trachea" in facts.report
    assert facts.source["spacing_mm"] == list(SPACING_MM)
    assert facts.engine is not None
    assert facts.engine["name"] == "cpu"
    assert -1000 <= view.hu.min() < -800 < 500 < view.hu.max() <= 1000
    assert view.labels == facts.labels
    assert json.dumps(facts.to_dict())


def test_either_layout_is_drawn_the_same(tmp_path: Path, source: Path) -> None:
    views = [
        next(inspect_samples(build(tmp_path / layout, source, layout)))[1]
        for layout in ("HWD", "DHW")
    ]
    assert np.array_equal(views[0].hu, views[1].hu)
    assert views[0].spacing_mm == views[1].spacing_mm


@pytest.mark.parametrize("where", ["{out}/shard-000000.tar", "{out}/shard-*.tar", "{out}"])
def test_tars_patterns_and_folders_are_found(tmp_path: Path, source: Path, where: str) -> None:
    folder = build(tmp_path / "out", source)
    assert len(list(inspect_samples(where.format(out=folder), num_samples=1))) == 1


def test_a_volume_file_is_looked_at_as_it_is(source: Path) -> None:
    (path,) = source.rglob("valid_1_a_1.nii.gz")
    ((facts, view),) = inspect_samples(path)
    assert (facts.shape, facts.dtype, facts.preprocessed) == ((90, 80, 60), "int16", False)
    assert view.hu.shape == (90, 80, 60)
    assert facts.labels is None


def test_what_names_nothing_is_refused(tmp_path: Path) -> None:
    for where in (tmp_path, tmp_path / "x-*.tar"):
        with pytest.raises(UsageError, match="names no tar"):
            list(inspect_samples(where))


def test_what_a_header_contradicts_is_among_the_facts(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", chest_as("LPS"), pixdim=[1, 2, 3, 5, 1, 1, 1, 1])
    ((facts, _),) = inspect_samples(path)
    assert len(facts.contradictions) == 1
    assert "3.5 × 3 × 5 mm" in facts.contradictions[0]
    shown = CliRunner().invoke(app, ["inspect", str(path)])
    assert shown.exit_code == 0
    assert "contradiction" in shown.stdout
    assert "LPS, tilted by 0°, sheared by 0°" in shown.stdout
    line = json.loads(CliRunner().invoke(app, ["inspect", str(path), "--json"]).stdout)
    assert line["orientation"] == {"codes": "LPS", "tilt_degrees": 0.0, "shear_degrees": 0.0}


@pytest.mark.parametrize(
    ("count", "stated", "names"),
    [
        (18, None, LABEL_NAMES),
        (3, ["x", "y", "z"], ("x", "y", "z")),
        (18, [f"organ {n}" for n in range(18)], tuple(f"organ {n}" for n in range(18))),
        (3, None, ("class 0", "class 1", "class 2")),
        (3, ["x", "y"], ("class 0", "class 1", "class 2")),
        (2, ["x", "x"], ("class 0", "class 1")),
    ],
)
def test_labels_are_shown_by_their_names_or_numbers(
    tmp_path: Path, count: int, stated: list[str] | None, names: tuple[str, ...]
) -> None:
    labels = np.zeros(count, "<f4")
    labels[-1] = 1
    path = raw_tar(tmp_path / "a.tar", labels.tobytes())
    if stated is not None:
        (tmp_path / "manifest.json").write_text(json.dumps({"class_names": stated}))
    ((facts, view),) = inspect_samples(path)
    assert facts.labels == dict(zip(names, labels.tolist(), strict=True))
    assert view.labels == facts.labels
    assert label_words(facts.labels) == [names[-1]]


@pytest.mark.parametrize("labels", [None, b""])
def test_a_sample_without_classes_shows_no_labels(tmp_path: Path, labels: bytes | None) -> None:
    ((facts, view),) = inspect_samples(raw_tar(tmp_path / "a.tar", labels))
    assert facts.labels is None
    assert view.labels is None
    assert json.loads(json.dumps(facts.to_dict()))["labels"] is None


def test_labels_that_are_no_float32_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DecodeError, match=r"one\.cls has 1 bytes; wanted little-endian float32"):
        list(inspect_samples(raw_tar(tmp_path / "a.tar", b"3")))


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("layout", ["HWD", "DHW"])
def test_the_voxels_of_each_label_are_counted(
    tmp_path: Path, source: Path, dtype: Any, layout: str
) -> None:
    folder = with_masks(build(tmp_path / "out", source, layout), tmp_path / "masked", dtype)
    ((facts, view),) = inspect_samples(folder, num_samples=1)
    volume = np.transpose(read_samples(folder)[facts.key].array, (1, 2, 0))
    mask = mask_of(volume if layout == "DHW" else read_samples(folder)[facts.key].array, dtype)
    assert view.mask is not None
    assert np.array_equal(view.mask, mask)
    assert facts.mask == {
        name: np.count_nonzero(mask == number) for name, number in LABELS[dtype].items()
    }
    assert json.loads(json.dumps(facts.to_dict()))["mask"] == facts.mask
    small = compress_folder(folder, tmp_path / "small", "pack")
    sample = samples_of_tar(small / "shard-000000.tar")[0]
    stored = stored_mask(sample, facts.shape)
    assert stored is not None
    assert np.array_equal(stored, mask.transpose(2, 0, 1) if layout == "DHW" else mask)
    # Of the tars alone, the numbers.
    for name in ("plan.json", "manifest.json"):
        (folder / name).unlink()
    ((alone, _),) = inspect_samples(folder / "shard-000000.tar", num_samples=1)
    assert alone.mask == {f"label {LABELS[dtype][name]}": n for name, n in facts.mask.items()}


def test_what_another_writer_calls_seg_is_no_mask(tmp_path: Path) -> None:
    path = raw_tar(tmp_path / "a.tar", None, seg=b"anything")
    ((facts, view),) = inspect_samples(path)
    assert (facts.mask, view.mask) == (None, None)
    assert facts.members["seg"] == 8
    path = raw_tar(tmp_path / "a.tar", None, seg=b"anything", mask={"dtype": "uint8"})
    with pytest.raises(DecodeError, match=r"one\.seg has 8 bytes; wanted uint8 for each of 24"):
        next(inspect_samples(path))
