"""How far apart two volumes are."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from ctgpu.checking.distance import likely_cause, measure, ulp_distance
from ctgpu.spec import Dtype, Precision, Spec


def test_ulp_distance_counts_across_zero() -> None:
    tiny = np.float16(6e-8)
    made = np.array([0.0, -0.0, tiny, 1.0], np.float16)
    reference = np.array([-0.0, 0.0, -tiny, 1.001], np.float16)
    assert ulp_distance(made, reference, "float16").tolist() == [0, 0, 2, 1]


def test_the_last_place_is_that_of_the_stored_type() -> None:
    next_above_one = 1 + 2.0**-7  # bfloat16 has eight bits of precision
    made = np.array([0.0, -0.0, 1.0, -1.0], np.float32)
    reference = np.array([-0.0, 0.0, next_above_one, -next_above_one], np.float32)
    assert ulp_distance(made, reference, "bfloat16").tolist() == [0, 0, 1, 1]
    hu, others = np.array([-1000, 5, 32767], np.int16), np.array([-999, 5, -32768], np.float32)
    assert ulp_distance(hu, others, "int16").tolist() == [1, 0, 65535]
    bytes_, others = np.array([0, 255], np.uint8), np.array([255, 254], np.float32)
    assert ulp_distance(bytes_, others, "uint8").tolist() == [255, 1]


@pytest.mark.parametrize(("dtype", "few"), [("float16", 1e-3), ("int16", 1e-2), ("uint8", 1e-2)])
def test_one_step_is_within_the_bounds_in_few_voxels_alone(dtype: Dtype, few: float) -> None:
    reference = np.full((10, 20, 50), 8, np.float32)  # where float16 has steps of 1/128
    step = 1 / 128 if dtype == "float16" else 1
    for count, steps, within in ((few * 1e4, 1, True), (few * 1e4 + 1, 1, False), (1, 2, False)):
        made = reference.copy()
        made.reshape(-1)[: int(count)] += steps * step
        (largest, mean, share), holds = measure(made, reference, Spec(dtype=dtype))
        assert (largest, holds) == (steps, within)
        assert share == pytest.approx(count / 1e4)
        assert mean == pytest.approx(steps * share)


def test_what_float32_is_off_near_zero_is_no_difference() -> None:
    reference = np.full((10, 20, 50), 1e-5, np.float16)
    made = reference + np.float16(1.2e-7)
    (largest, _, share), holds = measure(made, reference, Spec(output_range=(0, 1)))
    assert (largest, share, holds) == (0, 1, True)
    # Of the first contract so many have never been within the bounds.
    assert not measure(made, reference, Spec())[1]
    made[0, 0, 0] = np.nan
    assert not measure(made, reference, Spec(output_range=(0, 1)))[1]


@pytest.mark.parametrize("precision", ["2^-10", "2^-11"])
def test_of_a_precision_one_step_is_one_however_fine_float16_is_there(precision: Precision) -> None:
    spec = Spec(precision=precision)
    step = spec.precision_step
    assert step is not None
    numbers = np.random.default_rng(2).integers(-400, 400, (10, 20, 50))
    reference = (numbers * step).astype(np.float16)
    for count, steps, within in ((100, 1, True), (101, -1, False), (1, 2, False)):
        made = reference.copy()
        made.reshape(-1)[:count] += np.float16(steps * step)
        (largest, _, share), holds = measure(made, reference, spec)
        assert (largest, holds) == (abs(steps), within)
        assert share == pytest.approx(count / 1e4)
    # Above 1 float16 has the larger steps, or as large ones.
    made, above = np.full((2, 3, 4), 1 + 2.0**-10, np.float16), np.ones((2, 3, 4), np.float16)
    assert measure(made, above, spec)[0] == (1, 1, 1)
    # What is no multiple, or no number, is as far off as it is.
    for wrong in (reference[0, 0, 0] + np.float16(step / 2), np.nan):
        made = reference.copy()
        made[0, 0, 0] = wrong
        assert not measure(made, reference, spec)[1]


@pytest.mark.parametrize("precision", ["exact", "2^-10", "2^-11"])
def test_another_precision_is_named(precision: Precision) -> None:
    values = np.random.default_rng(3).uniform(-1, 1, (12, 13, 14)).astype(np.float32)
    of = {
        name: np.round(values / step) * step if step else values
        for name in get_args(Precision)
        for step in [Spec(precision=name).precision_step]
    }
    for other in set(of) - {precision}:
        made, reference = of[other].astype(np.float16), of[precision].astype(np.float16)
        wanted = Spec(precision=precision)
        assert not measure(made, reference, wanted)[1]
        assert likely_cause(made, reference, wanted) == (
            f"its precision is {other}, and that of the reference {precision}"
        )


@pytest.mark.parametrize(
    ("axes", "signs", "words"),
    [
        ((0, 1, 2), (-1, 1, 1), "in the order (0, 1, 2) of the reference's, 0 backwards"),
        ((2, 0, 1), (1, 1, 1), "in the order (1, 2, 0) of the reference's, as"),
        ((1, 0, 2), (1, -1, -1), "in the order (1, 0, 2) of the reference's, 0 and 2 backwards"),
    ],
)
def test_another_orientation_is_named(
    axes: tuple[int, ...], signs: tuple[int, ...], words: str
) -> None:
    reference = np.random.default_rng(5).integers(-1000, 1000, (12, 12, 12)).astype(np.float32)
    made = reference.transpose(axes)[tuple(slice(None, None, sign) for sign in signs)]
    assert words in likely_cause(made, reference, Spec(dtype="int16"))
