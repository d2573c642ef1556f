"""Pieces as the structs that the CUDA kernel reads, and the launches over them."""

from __future__ import annotations

import numpy as np
from cuda_host import job, spec

from ctgpu.engines.batch import Piece
from ctgpu.engines.packing import Placed, header_bytes, pack
from ctgpu.engines.tables import STEP
from ctgpu.testing.voxels import random_voxels
from ctgpu.volume.raw import Rescale


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
    assert [(one.key.voxel, one.key.rescales, int(one.batch["count"][0])) for one in launches] == [
        ("f4", False, 1),
        ("i2", False, 2),
        ("i2", True, 1),
    ]
    volumes = [
        volume for one in launches for volume in one.batch["volumes"][0][: one.batch["count"][0]]
    ]
    assert [int(volume["source"]) for volume in volumes] == [1000, 0, 2000, 3000]
    across = launches[1].grid[2] // 2
    assert launches[1].batch["first_z"][0, :2].tolist() == [0, across]
    begins = sorted(int(volume["axes"][0]["steps"]) - (1 << 40) for volume in volumes)
    assert begins == [n * len(header) // 4 for n in range(4)]
    steps = header.view(STEP)[: len(pieces[0].axes[0].steps)]
    np.testing.assert_array_equal(steps["w"], pieces[0].axes[0].steps["w"])


def test_a_launch_has_no_more_pieces_than_its_argument_holds() -> None:
    made = [job(random_voxels(n, (4, 3, 2)), spec((4, 3, 2))) for n in range(35)]
    pieces = [Piece.of(one, 0, 2) for one in made]
    _, launches = pack([Placed(p, p.voxels, 16 * n, 64 * n) for n, p in enumerate(pieces)], 0)
    assert [int(one.batch["count"][0]) for one in launches] == [16, 16, 3]
    outs = np.concatenate([one.batch["volumes"]["out"][0] for one in launches])
    assert outs[:35].tolist() == [64 * n for n in range(35)]


def test_a_grid_has_no_more_blocks_along_z_than_there_may_be() -> None:
    made = [job(random_voxels(n, (2, 8, 2), order="DWH"), spec((1, 65535, 1))) for n in range(16)]
    pieces = [Piece.of(one, 0, 1) for one in made]
    _, launches = pack([Placed(p, p.voxels, 64 * n, 64 * n) for n, p in enumerate(pieces)], 0)
    tiles = -(-65535 // pieces[0].key(made[0].voxels).tile_wd[0])
    assert [one.grid[2] for one in launches] == [15 * tiles, tiles]
    assert launches[0].grid[2] <= 65535 < 16 * tiles
