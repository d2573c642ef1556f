"""Batches of `.ctz` on the emulated GPU: uploads, launches, streams, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ctz_cases import SHAPES, Batch, batch_of, whole

from ctgpu.codec import CtzError
from ctgpu.engines import ctz_on_device
from ctgpu.engines.ctz_on_device import CtzDecoder, CtzKernel, Output
from ctgpu.engines.cupy_runtime import upload
from ctgpu.engines.nvrtc import Kernels
from ctgpu.errors import DeviceError
from support.emulated_cupy import EmulatedCupy
from support.emulated_machine import in_this_process

# The kernel is compiled, and then run lane by lane.
pytestmark = pytest.mark.slow

SHAPE = SHAPES[0]


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> EmulatedCupy:
    return in_this_process(monkeypatch)


def usual() -> Batch:
    return batch_of([whole("float16", "rice"), whole("float16", "rice", seed=1)], SHAPE)


def test_a_batch_of_several_kinds_is_decoded_on_the_callers_stream(cupy: EmulatedCupy) -> None:
    kinds: Any = ("float16", "grid", "int16", "float16")
    members = [whole(kind, "rice", seed=n % 2) for n, kind in enumerate(kinds)]
    batch = batch_of(members, SHAPE)
    decoder = CtzDecoder(0)
    stream = cupy.cuda.Stream(non_blocking=True)
    out = cupy.empty(batch.wanted.shape, np.uint16)
    decoding = decoder.queue(batch.samples, batch.data, out, stream.ptr)
    assert stream.stream._queued  # nothing was waited for
    decoding.check()
    assert decoding.failures == {}
    assert not stream.stream._queued
    np.testing.assert_array_equal(cupy.asnumpy(out), batch.wanted)


def test_boxes_go_to_rows_and_planes_that_lie_apart(cupy: EmulatedCupy) -> None:
    members = [whole("uint8", "rice"), whole("uint8", "rice", seed=1)]
    batch = batch_of(members, SHAPE, [(2, 1, 3), (0, 5, 30)], (9, 7, 6))
    room = cupy.zeros((2, 10, 8, 11), np.uint8)
    out = room[:, 1:, 1:, 2:8]
    CtzDecoder(0).queue(batch.samples, batch.data, out, 0).check()
    written = np.zeros(room.shape, np.uint8)
    written[:, 1:, 1:, 2:8] = batch.wanted
    np.testing.assert_array_equal(cupy.asnumpy(room), written)


def test_what_lies_between_samples_is_not_sent(
    cupy: EmulatedCupy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows have room for the largest sample, and what a box meets is often a part of that."""
    batch, sent = usual(), []

    def counted(cupy: Any, to: int, source: int, size_bytes: int, stream: int) -> None:
        sent.append((source - batch.data.ctypes.data, size_bytes))
        upload(cupy, to, source, size_bytes, stream)

    monkeypatch.setattr(ctz_on_device, "upload", counted)
    out = cupy.empty(batch.wanted.shape, np.uint16)
    CtzDecoder(0).queue(batch.samples, batch.data, out, 0).check()
    _header, *tiles = sent
    sizes = [int(sample.head.table["size"].sum()) for sample in batch.samples]
    assert tiles == [(s.begin, size) for s, size in zip(batch.samples, sizes, strict=True)]
    assert sum(sizes) < len(batch.data)


def test_samples_that_are_damaged_are_named(cupy: EmulatedCupy) -> None:
    batch = usual()
    second = batch.samples[1]
    batch.data[second.begin : second.begin + 20] ^= 0xFF  # of its first tile, the codes
    out = cupy.empty(batch.wanted.shape, np.uint16)
    decoding = CtzDecoder(0).queue(batch.samples, batch.data, out, 0)
    wanted = "sample 1: its tile 0: its packed bits are not as long as its codes say"
    assert {n: str(error) for n, error in decoding.failures.items()} == {1: wanted}
    with pytest.raises(CtzError, match=wanted):
        decoding.check()
    # The device is as good as before, and so is the decoder.
    batch = usual()
    CtzDecoder(0).queue(batch.samples, batch.data, out, 0).check()
    np.testing.assert_array_equal(cupy.asnumpy(out), batch.wanted)


def test_no_samples_and_no_tiles_are_nothing_to_do(cupy: EmulatedCupy) -> None:
    decoder = CtzDecoder(0)
    none = np.empty(0, np.uint8)
    decoder.queue([], none, cupy.empty((0, *SHAPE), np.uint16), 0).check()
    without = [replace(usual().samples[0], runs=[], begin=0)]
    decoder.queue(without, none, cupy.empty((1, *SHAPE), np.uint16), 0).check()


def one(**changes: Any) -> Callable[[Batch], Any]:
    return lambda batch: [batch.samples[0], replace(batch.samples[1], **changes)]


@pytest.mark.parametrize(
    ("samples", "shape", "dtype", "sentence"),
    [
        (lambda batch: batch.samples[:1], (2, *SHAPE), "u2", "for 1 samples"),
        (one(), (2, *SHAPE), "u1", "sample 0 takes 2, side by side"),
        (one(start_dhw=(0, 1, 0)), (2, *SHAPE), "u2", "is not within sample 1"),
        (one(start_dhw=(-1, 0, 0)), (2, 5, 5, 5), "u2", "is not within sample 1"),
        (one(runs=[range(3, 5)]), (2, *SHAPE), "u2", "has no such tiles"),
        (one(begin=10**6), (2, *SHAPE), "u2", "the tiles of sample 1 are bytes 1000000 to"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_queued(
    cupy: EmulatedCupy, samples: Any, shape: Any, dtype: str, sentence: str
) -> None:
    batch = usual()
    with pytest.raises(ValueError, match=sentence):
        CtzDecoder(0).queue(samples(batch), batch.data, cupy.empty(shape, dtype), 0)


def test_voxels_that_lie_apart_and_other_devices_are_refused(cupy: EmulatedCupy) -> None:
    batch = usual()
    turned = cupy.empty_strided((2, *SHAPE), np.dtype("u2"), (10582, 2, 22, 286))
    with pytest.raises(ValueError, match="286 apart along W"):
        CtzDecoder(0).queue(batch.samples, batch.data, turned, 0)
    with pytest.raises(ValueError, match="out is on cuda:0, and cuda:1 decodes"):
        CtzDecoder(1).queue(batch.samples, batch.data, turned, 0)


def test_a_device_that_is_not_there_or_full_is_one_sentence(cupy: EmulatedCupy) -> None:
    with pytest.raises(DeviceError, match="there is no cuda:2; this process can see 2 GPUs"):
        CtzDecoder(2)
    batch, decoder = usual(), CtzDecoder(0)
    out = cupy.empty(batch.wanted.shape, np.uint16)
    cupy.gpus.device(0).total_bytes = 0
    with pytest.raises(DeviceError, match="no memory to decode a batch: choose a smaller"):
        decoder.queue(batch.samples, batch.data, out, 0)


def test_a_device_that_fails_is_one_sentence(
    cupy: EmulatedCupy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing has been queued that would still read the caller's memory."""
    batch, decoder = usual(), CtzDecoder(0)
    out = cupy.empty(batch.wanted.shape, np.uint16)
    uploads: list[Any] = []

    def fail(kernels: Kernels, ordinal: int, key: CtzKernel) -> None:
        raise cupy.cuda.driver.CUDADriverError(719)

    monkeypatch.setattr(Kernels, "get", fail)
    monkeypatch.setattr(ctz_on_device, "upload", lambda *what: uploads.append(what))
    wanted = r"cuda:0 failed while it decoded a batch \(.*719.*\): start this process again"
    with pytest.raises(DeviceError, match=wanted):
        decoder.queue(batch.samples, batch.data, out, 0)
    assert uploads == []


def test_tensors_are_taken_as_they_are() -> None:
    tensor = SimpleNamespace(
        data_ptr=lambda: 4096,
        element_size=lambda: 2,
        stride=lambda: (60, 20, 5, 1),
        shape=(2, 3, 4, 5),
        device=SimpleNamespace(index=1),
    )
    assert Output.of(tensor) == Output(4096, 1, (2, 3, 4, 5), (120, 40, 10, 2), 2)
