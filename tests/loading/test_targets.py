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
from ctgpu.loading.window import rewindow, rewindow_each
from ctgpu.spec import Spec
from ctgpu.volume.masks import MaskFormat
from ctgpu.volume.stored import numpy_dtype, tensor_of
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


class Uploads:
    """What was sent, and what was waited for."""

    def __init__(self) -> None:
        self.copies: list[Any] = []
        self.waits: list[Any] = []


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
    return CudaTarget(torch.device("cuda"), Spec(), "HWD", ())


@pytest.mark.slow
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
    memory = HostTarget(Spec(), "HWD", (), copy=False).allocate(5 * MIB)
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


@pytest.fixture
def uploads(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> Uploads:
    uploads = Uploads()

    class Event:
        def __init__(self, *, blocking: bool) -> None:
            self._blocking = blocking

        def record(self, stream: object) -> None:
            self._stream = stream

        def synchronize(self) -> None:
            uploads.waits.append((self._blocking, self._stream))

    to = torch.Tensor.to

    def to_host(tensor: Any, device: Any, *, non_blocking: bool = False) -> Any:
        uploads.copies.append((tensor.dtype, non_blocking))
        return to(tensor, "cpu").clone()

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.Tensor, "to", to_host)
    return uploads


def test_uploads_are_waited_for_asleep(uploads: Uploads) -> None:
    """To wait for the stream, or within a copy that is not asynchronous, keeps a core busy."""
    stored = np.arange(24, dtype="<f2").reshape(1, 2, 3, 4)
    volume, labels = target().place(stored, stored, np.ones((1, 18), np.float32))
    assert uploads.waits == [(True, "the loader's stream")]
    assert uploads.copies == [(torch.float16, True), (torch.float32, True)]
    assert volume.shape == (1, 1, 4, 2, 3)
    assert (volume[0, 0].numpy() == stored[0].transpose(2, 0, 1)).all()
    assert labels.shape == (1, 18)


@pytest.mark.parametrize("failing", ["scaling", "scaling and waiting"])
def test_memory_is_not_free_while_a_copy_from_it_is_under_way(
    uploads: Uploads, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """Whatever fails behind the upload."""

    def no_memory(*_: object) -> None:
        assert uploads.copies
        assert not uploads.waits
        raise torch.cuda.OutOfMemoryError("no memory")

    monkeypatch.setattr("ctgpu.loading.targets._scaled", no_memory)
    if failing == "scaling and waiting":
        record = torch.cuda.Event.record

        def lost(event: Any, stream: object) -> None:
            record(event, stream)
            event.synchronize()
            raise RuntimeError("the device is lost")

        monkeypatch.setattr(torch.cuda.Event, "record", lost)
    scaling = rewindow(Spec(), (-500.0, 200.0))
    windowed = CudaTarget(torch.device("cuda"), Spec(), "HWD", (scaling,))
    stored = np.zeros((1, 2, 3, 4), "<f2")
    with pytest.raises(torch.cuda.OutOfMemoryError, match="no memory"):
        windowed.place(stored, stored, np.ones((1, 18), np.float32))
    assert uploads.waits == [(True, "the loader's stream")]


@pytest.mark.parametrize("layout", ["HWD", "DHW"])
@pytest.mark.parametrize(
    ("dtype", "hu_per_number", "hu_of_zero"),
    [("float16", 1000, 0), ("bfloat16", 1000, 0), ("int16", 1, 0), ("uint8", 2000 / 255, -1000)],
    ids=["float16", "bfloat16", "int16", "uint8"],
)
def test_a_gpu_is_sent_what_is_stored_and_windows_it(
    uploads: Uploads, dtype: Any, hu_per_number: float, hu_of_zero: float, layout: Any
) -> None:
    spec = Spec(dtype=dtype, layout=layout)
    hu = np.linspace(-990, 990, 2 * 24).reshape(2, 2, 3, 4)
    numbers = torch.from_numpy((hu - hu_of_zero) / hu_per_number)
    kept = numbers.round() if dtype in ("int16", "uint8") else numbers
    kept = kept.type(getattr(torch, dtype))
    bits = kept.view(torch.int16 if dtype == "bfloat16" else kept.dtype).numpy()
    stored = bits.view(numpy_dtype(dtype))
    axes = (0, 3, 1, 2) if layout == "HWD" else (0, 1, 2, 3)
    for scalings in ((), (rewindow(spec, (-500.0, 700.0)),)):
        uploads.copies.clear()
        place = CudaTarget(torch.device("cuda"), spec, spec.layout, scalings)
        assert place.dtype == dtype
        volume, _ = place.place(stored, stored, np.ones((2, 18), np.float32))
        assert uploads.copies[0] == (kept.dtype, True)
        assert volume.is_contiguous()
        expected = kept.permute(axes).unsqueeze(1)
        if not scalings:
            assert volume.dtype == kept.dtype
            assert torch.equal(volume, expected)
        else:
            assert volume.dtype == (torch.bfloat16 if dtype == "bfloat16" else torch.float16)
            exact = (expected.double() * hu_per_number + hu_of_zero - 100) / 600
            half_step = 2**-9 if dtype == "bfloat16" else 2**-12
            assert (volume.double() - exact.clamp(-1, 1)).abs().max() <= half_step + 1e-6
    assert torch.equal(tensor_of(stored, dtype), kept)  # what was read is left as it is


@pytest.mark.parametrize("layout", ["HWD", "DHW"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int16", "uint8"])
def test_a_gpu_makes_channels_of_one_upload(uploads: Uploads, dtype: Any, layout: Any) -> None:
    """The very numbers that the host makes, contiguous."""
    spec = Spec(dtype=dtype, layout=layout)
    numbers = np.random.default_rng(1).uniform(-1, 1, (2, 2, 3, 4))
    kept = torch.from_numpy(numbers * 127 if dtype in ("int16", "uint8") else numbers)
    kept = kept.type(getattr(torch, dtype))
    bits = kept.view(torch.int16 if dtype == "bfloat16" else kept.dtype).numpy()
    stored = bits.view(numpy_dtype(dtype))
    labels = np.ones((2, 18), np.float32)
    for windows in ([(-500.0, 700.0)], ["mediastinum", (-500.0, 700.0), (-100.0, 1000.0)]):
        uploads.copies.clear()
        scalings = rewindow_each(spec, windows)  # type: ignore[arg-type]
        place = CudaTarget(torch.device("cuda"), spec, spec.layout, scalings)
        assert (place.dtype, place.channels) == (dtype, 1)  # of what is read into
        volume, _ = place.place(stored, stored[:, None], labels)
        assert uploads.copies == [(kept.dtype, True), (torch.float32, True)]
        assert volume.is_contiguous()
        host = HostTarget(spec, spec.layout, scalings, copy=True)
        assert host.channels == len(windows)
        room = np.zeros((2, len(windows), 2, 3, 4), numpy_dtype(host.dtype))
        expected, _ = host.place(stored, room, labels)
        assert volume.dtype == expected.dtype
        assert torch.equal(volume, expected)
    assert torch.equal(tensor_of(stored, dtype), kept)  # what was read is left as it is


@pytest.mark.parametrize("layout", ["HWD", "DHW"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_masks_are_widened_where_they_end_up(uploads: Uploads, dtype: Any, layout: Any) -> None:
    """A GPU is sent what is stored; the host widens within the memory that was read into."""
    masks, spec = MaskFormat(dtype), Spec(layout=layout)
    shape = (2, 70, 40, 64)  # more voxels than are widened at a time
    rng = np.random.default_rng(2)
    numbers = rng.integers(0, np.iinfo(dtype).max, shape, masks.numpy_dtype, endpoint=True)
    axes = (0, 3, 1, 2) if layout == "HWD" else (0, 1, 2, 3)
    expected = torch.from_numpy(numbers.astype(np.int32)).permute(axes).unsqueeze(1)
    wanted = torch.uint8 if dtype == "uint8" else torch.int32
    cuda = CudaTarget(torch.device("cuda"), spec, spec.layout, ())
    assert cuda.mask_dtype(masks) == numbers.dtype
    on_gpu = cuda.place_mask(numbers, numbers[:, None])
    assert uploads.copies == [(torch.uint8 if dtype == "uint8" else torch.int16, True)]
    assert uploads.waits == [(True, "the loader's stream")]
    assert on_gpu.is_contiguous()
    host = HostTarget(spec, spec.layout, (), copy=True)
    room = np.full((2, 1, *shape[1:]), 77, host.mask_dtype(masks))
    stored = room.reshape(-1).view(numbers.dtype)[-numbers.size :].reshape(shape)
    stored[...] = numbers
    on_host = host.place_mask(stored, room)
    assert np.shares_memory(on_host.numpy(), room)
    for mask in (on_gpu, on_host):
        assert mask.dtype == wanted
        assert torch.equal(mask.int(), expected)
