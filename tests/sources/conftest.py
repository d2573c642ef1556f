"""Small sources and a client that does not wait long."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from source_cases import FOLDER, QUICK, random_bytes

from ctgpu.sources.hub.source import HubSource
from ctgpu.testing.hub import LocalHub


@pytest.fixture(autouse=True)
def _no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test sees the token, the endpoint or the proxies of its caller."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A root with three "volumes" of random bytes and one CSV."""
    root = tmp_path / "tree"
    for scan in (1, 2, 10):
        folder = root / FOLDER / f"valid_{scan}" / f"valid_{scan}_a"
        folder.mkdir(parents=True)
        name = f"valid_{scan}_a_1.nii.gz"
        (folder / name).write_bytes(random_bytes(name))
    (root / "dataset" / "metadata").mkdir()
    (root / "dataset" / "metadata" / "validation_metadata.csv").write_text("VolumeName\n")
    return root


@pytest.fixture
def hub(tree: Path) -> Iterator[LocalHub]:
    """A Hub that serves the tree."""
    with LocalHub(tree) as served:
        yield served


@pytest.fixture
def open_hub(hub: LocalHub) -> Iterator[Callable[..., HubSource]]:
    """Opens sources at the Hub, and closes them."""
    opened = []

    def open_it(revision: str | None = None, **options: object) -> HubSource:
        options = {"endpoint": hub.url, "patience": QUICK} | options
        opened.append(HubSource(hub.repo_id, revision, **options))  # type: ignore[arg-type]
        return opened[-1]

    yield open_it
    for source in opened:
        source.close()
