"""Other libraries on one volume: each does its whole preprocessing, from voxels in memory.

SimpleITK and scipy sample the contract's grid; TorchIO and MONAI the one that follows from the
spacing, as their users would have it, which is shifted by a fraction of a voxel.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.harness.asking import REAL_CT_SPACING_MM
from benchmarks.harness.measuring import Array, Run
from ctgpu.spec import Spec
from ctgpu.volume.geometry import VolumePlan


def window(spec: Spec) -> tuple[float, float]:
    """Of HU; the contract of these benchmarks has one."""
    assert spec.hu_window is not None
    return spec.hu_window


def _affine() -> Array:
    return np.diag([*REAL_CT_SPACING_MM, 1.0])


def monai_steps(spec: Spec) -> list[Any]:
    """MONAI's transforms of an array in HU with its channel first, to float32."""
    transforms = importlib.import_module("monai.transforms")
    return [
        transforms.ScaleIntensityRange(*window(spec), -1.0, 1.0, clip=True),
        transforms.Spacing(spec.target_spacing_mm, mode="bilinear"),
        transforms.ResizeWithPadOrCrop(spec.shape_hwd, constant_values=spec.padding),
    ]


def monai(voxels: Array, plan: VolumePlan) -> Run:
    chain = importlib.import_module("monai.transforms").Compose(monai_steps(plan.spec))
    meta = importlib.import_module("monai.data").MetaTensor
    return lambda: (
        chain(meta(voxels[None].astype(np.float32), affine=_affine())).numpy().astype(np.float16)
    )


def torchio_steps(spec: Spec) -> Any:
    """TorchIO's transform of an image or a subject in HU, to float32."""
    tio = importlib.import_module("torchio")
    return tio.Compose(
        [
            tio.Clamp(*window(spec)),
            tio.RescaleIntensity((-1, 1), in_min_max=window(spec)),
            tio.Resample(spec.target_spacing_mm),
            tio.CropOrPad(spec.shape_hwd, padding_mode=spec.padding),
        ]
    )


def torchio(voxels: Array, plan: VolumePlan) -> Run:
    tio = importlib.import_module("torchio")
    torch = importlib.import_module("torch")
    chain = torchio_steps(plan.spec)

    def run() -> Array:
        tensor = torch.from_numpy(voxels.astype(np.float32))[None]
        image = tio.ScalarImage(tensor=tensor, affine=_affine())
        return np.asarray(chain(image).data.numpy().astype(np.float16))

    return run


def simpleitk(voxels: Array, plan: VolumePlan) -> Run:
    sitk = importlib.import_module("SimpleITK")
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    spec = plan.spec
    lo, hi = window(spec)
    start = [
        s * ((a.crop_start - a.pad_before + 0.5) * a.n_source / a.n_resized - 0.5)
        for a, s in zip(plan.axes, plan.spacing_mm, strict=True)
    ]
    step = [s * a.n_source / a.n_resized for a, s in zip(plan.axes, plan.spacing_mm, strict=True)]

    def run() -> Array:
        image = sitk.GetImageFromArray(voxels.transpose(2, 1, 0))
        image.SetSpacing(plan.spacing_mm)
        image = sitk.Clamp(sitk.Cast(image, sitk.sitkFloat32), lowerBound=lo, upperBound=hi)
        turned = (1, 0, 0, 0, 1, 0, 0, 0, 1)
        how = sitk.Transform(), sitk.sitkLinear
        image = sitk.Resample(image, spec.shape_hwd, *how, start, step, turned, lo)
        x = sitk.GetArrayViewFromImage(image).transpose(2, 1, 0)
        made: Array = (x / np.float32((hi - lo) / 2)).astype(np.float16, order="C")
        return made

    return run


def scipy(voxels: Array, plan: VolumePlan) -> Run:
    ndimage = importlib.import_module("scipy.ndimage")
    spec = plan.spec
    lo, hi = window(spec)
    kept = tuple(slice(a.crop_start, a.crop_start + a.n_valid) for a in plan.axes)
    pads = [(a.pad_before, a.n_out - a.pad_before - a.n_valid) for a in plan.axes]

    def run() -> Array:
        x = np.clip(voxels.astype(np.float32), lo, hi)
        zoom = [a.n_resized / a.n_source for a in plan.axes]
        x = ndimage.zoom(x, zoom, order=1, grid_mode=True, mode="nearest") / ((hi - lo) / 2)
        return np.pad(x[kept], pads, constant_values=spec.padding or 0.0).astype(np.float16)

    return run


#: What makes each peer's run; raises ImportError where it is not installed.
PEERS: dict[str, Callable[[Array, VolumePlan], Run]] = {
    "SimpleITK": simpleitk,
    "TorchIO": torchio,
    "MONAI": monai,
    "scipy zoom": scipy,
}


def merlin(monai: Any, spec: Spec) -> Any:
    """Merlin's transforms in their order, as merlin/data/monai_transforms.py has them."""
    keys, levels = ["image"], (*window(spec), *spec.output_range)
    return monai.Compose(
        [
            monai.LoadImaged(keys),
            monai.EnsureChannelFirstd(keys),
            monai.Orientationd(keys, axcodes=spec.orientation),
            monai.Spacingd(keys, pixdim=spec.target_spacing_mm, mode="bilinear"),
            monai.ScaleIntensityRanged(keys, *levels, clip=True),
            monai.SpatialPadd(keys, spatial_size=spec.shape_hwd),
            monai.CenterSpatialCropd(keys, roi_size=spec.shape_hwd),
            monai.ToTensord(keys),
        ]
    )


#: A project's own pipeline of MONAI's transforms, from a file, by preset.
PIPELINES: dict[str, Callable[[Any, Spec], Any]] = {"merlin": merlin}


def torch_written_well(voxels: Any, plan: VolumePlan) -> Callable[[], Any]:
    """The contract's steps by someone who knows torch: in memory order, in place, one copy.

    `voxels` are a tensor (D, W, H), which is the memory's order, and interpolated as such, on its
    device.  Crop, pad, turn and float16 are one copy into the result.
    """
    import torch

    spec = plan.spec
    lo, hi = window(spec)
    kept = tuple(slice(a.crop_start, a.crop_start + a.n_valid) for a in plan.axes)
    placed = tuple(slice(a.pad_before, a.pad_before + a.n_valid) for a in plan.axes)

    def run() -> Any:
        x = torch.nn.functional.interpolate(
            voxels.float().clamp_(lo, hi)[None, None],
            size=plan.resized_shape[::-1],
            mode="trilinear",
            align_corners=False,
        )[0, 0]
        out = torch.full(
            spec.shape_hwd, spec.padding or 0.0, dtype=torch.float16, device=voxels.device
        )
        x = x[kept[::-1]] if lo == -hi else x[kept[::-1]].sub_((lo + hi) / 2)
        out[placed] = x.mul_(2 / (hi - lo)).permute(2, 1, 0)
        return out

    return run
