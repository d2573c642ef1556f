"""What every source of volumes is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import msgspec

from ctgpu.buffers import Allocate
from ctgpu.data_sets import Description
from ctgpu.errors import FetchError
from ctgpu.sources.fetched import Fetched
from ctgpu.sources.tables import Tables
from ctgpu.volume.ref import SampleRef


class Source(ABC):
    """A place that has volumes and, perhaps, tables.  Safe to use from many threads."""

    #: What lies where, and what is in it.
    data_set: Description
    #: The split whose volumes the last listing found where the description has them; None where
    #: they are simply all that the source holds.
    listed_split: str | None = None
    #: Paths of the volumes that lie beside the data set listed last, and so were left out.
    left_out: Sequence[str] = ()
    #: Paths of folders that could not be looked at in the last listing, so that nothing says which
    #: volumes are in them, and where each links to, or else why.
    missing_folders: Mapping[str, str] = MappingProxyType({})
    #: What tables may call volumes beside their study ids, and these.
    aliases: Mapping[str, str] = MappingProxyType({})
    #: Paths of the tables that were seen at the last listing and are not read.
    unused_tables: Sequence[str] = ()

    @abstractmethod
    def identity(self) -> dict[str, str]:
        """What pins this source, recorded in the plan: ``kind``, ``location``, ``revision``."""

    @abstractmethod
    def list_volumes(self, split: str) -> list[SampleRef]:
        """Every volume of the split, in natural order of the paths.

        Raises
        ------
        AccessError, SourceError
            If the source cannot be listed.
        """

    @abstractmethod
    def read_table(self, *names: str) -> tuple[str, bytes] | None:
        """The first of these small files that exists, by path, and its bytes; else None.

        Parameters
        ----------
        *names : str
            Paths relative to the source, best first.
        """

    @abstractmethod
    def fetch(self, ref: SampleRef, allocate: Allocate) -> Fetched:
        """The bytes of one volume, as stored, in a buffer of exactly their size.

        The bytes are complete: their number, and their checksum where the source states one, have
        been checked.  On any error the buffer has been released.

        Raises
        ------
        FetchError
            If this volume can never be had.
        AccessError, SourceError
            If the source as a whole fails.
        """

    def fetch_mask(self, ref: SampleRef, allocate: Allocate) -> list[tuple[int | None, Fetched]]:
        """The files of a volume's mask, as stored, in the order in which they are merged.

        Returns
        -------
        list of (int or None, Fetched)
            The number of the label that a file is of, None where it holds numbers.  On any error
            all of them have been released.

        Raises
        ------
        FetchError
            If a file that must be there is not, or cannot be read.
        AccessError, SourceError
            If the source as a whole fails.
        """
        files: list[tuple[int | None, Fetched]] = []
        try:
            named = self.data_set.mask_files(self._spelled(ref), ref.study_id)
            for number, path in named:
                fetched = self._fetch_file(path, allocate)
                if fetched is not None:
                    # Whatever the array is called that holds the volume, this is another one.
                    arrays = msgspec.structs.replace(fetched.arrays, member=None)
                    files.append((number, replace(fetched, arrays=arrays)))
                elif self.data_set.masks is not None and self.data_set.masks.absent == "refuse":
                    raise FetchError(
                        f"{path}, of the mask of {ref.path}, is not there; bring it back and use "
                        '--retry-failed, or write absent = "empty" in the description'
                    )
            if len(named) > 1 and not files:
                raise FetchError(
                    f"none of the {len(named)} files of the mask of {ref.path} is there, such as "
                    f"{named[0][1]}; bring them back, or correct masks.files in the description"
                )
        except BaseException:
            for _, fetched in files:
                fetched.release()
            raise
        return files

    def _spelled(self, ref: SampleRef) -> str:
        """The path of a volume as the source spells it."""
        return ref.path

    def _fetch_file(self, path: str, allocate: Allocate) -> Fetched | None:
        """A file beside the volumes, for :meth:`fetch_mask`; None where it is not there."""
        raise FetchError(f"{path} is not read: masks are only taken from folders and the Hub")

    def find_tables(self, split: str) -> None:
        """Get ready for :meth:`tables` where the volumes are not wanted.

        Raises
        ------
        UsageError, AccessError, SourceError
            If that cannot be done.
        """
        self.list_volumes(split)

    def tables(self, split: str, class_names: Sequence[str] | None = None) -> Tables:
        """What the source says about the volumes that were listed; by default its tables.

        Parameters
        ----------
        split : str
            Which.
        class_names : sequence of str, optional
            Names of the labels, in order, as a plan has them; by default the source decides.

        Raises
        ------
        UsageError
            If a table lacks a column or is none.
        AccessError, SourceError
            If the source cannot be read.
        """
        return Tables.load(self, split, class_names)

    def file_of(self, ref: SampleRef) -> Path | None:
        """Where the file of a volume is on this machine; None where it has none."""
        return None

    def close(self) -> None:  # noqa: B027  (a folder holds nothing)
        """Give connections back."""
