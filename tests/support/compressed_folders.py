"""Folders of compressed shards, made of the shards of another folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ctgpu.buffers import allocate_pages
from ctgpu.codec import Coding
from ctgpu.shards.plan import Plan
from ctgpu.shards.recode import compress_sample
from ctgpu.shards.writer import PackedSample
from support.masks import rewritten


def compress_folder(folder: Path, out: Path, coding: Coding) -> Path:
    """Shards of the same samples, their volumes and masks compressed; `out` is returned."""
    plan = replace(Plan.load(folder), compression=coding)

    def compressed(sample: PackedSample) -> PackedSample:
        rooms = [allocate_pages(size)[:size] for size in plan.payload_limits_bytes]
        return compress_sample(sample, plan, *rooms)

    return rewritten(folder, out, compressed, plan)
