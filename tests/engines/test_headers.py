"""Pinned headers: none is overwritten or given back while its copy is still queued."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

from ctgpu.engines.headers import Headers
from forking import Child
from support.emulated_cupy import EmulatedCupy, Event
from support.pinning import Pinning


@pytest.fixture
def cupy() -> EmulatedCupy:
    return EmulatedCupy()


@pytest.fixture
def pinning(cupy: EmulatedCupy) -> Pinning:
    return Pinning(cupy)


@pytest.fixture
def headers(cupy: EmulatedCupy, pinning: Pinning) -> Headers:
    return Headers(cupy, pinning.allocate)


def header(value: int, size: int = 1000) -> np.ndarray:
    return np.full(size, value, np.uint8)


def on_host(cupy: EmulatedCupy, memory: Any, stream: Any) -> np.ndarray:
    result = np.zeros(memory.size, np.uint8)
    to_host = cupy.cuda.runtime.memcpyDeviceToHost
    cupy.cuda.runtime.memcpyAsync(result.ctypes.data, memory.ptr, memory.size, to_host, stream.ptr)
    return result


def test_headers_that_are_still_queued_are_not_overwritten(
    cupy: EmulatedCupy, headers: Headers, pinning: Pinning
) -> None:
    stream = cupy.cuda.Stream(non_blocking=True)
    there = [cupy.cuda.Memory(1000) for _ in range(3)]
    for n, memory in enumerate(there):
        made = header(n)
        headers.upload(made, memory.ptr, stream)
        made.fill(99)  # the caller's again
    assert len(pinning.sizes) == 3
    for n, memory in enumerate(there):
        assert (on_host(cupy, memory, stream) == n).all()


def test_memory_is_used_again_once_its_copy_is_done(
    cupy: EmulatedCupy, headers: Headers, pinning: Pinning
) -> None:
    idle, busy = (cupy.cuda.Stream(non_blocking=True) for _ in range(2))
    there, other = (cupy.cuda.Memory(1000) for _ in range(2))
    headers.upload(header(1), other.ptr, busy)  # the oldest stays queued
    for n in range(10):
        headers.upload(header(n), there.ptr, idle)
        assert (on_host(cupy, there, idle) == n).all()
    assert len(pinning.sizes) == 2


def test_memory_that_is_too_small_makes_room_for_larger(
    cupy: EmulatedCupy, headers: Headers, pinning: Pinning
) -> None:
    stream = cupy.cuda.Stream(non_blocking=True)
    for size in (1_000, 50_000, 1_000, 60_000, 50_000):
        there = cupy.cuda.Memory(size)
        headers.upload(header(7, size), there.ptr, stream)
        assert (on_host(cupy, there, stream) == 7).all()
    assert pinning.sizes == [1_250, 62_500]
    assert len(pinning.addresses) == 1


@pytest.mark.slow
@pytest.mark.parametrize("how", ["closed", "dropped"])
def test_memory_is_given_back_only_after_it_was_read(
    cupy: EmulatedCupy, pinning: Pinning, how: str
) -> None:
    """The emulated device reads it when the copy runs: a crash, or other bytes, were it gone."""
    stream = cupy.cuda.Stream(non_blocking=True)
    there = cupy.cuda.Memory(1000)
    headers = Headers(cupy, pinning.allocate)
    headers.upload(header(5), there.ptr, stream)
    assert len(pinning.addresses) == 1
    if how == "closed":
        headers.close()
        headers.close()
    del headers
    gc.collect()
    assert pinning.addresses == set()
    assert (on_host(cupy, there, stream) == 5).all()


@pytest.mark.slow
def test_a_forked_child_asks_nothing_of_the_device(
    cupy: EmulatedCupy, pinning: Pinning, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = cupy.cuda.Memory(1000)
    headers = Headers(cupy, pinning.allocate)  # a fixture's would outlive `del`
    headers.upload(header(5), there.ptr, cupy.cuda.get_current_stream())
    asked: list[str] = []
    monkeypatch.setattr(Event, "synchronize", lambda event: asked.append("device"))

    def drop() -> bytes:
        nonlocal headers
        del headers
        gc.collect()
        return " ".join(asked).encode()

    assert Child(drop).sees() == b""
