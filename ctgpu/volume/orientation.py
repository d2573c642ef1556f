"""How the stored axes of a volume lie in the patient, and what is refused on that account.

Everything here is a function of the affine: stored index (H, W, D) to RAS+ millimetres.  Its
columns are the steps that one voxel along H, W and D takes in the patient.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import numpy.typing as npt

from ctgpu.errors import GeometryError, UsageError
from ctgpu.spec import STORED, is_orientation
from ctgpu.volume.raw import RawVolume, Spacing

#: ``checked``: as stored, but the third axis must be the patient's long one.  ``stored``: anything.
Axes = Literal["checked", "stored"]

#: Gantries tilt by up to 30°; and from 45° on it is no longer clear which axis is which.
DEFAULT_MAX_TILT_DEGREES = 30.0
#: Two statements about the same length that differ by no more are one.
TOLERANCE = 0.01

_T = TypeVar("_T")

_DIRECTIONS = ("left", "right", "front", "back", "head", "feet")
_NAMES = dict(zip("LRAPSI", _DIRECTIONS, strict=True))
# Volume of the box that three axes of length one span; less is a plane, or numerical noise.
_FLAT = 1e-6


@dataclass(frozen=True, slots=True)
class Orientation:
    """Where the stored axes of a volume lead.

    Attributes
    ----------
    codes : str
        For H, W and D the patient axis that is nearest, in the direction of increasing index, as
        ``nibabel.aff2axcodes`` names it: L(eft), R(ight), A(nterior), P(osterior), S(uperior),
        I(nferior); such as ``"LPS"``.
    tilt_degrees : float
        Largest angle between a stored axis and the patient axis that its code names; 0 where the
        volume is aligned with the patient.
    shear_degrees : float
        Largest deviation from 90° of the angle between two stored axes; 0 for a volume that is
        merely rotated, the gantry's angle for slices that were tilted and stacked along the table.
    """

    codes: str
    tilt_degrees: float
    shear_degrees: float

    @classmethod
    def of(cls, affine: npt.NDArray[np.float64]) -> Orientation:
        """That of an affine, which :func:`is_usable`.

        Angles are rounded to 0.001°, so that they are the same on every machine.
        """
        # Importing nibabel takes longer than most commands, so only an affine pays for it.
        from nibabel.orientations import aff2axcodes

        codes = "".join(aff2axcodes(affine))  # type: ignore[no-untyped-call]
        steps = (affine[:3, :3] / axis_lengths_mm(affine)).T.tolist()
        tilt = 0.0
        for step, code in zip(steps, codes, strict=True):
            along = "RLAPSI".index(code) // 2
            across = math.hypot(*(part for axis, part in enumerate(step) if axis != along))
            tilt = max(tilt, math.atan2(across, abs(step[along])))
        pairs = itertools.combinations(steps, 2)
        cosine = max(abs(math.fsum(map(operator.mul, *pair))) for pair in pairs)
        shear = math.asin(min(1.0, cosine))
        return cls(codes, round(math.degrees(tilt), 3), round(math.degrees(shear), 3))


def orientation_of(raw: RawVolume) -> Orientation | None:
    """The orientation that a file states, or that was assumed; None where there is neither."""
    if raw.affine is None or raw.affine_source == "spacing":
        return None
    return Orientation.of(raw.affine)


@dataclass(frozen=True, slots=True)
class Reorientation:
    """Which axes of a file the axes of the output are.

    Attributes
    ----------
    axes : tuple of int
        For H, W and D of the output the stored axis.
    flips : tuple of bool
        Whether it is walked from its end.
    """

    axes: tuple[int, int, int] = (0, 1, 2)
    flips: tuple[bool, bool, bool] = (False, False, False)

    @classmethod
    def between(cls, stored: str, wanted: str) -> Reorientation:
        """From one orientation to another, both as :attr:`Orientation.codes`."""
        # A letter and its opposite stand beside each other.
        of_stored = ["RLAPSI".index(code) // 2 for code in stored]
        h, w, d = (of_stored.index("RLAPSI".index(code) // 2) for code in wanted)
        axes = (h, w, d)
        flip_h, flip_w, flip_d = (stored[k] != code for k, code in zip(axes, wanted, strict=True))
        return cls(axes, (flip_h, flip_w, flip_d))

    def view(self, voxels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Stored voxels along the axes of the output: a view."""
        if self == AS_STORED:
            return voxels
        backwards = tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)
        return voxels.transpose(self.axes)[backwards]

    def along(self, stored: Sequence[_T]) -> tuple[_T, _T, _T]:
        """What is so for each stored axis, for the axes of the output."""
        h, w, d = (stored[k] for k in self.axes)
        return h, w, d

    def stored(self, along_output: Sequence[_T]) -> tuple[_T, ...]:
        """What is so for each axis of the output, for the stored axes."""
        return tuple(along_output[self.axes.index(k)] for k in range(3))

    def oriented_affine(
        self, affine: npt.NDArray[np.float64], shape: Sequence[int]
    ) -> npt.NDArray[np.float64]:
        """The affine of :meth:`view`, which has `shape`, for voxels with `affine`: 4 × 4."""
        if self == AS_STORED:
            return np.asarray(affine, np.float64)
        to_stored = np.zeros((4, 4))
        to_stored[3, 3] = 1
        for k, (axis, flip) in enumerate(zip(self.axes, self.flips, strict=True)):
            to_stored[axis, k] = -1 if flip else 1
            to_stored[axis, 3] = shape[k] - 1 if flip else 0
        result: npt.NDArray[np.float64] = np.asarray(affine, np.float64) @ to_stored
        return result


#: The axes of the output are those of the file.
AS_STORED = Reorientation()


def assumed_affine(codes: str, spacing_mm: Spacing) -> npt.NDArray[np.float64]:
    """The affine of voxels that lie as `codes` say, the first one at the origin.

    Parameters
    ----------
    codes : str
        As :attr:`Orientation.codes`.
    spacing_mm : tuple of float
        Along the stored axes.

    Returns
    -------
    numpy.ndarray
        4 × 4 float64, stored index to RAS+ millimetres.
    """
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for k, (code, spacing) in enumerate(zip(codes, spacing_mm, strict=True)):
        affine["RLAPSI".index(code) // 2, k] = spacing if code in "RAS" else -spacing
    return affine


@dataclass(frozen=True, slots=True)
class AxisRules:
    """Which orientations are taken.

    Attributes
    ----------
    axes : {"checked", "stored"}
        Voxels stay in stored order either way.  ``"checked"`` refuses a volume whose third axis is
        not the one nearest to the patient's long axis: it would be resampled along the wrong axes.
    max_tilt_degrees : float
        A volume whose tilt or shear (:class:`Orientation`) is larger is refused; from 0 to 90.
    assume_orientation : str, optional
        How volumes lie that do not state it, as :attr:`Orientation.codes`.

    Raises
    ------
    UsageError
        If one of them is something else.
    """

    axes: Axes = "checked"
    max_tilt_degrees: float = DEFAULT_MAX_TILT_DEGREES
    assume_orientation: str | None = None

    def __post_init__(self) -> None:
        if self.axes not in get_args(Axes):
            raise UsageError(f"axes is {self.axes!r}; it is {' or '.join(get_args(Axes))}")
        value: Any = self.max_tilt_degrees
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 90:
            raise UsageError(f"max_tilt_degrees is {value!r}; it takes a number from 0 to 90")
        assumed: Any = self.assume_orientation
        if isinstance(assumed, str):
            assumed = assumed.upper()
            object.__setattr__(self, "assume_orientation", assumed)
        if assumed is not None and not (isinstance(assumed, str) and is_orientation(assumed)):
            raise UsageError(
                f"assume_orientation is {assumed!r}; it is three letters for the stored axes, one "
                "each of L or R, P or A and I or S, such as LPS"
            )

    @classmethod
    def of_selection(cls, selection: Mapping[str, Any]) -> AxisRules:
        """Those of a plan's selection; what it does not state, or states as None, is the default.

        Raises
        ------
        UsageError
            As the class itself.
        """
        stated = {name: selection.get(name) for name in cls.__slots__}
        return cls(**{name: value for name, value in stated.items() if value is not None})

    def assume(self, raw: RawVolume, spacing_mm: Spacing) -> None:
        """Give a volume that states no orientation the one that is assumed, if one is."""
        if self.assume_orientation is not None and orientation_of(raw) is None:
            raw.affine = assumed_affine(self.assume_orientation, spacing_mm)
            raw.affine_source = "assumed"

    def check(self, raw: RawVolume, orientation: Orientation | None, wanted: str = STORED) -> None:
        """Refuse a volume that is not stored as these rules want it.

        A volume that states no orientation is refused only where it is to be reoriented.

        Parameters
        ----------
        raw : RawVolume
            The volume.
        orientation : Orientation or None
            Its own.
        wanted : str
            ``Spec.orientation``.

        Raises
        ------
        GeometryError
            If the file states two orientations, or none and one is needed, or the third axis, tilt
            or shear are refused.
        """
        if orientation is None:
            if wanted != STORED:
                raise GeometryError(
                    f"the volume does not state how it lies in the patient, and is to be turned to "
                    f"{wanted}: say how with assume_orientation (--assume-orientation), such as LPS"
                )
            return
        # To turn a volume, its orientation has to be known.
        if self.axes == "checked" or wanted != STORED:
            if raw.orientation_contradiction is not None:
                raise GeometryError(raw.orientation_contradiction)
            if wanted == STORED and orientation.codes[2] not in "SI":
                raise GeometryError(
                    f"the volume is stored as {orientation.codes}: its third axis leads to the "
                    f"patient's {_NAMES[orientation.codes[2]]}; wanted head or feet, as slices are "
                    "counted: store it with the slices last, or pass --axes stored to resample it "
                    "as it lies"
                )
        tilt, shear = orientation.tilt_degrees, orientation.shear_degrees
        if max(tilt, shear) > self.max_tilt_degrees:
            raise GeometryError(
                f"the volume's axes are up to {tilt:g}° from the patient's and sheared by "
                f"{shear:g}°; wanted at most {self.max_tilt_degrees:g}°: resample it along the "
                "patient's axes, or raise --max-tilt-degrees"
            )


#: The rules by default.
DEFAULT_RULES = AxisRules()


def axis_lengths_mm(affine: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Distance between neighbouring voxels along each stored axis: shape (3,), millimetres."""
    lengths: npt.NDArray[np.float64] = np.linalg.norm(affine[:3, :3], axis=0)
    return lengths


def is_usable(affine: npt.NDArray[np.float64]) -> bool:
    """Whether an affine is finite and its three axes span a volume."""
    with np.errstate(all="ignore"):
        lengths = axis_lengths_mm(affine)
        if not (np.isfinite(affine).all() and np.isfinite(lengths).all() and lengths.all()):
            return False
        return bool(abs(np.linalg.det(affine[:3, :3] / lengths)) > _FLAT)


def settle_spacing(
    name: str, stated_mm: Sequence[float], affine: npt.NDArray[np.float64]
) -> tuple[Spacing, str | None]:
    """One spacing out of the two that a file states: by itself, and by its affine.

    Parameters
    ----------
    name : str
        What messages call the file.
    stated_mm : sequence of float
        Three numbers, unchecked: NIfTI's pixdim, or an ``.npz``'s spacing.
    affine : numpy.ndarray
        4 × 4; :func:`is_usable`.

    Returns
    -------
    (tuple of float, str or None)
        The spacing (H, W, D), the distance along the stored axes, and where the two contradict
        each other a sentence that says so.  They agree if each axis is within :data:`TOLERANCE`;
        the stated numbers then serve, as they stand.  The affine serves where these are no lengths,
        or all 1, which is how files leave them unset, or some of them the distance between the
        slices of a sheared volume, which is shorter.
    """
    h, w, d = (float(s) for s in stated_mm)
    stated = np.array((h, w, d))
    along = axis_lengths_mm(affine)
    if _near(stated, along).all():
        return (h, w, d), None
    # Row k of the inverse is the normal of the planes that axis k counts, one over their distance.
    between = 1 / np.linalg.norm(np.linalg.inv(affine[:3, :3]), axis=1)
    no_lengths = not (np.isfinite(stated).all() and (stated > 0).all())
    sheared = (_near(stated, along) | _near(stated, between)).all()
    if no_lengths or (stated == 1).all() or sheared:
        return (float(along[0]), float(along[1]), float(along[2])), None
    return (h, w, d), (
        f"{name} has a spacing of {_triple(stated)} mm, and an affine whose axes are "
        f"{_triple(along)} mm long; wanted the same within {TOLERANCE:.0%}: correct one of them, "
        "or state the spacing in the metadata CSV or as spacing_mm"
    )


def _near(
    stated: npt.NDArray[np.float64], lengths: npt.NDArray[np.float64]
) -> npt.NDArray[np.bool_]:
    return np.abs(stated - lengths) <= TOLERANCE * lengths


def _triple(lengths: npt.NDArray[np.float64]) -> str:
    return " × ".join(f"{length:.4g}" for length in lengths)
