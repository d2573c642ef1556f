"""What every source of volumes is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from ctgpu.buffers import Allocate
from ctgpu.sources.fetched import Fetched
from ctgpu.sources.tables import Tables
from ctgpu.volume.ref import SampleRef, Split


class Source(ABC):
    """A place that has volumes and, perhaps, CSVs.  Safe to use from many threads."""

    #: CT-RATE's split in whose folder the volumes listed last lie; None for any other folder.
    listed_split: Split | None = None
    #: Paths of the volumes that lie beside the data set listed last, and so were left out.
    left_out: Sequence[str] = ()
    #: Paths of folders that could not be looked at in the last listing, so that nothing says which
    #: volumes are in them, and where each links to, or else why.
    missing_folders: Mapping[str, str] = MappingProxyType({})
    #: Paths of the tables that were seen at the last listing and are not read.
    unused_tables: Sequence[str] = ()

    @abstractmethod
    def identity(self) -> dict[str, str]:
        """What pins this source, recorded in the plan: ``kind``, ``location``, ``revision``."""

    @abstractmethod
    def list_volumes(self, split: Split) -> list[SampleRef]:
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

    def find_tables(self, split: Split) -> None:
        """Get ready for :meth:`tables` where the volumes are not wanted.

        Raises
        ------
        UsageError, AccessError, SourceError
            If that cannot be done.
        """
        self.list_volumes(split)

    def tables(self, split: Split, class_names: Sequence[str] | None = None) -> Tables:
        """What the source says about the volumes that were listed; by default its CSVs.

        Parameters
        ----------
        split : {"train", "valid"}
            Which CSVs.
        class_names : sequence of str, optional
            Names of the labels, in order, as a plan has them; by default the source decides.

        Raises
        ------
        UsageError
            If a CSV lacks a column or is no CSV.
        AccessError, SourceError
            If the source cannot be read.
        """
        return Tables.load(self, split, class_names)

    def close(self) -> None:  # noqa: B027  (a folder holds nothing)
        """Give connections back."""
