"""Contracts that ask for what cannot be, and those that only look so."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ctgpu.errors import UsageError
from ctgpu.spec import Spec
from ctgpu.spec.contradictions import HIGHEST_HU, NARROWEST_HU

# Fields that contradict each other, all others at their defaults; the first two have to be named.
CONTRADICTIONS: list[dict[str, Any]] = [
    {"fit": "stretch", "target_spacing_mm": (1, 1, 1)},
    {"grid": "origin", "fit": "stretch"},
    {"grid": "origin", "fit": "contain"},
    {"hu_window": None, "normalise": "window"},
    {"hu_window": None, "normalise": "window", "dtype": "uint8"},
    {"hu_window": None, "clip": "after", "normalise": "minmax"},
    {"hu_window": None, "clip": "after", "normalise": "zscore"},
    {"hu_window": None, "clip": "after", "dtype": "int16"},
    {"hu_window": (-1000, 1000), "normalise": "percentiles", "percentiles": (1, 99)},
    {"hu_window": (-1000, 400), "normalise": "percentiles", "percentiles": (1, 99)},
    {"percentiles": None, "normalise": "percentiles", "hu_window": None},
    {"percentiles": (1, 99), "normalise": "window"},
    {"percentiles": (1, 99), "normalise": "minmax"},
    {"percentiles": (1, 99), "normalise": "zscore"},
    {"hu_window": (-32769, 0), "dtype": "int16"},
    {"hu_window": (0, 32768), "dtype": "int16"},
    {"dtype": "int16", "output_range": (0, 1)},
    {"dtype": "int16", "standardise": (0, 1)},
    {"dtype": "int16", "normalise": "minmax"},
    {"dtype": "int16", "normalise": "zscore"},
    {"dtype": "int16", "normalise": "percentiles", "percentiles": (1, 99), "hu_window": None},
    {"dtype": "uint8", "standardise": (0, 1)},
    {"dtype": "uint8", "normalise": "zscore"},
    {"normalise": "zscore", "output_range": (0, 1)},
    {"normalise": "zscore", "standardise": (0.5, 1)},
    {"output_range": (0, 60000), "standardise": (0, 0.5)},
    {"pad_value": 70000, "dtype": "float16"},
    {"pad_value": 70000, "dtype": "bfloat16"},
    {"pad_value": 40000, "dtype": "int16"},
    {"pad_value": 0.5, "dtype": "int16"},
    {"pad_value": -2, "dtype": "uint8"},
    {"pad_value": 2, "dtype": "uint8", "output_range": (0, 1)},
    {"precision": "2^-10", "dtype": "bfloat16"},
    {"precision": "2^-11", "dtype": "int16"},
    {"precision": "2^-10", "dtype": "uint8"},
    {"foreground_hu": -400, "crop": "centre"},
    {"foreground_hu": -400, "crop": "mask"},
    {"margin_mm": 10, "crop": "centre"},
]


@pytest.mark.parametrize("fields", CONTRADICTIONS, ids=json.dumps)
def test_a_contradiction_is_refused_by_the_names_of_both_fields(fields):
    one, other = list(fields)[:2]
    with pytest.raises(UsageError) as caught:
        Spec(**fields)
    assert one in str(caught.value)
    assert other in str(caught.value)


@pytest.mark.parametrize("percentiles", [(-1, 99), (0, 101), (99, 1), (5, 5), (0, float("nan"))])
def test_percentiles_outside_their_domain_are_refused(percentiles):
    with pytest.raises(UsageError, match="percentiles"):
        Spec(hu_window=None, normalise="percentiles", percentiles=percentiles)


def test_unusual_specs_that_say_something():
    Spec(hu_window=None, normalise="percentiles", percentiles=(0, 100), clip="after")
    Spec(hu_window=(0, 0.5), dtype="uint8", output_range=(0, 255))
    Spec(normalise="minmax", clip="after", dtype="bfloat16")
    Spec(hu_window=None, dtype="int16", pad_value=-1024)
    Spec(output_range=(-65504, 65504))
    Spec(fit="stretch", pad_value=3)
    Spec(precision="2^-10", normalise="zscore", pad_value=0.3)
    Spec(precision="2^-11", output_range=(0, 255), standardise=(100, 60))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (
            {"fit": "stretch", "target_spacing_mm": (1, 1, 1)},
            "target_spacing_mm is (1.0, 1.0, 1.0) and fit is 'stretch': stretching to a shape "
            "takes no spacing",
        ),
        (
            {"hu_window": (-1000, 0.5), "dtype": "int16", "pad_value": 0.5},
            "pad_value is 0.5 and dtype is 'int16', which holds whole numbers from -32768 to 32767",
        ),
        (
            {"dtype": "uint8", "pad_value": 2},
            "pad_value is 2.0 and dtype is 'uint8', which holds from -1 to 1, the ends of "
            "output_range",
        ),
        (
            {"precision": "2^-10", "dtype": "int16"},
            "precision is '2^-10' and dtype is 'int16': int16 has steps of its own, of 1 HU",
        ),
        (
            {"precision": "2^-11", "dtype": "bfloat16"},
            "precision is '2^-11' and dtype is 'bfloat16': bfloat16 has 8 significant bits, and "
            "from 0.25 on coarser steps itself",
        ),
        (
            {"output_range": (0, 1), "standardise": (0.5, 1e-6)},
            "output_range is (0.0, 1.0) and standardise (0.5, 1e-06), which gives -500000 to "
            "500000; it must lie within ±65504",
        ),
    ],
)
def test_it_is_one_sentence_with_what_was_asked_for_and_why_not(
    fields: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UsageError) as caught:
        Spec(**fields)
    assert str(caught.value) == sentence


def test_the_ends_of_every_domain_are_within_it() -> None:
    Spec(target_spacing_mm=(0.001, 1000, 1))
    Spec(hu_window=(-HIGHEST_HU, HIGHEST_HU))
    Spec(hu_window=(0, NARROWEST_HU))
    Spec(hu_window=(-32768, 32767), dtype="int16")
    Spec(output_range=(0, 0.001))
    Spec(dtype="uint8", pad_value=1)
    for beyond in (
        {"target_spacing_mm": (0.0009, 1, 1)},
        {"hu_window": (0, HIGHEST_HU + 1)},
        {"hu_window": (0, 0.99 * NARROWEST_HU)},
        {"output_range": (0, 0.0009)},
    ):
        with pytest.raises(UsageError, match=next(iter(beyond))):
            Spec(**beyond)
