"""Volumes as the structs that the CUDA kernel reads: spans, pieces, batches, launches."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cuda_host import job, spec

from ctgpu.engines import Job
from ctgpu.engines.batch import (
    KernelKey,
    Piece,
    Span,
    address_of,
    aligned,
    can_be_read_in_place,
    pair_limits,
    plan_batches,
    readable,
)
from ctgpu.engines.packing import Placed, pack
from ctgpu.errors import DeviceError
from ctgpu.testing.voxels import MEMORY_ORDERS, random_voxels
from ctgpu.volume.raw import Rescale


def test_a_volume_that_never_fits_is_refused() -> None:
    made = job(random_voxels(6, (64, 64, 8)), spec((64, 64, 8)))
    with pytest.raises(
        DeviceError, match=r"one slice of a volume of shape \(64, 64, 8\).*--device"
    ):
        list(plan_batches([made], 5000))


@pytest.mark.parametrize("order", MEMORY_ORDERS)
@pytest.mark.parametrize("flipped", [set(), {0}, {1, 2}])
def test_a_span_covers_every_voxel_of_a_view_and_no_more(order: str, flipped: set[int]) -> None:
    voxels = random_voxels(1, (7, 5, 6), "<i4", order, flipped=flipped, step=2)
    span = Span.of(voxels)
    held = ctypes.string_at(span.address, span.size_bytes)
    found = np.ndarray(voxels.shape, "<i4", held, span.origin_bytes, voxels.strides)
    assert np.array_equal(found, voxels)
    lowest = tuple(0 if s > 0 else n - 1 for s, n in zip(voxels.strides, voxels.shape, strict=True))
    assert voxels[lowest].tobytes() == held[:4]
    assert address_of(voxels) == span.address + span.origin_bytes


def test_what_the_kernel_reads_in_place_is_not_copied() -> None:
    dense = random_voxels(2, (8, 9, 10))
    for known in (dense, dense[::-1], dense.transpose(2, 0, 1), dense.astype(">f4"), dense[:, ::2]):
        assert can_be_read_in_place(known)
        assert readable(known) is known
    sparse = dense[::4, :, ::2]  # the bytes between are more than the voxels
    assert not can_be_read_in_place(sparse)
    assert readable(sparse).dtype == sparse.dtype
    assert np.array_equal(readable(sparse), sparse)
    odd = np.zeros((4, 4, 4), np.dtype([("tag", "u1"), ("value", "<i2")]))["value"]
    assert not can_be_read_in_place(odd)
    wide = dense.astype(np.longdouble)
    assert readable(wide).dtype == np.float32
    assert np.array_equal(readable(wide), dense)


@pytest.mark.parametrize("d_size", [1, 7, 40])
def test_slabs_together_are_the_volume(d_size: int) -> None:
    made = job(random_voxels(3, (20, 18, 30)), spec((24, 20, 40)), (1.0, 1.0, 0.9))
    n = made.plan.axes[2].n_out
    pieces = [Piece.of(made, first, min(d_size, n - first)) for first in range(0, n, d_size)]
    assert [piece.is_whole for piece in pieces] == [d_size == 40] * len(pieces)
    assert sum(piece.out_bytes for piece in pieces) == made.out.nbytes
    for piece in pieces:
        piece.out_view()[...] = piece.d_first
    firsts = np.arange(n) // d_size * d_size
    assert np.array_equal(made.out, np.broadcast_to(firsts, made.out.shape))
    # Each has the source slices that its steps name, and none beside.
    for piece in pieces:
        steps = piece.axes[2].steps
        assert len(steps) == 0 or steps["i0"].min() == 0
        assert piece.voxels.shape[2] == (steps["i1"].max() + 1 if len(steps) else 0)


def test_a_piece_of_padding_alone_needs_no_source() -> None:
    made = job(random_voxels(3, (4, 4, 4)), spec((4, 4, 40)))
    piece = Piece.of(made, 0, 8)
    assert piece.source_bytes == 0
    assert piece.voxels.size == 0
    assert piece.axes[2].pad_before == 8


def test_batches_keep_to_the_limit_and_to_the_order() -> None:
    jobs = [job(random_voxels(n, (12, 10, 9)), spec((12, 10, 9))) for n in range(5)]
    one = Piece.of(jobs[0], 0, 9).device_bytes
    batches = list(plan_batches(jobs, 2 * one))
    assert [len(pieces) for pieces in batches] == [2, 2, 1]
    assert [piece.job for pieces in batches for piece in pieces] == jobs
    assert list(plan_batches([], one)) == []
    for pieces in plan_batches(jobs, one // 2):
        assert sum(piece.device_bytes for piece in pieces) <= one // 2


def kernel_of(made: Job, address: int = 256) -> KernelKey:
    """The kernel for a job whose voxel (0, 0, 0) lies at an address."""
    piece = Piece.of(made, 0, made.plan.axes[2].n_out)
    (launch,) = pack([Placed(piece, piece.voxels, address, 0)], 0)[1]
    return launch.key


@pytest.mark.parametrize(
    ("shape", "order", "flipped", "address", "rows"),
    [
        ((16, 10, 9), "DWH", (), 256, 4),
        ((16, 10, 9), "WDH", (1, 2), 256, 4),
        ((16, 10, 9), "DWH", (0,), 256 + 2 * 15, 4),  # from the other end of a row
        ((16, 10, 9), "DWH", (0,), 256, 1),
        ((16, 10, 9), "DWH", (), 256 + 2, 1),  # off the alignment of a vector
        ((15, 10, 9), "DWH", (), 256, 1),  # and so would be the next column
        ((10, 16, 9), "DHW", (), 256, 1),  # contiguous along another axis
    ],
)
def test_four_rows_are_read_at_once_where_they_lie_together(
    shape: tuple[int, int, int], order: str, flipped: tuple[int, ...], address: int, rows: int
) -> None:
    voxels = random_voxels(1, shape, "<i2", order, flipped=flipped)
    assert kernel_of(job(voxels, spec((16, 16, 16))), address).rows == rows


def test_rows_that_are_skipped_or_spread_are_read_one_by_one() -> None:
    voxels = random_voxels(1, (16, 12, 9), "<i2", "DWH")
    assert kernel_of(job(voxels[:15], spec((16, 16, 16)))).rows == 1
    assert kernel_of(job(voxels[::2], spec((16, 16, 16)))).rows == 1
    assert kernel_of(job(voxels[:, ::2], spec((16, 16, 16)))).rows == 4
    assert kernel_of(job(voxels[:, 3:], spec((16, 16, 16)))).rows == 4
    tall = random_voxels(1, (400, 12, 9), "<i2", "DWH")
    assert kernel_of(job(tall, spec((40, 16, 16)), (0.125, 1.0, 1.0))).rows == 1
    assert kernel_of(job(tall, spec((400, 4, 16)), (1.0, 0.3, 1.0))).rows == 1


@pytest.mark.parametrize(
    ("hu_window", "rescale", "limits"),
    [
        ((-1000.0, 1000.0), Rescale(), (-1000, 1000)),
        ((-150.0, 250.0), Rescale(1.0, -1024.0, "header"), (874, 1274)),
        (None, Rescale(), (-32768, 32767)),
        ((-150.5, 250.0), Rescale(), None),
        ((-150.0, 250.0), Rescale(1.0, 0.5, "header"), None),
        ((-150.0, 250.0), Rescale(0.5, 0.0, "header"), None),
        ((-150.0, 40000.0), Rescale(), None),
        ((-150.0, 250.0), Rescale(1.0, 32800.0, "header"), None),
    ],
)
def test_pairs_are_clipped_to_whole_numbers_that_mean_the_same(
    hu_window: Any, rescale: Rescale, limits: tuple[int, int] | None
) -> None:
    window: dict[str, Any] = {"hu_window": hu_window} | (
        {} if hu_window else {"normalise": "zscore"}
    )
    made = job(
        random_voxels(1, (16, 10, 9), "<i2", "DWH"), spec((16, 16, 16), **window), rescale=rescale
    )
    assert pair_limits(made) == limits
    assert kernel_of(made).pairs == (limits is not None)
    if limits is None:
        return
    every = np.arange(-32768, 32768, dtype=np.float32)
    lo, hi = np.float32(made.plan.values.clip_lo), np.float32(made.plan.values.clip_hi)
    wanted = np.clip(every * np.float32(rescale.slope) + np.float32(rescale.intercept), lo, hi)
    clipped = np.clip(every, *limits)
    made_so = clipped * np.float32(rescale.slope) + np.float32(rescale.intercept)
    np.testing.assert_array_equal(made_so, wanted)


@pytest.mark.parametrize(
    ("dtype", "clip"), [(">i2", "before"), ("<u2", "before"), ("<i2", "after")]
)
def test_only_what_is_clipped_first_as_int16_is_clipped_in_pairs(dtype: str, clip: Any) -> None:
    made = job(random_voxels(1, (16, 10, 9), dtype, "DWH"), spec((16, 16, 16), clip=clip))
    key = kernel_of(made)
    assert key.rows == 4
    assert not key.pairs


def test_a_kernel_is_chosen_by_all_that_it_is_compiled_for() -> None:
    made = job(random_voxels(1, (12, 10, 9)), spec((12, 10, 9), "DHW", dtype="uint8", clip="after"))
    piece = Piece.of(made, 0, 9)
    swapped = np.asfortranarray(made.voxels.astype(">u2"))
    key = piece.key(swapped)
    assert key == KernelKey("u2", True, 0, 1, False, False, "uint8")
    assert key.defines == (
        "-DCTGPU_VOXEL=unsigned short",
        "-DCTGPU_SWAP=1",
        "-DCTGPU_FAST=0",
        "-DCTGPU_OUT=1",
        "-DCTGPU_RESCALES=0",
        "-DCTGPU_CLIPS_BEFORE=0",
        "-DCTGPU_STORED=ctgpu::Stored::uint8",
        "-DCTGPU_ROWS=1",
        "-DCTGPU_PAIRS=0",
    )
    assert replace(key, rows=4, pairs=True).defines[-2:] == ("-DCTGPU_ROWS=4", "-DCTGPU_PAIRS=1")
    assert piece.out_shape == (9, 12, 10)


@pytest.mark.parametrize("size_bytes", [0, 1, 255, 256, 257])
def test_what_lies_on_the_device_begins_where_any_width_may_be_read(size_bytes: int) -> None:
    assert aligned(size_bytes) % 256 == 0
    assert 0 <= aligned(size_bytes) - size_bytes < 256
