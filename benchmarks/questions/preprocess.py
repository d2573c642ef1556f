"""How fast is one volume made, against the old way, the peers and the machine's floor?

One real chest CT (``qin_QIN-LSC-0028``, its slices repeated to 300, int16 in Fortran order as NIfTI
stores it), from voxels in memory to (480, 480, 240) float16 in reused memory, one thread, warm,
medians of interleaved runs.  Peers that are not installed are left out and named.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from functools import partial

import numpy as np

import ctgpu
from benchmarks.harness.asking import REAL_CT_NAME, REAL_CT_SPACING_MM, Asked, Question
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
from benchmarks.peers.volumes import PEERS, PIPELINES, torch_written_well
from ctgpu import _native
from ctgpu.buffers import allocate_pages
from ctgpu.machine import usable_cores
from ctgpu.spec import Layout, Spec
from ctgpu.testing.ctrate import Volume, lay_out_ct_rate
from ctgpu.volume.geometry import VolumePlan, plan_volume
from ctgpu.volume.label_volume import LabelVolume
from ctgpu.volume.mask_gather import gather_mask
from ctgpu.volume.prepare import PreparedVolume
from ctgpu.volume.raw import RawVolume, Rescale

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
    return asked.publish(
        {
            "data": f"{scan.about}; in-plane spacing of the header, slice spacing set to "
            f"{REAL_CT_SPACING_MM[2]} mm so that all slices matter",
            "source": {"shape_hwd": voxels.shape, "dtype": str(voxels.dtype), "order": "Fortran"},
            "spacing_mm": REAL_CT_SPACING_MM,
            "spec": Spec().to_dict(),
            "repeats": repeats,
            "cache": "warm: voxels in memory, and one run of each before those that count; "
            "none before those of the slow contenders",
            **contenders(voxels, repeats),
            "roofline": {"uncropped": against_floor(voxels, 2 * repeats)},
            "first_call": first_call(voxels, repeats),
            "masks": masks(voxels, repeats),
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
    return {"bytes_moved": moved, "ctgpu": best, "contenders": by_time, "left_out": left_out}


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

    whole = partial(ctgpu.preprocess, voxels, REAL_CT_SPACING_MM, intensity="hu", threads=1)
    facts: Facts = {}
    for layout in LAYOUTS:
        plan = plan_volume(voxels.shape, REAL_CT_SPACING_MM, Spec(layout=layout))
        runs: dict[str, Run] = {
            "memory used again": ours(voxels, plan),
            "fresh memory": partial(into_fresh, plan),
            "ctgpu.preprocess": partial(whole, spec=plan.spec, device="cpu"),
        }
        facts[layout] = with_ratio(timed(runs, repeats), "this_over_used_again", next(iter(runs)))
    return facts


def masks(voxels: Array, repeats: int) -> Facts:
    """A mask of the same voxels, taken to the same grid, beside the volume; one thread."""
    facts: Facts = {}
    for layout in LAYOUTS:
        plan = plan_volume(voxels.shape, REAL_CT_SPACING_MM, Spec(layout=layout))
        runs: dict[str, Run] = {"the volume": ours(voxels, plan)}
        for dtype in (np.uint8, np.uint16):
            labels = LabelVolume((voxels > -300).astype(dtype, order="K"))
            prepared = PreparedVolume(RawVolume(voxels), Rescale(), plan, "argument", mask=labels)
            out = in_pages(plan.spec.stored_shape, dtype)
            runs[f"its mask, {np.dtype(dtype)}"] = partial(gather_mask, prepared, out)
        facts[layout] = with_ratio(timed(runs, repeats), "this_over_the_volume", "the volume")
    return facts


def thread_scaling(voxels: Array, repeats: int) -> Facts:
    """Threads inside one volume."""
    plan, cores = plan_volume(voxels.shape, REAL_CT_SPACING_MM, Spec()), usable_cores()
    counts = sorted({1, *(2**n for n in range(1, cores.bit_length())), cores})
    runs = {str(threads): ours(voxels, plan, threads=threads) for threads in counts}
    return with_ratio(timed(runs, repeats), "one_thread_over_this", "1")


def beside(asked: Asked, preset: str) -> Facts:
    """Time of a preset and its project's own pipeline, one thread each, and how far they differ."""
    warnings.simplefilter("ignore")  # of torch and MONAI, about each other
    try:
        monai = importlib.import_module("monai.transforms")
    except ImportError as error:
        raise SystemExit(f"--preset {preset} needs MONAI: {error}; pip install monai") from error
    importlib.import_module("torch").set_num_threads(1)
    spec = Spec.preset(preset)
    pipeline = PIPELINES[preset](monai, spec)
    with asked.folder() as folder:
        path = asked.options.data / REAL_CT_NAME
        if asked.quick:
            scan = asked.scan((48, 40, 30))
            of_scan = {"valid_1_a_1": Volume(scan.voxels, scan.spacing_mm)}
            [path] = lay_out_ct_rate(folder, of_scan).values()
        out = np.empty(spec.stored_shape, np.float16)
        mine = partial(ctgpu.preprocess, path, spec=spec, device="cpu", threads=1, out=out)
        theirs = partial(pipeline, {"image": str(path)})
        first = f"ctgpu --preset {preset}"
        runs: dict[str, Run] = {first: mine, f"MONAI as in {preset}": theirs}
        made = theirs()["image"].numpy()[0]
        mine()
        apart = np.abs(out.astype(np.float32) - made) / spec.scale_offset[0]
        return {
            "data": "synthetic phantom" if asked.quick else f"{REAL_CT_NAME}, the file as it is",
            "preset": preset,
            "spec": spec.to_dict(),
            "monai": importlib.import_module("monai").__version__,
            "repeats": asked.repeats,
            "cache": "warm: the file in the page cache, one run of each before those that count",
            "contenders": with_ratio(timed(runs, asked.repeats), "this_over_ctgpu", first),
            "apart_hu": {"mean": float(apart.mean()), "largest": float(apart.max())},
        }
