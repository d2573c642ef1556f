"""Any folder of volumes, with tables beside them that nobody has described."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from built import read_samples
from ctgpu.building.described import LARGEST_LOOKED_AT_BYTES
from ctgpu.errors import MismatchError, UsageError
from ctgpu.loading import VolumeDataset, make_loader
from ctgpu.loading.webdataset import decoder
from ctgpu.shards.names import natural_key
from ctgpu.shards.plan import Plan
from support.data_set_copies import (
    SPACING_MM,
    build,
    check,
    marked,
    nothing_to_do,
    relabelled,
    write_nifti,
    write_npz,
    write_table,
)

NAMES = ("scan-1", "scan-2", "scan-10")
HEADER = ("file", "patient_id", "nodule", "effusion", "report", "age")
ROWS = [
    ("a/b/scan-1.nii.gz", "p1", 1, 0.5, "Nodule, on the left;\nelse nothing.", 61),
    ("scan-2", "p2", 0, "", "Grüße. 肺", 44),
    ("of nobody", "p9", 1, 1, "Of another.", 50),
]
LABELS = {"scan-1": [1, 0.5], "scan-2": [0, np.nan], "scan-10": [np.nan] * 2}


def scans(root: Path, names: tuple[str, ...] = NAMES) -> Path:
    for seed, name in enumerate(names):
        write_nifti(root / f"{name}.nii.gz", marked(seed), codes="LPS")
    return root


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return scans(tmp_path / "my scans")


@pytest.mark.parametrize(
    "table", ["t.csv", "t.tsv", "t.xlsx", "t.parquet", "t.semicolon.csv", "deeper/t.csv"]
)
def test_a_table_beside_the_volumes_is_joined_by_their_names(
    tmp_path: Path, source: Path, table: str
) -> None:
    if table.startswith("deeper"):
        scans(source / "deeper", ("scan-11",))
    rows: list[tuple[object, ...]] = list(ROWS)
    if table.endswith("parquet"):
        # Its columns have a type each.
        rows = [(*row[:3], row[3] if row[3] != "" else None, *row[4:]) for row in ROWS]
    write_table(source / table, HEADER, rows)
    report = build(tmp_path / "out", source)
    assert (report.data_set, report.exit_code) == ("plain", 0)
    assert report.manifest["class_names"] == ["nodule", "effusion"]
    (joined,) = report.tables
    assert (joined.path, joined.key, joined.volumes) == (table, "file", 2)
    samples = read_samples(tmp_path / "out")
    for name, labels in LABELS.items():
        assert samples[name].labels.tobytes() == np.array(labels, "<f4").tobytes()
    assert samples["scan-1"].text == ROWS[0][4]
    assert samples["scan-2"].metadata["report"] == {"report": "Grüße. 肺"}
    assert (samples["scan-10"].text, samples["scan-10"].metadata["report"]) == ("", {})
    check(tmp_path / "out", source, len(samples))
    nothing_to_do(tmp_path / "out", source=source)


def test_the_volumes_are_what_they_are_without_a_table(tmp_path: Path, source: Path) -> None:
    build(tmp_path / "without", source)
    assert "data_set" not in json.loads((tmp_path / "without/plan.json").read_bytes())
    write_table(source / "t.csv", HEADER, ROWS)
    build(tmp_path / "with", source)
    without, found = read_samples(tmp_path / "without"), read_samples(tmp_path / "with")
    assert [s.volume for s in found.values()] == [s.volume for s in without.values()]
    for sample in found.values():
        facts = sample.metadata["source"]
        assert (facts["spacing_source"], facts["spacing_mm"]) == ("header", list(SPACING_MM))
        assert facts["orientation"] == "LPS"


@pytest.mark.parametrize("number", [0, 1, 100])
def test_classes_may_be_none_one_or_many(tmp_path: Path, source: Path, number: int) -> None:
    """Of any number, in every reader: the adapter, the loader, the manifest."""
    torch = pytest.importorskip("torch")
    names = [f"class {k}" for k in range(number)]
    rows = [(name, "Some text.", *(k % 2 for k in range(number))) for name in NAMES[:2]]
    write_table(source / "t.csv", ("name", "findings", *names), rows)
    report = build(tmp_path / "out", source)
    assert (report.manifest["class_names"], report.manifest["num_classes"]) == (names, number)
    dataset = VolumeDataset(tmp_path / "out", verify="always")
    assert dataset.class_names == tuple(names)
    batches = list(make_loader(dataset, 2))
    assert [tuple(batch["labels"].shape) for batch in batches] == [(2, number), (1, number)]
    wanted = torch.arange(number) % 2
    assert torch.equal(batches[0]["labels"], torch.stack([wanted, wanted]).float())
    assert batches[1]["labels"].isnan().all()
    assert f"num_classes: {number}" in report.training_yaml()
    check(tmp_path / "out", source, 3)


@pytest.mark.filterwarnings(
    # webdataset leaves the tars that it opened to the garbage collector.
    "ignore::ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
)
def test_the_adapters_give_the_labels(tmp_path: Path, source: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    write_table(source / "t.csv", HEADER, ROWS)
    build(tmp_path / "out", source)
    urls = str(tmp_path / "out" / "shard-{000000..000001}.tar")
    found = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).map(decoder))
    assert [sample["study_id"] for sample in found] == list(NAMES)
    for sample in found:
        assert sample["labels"].tobytes() == np.array(LABELS[sample["study_id"]], "<f4").tobytes()
    gc.collect()


@pytest.mark.slow
def test_dali_gives_the_labels(tmp_path: Path, source: Path) -> None:
    pytest.importorskip("nvidia.dali", reason="nvidia-dali is not installed")
    from ctgpu.loading.dali import pipeline

    write_table(source / "t.csv", HEADER, ROWS)
    build(tmp_path / "out", source)
    _, labels, report, _ = pipeline(tmp_path / "out", 3).run()
    for row, name in enumerate(NAMES):
        assert np.array_equal(np.asarray(labels[row]), LABELS[name], equal_nan=True)
    assert bytes(np.asarray(report[1])).decode() == "Grüße. 肺"


def test_what_two_tables_say_is_taken_from_the_one_that_knows_more(
    tmp_path: Path, source: Path
) -> None:
    write_table(source / "few.csv", ("name", "nodule"), [("scan-1", 1)])
    write_table(source / "many.tsv", ("id", "cyst"), [("scan-1", 0), ("scan-2", 1)])
    write_table(source / "texts.csv", ("id", "Impression"), [("scan-10", "Of the third.")])
    write_table(source / "other.csv", ("city", "people"), [("Bern", 1), ("Rome", 0)])
    report = build(tmp_path / "out", source)
    assert report.manifest["class_names"] == ["cyst"]
    assert {table.path: table.says for table in report.tables} == {
        "many.tsv": ("labels",),
        "texts.csv": ("text",),
    }
    assert read_samples(tmp_path / "out")["scan-10"].text == "Of the third."


def test_words_are_labels_and_other_numbers_are_none(tmp_path: Path, source: Path) -> None:
    header = ("name", "cyst", "age", "grade", "mixed")
    rows = [("scan-1", "Yes", 61, 3, "yes"), ("scan-2", "no", 44, 1, "0")]
    write_table(source / "t.csv", header, rows)
    report = build(tmp_path / "out", source)
    assert report.manifest["class_names"] == ["cyst", "mixed"]
    samples = read_samples(tmp_path / "out")
    assert np.array_equal(samples["scan-1"].labels, [1, 1])
    assert np.array_equal(samples["scan-2"].labels, [0, 0])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.xlsx", b"no workbook", "t.xlsx is not a workbook"),
        ("t.parquet", b"PAR1", "t.parquet is not a Parquet file"),
        ("t.csv", b"", "t.csv"),
        ("t.csv", b"name,nodule\n", "t.csv"),
        ("t.csv", b"\0\1\2\3" * 40, "t.csv"),
    ],
)
def test_a_table_that_is_none_is_named_and_the_volumes_are_built(
    tmp_path: Path,
    source: Path,
    name: str,
    content: bytes,
    said: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (source / name).write_bytes(content)
    report = build(tmp_path / "out", source)
    assert (report.exit_code, report.manifest["num_classes"]) == (0, 0)
    assert len(read_samples(tmp_path / "out")) == 3
    assert said in caplog.text


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_tables_of_a_spreadsheet_are_read(tmp_path: Path, source: Path, encoding: str) -> None:
    text = "Name;Knoten;Befund\r\nscan-1;1;Größer.\r\nscan-2;0;Kleiner.\r\n"
    (source / "export.csv").write_bytes(text.encode(encoding))
    report = build(tmp_path / "out", source, reports=source / "export.csv", text_columns="Befund")
    assert report.manifest["class_names"] == []
    assert read_samples(tmp_path / "out")["scan-1"].text == "Größer."
    report = build(tmp_path / "both", source)
    assert report.manifest["class_names"] == ["Knoten"]


def test_a_table_that_changed_is_written_again(tmp_path: Path, source: Path) -> None:
    write_table(source / "t.csv", HEADER, ROWS)
    build(tmp_path / "out", source)
    write_table(source / "t.csv", HEADER, [("scan-10", "p1", 0, 1, "New.", 1), *ROWS[1:]])
    assert sorted(relabelled(tmp_path / "out").relabelled) == ["scan-1", "scan-10"]
    samples = read_samples(tmp_path / "out")
    assert np.array_equal(samples["scan-10"].labels, [0, 1])
    assert np.isnan(samples["scan-1"].labels).all()
    assert (samples["scan-1"].text, samples["scan-10"].text) == ("", "New.")
    check(tmp_path / "out", source, 3)


def test_the_plan_keeps_what_was_recognised(tmp_path: Path, source: Path) -> None:
    write_table(source / "t.csv", HEADER, ROWS)
    build(tmp_path / "out", source)
    stated = json.loads((tmp_path / "out/plan.json").read_bytes())
    assert stated["format"] == "ctgpu-plan-3"
    (table,) = stated["data_set"]["tables"]
    assert (table["files"], table["key"]) == (["t.csv"], "file")
    assert (table["labels"], table["text"]) == (["nodule", "effusion"], ["report"])
    assert table["patient"] == "patient_id"
    # Another table that comes later changes nothing.
    write_table(source / "u.csv", ("name", "cyst"), [(name, 1) for name in NAMES])
    nothing_to_do(tmp_path / "out", source=source, dataset="plain")
    assert Plan.load(tmp_path / "out").class_names == ("nodule", "effusion")
    with pytest.raises(MismatchError, match=r"begun with another description of plain: .*name"):
        build(tmp_path / "out", source, dataset="merlin")


def test_named_plain_it_is_the_same_but_for_the_plan(tmp_path: Path, source: Path) -> None:
    write_table(source / "t.csv", HEADER, ROWS)
    build(tmp_path / "out", source)
    build(tmp_path / "named", source, dataset="plain")
    found, wanted = read_samples(tmp_path / "named"), read_samples(tmp_path / "out")
    for name, sample in found.items():
        assert sample.volume == wanted[name].volume
        assert sample.labels.tobytes() == wanted[name].labels.tobytes()


def test_a_table_too_large_to_be_looked_at_is_named(
    tmp_path: Path, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (source / "t.csv").open("wb") as file:
        file.truncate(LARGEST_LOOKED_AT_BYTES + 1)
    build(tmp_path / "out", source)
    assert "t.csv is too large to be looked at; name it with --labels" in caplog.text
    assert list(read_samples(tmp_path / "out")) == sorted(NAMES, key=natural_key)


def test_a_table_without_column_names_is_not_joined(
    tmp_path: Path, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_table(source / "t.csv", ("scan-1", "1"), [("scan-2", 0)])
    build(tmp_path / "out", source)
    assert "t.csv has no line of column names, for its first line names a volume" in caplog.text
    assert Plan.load(tmp_path / "out").class_names == ()


def test_a_column_that_may_tell_splits_is_named(
    tmp_path: Path, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_table(source / "t.csv", ("file", "split", "cyst"), [("scan-1", "train", 1)])
    build(tmp_path / "out", source)
    assert "t.csv: its column split, which may tell splits apart, is not read" in caplog.text
    assert len(read_samples(tmp_path / "out")) == 3


def test_arrays_and_images_may_lie_together(tmp_path: Path) -> None:
    root = tmp_path / "mixed"
    write_nifti(root / "one.nii", marked(0), codes="RAS")
    write_npz(root / "two.npz", data=marked(0), spacing_mm=np.array(SPACING_MM))
    write_table(root / "t.csv", ("id", "cyst"), [("one.nii", 1), ("two.npz", 0)])
    build(tmp_path / "out", root)
    samples = read_samples(tmp_path / "out")
    assert samples["one"].volume == samples["two"].volume
    assert [samples[name].labels[0] for name in ("one", "two")] == [1, 0]


def test_without_patients_there_is_no_split_by_patient(tmp_path: Path, source: Path) -> None:
    options: dict[str, Any] = {"split": "train", "split_by": "patient", "fractions": "0.5,0.5"}
    with pytest.raises(UsageError, match=r"which patient 3 volumes show.*volumes\.patient"):
        build(tmp_path / "out", source, **options)
    assert not (tmp_path / "out/plan.json").exists()
