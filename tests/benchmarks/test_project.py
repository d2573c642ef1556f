"""The projection's arithmetic, by hand and against the real pipeline in virtual time."""

from __future__ import annotations

import dataclasses
import faulthandler
import json
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import project
from common import measured
from ctgpu.building.pipeline import Workers
from ctgpu.sources.hub.quota import WINDOW_S, RequestQuota
from projection import (
    ALL_VOLUMES,
    SUSTAINED_SHARE,
    UNLIMITED,
    Machine,
    SampleCosts,
    read_calibration,
    read_gpu_rate,
    sizes,
)
from simulate import Node, Shared, Stuck, VirtualClock, simulate

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


def build_result(**changes: Any) -> dict[str, Any]:
    """A small ``build.json``: 4 samples on 2 cores in 7 s, 14 s of computing threads."""
    busy_s = {"fetch": 4.0, "decode": 8.0, "device": 2.0, "write": 0.4}
    stages = {
        name: {"busy": measured([9 * s, s, 0.1 * s], "s"), "span": measured([span_s], "s")}
        for (name, s), span_s in zip(busy_s.items(), (6.0, 6.5, 6.8, 7.0), strict=True)
    }
    return {
        "benchmark": "build",
        "machine": {"cpu": "a CPU", "memory_gib": 8, "utc": "2026-01-01T00:00:00+00:00"},
        "shape_hwd": [100, 100, 50],
        "cores": 2,
        "samples_per_run": 4,
        "formats": {".nii.gz": {"file_bytes": 250_000, "stages": stages}},
    } | changes


def saved(folder: Path, result: object) -> Path:
    path = folder / "build.json"
    path.write_text(json.dumps(result))
    return path


# What was measured


def test_costs_are_the_busy_seconds_of_a_sample(tmp_path: Path) -> None:
    calibration = read_calibration(saved(tmp_path, build_result()), ".nii.gz")
    assert calibration.costs == SampleCosts(250_000, 1_000_000, 110_592_000, 1.0, 2.0, 0.5, 0.1)
    assert calibration.core_share == 1.0
    assert (calibration.cores, calibration.memory_bytes) == (2, 8 * 2**30)


def test_threads_that_waited_for_a_core_are_not_counted_as_working(tmp_path: Path) -> None:
    calibration = read_calibration(saved(tmp_path, build_result(cores=1)), ".nii.gz")
    # One core for 7 s cannot have given 14 core seconds.
    assert calibration.core_share == 0.5
    assert calibration.costs.core_s == pytest.approx(7.0 / 4)
    assert calibration.costs.write_s == 0.1


@pytest.mark.parametrize(
    "result",
    [
        {"formats": {}},
        {"formats": {".nii.gz": {"file_bytes": 1}}},
        {"samples_per_run": None},
        {"samples_per_run": 0},
        {"machine": {}},
        {"shape_hwd": "512"},
    ],
)
def test_a_result_that_lacks_something_is_refused_in_one_sentence(
    result: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as refused:
        read_calibration(saved(tmp_path, build_result(**result)), ".nii.gz")
    assert str(refused.value).startswith("build.json ")
    assert "\n" not in str(refused.value)


def test_a_result_that_is_missing_or_no_json_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"build\.json is not there: run .*run_build\.py"):
        project.main(["--build", str(tmp_path / "build.json")])
    (tmp_path / "build.json").write_text("{")
    with pytest.raises(SystemExit, match="has not what a projection needs"):
        project.main(["--build", str(tmp_path / "build.json")])


def test_sizes_are_those_of_the_readings() -> None:
    readings = sizes(COSTS)
    assert readings["as measured"] == COSTS
    assert readings["12 TB"].compressed_bytes * ALL_VOLUMES == pytest.approx(12e12)
    assert readings["21 TB"].compressed_bytes == pytest.approx(418.4e6, rel=1e-3)


def test_a_volume_three_times_as_large_costs_what_grows_with_it() -> None:
    large = COSTS.scaled_to(300e6)
    # The pass moves 600 + 100 MB instead of 200 + 100.
    assert large == SampleCosts(
        300e6, 600e6, 100e6, pytest.approx(0.6), pytest.approx(1.5), pytest.approx(0.7), 0.1
    )


# What each resource allows


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
    projection = project.project(replace(MACHINE, **change), [COSTS])
    assert projection.bottleneck == bottleneck
    assert projection.samples_per_s == pytest.approx(rate)
    assert projection.second != bottleneck
    assert projection.headroom >= 1


def test_headroom_and_hours() -> None:
    machine = replace(MACHINE, network_bytes_per_s=200e6, disk_bytes_per_s=500e6)
    projection = project.project(machine, [COSTS])
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
    four = project.project(replace(one, nodes=4), [COSTS]).limits
    for name, rate in project.project(one, [COSTS]).limits.items():
        assert four[name] == pytest.approx(rate if name == "Hub requests" else 4 * rate)
    many = project.project(replace(one, nodes=100), [COSTS])
    assert (many.bottleneck, many.samples_per_s) == ("Hub requests", pytest.approx(15.0))


def test_no_more_threads_decode_than_there_are_cores() -> None:
    projection = project.project(replace(MACHINE, cores=4, workers=64), [COSTS])
    assert projection.limits["decode threads"] == pytest.approx(4 / 0.5)
    assert projection.limits["fetch threads"] == pytest.approx(64 / 0.2)


def test_more_processes_are_more_writers_on_the_same_cores() -> None:
    one = project.project(replace(MACHINE, cores=64, workers=64), [COSTS])
    two = project.project(replace(MACHINE, cores=64, workers=64, processes=2), [COSTS])
    assert two.limits["writer thread"] == 2 * one.limits["writer thread"]
    assert two.limits["cores"] == one.limits["cores"] == 64


def test_admission_bounds_what_is_in_flight() -> None:
    threads = MACHINE.threads
    assert threads == Workers(8, 8, 8)
    assert project.project(MACHINE, [COSTS]).limits["samples in flight"] == pytest.approx(
        threads.most_in_flight / 1.1
    )


def test_a_mix_costs_its_average() -> None:
    machine = replace(MACHINE, network_bytes_per_s=200e6)
    mixed = project.project(machine, [COSTS, COSTS.scaled_to(300e6)])
    assert mixed.samples_per_s == pytest.approx(1.0)


def test_a_sample_larger_than_the_budget_holds_up_the_others() -> None:
    machine = replace(MACHINE, memory_bytes=2 * 1000e6)
    huge = COSTS.scaled_to(400e6)  # 400 + 800 + 100 MB
    mixed = project.project(machine, [COSTS] * 9 + [huge])
    # 2.8 s of fetching and inflating, 0.9 of the pass; then a usual one may follow, for 1.1 s.
    assert mixed.alone_s == pytest.approx((2.8 + 0.9 + 1.1) / 10)
    usual = project.project(machine, [COSTS])
    assert mixed.samples_per_s == pytest.approx(1 / (0.9 / usual.samples_per_s + mixed.alone_s))
    two_nodes = project.project(replace(machine, nodes=2), [COSTS] * 9 + [huge])
    assert two_nodes.samples_per_s == pytest.approx(2 * mixed.samples_per_s)
    assert project.project(machine, [huge]).samples_per_s == pytest.approx(1 / 3.8)


def test_samples_that_run_alone_are_a_matter_of_memory_where_they_cost_the_most() -> None:
    machine = replace(MACHINE, cores=2, memory_bytes=2 * 4000e6)
    huge = COSTS.scaled_to(2000e6)
    often, seldom = (project.project(machine, [COSTS] * n + [huge]) for n in (4, 400))
    assert (often.bottleneck, often.second) == ("memory", "cores")
    assert (seldom.bottleneck, seldom.limits["cores"]) == ("cores", pytest.approx(2 * 401 / 400))


def test_a_gpu_takes_the_pass_off_the_cores_and_limits_only_once_measured() -> None:
    machine = replace(MACHINE, cores=2, gpus=1)
    unknown = project.project(machine, [COSTS])
    assert "GPU" not in unknown.limits
    assert unknown.limits["cores"] == pytest.approx(2 / 0.7)
    known = project.project(replace(machine, gpus=2, nodes=3), [COSTS], 0.25)
    assert (known.bottleneck, known.samples_per_s) == ("GPU", pytest.approx(1.5))


def test_the_rate_of_a_gpu_is_read_where_there_is_one(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    assert read_gpu_rate(path) is None
    rate, other = measured([150.0], "samples/s"), measured([1.0], "samples/s")
    contenders = {"copies alone": {"rate": other}}
    path.write_text(json.dumps({"pipeline": {"contenders": contenders}}))
    assert read_gpu_rate(path) is None
    contenders["ctgpu"] = {"rate": rate}
    kernel = {"contenders": {"ctgpu": {"rate": other}}}
    path.write_text(json.dumps({"kernel": kernel, "pipeline": {"contenders": contenders}}))
    assert read_gpu_rate(path) == 150.0
    path.write_text("not JSON")
    with pytest.raises(SystemExit, match="run_gpu"):
        read_gpu_rate(path)


def test_ctgpu_keeps_the_share_of_the_quota_that_the_model_says() -> None:
    now_s = 0.0

    def wait(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds

    quota = RequestQuota(600, clock=lambda: now_s)
    for _ in range(6000):
        quota.acquire(wait)
    assert 6000 / now_s == pytest.approx(SUSTAINED_SHARE * 600 / WINDOW_S, rel=0.02)


# The old guide


def test_what_the_old_guides_runs_would_take() -> None:
    train, part = project.OLD_RUNS
    assert train.samples_per_s == pytest.approx((40279 / 7200, 40279 / 4800))
    assert part.samples_per_s == pytest.approx((6.405, 8.54))
    needs = project.old_run_needs(train, COSTS)
    assert needs["network_gbit_per_s"][1] == pytest.approx(8.391 * 0.8, rel=1e-3)
    assert needs["inflate_cores"][1] == pytest.approx(8.391 * 0.5, rel=1e-3)
    assert needs["all_cores"][0] == pytest.approx(5.594, rel=1e-3)
    assert needs["disk_gb_per_s"][1] == pytest.approx(0.8391, rel=1e-3)
    assert needs["requests_per_window"][1] == pytest.approx(2517, rel=1e-3)


@pytest.mark.parametrize(
    ("core_s", "verdict"),
    [
        (1.0, "16 are enough (42.0 min"),
        (2.5, "16 are enough for its slow end only (105 min"),
        (4.0, "16 are too few (168 min"),
    ],
)
def test_the_verdict_is_that_of_the_figures(core_s: float, verdict: str) -> None:
    costs = replace(COSTS, compressed_bytes=300e6, decode_core_s=core_s - 0.5)
    text = project.old_run_verdict(project.OLD_RUNS[0], costs)
    assert verdict in text
    # 5.594 and 8.391 samples/s of 2.4 Gbit.
    assert "13.4 to 20.1 Gbit/s" in text
    assert "a link of 25 Gbit/s for the slow end and of 25 for the fast" in text
    assert "(10 Gbit/s: 161 min at best)" in text


def test_the_old_guide_contradicts_itself() -> None:
    steps = project.steps_contradiction()
    assert steps["claimed_ratio"] == pytest.approx(9.6)
    assert steps["total_ratio"] == pytest.approx(3.29, abs=0.01)


# Virtual time


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
    case = project.Case("mixed", MACHINE, (COSTS, COSTS.scaled_to(500e6)))
    node = replace(NODE, network_bytes_per_s=1e9, budget_bytes=3e9)
    first, again = (simulate(node, case.sequence(120)) for _ in range(2))
    assert first == again
    assert first.written == list(range(120))
    assert 1.3e9 < first.peak_reserved_bytes <= 3e9


def test_a_case_varies_its_sizes_around_their_mean() -> None:
    samples = project.Case("varied", MACHINE, (COSTS,), 0.3).sequence(1000)
    sizes_mb = [s.compressed_bytes / 1e6 for s in samples]
    assert sum(sizes_mb) / 1000 == pytest.approx(100, rel=1e-3)
    assert 70 <= min(sizes_mb) < 71
    assert 129 < max(sizes_mb) <= 130
    assert project.Case("alike", MACHINE, (COSTS,), 0.0).sequence(3) == [COSTS] * 3


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
}
MEASURED_LIKE = SampleCosts(85.6e6, 157.3e6, 110.6e6, 0.235, 0.477, 0.139, 0.077)


@pytest.mark.parametrize("case", project.stress_cases(MEASURED_LIKE), ids=lambda case: case.name)
def test_projection_and_pipeline_agree_whatever_decides(case: project.Case) -> None:
    checked = project.check(case, 100)
    assert checked["bottleneck"] == DECIDES[case.name]
    assert abs(checked["deviation"]) <= project.TOLERANCE


@pytest.mark.parametrize(
    ("scarce", "bottleneck"),
    [({"requests": 1000}, "Hub requests"), ({"network_bytes_per_s": 200e6}, "network")],
)
def test_projection_and_pipeline_agree_on_several_nodes(
    scarce: dict[str, Any], bottleneck: str
) -> None:
    machine = replace(MACHINE, nodes=4, processes=2, **scarce)
    checked = project.check(project.Case("nodes", machine, (COSTS,)), 100)
    assert checked["bottleneck"] == bottleneck
    assert abs(checked["deviation"]) <= project.TOLERANCE


def test_a_check_is_long_enough_for_a_steady_half_of_whole_rounds() -> None:
    samples = (COSTS,) * 7
    checked = project.check(project.Case("long", MACHINE, samples), 1)
    assert checked["simulated_samples"] >= 4 * MACHINE.threads.most_in_flight
    assert checked["simulated_samples"] % (4 * len(samples)) == 0


def test_every_resource_decides_in_some_case() -> None:
    limits = project.project(replace(MACHINE, memory_bytes=1e12), [COSTS]).limits
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
    whole, halved = (project.check(project.Case("", m, (COSTS,)), 100) for m in (machine, half))
    for rate in ("projected_samples_per_s", "simulated_samples_per_s"):
        assert halved[rate] / whole[rate] == pytest.approx(0.5, rel=0.05)


def test_a_wrong_projection_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    case = project.Case("cores", replace(MACHINE, cores=4), (COSTS,))
    assert abs(project.check(case, 100)["deviation"]) <= project.TOLERANCE
    dearer = replace(COSTS, decode_core_s=0.75)
    monkeypatch.setattr(project.Case, "sequence", lambda self, count: [dearer] * count)
    assert project.check(case, 100)["deviation"] < -project.TOLERANCE


# The page and the JSON


@pytest.fixture
def one_case(monkeypatch: pytest.MonkeyPatch) -> None:
    """Main with one short check."""
    case = project.Case("slow link", replace(MACHINE, network_bytes_per_s=200e6), (COSTS,))
    monkeypatch.setattr(project, "stress_cases", lambda costs: [case])


@pytest.mark.usefixtures("one_case")
def test_the_result_holds_what_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "project.json"
    project.main(
        [
            *("--quick", "--build", str(saved(tmp_path, build_result())), "--json", str(path)),
            *("--gpu", str(tmp_path / "gpu.json"), "--cores", "4", "--network-gbit", "8"),
            *("--account", "none", "--nodes", "2"),
        ]
    )
    printed = capsys.readouterr().out

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    result = json.loads(path.read_text(), parse_constant=refuse)
    assert result["benchmark"] == "project"
    assert result["simulated"] is True
    own = [p for p in result["projections"] if p["machine"]["name"] == "your own"]
    assert [p["reading"] for p in own] == ["as measured", "12 TB", "21 TB"]
    assert own[0]["limits_samples_per_s"]["network"] == pytest.approx(2 * 1e9 / 250_000)
    assert own[0]["limits_samples_per_s"]["Hub requests"] is None
    assert own[0]["machine"]["disk_bytes_per_s"] is None
    assert own[0]["samples_per_s"] == pytest.approx(2 * 4 / 3.5)
    assert own[0]["bottleneck"] == "cores"
    assert {p["upper_bound"] for p in result["projections"] if p["machine"]["gpus"]} == {True}
    assert "GPU not measured: ≤" in printed
    assert [c["name"] for c in result["checks"]] == ["slow link"]
    assert result["largest_deviation"] == abs(result["checks"][0]["deviation"])
    for number, assumption in enumerate(result["assumptions"], 1):
        assert f"{number:>3}. {assumption}" in printed
    assert "4.8 / 0.5 = 9.6 ×" in printed
    assert "1.35 / 0.41 = 3.3 ×" in printed


@pytest.mark.usefixtures("one_case")
def test_a_deviation_beyond_the_tolerance_is_an_error_that_names_the_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(project, "TOLERANCE", 0.0)
    path = tmp_path / "project.json"
    with pytest.raises(SystemExit, match="differ by more than 0%: slow link"):
        project.main(
            ["--quick", "--build", str(saved(tmp_path, build_result())), "--json", str(path)]
        )
    assert json.loads(path.read_text())["checks"]


@pytest.mark.parametrize("option", ["--cores", "--network-gbit", "--nodes"])
def test_a_machine_of_nothing_is_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        project.main([option, "0"])
    assert f"{option} is 0" in capsys.readouterr().err


def test_every_field_of_a_machine_is_explained() -> None:
    for kind in (Machine, SampleCosts, Node):
        for field in dataclasses.fields(kind):
            assert field.name in (kind.__doc__ or "")
