"""The tars of a WebDataset as a source."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from tar_cases import VOXELS, facts, tar

from ctgpu.buffers import BufferPool
from ctgpu.errors import DecodeError, FetchError, UsageError
from ctgpu.shards.patterns import expand_pattern
from ctgpu.sources.tar_samples import samples_of_tar
from ctgpu.sources.tars import TarSource


def test_patterns_are_expanded(tmp_path: Path) -> None:
    for name in ("a-9.tar", "a-10.tar", "b-1.tar", "c.txt"):
        (tmp_path / name).touch()

    def names(pattern: object) -> list[str]:
        return [path.name for path in expand_pattern(str(pattern))]

    assert names(tmp_path) == ["a-9.tar", "a-10.tar", "b-1.tar"]
    assert names(tmp_path / "a-*.tar") == ["a-9.tar", "a-10.tar"]
    assert names(tmp_path / "{a-9,b-1}.tar") == ["a-9.tar", "b-1.tar"]
    assert names(tmp_path / "x-{08..11}.tar") == [f"x-{n}.tar" for n in ("08", "09", "10", "11")]
    assert names(tmp_path / "{a,b}-{1..2}.tar") == ["a-1.tar", "a-2.tar", "b-1.tar", "b-2.tar"]
    for pattern in ("x-{5..2}.tar", "x-{0..99999999}.tar"):
        with pytest.raises(UsageError, match="is no range"):
            expand_pattern(tmp_path / pattern)


def test_what_is_no_sample_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no volume for a, only txt"):
        TarSource(tar(tmp_path / "a.tar", {"a.txt": b"x"})).list_volumes("valid")
    with pytest.raises(UsageError, match="holds no sample"):
        TarSource(tar(tmp_path / "b.tar", {})).list_volumes("valid")
    double = tmp_path / "c.tar"
    with tarfile.open(double, "w") as archive:
        for _ in range(2):
            archive.addfile(tarfile.TarInfo("a.bin"))
    with pytest.raises(DecodeError, match="twice"):
        samples_of_tar(double)


def test_a_tar_that_was_cut_fails_the_sample_alone(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", {"b.bin": VOXELS.tobytes(), "b.json": facts()})
    source = TarSource(path)
    (ref,) = source.list_volumes("valid")
    path.write_bytes(path.read_bytes()[:520])
    pool = BufferPool()
    with pytest.raises(FetchError, match=r"changed after it had been listed"):
        source.fetch(ref, pool.acquire)
    assert pool.lent_bytes == 0


def test_hidden_members_are_no_samples(tmp_path: Path) -> None:
    own = {"a.bin": VOXELS.tobytes(), "a.json": facts(), "sub/b.npz": b"x"}
    plain = TarSource(tar(tmp_path / "plain" / "x.tar", own).parent / "*.tar")
    members = {"._a.bin": b"AppleDouble", **own, "sub/._b.npz": b"AppleDouble", ".DS_Store": b""}
    hidden = TarSource(tar(tmp_path / "hidden" / "x.tar", members).parent / "*.tar")
    assert hidden.list_volumes("valid") == plain.list_volumes("valid")
    assert hidden.identity()["revision"] == plain.identity()["revision"]
