"""What ``run_gpu.py`` makes of what it measures, with a CPU in the place of the device."""

from __future__ import annotations

import argparse
import functools
import json
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_results import result

from benchmarks.harness import asking, gpu_timing
from benchmarks.harness.asking import Asked, Scan
from benchmarks.harness.measuring import measured_leaves, times_of, with_ratio
from benchmarks.peers.volumes import torch_written_well
from benchmarks.publishing import bars, tables
from benchmarks.questions import gpu as run_gpu
from ctgpu.buffers import allocate_pages
from ctgpu.engines import Job, open_engine
from ctgpu.spec import Spec
from ctgpu.volume.geometry import plan_volume
from ctgpu.volume.raw import Rescale

SPEC = Spec(shape_hwd=(16, 16, 8))
PHANTOM = Scan.phantom((20, 20, 10), (3.0, 3.0, 6.0)).voxels


class Engine:
    """A CPU that passes for a device."""

    concurrency = 2

    def __init__(self) -> None:
        self._cpu = open_engine("cpu")
        self.run = self._cpu.run
        self.allocate = allocate_pages


def launch() -> None:
    """Takes the place of a launch on a device."""


def by_events(contenders: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, Any]:
    """Every run takes a millisecond, and a copy half of one."""
    for run in contenders.values():
        run()
    return times_of({name: [1e-3 / (1 + (name == "copy"))] * repeats for name in contenders})


@pytest.fixture
def measured_parts(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    engine: Any = Engine()
    voxels = PHANTOM
    monkeypatch.setattr(run_gpu, "on_device", lambda *_: launch)
    monkeypatch.setattr(run_gpu, "device_copy", lambda _: launch)
    monkeypatch.setattr(run_gpu, "moved_bytes", lambda *_: 3_000_000)
    monkeypatch.setattr(run_gpu, "by_events", by_events)
    monkeypatch.setattr(run_gpu, "both_ways", lambda jobs, samples: None)
    times = times_of({"ctgpu": [2.0, 1.0], "torch": [6.0]})
    return {
        "kernel": run_gpu.measure_kernel(engine, voxels, SPEC, 4),
        "torch": {"contenders": with_ratio(times, "this_over_ctgpu", "ctgpu")},
        "pipeline": run_gpu.measure_pipeline(engine, voxels, SPEC, 4, 2),
        "inflate": run_gpu.measure_inflate(engine, voxels, SPEC, 1, 2),
    }


def test_every_run_is_kept_and_ratios_are_those_of_the_medians(
    measured_parts: dict[str, Any],
) -> None:
    units = {quantity["unit"] for _, quantity in measured_leaves(measured_parts)}
    assert units == {"s", "samples/s", "s/s"}
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
    assert all(contender["cpu_per_sample"]["min"] >= 0 for contender in pipeline.values())
    assert pipeline["ctgpu"]["cpu_per_sample"]["median"] > 0
    assert 0 < measured_parts["pipeline"]["pcie_busy"]["median"] < 1
    threads = measured_parts["inflate"]["threads"]
    assert list(threads) == ["1", "4", "8", "16"]
    assert all(len(row["rate"]["runs"]) == 2 for row in threads.values())
    assert threads["1"]["this_over_one_thread"] == 1.0


def test_the_picture_and_the_readme_find_what_they_show(measured_parts: dict[str, Any]) -> None:
    made = result("gpu", **measured_parts)
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    bars.figure_of(made)
    assert "50% to 50% of the device's copy bandwidth (6 GB/s)" in tables.part("on_gpu", gpu=made)


def asked(path: Path | None) -> Asked:
    return Asked("gpu", argparse.Namespace(json=path))


def test_each_part_is_in_the_file_as_soon_as_it_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    seen: list[Any] = []

    def part(value: int) -> Callable[[], dict[str, Any]]:
        def measure() -> dict[str, Any]:
            seen.append(json.loads(path.read_text()) if path.exists() else None)
            return {"value": value}

        return measure

    parts = {"kernel": part(1), "torch": part(2), "pipeline": part(3)}
    run_gpu.measure_all(asked(path), {"data": "made up"}, parts)
    assert seen[0] is None
    assert seen[1]["kernel"] == {"value": 1}
    assert seen[1]["not_measured"] == ["torch", "pipeline"]
    assert seen[2]["torch"] == {"value": 2}
    whole = json.loads(path.read_text())
    assert "not_measured" not in whole
    assert [whole[name]["value"] for name in parts] == [1, 2, 3]


def test_a_part_that_fails_spares_the_others_and_is_told(tmp_path: Path) -> None:
    def fail() -> dict[str, Any]:
        raise ImportError("no torch here")

    path = tmp_path / "gpu.json"
    parts = {"torch": fail, "pipeline": lambda: {"value": 3}}
    with pytest.raises(SystemExit, match="not measured: torch"):
        run_gpu.measure_all(asked(path), {}, parts)
    found = json.loads(path.read_text())
    assert found["pipeline"] == {"value": 3}
    assert found["failed"] == {"torch": "ImportError: no torch here"}
    assert found["not_measured"] == ["torch"]


@pytest.fixture
def torch_on_device(monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, Any]]:
    """The real part about torch."""
    monkeypatch.setattr(run_gpu, "on_device", lambda *_: launch)
    monkeypatch.setattr(run_gpu, "by_events", by_events)
    engine: Any = Engine()
    return lambda: run_gpu.measure_torch(engine, PHANTOM, SPEC, 4)


def test_torch_that_is_not_there_is_no_failure(
    torch_on_device: Callable[[], dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    of_cpu_alone = types.SimpleNamespace(
        __version__="2.9+cpu", cuda=types.SimpleNamespace(is_available=lambda: False)
    )
    path = tmp_path / "gpu.json"
    parts = {"torch": torch_on_device, "pipeline": lambda: {"value": 3}}
    for torch, why in (
        (None, "torch is not installed"),
        (of_cpu_alone, "torch 2.9+cpu finds no CUDA device"),
    ):
        monkeypatch.setitem(sys.modules, "torch", torch)
        run_gpu.measure_all(asked(path), {}, parts)
        found = json.loads(path.read_text())
        assert found["pipeline"] == {"value": 3}
        assert found["not_here"] == {"torch": why}
        assert found["failed"] == {}
        assert found["not_measured"] == ["torch"]


@pytest.mark.parametrize(
    "code",
    [
        "raise ImportError('libtorch_cuda.so: undefined symbol')",
        "raise OSError('libcudart.so.13: cannot open shared object file')",
        "import no_such_package_of_torchs",
    ],
)
def test_torch_that_is_there_and_broken_is_a_failure(
    torch_on_device: Callable[[], dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    code: str,
) -> None:
    (tmp_path / "torch.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    with pytest.raises(SystemExit, match="not measured: torch"):
        run_gpu.measure_all(asked(tmp_path / "gpu.json"), {}, {"torch": torch_on_device})


@pytest.mark.parametrize("error", [ImportError("broken"), gpu_timing.NotHere("no torch")])
def test_half_a_result_never_lies_among_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception
) -> None:
    def fail() -> dict[str, Any]:
        raise error

    monkeypatch.setattr(asking, "RESULTS", tmp_path)
    with pytest.raises(SystemExit, match="torch"):
        run_gpu.measure_all(asked(None), {}, {"kernel": dict, "torch": fail})
    assert list(tmp_path.iterdir()) == []


def test_torch_written_well_makes_the_same_volume() -> None:
    torch = pytest.importorskip("torch")
    engine = open_engine("cpu")
    for spec, spacing_mm in (
        (SPEC, (0.9, 0.6, 1.1)),
        (Spec(shape_hwd=(40, 16, 30), hu_window=(-900.0, 300.0)), (0.9, 0.6, 1.1)),
    ):
        voxels = Scan.phantom((30, 24, 20), spacing_mm).voxels
        plan = plan_volume(voxels.shape, spacing_mm, spec)
        out = np.empty(spec.stored_shape, np.float16)
        engine.run([Job(voxels, Rescale(), plan, out)])
        in_memory_order = torch.from_numpy(voxels.transpose(2, 1, 0))
        made = torch_written_well(in_memory_order, plan)().numpy()
        np.testing.assert_allclose(made.astype(np.float32), out.astype(np.float32), atol=2e-3)


class Event:
    """Of a device whose work is done at once."""

    log: list[str]

    def record(self) -> None:
        self.log.append("event")

    def synchronize(self) -> None:
        pass


def test_an_untimed_launch_is_queued_before_the_first_event(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And contenders take turns, after the clocks are warm."""
    Event.log = log = []
    stream = types.SimpleNamespace(synchronize=lambda: log.append("warmed"))
    cuda = types.SimpleNamespace(
        Event=Event, get_elapsed_time=lambda *_: 2.0, get_current_stream=lambda: stream
    )
    monkeypatch.setitem(sys.modules, "cupy", types.SimpleNamespace(cuda=cuda))
    monkeypatch.setattr(gpu_timing, "WARM_UP_S", 0.01)
    names = ("ctgpu", "copy")
    runs = {name: functools.partial(log.append, name) for name in names}
    assert gpu_timing.by_events(runs, 2) == times_of({name: [2e-3, 2e-3] for name in names})
    timed = [log[n : n + 4] for n in range(len(log) - 16, len(log), 4)]
    assert timed == [[name, "event", name, "event"] for name in (*names, *names)]
    assert log[: len(log) - 16][-3:] == ["ctgpu", "copy", "warmed"]
