"""Which samples exist, and the bytes of one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ctgpu.data_sets import Description
    from ctgpu.sources.base import Source
    from ctgpu.sources.dicom.private import Pseudonyms

DEFAULT_REPO_ID = "ibrahimhamamci/CT-RATE"


def source_kind(source: Path | None) -> str:
    """What a local source is, by its name; ``"hub"`` where none is given."""
    if source is None:
        return "hub"
    return "tars" if source.name.endswith(".tar") else "folder"


def open_source(
    *,
    repo_id: str | None = None,
    source: Path | str | None = None,
    revision: str | None = None,
    token: str | Literal[False] | None = None,
    endpoint: str | None = None,
    part_count: int = 1,
    temp_dir: Path | None = None,
    only_top: bool = False,
    data_set: Description | None = None,
    kind: str | None = None,
    pseudonyms: Pseudonyms | None = None,
) -> Source:
    """The source that a command names.

    Parameters
    ----------
    repo_id : str, optional
        A data set on the Hub; CT-RATE itself where neither this nor `source` is given.
    source : Path, optional
        A folder instead, or the tars of a WebDataset: one, or a brace pattern or glob.
    revision, token, endpoint, part_count, temp_dir
        For the Hub, see :class:`ctgpu.sources.hub.source.HubSource`.
    only_top
        For a folder, see :class:`ctgpu.sources.folder.FolderSource`.
    data_set : Description, optional
        What lies where, and what is in it; by default CT-RATE's.
    kind : str, optional
        What a plan says that it is; by default a folder is looked at, and is ``"dicom"`` where it
        has files of DICOM and volumes of no other format.
    pseudonyms : Pseudonyms, optional
        For DICOM, see :class:`ctgpu.sources.dicom.source.DicomSource`.

    Raises
    ------
    UsageError
        If both a repository and a folder are given, or a revision for a folder.
    AccessError, SourceError, StorageError
        As the source's constructor.
    """
    from ctgpu.errors import UsageError

    if source is not None:
        if repo_id is not None or revision is not None:
            raise UsageError("--source names a folder; --repo-id and --revision are for the Hub")
        path = Path(source)
        if source_kind(path) == "tars":
            from ctgpu.sources.tars import TarSource

            return TarSource(path, data_set=data_set)
        if kind == "dicom" or (kind is None and path.is_dir() and _holds_dicom(path)):
            from ctgpu.sources.dicom.source import DicomSource

            return DicomSource(path, data_set=data_set, pseudonyms=pseudonyms)
        from ctgpu.sources.folder import FolderSource

        return FolderSource(path, only_top=only_top, data_set=data_set)
    from ctgpu.sources.hub.source import HubSource

    return HubSource(
        repo_id or DEFAULT_REPO_ID,
        revision,
        token=token,
        endpoint=endpoint,
        part_count=part_count,
        temp_dir=temp_dir,
        data_set=data_set,
    )


def _holds_dicom(path: Path) -> bool:
    from ctgpu.sources.dicom.walk import holds_dicom

    return holds_dicom(path)
