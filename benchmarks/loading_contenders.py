"""How many samples per second come back from warm tars: ctgpu, other readers, and the floor.

All contenders deliver the same volumes, one by one, and are timed by whole epochs, round by round.
A warm-up epoch holds every volume that each of them delivers against its checksum.
"""

from __future__ import annotations

import multiprocessing
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import torch
import xxhash

import old_way
from common import in_pages, measured, print_table
from ctgpu.loading import VolumeDataset, make_loader
from ctgpu.loading.dali import pipeline
from loading_clock import cpu_seconds
from loading_data import Data, stock

OURS, OURS_VERIFIED = "ctgpu, verify=off", "ctgpu, verify=always (first epoch of first)"
OURS_ONE_THREAD = "ctgpu, verify=off, one thread"
OURS_COPIES = "ctgpu, verify=off, copy=True (the default)"
OLD, BYTES, RAW = "webdataset + old decode", "webdataset, bytes", "raw readinto"
DALI, LITDATA = "DALI, CPU", "litdata, copied out of its mapping"
OURS_THREADS, DALI_THREADS = "ctgpu, threads", "DALI, threads"
WORKERS, LITDATA_WORKERS = "webdataset, workers", "litdata, workers"

#: Contenders that no environment of ctgpu can hold, and why.
EXCLUDED = {
    "MosaicML streaming": "0.13 wants numpy < 2.2 and transformers < 5, which rules out the "
    "huggingface-hub that ctgpu needs"
}
# Of one sample's size: what a worker process holds, with what is on its way.
_WORKER_VOLUMES = 4

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Contender:
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


Opener = Callable[[Data], Contender]


def compare_contenders(data: Data, repeats: int) -> dict[str, Any]:
    """One epoch of every contender, `repeats` times."""
    result = race(
        {
            RAW: raw_readinto,
            OLD: webdataset_decoded,
            BYTES: webdataset_bytes,
            DALI: dali,
            LITDATA: litdata,
            OURS: ours,
            OURS_COPIES: partial(ours, copy=True),
            OURS_ONE_THREAD: partial(ours, threads=1),
            OURS_VERIFIED: partial(ours, verify="always"),
        },
        data,
        repeats,
        reference=OURS,
    )
    result["not_run"] |= EXCLUDED
    show(f"one epoch of {data.samples} samples of {data.spec.size_bytes / 1e6:.1f} MB", result)
    return result


def compare_threads(data: Data, counts: Iterable[int], repeats: int) -> dict[str, Any]:
    """The same with 1, 2, … threads, or worker processes where a reader has those."""
    results = {}
    for count in counts:
        results[str(count)] = race(
            {
                OURS_THREADS: partial(ours, threads=count),
                WORKERS: partial(webdataset_workers, workers=count),
                LITDATA_WORKERS: partial(litdata_workers, workers=count),
                DALI_THREADS: partial(dali, threads=count),
            },
            data,
            repeats,
            reference=OURS_THREADS,
        )
        show(f"threads or workers: {count}", results[str(count)])
    return results


def race(
    openers: Mapping[str, Opener], data: Data, repeats: int, *, reference: str
) -> dict[str, Any]:
    """Open, check and time contenders; `reference` is what the others are held against."""
    contenders: dict[str, Contender] = {}
    not_run: dict[str, str] = {}
    for name, opener in openers.items():
        try:
            contender = opener(data)
            check(name, contender, data)
        except Exception as error:
            # What another reader fails of is a finding; ctgpu has to run.
            if name.startswith("ctgpu"):
                raise
            reason = str(error).replace(f"{data.shards.parent}/", "")
            not_run[name] = f"{type(error).__name__}: {reason}"
            continue
        contenders[name] = contender
    wall: dict[str, list[float]] = {name: [] for name in contenders}
    cpu: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, contender in contenders.items():
            began, began_cpu = time.perf_counter(), cpu_seconds()
            count = sum(1 for _ in contender.epoch())
            wall[name].append((time.perf_counter() - began) / count)
            cpu[name].append((cpu_seconds() - began_cpu) / count)
    for contender in contenders.values():
        contender.close()
    facts: dict[str, dict[str, Any]] = {
        name: {
            "rate": measured([1 / seconds for seconds in wall[name]], "samples/s"),
            "cpu_per_sample": measured(cpu[name], "s"),
        }
        for name in contenders
    }
    first = facts[reference]
    for fact in facts.values():
        for key, figure in (
            ("ctgpu_over_this", "rate"),
            ("ctgpu_cpu_over_this", "cpu_per_sample"),
        ):
            fact[key] = first[figure]["median"] / fact[figure]["median"]
    return {"contenders": facts, "not_run": not_run}


def check(name: str, contender: Contender, data: Data) -> None:
    """Run one epoch and hold every volume against the records."""
    found = sorted(
        xxhash.xxh3_128_hexdigest(np.ascontiguousarray(contender.payload(delivery)))
        for delivery in contender.epoch()
    )
    if found != data.checksums:
        raise SystemExit(f"{name} does not deliver what is in the shards")


def show(title: str, result: Mapping[str, Any]) -> None:
    """Print one race, and who did not take part."""
    print_table(
        f"{title}, warm, medians",
        ["contender", "samples/s", "CPU s/sample", "ctgpu is", "ctgpu's CPU is"],
        [
            [
                name,
                f["rate"]["median"],
                f"{f['cpu_per_sample']['median']:.4f}",
                f"{f['ctgpu_over_this']:.2f} ×",
                f"{f['ctgpu_cpu_over_this']:.2f} ×",
            ]
            for name, f in result["contenders"].items()
        ],
    )
    for name, reason in result["not_run"].items():
        print(f"not run: {name}: {reason}")


# ---- the contenders -----------------------------------------------------------------------------


def raw_readinto(data: Data) -> Contender:
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
                assert file.readinto(out.data) == len(out)  # type: ignore[attr-defined]
            yield out

    return Contender(epoch, lambda volume: volume)


def webdataset_decoded(data: Data) -> Contender:
    """webdataset and the old decode, in this process."""
    return Contender(
        lambda: stock(data.tars).map(old_way.decode_preprocessed),
        lambda sample: sample["volume"].numpy().astype(np.float16),
    )


def webdataset_bytes(data: Data) -> Contender:
    """webdataset alone, in this process."""
    return Contender(
        lambda: stock(data.tars), lambda sample: np.frombuffer(sample["bin"], np.uint8)
    )


def webdataset_workers(data: Data, *, workers: int) -> Contender:
    """webdataset in torch's ``DataLoader``.

    Raises
    ------
    MemoryError
        If the workers' volumes might not fit.
    """
    options = worker_options(data, workers)
    loader = torch.utils.data.DataLoader(
        stock(data.tars).map(from_members), batch_size=None, **options
    )
    return of_loader(loader)


def worker_options(data: Data, workers: int) -> dict[str, Any]:
    """What ``DataLoader`` takes: workers that live on from epoch to epoch, as in training.

    Raises
    ------
    MemoryError
        If their volumes might not fit.
    """
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


def of_loader(loader: Any) -> Contender:
    """A contender that is a ``DataLoader`` of float16 tensors."""

    def close() -> None:
        # Torch has no public way.  Left to the garbage collector, litdata's workers are not told to
        # end: 5 s each.
        loader._iterator._shutdown_workers()

    return Contender(lambda: loader, lambda volume: volume.numpy(), close)


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


def dali(data: Data, *, threads: int = 2) -> Contender:
    """DALI's reader without a GPU.

    Raises
    ------
    DeviceError
        If it is not installed.
    """
    built = pipeline(data.shards, 1, num_threads=threads)
    return Contender(
        lambda: (built.run() for _ in range(data.samples)), lambda outputs: outputs[0].at(0)
    )


def litdata(data: Data) -> Contender:
    """litdata, in this process.

    It hands out views of mapped files, of which nothing has been read; as training would, the
    contender copies each into memory of its own, one reused buffer.

    Raises
    ------
    ImportError
        If it is not installed.
    """
    stream = litdata_stream(data)
    out = in_pages((data.spec.size_bytes,), np.uint8)

    def epoch() -> Iterator[Array]:
        for item in stream:
            out[:] = np.frombuffer(item["volume"], np.uint8)
            yield out

    return Contender(epoch, lambda volume: volume)


def litdata_workers(data: Data, *, workers: int) -> Contender:
    """litdata in its own ``DataLoader``.

    Raises
    ------
    ImportError
        If it is not installed.
    MemoryError
        If the workers' volumes might not fit.
    """
    stream = litdata_stream(data)
    from litdata import StreamingDataLoader

    options = worker_options(data, workers)
    loader = StreamingDataLoader(stream, batch_size=1, collate_fn=from_items, **options)
    return of_loader(loader)


def litdata_stream(data: Data) -> Any:
    """The same volumes in litdata's own format, uncompressed, one a chunk; written only once.

    Raises
    ------
    ImportError
        If litdata is not installed.
    """
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
) -> Contender:
    """ctgpu's loader; like the other contenders it hands out memory that it uses again."""
    loader = make_loader(
        VolumeDataset(data.shards, verify=verify), shuffle=True, num_threads=threads, copy=copy
    )
    # Stored as (H, W, D), handed out as (1, 1, D, H, W).
    return Contender(lambda: loader, lambda batch: batch["volume"][0, 0].permute(1, 2, 0).numpy())
