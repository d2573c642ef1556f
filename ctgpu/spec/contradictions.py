"""What a contract of the output must not ask for: impossible numbers, fields against each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ctgpu.errors import UsageError

if TYPE_CHECKING:
    from ctgpu.spec.contract import Spec

# Beyond these, sizes of axes are no longer numbers that the engines can hold.
_SPACING_RANGE_MM = (1e-3, 1e3)
#: What is mapped to the ends of the output lies within ± this, and is so far apart; or float32
#: cannot tell it apart.
HIGHEST_HU = 1_000_000
NARROWEST_HU = 0.1
#: Largest and least number of an output range and of padding, by what is stored.
_LIMITS = {
    "float16": (-65504.0, 65504.0),
    "bfloat16": (-65504.0, 65504.0),
    "int16": (-32768.0, 32767.0),
}
# Why what is stored takes no precision.
_OWN_STEPS = {
    "bfloat16": "bfloat16 has 8 significant bits, and from 0.25 on coarser steps itself",
    "int16": "int16 has steps of its own, of 1 HU",
    "uint8": "uint8 has steps of its own, a 255th of the output range",
}
# Of an output range, relative to its ends where these are above 1.
_NARROWEST_RANGE = 1e-3


def check_spec(spec: Spec) -> None:
    """Refuse a spec whose fields, each of its own type, are impossible or contradict each other.

    Raises
    ------
    UsageError
        Naming the field, or both.
    """
    _check_spacing(spec)
    _check_crop(spec)
    _check_window(spec)
    _check_normalise(spec)
    _check_precision(spec)
    _check_range(spec)
    _check_padding(spec)


def _check_spacing(spec: Spec) -> None:
    finest_mm, coarsest_mm = _SPACING_RANGE_MM
    if min(spec.target_spacing_mm) < finest_mm or max(spec.target_spacing_mm) > coarsest_mm:
        raise UsageError(
            f"target_spacing_mm is {spec.target_spacing_mm}; every spacing must be above zero, "
            f"from {finest_mm:g} to {coarsest_mm:g} mm"
        )
    if spec.fit == "stretch" and _is_set(spec, "target_spacing_mm"):
        raise _contradiction(
            spec, "target_spacing_mm", "fit", "stretching to a shape takes no spacing"
        )
    if spec.grid == "origin" and spec.fit != "spacing":
        raise _contradiction(spec, "grid", "fit", "only fit='spacing' steps from the first voxel")


def _check_crop(spec: Spec) -> None:
    for name in ("foreground_hu", "margin_mm"):
        if spec.crop == "centre" and _is_set(spec, name):
            raise _contradiction(
                spec, name, "crop", "a crop about the centre looks for no foreground"
            )
    if spec.crop == "mask" and _is_set(spec, "foreground_hu"):
        raise _contradiction(spec, "foreground_hu", "crop", "a mask says itself what is inside")
    if abs(spec.foreground_hu) > HIGHEST_HU:
        raise UsageError(
            f"foreground_hu is {spec.foreground_hu:g}; it must lie within ±{HIGHEST_HU:,}"
        )
    if spec.margin_mm < 0:
        raise UsageError(f"margin_mm is {spec.margin_mm:g}; it must be zero or above")


def _check_window(spec: Spec) -> None:
    if spec.hu_window is None:
        if spec.normalise == "window" and spec.dtype != "int16":
            raise _contradiction(
                spec, "hu_window", "normalise", "without a window there is nothing to map"
            )
        if spec.clip == "after" and spec.normalise != "percentiles":
            raise _contradiction(spec, "hu_window", "clip", "without a window nothing is clipped")
        return
    lo, hi = spec.hu_window
    if not lo < hi:
        raise UsageError(f"hu_window is {spec.hu_window}; the first must be below the second")
    if max(-lo, hi) > HIGHEST_HU or hi - lo < NARROWEST_HU:
        raise UsageError(
            f"hu_window is {spec.hu_window}; it must lie within ±{HIGHEST_HU:,} and be "
            f"{NARROWEST_HU:g} wide at least, or float32 cannot tell its ends apart"
        )
    least, largest = _LIMITS["int16"]
    if spec.dtype == "int16" and not least <= lo < hi <= largest:
        raise _contradiction(
            spec, "hu_window", "dtype", f"int16 holds HU from {least:g} to {largest:g}"
        )
    if spec.normalise == "percentiles":
        raise _contradiction(
            spec,
            "hu_window",
            "normalise",
            "percentiles take the window's place, so hu_window has to be None",
        )


def _check_normalise(spec: Spec) -> None:
    if (spec.percentiles is not None) != (spec.normalise == "percentiles"):
        raise _contradiction(spec, "percentiles", "normalise", "one of them asks for the other")
    if spec.percentiles is not None:
        lo, hi = spec.percentiles
        if not 0 <= lo < hi <= 100:
            raise UsageError(
                f"percentiles is {spec.percentiles}; it takes two numbers from 0 to 100, the first "
                "below the second"
            )
    holds_hu, of_zscore = "int16 holds HU as they are", "a z-score has mean 0 and deviation 1"
    for one, other, both, why in (
        ("dtype", "output_range", spec.dtype == "int16", holds_hu),
        ("dtype", "standardise", spec.dtype == "int16", holds_hu),
        ("dtype", "normalise", spec.dtype == "int16", holds_hu),
        ("dtype", "standardise", spec.dtype == "uint8", "uint8 holds the output range"),
        ("normalise", "output_range", spec.normalise == "zscore", of_zscore),
        ("normalise", "standardise", spec.normalise == "zscore", of_zscore),
    ):
        if both and _is_set(spec, other):
            raise _contradiction(spec, one, other, why)
    if spec.normalise == "zscore" and spec.dtype == "uint8":
        raise _contradiction(spec, "dtype", "normalise", "a z-score has no ends to be 0 and 255")


def _check_precision(spec: Spec) -> None:
    if spec.precision != "exact" and spec.dtype != "float16":
        raise _contradiction(spec, "precision", "dtype", _OWN_STEPS[spec.dtype])


def _check_range(spec: Spec) -> None:
    """So that every engine's float32 holds the scale, and the output's type tells values apart."""
    low, high = spec.output_range
    if not low < high:
        raise UsageError(f"output_range is {spec.output_range}; the first must be below the second")
    if spec.standardise is not None and not spec.standardise[1] > 0:
        raise UsageError(f"standardise is {spec.standardise}; the second must be above zero")
    stated, ends = f"output_range is {spec.output_range}", [(low, high)]
    if spec.standardise is not None:
        mean, std = spec.standardise
        stated += f" and standardise {spec.standardise}"
        ends.append(((low - mean) / std, (high - mean) / std))
    least, largest = _LIMITS["float16"]
    for low, high in ends:
        if not least <= low <= high <= largest:
            raise UsageError(
                f"{stated}, which gives {low:g} to {high:g}; it must lie within ±{largest:g}"
            )
        if high - low < _NARROWEST_RANGE * max(1.0, -low, high):
            raise UsageError(
                f"{stated}, which gives {low:g} to {high:g}; the two must be "
                f"{_NARROWEST_RANGE:g} apart at least, and as much of their size, or {spec.dtype} "
                "cannot tell them apart"
            )


def _check_padding(spec: Spec) -> None:
    if spec.pad_value is None:
        return
    least, largest = spec.output_range if spec.dtype == "uint8" else _LIMITS[spec.dtype]
    whole = spec.dtype != "int16" or spec.pad_value.is_integer()
    if not (least <= spec.pad_value <= largest and whole):
        raise UsageError(
            f"pad_value is {spec.pad_value} and dtype is {spec.dtype!r}, which holds "
            f"{'whole numbers ' if spec.dtype == 'int16' else ''}from {least:g} to {largest:g}"
            f"{', the ends of output_range' if spec.dtype == 'uint8' else ''}"
        )


def _is_set(spec: Spec, name: str) -> bool:
    """Whether a field is not at its default."""
    return bool(getattr(spec, name) != spec.__dataclass_fields__[name].default)


def _contradiction(spec: Spec, one: str, other: str, why: str) -> UsageError:
    return UsageError(
        f"{one} is {getattr(spec, one)!r} and {other} is {getattr(spec, other)!r}: {why}"
    )
