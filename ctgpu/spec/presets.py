"""Contracts by name: those of public projects, each read from that project's own code."""

from __future__ import annotations

import difflib
import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctgpu.arguments import shown
from ctgpu.errors import UsageError

_FILE = Path(__file__).with_suffix(".toml")


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A contract, and where it comes from.

    Attributes
    ----------
    title : str
        The project, and which of its pipelines.
    repository : str
        Its address.
    version : str
        The commit, or the release of a package, that was read.
    files : tuple of str
        What was read there: ``path:first-last`` line.
    spec : mapping
        The fields of its ``Spec`` that are not those of the default one.
    differs : str
        What the project does otherwise; empty where it is nothing.
    mean_hu, most_hu : float or None
        How far its voxels are from these on real CT, at most: on average, and 99.9 % of them.
        None where they are the same but for the last digit.
    precision_hu : float or None
        How far its voxels are from these at most, before the output type rounds them, where it
        does the same in another precision.
    step_share : float
        Share of the voxels that may be a step of the output type apart where nothing else differs.
    """

    title: str
    repository: str
    version: str
    files: tuple[str, ...]
    spec: Mapping[str, Any]
    differs: str = ""
    mean_hu: float | None = None
    most_hu: float | None = None
    precision_hu: float | None = None
    step_share: float = 0.001

    @property
    def sources(self) -> dict[str, str]:
        """The addresses of :attr:`files`."""
        return {file: self._address(*file.rsplit(":", 1)) for file in self.files}

    @property
    def distance(self) -> str:
        """How far the project's voxels are from these, in words."""
        if self.mean_hu is not None and self.most_hu is not None:
            return (
                f"at most {self.mean_hu:g} HU on average, and {self.most_hu:g} HU in 99.9 % of "
                "voxels"
            )
        if self.precision_hu is not None:
            return f"at most {self.precision_hu:g} HU before the output type rounds"
        return f"one step of the output type in at most {100 * self.step_share:g} % of voxels"

    def _address(self, path: str, lines: str) -> str:
        if not self.repository.startswith("https://github.com/"):
            return self.repository
        first, last = lines.split("-")
        return f"{self.repository}/blob/{self.version}/{path}#L{first}-L{last}"


@functools.cache
def presets() -> Mapping[str, Preset]:
    """All of them by name, in the order in which they are listed."""
    with _FILE.open("rb") as file:
        return {name: _preset(values) for name, values in tomllib.load(file).items()}


def _preset(values: dict[str, Any]) -> Preset:
    # TOML has no word for None; this is the command line's.
    spec = {k: None if v == "none" else v for k, v in values.get("spec", {}).items()}
    return Preset(**values | {"files": tuple(values["files"]), "spec": spec})


def preset(name: str) -> Preset:
    """One of them.

    Raises
    ------
    UsageError
        If there is none of that name.
    """
    known = presets()
    if isinstance(name, str) and name in known:
        return known[name]
    near = difflib.get_close_matches(str(name).lower(), known, n=3)
    wanted = f"did you mean {' or '.join(near)}?" if near else f"it is one of {', '.join(known)}"
    raise UsageError(f"preset is {shown(name)}; {wanted}")
