"""How a batch lies in the memory that it is read into: as voxels, or as what a GPU decodes."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from ctgpu.buffers import PAGE_BYTES, Buffer, whole_pages
from ctgpu.codec.ctz import LANES, PLANES, head_bytes
from ctgpu.codec.decompress import tiles_of
from ctgpu.engines.ctz_on_device import Compressed
from ctgpu.errors import DeviceError
from ctgpu.loading.dataset import Labels, Volume, VolumeDataset
from ctgpu.loading.region import (
    Shape,
    dhw_order,
    in_stored_order,
    memory_order,
    read_labels_and_report,
)
from ctgpu.loading.targets import CudaTarget, Target
from ctgpu.shards.compressed import CompressedMember
from ctgpu.shards.tar import MASKS, VOLUMES
from ctgpu.volume.stored import numpy_dtype

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)


class Room(Protocol):
    """The memory of one batch that is being read.  Threads may read rows beside one another."""

    def read(self, row: int, index: int, start: Shape) -> tuple[Labels, str]:
        """Read sample `index`, or its box from `start` on, into a row; its labels and its report.

        Raises
        ------
        SampleError, StorageError
            If it is damaged, or its shard is gone; another one may be read into the row then.
        """

    def place(self, labels: Labels) -> dict[str, torch.Tensor]:
        """All rows, once they are read, and `labels` (B, classes), as the tensors of a batch."""


class Rooms(Protocol):
    """Makes rooms of one kind."""

    #: Of a whole batch.  Smaller batches take as much, so that a pool keeps to one size.
    size_bytes: int

    def open(self, buffer: Buffer, samples: int) -> Room:
        """The room for a batch of so many samples, in a buffer of :attr:`size_bytes`."""


def make_rooms(
    dataset: VolumeDataset, target: Target, batch_size: int, box: Shape | None, *, verify: bool
) -> Rooms:
    """What the batches of a data set are read into, on their way to `target`.

    Parameters
    ----------
    dataset : VolumeDataset
        The samples.
    target : Target
        What becomes of what was read.
    batch_size : int
        Samples of a batch.
    box : tuple of int or None
        Voxels that are read of each, in stored order; None for all.
    verify : bool
        Find what is damaged while it is read, and not only where a GPU decodes it.
    """
    if dataset.is_compressed and isinstance(target, CudaTarget):
        try:
            target.open_decoder()
        except DeviceError as error:
            log.warning("%s; until then compressed volumes are decoded on the host", error)
        else:
            return TileRooms(dataset, target, batch_size, box, verify=verify)
    return VoxelRooms(dataset, target, batch_size, box)


class VoxelRooms:
    """Voxels are read, or decoded, into their places in the batch; as :func:`make_rooms`."""

    def __init__(
        self, dataset: VolumeDataset, target: Target, batch_size: int, box: Shape | None
    ) -> None:
        self._dataset, self._target = dataset, target
        spec, masks = dataset.spec, dataset.masks
        self._box = memory_order(box or spec.stored_shape, spec.layout, dataset.memory_layout)
        self._dtype = numpy_dtype(target.dtype)
        voxels = batch_size * math.prod(self._box)
        # Masks, where there are any, begin behind the volumes of a whole batch.
        volume_bytes = self._dtype.itemsize * target.channels * voxels
        self._masks_at = -(-volume_bytes // PAGE_BYTES) * PAGE_BYTES
        self._mask_dtype = None if masks is None else target.mask_dtype(masks)
        mask_bytes = 0 if self._mask_dtype is None else self._mask_dtype.itemsize * voxels
        self.size_bytes = whole_pages(self._masks_at + mask_bytes)

    def open(self, buffer: Buffer, samples: int) -> Room:
        room = buffer.array((samples, self._target.channels, *self._box), self._dtype)
        mask_room = None
        if self._mask_dtype is not None:
            shape = (samples, 1, *self._box)
            mask_room = buffer.array(shape, self._mask_dtype, offset=self._masks_at)
        return _VoxelRoom(self._dataset, self._target, room, mask_room)


class _VoxelRoom:
    def __init__(
        self, dataset: VolumeDataset, target: Target, room: Volume, mask_room: Volume | None
    ) -> None:
        self._dataset, self._target = dataset, target
        self._room, self._mask_room = room, mask_room
        self._stored = _end_of(room, numpy_dtype(dataset.spec.dtype))
        self._mask: Volume | None = None
        if mask_room is not None and dataset.masks is not None:
            self._mask = _end_of(mask_room, dataset.masks.numpy_dtype)

    def read(self, row: int, index: int, start: Shape) -> tuple[Labels, str]:
        mask = None if self._mask is None else self._in_stored_order(self._mask[row])
        out = self._in_stored_order(self._stored[row])
        return self._dataset.read_into(index, out, start, mask=mask)

    def place(self, labels: Labels) -> dict[str, torch.Tensor]:
        volume, placed = self._target.place(self._stored, self._room, labels)
        if self._mask is None or self._mask_room is None:
            return {"volume": volume, "labels": placed}
        mask = self._target.place_mask(self._mask, self._mask_room)
        return {"volume": volume, "mask": mask, "labels": placed}

    def _in_stored_order(self, row: Volume) -> Volume:
        return in_stored_order(row, self._dataset.memory_layout, self._dataset.spec.layout)


class _Section(NamedTuple):
    """The volumes of a batch, or its masks: where their rows begin, and how long each is."""

    extension: str
    dtype: str
    begin: int
    row_bytes: int


class TileRooms:
    """Compressed tiles are read, and decoded by the GPU; as :func:`make_rooms`.

    Rows have room for the largest sample, so that any other may take the place of one.
    """

    def __init__(
        self,
        dataset: VolumeDataset,
        target: CudaTarget,
        batch_size: int,
        box: Shape | None,
        *,
        verify: bool,
    ) -> None:
        self._dataset, self._target, self._verify = dataset, target, verify
        spec, masks = dataset.spec, dataset.masks
        self._box_dhw = dhw_order(box or spec.stored_shape, spec.layout)
        row_bytes = self._row_bytes(
            numpy_dtype(spec.dtype).itemsize,
            (entry.members[VOLUMES[1]].size_bytes for entry in dataset.entries),
        )
        self._sections = [_Section(VOLUMES[1], spec.dtype, 0, row_bytes)]
        self.size_bytes = whole_pages(batch_size * row_bytes)
        if masks is not None:
            row_bytes = self._row_bytes(
                masks.numpy_dtype.itemsize,
                (entry.members[MASKS[1]].size_bytes for entry in dataset.entries),
            )
            begin = batch_size * self._sections[0].row_bytes
            self._sections.append(_Section(MASKS[1], masks.dtype, begin, row_bytes))
            self.size_bytes = whole_pages(begin + batch_size * row_bytes)

    def open(self, buffer: Buffer, samples: int) -> Room:
        sections = self._sections
        return _TileRoom(
            self._dataset, self._target, sections, self._box_dhw, buffer, samples, self._verify
        )

    def _row_bytes(self, voxel_bytes: int, members_bytes: Iterable[int]) -> int:
        """Bytes of the tiles of any box of any sample, of whole pages."""
        spec = self._dataset.spec
        shape_dhw = dhw_order(spec.stored_shape, spec.layout)
        tiles = 1
        for axis, tile in ((0, PLANES), (2, LANES)):
            met = (self._box_dhw[axis] - 2) // tile + 2  # by one that begins at the end of a tile
            tiles *= min(met, -(-shape_dhw[axis] // tile))
        uncompressed = tiles * PLANES * LANES * shape_dhw[1] * voxel_bytes
        most = min(max(members_bytes) - head_bytes(shape_dhw), uncompressed)
        return -(-most // PAGE_BYTES) * PAGE_BYTES


class _TileRoom:
    def __init__(
        self,
        dataset: VolumeDataset,
        target: CudaTarget,
        sections: Sequence[_Section],
        box_dhw: Shape,
        buffer: Buffer,
        samples: int,
        verify: bool,
    ) -> None:
        self._dataset, self._target, self._verify = dataset, target, verify
        self._sections, self._box_dhw = sections, box_dhw
        self._data = [
            buffer.bytes[one.begin : one.begin + samples * one.row_bytes] for one in sections
        ]
        self._rows: list[list[Compressed]] = [[]] * samples

    def read(self, row: int, index: int, start: Shape) -> tuple[Labels, str]:
        dataset = self._dataset
        shard, entry = dataset.locate(index)
        due = dataset.is_due(index)
        layout, stored = dataset.spec.layout, dataset.spec.stored_shape
        start_dhw, shape_dhw = dhw_order(start, layout), dhw_order(stored, layout)
        tiles = []
        with shard.open() as reader:
            for section, data in zip(self._sections, self._data, strict=True):
                extension, dtype = section.extension, section.dtype
                member = CompressedMember(reader, entry, extension, shape_dhw, dtype)
                runs = tiles_of(member.head, start_dhw, self._box_dhw)
                begin = row * section.row_bytes
                out = data[begin : begin + section.row_bytes]
                member.read_tiles(runs, out, verify=due or self._verify)
                name = f"{shard.path}: {entry.key}.{extension}"
                tiles.append(Compressed(name, member.head, runs, begin, start_dhw))
            labels, report = read_labels_and_report(reader, entry)
        if due and self._box_dhw == shape_dhw:
            dataset.note_verified(index)
        self._rows[row] = tiles
        return labels, report

    def place(self, labels: Labels) -> dict[str, torch.Tensor]:
        volumes, *masks = (list(tiles) for tiles in zip(*self._rows, strict=True))
        volume, placed = self._target.place_tiles(volumes, self._data[0], self._box_dhw, labels)
        if not masks:
            return {"volume": volume, "labels": placed}
        mask = self._target.place_mask_tiles(masks[0], self._data[1], self._box_dhw)
        return {"volume": volume, "mask": mask, "labels": placed}


def _end_of(room: Volume, dtype: np.dtype[Any]) -> Volume:
    """The end of the memory of (B, channels, axes), as (B, axes) of another type, no larger."""
    shape = (room.shape[0], *room.shape[2:])
    return room.reshape(-1).view(dtype)[-math.prod(shape) :].reshape(shape)
