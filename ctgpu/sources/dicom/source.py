"""A folder tree of DICOM as a source: a volume is a series, whatever its files are called."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from ctgpu.buffers import Allocate
from ctgpu.data_sets import PLAIN, Description, built_in
from ctgpu.errors import FetchError, SourceError, UsageError
from ctgpu.printable import counted
from ctgpu.shards.names import natural_key
from ctgpu.sources.dicom.fetched import FetchedSeries, fetch_series
from ctgpu.sources.dicom.private import Pseudonyms, Register, Series, aliases_of
from ctgpu.sources.dicom.scan import scan
from ctgpu.sources.dicom.series import Sorted, sorted_out, studies_of_several
from ctgpu.sources.dicom.walk import files_below
from ctgpu.sources.folder import FolderSource
from ctgpu.sources.tree import tables_in
from ctgpu.volume.ref import SampleRef

_log = logging.getLogger(__name__)

_SUFFIX = ".dcm"


class DicomSource(FolderSource):
    """The CT series in a folder tree of DICOM.

    Key, study id and path of a series are made of its pseudonym alone.  Which files it consists of
    is kept beside the plan and stated nowhere else.

    Parameters
    ----------
    path : Path
        The folder.
    data_set : Description, optional
        Tables and what is in them; by default a plain folder's, whose tables are looked at.
    pseudonyms : Pseudonyms
        How the series are called, and where that is kept.

    Raises
    ------
    UsageError
        If it is not a folder, or the description tells splits or volumes by their paths.
    """

    def __init__(
        self,
        path: Path,
        *,
        data_set: Description | None = None,
        pseudonyms: Pseudonyms | None = None,
    ) -> None:
        super().__init__(path, data_set=data_set or built_in(PLAIN))
        _require_no_paths(self.data_set)
        self._pseudonyms = pseudonyms or Pseudonyms()
        self._series: Mapping[str, Series] = {}
        self._doubtful: Mapping[str, int] = {}

    def identity(self) -> dict[str, str]:
        """``kind``, ``location`` and ``revision``; the folder's name is not among them.

        The revision is a hash of the series' keys and sizes.
        """
        return super().identity() | {"kind": "dicom", "location": "dicom"}

    def list_volumes(self, split: str) -> list[SampleRef]:
        """Every CT series, in natural order of the paths.

        Each file is looked into once, up to its pixels; what it says is kept beside the plan.

        Raises
        ------
        UsageError
            If there is no CT series, or what is kept of them is gone.
        SourceError
            If a folder cannot be listed.
        StorageError
            If it cannot be kept.
        """
        known = self._pseudonyms.load()
        files = scan(self._root, files_below(self._root), known.known if known else {})
        if known is None:
            if all(file.header is None for file in files):
                raise self._nothing_found(Sorted({}, tuple(files)))
            known = self._pseudonyms.settle_salt(self._root)
        salt = known.salt
        found = sorted_out(files, lambda uid: self._pseudonyms.key_of(uid, salt))
        if not found.series:
            raise self._nothing_found(found)
        # Samples of series that are gone can still be told, and labelled again.
        series = known.series | found.series
        register = Register(salt=salt, root=known.root, series=series, others=found.others)
        if register != known:
            self._pseudonyms.save(register)
        self._say_what_was_found(found)
        refs = [
            SampleRef.of_file(f"{key}{_SUFFIX}", series.size_bytes, study_id=key)
            for key, series in found.series.items()
        ]
        refs.sort(key=lambda ref: natural_key(ref.path))
        self._series, self._doubtful = found.series, found.doubtful
        self.aliases = aliases_of(found.series)
        self.unused_tables = [self._relative(path) for path in tables_in(str(self._root))]
        self._revision = self.revision_of(refs, split)
        return refs

    def find_tables(self, split: str) -> None:
        """As of a listing, for :meth:`tables`; there need be no series, where they are known."""
        known = self._pseudonyms.load()
        if known is None or not known.series:
            self.list_volumes(split)
        else:
            self.aliases = aliases_of(known.series)

    def fetch(self, ref: SampleRef, allocate: Allocate) -> FetchedSeries:
        """The files of one series, read straight into the allocated buffer."""
        key = ref.path.removesuffix(_SUFFIX)
        if (series := self._series.get(key)) is None:
            raise FetchError(
                f"{ref.path}: its series is not there any more; bring it back "
                "(private/series.json says which it is), then use --retry-failed"
            )
        if (count := self._doubtful.get(key)) is not None:
            raise FetchError(
                f"{ref.path}: {count} of the files in its folders cannot be read and may be slices "
                "of it (private/series.json says which files, and why); bring them back, or take "
                "them out of these folders if they are none, then use --retry-failed"
            )
        try:
            return fetch_series(self._root, ref.path, series, allocate)
        except FetchError:
            if not self._root.is_dir():
                raise SourceError(
                    "the folder of DICOM is gone; mount it again and resume"
                ) from None
            raise

    def file_of(self, ref: SampleRef) -> Path | None:
        """None: a series has many."""
        return None

    def _say_what_was_found(self, found: Sorted) -> None:
        slices = sum(len(series.files) for series in found.series.values())
        _log.info(
            "%d CT series in %s; left out: %s",
            *(len(found.series), counted(slices, "file"), found.left_out or "nothing"),
        )
        if found.doubtful:
            _log.warning(
                "%s in folders with files that cannot be read and may be slices of a series: each "
                "fails; private/series.json says which files these are, and why",
                counted(len(found.doubtful), "of the series lies", "of the series lie"),
            )
        if several := studies_of_several(found.series):
            _log.info(
                "%s several CT series: tables find those by SeriesInstanceUID, not by "
                "StudyInstanceUID",
                counted(several, "study has", "studies have"),
            )

    def _nothing_found(self, found: Sorted) -> UsageError:
        return UsageError(
            f"the folder of DICOM has no CT series, only {found.left_out or 'nothing'}; pass the "
            "folder that holds the series with --source"
        )


def _require_no_paths(data_set: Description) -> None:
    """Refuse a description that goes by paths, which series of DICOM do not have.

    Raises
    ------
    UsageError
    """
    globs: Iterable[str] = (
        glob for rule in data_set.splits.values() for glob in (*rule.volumes, *rule.fallback)
    )
    if data_set.layout != built_in(PLAIN).layout or any(globs):
        raise UsageError(
            f"the description of {data_set.name} tells splits by folders, and series of DICOM go "
            "by their UIDs, not by paths: leave the globs of its splits out, and let a column of a "
            "table tell them"
        )
