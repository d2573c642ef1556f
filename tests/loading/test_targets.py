"""Where batches go: memory that a GPU has registered, and memory that a consumer may keep.

The runtime of CUDA is a stand-in that keeps account of what is registered; torch itself has no part
in it.
"""

from __future__ import annotations

import gc
import logging
import re
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest

from ctgpu.loading.targets import CudaTarget, HostTarget
from forking import Child

torch = pytest.importorskip("torch")

MIB = 1 << 20


class Runtime:
    """What of ``torch.cuda.cudart()`` is used."""

    def __init__(self) -> None:
        self.status = 0
        self.registered: dict[int, int] = {}

    def cudaHostRegister(self, address: int, size_bytes: int, flags: int) -> int:
        if not self.status:
            self.registered[address] = size_bytes
        return self.status

    def cudaHostUnregister(self, address: int) -> int:
        del self.registered[address]
        return 0


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Runtime:
    runtime = Runtime()
    for name, stand_in in {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "cudart": lambda: runtime,
        "device": lambda _: nullcontext(),
        "Stream": lambda _: "the loader's stream",
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    return runtime


def target() -> Any:
    return CudaTarget(torch.device("cuda"), "HWD", None)


def test_memory_for_a_gpu_is_registered_while_it_is_used(runtime: Runtime) -> None:
    memory = target().allocate(5 * MIB)
    assert runtime.registered == {memory.ctypes.data: 6 * MIB}
    read_into = memory[:MIB].data
    del memory
    gc.collect()
    assert len(runtime.registered) == 1
    del read_into
    gc.collect()
    assert runtime.registered == {}


def test_memory_for_a_gpu_stays_out_of_forked_children(runtime: Runtime) -> None:
    memory = [target().allocate(5 * MIB)]
    memory[0][:] = 1

    def look() -> bytes:
        seen = bytes([memory[0].min(), memory[0].max()])
        memory.clear()
        gc.collect()
        return seen + bytes([len(runtime.registered)])

    child = Child(look)
    memory[0][:] = 2
    # Zeros, and what the parent registered is not the child's to end.
    assert child.sees() == bytes([0, 0, 1])
    assert memory[0].min() == memory[0].max() == 2
    assert len(runtime.registered) == 1


def test_batches_on_the_host_are_inherited() -> None:
    """A consumer that forks while it holds a batch finds the batch in its child."""
    memory = HostTarget("HWD", None, copy=False).allocate(5 * MIB)
    memory[:] = 1
    child = Child(lambda: bytes([memory.min(), memory.max()]))
    memory[:] = 2
    assert child.sees() == bytes([1, 1])


def test_memory_that_cannot_be_registered_serves_with_a_warning(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And torch reports there and then what failed, as it would at the next kernel."""
    unreported = []
    monkeypatch.setattr(torch, "ones", lambda *_, **__: unreported.append("asked") or fail())

    def fail() -> None:
        raise RuntimeError("CUDA error: out of memory")

    runtime.status = 2
    with caplog.at_level(logging.WARNING, "ctgpu"):
        memory = target().allocate(5 * MIB)
    sentence = (
        r"5 MiB of host memory cannot be pinned \(CUDA error 2\).*: choose a smaller prefetch"
    )
    assert re.search(sentence, caplog.text)
    assert unreported == ["asked"]
    memory[:] = 1  # it is there
    assert len(memory) >= 5 * MIB
    assert runtime.registered == {}


def test_uploads_are_waited_for_asleep(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """To wait for the stream, or within a copy that is not asynchronous, keeps a core busy."""
    waits: list[Any] = []

    class Event:
        def __init__(self, *, blocking: bool) -> None:
            self._blocking = blocking

        def record(self, stream: object) -> None:
            self._stream = stream

        def synchronize(self) -> None:
            waits.append((self._blocking, self._stream))

    copies: list[bool] = []
    to = torch.Tensor.to

    def to_host(tensor: Any, device: Any, *, non_blocking: bool = False) -> Any:
        copies.append(non_blocking)
        return to(tensor, "cpu")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.Tensor, "to", to_host)
    stored = np.arange(24, dtype="<f2").reshape(1, 2, 3, 4)
    volume, labels = target().place(stored, np.ones((1, 18), np.float32))
    assert waits == [(True, "the loader's stream")]
    assert copies == [True, True]
    assert volume.shape == (1, 1, 4, 2, 3)
    assert (volume[0, 0].numpy() == stored[0].transpose(2, 0, 1)).all()
    assert labels.shape == (1, 18)
