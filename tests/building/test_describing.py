"""First descriptions of folders and repositories that nobody has described."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from first_descriptions import found, named, remarks, scans, with_all_offered

from built import read_samples
from ctgpu.building import describing
from ctgpu.building.describing import built_in_file, describe
from ctgpu.data_sets import built_in
from ctgpu.errors import SourceError, UsageError
from ctgpu.testing.ctrate import Volume, lay_out_ct_rate
from ctgpu.testing.hub import LocalHub
from support.data_set_copies import (
    SPACING_MM,
    build,
    lay_out_inspect,
    lay_out_rad_chestct,
    marked,
    write_nifti,
    write_npz,
    write_table,
)

INT16 = np.int16


def as_bytes(text: bytes) -> npt.NDArray[np.uint8]:
    return np.frombuffer(text, np.uint8)


def commands(text: str) -> list[list[str]]:
    lines = (line.removeprefix("# ") for line in text.splitlines())
    return [shlex.split(line) for line in lines if line.startswith("ctgpu build")]


# The whole.


def test_a_folder_with_a_table_builds_by_its_first_description(tmp_path: Path) -> None:
    source = scans(tmp_path / "my scans", "a", "b", "c")
    header = ("scan", "nodule", "cyst", "Findings", "age")
    rows = [("a.nii.gz", 1, "yes", "One.", 40), ("x/b", 0, "no", "None.", 50)]
    write_table(source / "all.csv", header, rows)
    text = describe(source)
    assert found(text).name == "my scans"
    (table,) = found(text).tables
    assert (table.key, table.labels, table.text) == ("scan", ("nodule", "cyst"), ("Findings",))
    assert table.label_words == {"no": 0.0, "yes": 1.0}
    file = tmp_path / "mine.toml"
    file.write_text(text, "utf-8")
    build(tmp_path / "out", source, dataset=file)
    samples = read_samples(tmp_path / "out")
    assert samples["a"].labels.tolist() == [1, 1]
    assert samples["b"].text == "None."
    assert np.isnan(samples["c"].labels).all()


def test_all_that_it_offers_can_be_had_by_taking_the_mark_away(tmp_path: Path) -> None:
    source = scans(tmp_path / "scans", "a", "b")
    odd = 'kV "p" \\ \u2028 é'
    write_table(source / "l.csv", ("id", "cyst", "age", odd), [("a", 1, 40, 9), ("b", 0, 50, 8)])
    header = ("id", "SliceThickness", "PixelSpacing", "SpacingNote", "voxels")
    write_table(source / "m.csv", header, [("a", 2, "[1, 1]", 3, 4), ("b", 2, "[1, 1]", 3, 4)])
    whole = with_all_offered(describe(source))
    assert (whole.class_names, whole.licence != "") == (("cyst",), True)
    assert whole.volumes.orientation == "LPS"
    assert whole.patient_of("p1_3") == "p1"
    assert [rule.files for rule in whole.tables] == [("l.csv",), ("m.csv",)]
    assert whole.tables[0].carry == ("age", odd)
    assert whole.tables[1].spacing_mm == ("PixelSpacing", "SpacingNote", "voxels")
    assert whole.leave_out[0].files == ("leave_out.txt",)


def test_without_a_table_it_shows_how_one_is_described(tmp_path: Path) -> None:
    text = describe(scans(tmp_path, "a"))
    assert found(text).tables == ()
    assert with_all_offered(text).tables[0].labels == "rest"


def test_its_last_lines_are_the_commands_that_go_on(tmp_path: Path) -> None:
    source = scans(tmp_path / "my scans", "a", "b")
    write_table(source / "l.csv", ("id", "nodule"), [("a", 1), ("b", 0)])
    write_table(source / "r.tsv", ("id", "Impression", "Findings"), [("a", "I.", "F.")])
    begin = ["ctgpu", "build", "--source", str(source)]
    assert commands(describe(source, file_name="my own.toml")) == [
        [*begin, "--dataset", "my own.toml", "--output-dir", "shards"],
        [
            *(*begin, "--labels", f"{source}/l.csv", "--reports", f"{source}/r.tsv"),
            *("--key-column", "id", "--text-columns", "Impression,Findings"),
            *("--output-dir", "shards"),
        ],
    ]
    write_table(source / "r.tsv", ("scan", "Findings, all"), [("a", "F.")])
    (_, short) = commands(describe(source))
    assert short[8:] == ["--output-dir", "shards"]
    build(tmp_path / "out", source, labels=short[5], reports=short[7])
    assert read_samples(tmp_path / "out")["a"].text == "F."


def test_the_short_cut_is_left_out_where_it_would_not_do(tmp_path: Path) -> None:
    named(tmp_path, "p1/ct.nii.gz", "p2/ct.nii.gz")
    write_table(tmp_path / "l.csv", ("id", "nodule"), [("p1", 1), ("p2", 0)])
    assert found(describe(tmp_path)).tables[0].labels == ("nodule",)
    assert len(commands(describe(tmp_path))) == 1


def test_a_folder_of_an_odd_name_comes_back_from_the_shell(tmp_path: Path) -> None:
    source = named(tmp_path / "it's\n\x1b \\ü", "a.nii.gz")
    text = describe(source)
    assert found(text).name == "it's__ \\ü"
    line = next(line for line in text.splitlines() if line.startswith("# ctgpu build"))
    words = line.removeprefix("# ctgpu build --source ").partition(" --dataset")[0]
    shown = subprocess.run(["bash", "-c", f"printf %s {words}"], capture_output=True, check=True)
    assert shown.stdout == os.fsencode(source)


def test_a_folder_whose_name_is_blank_has_a_name(tmp_path: Path) -> None:
    assert found(describe(named(tmp_path / " ", "a.nii.gz"))).name == "my data"


def test_it_says_the_same_twice_and_changes_nothing(tmp_path: Path) -> None:
    source = named(tmp_path / "scans", "b.nii.gz", "a.nii.gz")
    write_table(source / "t.csv", ("id", "cyst"), [("a", 1)])
    before = {path: path.stat().st_mtime_ns for path in source.iterdir()}
    assert describe(source) == describe(source)
    assert {path: path.stat().st_mtime_ns for path in source.iterdir()} == before


# Arrays.


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((5, 30, 20), "DHW"),
        ((30, 20, 20), "DHW"),
        ((20, 30, 20), "HDW"),
        ((20, 20, 30), "HWD"),
        ((30, 20, 5), "HWD"),
    ],
)
def test_the_shape_of_an_array_suggests_its_axes(
    tmp_path: Path, shape: tuple[int, ...], axes: str
) -> None:
    write_npz(tmp_path / "a.npz", ct=np.zeros(shape, INT16))
    text = describe(tmp_path)
    assert found(text).arrays.axes == axes
    assert f"guessed from the shape {shape} of a.npz: check" in remarks(text)
    assert f'axes = "{axes}"' in text


def test_an_array_says_whether_a_spacing_is_missing(tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz", ct=np.zeros((9, 9, 9), INT16), metadata=as_bytes(b'{"x": 1}'))
    text = describe(tmp_path)
    assert "shape (9, 9, 9) does not tell which axis is which" in remarks(text)
    assert "a.npz does not say how large a voxel is. It must be stated" in remarks(text)
    assert with_all_offered(text).arrays.spacing_mm == (0.8, 0.8, 0.8)
    for stated in ({"spacing": np.ones(3)}, {"metadata": as_bytes(b'{"spacing_mm": [1, 1, 1]}')}):
        write_npz(tmp_path / "a.npz", ct=np.zeros((9, 9, 9), INT16), **stated)
        assert "how large a voxel" not in describe(tmp_path)
    write_npz(tmp_path / "a.npz", ct=np.zeros((9, 9, 9), INT16), metadata=as_bytes(b"{"))
    assert "A build will refuse it: a.npz:metadata is not readable" in remarks(describe(tmp_path))


@pytest.mark.parametrize(
    ("arrays", "said", "offered"),
    [
        ({"ct": (3, 5, 5), "mask": (3, 5, 5)}, "Several may be the volume", "ct"),
        ({"data": (3, 5, 5), "mask": (3, 5, 5)}, "data is taken by its name", "mask"),
        (
            {"data": (1, 3, 5, 5), "ct": (3, 5, 5)},
            "data, which is taken by its name, has not",
            "ct",
        ),
        ({"x": (3, 5), "data": (4,)}, "None has three axes", None),
    ],
)
def test_of_several_arrays_one_is_to_be_named(
    tmp_path: Path, arrays: dict[str, tuple[int, ...]], said: str, offered: str | None
) -> None:
    write_npz(tmp_path / "a.npz", **{name: np.zeros(s, INT16) for name, s in arrays.items()})
    text = describe(tmp_path)
    for name, shape in arrays.items():
        assert f"{name} {shape} int16" in remarks(text)
    assert said in remarks(text)
    if offered is not None:
        assert with_all_offered(text).arrays.member == offered
        assert found(text).arrays.axes == "DHW"


def test_an_array_that_cannot_be_read_is_a_remark(tmp_path: Path) -> None:
    for content in (b"PK nothing", b""):
        (tmp_path / "a.npz").write_bytes(content)
        assert "a.npz cannot be looked at: a.npz is not a readable zip" in remarks(
            describe(tmp_path)
        )


# What is known already.


def test_ct_rate_is_told_by_its_folders(tmp_path: Path) -> None:
    lay_out_ct_rate(tmp_path, {"valid_1_a_1": Volume(marked(0), SPACING_MM)})
    text = describe(tmp_path)
    assert "pass --dataset ct-rate in place of this file" in remarks(text)
    assert commands(text)[0][4:6] == ["--dataset", "ct-rate"]
    assert len(commands(text)) == 2
    assert "Arterial wall calcification" not in found(text).class_names


def test_other_data_sets_are_told_by_their_names_or_tables(tmp_path: Path) -> None:
    lay_out_rad_chestct(tmp_path / "rad", {"trn00001": marked(0), "val00001": marked(1)})
    about_i1 = ("m1", "p1", "train", dict[str, object]())
    lay_out_inspect(tmp_path / "inspect", {"i1": marked(0)}, {"i1": about_i1})
    named(tmp_path / "mine", "dataset/train/a.nii", "dataset/valid/b.nii")
    assert "pass --dataset rad-chestct in" in remarks(describe(tmp_path / "rad"))
    assert "pass --dataset inspect in" in remarks(describe(tmp_path / "inspect"))
    assert "which ctgpu knows" not in remarks(describe(tmp_path / "mine"))


def test_built_in_descriptions_are_shown_as_they_are_written() -> None:
    text = built_in_file("ct-rate")
    assert text is not None
    assert found(text) == built_in()
    assert built_in_file("nothing") is None


# What cannot be described.


@pytest.mark.parametrize(
    ("paths", "said"),
    [
        ((), "is empty; pass the folder that holds the volumes"),
        (("t.csv", "u/t.tsv"), r"only 1 \.csv, 1 \.tsv; a description begins with them, and table"),
        (("a/1.dcm", "a/2.DCM", "t.csv"), r"only 2 \.dcm, 1 \.csv; `ctgpu build --source` takes"),
        (("a/IM01", ".b/a.nii"), "only 1 without suffix; pass the folder that holds the volumes"),
    ],
)
def test_without_a_volume_there_is_nothing_to_describe(
    tmp_path: Path, paths: tuple[str, ...], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        describe(named(tmp_path, *paths))


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    named(tmp_path, "a.nii.gz", "x.tar")
    with pytest.raises(UsageError, match="is a file and not a folder; pass the folder that holds"):
        describe(tmp_path / "a.nii.gz")
    with pytest.raises(UsageError, match="nowhere is not a folder"):
        describe(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="`ctgpu convert` takes them without a description"):
        describe(tmp_path / "x.tar")
    with pytest.raises(UsageError, match="--revision is of a data set on the Hub"):
        describe(tmp_path, revision="main")
    with pytest.raises(UsageError, match="one of the two"):
        describe()
    with pytest.raises(UsageError, match="one of the two"):
        describe(tmp_path, repo_id="a/b")
    with pytest.raises(UsageError, match="'' is not the name of a data set"):
        describe(repo_id="")


def test_folders_that_lead_nowhere_are_no_empty_ones(tmp_path: Path) -> None:
    (tmp_path / "scans").symlink_to(tmp_path / "gone")
    with pytest.raises(SourceError, match="lead nowhere, such as scans"):
        describe(tmp_path)


# The Hub.


def test_a_repository_is_described_by_its_listing(tmp_path: Path) -> None:
    root = scans(tmp_path / "repository", "train/a", "val/b")
    write_npz(root / "val/c.npz", ct=np.zeros((3, 5, 5), INT16))
    write_table(root / "tables/t.csv", ("id", "cyst"), [("a", 1), ("b", 0)])
    write_table(root / ".cache/t.csv", ("id", "cyst"), [("a", 1)])
    (root / "LICENSE.txt").write_text("Free, as in speech.\nDo no harm.\n")
    (root / "no.txt").write_text("b\n")
    named(root, ".cache/z.nii.gz")
    with LocalHub(root, "someone/lungs", page_size=2) as hub:
        text = describe(repo_id="someone/lungs", revision="main", endpoint=hub.url, token=False)
        (tmp_path / "mine.toml").write_text(text)
        build(
            tmp_path / "out",
            repo_id="someone/lungs",
            endpoint=hub.url,
            dataset=tmp_path / "mine.toml",
        )
    assert (found(text).repository, found(text).name) == ("someone/lungs", "someone/lungs")
    assert set(found(text).splits) == {"train", "valid"}
    assert [rule.files for rule in found(text).tables] == [("tables/t.csv",)]
    assert found(text).arrays.axes == "DHW"
    assert "a.nii.gz, whose" not in text
    assert "In these texts no volume is named: LICENSE.txt." in remarks(text)
    assert 'files = ["no.txt"]' in text
    begin = ["ctgpu", "build", "--repo-id", "someone/lungs", "--revision", "main"]
    assert commands(text) == [[*begin, "--dataset", "my-data.toml", "--output-dir", "shards"]]
    assert read_samples(tmp_path / "out")["a"].labels.tolist() == [1]


def test_what_is_large_on_the_hub_is_not_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "repository"
    write_npz(root / "c.npz", ct=np.zeros((3, 5, 5), INT16))
    write_table(root / "t.csv", ("id", "cyst"), [("c", 1)])
    monkeypatch.setattr(describing, "_MOST_FETCHED_BYTES", 3)
    with LocalHub(root, "someone/lungs") as hub:
        text = describe(repo_id="someone/lungs", endpoint=hub.url, token=False)
        assert not [request for request in hub.requests if "resolve" in request.path]
    assert "c.npz was not fetched to be looked at" in remarks(text)
    assert "t.csv was not looked at, for it has" in remarks(text)
    assert with_all_offered(text).arrays.member == "ct"


def test_a_repository_without_volumes_is_refused(tmp_path: Path) -> None:
    write_table(tmp_path / "repository/t.csv", ("id",), [("a",)])
    with (
        LocalHub(tmp_path / "repository", "someone/lungs") as hub,
        pytest.raises(UsageError, match=r"someone/lungs has no \.nii\.gz, .* or \.npy file among"),
    ):
        describe(repo_id="someone/lungs", endpoint=hub.url, token=False)


def test_a_table_of_a_common_name_alone_makes_no_data_set_known(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz", marked(0), codes="LPS")
    (tmp_path / "meta.csv").write_text("image_id;age\na;61\n")
    assert "TotalSegmentator" not in describe(tmp_path)
    (tmp_path / "s0000").mkdir()
    (tmp_path / "a.nii.gz").rename(tmp_path / "s0000" / "ct.nii.gz")
    assert "totalsegmentator" in describe(tmp_path)
