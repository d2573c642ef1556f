"""How the CUDA kernel samples one axis: tables, as ``kernels/cuda/tile.h`` reads them.

What a tile needs is planned here once, on the host: which source rows lie in which slot of shared
memory, and between which columns each run of outputs goes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ctgpu.volume.geometry import AxisPlan

# As in tile.h.
SLOTS = 40
RUN = 8
_MOST_ROWS = 32
#: Rows of the output in a tile, at least.
FEWEST_ROWS = 8
# Two source rows each always fit.
_ALWAYS_FIT = SLOTS // 2
_NO_COLUMN = 2**31 - 1

STEP = np.dtype([("at0", "i4"), ("w", "f4"), ("at1", "i4"), ("reserved", "i4")])
BAND = np.dtype([("count", "i4"), ("rows", "i4", SLOTS)])
RUN_STEPS = np.dtype(
    [("first", "i4"), ("last", "i4"), ("steps", [("column", "i4"), ("w", "f4")], RUN + 1)]
)
_SAMPLED = np.dtype([("i0", "i4"), ("i1", "i4"), ("w", "f4")])


@dataclass(frozen=True, slots=True)
class Bands:
    """Tiles along H, and what each needs of the source.

    Attributes
    ----------
    tile_rows : int
        Rows of the output in a tile.
    counts : numpy.ndarray
        int32, shape (tiles,): groups of rows.
    groups : numpy.ndarray
        int32, shape (tiles, most): the groups of each, in order; beyond its count the last again.
    slots : numpy.ndarray
        int32, shape (2, n_valid): where the two rows of each step lie in the tile that it is in,
        counted in rows.
    """

    tile_rows: int
    counts: npt.NDArray[np.int32]
    groups: npt.NDArray[np.int32]
    slots: npt.NDArray[np.int32]

    def table(self, group_stride: int) -> npt.NDArray[Any]:
        """As the kernel reads it; `group_stride` is in source voxels."""
        table = np.zeros(len(self.counts), BAND)
        table["count"] = self.counts
        table["rows"][:, : self.groups.shape[1]] = self.groups * group_stride
        return table


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a piece: :class:`ctgpu.volume.geometry.AxisPlan` as the kernel takes it.

    Attributes
    ----------
    n_out, pad_before : int
        Voxels of the output, and of padding at the low side.
    steps : numpy.ndarray
        Fields ``i0``, ``i1`` (int32) and ``w`` (float32), shape (n_valid,).
    """

    n_out: int
    pad_before: int
    steps: npt.NDArray[Any]

    @classmethod
    def of(cls, plan: AxisPlan) -> Axis:
        """The whole axis."""
        steps = np.empty(plan.n_valid, _SAMPLED)
        steps["i0"], steps["i1"], steps["w"] = plan.i0, plan.i1, plan.w
        return cls(plan.n_out, plan.pad_before, steps)

    def cut(self, first: int, size: int) -> tuple[Axis, slice]:
        """Output voxels `first` to ``first + size``, and the source voxels these need."""
        begin = max(first - self.pad_before, 0)
        steps = self.steps[begin : max(first + size - self.pad_before, begin)].copy()
        pad_before = min(max(self.pad_before - first, 0), size)
        if not len(steps):
            return Axis(size, pad_before, steps), slice(0, 0)
        low, high = int(steps["i0"][0]), int(steps["i1"][-1])
        steps["i0"] -= low
        steps["i1"] -= low
        return Axis(size, pad_before, steps), slice(low, high + 1)

    def reversed(self, n_source: int) -> Axis:
        """The same steps of the source's voxels in the other direction."""
        steps = self.steps.copy()
        steps["i0"] = n_source - 1 - self.steps["i0"]
        steps["i1"] = n_source - 1 - self.steps["i1"]
        return Axis(self.n_out, self.pad_before, steps)

    @property
    def skips_voxels(self) -> bool:
        """Whether some source voxel between others is not needed."""
        return bool((np.diff(self.steps["i0"]) > 2).any())

    def table(self, at0: npt.NDArray[Any], at1: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The steps as the kernel reads them, with `at0` and `at1` for the two voxels of each."""
        table = np.zeros(len(self.steps), STEP)
        table["at0"], table["at1"], table["w"] = at0, at1, self.steps["w"]
        return table

    def strided(self, stride: int) -> npt.NDArray[Any]:
        """The same with the source voxels before each of the two."""
        return self.table(self.steps["i0"] * stride, self.steps["i1"] * stride)

    def runs(self, tile: int) -> npt.NDArray[Any]:
        """The steps in runs of :data:`RUN`, for tiles of so many voxels.

        Step by step the kernel waits for the second of its two columns; the last column of the
        source, blended with itself, is the second of those that have no other.
        """
        runs = np.zeros(-(-self.n_out // tile) * tile // RUN, RUN_STEPS)
        runs["steps"]["column"] = _NO_COLUMN
        runs["last"] = -1
        at = np.arange(len(self.steps)) + self.pad_before
        run = at // RUN
        runs["first"][run[:1]] = self.pad_before % RUN
        place = at % RUN - runs["first"][run]
        runs["steps"]["column"][run, place] = self.steps["i0"] + 1
        runs["steps"]["w"][run, place] = self.steps["w"]
        np.maximum.at(runs["last"], run, self.steps["i1"])
        return runs

    def bands(self, rows: int) -> Bands | None:
        """The largest tiles whose source fits, in groups of so many rows; None where none does."""
        for tile_rows in range(_MOST_ROWS, (FEWEST_ROWS if rows > 1 else _ALWAYS_FIT) - 1, -1):
            bands = self._bands(tile_rows, rows)
            if bands.groups.shape[1] * rows <= SLOTS:
                return bands
        return None

    def _bands(self, tile_rows: int, rows: int) -> Bands:
        n_valid = len(self.steps)
        tiles = -(-self.n_out // tile_rows)
        if not n_valid:
            nothing = np.zeros((tiles, 1), np.int32)
            return Bands(tile_rows, nothing[:, 0], nothing, np.zeros((2, 0), np.int32))
        first = np.arange(tiles) * tile_rows - self.pad_before
        begin = np.clip(first, 0, n_valid)
        end = np.clip(first + tile_rows, 0, n_valid)
        # Shape (tiles, 2 · tile_rows): both rows of every step, of the last step several times.
        at = np.minimum(begin[:, None] + np.arange(tile_rows), np.maximum(end, 1)[:, None] - 1)
        both = np.concatenate([self.steps["i0"][at], self.steps["i1"][at]], axis=1)
        order = np.argsort(both, axis=1, kind="stable")
        groups = np.take_along_axis(both, order, axis=1) // rows
        rank = np.zeros_like(groups)
        np.cumsum(np.diff(groups, axis=1) > 0, axis=1, out=rank[:, 1:])
        counts = np.where(end > begin, rank[:, -1] + 1, 0).astype(np.int32)
        distinct = np.zeros((tiles, int(counts.max())), np.int32)
        distinct[...] = groups[:, -1:]
        np.put_along_axis(distinct, np.minimum(rank, distinct.shape[1] - 1), groups, axis=1)
        unsorted = np.empty_like(rank)
        np.put_along_axis(unsorted, order, rank, axis=1)
        slots = unsorted * rows + both % rows
        kept = np.arange(tile_rows) < (end - begin)[:, None]
        pair = np.stack([slots[:, :tile_rows][kept], slots[:, tile_rows:][kept]])
        return Bands(tile_rows, counts, distinct, pair.astype(np.int32))
