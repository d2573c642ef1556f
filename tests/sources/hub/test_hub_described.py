"""Repositories on the Hub that are not CT-RATE, by the globs of a description."""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from built import read_samples, tar_bytes
from ctgpu.building.relabelling import relabel
from ctgpu.cli.commands import app
from ctgpu.data_sets import Description, built_in
from ctgpu.errors import MismatchError, UsageError
from ctgpu.sources.hub.source import HubSource
from ctgpu.testing.hub import LocalHub
from support.data_set_copies import (
    FINE_SPEC,
    SPEC,
    build,
    lay_out_rad_chestct,
    marked,
    nothing_to_do,
    write_nifti,
    write_table,
)

REPOSITORY = "someone/lungs"
MINE = """
name = "Lungs"
class_names = ["cyst"]

[splits.train]
volumes = ["imagesTr/{patient}/{key}_ct.nii.gz"]
fallback = ["old/**/{key}.npz"]

[splits.test]
volumes = ["imagesTs/*.nii.gz"]

[[tables]]
files = ["tables/labels.csv", "labels.csv"]
key = "case"
labels = "classes"
text = ["Findings"]
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    for seed, path in enumerate(("p1/a", "p1/b", "p2/c")):
        write_nifti(root / "imagesTr" / f"{path}_ct.nii.gz", marked(seed), codes="LPS")
        write_nifti(root / "imagesTr" / f"{path}_mask.nii.gz", marked(9), codes="LPS")
    write_nifti(root / "imagesTs" / "d.nii.gz", marked(3), codes="LPS")
    write_nifti(root / "imagesTs" / ".hidden.nii.gz", marked(3), codes="LPS")
    rows = [("a", 1, "Of a."), ("imagesTr/p2/c.nii.gz", 0, "Of c."), ("d", 1, "Of d.")]
    write_table(root / "tables/labels.csv", ("case", "cyst", "Findings"), rows)
    (root / "README.md").write_text("Lungs.")
    return root


@pytest.fixture
def hub(files: Path) -> Iterator[LocalHub]:
    with LocalHub(files, REPOSITORY, page_size=2) as hub:
        yield hub


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "lungs.toml"
    path.write_text(MINE)
    return path


def opened(hub: LocalHub, text: str = MINE) -> HubSource:
    data_set = Description.of(tomllib.loads(text))
    return HubSource(REPOSITORY, endpoint=hub.url, token=False, data_set=data_set)


def listed(hub: LocalHub, split: str, text: str = MINE) -> dict[str, str]:
    source = opened(hub, text)
    try:
        return {ref.path: ref.study_id for ref in source.list_volumes(split)}
    finally:
        source.close()


def folders_asked_for(hub: LocalHub) -> set[str]:
    return {request.path for request in hub.requests if request.endpoint == "tree"}


def test_only_what_the_globs_fit_is_listed_page_by_page(hub: LocalHub) -> None:
    assert listed(hub, "train") == {
        f"imagesTr/{p}_ct.nii.gz": p[-1] for p in ("p1/a", "p1/b", "p2/c")
    }
    # Two folders and six files, two on a page; nothing beside the one folder.
    assert folders_asked_for(hub) == {"imagesTr"}
    assert hub.count("tree") == 4
    assert listed(hub, "test") == {"imagesTs/d.nii.gz": "d"}


def test_a_fallback_is_taken_where_nothing_fits_the_first(hub: LocalHub, files: Path) -> None:
    shutil.rmtree(files / "imagesTr")
    for name in ("x", "deep/y"):
        path = files / "old" / f"{name}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    hub.commit()
    assert listed(hub, "train") == {"old/deep/y.npz": "y", "old/x.npz": "x"}
    assert folders_asked_for(hub) == {"imagesTr", "old"}


@pytest.mark.parametrize("page_size", [1, 3, 1000])
def test_a_whole_repository_is_listed(hub: LocalHub, page_size: int) -> None:
    hub.page_size = page_size
    found = listed(hub, "valid", 'name = "All"\n')
    assert len(found) == 7
    assert set(found) >= {"imagesTr/p1/a_ct.nii.gz", "imagesTs/d.nii.gz"}
    assert folders_asked_for(hub) == {""}


def test_globs_of_several_folders_list_each_once(hub: LocalHub) -> None:
    globs = '["imagesTs/**", "imagesTr/p1/*_ct.nii.gz", "imagesTr/**/*_ct.nii.gz", "nowhere/*"]'
    found = listed(hub, "valid", f'name = "x"\n[volumes]\npaths = {globs}\n')
    assert [*found] == [
        *(f"imagesTr/{n}_ct.nii.gz" for n in ("p1/a", "p1/b", "p2/c")),
        "imagesTs/d.nii.gz",
    ]
    assert folders_asked_for(hub) == {"imagesTs", "imagesTr", "nowhere"}


def test_where_nothing_fits_the_way_out_is_said(hub: LocalHub) -> None:
    way_out = rf"for another data set .*`ctgpu describe --repo-id {REPOSITORY}` writes"
    with pytest.raises(UsageError, match=rf"no volume .*'train'.*dataset/train_fixed.*{way_out}"):
        HubSource(REPOSITORY, endpoint=hub.url, token=False).list_volumes("train")
    with pytest.raises(UsageError, match=rf"below nowhere, as x has them: {way_out}"):
        listed(hub, "valid", 'name = "x"\n[volumes]\npaths = ["nowhere/*"]\n')


@pytest.mark.slow
@pytest.mark.parametrize("redirect", [False, True])
def test_a_build_from_the_hub_is_that_of_a_folder(
    tmp_path: Path, hub: LocalHub, files: Path, mine: Path, redirect: bool
) -> None:
    hub.redirect = redirect
    build(tmp_path / "folder", files, dataset=mine, split="train")
    options: dict[str, Any] = {"repo_id": REPOSITORY, "endpoint": hub.url, "dataset": mine}
    report = build(tmp_path / "out", split="train", **options)
    assert (report.exit_code, report.data_set) == (0, "Lungs")
    assert [(table.path, table.volumes, table.of) for table in report.tables] == [
        ("tables/labels.csv", 2, 3)
    ]
    folder, samples = read_samples(tmp_path / "folder"), read_samples(tmp_path / "out")
    assert list(samples) == list(folder) == ["a", "b", "c"]
    for name, sample in samples.items():
        assert (sample.volume, sample.text) == (folder[name].volume, folder[name].text)
        assert sample.labels.tobytes() == folder[name].labels.tobytes()
    assert np.array_equal(samples["c"].labels, [0])
    assert np.isnan(samples["b"].labels).tolist() == [True]
    nothing_to_do(tmp_path / "out", **options)
    mine.unlink()
    nothing_to_do(tmp_path / "out", repo_id=REPOSITORY, endpoint=hub.url)


def test_it_is_pinned_and_goes_on_without_the_file(
    tmp_path: Path, hub: LocalHub, files: Path, mine: Path
) -> None:
    options: dict[str, Any] = {"repo_id": REPOSITORY, "endpoint": hub.url, "split": "train"}
    build(tmp_path / "whole", dataset=mine, **options)
    report = build(tmp_path / "out", dataset=mine, shards=range(1), **options)
    assert report.written == 2
    mine.unlink()
    write_table(files / "tables/labels2.csv", ("case", "cyst"), [])
    write_nifti(files / "imagesTr/p3/e_ct.nii.gz", marked(5), codes="LPS")
    hub.commit()
    assert build(tmp_path / "out", endpoint=hub.url).written == 1
    assert tar_bytes(tmp_path / "out") == tar_bytes(tmp_path / "whole")
    mine.write_text(MINE.replace('"cyst"', '"nodule"'))
    with pytest.raises(MismatchError, match="another description of Lungs: class_names differs"):
        build(tmp_path / "out", endpoint=hub.url, dataset=mine)


def test_a_built_in_one_serves_for_a_copy_of_its_data_set(tmp_path: Path) -> None:
    volumes = {f"val0000{n}": marked(n) for n in (1, 2)} | {"trn00003": marked(3)}
    root = lay_out_rad_chestct(tmp_path / "copy", volumes, tables="tables", images="npz")
    build(tmp_path / "folder", root, dataset="rad-chestct", spec=FINE_SPEC)
    with LocalHub(root, "lab/rad-chestct") as hub:
        options: dict[str, Any] = {
            "repo_id": "lab/rad-chestct",
            "endpoint": hub.url,
            "dataset": "rad-chestct",
        }
        build(tmp_path / "out", spec=FINE_SPEC, **options)
    folder, samples = read_samples(tmp_path / "folder"), read_samples(tmp_path / "out")
    assert list(samples) == ["val00001", "val00002"]
    for name, sample in samples.items():
        assert sample.volume == folder[name].volume
        assert sample.labels.tobytes() == folder[name].labels.tobytes()
        assert sample.metadata["source"]["orientation"] == "PLI"


def test_a_table_of_this_machine_serves_for_a_repository(
    tmp_path: Path, hub: LocalHub, mine: Path
) -> None:
    table = write_table(tmp_path / "mine.tsv", ("id", "stone"), [("a", 1), ("c", 0)])
    options: dict[str, Any] = {"repo_id": REPOSITORY, "endpoint": hub.url, "split": "train"}
    report = build(tmp_path / "out", dataset=mine, labels=table, **options)
    assert report.manifest["class_names"] == ["stone"]
    samples = read_samples(tmp_path / "out")
    assert [sample.text for sample in samples.values()] == ["Of a.", "", "Of c."]
    assert [sample.labels[0] for sample in samples.values()][::2] == [1, 0]
    write_table(table, ("id", "stone"), [("a", 0), ("c", 0)])
    assert list(relabel(tmp_path / "out", endpoint=hub.url).relabelled) == ["a"]


def test_the_command_builds_a_repository_by_a_file(
    tmp_path: Path, hub: LocalHub, mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    contract = ["--shape", "16,9,6", "--spacing", "4,3.5,6", "--device", "cpu"]
    place = ["--repo-id", REPOSITORY, "--output-dir", str(tmp_path / "out"), "--split", "train"]
    result = CliRunner().invoke(app, ["build", *place, "--dataset", str(mine), *contract])
    assert result.exit_code == 0, result.output
    manifest = json.loads((tmp_path / "out/manifest.json").read_bytes())
    assert (manifest["dataset"], manifest["total_samples"]) == (REPOSITORY, 3)
    assert manifest["class_names"] == ["cyst"]
    samples = read_samples(tmp_path / "out")
    build(tmp_path / "api", repo_id=REPOSITORY, endpoint=hub.url, dataset=mine, split="train")
    assert [s.volume for s in samples.values()] == [
        s.volume for s in read_samples(tmp_path / "api").values()
    ]


def test_of_ct_rate_the_same_is_asked_for_as_ever(tmp_path: Path, hub: LocalHub) -> None:
    """Listing begins at its folders, and a repository without them is not walked through."""
    with pytest.raises(UsageError, match="as CT-RATE has them"):
        build(tmp_path / "out", repo_id=REPOSITORY, endpoint=hub.url, spec=SPEC)
    assert folders_asked_for(hub) == {"dataset/valid_fixed", "dataset/valid"}
    assert not (tmp_path / "out/plan.json").exists()
    assert built_in().repository == "ibrahimhamamci/CT-RATE"
