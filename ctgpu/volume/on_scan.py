"""Where an output lies on its scan, and how a prediction gets back there."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec
import numpy as np
import numpy.typing as npt
from isal import igzip

from ctgpu.arguments import converted, path_of, plain, require_choice, require_kind, shown
from ctgpu.errors import StorageError, UsageError, reason_of
from ctgpu.spec import Layout
from ctgpu.volume.arrays import on_host
from ctgpu.volume.orientation import Orientation, axis_lengths_mm, is_usable
from ctgpu.volume.prepare import PreparedVolume
from ctgpu.volume.raw import Spacing

Order = Literal["nearest", "linear"]
_Array = npt.NDArray[Any]

# What two affines leave between places that are one, in voxels.
_ROUNDING_DIGITS = 6
# By how many voxels, over the whole scan, an output's axis may leave the one that it was made of.
_STRAY_VOXELS = 0.01
_SUFFIXES = (".nii", ".nii.gz")
# Types that NIfTI lacks.
_IN_NIFTI: Mapping[str, np.dtype[Any]] = {
    "bool": np.dtype(np.uint8),
    "float16": np.dtype(np.float32),
}


@dataclass(frozen=True, slots=True)
class Geometry:
    """How an output maps back onto its scan.

    Attributes
    ----------
    affine : numpy.ndarray
        4 × 4 float64, output (H, W, D) index to the world of `source_affine`, millimetres.
    source_affine : numpy.ndarray
        4 × 4 float64, index of the scan's own axes to RAS+ millimetres, or the bare spacing where
        the file has no affine.
    source_shape : tuple of int
        Voxels of the scan along its own axes.
    spacing_mm : tuple of float
        Voxel size along the scan's own axes that was used.
    shape_hwd, resized_shape, crop_start, pad_before : tuple of int
        Along the output's H, W and D: its voxels, those after resampling, the first of these that
        was kept, and the padding before it.
    layout : {"HWD", "DHW"}
        Order of the output's stored axes.
    affine_source : str
        ``"header"`` where the file states its affine, ``"spacing"`` where it has none, and
        ``"assumed"`` where its orientation was assumed.
    orientation : Orientation or None
        How the scan is stored; None where that is not known.
    crop_box : tuple or None
        For each of the scan's own axes the first voxel that the output was made of and the one
        behind the last, where ``Spec.crop`` left others out before they were resampled.
    """

    affine: npt.NDArray[np.float64]
    source_affine: npt.NDArray[np.float64]
    source_shape: tuple[int, ...]
    spacing_mm: Spacing
    shape_hwd: tuple[int, ...]
    resized_shape: tuple[int, ...]
    crop_start: tuple[int, ...]
    pad_before: tuple[int, ...]
    layout: Layout
    affine_source: str = "header"
    orientation: Orientation | None = None
    crop_box: tuple[tuple[int, int], ...] | None = None

    @classmethod
    def of(cls, prepared: PreparedVolume) -> Geometry:
        """The geometry of a prepared volume."""
        plan, raw = prepared.plan, prepared.raw
        h, w, d = plan.reorientation.stored(plan.spacing_mm)
        return cls(
            affine=prepared.output_affine,
            source_affine=prepared.source_affine,
            source_shape=raw.voxels.shape,
            spacing_mm=(h, w, d),
            shape_hwd=plan.spec.shape_hwd,
            resized_shape=plan.resized_shape,
            crop_start=plan.crop_start,
            pad_before=plan.pad_before,
            layout=plan.spec.layout,
            affine_source="spacing" if raw.affine is None else raw.affine_source,
            orientation=prepared.orientation,
            crop_box=None if prepared.box is None else prepared.box.ends,
        )

    @classmethod
    def of_metadata(cls, metadata: Mapping[str, Any]) -> Geometry:
        """The geometry of a stored sample.

        Parameters
        ----------
        metadata : mapping
            Its ``.json``, parsed, as :meth:`ctgpu.loading.VolumeDataset.metadata` gives it; of any
            version of ctgpu.

        Raises
        ------
        UsageError
            If it is anything else.
        """
        try:
            stated = converted(metadata, _Metadata)
        except ValueError as error:
            raise UsageError(
                f"the metadata does not say where its volume lies on a scan ({error}); wanted the "
                ".json of a sample that ctgpu has made, as VolumeDataset.metadata gives it"
            ) from error
        source = stated.source
        source_affine = np.array(source.affine)
        n0, n1, n2 = stated.shape
        knows_axes = source.affine_source != "spacing" and is_usable(source_affine)
        geometry = cls(
            affine=np.array(stated.affine),
            source_affine=source_affine,
            source_shape=source.shape,
            spacing_mm=source.spacing_mm,
            shape_hwd=(n0, n1, n2) if stated.layout == "HWD" else (n1, n2, n0),
            resized_shape=stated.resized_shape,
            crop_start=stated.crop_start,
            pad_before=stated.pad_before,
            layout=stated.layout,
            affine_source=source.affine_source,
            # The first versions did not record it.
            orientation=Orientation.of(source_affine) if knows_axes else None,
            crop_box=source.crop_box,
        )
        geometry._scan_in_output()
        return geometry

    def to_scan(
        self,
        array: npt.ArrayLike,
        order: Order = "nearest",
        *,
        layout: Layout | None = None,
        outside: float = 0,
    ) -> _Array:
        """Take an array on the output's grid to the grid of the scan.

        Padding is left away: a voxel at the scan's edge takes what is nearest of the voxels that
        were sampled from it.

        Parameters
        ----------
        array : array-like
            One volume, such as a prediction: NumPy array or tensor of a CPU or GPU, of bool or any
            integer or floating dtype of at most 64 bits.
        order : {"nearest", "linear"}
            ``"nearest"`` for labels: each voxel of the scan takes the value at the nearest voxel
            of the array (the later one halfway between two), and the dtype stays.  ``"linear"``
            for probabilities: values between voxels are blended, in float64 for float64 and in
            float32 for all else.
        layout : {"HWD", "DHW"}, optional
            Order of the array's axes; default that of the stored output.  What the loader gives is
            ``"DHW"`` always.
        outside : float
            Value of those voxels of the scan that lie more than half a voxel outside the output,
            as they were cropped away.

        Returns
        -------
        numpy.ndarray
            Shape :attr:`source_shape`, along the scan's own axes, in memory of any order.

        Raises
        ------
        UsageError
            If the array is not a volume on this grid, or another argument is something else.
        """
        require_choice("order", order, get_args(Order))
        if layout is not None:
            require_choice("layout", layout, get_args(Layout))
        voxels = self._along_hwd(on_host(array, "the array"), layout or self.layout)
        dtype = voxels.dtype
        if order == "linear" and dtype != np.float64:
            dtype = np.dtype(np.float32)
        axes, steps, firsts = self._scan_in_output()
        samplings = [
            _sampling(
                steps[k] * np.arange(self.source_shape[axes[k]], dtype=np.float64) + firsts[k],
                self.pad_before[k],
                min(self.resized_shape[k], self.shape_hwd[k]),
                dtype if order == "linear" else None,
            )
            for k in range(3)
        ]
        # One plane of the array after the other: nothing of the scan's size but the result.
        slowest_first = sorted(range(3), key=lambda k: -abs(voxels.strides[k]))
        result = np.full(
            [self.source_shape[axes[k]] for k in slowest_first], _fill(outside, dtype), dtype
        )
        voxels = np.ascontiguousarray(voxels.transpose(slowest_first))
        slow, middle, fast = (samplings[k] for k in slowest_first)
        inside = result[slow.scan, middle.scan, fast.scan]
        for place, one in zip(inside, slow.planes(), strict=True):
            plane = one.of(voxels, 0)
            place[...] = fast.of(middle.of(plane, 1), 2)[0]
        return result.transpose(np.argsort([axes[k] for k in slowest_first]))

    def _along_hwd(self, voxels: _Array, layout: Layout) -> _Array:
        """A volume that was passed, along H, W and D: a view."""
        h, w, d = self.shape_hwd
        wanted = {"HWD": (h, w, d), "DHW": (d, h, w)}
        if voxels.shape != wanted[layout]:
            other = "DHW" if layout == "HWD" else "HWD"
            raise UsageError(
                f"the array has shape {voxels.shape}; wanted one volume of shape {wanted[layout]} "
                f"(layout={layout!r}), or of {wanted[other]} with layout={other!r}"
            )
        if voxels.dtype.kind not in "biuf" or voxels.dtype.itemsize > 8:
            raise UsageError(
                f"the array has dtype {voxels.dtype}; wanted bool, or an integer or floating dtype "
                "of at most 64 bits"
            )
        return voxels if layout == "HWD" else voxels.transpose(1, 2, 0)

    def _scan_in_output(self) -> tuple[tuple[int, ...], list[float], list[float]]:
        """For the output's H, W and D: which axis of the scan, and where its voxels are on it.

        Returns
        -------
        axes : tuple of int
            The scan's axis.
        steps, firsts : list of float
            Voxel ``i`` of it has its centre at ``steps * i + firsts`` of the output.

        Raises
        ------
        UsageError
            If the affines are not those of a scan and of an output made of it.
        """
        if is_usable(self.affine) and is_usable(self.source_affine):
            # Resampling keeps the directions of axes, oblique and sheared ones too, so that each
            # axis of the output is one of the scan's.
            matrix = np.linalg.inv(self.affine) @ self.source_affine
            axes = tuple(int(k) for k in np.abs(matrix[:3, :3]).argmax(axis=1))
            steps = [float(matrix[k, axis]) for k, axis in enumerate(axes)]
            stray = np.abs(matrix[:3, :3]) @ self.source_shape
            stray -= np.abs(steps) * [self.source_shape[axis] for axis in axes]
            if sorted(axes) == [0, 1, 2] and stray.max() <= _STRAY_VOXELS:
                return axes, steps, matrix[:3, 3].tolist()
        raise UsageError(
            "affine and source_affine do not belong together: wanted those of one scan and of an "
            "output that was made of it, as ctgpu gives them"
        )


@dataclass(frozen=True, slots=True)
class _Sampling:
    """Where the voxels of one axis of a scan come from.

    Attributes
    ----------
    scan : slice
        Those voxels of the scan that the output covers.
    i0, i1 : numpy.ndarray
        For each of them two voxels of the output, ``i1`` only for blending.
    weight : numpy.ndarray or None
        That of ``i1``, in the type of the result; None for the value of ``i0`` alone.
    """

    scan: slice
    i0: npt.NDArray[np.intp]
    i1: npt.NDArray[np.intp]
    weight: _Array | None

    def planes(self) -> list[_Sampling]:
        """One sampling for each voxel of the axis."""
        first: int = self.scan.start
        return [
            _Sampling(
                slice(first + n, first + n + 1),
                self.i0[n : n + 1],
                self.i1[n : n + 1],
                None if self.weight is None else self.weight[n : n + 1],
            )
            for n in range(len(self.i0))
        ]

    def of(self, voxels: _Array, axis: int) -> _Array:
        """The covered voxels along `axis`."""
        low = voxels.take(self.i0, axis)
        if self.weight is None:
            return low
        weight = np.expand_dims(self.weight, [k for k in range(3) if k != axis])
        low = low.astype(weight.dtype, copy=False)
        blended: _Array = low + weight * (voxels.take(self.i1, axis) - low)
        return blended


def _sampling(
    position: npt.NDArray[np.float64], first: int, n_sampled: int, blended: np.dtype[Any] | None
) -> _Sampling:
    """The sampling of an axis.

    Parameters
    ----------
    position : numpy.ndarray
        float64: where on the output's axis the voxels of the scan are.
    first, n_sampled : int
        The voxels of the output that are no padding.
    blended : numpy.dtype, optional
        Blend, in this type; by default the nearest.
    """
    position = position.round(_ROUNDING_DIGITS)
    last = first + n_sampled - 1
    covered = np.flatnonzero((position >= first - 0.5) & (position <= last + 0.5))
    scan = slice(int(covered[0]), int(covered[-1]) + 1) if len(covered) else slice(0, 0)
    held = position[scan].clip(first, last)
    if blended is None:
        nearest = np.floor(held + 0.5).astype(np.intp)
        return _Sampling(scan, nearest, nearest, None)
    low = np.floor(held).astype(np.intp)
    weight = (held - low).astype(blended)
    # Without a blend, infinite values stay what they are.
    return _Sampling(scan, low, np.minimum(low + 1, last), weight if weight.any() else None)


def _fill(outside: Any, dtype: np.dtype[Any]) -> Any:
    """A number as a value of `dtype`.

    Raises
    ------
    UsageError
        If it is no number, or `dtype` does not hold it.
    """
    outside = plain(outside)
    require_kind("outside", outside, (int, float), "a number", optional=False)
    if dtype.kind == "f":
        return outside
    least, most = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    if not (least <= outside <= most and float(outside).is_integer()):
        raise UsageError(
            f"outside is {shown(outside)}; wanted a value that {dtype} holds, as the array is of "
            "that type"
        )
    return int(outside)


def save_on_scan(
    array: npt.ArrayLike,
    geometry: Geometry,
    path: str | PathLike[str],
    order: Order = "nearest",
    *,
    layout: Layout | None = None,
    outside: float = 0,
) -> None:
    """Write an array on the output's grid, such as a prediction, as a NIfTI that fits its scan.

    The file has the scan's shape and affine.  Where the scan states no affine, it states none
    either, but the spacing: so viewers lay both in the same place.  It appears whole or not at
    all, in the place of one that is there already.

    Parameters
    ----------
    array, order, layout, outside
        As :meth:`Geometry.to_scan` takes them.  bool is written as uint8 and float16 as float32,
        for NIfTI has neither; every other dtype stays.
    geometry : Geometry
        That of the output, by ``ctgpu.preprocess(..., return_geometry=True)`` or
        :meth:`Geometry.of_metadata`.
    path : path
        To end in ``.nii`` or ``.nii.gz``.

    Raises
    ------
    UsageError
        If an argument is something else.
    StorageError
        If the file cannot be written.
    """
    require_kind("geometry", geometry, Geometry, "a ctgpu.Geometry", optional=False)
    target = path_of("path", path)
    if not target.name.endswith(_SUFFIXES) or target.name in _SUFFIXES:
        raise UsageError(f"path is {target}; wanted a name that ends in {' or '.join(_SUFFIXES)}")
    if target.is_dir():
        raise UsageError(f"path is {target}, which is a folder; wanted the name of a file")
    image = _image(geometry.to_scan(array, order, layout=layout, outside=outside), geometry)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.ctgpu-tmp")
    try:
        try:
            _write(image, temporary, compressed=target.suffix == ".gz")
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{target} cannot be written: {reason_of(error)}") from error


def _image(voxels: _Array, geometry: Geometry) -> Any:
    """A ``nibabel.Nifti1Image`` of voxels on the scan's grid."""
    import nibabel

    dtype = _IN_NIFTI.get(voxels.dtype.name, voxels.dtype.newbyteorder("="))
    affine = geometry.source_affine if geometry.affine_source == "header" else None
    # Said that it is wanted, a dtype of 64 bits is not warned of.
    image: Any = nibabel.Nifti1Image(voxels.astype(dtype, copy=False), affine, dtype=dtype)  # type: ignore[no-untyped-call]
    if affine is None:
        image.header.set_zooms(axis_lengths_mm(geometry.source_affine))
    else:
        image.set_sform(affine, "scanner")
        # A quaternion cannot state a shear.
        sheared = geometry.orientation is None or geometry.orientation.shear_degrees > 0
        image.set_qform(affine, "unknown" if sheared else "scanner")
    image.header.set_xyzt_units("mm")
    return image


def _write(image: Any, path: Path, *, compressed: bool) -> None:
    with path.open("xb") as file:
        if compressed:
            # Neither a name nor a time, so that the same voxels are the same bytes.
            with igzip.IGzipFile("", "wb", fileobj=file, mtime=0) as stream:  # type: ignore[no-untyped-call]
                image.to_stream(stream)
        else:
            image.to_stream(file)
        file.flush()
        os.fsync(file.fileno())


_Size = Annotated[int, msgspec.Meta(ge=1)]
_Sizes = tuple[_Size, _Size, _Size]
_Count = Annotated[int, msgspec.Meta(ge=0)]
_Counts = tuple[_Count, _Count, _Count]
_Ends = tuple[_Count, _Size]
_Row = tuple[float, float, float, float]


class _Source(msgspec.Struct):
    """What a sample's ``.json`` says of its scan, as far as it is needed here."""

    affine: tuple[_Row, _Row, _Row, _Row]
    affine_source: str
    shape: _Sizes
    spacing_mm: Spacing
    crop_box: tuple[_Ends, _Ends, _Ends] | None = None


class _Metadata(msgspec.Struct):
    """A sample's ``.json``, as far as it is needed here."""

    affine: tuple[_Row, _Row, _Row, _Row]
    layout: Layout
    shape: _Sizes
    resized_shape: _Sizes
    crop_start: _Counts
    pad_before: _Counts
    source: _Source
