"""Changes to the output folder: complete and durable, or one sentence why not."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

from ctgpu.errors import StorageError, reason_of
from ctgpu.shards.names import TEMPORARY_SUFFIX

_STALE_TEMPORARY_S = 3600.0
_CHUNK_BYTES = 16 << 20
_NO_COPY_IN_KERNEL = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM)

_RESUME = "then run the same command again: finished samples are kept"
_WAYS_OUT = {
    errno.ENOSPC: f"no space is left; free some, {_RESUME}",
    errno.EDQUOT: f"the quota is used up; free some space, {_RESUME}",
    errno.EROFS: f"the file system is read-only; remount it, {_RESUME}",
    errno.EACCES: "permission is denied; choose a folder that this account may write to",
    errno.EPERM: "the operation is not permitted; choose a folder that this account may write to",
    errno.ENOENT: f"the folder has vanished; bring it back, {_RESUME}",
    errno.ESTALE: f"the folder has vanished; bring it back, {_RESUME}",
    errno.EMFILE: "too many files are open; raise the limit with `ulimit -n`",
    errno.ENFILE: "too many files are open on this machine; close some",
    errno.ENAMETOOLONG: "the path is too long; choose a shorter output folder",
    errno.EIO: f"the device reports an error; check it, {_RESUME}",
}


@contextlib.contextmanager
def storage_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an :class:`OSError` into the one sentence of a :class:`StorageError`."""
    try:
        yield
    except OSError as error:
        reason = _WAYS_OUT.get(error.errno or 0, reason_of(error))
        raise StorageError(f"{path} cannot be written: {reason}") from error


def write_all(
    fd: int, data: bytes | memoryview, offset: int, *, chunk_bytes: int = _CHUNK_BYTES
) -> None:
    """Write `data` at `offset`, however many calls it takes; the GIL is released in each."""
    view = memoryview(data).cast("B")
    while view:
        written = os.pwrite(fd, view[:chunk_bytes], offset)
        view = view[written:]
        offset += written


def sync_folder(folder: Path) -> None:
    """Make the folder's entries durable, where its file system can."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    except OSError as error:
        # Some network file systems refuse to sync a folder; their entries are synchronous.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(fd)


def write_new_file(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Create `path` with `data`, durably; it must not exist.

    Parameters
    ----------
    path, data
        The file and its content.
    mode : int
        Who may do what with it; the process's mask takes from it.

    Raises
    ------
    FileExistsError
        If it does.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        try:
            write_all(fd, data, 0)
            os.fsync(fd)
        finally:
            # A network file system may report the failed write only here.
            os.close(fd)
    except BaseException:
        remove(path)
        raise


def temporary_beside(path: Path) -> Path:
    """A name that no other writer of `path` takes, and that tells what a dead one has left."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")


@contextlib.contextmanager
def temporary_file(path: Path, data: bytes, mode: int = 0o666) -> Iterator[Path]:
    """A complete, durable file beside `path`; gone at the end unless it was renamed."""
    temporary = temporary_beside(path)
    write_new_file(temporary, data, mode)
    try:
        yield temporary
    finally:
        remove(temporary)


def replace_file(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Make `path` hold `data`: at every moment, a crash included, all of the old or of the new.

    Parameters
    ----------
    path, data, mode
        As :func:`write_new_file` takes them.

    Raises
    ------
    StorageError
        If it cannot be written; the old content stays.
    """
    with storage_errors(path), temporary_file(path, data, mode) as temporary:
        os.rename(temporary, path)
        sync_folder(path.parent)


def create_exclusively(
    path: Path,
    data: bytes,
    lock: Callable[[], contextlib.AbstractContextManager[object]],
    mode: int = 0o666,
) -> bool:
    """Create `path` whole, unless someone else has.

    Parameters
    ----------
    path : Path
        File to create.
    data : bytes
        Its content.
    lock : callable
        Makes the context under which to test and rename, where the file system has no hard links.
    mode : int
        As :func:`write_new_file` takes it.

    Returns
    -------
    bool
        Whether it was created here.

    Raises
    ------
    StorageError
        If it cannot be written.
    """
    with storage_errors(path), temporary_file(path, data, mode) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno == errno.ENOENT and path.exists():
                return False
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
                raise
            with lock():
                if path.exists():
                    return False
                # One that had the lock before, and comes back too late, finds nothing to rename.
                for other in path.parent.glob(f".{path.name}.*{TEMPORARY_SUFFIX}"):
                    if other != temporary:
                        remove(other)
                try:
                    os.rename(temporary, path)
                except FileNotFoundError:
                    return False
        sync_folder(path.parent)
        return True


def rename(old: Path, new: Path) -> None:
    """Give `old` the name `new`, whatever bore it."""
    os.rename(old, new)


def make_folder(path: Path) -> None:
    """Make a folder that does not exist."""
    os.mkdir(path)


def copy_prefix(source_fd: int, target_fd: int, size_bytes: int, offset: int = 0) -> None:
    """Copy the first `size_bytes` of one file into another; shared where the file system can.

    Parameters
    ----------
    source_fd, target_fd, size_bytes
        The files, and how much.
    offset : int
        Where in the other it goes, in bytes.

    Raises
    ------
    OSError
        If the source is shorter, or the target cannot be written.
    """
    done = 0
    in_kernel = hasattr(os, "copy_file_range")
    while done < size_bytes:
        if in_kernel:
            try:
                count = os.copy_file_range(
                    source_fd, target_fd, size_bytes - done, done, offset + done
                )
            except OSError as error:
                if error.errno not in _NO_COPY_IN_KERNEL:
                    raise
                in_kernel = False
                continue
        else:
            part = os.pread(source_fd, min(_CHUNK_BYTES, size_bytes - done), done)
            write_all(target_fd, part, offset + done)
            count = len(part)
        if not count:
            raise OSError(errno.EIO, "it became shorter while it was copied")
        done += count


def remove(path: Path) -> bool:
    """Unlink `path`; returns whether it was there."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True


def remove_stale_temporaries(folder: Path) -> None:
    """Remove what killed processes left half-written, by the file server's own clock."""
    with storage_errors(folder):
        left = [e for e in os.scandir(folder) if e.name.endswith(TEMPORARY_SUFFIX)]
        if not left:
            return
        with temporary_file(folder / "now", b"") as probe:
            now = probe.stat().st_mtime
        for entry in left:
            with contextlib.suppress(FileNotFoundError):
                # Folders are writers' own: see :mod:`ctgpu.shards.fence`.
                if (
                    not entry.is_dir(follow_symlinks=False)
                    and now - entry.stat().st_mtime > _STALE_TEMPORARY_S
                ):
                    os.unlink(entry.path)
