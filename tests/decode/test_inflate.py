"""Every inflate backend against zlib, byte for byte and error for error."""

from __future__ import annotations

import gzip
import threading
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctgpu.decode import inflate_backend
from ctgpu.decode.inflate import (
    BACKENDS,
    Backend,
    InflateError,
    check_crc32,
    gzip_head,
    gzip_into,
)

NOISE = np.random.default_rng(3).normal(0, 40, 1 << 18).astype(np.int16).tobytes()


def as_array(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8).copy()


def in_a_zip(stream: bytes) -> tuple[np.ndarray, int, int]:
    """The stream between other bytes, as a zip file has them."""
    return as_array(b"\xaa" * 30 + stream + b"\xbb" * 46), 30, 30 + len(stream)


def deflate(data: bytes, level: int = 6) -> bytes:
    squeeze = zlib.compressobj(level, zlib.DEFLATED, -15)
    return squeeze.compress(data) + squeeze.flush()


@pytest.fixture(params=list(BACKENDS))
def backend(request: pytest.FixtureRequest) -> Backend:
    return BACKENDS[request.param]


def test_the_fastest_backend_is_named():
    assert inflate_backend() == next(iter(BACKENDS))
    assert set(BACKENDS) <= {"libdeflate", "isal"}


@pytest.mark.slow
@settings(deadline=None)
@given(
    data=st.one_of(st.binary(max_size=2000), st.sampled_from([NOISE, bytes(300_000), b""])),
    level=st.integers(0, 9),
    members=st.integers(1, 3),
    padding=st.integers(0, 20),
)
def test_gzip_and_zip_members_of_every_kind(data, level, members, padding):
    stream = b"".join(gzip.compress(data, level) + bytes(padding) for _ in range(members))
    file, start, stop = in_a_zip(deflate(data, level))
    for backend in BACKENDS.values():
        out = np.empty(members * len(data), np.uint8)
        backend.gzip_into(as_array(stream), out)
        assert out.tobytes() == data * members
        out = np.empty(len(data), np.uint8)
        backend.member_into(file, start, stop, out, zlib.crc32(data))
        assert out.tobytes() == data


@pytest.mark.parametrize("wrong", [-1, 1, -len(NOISE)], ids=["short", "long", "nothing"])
def test_the_size_must_be_as_declared(backend, wrong):
    out = np.empty(len(NOISE) + wrong, np.uint8)
    with pytest.raises(InflateError):
        backend.gzip_into(as_array(gzip.compress(NOISE)), out)
    with pytest.raises(InflateError):
        backend.member_into(*in_a_zip(deflate(NOISE)), out, zlib.crc32(NOISE))


def test_nothing_is_written_beyond_the_output(backend):
    memory = np.full(1 << 16, 0xEE, np.uint8)
    with pytest.raises(InflateError):
        backend.gzip_into(as_array(gzip.compress(bytes(1 << 20))), memory[: 1 << 15])
    assert (memory[1 << 15 :] == 0xEE).all()


def test_every_single_flipped_bit_is_found(backend):
    data = NOISE[:600]
    stream = deflate(data)
    out = np.empty(len(data), np.uint8)
    for bit in range(8 * len(stream)):
        damaged = bytearray(stream)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            backend.member_into(*in_a_zip(bytes(damaged)), out, zlib.crc32(data))
        except InflateError:
            continue
        assert out.tobytes() == data


def test_every_truncation_is_found(backend):
    stream = gzip.compress(NOISE[:600])
    out = np.empty(600, np.uint8)
    for size in range(len(stream)):
        with pytest.raises(InflateError):
            backend.gzip_into(as_array(stream[:size]), out)


def test_many_threads_share_a_backend(backend):
    streams = [gzip.compress(bytes([k]) * 100_000 + NOISE) for k in range(8)]
    outs = [np.empty(100_000 + len(NOISE), np.uint8) for _ in streams]
    threads = [
        threading.Thread(target=backend.gzip_into, args=(as_array(stream), out))
        for stream, out in zip(streams, outs, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k, out in enumerate(outs):
        assert out.tobytes() == bytes([k]) * 100_000 + NOISE


@settings(deadline=None)
@given(
    data=st.binary(max_size=3000),
    surplus=st.integers(0, 40),
    behind=st.sampled_from([b"", bytes(3), bytes(9000), b"rubbish", bytes(2) + b"\x1f"]),
)
def test_a_stream_may_go_on_behind_what_was_asked_for(data, surplus, behind):
    stream = as_array(gzip.compress(data) + bytes(2) + gzip.compress(bytes(surplus)) + behind)
    out = np.empty(len(data), np.uint8)
    assert gzip_into(stream, out, most_surplus_bytes=40) == surplus
    assert out.tobytes() == data
    assert gzip_into(stream, out, most_surplus_bytes=surplus // 2) == min(surplus, surplus // 2 + 1)


def test_a_stream_that_goes_on_must_still_be_whole():
    stream = gzip.compress(NOISE + b"more")
    out = np.empty(len(NOISE), np.uint8)
    for size in (len(stream) - 1, len(stream) // 2, 9, 1, 0):
        with pytest.raises(InflateError):
            gzip_into(as_array(stream[:size]), out, most_surplus_bytes=99)
    with pytest.raises(InflateError, match=r"inflates to 262,144 bytes and 524,288 are declared"):
        gzip_into(as_array(gzip.compress(NOISE[: 1 << 18])), np.empty(1 << 19, np.uint8))


def test_the_head_of_a_stream():
    stream = as_array(b"".join(gzip.compress(NOISE[k : k + 7]) for k in range(0, 70, 7)))
    assert gzip_head(stream, 50) == NOISE[:50]
    assert gzip_head(stream, 500) == NOISE[:70]
    assert gzip_head(as_array(gzip.compress(b"short") + b"rubbish"), 50) == b"short"
    with pytest.raises(InflateError):
        gzip_head(stream[:5], 50)


def test_crc32():
    check_crc32(as_array(NOISE), zlib.crc32(NOISE))
    with pytest.raises(InflateError, match="CRC-32"):
        check_crc32(as_array(NOISE), zlib.crc32(NOISE) ^ 1)


def test_the_private_name_of_isal_that_inflates_memory_into_memory_is_there():
    """Without it ``_isal_gzip_into`` fails, and where there is no libdeflate every volume with it.

    Then ``igzip_lib.IgzipDecompressor`` is the public way, slower and by way of memory of its own;
    until then pyproject.toml keeps isal below the next major version.
    """
    from isal import isal_zlib

    reader = isal_zlib._GzipReader(gzip.compress(NOISE))
    out = bytearray(len(NOISE) + 1)
    assert reader.readinto(memoryview(out)) == len(NOISE)
    assert out[:-1] == NOISE
    assert reader.read(1) == b""
