"""What public projects do to a scan, written anew from the code that the presets name.

Each function takes a NIfTI file and the shape (H, W, D) to end at, which is the project's own
unless a test wants it small.  It returns an array in the project's own order: D, H, W or H, W, D.
Where a project calls MONAI, so does this; where it calls TorchIO or ITK, their grids are computed
here.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
import pytest
from scipy import ndimage

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of torch, about what MONAI calls
    torch = pytest.importorskip("torch")
    monai = pytest.importorskip("monai.transforms")

Array = npt.NDArray[Any]
Shape = tuple[int, ...]


def loaded(path: Path) -> tuple[Array, Any]:
    """Voxels as nibabel has them, float64, and the size of one."""
    image: Any = nibabel.load(path)
    return image.get_fdata(), image.header.get_zooms()


def resized(voxels: Any, size: Any) -> Any:
    """As ``torch.nn.functional.interpolate`` does it, in the type of the voxels."""
    tensor = torch.from_numpy(np.ascontiguousarray(voxels))[None, None]
    return torch.nn.functional.interpolate(
        tensor, size=tuple(size), mode="trilinear", align_corners=False
    )[0, 0]


def cropped_and_padded(tensor: Any, shape: Shape, value: float) -> Any:
    """About the centre; of an odd number the larger half goes to the end."""
    kept = tensor
    for axis, (n, wanted) in enumerate(zip(tensor.shape, shape, strict=True)):
        start = max((n - wanted) // 2, 0)
        kept = kept.narrow(axis, start, min(wanted, n))
    pad: list[int] = []
    for n, wanted in reversed([*zip(kept.shape, shape, strict=True)]):
        before = (wanted - n) // 2
        pad += [before, wanted - n - before]
    return torch.nn.functional.pad(kept, pad, value=value)


# ---- CT-CLIP and its relatives ----------------------------------------------------------------


def ct_clip(
    path: Path,
    shape: Shape,
    *,
    before: tuple[float, float] | None = (-1000, 1000),
    after: tuple[float, float] | None = None,
    middle: float = 0,
    half: float = 1000,
    precision: type = np.float64,
) -> Array:
    """Resize (D, H, W) in float64; crop, pad with -1 and permute to D, H, W."""
    voxels, zooms = loaded(path)
    voxels = voxels.astype(precision)
    if before is not None:
        voxels = np.clip(voxels, *before)
    voxels = voxels.transpose(2, 0, 1)
    current, target = (zooms[2], zooms[0], zooms[1]), (1.5, 0.75, 0.75)
    size = [int(n * (float(s) / t)) for n, s, t in zip(voxels.shape, current, target, strict=True)]
    made = np.transpose(resized(voxels, size).numpy(), (1, 2, 0))
    if after is not None:
        made = np.clip(made, *after)
    tensor = torch.tensor(((made - middle) / half).astype(np.float32))
    return cropped_and_padded(tensor, shape, -1).permute(2, 0, 1).numpy()


def ct_clip_hwd(path: Path, shape: Shape, **how: Any) -> Array:
    return ct_clip(path, shape, **how).transpose(1, 2, 0)


def ct_clip_training(path: Path, shape: Shape, **how: Any) -> Array:
    return ct_clip(path, shape, before=None, after=(-1000, 1000), **how)


def ct2rep(path: Path, shape: Shape, before: tuple[float, float] | None = (-1000, 1000)) -> Array:
    """Of an .npz that was made as CT-CLIP's: clipped before, too."""
    return ct_clip(path, shape, before=before, after=(-1000, 200), middle=-400, half=600)


def hlip(path: Path, shape: Shape) -> Array:
    """ITK's order of axes, which is k, j, i; resized as HU in float32, windowed, padded."""
    voxels, (x, y, z) = loaded(path)
    voxels = voxels.transpose(2, 1, 0).astype(np.float32)
    size = [
        int(n * float(s) / t) for n, s, t in zip(voxels.shape, (z, y, x), (3, 1, 1), strict=True)
    ]
    made = resized(voxels, size)
    made = torch.clip((made - -1150.0) / (350.0 - -1150.0), 0.0, 1.0)
    h, w, d = shape
    made = cropped_and_padded(made, (d, h, w), 0)
    mean = torch.as_tensor((0.485, 0.456, 0.406)).mean()
    std = torch.as_tensor((0.229, 0.224, 0.225)).mean()
    return ((made - mean) / std).numpy()


def clip_3d_ct(path: Path, shape: Shape, size_of: Callable[[float], float] = round) -> Array:
    """RAS, clipped, transposed to D, H, W; sizes rounded; cut to 8 bits; rows turned around."""
    image: Any = nibabel.as_closest_canonical(nibabel.load(path))
    x, y, z = image.header.get_zooms()
    voxels = np.clip(image.get_fdata(), -1000, 1000).transpose(2, 1, 0).astype(np.float32)
    targets = zip(voxels.shape, (z, y, x), (3.0, 1.5, 1.5), strict=True)
    made = resized(voxels, [int(size_of(n * float(s) / t)) for n, s, t in targets])
    h, w, d = shape
    made = cropped_and_padded(made, (d, h, w), -1000).numpy()
    scaled = np.clip((made / 1000.0 + 1.0) / 2.0 * 255.0, 0, 255)
    return scaled[:, ::-1, :].astype(np.uint8)


# ---- MONAI ------------------------------------------------------------------------------------


def by_monai(path: Path, *steps: Any) -> Array:
    """LoadImage and these steps, on a dictionary as they are called."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = monai.Compose(
            [
                monai.LoadImaged(keys=["image"]),
                monai.EnsureChannelFirstd(keys=["image"], channel_dim="no_channel"),
                *steps,
            ]
        )
        made: Array = pipeline({"image": str(path)})["image"].numpy()[0]
    return made


def ras() -> Any:
    return monai.Orientationd(keys=["image"], axcodes="RAS")


def to_spacing(pixdim: tuple[float, ...], **how: Any) -> Any:
    return monai.Spacingd(keys=["image"], pixdim=pixdim, mode="bilinear", **how)


def window(lo: float, hi: float) -> Any:
    return monai.ScaleIntensityRanged(
        keys=["image"], a_min=lo, a_max=hi, b_min=0.0, b_max=1.0, clip=True
    )


def cropped_to(shape: Shape) -> Any:
    return monai.CenterSpatialCropd(keys=["image"], roi_size=shape)


def padded_to(shape: Shape) -> Any:
    return monai.SpatialPadd(keys=["image"], spatial_size=shape)


def merlin(path: Path, shape: Shape) -> Array:
    return by_monai(
        path,
        ras(),
        to_spacing((1.5, 1.5, 3)),
        window(-1000, 1000),
        padded_to(shape),
        cropped_to(shape),
    )


def spectre(path: Path, shape: Shape) -> Array:
    """Padded to the whole shape, which the project does at its crops only."""
    return by_monai(
        path,
        window(-1000, 1000),
        ras(),
        to_spacing((0.5, 0.5, 1.0)),
        cropped_to(shape),
        padded_to(shape),
    )


def spectre_vla(path: Path, shape: Shape) -> Array:
    return by_monai(
        path,
        window(-1000, 1000),
        ras(),
        to_spacing((0.75, 0.75, 1.5)),
        monai.ResizeWithPadOrCropd(keys=["image"], spatial_size=shape),
    )


def vista3d(path: Path, shape: Shape) -> Array:
    """Cropped and padded at the end, as sliding windows are not."""
    return by_monai(
        path,
        window(-963.8247715525971, 1053.678477684517),
        ras(),
        to_spacing((1.5, 1.5, 1.5), align_corners=True),
        monai.ResizeWithPadOrCropd(keys=["image"], spatial_size=shape),
    )


def ct_fm(path: Path, shape: Shape, crop: bool = False) -> Array:
    """Padded and cropped at the end; with the project's own crop instead if asked."""
    h, w, d = shape
    end = (
        monai.CropForegroundd(keys=["image"], source_key="image")
        if crop
        else monai.ResizeWithPadOrCropd(keys=["image"], spatial_size=(d, h, w), value=-1024)
    )
    return by_monai(
        path,
        monai.EnsureTyped(keys=["image"]),
        monai.Orientationd(keys=["image"], axcodes="SPL"),
        to_spacing((3, 1, 1)),
        end,
        window(-1024, 2048),
    )


def maisi(path: Path, shape: Shape) -> Array:
    return by_monai(
        path,
        ras(),
        monai.EnsureTyped(keys="image", dtype=torch.float32),
        window(-1000, 1000),
        monai.Resized(keys="image", spatial_size=shape, mode="trilinear"),
    )


def medm_vl(path: Path, shape: Shape) -> Array:
    """Mapped to 0 ... 255, standardised, cropped to what is above 0 by now, stretched."""
    image = np.clip(oriented(path, "PLS").transpose(2, 0, 1), -1000, 1000)
    image = (image - -1000) / (1000 - -1000) * 255
    volume = ((image - 55.6982188356434) / 66.1943479570918)[np.newaxis]
    return cropped_and_stretched(volume, shape)


def m3d(path: Path, shape: Shape) -> Array:
    """Of slices whose rows lead to P and columns to L, from below: (C, D, H, W) of grey values."""
    image = oriented(path, "PLS")
    volume = image.transpose(2, 0, 1).astype(np.float32)[np.newaxis]
    volume = volume - volume.min()
    volume = volume / np.clip(volume.max(), a_min=1e-8, a_max=None)
    return cropped_and_stretched(volume, shape)


def cropped_and_stretched(volume: Array, shape: Shape) -> Array:
    """To the box of what is above 0, and that to D, H, W."""
    h, w, d = shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = monai.Compose(
            [monai.CropForeground(), monai.Resize(spatial_size=[d, h, w], mode="bilinear")]
        )
        made: Array = pipeline(torch.from_numpy(volume))[0].numpy()
    return made


def oriented(path: Path, codes: str) -> Array:
    """Voxels whose axes lead in these directions, by nibabel."""
    image: Any = nibabel.load(path)
    here = nibabel.orientations.io_orientation(image.affine)
    there = nibabel.orientations.axcodes2ornt(tuple(codes))
    turn = nibabel.orientations.ornt_transform(here, there)
    turned: Array = nibabel.orientations.apply_orientation(image.get_fdata(), turn)
    return turned


# ---- others -----------------------------------------------------------------------------------


def colipri(path: Path, shape: Shape) -> Array:
    """TorchIO: linear, steps of 2 mm, the middle of the grid on the middle of the scan."""
    image: Any = nibabel.as_closest_canonical(nibabel.load(path))
    made = image.get_fdata().astype(np.float32)
    for axis, (n, s) in enumerate(zip(made.shape, image.header.get_zooms(), strict=True)):
        made = sampled(made, axis, middle_positions(n, float(s), 2.0))
    made = (np.clip(made, -1000, 1000) - -1000.0) / 2000.0 * 2.0 - 1.0
    for axis, wanted in enumerate(shape):
        too_many = made.shape[axis] - wanted
        if too_many > 0:
            first = -(-too_many // 2)
            made = np.take(made, range(first, first + wanted), axis)
        elif too_many < 0:
            sides = [(0, 0)] * 3
            sides[axis] = (-(too_many // 2), -too_many // 2)
            made = np.pad(made, sides, constant_values=made.min())
    return made


def middle_positions(n: int, spacing: float, target: float) -> Array:
    size = 1 if n == 1 else int(np.floor(n * spacing / target))
    return (n - 1) / 2 + (np.arange(size) - (size - 1) / 2) * (target / spacing)


def sampled(voxels: Array, axis: int, positions: Array) -> Array:
    """Linear between two voxels, the outermost ones going on."""
    positions = np.clip(positions, 0, voxels.shape[axis] - 1)
    low = np.floor(positions).astype(int)
    high = np.minimum(low + 1, voxels.shape[axis] - 1)
    weight = np.expand_dims(positions - low, tuple({0, 1, 2} - {axis}))
    a, b = np.take(voxels, low, axis), np.take(voxels, high, axis)
    made: Array = a + (b - a) * weight
    return made


def ct_net(path: Path, shape: Shape) -> Array:
    """RAD-ChestCT's own volumes at 0.8 mm: padded with their least voxel, cropped, mapped."""
    voxels = oriented(path, "PLI").transpose(2, 0, 1)
    h, w, d = shape
    for axis, wanted in enumerate((d, h, w)):
        missing = wanted - voxels.shape[axis]
        if missing > 0:
            sides = [(0, 0)] * 3
            sides[axis] = (int(missing / 2.0), missing - int(missing / 2.0))
            voxels = np.pad(voxels, sides, constant_values=np.amin(voxels))
    for axis, wanted in enumerate((d, h, w)):
        if (too_many := voxels.shape[axis] - wanted) > 0:
            first = int(too_many / 2.0)
            voxels = np.take(voxels, range(first, first + wanted), axis)
    made = torch.from_numpy(voxels).type(torch.float)
    made = (torch.clamp(made, -1000, 200) - -1000) / (200 - -1000)
    return (made - 0.449).numpy()


def by_cubic_splines(path: Path) -> nibabel.Nifti1Image:
    """A scan at 0.8 mm as RAD-ChestCT's makers resampled theirs, from the first voxel."""
    image: Any = nibabel.load(path)
    zooms = np.array(image.header.get_zooms(), float)
    size = [int(np.round(n * (s / 0.8))) for n, s in zip(image.shape, zooms, strict=True)]
    made = ndimage.affine_transform(
        image.get_fdata(), 0.8 / zooms, output_shape=tuple(size), order=3, mode="mirror"
    )
    affine = image.affine.copy()
    affine[:3, :3] *= 0.8 / zooms
    return nibabel.Nifti1Image(np.rint(np.clip(made, -1000, 1000)).astype(np.int16), affine)


#: What each preset is held against.
PIPELINES: dict[str, Callable[..., Array]] = {
    "ct-rate": ct_clip_hwd,
    "ct-rate-dhw": ct_clip,
    "ct-clip-train": ct_clip_training,
    "ct-chat": ct_clip,
    "ct2rep": ct2rep,
    "merlin": merlin,
    "spectre": spectre,
    "spectre-vla": spectre_vla,
    "colipri": colipri,
    "ct-fm": ct_fm,
    "hlip": hlip,
    "maisi": maisi,
    "vista3d": vista3d,
    "rad-chestct": ct_net,
    "m3d": m3d,
    "med3dvlm": m3d,
    "medm-vl": medm_vl,
    "clip-3d-ct": clip_3d_ct,
}
