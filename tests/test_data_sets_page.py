"""What docs/data_sets.md tells is true: its commands, its code, its tables and its example."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

import ctgpu
from built import Sample, read_samples, tar_bytes
from ctgpu.data_sets import Description, globs
from ctgpu.errors import UsageError
from ctgpu.shards.plan import Plan
from ctgpu.sources.patients import PatientSplit
from ctgpu.sources.recognition import SeenTable, look_at_table
from ctgpu.sources.table import study_id_in
from ctgpu.sources.table_files import TABLE_SUFFIXES
from ctgpu.spec import Spec
from ctgpu.testing.ctrate import chest_phantom
from data_sets_page import PAGE, REPOSITORY, blocks, rows, section

SHAPE_HWD, SPACING_MM = (14, 12, 10), (8.0, 9.0, 12.0)
SMALL = ["--shape", "12,10,8", "--spacing", "9,9,12", "--device", "cpu"]
SPEC = Spec(shape_hwd=(12, 10, 8), target_spacing_mm=(9.0, 9.0, 12.0))


def run(line: str, *more: str) -> subprocess.CompletedProcess[str]:
    """A command as the page has it, of a small output."""
    _, *words = shlex.split(line, comments=True)
    return subprocess.run(
        [sys.executable, "-m", "ctgpu.cli", *words, *more],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "COLUMNS": "120", "HF_HUB_OFFLINE": "1"},
    )


def save(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([-SPACING_MM[0], -SPACING_MM[1], SPACING_MM[2], 1.0])
    nibabel.save(nibabel.Nifti1Image(chest_phantom(SHAPE_HWD, SPACING_MM, seed), affine), path)


#: What a folder's tables are taken for, column by column.
COLUMNS = rows(section("## Your own data"), 1)


@pytest.fixture
def scans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four scans in ``./scans``; the page's table of labels knows two of them."""
    for seed, name in enumerate("abcd"):
        save(tmp_path / "scans" / f"{name}.nii.gz", seed)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "labels.csv").write_text(blocks(section("## Your own data"), "")[0])
    (tmp_path / "reports.csv").write_text(
        'file,findings,impression\na.nii.gz,"Nodule, 6 mm.",Nodule.\nb.nii.gz,None.,\n'
    )
    return tmp_path / "scans"


def test_its_headings_differ_and_its_links_lead_to_them() -> None:
    headings = re.findall(r"^##+ (.*)$", PAGE, re.MULTILINE)
    anchors = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
    assert len(set(anchors)) == len(anchors) > 20
    pages = [REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")]
    linked = {a for p in pages for a in re.findall(r"data_sets\.md#([\w-]+)", p.read_text())}
    linked |= set(re.findall(r"\]\(#([\w-]+)\)", PAGE))
    assert len(linked) > 9
    assert linked - set(anchors) == set()


# Your own data.


@pytest.mark.slow
def test_ten_lines_lead_from_a_folder_with_a_table_to_the_first_batch(
    scans: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch = pytest.importorskip("torch")
    text = section("## Your own data")
    (command,), (code,) = blocks(text, "sh"), blocks(text, "python")
    assert len([line for line in (command + code).splitlines() if line.strip()]) <= 10
    result = run(command, *SMALL)
    assert result.returncode == 0, result.stderr
    assert "WARNING" not in result.stderr
    names: dict[str, Any] = {}
    exec(code, names)
    assert "('nodule', 'effusion')" in capsys.readouterr().out
    assert names["batch"]["volume"].shape == (2, 1, 8, 12, 10)
    dataset = names["dataset"]
    labels = torch.as_tensor(dataset.read_labels()).nan_to_num(nan=-1).tolist()
    assert labels == [[1, 0], [0, -1], [-1, -1], [-1, -1]]
    assert [dataset[n]["report"] for n in range(4)] == ["Nodule, 6 mm.\nNodule.", "None.", "", ""]
    assert Plan.load(Path("shards/mine")).split == "train"


@pytest.mark.slow
def test_tables_beside_the_volumes_need_no_option_and_the_summary_says_so(scans: Path) -> None:
    table = (scans.parent / "labels.csv").read_text()
    (scans / "labels.csv").write_text(table + "c,1,1\n")
    (scans / "devices.csv").write_text("device,kvp\nx,120\n")
    result = run("ctgpu build --source scans --output-dir out", *SMALL)
    assert result.returncode == 0, result.stderr
    shown = blocks(section("## Your own data"), "")[1].splitlines()
    assert len(shown) == 2
    for line in shown:
        assert line in result.stderr
    assert shown[1] in result.stdout
    (warning,) = [line for line in result.stderr.splitlines() if "WARNING" in line]
    assert "devices.csv: seen and not read" in warning
    assert np.array_equal(read_samples(Path("out"))["c"].labels, [1, 1])


@pytest.mark.slow
def test_columns_that_are_not_recognised_are_named(scans: Path) -> None:
    (scans / "labels.csv").write_text("file,nodule,age\na,1,61\nb,0,58\n")
    result = run("ctgpu build --source scans --output-dir out", *SMALL)
    assert result.returncode == 0, result.stderr
    (warning,) = [line for line in result.stderr.splitlines() if "WARNING" in line]
    assert "labels.csv: not read: age" in warning
    assert Plan.load(Path("out")).class_names == ("nodule",)


def looked_at(header: str, *cells: str) -> SeenTable:
    lines = [f"scan,{header}", *(f"s{n},{cell}" for n, cell in enumerate(cells))]
    ids = {f"s{n}" for n in range(len(cells))}
    return look_at_table("x.csv", "\n".join(lines).encode(), ids)


@pytest.mark.parametrize("word", re.findall(r"`(\w+)`", COLUMNS[1][0]))
def test_a_column_that_names_a_patient_is_one(word: str) -> None:
    seen = looked_at(word, "17", "18")
    assert (seen.patient, seen.open) == (word, ())


def test_each_kind_of_column_is_taken_for_what_the_page_says() -> None:
    table = COLUMNS
    assert [re.split("[,.]", row[1])[0] for row in table] == [
        *("the key", "the patient", "the split; only `ctgpu describe` makes use of it"),
        *("a class", "a part of the report", "a part of the report", "nothing"),
    ]
    named_split = re.findall(r"\b(split|subset|fold|partition)\b", table[2][0])
    assert len(named_split) == 4
    for name in named_split:
        assert looked_at(name, "a", "b").split == name
        many = [f"v{n}" for n in range(int(re.findall(r"\d+", table[2][0])[0]) + 1)]
        assert looked_at(name, *many).split is None
        assert looked_at(name, *many[:-1]).split == name
    words = re.findall(r"`(\w+)`", table[3][0])
    assert len(words) == 6
    for word in words:
        assert looked_at("mass", word.upper(), "").labels == ("mass",)
    assert looked_at("mass", "0.25", "").labels == ("mass",)
    sizes = re.findall(r"\b(spacing|thickness|slope|intercept|pixel|voxel)", table[3][1])
    assert len(sizes) == 6
    for size in sizes:
        assert looked_at(f"x_{size}", "0.25", "1").open == (f"x_{size}",)
    named_report = re.findall(r"\b(report|finding|impression|conclusion|narrative)\b", table[4][0])
    assert len(named_report) == 5
    for name in named_report:
        assert looked_at(name, "Clear.", "A mass.").text == (name,)
        assert looked_at(name, "1", "0").labels == (name,)
    others = re.findall(r"`(\w+)`", table[4][0])
    assert len(others) == 2
    for name in others:
        assert looked_at(name, "x7", "x8").open == (name,)
    length = int(re.findall(r"\d+", table[5][0])[0])
    assert looked_at("x", "a" * length, "b").text == ("x",)
    assert looked_at("x", "a" * (length - 1), "b").open == ("x",)
    assert looked_at("x", "/a" * length, "b").open == ("x",)
    assert looked_at("age", "61", "0").open == ("age",)


# A description.


@pytest.mark.slow
def test_what_describe_writes_is_a_description_that_a_build_goes_by(scans: Path) -> None:
    shown = blocks(section("## A description"), "sh")
    describe, build = shown[0].splitlines()
    (scans / "labels.csv").write_text("file,nodule,age\na,1,61\nb,0,58\n")
    result = run(describe)
    assert result.returncode == 0, result.stderr
    assert Description.load(Path("mine.toml")).tables[0].labels == ("nodule",)
    result = run(build, *SMALL)
    assert result.returncode == 0, result.stderr
    assert np.array_equal(read_samples(Path("shards/mine"))["a"].labels, [1])
    (line,) = shown[1].splitlines()
    name = line.split()[-1]
    packaged = (REPOSITORY / f"ctgpu/data_sets/{name}.toml").read_text()
    assert run(line).stdout.rstrip("\n") == packaged.rstrip("\n")


@cache
def example() -> str:
    (found,) = blocks(section("### A whole one"), "toml")
    return str(found)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """What the page's example describes: five scans of three patients, tables, a list."""
    root = tmp_path / "study"
    (tmp_path / "study.toml").write_text(example())
    places = {"s1_r1": "p1", "s1_r2": "p1", "s2_r1": "p2", "s3_r1": "p3"}
    for seed, (key, patient) in enumerate(places.items()):
        save(root / "images" / patient / f"{key}.nii.gz", seed)
    (root / "arrays").mkdir()
    voxels = chest_phantom(SHAPE_HWD, SPACING_MM, 9)
    np.savez(root / "arrays/s4_r1.npz", image=voxels.transpose(2, 0, 1), mask=voxels > 0)
    (root / "elsewhere").mkdir()
    save(root / "elsewhere/s9_r1.nii.gz", 9)
    tables = {
        "exams.csv": "scan,accession,cohort,subject,kvp\ns1_r1.nii.gz,A1,training,7,120\n"
        "s1_r2,A1,training,7,120\ns2_r1,A2,tuning,8,\ns3_r1,A3,training,9,140\n"
        "s4_r1,A4,validation,10,100\n",
        "reports.tsv": "accession number\tfindings\timpression\ttechnique\n"
        "A1\tA nodule.\tNodule.\tlow dose\nA4\tClear.\tnan\tcontrast\n",
        "labels.csv": "scan,nodule,effusion\ns1_r1,Present,absent\ns1_r2,1,0\ns3_r1,0,0\n"
        "s4_r1,-1,EQUIVOCAL\n",
        "motion.txt": "s3_r1\n",
    }
    for name, content in tables.items():
        (root / "tables").mkdir(exist_ok=True)
        (root / "tables" / name).write_text(content)
    return root


def built(study: Path, name: str, **options: Any) -> dict[str, Sample]:
    folder = study.parent / name
    dataset = study.parent / "study.toml"
    ctgpu.build(folder, source=study, dataset=dataset, spec=SPEC, device="cpu", **options)
    return read_samples(folder)


@pytest.mark.slow
def test_the_whole_example_does_what_its_comments_say(study: Path) -> None:
    train = built(study, "train")
    assert list(train) == ["s1_r1", "s1_r2"]
    plan = Plan.load(study.parent / "train")
    assert (plan.split, plan.class_names) == ("train", ("Nodule", "Pleural effusion"))
    assert list(built(study, "first", recon="first")) == ["s1_r1"]
    assert "s3_r1" in built(study, "all", keep_no_chest=True)
    one = train["s1_r1"]
    assert np.array_equal(one.labels, [1, 0])
    assert one.text == "A nodule.\n\nNodule."
    assert set(one.metadata["report"]) == {"findings", "impression", "technique"}
    assert one.metadata["columns"] == {"kvp": "120"}

    valid = built(study, "valid", split="valid")
    assert list(valid) == ["s4_r1", "s2_r1"]
    array = valid["s4_r1"]
    assert np.isnan(array.labels).tolist() == [True, True]
    assert array.text == "Clear."
    said = array.metadata["source"]
    assert said["shape"] == list(SHAPE_HWD)
    assert said["spacing_mm"] == [0.8, 0.8, 1.5]
    assert said["spacing_source"] == "description"
    assert Plan.load(study.parent / "valid").selection["assume_orientation"] == "LPS"
    assert valid["s2_r1"].text == ""
    assert "columns" not in valid["s2_r1"].metadata


def test_every_part_but_the_name_may_be_left_out(study: Path) -> None:
    whole = Description.load(study.parent / "study.toml").content
    assert len(whole) > 9
    for name in whole:
        rest = {field: value for field, value in whole.items() if field != name}
        if name == "name":
            with pytest.raises(ValueError, match="name"):
                Description.of(rest)
        else:
            assert Description.of(rest).content == rest


def test_what_is_wrong_is_named_by_file_line_and_field(study: Path) -> None:
    path = study.parent / "study.toml"
    path.write_text(example().replace("label_range", "label_rnage"))
    line = example().splitlines().index("label_range = [0, 1]") + 1
    with pytest.raises(UsageError, match=rf"study\.toml, line {line}: tables\[2\]\.label_rnage"):
        built(study, "out")


@pytest.mark.parametrize(
    ("glob", "path", "found"),
    [
        ("*/x?.nii", "a/x1.nii", (None, None)),
        ("*.nii", "a/x1.nii", None),
        ("**/x.nii", "x.nii", (None, None)),
        ("**/x.nii", "a/b/x.nii", (None, None)),
        ("a/**", "a/b/x.nii", (None, None)),
        ("[ab].nii", "b.nii", (None, None)),
        ("[!ab].nii", "b.nii", None),
        ("{patient}/{key}.nii.gz", "p1/s1.nii.gz", ("s1", "p1")),
        ("{patient}/ct_{key}.nii.gz", "p1/ct_s1.nii.gz", ("s1", "p1")),
    ],
)
def test_globs_stand_for_what_the_page_says(
    glob: str, path: str, found: tuple[str | None, str | None] | None
) -> None:
    said = globs.find([glob], path)
    assert (None if said is None else tuple(said)) == found


def test_volumes_of_one_name_are_refused_and_the_folder_may_be_the_name(tmp_path: Path) -> None:
    for seed, patient in enumerate(("p1", "p2")):
        save(tmp_path / "source" / patient / "ct.nii.gz", seed)

    def build(glob: str, name: str) -> list[str]:
        path = tmp_path / f"{name}.toml"
        path.write_text(f'name = "x"\n[volumes]\npaths = ["{glob}"]\n')
        folder, source = tmp_path / name, tmp_path / "source"
        ctgpu.build(folder, source=source, dataset=path, spec=SPEC, device="cpu")
        return list(read_samples(folder))

    refused, taken = re.findall(r"`(\{\w+\}/ct\.nii\.gz)`", section("### Globs"))
    with pytest.raises(UsageError, match="would both be 'ct'"):
        build(refused, "one")
    assert build(taken, "two") == ["p1", "p2"]


# Which description a build goes by.


def test_a_plan_keeps_its_description_and_goes_on_without_the_file(study: Path) -> None:
    once = built(study, "out")
    folder, dataset = study.parent / "out", study.parent / "study.toml"
    tars = tar_bytes(folder)
    dataset.unlink()
    stated = json.loads((folder / "plan.json").read_text())
    assert stated["format"] == "ctgpu-plan-3"
    assert Description.of(stated["data_set"]).tables[1].through == "accession"
    assert json.loads((folder / "manifest.json").read_text()).get("manifest_format") != (
        "ctgpu-manifest-3"
    )
    for path in folder.glob("shard-*"):
        path.unlink()
    ctgpu.build(folder, device="cpu")
    assert tar_bytes(folder) == tars
    assert list(read_samples(folder)) == list(once)


def test_a_description_that_has_changed_is_refused_by_its_fields(study: Path) -> None:
    built(study, "out")
    dataset = study.parent / "study.toml"
    dataset.write_text(example().replace('"\\n\\n"', '" "').replace('"image"', '"ct"'))
    with pytest.raises(UsageError, match="text_separator, arrays differ") as caught:
        ctgpu.build(study.parent / "out", dataset=dataset, device="cpu")
    assert caught.value.exit_code == 2


def test_what_no_table_was_joined_to_is_the_folder_that_it_always_was(scans: Path) -> None:
    ctgpu.build("out", source=scans, spec=SPEC, device="cpu")
    stated = json.loads(Path("out/plan.json").read_text())
    assert stated["format"] == "ctgpu-plan-1"
    assert "data_set" not in stated


# Splits.


@pytest.mark.slow
def test_the_commands_of_a_split_by_patient_part_no_patient(scans: Path) -> None:
    train, valid = blocks(section("### A split by patient"), "sh")[0].splitlines()
    held_out = [f"P{n}" for n in range(99) if PatientSplit("valid", (0.9, 0.1), 1).takes(f"P{n}")]
    patients = {"a": "P2", "b": held_out[0], "c": held_out[0], "d": "P3"}

    def label(patients: dict[str, str]) -> None:
        lines = [f"{scan},{patient},1\n" for scan, patient in patients.items()]
        Path("labels.csv").write_text("scan,patient_id,nodule\n" + "".join(lines))

    label(patients)
    for line in (train, valid):
        result = run(line, *SMALL)
        assert result.returncode == 0, result.stderr
    assert list(read_samples(Path("shards/train"))) == ["a", "d"]
    assert list(read_samples(Path("shards/held-out"))) == ["b", "c"]
    selection = Plan.load(Path("shards/train")).selection
    assert (selection["fractions"], selection["seed"]) == ("0.9,0.1", 1)

    # Scans that are added move nobody.
    save(scans / "0.nii.gz", 7)
    label({"0": "P1000", **patients})
    again = valid.replace("shards/held-out", "shards/again")
    assert run(again, *SMALL).returncode == 0
    assert set(read_samples(Path("shards/again"))) - {"0"} == {"b", "c"}

    # One of whom nothing is known might be in both.
    label({"a": "P2"})
    result = run(train.replace("shards/train", "shards/unknown"), *SMALL)
    assert result.returncode == 2
    assert "nothing says which patient 4 volumes show" in result.stderr


@pytest.mark.slow
def test_a_scan_that_is_there_twice_is_named_and_becomes_two_samples(scans: Path) -> None:
    (scans / "e.nii.gz").write_bytes((scans / "a.nii.gz").read_bytes())
    result = run("ctgpu build --source scans --output-dir out", *SMALL)
    assert result.returncode == 0, result.stderr
    assert "1 of the volumes is the same bytes as another one, such as a.nii.gz" in result.stderr
    assert len(read_samples(Path("out"))) == 5


# Tables.


def test_the_formats_of_tables_are_those_that_are_read() -> None:
    text = section("## Files of tables")
    stated = re.findall(r"`(\.\w+)`", " ".join(row[0] for row in rows(text)))
    assert sorted(stated) == sorted(TABLE_SUFFIXES)
    assert re.search(r"^tables = ", (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE)


def test_a_study_is_found_by_each_of_the_names_that_the_page_has() -> None:
    (names,) = re.findall(r"suffix: (.*?) are the same", section("## Files of tables"))
    assert len(found := re.findall(r"`(.*?)`", names)) == 3
    assert {study_id_in(name) for name in found} == {"s1"}
