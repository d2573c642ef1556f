"""How far apart two volumes are."""

from __future__ import annotations

import numpy as np

from ctgpu.checking.distance import ulp_distance


def test_ulp_distance_counts_across_zero() -> None:
    tiny = np.float16(6e-8)
    made = np.array([0.0, -0.0, tiny, 1.0], np.float16)
    reference = np.array([-0.0, 0.0, -tiny, 1.001], np.float16)
    assert ulp_distance(made, reference).tolist() == [0, 0, 2, 1]
