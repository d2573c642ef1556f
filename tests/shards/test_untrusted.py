"""Files and JSON from anywhere: read within bounds, or refused for a reason in words."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from ctgpu.buffers import Buffer, BufferPool
from ctgpu.shards import untrusted
from ctgpu.shards.untrusted import (
    Count,
    FileChanged,
    Text,
    decode,
    open_regular,
    parse_json,
    read_exactly,
    read_file,
    read_json,
    read_unchanged,
    read_unchanged_into,
)


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    # The name of a socket has a hundred bytes at most.
    home = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
    finally:
        os.chdir(home)


def link_to_zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (make_pipe, "it is a pipe"),
        (make_socket, "it is a socket"),
        (link_to_zeros, "it is a device"),
        (Path.mkdir, "it is a folder"),
    ],
)
def test_what_is_no_regular_file_is_neither_opened_nor_waited_for(
    make: Callable[[Path], None], words: str, tmp_path: Path
) -> None:
    path = tmp_path / "plan.json"
    make(path)
    before = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
    for read in (open_regular, read_json, lambda p: read_unchanged(p, BufferPool().acquire)):
        with pytest.raises(OSError, match=words):
            read(path)
    after = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
    assert after == before


def test_a_pipe_that_takes_the_place_of_a_file_while_it_is_opened_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(b"{}")
    real_open = os.open

    def swapped(name: str, flags: int, *mode: int) -> int:
        path.unlink()
        os.mkfifo(path)
        return real_open(name, flags, *mode)

    monkeypatch.setattr(os, "open", swapped)
    with pytest.raises(OSError, match="it is a pipe"):
        open_regular(path)


def test_links_to_files_are_followed_and_others_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"[1]")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "dangling").symlink_to("gone")
    assert read_json(tmp_path / "link") == [1]
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "dangling")


def test_a_file_above_its_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_file(path, 5) == b"12345"
    with pytest.raises(OSError, match="more than 4 bytes"):
        read_file(path, 4)
    os.truncate(path, 1 << 40)
    with pytest.raises(OSError, match="which none of its kind has"):
        read_json(path)


def test_a_file_that_grows_and_grows_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"[]")
    real_fstat = os.fstat

    def grown(fd: int) -> os.stat_result:
        status = real_fstat(fd)
        with path.open("ab") as file:
            file.write(bytes(100_000))
        return status

    monkeypatch.setattr(os, "fstat", grown)
    with pytest.raises(OSError, match="it has more than"):
        read_file(path, 1 << 40)


def test_what_is_written_while_a_small_file_is_read_is_read_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lease"
    path.write_bytes(b"")
    real_fstat = os.fstat

    def written(fd: int) -> os.stat_result:
        status = real_fstat(fd)
        path.write_bytes(b'{"pid": 1}')
        return status

    monkeypatch.setattr(os, "fstat", written)
    assert read_json(path) == {"pid": 1}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "Expecting value"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 200_000, "nested too deeply"),
        (b"1e999", "1e999 is no finite number"),
        (b"-1e999", "-1e999 is no finite number"),
        (b"NaN", "NaN is no finite number"),
        (b"Infinity", "Infinity is no finite number"),
        (b"1" * 5000, "a number of 5,000 digits"),
        (rb'["\ud800"]', "half a character"),
        (rb'{"\ud800": 1}', "half a character"),
        (b'["\xed\xa0\x80"]', "can't decode"),
        (b"\xff", "can't decode"),
    ],
)
def test_json_that_is_none_is_refused_in_words(content: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_json(content)
    for kind in (dict[str, str], list[str], float):
        with pytest.raises(ValueError, match=r"."):
            decode(content, kind)


@dataclass(frozen=True, slots=True)
class Named:
    name: Text
    count: Count = 0


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ({"count": 1}, "name"),
        ({"name": 5}, r"\$\.name"),
        ({"name": "a\0b"}, r"\$\.name"),
        ({"name": "a", "count": -1}, r"\$\.count"),
        ({"name": "a", "count": 1.0}, r"\$\.count"),
        ({"name": "a", "count": True}, r"\$\.count"),
        ({"name": "a", "count": "1"}, r"\$\.count"),
        ({"name": "a", "count": 2**63}, r"\$\.count"),
        ([], "object"),
        (None, "object"),
    ],
)
def test_what_is_of_another_type_is_refused_by_its_place(value: object, where: str) -> None:
    with pytest.raises(ValueError, match=where):
        decode(json.dumps(value).encode(), Named)
    # Also where a name that is not UTF-8 stands beside it.
    beside = {**value, "x": "\udcff"} if isinstance(value, dict) else [value, "\udcff"]
    with pytest.raises(ValueError, match=where):
        decode(json.dumps(beside).encode(), Named)


@pytest.mark.parametrize("name", ["", "ü", "\U0001f600", "M\udcfcller", 'a"\\\n'])
def test_text_comes_out_as_it_was_written(name: str) -> None:
    content = json.dumps({"later": {"a": [None]}, "name": name, "count": 2**63 - 1}).encode()
    assert decode(content, Named) == Named(name, 2**63 - 1)
    assert parse_json(content)["name"] == name


def put(path: Path, content: bytes, age_s: float = 10.0) -> None:
    path.write_bytes(content)
    status = path.stat()
    os.utime(path, (status.st_atime, status.st_mtime - age_s))


@pytest.mark.parametrize("at_once", [3, 1 << 20])
def test_reads_go_on_until_all_is_there(
    at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A system may give fewer bytes than are asked for, as some network file systems do."""
    (tmp_path / "x").write_bytes(bytes(range(20)))
    preadv = os.preadv
    monkeypatch.setattr(
        untrusted.os, "preadv", lambda fd, views, offset: preadv(fd, [views[0][:at_once]], offset)
    )
    with (tmp_path / "x").open("rb") as file:
        out = bytearray(10)
        read_exactly(file.fileno(), memoryview(out), 7)
        assert out == bytes(range(7, 17))
        read_exactly(file.fileno(), memoryview(out)[:0], 100)
        with pytest.raises(EOFError, match="cut by 2 bytes"):
            read_exactly(file.fileno(), memoryview(out), 12)


def test_a_file_is_read_whole_into_one_buffer(tmp_path: Path) -> None:
    path, pool = tmp_path / "volume.nii", BufferPool()
    content = os.urandom(3_000_000)
    put(path, content)
    for size_bytes in (None, len(content)):
        with read_unchanged(path, pool.acquire, size_bytes) as buffer:
            assert bytes(buffer.bytes) == content
    put(path, b"")
    with read_unchanged(path, pool.acquire) as buffer:
        assert buffer.size_bytes == 0
    assert pool.lent_bytes == 0


@pytest.mark.parametrize("age_s", [10.0, 0.0], ids=["old", "just written"])
@pytest.mark.parametrize(
    ("content", "words"),
    [(b"B" * 1000, "written while"), (b"B" * 10, "was cut by"), (b"B" * 2000, "written while")],
    ids=["rewritten", "cut", "longer"],
)
def test_a_file_that_changes_while_it_is_read_is_never_handed_on(
    content: bytes, words: str, age_s: float, tmp_path: Path
) -> None:
    path, pool = tmp_path / "volume.nii", BufferPool()
    put(path, b"A" * 1000, age_s)

    def allocate(size_bytes: int) -> Buffer:
        path.write_bytes(content)
        return pool.acquire(size_bytes)

    with pytest.raises(FileChanged, match=words):
        read_unchanged(path, allocate)
    assert pool.lent_bytes == 0


def test_a_file_of_another_size_than_listed_is_not_read(tmp_path: Path) -> None:
    put(tmp_path / "x", b"12345")
    with pytest.raises(FileChanged, match="has 5 bytes, but had 7"):
        read_unchanged(tmp_path / "x", BufferPool().acquire, 7)


def test_a_file_is_read_into_memory_of_its_size(tmp_path: Path) -> None:
    path, pool = tmp_path / "1.dcm", BufferPool()
    put(path, b"12345")
    with pool.acquire(9) as buffer:
        buffer.bytes[:] = 0
        read_unchanged_into(path, buffer.bytes[2:7])
        assert bytes(buffer.bytes) == b"\0\x0012345\0\0"
        for size_bytes in (4, 6, 0):
            with pytest.raises(FileChanged, match=f"has 5 bytes, but had {size_bytes} when"):
                read_unchanged_into(path, buffer.bytes[:size_bytes])


def test_a_write_that_began_before_the_file_was_opened_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its one stamp is from then, while its bytes arrive until after the file was read."""
    path, pool = tmp_path / "volume.nii", BufferPool()
    put(path, b"A" * 1000, age_s=1.0)
    status = path.stat()

    def arrive(seconds: float) -> None:
        writer.write(b"B" * 500)
        writer.flush()
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    monkeypatch.setattr(untrusted.time, "sleep", arrive)
    with path.open("r+b") as writer, pytest.raises(FileChanged, match="written while"):
        read_unchanged(path, pool.acquire)
    assert pool.lent_bytes == 0


def test_a_file_that_somebody_has_open_and_does_not_write_is_read(tmp_path: Path) -> None:
    path, pool = tmp_path / "volume.nii", BufferPool()
    put(path, b"A" * 1000, age_s=1.0)
    with path.open("r+b"), read_unchanged(path, pool.acquire) as buffer:
        assert bytes(buffer.bytes) == b"A" * 1000


def test_a_file_that_is_written_all_the_time_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "volume.nii"
    path.write_bytes(b"A")
    monkeypatch.setattr(untrusted.time, "sleep", lambda seconds: path.touch())
    with pytest.raises(FileChanged, match="all the time"):
        read_unchanged(path, BufferPool().acquire)
