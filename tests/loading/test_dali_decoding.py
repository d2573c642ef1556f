"""Compressed volumes as DALI takes them; no DALI is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctgpu.codec import compress, compressed_limit_bytes
from ctgpu.errors import DecodeError
from ctgpu.loading import VolumeDataset
from ctgpu.loading.dali_decoding import BatchDecoder, decoder_of
from ctgpu.spec import Spec


def test_there_is_a_decoder_where_something_is_compressed(plain: Path, rice: Path) -> None:
    """And D, H, W for a GPU where everything is."""
    for folders, decodes, layouts in (
        ([plain], False, ("HWD", "HWD")),
        ([plain, rice], True, ("HWD", "HWD")),
        ([rice], True, ("HWD", "DHW")),
    ):
        for on_gpu, wanted in zip((False, True), layouts, strict=True):
            decoder, layout = decoder_of(VolumeDataset(folders), 2, on_gpu=on_gpu)
            assert (decoder is not None, layout) == (decodes, wanted)


@pytest.mark.parametrize(("layout", "axes"), [("HWD", (1, 2, 0)), ("DHW", (0, 1, 2))])
def test_what_decodes_for_dali_gives_any_layout(
    plain: Path, rice: Path, layout: Any, axes: Any
) -> None:
    """As a GPU gets them: D, H, W at once."""
    raw, small = VolumeDataset(plain), VolumeDataset(rice)
    decode = BatchDecoder(small.spec, layout, threads=2)
    compressed, metadata = [], []
    for number in range(3):
        shard, entry = small.locate(number)
        with shard.open() as reader:
            compressed.append(np.frombuffer(reader.read(entry, "ctz"), np.uint8))
            metadata.append(np.frombuffer(reader.read(entry, "json"), np.uint8))
    none = np.empty(0, np.float16)
    found = decode([none] * 3, compressed, metadata)
    for number, volume in enumerate(found):
        assert volume.flags.c_contiguous
        assert np.array_equal(volume, raw[number]["volume"][0].transpose(axes))
    if layout == raw.spec.layout:  # then raw ones come along
        stored = found[2].reshape(-1)
        volume, other = decode([stored, none], [compressed[0][:0], compressed[0]], metadata[:2])
        assert np.array_equal(volume, found[2])
        assert np.array_equal(other, found[0])
    for text, name in ((metadata[1], "valid_2_a_1"), (metadata[1][:9], "a sample whose JSON is")):
        with pytest.raises(DecodeError, match=f"the volume of {name}.* cannot be decoded: its "):
            decode([none], [compressed[1][:-3]], [text])


def test_what_decodes_for_dali_gives_bits_of_bfloat16_as_dali_has_them() -> None:
    spec = Spec(shape_hwd=(5, 6, 7), dtype="bfloat16")
    bits = np.random.default_rng(1).integers(0x3F00, 0x3F80, (5, 6, 7), np.uint16)
    room = np.empty(compressed_limit_bytes((7, 5, 6), 2), np.uint8)
    size_bytes = compress(
        bits, kind="bfloat16", grid=None, layout="HWD", coding="pack", xxh3_128="0" * 32, out=room
    )
    (volume,) = BatchDecoder(spec, "HWD", threads=1)(
        [np.empty(0, np.int16)], [room[:size_bytes]], [np.empty(0, np.uint8)]
    )
    assert volume.dtype == np.int16
    assert np.array_equal(volume.view(np.uint16), bits)
