"""A DALI pipeline over the shards, with their own indices and bounded memory."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ctgpu.errors import DeviceError, UsageError
from ctgpu.installation import install_command
from ctgpu.loading.catalogue import Named, Shard
from ctgpu.loading.dali_decoding import decoder_of
from ctgpu.loading.dataset import VolumeDataset
from ctgpu.loading.ranks import distributed_place, given_place
from ctgpu.loading.region import memory_order
from ctgpu.shards.index import index_text
from ctgpu.shards.names import index_name, parse_shard_name
from ctgpu.shards.record import ShardRecord
from ctgpu.shards.tar import VOLUMES
from ctgpu.spec import Dtype

_SHUFFLE_BYTES = 2 << 30
# DALI has no bfloat16, and its torch iterator no uint16.
_DALI_TYPES: Mapping[Dtype, str] = {
    "float16": "FLOAT16",
    "bfloat16": "INT16",
    "int16": "INT16",
    "uint8": "UINT8",
}


def pipeline(
    dataset: VolumeDataset | Named | Sequence[Named],
    batch_size: int = 1,
    *,
    device_id: int | None = None,
    num_threads: int = 2,
    shuffle: bool = False,
    seed: int = 0,
    shuffle_bytes: int = _SHUFFLE_BYTES,
    rank: int | None = None,
    world_size: int | None = None,
    prefetch_queue_depth: int = 2,
) -> Any:
    """A built ``nvidia.dali.Pipeline`` with outputs volume, labels, report and metadata.

    ``volume`` is of the data set's ``spec.dtype``, in stored order on the CPU; with a `device_id`
    it is on that GPU, as (1, D, H, W).  DALI has no bfloat16: of such a data set it hands over the
    bits as int16, for ``.view(torch.bfloat16)`` of the tensor.  ``labels`` is float32; ``report``
    (``.txt``) and ``metadata`` (``.json``) are UTF-8 as uint8, one ragged row for each sample, on
    the CPU; leave them out of a torch iterator, which takes only equal rows.  Masks are not among
    them: :func:`ctgpu.loading.make_loader` gives those.

    Compressed volumes, also beside others, are decoded on the CPU in `num_threads` threads of
    Python's, for a GPU in the order D, H, W.  This has run with DALI on the CPU alone.

    Parameters
    ----------
    dataset : VolumeDataset, path or list of path
        The samples; of what ``select`` chose, those.  DALI verifies no checksums, ``ctgpu verify``
        does; but compressed tiles are held against theirs, and a damaged one ends the pipeline with
        an error of DALI's that says which.
    batch_size : int
        Samples of one batch.
    device_id : int, optional
        GPU; None runs on the CPU alone.
    num_threads : int
        DALI's threads, and as many that decode.
    shuffle : bool
        Mix samples in DALI's buffer.
    seed : int
        Of the shuffle.
    shuffle_bytes : int
        Size of that buffer.  DALI's own default is 1,024 samples, 113 GB of full-size volumes.
    rank, world_size : int, optional
        Which part of the samples is read; default those of ``torch.distributed`` where it is
        initialised by now, else 0 of 1.
    prefetch_queue_depth : int
        Batches that are made ahead.

    Raises
    ------
    DeviceError
        If DALI is not installed.
    UsageError
        If a shard has no index, the data set is in another order than its shards, or `rank` and
        `world_size` do not fit each other.
    """
    try:
        from nvidia.dali import fn, pipeline_def, types
    except ImportError as error:
        raise DeviceError(
            f"the DALI pipeline needs nvidia-dali: install it with `{install_command('dali')}`"
        ) from error
    if not isinstance(dataset, VolumeDataset):
        dataset = VolumeDataset(dataset)
    place, places = given_place(rank, world_size) or distributed_place()
    spec = dataset.spec
    shards = [shard for shard in dataset.shards if shard.samples]
    if not shards:
        raise UsageError(f"{dataset!r} has no samples to load")
    if not shards[0].samples[0].members:
        raise UsageError(
            f"{dataset!r} is made of raw volumes when it is read, and DALI reads shards; build "
            "them with `ctgpu build`, or use make_loader"
        )
    if not dataset.in_stored_order:
        raise UsageError(
            f"{dataset!r} is in another order than its shards, or has samples more than once, and "
            "DALI reads shards as they are; choose samples with select, not take"
        )

    plain, compressed = VOLUMES
    payloads = {plain: getattr(types, _DALI_TYPES[spec.dtype])}
    decode, layout = decoder_of(dataset, num_threads, on_gpu=device_id is not None)
    if decode is not None:
        payloads[compressed] = types.UINT8
    read_bytes = sum(entry.members[entry.volume_extension].size_bytes for entry in dataset.entries)

    @pipeline_def(  # type: ignore[untyped-decorator]
        batch_size=batch_size,
        num_threads=num_threads,
        device_id=device_id,
        seed=seed,
        prefetch_queue_depth=prefetch_queue_depth,
        # Functions of Python's need it; in DALI 2 it is the only one.
        **({} if decode is None else {"exec_dynamic": True}),
    )
    def volumes(indices: Sequence[Path]) -> tuple[Any, ...]:
        *read, labels, report, metadata = fn.readers.webdataset(
            paths=[str(shard.path) for shard in shards],
            index_paths=[str(index) for index in indices],
            ext=[*payloads, "cls", "txt", "json"],
            dtypes=[*payloads.values(), types.FLOAT, types.UINT8, types.UINT8],
            # A sample has one of the two; no shard lacks any other member.
            missing_component_behavior="error" if decode is None else "empty",
            random_shuffle=shuffle,
            initial_fill=max(1, shuffle_bytes * len(dataset) // read_bytes),
            shard_id=place,
            num_shards=places,
            stick_to_shard=True,
            pad_last_batch=places > 1,
            name="samples",
        )
        volume = read[0]
        if decode is not None:
            volume = fn.python_function(*read, metadata, function=decode, batch_processing=True)
        shape = memory_order(spec.stored_shape, spec.layout, layout)
        volume = fn.reshape(volume, shape=list(shape), layout=layout)
        if device_id is not None:
            volume = volume.gpu()
            if layout == "HWD":
                volume = fn.transpose(volume, perm=[2, 0, 1])
            volume = fn.reshape(volume, src_dims=[-1, 0, 1, 2], layout="CDHW")
        return volume, labels, report, metadata

    with tempfile.TemporaryDirectory(prefix="ctgpu-dali-") as folder:
        parts = [Path(folder, f"{number}.idx") for number in range(len(shards))]
        built = volumes(indices=list(map(_index, shards, parts)))
        built.build()  # DALI reads the indices here
    return built


def _index(shard: Shard, part: Path) -> Path:
    """The shard's own index, or one written to `part`, of the samples that were selected from it.

    Raises
    ------
    UsageError
        If the shard has none.
    """
    number, _ = parse_shard_name(shard.path.name) or (0, "")
    path = shard.path.with_name(index_name(number))
    if not path.is_file():
        raise UsageError(
            f"{path} is not there, or no file, and DALI would scan the tar without it; run `ctgpu "
            "build` again on the folder, or copy the indices along with the tars"
        )
    if shard.whole:
        return path
    part.write_bytes(index_text(ShardRecord(number, "", 0, shard.samples)))
    return part
