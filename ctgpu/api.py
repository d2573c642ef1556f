"""One call on one scan."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from ctgpu.arguments import MOST_WORKERS, plain, require_choice, require_kind, require_whole_number
from ctgpu.buffers import BufferPool, allocate_pages
from ctgpu.engines import Engine, Job, open_engine
from ctgpu.errors import DecodeError, DeviceError, UsageError
from ctgpu.installation import install_command
from ctgpu.machine import usable_cores
from ctgpu.spec import CT_RATE, SPEC_WANTED, Dtype, Intensity, Spec
from ctgpu.volume.arrays import output_of, spacing_of, voxels_of
from ctgpu.volume.crop import require_croppable
from ctgpu.volume.intensity import HuGuard
from ctgpu.volume.label_volume import LabelVolume, require_same_place
from ctgpu.volume.mask_gather import gather_mask
from ctgpu.volume.on_scan import Geometry
from ctgpu.volume.orientation import DEFAULT_MAX_TILT_DEGREES, Axes, AxisRules
from ctgpu.volume.prepare import PreparedVolume, prepare_volume
from ctgpu.volume.raw import RawVolume, Spacing
from ctgpu.volume.stored import numpy_dtype, tensor_of

if TYPE_CHECKING:
    import torch

    from ctgpu.engines.cuda import CudaEngine

log = logging.getLogger(__name__)

Output = Literal["numpy", "torch", "cupy"]


def preprocess(
    path_or_array: str | PathLike[str] | npt.ArrayLike,
    spacing_mm: npt.ArrayLike | None = None,
    spec: Spec = CT_RATE,
    device: str | Engine = "auto",
    intensity: Intensity = "auto",
    threads: int | None = None,
    out: npt.NDArray[Any] | torch.Tensor | None = None,
    output: Output = "numpy",
    return_geometry: bool = False,
    axes: Axes = "checked",
    max_tilt_degrees: float = DEFAULT_MAX_TILT_DEGREES,
    hu_guard: HuGuard = "refuse",
    assume_orientation: str | None = None,
    mask: str | PathLike[str] | npt.ArrayLike | None = None,
) -> Any:
    """Preprocess one scan.

    Parameters
    ----------
    path_or_array : path or array-like
        The file of a volume (``.nii.gz``, ``.npz``, ``.mha``, …), or voxels of shape (H, W, D): an
        array of any strides and any integer or floating dtype of at most 64 bits, either byte
        order; a torch or CuPy tensor, which is copied off its GPU; or nested lists.
    spacing_mm : array-like, optional
        Source voxel size, shape (3,): H, W, D in millimetres; by default the file's own.  An array
        needs it.
    spec : Spec
        The contract of the output; by default CT-RATE's.
    device : str or Engine
        As ``--device`` takes it, or an engine that is open already.
    intensity : {"auto", "hu", "rescale"}
        As in :class:`Spec`, whose choice ``"auto"`` leaves in force.
        A single file has no CSV, so ``"rescale"`` works only where the file
        itself states slope and intercept.
    threads : int, optional
        Threads inside the volume; by default every usable core.
    out : numpy.ndarray or torch.Tensor, optional
        C-contiguous, of ``spec.stored_shape`` and the spec's dtype, on the CPU, to write into; the
        result shares its memory.  By default fresh memory, in huge pages where the system grants
        them.  To use one array again is fastest.  The first use of one in plain pages of 4 KiB
        (``torch.empty``) takes two to three times as long, for their page faults; D, H, W output
        into one that does not begin at a multiple of 64 bytes (``numpy.empty``) takes twice as
        long at every use.
    output : {"numpy", "torch", "cupy"}
        What to return.  ``"torch"`` and ``"cupy"`` stay on the GPU with a CUDA device, on the
        framework's current stream; ``"torch"`` shares memory with the array on any other.
    return_geometry : bool
        Also return the :class:`Geometry`.
    axes : {"checked", "stored"}
        Of voxels that stay in stored order.  ``"checked"`` refuses a file whose third axis is not
        the one nearest to the patient's long axis, ``"stored"`` takes it as it lies.  An array, or
        a file without an affine, is never refused.
    max_tilt_degrees : float
        Refuse a file whose axes are further than this from the patient's, or from 90° to each
        other; see :class:`ctgpu.volume.orientation.Orientation`.
    assume_orientation : str, optional
        How an array, or a file without an affine, lies in the patient: three letters, such as
        ``"LPS"``.  Without it ``spec.orientation`` refuses them.
    hu_guard : {"refuse", "warn"}
        What to do about a volume that does not look like HU: normalised, grey values, labels,
        rescaled twice or never, as :mod:`ctgpu.volume.intensity` tells.  ``"warn"`` takes it and
        logs what it looks like.
    mask : path or array-like, optional
        Labels of the same voxels: whole numbers from 0, the background, to 65535.  They are taken
        to the very grid of the output, each from the nearest voxel; ``crop="mask"`` needs them.

    Returns
    -------
    array or (array, Geometry), with `mask` (array, mask) or (array, mask, Geometry)
        Of ``spec.stored_shape`` and the spec's dtype; by default float16, in [-1, 1] where it is
        not padding.  NumPy and CuPy have no bfloat16: there it is its bits, uint16
        (:func:`ctgpu.volume.stored.numbers_of` makes float32 of them).  The mask is of the same
        shape, uint8, or where a label is above 255 uint16 (of torch int32), and 0 in padding.

    Raises
    ------
    UsageError, DeviceError, DecodeError, GeometryError, IntensityError
    """
    taking = Taking.of(spec, intensity, axes, max_tilt_degrees, assume_orientation, hu_guard)
    require_face(output, threads)
    if spec.crop == "mask" and mask is None:
        raise UsageError("crop is 'mask', and there is none; pass mask, a file or an array")
    made = None if out is None else output_of(out, spec.stored_shape, spec.dtype)
    stated_mm = None if spacing_mm is None else spacing_of(spacing_mm)
    with contextlib.ExitStack() as stack:
        engine = device if isinstance(device, Engine) else open_engine(device)
        if engine is not device:
            stack.callback(engine.close)
        on_device = engine_on_device(engine, output)
        if on_device is not None and made is not None:
            raise UsageError(
                f"out is memory of the host, and output={output!r} stays on the GPU of "
                f"{engine.name}; leave out away, or use output='numpy'"
            )
        raw = open_volume(path_or_array, BufferPool())
        stack.callback(raw.release)
        if made is not None and np.may_share_memory(raw.voxels, made):
            raise UsageError("out lies in the memory of the volume; give it memory of its own")
        labels = None if mask is None else _labels_of(mask, raw)
        if labels is not None:
            stack.callback(labels.release)
        prepared = taking.prepare(raw, stated_mm, labels)
        geometry = Geometry.of(prepared)
        if on_device is not None:
            result = _run_on_device(on_device, prepared, output)
        else:
            result = _run(engine, prepared, threads or usable_cores(), made, output)
        results = [result]
        if labels is not None:
            results.append(_placed(gather_mask(prepared), result, output))
    if return_geometry:
        results.append(geometry)
    return tuple(results) if len(results) > 1 else result


def _labels_of(mask: str | PathLike[str] | npt.ArrayLike, raw: RawVolume) -> LabelVolume:
    """The labels of a volume's voxels, in the narrowest type that holds them.

    Raises
    ------
    DecodeError, GeometryError
        If it is no mask of this volume.
    """
    opened = open_volume(mask, BufferPool())
    try:
        name = os.fsdecode(mask) if isinstance(mask, str | bytes | PathLike) else "mask"
        require_same_place(name, opened, raw)
        is_narrow = opened.voxels.max() <= 255
        dtype = np.dtype(np.uint8 if is_narrow else np.uint16)
        labels = LabelVolume.empty(raw.voxels, dtype, BufferPool())
        found = labels.take(opened.voxels, np.ones(256 if is_narrow else 65536, np.uint8))
        if found is not None:
            raise DecodeError(
                f"{name} has a voxel of {found:g}; wanted whole numbers from 0 to 65535, as labels "
                "are: correct it"
            )
        return labels
    finally:
        opened.release()


def _placed(mask: npt.NDArray[Any], volume: Any, output: Output) -> Any:
    """A mask as an array of the kind that its volume is, beside it."""
    if output == "cupy":
        import cupy

        with volume.device:
            return cupy.asarray(mask)
    if output == "torch":
        import torch

        # torch computes little with uint16.
        whole = mask if mask.dtype == np.uint8 else mask.astype(np.int32)
        return torch.from_numpy(whole).to(volume.device)
    return mask


@dataclass(frozen=True, slots=True)
class Taking:
    """How volumes are taken, and what they become."""

    spec: Spec
    intensity: Intensity
    rules: AxisRules
    hu_guard: HuGuard

    @classmethod
    def of(
        cls,
        spec: Spec,
        intensity: Intensity,
        axes: Axes,
        max_tilt_degrees: float,
        assume_orientation: str | None,
        hu_guard: HuGuard,
    ) -> Taking:
        """Of the arguments of :func:`preprocess`.

        Raises
        ------
        UsageError
            If one is outside its domain.
        EnvironmentFailure
            If a library that the spec needs is missing.
        """
        rules = AxisRules(axes, plain(max_tilt_degrees), assume_orientation)
        require_choice("hu_guard", hu_guard, get_args(HuGuard))
        require_choice("intensity", intensity, get_args(Intensity))
        require_kind("spec", spec, Spec, SPEC_WANTED, optional=False)
        require_croppable(spec)
        return cls(spec, spec.intensity if intensity == "auto" else intensity, rules, hu_guard)

    def prepare(
        self, raw: RawVolume, spacing_mm: Spacing | None, mask: LabelVolume | None = None
    ) -> PreparedVolume:
        """Everything decided that an engine needs; a finding of the guard is in the log.

        Parameters
        ----------
        raw : RawVolume
        spacing_mm : tuple of float or None
            The caller's, which counts before the file's.
        mask : LabelVolume, optional
            Labels of its voxels.

        Raises
        ------
        UsageError
            If neither states a spacing.
        GeometryError, IntensityError
        """
        spacing = spacing_mm or raw.spacing_mm
        if spacing is None:
            raise UsageError(
                "the volume states no spacing; pass spacing_mm=(H, W, D) in millimetres"
            )
        prepared = prepare_volume(
            raw,
            spec=self.spec,
            spacing_mm=spacing,
            spacing_source="argument" if spacing_mm else "header",
            intensity=self.intensity,
            rules=self.rules,
            hu_guard=self.hu_guard,
            mask=mask,
        )
        if prepared.hu_finding is not None:
            log.warning("the volume was taken as HU, and %s", prepared.hu_finding)
        return prepared


def open_volume(path_or_array: str | PathLike[str] | npt.ArrayLike, pool: BufferPool) -> RawVolume:
    """A volume in memory of `pool` where it is a file; an array stays where it is.

    Raises
    ------
    UsageError, DecodeError, FetchError
        If it is none, or cannot be read.
    """
    if not isinstance(path_or_array, str | bytes | PathLike):
        return RawVolume(voxels_of(path_or_array))
    from ctgpu.sources.fetched import fetch_file

    return fetch_file(Path(os.fsdecode(path_or_array)), pool.acquire).decode(pool)


def require_face(output: Output, threads: int | None) -> None:
    """Refuse what no call takes, before anything is read.

    Raises
    ------
    UsageError, DeviceError
        If an argument is outside its domain, or torch is missing.
    """
    require_choice("output", output, get_args(Output))
    require_whole_number("threads", threads, most=MOST_WORKERS)
    if output != "torch":
        return
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise DeviceError(
            f"output='torch' needs torch: install it with `{install_command('torch')}`, or use "
            "output='numpy'"
        ) from error


def engine_on_device(engine: Engine, output: Output) -> CudaEngine | None:
    """The engine, where its result is to stay on a GPU.

    Raises
    ------
    UsageError
        If it cannot.
    """
    if output == "numpy":
        return None
    from ctgpu.engines.cuda import CudaEngine

    if isinstance(engine, CudaEngine):
        return engine
    if output == "cupy":
        raise UsageError(
            f"output='cupy' needs a CUDA device and the engine is {engine.name}; "
            "use output='numpy' or 'torch'"
        )
    return None


def _run(
    engine: Engine,
    prepared: PreparedVolume,
    threads: int,
    out: npt.NDArray[Any] | None,
    output: Output,
) -> Any:
    spec = prepared.plan.spec
    if out is None:
        # Not the engine's: that is pinned as long as the caller keeps it, and no child inherits it.
        memory = allocate_pages(spec.size_bytes)
        out = np.ndarray(spec.stored_shape, numpy_dtype(spec.dtype), buffer=memory.data)
    engine.run([Job(prepared.voxels, prepared.rescale, prepared.plan, out)], threads=threads)
    return tensor_of(out, spec.dtype) if output == "torch" else out


def _run_on_device(engine: CudaEngine, prepared: PreparedVolume, output: Output) -> Any:
    """The result as an array on the GPU, on the framework's current stream."""
    dtype = prepared.plan.spec.dtype
    nowhere = np.empty((0, 0, 0), numpy_dtype(dtype))
    job = Job(prepared.voxels, prepared.rescale, prepared.plan, nowhere)
    return left_on_device(engine, [job], dtype, output)[0]


def left_on_device(
    engine: CudaEngine, jobs: Sequence[Job], dtype: Dtype, output: Output, **options: Any
) -> Any:
    """Volumes as one array of the framework, on its current stream.

    `options` are those of :meth:`ctgpu.engines.cuda.CudaEngine.batch_on_device`.
    """
    if output == "cupy":
        return engine.batch_on_device(jobs, **options)
    import torch

    with torch.cuda.device(engine.ordinals[0]):
        stream = torch.cuda.current_stream().cuda_stream
        made = torch.utils.dlpack.from_dlpack(engine.batch_on_device(jobs, stream, **options))
        return made.view(torch.bfloat16) if dtype == "bfloat16" else made
