"""Builds whose disk fills up."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ctgpu.building.builder import build
from ctgpu.building.convert import convert_tars
from ctgpu.building.events import Event, SampleWritten, Watcher, ignore
from ctgpu.errors import StorageError
from scenarios.builds import SAMPLES_PER_SHARD, different, make_source, snapshot
from support.phantoms import SPEC


@contextlib.contextmanager
def small_disk(folder: Path, size_bytes: int) -> Iterator[Path]:
    """A file system of its own in memory; :class:`PermissionError` where one may not be mounted."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise PermissionError("there is no mount program") from error
    if mounted.returncode != 0:
        raise PermissionError(mounted.stderr.strip())
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@dataclass
class NoSpace:
    """What came of a disk that fills up: see :func:`fill_and_resume`."""

    points: int = 0
    builds: int = 0
    stopped_by: Counter[str] = field(default_factory=Counter)
    odd_errors: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)


def fill_and_resume(
    work_dir: Path,
    *,
    points: int,
    samples: int,
    seed: int,
    compress: str = "none",
    recoded: bool = False,
) -> NoSpace:
    """Fill a build's disk `points` times at random moments, free it, resume, and compare.

    With `recoded` it is that of a conversion of finished shards to another compression.
    """
    chance, result = random.Random(seed), NoSpace()
    make_source(work_dir / "source", samples)
    options: dict[str, Any] = {
        "source": work_dir / "source",
        "spec": SPEC,
        "samples_per_shard": SAMPLES_PER_SHARD,
        "device": "cpu",
    }
    build(work_dir / "whole", **options, compress=compress)
    expected = snapshot(work_dir / "whole")
    home = work_dir / "home"
    if recoded:
        build(home, **options)
    of_home = snapshot(home) if recoded else {}

    def make(folder: Path, watch: Watcher) -> None:
        if recoded:
            convert_tars(home, folder, compress=compress, watch=watch)
        else:
            build(folder, **options, compress=compress, watch=watch)

    stored_bytes = sum(path.stat().st_size for path in (work_dir / "whole").glob("*.tar"))
    with small_disk(work_dir / "disk", (samples + 4) * (SPEC.size_bytes + (128 << 10))) as disk:
        folder, ballast = disk / "out", disk / "ballast"
        while result.points < points or folder.exists():
            fill: Watcher = ignore
            if result.points < points:
                fill = _Filler(ballast, chance, samples, stored_bytes // samples)
            try:
                make(folder, fill)
            except StorageError as error:
                result.points += 1
                if "no space is left" not in str(error) or "\n" in str(error):
                    result.odd_errors.append(str(error))
                result.stopped_by[str(error).partition(" cannot")[0].rpartition(".")[2]] += 1
                ballast.unlink()
                continue
            result.builds += 1
            result.different += different(snapshot(folder), expected)
            shutil.rmtree(folder)
            ballast.unlink(missing_ok=True)
    result.different += different(snapshot(home) if recoded else {}, of_home)
    return result


class _Filler:
    """A watcher that leaves a random rest of the disk after a random number of samples."""

    def __init__(
        self, ballast: Path, chance: random.Random, samples: int, sample_bytes: int
    ) -> None:
        self._ballast = ballast
        self._after = chance.randrange(samples)
        # Whole samples, part of one, or a few pages for the small files of a commit.
        self._rest_bytes = chance.choice(
            [chance.randrange(3 * sample_bytes), chance.randrange(8) * 4096]
        )

    def __call__(self, event: Event) -> None:
        if not isinstance(event, SampleWritten):
            return
        if self._after == 0:
            free_bytes = shutil.disk_usage(self._ballast.parent).free
            fill_bytes = free_bytes - self._rest_bytes
            if fill_bytes > 0:
                with self._ballast.open("wb") as file:
                    os.posix_fallocate(file.fileno(), 0, fill_bytes // 4096 * 4096)
        self._after -= 1
