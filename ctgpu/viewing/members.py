"""What the JSON of a sample says, of what a view shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import numpy.typing as npt
from msgspec import Meta

from ctgpu.errors import DecodeError
from ctgpu.shards.reader import ShardReader
from ctgpu.shards.record import Codes, SampleEntry
from ctgpu.shards.untrusted import decode
from ctgpu.sources.tar_samples import SMALL_LIMIT_BYTES
from ctgpu.spec import Spec
from ctgpu.volume.orientation import is_usable

# More voxels along an axis than any file has room for.
_Voxels = Annotated[int, Meta(ge=0, le=1 << 40)]
Triple = tuple[_Voxels, _Voxels, _Voxels]
# No voxel has another size, and sizes divide each other.
_Millimetres = Annotated[float, Meta(ge=1e-6, le=1e6)]
_Row = tuple[float, float, float, float]
Millimetres = tuple[_Millimetres, _Millimetres, _Millimetres]


@dataclass(frozen=True, slots=True)
class Intensity:
    """How the voxels of a scan became HU, and what is remarkable about them."""

    source: str = ""
    finding: str | None = None


@dataclass(frozen=True, slots=True)
class Scan:
    """What a sample was made of; shape and spacing are along the file's own axes."""

    shape: Triple
    spacing_mm: Millimetres
    dtype: str = ""
    spacing_source: str = ""
    affine_source: str = "header"
    orientation: Codes | None = None
    tilt_degrees: Annotated[float, Meta(ge=0, le=90)] | None = None
    intensity: Intensity = Intensity()


@dataclass(frozen=True, slots=True)
class ValueScale:
    """``hu * scale + offset`` is what is stored, where the volume's own voxels decide."""

    scale: Annotated[float, Meta(ge=-1e9, le=1e9)]
    offset: Annotated[float, Meta(ge=-1e12, le=1e12)]


@dataclass(frozen=True, slots=True)
class Metadata:
    """The JSON of a sample, as far as a view needs it; triples are along H, W and D.

    Attributes
    ----------
    spacing_mm, affine
        Of the output.
    resized_shape, crop_start, pad_before : tuple of int
        How it was cropped and padded.
    source : Scan
        What it was made of.
    report, columns : mapping of str to str
        What tables say of it, by column.
    normalisation : ValueScale or None
        Where it was normalised by its own voxels.
    """

    spacing_mm: Millimetres
    affine: tuple[_Row, _Row, _Row, _Row]
    resized_shape: Triple
    crop_start: Triple
    pad_before: Triple
    source: Scan
    report: Mapping[str, str] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    normalisation: ValueScale | None = None

    @property
    def known_affine(self) -> npt.NDArray[np.float64] | None:
        """4 × 4, index (H, W, D) of the output to RAS+ millimetres; None where it is not known."""
        affine = np.array(self.affine, np.float64)
        known = self.source.affine_source != "spacing"
        return affine if known and is_usable(affine) else None

    def scale_offset(self, spec: Spec) -> tuple[float, float]:
        """``(scale, offset)`` such that ``hu * scale + offset`` is what is stored.

        Raises
        ------
        DecodeError
            If the volume's own voxels decide, and the JSON does not say how.
        """
        if spec.normalise == "window" or spec.stores_hu:
            return spec.scale_offset if spec.normalise == "window" else (1.0, 0.0)
        own = self.normalisation
        if own is None or abs(own.scale) < 1e-9:
            raise DecodeError(
                "its JSON does not say how it was normalised, so its values are no HU; build the "
                "sample again"
            )
        return own.scale, own.offset


def read_metadata(reader: ShardReader, entry: SampleEntry) -> Metadata:
    """The JSON of a sample, held against its checksum.

    Raises
    ------
    FetchError
        If the tar is damaged.
    DecodeError
        If it is not the JSON of a sample of ctgpu.
    """
    content = _small_member(reader, entry, "json")
    try:
        return decode(content, Metadata)
    except ValueError as error:
        raise DecodeError(
            f"{reader.path}: {entry.key}.json is not that of a sample of ctgpu ({error}), though "
            "it has its checksum; build or convert the sample again"
        ) from error


def read_labels(
    reader: ShardReader, entry: SampleEntry, num_classes: int
) -> npt.NDArray[np.float32]:
    """The labels of a sample, held against their checksum: float32, shape (num_classes,).

    Raises
    ------
    FetchError
        If the tar is damaged.
    DecodeError
        If there are not so many.
    """
    size_bytes = entry.members["cls"].size_bytes
    if size_bytes != 4 * num_classes:
        raise DecodeError(
            f"{reader.path}: {entry.key}.cls has {size_bytes:,} bytes; wanted {num_classes} "
            "little-endian float32 values: build or convert the sample again"
        )
    return np.frombuffer(reader.read(entry, "cls"), "<f4")


def read_report(reader: ShardReader, entry: SampleEntry) -> str:
    """The report of a sample, held against its checksum; empty where it has none.

    Raises
    ------
    FetchError
        If the tar is damaged.
    DecodeError
        If it is far too long.
    """
    return _small_member(reader, entry, "txt").decode(errors="replace")


def _small_member(reader: ShardReader, entry: SampleEntry, extension: str) -> bytes:
    size_bytes = entry.members[extension].size_bytes
    if size_bytes > SMALL_LIMIT_BYTES:
        raise DecodeError(
            f"{reader.path}: {entry.key}.{extension} has {size_bytes:,} bytes; at most "
            f"{SMALL_LIMIT_BYTES:,} are read of such a member: look at the tar"
        )
    return reader.read(entry, extension)
