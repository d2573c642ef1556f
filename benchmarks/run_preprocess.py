"""How fast is one volume made, against the old way, the peers and the machine's floor?

One real chest CT (``qin_QIN-LSC-0028``, its slices repeated to 300, int16 in Fortran order as NIfTI
stores it), from voxels in memory to (480, 480, 240) float16 in reused memory, one thread, warm,
medians of interleaved runs.  Peers that are not installed are left out and named.
"""

from __future__ import annotations

import functools
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import psutil

import ctgpu
import old_way
from common import (
    REAL_CT_NAME,
    REAL_CT_SPACING_MM,
    argument_parser,
    in_pages,
    in_words,
    interleaved,
    load_real_ct,
    measured,
    peak_rss_bytes,
    phantom_ct,
    print_table,
)
from ctgpu import _native
from ctgpu.buffers import allocate_pages
from ctgpu.decode.inflate import BACKENDS
from ctgpu.engines import Job
from ctgpu.engines.cpu import preprocess, usable_cores
from ctgpu.spec import Spec
from ctgpu.volume.geometry import VolumePlan, plan_volume
from ctgpu.volume.raw import Rescale
from preprocess_peers import PEERS, Run, Voxels
from publishing import publish

FLOOR, COPY = "floor", "memcpy"

_QUICK_SHAPE = (96, 90, 40)


def main() -> None:
    parser = argument_parser(__doc__ or "")
    parser.add_argument("--no-peers", action="store_true", help="leave out the slow peers")
    options = parser.parse_args()
    repeats = 2 if options.quick else options.repeats
    spec = Spec()
    by_size = sizes(options.quick, repeats)
    if options.quick:
        voxels = phantom_ct(_QUICK_SHAPE)
        data = "synthetic phantom"
    else:
        voxels = load_real_ct(options.data)
        data = (
            f"{REAL_CT_NAME}, its 112 slices repeated to {voxels.shape[2]}; in-plane spacing of "
            f"the header, slice spacing set to {REAL_CT_SPACING_MM[2]} mm so that all slices matter"
        )
    result: dict[str, Any] = {
        "data": data,
        "source": {"shape_hwd": voxels.shape, "dtype": str(voxels.dtype), "order": "Fortran"},
        "spacing_mm": REAL_CT_SPACING_MM,
        "spec": spec.to_dict(),
        "repeats": repeats,
        "cache": "warm: voxels in memory, and one run of each before those that count; "
        "none before those of the slow contenders",
        **contenders(voxels, spec, repeats, peers=not options.no_peers),
        "roofline": against_floor(voxels, spec, repeats),
        "layouts": layouts(voxels, spec, repeats),
        "first_call": first_call(voxels, spec, repeats),
        "threads": thread_scaling(voxels, spec, repeats),
        "inflate": inflate(voxels, options.data, options.quick, repeats),
        "sizes": by_size,
    }
    publish(options, "preprocess", result)


# ---- contenders -------------------------------------------------------------------------------


def contenders(voxels: Voxels, spec: Spec, repeats: int, *, peers: bool) -> dict[str, Any]:
    """ctgpu, the old way, torch written well, the peers, ``memcpy`` and the floor, interleaved."""
    import torch

    torch.set_num_threads(1)
    plan = plan_volume(voxels.shape, REAL_CT_SPACING_MM, spec)
    out = in_pages(spec.stored_shape, np.float16)
    job = Job(voxels, Rescale(), plan, out)
    runs: dict[str, Run] = {
        f"ctgpu {variant}": functools.partial(preprocess, _native, job, variant=variant, threads=1)
        for variant in _native.cpu_variants()
    }
    runs["numpy + torch steps"] = lambda: old_way.preprocess(voxels, REAL_CT_SPACING_MM)
    runs["torch written well"] = lambda: torch_written_well(voxels, plan)
    moved = bytes_moved(voxels, plan)
    runs[FLOOR] = floor(voxels, plan, out)
    runs[COPY] = copy(moved)
    left_out = {}
    if peers:
        for name, make in PEERS.items():
            try:
                runs[name] = make(voxels, plan)
            except ImportError as error:
                left_out[name] = str(error)
    slow = {*PEERS, "ctgpu scalar"} & set(runs)
    seconds = interleaved({n: r for n, r in runs.items() if n not in slow}, repeats)
    seconds |= interleaved(
        {n: runs[n] for n in runs if n in slow}, max(1, min(3, repeats)), warm_ups=0
    )
    times = {name: measured(runs, "s") for name, runs in seconds.items()}
    middle = {name: time["median"] for name, time in times.items()}
    ours = f"ctgpu {_native.cpu_variant('')}"
    facts = {
        name: {
            "time": times[name],
            "this_over_ctgpu": middle[name] / middle[ours],
            "old_steps_over_this": middle["numpy + torch steps"] / middle[name],
            "torch_over_this": middle["torch written well"] / middle[name],
            "this_over_floor": middle[name] / middle[FLOOR],
            "gb_per_s": moved / middle[name] / 1e9,
        }
        for name in sorted(middle, key=lambda name: middle[name])
    }
    print_table(
        f"{voxels.shape} {voxels.dtype} to {spec.stored_shape} float16, one thread, "
        f"{moved / 1e6:.0f} MB moved",
        ["contender", "median", "fastest", "× old steps", "× torch", "× floor", "GB/s"],
        [
            [
                name,
                *median_and_min(f["time"]),
                f"{f['old_steps_over_this']:.1f}",
                f"{f['torch_over_this']:.1f}",
                f"{f['this_over_floor']:.2f}",
                f"{f['gb_per_s']:.1f}",
            ]
            for name, f in facts.items()
        ],
    )
    for name, reason in left_out.items():
        print(f"left out: {name} ({reason})")
    return {"bytes_moved": moved, "ctgpu": ours, "contenders": facts, "left_out": left_out}


def median_and_min(time: dict[str, Any]) -> tuple[str, str]:
    """Two cells of a table."""
    return in_words(time["median"], time["unit"]), in_words(time["min"], time["unit"])


def needed(plan: VolumePlan) -> tuple[slice, ...]:
    """The part of the source that the output depends on."""
    return tuple(slice(int(a.i0[0]), int(a.i1[-1]) + 1) for a in plan.axes)


def bytes_moved(voxels: Voxels, plan: VolumePlan) -> int:
    """One read of the needed source and one write of the output."""
    return int(voxels[needed(plan)].nbytes) + plan.spec.size_bytes


def floor(voxels: Voxels, plan: VolumePlan, out: Voxels) -> Run:
    """Read the needed source once, in memory order; write the output once, past the cache."""
    source = voxels[needed(plan)]
    rows, columns, planes = source.shape
    return functools.partial(
        _native.touch_memory,
        source=source.__array_interface__["data"][0],
        planes=planes,
        plane_stride=source.strides[2],
        rows=columns,
        row_stride=source.strides[1],
        run_bytes=rows * source.itemsize,
        out=out.view(np.uint16),
    )


def copy(size_bytes: int) -> Run:
    """Move `size_bytes` by ``memcpy``, half of them read and half of them written."""
    source, target = (in_pages((size_bytes // 2,), np.uint8) for _ in range(2))
    return functools.partial(np.copyto, target, source)


def torch_written_well(voxels: Voxels, plan: VolumePlan) -> Voxels:
    """The same steps by someone who knows torch: in memory order, in place, one copy at the end.

    The source is (D, W, H) in memory, so it is interpolated as such; crop, pad, turn and float16
    are one copy into the result.
    """
    import torch

    spec = plan.spec
    lo, hi = spec.hu_window
    x = torch.from_numpy(voxels.transpose(2, 1, 0)).to(torch.float32).clamp_(lo, hi)
    x = torch.nn.functional.interpolate(
        x[None, None], size=plan.resized_shape[::-1], mode="trilinear", align_corners=False
    )[0, 0]
    kept = tuple(slice(a.crop_start, a.crop_start + a.n_valid) for a in plan.axes)
    placed = tuple(slice(a.pad_before, a.pad_before + a.n_valid) for a in plan.axes)
    out = torch.full(spec.shape_hwd, spec.padding, dtype=torch.float16)
    out[placed] = x[kept[::-1]].mul_(2 / (hi - lo)).permute(2, 1, 0)
    return out.numpy()


# ---- further questions ------------------------------------------------------------------------


def against_floor(voxels: Voxels, spec: Spec, repeats: int) -> dict[str, Any]:
    """The best variant against reading once and writing once, for two geometries, one thread.

    In the scan's own the crop discards a third of the source, which neither reads; with the other
    spacing the output needs all of it.  The floor reads and writes with the widest instructions and
    writes past the cache; beside it stands ``memcpy`` of as many bytes, read and written together.
    """
    uncropped = tuple(
        target * n_out / n
        for target, n_out, n in zip(
            spec.target_spacing_mm, spec.shape_hwd, voxels.shape, strict=True
        )
    )
    facts: dict[str, Any] = {}
    for name, spacing_mm in (("cropped", REAL_CT_SPACING_MM), ("uncropped", uncropped)):
        plan = plan_volume(voxels.shape, spacing_mm, spec)
        out = in_pages(spec.stored_shape, np.float16)
        job = Job(voxels, Rescale(), plan, out)
        moved = bytes_moved(voxels, plan)
        seconds = interleaved(
            {
                "ctgpu": functools.partial(preprocess, _native, job, variant="", threads=1),
                FLOOR: floor(voxels, plan, out),
                COPY: copy(moved),
            },
            2 * repeats,
        )
        times = {which: measured(runs, "s") for which, runs in seconds.items()}
        ours, floor_s, copy_s = (times[which]["median"] for which in ("ctgpu", FLOOR, COPY))
        facts[name] = {
            "spacing_mm": spacing_mm,
            "bytes_moved": moved,
            "contenders": {
                which: {"time": time, "gb_per_s": moved / time["median"] / 1e9}
                for which, time in times.items()
            },
            "ctgpu_over_floor": ours / floor_s,
            "ctgpu_over_copy": ours / copy_s,
            "share_of_copy_bandwidth": copy_s / ours,
        }
    print_table(
        "roofline: one read of the needed source and one write of the output, one thread",
        ["geometry", "MB moved", "floor", "memcpy", "ctgpu", "× floor", "× memcpy", "GB/s"],
        [
            [
                name,
                f"{f['bytes_moved'] / 1e6:.0f}",
                *(
                    in_words(f["contenders"][which]["time"]["median"], "s")
                    for which in (FLOOR, COPY, "ctgpu")
                ),
                f"{f['ctgpu_over_floor']:.2f}",
                f"{f['ctgpu_over_copy']:.2f}",
                f"{f['contenders']['ctgpu']['gb_per_s']:.1f}",
            ]
            for name, f in facts.items()
        ],
    )
    return facts


def layouts(voxels: Voxels, spec: Spec, repeats: int) -> dict[str, Any]:
    """Either order of the source into either layout of the output, best variant, one thread."""
    runs: dict[str, Run] = {}
    plan = None
    for order in ("Fortran", "C"):
        source = voxels
        if order == "C":
            source = in_pages(voxels.shape, voxels.dtype)
            source[...] = voxels
        for layout in ("HWD", "DHW"):
            turned = Spec.from_dict(spec.to_dict() | {"layout": layout})
            plan = plan_volume(voxels.shape, REAL_CT_SPACING_MM, turned)
            job = Job(source, Rescale(), plan, in_pages(turned.stored_shape, np.float16))
            runs[f"{order} to {layout}"] = functools.partial(
                preprocess, _native, job, variant="", threads=1
            )
    facts = {n: {"time": measured(s, "s")} for n, s in interleaved(runs, repeats).items()}
    print_table(
        "source order and output layout, one thread",
        ["case", "median", "fastest"],
        [[n, *median_and_min(f["time"])] for n, f in facts.items()],
    )
    return facts


def first_call(voxels: Voxels, spec: Spec, repeats: int) -> dict[str, Any]:
    """Into the same memory every time, and into fresh memory, as a first call does; one thread.

    Fresh memory is had from the system, and given back, within the time; ``ctgpu.preprocess`` also
    opens the engine and looks at every voxel.
    """
    runs: dict[str, dict[str, Run]] = {}
    for layout in ("HWD", "DHW"):
        turned = Spec.from_dict(spec.to_dict() | {"layout": layout})
        plan = plan_volume(voxels.shape, REAL_CT_SPACING_MM, turned)
        runs[layout] = {
            "memory used again": functools.partial(
                into, in_pages(turned.stored_shape, np.float16), voxels, plan
            ),
            "fresh memory": functools.partial(into_fresh, voxels, plan),
            "ctgpu.preprocess": functools.partial(
                ctgpu.preprocess,
                *(voxels, REAL_CT_SPACING_MM, turned, "cpu"),
                intensity="hu",
                threads=1,
            ),
        }
    seconds = interleaved(
        {f"{layout}, {n}": run for layout, of_it in runs.items() for n, run in of_it.items()},
        repeats,
    )
    facts: dict[str, Any] = {}
    for layout, of_it in runs.items():
        times = {name: measured(seconds[f"{layout}, {name}"], "s") for name in of_it}
        again = times["memory used again"]["median"]
        facts[layout] = {
            name: {"time": time, "this_over_used_again": time["median"] / again}
            for name, time in times.items()
        }
    print_table(
        "first call, one thread",
        ["output and memory", "median", "fastest", "× used again"],
        [
            [f"{layout}, {name}", *median_and_min(f["time"]), f"{f['this_over_used_again']:.2f}"]
            for layout, of_it in facts.items()
            for name, f in of_it.items()
        ],
    )
    return facts


def into(out: Voxels, voxels: Voxels, plan: VolumePlan) -> None:
    """The best variant, one thread."""
    preprocess(_native, Job(voxels, Rescale(), plan, out), variant="", threads=1)


def into_fresh(voxels: Voxels, plan: VolumePlan) -> None:
    """As :func:`into`, memory included."""
    spec = plan.spec
    memory = allocate_pages(spec.size_bytes)
    into(np.ndarray(spec.stored_shape, np.float16, buffer=memory.data), voxels, plan)


def thread_scaling(voxels: Voxels, spec: Spec, repeats: int) -> dict[str, Any]:
    """Threads inside one volume."""
    plan = plan_volume(voxels.shape, REAL_CT_SPACING_MM, spec)
    job = Job(voxels, Rescale(), plan, in_pages(spec.stored_shape, np.float16))
    cores = usable_cores()
    counts = sorted({1, *(2**n for n in range(1, cores.bit_length())), cores})
    seconds = interleaved(
        {
            str(threads): functools.partial(preprocess, _native, job, variant="", threads=threads)
            for threads in counts
        },
        repeats,
    )
    times = {n: measured(runs, "s") for n, runs in seconds.items()}
    facts = {
        n: {"time": time, "one_thread_over_this": times["1"]["median"] / time["median"]}
        for n, time in times.items()
    }
    print_table(
        f"threads inside one volume, {cores} usable cores",
        ["threads", "median", "fastest", "speedup"],
        [
            [n, *median_and_min(f["time"]), f"{f['one_thread_over_this']:.2f}"]
            for n, f in facts.items()
        ],
    )
    return facts


def inflate(voxels: Voxels, folder: Path, quick: bool, repeats: int) -> dict[str, Any]:
    """gzip and a zip member's bare deflate stream into reused memory, on real CT."""
    if quick:
        raw = voxels.tobytes(order="F")
        packed = zlib.compress(raw, 6, wbits=31)
    else:
        packed = (Path(folder) / REAL_CT_NAME).read_bytes()
        raw = zlib.decompress(packed, wbits=31)
    out = in_pages((len(raw),), np.uint8)
    deflater = zlib.compressobj(6, wbits=-15)
    bare = deflater.compress(raw) + deflater.flush()
    # A member in a zip file: bytes before and after it, as Backend.member_into asks for.
    member = np.frombuffer(bytearray(bytes(64) + bare + bytes(64)), np.uint8)
    gzip = np.frombuffer(packed, np.uint8)
    crc = zlib.crc32(raw)
    runs: dict[str, Run] = {
        "gzip zlib": lambda: zlib_into(packed, out, 31),
        "member zlib": lambda: zlib_into(bare, out, -15),
    }
    for name, backend in BACKENDS.items():
        runs[f"gzip {name}"] = functools.partial(backend.gzip_into, gzip, out)
        runs[f"member {name}"] = functools.partial(
            backend.member_into, member, 64, 64 + len(bare), out, crc
        )
    times = {name: measured(taken, "s") for name, taken in interleaved(runs, repeats).items()}
    facts = {
        name: {
            "time": time,
            "mb_per_s": len(raw) / time["median"] / 1e6,
            "zlib_over_this": times[f"{name.split()[0]} zlib"]["median"] / time["median"],
        }
        for name, time in times.items()
    }
    print_table(
        f"inflate {len(packed) / 1e6:.1f} MB to {len(raw) / 1e6:.1f} MB into reused memory",
        ["stream and library", "median", "fastest", "MB/s", "× zlib"],
        [
            [
                n,
                *median_and_min(f["time"]),
                f"{f['mb_per_s']:.0f}",
                f"{f['zlib_over_this']:.2f}",
            ]
            for n, f in facts.items()
        ],
    )
    return {"compressed_bytes": len(packed), "bytes": len(raw), "streams": facts}


def zlib_into(data: bytes, out: Voxels, wbits: int) -> None:
    """zlib as Python offers it: piece by piece, each copied into the reused memory."""
    stream, view, packed = zlib.decompressobj(wbits), out.data, memoryview(data)
    at, piece = 0, 1 << 18
    for begin in range(0, len(packed), piece):
        chunk = stream.decompress(packed[begin : begin + piece])
        view[at : at + len(chunk)] = chunk
        at += len(chunk)


def sizes(quick: bool, repeats: int) -> dict[str, Any]:
    """Cost per voxel from small to large volumes, and memory beyond source and output.

    The first thing a process does, so that its peak is this and nothing else.
    """
    shapes = [(64, 64, 64), (128, 128, 128), (256, 256, 128), (512, 512, 300), (768, 768, 400)]
    shapes += [(1024, 1024, 600), (1024, 1024, 1000)]
    facts = {
        " × ".join(map(str, shape)): size_cost(shape, repeats)
        for shape in (shapes[:2] if quick else shapes)
    }
    print_table(
        "cost over size, one thread",
        ["shape", "median", "fastest", "ns per source and output voxel", "scratch"],
        [
            [
                shape,
                *median_and_min(f["time"]),
                f"{f['ns_per_voxel']:.3f}",
                in_words(f["scratch"]["median"], "bytes"),
            ]
            for shape, f in facts.items()
        ],
    )
    return facts


def size_cost(shape: tuple[int, int, int], repeats: int) -> dict[str, Any]:
    """One row of :func:`sizes`; all of its memory is gone when it returns."""
    voxels = phantom_ct(shape)
    spec = Spec(shape_hwd=shape, target_spacing_mm=(1.0, 1.0, 1.0))
    plan = plan_volume(shape, (1.0, 1.0, 1.0), spec)
    job = Job(voxels, Rescale(), plan, in_pages(shape, np.float16))
    run = functools.partial(preprocess, _native, job, variant="", threads=1)
    before = psutil.Process().memory_info().rss
    time = measured(interleaved({"ctgpu": run}, repeats)["ctgpu"], "s")
    return {
        "time": time,
        "ns_per_voxel": time["median"] * 1e9 / (2 * voxels.size),
        "scratch": measured([max(0, peak_rss_bytes() - before)], "bytes"),
    }


if __name__ == "__main__":
    main()
