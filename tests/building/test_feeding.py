"""Whether GPUs that train would wait: by hand."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from ctgpu.building.feeding import Feeding, Reading, Training
from ctgpu.building.projection import GBIT, SampleCosts
from ctgpu.errors import UsageError

#: A CT-RATE volume as a chest of 239 MB, stored as 110.6 MB.
COSTS = SampleCosts(239e6, 0.0, 110.6e6, 0.0, 0.5, 0.25, 9.0, fetch_wait_s=0.25)
READING = Reading(110.6e6, 0.02, 0.05, 0.07)


def feeding(training: Training = Training(379.0, 2, 8), **facts: Any) -> Feeding:  # noqa: B008
    return Feeding.of(training, COSTS, READING, **{"cores": 16} | facts)


def test_what_training_takes() -> None:
    assert Training(379.0, 2, 8).samples_per_s == pytest.approx(42.2, abs=0.05)
    assert Training(500).samples_per_s == 2


def test_cores_decide_where_no_link_is_named() -> None:
    fed = feeding()
    assert fed.raw.bottleneck == "fetching, as measured here"
    assert fed.raw.samples_per_s == pytest.approx(16.0)
    assert fed.raw.limits["cores"] == pytest.approx(16 / 0.75)
    assert fed.raw.waiting_share == pytest.approx(1 - 16 / (16000 / 379))
    assert fed.raw.cores_needed == pytest.approx(16000 / 379 * 0.75)
    assert fed.shards.bottleneck == "disk, as measured here"
    assert fed.shards.samples_per_s == pytest.approx(20.0)


def test_over_a_network_raw_is_the_larger_format() -> None:
    fed = feeding(cores=256, network_bytes_per_s=40 * GBIT)
    assert (fed.raw.bottleneck, fed.shards.bottleneck) == ("network", "network")
    assert fed.raw.samples_per_s == pytest.approx(5e9 / 239e6)
    assert fed.shards.samples_per_s == pytest.approx(5e9 / 110.6e6)
    assert fed.raw.gbit_needed == pytest.approx(80.7, abs=0.05)
    assert fed.advice == (
        "build shards: from raw volumes training waits for 50% of its time, from shards it does "
        "not; a raw volume has 2.2 × the bytes of a stored one"
    )


def test_a_slow_step_is_fed_from_raw_volumes() -> None:
    fed = feeding(Training(1000.0))
    assert fed.raw.waiting_share == 0
    assert fed.advice.startswith("train from raw volumes at once; a raw volume has 2.2 ×")


def test_neither_may_be_enough() -> None:
    fed = feeding(cores=2, network_bytes_per_s=GBIT)
    assert fed.advice == (
        "neither is enough: from raw volumes training waits for 99% of its time, from shards for "
        "97%; of the two shards are faster, and a raw volume has 2.2 × the bytes of a stored one"
    )


def test_a_gpu_that_preprocesses_takes_that_off_the_cores() -> None:
    fed = feeding(gpu_samples_per_s=1.5)
    assert fed.raw.core_s == 0.5
    assert fed.raw.limits["GPU"] == pytest.approx(12.0)
    assert fed.raw.bottleneck == "GPU"


def test_what_costs_nothing_is_no_limit() -> None:
    free = Feeding.of(Training(100.0), COSTS, Reading(), cores=4)
    assert free.shards.samples_per_s == math.inf
    assert free.shards.waiting_share == 0


def test_it_is_plain_json() -> None:
    facts = json.loads(json.dumps(feeding().to_dict(), allow_nan=False))
    assert facts["needed_per_s"] == pytest.approx(42.2, abs=0.05)
    assert facts["network_bytes_per_s"] is None
    assert facts["raw"]["bottleneck"] in facts["raw"]["limits"]
    free = Feeding.of(Training(100.0), COSTS, Reading(), cores=4)
    json.dumps(free.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ((0,), "step_ms is 0; it takes milliseconds, more than 0"),
        ((math.inf,), "step_ms is inf; it takes milliseconds, more than 0"),
        ((379, 0), "batch_size is 0"),
        ((379, 1, 0), "gpus is 0"),
    ],
)
def test_what_it_does_not_take(fields: tuple[Any, ...], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        Training(*fields)
