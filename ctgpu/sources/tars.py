"""Volumes in the tars of a WebDataset: raw ones, and shards that were preprocessed already."""

from __future__ import annotations

import glob
import hashlib
import itertools
import os
from collections.abc import Sequence
from pathlib import Path

from ctgpu.buffers import Allocate
from ctgpu.data_sets import Description, built_in
from ctgpu.errors import (
    DecodeError,
    FetchError,
    SourceError,
    UsageError,
)
from ctgpu.printable import counted
from ctgpu.shards.names import natural_key
from ctgpu.shards.patterns import expand_pattern
from ctgpu.sources.base import Source
from ctgpu.sources.classes import classes_of_labels
from ctgpu.sources.fetched import Fetched
from ctgpu.sources.tables import Tables
from ctgpu.sources.tar_samples import (
    VOLUME_EXTENSIONS,
    TarSample,
    fetch_volume,
    preprocessed_shape,
    samples_of_tar,
)
from ctgpu.sources.tar_tables import TarTables
from ctgpu.volume.ref import SampleRef, Spelling


class TarSource(Source):
    """The tars of a WebDataset.

    A sample is a volume (``bin`` or ``ctz`` with ``json`` beside it, ``npz``, ``nii.gz``, …) and
    what else has its key: ``json`` with spacing and rescale pair, ``cls`` or ``labels``, ``txt``.

    Parameters
    ----------
    pattern : Path
        As :func:`expand_pattern` takes it.
    data_set : Description, optional
        Names the classes where nothing beside the tars does; by default CT-RATE's.
    """

    def __init__(self, pattern: Path, *, data_set: Description | None = None) -> None:
        self.data_set = data_set or built_in()
        self._pattern = Path(os.path.abspath(pattern))
        fixed = itertools.takewhile(
            lambda part: not glob.has_magic(part) and "{" not in part, self._pattern.parts[:-1]
        )
        self._root = self._pattern if self._pattern.is_dir() else Path(*fixed)
        self._samples: dict[str, TarSample] = {}
        self._stored = Spelling()
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

    def list_volumes(self, split: str) -> list[SampleRef]:
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
                f"{missing[0]} does not exist (missing: {len(missing)} of "
                f"{counted(len(tars), 'named tar')}); correct the pattern"
            )
        return self._list(tars)

    def list_left(self) -> list[SampleRef]:
        """Every sample of the tars that are still there: a conversion may delete what it has read.

        Raises
        ------
        UsageError
            If a sample has no volume.
        SourceError
            If a tar cannot be read.
        """
        tars = self.tars_left()
        return self._list(tars) if tars else []

    def find_tables(self, split: str) -> None:
        """List what is left."""
        self.list_left()

    def tars_left(self) -> list[Path]:
        """Those tars of the pattern that are there."""
        try:
            return [tar for tar in expand_pattern(self._pattern) if tar.exists()]
        except UsageError:  # a glob that matches nothing any more
            return []

    def tables(self, split: str, class_names: Sequence[str] | None = None) -> Tables:
        """What the samples' own members say, in place of CSVs.

        By default :func:`~ctgpu.sources.classes.classes_of_labels` names the classes.

        Raises
        ------
        UsageError
            As that does.
        """
        samples = self._samples.values()
        if class_names is None:
            sizes = {
                f"{s.tar}: {s.key}.{e}": s.members[e].size_bytes
                for s in samples
                if (e := s.label_extension)
            }
            class_names = classes_of_labels((s.tar.parent for s in samples), sizes, self.data_set)
        return TarTables(
            samples,
            class_names,
            adopted=self.adopted_shape is not None,
            data_set=self.data_set,
        )

    def read_table(self, *names: str) -> tuple[str, bytes] | None:
        """None: the samples carry their own labels and reports."""
        return None

    def sample(self, path: str) -> TarSample:
        """The sample that a :class:`~ctgpu.volume.ref.SampleRef` of this source means.

        Raises
        ------
        FetchError
            If it is gone since the plan was made.
        """
        stored = self._stored.find(path)
        if stored is None:
            raise FetchError(
                f"{self._root / path} is gone; bring its tar back, then use --retry-failed"
            )
        return self._samples[stored]

    def fetch(self, ref: SampleRef, allocate: Allocate) -> Fetched:
        """The volume's member, read straight into the allocated buffer.

        A ``bin`` or ``ctz`` is decoded as its JSON describes it.
        """
        sample = self.sample(ref.path)
        try:
            return fetch_volume(sample, ref.path, allocate, self.adopted_shape)
        except DecodeError as error:
            if not self._root.is_dir():
                raise SourceError(f"{self._root} is gone; mount it again and resume") from error
            raise FetchError(str(error)) from error

    @property
    def root(self) -> Path:
        """The folder that samples' paths are relative to."""
        return self._root

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
                refs.append(SampleRef.of_file(path, sample.members[extension].size_bytes))
                for member in sample.members.values():
                    digest.update(f"{name}\t{member.name}\t{member.size_bytes}\n".encode())
        if not refs:
            raise UsageError(f"{self._pattern} holds no sample; give the tars of a WebDataset")
        refs.sort(key=lambda ref: natural_key(ref.path))
        self._stored = Spelling(self._samples)
        self._revision = digest.hexdigest()
        return refs
