"""One call on one scan."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from ctgpu.buffers import BufferPool
from ctgpu.engines import Engine, Job, open_engine
from ctgpu.errors import UsageError
from ctgpu.limits import usable_cores
from ctgpu.sample import PreparedVolume, prepare_volume
from ctgpu.spec import CT_RATE, Intensity, Spec
from ctgpu.volume import RawVolume, Spacing

if TYPE_CHECKING:
    from ctgpu.engines.cuda import CudaEngine

Output = Literal["numpy", "torch", "cupy"]


@dataclass(frozen=True, slots=True)
class Geometry:
    """How an output maps back onto its scan.

    Attributes
    ----------
    affine : numpy.ndarray
        4 × 4 float64, output (H, W, D) index to the world of `source_affine`, millimetres.
    source_affine : numpy.ndarray
        4 × 4 float64, source index to RAS+ millimetres, or the bare spacing where the file has
        no affine.
    source_shape, resized_shape, crop_start, pad_before : tuple of int
        Per axis (H, W, D).
    spacing_mm : tuple of float
        Source voxel size (H, W, D) that was used.
    """

    affine: npt.NDArray[np.float64]
    source_affine: npt.NDArray[np.float64]
    source_shape: tuple[int, ...]
    resized_shape: tuple[int, ...]
    crop_start: tuple[int, ...]
    pad_before: tuple[int, ...]
    spacing_mm: Spacing

    @classmethod
    def of(cls, prepared: PreparedVolume) -> Geometry:
        """The geometry of a prepared volume."""
        plan = prepared.plan
        return cls(
            plan.output_affine(prepared.source_affine),
            prepared.source_affine,
            plan.source_shape,
            plan.resized_shape,
            plan.crop_start,
            plan.pad_before,
            plan.spacing_mm,
        )


def preprocess(
    path_or_array: str | PathLike[str] | npt.NDArray[Any],
    spacing_mm: Spacing | None = None,
    spec: Spec = CT_RATE,
    device: str | Engine = "auto",
    intensity: Intensity = "auto",
    threads: int | None = None,
    out: npt.NDArray[np.float16] | None = None,
    output: Output = "numpy",
    return_geometry: bool = False,
) -> Any:
    """Preprocess one scan.

    Parameters
    ----------
    path_or_array : path or numpy.ndarray
        A ``.nii.gz``, ``.nii`` or ``.npz`` file, or voxels of shape (H, W, D), any integer or
        floating dtype and any strides.
    spacing_mm : tuple of float, optional
        Source voxel size (H, W, D); by default the file's own.  An array needs it.
    spec : Spec
        What the output shall be; by default CT-RATE's contract.
    device : str or Engine
        As ``--device`` takes it, or an engine that is open already.
    intensity : {"auto", "hu", "rescale"}
        As in :class:`Spec`, whose choice ``"auto"`` leaves in force.
        A single file has no CSV, so ``"rescale"`` works only where the file
        itself states slope and intercept.
    threads : int, optional
        Threads inside the volume; by default every usable core.
    out : numpy.ndarray, optional
        C-contiguous float16 of ``spec.stored_shape`` to write into.
    output : {"numpy", "torch", "cupy"}
        What to return.  ``"torch"`` and ``"cupy"`` stay on the GPU with a CUDA device, on the
        framework's current stream; ``"torch"`` shares memory with the array on any other.
    return_geometry : bool
        Also return the :class:`Geometry`.

    Returns
    -------
    array or (array, Geometry)
        float16 of ``spec.stored_shape``, in [-1, 1] where it is not padding.

    Raises
    ------
    UsageError, DeviceError, DecodeError, GeometryError, IntensityError
    """
    engine = open_engine(device) if isinstance(device, str) else device
    raw = _open(path_or_array)
    try:
        spacing = spacing_mm or raw.spacing_mm
        if spacing is None:
            raise UsageError(
                "the volume states no spacing; pass spacing_mm=(H, W, D) in millimetres"
            )
        prepared = prepare_volume(
            raw,
            spec=spec,
            spacing_mm=spacing,
            spacing_source="argument" if spacing_mm else "header",
            intensity=spec.intensity if intensity == "auto" else intensity,
        )
        geometry = Geometry.of(prepared)
        result = _run(engine, prepared, threads or usable_cores(), out, output)
    finally:
        raw.release()
        if isinstance(device, str):
            engine.close()
    return (result, geometry) if return_geometry else result


def _open(path_or_array: str | PathLike[str] | npt.NDArray[Any]) -> RawVolume:
    if isinstance(path_or_array, np.ndarray):
        if path_or_array.dtype.kind not in "iuf" or path_or_array.dtype.itemsize > 8:
            raise UsageError(
                f"the array has dtype {path_or_array.dtype}; wanted an integer or floating dtype"
            )
        return RawVolume(path_or_array)
    from ctgpu.decode import decode

    path = Path(path_or_array)
    pool = BufferPool()
    try:
        with path.open("rb") as file:
            buffer = pool.acquire(path.stat().st_size)
            file.readinto(buffer.bytes.data)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    return decode(path.name, buffer, pool)


def _run(
    engine: Engine,
    prepared: PreparedVolume,
    threads: int,
    out: npt.NDArray[np.float16] | None,
    output: Output,
) -> Any:
    shape = prepared.plan.spec.stored_shape
    if output != "numpy":
        from ctgpu.engines.cuda import CudaEngine

        if isinstance(engine, CudaEngine):
            return _run_on_device(engine, prepared, output)
        if output == "cupy":
            raise UsageError(
                f"output='cupy' needs a CUDA device and the engine is {engine.name}; "
                "use output='numpy' or 'torch'"
            )
    if out is None:
        out = np.ndarray(shape, np.float16, buffer=engine.allocate(2 * int(np.prod(shape))).data)
    elif out.shape != shape or out.dtype != np.float16 or not out.flags.c_contiguous:
        raise UsageError(
            f"out is {out.dtype} {out.shape}; wanted C-contiguous float16 of shape {shape}"
        )
    job = Job(prepared.raw.voxels, prepared.rescale, prepared.plan, out)
    engine.run([job], threads=threads)
    if output == "torch":
        import torch

        return torch.from_numpy(out)
    return out


def _run_on_device(engine: CudaEngine, prepared: PreparedVolume, output: Output) -> Any:
    """The result as an array on the GPU, on the framework's current stream."""
    job = Job(prepared.raw.voxels, prepared.rescale, prepared.plan, np.empty((0, 0, 0), np.float16))
    if output == "cupy":
        return engine.preprocess_on_device(job)
    import torch

    with torch.cuda.device(engine.ordinals[0]):
        made = engine.preprocess_on_device(job, torch.cuda.current_stream().cuda_stream)
        return torch.utils.dlpack.from_dlpack(made)
