"""Compressed volumes: the format `.ctz` (docs/ctz.md), written and read."""

from __future__ import annotations

from ctgpu.codec.compress import compress, compressed_limit_bytes
from ctgpu.codec.ctz import Coding, CtzError, Head, head_bytes
from ctgpu.codec.decompress import decompress

__all__ = [
    "Coding",
    "CtzError",
    "Head",
    "compress",
    "compressed_limit_bytes",
    "decompress",
    "head_bytes",
]
