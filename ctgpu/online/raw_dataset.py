"""Random access to samples that are made of raw volumes when they are read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from ctgpu.arguments import (
    MOST_INT64,
    MOST_WORKERS,
    path_of,
    require_kind,
    require_whole_number,
)
from ctgpu.building.members import to_json_bytes
from ctgpu.building.request import Request
from ctgpu.engines.registry import DEVICE_HELP
from ctgpu.errors import FetchError, SampleError, TableError, UsageError
from ctgpu.loading.catalogue import Shard
from ctgpu.loading.dataset import Labels, VolumeDataset
from ctgpu.loading.dataset import Volume as Stored
from ctgpu.loading.region import payloads
from ctgpu.online.finished import Finished, FinishedShards
from ctgpu.online.own_maker import OwnMaker
from ctgpu.online.settling import folder_of_plan, settle
from ctgpu.online.write_through import WriteThrough
from ctgpu.printable import counted
from ctgpu.shards.card import Card
from ctgpu.shards.names import parse_shard_name, shard_name
from ctgpu.shards.record import SampleEntry
from ctgpu.spec import Spec
from ctgpu.volume.ref import SampleRef
from ctgpu.volume.stored import numpy_dtype

# Options of a build that write shards, or that are arguments of their own here.
_NOT_HERE = {"force", "retry_failed", "part", "num_workers", "memory_limit_bytes"}


class RawDataset(VolumeDataset):
    """The samples that a build would make, made when they are read: no shard has to be there.

    It is used as a :class:`ctgpu.loading.VolumeDataset`, and
    :func:`ctgpu.loading.make_loader` makes the same batches of it as of the finished shards, bit
    for bit and in the same order, and the state of its loader goes on with those, and theirs here.
    Each sample is fetched, decoded and computed in the thread that reads it.

    Parameters
    ----------
    source : path, optional
        A local copy of a data set, any folder of volumes, or the tars of a WebDataset; by default
        the Hub, as :func:`ctgpu.build` takes it.
    split, dataset, spec, device
        As :func:`ctgpu.build` takes them; `device` by name.
    shards : path, optional
        A folder that `ctgpu build` fills, or is to fill, with the same samples: what is finished
        there is read, also what is finished only later, and the rest is made.
    plan : path, optional
        A folder with a ``plan.json`` that says which samples there are, if it is not that of
        `shards`; by default they are listed and chosen as by a build.
    write_shards : path, optional
        Likewise, and keep there what is made, so that a second epoch reads it: a shard is written,
        as a build writes it, when its last sample is there.  Boxes are refused then.
    write_limit : int, optional
        Bytes that volumes may take in the folder of `write_shards`; once the next shard would take
        more, nothing is kept any more, and training goes on.  By default what is free.
    num_threads : int, optional
        Threads of a loader; by default one for each core of this process's share of the machine,
        of the Hub four at least.
    memory_limit : int, optional
        Bytes for volumes in flight on this machine, all its ranks together; default half of the
        memory available.  The batches are not counted.
    **options
        More of the options of :func:`ctgpu.build` that choose samples, such as ``repo_id``,
        ``limit``, ``include`` or ``order``; ``samples_per_shard``, by which the order shuffles; and
        ``compress``, for what `write_shards` keeps.

    Raises
    ------
    UsageError
        If the request cannot be honoured; MismatchError where `shards` or `plan` are of another.
    EnvironmentFailure
        If source or device cannot be had.

    Notes
    -----
    A sample of which nothing can be made raises the error that a build would put into its ledger,
    or is left out by ``on_error="skip"``.  One that cannot be fetched raises either way.

    Examples
    --------
    >>> data = RawDataset("/data/CT-RATE", split="train")                   # doctest: +SKIP
    >>> loader = make_loader(data, batch_size=2, shuffle=True)              # doctest: +SKIP
    """

    def __init__(
        self,
        source: str | PathLike[str] | None = None,
        *,
        split: str | None = None,
        dataset: str | PathLike[str] | None = None,
        spec: Spec | None = None,
        device: str = "auto",
        shards: str | PathLike[str] | None = None,
        plan: str | PathLike[str] | None = None,
        write_shards: str | PathLike[str] | None = None,
        write_limit: int | None = None,
        num_threads: int | None = None,
        memory_limit: int | None = None,
        **options: Any,
    ) -> None:
        require_kind("device", device, str, f"{DEVICE_HELP}, by name", optional=False)
        require_whole_number("num_threads", num_threads, most=MOST_WORKERS)
        require_whole_number("memory_limit", memory_limit, most=MOST_INT64)
        require_whole_number("write_limit", write_limit, most=MOST_INT64)
        if unknown := sorted(options.keys() & _NOT_HERE):
            raise TypeError(f"RawDataset() got an unexpected keyword argument {unknown[0]!r}")
        request = Request(
            source=source,
            split=split,
            dataset=dataset,
            spec=spec,
            device=device,
            memory_limit_bytes=memory_limit,
            **options,
        )
        if shards is not None and write_shards is not None:
            raise UsageError("shards and write_shards name one folder; give one of them")
        if write_limit is not None and write_shards is None:
            raise UsageError("write_limit is of write_shards, which is not given; leave it out")
        if request.compress is not None and write_shards is None:
            raise UsageError(
                "compress says how write_shards keeps volumes, and that is not given; leave it out"
            )
        named = shards if write_shards is None else write_shards
        folder = None if named is None else path_of("shards", named)
        of_plan = folder if plan is None else folder_of_plan(path_of("plan", plan))
        settled = settle(request, of_plan)
        planned = settled.plan
        self._plan = planned
        self._writer = None
        if folder is not None and write_shards is not None:
            if planned.masks is not None:
                if settled.source is not None:
                    settled.source.close()
                raise UsageError(
                    "write_shards keeps volumes alone, and this data set has masks: leave them out "
                    "with masks=False, or have `ctgpu build` make the shards, and read them as it "
                    "does with shards="
                )
            self._writer = WriteThrough(folder, planned, write_limit)
        self._shards_there = None if folder is None else FinishedShards(folder, planned)
        self._verify = "first"
        self._named = str(planned.source.get("path", planned.source["location"]))
        self._card = Card(
            planned.spec, planned.fingerprint, planned.class_names, masks=planned.masks
        )
        missing = [index for index in range(planned.shards) if not self._finished_shard(index)]
        needed = {ref.path for index in missing for ref in planned.samples_of(index)}
        request = replace(request, device=settled.device)
        self._own = OwnMaker(planned, request, num_threads, needed, of_plan)
        if missing:
            self._own.open(settled.source)
        elif settled.source is not None:
            settled.source.close()
        held = [
            Shard(
                Path(shard_name(index)),
                tuple(self._entry(index, ref) for ref in planned.samples_of(index)),
            )
            for index in range(planned.shards)
        ]
        self._hold(held, np.arange(len(planned.samples)))

    def _entry(self, index: int, ref: SampleRef) -> SampleEntry:
        """What a record says of a sample, or would say, without its place in a tar."""
        entry = SampleEntry(ref.key, ref.study_id, 0, 0, {}, labelled=False)
        finished = self._finished_shard(index)
        if finished is not None:
            known = finished.entries.get(ref.key, entry)
            return replace(entry, labelled=known.labelled, partly_labelled=known.partly_labelled)
        unknown = np.isnan(self._labels_of(ref))
        return replace(
            entry,
            labelled=not unknown.all(),
            partly_labelled=bool(unknown.any() and not unknown.all()),
        )

    def _labels_of(self, ref: SampleRef) -> Labels:
        if not self.class_names:
            return np.empty(0, np.float32)
        try:
            return self._own.get().row(ref).labels
        except TableError:  # said when the sample's turn comes
            return np.full(len(self.class_names), np.nan, np.float32)

    def _finished_shard(self, index: int) -> Finished | None:
        return None if self._shards_there is None else self._shards_there.find(index)

    def _forget(self) -> None:
        super()._forget()
        self._refs = {ref.key: ref for ref in self._plan.samples}

    def __getstate__(self) -> dict[str, Any]:
        own = ("_plan", "_own", "_shards_there", "_writer")
        return super().__getstate__() | {name: self.__dict__[name] for name in own}

    def __repr__(self) -> str:
        return (
            f"RawDataset({self._named!r}: {counted(len(self), 'sample')}, made as "
            f"{self.spec.dtype} {self.spec.layout} {self.spec.stored_shape})"
        )

    @property
    def reader_threads(self) -> int:
        return self._own.threads

    @property
    def samples_ahead(self) -> int:
        # Each thread makes another volume, where a shard's would be there at once.
        return self._own.threads

    @property
    def peak_bytes(self) -> int:
        """The most that volumes in flight have had together, in this process."""
        return self._own.get().peak_bytes

    def require_boxes(self) -> None:
        if self._writer is not None:
            raise UsageError(
                "write_shards keeps whole volumes, and a box was asked for: leave out "
                "random_crop_hwd, or write_shards (shards= reads what is there)"
            )

    def may_skip(self, error: SampleError) -> bool:
        # What cannot be fetched now says nothing of the sample: the next try may have it.
        return not isinstance(error, FetchError)

    def take(self, numbers: Iterable[int]) -> VolumeDataset:
        taken = super().take(numbers)
        # One maker, and with it one budget of memory, for all that is taken of it here.
        for name in ("_own", "_shards_there", "_writer"):
            setattr(taken, name, getattr(self, name))
        return taken

    def locate(self, index: int) -> tuple[Shard, SampleEntry]:
        """Where sample `index` is in a finished shard; else the shard that it is planned for.

        Raises
        ------
        IndexError
            If there is no such sample.
        SampleError
            If it failed when its shard was built.
        """
        planned, entry = super().locate(index)
        number, _ = parse_shard_name(planned.path.name) or (0, "")
        finished = self._finished_shard(number)
        found = None if finished is None else finished.entry(entry.key)
        return (planned, entry) if finished is None or found is None else (finished.shard, found)

    def read_into(
        self,
        index: int,
        out: Stored,
        start: tuple[int, int, int] = (0, 0, 0),
        *,
        mask: Stored | None = None,
    ) -> tuple[Labels, str]:
        """Make one sample, or a box of its voxels, in memory of the caller; or read it.

        As :meth:`ctgpu.loading.VolumeDataset.read_into`; of a box no more than that is computed.

        Raises
        ------
        UsageError
            If `out` or `mask` is not what is stored, or the source has changed.
        IndexError, SampleError, EnvironmentFailure
            If there is no such sample, nothing can be made of it, or source, device or machine
            fail.
        """
        _, entry = self.locate(index)
        if entry.members:
            return super().read_into(index, out, start, mask=mask)
        payloads(self._named, self.spec, self.masks, entry, start, out, mask)
        ref = self._refs[entry.key]
        if self._writer is not None:
            return self._kept(ref, out, self._writer)
        start_hwd = start if self.spec.layout == "HWD" else (*start[1:], start[0])
        return self._own.get().make(ref, out, start_hwd, mask=mask)

    def _kept(self, ref: SampleRef, out: Stored, writer: WriteThrough) -> tuple[Labels, str]:
        """A whole sample, from where it was kept before, or kept now."""
        if out.shape != self.spec.stored_shape:
            self.require_boxes()
        if (found := writer.find(ref, out.reshape(-1).view(np.uint8))) is not None:
            return np.frombuffer(bytearray(found.labels), "<f4"), found.text.decode()
        try:
            return self._own.get().make(ref, out, (0, 0, 0), lambda made: writer.keep(ref, made))
        except SampleError as error:
            if self.may_skip(error):
                writer.keep(ref, error)
            raise

    def metadata(self, index: int | str) -> dict[str, Any]:
        """The ``.json`` that a build would write of one sample, parsed.

        Its volume is made for it, as the checksum is part of it.

        Raises
        ------
        IndexError, KeyError
            If there is no such sample.
        SampleError, EnvironmentFailure
            As :meth:`read_into`.
        """
        number = self.number_of(index)
        _, entry = self.locate(number)
        if entry.members:
            return super().metadata(number)
        volume = np.empty(self.spec.stored_shape, numpy_dtype(self.spec.dtype))
        made = self._own.get().metadata(self._refs[entry.key], volume)
        return dict(json.loads(to_json_bytes(made)))

    def read_labels(self, *, threads: int = 8, skip_damaged: bool = False) -> Labels:
        """The labels of all samples, as the tables have them; then kept.

        A row that cannot be used counts as none: it is an error when its sample is read.

        Parameters
        ----------
        threads, skip_damaged
            Of no effect: nothing is read of tars.

        Returns
        -------
        numpy.ndarray
            Shape (samples, classes), float32, the caller's own; NaN where a label is not known.
        """
        if self._labels is None:
            rows = [self._labels_of(self._refs[entry.key]) for entry in self.entries]
            self._labels = np.array(rows, np.float32).reshape(len(self), len(self.class_names))
        return self._labels.copy()
