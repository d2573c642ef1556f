"""Results with made-up figures, for what reads results."""

from __future__ import annotations

from typing import Any

from benchmarks.harness.measuring import measured

MACHINE: dict[str, Any] = {
    "cpu": "made-up CPU",
    "usable_cores": 2,
    "memory_gib": 24.0,
    "ctgpu_cpu_variant": "avx2",
    "gpu": None,
    "system": "Linux",
    "versions": {"numpy": "2.0"},
    "commit": "0123456789abcdef",
    "utc": "2026-01-02T03:04:05+00:00",
}


def result(benchmark: str, **facts: Any) -> dict[str, Any]:
    """A result of `benchmark` on the made-up machine."""
    made = {"benchmark": benchmark, "machine": MACHINE, "data": "made-up data", "cache": "warm"}
    return made | facts


def gpu_result() -> dict[str, Any]:
    """What ``run_gpu.py`` writes."""
    moved, time = 1_000_000_000, [1.1e-3, 1.0e-3, 1.2e-3]
    rates = {1: 3.0, 4: 11.0, 8: 20.0, 16: 25.0}
    return result(
        "gpu",
        machine=MACHINE | {"gpu": "made-up GPU"},
        kernel={
            "copy": {"bytes_moved": moved, "time": measured([5e-4], "s"), "gb_per_s": 2000.0},
            "cases": {
                f"{geometry}, {order} order to {layout}": {
                    "bytes_moved": moved,
                    "time": measured(time, "s"),
                    "gb_per_s": 909.0,
                    "share_of_copy": 0.4545,
                }
                for geometry in ("all of it", "real")
                for order in "FC"
                for layout in ("HWD", "DHW")
            },
        },
        torch={"contenders": {"torch": {"time": measured(time, "s"), "this_over_ctgpu": 7.25}}},
        pipeline={
            "contenders": {
                "ctgpu": {"rate": measured([80.0], "samples/s"), "ctgpu_over_this": 1.0},
                "copies alone": {"rate": measured([100.0], "samples/s"), "ctgpu_over_this": 0.8},
            }
        },
        inflate={
            "threads": {
                str(threads): {"rate": measured([rate, 1.1 * rate, 0.9 * rate], "samples/s")}
                for threads, rate in rates.items()
            }
        },
    )
