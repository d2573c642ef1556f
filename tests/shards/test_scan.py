"""The record-less reader against good, foreign and hostile archives."""

from __future__ import annotations

import io
import os
import tarfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_samples import make_plan, write_shard

from ctgpu.errors import DecodeError
from ctgpu.shards.reader import ShardReader
from ctgpu.shards.scan import EXTENDED_LIMIT_BYTES, TarMember, scan_tar
from ctgpu.shards.tar import END_OF_ARCHIVE, header


def _scan(content: bytes, path: Path) -> list[TarMember]:
    path.write_bytes(content)
    with path.open("rb") as file:
        return list(scan_tar(file.fileno(), path))


def _file(name: str, data: bytes) -> bytes:
    return header(name, len(data)) + data + bytes(-len(data) % 512)


def _raw_header(**fields: tuple[int, bytes]) -> bytes:
    """A header with some fields overwritten, and a right checksum."""
    block = bytearray(header("scan.bin", 0))
    for offset, value in fields.values():
        block[offset : offset + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_archives_of_other_writers(format_: int, tmp_path: Path) -> None:
    names = ["a/scan_1.bin", "scan_1.seg.nii.gz", "ü.txt"]
    if format_ != tarfile.USTAR_FORMAT:
        names.append("folder/" * 30 + "long.bin")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format_) as tar:
        folder = tarfile.TarInfo("a")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = 700 * number, 1.5
            tar.addfile(info, io.BytesIO(bytes([number]) * info.size))
    content = buffer.getvalue()
    members = _scan(content, tmp_path / "other.tar")
    assert [member.name for member in members] == names
    assert [(m.key, m.extension) for m in members[:3]] == [
        ("a/scan_1", "bin"),
        ("scan_1", "seg.nii.gz"),
        ("ü", "txt"),
    ]
    for number, member in enumerate(members):
        data = content[member.offset : member.offset + member.size_bytes]
        assert data == bytes([number]) * 700 * number


def test_own_shards_are_found_as_recorded(tmp_path: Path) -> None:
    record = write_shard(tmp_path, make_plan())
    with ShardReader(tmp_path / "shard-000000.tar") as reader:
        found = [(m.key, m.extension, m.offset, m.size_bytes) for m in reader.scan()]
    assert found == [
        (entry.key, extension, member.offset, member.size_bytes)
        for entry in record.samples
        for extension, member in entry.members.items()
    ]


def test_a_size_beyond_octal_is_read(tmp_path: Path) -> None:
    """GNU writes sizes from 8 GiB on in base 256; here the number is small, the form is not."""
    block = _raw_header(size=(124, b"\x80" + (512).to_bytes(11, "big")))
    (member,) = _scan(block + bytes(512) + END_OF_ARCHIVE, tmp_path / "gnu.tar")
    assert member.size_bytes == 512


def _pax(text: bytes) -> bytes:
    return header("x", len(text), b"x") + text + bytes(-len(text) % 512)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is truncated"),
        (b"\1" * 100, "is truncated"),
        (_file("scan.bin", b"x" * 600), "without an end mark"),
        (_file("scan.bin", b"x" * 600)[:700], "claims 600 bytes"),
        (header("scan.bin", 8**11 - 1) + END_OF_ARCHIVE, "claims 8589934591 bytes"),
        (_raw_header(size=(124, b"\xff" * 12)) + END_OF_ARCHIVE, "claims"),
        (_raw_header(size=(124, b"-0000000001\0")) + END_OF_ARCHIVE, "no number"),
        (_raw_header(size=(124, b"99999999999\0")) + END_OF_ARCHIVE, "no octal number"),
        (b"\1" * 512 + END_OF_ARCHIVE, "holds no number"),
        (header("scan.bin", 0)[:-1] + b"x" + END_OF_ARCHIVE, "fails its checksum"),
        (header("x", 0, b"1") + END_OF_ARCHIVE, "a hard link"),
        (header("x", 0, b"2") + END_OF_ARCHIVE, "a symbolic link"),
        (header("x", 0, b"3") + END_OF_ARCHIVE, "a device"),
        (header("x", 0, b"6") + END_OF_ARCHIVE, "a pipe"),
        (header("x", 0, b"S") + END_OF_ARCHIVE, "a sparse file"),
        (header("x", 0, b"?") + END_OF_ARCHIVE, "an entry of type"),
        (_file("../scan.bin", b"") + END_OF_ARCHIVE, "leads out of the tar"),
        (_file("a/../../scan.bin", b"") + END_OF_ARCHIVE, "leads out of the tar"),
        (_file("./../scan.bin", b"") + END_OF_ARCHIVE, "leads out of the tar"),
        (_file("/etc/scan.bin", b"") + END_OF_ARCHIVE, "leads out of the tar"),
        (_pax(b"18 path=/etc/pass\n") + _file("x", b"") + END_OF_ARCHIVE, "leads out of the tar"),
        (_pax(b"14 path=a\0b/c\n") + _file("x", b"") + END_OF_ARCHIVE, "leads out of the tar"),
        (_pax(b"99 path=x\n") + _file("x", b"") + END_OF_ARCHIVE, "is torn"),
        (_pax(b"0 path=x\n") + _file("x", b"") + END_OF_ARCHIVE, "is torn"),
        (_pax(b"8 path x\n") + _file("x", b"") + END_OF_ARCHIVE, "is torn"),
        (_pax(b"path=x\n") + _file("x", b"") + END_OF_ARCHIVE, "holds no number"),
        (_pax(b"9" * 500 + b" a=b\n") + _file("x", b"") + END_OF_ARCHIVE, "holds no number"),
        (_pax(b"25 size=9999999999999999\n") + _file("x", b"") + END_OF_ARCHIVE, "claims 9999"),
        (_pax(b"11 size=-1\n") + _file("x", b"") + END_OF_ARCHIVE, "holds no number"),
        (
            header("x", EXTENDED_LIMIT_BYTES + 1, b"x") + bytes(EXTENDED_LIMIT_BYTES + 1024),
            "extended header of 1048577 bytes",
        ),
        (
            header("x", EXTENDED_LIMIT_BYTES + 1, b"L") + bytes(EXTENDED_LIMIT_BYTES + 1024),
            "extended header of 1048577 bytes",
        ),
    ],
)
def test_hostile_archives_end_in_one_sentence(content: bytes, problem: str, tmp_path: Path) -> None:
    with pytest.raises(DecodeError, match=problem) as caught:
        _scan(content, tmp_path / "hostile.tar")
    assert str(tmp_path / "hostile.tar") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_more_is_read_than_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    pread = os.pread

    def noting(fd: int, count: int, offset: int) -> bytes:
        read.append(count)
        return pread(fd, count, offset)

    monkeypatch.setattr(os, "pread", noting)
    _scan(_file("scan.bin", bytes(1 << 20)) + END_OF_ARCHIVE, tmp_path / "big.tar")
    assert read == [512, 512]


_ARCHIVE = (
    _pax(b"18 path=folder/ab\n")
    + _file("scan.bin", b"x" * 600)
    + header("x", 4, b"L")
    + b"name".ljust(512, b"\0")
    + _file("scan.txt", b"y" * 10)
    + END_OF_ARCHIVE
)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(
    changes=st.lists(
        st.tuples(st.integers(0, len(_ARCHIVE) - 1), st.integers(0, 255)), min_size=1, max_size=8
    ),
    length=st.integers(0, len(_ARCHIVE)),
    repair=st.booleans(),
)
def test_damaged_archives_are_read_or_refused(
    changes: list[tuple[int, int]],
    length: int,
    repair: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    content = bytearray(_ARCHIVE)
    for position, value in changes:
        content[position] = value
        if repair:
            start = position // 512 * 512
            block = content[start : start + 512]
            block[148:156] = b" " * 8
            content[start + 148 : start + 156] = b"%06o\0 " % sum(block)
    path = tmp_path_factory.getbasetemp() / "damaged.tar"
    try:
        members = _scan(bytes(content[:length]), path)
    except DecodeError:
        return
    for member in members:
        assert 0 <= member.offset <= member.offset + member.size_bytes <= length
        assert ".." not in member.name.split("/")[:-1]


def test_extended_headers_without_end_are_not_hoarded(tmp_path: Path) -> None:
    content = bytearray()
    for number in range(200):
        rest = b" comment%03d=" % number + b"a" * 60_000 + b"\n"
        record = b"%d" % (len(rest) + 5) + rest
        content += header("././@PaxHeader", len(record), b"x") + record
        content += bytes(-len(record) % 512)
    content += _file("scan.bin", b"data") + END_OF_ARCHIVE
    path = tmp_path / "hoard.tar"
    path.write_bytes(content)
    with path.open("rb") as file:
        tracemalloc.start()
        try:
            members = list(scan_tar(file.fileno(), path))
            assert tracemalloc.get_traced_memory()[1] < 2 << 20
        finally:
            tracemalloc.stop()
    assert [member.name for member in members] == ["scan.bin"]
