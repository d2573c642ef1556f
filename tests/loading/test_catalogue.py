"""Which shards a path, a pattern or a list of them names."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import pickle
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctgpu.errors import MismatchError, UsageError
from ctgpu.loading import VolumeDataset


@pytest.mark.parametrize(
    ("pattern", "studies"),
    [
        ("shard-*.tar", range(1, 12)),
        ("shard-*", range(1, 12)),
        ("shard-{000001..000002}.tar", range(4, 10)),
        ("shard-00000[03].tar", (1, 2, 3, 10, 11)),
        ("shard-000003.tar", (10, 11)),
    ],
)
def test_patterns_name_shards(hwd: Path, pattern: str, studies: Any) -> None:
    dataset = VolumeDataset(str(hwd / pattern))
    assert list(dataset.study_ids) == [f"valid_{n}_a_1" for n in studies]


def test_what_cannot_be_opened_is_refused_with_the_way_out(own: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("empty", "empty/shard-*.tar"):
        with pytest.raises(UsageError, match="names no finished shard"):
            VolumeDataset(tmp_path / name)
    with pytest.raises(UsageError, match=r"shard-000007\.tar is not there.*not finished"):
        VolumeDataset(own / "shard-000007.tar")
    with pytest.raises(UsageError, match="verify is 'sometimes'"):
        VolumeDataset(own, verify="sometimes")  # type: ignore[arg-type]
    manifest = json.loads((own / "manifest.json").read_text())
    (own / "manifest.json").write_text(json.dumps(manifest | {"fingerprint": 16 * "0"}))
    with pytest.raises(MismatchError, match="belongs to another data set"):
        VolumeDataset(own)
    (own / "manifest.json").write_text("[]")
    with pytest.raises(UsageError, match="ctgpu manifest"):
        VolumeDataset(own)
    # Without a manifest, as during a build, the plan says the same.
    (own / "manifest.json").unlink()
    (own / "shard-000002.json").unlink()
    assert len(VolumeDataset(own)) == 8


def test_a_shape_that_the_bytes_do_not_have_is_refused_when_opened(own: Path) -> None:
    manifest = json.loads((own / "manifest.json").read_text())
    manifest["spec"]["shape_hwd"] = [44, 36, 25]
    (own / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(MismatchError, match=r"valid_1_a_1\.bin has 76032 bytes.*asks for 79200"):
        VolumeDataset(own)


def test_folders_join_where_their_specs_agree(folder: Path, hwd: Path, tmp_path: Path) -> None:
    shutil.copytree(hwd, tmp_path / "a")
    shutil.copytree(folder, tmp_path / "b")
    pattern = str(tmp_path / "*" / "shard-*.tar")
    if folder.name == "DHW":
        with pytest.raises(MismatchError, match="not made to the same spec"):
            VolumeDataset(pattern)
        return
    dataset = VolumeDataset(pattern)
    assert len(dataset) == 22
    assert dataset[0]["study_id"] == dataset[11]["study_id"] == "valid_1_a_1"
    with pytest.raises(UsageError, match="more than once"):
        dataset["valid_1_a_1"]


def _study_ids(dataset: VolumeDataset, folder: Path, answer: Any) -> None:
    os.chdir(folder)
    sample = dataset[3]
    answer.send((dataset.study_ids, sample["study_id"], sample["volume"].tobytes()))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("pattern", ["own", "own/shard-*.tar", "own/shard-{000000..000003}.tar"])
def test_relative_paths_hold_after_the_working_directory_changes(
    own: Path, monkeypatch: pytest.MonkeyPatch, method: str, pattern: str
) -> None:
    monkeypatch.chdir(own.parent)
    dataset = VolumeDataset(pattern)
    expected = dataset[3]
    (own.parent / "elsewhere").mkdir()
    monkeypatch.chdir(own.parent / "elsewhere")
    assert np.array_equal(dataset[3]["volume"], expected["volume"])
    # A worker that knows nothing of either.
    context = multiprocessing.get_context(method)
    receive, send = context.Pipe(duplex=False)
    worker = context.Process(target=_study_ids, args=(dataset, Path("/"), send))
    worker.start()
    assert receive.poll(60)
    answer = receive.recv()
    worker.join(60)
    assert answer == (dataset.study_ids, "valid_4_a_1", expected["volume"].tobytes())


@pytest.mark.parametrize("name", ["x[ab]", "x{1,2}", "x{1..2}", "x*", "a?[b]{c,d}"])
def test_a_folder_whose_name_looks_like_a_pattern_means_itself(
    own: Path, name: str, tmp_path: Path
) -> None:
    shutil.move(own, tmp_path / name)
    for other in ("xa", "x1", "xy", "ab[b]c"):
        shutil.copytree(tmp_path / name, tmp_path / other)
        (tmp_path / other / "shard-000000.json").unlink()
    for pattern, count in (
        ("", 11),
        ("shard-000000.tar", 3),
        ("shard-*.tar", 11),
        ("shard-*", 11),
        ("shard-{000000..000001}.tar", 6),
        ("shard-{000000,000003}.tar", 5),
    ):
        dataset = VolumeDataset(tmp_path / name / pattern)
        assert len(dataset) == count
        assert {shard.path.parent for shard in dataset.shards} == {tmp_path / name}
        assert dataset[0]["study_id"] == "valid_1_a_1"


def test_lists_of_folders_and_of_shards_join(own: Path, tmp_path: Path) -> None:
    shutil.copytree(own, tmp_path / "other")
    assert len(VolumeDataset(tmp_path / "{own,other}")) == 22
    assert len(VolumeDataset(tmp_path / "{own,other}" / "shard-{000000,000003}.tar")) == 10
    # What is named twice is loaded once.
    assert len(VolumeDataset(tmp_path / "{own,own/shard-000000.tar,own/shard-*.tar}")) == 11
    with pytest.raises(UsageError, match="the path is empty"):
        VolumeDataset("")


def test_several_folders_in_a_list_stand_in_its_order(own: Path, tmp_path: Path) -> None:
    other = shutil.copytree(own, tmp_path / "a")
    (other / "shard-000000.tar").unlink()
    (other / "shard-000000.json").unlink()
    dataset = VolumeDataset([own, str(other)])
    assert len(dataset) == 19
    assert [shard.path.parent for shard in dataset.shards] == [own] * 4 + [other] * 3
    assert dataset.study_ids[11:] == dataset.study_ids[3:11]
    assert dataset[11]["study_id"] == "valid_4_a_1"
    assert len(VolumeDataset((f"{own}/shard-{{000000..000001}}.tar", other))) == 6 + 8
    assert len(VolumeDataset([own])) == 11
    assert len(make_copy(dataset)) == 19


def make_copy(dataset: VolumeDataset) -> VolumeDataset:
    copied: VolumeDataset = pickle.loads(pickle.dumps(dataset))
    return copied


def test_a_shard_that_is_named_twice_is_loaded_once_whichever_way_leads_there(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(own)
    monkeypatch.chdir(tmp_path)
    for again in (own, "own", "own/../own", "link", "own/shard-*.tar", own / "shard-000002.tar"):
        dataset = VolumeDataset([own, again])  # type: ignore[list-item]
        assert list(dataset.study_ids) == [f"valid_{n}_a_1" for n in range(1, 12)]
        assert {shard.path.parent for shard in dataset.shards} == {own}


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ([], "the list of folders is empty"),
        ([1], "neither a path nor a list of paths"),
        (7, "neither a path nor a list of paths"),
        (None, "neither a path nor a list of paths"),
        ([["nested"]], "neither a path nor a list of paths"),
    ],
)
def test_what_is_no_list_of_folders_is_refused(named: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        VolumeDataset(named)


def test_a_folder_without_a_shard_is_refused_also_beside_one_that_has_some(
    own: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"empty names no finished shard; give the folder"):
        VolumeDataset([own, tmp_path / "empty"])
    manifest = json.loads((own / "manifest.json").read_text())
    other = shutil.copytree(own, tmp_path / "other")
    manifest["class_names"] = manifest["class_names"][::-1]
    (other / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(MismatchError, match="not made to the same spec"):
        VolumeDataset([own, other])


def warnings_of(caplog: pytest.LogCaptureFixture, named: Any) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        VolumeDataset(named)
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("manifest", [True, False])
@pytest.mark.parametrize("named", ["{}", "{}/shard-*.tar", "{}/shard-000000.tar"])
def test_a_folder_that_is_not_finished_says_so_when_it_is_opened(
    own: Path, caplog: pytest.LogCaptureFixture, named: str, manifest: bool
) -> None:
    named = named.format(own)
    if not manifest:
        (own / "manifest.json").unlink()
    assert warnings_of(caplog, named) == []
    for extension in ("tar", "json"):
        (own / f"shard-000001.{extension}").unlink()
    (message,) = warnings_of(caplog, named)
    assert message.startswith(f"{own} is not finished: it holds 8 of 11 planned samples; run the")
    # What is opened already says nothing again.
    caplog.clear()
    make_copy(VolumeDataset(named)).select([0])
    assert len(caplog.records) == 1


def test_of_several_folders_the_unfinished_ones_are_named(
    own: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = shutil.copytree(own, tmp_path / "other")
    (other / "shard-000003.tar").unlink()
    (message,) = warnings_of(caplog, [own, other])
    assert message.startswith(f"{other} is not finished: it holds 9 of 11 planned samples")


def test_a_manifest_that_states_no_plan_is_not_doubted(
    own: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = json.loads((own / "manifest.json").read_text())
    for name in ("planned_shards", "planned_samples"):
        del manifest[name]
    (own / "manifest.json").write_text(json.dumps(manifest))
    (own / "shard-000001.json").unlink()
    assert warnings_of(caplog, own) == []


def test_a_folder_of_which_nothing_is_built_yet_says_so(own: Path) -> None:
    for record in own.glob("shard-*.json"):
        record.unlink()
    for _ in range(2):
        with pytest.raises(UsageError, match="none of its 11 planned samples is built yet"):
            VolumeDataset(own)
        (own / "manifest.json").unlink(missing_ok=True)


@pytest.mark.parametrize("name", ["planned_shards", "planned_samples"])
def test_a_manifest_whose_counts_are_none_is_refused(own: Path, name: str) -> None:
    manifest = json.loads((own / "manifest.json").read_text())
    (own / "manifest.json").write_text(json.dumps(manifest | {name: "many"}))
    odd = own.rename(own.parent / "the patient's $HOME")
    with pytest.raises(UsageError, match=f"{name}.*`ctgpu manifest") as caught:
        VolumeDataset(odd)
    assert f"`ctgpu manifest {shlex.quote(str(odd))}`" in str(caught.value)


def test_its_shards_have_short_reprs(hwd: Path) -> None:
    dataset = VolumeDataset(hwd)
    path = str(hwd / "shard-000001.tar")
    assert repr(dataset.shards[1]) == f"Shard({path!r}: 3 samples)"
    assert repr(dataset.select([3]).shards[1]) == f"Shard({path!r}: 1 sample, part of it)"
