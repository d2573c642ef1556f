"""The contract of the output: spacing, shape, HU window, layout, dtype."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

import msgspec

from ctgpu.arguments import converted, option
from ctgpu.errors import UsageError

Layout = Literal["HWD", "DHW"]
Intensity = Literal["auto", "hu", "rescale"]
ClipOrder = Literal["before", "after"]

#: Changes whenever the same input would give other bits; enters every fingerprint.
ARITHMETIC_VERSION = 1

# Beyond these, sizes of axes and scales are no longer numbers that the engines can hold.
_SPACING_RANGE_MM = (1e-3, 1e3)
_HIGHEST_HU = 1_000_000
_NARROWEST_HU = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """The contract of one data set; every sample of a folder is made to the same one.

    Axes ``H, W, D`` are the stored array's axes ``i, j, k``; nothing is reoriented.

    Parameters
    ----------
    target_spacing_mm : tuple of float
        Voxel size (H, W, D) of the output in millimetres.
    shape_hwd : tuple of int
        Voxels (H, W, D) of the output after centre crop and centre pad.
    hu_window : tuple of float
        ``(lo, hi)`` in HU; it is mapped to [-1, 1].
    pad_value : float
        Value of padded voxels, in normalised units.
    layout : {"HWD", "DHW"}
        Order of the stored axes, last fastest.  ``HWD`` is what the old format held; ``DHW`` is
        contiguous for training.
    intensity : {"auto", "hu", "rescale"}
        Whether the CSV's slope and intercept are applied: see :mod:`ctgpu.volume.intensity`.
    clip : {"before", "after"}
        Clip to the window before (CT-CLIP inference) or after (CT-CLIP training) resampling.

    Raises
    ------
    UsageError
        If a value is outside its domain.
    """

    target_spacing_mm: tuple[float, float, float] = option(
        (0.75, 0.75, 1.5),
        flag="--spacing",
        written="numbers",
        example="0.75,0.75,1.5",
        help="Target voxel size H,W,D in mm. (default: 0.75,0.75,1.5)",
    )
    shape_hwd: tuple[int, int, int] = option(
        (480, 480, 240),
        flag="--shape",
        written="numbers",
        example="480,480,240",
        help="Target shape H,W,D. (default: 480,480,240)",
    )
    hu_window: tuple[float, float] = option(
        (-1000.0, 1000.0),
        written="numbers",
        example="-1000,1000",
        help="HU mapped to -1 and 1. (default: -1000,1000)",
    )
    pad_value: float = -1.0
    layout: Layout = option("HWD", help="HWD, or DHW (contiguous to train on).")
    intensity: Intensity = option(
        "auto", help="auto, hu (never use the CSV's slope and intercept) or rescale."
    )
    clip: ClipOrder = option("before", help="before or after resampling. (default: before)")

    def __post_init__(self) -> None:
        set_field = object.__setattr__
        set_field(
            self, "target_spacing_mm", _floats("target_spacing_mm", self.target_spacing_mm, 3)
        )
        set_field(self, "hu_window", _floats("hu_window", self.hu_window, 2))
        set_field(self, "pad_value", _floats("pad_value", [self.pad_value], 1)[0])
        shape = _floats("shape_hwd", self.shape_hwd, 3)
        if any(not n.is_integer() or not 1 <= n <= 65535 for n in shape):
            raise UsageError(
                f"shape_hwd is {self.shape_hwd!r}; it takes three whole numbers from 1 to 65535"
            )
        set_field(self, "shape_hwd", tuple(int(n) for n in shape))
        finest_mm, coarsest_mm = _SPACING_RANGE_MM
        if min(self.target_spacing_mm) < finest_mm or max(self.target_spacing_mm) > coarsest_mm:
            raise UsageError(
                f"target_spacing_mm is {self.target_spacing_mm}; every spacing must be above zero, "
                f"from {finest_mm:g} to {coarsest_mm:g} mm"
            )
        lo, hi = self.hu_window
        if not lo < hi:
            raise UsageError(f"hu_window is {self.hu_window}; the first must be below the second")
        if max(-lo, hi) > _HIGHEST_HU or hi - lo < _NARROWEST_HU:
            raise UsageError(
                f"hu_window is {self.hu_window}; it must lie within ±{_HIGHEST_HU:,} and be "
                f"{_NARROWEST_HU:g} wide at least, or float32 cannot tell its ends apart"
            )
        if not -65504.0 <= self.pad_value <= 65504.0:
            raise UsageError(f"pad_value is {self.pad_value}; it must fit float16")
        for name, domain in (("layout", Layout), ("intensity", Intensity), ("clip", ClipOrder)):
            if getattr(self, name) not in get_args(domain):
                raise UsageError(
                    f"{name} is {getattr(self, name)!r}; it is one of {', '.join(get_args(domain))}"
                )

    @property
    def stored_shape(self) -> tuple[int, int, int]:
        """Shape of the stored array, in the order of :attr:`layout`."""
        h, w, d = self.shape_hwd
        return (h, w, d) if self.layout == "HWD" else (d, h, w)

    @property
    def size_bytes(self) -> int:
        """Bytes of one stored volume (float16)."""
        return 2 * math.prod(self.shape_hwd)

    @property
    def scale_offset(self) -> tuple[float, float]:
        """``(scale, offset)`` such that ``hu * scale + offset`` maps the window to [-1, 1]."""
        lo, hi = self.hu_window
        half = (hi - lo) / 2
        return 1.0 / half, -((lo + hi) / 2) / half

    def to_dict(self) -> dict[str, Any]:
        """The spec as JSON-ready values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Spec:
        """The spec that :meth:`to_dict` wrote.

        Raises
        ------
        UsageError
            If a field is unknown or a value is of another type or outside its domain.
        """
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise UsageError(f"spec has unknown fields {unknown}; it was written by a newer ctgpu")
        try:
            return converted(values, cls)
        except msgspec.ValidationError as error:
            raise UsageError(f"spec: {error}") from error

    def fingerprint(self, arithmetic: str) -> str:
        """Sixteen hexadecimal digits that differ whenever the output could.

        Parameters
        ----------
        arithmetic : str
            The engine's arithmetic: ``"ctgpu"`` for the C++ and CUDA engines, which give the same
            bits, and the engine's own name for any other.
        """
        text = json.dumps(
            {"spec": self.to_dict(), "arithmetic": arithmetic, "version": ARITHMETIC_VERSION},
            sort_keys=True,
        )
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _floats(name: str, values: Any, count: int) -> tuple[float, ...]:
    try:
        result = tuple(float(v) for v in values)
    except (TypeError, ValueError, OverflowError):
        result = ()
    if len(result) != count or not all(map(math.isfinite, result)):
        raise UsageError(f"{name} is {values!r}; it takes {count} finite numbers")
    return result


#: In the words of a message.
SPEC_WANTED = "a ctgpu.Spec, such as ctgpu.PRESETS['ct-rate']"

#: CT-CLIP's contract for CT-RATE.
CT_RATE = Spec()

#: Named specs for ``--preset``.
PRESETS: Mapping[str, Spec] = {
    "ct-rate": CT_RATE,
    "ct-rate-dhw": Spec(layout="DHW"),
}
