"""The loader: epochs of batches for training."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import numpy as np
import numpy.typing as npt
import xxhash

from ctgpu.arguments import require_choice, shown
from ctgpu.errors import DeviceError, MismatchError, NewerFormatError, UsageError
from ctgpu.installation import install_command
from ctgpu.loading.catalogue import Named
from ctgpu.loading.dataset import VolumeDataset
from ctgpu.loading.iteration import Iteration, Progress
from ctgpu.loading.opening import open_samples, samples_to_load
from ctgpu.loading.order import EpochOrder, Share
from ctgpu.loading.ranks import distributed_place, given_place
from ctgpu.loading.reading import Batch, BatchReader
from ctgpu.loading.region import stored_order
from ctgpu.loading.slots import Slots
from ctgpu.loading.targets import CudaTarget, HostTarget, Target
from ctgpu.loading.weights import balanced_weights, given_weights, require_mode
from ctgpu.loading.window import Window, chosen_scalings
from ctgpu.volume.stored import numpy_dtype

if TYPE_CHECKING:
    import torch
    from torch.utils.data import Subset

Transform = Callable[[Batch], Batch]

# Of a state; those of before holes were counted have none.
_STATE_VERSION = 2
# In a state: which shard each sample is in.  Those of the first release do not have it.
_SHARDS = "shards"
_TENSORS = ("volume", "labels", "mask")


class VolumeLoader:
    """Endless epochs of batches; made by :func:`make_loader`, which says what it does.

    ``for batch in loader`` gives one epoch, and the next one another order.  The iteration that
    began last is the one that counts: an earlier one that is asked for more raises UsageError.
    """

    def __init__(
        self,
        dataset: VolumeDataset,
        reader: BatchReader,
        *,
        batch_size: int,
        how: EpochOrder,
        drop_last: bool,
        target: Target,
        transform: Transform | None,
        place: tuple[int, int] | None,
    ) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.drop_last = drop_last
        self._reader = reader
        self._arrange(dataset.slots, how)
        self._target = target
        self._transform = transform
        self._given_place = place
        self._progress = Progress()

    def __getstate__(self) -> NoReturn:
        raise UsageError(
            "a loader has threads and buffers of its own, and cannot be pickled or copied; make it "
            "in each process, of a data set, which can"
        )

    def __repr__(self) -> str:
        return (
            f"VolumeLoader({self.dataset!r}, batch_size={self.batch_size}, "
            f"shuffle={self._order.shuffle})"
        )

    @property
    def epoch(self) -> int:
        """The epoch that is being read, or comes next."""
        return self._progress.place.epoch

    @property
    def sampler(self) -> Any:
        """The object whose ``set_epoch`` Lightning, and many training loops, call.

        The loader itself if it shuffles, else a ``torch.utils.data.SequentialSampler``: by that
        Lightning tells, for ``overfit_batches``, that nothing is shuffled.
        """
        return self if self._order.shuffle else self._in_order

    @cached_property
    def _in_order(self) -> Any:
        from ctgpu.loading.in_order import InOrder

        return InOrder(self.dataset, self._progress)

    @property
    def batch_sampler(self) -> None:
        """None: Lightning asks for it where it validates."""
        return None

    @property
    def buffer_bytes(self) -> int:
        """Host memory of batches: read ahead, waiting to be used again, or still yours.

        It grows no more after the first epoch, unless you hold more batches.
        """
        return self._reader.buffer_bytes

    def __len__(self) -> int:
        """Steps of a whole epoch: the same number on every rank."""
        return self._share().steps(len(self._slots))

    def set_epoch(self, epoch: int) -> None:
        """Have the next iteration begin `epoch`; one that :meth:`load_state_dict` restored goes on.

        Epochs count on by themselves; this is for those who count them too.  An iteration under way
        ends with it.

        Raises
        ------
        UsageError
            If it is negative.
        """
        self._progress.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Where it is: JSON-ready, the same on every rank, exact at every step.

        Positions count the planned samples, those that failed too.  ``skipped`` are the numbers of
        those that this rank has handed out another one for in this epoch.

        It counts what was handed out: neither what was read ahead, nor a batch that an error or a
        transform that raised kept from being handed out.
        """
        place = self._progress.place
        return {
            "version": _STATE_VERSION,
            "epoch": place.epoch,
            "position": place.position,
            "skipped": sorted(place.skipped),
            **self._identity(self._slots),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was called, also on another number of ranks.

        An iteration under way ends with it.

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
            version, skipped = state.get("version", 1), state.get("skipped", [])
        except (AttributeError, KeyError, TypeError) as error:
            raise UsageError("this is not the state of a ctgpu loader") from error
        if type(version) is int and version > _STATE_VERSION:
            raise NewerFormatError(
                f"the state has version {version}, which a newer ctgpu wrote; this one reads "
                f"states up to version {_STATE_VERSION}: install that one"
            )
        planned = self.dataset.slots
        # A run that began before holes were counted goes on as it began.
        slots = next(
            (
                slots
                for slots in (planned, planned.without_holes())
                if not self._differences(state, slots)
            ),
            None,
        )
        if slots is None:
            raise MismatchError(
                "the state is that of another loader "
                f"({'; '.join(self._differences(state, planned))}): make the loader with the same "
                "data set and order, or begin a new epoch with set_epoch"
            )
        if not (type(epoch) is type(position) is int and epoch >= 0):
            raise UsageError("this is not the state of a ctgpu loader")
        total = len(slots)
        if not isinstance(skipped, list) or not all(
            type(slot) is int and 0 <= slot < total for slot in skipped
        ):
            raise UsageError("this is not the state of a ctgpu loader")
        if not 0 <= position <= total:
            raise UsageError(f"the state's position {position} is not within the data set")
        self._arrange(slots, self._how)
        self._progress.resume(epoch, position, frozenset(skipped))

    def __iter__(self) -> Iterator[Batch]:
        """The batches of the current epoch, or what :meth:`load_state_dict` left of it.

        Nothing is decided or read before the first is asked for: Lightning makes iterators that it
        never uses.  An epoch that was given up begins again.

        Raises
        ------
        UsageError
            If the samples do not fill one step; and when an iteration is asked for a batch by
            another thread or process than the one that began it, or after a newer one began.
        FetchError, StorageError
            If a sample is damaged, or its shard is gone; at its batch.  Asked again, the iteration
            tries that batch again.
        """
        return Iteration(self._progress, self._reader, self._share, self._hand_over)

    def _share(self) -> Share:
        rank, world_size = self._given_place or distributed_place()
        return Share(self.batch_size, rank, world_size, self.drop_last)

    def _hand_over(self, batch: Batch) -> Batch:
        self._target.hand_over(*(batch[name] for name in _TENSORS if name in batch))
        return batch if self._transform is None else self._transform(batch)

    def _arrange(self, slots: Slots, how: EpochOrder) -> None:
        self._slots, self._how, self._order = slots, how, slots.arrange(how)
        self._reader.arrange(slots, self._order)

    def _differences(self, state: Mapping[str, Any], slots: Slots) -> list[str]:
        """What a state has otherwise than a loader of these slots."""
        return [
            f"{name}: found {state.get(name)!r}, wanted {value!r}"
            for name, value in self._identity(slots).items()
            if state.get(name) != value and (name in state or name != _SHARDS)
        ]

    def _identity(self, slots: Slots) -> dict[str, Any]:
        keys = "\n".join(slots.study_ids)
        places = [slots.shards, *slots.shard_of]
        weights = slots.spread(self._how.weights)
        return {
            "samples": xxhash.xxh3_128_hexdigest(keys.encode()),
            _SHARDS: _digest(np.array(places, "<i8")),
            "shuffle": self._order.shuffle,
            "seed": self._order.seed,
            "shuffle_window_bytes": self._order.window_bytes,
            # None too where a state of before there were weights says nothing.
            "sample_weights": None if weights is None else _digest(weights.astype("<f8")),
        }


def make_loader(
    dataset: VolumeDataset | Subset[Any] | Named | Sequence[Named],
    batch_size: int = 1,
    *,
    shuffle: bool = False,
    seed: int = 0,
    shuffle_window_bytes: int | None = None,
    sample_weights: Mapping[str, float]
    | Sequence[float]
    | npt.NDArray[Any]
    | torch.Tensor
    | None = None,
    class_balanced: bool = False,
    drop_last: bool = False,
    device: str | torch.device = "cpu",
    prefetch_bytes: int | None = None,
    num_threads: int | None = None,
    copy: bool = True,
    labelled_only: bool = False,
    on_error: Literal["raise", "skip"] = "raise",
    window: Window | None = None,
    windows: Sequence[Window] | None = None,
    random_crop_hwd: tuple[int, int, int] | None = None,
    transform: Transform | None = None,
    rank: int | None = None,
    world_size: int | None = None,
) -> VolumeLoader:
    """A loader for training with torch.

    A batch is a dictionary: ``volume`` (B, 1, D, H, W), of the data set's ``spec.dtype`` unless a
    `window` is mapped, with C `windows` (B, C, D, H, W), ``labels`` (B, classes) float32,
    ``report`` and ``study_id``, lists of B texts; and where the data set has masks, ``mask``
    (B, 1, D, H, W), uint8, or int32 where uint16 is stored.  Labels are NaN where a study has no
    label row, and single ones where its row has blanks; a warning in the log says of how many.  A
    loss has to mask them.

    The order depends on `seed` and the epoch alone, not on the number of ranks: step by step, the
    batches of all ranks together are the order.  Every rank has the same number of steps, and of
    samples in each.

    Parameters
    ----------
    dataset : VolumeDataset, torch.utils.data.Subset of one, path or list of path
        The samples; paths are opened with ``verify="first"``.  A Subset, such as
        ``random_split`` makes, is read in the order of its indices.
    batch_size : int
        Samples of one batch of one rank.
    shuffle : bool
        Another order each epoch.
    seed : int
        Of the order and of the crops, from 0.
    shuffle_window_bytes : int, optional
        Mix only samples of shards, drawn at random, that have this many bytes together, so that
        reads stay near each other; samples count as they are without compression.  Shuffling
        itself takes no memory; default: mix all.
    sample_weights : mapping or array-like, optional
        Draw as many samples as there are in each epoch, with replacement, each time by these
        weights: one number for each sample of `dataset`, in its order, or by study id; 0 or above.
        With ``shuffle=True`` alone, and without `shuffle_window_bytes`.
    class_balanced : bool
        Likewise, by weights that are made of the labels: the rarer the labels of a sample, the
        more often it comes (docs/loading.md).  All labels are read from the tars for it, when the
        loader is made; a data set keeps them.
    drop_last : bool
        Leave out, in each epoch, what does not fill a step of all ranks.  Otherwise the last
        batches are smaller, and where the ranks could not have equal ones, as few samples as
        needed (fewer than there are ranks) are repeated from the beginning of the order.
    device : str or torch.device
        ``"cpu"``, or ``"cuda[:N]"``: read into pinned memory, uploaded, and permuted (of compressed
        volumes: decoded) on a stream of its own.
    prefetch_bytes : int, optional
        Volumes to read ahead, with their masks, one batch at least; default two batches, with all
        of their channels, and from raw volumes a volume for each thread.
        Host buffers take this and two batches more.  For a GPU they hold what is stored, and as
        many batches, of all channels, are in its memory.
    num_threads : int, optional
        Reader threads; default one for each usable core, of shards at most 8.
    copy : bool
        Give each batch on the host memory of its own, for as long as you hold it or a view of it.
        False reads into a few buffers again and again, held or not: a batch is then **valid
        until the next but one is asked for**.  On a GPU batches always are tensors of their own.
    labelled_only : bool
        Leave out the samples that have no label row.  Those whose row has some blanks stay, with
        NaN for these labels.
    on_error : {"raise", "skip"}
        A sample that is damaged raises FetchError, or is left out with a warning in the log; the
        next good one of the order takes its place, so that batches keep their size.  A shard that
        is gone raises StorageError either way.
    window : str or tuple of float, optional
        Map another HU window to [-1, 1]: a name of :data:`ctgpu.loading.WINDOWS`, or (lo, hi).
        The result is float16, of a bfloat16 data set bfloat16.  Refused where the data set was not
        built with ``normalise="window"``, as each volume has a scale of its own then.
    windows : sequence of str or tuple of float, optional
        Likewise several windows, a channel each, in their order: each is the very numbers that
        `window` gives, made while the stored ones are in the cache.  Refused where the window that
        was stored does not cover them all.  The state of a loader does not depend on it.
    random_crop_hwd : tuple of int, optional
        A random box of this many voxels (H, W, D) instead of the whole volume, and the same box of
        its mask; it depends on the seed, the epoch and the sample's number in the data set alone,
        and of a sample that weights draw again on how often it came before.  Once a volume is
        verified, only the rows of the box are read; of a compressed one only the tiles that the
        box meets, of 8 planes of D, all of H and 32 columns of W, and these are verified.
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
    FetchError
        If `class_balanced` finds labels damaged; with ``on_error="skip"`` they count as not known.
    """
    torch = _import_torch()
    opened = open_samples(dataset)
    dataset = samples_to_load(opened, labelled_only=labelled_only)
    for name, value, least in (
        ("batch_size", batch_size, 1),
        ("seed", seed, 0),
        ("prefetch_bytes", prefetch_bytes, 0),
        ("shuffle_window_bytes", shuffle_window_bytes, 1),
        ("num_threads", num_threads, 1),
    ):
        if value is not None and (not isinstance(value, numbers.Integral) or value < least):
            raise UsageError(f"{name} is {shown(value)}; it takes a whole number, {least} at least")
    require_choice("on_error", on_error, ("raise", "skip"))
    require_mode(sample_weights, class_balanced, shuffle=shuffle, window_bytes=shuffle_window_bytes)
    threads = num_threads or dataset.reader_threads
    skip_bad = on_error == "skip"
    spec = dataset.spec
    box = None
    if random_crop_hwd is not None:
        if len(random_crop_hwd) != 3 or any(
            not 1 <= k <= n for k, n in zip(random_crop_hwd, spec.shape_hwd, strict=True)
        ):
            raise UsageError(
                f"random_crop_hwd is {random_crop_hwd}; it must fit within {spec.shape_hwd}"
            )
        dataset.require_boxes()
        box = stored_order(random_crop_hwd, spec.layout)
    scalings = chosen_scalings(spec, window, windows)
    where = torch.device(device)
    if where.type not in ("cpu", "cuda"):
        raise UsageError(f"device is {device}; it is 'cpu' or 'cuda[:N]'")
    target: Target = (
        HostTarget(spec, dataset.memory_layout, scalings, copy=copy)
        if where.type == "cpu"
        else CudaTarget(where, spec, dataset.memory_layout, scalings)
    )
    voxel_bytes = numpy_dtype(target.dtype).itemsize * target.channels
    sample_bytes = spec.size_bytes
    if dataset.masks is not None:
        voxel_bytes += target.mask_dtype(dataset.masks).itemsize
        sample_bytes += dataset.masks.size_bytes(spec)
    batch_bytes = voxel_bytes * batch_size * int(np.prod(box or spec.stored_shape))
    weights = None
    if class_balanced:
        labels = dataset.read_labels(threads=threads, skip_damaged=skip_bad)
        weights = balanced_weights(labels)
    elif sample_weights is not None:
        weights = given_weights(sample_weights, opened, dataset, labelled_only=labelled_only)
    how = EpochOrder([], sample_bytes, shuffle, seed, shuffle_window_bytes, weights=weights)
    reader = BatchReader(
        dataset,
        how,
        target,
        batch_size=batch_size,
        prefetch_batches=(
            max(2, -(-dataset.samples_ahead // batch_size))
            if prefetch_bytes is None
            else max(1, prefetch_bytes // batch_bytes)
        ),
        threads=threads,
        skip_bad=skip_bad,
        box=box,
    )
    return VolumeLoader(
        dataset,
        reader,
        batch_size=batch_size,
        how=how,
        drop_last=drop_last,
        target=target,
        transform=transform,
        place=given_place(rank, world_size),
    )


def _digest(numbers: npt.NDArray[Any]) -> str:
    return xxhash.xxh3_128_hexdigest(numbers.tobytes())


def _import_torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise DeviceError(
            f"make_loader needs torch: install it with `{install_command('torch')}`; VolumeDataset "
            "and the webdataset and DALI adapters do without"
        ) from error
    return torch
