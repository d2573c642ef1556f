"""Spacing and affine of a NIfTI header, which states both up to three times.

``pixdim``, the qform (quaternion, offset and pixdim) and the sform (any matrix) can contradict each
other, and writers leave some of them unset.  As nibabel does, the sform serves where it is coded,
else the qform; as the NIfTI library and ITK do, what is coded but cannot be a volume's is passed
over, quaternions are forgiven their rounding, and units count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ctgpu.errors import DecodeError
from ctgpu.volume.orientation import Orientation, is_usable, settle_spacing

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Header

_Affine = npt.NDArray[np.float64]

# Bits of xyzt_units that are about space, and the codes of metre and micrometre; 2 is millimetre.
_SPACE, _METRE, _MICROMETRE = 0x07, 1, 3
# By how much the square of a quaternion's length may exceed one.
_LONGEST_QUATERNION = 0.01


def geometry_facts(file_name: str, header: Nifti1Header) -> dict[str, Any]:
    """Spacing and affine in millimetres, as fields of a :class:`ctgpu.volume.raw.RawVolume`.

    Raises
    ------
    DecodeError
        If an sform or qform is coded and none of them is the affine of a volume.
    """
    pixdim = _to_mm(header, np.asarray(header["pixdim"][1:4], np.float64))
    with np.errstate(all="ignore"):
        forms = {
            name: _to_mm(header, form)
            for name, form in (("sform", _sform(header)), ("qform", _qform(header)))
            if form is not None
        }
    usable = {name: form for name, form in forms.items() if is_usable(form)}
    if not usable:
        if forms:
            raise DecodeError(
                f"{file_name} states an orientation that cannot be read (an affine by "
                f"{' and '.join(forms)} that is not finite or has no volume): correct its header"
            )
        return _without_orientation(header, pixdim)
    affine = next(iter(usable.values()))
    spacing_mm, contradiction = settle_spacing(file_name, pixdim.tolist(), affine)
    facts = {
        "spacing_mm": spacing_mm,
        "affine": affine,
        "spacing_contradiction": contradiction,
    }
    codes = {name: Orientation.of(form).codes for name, form in usable.items()}
    if len(set(codes.values())) > 1 and not _is_unset(header):
        facts["orientation_contradiction"] = (
            f"{file_name} is stored as {codes['sform']} by its sform and as {codes['qform']} by "
            "its qform; wanted one orientation: correct its header, or pass --axes stored to take "
            "it by its sform"
        )
    return facts


def _without_orientation(header: Nifti1Header, pixdim: _Affine) -> dict[str, Any]:
    """Neither form is coded: an affine of the spacing alone, with nibabel's origin and signs."""
    h, w, d = pixdim.tolist()
    facts: dict[str, Any] = {"spacing_mm": (h, w, d), "affine_source": "spacing"}
    with np.errstate(all="ignore"):
        affine = _to_mm(header, np.asarray(header.get_base_affine()))  # type: ignore[no-untyped-call]
    return facts | ({"affine": affine} if is_usable(affine) else {})


def _to_mm(header: Nifti1Header, lengths: _Affine) -> _Affine:
    """Millimetres of what the header states in its own unit; an unknown unit is taken for mm."""
    unit = int(header["xyzt_units"]) & _SPACE
    result = np.array(lengths, np.float64)
    part = result[:3]
    if unit == _METRE:
        part *= 1000
    elif unit == _MICROMETRE:
        part /= 1000
    return result


def _sform(header: Nifti1Header) -> _Affine | None:
    if int(header["sform_code"]) == 0:
        return None
    affine: _Affine = header.get_sform()  # type: ignore[no-untyped-call]
    return affine


def _is_unset(header: Nifti1Header) -> bool:
    """Whether the numbers of the qform are all zero, as in a header that was left blank."""
    names = ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")
    return not any(float(header[name]) for name in names)


def _qform(header: Nifti1Header) -> _Affine | None:
    """The qform's affine: "method 2" of nifti1.h.

    nibabel's own refuses quaternions that rounding has made longer than one by 4e-7, and a
    pixdim[0] that is not 1 or -1.  The standard's ``nifti_quatern_to_mat44`` normalises the first
    (they are half a turn) and takes the sign of the second.
    """
    if int(header["qform_code"]) == 0:
        return None
    from nibabel.quaternions import fillpositive, quat2mat

    bcd = np.array([float(header[f"quatern_{axis}"]) for axis in "bcd"])
    longer = bcd @ bcd > 1
    tolerance = _LONGEST_QUATERNION if longer else header.quaternion_threshold
    steps = header["pixdim"][1:4].copy()
    no_lengths = not (steps > 0).all()
    steps[-1] *= -1 if header["pixdim"][0] < 0 else 1
    affine = np.eye(4)
    affine[:3, 3] = [header[f"qoffset_{axis}"] for axis in "xyz"]
    try:
        rotation = quat2mat(fillpositive(bcd, tolerance))  # type: ignore[no-untyped-call]
    except ValueError:
        rotation = None
    # A quaternion far longer than one is no rotation.
    if no_lengths or rotation is None:
        affine[:3, :3] = np.nan
    else:
        affine[:3, :3] = np.dot(rotation, np.diag(steps))
    return affine
