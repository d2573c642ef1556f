"""Builds on the CPU, whose options stand in one place of a file of tests."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import ctgpu
from ctgpu.building.convert import convert_tars


class Build(Protocol):
    """Makes a data set of a source, or goes on with one."""

    def __call__(
        self, folder: Path, source: Path | None = None, **options: Any
    ) -> ctgpu.BuildReport: ...


class Convert(Protocol):
    """Makes a data set of tars, or goes on with one."""

    def __call__(self, pattern: Path, folder: Path, **options: Any) -> ctgpu.BuildReport: ...


def builds(**of_new: Any) -> Build:
    """``ctgpu.build`` with these options, which a folder that was begun has in its plan."""

    def build(folder: Path, source: Path | None = None, **options: Any) -> ctgpu.BuildReport:
        return ctgpu.build(folder, source=source, **_options(folder, of_new, options))

    return build


def conversions(**of_new: Any) -> Convert:
    """``ctgpu.convert_tars`` likewise."""

    def convert(pattern: Path, folder: Path, **options: Any) -> ctgpu.BuildReport:
        return convert_tars(pattern, folder, **_options(folder, of_new, options))

    return convert


def _options(folder: Path, of_new: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    begun = (folder / "plan.json").exists()
    return {"device": "cpu"} | ({} if begun else of_new) | given


def rewrite(made: Path, folder: Path, change: Callable[[str, str, bytes], bytes]) -> Path:
    """A copy of the data set whose members went through `change`."""
    folder.mkdir()
    for name in ("plan.json", "manifest.json"):
        (folder / name).write_bytes((made / name).read_bytes())
    for path in sorted(made.glob("*.tar")):
        with tarfile.open(path) as old, tarfile.open(folder / path.name, "w") as new:
            for info in old:
                key, _, extension = info.name.partition(".")
                file = old.extractfile(info)
                assert file is not None
                content = change(key, extension, file.read())
                info.size = len(content)
                info.pax_headers = {}
                new.addfile(info, io.BytesIO(content))
    return folder
