"""The decoder of `.ctz` on a GPU: the page's voxels, on a stream of the caller's.

Where there is no GPU, ``conftest.py`` gives an emulated one.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

from ctgpu.codec import CtzError
from ctgpu.codec.ctz import CODINGS, KINDS, Coding, Head, Kind, Shape, head_bytes
from ctgpu.engines.ctz_on_device import Compressed, CtzDecoder
from support import plain_ctz

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("device")]

SHAPE: Shape = (19, 45, 70)


def member_of(kind: Kind, coding: Coding, seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    steps = rng.integers(-3, 4, SHAPE).cumsum(axis=1)
    voxels: Any = (steps % 8).astype(np.uint8) if kind == "uint8" else steps.astype(np.uint16)
    if kind in ("grid", "float16"):
        voxels = (steps / 64).astype(np.float16)
    if kind == "bfloat16":
        voxels = ((steps / 64).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    grid = 0 if kind in ("uint8", "int16") else 6
    weights = (9000, 14000, -6000)
    return plain_ctz.encode(voxels, kind, coding, grid=grid, weights=weights)


def sample_of(member: bytes, begin: int) -> Compressed:
    head = Head.parse(member[: head_bytes(SHAPE)], shape_dhw=SHAPE, member_bytes=len(member))
    return Compressed(f"at {begin}", head, [range(len(head.table))], begin + head_bytes(SHAPE))


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_what_the_page_says(kind: Kind, coding: Coding) -> None:
    cupy = importlib.import_module("cupy")
    members = [member_of(kind, coding, seed) for seed in (0, 1)]
    data = np.frombuffer(b"".join(members), np.uint8).copy()
    samples = [sample_of(members[0], 0), sample_of(members[1], len(members[0]))]
    wanted = np.stack([plain_ctz.decode(member) for member in members])
    stored = wanted.view(f"u{wanted.itemsize}")
    decoder, stream = CtzDecoder(0), cupy.cuda.Stream(non_blocking=True)
    with stream:
        out = cupy.empty(stored.shape, stored.dtype)
    decoder.queue(samples, data, out, stream.ptr).check()
    np.testing.assert_array_equal(cupy.asnumpy(out), stored)
    # Of the second one's first tile, the codes.
    data[samples[1].begin : samples[1].begin + 40] ^= 0xFF
    with pytest.raises(CtzError, match=f"{samples[1].name}: its tile 0: its packed bits"):
        decoder.queue(samples, data, out, stream.ptr).check()
