"""What the tests of sources share."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from ctgpu.buffers import BufferPool
from ctgpu.sources.hub.source import HubSource
from ctgpu.sources.hub.transfer import Patience
from ctgpu.testing.hub import LocalHub
from ctgpu.volume.ref import SampleRef

#: Fails in fractions of a second what takes minutes in earnest.
QUICK = Patience(
    attempts=4,
    first_wait_s=0.001,
    longest_wait_s=0.01,
    connect_s=2.0,
    stall_s=0.15,
    slowest_bytes_per_s=1000.0,
)
FOLDER = "dataset/valid_fixed"
VOLUME_BYTES = 300_000
TOKEN = "hf_a-secret-of-nobody"

#: What the fixture ``open_hub`` gives.
Open = Callable[..., HubSource]


def random_bytes(name: str, size: int = VOLUME_BYTES) -> bytes:
    """Bytes that belong to a name."""
    return random.Random(name).randbytes(size)


def file_name(ref: SampleRef) -> str:
    return ref.path.rsplit("/", 1)[-1]


def fetch(source: HubSource, ref: SampleRef, pool: BufferPool | None = None) -> bytes:
    with source.fetch(ref, (pool or BufferPool()).acquire).buffer as buffer:
        assert buffer.size_bytes == ref.size_bytes
        return bytes(buffer.bytes)


def first(source: HubSource) -> SampleRef:
    return source.list_volumes("valid")[0]


def answer_with(hub: LocalHub, monkeypatch: pytest.MonkeyPatch, text: str, **headers: str) -> None:
    def do_get(handler: Any) -> None:
        answer(handler, text, **headers)

    monkeypatch.setattr(hub._server.RequestHandlerClass, "do_GET", do_get)


def answer(handler: Any, text: str, **headers: str) -> None:
    handler.send_response(200)
    for name, value in {"Content-Length": str(len(text)), **headers}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(text.encode())


def starts(hub: LocalHub) -> list[int]:
    """Where in a file each request for one began."""
    return [r.start for r in hub.requests if r.endpoint in ("resolve", "cdn")]
