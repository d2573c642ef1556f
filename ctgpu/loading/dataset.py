"""Random access to the samples of a data set, from its records; no tar is scanned."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from os import PathLike
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from ctgpu.buffers import BufferPool
from ctgpu.errors import StorageError, UsageError
from ctgpu.loading.catalogue import Shard, find_shards
from ctgpu.loading.region import read_region, to_dhw
from ctgpu.shards.reader import ShardReader
from ctgpu.shards.record import SampleEntry
from ctgpu.spec import Spec

Verify = Literal["first", "always", "off"]
Volume = npt.NDArray[np.float16]
Labels = npt.NDArray[np.float32]


class VolumeDataset:
    """The samples of one data set, map style.

    It is opened from the records alone, in a time that does not depend on the size of the tars, and
    holds no open file, so it can be forked and pickled.  Threads may share it.

    Parameters
    ----------
    dir_or_pattern : path
        Folder of the data set; or tars of one or several folders, by wildcard
        (``"data/*/shard-*.tar"``) or by range (``"data/shard-{000000..000009}.tar"``).
    verify : {"first", "always", "off"}
        When to hold a volume against its checksum: the first time that this object reads it,
        every time, or never.  Labels and reports always are.

    Raises
    ------
    UsageError
        If it names no finished shard, or `verify` is something else.
    MismatchError
        If the shards were not made to one spec.
    StorageError
        If a record cannot be read.

    Examples
    --------
    >>> dataset = VolumeDataset("shards")                                   # doctest: +SKIP
    >>> dataset["valid_1_a_1"]["volume"].shape                              # doctest: +SKIP
    (1, 240, 480, 480)
    """

    def __init__(self, dir_or_pattern: str | PathLike[str], *, verify: Verify = "first") -> None:
        if verify not in get_args(Verify):
            raise UsageError(f"verify is {verify!r}; it is one of {', '.join(get_args(Verify))}")
        self._named = dir_or_pattern
        self._verify = verify
        self._card, self._shards = find_shards(dir_or_pattern)
        self._ends = list(accumulate(len(shard.samples) for shard in self._shards))
        self._verified = bytearray(len(self))
        self._scratch = BufferPool()

    def __reduce__(self) -> Any:
        return _open, (self._named, self._verify)

    def __len__(self) -> int:
        return self._ends[-1]

    @property
    def spec(self) -> Spec:
        """What the volumes were made to."""
        return self._card.spec

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the labels, in order."""
        return self._card.class_names

    @property
    def shards(self) -> Sequence[Shard]:
        """The shards, in natural order."""
        return self._shards

    @cached_property
    def study_ids(self) -> tuple[str, ...]:
        """Study id of each sample."""
        return tuple(entry.study_id for shard in self._shards for entry in shard.samples)

    @cached_property
    def _index_of(self) -> dict[str, int]:
        indices: dict[str, int] = {}
        for index, study_id in enumerate(self.study_ids):
            if indices.setdefault(study_id, index) != index:
                raise UsageError(
                    f"{study_id} is in {self._named} more than once; ask for samples by number"
                )
        return indices

    def index_of(self, study_id: str) -> int:
        """Number of a study.

        Raises
        ------
        KeyError
            If the data set does not hold it.
        UsageError
            If a study id of the data set is not unique.
        """
        return self._index_of[study_id]

    def locate(self, index: int) -> tuple[Shard, SampleEntry]:
        """Shard and record entry of sample `index`.

        Raises
        ------
        IndexError
            If there is no such sample.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"there is no sample {index}: {self._named} has {len(self)}")
        place = bisect_right(self._ends, index)
        shard = self._shards[place]
        return shard, shard.samples[index - self._ends[place]]

    def __getitem__(self, index: int | str) -> dict[str, Any]:
        """One sample, by number or study id, in memory of its own.

        Returns
        -------
        dict
            ``volume`` (1, D, H, W) float16, a view of the stored order; ``labels`` (classes,)
            float32; ``report`` and ``study_id``, text.

        Raises
        ------
        IndexError, KeyError
            If there is no such sample.
        FetchError
            If the tar is damaged, or the bytes do not have their checksum.
        StorageError
            If the shard is gone.
        """
        number = self.index_of(index) if isinstance(index, str) else int(index)
        if number < 0:
            number += len(self)
        volume = np.empty(self.spec.stored_shape, "<f2")
        labels, report = self.read_into(number, volume)
        return {
            "volume": to_dhw(volume, self.spec.layout)[None],
            "labels": labels,
            "report": report,
            "study_id": self.study_ids[number],
        }

    def metadata(self, index: int) -> bytes:
        """The ``.json`` member of sample `index`: what maps a prediction back onto the scan.

        Raises
        ------
        IndexError, FetchError, StorageError
            As :meth:`__getitem__`.
        """
        shard, entry = self.locate(index)
        with _open_shard(shard) as reader:
            return reader.read(entry, "json")

    def read_into(
        self, index: int, out: Volume, start: tuple[int, int, int] = (0, 0, 0)
    ) -> tuple[Labels, str]:
        """Read one sample, or a box of its voxels, into memory of the caller.

        A box reads only the rows that it needs, unless its volume is to be verified now.

        Parameters
        ----------
        index : int
            Number of the sample.
        out : numpy.ndarray
            float16, C order, axes in stored order; its shape is the box's.
        start : tuple of int
            First voxel of the box, in stored order.

        Returns
        -------
        labels : numpy.ndarray
            Shape (classes,), float32; all NaN where the study has no label row.
        report : str
            Findings, newline, impression.

        Raises
        ------
        IndexError, FetchError, StorageError
            As :meth:`__getitem__`.
        """
        shard, entry = self.locate(index)
        verify = self._verify == "always" or (self._verify == "first" and not self._verified[index])
        stored = self.spec.stored_shape
        with _open_shard(shard) as reader:
            if out.shape == stored:
                reader.read_into(entry, "bin", out.data.cast("B"), verify=verify)
            elif verify:
                with self._scratch.acquire(self.spec.size_bytes) as buffer:
                    reader.read_into(entry, "bin", buffer.bytes.data)
                    box = tuple(slice(a, a + n) for a, n in zip(start, out.shape, strict=True))
                    out[...] = buffer.array(stored, "<f2")[box]
            else:
                read_region(reader, entry, stored, start, out)
            labels = np.frombuffer(bytearray(reader.read(entry, "cls")), "<f4")
            report = reader.read(entry, "txt").decode()
        if verify:
            self._verified[index] = 1
        return labels, report


def _open(dir_or_pattern: str | PathLike[str], verify: Verify) -> VolumeDataset:
    return VolumeDataset(dir_or_pattern, verify=verify)


def _open_shard(shard: Shard) -> ShardReader:
    try:
        return ShardReader(shard.path)
    except StorageError as error:
        raise StorageError(
            f"{error}, though it could when the data set was opened; put the shard back, or open "
            "the data set again to go on without it"
        ) from error
