"""Makes single samples of a plan, in the threads that ask for them, within a budget of bytes."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from ctgpu.buffers import BufferPool, ByteBudget, Reservation
from ctgpu.building.in_flight import FetchedSample
from ctgpu.building.members import label_bytes, report_bytes, sample_metadata, to_json_bytes
from ctgpu.building.prepare import prepare_sample
from ctgpu.decode import MAX_VOLUME_BYTES
from ctgpu.engines import Engine, Job
from ctgpu.errors import CtgpuError, FetchError, SampleError, shortage
from ctgpu.loading.dataset import Labels, Volume
from ctgpu.machine import available_memory_bytes
from ctgpu.shards.plan import Plan
from ctgpu.shards.record import checksum
from ctgpu.shards.writer import PackedSample
from ctgpu.sources.base import Source
from ctgpu.sources.tables import SampleRow
from ctgpu.volume.geometry import VolumePlan
from ctgpu.volume.mask_gather import gather_mask
from ctgpu.volume.masks import MaskFormat
from ctgpu.volume.orientation import AxisRules
from ctgpu.volume.prepare import PreparedVolume
from ctgpu.volume.ref import SampleRef

log = logging.getLogger(__name__)

# Raw bytes for each compressed byte, where nothing better is known before the download.
_EXPECTED_RATIO = 4

Metadata = dict[str, Any]


class SampleMaker:
    """Makes what a build would write of a sample: the same bytes, straight into the caller's array.

    Threads may share it, and no process may use that of another.

    Parameters
    ----------
    plan : Plan
        What to make.
    source : Source
        Where the samples are; stays open.
    engine : Engine
        What computes; stays open.
    memory_limit_bytes : int
        Budget of the volumes in flight.
    cores : int
        Cores to use: those without a volume of their own help with the others'.
    """

    def __init__(
        self,
        plan: Plan,
        source: Source,
        engine: Engine,
        *,
        memory_limit_bytes: int,
        cores: int,
    ) -> None:
        self._plan = plan
        self._source = source
        self._engine = engine
        self._tables = source.tables(plan.split, plan.class_names)
        self._rules = AxisRules.of_selection(plan.selection)
        # Plans older than the option were made under its default.
        self._hu_guard = plan.selection.get("hu_guard", "refuse") if engine.takes_hu else None
        self._spacing_from_header = plan.selection.get("spacing_fallback") == "header"
        self._largest_volume_bytes = min(MAX_VOLUME_BYTES, available_memory_bytes())
        self._pool = BufferPool(memory_limit_bytes, engine.allocate)
        self._budget = ByteBudget(memory_limit_bytes)
        self._engine_turns = threading.BoundedSemaphore(engine.concurrency)
        self._cores = cores
        self._in_flight = 0

    @property
    def peak_bytes(self) -> int:
        """The most that volumes in flight have had together."""
        return self._budget.peak_bytes

    def row(self, ref: SampleRef) -> SampleRow:
        """What the tables say about a sample.

        Raises
        ------
        TableError
            If they contradict themselves, or lack what they must say.
        """
        return self._tables.row(ref.study_id, spacing_from_header=self._spacing_from_header)

    def make(
        self,
        ref: SampleRef,
        out: Volume,
        start_hwd: Sequence[int],
        keep: Callable[[PackedSample], None] | None = None,
        mask: Volume | None = None,
    ) -> tuple[Labels, str]:
        """Make a sample, or a box of it.

        Parameters
        ----------
        ref : SampleRef
            Of the plan.
        out : numpy.ndarray
            C-contiguous, of the stored type and in stored order; its shape is the box's.
        start_hwd : sequence of int
            First voxel of the box.
        keep : callable, optional
            Is given the sample as a writer takes it; for whole volumes without masks.
        mask : numpy.ndarray, optional
            Of the type of the plan's masks, otherwise as `out`: the same box of the mask.

        Returns
        -------
        labels : numpy.ndarray
            Shape (classes,), float32, the caller's own.
        report : str

        Raises
        ------
        SampleError
            If nothing can be made of it.
        EnvironmentFailure
            If source, device or machine fail.
        """
        packed = None
        with self._prepared(ref, with_mask=mask is not None) as (prepared, row):
            self._compute(prepared, out, start_hwd, mask)
            if keep is not None:
                packed = self._packed(ref, prepared, row, out)
        if keep is not None and packed is not None:
            keep(packed)  # with what was in flight given back, for it may take long
        return row.labels.copy(), row.text

    def metadata(self, ref: SampleRef, out: Volume) -> Metadata:
        """The ``.json`` that a build would write of a sample, which is made into `out` for it.

        Raises
        ------
        SampleError, EnvironmentFailure
            As :meth:`make`.
        """
        masks, mask, mask_digest = self._plan.masks, None, None
        if masks is not None:
            mask = np.empty(out.shape, masks.numpy_dtype)
        with self._prepared(ref, with_mask=mask is not None) as (prepared, row):
            self._compute(prepared, out, (0, 0, 0), mask)
            if mask is not None:
                mask_digest = checksum(mask.data.cast("B"))
            return self._metadata(ref, prepared, row, checksum(out.data.cast("B")), mask_digest)

    def _packed(
        self, ref: SampleRef, prepared: PreparedVolume, row: SampleRow, out: Volume
    ) -> PackedSample:
        digest = checksum(out.data.cast("B"))
        return PackedSample(
            ref.key,
            out.reshape(-1).view(np.uint8),
            digest,
            label_bytes(row),
            report_bytes(row),
            to_json_bytes(self._metadata(ref, prepared, row, digest)),
            orientation.codes if (orientation := prepared.orientation) else None,
        )

    def _metadata(
        self,
        ref: SampleRef,
        prepared: PreparedVolume,
        row: SampleRow,
        digest: str,
        mask_digest: str | None = None,
    ) -> Metadata:
        return sample_metadata(
            prepared,
            study_id=ref.study_id,
            source_path=ref.path,
            source_revision=self._plan.source["revision"],
            report=row.report,
            carried=row.carried,
            fingerprint=self._plan.fingerprint,
            payload_xxh3_128=digest,
            mask_xxh3_128=mask_digest,
            stated_rescale=row.rescale_pair,
            read_xxh3_128=row.read_xxh3_128,
        )

    @contextmanager
    def _prepared(
        self, ref: SampleRef, *, with_mask: bool
    ) -> Iterator[tuple[PreparedVolume, SampleRow]]:
        """A sample's voxels, with all decided, for as long as the body runs."""
        with_mask = with_mask or self._plan.spec.crop == "mask"
        row = self.row(ref)  # before the download, which a bad one is not worth
        with ExitStack() as stack:
            reservation = self._budget.admit(self._expected_bytes(ref, row))
            assert reservation is not None  # the budget is never closed
            stack.callback(reservation.release)
            stack.enter_context(self._counted())
            stack.enter_context(_errors_of(ref))
            prepared = self._prepare(ref, row, reservation, self._plan.masks if with_mask else None)
            stack.callback(prepared.release)
            yield prepared, row

    def _expected_bytes(self, ref: SampleRef, row: SampleRow) -> int:
        shape = row.shape_hint
        # What a table says is only a hint, and may be nonsense.
        raw_bytes = 2 * math.prod(shape) if shape and min(shape) > 0 else 0
        return ref.size_bytes + (raw_bytes or _EXPECTED_RATIO * ref.size_bytes)

    def _prepare(
        self, ref: SampleRef, row: SampleRow, reservation: Reservation, masks: MaskFormat | None
    ) -> PreparedVolume:
        if ref.size_bytes > self._largest_volume_bytes:
            raise FetchError(
                f"{ref.path} is said to have {ref.size_bytes:,} bytes; at most "
                f"{self._largest_volume_bytes:,} are accepted here: look at the file, or train on "
                "a machine with more memory"
            )
        volume = self._source.fetch(ref, self._pool.acquire)
        with volume.buffer.released_on_error():
            if row.read_xxh3_128 is not None:
                row.read_xxh3_128["volume"] = checksum(volume.buffer.bytes)
            files = () if masks is None else self._source.fetch_mask(ref, self._pool.acquire)
            fetched = FetchedSample(volume, row, files)
            # Percentiles of anything but 8 and 16 bit voxels sort a copy of them.
            copies = 1 if self._plan.spec.percentiles is None else 2
            size_bytes = fetched.footprint_bytes(masks, copies)
            with self._budget.changed:
                # The oldest one always may, so that one of those that wait goes on.
                self._budget.changed.wait_for(lambda: reservation.try_resize(size_bytes))
        raw, mask = fetched.decode(self._pool, masks, limit_bytes=self._largest_volume_bytes)
        return prepare_sample(
            raw,
            row,
            ref,
            spec=self._plan.spec,
            rules=self._rules,
            hu_guard=self._hu_guard,
            mask=mask,
        )

    def _compute(
        self,
        prepared: PreparedVolume,
        out: Volume,
        start_hwd: Sequence[int],
        mask: Volume | None,
    ) -> None:
        h, w, d = out.shape if self._plan.spec.layout == "HWD" else (*out.shape[1:], out.shape[0])
        plan = prepared.plan
        if (h, w, d) != plan.spec.shape_hwd:
            plan = plan.part(start_hwd, (h, w, d))
        if all(axis.n_valid for axis in plan.axes):
            self._run(prepared, plan, out)
            if mask is not None:
                gather_mask(replace(prepared, plan=plan), mask)
            return
        if mask is not None:
            mask.fill(0)
        # No engine takes what is padding alone; all of it is one number, made in a pair of voxels.
        plan, place = _with_padding(prepared.plan, [axis.n_valid for axis in plan.axes].index(0))
        pair = np.empty(plan.spec.stored_shape, out.dtype)
        self._run(prepared, plan, pair)
        out[...] = pair.flat[place]

    def _run(self, prepared: PreparedVolume, plan: VolumePlan, out: Volume) -> None:
        job = Job(prepared.voxels, prepared.rescale, plan, out)
        with self._engine_turns:
            self._engine.run([job], threads=max(1, self._cores // self._in_flight))

    @contextmanager
    def _counted(self) -> Iterator[None]:
        with self._budget.changed:
            self._in_flight += 1
        try:
            yield
        finally:
            with self._budget.changed:
                self._in_flight -= 1


def _with_padding(plan: VolumePlan, axis: int) -> tuple[VolumePlan, int]:
    """Two voxels along an axis that is padded, and which of them is padding."""
    start, shape = [one.pad_before for one in plan.axes], [1, 1, 1]
    padded, shape[axis] = plan.axes[axis], 2
    before = padded.pad_before > 0
    start[axis] += -1 if before else padded.n_valid - 1
    return plan.part(start, shape), 0 if before else 1


@contextmanager
def _errors_of(ref: SampleRef) -> Iterator[None]:
    """Name what an error is about, as a build does: a shortage, or else one sample."""
    try:
        yield
    except CtgpuError:
        raise
    except Exception as error:
        if (short := shortage(error)) is not None:
            raise short from error
        # A defect met by one sample is no reason to lose an epoch; a build goes on likewise.
        log.exception("unexpected error with %s", ref.path)
        raise SampleError(f"{ref.path}: {type(error).__name__}: {error}") from error
