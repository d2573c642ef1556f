"""Which shards a folder or a pattern names, and what their records say about them."""

from __future__ import annotations

import glob
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from ctgpu.errors import MismatchError, StorageError, UsageError
from ctgpu.shards.folder import committed_shards
from ctgpu.shards.names import MANIFEST_NAME, parse_shard_name, record_name, shard_name
from ctgpu.shards.plan import Plan
from ctgpu.shards.record import SampleEntry, ShardRecord
from ctgpu.spec import Spec

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True, slots=True)
class Card:
    """What all samples of a data set share."""

    spec: Spec
    fingerprint: str
    class_names: tuple[str, ...]

    @classmethod
    def load(cls, folder: Path) -> Card:
        """From the folder's manifest, or from its plan while the build goes on.

        Raises
        ------
        UsageError
            If the folder has neither, or they are damaged.
        """
        path = folder / MANIFEST_NAME
        if not path.exists():
            plan = Plan.load(folder)
            return cls(plan.spec, plan.fingerprint, plan.class_names)
        try:
            values = json.loads(path.read_bytes())
            return cls(
                Spec.from_dict(values["spec"]), values["fingerprint"], tuple(values["class_names"])
            )
        except OSError as error:
            raise StorageError(f"{path} cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(
                f"{path} is not the manifest of a ctgpu data set ({error!r}); "
                f"`ctgpu manifest {folder}` derives it anew"
            ) from error


@dataclass(frozen=True, slots=True)
class Shard:
    """One committed shard: its tar and the samples in it."""

    path: Path
    samples: tuple[SampleEntry, ...]


def find_shards(dir_or_pattern: str | PathLike[str]) -> tuple[Card, list[Shard]]:
    """The shards of a folder or of a pattern, in natural order, and what they share.

    Parameters
    ----------
    dir_or_pattern : path
        As :class:`ctgpu.loading.VolumeDataset` takes it.

    Raises
    ------
    UsageError
        If it names no shard, or one that is not committed.
    MismatchError
        If the shards were not made to one spec, or a record contradicts it.
    StorageError
        If a record cannot be read.
    """
    shards: list[Shard] = []
    cards: dict[Path, Card] = {}
    for path in _tar_paths(str(dir_or_pattern)):
        folder = path.parent
        if folder not in cards:
            cards[folder] = Card.load(folder)
        shards.append(_load_shard(path, cards[folder]))
    if not shards:
        raise UsageError(
            f"{dir_or_pattern} names no finished shard; give the folder that `ctgpu build` wrote, "
            "or a pattern such as 'DIR/shard-*.tar'"
        )
    (first, card), *others = cards.items()
    for folder, other in others:
        if other != card:
            raise MismatchError(
                f"{first} and {folder} were not made to the same spec and class names, so their "
                "samples do not fit one batch; load them apart, or build one of them again"
            )
    return card, shards


def _load_shard(path: Path, card: Card) -> Shard:
    index = parse_shard_name(path.name)
    if index is None or index[1] != "tar":
        raise UsageError(f"{path} is not named as a shard of ctgpu (shard-000000.tar)")
    record_path = path.with_name(record_name(index[0]))
    if not path.exists() or not record_path.exists():
        missing = record_path if path.exists() else path
        raise UsageError(
            f"{missing} is not there, so shard {index[0]} is not finished; finish the build with "
            f"`ctgpu build`, or leave the shard out"
        )
    record = ShardRecord.load(record_path)
    if record.fingerprint != card.fingerprint:
        raise MismatchError(
            f"{record_path} has the fingerprint {record.fingerprint}, and its data set has "
            f"{card.fingerprint}; the shard belongs to another data set"
        )
    for entry in record.samples:
        for extension, size_bytes in (
            ("bin", card.spec.size_bytes),
            ("cls", 4 * len(card.class_names)),
        ):
            if entry.members[extension].size_bytes != size_bytes:
                raise MismatchError(
                    f"{record_path}: {entry.key}.{extension} has "
                    f"{entry.members[extension].size_bytes} bytes, and the data set's spec asks "
                    f"for {size_bytes}; remove the record and run the build again"
                )
    return Shard(path, tuple(record.samples))


def _tar_paths(named: str) -> list[Path]:
    folder = Path(named)
    if folder.is_dir():
        return [folder / shard_name(index) for index in committed_shards(folder)]
    found: set[Path] = set()
    for pattern in _expand_ranges(named):
        if glob.has_magic(pattern):
            matches = (Path(match) for match in glob.glob(pattern))
            # `shard-*` finds records and indices too.
            found.update(m for m in matches if (parse_shard_name(m.name) or (0, ""))[1] == "tar")
        else:
            found.add(Path(pattern))
    return sorted(found, key=lambda p: (p.parent, parse_shard_name(p.name) or (0, ""), p))


def _expand_ranges(pattern: str) -> Iterator[str]:
    """``shard-{000000..000002}.tar`` to its three names."""
    parts = _RANGE.split(pattern)
    ranges = [
        [f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)]
        for first, last in zip(parts[1::3], parts[2::3], strict=True)
    ]
    for numbers in itertools.product(*ranges):
        yield "".join(itertools.chain(*itertools.zip_longest(parts[::3], numbers, fillvalue="")))
