"""Hostile DICOM series, made by code from a seed: every one differs, and all can be made again.

Each is a series of three slices, or one multi-frame file of them, with one file that was damaged or
crafted.  All name a patient, whom no message may name.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

import corpus
import numpy as np
from pydicom import Dataset

from ctgpu.decode.dicom_header import read_header
from support.dicom_series import datasets_of, file_bytes, plant

SHAPE = (40, 36, 3)
AFFINE = np.diag([-0.7, -0.7, 1.5, 1])
MARKS = {"name": "Zzyzx^Quentin", "date": "19510417", "id": "PID-7731-QX"}

_ITEM = b"\xfe\xff\x00\xe0"
_UNDEFINED = b"\xff\xff\xff\xff"
# A sequence that nothing asks for, before the pixels, in explicit little endian.
_SEQUENCE = b"\x40\x00\x75\x02SQ\0\0"
_GROUPS = b"\x00\x52\x30\x92SQ\0\0"
_PIXELS = b"\xe0\x7f\x10\x00O"


class HostileSeries(NamedTuple):
    """One series.

    Attributes
    ----------
    name : str
        Of the case.
    files : list of bytes
        What is in its files.
    """

    name: str
    files: list[bytes]


def true_voxels() -> np.ndarray:
    """The volume that every valid series of the corpus holds: int16 HU, shape `SHAPE`."""
    return corpus.true_voxels()[:, :, :3]


def _datasets(form: str = "single") -> list[Dataset]:
    datasets = datasets_of(true_voxels(), AFFINE, form=form, bits_stored=12, intercept=-2048)
    for dataset in datasets:
        plant(dataset, MARKS)
    return datasets


@cache
def valid_series() -> dict[str, list[bytes]]:
    """By form and transfer syntax, what nothing is wrong with."""
    ways = [
        *(("explicit", "single"), ("implicit", "enhanced"), ("big", "single")),
        *(("rle", "single"), ("jpeg-lossless", "enhanced"), ("jpeg-ls", "single")),
        ("jpeg2000", "single"),
    ]
    return {
        f"{syntax}-{form}": [file_bytes(dataset, syntax) for dataset in _datasets(form)]
        for syntax, form in ways
    }


def damaged(count: int, seed: int) -> Iterator[HostileSeries]:
    """Valid series with random damage to one file, mostly to its header."""
    rng = np.random.default_rng(seed)
    kinds: list[Callable[..., bytes]] = [
        *(corpus._flip_one_bit, corpus._cut_short, corpus._lose_a_piece),
        *(corpus._double_a_piece, corpus._overwrite, corpus._zero_a_page),
    ]
    series = list(valid_series().items())
    for number in range(count):
        name, files = series[number % len(series)]
        victim = int(rng.integers(len(files)))
        data = files[victim]
        pixels = read_header(data, name).pixel_offset
        at = int(rng.integers(128, len(data) if rng.random() < 0.3 else pixels))
        kind = kinds[int(rng.integers(len(kinds)))]
        changed = kind(data, at, rng)
        yield HostileSeries(
            f"{kind.__name__}-{number}-{name}", [*files[:victim], changed, *files[victim + 1 :]]
        )


def crafted() -> Iterator[HostileSeries]:
    """Series that no random damage would make: each lies, unfolds without end, or has no bottom."""
    for name, data in _crafted_single():
        yield HostileSeries(name, [*valid_series()["explicit-single"][:2], data])
    for name, data in _crafted_multi_frame():
        yield HostileSeries(name, [data])
    yield from _crafted_values()


def _crafted_single() -> Iterator[tuple[str, bytes]]:
    data = valid_series()["explicit-single"][2]
    pixels = data.rindex(_PIXELS)

    def inserted(what: bytes) -> bytes:
        return data[:pixels] + what + data[pixels:]

    yield "nothing", b""
    yield "magic-alone", data[:132]
    yield "meta-alone", data[: data.index(b"\x08\x00\x08\x00")]
    yield "no-pixels", data[:pixels]
    yield "length-of-pixels-lies", data[: pixels + 8] + b"\xf0\xff\xff\xff" + data[pixels + 12 :]
    yield "pixels-of-undefined-length", data[: pixels + 8] + _UNDEFINED + data[pixels + 12 :]
    yield "a-length-lies", inserted(b"\x40\x00\x75\x02UT\0\0\xf0\xff\xff\xff")
    deep = (_SEQUENCE + _UNDEFINED + _ITEM + _UNDEFINED) * 50_000
    yield "deep-sequences", inserted(deep)
    yield "deep-sequences-that-end-nowhere", data[:pixels] + deep
    wide = _SEQUENCE + _UNDEFINED + (_ITEM + bytes(4)) * 1_000_000
    yield "a-million-items", inserted(wide)
    of_un = b"\x99\x00\x01\x10UN\0\0" + _UNDEFINED + (_ITEM + _UNDEFINED) * 100_000
    yield "private-items-without-end", inserted(of_un)
    yield "groups-that-are-no-groups", inserted(_GROUPS + struct.pack("<I", 5) + b"abcde")
    start = data.index(b"1.2.840.10008.1.2.1\0")
    meta = data[: start - 2] + struct.pack("<H", 22) + b"1.2.840.10008.1.2.1.99"
    yield "deflated-bomb", meta + zlib.compress(bytes(1 << 26), 9)[2:-4]
    for name, other in {
        "big-endian-it-is-not": b"1.2.840.10008.1.2.2\0",
        "rle-it-is-not": b"1.2.840.10008.1.2.5\0",
    }.items():
        yield name, data[:start] + other + data[start + 20 :]


def _crafted_multi_frame() -> Iterator[tuple[str, bytes]]:
    for name, frames in (
        *(("too-many-frames", 4), ("frames-without-end", 2**31 - 1)),
        *(("too-few-frames", 2), ("no-frames", 0), ("frames-below-none", -3)),
    ):
        (dataset,) = _datasets("enhanced")
        dataset.NumberOfFrames = frames
        yield name, file_bytes(dataset)
    for name, items in (
        ("groups-without-end", (_ITEM + bytes(4)) * 1_000_000),
        ("deep-groups", (_ITEM + struct.pack("<I", 1 << 20) + _SEQUENCE + _UNDEFINED) * 50_000),
    ):
        (dataset,) = _datasets("enhanced")
        del dataset.PerFrameFunctionalGroupsSequence
        data = file_bytes(dataset)
        pixels = data.rindex(_PIXELS)
        groups = _GROUPS + struct.pack("<I", len(items)) + items
        yield name, data[:pixels] + groups + data[pixels:]


def _crafted_values() -> Iterator[HostileSeries]:
    """Values that cannot be those of a CT, in all slices or in the last one."""
    for name, values in {
        "shape-without-end": {"Rows": 65535, "Columns": 65535},
        "another-shape": {"Rows": 20},
        "no-bits": {"BitsStored": 0, "HighBit": 0},
        "more-bits-than-there-are": {"BitsStored": 17, "HighBit": 16},
        "one-bit-a-pixel": {"BitsAllocated": 1, "BitsStored": 1, "HighBit": 0},
        "twelve-bits-a-pixel": {"BitsAllocated": 12},
        "sixty-four-bits-a-pixel": {"BitsAllocated": 64},
        "colours": {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"},
        "a-sign-of-7": {"PixelRepresentation": 7},
        "no-orientation": {"ImageOrientationPatient": ["0"] * 6},
        "an-orientation-of-one-line": {"ImageOrientationPatient": ["1", "0", "0"] * 2},
        "spacing-of-zero": {"PixelSpacing": ["0", "0.7"]},
        "spacing-below-zero": {"PixelSpacing": ["-0.7", "0.7"]},
        "slope-of-zero": {"RescaleSlope": "0"},
        "one-place": {"ImagePositionPatient": ["0", "0", "0"]},
        "far-away": {"ImagePositionPatient": ["1e200", "0", "0"]},
    }.items():
        datasets = _datasets()
        for dataset in datasets:
            for keyword, value in values.items():
                setattr(dataset, keyword, value)
        yield HostileSeries(name, [file_bytes(dataset) for dataset in datasets])
    for text in (b"nan", b"inf", b"x", b"9e99", b"0x1", b"\xff\xfe"):
        files = list(valid_series()["explicit-single"])
        files[2] = files[2].replace(b"0.7\\0.7 ", text + b"\\0.7" + b" " * (4 - len(text)), 1)
        assert files != valid_series()["explicit-single"]
        yield HostileSeries(f"spacing-of-{text.decode('latin-1')}", files)
