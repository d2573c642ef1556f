"""Volumes as the structs that the CUDA kernel reads: spans, pieces, batches, launches."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from cuda_host import job, spec

from ctgpu.engines.batch import (
    VOLUME,
    Axis,
    KernelKey,
    Piece,
    Placed,
    Span,
    address_of,
    aligned,
    can_be_read_in_place,
    header_bytes,
    pack,
    plan_batches,
    readable,
)
from ctgpu.errors import DeviceError
from ctgpu.testing.voxels import MEMORY_ORDERS, random_voxels
from ctgpu.volume.geometry import plan_volume
from ctgpu.volume.raw import Rescale


def test_a_volume_that_never_fits_is_refused() -> None:
    made = job(random_voxels(6, (64, 64, 8)), spec((64, 64, 8)))
    with pytest.raises(
        DeviceError, match=r"one slice of a volume of shape \(64, 64, 8\).*--device"
    ):
        list(plan_batches([made], 5000))


def test_coarse_sampling_keeps_within_the_slots() -> None:
    for n, spacing, n_out in ((2000, 0.05, 90), (500, 0.6, 480), (300, 3.0, 600), (700, 1.0, 480)):
        plan = plan_volume((n, 4, 4), (spacing, 1, 1), spec((n_out, 4, 4)))
        axis = Axis.of(plan.axes[0])
        rows = axis.tile_rows
        assert 20 <= rows <= 32
        for first in range(0, n_out, rows):
            tile, source = axis.cut(first, min(rows, n_out - first))
            assert min(source.stop - source.start, 2 * len(tile.steps)) <= 40


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


def test_pieces_of_one_kernel_are_one_launch_and_their_tables_follow() -> None:
    made = [
        job(random_voxels(n, (12, 10, 9), dtype), spec((12, 10, 9)), rescale=rescale)
        for n, (dtype, rescale) in enumerate(
            [
                ("<i2", Rescale()),
                (">f4", Rescale()),
                ("<i2", Rescale()),
                ("<i2", Rescale(2, 1, "csv")),
            ]
        )
    ]
    pieces = [Piece.of(one, 0, 9) for one in made]
    placed = [Placed(p, p.voxels, 1000 * n, 2000 * n) for n, p in enumerate(pieces)]
    header, launches = pack(placed, 1 << 40)
    assert len(header) == header_bytes(pieces)
    assert [(launch.key.voxel, launch.key.rescales, launch.count) for launch in launches] == [
        ("f4", False, 1),
        ("i2", False, 2),
        ("i2", True, 1),
    ]
    assert [launch.first for launch in launches] == [0, 1, 3]
    volumes = header[: 4 * VOLUME.itemsize].view(VOLUME)
    assert volumes["source"].tolist() == [1000, 0, 2000, 3000]
    assert volumes["first_tile"].tolist() == [0, 0, launches[1].blocks // 2, 0]
    tables = volumes["axes"]["steps"].ravel() - (1 << 40)
    assert tables[0] == 4 * VOLUME.itemsize
    assert np.array_equal(np.sort(tables), tables)
    assert tables[-1] + pieces[0].axes[2].steps.nbytes == len(header)


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
    )
    assert piece.out_shape == (9, 12, 10)


@pytest.mark.parametrize("size_bytes", [0, 1, 255, 256, 257])
def test_what_lies_on_the_device_begins_where_any_width_may_be_read(size_bytes: int) -> None:
    assert aligned(size_bytes) % 256 == 0
    assert 0 <= aligned(size_bytes) - size_bytes < 256
