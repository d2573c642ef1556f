"""A local Hub of a few files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_cases import FILE, TOKEN

from ctgpu.testing.hub import LocalHub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    root = tmp_path / "root"
    (root / FILE).parent.mkdir(parents=True)
    (root / FILE).write_bytes(os.urandom(100_000))
    (root / "dataset" / "valid_fixed" / "b c.npz").write_bytes(b"abc")
    (root / "README.md").write_text("card")
    with LocalHub(root, token=TOKEN) as served:
        yield served
