"""What every scenario does: make a source, build of it, and compare what comes out."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ctgpu.shards.names import TEMPORARY_SUFFIX
from ctgpu.sources.hub import source as hub_module
from ctgpu.sources.hub.transfer import Patience
from ctgpu.testing.ctrate import lay_out_ct_rate
from support.phantoms import chests, study_ids

REPOSITORY = Path(__file__).resolve().parents[3]
SAMPLES_PER_SHARD = 4

#: Fails in fractions of a second what takes minutes in earnest.
QUICK = replace(
    Patience(),
    first_wait_s=0.001,
    longest_wait_s=0.02,
    stall_s=0.3,
    slowest_bytes_per_s=10_000.0,
)


def make_source(root: Path, samples: int, *, broken: int | None = None) -> dict[str, Path]:
    """A CT-RATE tree of phantoms; the sample number `broken` is cut short.  Paths by study id."""
    paths = lay_out_ct_rate(root, chests(study_ids(samples), first_seed=1))
    if broken is not None:
        path = paths[f"valid_{broken}_a_1"]
        os.truncate(path, path.stat().st_size // 2)
    return paths


def snapshot(folder: Path) -> dict[str, Any]:
    """All that two builds of one plan must have in common, by file name.

    That is every byte of every file, but for what records say about the run; files that only an
    interrupted build leaves are part of it, temporary ones are not.
    """
    contents: dict[str, Any] = {}
    for path in sorted(folder.iterdir()):
        if path.name.endswith(TEMPORARY_SUFFIX):
            continue
        content = path.read_bytes()
        if path.suffix == ".json" and path.name.startswith("shard-"):
            contents[path.name] = {k: v for k, v in json.loads(content).items() if k != "run"}
        else:
            contents[path.name] = content
    return contents


def different(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """The names of files that differ, or that only one of two snapshots has."""
    names = sorted(found.keys() | expected.keys())
    return [name for name in names if found.get(name) != expected.get(name)]


@contextlib.contextmanager
def quick_patience() -> Iterator[None]:
    """Builds in this process give failing transfers up after little time."""
    usual = hub_module.Patience
    hub_module.Patience = lambda: QUICK  # type: ignore[misc,assignment]
    try:
        yield
    finally:
        hub_module.Patience = usual  # type: ignore[misc]


class Builder:
    """Runs builds in children of their own; use it as a context.

    Parameters
    ----------
    work_dir : Path
        For the children's log.
    host : str, optional
        What the children take their host to be called; needs the right to ``unshare --uts``.
    """

    def __init__(self, work_dir: Path, host: str | None = None) -> None:
        self._log = work_dir / f"events-{host or 'here'}"
        self._seen = 0
        child = [sys.executable, str(REPOSITORY / "tests/faults/build_child.py")]
        elsewhere = ["unshare", "--uts", "sh", "-c", f'hostname {host} && exec "$@"', "sh"]
        self._process = subprocess.Popen(
            [*elsewhere, *child] if host else child,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        )

    def start(self, folder: Path, options: dict[str, Any], **kill: Any) -> None:
        """Begin a build; `kill` is one of the ways of ``build_child.py``."""
        job = {"folder": str(folder), "log": str(self._log), "options": options, **kill}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()

    def stopped(self) -> int | None:
        """Wait until the child has stopped itself, and give its number; None where it has ended."""
        assert self._process.stdout is not None
        while not select.select([self._process.stdout], [], [], 0.01)[0]:
            text = self._log.read_text() if self._log.exists() else ""
            if line := re.search(r"^stopped \w+ (\d+)$", text, re.MULTILINE):
                self._log.write_text(text.replace(line[0], "was " + line[0]))
                return int(line[1])
        return None

    def wait(self) -> tuple[int, list[list[str]]]:
        """Exit code (negative: the signal that ended it) and the words of the new events."""
        assert self._process.stdout is not None
        code = int(self._process.stdout.readline())
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        new, self._seen = lines[self._seen :], len(lines)
        return code, [line.split(" ", 1) for line in new]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
