"""Builds by a description: its file now and later, and short cuts."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from built import read_samples, tar_bytes
from ctgpu.building.described import JoinedTable
from ctgpu.building.estimate import estimate_build
from ctgpu.building.relabelling import relabel
from ctgpu.cli.commands import app
from ctgpu.errors import MismatchError, UsageError
from ctgpu.spec import Spec
from ctgpu.testing.ctrate import LABEL_NAMES
from support.data_set_copies import (
    MINE,
    MINE_HEADER,
    MINE_NAMES,
    MINE_ROWS,
    SPEC,
    build,
    check,
    lay_out_mine,
    lay_out_two_of_ct_rate,
    marked,
    nothing_to_do,
    relabelled,
    stop_after,
    write_nifti,
    write_npz,
    write_table,
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return lay_out_mine(tmp_path / "source")


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(MINE)
    return path


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [*map(str, arguments)])


# --- what a description says -------------------------------------------------------------------


def test_a_file_of_ones_own_says_everything(tmp_path: Path, source: Path, mine: Path) -> None:
    report = build(tmp_path / "out", source, dataset=mine)
    assert (report.exit_code, report.data_set) == (0, "Mine")
    assert report.manifest["split"] == "all"
    assert report.manifest["class_names"] == ["cyst", "stone"]
    samples = read_samples(tmp_path / "out")
    assert list(samples) == ["s-1", "s-2", "s-10"]
    labels = {"s-1": [1, -2.5], "s-2": [np.nan, 7], "s-10": [0, 0.1]}
    for name, values in labels.items():
        assert samples[name].labels.tobytes() == np.array(values, "<f4").tobytes()
    assert [s.text for s in samples.values()] == ["Air. | Well.", "Water.", "Ill."]
    columns = [sample.metadata.get("columns") for sample in samples.values()]
    assert columns == [{"age": "61", "kernel": "B30f"}, None, {"age": "33", "kernel": "é"}]
    check(tmp_path / "out", source, 3)
    nothing_to_do(tmp_path / "out", source=source, dataset=mine)


def test_a_list_leaves_volumes_out_for_its_own_reason(
    tmp_path: Path, source: Path, mine: Path
) -> None:
    estimated = estimate_build(
        tmp_path / "out", source=source, dataset=mine, spec=SPEC, calibrate=0, device="cpu"
    )
    assert estimated.counts["of a phantom"] == 1
    assert "without a chest" not in estimated.counts
    build(tmp_path / "out", source, dataset=mine, keep_no_chest=True)
    assert list(read_samples(tmp_path / "out")) == list(MINE_NAMES)


def test_cells_that_are_carried_follow_a_changed_table(
    tmp_path: Path, source: Path, mine: Path
) -> None:
    build(tmp_path / "out", source, dataset=mine)
    rows = [(62, *MINE_ROWS[0][1:]), MINE_ROWS[1], MINE_ROWS[2]]
    write_table(source / "about.csv", MINE_HEADER, rows)
    assert list(relabelled(tmp_path / "out").relabelled) == ["s-1"]
    columns = read_samples(tmp_path / "out")["s-1"].metadata["columns"]
    assert columns == {"age": "62", "kernel": "B30f"}


def test_a_cell_that_is_blank_now_is_carried_no_more(
    tmp_path: Path, source: Path, mine: Path
) -> None:
    build(tmp_path / "out", source, dataset=mine)
    write_table(
        source / "about.csv",
        MINE_HEADER,
        [("", *MINE_ROWS[0][1:6], ""), MINE_ROWS[1], MINE_ROWS[2]],
    )
    relabelled(tmp_path / "out")
    build(tmp_path / "again", source, dataset=mine)
    for folder in ("out", "again"):
        assert "columns" not in read_samples(tmp_path / folder)["s-1"].metadata


def test_a_table_may_have_nothing_but_columns_to_carry(
    tmp_path: Path, source: Path, mine: Path
) -> None:
    mine.write_text('name = "Ages"\n[[tables]]\nfiles = ["t.csv"]\nkey = "n"\ncarry = ["age"]\n')
    write_table(source / "t.csv", ("n", "age"), [("s-1", 61), ("s-2", 44)])
    build(tmp_path / "out", source, dataset=mine)
    write_table(source / "t.csv", ("n", "age"), [("s-1", 61), ("s-2", 45)])
    assert list(relabelled(tmp_path / "out").relabelled) == ["s-2"]
    samples = read_samples(tmp_path / "out")
    assert [s.metadata.get("columns") for s in samples.values()] == [
        {"age": "61"},
        {"age": "45"},
        None,
        None,
    ]
    assert {sample.labels.size for sample in samples.values()} == {0}


def test_an_orientation_may_be_its_descriptions(tmp_path: Path) -> None:
    root = tmp_path / "arrays"
    write_npz(root / "a.npz", scan=marked(0).transpose(1, 2, 0), other=marked(1))
    described = tmp_path / "arrays.toml"
    described.write_text(
        'name = "Arrays"\n[volumes]\norientation = "rps"\n'
        '[arrays]\nmember = "scan"\naxes = "WDH"\nspacing_mm = [3.5, 3, 5]\n'
    )
    spec = Spec(
        target_spacing_mm=SPEC.target_spacing_mm, shape_hwd=SPEC.shape_hwd, orientation="LPS"
    )
    build(tmp_path / "out", root, dataset=described, spec=spec)
    write_nifti(tmp_path / "nifti/a.nii.gz", marked(0), codes="RPS")
    build(tmp_path / "other", tmp_path / "nifti", spec=spec)
    found, wanted = (read_samples(tmp_path / n)["a"] for n in ("out", "other"))
    assert found.volume == wanted.volume
    assert found.metadata["source"]["orientation"] == "RPS"
    assert found.metadata["source"]["spacing_source"] == "description"
    check(tmp_path / "out", root, 1)
    nothing_to_do(tmp_path / "out", source=root, dataset=described)


# --- later -------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["named", "left out", "gone", "moved", "reformatted"])
def test_a_stopped_build_goes_on_with_its_description(
    tmp_path: Path, source: Path, mine: Path, what: str
) -> None:
    build(tmp_path / "whole", source, dataset=mine)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "out", source, dataset=mine, watch=stop_after(1))
    plan = (tmp_path / "out/plan.json").read_bytes()
    options: dict[str, Any] = {}
    if what in ("named", "reformatted"):
        options = {"dataset": mine}
    if what == "reformatted":
        mine.write_text("# Mine.\n" + MINE.replace("[splits.all]\n", "[splits.all] # all\n"))
    elif what == "gone":
        mine.unlink()
    elif what == "moved":
        options = {"dataset": shutil.move(mine, tmp_path / "elsewhere.toml")}
    report = build(tmp_path / "out", **options)
    assert (report.written, report.exit_code, report.data_set) == (2, 0, "Mine")
    assert (tmp_path / "out/plan.json").read_bytes() == plan
    assert tar_bytes(tmp_path / "out") == tar_bytes(tmp_path / "whole")


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ('"cyst", "stone"', '"stone", "cyst"', "class_names differs"),
        ('carry = ["age", "kernel"]', 'carry = ["age"]', "tables differs"),
        ('" | "', '"; "', "text_separator differs"),
        ("scans/{patient}/{key}", "scans/*/{key}", "splits differs"),
        ('"of a phantom"', '"of phantoms"', "leave_out differs"),
        ("[[leave_out]]", '[arrays]\naxes = "DHW"\n[[leave_out]]', "arrays differs"),
    ],
)
def test_a_description_that_changed_is_refused_by_the_name_of_its_field(
    tmp_path: Path, source: Path, mine: Path, old: str, new: str, field: str
) -> None:
    build(tmp_path / "out", source, dataset=mine)
    assert MINE.count(old) == 1
    mine.write_text(MINE.replace(old, new))
    with pytest.raises(MismatchError, match=rf"another description of Mine: {field} .*leave --dat"):
        build(tmp_path / "out", source, dataset=mine)
    nothing_to_do(tmp_path / "out", source=source)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("name = 5\n", "line 1: name: Expected 'str', got 'int'"),
        (MINE.replace('key = "id"', 'keys = "id"'), "line 12: tables[0].keys: there is no such"),
        (MINE.replace("{key}", "{name}"), "line 8: splits.all.volumes: "),
        ("name = 'x'\nname = 'y'\n", "is no TOML"),
        ("[[tables]]\n", "line 1: tables[0]"),
    ],
)
def test_a_wrong_description_is_named_with_line_and_field(
    tmp_path: Path, source: Path, mine: Path, content: str, said: str
) -> None:
    mine.write_text(content)
    with pytest.raises(UsageError) as caught:
        build(tmp_path / "out", source, dataset=mine)
    assert str(caught.value).startswith(f"{mine}")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    place = ("--output-dir", tmp_path / "out", "--source", source, "--dataset", mine)
    assert str(run("build", *place).exception) == str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_description_that_is_not_there_is_one_sentence(tmp_path: Path, source: Path) -> None:
    with pytest.raises(UsageError, match=r"gone\.toml cannot be read"):
        build(tmp_path / "out", source, dataset=tmp_path / "gone.toml")
    with pytest.raises(UsageError, match=r"dataset is 'ctrate'; it is one of ct-rate, inspect"):
        build(tmp_path / "out", source, dataset="ctrate")


# --- short cuts --------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".xlsx", ".parquet"])
def test_one_file_may_have_labels_and_reports(tmp_path: Path, source: Path, suffix: str) -> None:
    header = ("who", "cyst", "note a", "note b")
    rows = [("s-1", 1, "First.", "Second."), ("s-10", 0, "Third.", "")]
    table = write_table(tmp_path / "elsewhere" / f"t{suffix}", header, rows)
    options = {
        **{"labels": table, "reports": table},
        **{"key_column": "who", "text_columns": "note b, note a"},
    }
    report = build(tmp_path / "out", source, **options)
    # What lies beside the volumes is not looked at.
    assert [joined.path for joined in report.tables] == [str(table)] * len(report.tables)
    assert report.manifest["class_names"] == ["cyst"]
    samples = read_samples(tmp_path / "out")
    assert samples["s-1"].text == "Second.\nFirst."
    assert np.array_equal(samples["s-10"].labels, [0])
    assert np.isnan(samples["s-2"].labels).tolist() == [True]
    check(tmp_path / "out", source, 4)
    nothing_to_do(tmp_path / "out", source=source, **options)
    nothing_to_do(tmp_path / "out")


def test_of_ct_rate_they_stand_in_place_of_its_own(tmp_path: Path) -> None:
    root = lay_out_two_of_ct_rate(tmp_path / "ct-rate")
    build(tmp_path / "own", root)
    table = write_table(tmp_path / "l.csv", ("VolumeName", "new"), [("valid_1_a_1.nii.gz", 1)])
    report = build(tmp_path / "out", root, labels=table)
    assert report.data_set == "CT-RATE"
    assert report.manifest["class_names"] == ["new"]
    own, found = read_samples(tmp_path / "own"), read_samples(tmp_path / "out")
    assert np.array_equal(found["valid_1_a_1"].labels, [1])
    for name, sample in found.items():
        assert (sample.volume, sample.text) == (own[name].volume, own[name].text)
        assert sample.metadata["source"]["spacing_source"] == "csv"
    # The other way round its labels stay.
    table = write_table(tmp_path / "r.csv", ("id", "report"), [("valid_2_a_1", "Mine.")])
    report = build(tmp_path / "text", root, reports=table)
    found = read_samples(tmp_path / "text")
    assert report.manifest["class_names"] == list(LABEL_NAMES)
    assert [sample.text for sample in found.values()] == ["", "Mine."]
    for name, sample in found.items():
        assert sample.labels.tobytes() == own[name].labels.tobytes()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"labels": "gone.csv"}, r"gone\.csv cannot be read"),
        ({"reports": "t.csv", "key_column": "nome"}, r"key_column is 'nome'.*only name, cyst"),
        ({"labels": "t.csv", "key_column": "cyst"}, r"t\.csv names none of the 4 volumes.* cyst"),
        ({"reports": "t.csv"}, r"no column that is a report's by its name.*--text-columns"),
        ({"reports": "t.csv", "text_columns": "nota"}, r"lacks the column nota; it has name, cyst"),
        ({"labels": "u.csv"}, r"u\.csv has no column of labels"),
        ({"labels": "other.csv"}, r"other\.csv names none of the 4 volumes.*any column"),
        ({"key_column": "name"}, r"name one of these too"),
        ({"text_columns": "name"}, r"name one of these too"),
        ({"labels": "."}, r"cannot be read"),
    ],
)
def test_a_short_cut_that_leads_nowhere_is_one_sentence(
    tmp_path: Path, source: Path, options: dict[str, str], said: str
) -> None:
    write_table(tmp_path / "t.csv", ("name", "cyst"), [("s-1", 1)])
    write_table(tmp_path / "u.csv", ("name", "grade"), [("s-1", 3)])
    write_table(tmp_path / "other.csv", ("name", "cyst"), [("nobody", 1)])
    files = ("labels", "reports")
    named = {n: tmp_path / v if n in files else v for n, v in options.items()}
    with pytest.raises(UsageError, match=said):
        build(tmp_path / "out", source, **named)
    assert not (tmp_path / "out/plan.json").exists()


def test_on_going_on_a_short_cut_is_the_same_or_refused(tmp_path: Path, source: Path) -> None:
    labels = write_table(tmp_path / "l.csv", ("name", "cyst"), [("s-1", 1)])
    reports = write_table(tmp_path / "r.csv", ("name", "report", "note"), [("s-1", "A.", "B.")])
    build(tmp_path / "out", source, labels=labels, reports=reports)
    nothing_to_do(tmp_path / "out", source=source, labels=labels)
    other = shutil.copy(labels, tmp_path / "other.csv")
    with pytest.raises(MismatchError, match=r"was begun without the table .*other\.csv"):
        build(tmp_path / "out", source, labels=other)
    build(tmp_path / "bare", source, include="*s-3*")
    with pytest.raises(MismatchError, match=r"was begun without the table .*l\.csv"):
        build(tmp_path / "bare", source, labels=labels)


def test_on_going_on_a_short_cut_says_the_same_of_the_same_columns(
    tmp_path: Path, source: Path, mine: Path
) -> None:
    labels = write_table(tmp_path / "l.csv", ("name", "cyst"), [("s-1", 1)])
    reports = write_table(tmp_path / "r.csv", ("name", "report", "note"), [("s-1", "A.", "B.")])
    build(tmp_path / "out", source, labels=labels, reports=reports, dataset=mine)
    for options in (
        # What was begun as reports is no table of labels.
        {"labels": reports},
        {"reports": labels},
        {"labels": labels, "key_column": "cyst"},
        {"reports": reports, "text_columns": "note"},
    ):
        with pytest.raises(MismatchError, match="was begun with"):
            build(tmp_path / "out", source, **options)
    same: dict[str, Any] = {"labels": labels, "reports": reports, "dataset": mine}
    nothing_to_do(tmp_path / "out", key_column="name", text_columns=" report", **same)
    mine.write_text(MINE.replace('" | "', '"; "'))
    with pytest.raises(MismatchError, match="another description of Mine: text_separator differs"):
        build(tmp_path / "out", source, **same)


def test_ct_rate_named_for_a_folder_that_has_nothing_of_it_is_the_same_again(
    tmp_path: Path, source: Path
) -> None:
    build(tmp_path / "out", source, dataset="ct-rate")
    nothing_to_do(tmp_path / "out", source=source, dataset="ct-rate")


def test_a_table_of_a_short_cut_that_is_gone_is_named(tmp_path: Path, source: Path) -> None:
    table = write_table(tmp_path / "l.csv", ("name", "cyst"), [("s-1", 1)])
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "out", source, labels=table, watch=stop_after(1))
    table.rename(tmp_path / "away.csv")
    for command in (build, relabel):
        with pytest.raises(UsageError, match=r"l\.csv cannot be read"):
            command(tmp_path / "out")
    (tmp_path / "away.csv").rename(table)
    assert build(tmp_path / "out").exit_code == 0
    check(tmp_path / "out", source, 4)


def test_folders_may_be_the_keys_and_numbers_of_a_workbook_too(tmp_path: Path) -> None:
    for seed, name in enumerate(("101", "102")):
        write_nifti(tmp_path / "source" / name / "ct.nii.gz", marked(seed), codes="LPS")
    with pytest.raises(UsageError, match=r"101/ct\.nii\.gz and 102/ct\.nii\.gz would both be 'ct'"):
        build(tmp_path / "out", tmp_path / "source")
    write_table(tmp_path / "source/t.xlsx", ("case", "cyst"), [(101, 1), (102.0, 0)])
    described = tmp_path / "d.toml"
    described.write_text(
        'name = "Folders"\n[volumes]\npaths = ["{key}/ct.nii.gz"]\n'
        '[[tables]]\nfiles = ["t.xlsx"]\nkey = "case"\nlabels = ["cyst"]\n'
    )
    build(tmp_path / "out", tmp_path / "source", dataset=described)
    samples = read_samples(tmp_path / "out")
    assert {name: sample.labels.tolist() for name, sample in samples.items()} == {
        "101": [1],
        "102": [0],
    }
    check(tmp_path / "out", tmp_path / "source", 2)


def test_a_joined_table_says_how_many_have_a_row_of_one_or_of_more() -> None:
    one = JoinedTable("a.csv", "id", ("labels",), 1, 1)
    assert str(one) == "a.csv (labels), joined by id: 1 of 1 volume has a row"
    two = replace(one, key="", of=2)
    assert str(two) == "a.csv (labels): 1 of 2 volumes have a row"
