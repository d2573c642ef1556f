"""One sample of a WebDataset's tar: its members, and the volume in them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ctgpu.buffers import Allocate, Buffer, BufferPool
from ctgpu.codec.ctz import SLACK_BYTES, CtzError, Head
from ctgpu.codec.whole import decompress_whole, head_of, require_kind
from ctgpu.decode import MAX_VOLUME_BYTES, decode_raw
from ctgpu.decode.mistaken import HEAD_BYTES, mistaken_for
from ctgpu.errors import DecodeError, StorageError, reason_of
from ctgpu.shards.card import Claims
from ctgpu.shards.reader import ShardReader
from ctgpu.shards.scan import TarMember
from ctgpu.shards.tar import VOLUMES
from ctgpu.shards.untrusted import Stamp, open_regular, read_exactly, stamp_of
from ctgpu.sources.classes import LABEL_BYTES
from ctgpu.sources.fetched import Fetched
from ctgpu.spec import CT_RATE
from ctgpu.volume.raw import RawVolume
from ctgpu.volume.stored import numbers_of, numpy_dtype

#: Members that may hold a sample's volume, best first.
VOLUME_EXTENSIONS = (*VOLUMES, "npz", "nii.gz", "nii", "mha", "nrrd", "npy")

SMALL_LIMIT_BYTES = 16 << 20
LABEL_EXTENSIONS = ("labels", "cls")
_DTYPE_NAMES = ("volume_dtype", "dtype")


@dataclass(frozen=True, slots=True)
class TarSample:
    """The members of one tar that share a key.

    Attributes
    ----------
    tar : Path
        Where they are.
    key : str
        Their common name, folders inside the tar included.
    members : dict of str to TarMember
        By extension.
    stamp : tuple of int
        Of the tar when it was listed; one that was changed since is not read.
    """

    tar: Path
    key: str
    members: Mapping[str, TarMember]
    stamp: Stamp

    @property
    def volume_extension(self) -> str | None:
        """Extension of the member that holds the volume; None where there is none."""
        return next((e for e in VOLUME_EXTENSIONS if e in self.members), None)

    def read(self, extension: str, limit_bytes: int = SMALL_LIMIT_BYTES) -> bytes:
        """One small member.

        Raises
        ------
        DecodeError
            If the tar cannot be read, has changed, or the member is larger than `limit_bytes`.
        """
        member = self.members[extension]
        if member.size_bytes > limit_bytes:
            raise DecodeError(
                f"{self.tar}: {member.name} has {member.size_bytes:,} bytes; at most "
                f"{limit_bytes:,} are read of such a member: look at the tar"
            )
        content = bytearray(member.size_bytes)
        self.read_into(extension, memoryview(content))
        return bytes(content)

    def read_into(self, extension: str, out: memoryview) -> None:
        """One member into memory of exactly its size.

        Raises
        ------
        DecodeError
            If the tar cannot be read, or is not as it was when it was listed.
        """
        member = self.members[extension]
        try:
            with os.fdopen(open_regular(self.tar), "rb", buffering=0) as file:
                self._require_unchanged(file.fileno())
                read_exactly(file.fileno(), out.cast("B"), member.offset)
                self._require_unchanged(file.fileno())
        except EOFError as error:
            raise DecodeError(f"{self.tar} ends within {member.name}; fetch it again") from error
        except OSError as error:
            raise DecodeError(f"{self.tar} cannot be read: {reason_of(error)}") from error

    def _require_unchanged(self, fd: int) -> None:
        if stamp_of(fd) != self.stamp:
            raise DecodeError(
                f"{self.tar} was changed after it had been listed; wait until nothing writes to "
                "it, then run the same command again with --retry-failed"
            )

    def facts(self) -> dict[str, Any]:
        """Its ``.json``; empty where it has none.

        Raises
        ------
        DecodeError
            If that is not a JSON object.
        """
        if "json" not in self.members:
            return {}
        try:
            facts = json.loads(self.read("json"), parse_constant=lambda _: None)
            if not isinstance(facts, dict):
                raise ValueError("it is not an object")
        except (ValueError, RecursionError) as error:
            raise DecodeError(f"{self.tar}: {self.key}.json is not readable: {error}") from error
        return facts

    @property
    def label_extension(self) -> str | None:
        """Extension of the member that holds the labels; None where there is none."""
        return next((e for e in LABEL_EXTENSIONS if e in self.members), None)

    def labels(self, num_classes: int | None = None) -> npt.NDArray[np.float32] | None:
        """Its ``.labels``, or else ``.cls``: float32, shape (classes,); None where it has neither.

        Parameters
        ----------
        num_classes : int, optional
            How many there must be.

        Raises
        ------
        DecodeError
            If they are not raw float32 values, or not so many.
        """
        extension = self.label_extension
        if extension is None:
            return None
        content = self.read(extension)
        if len(content) % LABEL_BYTES or num_classes not in (None, len(content) // LABEL_BYTES):
            wanted = "" if num_classes is None else f"{num_classes} "
            raise DecodeError(
                f"{self.tar}: {self.key}.{extension} has {len(content)} bytes; wanted "
                f"{wanted}little-endian float32 values"
            )
        return np.frombuffer(content, "<f4")

    def text(self) -> str:
        """Its ``.txt``; empty where it has none."""
        return self.read("txt").decode(errors="replace") if "txt" in self.members else ""


def samples_of_tar(tar: Path) -> list[TarSample]:
    """The samples of one tar, in its order; only headers are read.

    Raises
    ------
    StorageError
        If it cannot be opened.
    DecodeError
        If it is damaged or hostile, or names a member twice.
    """
    try:
        stamp = stamp_of(tar)
    except OSError as error:
        raise StorageError(f"{tar} cannot be opened: {reason_of(error)}") from error
    members = _members(tar)
    samples: dict[str, dict[str, TarMember]] = {}
    for member in members:
        # Hidden files, such as the "._" ones of macOS, are left out, as in a folder.
        if member.name.rsplit("/", 1)[-1].startswith("."):
            continue
        of_key = samples.setdefault(member.key, {})
        if of_key.setdefault(member.extension, member) is not member:
            raise DecodeError(f"{tar} holds {member.name} twice; make it again")
    return [TarSample(tar, key, of_key, stamp) for key, of_key in samples.items()]


def _members(tar: Path) -> list[TarMember]:
    try:
        with ShardReader(tar) as reader:
            return reader.scan()
    except DecodeError as error:
        with os.fdopen(open_regular(tar), "rb") as file:
            found = mistaken_for(file.read(HEAD_BYTES))
        if found is not None:
            raise DecodeError(f"{tar} {found}") from error
        raise


def preprocessed_shape(sample: TarSample) -> tuple[int, ...] | None:
    """The shape that a preprocessed shard claims for its volumes; None where they are raw.

    The ``manifest.json`` beside the tar decides, or else what the sample's JSON says.
    """
    claims = Claims.if_readable(sample.tar.parent)
    facts = sample.facts()
    if not claims.preprocessed and facts.get("preprocessed") is not True:
        return None
    return claims.sample_shape or CT_RATE.stored_shape


def read_volume(sample: TarSample, pool: BufferPool) -> RawVolume:
    """The volume of a sample; one that is stored as bfloat16, which NumPy lacks, as float32.

    Raises
    ------
    DecodeError
        If it has none, or one that cannot be read.
    """
    extension = sample.volume_extension
    if extension is None:
        raise DecodeError(
            f"{sample.tar} has no volume for {sample.key}, only {', '.join(sample.members)}"
        )
    path = f"{sample.tar.name}/{sample.key}.{extension}"
    claimed = preprocessed_shape(sample) if extension in VOLUMES else None
    return fetch_volume(sample, path, pool.acquire, claimed, adopting=False).decode(pool)


def stored_dtype(raw: RawVolume) -> str:
    """The type that the voxels of :func:`read_volume` are stored as, by its name."""
    stated = _first(raw.metadata, *_DTYPE_NAMES) if raw.format == "raw" else None
    return "bfloat16" if stated == "bfloat16" else raw.voxels.dtype.name


def fetch_volume(
    sample: TarSample,
    path: str,
    allocate: Allocate,
    claimed: tuple[int, ...] | None,
    *,
    adopting: bool = True,
) -> Fetched:
    """The member that holds a sample's volume.

    Parameters
    ----------
    sample : TarSample
        One that has a volume.
    path : str
        What messages call it.
    allocate : callable
        Lends the buffer.
    claimed : tuple of int or None
        As :func:`preprocessed_shape` gives it.
    adopting : bool
        A preprocessed volume that is not as claimed is refused when it is decoded.

    Raises
    ------
    DecodeError
        If the tar cannot be read, or is not as it was when it was listed.
    """
    extension = str(sample.volume_extension)
    buffer = allocate(sample.members[extension].size_bytes)
    with buffer.released_on_error():
        sample.read_into(extension, buffer.bytes.data)
    if extension not in VOLUMES:
        return Fetched(path, buffer)
    kind = _FetchedArray if extension == VOLUMES[0] else _FetchedCtz
    return kind(path, buffer, sample=sample, claimed=claimed, adopting=adopting)


@dataclass(frozen=True, slots=True, kw_only=True)
class _FetchedArray(Fetched):
    """A bare array, which its sample's JSON or else the claimed shape describes."""

    sample: TarSample
    claimed: tuple[int, ...] | None
    adopting: bool

    @property
    def inflated_bytes(self) -> int:
        return 0

    def decode(self, pool: BufferPool, *, limit_bytes: int = MAX_VOLUME_BYTES) -> RawVolume:
        """The array, in place.

        Raises
        ------
        DecodeError
            If it is not what is stated, or a preprocessed volume that cannot be adopted.
        """
        with self.buffer.released_on_error():
            return self._described(self.buffer, *self._stated())

    def _stated(self) -> tuple[Any, str, Mapping[str, Any]]:
        """Shape and type of the array, and all that its JSON says."""
        facts = self.sample.facts()
        shape = _first(facts, "volume_shape", "shape") or self.claimed
        dtype = _first(facts, *_DTYPE_NAMES) or ("float16" if self.claimed else None)
        if shape is None or dtype is None:
            raise DecodeError(
                f"{self.path} has no volume_shape and volume_dtype in its JSON; without them its "
                "bytes mean nothing: write both"
            )
        return shape, str(dtype), facts

    def _described(
        self, buffer: Buffer, shape: Any, dtype: str, facts: Mapping[str, Any]
    ) -> RawVolume:
        path, claimed = self.path, self.claimed
        if claimed is not None and self.adopting:
            _check_adoptable(path, buffer, shape, dtype, claimed)
        if claimed is None or dtype != "bfloat16":
            return decode_raw(buffer, shape, dtype, facts, file_name=path)
        raw = decode_raw(buffer, shape, str(numpy_dtype("bfloat16")), facts, file_name=path)
        numbers = numbers_of(raw.voxels, "bfloat16")
        raw.release()
        raw.voxels = numbers
        return raw


class _FetchedCtz(_FetchedArray):
    """A compressed array, described likewise."""

    __slots__ = ()

    @property
    def inflated_bytes(self) -> int:
        try:
            voxels_bytes = _volume_bytes(head_of(self.buffer.bytes))
        except CtzError:  # said when it is decoded
            return 0
        return voxels_bytes + self.size_bytes + SLACK_BYTES

    def decode(self, pool: BufferPool, *, limit_bytes: int = MAX_VOLUME_BYTES) -> RawVolume:
        """The array, decompressed.

        Raises
        ------
        DecodeError
            If it is damaged, not what is stated, larger than `limit_bytes`, or a preprocessed
            volume that cannot be adopted.
        """
        with self.buffer:
            shape, dtype, facts = self._stated()
            try:
                voxels = self._decompressed(shape, dtype, facts, pool, limit_bytes)
            except CtzError as error:
                fault = f"{self.path} cannot be decoded: {error}; fetch it again"
                raise DecodeError(fault) from error
        with voxels.released_on_error():
            return self._described(voxels, shape, dtype, facts)

    def _decompressed(
        self,
        shape: Any,
        dtype: str,
        facts: Mapping[str, Any],
        pool: BufferPool,
        limit_bytes: int,
    ) -> Buffer:
        head = head_of(self.buffer.bytes)
        require_kind(head, dtype)
        depth, height, width = head.shape_dhw
        stored = head.shape_dhw if head.layout == "DHW" else (height, width, depth)
        layout = facts.get("layout", "HWD")
        if layout != head.layout or shape not in (stored, list(stored)):
            raise CtzError(
                f"its head states the shape {stored} in the order {head.layout}, and beside it "
                f"{shape!r} in the order {layout!r} is stated"
            )
        volume_bytes = _volume_bytes(head)
        if volume_bytes > limit_bytes:
            raise DecodeError(
                f"{self.path} takes {volume_bytes:,} bytes; at most {limit_bytes:,} are accepted"
            )
        voxels = pool.acquire(volume_bytes)
        with voxels.released_on_error(), pool.acquire(self.size_bytes + SLACK_BYTES) as room:
            room.bytes[: self.size_bytes] = self.buffer.bytes
            out = voxels.array(stored, f"<u{head.voxel_bytes}")
            decompress_whole(room.bytes, self.size_bytes, out, head.layout)
        return voxels


def _volume_bytes(head: Head) -> int:
    return head.voxel_bytes * math.prod(head.shape_dhw)


def _first(facts: Mapping[str, Any], *names: str) -> Any:
    return next((facts[name] for name in names if facts.get(name) is not None), None)


def _check_adoptable(
    path: str, buffer: Buffer, shape: Any, dtype: str, wanted: tuple[int, ...]
) -> None:
    """Refuse a preprocessed volume that is not what its manifest claims.

    The old builder cropped in the wrong axis order: it stored (480, 240, 480) where its manifest
    said (480, 480, 240), which is the same number of bytes.  Voxels one step apart are more alike
    than voxels further apart, so the strides at which neighbours are found tell the two apart.
    """
    h, w, d = wanted
    if not _is_float16(dtype) or buffer.size_bytes != 2 * math.prod(wanted):
        raise DecodeError(
            f"{path} holds {buffer.size_bytes:,} bytes of {dtype}; wanted float16 of shape "
            f"{wanted}: it was preprocessed to something else, so make it from its original"
        )
    scrambled = tuple(shape) == (h, d, w) != wanted
    if not scrambled and w != d:
        rows = buffer.array((h, w * d), "<f2")[:: max(1, h // 32)].astype(np.float32)

        def apart(stride: int) -> float:
            return float(np.abs(rows[:, stride:] - rows[:, :-stride]).mean())

        scrambled = apart(d) > apart(w)
    if scrambled:
        raise DecodeError(
            f"{path} was cropped in the wrong axis order and stored as {(h, d, w)} where {wanted} "
            f"is claimed, so {w - d} of {w} in-plane rows are gone: it cannot be recovered, make "
            "it from its original"
        )
    if tuple(shape) != wanted:
        raise DecodeError(
            f"{path} has shape {tuple(shape)}; wanted {wanted}: make it from its original"
        )


def _is_float16(dtype: str) -> bool:
    try:
        return bool(np.dtype(dtype) == np.float16)
    except TypeError:  # bfloat16, among others
        return False
