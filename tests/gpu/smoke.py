"""Stages of ``check.py`` that need little: does the kernel run at all, and with the right bits?

python smoke.py RESULT.json     the usual volume in both layouts, and how long the first took
python smoke.py --one-launch    one launch and no more, for a profiler to look at
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from ctgpu.engines import Job, open_engine
from ctgpu.spec import Spec
from ctgpu.testing.voxels import random_voxels
from ctgpu.volume.geometry import plan_volume
from ctgpu.volume.raw import Rescale

SHAPE = (512, 512, 300)
SPACING_MM = (0.7, 0.7, 1.25)


def main() -> int:
    """Run what was asked for; returns 0 where every bit is that of the CPU engine."""
    if sys.argv[1:] == ["--one-launch"]:
        open_engine("cuda:0").run([job_of(SHAPE, Spec())])
        return 0
    result = Path(sys.argv[1])
    # CuPy is not imported yet: with an empty cache, the first time is a first time.
    os.environ["CUPY_CACHE_DIR"] = str(result.with_suffix(".kernels"))
    found = smoke(result, SHAPE, Spec())
    return 0 if all(layout["same_bits"] for layout in found["layouts"].values()) else 1


def job_of(shape: tuple[int, int, int], spec: Spec) -> Job:
    """Voxels as NIfTI stores them, and room for the output."""
    plan = plan_volume(shape, SPACING_MM, spec)
    voxels = random_voxels(4, shape, "<i2", "DWH")
    return Job(voxels, Rescale(), plan, np.full(spec.stored_shape, np.nan, np.float16))


def smoke(result: Path, shape: tuple[int, int, int], spec: Spec) -> dict[str, Any]:
    """One volume in each layout on both engines, written as soon as it is known.

    Parameters
    ----------
    result : Path
        Where to write it.
    shape : tuple of int
        Of the source, H, W, D.
    spec : Spec
        Of the output, but for its layout.
    """
    begin = time.perf_counter()
    engine = open_engine("cuda:0")
    found: dict[str, Any] = {"open_s": time.perf_counter() - begin, "layouts": {}}
    cpu = open_engine("cpu")
    for layout in ("HWD", "DHW"):
        made = job_of(shape, Spec.from_dict({**spec.to_dict(), "layout": layout}))
        twin = Job(made.voxels, made.rescale, made.plan, np.full_like(made.out, np.nan))
        seconds = []
        for _ in range(2):
            begin = time.perf_counter()
            engine.run([made])
            seconds.append(time.perf_counter() - begin)
        cpu.run([twin])
        differ = int(np.count_nonzero(made.out.view(np.uint16) != twin.out.view(np.uint16)))
        found["layouts"][layout] = {
            "same_bits": differ == 0,
            "voxels_that_differ": differ,
            "first_s": seconds[0],
            "second_s": seconds[1],
        }
        result.write_text(json.dumps(found), encoding="utf-8")
    engine.close()
    return found


if __name__ == "__main__":
    sys.exit(main())
