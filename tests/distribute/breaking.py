"""An engine that breaks, and a driver for it: Ray's workers must find the class by its name."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ctgpu
from ctgpu.distribute.ray import RayExecutor
from ctgpu.engines import Engine, Job, open_engine
from ctgpu.errors import CtgpuError, DeviceError
from ctgpu.spec import Spec


class BreakingEngine(Engine):
    """The CPU engine, but for some volumes.

    Parameters
    ----------
    shape : tuple of int
        Volumes of this shape make the device fail.
    times : int
        But only so often, counted in files, as every failure may be in another process.
    counted_in : Path
        There.
    """

    def __init__(self, shape: tuple[int, ...], times: int, counted_in: Path) -> None:
        self._shape, self._times, self._counted_in = shape, times, counted_in

    @property
    def name(self) -> str:
        return "breaking"

    @property
    def concurrency(self) -> int:
        return 1

    def run(self, jobs: Sequence[Job], *, threads: int = 1) -> None:
        for job in jobs:
            failures = len(list(self._counted_in.iterdir()))
            if job.voxels.shape == self._shape and failures < self._times:
                (self._counted_in / str(failures)).touch()
                raise DeviceError("the device is on fire")
        open_engine("cpu").run(jobs, threads=threads)

    def describe(self) -> dict[str, Any]:
        return {"name": self.name}


def main(address: str, folder: str, source: str, shape: str, times: str, counted_in: str) -> int:
    """Build on the cluster; prints what came of it as JSON."""
    import breaking  # by its name, not as __main__

    engine = breaking.BreakingEngine(tuple(json.loads(shape)), int(times), Path(counted_in))
    try:
        report = ctgpu.build(
            folder,
            source=source,
            spec=Spec(target_spacing_mm=(4.0, 4.0, 6.0), shape_hwd=(90, 90, 50)),
            samples_per_shard=1,
            device=engine,
            num_workers=1,
            executor=RayExecutor(address),
        )
    except CtgpuError as error:
        print(error)
        return error.exit_code
    print(report.to_json())
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
