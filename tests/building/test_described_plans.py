"""Splits by patient, and what plans hold of a description."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import ctgpu
from built import read_samples, tar_bytes
from ctgpu.building.relabelling import relabel
from ctgpu.cli.commands import app
from ctgpu.errors import MismatchError, UsageError
from ctgpu.shards.plan import Plan
from support.data_set_copies import (
    MINE,
    build,
    lay_out_mine,
    lay_out_two_of_ct_rate,
    marked,
    nothing_to_do,
    stop_after,
    write_nifti,
    write_table,
)

GOLDEN = Path(__file__).parent.parent / "golden/1ecd6b5"


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


# --- splits by patient -------------------------------------------------------------------------


@pytest.fixture
def patients(tmp_path: Path) -> Path:
    """Twelve patients of one to three scans, named by a table."""
    root = tmp_path / "patients"
    rows = []
    for number in range(12):
        for scan in range(number % 3 + 1):
            name = f"{number}-{scan}"
            write_nifti(root / f"{name}.nii.gz", marked(10 * number + scan), codes="LPS")
            rows.append((name, f"patient {number}", number % 2))
    write_table(root / "t.csv", ("name", "patient_id", "cyst"), rows)
    return root


@pytest.mark.parametrize("fractions", ["0.7,0.3", "0.5,0.25,0.25"])
def test_splits_by_patient_part_the_patients_and_no_patient(
    tmp_path: Path, patients: Path, fractions: str
) -> None:
    found: dict[str, set[str]] = {}
    for split in ("train", "valid", "test")[: fractions.count(",") + 1]:
        options = {"split": split, "split_by": "patient", "fractions": fractions, "seed": 3}
        build(tmp_path / split, patients, samples_per_shard=64, **options)
        nothing_to_do(tmp_path / split, source=patients, **options)
        nothing_to_do(tmp_path / split)
        found[split] = set(read_samples(tmp_path / split))
        with pytest.raises(MismatchError, match=r"selection\.fractions: found"):
            build(tmp_path / split, split_by="patient", fractions="0.1,0.9")
    everyone = [name for names in found.values() for name in names]
    assert len(everyone) == len(set(everyone)) == 24
    of_patient = [{name.split("-")[0] for name in names} for names in found.values()]
    assert sum(map(len, of_patient)) == 12
    assert all(of_patient)


def test_patients_may_be_named_by_the_paths(tmp_path: Path, source: Path, mine: Path) -> None:
    described = MINE.replace("[splits.all]\nvolumes", "[volumes]\npaths")
    mine.write_text(described.replace('default_split = "all"\n', ""))
    both: list[str] = []
    for split in ("train", "valid"):
        options = {"split": split, "split_by": "patient", "fractions": "0.5,0.5", "seed": 1}
        build(tmp_path / split, source, dataset=mine, **options)
        both += read_samples(tmp_path / split)
    assert sorted(both) == ["s-1", "s-10", "s-2"]
    parts = [set(read_samples(tmp_path / split)) for split in ("train", "valid")]
    assert sum({"s-1", "s-2"} <= part for part in parts) == 1


def test_ct_rate_has_splits_of_its_own(tmp_path: Path) -> None:
    options = {"split": "train", "split_by": "patient", "fractions": "0.5,0.5"}
    with pytest.raises(UsageError, match="CT-RATE"):
        build(tmp_path / "out", lay_out_two_of_ct_rate(tmp_path / "ct-rate"), **options)
    options["split"] = "valid"
    with pytest.raises(UsageError, match="CT-RATE has splits of its own, train, valid"):
        build(tmp_path / "out", tmp_path / "ct-rate", **options)
    assert not (tmp_path / "out/plan.json").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"split_by": "patient"}, "go together"),
        ({"fractions": "0.5,0.5"}, "go together"),
        ({"split_by": "scan", "fractions": "0.5,0.5"}, "split_by is 'scan'"),
        ({"split_by": "patient", "fractions": "0.5,0.6"}, "whose sum is 1"),
        ({"split_by": "patient", "fractions": "1"}, "two or three numbers"),
        ({"split_by": "patient", "fractions": "half,half"}, "two or three numbers"),
        ({"split_by": "patient", "fractions": "nan,nan"}, "two or three numbers"),
        ({"split_by": "patient", "fractions": "0.5,0.5", "split": "test"}, "train and valid"),
    ],
)
def test_shares_that_are_none_are_refused(
    tmp_path: Path, patients: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        build(tmp_path / "out", patients, **({"split": "train"} | options))
    assert not (tmp_path / "out/plan.json").exists()


# --- plans -------------------------------------------------------------------------------------


def test_a_plan_of_ct_rate_or_of_bare_volumes_is_what_it_was(tmp_path: Path) -> None:
    """Neither states a description, and both are of the first version of the format."""
    root = lay_out_two_of_ct_rate(tmp_path / "ct-rate")
    write_nifti(tmp_path / "bare/a.nii.gz", marked(0), codes="LPS")
    for name, source in (("ct-rate", root), ("bare", tmp_path / "bare")):
        out = tmp_path / f"{name}-out"
        build(out, source)
        stated = json.loads((out / "plan.json").read_bytes())
        assert stated["format"] == "ctgpu-plan-1"
        assert "data_set" not in stated
        assert not {"split_by", "fractions", "assume_orientation"} & stated["selection"].keys()
        assert (len(stated["class_names"]), Plan.load(out).data_set) == (
            (18, None) if name == "ct-rate" else (0, None)
        )
        nothing_to_do(out, source=source)
    # Named, CT-RATE is the same plan to the last byte.
    build(tmp_path / "named", root, dataset="ct-rate")
    named, implied = ((tmp_path / n / "plan.json").read_bytes() for n in ("named", "ct-rate-out"))
    assert named == implied
    assert tar_bytes(tmp_path / "named") == tar_bytes(tmp_path / "ct-rate-out")


@pytest.mark.parametrize(
    ("name", "options"), [("ct-rate", {}), ("ct-rate", {"dataset": "ct-rate"}), ("plain", {})]
)
def test_a_plan_from_before_descriptions_is_gone_on_with(
    tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    golden = Path(shutil.copytree(GOLDEN / name, tmp_path / "golden"))
    folder, source = golden / "shards", golden / "source"
    plan, tars = (folder / "plan.json").read_bytes(), tar_bytes(folder)
    with pytest.raises(MismatchError, match=r"another description of .*name"):
        build(folder, source, dataset="merlin")
    assert build(folder, source, **options).written > 0
    assert (folder / "plan.json").read_bytes() == plan
    assert tars.items() <= tar_bytes(folder).items()


def test_a_description_takes_the_third_version(tmp_path: Path, source: Path, mine: Path) -> None:
    build(tmp_path / "out", source, dataset=mine)
    path = tmp_path / "out/plan.json"
    text = path.read_text()
    path.write_text(text.replace("ctgpu-plan-3", "ctgpu-plan-6"))
    with pytest.raises(UsageError, match=r"plan\.json was written by a newer ctgpu; update"):
        build(tmp_path / "out", source)
    for version in (1, 2, 4, 5):
        path.write_text(text.replace("ctgpu-plan-3", f"ctgpu-plan-{version}"))
        with pytest.raises(UsageError, match=rf"damaged.*states ctgpu-plan-{version}"):
            build(tmp_path / "out", source)


@pytest.mark.parametrize(
    "stated",
    [
        5,
        "Mine",
        [],
        {},
        {"name": 5},
        {"name": ""},
        {"name": "x", "surprise": 1},
        {"name": "x", "tables": {"files": ["a"]}},
        {"name": "x", "tables": [{"files": ["../a.csv"], "key": "k", "carry": ["b"]}]},
        {"name": "x", "tables": [{"files": ["a.csv"], "key": [], "carry": ["b"]}]},
        {"name": "x", "tables": [{"files": {"valid": "a.csv"}, "key": "k", "carry": ["b"]}]},
        {"name": "x", "splits": {"../x": {}}},
        {"name": "x", "splits": {"all": {"volumes": ["/etc/*"]}}},
        {"name": "x", "volumes": {"scan": "("}},
        {"name": "x", "volumes": {"patient": "no group"}},
        {"name": "x", "arrays": {"axes": "DDD"}},
        {"name": "x", "arrays": {"spacing_mm": [0, 1, 1]}},
        {"name": "x", "arrays": {"spacing_mm": [1, 1]}},
        {"name": "x", "class_names": "cyst"},
        {"name": "x" * 10, "default_split": []},
    ],
)
def test_a_plan_with_a_hostile_description_is_one_sentence(
    tmp_path: Path, source: Path, mine: Path, stated: Any
) -> None:
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "out", source, dataset=mine, watch=stop_after(1))
    path = tmp_path / "out/plan.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"data_set": stated}))
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    for command in (build, relabel):
        with pytest.raises(UsageError, match=r"damaged \(.*; bring .* from a copy, or build into"):
            command(tmp_path / "out")
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before


def test_by_another_orientation_than_the_plan_has_it_is_refused(
    tmp_path: Path, source: Path, mine: Path
) -> None:
    mine.write_text(MINE + '\n[volumes]\norientation = "RPS"\n')
    build(tmp_path / "out", source, dataset=mine)
    assert Plan.load(tmp_path / "out").selection["assume_orientation"] == "RPS"
    nothing_to_do(tmp_path / "out", dataset=mine, assume_orientation="RPS")
    with pytest.raises(MismatchError, match=r"assume_orientation: found 'RPS', wanted 'LPS'"):
        build(tmp_path / "out", assume_orientation="LPS")


def test_a_table_that_the_description_names_and_nobody_has_is_said(
    tmp_path: Path, source: Path, mine: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (source / "about.csv").unlink()
    caplog.set_level(logging.WARNING)
    report = build(tmp_path / "out", source, dataset=mine)
    assert "no table of labels and text" in caplog.text
    assert "about.csv" in caplog.text
    assert report.exit_code == 0
    samples = read_samples(tmp_path / "out")
    assert {sample.text for sample in samples.values()} == {""}
    assert all(np.isnan(sample.labels).all() for sample in samples.values())


def test_the_summary_names_the_data_set_and_its_tables(
    tmp_path: Path, source: Path, mine: Path
) -> None:
    shape, spacing = "16,9,6", "4,3.5,6"
    place = ("--output-dir", tmp_path / "out", "--source", source, "--dataset", mine)
    result = run("build", *place, "--shape", shape, "--spacing", spacing, "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    told = " ".join((result.stdout + result.stderr).split())
    assert "Mine" in told
    assert "joined by id: 3 of 3 volumes have a row" in told
    assert isinstance(ctgpu.build(tmp_path / "out", device="cpu").to_json(), str)
