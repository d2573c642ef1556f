"""Does a field of the contract cost time, against the default one?

Each contract is made of the same real chest CT as ``run_preprocess.py`` uses, from voxels in memory
into reused memory, one thread, warm, interleaved with the default.  All of them read as much: the
spacing is such that the output covers just what the source covers.  What a volume's own statistics
take, and the box that it is cropped to, is counted apart: it is done once, on the host, before any
engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from benchmarks.harness.asking import REAL_CT_NAME, Question, Scan
from benchmarks.harness.measuring import Array, Facts, Run, timed, with_ratio
from benchmarks.harness.one_volume import covering_spacing_mm, ours
from ctgpu.spec import Spec
from ctgpu.volume.crop import crop_box
from ctgpu.volume.geometry import plan_volume
from ctgpu.volume.orientation import Reorientation
from ctgpu.volume.raw import Rescale
from ctgpu.volume.statistics import statistics_of

DEFAULT = "ctgpu, default"
# As most NIfTI files of chests lie.
_STORED = "LPS"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every field in either layout, the statistics and the crops."""
    asked = Question("contracts", __doc__).asked(arguments, repeats=2)
    scan = asked.scan((96, 90, 40))
    voxels = scan.voxels
    return asked.publish(
        {
            "data": "synthetic phantom" if asked.quick else f"{REAL_CT_NAME}, its slices repeated",
            "source": {"shape_hwd": voxels.shape, "dtype": str(voxels.dtype), "order": "Fortran"},
            "stored_as": _STORED,
            "repeats": 2 * asked.repeats,
            "specs": {
                name.removeprefix("ctgpu, "): s.to_dict() for name, s in specs(Spec()).items()
            },
            "HWD": engine(voxels, Spec(), 2 * asked.repeats),
            "DHW": engine(voxels, Spec(layout="DHW"), 2 * asked.repeats),
            "statistics": statistics(voxels, asked.repeats),
            "crops": crops(scan, 2 * asked.repeats),
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
    stored = spec.orientation == "stored"
    turned = Reorientation() if stored else Reorientation.between(_STORED, spec.orientation)
    view = turned.view(voxels)
    known = statistics_of(voxels, Rescale(), spec) if spec.needs_statistics else None
    # The output covers just what the source covers, in all fits.
    spacing_mm = covering_spacing_mm(view.shape, spec)
    return ours(view, plan_volume(view.shape, spacing_mm, spec, statistics=known))


def statistics(voxels: Array, repeats: int) -> Facts:
    """What the statistics of one volume take."""
    runs: dict[str, Run] = {
        name: partial(statistics_of, voxels, Rescale(), spec)
        for name, spec in specs(Spec()).items()
        if spec.needs_statistics
    }
    return {"contenders": timed(runs, repeats)}


def crops(scan: Scan, repeats: int) -> Facts:
    """What it takes to find the box of each crop, over the engine's time for the default."""
    runs: dict[str, Run] = {DEFAULT: engine_run(scan.voxels, Spec())}
    scanned = (scan.voxels, Rescale(), scan.spacing_mm)
    for spec in (Spec(crop="foreground"), Spec(crop="body")):
        runs[f"ctgpu, {spec.crop}"] = partial(crop_box, *scanned, spec)
    return {"contenders": with_ratio(timed(runs, repeats), "this_over_default", DEFAULT)}
