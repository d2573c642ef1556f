"""Fuzzing by Atheris, told which lines of imports run, from an editable installation too."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from typing import Any

import atheris
from atheris.import_hook import AtherisMetaPathFinder


class _SourceFiles:
    """A finder whose modules have a loader that Atheris can replace."""

    def __init__(self, finder: Any) -> None:
        self._finder = finder

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        spec: ModuleSpec | None = self._finder.find_spec(name, path, target)
        if spec is not None and spec.origin is not None and spec.origin.endswith(".py"):
            spec.loader = SourceFileLoader(name, spec.origin)
        return spec


@contextlib.contextmanager
def instrumented(*packages: str, comparisons: bool = True) -> Iterator[None]:
    """Have what is imported within instrumented, where it is of these top packages.

    An editable installation has a loader of its own, which Atheris wraps without effect: it then
    says that it instruments a module, and hears nothing of it.  Nor are `comparisons` for modules
    that compare arrays: Atheris keeps every one of these, a kilobyte a run.
    """
    before = sys.meta_path[:]
    finders = [
        _SourceFiles(finder) if type(finder).__module__.startswith("_editable") else finder
        for finder in before
    ]
    sys.meta_path[:] = [AtherisMetaPathFinder(set(packages), set(), False, comparisons), *finders]
    try:
        yield
    finally:
        sys.meta_path[:] = before


def fuzz(run_one: Callable[[bytes], None], write_seeds: Callable[[Path], None]) -> None:
    """Fuzz from seeds, and the corpora of the command line, until libFuzzer's options say stop."""
    folders = [a for a in sys.argv[1:] if not a.startswith("-")]
    options = [a for a in sys.argv[1:] if a.startswith("-")]
    with tempfile.TemporaryDirectory() as seeds:
        write_seeds(Path(seeds))
        atheris.Setup([sys.argv[0], *folders, *options, seeds], run_one)
        atheris.Fuzz()
