"""Coverage-guided fuzzing of the tar reader.

``python tests/fuzz/fuzz_tar.py [CORPUS_DIR] [-max_total_time=SECONDS] [-runs=N] [-seed=N]`` takes
libFuzzer's options.  What is found besides a ``DecodeError`` is a crash, and its input is written
to the working directory.
"""

from __future__ import annotations

import io
import tarfile
import tempfile
from pathlib import Path

from instrumented import fuzz, instrumented

with instrumented("ctgpu"):
    from ctgpu.errors import DecodeError
    from ctgpu.shards.scan import scan_tar
    from ctgpu.shards.tar import BLOCK_BYTES

_FILE = tempfile.TemporaryFile()  # noqa: SIM115  (open as long as the process)


def with_checksums(data: bytes) -> bytes:
    """The first blocks with the checksums that headers there would have."""
    blocks = bytearray(data)
    for start in range(0, min(len(blocks), 64 * BLOCK_BYTES) - BLOCK_BYTES + 1, BLOCK_BYTES):
        block = blocks[start : start + BLOCK_BYTES]
        if any(block):
            total = sum(block[:148]) + 8 * 32 + sum(block[156:])
            blocks[start + 148 : start + 156] = b"%06o\0 " % total
    return bytes(blocks)


def scan_one(data: bytes) -> None:
    """One input: a ``DecodeError``, or files that lie inside the tar under harmless names."""
    # No mutation passes a checksum by itself, so every other input has them mended.
    tar = with_checksums(data[1:]) if data[:1] < b"\x80" else data[1:]
    _FILE.seek(0)
    _FILE.truncate()
    _FILE.write(tar)
    _FILE.flush()
    try:
        members = list(scan_tar(_FILE.fileno(), "fuzz.tar"))
    except DecodeError:
        return
    for member in members:
        assert 0 < member.offset <= member.offset + member.size_bytes <= len(tar)
        assert not member.name.startswith("/")
        assert ".." not in member.name.split("/")


def write_seeds(folder: Path) -> None:
    """Small tars of every format, with long names, folders, links and sparse files."""
    seeds = []
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        for name, kind in (
            ("a.bin", tarfile.REGTYPE),
            ("b/" * 60 + "long.json", tarfile.REGTYPE),
            ("folder", tarfile.DIRTYPE),
            ("link", tarfile.SYMTYPE),
        ):
            file = io.BytesIO()
            with tarfile.open(fileobj=file, mode="w", format=form) as tar:
                info = tarfile.TarInfo(name)
                info.type, info.linkname = kind, "../target"
                info.size = 5 if kind == tarfile.REGTYPE else 0
                tar.addfile(info, io.BytesIO(b"hello"))
            seeds.append(file.getvalue()[:4096])
    for k, seed in enumerate(seeds):
        (folder / f"seed-{k:03d}").write_bytes(bytes([k % 2 * 0x80]) + seed)


if __name__ == "__main__":
    fuzz(scan_one, write_seeds)
