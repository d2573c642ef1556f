"""Members are those of docs/ctz.md, the same whatever made them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ctgpu
from codec.ctz_cases import SHAPES, compressed, head_of, volume
from ctgpu import _native
from ctgpu.codec import Coding, compressed_limit_bytes
from ctgpu.codec.compress import kind_of
from ctgpu.codec.ctz import CODINGS, KINDS, LAYOUTS, Kind, Shape
from ctgpu.spec import Layout, Spec
from support import plain_ctz


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_variant_writes_what_the_page_says(
    shape: Shape, kind: Kind, coding: Coding, layout: Layout
) -> None:
    voxels = volume(shape, kind)
    member, *others = [
        compressed(voxels, kind, coding, layout=layout, variant=variant)
        for variant in _native.ctz_variants()
    ]
    assert all(other == member for other in others)
    assert plain_ctz.decode(member).view(voxels.dtype).tobytes() == voxels.tobytes()
    head = head_of(member, shape)
    assert member == plain_ctz.encode(
        voxels.view(np.float16) if kind == "grid" else voxels,
        *(kind, coding),
        grid=head.grid,
        weights=head.weights,
        first=head.first,
        layout=layout,
        raw_tiles=frozenset(np.flatnonzero(head.table["raw"]).tolist()),
    )


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("kind", ["float16", "bfloat16", "grid"])
def test_what_has_no_number_is_stored_raw(kind: Kind, coding: Coding) -> None:
    shape = (9, 6, 40)
    voxels = volume(shape, kind)
    voxels[8, 3, 39] = 0x7C00 if kind != "bfloat16" else 0x7F80  # infinite
    voxels[0, 0, 2] = 0x7E01 if kind != "bfloat16" else 0x7FC1  # not a number
    if kind == "grid":
        voxels[0, 0, 35] = 0x8000  # -0.0
    member = compressed(voxels, kind, coding)
    raw = head_of(member, shape).table["raw"].tolist()
    assert raw == [1, 1 if kind == "grid" else 0, 0, 1]
    assert plain_ctz.decode(member).view(np.uint16).tobytes() == voxels.tobytes()


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_noise_takes_its_own_size_and_a_head(kind: Kind, coding: Coding) -> None:
    shape = (9, 10, 40)
    noise = np.random.default_rng(3).integers(0, 256, (*shape, 2), np.uint8)
    voxels = noise[..., 0].copy() if kind == "uint8" else noise.view(np.uint16)[..., 0].copy()
    member = compressed(voxels, kind, coding)
    assert len(member) <= compressed_limit_bytes(shape, voxels.itemsize)
    assert plain_ctz.decode(member).view(voxels.dtype).tobytes() == voxels.tobytes()


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize(
    ("scale", "offset"), [(1.0, 0.0), (0.5, 0.5), (5.0, 1.0), (30.0, 0.0), (0.01, 0.0)]
)
@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_floats_of_any_range_take_fewer_bytes(
    kind: Kind, scale: float, offset: float, coding: Coding
) -> None:
    shape = (16, 40, 64)
    x = volume(shape, "float16").view(np.float16).astype(np.float32) * scale + offset
    if kind == "float16":
        voxels = x.astype(np.float16).view(np.uint16)
    else:
        voxels = (x.view(np.uint32) >> 16).astype(np.uint16)
    member = compressed(voxels, kind, coding)
    assert not head_of(member, shape).table["raw"].any()
    assert plain_ctz.decode(member).view(np.uint16).tobytes() == voxels.tobytes()
    assert len(member) < 0.9 * voxels.nbytes


@pytest.mark.parametrize("value", [0, 0xBC00, 0x3801])
def test_a_volume_of_one_value_takes_next_to_nothing(value: int) -> None:
    voxels = np.full((16, 64, 64), value, np.uint16)
    member = compressed(voxels, "float16", "rice")
    assert plain_ctz.decode(member).view(np.uint16).tobytes() == voxels.tobytes()
    assert len(member) < 0.02 * voxels.nbytes


def test_any_strides_give_the_same_member() -> None:
    voxels = volume((9, 12, 40), "float16")
    wide = np.zeros((18, 24, 120), np.uint16)
    wide[::2, ::2, ::3] = voxels
    room = np.empty(compressed_limit_bytes(voxels.shape, 2), np.uint8)
    size = ctgpu.codec.compress(
        wide[::2, ::2, ::3],
        kind="float16",
        grid=None,
        layout="DHW",
        coding="rice",
        xxh3_128=head_of(compressed(voxels, "float16", "rice"), (9, 12, 40)).xxh3_128,
        out=room,
    )
    assert room[:size].tobytes() == compressed(voxels, "float16", "rice")


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        (Spec(), ("float16", None)),
        (Spec(precision="2^-10"), ("grid", 10)),
        (Spec(precision="2^-11"), ("grid", 11)),
        (Spec(dtype="bfloat16"), ("bfloat16", None)),
        (Spec(dtype="uint8"), ("uint8", 0)),
        (Spec(dtype="int16"), ("int16", 0)),
    ],
)
def test_the_kind_is_the_contracts(spec: Spec, kind: tuple[Kind, int | None]) -> None:
    assert kind_of(spec) == kind


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "least"), [("exact", 2.15), ("2^-10", 3.15)])
def test_a_real_chest_takes_as_few_bytes_as_is_said(
    real_ct: Path, precision: str, least: float
) -> None:
    spec = Spec(precision=precision, layout="DHW")  # type: ignore[arg-type]
    made = ctgpu.preprocess(real_ct / "qin_QIN-LSC-0028.nii.gz", spec=spec)
    voxels = np.asarray(made).view(np.uint16)
    kind, grid = kind_of(spec)
    member = compressed(voxels, kind, "rice", grid=grid)
    assert voxels.nbytes / len(member) >= least
