"""How far apart two volumes are."""

from __future__ import annotations

import numpy as np
import pytest

from ctgpu.checking.distance import likely_cause, measure, ulp_distance
from ctgpu.spec import Dtype, Spec


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
