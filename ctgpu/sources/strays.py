"""Files that may be volumes beside those that are."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from ctgpu.printable import counted
from ctgpu.volume.ref import VOLUME_TIERS, SampleRef

_log = logging.getLogger(__name__)


def without_strays(where: str, refs: Sequence[SampleRef], globs: Sequence[str]) -> list[SampleRef]:
    """The volumes among some files, by :data:`ctgpu.volume.ref.VOLUME_TIERS`.

    Those left out are counted in a warning.

    Parameters
    ----------
    where : str
        What messages call the source.
    refs : sequence of SampleRef
        Files whose suffix is that of a volume.
    globs : sequence of str
        Those that they fit; what they name by its suffix is a volume whatever lies beside it.
    """
    named = [ref for ref in refs if _is_named(ref, globs)]
    others = [ref for ref in refs if not _is_named(ref, globs)]
    best = min(map(_tier_of, others), default=0)
    kept = [*named, *(ref for ref in others if _tier_of(ref) == best)]
    if len(kept) < len(refs):
        left_out = next(ref.path for ref in others if _tier_of(ref) != best)
        _log.warning(
            "%s: %s, such as %s, beside %s of another format, such as %s; a description whose "
            "globs end in their suffix takes them",
            where,
            counted(
                len(refs) - len(kept),
                "file is not taken for a volume",
                "files are not taken for volumes",
            ),
            *(left_out, counted(len(kept), "volume"), kept[0].path),
        )
    return kept


def _is_named(ref: SampleRef, globs: Sequence[str]) -> bool:
    path = ref.path.lower()
    return any(
        path.endswith(suffix) and glob.lower().endswith(suffix)
        for suffixes in VOLUME_TIERS
        for suffix in suffixes
        for glob in globs
    )


def _tier_of(ref: SampleRef) -> int:
    path = ref.path.lower()
    return next(n for n, suffixes in enumerate(VOLUME_TIERS) if path.endswith(suffixes))
