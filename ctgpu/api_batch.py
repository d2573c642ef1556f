"""One call on several scans."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from ctgpu.api import Output, Taking, engine_on_device, left_on_device, open_volume, require_face
from ctgpu.arguments import require_choice, shown
from ctgpu.buffers import BufferPool, allocate_pages
from ctgpu.engines import Engine, Job, open_engine
from ctgpu.errors import CtgpuError, EnvironmentFailure, UsageError
from ctgpu.machine import usable_cores
from ctgpu.printable import counted
from ctgpu.spec import CT_RATE, Intensity, Spec
from ctgpu.volume.arrays import output_of, spacing_of
from ctgpu.volume.intensity import HuGuard
from ctgpu.volume.on_scan import Geometry
from ctgpu.volume.orientation import DEFAULT_MAX_TILT_DEGREES, Axes
from ctgpu.volume.prepare import PreparedVolume
from ctgpu.volume.raw import Spacing
from ctgpu.volume.stored import numpy_dtype, tensor_of

if TYPE_CHECKING:
    from ctgpu.engines.cuda import CudaEngine

Scan = str | PathLike[str] | npt.ArrayLike


@dataclass(frozen=True, slots=True)
class PreprocessedBatch:
    """What :func:`preprocess_batch` made.

    Attributes
    ----------
    volume : array
        Shape (B, *stored_shape): of the volumes that could be made, in the order given.
    indices : tuple of int
        Which of those given each is.
    geometries : tuple of Geometry
        Of each.
    failures : dict of int to CtgpuError
        Why each of the others could not be made.
    """

    volume: Any
    indices: tuple[int, ...]
    geometries: tuple[Geometry, ...]
    failures: Mapping[int, CtgpuError]


def preprocess_batch(
    volumes: Sequence[Scan],
    *,
    spec: Spec = CT_RATE,
    spacing_mm: Any = None,
    device: str | Engine = "auto",
    output: Output = "numpy",
    out: Any = None,
    on_error: Literal["raise", "skip"] = "raise",
    intensity: Intensity = "auto",
    threads: int | None = None,
    axes: Axes = "checked",
    max_tilt_degrees: float = DEFAULT_MAX_TILT_DEGREES,
    hu_guard: HuGuard = "refuse",
    assume_orientation: str | None = None,
) -> PreprocessedBatch:
    """Preprocess several scans into one batch, each as :func:`ctgpu.preprocess` does.

    On a CUDA device, with ``output="torch"`` or ``"cupy"``, raw voxels go up from pinned memory and
    the batch is made on the framework's current stream, where a model reads it: one launch for all
    volumes of one kind (type of voxel, order in memory).  With an engine that is open already
    (:func:`ctgpu.engines.open_engine`) the host does not wait for the device: the memory of two
    batches may still be read, and the third waits for the first.  Voxels that lie on a GPU are
    copied off it first, as the host looks at them.

    Parameters
    ----------
    volumes : sequence of path or array-like
        As :func:`ctgpu.preprocess` takes one; one at least.
    spec, device, output, intensity, axes, max_tilt_degrees, hu_guard, assume_orientation
        As :func:`ctgpu.preprocess` takes them.
    spacing_mm : array-like, optional
        Source voxel size in millimetres: shape (3,), H, W, D for all, or for each of B volumes one
        such, or None for the file's own.
    out : array, optional
        C-contiguous, shape (B, *stored_shape), of the spec's dtype, to write into: a NumPy array or
        a torch tensor on the CPU; where the output stays on a GPU, a CuPy array or a torch tensor
        there.  The result is its beginning.
    on_error : {"raise", "skip"}
        What becomes of a volume that cannot be made: it raises, or it is left out and is one of
        the failures, so that the others are not lost.
    threads : int, optional
        Threads for all volumes together; by default every usable core.

    Returns
    -------
    PreprocessedBatch

    Raises
    ------
    UsageError, DeviceError
        If an argument is outside its domain, or the device fails.
    UsageError, FetchError, DecodeError, GeometryError, IntensityError
        With ``on_error="raise"``: of the first volume that cannot be made, which is named.
    """
    taking = Taking.of(spec, intensity, axes, max_tilt_degrees, assume_orientation, hu_guard)
    require_face(output, threads)
    require_choice("on_error", on_error, ("raise", "skip"))
    if spec.crop == "mask":
        raise UsageError("crop is 'mask', and masks are ctgpu.preprocess's: call that for each")
    if isinstance(volumes, str | bytes | PathLike) or not len(volumes):
        raise UsageError(
            f"volumes is {shown(volumes)}; wanted a sequence of paths or arrays, one at least"
        )
    scans = list(zip(volumes, _spacings_mm(spacing_mm, len(volumes)), strict=True))
    with contextlib.ExitStack() as stack:
        engine = device if isinstance(device, Engine) else open_engine(device)
        if engine is not device:
            stack.callback(engine.close)
        work = _Work(taking, scans, threads or usable_cores(), is_strict=on_error == "raise")
        on_device = engine_on_device(engine, output)
        if on_device is not None:
            return _on_device(work, on_device, output, out)
        return _on_host(work, engine, output, out)


@dataclass(frozen=True, slots=True)
class _Work:
    """Volumes to make, each with the voxel size that the caller states."""

    taking: Taking
    scans: list[tuple[Scan, Spacing | None]]
    threads: int
    is_strict: bool

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Of a batch of all."""
        return len(self.scans), *self.taking.spec.stored_shape

    def each(self, at_a_time: int, do: Callable[[int, Scan, Spacing | None], Any]) -> list[Any]:
        """What `do` gives for each, or why it cannot be made; in threads.

        Raises
        ------
        EnvironmentFailure
            What is no fault of a volume.
        """

        def attempt(index: int) -> Any:
            try:
                return do(index, *self.scans[index])
            except EnvironmentFailure:
                raise
            except CtgpuError as error:
                return error

        at_a_time = max(1, min(at_a_time, self.threads, len(self.scans)))
        with ThreadPoolExecutor(at_a_time, "ctgpu-batch") as threads:
            tries = [threads.submit(attempt, index) for index in range(len(self.scans))]
        return [one.result() for one in tries]

    def failures(self, tries: Sequence[Any]) -> dict[int, CtgpuError]:
        """The volumes that cannot be made.

        Raises
        ------
        CtgpuError
            The first of them, if that is wanted or none is left.
        """
        failures = {n: one for n, one in enumerate(tries) if isinstance(one, CtgpuError)}
        if failures and (self.is_strict or len(failures) == len(tries)):
            index, error = next(iter(failures.items()))
            others = "" if self.is_strict else "; none of the volumes can be made"
            raise type(error)(f"volumes[{index}]: {error}{others}") from error
        return failures


def _on_host(work: _Work, engine: Engine, output: Output, out: Any) -> PreprocessedBatch:
    spec = work.taking.spec
    if out is None:
        memory = allocate_pages(len(work.scans) * spec.size_bytes)
        made = np.ndarray(work.stored_shape, numpy_dtype(spec.dtype), buffer=memory.data)
    else:
        made = output_of(out, work.stored_shape, spec.dtype)
    pool = BufferPool()
    inside = max(1, work.threads // min(len(work.scans), work.threads))

    def make(index: int, scan: Scan, spacing_mm: Spacing | None) -> Geometry:
        raw = open_volume(scan, pool)
        try:
            if np.may_share_memory(raw.voxels, made):
                raise UsageError("out lies in the memory of the volume; give it memory of its own")
            prepared = work.taking.prepare(raw, spacing_mm)
            geometry = Geometry.of(prepared)
            engine.run([_job(prepared, made[index])], threads=inside)
        finally:
            raw.release()
        return geometry

    tries = work.each(engine.concurrency, make)
    failures = work.failures(tries)
    kept = tuple(index for index in range(len(tries)) if index not in failures)
    for row, index in enumerate(kept):
        if row != index:
            made[row] = made[index]
    made = made[: len(kept)]
    volume = tensor_of(made, spec.dtype) if output == "torch" else made
    return PreprocessedBatch(volume, kept, tuple(tries[index] for index in kept), failures)


def _on_device(work: _Work, engine: CudaEngine, output: Output, out: Any) -> PreprocessedBatch:
    spec = work.taking.spec
    staging = engine.staging
    if out is not None:
        engine.require_output(out, work.stored_shape, spec.dtype)

    def prepare(_: int, scan: Scan, spacing_mm: Spacing | None) -> PreparedVolume:
        raw = open_volume(scan, staging.pool)
        try:
            if raw.buffer is None:  # the caller's, who may change it as soon as the batch is there
                raw.voxels, raw.buffer = staging.copy_of(raw.voxels)
            return work.taking.prepare(raw, spacing_mm)
        except BaseException:
            raw.release()
            raise

    tries = work.each(work.threads, prepare)
    with contextlib.ExitStack() as stack:
        good = {n: one for n, one in enumerate(tries) if isinstance(one, PreparedVolume)}
        for prepared in good.values():
            stack.callback(prepared.raw.release)
        failures = work.failures(tries)
        geometries = tuple(Geometry.of(prepared) for prepared in good.values())
        nowhere = np.empty((0, 0, 0), numpy_dtype(spec.dtype))
        jobs = [_job(prepared, nowhere) for prepared in good.values()]
        lent = [prepared.raw.buffer for prepared in good.values()]
        rows = out if out is None else out[: len(jobs)]
        made = left_on_device(engine, jobs, spec.dtype, output, out=rows, lent=lent)
        stack.pop_all()
    return PreprocessedBatch(made, tuple(good), geometries, failures)


def _job(prepared: PreparedVolume, out: npt.NDArray[Any]) -> Job:
    return Job(prepared.voxels, prepared.rescale, prepared.plan, out)


def _spacings_mm(value: Any, count: int) -> list[Spacing | None]:
    """The voxel size that a caller states for each of `count` volumes."""
    if value is None:
        return [None] * count
    rows = list(value) if hasattr(value, "__len__") and not isinstance(value, str | bytes) else []
    if not any(one is None or (hasattr(one, "__len__") and np.ndim(one)) for one in rows):
        return [spacing_of(value)] * count
    if len(rows) != count:
        raise UsageError(
            f"spacing_mm has {counted(len(rows), 'voxel size')} for {counted(count, 'volume')}; "
            "wanted one for all, or one, or None, for each"
        )
    return [None if one is None else spacing_of(one) for one in rows]
