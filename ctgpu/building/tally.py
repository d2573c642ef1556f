"""Counts how the sources of a build are stored, and warns where they are not stored alike."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ctgpu.building.events import Event, SampleWritten, Watcher
from ctgpu.errors import StorageError
from ctgpu.shards.folder import committed_shards
from ctgpu.shards.names import record_name
from ctgpu.shards.record import ShardSummary

log = logging.getLogger(__name__)


class OrientationTally:
    """A watcher before another: warns, once, as soon as a build is known to mix orientations.

    Parameters
    ----------
    folder : Path
        The data set's folder; its finished shards count as well, those of other processes included.
    watch : callable
        Called with every event.
    turned : bool
        All volumes are turned to one orientation, so that a mixture is none in the output.
    """

    def __init__(self, folder: Path, watch: Watcher, *, turned: bool) -> None:
        self._watch = watch
        self._turned = turned
        self._warned = False
        self._counts: Counter[str] = Counter()
        for index in committed_shards(folder):
            # One that is damaged, or that another process replaces just now, may be made again.
            with suppress(StorageError):
                self._counts.update(ShardSummary.load(folder / record_name(index)).orientations)
        self._warn_if_mixed()

    def __call__(self, event: Event) -> None:
        """Count the sample that was written, and pass the event on."""
        if isinstance(event, SampleWritten) and event.orientation is not None:
            self._counts[event.orientation] += 1
            self._warn_if_mixed()
        self._watch(event)

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """Say how many samples of the data set are stored how, by its manifest.

        Earlier runs are counted in, and other processes that have finished a
        shard.
        """
        self._counts = Counter(manifest.get("orientations", {}))
        self._warn_if_mixed()
        counts = dict(self._counts.most_common())
        if unknown := manifest["total_samples"] - self._counts.total():
            counts["not known"] = unknown
        if counts:
            facts = {"event": "Orientations", "counts": counts}
            log.info("stored as %s", _listed(counts), extra={"facts": facts})

    def _warn_if_mixed(self) -> None:
        if len(self._counts) > 1 and not (self._turned or self._warned):
            self._warned = True
            log.warning(
                "the source mixes orientations (%s): volumes are kept as they are stored, so the "
                "same index leads to another side of the patient in each; see docs/axes.md",
                " and ".join(sorted(self._counts)),
            )


def _listed(counts: Mapping[str, int]) -> str:
    """Such as ``7 LPS, 2 RAS``."""
    return ", ".join(f"{number} {codes}" for codes, number in counts.items())
