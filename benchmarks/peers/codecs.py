"""Lossless codecs of other libraries, of which each call has one thread."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from benchmarks.harness.measuring import Array


@dataclass(frozen=True)
class Codec:
    """A volume to bytes, and these into memory that is already there."""

    encode: Callable[[Array], bytes]
    decode: Callable[[bytes | Array, Array], object]


def blosc2() -> Codec:
    """Bytes sorted by their place in a voxel, then Zstandard at level 8: how nnU-Net stores."""
    library: Any = importlib.import_module("blosc2")
    how: dict[str, Any] = {"codec": library.Codec.ZSTD, "clevel": 8, "nthreads": 1}
    how |= {"filters": [library.Filter.SHUFFLE]}
    return Codec(
        lambda voxels: bytes(library.compress2(voxels, typesize=voxels.itemsize, **how)),
        lambda member, out: library.decompress2(member, dst=out, nthreads=1),
    )


def zstandard() -> Codec:
    """Zstandard at its default level, of the bytes as they are."""
    library: Any = importlib.import_module("zstandard")

    def decode(member: bytes | Array, out: Array) -> None:
        left = out.reshape(-1).view(np.uint8).data
        with library.ZstdDecompressor().stream_reader(member) as stream:
            while left:
                left = left[stream.readinto(left) :]

    return Codec(lambda voxels: bytes(library.ZstdCompressor().compress(voxels)), decode)


#: Each is called by the name of its library.
OPENERS = {"blosc2, shuffle and zstd 8 (nnU-Net)": blosc2, "zstd 3": zstandard}


def installed() -> tuple[dict[str, Codec], dict[str, str]]:
    """Those that are installed here, and why the others do not run."""
    libraries = {name: opener.__name__ for name, opener in OPENERS.items()}
    missing = {n: f"{it} is not installed" for n, it in libraries.items() if not find_spec(it)}
    return {n: opener() for n, opener in OPENERS.items() if n not in missing}, missing
