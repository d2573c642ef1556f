"""The box of the patient in a scan, without the table.

Voxels some 4 mm apart along each axis are looked at; of those above the threshold the largest group
of neighbours, face to face, is the body's.  From the group's two outermost planes it is followed
further out, plane by plane through all voxels, as far as these touch, and one plane more, for noise
at its edge: beyond the last plane of the group by two steps of 4 mm at most.  Where the scan ends
within one step, all that is above the threshold there counts.

So the box cuts the body only where it is thinner than a step over more than a step, as a tube is;
and it leaves out what does not touch the body, as long as some 4 mm lie between the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from ctgpu.errors import EnvironmentFailure, shortage
from ctgpu.installation import install_command
from ctgpu.volume.foreground import Box, Values
from ctgpu.volume.raw import Spacing

#: What is looked at lies so far apart, or as near to it as whole voxels come.
STEP_MM = 4.0

_FACES = 6  # neighbours of a voxel
_MOST_STEPS = 2

_Voxels = npt.NDArray[Any]
_Mask = npt.NDArray[np.bool_]


def import_cc3d() -> ModuleType:
    """The library that finds the groups.

    Raises
    ------
    EnvironmentFailure
        With the command that adds it.
    """
    try:
        return import_module("cc3d")
    except ImportError as error:
        raise shortage(error) or EnvironmentFailure(
            "crop='body' needs connected-components-3d, which is not installed here: "
            f"`{install_command('crop')}`, or use crop='foreground'"
        ) from error


def body_box(voxels: _Voxels, values: Values, spacing_mm: Spacing) -> Box | None:
    """The box of the patient; None where nothing that was looked at is above the threshold.

    Parameters
    ----------
    voxels : numpy.ndarray
        All voxels along the scan's own axes; any strides, byte order and dtype.
    values : Values
        Those above the threshold.
    spacing_mm : tuple of float
        Voxel size along the same axes.

    Raises
    ------
    EnvironmentFailure
        As :func:`import_cc3d`.
    """
    steps = [
        max(1, min(n, round(STEP_MM / s))) for n, s in zip(voxels.shape, spacing_mm, strict=True)
    ]
    # In one order of memory, so that of groups of one size the same is taken always.
    looked_at = np.asfortranarray(voxels[tuple(slice(step // 2, None, step) for step in steps)])
    near = values.box_in(looked_at)
    if near is None:
        return None
    group = np.zeros(looked_at.shape, bool, order="F")
    near.of(group)[...] = _largest_group(values.hold(near.of(looked_at)))
    start, stop = [], []
    for axis, n in enumerate(voxels.shape):
        # What is next to each other in memory goes last.
        across = sorted({0, 1, 2} - {axis}, key=lambda k: -abs(voxels.strides[k]))
        order = [axis, *across]
        planes, cells = voxels.transpose(order), group.transpose(order)
        places = np.arange(steps[axis] // 2, n, steps[axis])
        turned = [steps[k] for k in order]
        before = _last_plane(planes[::-1], cells[::-1], n - 1 - places[::-1], turned, values)
        start.append(n - 1 - before)
        stop.append(1 + _last_plane(planes, cells, places, turned, values))
    return Box(tuple(start), tuple(stop))


def _largest_group(inside: _Mask) -> _Mask:
    labels = import_cc3d().connected_components(inside, connectivity=_FACES)
    sizes = np.bincount(labels.ravel(order="K"))
    sizes[0] = 0
    largest: _Mask = labels == sizes.argmax()
    return largest


def _last_plane(
    planes: _Voxels,
    group: _Mask,
    places: npt.NDArray[np.intp],
    steps: Sequence[int],
    values: Values,
) -> int:
    """How far the body reaches along the first axis.

    Parameters
    ----------
    planes : numpy.ndarray
        The voxels.
    group : numpy.ndarray
        Which of those that were looked at are the body's.
    places : numpy.ndarray
        In which planes those lie.
    steps : sequence of int
        How far apart they lie, along each axis.
    values : Values
        Those above the threshold.
    """
    step, *across = steps
    outermost = np.flatnonzero([cells.any() for cells in group])[-2:]
    last, end = int(places[outermost[-1]]), len(planes)
    # Followed by one voxel a plane, nothing leaves this window.
    window = _window(np.any(group[outermost], axis=0), across, (1 + _MOST_STEPS) * step)
    if last + step >= end:
        beyond = (p for p in range(end - 1, last, -1) if values.hold(planes[p][window]).any())
        return next(beyond, last)
    seeds = {int(places[k]): _magnified(group[k], across, planes.shape[1:]) for k in outermost}
    touched = np.zeros(planes.shape[1:], bool)[window]
    furthest = min(last + _MOST_STEPS * step, end - 1)
    for place in range(min(seeds), furthest + 1):
        touched = _spread(touched)
        if place in seeds:
            touched |= seeds[place][window]
        inside = values.hold(planes[place][window])
        touched &= inside
        if place > last and not touched.any():
            return place if inside.any() else place - 1
    return furthest


def _magnified(cells: _Mask, steps: Sequence[int], shape: Sequence[int]) -> _Mask:
    """The voxels of a plane that are nearest to some that were looked at."""
    result = np.zeros(shape, bool)
    voxels = cells.repeat(steps[0], axis=0).repeat(steps[1], axis=1)[: shape[0], : shape[1]]
    result[: voxels.shape[0], : voxels.shape[1]] = voxels
    return result


def _window(cells: _Mask, steps: Sequence[int], reach: int) -> tuple[slice, slice]:
    """The voxels of a plane around some that were looked at, and so many more."""
    along = [np.flatnonzero(cells.any(axis=axis)) for axis in (1, 0)]
    one, other = (
        slice(max(0, int(a[0]) * step - reach), (int(a[-1]) + 1) * step + reach)
        for a, step in zip(along, steps, strict=True)
    )
    return one, other


def _spread(mask: _Mask) -> _Mask:
    """With the eight neighbours of each voxel."""
    wide = mask.copy()
    wide[1:] |= mask[:-1]
    wide[:-1] |= mask[1:]
    spread = wide.copy()
    spread[:, 1:] |= wide[:, :-1]
    spread[:, :-1] |= wide[:, 1:]
    return spread
