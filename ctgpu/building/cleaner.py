"""Deletes the tars that a conversion has read, once nothing in them would be lost.

A tar goes only if, at that moment, it lies where the plan says and not in the output, each of its
members has the bytes that were read for the conversion, and all that these bytes say is in samples
of committed shards that were read back whole.  Whatever else there is keeps it, and is named.
"""

from __future__ import annotations

import io
import json
import logging
import os
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from ctgpu.decode import MAX_VOLUME_BYTES, npz
from ctgpu.decode.stored import metadata_facts
from ctgpu.errors import CtgpuError, DecodeError, StorageError, UsageError, reason_of
from ctgpu.shards import disk
from ctgpu.shards.findings import shard_findings
from ctgpu.shards.folder import committed_shards
from ctgpu.shards.names import record_name, shard_name
from ctgpu.shards.plan import Plan
from ctgpu.shards.reader import ShardReader
from ctgpu.shards.record import SampleEntry, ShardRecord, checksum
from ctgpu.shards.scan import TarMember, scan_tar
from ctgpu.shards.tar import padding_bytes
from ctgpu.shards.untrusted import open_regular, read_exactly, stamp_of
from ctgpu.sources.tars import TarSource
from ctgpu.volume.ref import SampleRef

log = logging.getLogger(__name__)

_CHUNK_BYTES = 4 << 20
_NAMED = 3
_REPORT_SUFFIX = "_EN"


class _Kept(Exception):
    """The tar is kept; the message says why."""


@dataclass(frozen=True, slots=True)
class _Verified:
    """A shard that was read back whole, and what its files were like then."""

    stamps: tuple[object, ...]
    samples: Mapping[str, SampleEntry]


@dataclass(slots=True)
class Cleaned:
    """What became of the tars.

    Attributes
    ----------
    deleted : list of Path
        Those that are gone; in a dry run, those that would be.
    kept : dict of Path to str
        Those that stay although they were converted or should have been, and why.
    """

    deleted: list[Path] = field(default_factory=list)
    kept: dict[Path, str] = field(default_factory=dict)


class Cleaner:
    """Deletes input tars of one conversion.

    Parameters
    ----------
    folder : Path
        The data set, which has a plan.
    source : TarSource
        The tars.
    dry_run : bool
        Delete nothing, only say what would be.

    Raises
    ------
    UsageError
        If the tars do not lie where those lay that the data set was made of, or in the data set.
    """

    def __init__(self, folder: Path, source: TarSource, *, dry_run: bool = False) -> None:
        self._folder = folder
        self._source = source
        self._dry_run = dry_run
        self._plan = Plan.load(folder)
        self._verified: dict[int, _Verified] = {}
        self._judged: dict[Path, tuple[object, ...]] = {}
        self._planned: dict[str, dict[str, tuple[int, SampleRef]]] = {}
        self.result = Cleaned()
        self._require_origin()
        for index in range(self._plan.shards):
            for sample in self._plan.samples_of(index):
                tar = sample.path.partition(".tar/")[0] + ".tar"
                self._planned.setdefault(tar, {})[sample.path] = index, sample
        self._announce()

    def delete_finished(self) -> None:
        """Delete each tar whose samples are all in committed shards.

        Raises
        ------
        StorageError
            If a committed shard is damaged, or a tar cannot be removed.
        """
        committed = set(committed_shards(self._folder))
        for tar in self._source.tars_left():
            planned = self._planned.get(self._source.relative(tar))
            if planned is None or not {index for index, _ in planned.values()} <= committed:
                continue
            made_of = tuple(self._stamps(index) for index in {i for i, _ in planned.values()})
            if self._judged.get(tar) == made_of:
                continue
            self._judged[tar] = made_of
            try:
                self._delete(tar, planned)
            except _Kept as reason:
                self.result.kept[tar] = str(reason)
            else:
                self.result.kept.pop(tar, None)
                self.result.deleted.append(tar)

    def report(self) -> None:
        """Say which tars are kept, and why."""
        for tar in self._source.tars_left():
            if self._source.relative(tar) not in self._planned:
                self.result.kept[tar] = "it was not there when the conversion was planned"
            elif tar not in self.result.deleted:
                self.result.kept.setdefault(tar, "not all of it is converted yet")
        if self._dry_run and self.result.deleted:
            names = ", ".join(map(str, self.result.deleted))
            log.info("--dry-run: without it these would be deleted: %s", names)
        for tar, reason in self.result.kept.items():
            log.warning("%s is kept: %s", tar, reason)

    def _require_origin(self) -> None:
        if self._plan.source["kind"] != "tars":
            raise UsageError(
                f"{self._folder} was not made of tars, so --delete-after has nothing to delete"
            )
        origin = TarSource(Path(self._plan.source["path"])).root
        if os.path.realpath(self._source.root) != os.path.realpath(origin):
            raise UsageError(
                f"--delete-after deletes what {self._folder} was made of, the tars in {origin}, "
                f"not those in {self._source.root}; give that pattern, or leave --delete-after out"
            )

    def _announce(self) -> None:
        tars = [t for t in self._source.tars_left() if self._source.relative(t) in self._planned]
        names = ", ".join(tar.name for tar in tars[:_NAMED])
        more = f" and {len(tars) - _NAMED} more" if len(tars) > _NAMED else ""
        log.warning(
            "%s tars below %s, each once it is converted and verified: %d, %s%s (%s)",
            "this would delete" if self._dry_run else "--delete-after deletes",
            self._source.root,
            len(tars),
            names or "none",
            more,
            f"{sum(tar.stat().st_size for tar in tars) / 1e9:.2f} GB",
        )

    def _delete(self, tar: Path, planned: Mapping[str, tuple[int, SampleRef]]) -> None:
        """Delete `tar`, or say why not.

        Raises
        ------
        _Kept, StorageError
        """
        if os.path.samefile(tar.resolve().parent, self._folder):
            raise _Kept("it lies in the folder of the output")
        try:
            fd = open_regular(tar)
        except OSError as error:
            raise _Kept(f"it cannot be read: {reason_of(error)}") from error
        try:
            before = stamp_of(fd)
            self._require_carried(fd, tar, planned)
            if stamp_of(fd) != before or stamp_of(tar) != before:
                raise _Kept("it was changed while it was looked at")
        except (DecodeError, EOFError, OSError) as error:
            raise _Kept(f"it cannot be read: {error}") from error
        finally:
            os.close(fd)
        if self._dry_run:
            return
        with disk.storage_errors(tar.parent):
            disk.remove(tar)  # another process may have been first
        log.info("%s is converted and verified, and was deleted", tar)

    def _require_carried(
        self, fd: int, tar: Path, planned: Mapping[str, tuple[int, SampleRef]]
    ) -> None:
        members: dict[str, dict[str, TarMember]] = {}
        end = 0
        for member in scan_tar(fd, tar):
            members.setdefault(member.key, {})[member.extension] = member
            end = member.offset + member.size_bytes + padding_bytes(member.size_bytes)
        _require_empty(fd, end)
        left = dict(planned)
        name = self._source.relative(tar)
        for key, of_key in members.items():
            found = [e for e in of_key if f"{name}/{key}.{e}" in planned]
            if not found:
                raise _Kept(f"{next(iter(of_key.values())).name} was not converted")
            index, sample = left.pop(f"{name}/{key}.{found[0]}")
            entry, output, text = self._output(index, sample)
            read = output["source"].get("members")
            if read is None:
                raise _Kept(
                    "it was converted by a ctgpu that did not record what it had read; compare "
                    "with `ctgpu verify --original-pattern` and delete it yourself"
                )
            for extension, member in of_key.items():
                known = "volume" if extension == found[0] else extension
                if known not in read:
                    raise _Kept(f"no output holds {member.name}")
                if _digest(fd, member) != read[known]:
                    raise _Kept(
                        f"{member.name} is not what was converted; convert it into another folder"
                    )
            for fault in _lost(fd, of_key, found[0], entry, output, text):
                raise _Kept(f"{key}: {fault}, which the output does not carry")
        if left:
            raise _Kept(f"{next(iter(left))}, which was converted, is gone from it")

    def _output(self, index: int, sample: SampleRef) -> tuple[SampleEntry, dict[str, Any], str]:
        """Record entry, JSON and report of a sample, in a shard that is whole at this moment."""
        entry = self._verify(index).samples.get(sample.key)
        if entry is None:
            raise _Kept(f"its sample {sample.key} has failed")
        with ShardReader(self._folder / shard_name(index)) as reader:
            output: dict[str, Any] = json.loads(reader.read(entry, "json"))
            return entry, output, reader.read(entry, "txt").decode()

    def _verify(self, index: int) -> _Verified:
        stamps = self._stamps(index)
        known = self._verified.get(index)
        if known is not None and known.stamps == stamps:
            return known
        if damaged := [f for f in shard_findings(self._folder, self._plan, index) if f.damaged]:
            raise StorageError(
                f"{self._folder / damaged[0].file}: {damaged[0].problem}; nothing was deleted on "
                "its account, look at the disk and make it again with --force"
            )
        record = ShardRecord.load(self._folder / record_name(index))
        if self._stamps(index) != stamps:
            raise _Kept(f"{shard_name(index)} was changed while it was verified")
        self._verified[index] = _Verified(stamps, {entry.key: entry for entry in record.samples})
        return self._verified[index]

    def _stamps(self, index: int) -> tuple[object, ...]:
        return tuple(stamp_of(self._folder / name(index)) for name in (shard_name, record_name))


def _digest(fd: int, member: TarMember) -> str:
    digest = xxhash.xxh3_128()
    for part in _parts(fd, member.offset, member.offset + member.size_bytes):
        digest.update(part)
    return digest.hexdigest()


def _content(fd: int, member: TarMember) -> bytes:
    return b"".join(_parts(fd, member.offset, member.offset + member.size_bytes))


def _parts(fd: int, start: int, end: int) -> Iterator[bytes]:
    for position in range(start, end, _CHUNK_BYTES):
        part = bytearray(min(_CHUNK_BYTES, end - position))
        read_exactly(fd, memoryview(part), position)
        yield bytes(part)


def _require_empty(fd: int, start: int) -> None:
    """Nothing but zeros follows: some tools append to an archive behind its end mark."""
    for part in _parts(fd, start, os.fstat(fd).st_size):
        if any(part):
            raise _Kept("something follows the end of the archive")


def _lost(
    fd: int,
    members: Mapping[str, TarMember],
    volume: str,
    entry: SampleEntry,
    output: Mapping[str, Any],
    text: str,
) -> Iterator[str]:
    """What a sample's members say and its output does not, in words."""
    if volume == "npz":
        yield from _lost_of_npz(_content(fd, members[volume]), output)
    if "json" in members:
        facts = json.loads(
            _content(fd, members["json"]), parse_constant=_Constant, object_pairs_hook=_object
        )
        yield from (f"its JSON states {name}" for name in not_carried(facts, output))
    for extension in ("labels", "cls"):
        if extension in members and (
            checksum(_content(fd, members[extension])) != entry.members["cls"].xxh3_128
        ):
            yield f"it has other labels in .{extension}"
    if "txt" in members:
        try:
            report = _content(fd, members["txt"]).decode()
        except UnicodeDecodeError:
            yield "its report is not UTF-8"
        else:
            if report not in (text, *output["report"].values()):
                yield "it has another report"


def _lost_of_npz(content: bytes, output: Mapping[str, Any]) -> Iterator[str]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        arrays = sorted({name.removesuffix(".npy") for name in archive.namelist()})
    yield from (
        f"its archive holds {name}" for name in arrays if name not in ("metadata", *_taken(arrays))
    )
    if "metadata" in arrays:
        data = np.frombuffer(bytearray(content), np.uint8)
        facts = npz.locate_voxels("npz", data, MAX_VOLUME_BYTES).facts["metadata"]
        yield from (f"its metadata states {name}" for name in not_carried(facts, output))


def _taken(arrays: list[str]) -> tuple[str, ...]:
    """The array that was taken for the volume, as far as names tell; the only one in any case."""
    named = [name for name in npz.VOLUME_NAMES if name in arrays]
    others = [name for name in arrays if name != "metadata"]
    return tuple(named[:1] or (others if len(others) == 1 else ()))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    counts = Counter(name for name, _ in pairs)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise _Kept(f"its JSON states {twice[0]} twice")
    return dict(pairs)


class _Constant(str):
    """``NaN`` or ``Infinity`` in a JSON: text that no output holds."""

    __slots__ = ()


def not_carried(facts: Mapping[str, Any], output: Mapping[str, Any]) -> list[str]:
    """Names of the facts in a raw sample's JSON that the output's JSON does not state.

    Parameters
    ----------
    facts : mapping
        The raw sample's JSON.
    output : mapping
        The ``.json`` of the sample made of it.
    """
    return [
        name
        for name, value in facts.items()
        if value is not None and value != "" and not _carries(output, name, value, facts)
    ]


def _carries(output: Mapping[str, Any], name: str, value: Any, facts: Mapping[str, Any]) -> bool:
    source, report = output["source"], output["report"]
    if name == "study_id":
        return bool(value == output["study_id"])
    if name in ("volume_shape", "shape"):
        return bool(value == source["shape"])
    if name in ("volume_dtype", "dtype"):
        return bool(_dtype_name(value) == source["dtype"])
    if name in ("XYSpacing", "ZSpacing", "spacing_mm", "spacing", "affine"):
        return _same_geometry(name, facts, source)
    if name in ("RescaleSlope", "RescaleIntercept"):
        used = source["intensity"]
        pairs = [(used["slope"], used["intercept"]), tuple(source.get("stated_rescale", ()))]
        place = ("RescaleSlope", "RescaleIntercept").index(name)
        return any(len(pair) == 2 and pair[place] == _number(value) for pair in pairs)
    if name == "preprocessed":
        return value in (True, False)
    if name == "layout":
        return bool(value == output["layout"])
    if name == "report":
        return isinstance(value, dict) and all(report.get(k) == v for k, v in value.items() if v)
    return name.endswith(_REPORT_SUFFIX) and bool(report.get(name) == value)


def _same_geometry(name: str, facts: Mapping[str, Any], source: Mapping[str, Any]) -> bool:
    names = ("XYSpacing", "ZSpacing") if name in ("XYSpacing", "ZSpacing") else (name,)
    try:
        stated = metadata_facts("json", {n: facts.get(n) for n in names})
    except CtgpuError:
        return False
    if name == "affine":
        same = source["affine_source"] == "header" and "affine" in stated
        return bool(same and stated["affine"].tolist() == source["affine"])
    return bool(list(stated.get("spacing_mm", ())) == source["spacing_mm"])


def _dtype_name(value: Any) -> str | None:
    try:
        return str(np.dtype(value).newbyteorder("=").name)
    except TypeError:
        return None


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
