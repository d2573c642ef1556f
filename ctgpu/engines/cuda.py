"""The CUDA engine: the same arithmetic as the CPU engine's, on one or several GPUs.

Nothing here imports CuPy before an engine is opened.
"""

from __future__ import annotations

import contextlib
import logging
import queue
from collections.abc import Iterator, Sequence
from typing import Any

from ctgpu.buffers import Buffer, Bytes, allocate_pages, allocate_pinned
from ctgpu.engines.base import Engine, Job
from ctgpu.engines.batch import KernelKey, Piece, Span, address_of, aligned, plan_batches, readable
from ctgpu.engines.cupy_runtime import (
    LentStream,
    count_devices,
    cuda_errors,
    import_cupy,
    on_device,
    upload,
    version_text,
    wait_for,
)
from ctgpu.engines.headers import Headers
from ctgpu.engines.nvrtc import Kernels
from ctgpu.engines.on_device import adopt, device_of, output_on_device, queue_jobs
from ctgpu.engines.packing import Placed, header_bytes, pack
from ctgpu.engines.staging import Staging
from ctgpu.errors import DeviceError
from ctgpu.spec import Dtype
from ctgpu.volume.stored import numpy_dtype

log = logging.getLogger(__name__)

# While one volume is computed, one can go up and one come down.
_LANES_PER_DEVICE = 3
# The rest is left to contexts, kernels and others on the GPU.
_SHARE_OF_FREE_MEMORY = 0.8
_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation
_REGISTER_PORTABLE = 1  # cudaHostRegisterPortable: pinned for every device
# What nearly every build needs: int16 as NIfTI stores it, HU, to HWD.
_USUAL_KERNEL = KernelKey(
    "i2", swap=False, fast=0, out=2, rescales=False, clips_before=True, rows=4, pairs=True
)


class CudaEngine(Engine):
    """Runs the fused kernel of ``kernels/cuda`` through CuPy; NVRTC compiles it on first use.

    Every device has several lanes, each a stream with device memory of its own.  A thread that
    calls :meth:`run` takes a free one, so that upload, kernel and download of neighbouring volumes
    overlap.  Lanes of several devices take turns.

    Parameters
    ----------
    ordinals : tuple of int, optional
        GPUs to use, as the CUDA runtime numbers them; all of them by default.
    memory_limit_bytes : int, optional
        Memory to use on each device; by default 80 % of what is free now.  It is shared out among
        the lanes.  A batch that is larger than a lane's share is made smaller, a volume that is
        larger is made slab by slab.

    Attributes
    ----------
    ordinals : tuple of int
        The GPUs in use.
    kernels : Kernels
        What is compiled for them.
    staging : Staging
        Pinned memory for voxels of :meth:`batch_on_device`.

    Raises
    ------
    DeviceError
        If driver, CuPy, NVRTC or the device is missing or unfit.
    """

    #: A volume of the usual size fills a GPU; several at a time only save launches of small ones.
    batch_size = 4

    def __init__(
        self, ordinals: tuple[int, ...] | None = None, *, memory_limit_bytes: int | None = None
    ) -> None:
        self._cupy = import_cupy()
        count = count_devices(self._cupy)
        self.ordinals = tuple(range(count)) if ordinals is None else tuple(dict.fromkeys(ordinals))
        for ordinal in self.ordinals:
            if not 0 <= ordinal < count:
                there = "cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
                raise DeviceError(f"there is no cuda:{ordinal}; this process can see {there}")
        self.kernels = Kernels(self._cupy)
        self._headers = Headers(self._cupy, self.allocate)
        self.staging = Staging(self._cupy, self.allocate)
        self._failure: str | None = None
        self._closed = False
        self._lanes: queue.SimpleQueue[_Lane] = queue.SimpleQueue()
        with self._device_errors():
            limits = {n: self._open(n, memory_limit_bytes) for n in self.ordinals}
            for _ in range(_LANES_PER_DEVICE):
                for ordinal, limit in limits.items():
                    share = limit // _LANES_PER_DEVICE
                    self._lanes.put(_Lane(self._cupy, self.kernels, self._headers, ordinal, share))

    @property
    def name(self) -> str:
        return "cuda:" + ",".join(map(str, self.ordinals))

    @property
    def concurrency(self) -> int:
        return _LANES_PER_DEVICE * len(self.ordinals)

    def run(self, jobs: Sequence[Job], *, threads: int = 1) -> None:
        with self._device_errors():
            lane = self._lanes.get()
            try:
                lane.run(jobs)
            finally:
                self._lanes.put(lane)

    def preprocess_on_device(self, job: Job, stream: int | None = None) -> Any:
        """Make one volume and leave it on the GPU.

        Parameters
        ----------
        job : Job
            As :meth:`batch_on_device` takes them.
        stream : int, optional
            Likewise.

        Returns
        -------
        cupy.ndarray
            Of ``job.plan.spec.stored_shape`` and the spec's type, for bfloat16 its bits as uint16;
            ready for what is queued on `stream` next.  ``torch.from_dlpack`` takes it without a
            copy.

        Raises
        ------
        DeviceError
            If the device fails or its memory does not suffice.
        """
        return self.batch_on_device([job], stream)[0]

    def batch_on_device(
        self,
        jobs: Sequence[Job],
        stream: int | None = None,
        *,
        out: Any = None,
        lent: Sequence[Buffer] | None = None,
    ) -> Any:
        """Make volumes of one spec, and leave them on one GPU as one array.

        Volumes that one kernel serves are one launch, or a few of up to sixteen.

        Parameters
        ----------
        jobs : sequence of Job
            One at least.  Their `voxels` may also be CuPy arrays or, by DLPack, any CUDA arrays
            such as torch tensors, which are read where they lie; all on one device.  Their `out` is
            not used.
        stream : int, optional
            ``cudaStream_t`` to work on, such as ``torch.cuda.current_stream().cuda_stream``; it
            belongs to the device of the voxels, or where all are on the host to the engine's first,
            as `out` does.  CuPy's current stream by default.
        out : cupy.ndarray or CUDA array, optional
            C-contiguous, shape (B, *stored_shape), of the type of the result, to write into.
        lent : sequence of Buffer, optional
            All memory that voxels on the host lie in, of :attr:`staging`: taken back once the
            device has read it, and not waited for.  Without it this waits until host memory is no
            longer read.

        Returns
        -------
        cupy.ndarray
            Shape (B, *stored_shape); else as :meth:`preprocess_on_device`.

        Raises
        ------
        UsageError
            If `out` is something else.
        DeviceError
            If the device fails or its memory does not suffice.
        """
        cupy = self._cupy
        there = [device_of(cupy, job.voxels) for job in jobs]
        ordinal = next((one for one in there if one is not None), self.ordinals[0])
        spec = jobs[0].plan.spec
        shape = (len(jobs), *spec.stored_shape)
        with self._device_errors(), on_device(cupy, ordinal):
            work_on = (
                cupy.cuda.get_current_stream()
                if stream is None
                else cupy.cuda.Stream.from_external(LentStream(stream))
            )
            with work_on:
                if out is not None:
                    out = output_on_device(cupy, out, shape, spec.dtype, ordinal)
                try:
                    result = cupy.empty(shape, numpy_dtype(spec.dtype)) if out is None else out
                    adopted = [
                        Job(adopt(cupy, job.voxels), job.rescale, job.plan, result[row])
                        for row, job in enumerate(jobs)
                    ]
                    held = queue_jobs(cupy, adopted, self.kernels, self._headers, ordinal, work_on)
                except cupy.cuda.memory.OutOfMemoryError as error:
                    wait_for(cupy, work_on)  # some of it may be under way
                    count = f"{len(jobs)} volumes, the first" if len(jobs) > 1 else "a volume"
                    raise DeviceError(
                        f"cuda:{ordinal} has no memory for {count} of shape "
                        f"{jobs[0].plan.source_shape}: free GPU memory, or use device='cpu'"
                    ) from error
                if lent is not None:
                    self.staging.release_after(work_on, lent, held)
                elif held:
                    wait_for(cupy, work_on)  # the caller may change its host memory now
                return result

    def require_output(self, out: Any, shape: tuple[int, ...], dtype: Dtype) -> None:
        """Refuse what :meth:`batch_on_device` cannot write to, before anything is read.

        Raises
        ------
        UsageError
            Naming what is wanted.
        """
        with on_device(self._cupy, self.ordinals[0]):
            output_on_device(self._cupy, out, shape, dtype, self.ordinals[0])

    def allocate(self, size_bytes: int) -> Bytes:
        """Page-aligned pinned host memory, which the device copies from and to by itself."""
        runtime = self._cupy.cuda.runtime

        def register(address: int, pinned_bytes: int) -> None:
            with on_device(self._cupy, self.ordinals[0]):
                runtime.hostRegister(address, pinned_bytes, _REGISTER_PORTABLE)

        def unregister(address: int) -> None:
            # A lost device has nothing registered.
            with (
                contextlib.suppress(runtime.CUDARuntimeError),
                on_device(self._cupy, self.ordinals[0]),
            ):
                runtime.hostUnregister(address)

        try:
            return allocate_pinned(size_bytes, register, unregister)
        except runtime.CUDARuntimeError as error:
            log.warning("%d MiB of host memory cannot be pinned: %s", size_bytes >> 20, error)
            return allocate_pages(size_bytes)

    def describe(self) -> dict[str, Any]:
        runtime = self._cupy.cuda.runtime
        devices = []
        for ordinal in self.ordinals:
            facts = runtime.getDeviceProperties(ordinal)
            devices.append(
                {
                    "ordinal": ordinal,
                    "name": facts["name"].decode(),
                    "compute_capability": f"{facts['major']}.{facts['minor']}",
                    "memory_bytes": int(facts["totalGlobalMem"]),
                }
            )
        return {
            "name": self.name,
            "devices": devices,
            "driver_cuda": version_text(runtime.driverGetVersion()),
            "cupy": self._cupy.__version__,
            "nvrtc": ".".join(map(str, self._cupy.cuda.nvrtc.getVersion())),
        }

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._failure = self._failure or f"{self.name} was closed"
            for _ in range(self.concurrency):  # waits for those at work
                self._lanes.get().close()
            self._headers.close()
            self.staging.close()

    def _open(self, ordinal: int, limit_bytes: int | None) -> int:
        """Bytes of this device to use; also proves that it runs what NVRTC compiles."""
        with on_device(self._cupy, ordinal):
            self.kernels.get(ordinal, _USUAL_KERNEL)
            free, _ = self._cupy.cuda.runtime.memGetInfo()
        return limit_bytes or int(free * _SHARE_OF_FREE_MEMORY)

    @contextlib.contextmanager
    def _device_errors(self) -> Iterator[None]:
        """CUDA's errors as one sentence; after one, the context is beyond use."""
        if self._failure is not None:
            raise DeviceError(self._failure)
        with cuda_errors(
            self._cupy,
            kernel="the kernel",
            otherwise=", or use --device cpu",
            failed=f"{self.name} failed",
            way_out="nothing that was committed is lost; run the same command again, with another "
            "--device if the GPU does not come back",
            on_failure=self._remember,
        ):
            yield

    def _remember(self, failure: str) -> None:
        self._failure = failure


class _Lane:
    """A stream of one device, with the device memory that its batches use."""

    def __init__(
        self,
        cupy: Any,
        kernels: Kernels,
        headers: Headers,
        ordinal: int,
        limit_bytes: int,
    ) -> None:
        self._cupy = cupy
        self._kernels = kernels
        self._headers = headers
        self._ordinal = ordinal
        self._limit_bytes = limit_bytes
        self._memory: Any = None
        with on_device(cupy, ordinal):
            self._stream: Any = cupy.cuda.Stream(non_blocking=True)

    def run(self, jobs: Sequence[Job]) -> None:
        """Fill every job's `out`, in batches that fit."""
        with on_device(self._cupy, self._ordinal), self._stream:
            while True:
                try:
                    for batch in plan_batches(jobs, self._limit_bytes):
                        self._run_batch(batch)
                    return
                except _DeviceMemoryError as error:
                    # Made again from the start: a batch is small and this is rare.
                    self._limit_bytes = error.size_bytes // 2
                    log.warning(
                        "cuda:%d has no %d MiB left; going on with batches of at most %d MiB",
                        self._ordinal,
                        error.size_bytes >> 20,
                        self._limit_bytes >> 20,
                    )

    def close(self) -> None:
        """Give everything back, on the device that it belongs to."""
        with on_device(self._cupy, self._ordinal):
            self._memory = self._stream = None

    def _run_batch(self, batch: Sequence[Piece]) -> None:
        held = [readable(piece.voxels) if piece.voxels.size else piece.voxels for piece in batch]
        spans = [Span.of(voxels) if voxels.size else Span(0, 0, 0) for voxels in held]
        size = aligned(header_bytes(batch))
        sources, outs = [], []
        for piece, span in zip(batch, spans, strict=True):
            sources.append(size)
            outs.append(size + aligned(span.size_bytes))
            size = outs[-1] + aligned(piece.out_bytes)
        base = self._reserve(size)
        placed = [
            Placed(piece, voxels, base + source + span.origin_bytes, base + out)
            for piece, voxels, span, source, out in zip(
                batch, held, spans, sources, outs, strict=True
            )
        ]
        header, launches = pack(placed, base)
        stream = self._stream.ptr
        try:
            self._headers.upload(header, base, self._stream)
            for span, source in zip(spans, sources, strict=True):
                if span.size_bytes:
                    upload(self._cupy, base + source, span.address, span.size_bytes, stream)
            self._kernels.launch(self._ordinal, launches)
            for piece, out in zip(batch, outs, strict=True):
                self._download(piece, base + out)
        finally:
            # Also on an error: nothing may touch the caller's memory after this returns.
            wait_for(self._cupy, self._stream)

    def _download(self, piece: Piece, address: int) -> None:
        runtime, stream = self._cupy.cuda.runtime, self._stream.ptr
        view = piece.out_view()
        if view.flags.c_contiguous:
            runtime.memcpyAsync(
                address_of(view), address, view.nbytes, runtime.memcpyDeviceToHost, stream
            )
            return
        # A slab of HWD: a short run of every row.
        rows, run_bytes = view.shape[0] * view.shape[1], view.shape[2] * view.itemsize
        runtime.memcpy2DAsync(
            address_of(view),
            view.strides[1],
            address,
            run_bytes,
            run_bytes,
            rows,
            runtime.memcpyDeviceToHost,
            stream,
        )

    def _reserve(self, size_bytes: int) -> int:
        """The address of the lane's memory, grown to `size_bytes` and a quarter more.

        Freeing and allocating wait for the whole device, so they must not happen at every volume
        that is a little larger than those before.
        """
        if self._memory is None or self._memory.size < size_bytes:
            self._memory = None
            roomy = max(size_bytes, min(size_bytes + size_bytes // 4, self._limit_bytes))
            try:
                self._memory = self._allocate_on_device(roomy)
            except _DeviceMemoryError:
                self._memory = self._allocate_on_device(size_bytes)
        return int(self._memory.ptr)

    def _allocate_on_device(self, size_bytes: int) -> Any:
        try:
            return self._cupy.cuda.Memory(size_bytes)
        except self._cupy.cuda.memory.OutOfMemoryError as error:
            raise _DeviceMemoryError(size_bytes) from error
        except self._cupy.cuda.runtime.CUDARuntimeError as error:
            if error.status != _OUT_OF_MEMORY:
                raise
            raise _DeviceMemoryError(size_bytes) from error


class _DeviceMemoryError(Exception):
    """The device has no `size_bytes` left."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__(size_bytes)
        self.size_bytes = size_bytes
