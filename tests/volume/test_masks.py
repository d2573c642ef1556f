"""How stored masks are described."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ctgpu.spec import Spec
from ctgpu.volume.masks import MaskFormat


@pytest.mark.parametrize(
    ("dtype", "wanted", "size_bytes"), [("uint8", np.uint8, 42), ("uint16", np.uint16, 84)]
)
def test_a_mask_has_the_shape_of_the_volume_and_a_type_of_its_own(
    dtype: Any, wanted: Any, size_bytes: int
) -> None:
    masks = MaskFormat(dtype)
    assert masks.numpy_dtype == np.dtype(wanted).newbyteorder("<")
    for spec in (Spec(shape_hwd=(2, 3, 7)), Spec(shape_hwd=(2, 3, 7), layout="DHW", dtype="int16")):
        assert masks.size_bytes(spec) == size_bytes


def test_the_labels_are_written_by_their_numbers() -> None:
    masks = MaskFormat("uint8", {"spleen": 2, "aorta": 3, "liver": 1})
    written = masks.to_dict()
    assert list(written["labels"]) == ["liver", "spleen", "aorta"]
    assert MaskFormat.from_dict(written) == masks
    assert MaskFormat.from_dict({"dtype": "uint16"}) == MaskFormat("uint16")


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (None, "got `null`"),
        ({}, "dtype"),
        ({"dtype": "int16"}, "int16"),
        ({"dtype": "uint8", "labels": {"liver": 0}}, ">= 1"),
        ({"dtype": "uint16", "labels": {"liver": 65536}}, "<= 65535"),
        ({"dtype": "uint8", "labels": {"liver": "1"}}, "liver|labels"),
        ({"dtype": "uint8", "labels": {"liver": 256}}, "'liver' is 256, which uint8 cannot hold"),
        ({"dtype": "uint8", "labels": {"a": 1, "b": 1}}, "'a' and 'b' are both 1"),
    ],
)
def test_what_describes_no_masks_is_refused(values: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        MaskFormat.from_dict(values)
