"""Which shards folders and patterns name, and what their records say about them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ctgpu.codec import head_bytes
from ctgpu.errors import (
    CtgpuError,
    FetchError,
    MismatchError,
    NewerFormatError,
    StorageError,
    UsageError,
)
from ctgpu.printable import counted
from ctgpu.shards.card import Card
from ctgpu.shards.folder import committed_shards, summaries
from ctgpu.shards.names import parse_shard_name, record_name, shard_name
from ctgpu.shards.patterns import expand_paths
from ctgpu.shards.plan import Plan
from ctgpu.shards.reader import ShardReader
from ctgpu.shards.record import SampleEntry, ShardRecord
from ctgpu.shards.tar import MASKS, VOLUMES

log = logging.getLogger(__name__)

Named = str | PathLike[str]


@dataclass(frozen=True, slots=True)
class Shard:
    """One committed shard: its tar, and those of its samples that are in a data set.

    Attributes
    ----------
    path : Path
        Of the tar.
    samples : tuple of SampleEntry
        In the order of the tar.
    whole : bool
        Whether these are all that the tar holds.
    holes : tuple of (int, str)
        The samples planned for it that failed, in the order of the plan: how many of `samples` lie
        before each, and its study id.  Empty where no plan says so, and of a part.
    """

    path: Path
    samples: tuple[SampleEntry, ...]
    whole: bool = True
    holes: tuple[tuple[int, str], ...] = ()

    def __repr__(self) -> str:
        part = "" if self.whole else ", part of it"
        return f"Shard({str(self.path)!r}: {counted(len(self.samples), 'sample')}{part})"

    def open(self) -> ShardReader:
        """The tar, for reading.

        Raises
        ------
        StorageError
            If it is gone, or cannot be opened.
        """
        try:
            return ShardReader(self.path)
        except StorageError as error:
            raise StorageError(
                f"{error}, though it could when the data set was opened; put the shard back, or "
                "open the data set again to go on without it"
            ) from error

    def read_labels(self, out: npt.NDArray[np.float32], skip_damaged: bool) -> int:
        """Read the labels of its samples.

        Parameters
        ----------
        out : numpy.ndarray
            Shape (samples, classes), NaN; rows without labels stay so.
        skip_damaged : bool
            Leave damaged ones too, with a warning in the log.

        Returns
        -------
        int
            How many are damaged.

        Raises
        ------
        FetchError
            If some are damaged, and not skipped.
        StorageError
            If the tar is gone.
        """
        labelled = [
            (entry, row) for entry, row in zip(self.samples, out, strict=True) if entry.labelled
        ]
        damaged = 0
        if labelled:
            with self.open() as reader:
                for entry, row in labelled:
                    try:
                        row[:] = np.frombuffer(reader.read(entry, "cls"), "<f4")
                    except FetchError as error:
                        if not skip_damaged:
                            raise
                        log.warning("%s; it counts as a sample without labels", error)
                        damaged += 1
        return damaged


def find_shards(named: Named | Sequence[Named]) -> tuple[Card, list[Shard]]:
    """The shards that folders and patterns name, each once, and what they share.

    A folder that lacks shards of its plan is named in a warning in the log.

    Parameters
    ----------
    named : path or sequence of path
        As :class:`ctgpu.loading.VolumeDataset` takes it.

    Returns
    -------
    Card, list of Shard
        Shards in natural order; those of a sequence in the order of the sequence.

    Raises
    ------
    UsageError
        If one names no shard, or one that is not committed.
    MismatchError
        If the shards were not made to one spec, or a record contradicts it.
    StorageError
        If a record cannot be read.
    """
    shards: list[Shard] = []
    cards: dict[Path, Card] = {}
    plans: dict[Path, Plan | None] = {}
    for path in _each_once(_as_names(named)):
        folder = path.parent
        if folder not in cards:
            cards[folder] = Card.load(folder)
        record = _load_record(path, cards[folder])
        if record.failures and folder not in plans:
            plans[folder] = _plan_of(folder)
        holes = holes_of(record, plans.get(folder))
        shards.append(Shard(path, tuple(record.samples), holes=holes))
    (first, card), *others = cards.items()
    for folder, other in others:
        if other != card:
            raise MismatchError(
                f"{first} and {folder} were not made to the same spec, class names and masks, so "
                "their samples do not fit one batch; load them apart, or build one of them again"
            )
    for folder, own in cards.items():
        _warn_if_unfinished(folder, own)
    return card, shards


def describe(named: Named | Sequence[Named]) -> str:
    """A path as it was given; of several the first."""
    if isinstance(named, str | PathLike):
        return os.fspath(named)
    names = [str(name) for name in named]
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _as_names(named: Named | Sequence[Named]) -> Sequence[Named]:
    names = [named] if isinstance(named, str | PathLike) else named
    if not isinstance(names, list | tuple) or not all(isinstance(n, str | PathLike) for n in names):
        raise UsageError(
            f"{named!r} is neither a path nor a list of paths; give folders that `ctgpu build` "
            "wrote, or patterns such as 'DIR/shard-*.tar'"
        )
    if not names:
        raise UsageError("the list of folders is empty; give one that `ctgpu build` wrote")
    return names


def _each_once(names: Iterable[Named]) -> Iterable[Path]:
    """The tars that they name, however often, and by whichever way there."""
    found: dict[str, Path] = {}
    for name in names:
        paths = _tar_paths(name)
        if not paths:
            raise _names_nothing(name)
        for path in paths:
            found.setdefault(os.path.realpath(path), path)
    return found.values()


def _names_nothing(name: Named) -> UsageError:
    try:
        planned = Card.load(Path(name)).planned_samples
    except NewerFormatError as error:
        return error
    except CtgpuError:
        planned = None
    if planned:
        return UsageError(
            f"{name} names no finished shard, for none of its {counted(planned, 'planned sample')} "
            "is built yet; wait for the build, or run the command that began it again"
        )
    return UsageError(
        f"{name} names no finished shard; give the folder that `ctgpu build` wrote, or a pattern "
        "such as 'DIR/shard-*.tar'"
    )


def _warn_if_unfinished(folder: Path, card: Card) -> None:
    if card.planned_shards is None or len(committed_shards(folder)) >= card.planned_shards:
        return
    log.warning(
        "%s is not finished: it holds %d of %s; run the command that began it again to go on, and "
        "open the data set again afterwards",
        folder,
        sum(shard.num_samples for shard in summaries(folder)),
        counted(card.planned_samples or 0, "planned sample"),
    )


def _plan_of(folder: Path) -> Plan | None:
    """The plan of a folder; None where only its shards were copied, or it is damaged."""
    try:
        return Plan.load(folder)
    except UsageError:
        return None


def holes_of(record: ShardRecord, plan: Plan | None) -> tuple[tuple[int, str], ...]:
    """As :attr:`Shard.holes`; a record alone does not say where among the good ones they lay."""
    if not record.failures or plan is None or record.shard_index >= plan.shards:
        return ()
    planned = plan.samples_of(record.shard_index)
    good = [entry.key for entry in record.samples]
    bad = {failure.key for failure in record.failures}
    there = [ref.key for ref in planned if ref.key not in bad]
    if there != good or len(planned) != len(good) + len(bad):
        return ()
    holes: list[tuple[int, str]] = []
    for place, ref in enumerate(planned):
        if ref.key in bad:
            holes.append((place - len(holes), ref.study_id))
    return tuple(holes)


def _load_record(path: Path, card: Card) -> ShardRecord:
    index = parse_shard_name(path.name)
    if index is None or index[1] != "tar":
        raise UsageError(f"{path} is not named as a shard of ctgpu (shard-000000.tar)")
    record_path = path.with_name(record_name(index[0]))
    # Other readers than ours are given these paths, and wait for what a pipe brings.
    if not path.is_file() or not record_path.is_file():
        missing = record_path if path.is_file() else path
        raise UsageError(
            f"{missing} is not there, or no file, so shard {index[0]} is not finished; finish the "
            "build with `ctgpu build`, or leave the shard out"
        )
    record = ShardRecord.load(record_path)
    if record.fingerprint != card.fingerprint:
        raise MismatchError(
            f"{record_path} has the fingerprint {record.fingerprint}, and its data set has "
            f"{card.fingerprint}; the shard belongs to another data set"
        )
    least_and_most = _sizes_bytes(card)
    for entry in record.samples:
        mask = entry.mask_extension or MASKS[entry.is_compressed]
        for extension in (entry.volume_extension, mask, "cls"):
            member = entry.members.get(extension)
            found_bytes = 0 if member is None else member.size_bytes
            least, most = least_and_most[extension]
            if not least <= found_bytes <= most:
                wanted = f"{least}" if least == most else f"{least} to {most}"
                raise MismatchError(
                    f"{record_path}: {entry.key}.{extension} has {found_bytes} bytes, and the data "
                    f"set's spec asks for {wanted}; remove the record and run the build again"
                )
    return record


def _sizes_bytes(card: Card) -> Mapping[str, tuple[int, int]]:
    """The least and the most bytes that members of a data set's samples can have."""
    h, w, d = card.spec.shape_hwd
    masks_bytes = 0 if card.masks is None else card.masks.size_bytes(card.spec)
    sizes = {"cls": (4 * len(card.class_names),) * 2}
    for (plain, compressed), size_bytes in (
        (VOLUMES, card.spec.size_bytes),
        (MASKS, masks_bytes),
    ):
        head = head_bytes((d, h, w)) if size_bytes else 0
        sizes[plain] = size_bytes, size_bytes
        sizes[compressed] = head, head + size_bytes
    return sizes


def _tar_paths(named: str | PathLike[str]) -> list[Path]:
    found: set[Path] = set()
    for path in expand_paths(named, _is_shard_name):
        # The working directory may be another one, and another process's, when samples are read.
        path = path.absolute()
        if os.path.isdir(path):
            found.update(path / shard_name(index) for index in committed_shards(path))
        else:
            found.add(path)
    return sorted(found, key=lambda p: (p.parent, parse_shard_name(p.name) or (0, ""), p))


def _is_shard_name(name: str) -> bool:
    shard = parse_shard_name(name)
    return shard is not None and shard[1] == "tar"
