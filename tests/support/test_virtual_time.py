"""Virtual time, and the projection held against the real pipeline in it."""

from __future__ import annotations

import dataclasses
import faulthandler
import json
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from ctgpu.building.pipeline import Workers
from ctgpu.building.projection import UNLIMITED, Machine, SampleCosts, project
from support.projection_checks import (
    RESULT,
    SAMPLES,
    TOLERANCE,
    Case,
    check,
    published_cases,
    stress_cases,
)
from support.virtual_time import Node, Shared, Stuck, VirtualClock, simulate

# Round figures: 100 MB in, 200 MB raw, 100 MB out; 0.2 + 0.5 + 0.3 core seconds; 0.1 s to write.
COSTS = SampleCosts(100e6, 200e6, 100e6, 0.2, 0.5, 0.3, 0.1)
MACHINE = Machine("a machine", 8, requests=None)
NODE = Node(8, UNLIMITED, UNLIMITED, UNLIMITED, UNLIMITED, Workers(8, 8, 8))


@pytest.fixture(autouse=True)
def watchdog() -> Iterator[None]:
    """A simulation that hangs for real ends the run, with every thread's traceback."""
    faulthandler.dump_traceback_later(120, exit=True, file=sys.__stderr__)
    yield
    faulthandler.cancel_dump_traceback_later()


def run_threads(clock: VirtualClock, *bodies: Callable[[], None]) -> None:
    def take_part(rank: int, body: Callable[[], None]) -> None:
        clock.enter((rank,))
        try:
            body()
        finally:
            clock.leave()

    threads = [
        threading.Thread(target=take_part, args=(rank, body), daemon=True)
        for rank, body in enumerate(bodies)
    ]
    for thread in reversed(threads):
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def test_sleepers_wake_in_the_order_of_virtual_time() -> None:
    clock, seen = VirtualClock(3), []

    def sleeper(seconds: float) -> Callable[[], None]:
        def body() -> None:
            seen.append(seconds)
            clock.sleep(seconds)
            seen.append((clock.now_s, seconds))

        return body

    run_threads(clock, sleeper(3e6), sleeper(1e6), sleeper(0.0))
    # In the order of their ranks, whichever was started first.
    assert seen == [3e6, 1e6, 0.0, (0.0, 0.0), (1e6, 1e6), (3e6, 3e6)]


def test_a_shared_resource_gives_everyone_as_much() -> None:
    clock = VirtualClock(3)
    link, done_s = Shared(clock, 10.0, 8.0), {}

    def user(name: str, after_s: float, work: float) -> Callable[[], None]:
        def body() -> None:
            clock.sleep(after_s)
            link.use(work)
            done_s[name] = clock.now_s

        return body

    run_threads(clock, user("a", 0, 10.0), user("b", 0, 20.0), user("late", 10.0, 4.0))
    # 5 each until 2 s; then b alone, at 8 at most, for its last 10.
    assert done_s == pytest.approx({"a": 2.0, "b": 3.25, "late": 10.5})
    assert link.done == 34.0


def test_threads_that_nothing_would_wake_are_told_so() -> None:
    clock, told = VirtualClock(2), []

    def forever() -> None:
        try:
            clock.park()
        except Stuck as error:
            told.append(str(error))

    run_threads(clock, forever, forever)
    assert len(told) == 2
    assert "at 0.000 virtual seconds all 2 threads wait" in told[0]


def test_a_pipeline_that_gets_stuck_ends_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Shared, "_finish", lambda self, plan: None)
    with pytest.raises(Stuck, match="nothing would wake one"):
        simulate(NODE, [COSTS] * 3)


def test_a_failing_stage_ends_the_simulation() -> None:
    with pytest.raises(RuntimeError, match="came to the writer as Failure"):
        simulate(NODE, [COSTS, replace(COSTS, decode_core_s=None)])  # type: ignore[arg-type]


def test_one_sample_takes_the_sum_of_its_stages() -> None:
    node = replace(NODE, network_bytes_per_s=50e6, disk_bytes_per_s=1e9)
    samples = [COSTS] * 4
    slow = simulate(replace(node, budget_bytes=401e6), samples)
    # Alone in the budget, one after the other; writing takes 0.1 s either way.
    assert slow.with_ramps_per_s == pytest.approx(1 / (2.0 + 1.0 + 0.1))
    assert slow.peak_reserved_bytes == 400e6
    assert slow.busy == pytest.approx({"cores": 1 / 3.1 / 8, "network": 2 / 3.1, "disk": 0.1 / 3.1})


def test_the_pipeline_is_the_real_one_and_gives_the_same_every_time() -> None:
    case = Case("mixed", MACHINE, (COSTS, COSTS.scaled_to(500e6)))
    node = replace(NODE, network_bytes_per_s=1e9, budget_bytes=3e9)
    first, again = (simulate(node, case.sequence(120)) for _ in range(2))
    assert first == again
    assert first.written == list(range(120))
    assert 1.3e9 < first.peak_reserved_bytes <= 3e9


def test_a_case_varies_its_sizes_around_their_mean() -> None:
    samples = Case("varied", MACHINE, (COSTS,), 0.3).sequence(1000)
    sizes_mb = [s.compressed_bytes / 1e6 for s in samples]
    assert sum(sizes_mb) / 1000 == pytest.approx(100, rel=1e-3)
    assert 70 <= min(sizes_mb) < 71
    assert 129 < max(sizes_mb) <= 130
    assert Case("alike", MACHINE, (COSTS,), 0.0).sequence(3) == [COSTS] * 3


def test_the_rate_is_that_of_the_steady_state() -> None:
    run = simulate(replace(NODE, disk_bytes_per_s=100e6, workers=Workers(1, 1, 1)), [COSTS] * 40)
    assert run.samples_per_s == pytest.approx(1.0)
    # The first is written after a second of other stages and one of its own.
    assert run.with_ramps_per_s == pytest.approx(40 / 41)


# The projection against the pipeline

DECIDES = {
    "cores": "cores",
    "few workers": "decode threads",
    "slow link": "network",
    "slow link, volumes alike": "fetch threads",
    "fast link, volumes alike": "fetch threads",
    "slow connections": "fetch threads",
    "slow disk": "disk",
    "one writer": "writer thread",
    "small quota": "Hub requests",
    "memory for 1.2 samples": "memory",
    "memory for 2.5 samples": "memory",
    "memory for 6 samples": "memory",
    "every 20th larger than memory": "memory",
    "mixed sizes, cores": "cores",
    "mixed sizes, slow link": "network",
    "two processes": "cores",
    "few workers that compress": "compress threads",
}
MEASURED_LIKE = SampleCosts(85.6e6, 157.3e6, 110.6e6, 0.235, 0.477, 0.139, 0.077)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        *stress_cases(MEASURED_LIKE),
        Case(
            "few workers that compress",
            Machine("16 cores", 16, requests=None, workers=4),
            (replace(MEASURED_LIKE, compress_core_s=0.9),),
        ),
    ],
    ids=lambda case: case.name,
)
def test_projection_and_pipeline_agree_whatever_decides(case: Case) -> None:
    checked = check(case, 100)
    assert checked["bottleneck"] == DECIDES[case.name]
    assert abs(checked["deviation"]) <= TOLERANCE


@pytest.mark.parametrize(
    ("scarce", "bottleneck"),
    [({"requests": 1000}, "Hub requests"), ({"network_bytes_per_s": 200e6}, "network")],
)
def test_projection_and_pipeline_agree_on_several_nodes(
    scarce: dict[str, Any], bottleneck: str
) -> None:
    machine = replace(MACHINE, nodes=4, processes=2, **scarce)
    checked = check(Case("nodes", machine, (COSTS,)), 100)
    assert checked["bottleneck"] == bottleneck
    assert abs(checked["deviation"]) <= TOLERANCE


def test_a_check_is_long_enough_for_a_steady_half_of_whole_rounds() -> None:
    samples = (COSTS,) * 7
    checked = check(Case("long", MACHINE, samples), 1)
    assert checked["simulated_samples"] >= 4 * MACHINE.threads.most_in_flight
    assert checked["simulated_samples"] % (4 * len(samples)) == 0


def test_every_resource_decides_in_some_case() -> None:
    limits = project(replace(MACHINE, memory_bytes=1e12), [COSTS]).limits
    # Admission lets in more than keeps every thread busy, so it never decides before they do.
    assert set(limits) - {"samples in flight"} == set(DECIDES.values())


@pytest.mark.parametrize(
    ("scarce", "field"),
    [
        ({"network_bytes_per_s": 200e6}, "network_bytes_per_s"),
        ({"disk_bytes_per_s": 200e6}, "disk_bytes_per_s"),
        ({"requests": 500}, "requests"),
        ({"cores": 4, "workers": 8}, "cores"),
    ],
)
def test_half_of_what_decides_is_half_the_rate(scarce: dict[str, Any], field: str) -> None:
    machine = replace(MACHINE, **scarce)
    half = replace(machine, **{field: getattr(machine, field) // 2})
    whole, halved = (check(Case("", m, (COSTS,)), 100) for m in (machine, half))
    for rate in ("projected_samples_per_s", "simulated_samples_per_s"):
        assert halved[rate] / whole[rate] == pytest.approx(0.5, rel=0.05)


def test_a_wrong_projection_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("cores", replace(MACHINE, cores=4), (COSTS,))
    assert abs(check(case, 100)["deviation"]) <= TOLERANCE
    dearer = replace(COSTS, decode_core_s=0.75)
    monkeypatch.setattr(Case, "sequence", lambda self, count: [dearer] * count)
    assert check(case, 100)["deviation"] < -TOLERANCE


# The published checks

PUBLISHED = json.loads(RESULT.read_text(encoding="utf-8"))
AGAIN = "run python -m support.projection_checks, and python benchmarks/report.py"


def test_the_published_checks_are_those_of_the_published_machines() -> None:
    names = [case.name for case in published_cases(PUBLISHED)]
    assert [one["name"] for one in PUBLISHED["checks"]] == names, AGAIN
    deviations = [abs(one["deviation"]) for one in PUBLISHED["checks"]]
    assert PUBLISHED["largest_deviation"] == max(deviations) <= PUBLISHED["tolerance"] == TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("case", published_cases(PUBLISHED), ids=lambda case: case.name)
def test_the_published_checks_are_made_again(case: Case) -> None:
    told = next(one for one in PUBLISHED["checks"] if one["name"] == case.name)
    made = check(case, SAMPLES)
    for rate in ("projected_samples_per_s", "simulated_samples_per_s"):
        assert made[rate] == pytest.approx(told[rate], rel=1e-6), AGAIN


def test_every_field_is_explained() -> None:
    for field in dataclasses.fields(Node):
        assert field.name in (Node.__doc__ or "")
