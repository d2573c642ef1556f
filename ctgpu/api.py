"""One call on one scan."""

from __future__ import annotations

import contextlib
import logging
import os
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from ctgpu.arguments import MOST_WORKERS, plain, require_choice, require_kind, require_whole_number
from ctgpu.buffers import BufferPool, allocate_pages
from ctgpu.engines import Engine, Job, open_engine
from ctgpu.errors import DeviceError, UsageError
from ctgpu.installation import install_command
from ctgpu.machine import usable_cores
from ctgpu.spec import CT_RATE, SPEC_WANTED, Intensity, Spec
from ctgpu.volume.arrays import output_of, spacing_of, voxels_of
from ctgpu.volume.intensity import HuGuard
from ctgpu.volume.orientation import DEFAULT_MAX_TILT_DEGREES, Axes, AxisRules, Orientation
from ctgpu.volume.prepare import PreparedVolume, prepare_volume
from ctgpu.volume.raw import RawVolume, Spacing

if TYPE_CHECKING:
    import torch

    from ctgpu.engines.cuda import CudaEngine

log = logging.getLogger(__name__)

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
    orientation : Orientation or None
        How the source is stored; None where it does not state it.
    """

    affine: npt.NDArray[np.float64]
    source_affine: npt.NDArray[np.float64]
    source_shape: tuple[int, ...]
    resized_shape: tuple[int, ...]
    crop_start: tuple[int, ...]
    pad_before: tuple[int, ...]
    spacing_mm: Spacing
    orientation: Orientation | None = None

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
            prepared.orientation,
        )


def preprocess(
    path_or_array: str | PathLike[str] | npt.ArrayLike,
    spacing_mm: npt.ArrayLike | None = None,
    spec: Spec = CT_RATE,
    device: str | Engine = "auto",
    intensity: Intensity = "auto",
    threads: int | None = None,
    out: npt.NDArray[np.float16] | torch.Tensor | None = None,
    output: Output = "numpy",
    return_geometry: bool = False,
    axes: Axes = "checked",
    max_tilt_degrees: float = DEFAULT_MAX_TILT_DEGREES,
    hu_guard: HuGuard = "refuse",
) -> Any:
    """Preprocess one scan.

    Parameters
    ----------
    path_or_array : path or array-like
        A ``.nii.gz``, ``.nii`` or ``.npz`` file, or voxels of shape (H, W, D): an array of any
        strides and any integer or floating dtype of at most 64 bits, either byte order; a torch or
        CuPy tensor, which is copied off its GPU; or nested lists.
    spacing_mm : array-like, optional
        Source voxel size, shape (3,): H, W, D in millimetres; by default the file's own.  An array
        needs it.
    spec : Spec
        Spacing, shape, window and layout of the output; by default CT-RATE's contract.
    device : str or Engine
        As ``--device`` takes it, or an engine that is open already.
    intensity : {"auto", "hu", "rescale"}
        As in :class:`Spec`, whose choice ``"auto"`` leaves in force.
        A single file has no CSV, so ``"rescale"`` works only where the file
        itself states slope and intercept.
    threads : int, optional
        Threads inside the volume; by default every usable core.
    out : numpy.ndarray or torch.Tensor, optional
        C-contiguous float16 of ``spec.stored_shape``, on the CPU, to write into; the result shares
        its memory.  By default fresh memory, in huge pages where the system grants them.  To use
        one array again is fastest.  The first use of one in plain pages of 4 KiB
        (``torch.empty``) takes two to three times as long, for their page faults; D, H, W output
        into one that does not begin at a multiple of 64 bytes (``numpy.empty``) takes twice as
        long at every use.
    output : {"numpy", "torch", "cupy"}
        What to return.  ``"torch"`` and ``"cupy"`` stay on the GPU with a CUDA device, on the
        framework's current stream; ``"torch"`` shares memory with the array on any other.
    return_geometry : bool
        Also return the :class:`Geometry`.
    axes : {"checked", "stored"}
        Voxels stay in stored order.  ``"checked"`` refuses a file whose third axis is not the one
        nearest to the patient's long axis, ``"stored"`` takes it as it lies.  An array, or a file
        without an affine, is never refused.
    max_tilt_degrees : float
        Refuse a file whose axes are further than this from the patient's, or from 90° to each
        other; see :class:`ctgpu.volume.orientation.Orientation`.
    hu_guard : {"refuse", "warn"}
        What to do about a volume that does not look like HU: normalised, grey values, labels,
        rescaled twice or never, as :mod:`ctgpu.volume.intensity` tells.  ``"warn"`` takes it and
        logs what it looks like.

    Returns
    -------
    array or (array, Geometry)
        float16 of ``spec.stored_shape``, in [-1, 1] where it is not padding.

    Raises
    ------
    UsageError, DeviceError, DecodeError, GeometryError, IntensityError
    """
    rules = AxisRules(axes, plain(max_tilt_degrees))
    for name, word, words in (
        ("hu_guard", hu_guard, HuGuard),
        ("intensity", intensity, Intensity),
        ("output", output, Output),
    ):
        require_choice(name, word, get_args(words))
    require_kind("spec", spec, Spec, SPEC_WANTED, optional=False)
    require_whole_number("threads", threads, most=MOST_WORKERS)
    if output == "torch":
        _require_torch()
    made = None if out is None else output_of(out, spec.stored_shape)
    stated_mm = None if spacing_mm is None else spacing_of(spacing_mm)
    with contextlib.ExitStack() as stack:
        engine = device if isinstance(device, Engine) else open_engine(device)
        if engine is not device:
            stack.callback(engine.close)
        on_device = _on_device(engine, output, made)
        raw = _open(path_or_array)
        stack.callback(raw.release)
        if made is not None and np.may_share_memory(raw.voxels, made):
            raise UsageError("out lies in the memory of the volume; give it memory of its own")
        spacing = stated_mm or raw.spacing_mm
        if spacing is None:
            raise UsageError(
                "the volume states no spacing; pass spacing_mm=(H, W, D) in millimetres"
            )
        prepared = prepare_volume(
            raw,
            spec=spec,
            spacing_mm=spacing,
            spacing_source="argument" if stated_mm else "header",
            intensity=spec.intensity if intensity == "auto" else intensity,
            rules=rules,
            hu_guard=hu_guard,
        )
        if prepared.hu_finding is not None:
            log.warning("the volume was taken as HU, and %s", prepared.hu_finding)
        geometry = Geometry.of(prepared)
        if on_device is not None:
            result = _run_on_device(on_device, prepared, output)
        else:
            result = _run(engine, prepared, threads or usable_cores(), made, output)
    return (result, geometry) if return_geometry else result


def _open(path_or_array: str | PathLike[str] | npt.ArrayLike) -> RawVolume:
    if not isinstance(path_or_array, str | bytes | PathLike):
        return RawVolume(voxels_of(path_or_array))
    from ctgpu.sources.fetched import fetch_file

    pool = BufferPool()
    return fetch_file(Path(os.fsdecode(path_or_array)), pool.acquire).decode(pool)


def _require_torch() -> None:
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise DeviceError(
            f"output='torch' needs torch: install it with `{install_command('torch')}`, or use "
            "output='numpy'"
        ) from error


def _on_device(
    engine: Engine, output: Output, out: npt.NDArray[np.float16] | None
) -> CudaEngine | None:
    """The engine, where its result is to stay on a GPU.

    Raises
    ------
    UsageError
        If it cannot, or `out` is not there.
    """
    if output == "numpy":
        return None
    from ctgpu.engines.cuda import CudaEngine

    if not isinstance(engine, CudaEngine):
        if output == "cupy":
            raise UsageError(
                f"output='cupy' needs a CUDA device and the engine is {engine.name}; "
                "use output='numpy' or 'torch'"
            )
        return None
    if out is not None:
        raise UsageError(
            f"out is memory of the host, and output={output!r} stays on the GPU of {engine.name}; "
            "leave out away, or use output='numpy'"
        )
    return engine


def _run(
    engine: Engine,
    prepared: PreparedVolume,
    threads: int,
    out: npt.NDArray[np.float16] | None,
    output: Output,
) -> Any:
    if out is None:
        shape = prepared.plan.spec.stored_shape
        # Not the engine's: that is pinned as long as the caller keeps it, and no child inherits it.
        out = np.ndarray(shape, np.float16, buffer=allocate_pages(2 * int(np.prod(shape))).data)
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
