"""INSPECT as its release is laid out: volumes by image, tables by impression."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

import ctgpu
from built import read_samples
from ctgpu.data_sets import built_in
from ctgpu.errors import UsageError
from ctgpu.loading import make_loader
from ctgpu.sources.folder import FolderSource
from ctgpu.sources.patients import patient_of
from support.data_set_copies import (
    INSPECT_LABELS,
    SHAPE_HWD,
    SPACING_MM,
    build,
    check,
    lay_out_inspect,
    marked,
    nothing_to_do,
    relabelled,
    write_nifti,
    write_table,
)

NAN = float("nan")
CLASSES = ["pe_positive_nlp", "pe_positive", "pe_acute", "pe_subsegmentalonly"]
Rows = Mapping[str, tuple[str, str, str, Mapping[str, object]]]
#: An image's name is no impression's, though one of each is the same.
ROWS: Rows = {
    "PE452890e": (
        *("I1", "135900001", "train"),
        {"pe_positive_nlp": "TRUE", "pe_positive": "True", "pe_acute": 1, "12_month_PH": "TRUE"},
    ),
    "PE4528910": (
        *("I2", "135900002", "train"),
        {"pe_positive_nlp": "FALSE", "pe_positive": "Censored", "pe_acute": 0, "tte_PH": 365},
    ),
    "PE4528911": (
        *("PE4528910", "135900001", "train"),
        {"pe_positive_nlp": "false", "pe_positive": "CENSOR", "pe_subsegmentalonly": "1.0"},
    ),
    "PE4528912": ("I4", "135900004", "valid", {"pe_positive_nlp": "True"}),
    "PE4528913": ("I5", "135900005", "test", {}),
}
LABELS = {
    "PE452890e": [1, 1, 1, NAN],
    "PE4528910": [0, NAN, 0, NAN],
    "PE4528911": [0, NAN, NAN, 1],
    "PE4528912": [1, NAN, NAN, NAN],
    "PE4528913": [NAN] * 4,
}


def lay_out(root: Path, rows: Rows = ROWS, **options: Any) -> Path:
    volumes = {name: marked(seed) for seed, name in enumerate(ROWS)}
    return lay_out_inspect(root, volumes, rows, **options)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lay_out(tmp_path_factory.mktemp("inspect") / "prog-3")


def made(folder: Path, source: Path, **options: Any) -> ctgpu.BuildReport:
    return build(folder, source, dataset="inspect", **options)


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_each_split_is_told_by_the_table_that_the_mapping_leads_to(
    tmp_path: Path, source: Path, split: str
) -> None:
    report = made(tmp_path / "out", source, split=split)
    own = [name for name, (_, _, stated, _) in ROWS.items() if stated == split]
    samples = read_samples(tmp_path / "out")
    assert sorted(samples) == sorted(own)
    assert report.exit_code == 0
    assert report.manifest["class_names"] == CLASSES
    for name, sample in samples.items():
        assert sample.labels.tobytes() == np.array(LABELS[name], "<f4").tobytes()
        text = f'IMPRESSION: of "{ROWS[name][0]}",\nsecond line'
        assert (sample.text, sample.metadata["report"]) == (text, {"impressions": text})
        facts = sample.metadata["source"]
        assert (facts["spacing_source"], facts["spacing_mm"]) == ("header", list(SPACING_MM))
        assert (facts["orientation"], facts["affine_source"]) == ("RAS", "header")
        assert facts["shape"] == list(SHAPE_HWD)
    check(tmp_path / "out", source, len(own))


def test_the_voxels_are_those_of_a_folder_without_a_description(
    tmp_path: Path, source: Path
) -> None:
    made(tmp_path / "out", source, split="train")
    for seed, name in enumerate([*ROWS][:3]):
        write_nifti(tmp_path / "plain" / f"{name}.nii.gz", marked(seed), codes="RAS")
    build(tmp_path / "other", tmp_path / "plain")
    found, wanted = read_samples(tmp_path / "out"), read_samples(tmp_path / "other")
    assert sorted(found) == sorted(wanted) == sorted([*ROWS][:3])
    assert all(sample.volume == wanted[name].volume for name, sample in found.items())


def test_the_folder_of_the_tables_may_be_the_source(tmp_path: Path, source: Path) -> None:
    made(tmp_path / "top", source, split="train")
    made(tmp_path / "full", source / "full", split="train")
    top, full = read_samples(tmp_path / "top"), read_samples(tmp_path / "full")
    assert list(top) == list(full)
    for name, sample in top.items():
        assert (sample.volume, sample.text) == (full[name].volume, full[name].text)
        assert sample.labels.tobytes() == full[name].labels.tobytes()


def test_the_sample_beside_it_doubles_no_scan(tmp_path: Path) -> None:
    root = lay_out(tmp_path / "copy")
    lay_out(root, folder="sample")
    made(tmp_path / "out", root, split="train")
    assert len(read_samples(tmp_path / "out")) == 3
    made(tmp_path / "sample", root / "sample", split="valid")
    assert [*read_samples(tmp_path / "sample")] == ["PE4528912"]


def test_the_folder_of_volumes_alone_is_not_enough(tmp_path: Path, source: Path) -> None:
    with pytest.raises(UsageError, match=r"column split of full/splits_20250611\.tsv.*not have"):
        made(tmp_path / "out", source / "full/CTPA", split="train")
    assert not (tmp_path / "out/plan.json").exists()


def test_an_image_that_the_mapping_lacks_belongs_to_no_split(tmp_path: Path) -> None:
    root = lay_out(tmp_path / "copy", {n: row for n, row in ROWS.items() if n != "PE4528910"})
    made(tmp_path / "out", root, split="train")
    # I2 is another impression, and PE4528910 that of another image.
    assert sorted(read_samples(tmp_path / "out")) == ["PE452890e", "PE4528911"]


def test_names_of_images_may_have_their_suffix(tmp_path: Path) -> None:
    rows = {f"{name}.nii.gz": row for name, row in ROWS.items()}
    made(tmp_path / "out", lay_out(tmp_path / "copy", rows), split="train")
    samples = read_samples(tmp_path / "out")
    assert {n: s.labels.tobytes() for n, s in samples.items()} == {
        name: np.array(LABELS[name], "<f4").tobytes() for name in [*ROWS][:3]
    }


def test_volumes_of_four_axes_and_words_that_are_no_label_fail_alone(tmp_path: Path) -> None:
    image, (impression, person, split, cells) = next(iter(ROWS.items()))
    bad = {**ROWS, image: (impression, person, split, {**cells, "pe_acute": "maybe"})}
    root = lay_out(tmp_path / "copy", bad)
    make: Any = nibabel.Nifti1Image
    four = make(np.stack([marked(1)] * 2, axis=3), np.eye(4))
    nibabel.save(four, root / "full/CTPA/PE4528910.nii.gz")
    report = made(tmp_path / "out", root, split="train")
    failures = {failure["key"]: failure["message"] for failure in report.failures}
    assert [*read_samples(tmp_path / "out")] == ["PE4528911"]
    assert sorted(failures) == ["PE452890e", "PE4528910"]
    assert "(15, 12, 9, 2)" in failures["PE4528910"]
    assert "pe_acute 'maybe'" in failures["PE452890e"]
    assert "true, false, censored, censor" in failures["PE452890e"]


def test_patients_are_those_of_the_splits(source: Path) -> None:
    data_set = built_in("inspect")
    opened = FolderSource(source, data_set=data_set)
    refs = opened.list_volumes("train")
    tables = opened.tables("train")
    assert {r.study_id: patient_of(r, tables) for r in refs} == {
        name: person for name, (_, person, *_) in ROWS.items()
    }


def test_labels_that_changed_are_written_again(tmp_path: Path) -> None:
    root = lay_out(tmp_path / "copy")
    made(tmp_path / "out", root, split="train")
    nothing_to_do(tmp_path / "out", source=root, dataset="inspect", split="train")
    write_table(
        root / "full/labels_20250611.tsv",
        INSPECT_LABELS,
        [
            ("I1", "135900001", "0", "0", "0", "0", "", "", "", ""),
            ("I2", "135900002", 0, "", "Censored", "FALSE", "", "", "", ""),
        ],
    )
    assert sorted(relabelled(tmp_path / "out").relabelled) == ["PE452890e", "PE4528911"]
    samples = read_samples(tmp_path / "out")
    assert samples["PE452890e"].labels.tobytes() == np.zeros(4, "<f4").tobytes()
    assert np.isnan(samples["PE4528911"].labels).all()
    # What is not in the table of labels stays in that of impressions.
    assert samples["PE4528911"].text.startswith('IMPRESSION: of "PE4528910"')
    check(tmp_path / "out", root, 3)


def test_a_loader_gives_its_labels(tmp_path: Path, source: Path) -> None:
    made(tmp_path / "out", source, split="train")
    shapes = [tuple(batch["labels"].shape) for batch in make_loader(tmp_path / "out", 2)]
    assert shapes == [(2, 4), (1, 4)]


def test_the_summary_counts_rows_through_the_mapping(tmp_path: Path, source: Path) -> None:
    report = made(tmp_path / "out", source, split="train")
    assert [(table.says, table.key, table.volumes) for table in report.tables] == [
        (("other names",), "image_id", 3),
        (("labels",), "impression_id", 3),
        (("text",), "impression_id", 3),
        (("patients", "splits"), "impression_id", 3),
    ]
