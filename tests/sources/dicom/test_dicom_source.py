"""A folder tree of DICOM as a source: names that say nothing, and what is not taken."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from pacs import marked, opened, put_series, voxels_of

from ctgpu.buffers import BufferPool
from ctgpu.data_sets import built_in
from ctgpu.data_sets.description import Description
from ctgpu.errors import FetchError, SourceError, UsageError
from ctgpu.sources import open_source
from ctgpu.sources.dicom.private import Pseudonyms
from ctgpu.sources.dicom.source import DicomSource
from ctgpu.sources.folder import FolderSource
from support.dicom_series import uid_of


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "DOE"
    for seed, folder in enumerate(("P1/S1", "P1/S2", "P2/S3")):
        put_series(root, folder, seed, study=folder[:2])
    return root


def test_series_are_listed_by_names_that_say_nothing(tmp_path: Path, root: Path) -> None:
    source = opened(root, tmp_path / "out")
    refs = source.list_volumes("valid")
    assert len(refs) == 3
    for ref in refs:
        assert ref.path == f"{ref.key}.dcm"
        assert ref.study_id == ref.key
        assert len(bytes.fromhex(ref.key)) == 10
        assert (ref.checksum, ref.provenance) == (None, "unknown")
    assert sum(ref.size_bytes for ref in refs) == sum(
        path.stat().st_size for path in root.rglob("*.dcm")
    )
    identity = source.identity()
    assert {**identity, "revision": ""} == {"kind": "dicom", "location": "dicom", "revision": ""}
    assert source.file_of(refs[0]) is None


def test_a_listing_is_the_same_wherever_and_however_the_files_lie(
    tmp_path: Path, root: Path
) -> None:
    first = opened(root, tmp_path / "out")
    refs = first.list_volumes("valid")
    other = tmp_path / "elsewhere"
    for number, path in enumerate(sorted(root.rglob("*.dcm"))):
        other.mkdir(exist_ok=True)
        shutil.copyfile(path, other / f"IM{number:05d}")
    second = opened(other, tmp_path / "out", begun=True)
    assert second.list_volumes("valid") == refs
    assert second.identity() == first.identity()
    assert opened(root, tmp_path / "another").list_volumes("valid") != refs


def test_each_series_is_its_own_slices(root: Path) -> None:
    source = opened(root, keep_uids=True)
    for seed, folder in enumerate(("P1/S1", "P1/S2", "P2/S3")):
        uid = uid_of(f"{folder}/{seed}")
        (ref,) = (ref for ref in source.list_volumes("valid") if ref.study_id == uid)
        assert (ref.key, ref.path) == (uid.replace(".", "_"), f"{uid}.dcm")
        np.testing.assert_array_equal(voxels_of(source, ref), marked(seed))


def test_what_is_no_ct_is_counted_and_not_named(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ctgpu")
    put_series(root, "P1/scout", change=lambda d, n: setattr(d, "ImageType", ["A", "LOCALIZER"]))
    put_series(root, "P1/mr", change=lambda d, n: setattr(d, "Modality", "MR"))
    (root / "P1/notes").write_text("of no format")
    assert len(opened(root).list_volumes("valid")) == 3
    assert "3 CT series in 12 files; left out: " in caplog.text
    for counted in ("a localizer (4)", "of another modality (4)", "no DICOM (1)"):
        assert counted in caplog.text
    assert "P1" not in caplog.text
    assert "1 study has several" in caplog.text


def test_a_file_that_cannot_be_read_fails_the_series_beside_it(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (root / "P1/S1/zz.dcm").write_bytes(b"cut")
    source = opened(root, keep_uids=True)
    refs = {ref.study_id: ref for ref in source.list_volumes("valid")}
    assert "1 of the series lies in folders with files that cannot be read" in caplog.text
    pool = BufferPool()
    with pytest.raises(FetchError, match="1 of the files in its folders cannot be read") as caught:
        source.fetch(refs[uid_of("P1/S1/0")], pool.acquire)
    assert "zz" not in str(caught.value) + caplog.text
    np.testing.assert_array_equal(voxels_of(source, refs[uid_of("P1/S2/1")]), marked(1))


def test_a_series_that_is_gone_is_a_sentence(tmp_path: Path, root: Path) -> None:
    source = opened(root, tmp_path / "out")
    refs = source.list_volumes("valid")
    later = opened(root, tmp_path / "out", begun=True)
    shutil.rmtree(root / "P2")
    left = later.list_volumes("valid")
    (gone,) = set(refs) - set(left)
    register = Pseudonyms(tmp_path / "out").load()
    assert register is not None
    assert {f"{key}.dcm" for key in register.series} == {ref.path for ref in refs}
    with pytest.raises(FetchError, match=f"^{gone.path}: its series is not there any more"):
        later.fetch(gone, BufferPool().acquire)


def test_a_source_that_is_gone_is_no_samples_fault(tmp_path: Path, root: Path) -> None:
    source = opened(root, tmp_path / "out")
    ref = source.list_volumes("valid")[0]
    shutil.rmtree(root)
    with pytest.raises(SourceError, match="is gone; mount it again and resume"):
        source.fetch(ref, BufferPool().acquire)


def test_a_folder_without_a_ct_says_what_it_has_and_leaves_nothing(tmp_path: Path) -> None:
    put_series(tmp_path / "mr", "a", change=lambda d, n: setattr(d, "Modality", "MR"))
    with pytest.raises(UsageError, match=r"has no CT series, only of another modality \(4\); pass"):
        opened(tmp_path / "mr", tmp_path / "out").list_volumes("valid")
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_when_nothing_has_changed(tmp_path: Path, root: Path) -> None:
    opened(root, tmp_path / "out").list_volumes("valid")
    path = tmp_path / "out/private/series.json"
    before = path.stat()
    opened(root, tmp_path / "out", begun=True).list_volumes("valid")
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    put_series(root, "P3", 9)
    assert len(opened(root, tmp_path / "out", begun=True).list_volumes("valid")) == 4
    assert path.stat().st_ino != before.st_ino


def test_tables_are_those_at_the_top_and_find_series_by_what_belongs_to_them(
    tmp_path: Path, root: Path
) -> None:
    (root / "labels.csv").write_text("series,nodule\n")
    (root / "P1/more.csv").write_text("series,nodule\n")
    source = opened(root, tmp_path / "out")
    refs = source.list_volumes("valid")
    assert source.unused_tables == ["labels.csv"]
    assert {*source.aliases.values()} == {ref.key for ref in refs}
    assert {"S1", "S2", "S3", "P2", uid_of("P2"), uid_of("P1/S1/0")} <= {*source.aliases}
    assert not {"P1", uid_of("P1")} & {*source.aliases}
    tables_only = tmp_path / "tables"
    tables_only.mkdir()
    later = opened(tables_only, tmp_path / "out", begun=True)
    later.find_tables("valid")
    assert later.aliases == source.aliases


def test_a_folder_is_opened_as_what_it_holds(tmp_path: Path, root: Path) -> None:
    assert type(open_source(source=root)) is DicomSource
    assert type(open_source(source=root, kind="folder")) is FolderSource
    (root / "mask.nii.gz").write_bytes(b"x")
    assert type(open_source(source=root)) is FolderSource
    assert type(open_source(source=root, kind="dicom")) is DicomSource
    (tmp_path / "empty").mkdir()
    assert type(open_source(source=tmp_path / "empty")) is FolderSource
    with pytest.raises(UsageError, match="is not a folder"):
        open_source(source=tmp_path / "nowhere")


def test_volumes_of_another_format_go_before_and_a_warning_counts_the_rest(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (root / "scan.nii.gz").write_bytes(b"x")
    (ref,) = open_source(source=root).list_volumes("valid")
    assert ref.path == "scan.nii.gz"
    assert "12 files of DICOM are not taken, beside 1 volume of another" in caplog.text
    assert "P1" not in caplog.text


def test_a_description_that_goes_by_paths_is_refused(root: Path) -> None:
    with pytest.raises(UsageError, match="the description of CT-RATE tells splits by folders"):
        open_source(source=root, data_set=built_in())
    by_table = Description.of(
        {
            "name": "mine",
            "splits": {"train": {"words": ["a"]}},
            "tables": [{"files": ["t.csv"], "key": "k", "split": "s"}],
        }
    )
    assert isinstance(open_source(source=root, data_set=by_table), DicomSource)
