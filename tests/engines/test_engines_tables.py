"""Tables that the CUDA kernel reads of an axis: tiles, slots, runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_host import spec

from ctgpu.engines.tables import FEWEST_ROWS, RUN, SLOTS, Axis
from ctgpu.volume.geometry import plan_volume

#: Source voxels, spacing and output voxels: finer, as they are, coarser, much coarser, all with
#: padding or cropped, and a single voxel.
GEOMETRIES = (
    (300, 3.0, 600),
    (500, 0.6, 480),
    (48, 1.0, 40),
    (40, 1.0, 48),
    (700, 1.0, 480),
    (96, 0.4, 61),
    (2000, 0.05, 90),
    (1, 1.0, 9),
)
NONE = np.iinfo(np.int32).max


def axis_of(n_source: int, spacing_mm: float, n_out: int) -> Axis:
    plan = plan_volume((n_source, 4, 4), (spacing_mm, 1, 1), spec((n_out, 4, 4)))
    return Axis.of(plan.axes[0])


def steps_of(axis: Axis, tile: int, tile_rows: int) -> Any:
    """The steps that a tile has, and the first of them."""
    begin, end = (
        min(max((tile + n) * tile_rows - axis.pad_before, 0), len(axis.steps)) for n in (0, 1)
    )
    return axis.steps[begin:end], begin


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("is_reversed", [False, True])
def test_every_step_finds_its_two_rows_in_its_tile(
    geometry: tuple[int, float, int], rows: int, is_reversed: bool
) -> None:
    axis = axis_of(*geometry)
    if is_reversed:
        axis = axis.reversed(geometry[0])
    bands = axis.bands(rows)
    if bands is None:
        assert rows == 4
        assert geometry[0] * geometry[1] < geometry[0] / 4.5  # coarser than 40 rows to 8
        return
    assert FEWEST_ROWS <= bands.tile_rows <= 32
    table = bands.table(10 * rows)
    assert len(table) == -(-axis.n_out // bands.tile_rows)
    assert (bands.counts * rows <= SLOTS).all()
    for tile, band in enumerate(table):
        steps, begin = steps_of(axis, tile, bands.tile_rows)
        groups = band["rows"][: band["count"]] // (10 * rows)
        held = (groups[:, None] * rows + np.arange(rows)).ravel()
        assert len(np.unique(groups)) == len(groups)
        for name, slots in zip(("i0", "i1"), bands.slots, strict=True):
            np.testing.assert_array_equal(held[slots[begin : begin + len(steps)]], steps[name])
        # And nothing beside: of every group some row is needed.
        assert set(groups) == {*(steps["i0"] // rows), *(steps["i1"] // rows)}


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_tiles_are_as_large_as_their_source_allows(
    geometry: tuple[int, float, int], rows: int
) -> None:
    axis = axis_of(*geometry)
    bands = axis.bands(rows)
    larger = 8 if bands is None else bands.tile_rows + 1
    needed = []
    for tile in range(-(-axis.n_out // larger)):
        steps, _ = steps_of(axis, tile, larger)
        needed.append(len({*(steps["i0"] // rows), *(steps["i1"] // rows)}))
    assert larger == 33 or max(needed) * rows > SLOTS


def test_an_axis_of_padding_needs_no_source() -> None:
    axis, source = axis_of(4, 1.0, 40).cut(0, 8)
    assert source == slice(0, 0)
    bands = axis.bands(4)
    assert bands is not None
    assert bands.table(4)["count"].tolist() == [0]
    assert (axis.runs(16)["steps"]["column"] == NONE).all()


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("tile", [16, 64])
def test_runs_have_every_step_once_and_in_order(
    geometry: tuple[int, float, int], tile: int
) -> None:
    axis = axis_of(*geometry)
    runs = axis.runs(tile)
    assert len(runs) == -(-axis.n_out // tile) * tile // RUN
    found = 0
    for n, run in enumerate(runs):
        columns = run["steps"]["column"].tolist()
        count = columns.index(NONE)
        assert columns[count:] == [NONE] * (RUN + 1 - count)
        if not count:
            continue
        first = n * RUN + run["first"] - axis.pad_before
        assert first == found
        steps = axis.steps[first : first + count]
        assert columns[:count] == (steps["i0"] + 1).tolist()
        assert run["steps"]["w"][:count].tolist() == steps["w"].tolist()
        assert run["last"] == steps["i1"][-1]
        found += count
    assert found == len(axis.steps)


def test_a_step_with_the_last_voxel_alone_waits_for_the_column_behind_it() -> None:
    axis = axis_of(40, 1.0, 40)
    last = axis.steps[-1]
    assert last["i0"] == last["i1"] == 39
    run = axis.runs(16)[4]
    assert run["steps"]["column"].tolist() == [33, 34, 35, 36, 37, 38, 39, 40, NONE]
    assert run["last"] == 39


def test_voxels_that_no_step_needs_are_noticed() -> None:
    assert not axis_of(500, 0.6, 480).skips_voxels
    assert not axis_of(300, 3.0, 600).skips_voxels
    assert axis_of(2000, 0.05, 90).skips_voxels


def test_steps_are_told_by_what_lies_before_their_voxels() -> None:
    axis = axis_of(48, 1.0, 40)
    table = axis.strided(-7)
    assert table["at0"].tolist() == (-7 * axis.steps["i0"]).tolist()
    assert table["at1"].tolist() == (-7 * axis.steps["i1"]).tolist()
    assert table["w"].tolist() == axis.steps["w"].tolist()


def test_a_cut_counts_from_its_own_first_voxel() -> None:
    axis = axis_of(48, 0.9, 60)
    cut, source = axis.cut(20, 10)
    assert cut.n_out == 10
    begin = 20 - axis.pad_before
    assert cut.steps["i0"][0] == 0
    assert (cut.steps["i0"] + source.start).tolist() == axis.steps["i0"][
        begin : begin + 10
    ].tolist()
    assert source.stop - source.start == cut.steps["i1"][-1] + 1
