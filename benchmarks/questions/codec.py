"""How small does a chest become, and how fast is it coded and decoded on one core?

Every real chest at its own spacing, no slice repeated, nothing padded: float16, exact and on a
grid; the first also by other stored numbers, and a mask.  Beside a ``pread`` of the raw volume from
the page cache into the same memory, D, H, W, and beside blosc2 and Zstandard of the same bytes.
Every bit is held against the original.  One thread, memory that is used again, interleaved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import ctgpu
from benchmarks.harness.asking import REAL_CT_NAME, Question, Scan, load_scan
from benchmarks.harness.measuring import Array, Facts, in_pages, timed, with_bandwidth, with_ratio
from benchmarks.peers.codecs import Codec, installed
from ctgpu import _native
from ctgpu.codec import compress, compressed_limit_bytes, decompress
from ctgpu.codec.compress import kind_of
from ctgpu.codec.ctz import CODINGS, SLACK_BYTES
from ctgpu.codec.decompress import slabs_at_once, tiles_of
from ctgpu.codec.whole import head_of
from ctgpu.loading.region import to_dhw
from ctgpu.shards.record import checksum
from ctgpu.shards.untrusted import read_exactly
from ctgpu.spec import Spec
from ctgpu.testing.masks import labels_of

RAW, MASK = "pread of the raw volume, warm", "mask, uint8"
CHESTS = (REAL_CT_NAME, "acrinflt013.nii.gz", *(f"lidcidri000{n}_small.nii.gz" for n in (1, 2, 3)))
USUAL: Mapping[str, Facts] = {"float16": {}, "float16, 2^-10": {"precision": "2^-10"}}
OTHERS = {n: {"dtype": n} for n in ("bfloat16", "int16", "uint8")} | {MASK: {"dtype": "int16"}}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure all of it."""
    asked = Question("codec", __doc__, repeats=5).asked(arguments, repeats=1)
    peers, missing = installed()
    chests: dict[str, Facts] = {name: {} for name in (("phantom",) if asked.quick else CHESTS)}
    made: list[str] = []
    with asked.folder() as folder:
        for chest, found in chests.items():
            scan = asked.scan() if asked.quick else load_scan(asked.options.data, chest)
            covered = contract(scan, quick=asked.quick)
            for name, fields in (USUAL if made else {**USUAL, **OTHERS}).items():
                spec = replace(covered, **fields)
                stored = ctgpu.preprocess(scan.voxels, scan.spacing_mm, spec, device="cpu")
                if name == MASK:  # three labels, by its HU
                    stored, spec = labels_of(stored), replace(spec, dtype="uint8")
                beside = peers if name in USUAL else {}
                found[name] = coded(stored, spec, beside, folder / "raw", asked.repeats)
            made.append(f"{scan.about}, made into {'×'.join(map(str, covered.shape_hwd))}")
    data = "; ".join(made)
    return asked.publish({"data": data, "raw": RAW, "chests": chests, "not_run": missing})


def contract(scan: Scan, *, quick: bool) -> Spec:
    """CT-RATE's, but no larger than the scan: what is padded would flatter the ratio."""
    spec = Spec(shape_hwd=(96, 80, 48)) if quick else Spec()
    covered = np.rint(np.multiply(scan.voxels.shape, scan.spacing_mm) / spec.target_spacing_mm)
    h, w, d = np.minimum(spec.shape_hwd, covered).astype(int).tolist()
    return replace(spec, shape_hwd=(h, w, d))


def coded(stored: Array, spec: Spec, peers: Mapping[str, Codec], path: Path, repeats: int) -> Facts:
    """Bytes and times of a volume in each coding and by each peer; `path` is for its raw bytes."""
    stored.tofile(path)
    dhw, (kind, grid) = to_dhw(stored, spec.layout), kind_of(spec)
    written = partial(compress, stored, kind=kind, grid=grid, layout=spec.layout)
    out, given = in_pages(dhw.shape, dhw.dtype), in_pages(stored.shape, stored.dtype)
    runs: Facts = {RAW: partial(read, path, out)}
    once: Facts = {}
    sizes: dict[str, int] = {}
    for coding in CODINGS:
        name, limit_bytes = f"ctgpu, {coding}", compressed_limit_bytes(dhw.shape, dhw.itemsize)
        room = in_pages((limit_bytes + SLACK_BYTES,), np.uint8)
        encode = partial(written, coding=coding, xxh3_128=checksum(stored.data), out=room)
        sizes[name] = encode()
        decoding = partial(decode, room, sizes[name], out, verify=False)
        ways = {"decode": decoding, "decode with XXH3": partial(decoding, verify=True)}
        for variant in _native.ctz_variants()[1:]:
            ways[f"decode, {variant}"] = partial(decoding, variant=variant)
        for way, run in ways.items():
            check(f"{name}: {way}", run, dhw, out)
        runs |= {f"{name}: {way}": run for way, run in {"encode": encode, **ways}.items()}
    for name, codec in peers.items():
        made = codec.encode(stored)
        sizes[name] = len(made)
        runs[f"{name}: decode"] = partial(codec.decode, made, given)
        check(name, runs[f"{name}: decode"], stored, given)
        once[f"{name}: encode"] = partial(codec.encode, stored)
    # The slowest of all, and nobody waits for them in training.
    facts = timed(runs, repeats) | timed(once, 1, warm_ups=0)
    return {
        "raw_over_stored": {name: stored.nbytes / size for name, size in sizes.items()},
        "contenders": with_ratio(with_bandwidth(facts, stored.nbytes), "pread_over_this", RAW),
    }


def read(path: Path, out: Array) -> None:
    """Read a file into memory of its size."""
    with path.open("rb", buffering=0) as file:
        read_exactly(file.fileno(), out.reshape(-1).view(np.uint8).data, 0)


def decode(room: Array, size_bytes: int, out_dhw: Array, **how: Any) -> None:
    """Decode a member, and what may follow it in `room`, as a loader does."""
    head = head_of(room[:size_bytes], out_dhw.shape)
    starts, step = head.starts(), slabs_at_once(out_dhw)
    runs = tiles_of(head, (0, 0, 0), out_dhw.shape)
    for first in range(0, len(runs), step):
        some = runs[first : first + step]
        data = room[starts[some[0].start] : starts[some[-1].stop] + SLACK_BYTES]
        decompress(head, some, data, out_dhw, **how)


def check(name: str, run: Callable[[], object], wanted: Array, out: Array) -> None:
    """Run once, and hold every bit of what it wrote against the original."""
    bits = f"u{wanted.itemsize}"
    out.view(bits)[...] = 0
    run()
    if not np.array_equal(out.view(bits), wanted.view(bits)):
        raise SystemExit(f"{name}: what is decoded is not what was encoded")
