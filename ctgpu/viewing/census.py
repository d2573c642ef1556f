"""What the JSON members and labels of a data set say, counted; no volume is read."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt

from ctgpu.errors import CtgpuError
from ctgpu.shards.reader import ShardReader
from ctgpu.viewing.inventory import HeldShard, Inventory
from ctgpu.viewing.members import Metadata, read_labels, read_metadata

#: Samples that are read at most; of more, evenly spaced ones.
MOST_READ = 100_000
#: A column with more different values is no distribution.
MOST_VALUES = 1000

_THREADS = 8
# What samples say in words: how a scan is stored, and where that is from.
_WORDS = ("orientation", "dtype", "spacing", "affine", "intensity", "finding")


@dataclass(slots=True)
class Census:
    """What the samples of a data set say of themselves.

    Attributes
    ----------
    read : int
        Samples that were read, those that are damaged left out.
    of : int
        Samples that there are.
    spacing_mm : numpy.ndarray
        float64, shape (read, 3): of the scans, along their files' axes.
    shape : numpy.ndarray
        int64, shape (read, 3): of the scans.
    resized : numpy.ndarray
        int64, shape (read, 3): along H, W and D after resampling, before crop and pad.
    tilt_degrees : numpy.ndarray
        float64, shape (read,); NaN where it is not known.
    words : dict of str to Counter
        Of what is said in words, by what it is about, how often which.
    columns : dict of str to Counter
        Of the columns that tables carry, how often which cell; a column of more than
        :data:`MOST_VALUES` has no cells left.
    labels : numpy.ndarray
        int64, shape (classes, 3): samples of which a label is negative, positive, and not known.
    damaged : dict of str to str
        What is wrong with the samples that could not be read, by key.
    """

    read: int
    of: int
    spacing_mm: npt.NDArray[np.float64]
    shape: npt.NDArray[np.int64]
    resized: npt.NDArray[np.int64]
    tilt_degrees: npt.NDArray[np.float64]
    words: dict[str, Counter[str]]
    columns: dict[str, Counter[str]]
    labels: npt.NDArray[np.int64]
    damaged: dict[str, str] = field(default_factory=dict)


def take_census(
    inventory: Inventory,
    *,
    most: int = MOST_READ,
    looked_at: Callable[[int, int], None] = lambda done, shards: None,
) -> Census:
    """Read the JSON and the labels of the finished samples, or of `most`, evenly spaced.

    Each is a few positioned reads, held against their checksums.

    Parameters
    ----------
    inventory : Inventory
        What there is.
    most : int
        Read no more samples.
    looked_at : callable
        Called with how many shards have been looked at, and how many there are.
    """
    total = len(inventory.entries)
    step = max(1, -(-total // most))
    first, tasks = 0, []
    for shard in inventory.shards:
        count = len(shard.record.samples)
        tasks.append((shard, range(-first % step, count, step)))
        first += count
    num_classes = len(inventory.card.class_names)
    counts, done = _Counts(num_classes), 0
    with ThreadPoolExecutor(_THREADS, "ctgpu-read") as readers:
        for of_shard in readers.map(partial(_count_shard, num_classes), tasks):
            counts.merge(of_shard)
            done += 1
            looked_at(done, len(tasks))
    return counts.census(total)


def _count_shard(num_classes: int, task: tuple[HeldShard, range]) -> _Counts:
    shard, places = task
    counts = _Counts(num_classes)
    try:
        with ShardReader(shard.path) as reader:
            for place in places:
                entry = shard.record.samples[place]
                try:
                    known = entry.labelled and num_classes
                    labels = read_labels(reader, entry, num_classes) if known else None
                    counts.add(read_metadata(reader, entry), labels)
                except CtgpuError as error:
                    counts.damaged[entry.key] = str(error)
    except CtgpuError as error:  # the tar is gone
        counts.damaged |= {shard.record.samples[place].key: str(error) for place in places}
    return counts


class _Counts:
    """What some samples say, counted as it comes, so that no sample is kept."""

    def __init__(self, num_classes: int) -> None:
        self.damaged: dict[str, str] = {}
        self._numbers = array("d")
        self._words = {name: Counter[str]() for name in _WORDS}
        self._columns: dict[str, Counter[str]] = {}
        self._full: set[str] = set()
        self._labels = np.zeros((num_classes, 3), np.int64)

    def add(self, sample: Metadata, labels: npt.NDArray[np.float32] | None) -> None:
        """Count one sample; its labels, shape (classes,), are None where none is known."""
        scan = sample.source
        tilt = np.nan if scan.tilt_degrees is None else scan.tilt_degrees
        self._numbers.extend((*scan.spacing_mm, *scan.shape, *sample.resized_shape, tilt))
        said = (
            scan.orientation or "not stated",
            scan.dtype,
            scan.spacing_source,
            scan.affine_source,
            scan.intensity.source,
            scan.intensity.finding,
        )
        for name, word in zip(_WORDS, said, strict=True):
            if word:
                self._words[name][word] += 1
        for name, cell in sample.columns.items():
            self._count_cells(name, {cell: 1})
        if labels is None:
            self._labels[:, 2] += 1
        else:
            self._labels[:, 0] += labels <= 0
            self._labels[:, 1] += labels > 0
            self._labels[:, 2] += np.isnan(labels)

    def merge(self, other: _Counts) -> None:
        """Count what others were counted as."""
        self.damaged |= other.damaged
        self._numbers.extend(other._numbers)
        for name, words in other._words.items():
            self._words[name].update(words)
        for name, cells in other._columns.items():
            self._count_cells(name, cells)
            if name in other._full:
                self._give_up(name)
        self._labels += other._labels

    def census(self, of: int) -> Census:
        """All that was counted, of so many samples."""
        numbers = np.array(self._numbers, np.float64).reshape(-1, 10)
        whole = numbers[:, 3:9].astype(np.int64)
        return Census(
            read=len(numbers),
            of=of,
            spacing_mm=numbers[:, :3],
            shape=whole[:, :3],
            resized=whole[:, 3:],
            tilt_degrees=numbers[:, 9],
            words=self._words,
            columns=self._columns,
            labels=self._labels,
            damaged=self.damaged,
        )

    def _count_cells(self, name: str, cells: Mapping[str, int]) -> None:
        counted = self._columns.setdefault(name, Counter())
        if name not in self._full:
            counted.update(cells)
            if len(counted) > MOST_VALUES:
                self._give_up(name)

    def _give_up(self, name: str) -> None:
        self._full.add(name)
        self._columns[name].clear()
