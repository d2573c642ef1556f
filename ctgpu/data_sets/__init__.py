"""Data sets, described in files of a few lines: docs/data_sets.md."""

from __future__ import annotations

import functools
import os
from os import PathLike
from pathlib import Path

from ctgpu.data_sets.description import DEFAULT_SPLIT, Description
from ctgpu.errors import UsageError

__all__ = ["BUILT_IN", "CT_RATE_NAME", "DEFAULT_SPLIT", "PLAIN", "Description", "built_in", "named"]

_FOLDER = Path(__file__).parent
_SUFFIX = ".toml"

CT_RATE_NAME = "ct-rate"
#: Any folder of volumes.
PLAIN = "plain"
BUILT_IN = (CT_RATE_NAME, "inspect", "luna16", "merlin", PLAIN, "rad-chestct", "totalsegmentator")


@functools.cache
def built_in(name: str = CT_RATE_NAME) -> Description:
    """One of the descriptions that ctgpu has."""
    return Description.load(path_of_built_in(name))


def path_of_built_in(name: str) -> Path:
    """The file of a description that ctgpu has."""
    return _FOLDER / f"{name}{_SUFFIX}"


def named(dataset: str | PathLike[str]) -> Description:
    """A description by its name or its file.

    Parameters
    ----------
    dataset : str or path
        One of :data:`BUILT_IN`, or a path that ends in ``.toml``.

    Raises
    ------
    UsageError
        If there is none, or it is wrong.
    """
    text = os.fspath(dataset)
    if text in BUILT_IN:
        return built_in(text)
    if text.endswith(_SUFFIX):
        return Description.load(Path(text))
    raise UsageError(
        f"dataset is {text!r}; it is one of {', '.join(BUILT_IN)}, or the path of a description "
        f"that ends in {_SUFFIX}, which `ctgpu describe FOLDER` writes"
    )
