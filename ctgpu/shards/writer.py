"""Writes one shard, so that nothing finished is ever lost and nothing half-finished ever believed.

::

    .tar.partial + .journal ──► both synced ──► .tar ──► .idx ──► .json: committed ──► no journal

A kill at any point leaves a state from which :class:`ShardWriter` goes on: it re-reads what the
journal promises, from the disk itself, and drops everything from the first broken promise on.  A
writer that stood still at any point, and goes on after another has taken over, changes nothing any
more: see :mod:`ctgpu.shards.fence`.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ctgpu.buffers import Bytes
from ctgpu.shards import disk
from ctgpu.shards.fence import Fence
from ctgpu.shards.index import index_text
from ctgpu.shards.journal import Journal, JournalHeader, read_journal
from ctgpu.shards.ledger import LedgerEntry
from ctgpu.shards.names import index_name, journal_name, partial_name, record_name, shard_name
from ctgpu.shards.plan import Plan
from ctgpu.shards.record import Member, SampleEntry, ShardRecord, checksum
from ctgpu.shards.reread import Rereader
from ctgpu.shards.tar import (
    ALIGNMENT_BYTES,
    END_OF_ARCHIVE,
    MASKS,
    PAYLOADS,
    VOLUMES,
    Placement,
    place_sample,
)
from ctgpu.shards.untrusted import JSON_LIMIT_BYTES, open_regular, read_file
from ctgpu.volume.ref import SampleRef

log = logging.getLogger(__name__)

IsCurrent = Callable[[SampleRef, SampleEntry | LedgerEntry], bool]


@dataclass(frozen=True, slots=True)
class PackedSample:
    """A sample ready to be written.

    Attributes
    ----------
    key : str
        As planned.
    volume : numpy.ndarray
        The payload as it is stored, shape (bytes,), uint8; page-aligned memory is written past the
        page cache.
    volume_xxh3_128 : str
        Its :func:`~ctgpu.shards.record.checksum`.
    labels : bytes
        Little-endian float32, one per class; all NaN where there is no label row.
    text : bytes
        The report, UTF-8.
    metadata : bytes
        JSON.
    orientation : str or None
        How its source is stored, such as ``"LPS"``; None where that is not known.
    source_bytes : int or None
        Size of the file that it was made of, where that is not the planned one.
    mask : numpy.ndarray or None
        The mask, as `volume`; of each sample, or of none, as the plan says.
    mask_xxh3_128 : str or None
        Its checksum.
    volume_file : Path or None
        A file that begins with the payload, which is copied from there, shared where the file
        system can.
    compressed : bool
        Volume and mask are `.ctz`.
    """

    key: str
    volume: Bytes
    volume_xxh3_128: str
    labels: bytes
    text: bytes
    metadata: bytes
    orientation: str | None = None
    source_bytes: int | None = None
    mask: Bytes | None = None
    mask_xxh3_128: str | None = None
    volume_file: Path | None = None
    compressed: bool = False

    @property
    def payload_bytes(self) -> int:
        """Bytes of its volume, and of its mask, as they are stored."""
        return len(self.volume) + (0 if self.mask is None else len(self.mask))

    def members(self) -> dict[str, tuple[memoryview, str]]:
        """The bytes of each member, and their checksum, by extension and in order."""
        volume, mask = VOLUMES[self.compressed], MASKS[self.compressed]
        members = {volume: (self.volume.data.cast("B"), self.volume_xxh3_128)}
        if self.mask is not None and self.mask_xxh3_128 is not None:
            members[mask] = self.mask.data.cast("B"), self.mask_xxh3_128
        for extension, data in (("cls", self.labels), ("txt", self.text), ("json", self.metadata)):
            members[extension] = memoryview(data), checksum(data)
        return members


class ShardWriter:
    """Writes, or goes on writing, one shard; the caller holds its lease.

    Parameters
    ----------
    folder : Path
        The data set's folder, which exists.
    plan : Plan
        Its plan.
    index : int
        The shard.
    replace : bool
        Make a committed shard again; the old one stays until the new one is complete.
    confirm : callable
        Raises unless the lease is still held.
    is_current : callable
        Whether a sample, or a failure, that an interrupted writer left is what would become of the
        planned sample now.  It is not asked where that writer only had to commit the shard.

    Raises
    ------
    StorageError
        If the folder cannot be written.
    LeaseLost
        Here and from every method: another process has gone on with the shard.
    ValueError
        If the shard is committed and `replace` is false.
    """

    def __init__(
        self,
        folder: Path,
        plan: Plan,
        index: int,
        *,
        replace: bool = False,
        confirm: Callable[[], None] = lambda: None,
        is_current: IsCurrent = lambda planned, entry: True,
    ) -> None:
        self._folder = folder
        self._plan = plan
        self._index = index
        self._samples = plan.samples_of(index)
        self._replace = replace
        self._confirm = confirm
        self._is_current = is_current
        self._tar = folder / shard_name(index)
        self._partial = folder / partial_name(index)
        self._journal_path = folder / journal_name(index)
        self._record = folder / record_name(index)
        self.done: list[SampleEntry] = []
        self.failed: list[LedgerEntry] = []
        with disk.storage_errors(self._partial):
            self._open()

    @property
    def pending(self) -> Sequence[SampleRef]:
        """The samples that :meth:`append` or :meth:`skip` must be called for next, in order."""
        return self._samples[len(self.done) + len(self.failed) :]

    @property
    def size_bytes(self) -> int:
        """Bytes of the tar so far."""
        return self.done[-1].end if self.done else 0

    def append(self, sample: PackedSample) -> SampleEntry:
        """Write the next sample.

        Parameters
        ----------
        sample : PackedSample
            Its key is that of the first of :attr:`pending`.

        Returns
        -------
        SampleEntry
            Where it is in the tar.

        Raises
        ------
        StorageError
            If it cannot be written; the samples before it are kept.
        """
        planned = self._next(sample.key)
        members = sample.members()
        if tuple(members) != (wanted := self._plan.extensions):
            raise ValueError(
                f"the members of {sample.key} are {', '.join(members)}, and the plan's "
                f"{', '.join(wanted)}"
            )
        sizes = {extension: len(data) for extension, (data, _) in members.items()}
        placement = place_sample(self.size_bytes, sample.key, sizes)
        unknown = _unknown_labels(sample.labels)
        entry = SampleEntry(
            sample.key,
            planned.study_id,
            placement.start,
            placement.end,
            {
                extension: Member(offset, sizes[extension], digest)
                for (extension, (_, digest)), offset in zip(
                    members.items(), placement.offsets, strict=True
                )
            },
            labelled=not unknown.all(),
            orientation=sample.orientation,
            source_bytes=sample.source_bytes,
            partly_labelled=bool(unknown.any() and not unknown.all()),
        )
        with disk.storage_errors(self._partial):
            payloads = {extension: data for extension, (data, _) in members.items()}
            self._write(placement, payloads, sample.volume_file)
            self._journal.append(entry)
        self.done.append(entry)
        return entry

    def skip(self, failure: LedgerEntry) -> None:
        """Note that the next sample has failed; nothing of it is written.

        Raises
        ------
        StorageError
            If the journal cannot be written.
        """
        self._next(failure.key)
        with disk.storage_errors(self._journal_path):
            self._journal.append(failure)
        self.failed.append(failure)

    def commit(self, run: Mapping[str, Any]) -> ShardRecord:
        """Finish the shard, durably; the writer is closed.

        Parameters
        ----------
        run : mapping
            Facts about the run for the record, JSON-ready: engine, timings.

        Raises
        ------
        StorageError
            If it cannot be written.  The shard is then not committed, and the next writer goes on
            from what the disk really holds.
        """
        if self.pending:
            raise ValueError(f"{len(self.pending)} samples of the shard are still pending")
        size_bytes = self.size_bytes + len(END_OF_ARCHIVE)
        record = ShardRecord(
            self._index,
            self._plan.fingerprint,
            size_bytes,
            self.done,
            self.failed,
            dict(run),
            self._plan.shard_version,
        )
        with disk.storage_errors(self._partial):
            disk.write_all(self._fd, END_OF_ARCHIVE, self.size_bytes)
            os.ftruncate(self._fd, size_bytes)
            try:
                os.fsync(self._fd)
                self._journal.sync()
            finally:
                self._files.close()
            self._confirm()
            if self._replace and self._fence.drop(self._record.name):
                disk.sync_folder(self._folder)
            self._fence.take(self._partial.name)
            self._fence.give(self._partial.name, self._tar.name)
            disk.sync_folder(self._folder)
        self._fence.write(index_name(self._index), index_text(record))
        self._fence.write(self._record.name, record.to_json())
        with disk.storage_errors(self._journal_path):
            self._fence.drop(self._journal_path.name)
        self._fence.close()
        return record

    def abandon(self) -> None:
        """Close the files; another writer can go on from here.  Harmless after a commit.

        Raises
        ------
        StorageError
            If the file system reports only now that it could not write.
        """
        with disk.storage_errors(self._partial):
            self._close()

    def _next(self, key: str) -> SampleRef:
        if not self.pending or self.pending[0].key != key:
            raise ValueError(f"{key!r} is not the next sample of {self._tar.name}")
        return self.pending[0]

    def _open(self) -> None:
        self._files = contextlib.ExitStack()
        self._fence = Fence(self._folder, self._index, self._confirm)
        try:
            with self._fence.intact():
                self._settle()
                self._go_on()
        except BaseException:
            self._close()
            raise

    def _settle(self) -> None:
        """Bring what lies there into order: a partial and its journal, or neither."""
        if self._record.exists() and self._tar.exists():
            if not self._replace:
                raise ValueError(f"{self._tar.name} is committed")
        elif self._fence.drop(self._record.name):
            # A record whose tar was deleted; or it would commit the next tar before its time.
            disk.sync_folder(self._folder)
        if self._partial.exists():
            return
        if not self._record.exists() and self._tar.exists() and self._journal_path.exists():
            # Stopped between the two renames of a commit.
            if self._fence.take(self._tar.name, self._partial.name):
                self._fence.give(self._partial.name)
        elif self._fence.drop(self._journal_path.name):
            # It would vouch for failures that are to be tried again.
            disk.sync_folder(self._folder)

    def _go_on(self) -> None:
        """Open the files of the shard, with what is right of them."""
        header = JournalHeader.of(self._index, self._plan)
        kept_bytes, lines = read_journal(self._journal_path, header)
        # Stopped while it was committed: what it was to replace may be half gone.
        is_complete = not self._replace and len(lines) == len(self._samples)
        with _opened(self._partial) as old_fd:
            if old_fd is not None:
                rereader = Rereader(old_fd)
                for line in lines:
                    if not self._keep(line.entry, rereader, is_complete):
                        break
                    kept_bytes = line.end
            self._open_partial(old_fd)
        kept = b""
        if kept_bytes:
            kept = read_file(self._journal_path, JSON_LIMIT_BYTES)[:kept_bytes]
        path = self._fence.path(self._journal_path.name)
        disk.write_new_file(path, kept)
        self._journal = Journal(path, len(kept))
        self._files.callback(self._journal.close)
        if not kept:
            self._journal.begin(header)
        self._fence.give(self._journal_path.name)

    def _open_partial(self, old_fd: int | None) -> None:
        """Open the tar for writing, inside the fence, and give it its name."""
        path = self._fence.path(self._partial.name)
        # Where the one before may still write, its file is not touched and not trusted any more.
        copied = self._fence.predecessor_may_write
        if old_fd is not None and not copied and not self._fence.take(self._partial.name):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self._partial)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        self._files.callback(os.close, self._fd)
        if old_fd is not None and copied:
            disk.copy_prefix(old_fd, self._fd, self.size_bytes)
        self._direct_fd: int | None = None
        if hasattr(os, "O_DIRECT"):
            try:
                self._direct_fd = os.open(path, os.O_WRONLY | os.O_DIRECT)
                self._files.callback(os.close, self._direct_fd)
            except OSError as error:
                _expect_no_direct_io(error)
        self._fence.give(self._partial.name)

    def _keep(
        self, entry: SampleEntry | LedgerEntry, rereader: Rereader, is_complete: bool
    ) -> bool:
        if not self.pending or entry.key != self.pending[0].key:
            return False
        if not is_complete and not self._is_current(self.pending[0], entry):
            return False
        if isinstance(entry, LedgerEntry):
            self.failed.append(entry)
            return True
        if entry.start != self.size_bytes or (fault := rereader.fault(entry)) is not None:
            log.warning("%s: %s; it is made again", self._partial, fault)
            return False
        self.done.append(entry)
        return True

    def _write(
        self, placement: Placement, members: Mapping[str, memoryview], volume_file: Path | None
    ) -> None:
        """Write a sample: what is small in as few pieces as the payloads leave."""
        gathered, position = b"", placement.start
        for (extension, data), frame in zip(members.items(), placement.frames, strict=False):
            gathered += frame
            if extension in PAYLOADS:
                disk.write_all(self._fd, gathered, position)
                position += len(gathered)
                if extension in VOLUMES and volume_file is not None:
                    with volume_file.open("rb") as file:
                        disk.copy_prefix(file.fileno(), self._fd, len(data), position)
                else:
                    self._write_payload(data, position)
                gathered, position = b"", position + len(data)
            else:
                gathered += data
        disk.write_all(self._fd, gathered + placement.frames[-1], position)

    def _write_payload(self, view: memoryview, offset: int) -> None:
        address = np.frombuffer(view, np.uint8).ctypes.data
        if self._direct_fd is not None and address % ALIGNMENT_BYTES == 0:
            whole = len(view) - len(view) % ALIGNMENT_BYTES
            try:
                disk.write_all(self._direct_fd, view[:whole], offset)
            except OSError as error:
                _expect_no_direct_io(error)
                self._direct_fd = None
            else:
                view, offset = view[whole:], offset + whole
        disk.write_all(self._fd, view, offset)

    def _close(self) -> None:
        """Close everything, even if closing something fails."""
        try:
            self._files.close()
        finally:
            self._fence.close()


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int | None]:
    """The file, open for reading; None where there is none."""
    try:
        fd = open_regular(path)
    except FileNotFoundError:
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)


def _unknown_labels(labels: bytes) -> npt.NDArray[np.bool_]:
    """Which of them are NaN, of any bit pattern: adopted ones are stored as they were."""
    unknown: npt.NDArray[np.bool_] = np.isnan(np.frombuffer(labels, "<f4", len(labels) // 4))
    return unknown


def _expect_no_direct_io(error: OSError) -> None:
    """Re-raise anything but a file system's refusal to write past the page cache."""
    if error.errno not in (errno.EINVAL, errno.ENOTSUP):
        raise error
    log.debug("this file system does not write past the page cache")
