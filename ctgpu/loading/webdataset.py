"""Decodes samples for a stock `webdataset` pipeline, of which it needs nothing itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from ctgpu.codec import CtzError
from ctgpu.codec.whole import decode_member
from ctgpu.errors import DecodeError
from ctgpu.loading.region import Shape, dhw_order, to_dhw
from ctgpu.shards.tar import MASKS, VOLUMES, mask_of, volume_of
from ctgpu.spec import Dtype, Layout
from ctgpu.volume.masks import MaskFormat
from ctgpu.volume.stored import numpy_dtype

_MEMBERS = ("cls", "txt", "json")


def decoder(sample: Mapping[str, Any]) -> dict[str, Any]:
    """A sample as :class:`ctgpu.loading.VolumeDataset` gives it, of the bytes of its members.

    For ``WebDataset(urls, …).map(decoder)``: the shape of a volume is in another member, so it
    takes whole samples, not the single members that ``.decode()`` would hand it.

    Parameters
    ----------
    sample : mapping
        ``bin`` or ``ctz``, ``cls``, ``txt`` and ``json``, undecoded, and ``__key__``; ``seg`` or
        ``segz`` where there are masks.

    Returns
    -------
    dict
        ``volume`` (1, D, H, W) of the type that is stored (bfloat16: its bits, as uint16) and
        ``labels`` (classes,) float32, copied or decoded out of the bytes, which may not be written
        to; what was compressed is contiguous, and each of its tiles has its checksum;
        ``report`` and ``study_id``, text; where there are masks, ``mask`` (1, D, H, W), uint8 or
        uint16 as it is stored, a copy as well.

    Raises
    ------
    DecodeError
        If a member is missing, the volume or mask is not of the shape and type that are stated, or
        one that is compressed is damaged.
    """
    key = sample.get("__key__", "the sample")
    wanted = (volume_of(sample), *_MEMBERS)
    if missing := [name for name in wanted if name not in sample]:
        raise DecodeError(f"{key} lacks {', '.join(missing)}; it is not a sample of ctgpu")
    try:
        facts = json.loads(sample["json"])
        shape, dtype, layout = tuple(facts["shape"]), facts["dtype"], facts["layout"]
        study_id = facts["study_id"]
        if dtype not in get_args(Dtype) or layout not in get_args(Layout):
            raise ValueError(f"it is {dtype} {layout}")
        if len(shape) != 3:
            raise ValueError(f"its shape is {shape}")
        volume = _voxels(sample, volume_of(sample), dtype, numpy_dtype(dtype), shape, layout)
        mask = None
        if extension := mask_of(sample):
            masks = MaskFormat.from_dict({"dtype": facts["mask"]["dtype"]})
            mask = _voxels(sample, extension, masks.dtype, masks.numpy_dtype, shape, layout)
        labels = np.frombuffer(sample["cls"], "<f4").copy()
        report = sample["txt"].decode()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DecodeError(
            f"{key} is not a sample of ctgpu ({error}); map the decoder over undecoded samples, "
            "without .decode() before it"
        ) from error
    return {
        "volume": volume[None],
        **({} if mask is None else {"mask": mask[None]}),
        "labels": labels,
        "report": report,
        "study_id": study_id,
    }


def _voxels(
    sample: Mapping[str, Any],
    extension: str,
    dtype: str,
    voxel: np.dtype[Any],
    shape: Shape,
    layout: Layout,
) -> npt.NDArray[Any]:
    """A volume or a mask (D, H, W), in memory of its own."""
    content = sample[extension]
    if extension not in (VOLUMES[1], MASKS[1]):
        return to_dhw(np.frombuffer(content, voxel).reshape(shape).copy(), layout)
    try:
        return decode_member(content, dhw_order(shape, layout), dtype, voxel)
    except CtzError as error:
        raise DecodeError(
            f"{sample.get('__key__', 'the sample')}.{extension} cannot be decoded: {error}; "
            "`ctgpu verify` of its folder says what else is damaged"
        ) from error
