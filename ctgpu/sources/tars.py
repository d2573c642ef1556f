"""Volumes in the tars of a WebDataset: raw ones, and shards that were preprocessed already."""

from __future__ import annotations

import glob
import hashlib
import itertools
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ctgpu.buffers import Buffer, BufferPool
from ctgpu.decode import MAX_VOLUME_BYTES, decode, decode_raw
from ctgpu.decode.layout import metadata_facts
from ctgpu.errors import DecodeError, FetchError, MismatchError, SourceError, TableError, UsageError
from ctgpu.shards.names import MANIFEST_NAME
from ctgpu.shards.reader import ShardReader
from ctgpu.shards.scan import TarMember
from ctgpu.sources.base import Allocate, SampleRef, Source, Split, natural_key
from ctgpu.sources.tables import LABEL_NAMES, SampleRow, Table, Tables, report_text
from ctgpu.spec import CT_RATE
from ctgpu.volume import RawVolume, Spacing

#: Members that may hold a sample's volume, best first.
VOLUME_EXTENSIONS = ("bin", "npz", "nii.gz", "nii")

_BRACES = re.compile(r"\{([^{}]*)\}")
_NUMBERS = re.compile(r"(\d+)\.\.(\d+)")
_SMALL_LIMIT_BYTES = 16 << 20
_REPORT_COLUMNS = ("Findings_EN", "Impressions_EN")
_LABEL_BYTES = 4 * len(LABEL_NAMES)
_MOST_TARS = 1_000_000


def expand_pattern(pattern: str | os.PathLike[str]) -> list[Path]:
    """Every tar that a pattern names, in natural order, those that are not there included.

    Parameters
    ----------
    pattern : str or path
        A folder (its ``*.tar``), or a path in which ``{000000..000314}`` and ``{a,b}`` stand for
        each of their values, and ``*``, ``?`` and ``[…]`` for what exists.

    Raises
    ------
    UsageError
        If it names nothing.
    """
    text = os.fspath(pattern)
    if os.path.isdir(text):
        text = os.path.join(glob.escape(text), "*.tar")
    found: list[str] = []
    for path in _expand_braces(text):
        # What exists under this very name is meant, even where the name looks like a glob.
        found += glob.glob(path) if glob.has_magic(path) and not os.path.exists(path) else [path]
    if not found:
        raise UsageError(
            f"{os.fspath(pattern)} names no tar; give a folder of shards, a tar, or a quoted "
            "pattern such as 'shards/shard-{000000..000009}.tar'"
        )
    return [Path(path) for path in sorted(dict.fromkeys(found), key=natural_key)]


def _expand_braces(text: str) -> Iterator[str]:
    match = _BRACES.search(text)
    if not match:
        yield text
        return
    values: Iterable[str] = match[1].split(",")
    if numbers := _NUMBERS.fullmatch(match[1]):
        first, last = int(numbers[1]), int(numbers[2])
        if not first <= last < first + _MOST_TARS:
            raise UsageError(f"{text}: {match[0]} is no range; write {{000000..000314}}")
        values = (f"{n:0{len(numbers[1])}d}" for n in range(first, last + 1))
    for value in values:
        yield from _expand_braces(text[: match.start()] + value + text[match.end() :])


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
    """

    tar: Path
    key: str
    members: Mapping[str, TarMember]

    @property
    def volume_extension(self) -> str | None:
        """Extension of the member that holds the volume; None where there is none."""
        return next((e for e in VOLUME_EXTENSIONS if e in self.members), None)

    def read(self, extension: str, limit_bytes: int = _SMALL_LIMIT_BYTES) -> bytes:
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
            If the tar cannot be read, or has become too short.
        """
        member = self.members[extension]
        position, view = member.offset, out.cast("B")
        try:
            with self.tar.open("rb", buffering=0) as file:
                file.seek(position)
                while view:
                    count = file.readinto(view)
                    if not count:
                        raise DecodeError(f"{self.tar} ends within {member.name}; fetch it again")
                    view = view[count:]
        except OSError as error:
            raise DecodeError(f"{self.tar} cannot be read: {error.strerror}") from error

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

    def labels(self) -> npt.NDArray[np.float32] | None:
        """Its ``.labels``, or else ``.cls``: float32, shape (18,); None where it has neither.

        Raises
        ------
        DecodeError
            If they are not so many raw float32 values.
        """
        extension = next((e for e in ("labels", "cls") if e in self.members), None)
        if extension is None:
            return None
        content = self.read(extension)
        if len(content) != _LABEL_BYTES:
            raise DecodeError(
                f"{self.tar}: {self.key}.{extension} has {len(content)} bytes; wanted "
                f"{len(LABEL_NAMES)} little-endian float32 values"
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
    with ShardReader(tar) as reader:
        members = reader.scan()
    samples: dict[str, dict[str, TarMember]] = {}
    for member in members:
        of_key = samples.setdefault(member.key, {})
        if of_key.setdefault(member.extension, member) is not member:
            raise DecodeError(f"{tar} holds {member.name} twice; make it again")
    return [TarSample(tar, key, of_key) for key, of_key in samples.items()]


def preprocessed_shape(sample: TarSample) -> tuple[int, ...] | None:
    """The shape that a preprocessed shard claims for its volumes; None where they are raw.

    The ``manifest.json`` beside the tar decides, or else what the sample's JSON says.
    """
    try:
        card = json.loads((sample.tar.parent / MANIFEST_NAME).read_bytes())
        claimed, preprocessed = card.get("sample_shape"), card.get("preprocessed") is True
    except (OSError, ValueError, AttributeError):
        claimed, preprocessed = None, False
    facts = sample.facts()
    if not preprocessed and facts.get("preprocessed") is not True:
        return None
    try:
        shape = tuple(int(n) for n in claimed or CT_RATE.stored_shape)
    except (TypeError, ValueError):
        shape = ()
    if len(shape) != 3:
        raise UsageError(
            f"{sample.tar.parent / MANIFEST_NAME} has the sample_shape {claimed!r}; wanted "
            "three whole numbers"
        )
    return shape


def read_volume(sample: TarSample, pool: BufferPool) -> RawVolume:
    """The volume of a sample.

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
    facts = sample.facts()
    claimed = preprocessed_shape(sample) if extension == "bin" else None
    buffer = pool.acquire(sample.members[extension].size_bytes)
    try:
        sample.read_into(extension, buffer.bytes.data)
    except BaseException:
        buffer.release()
        raise
    path = f"{sample.tar.name}/{sample.key}.{extension}"
    if extension != "bin":
        return decode(path, buffer, pool)
    return _decode_bin(path, buffer, facts, claimed, check=False)


def _decode_bin(
    path: str,
    buffer: Buffer,
    facts: Mapping[str, Any],
    claimed: tuple[int, ...] | None,
    *,
    check: bool = True,
) -> RawVolume:
    """A bare array as its JSON, or else the shape claimed for preprocessed volumes, says."""
    shape = _first(facts, "volume_shape", "shape") or claimed
    dtype = _first(facts, "volume_dtype", "dtype") or ("float16" if claimed else None)
    try:
        if shape is None or dtype is None:
            raise DecodeError(
                f"{path} has no volume_shape and volume_dtype in its JSON; without them its bytes "
                "mean nothing: write both"
            )
        if claimed is not None and check:
            _check_adoptable(path, buffer, shape, str(dtype), claimed)
    except DecodeError:
        buffer.release()
        raise
    return decode_raw(buffer, shape, str(dtype), facts, file_name=path)


class _Planned(Protocol):
    """What :meth:`TarSource.list_left` needs of a planned sample."""

    @property
    def path(self) -> str: ...
    @property
    def size_bytes(self) -> int: ...


class TarSource(Source):
    """The tars of a WebDataset.

    A sample is a volume (``bin`` with ``json`` beside it, ``npz``, ``nii.gz`` or ``nii``) and what
    else has its key: ``json`` with spacing and rescale pair, ``cls`` or ``labels``, ``txt``.

    Parameters
    ----------
    pattern : Path
        As :func:`expand_pattern` takes it.
    """

    def __init__(self, pattern: Path) -> None:
        self._pattern = Path(os.path.abspath(pattern))
        fixed = itertools.takewhile(
            lambda part: not glob.has_magic(part) and "{" not in part, self._pattern.parts[:-1]
        )
        self._root = self._pattern if self._pattern.is_dir() else Path(*fixed)
        self._samples: dict[str, TarSample] = {}
        self._revision: str | None = None
        #: Shape that preprocessed volumes claim; None where the volumes are raw.
        self.adopted_shape: tuple[int, ...] | None = None

    def identity(self) -> dict[str, str]:
        """``kind``, ``location`` and ``revision``: a hash of the listing, members and sizes.

        Raises
        ------
        ValueError
            If no listing was made yet.
        """
        if self._revision is None:
            raise ValueError("list_volumes comes before identity: the listing is the revision")
        return {"kind": "tars", "location": self._root.name, "revision": self._revision}

    def list_volumes(self, split: Split) -> list[SampleRef]:
        """Every sample of every tar, in natural order of tar and key.

        Raises
        ------
        UsageError
            If a tar is missing, or a sample has no volume.
        SourceError
            If a tar cannot be read.
        """
        tars = expand_pattern(self._pattern)
        if missing := [tar for tar in tars if not tar.exists()]:
            raise UsageError(
                f"{missing[0]} does not exist, nor do {len(missing) - 1} others of the "
                f"{len(tars)} tars that were named; correct the pattern"
            )
        return self._list(tars)

    def list_left(self, planned: Iterable[_Planned], *, repaired: bool = False) -> dict[str, int]:
        """List the tars that are still there, for a plan made when all of them were.

        Parameters
        ----------
        planned : iterable of PlannedSample
            Held against those tars.
        repaired : bool
            Sizes may have changed: failed samples are to be tried again.

        Returns
        -------
        dict of str to int
            The sizes that have changed, by path.

        Raises
        ------
        MismatchError
            If a sample is gone from its tar, or has another size and nothing was repaired.
        """
        tars = self.tars_left()
        listed = {ref.path: ref.size_bytes for ref in self._list(tars)} if tars else {}
        names = {self.relative(tar) for tar in tars}
        changed = {}
        for sample in planned:
            tar = sample.path.partition(".tar/")[0] + ".tar"
            size_bytes = listed.get(sample.path)
            if tar not in names or size_bytes == sample.size_bytes:
                continue
            if size_bytes is None or not repaired:
                raise MismatchError(
                    f"{self._root / tar} is not the tar that was planned: {sample.path} has "
                    "another size or is gone; bring the tar back, or convert into another folder"
                )
            changed[sample.path] = size_bytes
        return changed

    def tars_left(self) -> list[Path]:
        """Those tars of the pattern that are there."""
        try:
            return [tar for tar in expand_pattern(self._pattern) if tar.exists()]
        except UsageError:  # a glob of which nothing is left
            return []

    def tables(self, split: Split) -> Tables:
        """What the samples' own members say, in place of CSVs."""
        return _TarTables(self._samples.values(), adopted=self.adopted_shape is not None)

    def read_table(self, *names: str) -> tuple[str, bytes] | None:
        """None: the samples carry their own labels and reports."""
        return None

    def sample(self, path: str) -> TarSample:
        """The sample that a :class:`~ctgpu.sources.base.SampleRef` of this source means.

        Raises
        ------
        FetchError
            If it is gone since the plan was made.
        """
        try:
            return self._samples[path]
        except KeyError:
            raise FetchError(
                f"{self._root / path} is gone; bring its tar back, then use --retry-failed"
            ) from None

    def fetch(self, ref: SampleRef, allocate: Allocate) -> Buffer:
        """The volume's member, read straight into the allocated buffer."""
        sample = self.sample(ref.path)
        buffer = allocate(ref.size_bytes)
        try:
            sample.read_into(str(sample.volume_extension), buffer.bytes.data)
        except DecodeError as error:
            buffer.release()
            if not self._root.is_dir():
                raise SourceError(f"{self._root} is gone; mount it again and resume") from error
            raise FetchError(str(error)) from error
        except BaseException:
            buffer.release()
            raise
        return buffer

    def decode(
        self,
        path: str,
        buffer: Buffer,
        pool: BufferPool,
        *,
        limit_bytes: int = MAX_VOLUME_BYTES,
    ) -> RawVolume:
        """The volume; a ``bin`` as its JSON describes it.

        Raises
        ------
        DecodeError
            If the bytes are no volume, or a preprocessed one that cannot be adopted.
        """
        if not path.endswith(".bin"):
            return decode(path, buffer, pool, limit_bytes=limit_bytes)
        return _decode_bin(path, buffer, self.sample(path).facts(), self.adopted_shape)

    def relative(self, tar: Path) -> str:
        """What the samples' paths call a tar of the pattern."""
        return Path(os.path.abspath(tar)).relative_to(self._root).as_posix()

    def _list(self, tars: list[Path]) -> list[SampleRef]:
        digest = hashlib.sha256()
        refs: list[SampleRef] = []
        for tar in tars:
            name = self.relative(tar)
            for sample in samples_of_tar(tar):
                extension = sample.volume_extension
                if extension is None:
                    raise UsageError(
                        f"{tar} has no volume for {sample.key}, only "
                        f"{', '.join(sample.members)}; wanted {', '.join(VOLUME_EXTENSIONS)}"
                    )
                if not refs:
                    self.adopted_shape = preprocessed_shape(sample)
                path = f"{name}/{sample.key}.{extension}"
                self._samples[path] = sample
                refs.append(SampleRef(path, sample.members[extension].size_bytes))
                for member in sample.members.values():
                    digest.update(f"{name}\t{member.name}\t{member.size_bytes}\n".encode())
        if not refs:
            raise UsageError(f"{self._pattern} holds no sample; give the tars of a WebDataset")
        refs.sort(key=lambda ref: natural_key(ref.path))
        self._revision = digest.hexdigest()
        return refs


class _TarTables(Tables):
    """Rows made of the samples' own members, read when they are asked for."""

    def __init__(self, samples: Iterable[TarSample], *, adopted: bool) -> None:
        self._samples = {sample.key.rsplit("/", 1)[-1]: sample for sample in samples}
        self._adopted = adopted

        def having(*extensions: str) -> Table:
            named = (
                k for k, s in self._samples.items() if not s.members.keys().isdisjoint(extensions)
            )
            return Table("the tars", [], dict.fromkeys(named, ""))

        super().__init__(having("json"), having("labels", "cls"), having("txt"))

    def row(self, study_id: str, *, spacing_from_header: bool = False) -> SampleRow:
        try:
            sample = self._samples[study_id]
        except KeyError:
            raise TableError(f"{study_id} is gone from the tars; bring its tar back") from None
        try:
            facts, labels, text = sample.facts(), sample.labels(), sample.text()
            spacing_mm: Spacing | None = metadata_facts(study_id, facts).get("spacing_mm")
        except DecodeError as error:
            raise TableError(str(error)) from error
        if spacing_mm is not None and any(map(math.isnan, spacing_mm)):
            spacing_mm = None
        source = "json"
        if spacing_mm is None and self._adopted:
            spacing_mm, source = CT_RATE.target_spacing_mm, "assumed"
        if spacing_mm is None and sample.volume_extension == "bin":
            raise TableError(
                f"{sample.tar}: {sample.key}.json states no XYSpacing and ZSpacing, and a bare "
                "array has no header: write them"
            )
        return SampleRow(
            labels if labels is not None else np.full(len(LABEL_NAMES), np.nan, np.float32),
            labels is not None,
            _report(facts, text),
            spacing_mm,
            _rescale_pair(facts),
            _shape_hint(facts),
            spacing_source=source,
        )


def _first(facts: Mapping[str, Any], *names: str) -> Any:
    return next((facts[name] for name in names if facts.get(name) is not None), None)


def _report(facts: Mapping[str, Any], text: str) -> dict[str, str]:
    """The raw columns where the JSON has them and they make the text; else the text alone."""
    stated = facts.get("report", facts)
    if isinstance(stated, dict):
        columns = {k: v for k, v in stated.items() if k.endswith("_EN") and isinstance(v, str)}
        if any(name in columns for name in _REPORT_COLUMNS) and report_text(columns) == text:
            return columns
    return {_REPORT_COLUMNS[0]: text} if text else {}


def _rescale_pair(facts: Mapping[str, Any]) -> tuple[float, float] | None:
    try:
        return float(facts["RescaleSlope"]), float(facts["RescaleIntercept"])
    except (KeyError, TypeError, ValueError):
        return None


def _shape_hint(facts: Mapping[str, Any]) -> tuple[int, int, int] | None:
    try:
        h, w, d = (int(n) for n in facts["volume_shape"])
    except (KeyError, TypeError, ValueError):
        return None
    return h, w, d


def _check_adoptable(
    path: str, buffer: Buffer, shape: Any, dtype: str, wanted: tuple[int, ...]
) -> None:
    """Refuse a preprocessed volume that is not what its manifest claims.

    The old builder cropped in the wrong axis order: it stored (480, 240, 480) where its manifest
    said (480, 480, 240), which is the same number of bytes.  Voxels one step apart are more alike
    than voxels further apart, so the strides at which neighbours are found tell the two apart.
    """
    h, w, d = wanted
    if np.dtype(dtype) != np.float16 or buffer.size_bytes != 2 * math.prod(wanted):
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
