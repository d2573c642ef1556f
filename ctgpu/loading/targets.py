"""Where batches go: host memory that is read into and viewed, or a GPU that it is uploaded to."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from ctgpu.buffers import Bytes, allocate_pages, allocate_pinned
from ctgpu.codec import CtzError
from ctgpu.engines.ctz_on_device import Compressed, CtzDecoder, Decoding
from ctgpu.errors import DeviceError, FetchError
from ctgpu.loading.region import to_dhw
from ctgpu.loading.window import Scaling, apply_scalings
from ctgpu.spec import Dtype, Layout, Spec
from ctgpu.volume.masks import MaskFormat
from ctgpu.volume.stored import tensor_of

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

# Masks that are widened at a time stay in the cache.
_PART_VOXELS = 1 << 18

# torch's annotations of its CUDA functions are incomplete, hence Any below.
Tensors = tuple["torch.Tensor", "torch.Tensor"]


class Target(Protocol):
    """Makes tensors of what was read."""

    #: What becomes of the memory that was read into.  ``"lent"``: the tensor is a view of it, and
    #: valid until it is read into again.  ``"given"``: the tensor is a view of it, and it is read
    #: into again only once the tensor and all of its views are gone.  ``"kept"``: the tensor has
    #: memory of its own, so this may be read into again at once.
    memory: Literal["lent", "given", "kept"]

    #: Type of the batch that this memory has room for.  What is stored is read into the last bytes
    #: of the room, so that more channels or a wider type can be made of it from the front.
    dtype: Dtype

    #: Channels that this memory has room for.
    channels: int

    def allocate(self, size_bytes: int) -> Bytes:
        """Memory to read into."""

    def place(
        self, stored: npt.NDArray[Any], room: npt.NDArray[Any], labels: npt.NDArray[Any]
    ) -> Tensors:
        """Volumes as a tensor (B, C, D, H, W), and labels as another.

        Parameters
        ----------
        stored : numpy.ndarray
            What was read, shape (B, axes in the target's layout).
        room : numpy.ndarray
            The memory around it, shape (B, :attr:`channels`, the same), of :attr:`dtype`.
        labels : numpy.ndarray
            Shape (B, classes), float32.
        """

    def mask_dtype(self, masks: MaskFormat) -> np.dtype[Any]:
        """Type of the memory that masks take, which are read into its last bytes."""

    def place_mask(self, stored: npt.NDArray[Any], room: npt.NDArray[Any]) -> torch.Tensor:
        """Masks as a tensor (B, 1, D, H, W): uint8, or int32 where uint16 is stored.

        Parameters
        ----------
        stored : numpy.ndarray
            What was read, shape (B, axes in the target's layout).
        room : numpy.ndarray
            The memory around it, shape (B, 1, the same), of :meth:`mask_dtype`.
        """

    def hand_over(self, *tensors: torch.Tensor) -> None:
        """Called by the consumer's thread before it gets them."""


class HostTarget:
    """Views of the memory that was read into, which the consumer keeps or gets for a while.

    Parameters
    ----------
    spec : Spec
        What is stored.
    layout : {"DHW", "HWD"}
        Order of the axes in memory.
    scalings : sequence of Scaling
        What makes the channels; empty for what is stored.
    copy : bool
        Whether the consumer keeps the memory.
    """

    def __init__(
        self, spec: Spec, layout: Layout, scalings: Sequence[Scaling], *, copy: bool
    ) -> None:
        self._dtype = spec.dtype
        self._layout = layout
        self._scalings = scalings
        self.memory: Literal["lent", "given", "kept"] = "given" if copy else "lent"
        self.dtype: Dtype = scalings[0].dtype if scalings else spec.dtype
        self.channels = max(1, len(scalings))

    def allocate(self, size_bytes: int) -> Bytes:
        return allocate_pages(size_bytes)

    def place(
        self, stored: npt.NDArray[Any], room: npt.NDArray[Any], labels: npt.NDArray[Any]
    ) -> Tensors:
        import torch

        volume = tensor_of(room, self.dtype)
        if self._scalings:
            apply_scalings(tensor_of(stored, self._dtype), self._scalings, volume)
        return to_dhw(volume, self._layout), torch.from_numpy(labels)

    def mask_dtype(self, masks: MaskFormat) -> np.dtype[Any]:
        # torch can do little with uint16.
        return np.dtype(np.uint8 if masks.dtype == "uint8" else np.int32)

    def place_mask(self, stored: npt.NDArray[Any], room: npt.NDArray[Any]) -> torch.Tensor:
        import torch

        if stored.dtype != room.dtype:
            # From the front, as the end of the room is what is read; NumPy minds the overlap.
            wide, narrow = room.reshape(-1), stored.reshape(-1)
            for first in range(0, len(narrow), _PART_VOXELS):
                wide[first : first + _PART_VOXELS] = narrow[first : first + _PART_VOXELS]
        return to_dhw(torch.from_numpy(room), self._layout)

    def hand_over(self, *tensors: torch.Tensor) -> None:
        pass


class CudaTarget:
    """Uploads pinned memory on a stream of its own, where axes are permuted and HU windowed too.

    Parameters
    ----------
    device : torch.device
        Which one.
    spec, layout, scalings
        As :class:`HostTarget` takes them.

    Raises
    ------
    DeviceError
        If torch finds no such device.
    """

    memory: Literal["lent", "given", "kept"] = "kept"

    def __init__(
        self, device: torch.device, spec: Spec, layout: Layout, scalings: Sequence[Scaling]
    ) -> None:
        import torch

        if not torch.cuda.is_available():
            raise DeviceError(
                f"device {device} was asked for, and torch {torch.__version__} finds no CUDA "
                "device; install a torch for CUDA and its driver, or load with device='cpu'"
            )
        count = torch.cuda.device_count()
        if device.index is not None and device.index >= count:
            raise DeviceError(
                f"device {device} was asked for, and there are {count} CUDA devices; choose one "
                f"from cuda:0 to cuda:{count - 1}"
            )
        index = torch.cuda.current_device() if device.index is None else device.index
        self._device = torch.device("cuda", index)
        self._layout = layout
        self._scalings = scalings
        # What is stored is uploaded, and windowed there.
        self.dtype: Dtype = spec.dtype
        self.channels = 1
        self._cuda: Any = torch.cuda
        self._stream = self._cuda.Stream(self._device)

    def allocate(self, size_bytes: int) -> Bytes:
        # torch's own pinned allocations are rounded up to a power of two.
        runtime = self._cuda.cudart()

        def register(address: int, pinned_bytes: int) -> None:
            with self._cuda.device(self._device):
                status = int(runtime.cudaHostRegister(address, pinned_bytes, 0))
            if status:
                raise _NotPinnedError(status)

        def unregister(address: int) -> None:
            with self._cuda.device(self._device):
                runtime.cudaHostUnregister(address)

        try:
            return allocate_pinned(size_bytes, register, unregister)
        except _NotPinnedError as error:
            log.warning(
                "%d MiB of host memory cannot be pinned (CUDA error %d), so uploads are slower and "
                "keep a core busy: choose a smaller prefetch_bytes or batch_size, or raise "
                "`ulimit -l`",
                size_bytes >> 20,
                error.status,
            )
            self._forget_error()
            return allocate_pages(size_bytes)

    def place(
        self, stored: npt.NDArray[Any], room: npt.NDArray[Any], labels: npt.NDArray[Any]
    ) -> Tensors:
        import torch

        with self._queueing():
            uploaded = tensor_of(stored, self.dtype).to(self._device, non_blocking=True)
            turned = to_dhw(uploaded, self._layout).contiguous()
            volume = _scaled(turned, self._scalings) if self._scalings else turned.unsqueeze(1)
            classes = torch.from_numpy(labels).to(self._device, non_blocking=True)
        return volume, classes

    def mask_dtype(self, masks: MaskFormat) -> np.dtype[Any]:
        return masks.numpy_dtype  # widened there

    def place_mask(self, stored: npt.NDArray[Any], room: npt.NDArray[Any]) -> torch.Tensor:
        import torch

        with self._queueing():
            bits = torch.from_numpy(stored.view(np.int16) if stored.itemsize > 1 else stored)
            uploaded = bits.to(self._device, non_blocking=True)
            return _widened(to_dhw(uploaded, self._layout).contiguous().unsqueeze(1))

    def open_decoder(self) -> None:
        """Have compressed volumes decoded on the device, before any are placed.

        Raises
        ------
        DeviceError
            If CuPy, or what it needs, is not there.
        """
        self._decoder = CtzDecoder(self._device.index)

    def place_tiles(
        self,
        samples: Sequence[Compressed],
        data: Bytes,
        box_dhw: tuple[int, int, int],
        labels: npt.NDArray[Any],
    ) -> Tensors:
        """As :meth:`place`, of volumes that the device decodes.

        Parameters
        ----------
        samples : sequence of Compressed
            One for each of the batch.
        data : numpy.ndarray
            uint8, where their tiles lie.
        box_dhw : tuple of int
            Voxels of each.
        labels : numpy.ndarray
            Shape (B, classes), float32.

        Raises
        ------
        FetchError
            If a tile is damaged.
        """
        import torch

        with self._queueing():
            decoded, decoding = self._decode(samples, data, box_dhw, getattr(torch, self.dtype))
            volume = _scaled(decoded, self._scalings) if self._scalings else decoded.unsqueeze(1)
            classes = torch.from_numpy(labels).to(self._device, non_blocking=True)
        _check(decoding)
        return volume, classes

    def place_mask_tiles(
        self, samples: Sequence[Compressed], data: Bytes, box_dhw: tuple[int, int, int]
    ) -> torch.Tensor:
        """As :meth:`place_mask`, of masks that the device decodes; as :meth:`place_tiles`."""
        import torch

        dtype = torch.uint8 if samples[0].head.voxel_bytes == 1 else torch.int16
        with self._queueing():
            decoded, decoding = self._decode(samples, data, box_dhw, dtype)
            mask = _widened(decoded.unsqueeze(1))
        _check(decoding)
        return mask

    def _decode(
        self,
        samples: Sequence[Compressed],
        data: Bytes,
        box_dhw: tuple[int, int, int],
        dtype: torch.dtype,
    ) -> tuple[torch.Tensor, Decoding]:
        import torch

        out = torch.empty((len(samples), *box_dhw), dtype=dtype, device=self._device)
        return out, self._decoder.queue(samples, data, out, self._stream.cuda_stream)

    @contextlib.contextmanager
    def _queueing(self) -> Iterator[None]:
        """A context for what goes to the stream; behind it that is done, whatever came of it.

        Then the memory is free for the next read, and any stream may use the tensors.
        """
        try:
            with self._cuda.stream(self._stream):
                yield
        except BaseException:
            with contextlib.suppress(RuntimeError):  # of the device, where that is what failed
                self._wait()
            raise
        self._wait()

    def _wait(self) -> None:
        # A blocking event sleeps; to synchronise the stream would keep a core busy.
        done = self._cuda.Event(blocking=True)
        done.record(self._stream)
        done.synchronize()

    def hand_over(self, *tensors: torch.Tensor) -> None:
        # They were allocated on our stream; their memory must not be used again there before what
        # the consumer has queued is done.
        stream = self._cuda.current_stream(self._device)
        for tensor in tensors:
            tensor.record_stream(stream)

    def _forget_error(self) -> None:
        """Have torch report what failed here: else this thread's next kernel would be blamed."""
        import torch

        with contextlib.suppress(RuntimeError):
            torch.ones(1, device=self._device)


def _check(decoding: Decoding) -> None:
    try:
        decoding.check()
    except CtzError as error:
        raise FetchError(f"{error}; the tar has changed since it was written") from error


def _widened(mask: torch.Tensor) -> torch.Tensor:
    """A mask as it is handed over: of two bytes a voxel as int32."""
    return mask if mask.element_size() == 1 else mask.int().bitwise_and_(0xFFFF)


def _scaled(stored: torch.Tensor, scalings: Sequence[Scaling]) -> torch.Tensor:
    """(B, C, D, H, W) of (B, D, H, W): in its memory if that fits exactly, else in its own."""
    import torch

    dtype = getattr(torch, scalings[0].dtype)
    batch, *axes = stored.shape
    fits = len(scalings) * dtype.itemsize == stored.itemsize
    out = (
        stored.view(dtype).unsqueeze(1)
        if fits
        else stored.new_empty((batch, len(scalings), *axes), dtype=dtype)
    )
    apply_scalings(stored, scalings, out)
    return out


class _NotPinnedError(Exception):
    """The CUDA runtime refused to register memory."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status
