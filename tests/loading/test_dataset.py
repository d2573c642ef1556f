"""Random access by number and study id, from folders and patterns."""

from __future__ import annotations

import copy
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

from built import read_samples
from ctgpu.errors import DecodeError, FetchError, MismatchError, StorageError, UsageError
from ctgpu.loading import VolumeDataset
from ctgpu.shards.reader import ShardReader


def flip_byte(tar: Path, offset: int) -> None:
    with tar.open("r+b") as file:
        file.seek(offset)
        (value,) = file.read(1)
        file.seek(offset)
        file.write(bytes([value ^ 0x10]))


def test_samples_are_those_that_any_tar_reader_sees(folder: Path) -> None:
    dataset = VolumeDataset(folder)
    expected = read_samples(folder)
    assert len(dataset) == len(expected) == 11
    assert list(dataset.study_ids) == list(expected)
    for index, (study_id, sample) in enumerate(expected.items()):
        axes = (2, 0, 1) if folder.name == "HWD" else (0, 1, 2)
        for found in (dataset[index], dataset[study_id], dataset[index - len(dataset)]):
            assert found["volume"].dtype == np.float16
            assert found["volume"].shape == (1, 24, 44, 36)
            assert np.array_equal(found["volume"][0], sample.array.transpose(axes))
            assert found["labels"].dtype == np.float32
            assert np.array_equal(found["labels"], sample.labels)
            assert (found["report"], found["study_id"]) == (sample.text, study_id)
        for key in (index, study_id, index - len(dataset)):
            assert dataset.metadata(key) == sample.metadata


def test_it_opens_without_a_tar_being_read(own: Path) -> None:
    for tar in own.glob("*.tar"):
        tar.write_bytes(b"")  # nothing of a record depends on it
    assert len(VolumeDataset(own)) == 11


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


def test_unknown_samples_are_lookup_errors(hwd: Path) -> None:
    dataset = VolumeDataset(hwd)
    for index in (11, -12):
        for ask in (dataset.__getitem__, dataset.metadata):
            with pytest.raises(IndexError):
                ask(index)
    for ask in (dataset.__getitem__, dataset.metadata):
        with pytest.raises(KeyError):
            ask("valid_99_a_1")
    with pytest.raises(TypeError):
        dataset[1.5]  # type: ignore[index]
    assert dataset[np.int64(3)]["study_id"] == "valid_4_a_1"  # type: ignore[index]


def test_first_verifies_once_always_always_and_off_never(own: Path) -> None:
    datasets = {name: VolumeDataset(own, verify=name) for name in ("first", "always", "off")}
    shard, entry = datasets["off"].locate(4)
    datasets["first"][4]
    flip_byte(shard.path, entry.members["bin"].offset + 5000)
    damaged = datasets["off"][4]["volume"]
    assert np.array_equal(datasets["first"][4]["volume"], damaged)
    with pytest.raises(FetchError, match=r"valid_5_a_1\.bin does not have its checksum"):
        datasets["always"][4]
    # A copy in another process has verified nothing yet.
    with pytest.raises(FetchError, match="checksum"):
        pickle.loads(pickle.dumps(datasets["first"]))[4]


def test_a_pickled_data_set_has_the_samples_of_when_it_was_opened(own: Path) -> None:
    (own / "manifest.json").unlink()  # as while the build goes on
    later = {name: (own / name).read_bytes() for name in ("shard-000000.json", "shard-000002.json")}
    for name in later:
        (own / name).unlink()
    dataset = VolumeDataset(own)
    pickled = pickle.dumps(dataset)
    for name, content in later.items():
        (own / name).write_bytes(content)
    assert len(VolumeDataset(own)) == 11
    for found in (pickle.loads(pickled), copy.deepcopy(dataset)):
        assert list(found.study_ids) == [f"valid_{n}_a_1" for n in (4, 5, 6, 10, 11)]
        for index in range(5):
            assert found[index]["study_id"] == dataset[index]["study_id"]
            assert np.array_equal(found[index]["volume"], dataset[index]["volume"])
        assert (found.spec, found.class_names) == (dataset.spec, dataset.class_names)
        assert found.index_of("valid_10_a_1") == 3
        assert found.metadata(3) == dataset.metadata(3)


def test_a_pickled_data_set_refuses_shards_that_were_rebuilt_or_removed(own: Path) -> None:
    pickled = pickle.dumps(VolumeDataset(own))
    (own / "shard-000001.tar").unlink()
    (own / "shard-000001.json").unlink()
    # Rebuilt, it holds other samples in the same places.
    shutil.copyfile(own / "shard-000000.tar", own / "shard-000002.tar")
    shutil.copyfile(own / "shard-000000.json", own / "shard-000002.json")
    found = pickle.loads(pickled)
    assert len(found) == 11
    with pytest.raises(StorageError, match=r"shard-000001\.tar.*when the data set was opened"):
        found[3]
    for key in (6, "valid_7_a_1"):
        with pytest.raises(FetchError, match="valid_7_a_1"):
            found[key]
    assert found[0]["study_id"] == "valid_1_a_1"


def test_a_pickled_data_set_is_small(hwd: Path) -> None:
    dataset = VolumeDataset(hwd)
    few = len(pickle.dumps(dataset))
    dataset.study_ids  # noqa: B018  (what is derived does not travel)
    dataset["valid_3_a_1"]
    assert len(pickle.dumps(dataset)) == few
    assert few < 3000 + 11 * 500


def _study_ids(dataset: VolumeDataset, folder: Path, answer: Any) -> None:
    os.chdir(folder)
    sample = dataset[3]
    answer.send((dataset.study_ids, sample["study_id"], sample["volume"].tobytes()))


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


@pytest.mark.parametrize("box", [(3, 36, 24), (5, 7, 24), (5, 7, 9), (44, 1, 1), (24, 3, 3)])
def test_a_box_reads_no_more_than_its_rows(
    folder: Path, box: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = VolumeDataset(folder, verify="first")
    stored = dataset.spec.stored_shape
    box = tuple(min(k, n) for k, n in zip(box, stored, strict=True))  # type: ignore[assignment]
    start = tuple(min(2, n - k) for k, n in zip(box, stored, strict=True))
    whole = np.empty(stored, np.float16)
    dataset.read_into(3, whole)
    expected = whole[tuple(slice(a, a + k) for a, k in zip(start, box, strict=True))]
    read_bytes = []
    read_part = ShardReader.read_part

    def counted(self: ShardReader, entry: Any, extension: str, at: int, out: memoryview) -> None:
        read_bytes.append(len(out) if extension == "bin" else 0)
        read_part(self, entry, extension, at, out)

    monkeypatch.setattr(ShardReader, "read_part", counted)
    out = np.empty(box, np.float16)
    dataset.read_into(3, out, start)  # type: ignore[arg-type]
    assert np.array_equal(out, expected)
    row = stored[2]
    assert sum(read_bytes) == 2 * box[0] * ((box[1] - 1) * row + box[2])
    # Where the volume was not verified yet, all of it is read, and checked.
    read_bytes.clear()
    dataset.read_into(4, out, start)  # type: ignore[arg-type]
    assert sum(read_bytes) == dataset.spec.size_bytes


def test_a_shard_that_is_gone_or_cut_off_is_a_clear_error(own: Path) -> None:
    dataset = VolumeDataset(own)
    (own / "shard-000001.tar").unlink()
    with pytest.raises(StorageError, match=r"shard-000001\.tar.*when the data set was opened"):
        dataset[3]
    with (own / "shard-000002.tar").open("r+b") as tar:
        tar.truncate(50_000)
    with pytest.raises(FetchError, match=r"ends within valid_7_a_1\.bin"):
        dataset[6]


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


def test_its_repr_is_short(own: Path, folder: Path) -> None:
    shape = "HWD (44, 36, 24)" if folder.name == "HWD" else "DHW (24, 44, 36)"
    expected = f"VolumeDataset('{folder}': 11 samples in 4 shards, float16 {shape})"
    assert repr(VolumeDataset(folder)) == expected
    if folder.name == "HWD":
        both = VolumeDataset([folder, own])
        assert repr(both.select([0, 21])).startswith(
            f"VolumeDataset('{folder} and 1 more': 2 samples in 2 shards, "
        )


def test_metadata_that_is_not_json_is_one_sentence(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = VolumeDataset(own)
    for text in (b"", b"[1, 2]", b"\xff", b"[" * 100_000):
        monkeypatch.setattr(ShardReader, "read", lambda *_, text=text: text)
        with pytest.raises(DecodeError, match=r"valid_1_a_1\.json is not a JSON object"):
            dataset.metadata(0)


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
    assert repr(dataset.select([3]).shards[1]) == f"Shard({path!r}: 1 samples, part of it)"
