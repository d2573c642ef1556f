"""The contract of the output: its domain, its fingerprint, its JSON."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctgpu.errors import UsageError
from ctgpu.spec import CT_RATE, PRESETS, Spec

OTHERS = {
    "target_spacing_mm": (1.5, 1.5, 1.5),
    "shape_hwd": (240, 480, 480),
    "hu_window": (-1000.0, 400.0),
    "pad_value": 0.0,
    "layout": "DHW",
    "intensity": "hu",
    "clip": "after",
    "orientation": "PLS",
    "grid": "origin",
    "fit": "contain",
    "output_range": (0.0, 1.0),
    "standardise": (0.45, 0.22),
    "normalise": "minmax",
    "dtype": "int16",
    "precision": "2^-10",
    "crop": "body",
}
FIRST = {name: OTHERS[name] for name in list(OTHERS)[:7]}
PERCENTILES: dict[str, Any] = {
    "hu_window": None,
    "normalise": "percentiles",
    "percentiles": (0.5, 99.5),
}


def test_the_default_is_the_contract():
    spec = Spec()
    assert spec.target_spacing_mm == (0.75, 0.75, 1.5)
    assert spec.shape_hwd == spec.stored_shape == (480, 480, 240)
    assert spec.size_bytes == 110_592_000
    assert spec.scale_offset == (0.001, 0.0)
    assert (spec.padding, spec.layout, spec.intensity, spec.clip) == (-1, "HWD", "auto", "before")
    assert not spec.needs_statistics
    assert PRESETS["ct-rate"] == spec


def test_it_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Spec().pad_value = 0


def test_the_layout_orders_the_stored_axes():
    assert Spec(shape_hwd=(2, 3, 4), layout="DHW").stored_shape == (4, 2, 3)


def test_the_window_maps_to_one():
    for window in [(-1000, 1000), (-1000, 400), (0, 1)]:
        scale, offset = Spec(hu_window=window).scale_offset
        assert [hu * scale + offset for hu in window] == pytest.approx([-1, 1])


def test_the_fingerprint_is_the_same_in_every_process_and_version():
    # Folders on disk hold this value: a change here orphans every one of them.
    assert Spec().fingerprint("ctgpu") == "8500d85b66dfe09a"
    code = "from ctgpu.spec import Spec; print(Spec().fingerprint('ctgpu'))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == Spec().fingerprint("ctgpu")


def test_every_field_and_the_arithmetic_change_the_fingerprint():
    asking_for_another = {"percentiles", "foreground_hu", "margin_mm"}
    assert {*OTHERS} | asking_for_another == {f.name for f in dataclasses.fields(Spec)}
    prints = {Spec(**{name: value}).fingerprint("ctgpu") for name, value in OTHERS.items()}
    prints |= {Spec().fingerprint("ctgpu"), Spec().fingerprint("torch-reference")}
    prints |= {
        Spec(**PERCENTILES | {"percentiles": (0.5, hi)}).fingerprint("ctgpu") for hi in (99, 100)
    }
    prints |= {Spec(crop="body", foreground_hu=-400).fingerprint("ctgpu")}
    prints |= {Spec(crop="body", margin_mm=5).fingerprint("ctgpu")}
    assert len(prints) == len(OTHERS) + 6


def test_specs_are_equal_where_their_fingerprints_are():
    assert Spec(pad_value=-1.0) == Spec()
    assert hash(Spec(pad_value=-1.0)) == hash(Spec())
    assert Spec(output_range=(0, 1)) == Spec(output_range=(0, 1), pad_value=0)
    # Other bits are stored for the one than for the other.
    assert Spec(pad_value=-0.0) != Spec(pad_value=0.0)
    assert Spec() != "ct-rate"


def test_a_changed_range_changes_the_padding_along():
    assert dataclasses.replace(CT_RATE, output_range=(0, 1)).padding == 0
    assert dataclasses.replace(CT_RATE, dtype="int16").padding == -1000
    standardised = dataclasses.replace(CT_RATE, output_range=(0, 1), standardise=(0.5, 0.25))
    assert standardised.padding == -2


@pytest.mark.parametrize(
    ("fields", "padding"),
    [
        ({}, -1),
        ({"dtype": "uint8"}, -1),
        ({"dtype": "uint8", "output_range": (0, 255)}, 0),
        ({"dtype": "int16", "hu_window": (-1024.0, 400)}, -1024),
        ({"dtype": "int16", "hu_window": (-1.5, 400)}, -2),
        ({"dtype": "int16", "hu_window": None}, None),
        ({"dtype": "int16", "hu_window": None, "pad_value": -2000}, -2000),
        ({"normalise": "minmax", "output_range": (0, 1)}, 0),
        ({**PERCENTILES, "output_range": (0, 1)}, 0),
        ({"normalise": "zscore"}, None),
        ({"normalise": "zscore", "pad_value": -3}, -3),
    ],
)
def test_padding_is_the_low_end_or_each_volumes_own(fields, padding):
    spec = Spec(**fields)
    assert spec.padding == padding
    assert spec.needs_statistics == (spec.normalise != "window" or padding is None)
    assert Spec.from_dict(spec.to_dict()) == spec


def test_what_is_stored_for_a_value_of_the_output():
    assert Spec().encoded(0.3) == 0.3
    byte = Spec(dtype="uint8", output_range=(-3, 7))
    assert [byte.encoded(value) for value in (-3, 2, 7)] == [0, 127.5, 255]


def test_fingerprints_of_before_there_was_a_precision_stay():
    assert Spec().fingerprint("ctgpu") == "8500d85b66dfe09a"
    assert "precision" not in Spec(output_range=(0, 1), precision="exact").to_dict()
    prints = {Spec(precision=p).fingerprint("ctgpu") for p in ("exact", "2^-10", "2^-11")}
    assert len(prints) == 3


@pytest.mark.parametrize(
    ("fields", "error_hu"),
    [
        ({"precision": "2^-10"}, 1000 / 2048),
        ({"precision": "2^-11"}, 1000 / 4096),
        ({"precision": "2^-10", "output_range": (0, 1)}, 2000 / 2048),
        ({"precision": "2^-11", "hu_window": (-160, 240)}, 200 / 4096),
        ({"precision": "2^-10", "standardise": (0.1, 0.5)}, 500 / 2048),
        ({"precision": "2^-10", "normalise": "zscore"}, None),
        ({"precision": "2^-10", "normalise": "minmax"}, None),
        ({}, 0),
        ({"normalise": "zscore"}, 0),
        ({"dtype": "int16"}, 0),
    ],
)
def test_what_a_precision_loses_is_half_a_step_in_hu(fields, error_hu):
    spec = Spec(**fields)
    assert spec.precision_error_hu == (None if error_hu is None else pytest.approx(error_hu))
    assert spec.precision_step == {"2^-10": 1 / 1024, "2^-11": 1 / 2048}.get(spec.precision)


def test_numpy_and_lists_spell_the_same_spec():
    spelled = Spec(
        target_spacing_mm=np.array([0.75, 0.75, 1.5]),
        shape_hwd=[np.int64(480), np.float32(480), 240.0],
        hu_window=np.array([-1000, 1000]),
        pad_value=np.float32(-1),
        layout=np.str_("HWD"),
        output_range=[np.float64(-1), 1],
    )
    assert spelled == Spec()
    assert spelled.fingerprint("ctgpu") == Spec().fingerprint("ctgpu")
    assert Spec(orientation="lps") == Spec(orientation="LPS")


def test_spellings_of_one_spec_have_one_fingerprint():
    listed = Spec(target_spacing_mm=[0.75, 0.75, 1.5], shape_hwd=[480, 480, 240], pad_value=-1)
    assert listed == Spec()
    assert listed.fingerprint("ctgpu") == Spec().fingerprint("ctgpu")


def test_json_and_back():
    for spec in (Spec(), Spec(**FIRST)):
        assert spec.to_dict().keys() == FIRST.keys()
        assert spec.is_first_version
        assert Spec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_json_says_of_new_fields_what_is_not_the_default():
    for name, value in OTHERS.items():
        told = Spec(**{name: value}).to_dict()
        assert set(told) == {*FIRST, name}
        assert Spec(**{name: value}).is_first_version == (name in FIRST)
    assert set(Spec(**PERCENTILES).to_dict()) == {*FIRST, "normalise", "percentiles"}
    assert not Spec(hu_window=None, dtype="int16").is_first_version


def pairs(low: float, high: float) -> st.SearchStrategy[tuple[float, float]]:
    ends = st.tuples(st.floats(low, high), st.floats(low, high)).map(sorted).map(tuple)
    return ends.filter(lambda pair: pair[1] - pair[0] > 0.01 * (high - low))


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    """Any that do not contradict themselves."""
    fit = draw(st.sampled_from(["spacing", "stretch", "contain"]))
    normalise = draw(st.sampled_from(["window", "percentiles", "minmax", "zscore"]))
    dtypes = ["float16", "bfloat16"]
    if normalise != "zscore":
        dtypes.append("uint8")
    if normalise == "window":
        dtypes.append("int16")
    dtype = draw(st.sampled_from(dtypes))
    fields: dict[str, Any] = {"fit": fit, "normalise": normalise, "dtype": dtype}
    if fit != "stretch":
        fields["target_spacing_mm"] = draw(st.tuples(*[st.floats(0.001, 1000)] * 3))
    if fit == "spacing":
        fields["grid"] = draw(st.sampled_from(["extent", "origin"]))
    fields["hu_window"] = draw(pairs(-5000, 5000))
    if normalise == "percentiles":
        fields["percentiles"] = draw(pairs(0, 100))
    windowless = normalise == "percentiles" or draw(st.booleans())
    if windowless and (normalise != "window" or dtype == "int16"):
        fields["hu_window"] = None
    if fields["hu_window"] is not None or normalise == "percentiles":
        fields["clip"] = draw(st.sampled_from(["before", "after"]))
    if dtype != "int16" and normalise != "zscore":
        fields["output_range"] = draw(pairs(-300, 300))
        if dtype != "uint8" and draw(st.booleans()):
            fields["standardise"] = draw(st.tuples(st.floats(-9, 9), st.floats(0.1, 9)))
    if draw(st.booleans()):
        low, high = fields.get("output_range", (-1, 1)) if dtype == "uint8" else (-3000, 3000)
        fields["pad_value"] = draw(
            st.integers(low, high) if dtype == "int16" else st.floats(low, high)
        )
    if dtype == "float16":
        fields["precision"] = draw(st.sampled_from(["exact", "2^-10", "2^-11"]))
    fields["shape_hwd"] = draw(st.tuples(*[st.integers(1, 65535)] * 3))
    fields["layout"] = draw(st.sampled_from(["HWD", "DHW"]))
    fields["orientation"] = draw(st.sampled_from(["stored", "LPS", "RAS", "SPL", "ial"]))
    fields["crop"] = draw(st.sampled_from(["centre", "foreground", "body", "mask"]))
    if fields["crop"] in ("foreground", "body"):
        fields["foreground_hu"] = draw(st.floats(-2000, 2000))
    if fields["crop"] != "centre":
        fields["margin_mm"] = draw(st.floats(0, 100))
    return Spec(**fields)


@pytest.mark.slow
@given(specs())
def test_any_spec_goes_to_json_and_back(spec):
    told = json.loads(json.dumps(spec.to_dict()))
    back = Spec.from_dict(told)
    assert (back, hash(back), back.to_dict()) == (spec, hash(spec), told)
    assert back.fingerprint("ctgpu") == spec.fingerprint("ctgpu")
    assert (back.padding, back.needs_statistics) == (spec.padding, spec.needs_statistics)
    assert spec.is_first_version == (told.keys() == FIRST.keys() and told["hu_window"] is not None)


def test_unknown_fields_are_refused():
    with pytest.raises(UsageError, match=r"\['colour'\]"):
        Spec.from_dict({**Spec().to_dict(), "colour": "red"})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("target_spacing_mm", (0.75, 0.75)),
        ("target_spacing_mm", (0.75, 0.75, 0)),
        ("target_spacing_mm", (0.75, 0.75, float("nan"))),
        ("target_spacing_mm", "fine"),
        ("target_spacing_mm", None),
        ("shape_hwd", (480, 480)),
        ("shape_hwd", (480, 480, 0)),
        ("shape_hwd", (480, 480, 1.5)),
        ("shape_hwd", (480, 480, 65536)),
        ("shape_hwd", ("a", "b", "c")),
        ("shape_hwd", None),
        ("hu_window", (1000, -1000)),
        ("hu_window", (0, 0)),
        ("hu_window", (0, float("inf"))),
        ("hu_window", (-1e308, 1e308)),
        ("hu_window", (0, 1e-320)),
        ("hu_window", (1e6, 1e6 + 1)),
        ("target_spacing_mm", (0.75, 0.75, 1e-320)),
        ("target_spacing_mm", (0.75, 1e300, 0.75)),
        ("pad_value", 70000),
        ("pad_value", float("nan")),
        ("pad_value", "black"),
        ("layout", "WHD"),
        ("intensity", "HU"),
        ("clip", "never"),
        ("shape_hwd", "488"),
        ("hu_window", "01"),
        ("orientation", "LPP"),
        ("orientation", "LR"),
        ("orientation", "axial"),
        ("orientation", 3),
        ("orientation", None),
        ("grid", "first"),
        ("fit", "cover"),
        ("normalise", "max"),
        ("normalise", None),
        ("dtype", "float32"),
        ("dtype", np.float16),
        ("precision", "2^-12"),
        ("precision", 2**-10),
        ("precision", None),
        ("output_range", None),
        ("output_range", (1, 0)),
        ("output_range", (0, 0)),
        ("output_range", (0, 1, 2)),
        ("output_range", (0, float("nan"))),
        # What float16 cannot hold, or cannot tell apart.
        ("output_range", (0, 65505)),
        ("output_range", (0, 5e-324)),
        ("output_range", (1000, 1000.1)),
        ("output_range", (-1e308, 1e308)),
        ("standardise", (0,)),
        ("standardise", (0, 0)),
        ("standardise", (0, -1)),
        ("standardise", (0, float("inf"))),
        ("standardise", (0, 1e-300)),
        ("standardise", (0, 1e300)),
        ("standardise", (1e308, 1)),
        ("percentiles", (0.5, 99.5, 100)),
        ("crop", "random"),
        ("crop", None),
        ("foreground_hu", None),
        ("foreground_hu", float("nan")),
        ("foreground_hu", 2e6),
        ("margin_mm", "wide"),
        ("margin_mm", -1),
        ("margin_mm", float("inf")),
    ],
)
def test_values_outside_their_domain_are_refused(field, value):
    with pytest.raises(UsageError, match=field):
        Spec(**{field: value})
