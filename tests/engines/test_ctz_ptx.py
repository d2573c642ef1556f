"""The PTX that NVRTC makes of the decoder of `.ctz`, run with every access checked."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import numpy as np
import pytest
from ctz_cases import ALL_KERNELS, SHAPES, Batch, batch_of, output, whole

from ctgpu.codec.ctz import LANES, SLACK_BYTES
from ctgpu.engines import nvrtc
from ctgpu.engines.ctz_on_device import ROW_BYTES, TILE, CtzKernel, tables_of
from ctgpu.engines.nvrtc import DECODE_CTZ, kernel_options, kernel_source
from support.nvrtc import CUPY_OPTIONS, Nvrtc
from support.ptx import Buffer, Kernel, KernelFault

# The kernel is compiled, and then run lane by lane.
pytestmark = pytest.mark.slow

#: NVRTC's major version and the GPUs that it compiles for: the newest, and the oldest.
TARGETS = (("13", 90), ("12", 75))
SHAPE = SHAPES[0]


@functools.cache
def kernel_of(key: CtzKernel, target: tuple[str, int] = TARGETS[0]) -> Kernel:
    major, architecture = target
    options = (f"-arch=compute_{architecture}", *kernel_options(key, DECODE_CTZ), *CUPY_OPTIONS)
    ptx = Nvrtc.of_version(major).compile(kernel_source(DECODE_CTZ), options)
    return Kernel(ptx, DECODE_CTZ.kernel)


def run(batch: Batch, target: tuple[str, int] = TARGETS[0]) -> tuple[np.ndarray, bool]:
    """What the launches of a batch do: faults, and whether all of the output was written."""
    slack = np.zeros(SLACK_BYTES, np.uint8)
    data = np.concatenate([batch.data, slack])
    unwritten = np.concatenate([np.zeros_like(batch.data), ~slack])
    rows = sum(len(one.numbers()) * one.head.shape_dhw[1] for one in batch.samples)
    planes = Buffer.blank(max(rows, 1) * ROW_BYTES // 2, np.int16, "planes")
    out = Buffer(batch.out, undefined=np.full(batch.out.nbytes, 0xFF, np.uint8), name="out")
    tables = tables_of(batch.samples, output(batch.out), data.ctypes.data, planes.address)
    faults = Buffer.blank(len(tables.tiles), np.uint8, "faults")
    reach = [
        Buffer(data, writable=False, undefined=unwritten, name="data"),
        Buffer(tables.volumes, writable=False, name="volumes"),
        Buffer(tables.tiles, writable=False, name="tiles"),
        *(planes, out, faults),
    ]
    for key, first, count in tables.launches:
        tiles = tables.tiles.ctypes.data + first * TILE.itemsize
        arguments = (tables.volumes.ctypes.data, tiles, faults.address + first)
        kernel_of(key, target).launch(count, LANES, list(map(np.uint64, arguments)), reach)
    return faults.array, out.is_written


@pytest.mark.parametrize("key", ALL_KERNELS, ids=lambda key: f"{key.kind} {key.coding}")
@pytest.mark.parametrize("target", TARGETS)
def test_every_kernel_decodes(key: CtzKernel, target: tuple[str, int]) -> None:
    members = [whole(key.kind, key.coding, seed=n) for n in (0, 1)]
    batch = batch_of(members, SHAPE)
    faults, is_written = run(batch, target)
    assert is_written
    assert not faults.any()
    batch.check()


@pytest.mark.parametrize("shape", SHAPES[1:])
def test_shapes_that_leave_a_rest(shape: tuple[int, int, int]) -> None:
    batch = batch_of([whole("float16", "rice", shape)], shape)
    faults, is_written = run(batch)
    assert is_written
    assert not faults.any()
    batch.check()


def test_a_box_and_a_batch_of_several_kinds() -> None:
    keys = [CtzKernel("float16", "rice"), CtzKernel("grid", "pack"), CtzKernel("int16", "rice")]
    members = [whole(key.kind, key.coding, seed=n % 2) for n, key in enumerate(keys)]
    batch = batch_of(members, SHAPE, [(3, 2, 20), (0, 0, 0), (1, 5, 25)], (7, 8, 12))
    faults, is_written = run(batch)
    assert is_written
    assert not faults.any()
    batch.check()


@pytest.mark.parametrize("key", ALL_KERNELS, ids=lambda key: f"{key.kind} {key.coding}")
def test_no_bytes_take_the_kernel_out_of_its_memory(key: CtzKernel) -> None:
    """A tile whose codes are sound and whose every other byte is anything; and all of them."""
    rng = np.random.default_rng(ALL_KERNELS.index(key))
    for keep in (0, 52):  # the bytes of codes of the first tile, 8 x 13 of them
        batch = batch_of([whole(key.kind, key.coding)], SHAPE)
        begin = batch.samples[0].begin + keep
        for fill in (0, 255, None):
            batch.data[begin:] = (
                rng.integers(0, 256, len(batch.data) - begin) if fill is None else fill
            )
            faults, _ = run(batch)
            assert faults.max() <= 4


#: File, what stands there, what is put there instead, and what that is found as.
MISTAKES = {
    "codes that nobody holds against their part": (
        "ctz_tile.h",
        "packed_bytes() != tile_.packed",
        "packed_bytes() < tile_.packed",
        "unwritten address",
    ),
    "ones that are read before they are there": (
        "ctz_tile.h",
        "known_ += static_cast<int>(of_last(sum));",
        "known_ += static_cast<int>(of_last(sum)) + 64;",
        "unwritten",
    ),
    "no meeting behind the ones": (
        "ctz_tile.h",
        "sync_warp();\n            known_",
        "known_",
        "race",
    ),
    "lanes outside the box": ("ctz_tile.h", "& (column_ < volume.box[2])", "", "race"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_the_kernel_is_found(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, right, wrong, kind = MISTAKES[name]
    for source in DECODE_CTZ.files:
        text = (nvrtc.kernel_folder() / source).read_text()
        if source.endswith(file):
            assert text.count(right) == 1
            text = text.replace(right, wrong)
        (tmp_path / source).parent.mkdir(exist_ok=True)
        (tmp_path / source).write_text(text)
    shape = (8, 97, 32)
    batch = batch_of([whole("float16", "rice", shape)], shape, [(3, 2, 10)], (4, 8, 12))
    if kind == "unwritten address":
        begin = batch.samples[0].begin
        batch.data[begin : begin + 388] = 0xEE  # 16 bits for every voxel
    kernel_options(CtzKernel("float16", "rice"), DECODE_CTZ)  # which remembers the hash
    monkeypatch.setattr(nvrtc, "kernel_folder", lambda: tmp_path)
    kernel_of.cache_clear()
    try:
        with pytest.raises(KernelFault) as caught:
            run(batch)
    finally:
        kernel_of.cache_clear()
    assert re.match(kind, caught.value.kind)
