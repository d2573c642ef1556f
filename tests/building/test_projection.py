"""The projection's arithmetic, by hand; ``tests/support`` holds it against the pipeline."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import Any

import pytest

from ctgpu.building.pipeline import Workers
from ctgpu.building.projection import SUSTAINED_SHARE, Machine, SampleCosts, project
from ctgpu.sources.hub.quota import WINDOW_S, RequestQuota

# Round figures: 100 MB in, 200 MB raw, 100 MB out; 0.2 + 0.5 + 0.3 core seconds; 0.1 s to write.
COSTS = SampleCosts(100e6, 200e6, 100e6, 0.2, 0.5, 0.3, 0.1)
MACHINE = Machine("a machine", 8, requests=None)


def test_a_volume_three_times_as_large_costs_what_grows_with_it() -> None:
    large = COSTS.scaled_to(300e6)
    # The pass moves 600 + 100 MB instead of 200 + 100.
    assert large == SampleCosts(
        300e6, 600e6, 100e6, pytest.approx(0.6), pytest.approx(1.5), pytest.approx(0.7), 0.1
    )


@pytest.mark.parametrize(
    ("change", "bottleneck", "rate"),
    [
        ({"cores": 4}, "cores", 4 / 1.0),
        ({"network_bytes_per_s": 150e6}, "network", 1.5),
        ({"disk_bytes_per_s": 250e6}, "disk", 2.5),
        ({"workers": 1}, "decode threads", 1 / 0.5),
        ({"connection_bytes_per_s": 10e6}, "fetch threads", 8 / 10.2),
        ({"cores": 64}, "writer thread", 10.0),
        ({"requests": 1000}, "Hub requests", 0.9 * 1000 / 300),
        # Alone in the budget: 0.2 + 0.5 + 0.3 + 0.1 s, one after the other.
        ({"memory_bytes": 2 * 401e6}, "memory", 1 / 1.1),
        # The next is let in when 100 MB are back, after 0.7 s.
        ({"memory_bytes": 2 * 700e6}, "memory", 1 / 0.7),
    ],
)
def test_the_scarcest_resource_decides(
    change: dict[str, Any], bottleneck: str, rate: float
) -> None:
    projection = project(replace(MACHINE, **change), [COSTS])
    assert projection.bottleneck == bottleneck
    assert projection.samples_per_s == pytest.approx(rate)
    assert projection.second != bottleneck
    assert projection.headroom >= 1


def test_headroom_and_hours() -> None:
    machine = replace(MACHINE, network_bytes_per_s=200e6, disk_bytes_per_s=500e6)
    projection = project(machine, [COSTS])
    assert (projection.bottleneck, projection.second) == ("network", "disk")
    assert projection.headroom == pytest.approx(2.5)
    assert projection.hours(7200) == pytest.approx(1.0)


def test_nodes_share_nothing_but_the_quota() -> None:
    one = replace(
        MACHINE,
        network_bytes_per_s=200e6,
        disk_bytes_per_s=1e9,
        memory_bytes=8e9,
        requests=5000,
    )
    four = project(replace(one, nodes=4), [COSTS]).limits
    for name, rate in project(one, [COSTS]).limits.items():
        assert four[name] == pytest.approx(rate if name == "Hub requests" else 4 * rate)
    many = project(replace(one, nodes=100), [COSTS])
    assert (many.bottleneck, many.samples_per_s) == ("Hub requests", pytest.approx(15.0))


def test_no_more_threads_decode_than_there_are_cores() -> None:
    projection = project(replace(MACHINE, cores=4, workers=64), [COSTS])
    assert projection.limits["decode threads"] == pytest.approx(4 / 0.5)
    assert projection.limits["fetch threads"] == pytest.approx(64 / 0.2)


def test_more_processes_are_more_writers_on_the_same_cores() -> None:
    one = project(replace(MACHINE, cores=64, workers=64), [COSTS])
    two = project(replace(MACHINE, cores=64, workers=64, processes=2), [COSTS])
    assert two.limits["writer thread"] == 2 * one.limits["writer thread"]
    assert two.limits["cores"] == one.limits["cores"] == 64


def test_admission_bounds_what_is_in_flight() -> None:
    threads = MACHINE.threads
    assert threads == Workers(8, 8, 8)
    assert project(MACHINE, [COSTS]).limits["samples in flight"] == pytest.approx(
        threads.most_in_flight / 1.1
    )


def test_a_mix_costs_its_average() -> None:
    machine = replace(MACHINE, network_bytes_per_s=200e6)
    mixed = project(machine, [COSTS, COSTS.scaled_to(300e6)])
    assert mixed.samples_per_s == pytest.approx(1.0)


def test_a_sample_larger_than_the_budget_holds_up_the_others() -> None:
    machine = replace(MACHINE, memory_bytes=2 * 1000e6)
    huge = COSTS.scaled_to(400e6)  # 400 + 800 + 100 MB
    mixed = project(machine, [COSTS] * 9 + [huge])
    # 2.8 s of fetching and inflating, 0.9 of the pass; then a usual one may follow, for 1.1 s.
    assert mixed.alone_s == pytest.approx((2.8 + 0.9 + 1.1) / 10)
    usual = project(machine, [COSTS])
    assert mixed.samples_per_s == pytest.approx(1 / (0.9 / usual.samples_per_s + mixed.alone_s))
    two_nodes = project(replace(machine, nodes=2), [COSTS] * 9 + [huge])
    assert two_nodes.samples_per_s == pytest.approx(2 * mixed.samples_per_s)
    assert project(machine, [huge]).samples_per_s == pytest.approx(1 / 3.8)


def test_samples_that_run_alone_are_a_matter_of_memory_where_they_cost_the_most() -> None:
    machine = replace(MACHINE, cores=2, memory_bytes=2 * 4000e6)
    huge = COSTS.scaled_to(2000e6)
    often, seldom = (project(machine, [COSTS] * n + [huge]) for n in (4, 400))
    assert (often.bottleneck, often.second) == ("memory", "cores")
    assert (seldom.bottleneck, seldom.limits["cores"]) == ("cores", pytest.approx(2 * 401 / 400))


def test_a_gpu_takes_the_pass_off_the_cores_and_limits_only_once_measured() -> None:
    machine = replace(MACHINE, cores=2, gpus=1)
    unknown = project(machine, [COSTS])
    assert "GPU" not in unknown.limits
    assert unknown.limits["cores"] == pytest.approx(2 / 0.7)
    known = project(replace(machine, gpus=2, nodes=3), [COSTS], 0.25)
    assert (known.bottleneck, known.samples_per_s) == ("GPU", pytest.approx(1.5))


def test_a_wait_for_the_link_counts_where_no_link_is_named() -> None:
    costs = replace(COSTS, fetch_wait_s=3.8)
    assert project(MACHINE, [costs]).limits["fetch threads"] == pytest.approx(8 / 4.0)
    linked = replace(MACHINE, network_bytes_per_s=50e6)
    # 2 s over the link in the place of the wait.
    assert project(linked, [costs]).limits["fetch threads"] == pytest.approx(8 / 2.2)


def test_an_engine_that_takes_few_volumes_at_a_time_may_decide() -> None:
    assert "device threads" not in project(MACHINE, [COSTS]).limits
    projection = project(replace(MACHINE, device_threads=1), [COSTS])
    assert (projection.bottleneck, projection.samples_per_s) == (
        "device threads",
        pytest.approx(1 / 0.3),
    )


def test_what_costs_nothing_is_no_limit() -> None:
    free = replace(COSTS, fetch_core_s=0.0)
    assert project(MACHINE, [free]).limits["fetch threads"] == float("inf")


def test_ctgpu_keeps_the_share_of_the_quota_that_the_model_says() -> None:
    now_s = 0.0

    def wait(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds

    quota = RequestQuota(600, clock=lambda: now_s)
    for _ in range(6000):
        quota.acquire(wait)
    assert 6000 / now_s == pytest.approx(SUSTAINED_SHARE * 600 / WINDOW_S, rel=0.02)


def test_every_field_is_explained() -> None:
    for kind in (Machine, SampleCosts):
        for field in dataclasses.fields(kind):
            assert field.name in (kind.__doc__ or "")
