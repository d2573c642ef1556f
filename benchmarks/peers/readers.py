"""Readers of warm tars: ctgpu, other libraries, and the floor.

All of them deliver the same volumes, one by one.
"""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import webdataset

from benchmarks.harness.measuring import Array, in_pages
from benchmarks.peers import old_way
from ctgpu.loading import VolumeDataset, make_loader
from ctgpu.loading.dali import pipeline
from ctgpu.spec import Spec

# Of one sample's size: what a worker process holds, with what is on its way.
_WORKER_VOLUMES = 4


@dataclass(frozen=True)
class Data:
    """One scan, many times.

    Attributes
    ----------
    raw : pathlib.Path
        Tar of raw samples, ``npz`` and ``json``, as users of the old scripts have it.
    shards : pathlib.Path
        Data set that ``ctgpu.build`` made.
    litdata : pathlib.Path
        Folder for litdata's copy of it, made where that is read.
    """

    raw: Path
    shards: Path
    litdata: Path

    @cached_property
    def tars(self) -> list[Path]:
        """The tars of the data set."""
        return [shard.path for shard in VolumeDataset(self.shards).shards]

    @cached_property
    def spec(self) -> Spec:
        """What the volumes were made to."""
        return VolumeDataset(self.shards).spec

    @cached_property
    def checksums(self) -> list[str]:
        """XXH3-128 of every volume, as the records have it, sorted."""
        return sorted(
            entry.members["bin"].xxh3_128
            for shard in VolumeDataset(self.shards).shards
            for entry in shard.samples
        )

    @property
    def samples(self) -> int:
        """Samples of the data set."""
        return len(self.checksums)


@dataclass(frozen=True)
class Reader:
    """A reader.

    Attributes
    ----------
    epoch : callable
        What it delivers in one epoch, sample by sample.
    payload : callable
        The float16 volume, in stored order, of one delivery; not timed.
    close : callable
        Ends its worker processes.
    """

    epoch: Callable[[], Iterable[Any]]
    payload: Callable[[Any], Array]
    close: Callable[[], None] = lambda: None


#: Raises ImportError or DeviceError where it is not installed, MemoryError where it might not fit.
Opener = Callable[[Data], Reader]


def stock(tars: Iterable[Path]) -> Any:
    """webdataset over tars, undecoded."""
    return webdataset.WebDataset([str(tar) for tar in tars], shardshuffle=False, empty_check=False)


def raw_readinto(data: Data) -> Reader:
    """Payloads by plain ``readinto`` of one reused buffer, one thread."""
    members = [
        (shard.path, entry.members["bin"].offset)
        for shard in VolumeDataset(data.shards).shards
        for entry in shard.samples
    ]
    out = in_pages((data.spec.size_bytes,), np.uint8)

    def epoch() -> Iterator[Array]:
        for path, offset in members:
            with path.open("rb", buffering=0) as file:
                file.seek(offset)
                assert file.readinto(out.data) == len(out)
            yield out

    return Reader(epoch, lambda volume: volume)


def webdataset_decoded(data: Data) -> Reader:
    """webdataset and the old decode, in this process."""
    return Reader(
        lambda: stock(data.tars).map(old_way.decode_preprocessed),
        lambda sample: sample["volume"].numpy().astype(np.float16),
    )


def webdataset_bytes(data: Data) -> Reader:
    """webdataset alone, in this process."""
    return Reader(lambda: stock(data.tars), lambda sample: np.frombuffer(sample["bin"], np.uint8))


def webdataset_workers(data: Data, *, workers: int) -> Reader:
    """webdataset in torch's ``DataLoader``."""
    options = worker_options(data, workers)
    loader = torch.utils.data.DataLoader(
        stock(data.tars).map(from_members), batch_size=None, **options
    )
    return of_loader(loader)


def worker_options(data: Data, workers: int) -> dict[str, Any]:
    """What ``DataLoader`` takes: workers that live on from epoch to epoch, as in training."""
    needed_bytes = workers * _WORKER_VOLUMES * data.spec.size_bytes
    if needed_bytes > psutil.virtual_memory().available:
        raise MemoryError(f"{workers} workers need up to {needed_bytes / 1e9:.1f} GB")
    # More workers than cores are what is asked about here.
    warnings.filterwarnings("ignore", message="This DataLoader will create")
    # DALI has threads in this process, which a plain fork would lose.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "webdataset", "litdata"])
    return {
        "num_workers": workers,
        "prefetch_factor": 1,
        "persistent_workers": True,
        "multiprocessing_context": context,
    }


def of_loader(loader: Any) -> Reader:
    """A contender that is a ``DataLoader`` of float16 tensors."""

    def close() -> None:
        # Torch has no public way.  Left to the garbage collector, litdata's workers are not told to
        # end: 5 s each.
        loader._iterator._shutdown_workers()

    return Reader(lambda: loader, lambda volume: volume.numpy(), close)


def from_members(sample: Mapping[str, Any]) -> torch.Tensor:
    """The volume of an undecoded sample of webdataset."""
    return as_tensor(sample["bin"])


def from_items(items: Sequence[Mapping[str, Any]]) -> torch.Tensor:
    """The volume of litdata's batch of one."""
    return as_tensor(items[0]["volume"])


def as_tensor(payload: bytes | memoryview) -> torch.Tensor:
    """float16, a view; ``DataLoader`` copies it to shared memory."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return torch.frombuffer(payload, dtype=torch.float16)


def dali(data: Data, *, threads: int = 2) -> Reader:
    """DALI's reader without a GPU."""
    built = pipeline(data.shards, 1, num_threads=threads)
    return Reader(
        lambda: (built.run() for _ in range(data.samples)), lambda outputs: outputs[0].at(0)
    )


def litdata(data: Data) -> Reader:
    """litdata, in this process.

    It hands out views of mapped files, of which nothing has been read; as training would, the
    contender copies each into memory of its own, one reused buffer.
    """
    stream = litdata_stream(data)
    out = in_pages((data.spec.size_bytes,), np.uint8)

    def epoch() -> Iterator[Array]:
        for item in stream:
            out[:] = np.frombuffer(item["volume"], np.uint8)
            yield out

    return Reader(epoch, lambda volume: volume)


def litdata_workers(data: Data, *, workers: int) -> Reader:
    """litdata in its own ``DataLoader``."""
    stream = litdata_stream(data)
    from litdata import StreamingDataLoader

    options = worker_options(data, workers)
    loader = StreamingDataLoader(stream, batch_size=1, collate_fn=from_items, **options)
    return of_loader(loader)


def litdata_stream(data: Data) -> Any:
    """The same volumes in litdata's own format, uncompressed, one a chunk; written only once."""
    from litdata import StreamingDataset
    from litdata.streaming.writer import BinaryWriter

    if not data.litdata.exists():
        data.litdata.mkdir()
        dataset = VolumeDataset(data.shards)
        volume = np.empty(data.spec.stored_shape, np.float16)
        writer = BinaryWriter(str(data.litdata), chunk_size=1)
        for index in range(len(dataset)):
            dataset.read_into(index, volume)
            writer.add_item(index, {"volume": volume.tobytes()})
        writer.done()
        writer.merge()
    return StreamingDataset(str(data.litdata))


def ours(
    data: Data, *, threads: int | None = None, verify: Any = "off", copy: bool = False
) -> Reader:
    """ctgpu's loader; like the other contenders it hands out memory that it uses again."""
    loader = make_loader(
        VolumeDataset(data.shards, verify=verify), shuffle=True, num_threads=threads, copy=copy
    )
    # Stored as (H, W, D), handed out as (1, 1, D, H, W).
    return Reader(lambda: loader, lambda batch: batch["volume"][0, 0].permute(1, 2, 0).numpy())
