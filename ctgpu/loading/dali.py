"""A DALI pipeline over the shards, with their own indices and bounded memory."""

from __future__ import annotations

from os import PathLike
from typing import Any

from ctgpu.errors import DeviceError, UsageError
from ctgpu.loading.dataset import VolumeDataset
from ctgpu.shards.names import index_name, parse_shard_name

_SHUFFLE_BYTES = 2 << 30


def pipeline(
    dataset: VolumeDataset | str | PathLike[str],
    batch_size: int = 1,
    *,
    device_id: int | None = None,
    num_threads: int = 2,
    shuffle: bool = False,
    seed: int = 0,
    shuffle_bytes: int = _SHUFFLE_BYTES,
    rank: int = 0,
    world_size: int = 1,
    prefetch_queue_depth: int = 2,
) -> Any:
    """A built ``nvidia.dali.Pipeline`` with outputs volume, labels, report and metadata.

    ``volume`` is float16 in stored order on the CPU; with a `device_id` it is on that GPU, as
    (1, D, H, W).  ``labels`` is float32; ``report`` (``.txt``) and ``metadata`` (``.json``) are
    UTF-8 as uint8, one ragged row for each sample, on the CPU; leave them out of a torch iterator,
    which takes only equal rows.

    Parameters
    ----------
    dataset : VolumeDataset or path
        The samples.  DALI verifies no checksums: ``ctgpu verify`` does.
    batch_size : int
        Samples of one batch.
    device_id : int, optional
        GPU; None runs on the CPU alone.
    num_threads : int
        DALI's threads.
    shuffle : bool
        Mix samples in DALI's buffer.
    seed : int
        Of the shuffle.
    shuffle_bytes : int
        Size of that buffer.  DALI's own default is 1,024 samples, 113 GB of full-size volumes.
    rank, world_size : int
        Which part of the samples is read.
    prefetch_queue_depth : int
        Batches that are made ahead.

    Raises
    ------
    DeviceError
        If DALI is not installed.
    UsageError
        If a shard has no index.
    """
    try:
        from nvidia.dali import fn, pipeline_def, types
    except ImportError as error:
        raise DeviceError(
            "the DALI pipeline needs nvidia-dali: install it with `pip install 'ctgpu[dali]'`"
        ) from error
    if not isinstance(dataset, VolumeDataset):
        dataset = VolumeDataset(dataset)
    spec = dataset.spec
    tars = [shard.path for shard in dataset.shards if shard.samples]
    indices = [
        tar.with_name(index_name((parse_shard_name(tar.name) or (0, ""))[0])) for tar in tars
    ]
    if missing := [str(index) for index in indices if not index.exists()]:
        raise UsageError(
            f"{missing[0]} is not there, and DALI would scan the tar without it; run `ctgpu build` "
            "again on the folder, or copy the indices along with the tars"
        )

    @pipeline_def(  # type: ignore[untyped-decorator]
        batch_size=batch_size,
        num_threads=num_threads,
        device_id=device_id,
        seed=seed,
        prefetch_queue_depth=prefetch_queue_depth,
    )
    def volumes() -> tuple[Any, ...]:
        volume, labels, report, metadata = fn.readers.webdataset(
            paths=[str(tar) for tar in tars],
            index_paths=[str(index) for index in indices],
            ext=["bin", "cls", "txt", "json"],
            dtypes=[types.FLOAT16, types.FLOAT, types.UINT8, types.UINT8],
            missing_component_behavior="error",
            random_shuffle=shuffle,
            initial_fill=max(1, shuffle_bytes // spec.size_bytes),
            shard_id=rank,
            num_shards=world_size,
            stick_to_shard=True,
            pad_last_batch=world_size > 1,
            name="samples",
        )
        volume = fn.reshape(volume, shape=list(spec.stored_shape), layout=spec.layout)
        if device_id is not None:
            volume = volume.gpu()
            if spec.layout == "HWD":
                volume = fn.transpose(volume, perm=[2, 0, 1])
            volume = fn.reshape(volume, src_dims=[-1, 0, 1, 2], layout="CDHW")
        return volume, labels, report, metadata

    built = volumes()
    built.build()
    return built
