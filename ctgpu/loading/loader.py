"""Batches for training: threads read straight into reused batch buffers, ahead of the consumer."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xxhash

from ctgpu.buffers import Buffer, BufferPool
from ctgpu.errors import DeviceError, MismatchError, SampleError, UsageError
from ctgpu.limits import usable_cores
from ctgpu.loading.dataset import Labels, Volume, VolumeDataset
from ctgpu.loading.order import EpochOrder, Indices, Share
from ctgpu.loading.region import Shape, random_start, stored_order
from ctgpu.loading.targets import CudaTarget, HostTarget, Target
from ctgpu.loading.window import rewindow

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

Batch = dict[str, Any]
Transform = Callable[[Batch], Batch]

# A batch stays valid until the next but one is asked for.
_VALID_BATCHES = 2
# More threads than this do not make one machine's memory or disks faster.
_MOST_THREADS = 8


@dataclass(frozen=True, slots=True)
class _Pending:
    """A batch being read, and the memory it is read into."""

    batch: Future[Batch]
    buffer: Buffer


class VolumeLoader:
    """Endless epochs of batches; made by :func:`make_loader`, which says what it does.

    ``for batch in loader`` gives one epoch, and the next one another order.  Iterate it in one
    thread at a time.
    """

    def __init__(
        self,
        dataset: VolumeDataset,
        *,
        batch_size: int,
        order: EpochOrder,
        drop_last: bool,
        target: Target,
        prefetch_batches: int,
        threads: int,
        skip_bad: bool,
        box: Shape | None,
        transform: Transform | None,
        place: tuple[int, int] | None,
    ) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.drop_last = drop_last
        self._order = order
        self._target = target
        self._prefetch_batches = prefetch_batches
        self._threads = threads
        self._skip_bad = skip_bad
        self._box = box
        self._transform = transform
        self._place = place
        self._pool = BufferPool(allocate=target.allocate)
        self._lent: deque[Buffer] = deque()
        self._epoch = 0
        self._position = 0
        self._resumed = False

    @property
    def epoch(self) -> int:
        """The epoch that is being read, or comes next."""
        return self._epoch

    @property
    def sampler(self) -> VolumeLoader:
        """Itself: Lightning calls ``loader.sampler.set_epoch``."""
        return self

    @property
    def buffer_bytes(self) -> int:
        """Host memory that the batch buffers take now; it grows no more after the first epoch."""
        return self._pool.lent_bytes + self._pool.idle_bytes

    def __len__(self) -> int:
        """Steps of a whole epoch: the same number on every rank."""
        return self._share().steps(len(self.dataset))

    def set_epoch(self, epoch: int) -> None:
        """Have the next iteration begin `epoch`; one that :meth:`load_state_dict` restored goes on.

        Epochs count on by themselves; this is for those who count them too.

        Raises
        ------
        UsageError
            If it is negative.
        """
        if epoch < 0:
            raise UsageError(f"epoch is {epoch}; epochs count from 0")
        if not (self._resumed and epoch == self._epoch):
            self._epoch, self._position, self._resumed = epoch, 0, False

    def state_dict(self) -> dict[str, Any]:
        """Where it is: JSON-ready, the same on every rank, exact at every step.

        It counts what was handed out, not what was read ahead.
        """
        return {
            "epoch": self._epoch,
            "position": self._position,
            **self._identity(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was called, also on another number of ranks.

        Parameters
        ----------
        state : mapping
            What it returned.

        Raises
        ------
        UsageError
            If it is anything else.
        MismatchError
            If the samples or their order are not those of the state.
        """
        try:
            epoch, position = state["epoch"], state["position"]
        except (KeyError, TypeError) as error:
            raise UsageError("this is not the state of a ctgpu loader") from error
        if other := [
            f"{name}: found {state.get(name)!r}, wanted {value!r}"
            for name, value in self._identity().items()
            if state.get(name) != value
        ]:
            raise MismatchError(
                f"the state is that of another loader ({'; '.join(other)}): make the loader with "
                "the same data set and order, or begin a new epoch with set_epoch"
            )
        if not (type(epoch) is type(position) is int and epoch >= 0):
            raise UsageError("this is not the state of a ctgpu loader")
        if not 0 <= position <= len(self.dataset):
            raise UsageError(f"the state's position {position} is not within the data set")
        self._epoch, self._position, self._resumed = epoch, position, True

    def __iter__(self) -> Iterator[Batch]:
        """The batches of the current epoch, or what :meth:`load_state_dict` left of it.

        Raises
        ------
        UsageError
            If the samples do not fill one step.
        FetchError, StorageError
            If a sample is damaged, or its shard is gone; at its batch.
        """
        share, total = self._share(), len(self.dataset)
        if share.steps(total) == 0:
            raise UsageError(
                f"{total} samples do not fill one step of {share.world_size} ranks × "
                f"{share.batch_size}; choose a smaller batch_size, or drop_last=False"
            )
        # Decided at the first batch, not earlier: Lightning makes iterators that it never uses.
        if not self._resumed:
            # Those who count steps by len() never ask for what comes after the last.
            if share.steps(total - self._position) == 0:
                self._epoch += 1
            self._position = 0
        self._resumed = False
        order = self._order.of(self._epoch)
        steps = iter(_positions(share, total, self._position))
        readers = ThreadPoolExecutor(self._threads, "ctgpu-read")
        assembler = ThreadPoolExecutor(1, "ctgpu-assemble")
        ahead: deque[_Pending] = deque()

        def read_next() -> None:
            if (position := next(steps, None)) is not None:
                ahead.append(self._begin(readers, assembler, order, share.batch(total, position)))

        try:
            for _ in range(self._prefetch_batches):
                read_next()
            while ahead:
                while len(self._lent) >= _VALID_BATCHES:
                    self._lent.popleft().release()
                read_next()
                batch = ahead[0].batch.result()
                done = ahead.popleft()
                if self._target.shares_memory:
                    self._lent.append(done.buffer)
                self._target.hand_over(batch["volume"], batch["labels"])
                self._position = share.after(total, self._position)
                yield batch if self._transform is None else self._transform(batch)
            self._epoch, self._position = self._epoch + 1, 0
        finally:
            readers.shutdown(cancel_futures=True)
            assembler.shutdown(cancel_futures=True)
            for pending in ahead:
                pending.buffer.release()

    def _begin(
        self,
        readers: ThreadPoolExecutor,
        assembler: ThreadPoolExecutor,
        order: Indices,
        positions: range,
    ) -> _Pending:
        """Have one batch read and assembled."""
        box = self._box or self.dataset.spec.stored_shape
        # Smaller batches take the memory of a whole one, so that the pool keeps to one size.
        buffer = self._pool.acquire(2 * self.batch_size * int(np.prod(box)))
        stored = buffer.array((len(positions), *box), "<f2")
        reads = [
            readers.submit(self._read, order, position, self._epoch, stored[row])
            for row, position in enumerate(positions)
        ]
        return _Pending(assembler.submit(self._assemble, buffer, stored, reads), buffer)

    def _read(
        self, order: Indices, position: int, epoch: int, out: Volume
    ) -> tuple[str, Labels, str]:
        """Read the sample at `position`, or the next good one of the order."""
        attempts = len(order) if self._skip_bad else 1
        for step in range(attempts):
            index = int(order[(position + step) % len(order)])
            start = (
                random_start(
                    self.dataset.spec.stored_shape,
                    self._box,
                    seed=self._order.seed,
                    epoch=epoch,
                    index=index,
                )
                if self._box
                else (0, 0, 0)
            )
            try:
                return self.dataset.study_ids[index], *self.dataset.read_into(index, out, start)
            except SampleError as error:
                if step == attempts - 1:
                    raise
                log.warning("%s; the next sample takes its place in this epoch", error)
        raise AssertionError("unreachable")

    def _assemble(
        self, buffer: Buffer, stored: Volume, reads: list[Future[tuple[str, Labels, str]]]
    ) -> Batch:
        # All are waited for: none may still be reading when the buffer is used again.
        samples = [read.result() for read in reads]
        volume, labels = self._target.place(stored, np.stack([labels for _, labels, _ in samples]))
        if not self._target.shares_memory:
            buffer.release()
        return {
            "volume": volume,
            "labels": labels,
            "report": [report for _, _, report in samples],
            "study_id": [study_id for study_id, _, _ in samples],
        }

    def _share(self) -> Share:
        rank, world_size = self._place or _distributed_place()
        return Share(self.batch_size, rank, world_size, self.drop_last)

    def _identity(self) -> dict[str, Any]:
        keys = "\n".join(self.dataset.study_ids)
        return {
            "samples": xxhash.xxh3_128_hexdigest(keys.encode()),
            "shuffle": self._order.shuffle,
            "seed": self._order.seed,
            "shuffle_window_bytes": self._order.window_bytes,
        }


def make_loader(
    dataset: VolumeDataset | str | PathLike[str],
    batch_size: int = 1,
    *,
    shuffle: bool = False,
    seed: int = 0,
    shuffle_window_bytes: int | None = None,
    drop_last: bool = False,
    device: str | torch.device = "cpu",
    prefetch_bytes: int | None = None,
    num_threads: int | None = None,
    copy: bool = False,
    on_error: Literal["raise", "skip"] = "raise",
    window: str | tuple[float, float] | None = None,
    random_crop_hwd: tuple[int, int, int] | None = None,
    transform: Transform | None = None,
    rank: int | None = None,
    world_size: int | None = None,
) -> VolumeLoader:
    """A loader for training with torch.

    A batch is a dictionary: ``volume`` (B, 1, D, H, W) float16, ``labels`` (B, classes) float32,
    ``report`` and ``study_id``, lists of B texts.  On the host the volume is a view of memory that
    is used again: **it is valid until the next but one batch is asked for**, unless `copy` is set.
    On a GPU it is a tensor of its own.

    The order depends on `seed` and the epoch alone, not on the number of ranks: step by step, the
    batches of all ranks together are the order.  Every rank has the same number of steps, and of
    samples in each.

    Parameters
    ----------
    dataset : VolumeDataset or path
        The samples; a path is opened with ``verify="first"``.
    batch_size : int
        Samples of one batch of one rank.
    shuffle : bool
        Another order each epoch.
    seed : int
        Of the order and of the crops, from 0.
    shuffle_window_bytes : int, optional
        Mix only samples of shards, drawn at random, that have this many bytes together, so that
        reads stay near each other.  Shuffling itself takes no memory; default: mix all.
    drop_last : bool
        Leave out, in each epoch, what does not fill a step of all ranks.  Otherwise the last
        batches are smaller, and where the ranks could not have equal ones, as few samples as
        needed (fewer than there are ranks) are repeated from the beginning of the order.
    device : str or torch.device
        ``"cpu"``, or ``"cuda[:N]"``: read into pinned memory, uploaded and permuted on a stream of
        its own.
    prefetch_bytes : int, optional
        Volumes to read ahead, one batch at least; default two batches.  Host buffers take this and
        two batches more; on a GPU, as much device memory again.
    num_threads : int, optional
        Reader threads; default one for each usable core, at most 8.
    copy : bool
        Give each batch on the host memory of its own.
    on_error : {"raise", "skip"}
        A sample that is damaged raises FetchError, or is left out with a warning in the log; the
        next good one of the order takes its place, so that batches keep their size.  A shard that
        is gone raises StorageError either way.
    window : str or tuple of float, optional
        Map another HU window to [-1, 1]: a name of :data:`ctgpu.loading.WINDOWS`, or (lo, hi).
    random_crop_hwd : tuple of int, optional
        A random box of this many voxels (H, W, D) instead of the whole volume.  Once a volume is
        verified, only the rows of the box are read.
    transform : callable, optional
        Takes each batch and returns what the consumer gets; on a GPU it runs there, on the
        consumer's stream.
    rank, world_size : int, optional
        Which share of each step is ours; default those of ``torch.distributed`` where it is
        initialised when an epoch begins, else 0 of 1.

    Raises
    ------
    UsageError, DeviceError, MismatchError, StorageError
        If an argument is outside its domain, torch or its CUDA device is missing, or the data set
        cannot be opened.
    """
    torch = _import_torch()
    if not isinstance(dataset, VolumeDataset):
        dataset = VolumeDataset(dataset)
    if len(dataset) == 0:
        raise UsageError("the data set has no samples to load")
    for name, value, least in (
        ("batch_size", batch_size, 1),
        ("seed", seed, 0),
        ("prefetch_bytes", prefetch_bytes, 0),
        ("shuffle_window_bytes", shuffle_window_bytes, 1),
        ("num_threads", num_threads, 1),
    ):
        if value is not None and value < least:
            raise UsageError(f"{name} is {value}; it takes {least} at least")
    if on_error not in ("raise", "skip"):
        raise UsageError(f"on_error is {on_error!r}; it is 'raise' or 'skip'")
    spec = dataset.spec
    box = None
    if random_crop_hwd is not None:
        if len(random_crop_hwd) != 3 or any(
            not 1 <= k <= n for k, n in zip(random_crop_hwd, spec.shape_hwd, strict=True)
        ):
            raise UsageError(
                f"random_crop_hwd is {random_crop_hwd}; it must fit within {spec.shape_hwd}"
            )
        box = stored_order(random_crop_hwd, spec.layout)
    batch_bytes = 2 * batch_size * int(np.prod(box or spec.stored_shape))
    scaling = None if window is None else rewindow(spec, window)
    where = torch.device(device)
    if where.type not in ("cpu", "cuda"):
        raise UsageError(f"device is {device}; it is 'cpu' or 'cuda[:N]'")
    target: Target = (
        HostTarget(spec.layout, scaling, copy=copy)
        if where.type == "cpu"
        else CudaTarget(where, spec.layout, scaling)
    )
    order = EpochOrder(
        [len(shard.samples) for shard in dataset.shards],
        spec.size_bytes,
        shuffle,
        seed,
        shuffle_window_bytes,
    )
    return VolumeLoader(
        dataset,
        batch_size=batch_size,
        order=order,
        drop_last=drop_last,
        target=target,
        prefetch_batches=2 if prefetch_bytes is None else max(1, prefetch_bytes // batch_bytes),
        threads=num_threads or min(_MOST_THREADS, usable_cores()),
        skip_bad=on_error == "skip",
        box=box,
        transform=transform,
        place=_given_place(rank, world_size),
    )


def _positions(share: Share, total: int, position: int) -> list[int]:
    """Where in the order each step that is left begins."""
    steps = share.steps(total - position)
    return [position + step * share.step_samples for step in range(steps)]


def _given_place(rank: int | None, world_size: int | None) -> tuple[int, int] | None:
    if rank is None and world_size is None:
        return None
    if rank is None or world_size is None or not 0 <= rank < world_size:
        raise UsageError(
            f"rank is {rank} and world_size {world_size}; give both, rank from 0 to world_size - 1"
        )
    return rank, world_size


def _distributed_place() -> tuple[int, int]:
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def _import_torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise DeviceError(
            "make_loader needs torch: install it with `pip install 'ctgpu[torch]'`; VolumeDataset "
            "and the webdataset and DALI adapters do without"
        ) from error
    return torch
