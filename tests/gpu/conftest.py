"""A GPU for the tests of this folder: where none can be used, an emulated one."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from runner import MARK

from ctgpu.engines import available_engines


@pytest.fixture(scope="module")
def device() -> Iterator[None]:
    """A device for the engine: the machine's, or ``support.emulated_cupy``'s.

    ``check.py`` is there to find out about the machine's: an emulated one would pass in its place.
    """
    if available_engines()["cuda"] is None or MARK in os.environ:
        yield
        return
    from support.emulated_machine import in_this_process

    with pytest.MonkeyPatch.context() as patch:
        in_this_process(patch)
        yield
