"""Readers of warm tars: ctgpu, other libraries, and the floor.

All of them deliver the same volumes, one by one.
"""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import webdataset
import xxhash

from benchmarks.harness.measuring import Array, in_pages
from benchmarks.peers import old_way
from ctgpu.loading import VolumeDataset, make_loader
from ctgpu.loading.dali import pipeline
from ctgpu.shards.record import Member

# Of one sample's size: what a worker process holds, with what is on its way.
_WORKER_VOLUMES = 4


@dataclass(frozen=True)
class Reader:
    """What it delivers in one epoch, the float16 volume of a delivery (not timed), and its end."""

    epoch: Callable[[], Iterable[Any]]
    payload: Callable[[Any], Array] = lambda volume: volume
    close: Callable[[], None] = lambda: None


#: Raises ImportError or DeviceError where it is not installed, MemoryError where it might not fit.
Opener = Callable[[VolumeDataset], Reader]


def tars_of(dataset: VolumeDataset) -> list[Path]:
    """The tars of a data set."""
    return [shard.path for shard in dataset.shards]


def volumes_of(dataset: VolumeDataset) -> list[tuple[Path, Member]]:
    """The tar of every volume, and its place and checksum, as the records have them."""
    return [(s.path, entry.members["bin"]) for s in dataset.shards for entry in s.samples]


def check(name: str, reader: Reader, dataset: VolumeDataset) -> None:
    """Run one epoch and hold every volume against the records of raw shards."""
    found = sorted(
        xxhash.xxh3_128_hexdigest(np.ascontiguousarray(reader.payload(delivery)).data)
        for delivery in reader.epoch()
    )
    if found != sorted(member.xxh3_128 for _, member in volumes_of(dataset)):
        raise SystemExit(f"{name} does not deliver what is in the shards")


def ours(
    dataset: VolumeDataset, *, threads: int | None = None, verify: Any = "off", copy: bool = False
) -> Reader:
    """ctgpu's loader; like the other contenders it hands out memory that it uses again."""
    opened = VolumeDataset(tars_of(dataset), verify=verify)
    loader = make_loader(opened, shuffle=True, num_threads=threads, copy=copy)
    # Stored as (H, W, D), handed out as (1, 1, D, H, W).
    return Reader(lambda: loader, lambda batch: batch["volume"][0, 0].permute(1, 2, 0).numpy())


def raw_readinto(dataset: VolumeDataset) -> Reader:
    """Payloads by plain ``readinto`` of one reused buffer, one thread."""
    out = in_pages((dataset.spec.size_bytes,), np.uint8)

    def epoch() -> Iterator[Array]:
        for path, member in volumes_of(dataset):
            with path.open("rb", buffering=0) as file:
                file.seek(member.offset)
                assert file.readinto(out.data) == len(out)
            yield out

    return Reader(epoch)


def dali(dataset: VolumeDataset, *, threads: int = 2) -> Reader:
    """DALI's reader without a GPU."""
    built, count = pipeline(dataset, 1, num_threads=threads), len(dataset)
    return Reader(lambda: (built.run() for _ in range(count)), lambda outputs: outputs[0].at(0))


# ---- webdataset and litdata ---------------------------------------------------------------------


def stock(tars: Iterable[Path]) -> Any:
    """webdataset over tars, undecoded."""
    return webdataset.WebDataset([str(tar) for tar in tars], shardshuffle=False, empty_check=False)


def webdataset_decoded(dataset: VolumeDataset) -> Reader:
    """webdataset and the old decode, in this process."""
    samples = stock(tars_of(dataset)).map(old_way.decode_preprocessed)
    return Reader(lambda: samples, lambda sample: sample["volume"].numpy().astype(np.float16))


def webdataset_bytes(dataset: VolumeDataset) -> Reader:
    """webdataset alone, in this process."""
    samples = stock(tars_of(dataset))
    return Reader(lambda: samples, lambda sample: np.frombuffer(sample["bin"], np.uint8))


def webdataset_workers(dataset: VolumeDataset, *, workers: int) -> Reader:
    """webdataset in torch's ``DataLoader``."""
    samples, options = stock(tars_of(dataset)).map(volume_of), worker_options(dataset, workers)
    return of_loader(torch.utils.data.DataLoader(samples, batch_size=None, **options))


def litdata(dataset: VolumeDataset) -> Reader:
    """litdata, in this process.

    It hands out views of mapped files, of which nothing has been read; as training would, the
    contender copies each into memory of its own, one reused buffer.
    """
    samples, out = litdata_stream(dataset), in_pages((dataset.spec.size_bytes,), np.uint8)

    def volume(sample: Mapping[str, Any]) -> Array:
        out[:] = np.frombuffer(sample["bin"], np.uint8)
        return out

    return Reader(lambda: map(volume, samples))


def litdata_workers(dataset: VolumeDataset, *, workers: int) -> Reader:
    """litdata in its own ``DataLoader``."""
    samples, options = litdata_stream(dataset), worker_options(dataset, workers)
    from litdata import StreamingDataLoader

    return of_loader(StreamingDataLoader(samples, batch_size=1, collate_fn=only_volume, **options))


def litdata_stream(dataset: VolumeDataset) -> Any:
    """The same volumes in litdata's own format, written once: uncompressed, one a chunk."""
    from litdata import StreamingDataset
    from litdata.streaming.writer import BinaryWriter

    folder = tars_of(dataset)[0].parent.with_name("litdata")
    if not folder.exists():
        folder.mkdir()
        writer = BinaryWriter(str(folder), chunk_size=1)
        for index, volume in enumerate(raw_readinto(dataset).epoch()):
            writer.add_item(index, {"bin": volume.tobytes()})
        writer.done()
        writer.merge()
    return StreamingDataset(str(folder))


def worker_options(dataset: VolumeDataset, workers: int) -> dict[str, Any]:
    """What ``DataLoader`` takes: workers that live on from epoch to epoch, as in training."""
    needed_bytes = workers * _WORKER_VOLUMES * dataset.spec.size_bytes
    if needed_bytes > psutil.virtual_memory().available:
        raise MemoryError(f"{workers} workers need up to {needed_bytes / 1e9:.1f} GB")
    # More workers than cores are what is asked about here.
    warnings.filterwarnings("ignore", message="This DataLoader will create")
    # DALI has threads in this process, which a plain fork would lose.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "webdataset", "litdata"])
    options = {"num_workers": workers, "multiprocessing_context": context}
    return options | {"prefetch_factor": 1, "persistent_workers": True}


def of_loader(loader: Any) -> Reader:
    """A contender that is a ``DataLoader`` of float16 tensors."""

    def close() -> None:
        # Torch has no public way.  Left to the garbage collector, litdata's workers are not told to
        # end: 5 s each.
        loader._iterator._shutdown_workers()

    return Reader(lambda: loader, lambda volume: volume.numpy(), close)


def volume_of(sample: Mapping[str, Any]) -> torch.Tensor:
    """float16, a view of an undecoded sample; ``DataLoader`` copies it to shared memory."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return torch.frombuffer(sample["bin"], dtype=torch.float16)


def only_volume(samples: Sequence[Mapping[str, Any]]) -> torch.Tensor:
    """The volume of litdata's batch of one."""
    return volume_of(samples[0])
