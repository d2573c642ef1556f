"""Where Hounsfield units come from, and a guard against getting it wrong.

CT-RATE's ``*_fixed`` volumes already are HU and its v1 volumes are not; every public script falls
on one side of that silently.  Here the choice is explicit, recorded, and checked on the voxels;
what was shifted is told here, what has another scale than HU in :mod:`ctgpu.volume.hu_scale`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ctgpu.errors import IntensityError
from ctgpu.spec import Intensity
from ctgpu.volume.hu_scale import Fault, sampling_step, scale_fault, slabs
from ctgpu.volume.raw import RawVolume, Rescale
from ctgpu.volume.ref import Provenance

HuGuard = Literal["refuse", "warn"]

# The fewest voxels whose shares say something.
_FEWEST_VOXELS = 64**3

# HU that lung, soft tissue and bone cannot all leave at once.
_BELOW_AIR_HU = -1100.0
_AIR_AND_LUNG_HU = -300.0
_SOFT_TISSUE_HU = (-200.0, 200.0)
_DENSE_HU = 600.0
# Bone thins out from the first range to the second; soft tissue off by 1024 peaks in the second.
_BONE_HU = (600.0, 900.0)
_SHIFTED_SOFT_TISSUE_HU = (900.0, 1200.0)
# Padding outside the round field of view lies below air, alone: nothing lies this close above it.
_PADDING_BELOW_HU = -900.0
_PADDING_GAP_HU = 100.0
_MOST_PADDINGS = 4


def resolve_rescale(
    raw: RawVolume,
    *,
    intensity: Intensity,
    provenance: Provenance = "unknown",
    csv_pair: tuple[float, float] | None = None,
) -> Rescale:
    """How the voxels of one volume become HU.

    Parameters
    ----------
    raw : RawVolume
        The volume; its own header scaling is part of decoding and always honoured, except that
        ``intensity="hu"`` disregards the rescale pair of an ``.npz``'s metadata.
    intensity : {"auto", "hu", "rescale"}
        ``hu`` never applies the CSV's pair, ``rescale`` always does, ``auto`` applies it to v1
        NIfTI volumes only.
    provenance : {"fixed", "v1", "unknown"}
        What the path says about the volume.
    csv_pair : tuple of float, optional
        ``(RescaleSlope, RescaleIntercept)`` of the CSV (or JSON) row.

    Raises
    ------
    IntensityError
        If a pair is wanted and there is none, a pair is not finite, or two scalings would apply.
    """
    if raw.is_bare:
        if intensity == "hu":
            return Rescale()
        wants_pair = intensity == "rescale" and raw.header_rescale.is_identity
    else:
        wants_pair = intensity == "rescale" or (intensity == "auto" and provenance == "v1")
    if not wants_pair:
        return raw.header_rescale
    if csv_pair is None:
        raise IntensityError(
            "the volume needs RescaleSlope and RescaleIntercept and its source states none; "
            "if its voxels already are HU, pass --intensity hu"
        )
    slope, intercept = csv_pair
    if not (np.isfinite(slope) and np.isfinite(intercept)) or slope == 0:
        raise IntensityError(
            f"RescaleSlope, RescaleIntercept are {slope}, {intercept}; wanted finite numbers and a "
            "slope other than zero; if the voxels already are HU, pass --intensity hu"
        )
    if not raw.header_rescale.is_identity:
        raise IntensityError(
            f"the header scales the voxels by {raw.header_rescale.slope:g} and "
            f"{raw.header_rescale.intercept:g}, and the CSV would scale them again by "
            f"{slope:g} and {intercept:g}; pass --intensity hu to use the header's alone"
        )
    return Rescale(float(slope), float(intercept), "csv")


@dataclass(frozen=True, slots=True)
class HuEvidence:
    """Shares of a volume's voxels, padding left out, that tell HU from HU that were shifted.

    The limits of :attr:`fault` lie between what was found in nine real volumes (whole chests,
    slabs, abdomen, contrast, 10 to 90 % air) with padding at -3024 and -8192, noise up to 300 HU,
    and crops of lung or of solid tissue alone, and in the same volumes shifted:

    ============================== ================= ==============================
    share                          as HU             shifted (without crops)
    ============================== ================= ==============================
    below_air                      at most 0.35      by -1024 or -8192: 0.41 to 1.0
    soft_tissue, below_air > 0.3   at least 0.05     at most 0.026
    air_and_lung                   solid crops 0.02, by 1024 or 8192: at most 0.05
                                   others 0.21 to 1
    dense                          at most 0.08      by 8192: at least 0.78
    shifted_soft_tissue            at most 0.02      by 1024: at least 0.046
    shifted_soft_tissue / bone     at most 0.9       by 1024: at least 1.4
    ============================== ================= ==============================

    Where noise blurs one of them another decides; a volume is refused only on all of them.  What
    is not HU at all is told by :mod:`ctgpu.volume.hu_scale`.

    Attributes
    ----------
    below_air, air_and_lung, soft_tissue, dense, bone, shifted_soft_tissue : float
        Share of voxels below -1100, below -300, within ±200, above 600, from 600 to 900 and from
        900 to 1200 HU.
    """

    below_air: float
    air_and_lung: float
    soft_tissue: float
    dense: float
    bone: float
    shifted_soft_tissue: float

    @classmethod
    def measure(cls, voxels: npt.NDArray[Any], rescale: Rescale) -> HuEvidence | None:
        """Look at an even sample of the voxels; None where there are too few to judge.

        Parameters
        ----------
        voxels : numpy.ndarray
            Source voxels, shape (H, W, D), every one finite.
        rescale : Rescale
            How they become HU.
        """
        if voxels.size < _FEWEST_VOXELS:
            return None
        return cls._of(sorted_hu(voxels, rescale))

    @classmethod
    def _of(cls, ascending_hu: npt.NDArray[np.float64]) -> HuEvidence:
        hu = _without_padding(ascending_hu)

        def share(low: float, high: float) -> float:
            first, last = np.searchsorted(hu, (low, high))
            return float(last - first) / len(hu)

        return cls(
            below_air=share(-np.inf, _BELOW_AIR_HU),
            air_and_lung=share(-np.inf, _AIR_AND_LUNG_HU),
            soft_tissue=share(*_SOFT_TISSUE_HU),
            dense=share(_DENSE_HU, np.inf),
            bone=share(*_BONE_HU),
            shifted_soft_tissue=share(*_SHIFTED_SOFT_TISSUE_HU),
        )

    @property
    def fault(self) -> Literal["rescaled twice", "never rescaled"] | None:
        """What the voxels look like instead of HU; None where they may be HU."""
        if self.below_air > 0.30 and self.soft_tissue < 0.035:
            return "rescaled twice"
        peak = self.shifted_soft_tissue
        if self.air_and_lung < 0.05 and (self.dense > 0.5 or peak > max(0.03, 1.25 * self.bone)):
            return "never rescaled"
        return None

    def explain(self, rescale: Rescale) -> Fault | None:
        """The same in words."""
        if self.fault is None:
            return None
        if self.fault == "rescaled twice":
            found = (
                f"{self.below_air:.0%} of its voxels are below {_BELOW_AIR_HU:.0f} HU and "
                f"{self.soft_tissue:.1%} are soft tissue"
            )
            way_out = (
                "its voxels seem to be HU already, so pass --intensity hu"
                if rescale.source in ("csv", "metadata")
                else "neither --intensity hu nor rescale mends that, so get the file as it was "
                "published"
            )
        else:
            found = (
                f"{self.air_and_lung:.1%} of its voxels are air or lung and {self.dense:.0%} "
                f"are above {_DENSE_HU:.0f} HU"
            )
            way_out = (
                "pass --intensity rescale with a source that states RescaleSlope and "
                "RescaleIntercept"
                if rescale.source == "hu"
                else f"--intensity rescale would need another pair than {rescale.slope:g} and "
                f"{rescale.intercept:g} ({rescale.source}), so correct it there"
            )
        return Fault(f"looks {self.fault}", found, way_out)


def find_fault(voxels: npt.NDArray[Any], rescale: Rescale) -> Fault | None:
    """What a volume is instead of HU; None where it may be HU.

    Parameters
    ----------
    voxels : numpy.ndarray
        Source voxels, shape (H, W, D), every one finite.
    rescale : Rescale
        How they become HU.
    """
    ascending_hu = sorted_hu(voxels, rescale)
    fault = scale_fault(voxels, rescale, ascending_hu)
    if fault is None and voxels.size >= _FEWEST_VOXELS:
        fault = HuEvidence._of(ascending_hu).explain(rescale)
    return fault


def check_hu(
    voxels: npt.NDArray[Any], rescale: Rescale, *, guard: HuGuard = "refuse"
) -> str | None:
    """Refuse a volume that cannot be HU, or say what it looks like.

    Parameters
    ----------
    voxels : numpy.ndarray
        Source voxels, shape (H, W, D).
    rescale : Rescale
        How they become HU.
    guard : {"refuse", "warn"}
        What to do about a volume that is no HU.

    Returns
    -------
    str or None
        What the volume looks like instead, where `guard` is ``"warn"``; None where it may be HU.

    Raises
    ------
    IntensityError
        If a voxel is not finite in float32, whatever `guard` is; or if the volume looks like
        something else than HU.  The message names the likely cause and the way out.
    """
    check_finite(voxels)
    fault = find_fault(voxels, rescale)
    if fault is None:
        return None
    if guard == "warn":
        return f"{fault.likeness}: {fault.found}"
    raise IntensityError(
        f"the volume {fault.likeness}: {fault.found}; {fault.way_out}; to take it as HU all the "
        "same, pass --hu-guard warn"
    )


def check_finite(voxels: npt.NDArray[Any]) -> None:
    """Refuse voxels that no engine can take.

    Raises
    ------
    IntensityError
        If one is not finite in float32.
    """
    if voxels.dtype.kind == "f" and not _all_finite(voxels):
        raise IntensityError(
            "the volume holds voxels that are not finite (NaN or infinity); "
            "repair the file or leave it out"
        )


def _all_finite(voxels: npt.NDArray[Any]) -> bool:
    with np.errstate(over="ignore"):
        return all(np.isfinite(slab.astype(np.float32, copy=False)).all() for slab in slabs(voxels))


def sorted_hu(voxels: npt.NDArray[Any], rescale: Rescale) -> npt.NDArray[np.float64]:
    """An even sample of a volume's HU, at most about 2^18 of them, ascending.

    Parameters
    ----------
    voxels : numpy.ndarray
        Source voxels, shape (H, W, D), every one finite.
    rescale : Rescale
        How they become HU.
    """
    step = sampling_step(voxels)
    sample = voxels[::step, ::step, ::step].flatten(order="K")
    sample.sort()
    with np.errstate(over="ignore"):
        hu = sample.astype(np.float64) * rescale.slope + rescale.intercept
    return hu if rescale.slope > 0 else hu[::-1]


def _without_padding(hu: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Sorted HU without the values at their low end that stand alone."""
    for _ in range(_MOST_PADDINGS):
        lowest = hu[0]
        count, within_gap = np.searchsorted(hu, (lowest, lowest + _PADDING_GAP_HU), side="right")
        alone = within_gap - count < 0.05 * count
        if lowest >= _PADDING_BELOW_HU or count == len(hu) or not alone:
            break
        hu = hu[count:]
    return hu
