"""Who may write which shard, where several processes share a folder.

Network file systems often have no ``flock``, so a lease is a file.  Creating a file exclusively is
atomic everywhere; removing one only if it is still the expected one is not possible anywhere.  So
nobody ever removes or renames a lease to take it: a taker creates a further file, in the next free
slot, and then looks at all of them again.  It holds the lease only if each of the others is one
that it has found dead before.  Of two takers at least one sees the other, and goes away.

A lease is dead if its process is: seen at once on the same host (process id and start time), else
when the heartbeat file of its session has not changed for a minute by the observer's own clock.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from ctgpu.errors import EnvironmentFailure, StorageError, reason_of
from ctgpu.shards import disk
from ctgpu.shards.names import PLAN_NAME, lease_name, parse_lease_name, session_name, shard_name
from ctgpu.shards.untrusted import parse_json, read_file

log = logging.getLogger(__name__)

BEAT_EVERY_S = 10.0
STALE_AFTER_S = 60.0
# One would do if takers never died themselves.
_SLOTS = 4
_LEASE_LIMIT_BYTES = 1 << 16
_SESSION = re.compile(r"[A-Za-z0-9_-]{1,64}")


class LeaseHeld(EnvironmentFailure):
    """Another process writes the shard.

    Parameters
    ----------
    path : Path
        What is being written.
    holder : str
        Who writes it, in words, such as ``process 17 on node3``.
    """

    def __init__(self, path: Path, holder: str) -> None:
        super().__init__(path, holder)
        self.path, self.holder = path, holder

    def __str__(self) -> str:
        return (
            f"{self.path} is being written by {self.holder}; "
            "let it finish, or stop it and run the same command again"
        )


class LeaseLost(StorageError):
    """Another process took this one for dead and has the shard now."""

    @classmethod
    def of(cls, path: Path) -> LeaseLost:
        """For the file that the lease was on."""
        return cls(
            f"{path}: another process took this one for dead and has gone on with it; its work is "
            "kept, run the same command again to take part"
        )


class LeasesBlocked(StorageError):
    """Every slot is taken by a process that is gone, so nobody can have the lease."""


class Lease:
    """The right to write one shard; give it back with :meth:`release`."""

    def __init__(self, name: str, path: Path, content: str) -> None:
        self.name = name
        self._path = path
        self._content = content

    def confirm(self) -> None:
        """Make sure that the lease is still this one's.

        Raises
        ------
        LeaseLost
            If another process took it over: this one did not run for a minute.
        StorageError
            If the folder is gone, or cannot be read.
        """
        with disk.storage_errors(self._path.parent):
            found = _read(self._path)
            if found is None:
                # Where the folder itself is gone, nobody has taken anything over.
                os.stat(self._path.parent)
        if found != self._content:
            raise LeaseLost.of(self._path.parent / self.name)

    def release(self) -> None:
        """Give the lease back; doing so twice is harmless."""
        with contextlib.suppress(OSError, StorageError):
            if _read(self._path) == self._content:
                disk.remove(self._path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


class LeaseSession:
    """One process's leases in one folder, with one heartbeat for all of them.

    Parameters
    ----------
    folder : Path
        The data set's folder, which exists.
    beat_every_s, stale_after_s : float
        Seconds between heartbeats, and without one until a lease of another host is dead.
    clock : callable
        Monotonic seconds.

    Raises
    ------
    StorageError
        If the folder cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        *,
        beat_every_s: float = BEAT_EVERY_S,
        stale_after_s: float = STALE_AFTER_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._beat_every_s = beat_every_s
        self._stale_after_s = stale_after_s
        self._clock = clock
        self._id = secrets.token_hex(8)
        self._seen: dict[str, tuple[str | None, float]] = {}
        self._proved_alive: set[str] = set()
        self._closed = threading.Event()
        self._held: list[Lease] = []
        self._alive = folder / session_name(self._id)
        with disk.storage_errors(folder):
            disk.write_new_file(self._alive, _beat(0))
            try:
                self._clear_dead()
            except BaseException:
                disk.remove(self._alive)
                raise
        self._heart = threading.Thread(target=self._keep_beating, name="ctgpu-lease", daemon=True)
        self._heart.start()

    def acquire(self, index: int) -> Lease:
        """The lease on shard `index`; whether the shard is committed is to be asked afterwards.

        Raises
        ------
        LeaseHeld
            If another process has it, or has not been seen dead for long enough.  Try again later.
        LeasesBlocked
            If dead processes have left a lease in every slot.
        StorageError
            If the folder cannot be written.
        """
        return self._acquire(shard_name(index))

    def acquire_unless_alive(self, index: int) -> Lease:
        """Like :meth:`acquire`, but wait as long as the holder may turn out to be dead.

        Raises
        ------
        LeaseHeld
            Once the holder is known to run.
        StorageError
            If the folder cannot be written.
        """
        while True:
            try:
                return self.acquire(index)
            except LeaseHeld:
                if self._proved_alive & set(self._leases(shard_name(index)).values()):
                    raise
            time.sleep(min(1.0, self._stale_after_s / 10))

    def close(self) -> None:
        """Give every lease back and stop the heartbeat."""
        for lease in self._held:
            lease.release()
        self._closed.set()
        self._heart.join()
        with contextlib.suppress(OSError):
            disk.remove(self._alive)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _acquire(self, name: str) -> Lease:
        with disk.storage_errors(self._folder / name):
            dead = self._leases(name)
            # All of them are looked at, so that their minutes run at the same time.
            if alive := [c for c in dead.values() if not self._is_dead(c)]:
                raise _held(self._folder / name, alive[0])
            free = [slot for slot in range(_SLOTS) if slot not in dead]
            if not free:
                files = ", ".join(lease_name(name, slot) for slot in dead)
                raise LeasesBlocked(
                    f"{self._folder / name} cannot be claimed: {files} are leases of processes "
                    "that are gone; see that nothing builds in this folder, remove these files "
                    "and run the same command again"
                )
            path = self._folder / lease_name(name, free[0])
            content = json.dumps({**identity(), "session": self._id, "id": secrets.token_hex(8)})
            try:
                disk.write_new_file(path, content.encode())
            except FileExistsError:
                raise _held(self._folder / name, _read(path) or "") from None
            others = self._leases(name)
            lease = Lease(name, path, content)
            if others.pop(free[0], None) != content or not others.items() <= dead.items():
                lease.release()
                raise _held(self._folder / name, next(iter(others.values()), ""))
            for slot in others:
                disk.remove(self._folder / lease_name(name, slot))
        self._held.append(lease)
        return lease

    def _leases(self, name: str) -> dict[int, str]:
        contents = {slot: _read(self._folder / lease_name(name, slot)) for slot in range(_SLOTS)}
        return {slot: content for slot, content in contents.items() if content is not None}

    def _is_dead(self, content: str) -> bool:
        owner = _parse(content)
        if owner.get("host") == _host():
            if is_surely_gone(owner):
                return True
            self._proved_alive.add(content)
            return False
        session = owner.get("session")
        # What is no session's name is no path either.
        known = isinstance(session, str) and _SESSION.fullmatch(session) is not None
        beat = _read(self._folder / session_name(str(session))) if known else None
        now = self._clock()
        last, since = self._seen.setdefault(content, (beat, now))
        if beat != last:
            self._seen[content] = (beat, now)
            self._proved_alive.add(content)
            return False
        return now - since >= self._stale_after_s

    def _clear_dead(self) -> None:
        names = {parse_lease_name(entry.name) for entry in os.scandir(self._folder)}
        for name in names - {None}:
            with contextlib.suppress(LeaseHeld, LeasesBlocked):
                self._acquire(str(name)).release()

    def _keep_beating(self) -> None:
        fd = os.open(self._alive, os.O_WRONLY)
        try:
            beat = 0
            while not self._closed.wait(self._beat_every_s):
                beat += 1
                try:
                    os.pwrite(fd, _beat(beat), 0)
                    os.fsync(fd)
                except OSError as error:
                    log.warning("the heartbeat in %s failed: %s", self._folder, reason_of(error))
        finally:
            os.close(fd)


@contextlib.contextmanager
def plan_lock(folder: Path) -> Iterator[None]:
    """Wait for, and hold, the right to create the plan."""
    with LeaseSession(folder) as session:
        while True:
            try:
                lease = session._acquire(PLAN_NAME)
                break
            except LeaseHeld:
                time.sleep(0.2)
        with lease:
            yield


def is_leased(folder: Path, index: int) -> bool:
    """Whether a process, dead or alive, has a lease on shard `index`."""
    name = shard_name(index)
    return any((folder / lease_name(name, slot)).exists() for slot in range(_SLOTS))


def process_start(pid: int) -> str | None:
    """When process `pid` of this host started, in units of its own; None if it does not run."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
        try:
            return str(psutil.Process(pid).create_time())
        except (psutil.Error, ValueError, OverflowError):
            return None
    state, *fields = stat.rpartition(")")[2].split()
    return None if state in "ZX" else fields[18]


def identity() -> dict[str, Any]:
    """This process, as leases name it."""
    return {"host": _host(), "pid": os.getpid(), "started": process_start(os.getpid())}


def is_surely_gone(owner: Any) -> bool:
    """Whether the process with this :func:`identity` ran on this host and has ended.

    Of a process on another host nothing is sure.
    """
    if not isinstance(owner, dict) or owner.get("host") != _host():
        return False
    pid = owner.get("pid")
    return type(pid) is not int or process_start(pid) != owner.get("started")


def _host() -> str:
    """Differs wherever process ids do: by machine, boot and container."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _beat(count: int) -> bytes:
    return b"%020d\n" % count


def _read(path: Path) -> str | None:
    try:
        return read_file(path, _LEASE_LIMIT_BYTES).decode(errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(
            f"{path} cannot be read: {reason_of(error)}; if nothing builds in this folder, "
            "remove it"
        ) from error


def _parse(content: str) -> dict[str, Any]:
    try:
        owner = parse_json(content)
    except ValueError:
        # Created, and not yet written; or no lease of ours.
        return {}
    return owner if isinstance(owner, dict) else {}


def _held(path: Path, content: str) -> LeaseHeld:
    owner = _parse(content)
    host, pid = owner.get("host"), owner.get("pid")
    who = f"process {pid}" if type(pid) is int else "a process of unknown number"
    where = host.split(" ")[0] if isinstance(host, str) else "another host"
    return LeaseHeld(path, f"{who} on {where}")
