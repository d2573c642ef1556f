"""A sample between the stages of the pipeline: what it holds of the memory, and gives back."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from ctgpu.buffers import Buffer, BufferPool
from ctgpu.building.masks import MaskFiles, merge_mask
from ctgpu.shards.plan import Plan
from ctgpu.shards.recode import compress_sample
from ctgpu.shards.writer import PackedSample
from ctgpu.sources.fetched import Fetched
from ctgpu.sources.tables import SampleRow
from ctgpu.volume.label_volume import LabelVolume
from ctgpu.volume.masks import MaskFormat
from ctgpu.volume.prepare import PreparedVolume
from ctgpu.volume.raw import RawVolume


@dataclass(slots=True)
class FetchedSample:
    """The bytes of a sample's volume and of the files of its mask, as they are stored."""

    volume: Fetched
    row: SampleRow
    mask: MaskFiles = ()

    @property
    def size_bytes(self) -> int:
        """Of all of the bytes."""
        return self.volume.size_bytes + sum(one.size_bytes for _, one in self.mask)

    def footprint_bytes(self, masks: MaskFormat | None, copies: int) -> int:
        """What it holds while it is decoded, without what is made of it.

        Parameters
        ----------
        masks : MaskFormat or None
            Of its mask.
        copies : int
            Of its voxels that are there at a time.
        """
        held = self.size_bytes + copies * self.volume.inflated_bytes
        if masks is not None:
            # The labels of every voxel, of which there are no more than bytes; and one of the
            # files, inflated.
            held += masks.numpy_dtype.itemsize * self.volume.inflated_bytes
            held += max((one.inflated_bytes for _, one in self.mask), default=0)
        return held

    def decode(
        self, pool: BufferPool, masks: MaskFormat | None, *, limit_bytes: int
    ) -> tuple[RawVolume, LabelVolume | None]:
        """Volume and mask; takes their bytes over.

        Raises
        ------
        DecodeError, GeometryError
            If they are none, or not of one scan.
        """
        try:
            raw = self.volume.decode(pool, limit_bytes=limit_bytes)
        except BaseException:
            self.release()
            raise
        if masks is None:
            return raw, None
        with raw.released_on_error():
            return raw, merge_mask(self.mask, raw, masks, pool, limit_bytes=limit_bytes)

    def release(self) -> None:
        """Give them back undecoded."""
        self.volume.release()
        for _, one in self.mask:
            one.release()


@dataclass(slots=True)
class DecodedSample:
    """A volume with everything decided, and its mask as it will be stored."""

    prepared: PreparedVolume
    row: SampleRow
    mask: Buffer | None = None

    def release(self) -> None:
        """Give both back."""
        self.prepared.release()
        if self.mask is not None:
            self.mask.release()


@dataclass(slots=True)
class MadeSample:
    """What the writer takes, and the buffers that it lies in."""

    packed: PackedSample
    buffers: Sequence[Buffer]
    hu_finding: str | None

    @property
    def held_bytes(self) -> int:
        """Of the buffers."""
        return sum(buffer.size_bytes for buffer in self.buffers)

    def compress(self, pool: BufferPool, plan: Plan) -> MadeSample:
        """The same, compressed as a plan says, in other buffers; gives these back in any case."""
        with contextlib.ExitStack() as stack:
            stack.callback(self.release)
            rooms = []
            for limit_bytes in plan.payload_limits_bytes:
                rooms.append(pool.acquire(limit_bytes))
                stack.enter_context(rooms[-1].released_on_error())
            packed = compress_sample(self.packed, plan, *(room.bytes for room in rooms))
        return MadeSample(packed, rooms, self.hu_finding)

    def release(self) -> None:
        """Give the buffers back."""
        for buffer in self.buffers:
            buffer.release()
