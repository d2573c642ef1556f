"""What this process may use of the machine."""

from __future__ import annotations

import logging
import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil

from ctgpu.errors import EnvironmentFailure, StorageError, reason_of

_log = logging.getLogger(__name__)


_CGROUP_ROOT = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")
#: Headers, labels, report and metadata that a sample has in a tar beside its volume, generously.
SMALL_MEMBERS_BYTES = 64 << 10

# For what comes and goes: a listing, a record, a library that is loaded late.
_SPARE_FILES = 16
# No file of a data set's folder has a longer name.
_LONGEST_NAME = 64


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_memory_bytes() -> int:
    """The smallest of available memory, cgroup limit and scheduler limit."""
    limits = [int(psutil.virtual_memory().available)]
    for path in _cgroup_limits():
        try:
            text = path.read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            limits.append(int(text))
    # SLURM states megabytes for the node or for each CPU of the job.
    per_node = os.environ.get("SLURM_MEM_PER_NODE", "")
    per_cpu = os.environ.get("SLURM_MEM_PER_CPU", "")
    cpus = os.environ.get("SLURM_CPUS_ON_NODE", "")
    if per_node.isdigit() and int(per_node) > 0:
        limits.append(int(per_node) << 20)
    if per_cpu.isdigit() and cpus.isdigit():
        limits.append((int(per_cpu) * int(cpus)) << 20)
    return min(limits)


def _cgroup_limits() -> Iterator[Path]:
    """Files that limit this process's memory: of its own control group, and of those above it.

    A scheduler limits a job's group, which lies some levels above the process.
    """
    try:
        lines = _OWN_CGROUPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        root, name = _CGROUP_ROOT, "memory.max"
        if controllers:
            if "memory" not in controllers.split(","):
                continue
            root, name = _CGROUP_ROOT / "memory", "memory.limit_in_bytes"
        folder = root / path.lstrip("/")
        while folder != root:
            yield folder / name
            folder = folder.parent
        yield root / name


def default_memory_limit_bytes() -> int:
    """Half of what is available: the byte budget of a build that was given none."""
    return available_memory_bytes() // 2


def free_space_bytes(folder: Path) -> int | None:
    """Free bytes of a folder's file system; None where it does not say.

    Some network and user-space file systems answer with zeros, their size among them.

    Raises
    ------
    StorageError
        If the folder cannot be asked.
    """
    try:
        usage = shutil.disk_usage(folder)
    except OSError as error:
        raise StorageError(f"{folder} cannot be read: {reason_of(error)}") from error
    return usage.free if usage.total else None


def require_free_space(
    folder: Path,
    needed_bytes: int,
    needs: str = "the build needs up to {} more",
    way_out: str = "free some, choose another output folder, or build in parts with --shards",
) -> bool:
    """Refuse to begin what the file system has no room for; warn where that is not known.

    Parameters
    ----------
    folder : Path
        Where it would be written.
    needed_bytes : int
        What it takes.
    needs, way_out : str
        In words, what takes that much, ``{}`` being the size, and what to do where there is less.

    Returns
    -------
    bool
        Whether it is known.

    Raises
    ------
    StorageError
        If fewer than `needed_bytes` are free, or the folder cannot be asked.
    """
    free_bytes = free_space_bytes(folder)
    needs = needs.format(f"{needed_bytes / 1e9:.1f} GB")
    if free_bytes is None:
        _log.warning("the file system of %s does not say how much is free; %s", folder, needs)
    elif free_bytes < needed_bytes:
        raise StorageError(f"{folder} has {free_bytes / 1e9:.1f} GB free and {needs}: {way_out}")
    return free_bytes is not None


def require_open_files(count: int) -> None:
    """Make room for `count` more open files, up to what this account is allowed.

    Raises
    ------
    EnvironmentFailure
        If that is too few.
    """
    needed = int(psutil.Process().num_fds()) + count + _SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise EnvironmentFailure(
            f"only {hard} files may be open at a time and the build needs up to {needed}: raise "
            "the limit with `ulimit -n`, or lower --num-workers"
        )
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    except (OSError, ValueError) as error:  # macOS has a limit below the one that it states
        raise EnvironmentFailure(
            f"{needed} files must be open at a time and the limit cannot be raised to that "
            f"({error}): lower --num-workers"
        ) from error


def require_writable(folder: Path) -> None:
    """Refuse an output folder that could not be made or written, before any work.

    Raises
    ------
    StorageError
        If it, or the nearest folder above it that exists, is no folder or may not be written.
    """
    try:
        nearest = folder.absolute() / ("x" * _LONGEST_NAME)
    except FileNotFoundError as error:
        raise StorageError(
            f"{folder} lies in the working folder, which is gone: change to one that exists"
        ) from error
    while True:
        try:
            os.stat(nearest)
            break
        except FileNotFoundError:
            nearest = nearest.parent
        except OSError as error:
            raise StorageError(
                f"{folder} cannot be written: {reason_of(error)}; choose another output folder"
            ) from error
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise StorageError(
            f"{folder} cannot be written: {nearest} is read-only for this account; choose another "
            "output folder"
        )
