"""Random access to the samples of a data set, from its records; no tar is scanned."""

from __future__ import annotations

import copy
import json
import operator
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import accumulate, repeat
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from ctgpu.buffers import BufferPool
from ctgpu.errors import DecodeError, SampleError, UsageError
from ctgpu.loading.catalogue import Named, Shard, describe, find_shards
from ctgpu.loading.region import (
    in_stored_order,
    payloads,
    read_box,
    read_labels_and_report,
    stored_order,
    to_dhw,
)
from ctgpu.loading.selection import Indices, Predicate, Wanted, check_numbers, select_numbers
from ctgpu.loading.slots import Slots
from ctgpu.machine import usable_cores
from ctgpu.printable import counted
from ctgpu.shards.record import SampleEntry
from ctgpu.spec import Layout, Spec
from ctgpu.volume.masks import MaskFormat
from ctgpu.volume.ref import normal_form
from ctgpu.volume.stored import numpy_dtype

Verify = Literal["first", "always", "off"]
#: Of the type that is stored, as :func:`ctgpu.volume.stored.numpy_dtype` has it.
Volume = npt.NDArray[Any]
Labels = npt.NDArray[np.float32]

_MOST_THREADS = 8


class VolumeDataset:
    """The samples of one data set, map style.

    It is opened from the records alone, in a time that does not depend on the size of the tars, and
    holds no open file, so it can be forked and pickled.  Threads may share it.

    Its samples are those of the moment when it was opened, also in a copy that another process
    unpickles, wherever that runs and whatever the folder holds by then.

    Parameters
    ----------
    dir_or_pattern : path or list of path
        Folder of the data set; or tars of one or several folders, by wildcard
        (``"data/*/shard-*.tar"``), by range (``"data/shard-{000000..000009}.tar"``) or by list
        (``"data/{train,valid}"``).  A path that exists means itself.  Several of them in a list
        stand one after the other; a shard that is named twice is loaded once.
    verify : {"first", "always", "off"}
        When to hold a volume against its checksum: the first time that this object reads it,
        every time, or never; of a compressed one the tiles that are read, the first time that all
        are.  Labels and reports always are.

    Raises
    ------
    UsageError
        If it names no finished shard, or `verify` is something else.
    MismatchError
        If the shards were not made to one spec.
    StorageError
        If a record cannot be read.

    Notes
    -----
    A folder whose build is not finished says so in a warning in the log, with how many of the
    planned samples it holds.

    Examples
    --------
    >>> dataset = VolumeDataset("shards")                                   # doctest: +SKIP
    >>> dataset["valid_1_a_1"]["volume"].shape                              # doctest: +SKIP
    (1, 240, 480, 480)
    """

    def __init__(
        self, dir_or_pattern: Named | Sequence[Named], *, verify: Verify = "first"
    ) -> None:
        if verify not in get_args(Verify):
            raise UsageError(f"verify is {verify!r}; it is one of {', '.join(get_args(Verify))}")
        self._verify = verify
        self._card, shards = find_shards(dir_or_pattern)
        self._named = describe(dir_or_pattern)
        self._hold(shards, np.arange(sum(len(shard.samples) for shard in shards)))

    def _hold(self, shards: list[Shard], places: Indices) -> None:
        """Have the samples that are at `places`, counted through all of `shards`."""
        self._shards = shards
        self._places = places
        self._ends = list(accumulate(len(shard.samples) for shard in shards))
        self._forget()

    def _forget(self) -> None:
        """What belongs to this object alone: what it read and verified, memory to verify boxes."""
        self._verified = bytearray(len(self))
        self._scratch = BufferPool()
        self._labels: Labels | None = None

    def __getstate__(self) -> dict[str, Any]:
        # The entries travel (0.3 KB a sample, 15 MB for 50,000): records that are read again may
        # have become others, and workers would see other samples than their parent.
        kept = ("_named", "_verify", "_card", "_shards", "_places", "_ends")
        return {name: self.__dict__[name] for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def __repr__(self) -> str:
        shards = sum(bool(shard.samples) for shard in self._shards)
        return (
            f"VolumeDataset({self._named!r}: {counted(len(self), 'sample')} in "
            f"{counted(shards, 'shard')}, "
            f"{self.spec.dtype} {self.spec.layout} {self.spec.stored_shape})"
        )

    def __len__(self) -> int:
        return len(self._places)

    @property
    def spec(self) -> Spec:
        """What the volumes were made to."""
        return self._card.spec

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the labels, in order."""
        return self._card.class_names

    @property
    def masks(self) -> MaskFormat | None:
        """How the mask of each sample is stored; None where there are no masks."""
        return self._card.masks

    @property
    def mask_labels(self) -> dict[str, int]:
        """The number of each label in the masks, ascending; empty where none is named."""
        return {} if self.masks is None else self.masks.to_dict()["labels"]

    @cached_property
    def is_compressed(self) -> bool:
        """Whether all of the samples are compressed."""
        # All samples of a shard are, or none.
        held = [shard.samples[0] for shard in self._shards if shard.samples]
        return bool(held) and all(entry.is_compressed for entry in held)

    @property
    def memory_layout(self) -> Layout:
        """Order of the axes of memory into which all samples are read fastest.

        D, H, W where all of them are compressed: then they are decoded into contiguous tensors.
        What is not compressed is read as it is stored, and other samples of its batch likewise.
        """
        return "DHW" if self.is_compressed else self.spec.layout

    @property
    def shards(self) -> Sequence[Shard]:
        """The shards, in natural order, with those of their samples that are in this data set.

        Of a selection they are all the shards of what it was selected from, some without samples.
        """
        return self._shards

    @property
    def in_stored_order(self) -> bool:
        """Whether the samples come as they are stored, and each once."""
        return np.array_equal(self._places, np.arange(self._ends[-1]))

    @cached_property
    def shard_of(self) -> Indices:
        """Which of the :attr:`shards` each sample is in."""
        return np.searchsorted(self._ends, self._places, side="right")

    @cached_property
    def slots(self) -> Slots:
        """What the order of an epoch is made of: the planned samples, those that failed too.

        Of a selection, and where no plan says which failed, they are its samples.
        """
        if any(shard.holes for shard in self._shards):  # of a selection none has
            return Slots.of_shards(self._shards)
        return Slots.of_samples(self.study_ids, self.shard_of, len(self._shards))

    @property
    def reader_threads(self) -> int:
        """Threads that a loader reads with by default."""
        # More do not make one machine's memory or disks faster.
        return min(_MOST_THREADS, usable_cores())

    @property
    def samples_ahead(self) -> int:
        """Samples that a loader reads ahead at least by default."""
        return 0

    def require_boxes(self) -> None:
        """Refuse random crops, before a loader is made for them; here they are read.

        Raises
        ------
        UsageError
        """

    def may_skip(self, error: SampleError) -> bool:
        """Whether ``on_error="skip"`` may leave a sample out for this error."""
        return True

    @cached_property
    def entries(self) -> tuple[SampleEntry, ...]:
        """What the records say of each sample: study id, key, whether it is labelled."""
        stored = [entry for shard in self._shards for entry in shard.samples]
        return tuple(stored[place] for place in self._places)

    @cached_property
    def study_ids(self) -> tuple[str, ...]:
        """Study id of each sample."""
        return tuple(entry.study_id for entry in self.entries)

    @cached_property
    def _index_of(self) -> dict[str, int]:
        indices: dict[str, int] = {}
        for index, study_id in enumerate(self.study_ids):
            if indices.setdefault(normal_form(study_id), index) != index:
                raise UsageError(
                    f"{study_id} is in {self._named} more than once; ask for samples by number"
                )
        return indices

    def index_of(self, study_id: str) -> int:
        """Number of a study, whose id is compared in Unicode's NFC.

        Raises
        ------
        KeyError
            If the data set does not hold it.
        UsageError
            If a study id of the data set is not unique.
        """
        return self._index_of[normal_form(study_id)]

    def select(self, wanted: Iterable[Wanted] | Predicate) -> VolumeDataset:
        """A data set of some of the samples, each once and in the order that they have here.

        Parameters
        ----------
        wanted : iterable of str or int, or callable
            Study ids (or keys, as the tars name them), compared in Unicode's NFC, and numbers; a
            study id that several folders hold stands for all of its samples.  Or what says of
            each entry of a record (:class:`ctgpu.shards.record.SampleEntry`) whether its sample is
            wanted:
            ``dataset.select(lambda sample: sample.labelled)``.

        Returns
        -------
        VolumeDataset
            It may be empty.  It verifies volumes for itself.

        Raises
        ------
        UsageError
            If this data set does not hold one of them, or they are something else.
        """
        return self.take(select_numbers(wanted, self.entries, self._named))

    def take(self, numbers: Iterable[int]) -> VolumeDataset:
        """A data set of the samples of these numbers, in this order, as often as they are named.

        This is what ``torch.utils.data.Subset(dataset, numbers)`` means.

        Raises
        ------
        UsageError
            If there is no such sample, or it is not a number.
        """
        checked = check_numbers(numbers, len(self), self._named)
        places = self._places[checked]
        kept, renumbered = np.unique(places, return_inverse=True)
        shards, first = [], 0
        for shard, end in zip(self._shards, self._ends, strict=True):
            within = kept[np.searchsorted(kept, first) : np.searchsorted(kept, end)] - first
            samples = tuple(shard.samples[place] for place in within)
            shards.append(
                Shard(shard.path, samples, shard.whole and len(samples) == len(shard.samples))
            )
            first = end
        taken = copy.copy(self)
        taken._hold(shards, renumbered)
        if self._labels is not None:
            taken._labels = self._labels[checked]
        return taken

    def locate(self, index: int) -> tuple[Shard, SampleEntry]:
        """Shard and record entry of sample `index`.

        Raises
        ------
        IndexError
            If there is no such sample.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"there is no sample {index}: {self._named} has {len(self)}")
        place = int(self._places[index])
        number = bisect_right(self._ends, place)
        shard = self._shards[number]
        return shard, shard.samples[place - self._ends[number]]

    def number_of(self, index: int | str) -> int:
        """Number of a sample, from 0, by its number (below 0: from the end) or study id.

        Raises
        ------
        KeyError, UsageError
            As :meth:`index_of`.
        """
        if isinstance(index, str):
            return self.index_of(index)
        number = operator.index(index)
        return number + len(self) if number < 0 else number

    def __getitem__(self, index: int | str) -> dict[str, Any]:
        """One sample, by number or study id, in memory of its own.

        Returns
        -------
        dict
            ``volume`` (1, D, H, W) of ``spec.dtype``, a view of :attr:`memory_layout`; ``labels``
            (classes,) float32; ``report`` and ``study_id``, text.  NumPy has no bfloat16: its bits
            come as uint16, of which :func:`ctgpu.volume.stored.numbers_of` makes float32, and
            ``torch.from_numpy(volume).view(torch.bfloat16)`` a tensor.  Where there are masks,
            ``mask`` (1, D, H, W), uint8 or uint16 as it is stored.

        Raises
        ------
        IndexError, KeyError
            If there is no such sample.
        FetchError
            If the tar is damaged, or the bytes do not have their checksum.
        StorageError
            If the shard is gone.
        """
        number = self.number_of(index)
        memory, layout = self.memory_layout, self.spec.layout
        shape = stored_order(self.spec.shape_hwd, memory)
        volume = np.empty(shape, numpy_dtype(self.spec.dtype))
        mask = None if self.masks is None else np.empty(shape, self.masks.numpy_dtype)
        labels, report = self.read_into(
            number,
            in_stored_order(volume, memory, layout),
            mask=None if mask is None else in_stored_order(mask, memory, layout),
        )
        return {
            "volume": to_dhw(volume, memory)[None],
            **({} if mask is None else {"mask": to_dhw(mask, memory)[None]}),
            "labels": labels,
            "report": report,
            "study_id": self.study_ids[number],
        }

    def metadata(self, index: int | str) -> dict[str, Any]:
        """The ``.json`` of one sample, parsed: what maps a prediction back onto the scan.

        Parameters
        ----------
        index : int or str
            Number or study id.

        Raises
        ------
        IndexError, KeyError, FetchError, StorageError
            As :meth:`__getitem__`.
        DecodeError
            If it is not JSON.
        """
        shard, entry = self.locate(self.number_of(index))
        with shard.open() as reader:
            text = reader.read(entry, "json")
        try:
            return dict(json.loads(text))
        except (ValueError, TypeError, RecursionError) as error:
            raise DecodeError(
                f"{shard.path}: {entry.key}.json is not a JSON object ({error}), though it has its "
                "checksum; build or convert the sample again"
            ) from error

    def read_labels(self, *, threads: int = 8, skip_damaged: bool = False) -> Labels:
        """The labels of all samples: read from the tars once, then kept.

        Of each labelled sample its few bytes are read, and held against their checksum.

        Parameters
        ----------
        threads : int
            Readers, of a shard each.
        skip_damaged : bool
            Give labels that are damaged as NaN, with a warning in the log, instead of raising
            FetchError; they are tried again the next time.

        Returns
        -------
        numpy.ndarray
            Shape (samples, classes), float32, the caller's own; NaN where a label is not known.

        Raises
        ------
        FetchError
            If a tar is damaged.
        StorageError
            If a shard is gone.
        """
        if self._labels is not None:
            return self._labels.copy()
        stored = np.full((self._ends[-1], len(self.class_names)), np.nan, np.float32)
        parts = np.split(stored, self._ends[:-1])  # views
        with ThreadPoolExecutor(threads, "ctgpu-read") as readers:
            damaged = sum(readers.map(Shard.read_labels, self._shards, parts, repeat(skip_damaged)))
        labels = stored[self._places]
        if not damaged:
            self._labels = labels.copy()
        return labels

    def read_into(
        self,
        index: int,
        out: Volume,
        start: tuple[int, int, int] = (0, 0, 0),
        *,
        mask: Volume | None = None,
    ) -> tuple[Labels, str]:
        """Read one sample, or a box of its voxels, into memory of the caller.

        A box reads only the rows that it needs, unless its volume is to be verified now; of a
        compressed volume only the tiles that it meets, verified or not.

        Parameters
        ----------
        index : int
            Number of the sample.
        out : numpy.ndarray
            Of the stored type (bfloat16: uint16), axes in stored order; its shape is the box's.
            In C order, but for a compressed sample, which is decoded into any strides.
        start : tuple of int
            First voxel of the box, in stored order.
        mask : numpy.ndarray, optional
            Of the type of the :attr:`masks`, otherwise as `out`: the same box of the mask.

        Returns
        -------
        labels : numpy.ndarray
            Shape (classes,), float32; all NaN where the study has no label row.
        report : str
            Findings, newline, impression.

        Raises
        ------
        UsageError
            If `out` or `mask` is of another type, or their shapes differ, or there are no masks,
            or the box does not lie within the volume, or `out` is not in the order that it takes.
        IndexError, FetchError, StorageError
            As :meth:`__getitem__`.
        """
        shard, entry = self.locate(index)
        wanted = payloads(self._named, self.spec, self.masks, entry, start, out, mask)
        verify = self.is_due(index)
        with shard.open() as reader:
            for one in wanted:
                scratch = self._scratch
                read_box(reader, entry, one, self.spec, start, scratch=scratch, verify=verify)
            labels, report = read_labels_and_report(reader, entry)
        whole = not entry.is_compressed or out.shape == self.spec.stored_shape
        if verify and whole and (mask is not None or self.masks is None):
            self.note_verified(index)
        return labels, report

    def is_due(self, index: int) -> bool:
        """Whether a sample is to be held against its checksums when it is read now."""
        return self._verify == "always" or (self._verify == "first" and not self._verified[index])

    def note_verified(self, index: int) -> None:
        """All of a sample was held against its checksums."""
        self._verified[index] = 1
