"""How fast is one volume made, against the old way, the peers and the machine's floor?

One real chest CT (``qin_QIN-LSC-0028``, its slices repeated to 300, int16 in Fortran order as NIfTI
stores it), from voxels in memory to (480, 480, 240) float16 in reused memory, one thread, warm,
medians of interleaved runs.  Peers that are not installed are left out and named.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

import ctgpu
from benchmarks.harness.asking import REAL_CT_SPACING_MM, Question
from benchmarks.harness.measuring import (
    Array,
    Facts,
    Run,
    in_pages,
    timed,
    with_bandwidth,
    with_ratio,
)
from benchmarks.harness.one_volume import covering_spacing_mm, moved_bytes, needed, ours
from benchmarks.peers import old_way
from benchmarks.peers.monai_pipeline import PIPELINES, beside
from benchmarks.peers.volumes import PEERS, torch_written_well
from ctgpu import _native
from ctgpu.buffers import allocate_pages
from ctgpu.machine import usable_cores
from ctgpu.spec import Layout, Spec
from ctgpu.volume.geometry import VolumePlan, plan_volume

FLOOR, COPY, OLD, TORCH = "floor", "memcpy", "numpy + torch steps", "torch written well"
LAYOUTS: tuple[Layout, ...] = ("HWD", "DHW")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure one volume in every way."""
    question = Question("preprocess", __doc__)
    question.add_argument("--preset", choices=PIPELINES, help="only it, beside MONAI's pipeline")
    asked = question.asked(arguments, repeats=2)
    if asked.options.preset is not None:
        asked.name = f"preprocess_{asked.options.preset}"
        return asked.publish(beside(asked, asked.options.preset))
    scan, repeats = asked.scan((96, 90, 40)), asked.repeats
    voxels = scan.voxels
    about = (
        f"; in-plane spacing of the header, slice spacing set to {REAL_CT_SPACING_MM[2]} mm so "
        "that all slices matter"
    )
    return asked.publish(
        {
            "data": scan.about + about,
            "source": {"shape_hwd": voxels.shape, "dtype": str(voxels.dtype), "order": "Fortran"},
            "spacing_mm": REAL_CT_SPACING_MM,
            "spec": Spec().to_dict(),
            "repeats": repeats,
            "cache": "warm: voxels in memory, and one run of each before those that count; "
            "none before those of the slow contenders",
            **contenders(voxels, repeats),
            "roofline": {"uncropped": against_floor(voxels, 2 * repeats)},
            "first_call": first_call(voxels, repeats),
            "threads": thread_scaling(voxels, repeats),
        }
    )


# ---- contenders -------------------------------------------------------------------------------


def contenders(voxels: Array, repeats: int) -> Facts:
    """ctgpu, the old way, torch written well, the peers, ``memcpy`` and the floor, interleaved."""
    import torch

    torch.set_num_threads(1)
    plan = plan_volume(voxels.shape, REAL_CT_SPACING_MM, Spec())
    moved = moved_bytes(voxels, plan)
    in_memory_order = torch.from_numpy(voxels.transpose(2, 1, 0))
    runs: dict[str, Run] = {
        **{f"ctgpu {v}": ours(voxels, plan, variant=v) for v in _native.cpu_variants()},
        OLD: partial(old_way.preprocess, voxels, REAL_CT_SPACING_MM),
        TORCH: torch_written_well(in_memory_order, plan),
        FLOOR: floor(voxels, plan),
        COPY: copy(moved),
    }
    left_out = {}
    for name, make in PEERS.items():
        try:
            runs[name] = make(voxels, plan)
        except ImportError as error:
            left_out[name] = str(error)
    slow = {name: runs.pop(name) for name in ("ctgpu scalar", *PEERS) if name in runs}
    facts = timed(runs, repeats) | timed(slow, min(3, repeats), warm_ups=0)
    best = f"ctgpu {_native.cpu_variant('')}"
    with_bandwidth(with_ratio(facts, "this_over_ctgpu", best), moved)
    by_time = dict(sorted(facts.items(), key=lambda item: item[1]["time"]["median"]))
    told = {"bytes_moved": moved, "ctgpu": best}
    return told | {"contenders": by_time, "left_out": left_out}


def floor(voxels: Array, plan: VolumePlan) -> Run:
    """Read the needed source once, in memory order; write the output once, past the cache."""
    source = voxels[needed(plan)]
    rows, columns, planes = source.shape
    return partial(
        _native.touch_memory,
        source=source.__array_interface__["data"][0],
        planes=planes,
        plane_stride=source.strides[2],
        rows=columns,
        row_stride=source.strides[1],
        run_bytes=rows * source.itemsize,
        out=in_pages(plan.spec.stored_shape, np.uint16),
    )


def copy(size_bytes: int) -> Run:
    """Move `size_bytes` by ``memcpy``, half of them read and half of them written."""
    source, target = (in_pages((size_bytes // 2,), np.uint8) for _ in range(2))
    return partial(np.copyto, target, source)


# ---- further questions ------------------------------------------------------------------------


def against_floor(voxels: Array, repeats: int) -> Facts:
    """The best variant against reading once and writing once, all of the source needed, one thread.

    The floor reads and writes with the widest instructions and writes past the cache; beside it
    stands ``memcpy`` of as many bytes, read and written together.
    """
    plan = plan_volume(voxels.shape, covering_spacing_mm(voxels.shape, Spec()), Spec())
    moved = moved_bytes(voxels, plan)
    runs = {"ctgpu": ours(voxels, plan), FLOOR: floor(voxels, plan), COPY: copy(moved)}
    facts = with_bandwidth(timed(runs, repeats), moved)
    ours_s, floor_s, copy_s = (facts[which]["time"]["median"] for which in runs)
    return {
        "bytes_moved": moved,
        "contenders": facts,
        "ctgpu_over_floor": ours_s / floor_s,
        "ctgpu_over_copy": ours_s / copy_s,
    }


def first_call(voxels: Array, repeats: int) -> Facts:
    """Into the same memory every time, and into fresh memory, as a first call does; one thread.

    Fresh memory is had from the system, and given back, within the time; ``ctgpu.preprocess`` also
    opens the engine and looks at every voxel.
    """

    def into_fresh(plan: VolumePlan) -> None:
        memory = allocate_pages(plan.spec.size_bytes)
        out = np.ndarray(plan.spec.stored_shape, np.float16, buffer=memory.data)
        ours(voxels, plan, out)()

    def whole(spec: Spec) -> object:
        place = (voxels, REAL_CT_SPACING_MM, spec, "cpu")
        return ctgpu.preprocess(*place, intensity="hu", threads=1)

    facts: Facts = {}
    for layout in LAYOUTS:
        plan = plan_volume(voxels.shape, REAL_CT_SPACING_MM, Spec(layout=layout))
        runs: dict[str, Run] = {
            "memory used again": ours(voxels, plan),
            "fresh memory": partial(into_fresh, plan),
            "ctgpu.preprocess": partial(whole, plan.spec),
        }
        facts[layout] = with_ratio(timed(runs, repeats), "this_over_used_again", next(iter(runs)))
    return facts


def thread_scaling(voxels: Array, repeats: int) -> Facts:
    """Threads inside one volume."""
    plan, cores = plan_volume(voxels.shape, REAL_CT_SPACING_MM, Spec()), usable_cores()
    counts = sorted({1, *(2**n for n in range(1, cores.bit_length())), cores})
    runs = {str(threads): ours(voxels, plan, threads=threads) for threads in counts}
    return with_ratio(timed(runs, repeats), "one_thread_over_this", "1")
