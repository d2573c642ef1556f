"""What ``run_gpu.py`` makes of what it measures, with a CPU in the place of the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from made_results import result

import plots
import report_tables
import run_gpu
from common import measured_leaves, phantom_ct
from ctgpu.buffers import allocate_pages
from ctgpu.engines import open_engine
from ctgpu.spec import Spec

SPEC = Spec(shape_hwd=(16, 16, 8))


class Engine:
    """A CPU that passes for a device."""

    concurrency = 2

    def __init__(self) -> None:
        self._cpu = open_engine("cpu")
        self.run = self._cpu.run
        self.allocate = allocate_pages


class Volumes:
    """Takes the place of volumes on a device."""

    def __init__(self, engine: Any, voxels: Any, plan: Any) -> None:
        self.bytes_moved = 3_000_000

    def launch(self) -> None:
        pass


def by_events(run: Callable[[], object], repeats: int) -> list[float]:
    """Every run takes a millisecond."""
    run()
    return [1e-3] * repeats


@pytest.fixture
def measured_parts(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    engine: Any = Engine()
    voxels = phantom_ct((20, 20, 10))
    monkeypatch.setattr(run_gpu, "OnDevice", Volumes)
    monkeypatch.setattr(run_gpu, "by_events", by_events)
    monkeypatch.setattr(
        run_gpu, "device_copy", lambda size_bytes, repeats: run_gpu.by_rate(6_000_000, [1e-3] * 3)
    )
    monkeypatch.setattr(run_gpu, "both_ways", lambda jobs, samples: None)
    return {
        "kernel": run_gpu.measure_kernel(engine, voxels, SPEC, 4),
        "torch": {"contenders": run_gpu.against_ctgpu({"ctgpu": [2.0, 1.0], "torch": [6.0]})},
        "pipeline": run_gpu.measure_pipeline(engine, voxels, SPEC, 4, 2),
        "inflate": run_gpu.measure_inflate(engine, voxels, SPEC, 1, 2),
    }


def test_every_run_is_kept_and_ratios_are_those_of_the_medians(
    measured_parts: dict[str, Any],
) -> None:
    units = {quantity["unit"] for _, quantity in measured_leaves(measured_parts)}
    assert units == {"s", "samples/s"}
    cases = measured_parts["kernel"]["cases"]
    assert len(cases) == 8
    for case in cases.values():
        assert case["time"]["runs"] == [1e-3] * 4
        assert case["gb_per_s"] == pytest.approx(3.0)
        assert case["share_of_copy"] == pytest.approx(0.5)
    assert measured_parts["torch"]["contenders"]["torch"]["this_over_ctgpu"] == 4.0
    pipeline = measured_parts["pipeline"]["contenders"]
    assert all(len(contender["rate"]["runs"]) == 2 for contender in pipeline.values())
    assert pipeline["ctgpu"]["ctgpu_over_this"] == 1.0
    threads = measured_parts["inflate"]["threads"]
    assert list(threads) == ["1", "4", "8", "16"]
    assert all(len(row["rate"]["runs"]) == 2 for row in threads.values())
    assert threads["1"]["this_over_one_thread"] == 1.0
    assert list(threads["1"]["stages"]) == ["copy", "inflate", "engine"]
    spent = sum(stage["median"] for stage in threads["1"]["stages"].values())
    assert 0 < spent <= 1 / threads["1"]["rate"]["min"]


def test_the_picture_and_the_readme_find_what_they_show(measured_parts: dict[str, Any]) -> None:
    made = result("gpu", **measured_parts)
    pytest.importorskip("matplotlib")
    plots.draw_gpu(made)
    assert "50% to 50% of the device's copy bandwidth (6 GB/s)" in report_tables.gpu(made)[0]
