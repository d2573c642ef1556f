"""Does a field of the contract cost time, against the default one?

Each contract is made of the same real chest CT as ``run_preprocess.py`` uses, from voxels in memory
into reused memory, one thread, warm, interleaved with the default.  All of them read as much: the
spacing is such that the output covers just what the source covers.  What a volume's own statistics
take is counted apart: it is done once, on the host, before any engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from benchmarks.harness.asking import REAL_CT_NAME, Question
from benchmarks.harness.measuring import Array, Facts, Run, in_pages, timed, with_ratio
from ctgpu import _native
from ctgpu.engines import Job
from ctgpu.engines.cpu import preprocess
from ctgpu.spec import Spec
from ctgpu.volume.geometry import plan_volume
from ctgpu.volume.orientation import Reorientation
from ctgpu.volume.raw import Rescale
from ctgpu.volume.statistics import statistics_of
from ctgpu.volume.stored import numpy_dtype

DEFAULT = "ctgpu, default"
# As most NIfTI files of chests lie.
_STORED = "LPS"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every field in either layout, and the statistics."""
    asked = Question("contracts", __doc__).asked(arguments, repeats=2)
    voxels = asked.scan((96, 90, 40)).voxels
    return asked.publish(
        {
            "data": "synthetic phantom" if asked.quick else f"{REAL_CT_NAME}, its slices repeated",
            "source": {"shape_hwd": voxels.shape, "dtype": str(voxels.dtype), "order": "Fortran"},
            "stored_as": _STORED,
            "repeats": 2 * asked.repeats,
            "specs": {
                name.removeprefix("ctgpu, "): spec.to_dict() for name, spec in specs(Spec()).items()
            },
            **{
                layout: engine(voxels, Spec(layout=layout), 2 * asked.repeats)
                for layout in ("HWD", "DHW")
            },
            "statistics": statistics(voxels, asked.repeats),
        }
    )


def engine(voxels: Array, default: Spec, repeats: int) -> Facts:
    """Time of the engine for every field of the contract, over that for the default."""
    runs = {name: engine_run(voxels, spec) for name, spec in specs(default).items()}
    facts = with_ratio(timed(runs, repeats), "this_over_default", DEFAULT)
    for of in facts.values():
        of["fastest_over_default"] = of["time"]["min"] / facts[DEFAULT]["time"]["min"]
    return {"contenders": facts}


def specs(default: Spec) -> dict[str, Spec]:
    """The contracts by name, each with one field that differs from the default."""
    own = replace(default, hu_window=None, normalise="minmax")
    of_fields = {
        **{f"orientation {codes}": replace(default, orientation=codes) for codes in ("RAS", "PLS")},
        "grid origin": replace(default, grid="origin"),
        "fit contain": replace(default, fit="contain"),
        "fit stretch": replace(default, fit="stretch"),
        "output_range": replace(default, output_range=(0.0, 1.0), standardise=(0.45, 0.22)),
        "percentiles": replace(own, normalise="percentiles", percentiles=(0.5, 99.5)),
        "minmax": own,
        "zscore": replace(own, normalise="zscore"),
        **{dtype: replace(default, dtype=dtype) for dtype in ("bfloat16", "int16", "uint8")},
    }
    return {DEFAULT: default} | {f"ctgpu, {name}": spec for name, spec in of_fields.items()}


def engine_run(voxels: Array, spec: Spec) -> Run:
    """The best variant of the CPU engine, on a source that lies as :data:`_STORED`."""
    turned = (
        Reorientation()
        if spec.orientation == "stored"
        else Reorientation.between(_STORED, spec.orientation)
    )
    view = turned.view(voxels)
    # The output covers just what the source covers, in all fits.
    h, w, d = (
        target * n_out / n
        for target, n_out, n in zip(spec.target_spacing_mm, spec.shape_hwd, view.shape, strict=True)
    )
    known = statistics_of(voxels, Rescale(), spec) if spec.needs_statistics else None
    plan = plan_volume(view.shape, (h, w, d), spec, statistics=known)
    job = Job(view, Rescale(), plan, in_pages(spec.stored_shape, numpy_dtype(spec.dtype)))
    return partial(preprocess, _native, job, variant="", threads=1)


def statistics(voxels: Array, repeats: int) -> Facts:
    """What the statistics of one volume take."""
    own = {name: spec for name, spec in specs(Spec()).items() if spec.needs_statistics}
    runs: dict[str, Run] = {
        name: partial(statistics_of, voxels, Rescale(), spec) for name, spec in own.items()
    }
    return {"contenders": timed(runs, repeats)}
