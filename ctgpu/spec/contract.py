"""The contract of the output: which voxels, which values, and how they are stored."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

import msgspec

from ctgpu.arguments import converted, option
from ctgpu.errors import NewerFormatError, UsageError
from ctgpu.spec.contradictions import check_spec
from ctgpu.spec.presets import preset, presets

Layout = Literal["HWD", "DHW"]
Intensity = Literal["auto", "hu", "rescale"]
ClipOrder = Literal["before", "after"]
Grid = Literal["extent", "origin"]
Fit = Literal["spacing", "stretch", "contain"]
Crop = Literal["centre", "foreground", "body", "mask"]
Normalise = Literal["window", "percentiles", "minmax", "zscore"]
Dtype = Literal["float16", "bfloat16", "int16", "uint8"]
Precision = Literal["exact", "2^-10", "2^-11"]

#: Changes whenever the same input would give other bits; enters every fingerprint.
ARITHMETIC_VERSION = 1

#: Of ``orientation``: the axes of the output are those of the file.
STORED = "stored"

_DEFAULT_RANGE = (-1.0, 1.0)
_ITEM_BYTES: Mapping[Dtype, int] = {"float16": 2, "bfloat16": 2, "int16": 2, "uint8": 1}
_STEPS: Mapping[Precision, float] = {"2^-10": 2.0**-10, "2^-11": 2.0**-11}
# What the first format had; everything else is written only where it is not at its default.
_FIRST_FIELDS = frozenset(
    {"target_spacing_mm", "shape_hwd", "hu_window", "pad_value", "layout", "intensity", "clip"}
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Spec:
    """The contract of one data set; every sample of a folder is made to the same one.

    A volume is made in this order: its axes are oriented, its voxels rescaled to HU, a box of them
    is taken and clipped, then resampled, normalised, cropped or padded, and stored
    (docs/contracts.md).  Two specs are equal if they are the same contract, however it was spelled.

    Parameters
    ----------
    target_spacing_mm : tuple of float
        Voxel size (H, W, D) of the output in millimetres.  With ``fit="contain"`` only its
        proportions count, with ``fit="stretch"`` nothing of it does.
    shape_hwd : tuple of int
        Voxels (H, W, D) of the output, after it was cropped or padded about its centre.
    hu_window : tuple of float or None
        ``(lo, hi)`` in HU, to which voxels are clipped; None clips nothing.
    pad_value : float, optional
        Value of padded voxels, on the scale of the output (`output_range`, or HU for ``int16``);
        default its low end, see :attr:`padding`.
    layout : {"HWD", "DHW"}
        Order of the stored axes, last fastest.  ``HWD`` is what the old format held; ``DHW`` is
        contiguous for training.
    intensity : {"auto", "hu", "rescale"}
        Whether the CSV's slope and intercept are applied: see :mod:`ctgpu.volume.intensity`.
    clip : {"before", "after"}
        Clip to the window before (CT-CLIP inference) or after (CT-CLIP training) resampling.
    orientation : str
        ``"stored"``: axes H, W, D of the output are those of the file.  Or three letters, as
        ``nibabel.aff2axcodes`` gives them: the patient's directions in which H, W and D of the
        output lead, such as ``"LPS"``.
    grid : {"extent", "origin"}
        ``"extent"``: the output covers what the source covers, as PyTorch resizes.  ``"origin"``:
        the centre of the first voxel stays where it is, and steps are `target_spacing_mm`, as
        MONAI's ``Spacing`` takes them.
    fit : {"spacing", "stretch", "contain"}
        ``"spacing"``: resample to `target_spacing_mm`, then crop or pad to `shape_hwd`.
        ``"stretch"``: resample each axis to `shape_hwd`.  ``"contain"``: resample by the one factor
        with which the volume just fits `shape_hwd`, then pad.
    output_range : tuple of float
        What the ends of the window, or of the volume's own range, are mapped to.
    standardise : tuple of float, optional
        ``(mean, std)``: afterwards the mean is taken away and the rest divided by std.
    normalise : {"window", "percentiles", "minmax", "zscore"}
        What is mapped to `output_range`: `hu_window`, or two percentiles of the volume itself,
        which it is clipped to, or its least and largest value.  ``"zscore"`` takes away the
        volume's mean and divides by its standard deviation.  See :mod:`ctgpu.volume.statistics`.
    percentiles : tuple of float, optional
        ``(lo, hi)`` from 0 to 100, for ``normalise="percentiles"``.
    dtype : {"float16", "bfloat16", "int16", "uint8"}
        What is stored: values of `output_range`; or as ``int16`` HU, rounded; or as ``uint8`` the
        `output_range` as 0 to 255, rounded.
    precision : {"exact", "2^-10", "2^-11"}
        Values and padding are rounded to multiples of it, on the scale of the output, before they
        become float16: fewer numbers, which compress better.  ``"exact"`` rounds to none.  See
        :attr:`precision_error_hu`.
    crop : {"centre", "foreground", "body", "mask"}
        Which box of the scan's voxels the volume is made of: all of them, those around what is
        above `foreground_hu`, those around the patient without the table, or those around the
        labels of its mask.  See :mod:`ctgpu.volume.crop`.
    foreground_hu : float
        HU that foreground is above.
    margin_mm : float
        By how much the box is widened on every side, at least.

    Raises
    ------
    UsageError
        If a value is outside its domain, or two fields contradict each other.
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
    hu_window: tuple[float, float] | None = option(
        (-1000.0, 1000.0),
        written="numbers",
        example="-1000,1000",
        none="none",
        help="HU to clip to, and to map to the output range; none clips nothing. "
        "(default: -1000,1000)",
    )
    pad_value: float | None = option(
        written="number",
        help="Value of padded voxels. (default: the low end of the output)",
    )
    layout: Layout = option("HWD", help="HWD, or DHW (contiguous to train on).")
    intensity: Intensity = option(
        "auto", help="auto, hu (never use the CSV's slope and intercept) or rescale."
    )
    clip: ClipOrder = option("before", help="before or after resampling. (default: before)")
    orientation: str = option(
        STORED,
        help="stored, or three letters for the patient's directions along H, W and D of the "
        "output, such as LPS or RAS. (default: stored)",
    )
    grid: Grid = option(
        "extent",
        help="extent: cover what the scan covers; origin: keep the centre of the first voxel, as "
        "MONAI does. (default: extent)",
    )
    fit: Fit = option(
        "spacing",
        help="spacing: resample to --spacing, then crop or pad; stretch: resample to --shape; "
        "contain: resample by one factor to fit into --shape, then pad. (default: spacing)",
    )
    output_range: tuple[float, float] = option(
        _DEFAULT_RANGE,
        written="numbers",
        example="-1,1",
        help="What the window's ends are mapped to. (default: -1,1)",
    )
    standardise: tuple[float, float] | None = option(
        written="numbers",
        example="0.45,0.22",
        help="Mean to take away from the result, and standard deviation to divide it by.",
    )
    normalise: Normalise = option(
        "window",
        help="window, or by the volume's own voxels: percentiles, minmax or zscore. "
        "(default: window)",
    )
    percentiles: tuple[float, float] | None = option(
        written="numbers", example="0.5,99.5", help="Of --normalise percentiles."
    )
    dtype: Dtype = option(
        "float16", help="float16, bfloat16, int16 (HU) or uint8. (default: float16)"
    )
    precision: Precision = option(
        "exact",
        help="exact; or round float16 values to multiples of 2^-10 or 2^-11, which is up to 0.49 "
        "or 0.24 HU of the default window, to compress better. (default: exact)",
    )
    crop: Crop = option(
        "centre",
        help="centre: take the whole scan; foreground: its box of voxels above --foreground-hu; "
        "body: the box of the patient, without the table; mask: that of its mask's labels. Then "
        "crop or pad about the centre. (default: centre)",
    )
    foreground_hu: float = option(
        -500.0, written="number", help="HU that foreground and body are above. (default: -500)"
    )
    margin_mm: float = option(
        0.0, written="number", help="Widen their box by so many mm on every side. (default: 0)"
    )

    def __post_init__(self) -> None:
        set_field = object.__setattr__
        for name, count in _NUMBERS.items():
            value = getattr(self, name)
            if value is not None or name not in _MAY_BE_NONE:
                set_field(self, name, _floats(name, value, count))
        for name in ("pad_value", "foreground_hu", "margin_mm"):
            if (value := getattr(self, name)) is not None or name != "pad_value":
                set_field(self, name, _floats(name, [value], 1)[0])
        if any(n != int(n) or not 1 <= n <= 65535 for n in self.shape_hwd):
            raise UsageError(
                f"shape_hwd is {self.shape_hwd!r}; it takes three whole numbers from 1 to 65535"
            )
        set_field(self, "shape_hwd", tuple(int(n) for n in self.shape_hwd))
        for name, domain in _WORDS.items():
            if getattr(self, name) not in get_args(domain):
                raise UsageError(
                    f"{name} is {getattr(self, name)!r}; it is one of {', '.join(get_args(domain))}"
                )
        set_field(self, "orientation", _orientation(self.orientation))
        check_spec(self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Spec):
            return NotImplemented
        return self._text() == other._text()

    def __hash__(self) -> int:
        return hash(self._text())

    def _text(self) -> str:
        return json.dumps(self.to_dict(), sort_keys=True)

    @property
    def stored_shape(self) -> tuple[int, int, int]:
        """Shape of the stored array, in the order of :attr:`layout`."""
        h, w, d = self.shape_hwd
        return (h, w, d) if self.layout == "HWD" else (d, h, w)

    @property
    def size_bytes(self) -> int:
        """Bytes of one stored volume."""
        return _ITEM_BYTES[self.dtype] * math.prod(self.shape_hwd)

    @property
    def stores_hu(self) -> bool:
        """Whether the stored numbers are HU."""
        return self.dtype == "int16"

    @property
    def is_first_version(self) -> bool:
        """Whether it says nothing that the first format could not say."""
        return self.to_dict().keys() == _FIRST_FIELDS and self.hu_window is not None

    @property
    def needs_statistics(self) -> bool:
        """Whether the output depends on statistics of each volume."""
        return self.normalise != "window" or self.padding is None

    @property
    def padding(self) -> float | None:
        """Value of padded voxels, on the scale of :attr:`pad_value`.

        Where that is None, the low end of the output: what the low end of the window, of the
        percentiles or of the volume's range is mapped to.  None where each volume decides: a
        z-score, or HU without a window, pad with what the low end of the window, or without one
        the volume's least value, is mapped to.
        """
        if self.pad_value is not None:
            return self.pad_value
        if self.stores_hu:
            return None if self.hu_window is None else float(round(self.hu_window[0]))
        return None if self.normalise == "zscore" else self._standardised(self.output_range[0])

    @property
    def precision_step(self) -> float | None:
        """How far apart the numbers of a :attr:`precision` are; None for ``"exact"``."""
        return _STEPS.get(self.precision)

    @property
    def precision_error_hu(self) -> float | None:
        """By how many HU :attr:`precision` changes a value at most, beside float16's own rounding.

        Half a step: 0.49 HU for 2^-10 of the default window.  None where each volume decides.
        """
        if self.precision_step is None:
            return 0.0
        if self.normalise != "window":
            return None
        return self.precision_step / 2 / self.scale_offset[0]

    def encoded(self, value: float) -> float:
        """The number that is stored for a value of the scale of :attr:`pad_value`, unrounded."""
        if self.dtype != "uint8":
            return value
        lo, hi = self.output_range
        return (value - lo) / (hi - lo) * 255

    @property
    def scale_offset(self) -> tuple[float, float]:
        """``(scale, offset)`` such that ``hu * scale + offset`` is the number that is stored.

        Raises
        ------
        UsageError
            If statistics of each volume decide.
        """
        if self.normalise != "window":
            raise UsageError(
                f"normalise is {self.normalise!r}, so each volume has a scale of its own"
            )
        return self.map_hu(*(self.hu_window or (-1.0, 1.0)))

    def map_hu(self, lo: float, hi: float) -> tuple[float, float]:
        """``(scale, offset)`` that take `lo` and `hi` to where the output's range is stored.

        With ``normalise="zscore"`` they are one standard deviation below and above the mean; HU
        that are stored as such are left as they are.
        """
        if self.stores_hu:
            return 1.0, 0.0
        if self.normalise == "zscore":
            low, high = _DEFAULT_RANGE
        else:
            low, high = (0.0, 255.0) if self.dtype == "uint8" else self.output_range
        mean, std = self.standardise or (0.0, 1.0)
        # In this order, so that the default gives the very numbers that it always did.
        half, middle = (hi - lo) / 2, (lo + hi) / 2
        out_half, out_middle = (high - low) / 2, (low + high) / 2
        scale = out_half / half
        offset = -(middle / half * out_half - out_middle + mean) / std
        # Where a zero is clipped to a zero, its sign is an engine's own: + 0.0 loses it.
        return scale / std, offset if lo < 0 < hi else offset + 0.0

    def _standardised(self, value: float) -> float:
        mean, std = self.standardise or (0.0, 1.0)
        return (value - mean) / std

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Spec:
        """A public project's contract, as its own code has it.

        Parameters
        ----------
        name : str
            Such as ``"merlin"``; ``ctgpu presets`` lists them with their sources, and so does
            docs/contracts.md.
        **changes
            Fields to be different, such as ``layout="DHW"``.

        Raises
        ------
        UsageError
            If there is no such preset, or a change contradicts it.
        """
        stated = preset(name).spec
        try:
            return replace(cls.from_dict(stated), **changes)
        except UsageError as error:
            at_odds = sorted(
                field for field in stated.keys() - changes.keys() if f"{field} is " in str(error)
            )
            if at_odds:
                verb = "comes" if len(at_odds) == 1 else "come"
                error.args = (f"{error}; {' and '.join(at_odds)} {verb} from preset {name}",)
            raise

    def to_dict(self) -> dict[str, Any]:
        """The spec as JSON-ready values; what the first format lacked only where it says something.

        Specs of the first format are written, and so are fingerprinted, as they always were.
        """
        defaults = {one.name: one.default for one in fields(self)}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in self.facts().items()
            if name in _FIRST_FIELDS or value != defaults[name]
        }

    def facts(self) -> dict[str, Any]:
        """The value of every field, and of the padding where the spec says it."""
        return asdict(self) | {"pad_value": self.padding}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Spec:
        """The spec that :meth:`to_dict` wrote.

        Raises
        ------
        NewerFormatError
            If a field is unknown, and none is missing that every ctgpu writes.
        UsageError
            If a field is unknown, or a value is of another type or outside its domain.
        """
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(values) - known):
            # A field whose name was damaged is missed under its own.
            if values.keys() >= _FIRST_FIELDS:
                raise NewerFormatError(
                    f"spec has unknown fields {unknown}, which a newer ctgpu may know"
                )
            raise UsageError(f"spec has unknown fields {unknown}")
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


# How many numbers a field takes, and which words.
_NUMBERS = {
    "target_spacing_mm": 3,
    "shape_hwd": 3,
    "hu_window": 2,
    "output_range": 2,
    "standardise": 2,
    "percentiles": 2,
}
_MAY_BE_NONE = ("hu_window", "standardise", "percentiles")
_WORDS = {
    "layout": Layout,
    "intensity": Intensity,
    "clip": ClipOrder,
    "grid": Grid,
    "fit": Fit,
    "normalise": Normalise,
    "dtype": Dtype,
    "precision": Precision,
    "crop": Crop,
}


def _floats(name: str, values: Any, count: int) -> tuple[float, ...]:
    try:
        result = () if isinstance(values, str | bytes) else tuple(float(v) for v in values)
    except (TypeError, ValueError, OverflowError):
        result = ()
    if len(result) != count or not all(map(math.isfinite, result)):
        raise UsageError(f"{name} is {values!r}; it takes {count} finite numbers")
    return result


def _orientation(value: Any) -> str:
    """As :class:`Spec` takes it.

    Raises
    ------
    UsageError
    """
    if value == STORED:
        return STORED
    if not isinstance(value, str) or not is_orientation(value.upper()):
        raise UsageError(
            f"orientation is {value!r}; it is {STORED}, or three letters for H, W and D, one each "
            "of L or R, P or A and I or S, such as LPS or RAS"
        )
    return value.upper()


def is_orientation(codes: str) -> bool:
    """Whether `codes` are three letters that name each of the patient's axes once."""
    return sorted("RLAPSI".find(code) // 2 for code in codes) == [0, 1, 2]


#: In the words of a message.
SPEC_WANTED = "a ctgpu.Spec, such as ctgpu.PRESETS['ct-rate']"

#: CT-CLIP's contract for CT-RATE.
CT_RATE = Spec()


class _Presets(Mapping[str, Spec]):
    """The file is read when one is looked at, for most programs never do."""

    def __getitem__(self, name: str) -> Spec:
        return Spec.from_dict(presets()[name].spec)

    def __iter__(self) -> Iterator[str]:
        return iter(presets())

    def __len__(self) -> int:
        return len(presets())


#: The contracts of :meth:`Spec.preset` by name.
PRESETS: Mapping[str, Spec] = _Presets()
