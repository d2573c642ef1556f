"""Batches of `.ctz` that go up compressed and are decoded on a GPU."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ctgpu.buffers import Bytes
from ctgpu.codec.ctz import LANES, SLACK_BYTES, Coding, CtzError, Head, Kind, Shape
from ctgpu.engines.batch import address_of
from ctgpu.engines.cupy_runtime import (
    LentStream,
    count_devices,
    cuda_errors,
    import_cupy,
    on_device,
    upload,
    wait_for,
)
from ctgpu.engines.nvrtc import DECODE_CTZ, Kernels
from ctgpu.errors import DeviceError
from ctgpu.printable import counted

# CtzVolume and CtzTile of kernels/cuda/ctz_tile.h.
VOLUME = np.dtype(
    [
        ("out", "<u8"),
        ("plane_stride", "<i8"),
        ("row_stride", "<i8"),
        ("shape", "<i4", 3),
        ("start", "<i4", 3),
        ("box", "<i4", 3),
        ("grid", "<i4"),
        ("weights", "<i2", 3),
        ("first", "<i2"),
    ]
)
TILE = np.dtype(
    [
        ("data", "<u8"),
        ("plane", "<u8"),
        ("size", "<u4"),
        ("packed", "<u4"),
        ("quotients", "<u4"),
        ("raw", "<u4"),
        ("volume", "<i4"),
        ("number", "<i4"),
    ]
)
#: Of a row of the plane before, which the kernel keeps for each tile.
ROW_BYTES = 2 * LANES

# As Fault of kernels/codec/ctz.h counts them.
_FAULTS = (
    "",
    "its parts are longer than it is",
    "its packed bits are not as long as its codes say",
    "its quotients do not end where they should",
    "its significand bits do not end where they should",
)


@dataclass(frozen=True, slots=True)
class CtzKernel:
    """Which decoder: there is one for each kind of numbers and each coding."""

    kind: Kind
    coding: Coding

    @property
    def defines(self) -> tuple[str, ...]:
        """The compiler options that choose it."""
        return f"-DCTGPU_KIND={self.kind}", f"-DCTGPU_CODING={self.coding}"


@dataclass(frozen=True, slots=True)
class Compressed:
    """One sample's tiles in the memory of a batch.

    Attributes
    ----------
    name : str
        Of the sample, for messages.
    head : Head
        Of the volume, or of its mask.
    runs : sequence of range
        Numbers of tiles, as :func:`~ctgpu.codec.decompress.tiles_of` gives them.
    begin : int
        Where in the batch's memory their bytes begin, which follow each other.
    start_dhw : tuple of int
        The first voxel of the box that is wanted.
    """

    name: str
    head: Head
    runs: Sequence[range]
    begin: int
    start_dhw: Shape = (0, 0, 0)

    def numbers(self) -> npt.NDArray[np.int64]:
        """Of all tiles, in the order of their bytes."""
        ranges = [np.arange(run.start, run.stop, dtype=np.int64) for run in self.runs]
        return np.concatenate([np.empty(0, np.int64), *ranges])


@dataclass(frozen=True, slots=True)
class Output:
    """Where a batch is written: what there is to know of a CuPy array or a CUDA tensor.

    `strides` are in bytes.
    """

    address: int
    ordinal: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    voxel_bytes: int

    @classmethod
    def of(cls, out: Any) -> Output:
        """An array's, of whichever of the two libraries."""
        if hasattr(out, "data_ptr"):  # torch, whose bfloat16 no protocol of arrays knows
            size = int(out.element_size())
            strides = tuple(size * stride for stride in out.stride())
            return cls(out.data_ptr(), int(out.device.index), tuple(out.shape), strides, size)
        size = int(out.dtype.itemsize)
        return cls(out.data.ptr, int(out.device.id), out.shape, out.strides, size)


@dataclass(frozen=True, slots=True)
class Tables:
    """What the kernels read of a batch, with addresses of the device.

    Attributes
    ----------
    volumes, tiles : numpy.ndarray
        Of :data:`VOLUME` and :data:`TILE`; tiles of one kernel lie side by side.
    launches : list of tuple
        Each kernel, its first tile, and how many there are.
    """

    volumes: npt.NDArray[Any]
    tiles: npt.NDArray[Any]
    launches: list[tuple[CtzKernel, int, int]]


def tables_of(samples: Sequence[Compressed], out: Output, data: int, planes: int) -> Tables:
    """What the kernels read of a batch.

    Parameters
    ----------
    samples : sequence of Compressed
        As many as the batch has rows, and that fit it.
    out : Output
        The batch, of axes B, D, H, W.
    data, planes : int
        Addresses of the batch's memory and, for each row of each tile, of :data:`ROW_BYTES`.
    """
    volumes = np.zeros(len(samples), VOLUME)
    by_kernel: dict[CtzKernel, list[npt.NDArray[Any]]] = {}
    for n, sample in enumerate(samples):
        head, numbers = sample.head, sample.numbers()
        volumes[n] = (
            *(out.address + n * out.strides[0], out.strides[1], out.strides[2], head.shape_dhw),
            *(sample.start_dhw, out.shape[1:], head.grid, head.weights, head.first),
        )
        tiles = np.zeros(len(numbers), TILE)
        for name in ("size", "packed", "quotients", "raw"):
            tiles[name] = head.table[name][numbers]
        sizes = tiles["size"].astype(np.uint64)
        tiles["data"] = np.uint64(data + sample.begin) + np.cumsum(sizes) - sizes
        plane_bytes = ROW_BYTES * head.shape_dhw[1]
        tiles["plane"] = planes + plane_bytes * np.arange(len(numbers), dtype=np.uint64)
        planes += plane_bytes * len(numbers)
        tiles["volume"], tiles["number"] = n, numbers
        by_kernel.setdefault(CtzKernel(head.kind, head.coding), []).append(tiles)
    launches, first = [], 0
    for kernel, parts in by_kernel.items():
        if count := sum(map(len, parts)):
            launches.append((kernel, first, count))
        first += count
    every = [tiles for parts in by_kernel.values() for tiles in parts]
    return Tables(volumes, np.concatenate([np.zeros(0, TILE), *every]), launches)


def require_fit(samples: Sequence[Compressed], out: Output, data_bytes: int) -> None:
    """Refuse what would have a kernel read or write where it must not.

    Raises
    ------
    ValueError
        If samples, output and memory do not fit one another.
    """
    if len(out.shape) != 4 or out.shape[0] != len(samples):
        raise ValueError(f"out has the shape {out.shape}, for {len(samples)} samples")
    box = out.shape[1:]
    for sample in samples:
        head, numbers = sample.head, sample.numbers()
        apart = box[2] > 1 and out.strides[3] != head.voxel_bytes
        if out.voxel_bytes != head.voxel_bytes or apart:
            raise ValueError(
                f"out has voxels of {out.voxel_bytes} bytes, {out.strides[3]} apart along W; "
                f"{sample.name} takes {head.voxel_bytes}, side by side"
            )
        ends = [s + n for s, n in zip(sample.start_dhw, box, strict=True)]
        if min(sample.start_dhw) < 0 or any(np.greater(ends, head.shape_dhw)):
            raise ValueError(
                f"a box of {box} from {sample.start_dhw} is not within {sample.name}, of "
                f"{head.shape_dhw}"
            )
        if numbers.size and not 0 <= numbers.min() <= numbers.max() < len(head.table):
            raise ValueError(f"{sample.name} has no such tiles: {list(sample.runs)}")
        if sample.begin < 0 or _end_of(sample) > data_bytes:
            raise ValueError(
                f"the tiles of {sample.name} are bytes {sample.begin} to {_end_of(sample)} of "
                f"{data_bytes}"
            )


def _end_of(sample: Compressed) -> int:
    sizes = sample.head.table["size"][sample.numbers()]
    return sample.begin + int(sizes.sum(dtype=np.int64))


class CtzDecoder:
    """Decodes batches on one GPU, by the kernel of ``kernels/cuda/decode_ctz.cu``.

    Temporary memory is CuPy's: that of the compressed bytes, and :data:`ROW_BYTES` for each row of
    each tile, an eighth of what a volume of 16 bits takes.

    Parameters
    ----------
    ordinal : int
        The GPU, as the CUDA runtime numbers them.

    Raises
    ------
    DeviceError
        If driver, CuPy, NVRTC or the device is missing or unfit.
    """

    def __init__(self, ordinal: int) -> None:
        self._cupy = import_cupy()
        self._ordinal = ordinal
        if not 0 <= ordinal < (count := count_devices(self._cupy)):
            seen = counted(count, "GPU")
            raise DeviceError(f"there is no cuda:{ordinal}; this process can see {seen}")
        self._kernels = Kernels(self._cupy, DECODE_CTZ)
        # Also proves that the device runs what NVRTC compiles.
        with self._errors(), on_device(self._cupy, ordinal):
            self._kernels.get(ordinal, CtzKernel("float16", "rice"))

    def queue(self, samples: Sequence[Compressed], data: Bytes, out: Any, stream: int) -> Decoding:
        """Queue upload and decoding of a batch; nothing is waited for.

        Parameters
        ----------
        samples : sequence of Compressed
            One for each row of `out`.
        data : numpy.ndarray
            uint8, their bytes; pinned, so that the copy is the device's work.  To be left as it is
            until the stream is past this.
        out : cupy.ndarray or torch.Tensor
            Shape (B, D, H, W), of voxels of 8 or 16 bits as the samples; on this device, any
            strides but along W, where voxels lie side by side.  Written where tiles meet the boxes.
        stream : int
            ``cudaStream_t``, such as ``torch.cuda.current_stream().cuda_stream``.

        Returns
        -------
        Decoding
            Whether tiles are damaged, once the stream is past this.

        Raises
        ------
        ValueError
            If `samples`, `data` and `out` do not fit one another.
        DeviceError
            If the device fails or its memory does not suffice.
        """
        cupy, target = self._cupy, Output.of(out)
        if target.ordinal != self._ordinal:
            raise ValueError(f"out is on cuda:{target.ordinal}, and cuda:{self._ordinal} decodes")
        require_fit(samples, target, len(data))
        used = max(map(_end_of, samples), default=0)
        rows = sum(sample.numbers().size * sample.head.shape_dhw[1] for sample in samples)
        with self._errors(), on_device(cupy, self._ordinal):
            lent = cupy.cuda.Stream.from_external(LentStream(stream))
            with lent:
                there = cupy.empty(used + SLACK_BYTES, np.uint8)
                planes = cupy.empty(max(rows, 1) * ROW_BYTES, np.uint8)
                tables = tables_of(samples, target, there.data.ptr, planes.data.ptr)
                header = np.frombuffer(tables.volumes.tobytes() + tables.tiles.tobytes(), np.uint8)
                described = cupy.empty(max(header.nbytes, 1), np.uint8)
                faults = cupy.empty(max(len(tables.tiles), 1), np.uint8)
                # Before anything is queued: a copy that is under way could not be called back.
                kernels = [self._kernels.get(self._ordinal, key) for key, _, _ in tables.launches]
                if kernels:
                    # The header first: a copy from pageable memory waits for those before it.
                    at = described.data.ptr
                    upload(cupy, at, address_of(header), header.nbytes, stream)
                    for sample in samples:  # between them lies what no tile needs
                        size_bytes = _end_of(sample) - sample.begin
                        source = address_of(data) + sample.begin
                        if size_bytes:
                            upload(cupy, there.data.ptr + sample.begin, source, size_bytes, stream)
                    for kernel, (_, first, count) in zip(kernels, tables.launches, strict=True):
                        tiles = at + tables.volumes.nbytes + first * TILE.itemsize
                        arguments = (at, tiles, faults.data.ptr + first)
                        kernel((count,), (LANES,), tuple(map(np.uint64, arguments)))

        def read() -> npt.NDArray[np.uint8]:
            with self._errors(), on_device(cupy, self._ordinal), lent:
                wait_for(cupy, lent)
                found: npt.NDArray[np.uint8] = cupy.asnumpy(faults[: len(tables.tiles)])
            return found

        return Decoding(samples, tables.tiles, read)

    def _errors(self) -> contextlib.AbstractContextManager[None]:
        """CUDA's errors as one sentence."""
        return cuda_errors(
            self._cupy,
            kernel="the decoder",
            failed=f"cuda:{self._ordinal} failed while it decoded a batch",
            way_out="start this process again",
            no_memory=f"cuda:{self._ordinal} has no memory to decode a batch: choose a smaller "
            "batch_size, or free GPU memory",
        )


class Decoding:
    """A batch that was queued, and what is damaged of it.

    Parameters
    ----------
    samples : sequence of Compressed
    tiles : numpy.ndarray
        Of :data:`TILE`.
    read : callable
        Waits for the device, and gives the fault of each tile.
    """

    def __init__(
        self,
        samples: Sequence[Compressed],
        tiles: npt.NDArray[Any],
        read: Callable[[], npt.NDArray[np.uint8]],
    ) -> None:
        self._samples, self._tiles, self._read = samples, tiles, read

    @functools.cached_property
    def failures(self) -> dict[int, CtzError]:
        """Why samples are damaged, by their place in the batch; waits until the stream is there."""
        if not len(self._tiles):
            return {}
        faults, failures = self._read(), {}
        for n in np.flatnonzero(faults)[::-1].tolist():  # of each sample the first one stays
            volume, number = (int(self._tiles[name][n]) for name in ("volume", "number"))
            name, what = self._samples[volume].name, _FAULTS[faults[n]]
            failures[volume] = CtzError(f"{name}: its tile {number}: {what}")
        return failures

    def check(self) -> None:
        """Wait until the stream is there.

        Raises
        ------
        CtzError
            Naming the first sample that is damaged, and its tile.
        """
        if self.failures:
            raise self.failures[min(self.failures)]
