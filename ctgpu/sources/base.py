"""What every source of volumes is."""

from __future__ import annotations

import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from ctgpu.buffers import Buffer, BufferPool
from ctgpu.decode import MAX_VOLUME_BYTES, decode
from ctgpu.volume import RawVolume

if TYPE_CHECKING:
    from ctgpu.sources.tables import Tables

#: ``fixed``: CT-RATE v2, voxels are HU.  ``v1``: they need the CSV's slope and intercept.
Provenance = Literal["fixed", "v1", "unknown"]
Split = Literal["train", "valid"]

VOLUME_SUFFIXES = (".nii.gz", ".nii", ".npz")
Allocate = Callable[[int], Buffer]


@dataclass(frozen=True, slots=True)
class SampleRef:
    """One volume that a source has.

    Attributes
    ----------
    path : str
        Relative to the source, with forward slashes.
    size_bytes : int
        Size of the file as stored.
    checksum : str or None
        ``"sha256:<hex>"`` as the source states it; the fetched bytes are held against it.
    provenance : {"fixed", "v1", "unknown"}
        What the path says about the voxels.
    """

    path: str
    size_bytes: int
    checksum: str | None = None
    provenance: Provenance = "unknown"

    @property
    def file_name(self) -> str:
        """Base name with suffix, such as ``valid_1_a_1.nii.gz``."""
        return self.path.rsplit("/", 1)[-1]

    @property
    def study_id(self) -> str:
        """Base name without suffix: how the CSVs name the volume."""
        return strip_volume_suffix(self.file_name)

    @property
    def key(self) -> str:
        """Name of the members in a shard: the study id with ``_`` for what tar readers split at.

        WebDataset splits names at dots, DALI's index at white space.
        """
        return "".join(
            "_" if c in "./\\" or c.isspace() or not c.isprintable() else c for c in self.study_id
        )


class Source(ABC):
    """A place that has volumes and, perhaps, CSVs.  Safe to use from many threads."""

    #: The split whose folder of CT-RATE's the volumes listed last lie in; None where in no such.
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
    def fetch(self, ref: SampleRef, allocate: Allocate) -> Buffer:
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
        from ctgpu.sources.tables import Tables  # made of a source, so it comes after this module

        return Tables.load(self, split, class_names)

    def decode(
        self,
        path: str,
        buffer: Buffer,
        pool: BufferPool,
        *,
        limit_bytes: int = MAX_VOLUME_BYTES,
    ) -> RawVolume:
        """The volume inside the bytes that :meth:`fetch` gave, as :func:`ctgpu.decode.decode`.

        Raises
        ------
        DecodeError
            If they are not one whole volume.
        """
        return decode(path, buffer, pool, limit_bytes=limit_bytes)

    def close(self) -> None:  # noqa: B027  (a folder holds nothing)
        """Give connections back."""


def normal_form(study_id: str) -> str:
    """A study id as ids are compared, in Unicode's NFC.

    macOS writes file names in NFD, and tables are mostly written in NFC.
    """
    return unicodedata.normalize("NFC", study_id)


class Spelling:
    """Names as they are stored, each found by itself or else by its normal form.

    A copy that was made by way of another system may spell names otherwise.

    Parameters
    ----------
    names : iterable of str
        As they are stored.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        exact = {name: name for name in names}
        self._stored = {normal_form(name): name for name in exact} | exact

    def find(self, name: str) -> str | None:
        """How a name is stored; None where it is not."""
        return self._stored.get(name) or self._stored.get(normal_form(name))


def strip_volume_suffix(file_name: str) -> str:
    """``valid_1_a_1.nii.gz`` to ``valid_1_a_1``; other names are returned unchanged."""
    for suffix in (*VOLUME_SUFFIXES, ".bin"):
        if file_name.lower().endswith(suffix):
            return file_name[: -len(suffix)]
    return file_name
