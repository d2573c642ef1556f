"""One sample of a WebDataset's tar, and the volume in it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tar_cases import VOXELS, facts, tar

import ctgpu
from codec.ctz_cases import compressed, volume
from ctgpu.buffers import BufferPool
from ctgpu.codec.ctz import KINDS, SLACK_BYTES, Kind
from ctgpu.errors import DecodeError, TableError
from ctgpu.sources.tar_samples import read_volume, samples_of_tar, stored_dtype
from ctgpu.sources.tars import TarSource
from ctgpu.spec import Spec


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"volume_shape": [2, 3, 5]}, "takes 60"),
        ({"volume_shape": None}, "no volume_shape"),
        ({"volume_dtype": "object"}, "object"),
        ({"volume_dtype": "int33"}, "int33"),
    ],
)
def test_a_bare_array_that_is_not_as_described_is_refused(
    tmp_path: Path, stated: dict[str, Any], message: str
) -> None:
    members = {"b.bin": VOXELS.tobytes(), "b.json": facts(**stated)}
    source = TarSource(tar(tmp_path / "a.tar", members))
    (ref,) = source.list_volumes("valid")
    pool = BufferPool()
    with pytest.raises(DecodeError, match=message):
        source.fetch(ref, pool.acquire).decode(pool)
    assert pool.lent_bytes == 0


def test_a_tar_that_changes_between_fetching_and_decoding_fails_the_sample(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", {"b.bin": VOXELS.tobytes(), "b.json": facts()})
    source = TarSource(path)
    (ref,) = source.list_volumes("valid")
    pool = BufferPool()
    fetched = source.fetch(ref, pool.acquire)
    path.write_bytes(path.read_bytes() + bytes(512))
    with pytest.raises(DecodeError, match="changed after it had been listed"):
        fetched.decode(pool)
    assert pool.lent_bytes == 0


@pytest.mark.slow
def test_the_old_builders_scramble_is_told_from_good_volumes_on_real_ct(
    tmp_path: Path, real_ct: Path
) -> None:
    # Defect 1: (H, D, W) stored where (H, W, D) is claimed; isotropic, by defect 3.
    good = Spec(target_spacing_mm=(3.0, 3.0, 6.0), shape_hwd=(120, 120, 60))
    bad = Spec(target_spacing_mm=(6.0, 6.0, 6.0), shape_hwd=(120, 60, 120))
    members = {}
    for path in sorted(real_ct.glob("*.nii.gz")):
        for name, spec in (("good", good), ("bad", bad)):
            volume = ctgpu.preprocess(path, spec=spec, device="cpu")
            members[f"{path.name.partition('.')[0]}-{name}.bin"] = volume.tobytes()
    path = tar(tmp_path / "a.tar", members)
    card = {"preprocessed": True, "sample_shape": [120, 120, 60]}
    (tmp_path / "manifest.json").write_text(json.dumps(card))
    source = TarSource(path)
    told = {}
    pool = BufferPool()
    for ref in source.list_volumes("valid"):
        try:
            source.fetch(ref, pool.acquire).decode(pool).release()
            told[ref.key] = "good"
        except DecodeError as error:
            told[ref.key] = "bad" if "60 of 120 in-plane rows are gone" in str(error) else "?"
    assert len(told) == len(members) > 2
    assert all(key.endswith(verdict) for key, verdict in told.items())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n" + b"oid " * 500, "git lfs pull"),
        (b"<html>" + b" " * 2000, "is an HTML page"),
        (b"", "is empty"),
    ],
)
def test_a_file_in_the_place_of_a_tar_is_called_what_it_is(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(DecodeError, match=rf"x\.tar .*{message}"):
        samples_of_tar(tmp_path / "x.tar")


#: (D, H, W), no axis a multiple of a tile's.
SHAPE = (9, 6, 40)


def described(kind: Kind, layout: str = "HWD", /, **others: Any) -> tuple[bytes, bytes, Any]:
    """A ``.ctz``, its JSON as ctgpu writes it, and the voxels in their layout, as unsigned."""
    voxels = volume(SHAPE, kind)
    stored = voxels if layout == "DHW" else voxels.transpose(1, 2, 0)
    member = compressed(voxels, kind, "rice", layout=layout)  # type: ignore[arg-type]
    dtype = "float16" if kind == "grid" else kind
    stated = {"shape": stored.shape, "dtype": dtype, "layout": layout, "spacing_mm": [1, 2, 3]}
    return member, json.dumps(stated | others).encode(), stored


@pytest.mark.parametrize("layout", ["DHW", "HWD"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_compressed_array_is_read_as_what_it_stands_for(
    tmp_path: Path, kind: Kind, layout: str
) -> None:
    member, stated, stored = described(kind, layout)
    path = tar(tmp_path / "a.tar", {"b.ctz": member, "b.json": stated})
    card = {"preprocessed": True, "sample_shape": stored.shape}
    (tmp_path / "manifest.json").write_text(json.dumps(card))
    (sample,) = samples_of_tar(path)
    assert sample.volume_extension == "ctz"
    pool = BufferPool()
    raw = read_volume(sample, pool)
    assert raw.spacing_mm == (1, 2, 3)
    if kind == "bfloat16":
        assert raw.voxels.dtype == np.float32
        assert np.array_equal(raw.voxels.view(np.uint32) >> 16, stored)
    else:
        assert np.array_equal(raw.voxels.view(stored.dtype), stored)
    assert stored_dtype(raw) == ("float16" if kind == "grid" else kind)
    raw.release()
    assert pool.lent_bytes == 0


def test_a_compressed_array_is_a_volume_of_a_source(tmp_path: Path) -> None:
    member, stated, stored = described("int16")
    source = TarSource(tar(tmp_path / "a.tar", {"b.ctz": member, "b.json": stated}))
    (ref,) = source.list_volumes("valid")
    assert (ref.key, ref.path, ref.size_bytes) == ("b", "a.tar/b.ctz", len(member))
    row = source.tables("valid", ()).row("b")
    assert row.spacing_mm == (1, 2, 3)
    pool = BufferPool()
    fetched = source.fetch(ref, pool.acquire)
    assert fetched.buffer.bytes.tobytes() == member
    # The voxels, and the member once more with room behind it.
    assert fetched.inflated_bytes == stored.nbytes + len(member) + SLACK_BYTES
    raw = fetched.decode(pool)
    assert np.array_equal(raw.voxels, stored.view(np.int16))
    raw.release()
    assert pool.lent_bytes == 0


def test_a_bare_array_needs_a_spacing_compressed_or_not(tmp_path: Path) -> None:
    member, stated, _ = described("int16", spacing_mm=None)
    source = TarSource(tar(tmp_path / "a.tar", {"b.ctz": member, "b.json": stated}))
    source.list_volumes("valid")
    with pytest.raises(TableError, match=r"b\.json states no XYSpacing and ZSpacing"):
        source.tables("valid", ()).row("b")


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"shape": None}, r"a\.tar/b\.ctz has no volume_shape and volume_dtype in its JSON"),
        (
            {"shape": [6, 40, 10]},
            r"head states the shape \(6, 40, 9\) in the order HWD, and beside it \[6, 40, 10\]",
        ),
        ({"shape": 3}, "and beside it 3 in the order 'HWD' is stated; fetch it again"),
        ({"shape": "abc"}, "and beside it 'abc' in the order"),
        ({"shape": [[6], 40, 9]}, r"and beside it \[\[6\], 40, 9\] in the order"),
        ({"layout": "DHW"}, r"and beside it \[6, 40, 9\] in the order 'DHW' is stated"),
        ({"layout": {}}, r"in the order \{\} is stated"),
        ({"dtype": "float16"}, r"b\.ctz cannot be decoded: it holds int16, and float16 was"),
        ({"dtype": "object"}, "it holds int16, and object was wanted"),
    ],
)
def test_a_compressed_array_that_is_not_as_described_is_refused(
    tmp_path: Path, others: dict[str, Any], message: str
) -> None:
    member, stated, _ = described("int16", **others)
    source = TarSource(tar(tmp_path / "a.tar", {"b.ctz": member, "b.json": stated}))
    (ref,) = source.list_volumes("valid")
    pool = BufferPool()
    with pytest.raises(DecodeError, match=message):
        source.fetch(ref, pool.acquire).decode(pool)
    assert pool.lent_bytes == 0


@pytest.mark.parametrize(
    ("change", "inflates", "message"),
    [
        (lambda m: b"", False, "it does not begin as a .ctz"),
        (lambda m: b"PK" + m[2:], False, "it does not begin as a .ctz"),
        (lambda m: m[:-1], False, "its tiles end at byte"),
        (lambda m: m[:40] + b"?" + m[41:], False, "its header or table does not have its checksum"),
        (lambda m: m[:-1] + bytes([m[-1] ^ 1]), True, "its tile 3 does not have its checksum"),
    ],
)
def test_a_damaged_compressed_array_is_one_sentence(
    tmp_path: Path, change: Callable[[bytes], bytes], inflates: bool, message: str
) -> None:
    member, stated, _ = described("int16")
    source = TarSource(tar(tmp_path / "a.tar", {"b.ctz": change(member), "b.json": stated}))
    (ref,) = source.list_volumes("valid")
    pool = BufferPool()
    fetched = source.fetch(ref, pool.acquire)
    assert (fetched.inflated_bytes > 0) == inflates
    with pytest.raises(
        DecodeError, match=rf"a\.tar/b\.ctz cannot be decoded: {message}.*; fetch it again"
    ):
        fetched.decode(pool)
    assert pool.lent_bytes == 0


def test_a_compressed_array_that_is_too_large_takes_no_memory(tmp_path: Path) -> None:
    member, stated, stored = described("int16")
    source = TarSource(tar(tmp_path / "a.tar", {"b.ctz": member, "b.json": stated}))
    (ref,) = source.list_volumes("valid")
    pool = BufferPool()
    fetched = source.fetch(ref, pool.acquire)
    with pytest.raises(DecodeError, match=rf"b\.ctz takes {stored.nbytes:,} bytes; at most 4,319"):
        fetched.decode(pool, limit_bytes=stored.nbytes - 1)
    assert pool.lent_bytes == 0
