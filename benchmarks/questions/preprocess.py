"""How fast is one volume made, against the old way, the peers and the machine's floor?

One real chest CT (``qin_QIN-LSC-0028``, its slices repeated to 300, int16 in Fortran order as NIfTI
stores it), from voxels in memory to (480, 480, 240) float16 in reused memory, one thread, warm,
medians of interleaved runs.  Peers that are not installed are left out and named.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil

import ctgpu
from benchmarks.harness.asking import REAL_CT_NAME, REAL_CT_SPACING_MM, Question, phantom_ct
from benchmarks.harness.measuring import (
    Array,
    Facts,
    Run,
    in_pages,
    interleaved,
    measured,
    peak_rss_bytes,
    timed,
    times_of,
    with_ratio,
)
from benchmarks.peers import old_way
from benchmarks.peers.volumes import PEERS, torch_written_well
from ctgpu import _native
from ctgpu.buffers import allocate_pages
from ctgpu.decode.inflate import BACKENDS
from ctgpu.engines import Job
from ctgpu.engines.cpu import preprocess
from ctgpu.machine import usable_cores
from ctgpu.spec import Layout, Spec
from ctgpu.volume.geometry import VolumePlan, plan_volume
from ctgpu.volume.raw import Rescale, Spacing

FLOOR, COPY, OLD, TORCH = "floor", "memcpy", "numpy + torch steps", "torch written well"
LAYOUTS: tuple[Layout, ...] = ("HWD", "DHW")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure one volume in every way."""
    question = Question("preprocess", __doc__)
    question.add_argument("--no-peers", action="store_true", help="leave out the slow peers")
    asked = question.asked(arguments, repeats=2)
    repeats = asked.repeats
    # The first thing that the process does, so that its peak memory is this and nothing else.
    by_size = sizes(asked.quick, repeats)
    scan = asked.scan((96, 90, 40))
    voxels = scan.voxels
    about = (
        f"; in-plane spacing of the header, slice spacing set to {REAL_CT_SPACING_MM[2]} mm so "
        "that all slices matter"
    )
    return asked.publish(
        {
            "data": "synthetic phantom" if asked.quick else scan.about + about,
            "source": {"shape_hwd": voxels.shape, "dtype": str(voxels.dtype), "order": "Fortran"},
            "spacing_mm": REAL_CT_SPACING_MM,
            "spec": Spec().to_dict(),
            "repeats": repeats,
            "cache": "warm: voxels in memory, and one run of each before those that count; "
            "none before those of the slow contenders",
            **contenders(voxels, repeats, peers=not asked.options.no_peers),
            "roofline": against_floor(voxels, 2 * repeats),
            "layouts": layouts(voxels, repeats),
            "first_call": first_call(voxels, repeats),
            "threads": thread_scaling(voxels, repeats),
            "inflate": inflate(voxels, None if asked.quick else asked.options.data, repeats),
            "sizes": by_size,
        }
    )


def planned(
    voxels: Array, layout: Layout = "HWD", spacing_mm: Spacing = REAL_CT_SPACING_MM
) -> VolumePlan:
    """The default contract for these voxels."""
    return plan_volume(voxels.shape, spacing_mm, Spec(layout=layout))


def ours(voxels: Array, plan: VolumePlan, *, variant: str = "", threads: int = 1) -> Run:
    """The CPU engine, into memory that is used again; the best variant, unless one is named."""
    return run_of(
        Job(voxels, Rescale(), plan, in_pages(plan.spec.stored_shape, np.float16)),
        variant=variant,
        threads=threads,
    )


def run_of(job: Job, *, variant: str = "", threads: int = 1) -> Run:
    """The engine on a job."""
    return partial(preprocess, _native, job, variant=variant, threads=threads)


# ---- contenders -------------------------------------------------------------------------------


def contenders(voxels: Array, repeats: int, *, peers: bool) -> Facts:
    """ctgpu, the old way, torch written well, the peers, ``memcpy`` and the floor, interleaved."""
    import torch

    torch.set_num_threads(1)
    plan = planned(voxels)
    moved = bytes_moved(voxels, plan)
    in_memory_order = torch.from_numpy(voxels.transpose(2, 1, 0))
    runs: dict[str, Run] = {
        **{f"ctgpu {v}": ours(voxels, plan, variant=v) for v in _native.cpu_variants()},
        OLD: partial(old_way.preprocess, voxels, REAL_CT_SPACING_MM),
        TORCH: torch_written_well(in_memory_order, plan),
        FLOOR: floor(voxels, plan),
        COPY: copy(moved),
    }
    left_out = {}
    for name, make in PEERS.items() if peers else ():
        try:
            runs[name] = make(voxels, plan)
        except ImportError as error:
            left_out[name] = str(error)
    slow = {*PEERS, "ctgpu scalar"} & set(runs)
    seconds = interleaved({n: r for n, r in runs.items() if n not in slow}, repeats)
    seconds |= interleaved({n: runs[n] for n in slow}, min(3, repeats), warm_ups=0)
    facts = times_of(seconds)
    best = f"ctgpu {_native.cpu_variant('')}"
    with_ratio(facts, "this_over_ctgpu", best)
    with_ratio(facts, "old_steps_over_this", OLD)
    with_ratio(facts, "torch_over_this", TORCH)
    with_ratio(facts, "this_over_floor", FLOOR)
    by_time = dict(sorted(facts.items(), key=lambda item: item[1]["time"]["median"]))
    return {
        "bytes_moved": moved,
        "ctgpu": best,
        "contenders": with_rate(by_time, moved),
        "left_out": left_out,
    }


def with_rate(facts: dict[str, Facts], bytes_moved: int) -> dict[str, Facts]:
    """Each with the rate at which it moves so many bytes."""
    for of in facts.values():
        of["gb_per_s"] = bytes_moved / of["time"]["median"] / 1e9
    return facts


def needed(plan: VolumePlan) -> tuple[slice, ...]:
    """The part of the source that the output depends on."""
    return tuple(slice(int(a.i0[0]), int(a.i1[-1]) + 1) for a in plan.axes)


def bytes_moved(voxels: Array, plan: VolumePlan) -> int:
    """One read of the needed source and one write of the output."""
    return int(voxels[needed(plan)].nbytes) + plan.spec.size_bytes


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
    """The best variant against reading once and writing once, for two geometries, one thread.

    In the scan's own the crop discards a third of the source, which neither reads; with the other
    spacing the output needs all of it.  The floor reads and writes with the widest instructions and
    writes past the cache; beside it stands ``memcpy`` of as many bytes, read and written together.
    """
    spec = Spec()
    h, w, d = (
        target * n_out / n
        for target, n_out, n in zip(
            spec.target_spacing_mm, spec.shape_hwd, voxels.shape, strict=True
        )
    )
    facts: Facts = {}
    for name, spacing_mm in (("cropped", REAL_CT_SPACING_MM), ("uncropped", (h, w, d))):
        plan = planned(voxels, spacing_mm=spacing_mm)
        moved = bytes_moved(voxels, plan)
        runs = {"ctgpu": ours(voxels, plan), FLOOR: floor(voxels, plan), COPY: copy(moved)}
        times = with_rate(timed(runs, repeats), moved)
        ours_s, floor_s, copy_s = (times[which]["time"]["median"] for which in runs)
        facts[name] = {
            "spacing_mm": spacing_mm,
            "bytes_moved": moved,
            "contenders": times,
            "ctgpu_over_floor": ours_s / floor_s,
            "ctgpu_over_copy": ours_s / copy_s,
            "share_of_copy_bandwidth": copy_s / ours_s,
        }
    return facts


def layouts(voxels: Array, repeats: int) -> Facts:
    """Either order of the source into either layout of the output, best variant, one thread."""
    in_c_order = in_pages(voxels.shape, voxels.dtype)
    in_c_order[...] = voxels
    return timed(
        {
            f"{order} to {layout}": ours(source, planned(voxels, layout))
            for order, source in (("Fortran", voxels), ("C", in_c_order))
            for layout in LAYOUTS
        },
        repeats,
    )


def first_call(voxels: Array, repeats: int) -> Facts:
    """Into the same memory every time, and into fresh memory, as a first call does; one thread.

    Fresh memory is had from the system, and given back, within the time; ``ctgpu.preprocess`` also
    opens the engine and looks at every voxel.
    """

    def into_fresh(plan: VolumePlan) -> None:
        memory = allocate_pages(plan.spec.size_bytes)
        out = np.ndarray(plan.spec.stored_shape, np.float16, buffer=memory.data)
        run_of(Job(voxels, Rescale(), plan, out))()

    def whole(spec: Spec) -> object:
        place = (voxels, REAL_CT_SPACING_MM, spec, "cpu")
        return ctgpu.preprocess(*place, intensity="hu", threads=1)

    runs: dict[tuple[str, str], Run] = {}
    for layout in LAYOUTS:
        plan = planned(voxels, layout)
        runs[layout, "memory used again"] = ours(voxels, plan)
        runs[layout, "fresh memory"] = partial(into_fresh, plan)
        runs[layout, "ctgpu.preprocess"] = partial(whole, plan.spec)
    times = timed({"/".join(name): run for name, run in runs.items()}, repeats)
    return {
        layout: with_ratio(
            {name: times[f"{layout}/{name}"] for of, name in runs if of == layout},
            "this_over_used_again",
            "memory used again",
        )
        for layout in LAYOUTS
    }


def thread_scaling(voxels: Array, repeats: int) -> Facts:
    """Threads inside one volume."""
    plan, cores = planned(voxels), usable_cores()
    counts = sorted({1, *(2**n for n in range(1, cores.bit_length())), cores})
    runs = {str(threads): ours(voxels, plan, threads=threads) for threads in counts}
    return with_ratio(timed(runs, repeats), "one_thread_over_this", "1")


def inflate(voxels: Array, folder: Path | None, repeats: int) -> Facts:
    """gzip and a zip member's bare deflate stream into reused memory, on real CT."""
    if folder is None:
        raw = voxels.tobytes(order="F")
        packed = zlib.compress(raw, 6, wbits=31)
    else:
        packed = (folder / REAL_CT_NAME).read_bytes()
        raw = zlib.decompress(packed, wbits=31)
    out = in_pages((len(raw),), np.uint8)
    deflater = zlib.compressobj(6, wbits=-15)
    bare = deflater.compress(raw) + deflater.flush()
    # A member in a zip file: bytes before and after it, as Backend.member_into asks for.
    member = np.frombuffer(bytearray(bytes(64) + bare + bytes(64)), np.uint8)
    gzip = np.frombuffer(packed, np.uint8)
    crc = zlib.crc32(raw)
    runs: Mapping[str, Run] = {
        "gzip zlib": partial(zlib_into, packed, out, 31),
        "member zlib": partial(zlib_into, bare, out, -15),
        **{f"gzip {n}": partial(backend.gzip_into, gzip, out) for n, backend in BACKENDS.items()},
        **{
            f"member {n}": partial(backend.member_into, member, 64, 64 + len(bare), out, crc)
            for n, backend in BACKENDS.items()
        },
    }
    facts = timed(runs, repeats)
    for name, of in facts.items():
        reference = facts[f"{name.split()[0]} zlib"]["time"]["median"]
        of["mb_per_s"] = len(raw) / of["time"]["median"] / 1e6
        of["zlib_over_this"] = reference / of["time"]["median"]
    return {"compressed_bytes": len(packed), "bytes": len(raw), "streams": facts}


def zlib_into(data: bytes, out: Any, wbits: int) -> None:
    """zlib as Python offers it: piece by piece, each copied into the reused memory."""
    stream, view, packed = zlib.decompressobj(wbits), out.data, memoryview(data)
    at, piece = 0, 1 << 18
    for begin in range(0, len(packed), piece):
        chunk = stream.decompress(packed[begin : begin + piece])
        view[at : at + len(chunk)] = chunk
        at += len(chunk)


def sizes(quick: bool, repeats: int) -> Facts:
    """Cost per voxel from small to large volumes, and memory beyond source and output."""
    shapes = [(64, 64, 64), (128, 128, 128), (256, 256, 128), (512, 512, 300), (768, 768, 400)]
    shapes += [(1024, 1024, 600), (1024, 1024, 1000)]
    return {
        " × ".join(map(str, shape)): size_cost(shape, repeats)
        for shape in (shapes[:2] if quick else shapes)
    }


def size_cost(shape: tuple[int, int, int], repeats: int) -> Facts:
    """One row of :func:`sizes`; all of its memory is gone when it returns."""
    voxels = phantom_ct(shape)
    spec = replace(Spec(), shape_hwd=shape, target_spacing_mm=(1.0, 1.0, 1.0))
    run = ours(voxels, plan_volume(shape, (1.0, 1.0, 1.0), spec))
    before = psutil.Process().memory_info().rss
    time = measured(interleaved({"ctgpu": run}, repeats)["ctgpu"], "s")
    return {
        "time": time,
        "ns_per_voxel": time["median"] * 1e9 / (2 * voxels.size),
        "scratch": measured([max(0, peak_rss_bytes() - before)], "bytes"),
    }
