"""What says whom samples show: salt, keys, who may read the file, and what becomes of it."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from headers import file, series

from ctgpu.errors import StorageError, UsageError
from ctgpu.shards import disk
from ctgpu.sources.dicom.private import Pseudonyms, Register, SeriesFile, aliases_of, root_of

UID = "1.2.826.0.1.3680043.8.498.1"
REGISTER = "private/series.json"


def test_a_key_is_a_salted_hash_that_every_folder_has_of_its_own(tmp_path: Path) -> None:
    names = Pseudonyms(tmp_path / "a"), Pseudonyms(tmp_path / "b")
    salts = [each.settle_salt(tmp_path).salt for each in names]
    first, again, other = (
        names[n].key_of(UID, salts[n if of is None else of])
        for n, of in ((0, None), (1, 0), (1, 1))
    )
    assert first == again != other
    assert len(first) == 20
    assert int(first, 16)
    assert names[0].key_of("1.2", salts[0]) != first


def test_it_is_for_its_owner_alone_whatever_the_mask_is(tmp_path: Path) -> None:
    before = os.umask(0o000)
    try:
        names = Pseudonyms(tmp_path / "out")
        names.settle_salt(tmp_path)
        private = tmp_path / "out/private"
        assert stat.S_IMODE(private.stat().st_mode) == 0o700
        assert stat.S_IMODE((private / "series.json").stat().st_mode) == 0o600
        names.save(Register(salt="00" * 32, root="/r", series={"k": series("a.dcm")}))
        assert stat.S_IMODE((private / "series.json").stat().st_mode) == 0o600
    finally:
        os.umask(before)
    assert sorted(path.name for path in private.iterdir()) == [".gitignore", "series.json"]


def test_what_is_kept_comes_back_as_it_was(tmp_path: Path) -> None:
    names = Pseudonyms(tmp_path)
    assert names.load() is None
    others = (SeriesFile("c/\udcff.dcm", 3, 4, None, "a localizer"),)
    kept = Register(
        salt="ab" * 32, root="/pacs", series={"key": series("é/1.dcm", "é/2.dcm")}, others=others
    )
    (tmp_path / "private").mkdir()
    names.save(kept)
    assert names.load() == kept
    assert [*kept.known] == ["é/1.dcm", "é/2.dcm", "c/\udcff.dcm"]
    assert root_of(tmp_path) == "/pacs"


def test_processes_that_begin_together_have_one_salt(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        salts = [*pool.map(lambda _: Pseudonyms(tmp_path).settle_salt(tmp_path).salt, range(16))]
    assert len(set(salts)) == 1
    assert json.loads((tmp_path / REGISTER).read_bytes())["salt"] == salts[0]


def test_without_hard_links_there_is_one_salt_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*unused: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(disk.os, "link", link)
    salts = {Pseudonyms(tmp_path).settle_salt(tmp_path).salt for _ in range(2)}
    assert len(salts) == 1


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_git_does_not_take_it(tmp_path: Path) -> None:
    Pseudonyms(tmp_path / "out").settle_salt(tmp_path)
    (tmp_path / "out/plan.json").write_text("{}")
    for words in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    listed = subprocess.run(["git", "ls-files"], cwd=tmp_path, check=True, capture_output=True)
    assert listed.stdout == b"out/plan.json\n"


def test_without_a_folder_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = Pseudonyms()
    first, second = (names.settle_salt(tmp_path) for _ in range(2))
    names.save(first)
    assert first.salt != second.salt
    assert list(tmp_path.iterdir()) == []


def _gone(path: Path) -> None:
    path.unlink()


def _damaged(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9] + b"DOE^JANE")


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _other_format(path: Path) -> None:
    path.write_text(path.read_text().replace("ctgpu-private-1", "ctgpu-plan-1"))


def _short_salt(path: Path) -> None:
    path.write_bytes(msgspec.json.encode(Register(salt="00", root="/")))


@pytest.mark.parametrize("harm", [_gone, _damaged, _folder, _other_format, _short_salt])
def test_a_plan_does_not_go_on_without_it(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    Pseudonyms(tmp_path).settle_salt(tmp_path)
    harm(tmp_path / REGISTER)
    with pytest.raises(UsageError, match="it alone says which series") as caught:
        Pseudonyms(tmp_path, begun=True).load()
    assert "DOE" not in str(caught.value)


def test_where_uids_are_kept_a_plan_goes_on_without_it(tmp_path: Path) -> None:
    names = Pseudonyms(tmp_path, keep_uids=True, begun=True)
    assert names.load() is None
    assert names.key_of(UID, "") == UID
    for uid in ("DOE^JANE", "../1.2", "1" * 65, ""):
        with pytest.raises(UsageError, match="leave --keep-uids out") as caught:
            names.key_of(uid, "")
        assert "DOE" not in str(caught.value)


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "private").write_text("a file")
    with pytest.raises(StorageError, match="private cannot be written"):
        Pseudonyms(tmp_path).settle_salt(tmp_path)


def test_tables_call_a_series_by_what_belongs_to_it_alone() -> None:
    aliases = aliases_of(
        {
            "k1": series("P1/S1/1.dcm", "P1/S1/2.dcm", series_uid="1.1", study_uid="9.1"),
            "k2": series("P1/S2/1.dcm", series_uid="1.2", study_uid="9.1"),
            "k3": series("P2/cafe\u0301/1.dcm", "x/1.dcm", series_uid="1.3", study_uid="9.2"),
            "k4": series("1.dcm", series_uid="1.4", study_uid=""),
        }
    )
    assert aliases == {
        **{"1.1": "k1", "1.2": "k2", "1.3": "k3", "1.4": "k4"},
        **{"9.2": "k3", "S1": "k1", "S2": "k2", "P2": "k3", "café": "k3", "x": "k3"},
    }


def test_a_series_has_the_size_of_its_files_and_their_folders() -> None:
    one = series("a/1.dcm", "a/2.dcm", "3.dcm")
    assert one.size_bytes == 30
    assert one.folders == {"a", ""}
    assert file("a").header == one.files[0].header


def test_what_is_kept_of_another_folder_takes_the_place_of_nothing(tmp_path: Path) -> None:
    register = Pseudonyms(tmp_path / "a").settle_salt(tmp_path)
    assert Pseudonyms(tmp_path / "b").keep(register) is register
    assert Pseudonyms(tmp_path / "b").load() == register
    path = tmp_path / "b/private/series.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    other = Pseudonyms(tmp_path / "c").settle_salt(tmp_path)
    assert Pseudonyms(tmp_path / "b").keep(other) == register
    assert Pseudonyms().keep(other) is other
    assert Pseudonyms(tmp_path / "b").load() == register
