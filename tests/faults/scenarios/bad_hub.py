"""Builds from a Hub that fails."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from ctgpu.building.builder import build
from ctgpu.testing.hub import Faults, LocalHub
from scenarios.builds import SAMPLES_PER_SHARD, different, make_source, quick_patience, snapshot
from support.phantoms import SPEC


@dataclass(frozen=True)
class BadHub:
    """What came of building from a Hub that fails: see :func:`build_from_bad_hub`."""

    samples: int
    requests_needed: int
    requests_made: int
    failed: int
    different: list[str]
    seconds: float


def build_from_bad_hub(work_dir: Path, faults: Faults, *, samples: int, workers: int) -> BadHub:
    """Build from a good Hub, then from one with `faults`, and compare."""
    make_source(work_dir / "source", samples)
    snapshots, requests, failed, began = [], [], 0, time.perf_counter()
    for name, way in (("good", Faults()), ("bad", faults)):
        with (
            LocalHub(work_dir / "source", redirect=True, page_size=5, faults=way) as hub,
            quick_patience(),
        ):
            began = time.perf_counter()
            report = build(
                work_dir / name,
                repo_id=hub.repo_id,
                endpoint=hub.url,
                spec=SPEC,
                samples_per_shard=SAMPLES_PER_SHARD,
                num_workers=workers,
                device="cpu",
            )
            failed = len(report.failures)
            requests.append(len(hub.requests))
        snapshots.append(snapshot(work_dir / name))
    good, bad = snapshots
    return BadHub(
        samples,
        requests[0],
        requests[1],
        failed,
        different(bad, good),
        time.perf_counter() - began,
    )
