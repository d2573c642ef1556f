"""A project's own pipeline of MONAI transforms beside its preset, from the same file."""

from __future__ import annotations

import importlib
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import ctgpu
from benchmarks.harness.asking import REAL_CT_NAME, Asked
from benchmarks.harness.measuring import Facts, timed, with_ratio
from benchmarks.peers.volumes import window
from ctgpu.spec import Spec


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


#: By preset.
PIPELINES: dict[str, Callable[[Any, Spec], Any]] = {"merlin": merlin}


def beside(asked: Asked, preset: str) -> Facts:
    """Time of both, one thread each, and how far apart their voxels are."""
    warnings.simplefilter("ignore")  # of torch and MONAI, about each other
    try:
        monai = importlib.import_module("monai.transforms")
    except ImportError as error:
        raise SystemExit(f"--preset {preset} needs MONAI: {error}; pip install monai") from error
    torch = importlib.import_module("torch")
    torch.set_num_threads(1)
    spec = Spec.preset(preset)
    pipeline = PIPELINES[preset](monai, spec)
    with tempfile.TemporaryDirectory() as folder:
        path = _phantom(asked, Path(folder)) if asked.quick else asked.options.data / REAL_CT_NAME
        ours, theirs = f"ctgpu --preset {preset}", f"MONAI as in {preset}"
        out = np.empty(spec.stored_shape, np.float16)
        mine = partial(ctgpu.preprocess, path, spec=spec, device="cpu", threads=1, out=out)
        runs = {ours: mine, theirs: partial(pipeline, {"image": str(path)})}
        made = pipeline({"image": str(path)})["image"].numpy()[0]
        mine()
        apart = np.abs(out.astype(np.float32) - made) / spec.scale_offset[0]
        return {
            "data": "synthetic phantom" if asked.quick else f"{REAL_CT_NAME}, the file as it is",
            "preset": preset,
            "spec": spec.to_dict(),
            "monai": importlib.import_module("monai").__version__,
            "repeats": asked.repeats,
            "cache": "warm: the file in the page cache, one run of each before those that count",
            "contenders": with_ratio(timed(runs, asked.repeats), "this_over_ctgpu", ours),
            "apart_hu": {"mean": float(apart.mean()), "largest": float(apart.max())},
        }


def _phantom(asked: Asked, folder: Path) -> Path:
    import nibabel

    scan = asked.scan((48, 40, 30))
    path = folder / "scan.nii.gz"
    image: Any = nibabel.Nifti1Image
    nibabel.save(image(scan.voxels, np.diag([*scan.spacing_mm, 1.0])), path)
    return path
