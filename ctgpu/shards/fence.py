"""What keeps a writer that comes back too late from undoing what its successor did.

A process may stand still for an hour between any two of its calls: a paused machine, a hung file
server.  Its successor has finished the shard by then, so a check made before a call says nothing
about the moment of the call.  Hence each writer has a folder of its own beside the shards, its
fence, and changes the shard by renames alone that go into or out of it.  A successor moves the
fence away, by one rename, before it looks at anything: from then on every change by the one before
fails.  Data is only written to files that were opened inside the fence, and where the one before
may still have them open, a successor goes on in a copy.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from ctgpu.shards import disk
from ctgpu.shards.lease import LeaseLost, identity, is_surely_gone
from ctgpu.shards.names import fence_name, journal_name, partial_name, shard_name
from ctgpu.shards.untrusted import read_json

_OWNER_NAME = "owner.json"
_OWNER_LIMIT_BYTES = 1 << 16


class Fence:
    """One writer's folder; every method that changes the shard fails once another has it.

    Parameters
    ----------
    folder : Path
        The data set's folder.
    index : int
        The shard.
    confirm : callable
        Raises unless the caller still holds the shard's lease.

    Attributes
    ----------
    predecessor_may_write : bool
        A writer before this one did not end, as far as can be seen from here, and may still have
        the shard's files open.

    Raises
    ------
    OSError
        If the folder cannot be written.
    """

    def __init__(self, folder: Path, index: int, confirm: Callable[[], None]) -> None:
        self._folder = folder
        self._index = index
        self._path = folder / fence_name(index, secrets.token_hex(4))
        self.predecessor_may_write = False
        disk.make_folder(self._path)
        try:
            with self.intact():
                disk.write_new_file(self._path / _OWNER_NAME, json.dumps(identity()).encode())
                # In this order: who takes the lease from now on finds this fence.
                confirm()
                self._take_over()
        except BaseException:
            self.close()
            raise

    def path(self, name: str) -> Path:
        """Where a file of that name is inside the fence."""
        return self._path / name

    @contextlib.contextmanager
    def intact(self) -> Iterator[None]:
        """Say :class:`LeaseLost` where a file cannot be found because the fence was moved."""
        try:
            yield
        except FileNotFoundError:
            self._require()
            raise

    def take(self, name: str, as_name: str | None = None) -> bool:
        """Move a file of the data set into the fence; returns whether it was there."""
        try:
            disk.rename(self._folder / name, self.path(as_name or name))
        except FileNotFoundError:
            self._require()
            return False
        return True

    def give(self, name: str, as_name: str | None = None) -> None:
        """Move a file out of the fence into the data set, over what has its name there."""
        with self.intact():
            disk.rename(self.path(name), self._folder / (as_name or name))

    def drop(self, name: str) -> bool:
        """Remove a file of the data set; returns whether it was there."""
        return self.take(name) and disk.remove(self.path(name))

    def write(self, name: str, data: bytes) -> None:
        """Make a file of the data set hold `data`, durably: at every moment all or nothing of it.

        Raises
        ------
        StorageError
            If it cannot be written; the old content stays.
        """
        with disk.storage_errors(self._folder / name), self.intact():
            disk.write_new_file(self.path(name), data)
            self.give(name)
            disk.sync_folder(self._folder)

    def close(self) -> None:
        """Put back what was taken and is still wanted, and remove the folder."""
        with contextlib.suppress(OSError):
            self._restore()
        shutil.rmtree(self._path, ignore_errors=True)

    def _take_over(self) -> None:
        for other in self._folder.glob(fence_name(self._index, "*")):
            if other != self._path:
                try:
                    disk.rename(other, self.path(other.name))
                except FileNotFoundError:
                    self._require()
        owners = [path for path in self._path.rglob(_OWNER_NAME) if path.parent != self._path]
        self.predecessor_may_write = not all(map(_has_ended, owners))
        self._restore()

    def _restore(self) -> None:
        """Give the shard's unfinished files their names back, where a writer was stopped."""
        for name in (partial_name(self._index), journal_name(self._index)):
            for taken in self._path.rglob(name):
                if (self._folder / name).exists():
                    disk.remove(taken)
                else:
                    disk.rename(taken, self._folder / name)

    def _require(self) -> None:
        """Raise if another process has moved the fence."""
        if not self._path.is_dir():
            raise LeaseLost.of(self._folder / shard_name(self._index))


def _has_ended(owner: Path) -> bool:
    try:
        return is_surely_gone(read_json(owner, _OWNER_LIMIT_BYTES))
    except (OSError, ValueError):
        # Stopped before it had opened anything.
        return True


def remove_fences(folder: Path, index: int) -> None:
    """Remove what killed writers left of a committed shard; no process holds its lease."""
    for path in folder.glob(fence_name(index, "*")):
        shutil.rmtree(path, ignore_errors=True)
