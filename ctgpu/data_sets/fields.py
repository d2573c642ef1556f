"""The parts of a description: every field that its TOML file takes, but those at its top."""

from __future__ import annotations

from typing import Literal

import msgspec

from ctgpu.volume.masks import MaskDtype, MaskFormat

Files = tuple[str, ...] | dict[str, tuple[str, ...]]


class Part(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """A part of a description; what it does not know is refused, for it may be misspelt."""


class Layout(Part, frozen=True):
    """Where a copy of the data set begins.

    Attributes
    ----------
    root : str
        The folder that all others are in; a copy may lack it.
    telling : tuple of str
        Folders of splits that are this data set's wherever they are found below a source.  Where
        there are none, globs are held against the paths below the source itself.
    companions : tuple of str
        Folders that make the others of the splits telling where they lie beside them.
    """

    root: str = ""
    telling: tuple[str, ...] = ()
    companions: tuple[str, ...] = ()


class SplitRule(Part, frozen=True):
    """Which volumes belong to a split.

    Attributes
    ----------
    volumes : tuple of str
        Globs of their paths; by default those of all volumes.
    fallback : tuple of str
        Those to take where none is there of `volumes`.
    names : str or None
        A regular expression of the study ids that belong to it wherever their files lie.
    words : tuple of str
        What the column of splits says of its volumes, in whatever case; by default the split's own
        name.
    """

    volumes: tuple[str, ...] = ()
    fallback: tuple[str, ...] = ()
    names: str | None = None
    words: tuple[str, ...] = ()


class VolumeRule(Part, frozen=True):
    """What the paths and names of volumes say.

    Attributes
    ----------
    paths : tuple of str
        Globs of the paths of all volumes, see :func:`ctgpu.data_sets.globs.compiled`.
    hu : tuple of str
        Globs of paths, the source's own name included, of those whose voxels are HU as they are.
    needs_rescale : tuple of str
        Likewise of those that need the tables' slope and intercept.
    scan : str or None
        A regular expression of study ids: its group ``scan`` names what several reconstructions
        have in common, ``recon`` is their number.
    patient : str or None
        A regular expression of study ids, whose group ``patient`` names whom they show.
    orientation : str or None
        How volumes lie that do not say so, as the patient's directions along their axes (H, W, D).
    """

    paths: tuple[str, ...] = ("**",)
    hu: tuple[str, ...] = ()
    needs_rescale: tuple[str, ...] = ()
    scan: str | None = None
    patient: str | None = None
    orientation: str | None = None


class ArrayRule(Part, frozen=True):
    """What bare arrays (``.npz``, ``.npy``) do not say of themselves.

    Attributes
    ----------
    member : str or None
        Name of the array that holds the volume.
    axes : str
        Its axes in the order that they are stored in: ``H``, ``W`` and ``D``.
    spacing_mm : tuple of float or None
        Voxel size (H, W, D) where neither tables nor file state one.
    """

    member: str | None = None
    axes: Literal["HWD", "HDW", "WHD", "WDH", "DHW", "DWH"] = "HWD"
    spacing_mm: tuple[float, float, float] | None = None


#: Where nothing is said about arrays.
AS_STORED = ArrayRule()


class MaskRule(Part, frozen=True):
    """Which files hold the mask of a volume, and what is in them.

    Attributes
    ----------
    files : str
        Their paths relative to the source, in which ``{folder}`` stands for the volume's folder,
        ``{name}`` for its file's name without the suffix, ``{key}`` and ``{patient}`` for what is
        known of it.  With ``{label}`` there is a file for each label, and its voxels above 0 have
        that label: where two overlap, the one with the higher number.  Else one file holds the
        numbers.
    labels : dict of str to int
        The number of each label, from 1 to 65535; where there are none, any number is taken.
    absent : {"refuse", "empty"}
        What a file that is not there means: a failed sample, or that nothing has its labels.  Of
        several files one has to be there in any case.
    dtype : {"uint8", "uint16"}
        What they are stored as at least: a label above 255 makes it ``"uint16"``.
    """

    files: str
    labels: dict[str, int] = {}
    absent: Literal["refuse", "empty"] = "refuse"
    dtype: MaskDtype = "uint8"

    @property
    def format(self) -> MaskFormat:
        """How masks are stored."""
        is_wide = max(self.labels.values(), default=0) > 255
        return MaskFormat("uint16" if is_wide else self.dtype, self.labels)


class TableRule(Part, frozen=True):
    """One table, and which of its columns say what.

    Attributes
    ----------
    files : tuple of str, or dict of such
        Paths, best first, relative to the source or absolute; for each split where they differ.
    key : str or tuple of str
        The column that names the volumes: study ids, or file names with or without folders.  Of
        several, the first that the table has.
    through : str or None
        The name that another table gives to volumes in a column of its `other_names`: what the
        column `key` holds in place of the volumes' own.
    other_names : tuple of str
        Columns in which this table says how others name its volumes.
    labels : "classes", "rest", tuple of str or None
        Columns of the labels: those named as the data set's `class_names`, or all that nothing else
        is said of, or these.
    label_range : tuple of float or None
        Lowest and highest value of a label.
    label_words : dict of str to float or "unknown"
        What words, or numbers, in the columns of labels stand for, in whatever case.
    label_separator : str or None
        Columns that are the same up to this are one class, whose label is the highest of theirs.
    text : tuple of str
        Columns of the report, in the order in which they become its text.
    report : "rest", tuple of str or None
        Columns of the report that are kept as they are; by default those of `text`.
    spacing_mm : tuple of str
        Columns of the voxel size: three for H, W and D, or a pair for H and W and one for D, or
        one of three numbers.
    rescale : tuple of str or None
        Columns of slope and intercept, which need not be there.
    shape : tuple of str or None
        Columns of the number of voxels along H, W and D, for estimates; they need not be there.
    carry : tuple of str
        Columns that go into the sample's JSON.
    patient, split : str or None
        Columns that name whom a volume shows, and which split it belongs to.
    ignore : tuple of str
        Columns that are no part of "the rest".
    """

    files: Files
    key: str | tuple[str, ...]
    through: str | None = None
    other_names: tuple[str, ...] = ()
    labels: Literal["classes", "rest"] | tuple[str, ...] | None = None
    label_range: tuple[float, float] | None = None
    label_words: dict[str, float | Literal["unknown"]] = {}
    label_separator: str | None = None
    text: tuple[str, ...] = ()
    report: Literal["rest"] | tuple[str, ...] | None = None
    spacing_mm: tuple[str, ...] = ()
    rescale: tuple[str, str] | None = None
    shape: tuple[str, str, str] | None = None
    carry: tuple[str, ...] = ()
    patient: str | None = None
    split: str | None = None
    ignore: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        """The columns that may name the volumes."""
        return (self.key,) if isinstance(self.key, str) else self.key

    @property
    def roles(self) -> tuple[str, ...]:
        """What it says about volumes, in words."""
        says = {
            "labels": self.labels is not None,
            "text": bool(self.text),
            "spacing": bool(self.spacing_mm),
            "rescale": self.rescale is not None,
            "patients": self.patient is not None,
            "splits": self.split is not None,
            "other names": bool(self.other_names),
            "columns to carry": bool(self.carry),
        }
        return tuple(role for role, is_one in says.items() if is_one)


class ListRule(Part, frozen=True):
    """A list of volumes to leave out, one study id in a line.

    Attributes
    ----------
    files : tuple of str, or dict of such
        As of a :class:`TableRule`.
    reason : str
        Goes on after their number, such as ``"without a chest"``.
    """

    files: Files
    reason: str = "left out by a list"
