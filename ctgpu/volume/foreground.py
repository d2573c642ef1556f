"""The box of those voxels of a scan whose HU are above a threshold."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ctgpu.volume.orientation import Reorientation
from ctgpu.volume.raw import Rescale

_Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Box:
    """Some voxels of a scan.

    Attributes
    ----------
    start, stop : tuple of int
        Along the scan's own axes the first voxel, and the one behind the last.
    """

    start: tuple[int, ...]
    stop: tuple[int, ...]

    def of(self, voxels: _Array) -> _Array:
        """These voxels of all: a view."""
        return voxels[tuple(map(slice, self.start, self.stop))]

    def widened(self, by: Iterable[int], shape: Sequence[int]) -> Box:
        """With `by` voxels more at both ends of each axis, as far as there are such."""
        ends = list(zip(self.start, self.stop, by, shape, strict=True))
        return Box(
            tuple(max(0, start - more) for start, _, more, _ in ends),
            tuple(min(n, stop + more) for _, stop, more, n in ends),
        )

    def moved(self, by: Iterable[int]) -> Box:
        """The same so many voxels further on."""
        by = tuple(by)
        return Box(
            tuple(a + b for a, b in zip(self.start, by, strict=True)),
            tuple(a + b for a, b in zip(self.stop, by, strict=True)),
        )

    def affine_of(self, affine: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The affine of these voxels, for that of all: 4 × 4."""
        moved = np.array(affine, np.float64)
        moved[:3, 3] += moved[:3, :3] @ self.start
        return moved

    @property
    def ends(self) -> tuple[tuple[int, int], ...]:
        """For each axis start and stop."""
        return tuple(zip(self.start, self.stop, strict=True))


@dataclass(frozen=True, slots=True)
class Values:
    """Stored values whose HU are above a threshold: `least` to `most`, both included."""

    least: int | float
    most: int | float

    @classmethod
    def above(cls, hu: float, dtype: np.dtype[Any], rescale: Rescale) -> Values | None:
        """Those of a dtype; None where there are none.

        HU are those of :meth:`Rescale.hu_of`.  As voxels ascend, HU never turn around, so that one
        end of the range is that of the dtype, and the other is found by bisection.

        Parameters
        ----------
        hu : float
            HU that they are above.
        dtype : numpy.dtype
            Any integer or floating one.
        rescale : Rescale
            How voxels become HU.
        """
        value_of, last = _counted(dtype)
        is_whole = dtype.kind in "iu"
        low, high = (int(np.iinfo(dtype).min) if is_whole else -last), last
        lowest, highest = (low, high) if is_whole else (-math.inf, math.inf)

        def is_above(number: int) -> bool:
            return bool(rescale.hu_of(value_of(number))[0] > hu)

        rises = is_above(high)
        if is_above(low) == rises:
            return cls(lowest, highest) if rises else None
        while high - low > 1:
            middle = (low + high) // 2
            if is_above(middle) == rises:
                high = middle
            else:
                low = middle
        if rises:
            return cls(value_of(high)[0].item(), highest)
        return cls(lowest, value_of(low)[0].item())

    def hold(self, voxels: _Array) -> npt.NDArray[np.bool_]:
        """Which voxels have one of these values."""
        inside: npt.NDArray[np.bool_] = (voxels >= self.least) & (voxels <= self.most)
        return inside

    def box_in(self, voxels: _Array) -> Box | None:
        """The smallest box that holds all voxels with one of these values; None without any.

        Parameters
        ----------
        voxels : numpy.ndarray
            Three axes of at least one voxel; any strides, byte order, integer or floating dtype.
        """
        # From the slowest axis in memory to the fastest, each forwards.  Of one voxel the stride
        # may be anything.
        slow, middle, fast = sorted(
            range(3), key=lambda k: -abs(voxels.strides[k]) if voxels.shape[k] > 1 else -math.inf
        )
        flip_0, flip_1, flip_2 = (voxels.strides[k] < 0 for k in (slow, middle, fast))
        arranged = Reorientation((slow, middle, fast), (flip_0, flip_1, flip_2))
        ends = self._ends_in(arranged.view(voxels))
        if not ends:
            return None
        ascending = [
            (n - stop, n - start) if flip else (start, stop)
            for start, stop, n, flip in zip(
                ends[:3], ends[3:], arranged.along(voxels.shape), arranged.flips, strict=True
            )
        ]
        start, stop = zip(*arranged.stored(ascending), strict=True)
        return Box(start, stop)

    def _ends_in(self, voxels: _Array) -> list[int]:
        """First voxels and ends of the box, six numbers; none where it is empty."""
        if _is_plain(voxels):
            try:
                from ctgpu._native import foreground_box
            except ImportError:  # a pure package
                pass
            else:
                return foreground_box(voxels, self.least, self.most)
        planes, lines, items = (np.zeros(n, bool) for n in voxels.shape)
        for index, plane in enumerate(voxels):
            inside = self.hold(plane)
            planes[index] = inside.any()
            lines |= inside.any(axis=1)
            items |= inside.any(axis=0)
        if not planes.any():
            return []
        touched = [np.flatnonzero(axis) for axis in (planes, lines, items)]
        return [int(axis[0]) for axis in touched] + [int(axis[-1]) + 1 for axis in touched]


def _counted(dtype: np.dtype[Any]) -> tuple[Callable[[int], _Array], int]:
    """The values of a dtype as whole numbers in their order, and the last of these.

    Those of a floating dtype are counted from zero, up to the largest that float32 holds too.
    """
    native = dtype.newbyteorder("=")
    if native.kind in "iu":
        return lambda number: np.array([number], native), int(np.iinfo(native).max)
    words = np.dtype(f"u{native.itemsize}")

    def value_of(number: int) -> _Array:
        value = np.array([abs(number)], words).view(native)
        return -value if number < 0 else value

    most = min(float(np.finfo(native).max), float(np.finfo(np.float32).max))
    return value_of, int(np.array([most], native).view(words)[0])


def _is_plain(voxels: _Array) -> bool:
    """Whether the compiled code reads these voxels, which lie slowest axis first."""
    return (
        voxels.dtype.isnative
        and voxels.dtype.str[1:] != "f2"
        and voxels.flags.aligned
        and (voxels.shape[2] == 1 or voxels.strides[2] == voxels.itemsize)
    )
