"""Volumes in a folder: a local copy of a described data set, or any folder at all."""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from ctgpu.buffers import Allocate
from ctgpu.data_sets import Description, built_in
from ctgpu.data_sets.layout import SplitFolders
from ctgpu.decode import MAX_VOLUME_BYTES
from ctgpu.errors import DecodeError, FetchError, SourceError, UsageError, reason_of
from ctgpu.printable import counted
from ctgpu.shards.names import natural_key
from ctgpu.shards.record import checksum
from ctgpu.shards.untrusted import FileChanged, read_file
from ctgpu.sources.base import Source
from ctgpu.sources.detached import read_volume, size_of, voxels_path
from ctgpu.sources.fetched import Fetched
from ctgpu.sources.strays import without_strays
from ctgpu.sources.table import TABLE_LIMIT_BYTES, read_first
from ctgpu.sources.tree import Tree, look_below, tables_in
from ctgpu.volume.ref import VOLUME_SUFFIXES, SampleRef, Spelling

_log = logging.getLogger(__name__)

_NAMED_COPIES = 4


class FolderSource(Source):
    """A folder of volumes, whose suffixes are :data:`ctgpu.volume.ref.VOLUME_SUFFIXES`.

    Where the data set has telling folders, such as CT-RATE's ``train_fixed``, and they are found,
    at the top or, as in a Hub cache, further down, only those of the split asked for are listed,
    flat or nested, and the tables are those of the data set that these folders belong to, or else
    those at the top; without such folders, every volume belongs to the split asked for.  Of another
    data set the volumes are those that its globs take.  Hidden files and folders are left out, and
    so are partial downloads, which do not end in a volume's suffix.  Links are followed, for a Hub
    cache and many a lab consist of them.

    Parameters
    ----------
    path : Path
        The folder.
    only_top : bool
        Look for telling folders and tables at the top alone.  Plans that name no ``root`` of their
        data set were made so, or come to the same.
    data_set : Description, optional
        By default CT-RATE's.

    Raises
    ------
    UsageError
        If it is not a folder.
    """

    def __init__(
        self, path: Path, *, only_top: bool = False, data_set: Description | None = None
    ) -> None:
        self.data_set = data_set or built_in()
        self._split_folders = SplitFolders(self.data_set)
        self._root = Path(os.path.abspath(path))
        if not self._root.is_dir():
            raise UsageError(f"{path} is not a folder; pass the folder that holds the volumes")
        # "." and links have names that say nothing.
        self._name = self._root.resolve().name
        self._only_top = only_top
        self._stored = Spelling()
        #: Bytes of the files that look like volumes, as listed last; masks mostly are among them.
        self._sizes: Mapping[str, int] = {}
        #: Where the data set begins, below the source.
        self._data_root = ""
        self._revision: str | None = None

    def identity(self) -> dict[str, str]:
        """``kind``, ``location`` and ``revision``, without anything of this machine.

        The location is the folder's name and the revision a hash of the last listing (paths and
        sizes, the CSVs' included), so that a folder that changed is noticed wherever it lies.  A
        data set further down adds its ``root``, relative to the folder.

        Raises
        ------
        ValueError
            If no listing was made yet.
        """
        if self._revision is None:
            raise ValueError("list_volumes comes before identity: the listing is the revision")
        identity = {"kind": "folder", "location": self._name, "revision": self._revision}
        return identity | ({"root": self._data_root} if self._data_root else {})

    def list_volumes(self, split: str) -> list[SampleRef]:
        """Every volume of the split, in natural order of the paths.

        A link that leads nowhere is a volume of 0 bytes, which fails when it is fetched, for it
        may be mended until then; the revision is that of the others.  One that bears no file's name
        may have led to any number of volumes, so it is among the :attr:`missing_folders`.

        Raises
        ------
        UsageError
            If the folder has no volume of the split, or several copies of it.
        SourceError
            If a folder cannot be read, or that of the split is a link that leads nowhere.
        """
        root, folder, below = self._locate(split)
        self._data_root = self._relative(root)
        finds_all = bool(self.data_set.layout.telling)
        self.listed_split = self._split_of(folder) if finds_all else split
        self.missing_folders = {
            self._relative(path): reason for path, reason in sorted(below.missing_folders.items())
        }
        volumes = {self._relative(path): size_bytes for path, size_bytes in below.volumes}
        self._sizes = volumes
        if finds_all:
            refs = [self._ref(path, size_bytes) for path, size_bytes in volumes.items()]
            refs = without_strays(str(self._root), refs, ())
        else:
            refs = self._fitting(volumes, split)
        if not refs and self.missing_folders:
            path, reason = next(iter(self.missing_folders.items()))
            raise SourceError(
                f"{self._root} has no volume of the split {split!r} that can be looked at: "
                f"{len(self.missing_folders)} of its folders lead nowhere, such as {path} "
                f"({reason}); bring them back, then run the same command again"
            )
        if not refs:
            raise self._nothing_of(split, volumes)
        if below.dicom:
            # Their paths may be a patient's name.
            _log.warning(
                "%s: %s not taken, beside %s of another format, such as %s; give the folder of the "
                "series alone to take these",
                *(self._root, counted(len(below.dicom), "file of DICOM is", "files of DICOM are")),
                *(counted(len(refs), "volume"), refs[0].path),
            )
        refs.sort(key=lambda ref: natural_key(ref.path))
        listed = {ref.path for ref in refs}
        self._stored = Spelling(listed)
        missing = listed.intersection(self._relative(path) for path in below.missing)
        if missing:
            _log.warning(
                "%s: %d of %s cannot be looked at, such as %s: each is planned with 0 "
                "bytes to read and room for its sample, and fails unless it is back by its turn; "
                "bring them back, then use --retry-failed",
                *(self._root, len(missing), counted(len(refs), "volume")),
                min(missing, key=natural_key),
            )
        self._revision = self.revision_of((r for r in refs if r.path not in missing), split)
        self.unused_tables = self._unused(below.tables, split)
        return refs

    def find_tables(self, split: str) -> None:
        """As of a listing, for :meth:`tables`; there need be no volume.

        Raises
        ------
        UsageError, SourceError
            If the folder holds several copies of the split, only the other one, or a link in its
            place that leads nowhere, and no table of the split at its top.
        """
        try:
            root, _, _ = self._locate(split)
        except (UsageError, SourceError):
            names = itertools.chain.from_iterable(self._names_of_tables(split))
            if not any((self._root / name).is_file() for name in names):
                raise
        else:
            self._data_root = self._relative(root)

    def table_checksums(self, split: str) -> dict[str, str]:
        """``xxh3_128:<hex>`` of each table of the split that is read, by its path."""
        found = (read_first(self.read_table, names) for names in self._names_of_tables(split))
        return {table[0]: f"xxh3_128:{checksum(table[1])}" for table in found if table}

    def read_table(self, *names: str) -> tuple[str, bytes] | None:
        """The first of these files that exists, by path, and its bytes; else None."""
        for name in self._table_paths(names):
            try:
                return name, read_file(self._root / name, TABLE_LIMIT_BYTES)
            except (FileNotFoundError, NotADirectoryError) as error:
                if (target := _dead_link(self._root / name)) is not None:
                    raise SourceError(f"{self._root / name} {target}, then resume") from error
                continue
            except OSError as error:
                raise SourceError(
                    f"{self._root / name} cannot be read: {reason_of(error)}"
                ) from error
        return None

    def fetch(self, ref: SampleRef, allocate: Allocate) -> Fetched:
        """The bytes of one volume, read straight into the allocated buffer.

        A listed volume may be meant by a path in another of Unicode's normal forms.
        """
        _require_inside(ref.path)
        return self._read(ref.path, self._path_of(ref), allocate, ref.size_bytes)

    def _spelled(self, ref: SampleRef) -> str:
        return self._stored.find(ref.path) or ref.path

    def _fetch_file(self, path: str, allocate: Allocate) -> Fetched | None:
        _require_inside(path)
        if not os.path.lexists(self._root / path) and self._root.is_dir():
            return None
        if (size_bytes := self._size_of(path) or 0) > MAX_VOLUME_BYTES:
            raise FetchError(
                f"{path} has {size_bytes:,} bytes; at most {MAX_VOLUME_BYTES:,} are read of a mask"
            )
        return self._read(path, self._root / path, allocate)

    def _read(
        self, name: str, path: Path, allocate: Allocate, size_bytes: int | None = None
    ) -> Fetched:
        try:
            header, buffer = read_volume(path, allocate, size_bytes)
            return Fetched(name, buffer, self.data_set.arrays, header)
        except FileChanged as error:
            raise FetchError(
                f"{name} was not read: {reason_of(error)}, then use --retry-failed"
            ) from error
        except OSError as error:
            if not self._root.is_dir():
                raise SourceError(f"{self._root} is gone; mount it again and resume") from error
            if (target := _dead_link(path)) is not None:
                raise FetchError(f"{name} {target}, then use --retry-failed") from error
            raise FetchError(f"{name} cannot be read: {reason_of(error)}") from error

    def place_of(self, path: str) -> Path:
        """Where a path below the source is."""
        return self._root / path

    def file_of(self, ref: SampleRef) -> Path | None:
        """Where the file with the voxels of a listed volume is."""
        path = self._path_of(ref)
        try:
            return voxels_path(path)
        except (DecodeError, OSError):
            return path

    def _path_of(self, ref: SampleRef) -> Path:
        return self._root / self._spelled(ref)

    def _locate(self, split: str) -> tuple[str, str, Tree]:
        """Root of the data set, folder of the split's volumes, and what is below that."""
        top = root = str(self._root)
        if not self.data_set.layout.telling:
            return root, root, look_below(root, at_top=True)
        folder = self._split_folder(root, split) or root
        trail: tuple[str, ...] = ()
        beside: list[str] = []
        splits_of = None if self._only_top else self._split_folders
        while True:
            below = look_below(folder, trail, at_top=folder == top, splits_of=splits_of)
            if not below.split_folders:
                self.left_out = sorted(beside, key=_shallow_first)
                return root, folder, below
            trail = (*trail, os.path.realpath(folder))
            root, folder = self._choose(below.split_folders, split)
            beside += [self._relative(path) for path, _ in below.volumes]

    def _choose(self, split_folders_found: list[str], split: str) -> tuple[str, str]:
        """Root and folder of the one data set that has the split."""
        roots: dict[str, str] = {}
        for path in sorted(split_folders_found, key=_shallow_first):
            root, name = os.path.split(os.path.dirname(path))
            if name != self.data_set.layout.root or os.path.dirname(path) == str(self._root):
                root = os.path.dirname(path)
            # A link to a data set is no other copy of it.
            roots.setdefault(os.path.realpath(root), root)
        copies = [(r, folder) for r in roots.values() if (folder := self._split_folder(r, split))]
        if not copies:
            found = min(split_folders_found, key=_shallow_first)
            others = " or ".join(name for name in self.data_set.splits if name != split)
            raise UsageError(
                f"{self._root} has {self.data_set.name}'s folders ({self._relative(found)}) but "
                f"none for the split {split!r}{self._wanted(split)}: pass --split {others}, or "
                "the folder of the volumes that are meant with --source"
            )
        if len(copies) > 1:
            named = [root for root, _ in copies[:_NAMED_COPIES]]
            more = f" and {len(copies) - len(named)} more" if len(copies) > len(named) else ""
            raise UsageError(
                f"{self._root} holds {len(copies)} copies of the split {split!r}: in "
                f"{', '.join(named)}{more}; give one of these folders with --source"
            )
        return copies[0]

    def _split_folder(self, root: str, split: str) -> str | None:
        """The best folder of a split in a data set; None where it has none.

        Raises
        ------
        SourceError
            If that is a link that leads nowhere.
        """
        for base in (os.path.join(root, self.data_set.layout.root), root):
            for name in self._split_folders.of(split):
                folder = os.path.join(base, name)
                if os.path.isdir(folder):
                    return folder
                if (target := _dead_link(Path(folder))) is not None:
                    # Other volumes, such as those of v1, are not what was meant.
                    raise SourceError(f"{folder} {target}, then run the same command again")
        return None

    def _split_of(self, folder: str) -> str | None:
        """The split that a folder is or lies in, by what it is a link to or else its own path."""
        split_of = self._split_folders.split_of
        return split_of(os.path.realpath(folder).split("/")) or split_of(folder.split("/"))

    def _ref(self, path: str, size_bytes: int, key: str | None = None) -> SampleRef:
        provenance = self.data_set.provenance(f"{self._name}/{path}")
        size_bytes = size_of(self._root / path, size_bytes)
        return SampleRef.of_file(path, size_bytes, provenance=provenance, study_id=key)

    def _fitting(self, volumes: Mapping[str, int], split: str) -> list[SampleRef]:
        """The volumes that the globs of a split take, or else those that they fall back on."""
        for globs in self.data_set.alternatives(split):
            refs = [
                self._ref(path, size_bytes, found.key)
                for path, size_bytes in volumes.items()
                if (found := self.data_set.volume(path, globs)) is not None
            ]
            if refs:
                return without_strays(str(self._root), refs, globs)
        return []

    def _nothing_of(self, split: str, volumes: Mapping[str, int]) -> UsageError:
        if volumes:
            globs = ", ".join(itertools.chain(*self.data_set.alternatives(split))) or "none"
            return UsageError(
                f"{self._root} has no volume of the split {split!r}: of {len(volumes)}, such as "
                f"{next(iter(volumes))}, none fits {globs}; correct the globs of "
                f"{self.data_set.name}, or name the folder that holds them with --source"
            )
        wanted = self._wanted(split)
        return UsageError(
            f"{self._root} has no {', '.join(VOLUME_SUFFIXES)} file of the split {split!r}"
            f"{f'{wanted}, or' if wanted else '; wanted'} volumes anywhere below it"
        )

    def _wanted(self, split: str) -> str:
        """How a sentence about a missing split goes on; empty where no folder is its own."""
        folder = next(iter(self._split_folders.of(split)), "")
        root = self.data_set.layout.root
        return f"; wanted {f'{root}/' if root else ''}{folder} in it" if folder else ""

    def _names_of_tables(self, split: str) -> list[tuple[str, ...]]:
        """Of each table and list the paths under which it may be found."""
        rules = self.data_set.rules_of_files
        return [self.data_set.paths(rule, split) for rule in rules]

    def _relative(self, path: str) -> str:
        return path[len(os.path.join(self._root, "")) :]

    def _table_paths(self, names: Iterable[str]) -> list[str]:
        """Where tables of these names may be, relative to the source, best first."""
        roots = [self._data_root + "/", ""] if self._data_root else [""]
        return [root + name for root in roots for name in names]

    def _unused(self, beside: Iterable[str], split: str) -> list[str]:
        """Tables that are not read, relative to the source.

        Those beside the volumes, at the source's top and at the data set's; and its own above the
        source where that is only a part of a data set.

        Parameters
        ----------
        beside : iterable of str
            Paths of those beside the volumes.
        split : str
            The split.
        """
        seen = {self._relative(path) for path in beside}
        for root in {str(self._root), os.path.join(self._root, self._data_root)}:
            seen |= {self._relative(path) for path in tables_in(root)}
        seen.difference_update(self._table_paths(self.data_set.all_paths()))
        names = list(itertools.chain.from_iterable(self._names_of_tables(split)))
        for path in (os.path.join(root, name) for root in self._roots_above() for name in names):
            if os.path.isfile(path):
                seen.add(os.path.relpath(path, self._root))
        return sorted(seen, key=_shallow_first)

    def _roots_above(self) -> list[str]:
        """Where the tables are of the data set whose split the source is in, or is."""
        if not self.data_set.layout.telling:
            return []
        for place in (self._root, *self._root.parents):
            if self._split_folders.among([place.name], parent=place.parent.name, at_top=False):
                is_inner = place.parent.name == self.data_set.layout.root
                return [str(place.parent), *([str(place.parent.parent)] if is_inner else [])]
        return []

    def revision_of(self, refs: Iterable[SampleRef], split: str) -> str:
        """What :meth:`identity` states for a listing of these volumes, with the tables of now."""
        digest = hashlib.sha256()
        for ref in refs:
            digest.update(f"{ref.path}\t{ref.size_bytes}\n".encode(errors="surrogateescape"))
            for path in self._masks_of(ref):
                digest.update(f"{path}\t{self._size_of(path)}\n".encode(errors="surrogateescape"))
        for names in self._names_of_tables(split):
            for name in self._table_paths(names):
                if (self._root / name).is_file():
                    digest.update(f"{name}\t{(self._root / name).stat().st_size}\n".encode())
                    break
        return digest.hexdigest()

    def _masks_of(self, ref: SampleRef) -> list[str]:
        try:
            return [p for _, p in self.data_set.mask_files(self._spelled(ref), ref.study_id)]
        except FetchError:  # said when the volume is fetched
            return []

    def _size_of(self, path: str) -> int | None:
        """Bytes of a mask; None where it is not there."""
        try:
            return self._sizes[path] if path in self._sizes else os.stat(self._root / path).st_size
        except OSError:
            return None


def _require_inside(path: str) -> None:
    """Refuse a path that leads out of the source, whatever a plan says.

    Raises
    ------
    FetchError
    """
    if path.startswith("/") or ".." in path.split("/"):
        raise FetchError(f"{path} leads out of the source; it is not read")


def _dead_link(path: Path) -> str | None:
    """What to say of a link that leads nowhere; None of anything else."""
    if not path.is_symlink() or path.exists():
        return None
    return f"is a link to {os.readlink(path)}, which is not there: bring that back"


def _shallow_first(path: str) -> tuple[object, ...]:
    return path.count("/"), natural_key(path)
