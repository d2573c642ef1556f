"""Decodes samples for a stock `webdataset` pipeline, of which it needs nothing itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, get_args

import numpy as np

from ctgpu.errors import DecodeError
from ctgpu.loading.region import to_dhw
from ctgpu.spec import Dtype, Layout
from ctgpu.volume.masks import MaskFormat
from ctgpu.volume.stored import numpy_dtype

_MEMBERS = ("bin", "cls", "txt", "json")


def decoder(sample: Mapping[str, Any]) -> dict[str, Any]:
    """A sample as :class:`ctgpu.loading.VolumeDataset` gives it, of the bytes of its members.

    For ``WebDataset(urls, …).map(decoder)``: the shape of a volume is in another member, so it
    takes whole samples, not the single members that ``.decode()`` would hand it.

    Parameters
    ----------
    sample : mapping
        ``bin``, ``cls``, ``txt`` and ``json``, undecoded, and ``__key__``; ``seg`` where there are
        masks.

    Returns
    -------
    dict
        ``volume`` (1, D, H, W) of the type that is stored (bfloat16: its bits, as uint16) and
        ``labels`` (classes,) float32, copied out of the bytes, which may not be written to;
        ``report`` and ``study_id``, text; where there are masks, ``mask`` (1, D, H, W), uint8 or
        uint16 as it is stored, a copy as well.

    Raises
    ------
    DecodeError
        If a member is missing, or the volume or mask is not of the shape and type that are stated.
    """
    key = sample.get("__key__", "the sample")
    if missing := [name for name in _MEMBERS if name not in sample]:
        raise DecodeError(f"{key} lacks {', '.join(missing)}; it is not a sample of ctgpu")
    try:
        facts = json.loads(sample["json"])
        shape, dtype, layout = tuple(facts["shape"]), facts["dtype"], facts["layout"]
        study_id = facts["study_id"]
        if dtype not in get_args(Dtype) or layout not in get_args(Layout):
            raise ValueError(f"it is {dtype} {layout}")
        volume = np.frombuffer(sample["bin"], numpy_dtype(dtype)).reshape(shape).copy()
        mask = None
        if "seg" in sample:
            masks = MaskFormat.from_dict({"dtype": facts["mask"]["dtype"]})
            mask = np.frombuffer(sample["seg"], masks.numpy_dtype).reshape(shape).copy()
        labels = np.frombuffer(sample["cls"], "<f4").copy()
        report = sample["txt"].decode()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DecodeError(
            f"{key} is not a sample of ctgpu ({error}); map the decoder over undecoded samples, "
            "without .decode() before it"
        ) from error
    return {
        "volume": to_dhw(volume, layout)[None],
        **({} if mask is None else {"mask": to_dhw(mask, layout)[None]}),
        "labels": labels,
        "report": report,
        "study_id": study_id,
    }
