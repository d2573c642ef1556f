"""Does a field of the contract cost time, against the default one?

Each contract is made of the same real chest CT as ``run_preprocess.py`` uses, from voxels in memory
into reused memory, one thread, warm, interleaved with the default.  All of them read as much: the
spacing is such that the output covers just what the source covers.  What a volume's own statistics
take is counted apart: it is done once, on the host, before any engine.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

from common import (
    REAL_CT_NAME,
    argument_parser,
    in_pages,
    in_words,
    interleaved,
    load_real_ct,
    measured,
    phantom_ct,
    print_table,
)
from ctgpu import _native
from ctgpu.engines import Job
from ctgpu.engines.cpu import preprocess
from ctgpu.spec import Spec
from ctgpu.volume.geometry import plan_volume
from ctgpu.volume.orientation import Reorientation
from ctgpu.volume.raw import Rescale
from ctgpu.volume.statistics import statistics_of
from ctgpu.volume.stored import numpy_dtype
from preprocess_peers import Run, Voxels
from publishing import publish

DEFAULT = "default"
# As most NIfTI files of chests lie.
_STORED = "LPS"


def main() -> None:
    options = argument_parser(__doc__ or "").parse_args()
    repeats = 2 if options.quick else options.repeats
    voxels = phantom_ct((96, 90, 40)) if options.quick else load_real_ct(options.data)
    result: dict[str, Any] = {
        "data": "synthetic phantom" if options.quick else f"{REAL_CT_NAME}, its slices repeated",
        "source": {"shape_hwd": voxels.shape, "dtype": str(voxels.dtype), "order": "Fortran"},
        "stored_as": _STORED,
        "repeats": 2 * repeats,
        "specs": {name: spec.to_dict() for name, spec in specs(Spec()).items()},
        **{layout: engine(voxels, Spec(layout=layout), repeats) for layout in ("HWD", "DHW")},
        "statistics": statistics(voxels, repeats),
    }
    publish(options, "contracts", result)


def engine(voxels: Voxels, default: Spec, repeats: int) -> dict[str, Any]:
    """Time of the engine for every field of the contract, over that for the default."""
    runs = {name: engine_run(voxels, spec) for name, spec in specs(default).items()}
    times = {n: measured(s, "s") for n, s in interleaved(runs, 2 * repeats).items()}
    facts = {
        f"ctgpu, {name}": {
            "time": time,
            "this_over_default": time["median"] / times[DEFAULT]["median"],
            "fastest_over_default": time["min"] / times[DEFAULT]["min"],
        }
        for name, time in times.items()
    }
    print_table(
        f"fields of the contract, {default.layout}, one thread",
        ["contract", "median", "fastest", "× default", "fastest × default"],
        [
            [
                name,
                in_words(f["time"]["median"], "s"),
                in_words(f["time"]["min"], "s"),
                f"{f['this_over_default']:.2f}",
                f"{f['fastest_over_default']:.2f}",
            ]
            for name, f in facts.items()
        ],
    )
    return {"contenders": facts}


def specs(default: Spec) -> dict[str, Spec]:
    """The contracts by name, each with one field that differs from the default."""
    own = replace(default, hu_window=None, normalise="minmax")
    return {
        DEFAULT: default,
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


def engine_run(voxels: Voxels, spec: Spec) -> Run:
    """The best variant of the CPU engine, on a source that lies as :data:`_STORED`."""
    turned = (
        Reorientation()
        if spec.orientation == "stored"
        else Reorientation.between(_STORED, spec.orientation)
    )
    view = turned.view(voxels)
    # The output covers just what the source covers, in all fits.
    spacing_mm = tuple(
        target * n_out / n
        for target, n_out, n in zip(spec.target_spacing_mm, spec.shape_hwd, view.shape, strict=True)
    )
    known = statistics_of(voxels, Rescale(), spec) if spec.needs_statistics else None
    plan = plan_volume(view.shape, spacing_mm, spec, statistics=known)
    out = in_pages(spec.stored_shape, numpy_dtype(spec.dtype))
    job = Job(view, Rescale(), plan, out)
    return functools.partial(preprocess, _native, job, variant="", threads=1)


def statistics(voxels: Voxels, repeats: int) -> dict[str, Any]:
    """What the statistics of one volume take."""
    own = {name: spec for name, spec in specs(Spec()).items() if spec.needs_statistics}
    runs: dict[str, Run] = {
        name: functools.partial(statistics_of, voxels, Rescale(), spec)
        for name, spec in own.items()
    }
    facts = {
        f"ctgpu, {n}": {"time": measured(s, "s")} for n, s in interleaved(runs, repeats).items()
    }
    print_table(
        f"statistics of {voxels.size:,} voxels of {voxels.dtype}",
        ["normalise", "median", "fastest"],
        [
            [n, in_words(f["time"]["median"], "s"), in_words(f["time"]["min"], "s")]
            for n, f in facts.items()
        ],
    )
    return {"contenders": facts}


if __name__ == "__main__":
    main()
