from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

class Axis:
    """The tables of one axis: see :class:`ctgpu.volume.geometry.AxisPlan`."""

    def __init__(
        self,
        n_source: int,
        pad_before: int,
        i0: npt.NDArray[np.int32],
        i1: npt.NDArray[np.int32],
        w: npt.NDArray[np.float32],
    ) -> None: ...

class Intensity:
    """What is done to every voxel: see ``kernels/preprocess_math.h``."""

    def __init__(
        self,
        *,
        slope: float,
        intercept: float,
        clip_lo: float,
        clip_hi: float,
        scale: float,
        offset: float,
        rescales: bool,
        clips_before: bool,
    ) -> None: ...

def preprocess(
    *,
    address: int,
    dtype: str,
    swapped: bool,
    strides: Sequence[int],
    axes: Sequence[Axis],
    intensity: Intensity,
    pad: float,
    layout: str,
    stored: str,
    out: npt.NDArray[Any],
    variant: str,
    threads: int,
) -> None: ...
def cpu_variant(name: str) -> str: ...
def cpu_variants() -> list[str]: ...
def round_to(
    stored: str, values: npt.NDArray[np.float32], out: npt.NDArray[Any], variant: str
) -> None: ...
def touch_memory(
    *,
    source: int,
    planes: int,
    plane_stride: int,
    rows: int,
    row_stride: int,
    run_bytes: int,
    out: npt.NDArray[Any],
) -> int: ...
def foreground_box(voxels: npt.NDArray[Any], least: float, most: float) -> list[int]: ...
def count_words(data: npt.NDArray[np.uint8], counts: npt.NDArray[np.int64]) -> None: ...
def add_label(voxels: npt.NDArray[Any], labels: npt.NDArray[Any], label: int) -> int: ...
def take_labels(
    voxels: npt.NDArray[Any], labels: npt.NDArray[Any], known: npt.NDArray[np.uint8]
) -> float | None: ...
def gather_labels(
    labels: npt.NDArray[Any],
    indices: Sequence[npt.NDArray[np.int32]],
    pad_before: Sequence[int],
    out: npt.NDArray[Any],
    variant: str,
) -> None: ...

class CtzFault(ValueError):
    """A tile of a ``.ctz`` is damaged."""

def ctz_encode(
    *,
    voxels: npt.NDArray[Any],
    kind: str,
    coding: str,
    grid: int | None,
    table: npt.NDArray[np.uint32],
    out: npt.NDArray[np.uint8],
    variant: str,
) -> tuple[int, tuple[int, int, int], int]: ...
def ctz_decode(
    *,
    kind: str,
    coding: str,
    grid: int,
    weights: Sequence[int],
    first: int,
    shape_dhw: Sequence[int],
    numbers: npt.NDArray[np.int64],
    table: npt.NDArray[np.uint32],
    data: npt.NDArray[np.uint8],
    start_dhw: Sequence[int],
    out: npt.NDArray[Any],
    variant: str,
) -> None: ...
def ctz_variants() -> list[str]: ...

# Only where CMake found libdeflate.
def gzip_into(data: npt.NDArray[np.uint8], out: npt.NDArray[np.uint8]) -> None: ...
def deflate_into(data: npt.NDArray[np.uint8], out: npt.NDArray[np.uint8]) -> None: ...
