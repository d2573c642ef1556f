"""What is in a tar, a data set or a volume file, in facts and in pictures."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ctgpu.buffers import BufferPool
from ctgpu.compare import Originals, Recipe
from ctgpu.decode import decode
from ctgpu.errors import StorageError, UsageError
from ctgpu.shards.names import parse_shard_name, record_name
from ctgpu.shards.record import ShardRecord
from ctgpu.sources.base import VOLUME_SUFFIXES, strip_volume_suffix
from ctgpu.sources.tables import LABEL_NAMES
from ctgpu.sources.tars import TarSample, expand_pattern, read_volume, samples_of_tar
from ctgpu.volume import RawVolume, Rescale, Spacing

#: Characters of a report that are shown.
EXCERPT_CHARACTERS = 240


@dataclass(frozen=True, slots=True)
class SampleFacts:
    """What is known about one sample.

    Attributes
    ----------
    key, file : str
        Its name, and that of the tar or file that holds it.
    members : dict of str to int
        Bytes of each member, by extension.
    shape, dtype, layout : tuple of int, str, str
        Of the volume as stored.
    lowest, mean, highest : float
        Of its voxels as stored.
    preprocessed : bool
        Whether the voxels are normalised, not HU or raw.
    spacing_mm : tuple of float or None
        Voxel size (H, W, D), where it is stated.
    labels : dict of str to float, or None
        By name; None where there are none.
    report : str
        Its beginning.
    source : dict
        What its JSON says it was made of.
    engine : str or None
        What made it, by the shard's record.
    """

    key: str
    file: str
    members: dict[str, int]
    shape: tuple[int, ...]
    dtype: str
    layout: str
    lowest: float
    mean: float
    highest: float
    preprocessed: bool
    spacing_mm: Spacing | None
    labels: dict[str, float] | None
    report: str
    source: dict[str, Any]
    engine: str | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values; NaN labels become null."""
        facts = asdict(self)
        if self.labels is not None:
            facts["labels"] = {k: None if np.isnan(v) else v for k, v in self.labels.items()}
        return facts


@dataclass(frozen=True, slots=True)
class View:
    """One volume to draw.

    Attributes
    ----------
    title : str
        Above the pictures.
    hu : numpy.ndarray
        float32, shape (H, W, D).
    spacing_mm : tuple of float
        Voxel size (H, W, D).
    affine : numpy.ndarray or None
        4 × 4, index to RAS+ millimetres; None where the orientation is not known.
    positive_labels : tuple of str or None
        None where there are no labels.
    """

    title: str
    hu: npt.NDArray[np.float32]
    spacing_mm: Spacing
    affine: npt.NDArray[np.float64] | None
    positive_labels: tuple[str, ...] | None


def inspect_samples(
    where: str | PathLike[str], *, num_samples: int = 4
) -> Iterator[tuple[SampleFacts, View]]:
    """Look at the first samples of something.

    Parameters
    ----------
    where : path
        A data set's folder, a tar, a brace pattern or glob of tars (raw or preprocessed), or one
        ``.nii.gz``, ``.nii`` or ``.npz`` file.
    num_samples : int
        At most so many.

    Yields
    ------
    (SampleFacts, View)
        What is known about it, and what :func:`draw_sheet` takes.

    Raises
    ------
    UsageError
        If it names nothing.
    StorageError, DecodeError
        If it cannot be read.
    """
    path = Path(where)
    if path.name.lower().endswith(VOLUME_SUFFIXES):
        yield _look_at_file(path)
        return
    tars = expand_pattern(where)
    samples = itertools.chain.from_iterable(map(samples_of_tar, tars))
    recipe = Recipe.beside(tars[0])
    for sample in itertools.islice(samples, num_samples):
        yield _look_at_sample(sample, recipe)


def draw_originals(
    where: str | PathLike[str], source: str | PathLike[str], keys: Sequence[str]
) -> Iterator[View]:
    """The volumes that samples of a data set were made of.

    Parameters
    ----------
    where : path
        The data set, as :func:`inspect_samples` takes it.
    source : path
        The originals: a folder of volumes, or raw tars.
    keys : sequence of str
        Which samples.

    Yields
    ------
    View
        For each key.

    Raises
    ------
    SampleError
        If an original cannot be had.
    """
    recipe = Recipe.beside(expand_pattern(where)[0])
    with Originals.open(source, recipe) as originals:
        for key in keys:
            prepared = originals.prepare(key)
            hu = _to_hu(prepared.raw.voxels, prepared.rescale)
            affine = prepared.raw.affine
            prepared.raw.release()
            yield View(f"source of {key}", hu, prepared.plan.spacing_mm, affine, None)


def draw_sheet(views: Sequence[View], out: Path, *, dots_per_inch: int = 80) -> None:
    """Draw axial, coronal and sagittal cuts, the histogram of HU and the positive labels.

    Each view is a row.  Cuts go through the middle, at their true aspect, as radiologists see
    them: the patient's right at the left, front and head at the top.

    Parameters
    ----------
    views : sequence of View
        What to draw.
    out : Path
        The picture; its suffix decides the format.
    dots_per_inch : int
        Resolution; a row is 14 × 3.2 inches.

    Raises
    ------
    UsageError
        If matplotlib is missing, or does not know the format.
    StorageError
        If the file cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError(
            "--preview needs matplotlib: install it with `pip install 'ctgpu[preview]'`"
        ) from error
    figure = Figure(figsize=(14, 3.2 * len(views)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(views), 5, squeeze=False, width_ratios=(3, 3, 3, 3, 2))
    for view, axes in zip(views, grid, strict=True):
        volume, spacing_mm, known = as_displayed(view)
        axes[0].set_ylabel(view.title, fontsize=8)
        ends = (("R", "L", "A", "P"), ("R", "L", "H", "F"), ("A", "P", "H", "F"))
        for axis, name, image, ax, marks in zip(
            (2, 1, 0), ("axial", "coronal", "sagittal"), cuts(volume), axes[:3], ends, strict=True
        ):
            width_mm, height_mm = _extent_mm(axis, volume.shape, spacing_mm)
            ax.imshow(image, cmap="gray", vmin=-1000, vmax=400, extent=(0, width_mm, height_mm, 0))
            ax.set_title(name if known else f"{name}, orientation not stated", fontsize=8)
            ax.set_xticks([])
            ax.set_yticks([])
            for mark, place in zip(marks, _MARK_PLACES if known else (), strict=False):
                ax.text(*place, mark, color="yellow", fontsize=7, transform=ax.transAxes)
        axes[3].hist(view.hu.ravel()[::7], bins=100, range=(-1100, 1100), color="0.4", log=True)
        axes[3].set_title("HU", fontsize=8)
        axes[3].tick_params(labelsize=6)
        axes[4].axis("off")
        axes[4].text(0, 1, _label_text(view), va="top", fontsize=7, transform=axes[4].transAxes)
    try:
        figure.savefig(out, dpi=dots_per_inch)
    except ValueError as error:
        raise UsageError(f"--preview {out} cannot be drawn: {error}") from error
    except OSError as error:
        raise StorageError(f"{out} cannot be written: {error.strerror}") from error


# Left, right, top and bottom edge, in the axes' own coordinates.
_MARK_PLACES = ((0.01, 0.5), (0.95, 0.5), (0.5, 0.93), (0.5, 0.01))


def as_displayed(view: View) -> tuple[npt.NDArray[np.float32], Spacing, bool]:
    """The volume with axes to the patient's left, back and head, in this order.

    Returns
    -------
    (numpy.ndarray, tuple of float, bool)
        A view of the voxels, their size in its order, and whether the orientation is known;
        otherwise the axes are taken as a scanner stores them.
    """
    import nibabel.orientations as orientations

    if view.affine is None:
        # Left, back, and slices from foot to head: what DICOM series become.
        return view.hu, view.spacing_mm, False
    own: Any = orientations.io_orientation(view.affine)  # type: ignore[no-untyped-call]
    target = orientations.axcodes2ornt(("L", "P", "S"))  # type: ignore[no-untyped-call]
    turn = orientations.ornt_transform(own, target)  # type: ignore[no-untyped-call]
    volume: npt.NDArray[np.float32] = orientations.apply_orientation(  # type: ignore[no-untyped-call]
        view.hu, turn
    )
    spacing = [0.0, 0.0, 0.0]
    for axis, goes_to in enumerate(turn[:, 0].astype(int)):
        spacing[goes_to] = view.spacing_mm[axis]
    return volume, (spacing[0], spacing[1], spacing[2]), True


def cuts(volume: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], ...]:
    """Axial, coronal and sagittal cut through the middle, rows from the top of the picture.

    Parameters
    ----------
    volume : numpy.ndarray
        Axes to the patient's left, back and head.
    """
    left, back, head = (n // 2 for n in volume.shape)
    return volume[:, :, head].T, volume[:, back, ::-1].T, volume[left, :, ::-1].T


def _extent_mm(axis: int, shape: tuple[int, ...], spacing_mm: Spacing) -> tuple[float, float]:
    """Width and height of the cut across `axis`."""
    across, down = (k for k in range(3) if k != axis)
    return shape[across] * spacing_mm[across], shape[down] * spacing_mm[down]


def _label_text(view: View) -> str:
    if view.positive_labels is None:
        return ""
    return "\n".join(("positive labels:", *(view.positive_labels or ("none",))))


def _look_at_file(path: Path) -> tuple[SampleFacts, View]:
    try:
        size_bytes = path.stat().st_size
        buffer = BufferPool().acquire(size_bytes)
        with path.open("rb") as file:
            file.readinto(buffer.bytes.data)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    raw = decode(path.name, buffer, BufferPool())
    key = strip_volume_suffix(path.name)
    hu = _to_hu(raw.voxels, raw.header_rescale)
    extension = path.name[len(key) + 1 :]
    facts = _facts(key, path.name, {extension: size_bytes}, raw, raw.spacing_mm)
    return facts, View(key, hu, raw.spacing_mm or (1.0, 1.0, 1.0), raw.affine, None)


def _look_at_sample(sample: TarSample, recipe: Recipe) -> tuple[SampleFacts, View]:
    raw = read_volume(sample, BufferPool())
    stated = sample.facts()
    labels = sample.labels()
    named = None if labels is None else dict(zip(LABEL_NAMES, map(float, labels), strict=True))
    preprocessed = stated.get("preprocessed") is True or raw.voxels.dtype == np.float16
    source = stated.get("source", {})
    facts = _facts(
        sample.key,
        sample.tar.name,
        {extension: member.size_bytes for extension, member in sample.members.items()},
        raw,
        raw.spacing_mm,
        layout=str(stated.get("layout", "HWD")),
        preprocessed=preprocessed,
        labels=named,
        report=sample.text()[:EXCERPT_CHARACTERS],
        source=source if isinstance(source, dict) else {"path": source},
        engine=_engine(sample),
    )
    lo, hi = recipe.spec.hu_window
    to_hu = Rescale((hi - lo) / 2, (lo + hi) / 2) if preprocessed else raw.header_rescale
    voxels = raw.voxels.transpose(1, 2, 0) if facts.layout == "DHW" else raw.voxels
    positive = None if named is None else tuple(name for name, value in named.items() if value > 0)
    # A bare spacing is no orientation.
    oriented = facts.source.get("affine_source", "header") == "header"
    view = View(
        sample.key,
        _to_hu(voxels, to_hu),
        raw.spacing_mm or (recipe.spec.target_spacing_mm if preprocessed else (1.0, 1.0, 1.0)),
        raw.affine if oriented else None,
        positive,
    )
    return facts, view


def _facts(
    key: str,
    file: str,
    members: dict[str, int],
    raw: RawVolume,
    spacing_mm: Spacing | None,
    *,
    layout: str = "HWD",
    preprocessed: bool = False,
    labels: dict[str, float] | None = None,
    report: str = "",
    source: dict[str, Any] | None = None,
    engine: str | None = None,
) -> SampleFacts:
    voxels = raw.voxels
    return SampleFacts(
        key,
        file,
        members,
        voxels.shape,
        voxels.dtype.name,
        layout,
        float(voxels.min()),
        float(voxels.mean(dtype=np.float64)),
        float(voxels.max()),
        preprocessed,
        spacing_mm,
        labels,
        report,
        source or {},
        engine,
    )


def _engine(sample: TarSample) -> str | None:
    shard = parse_shard_name(sample.tar.name)
    path = sample.tar.with_name(record_name(shard[0])) if shard else None
    if path is None or not path.exists():
        return None
    try:
        return json.dumps(ShardRecord.load(path).run.get("engine"))
    except StorageError:
        return None


def _to_hu(voxels: npt.NDArray[Any], rescale: Rescale) -> npt.NDArray[np.float32]:
    hu = voxels.astype(np.float32)
    hu *= np.float32(rescale.slope)
    hu += np.float32(rescale.intercept)
    return hu
