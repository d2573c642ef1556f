"""Raw arrays with their shape and dtype stated beside them."""

from __future__ import annotations

import numpy as np
import pytest

from ctgpu.decode import decode_raw
from ctgpu.errors import DecodeError
from ctgpu.volume.raw import Rescale


@pytest.mark.parametrize("dtype", ["int16", "float16", "uint8", "float32", ">i2"])
def test_voxels_in_place(dtype, fill):
    voxels = np.arange(24).reshape(2, 3, 4).astype(dtype)
    buffer = fill(voxels.tobytes())
    facts = {"XYSpacing": "[0.3, 0.4]", "ZSpacing": 2, "RescaleSlope": 3, "study_id": "a"}
    volume = decode_raw(buffer, [2, 3, 4], dtype, facts)
    np.testing.assert_array_equal(volume.voxels, voxels)
    assert np.shares_memory(volume.voxels, buffer.bytes)
    assert volume.spacing_mm == (0.3, 0.4, 2.0)
    # The JSON's rescale pair is the intensity source's to apply.
    assert volume.header_rescale == Rescale()
    assert (volume.metadata, volume.format) == (facts, "raw")
    volume.release()


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((2, 3, 5), "int16", "takes 60"),
        ((2, 3), "int16", "three axes"),
        ((-2, -3, 4), "int16", "three axes"),
        ((2, 3, 4), "int64", "int64"),
        ((2, 3, 4), "object", "object"),
        ((2, 3, 4), "no such dtype", "NumPy dtype"),
        (("a", 3, 4), "int16", "whole numbers"),
        (None, "int16", "whole numbers"),
    ],
)
def test_what_is_refused_gives_the_buffer_back(shape, dtype, message, fill, pool):
    with pytest.raises(DecodeError, match=message) as caught:
        decode_raw(fill(bytes(48)), shape, dtype, {}, file_name="shard 3: scan_1")
    assert "shard 3: scan_1" in str(caught.value)
    assert pool.lent_bytes == 0
