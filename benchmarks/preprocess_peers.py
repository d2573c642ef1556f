"""Peers of ``run_preprocess.py``: each does its whole preprocessing, from voxels in memory.

SimpleITK and scipy sample the contract's grid; TorchIO and MONAI the one that follows from the
spacing, as their users would have it, which is shifted by a fraction of a voxel.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from common import REAL_CT_SPACING_MM
from ctgpu.volume.geometry import VolumePlan

Voxels = npt.NDArray[Any]
Run = Callable[[], object]


def _affine() -> Voxels:
    return np.diag([*REAL_CT_SPACING_MM, 1.0])


def monai(voxels: Voxels, plan: VolumePlan) -> Run:
    transforms = importlib.import_module("monai.transforms")
    meta = importlib.import_module("monai.data").MetaTensor
    spec = plan.spec
    lo, hi = spec.hu_window
    chain = transforms.Compose(
        [
            transforms.ScaleIntensityRange(lo, hi, -1.0, 1.0, clip=True),
            transforms.Spacing(spec.target_spacing_mm, mode="bilinear"),
            transforms.ResizeWithPadOrCrop(spec.shape_hwd, constant_values=spec.padding),
        ]
    )
    return lambda: (
        chain(meta(voxels[None].astype(np.float32), affine=_affine())).numpy().astype(np.float16)
    )


def torchio(voxels: Voxels, plan: VolumePlan) -> Run:
    tio = importlib.import_module("torchio")
    torch = importlib.import_module("torch")
    spec = plan.spec
    chain = tio.Compose(
        [
            tio.Clamp(*spec.hu_window),
            tio.RescaleIntensity((-1, 1), in_min_max=spec.hu_window),
            tio.Resample(spec.target_spacing_mm),
            tio.CropOrPad(spec.shape_hwd, padding_mode=spec.padding),
        ]
    )

    def run() -> Voxels:
        tensor = torch.from_numpy(voxels.astype(np.float32))[None]
        image = tio.ScalarImage(tensor=tensor, affine=_affine())
        return np.asarray(chain(image).data.numpy().astype(np.float16))

    return run


def simpleitk(voxels: Voxels, plan: VolumePlan) -> Run:
    sitk = importlib.import_module("SimpleITK")
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    spec = plan.spec
    lo, hi = spec.hu_window
    start = [
        s * ((a.crop_start - a.pad_before + 0.5) * a.n_source / a.n_resized - 0.5)
        for a, s in zip(plan.axes, plan.spacing_mm, strict=True)
    ]
    step = [s * a.n_source / a.n_resized for a, s in zip(plan.axes, plan.spacing_mm, strict=True)]

    def run() -> Voxels:
        image = sitk.GetImageFromArray(voxels.transpose(2, 1, 0))
        image.SetSpacing(plan.spacing_mm)
        image = sitk.Clamp(sitk.Cast(image, sitk.sitkFloat32), lowerBound=lo, upperBound=hi)
        image = sitk.Resample(
            image,
            spec.shape_hwd,
            sitk.Transform(),
            sitk.sitkLinear,
            start,
            step,
            (1, 0, 0, 0, 1, 0, 0, 0, 1),
            lo,
        )
        x = sitk.GetArrayViewFromImage(image).transpose(2, 1, 0)
        return (x / np.float32((hi - lo) / 2)).astype(np.float16, order="C")

    return run


def scipy(voxels: Voxels, plan: VolumePlan) -> Run:
    ndimage = importlib.import_module("scipy.ndimage")
    spec = plan.spec
    lo, hi = spec.hu_window
    kept = tuple(slice(a.crop_start, a.crop_start + a.n_valid) for a in plan.axes)
    pads = [(a.pad_before, a.n_out - a.pad_before - a.n_valid) for a in plan.axes]

    def run() -> Voxels:
        x = np.clip(voxels.astype(np.float32), lo, hi)
        zoom = [a.n_resized / a.n_source for a in plan.axes]
        x = ndimage.zoom(x, zoom, order=1, grid_mode=True, mode="nearest") / ((hi - lo) / 2)
        return np.pad(x[kept], pads, constant_values=spec.padding).astype(np.float16)

    return run


#: What makes each peer's run; raises ImportError where it is not installed.
PEERS: dict[str, Callable[[Voxels, VolumePlan], Run]] = {
    "SimpleITK": simpleitk,
    "TorchIO": torchio,
    "MONAI": monai,
    "scipy zoom": scipy,
}
