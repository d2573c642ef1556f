"""The spec: its domain, its fingerprint, its JSON."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest

from ctgpu.errors import UsageError
from ctgpu.spec import PRESETS, Spec

OTHERS = {
    "target_spacing_mm": (1.5, 1.5, 1.5),
    "shape_hwd": (240, 480, 480),
    "hu_window": (-1000.0, 400.0),
    "pad_value": 0.0,
    "layout": "DHW",
    "intensity": "hu",
    "clip": "after",
}


def test_the_default_is_the_contract():
    spec = Spec()
    assert spec.target_spacing_mm == (0.75, 0.75, 1.5)
    assert spec.shape_hwd == spec.stored_shape == (480, 480, 240)
    assert spec.size_bytes == 110_592_000
    assert spec.scale_offset == (0.001, 0.0)
    assert (spec.pad_value, spec.layout, spec.intensity, spec.clip) == (-1, "HWD", "auto", "before")
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
    assert set(OTHERS) == {f.name for f in dataclasses.fields(Spec)}
    prints = {Spec(**{name: value}).fingerprint("ctgpu") for name, value in OTHERS.items()}
    prints |= {Spec().fingerprint("ctgpu"), Spec().fingerprint("torch-reference")}
    assert len(prints) == len(OTHERS) + 2


def test_spellings_of_one_spec_have_one_fingerprint():
    listed = Spec(target_spacing_mm=[0.75, 0.75, 1.5], shape_hwd=[480, 480, 240], pad_value=-1)
    assert listed == Spec()
    assert listed.fingerprint("ctgpu") == Spec().fingerprint("ctgpu")


def test_json_and_back():
    for spec in (Spec(), Spec(**OTHERS)):
        assert Spec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


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
    ],
)
def test_values_outside_their_domain_are_refused(field, value):
    with pytest.raises(UsageError, match=field):
        Spec(**{field: value})
