"""What is asked for: every option of a build, from the command line to the work.

A field of :class:`Request` is all that an option needs besides the place where it takes effect: the
keyword of :func:`ctgpu.build`, the flag with its help, the checks of its type, what a plan records
of it and the comparison with the plan of a folder are derived from it.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from os import PathLike
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, get_args

from ctgpu.arguments import (
    MOST_INT64,
    MOST_WORKERS,
    UNSAID,
    WHERE_GIVEN,
    checked,
    option,
    options_of,
    require_kind,
    shown,
)
from ctgpu.codec import Coding
from ctgpu.data_sets import BUILT_IN
from ctgpu.engines import Engine
from ctgpu.engines.registry import DEVICE_HELP
from ctgpu.errors import UsageError
from ctgpu.shards.plan import DEFAULT_SAMPLES_PER_SHARD
from ctgpu.sources import DEFAULT_REPO_ID
from ctgpu.sources.selection import Order, Recon
from ctgpu.spec import SPEC_WANTED, Spec
from ctgpu.volume.intensity import HuGuard
from ctgpu.volume.orientation import DEFAULT_MAX_TILT_DEGREES, AxisRules

_P = ParamSpec("_P")
_R = TypeVar("_R")
_CommonT = TypeVar("_CommonT", bound="Common")


@dataclass(frozen=True, slots=True)
class Part:
    """This process's part of the work, where several processes share one request.

    Attributes
    ----------
    index, count : int
        This one's number from 0, and how many there are.
    processes_per_machine : int
        How many of them share this machine's memory.
    """

    index: int = 0
    count: int = 1
    processes_per_machine: int = 1

    def shards_of(self, shards: int) -> range:
        """This part of `shards` shards: consecutive ones, and never one more than another part."""
        return range(shards * self.index // self.count, shards * (self.index + 1) // self.count)


@dataclass(frozen=True, slots=True, kw_only=True)
class Common:
    """The options of everything that makes shards.

    None means that an option was not given: a folder that was begun takes it from its plan, a new
    one takes the default.

    Attributes
    ----------
    split : str, optional
        Which part of the data set; by default the one that its description says, ``"valid"``.
    spec : Spec, optional
        Spacing, shape, window and layout of the output.
    device : str or Engine
        ``"auto"``, ``"cpu"``, ``"cuda[:N[,M…]]"`` or ``"reference"``; an engine is closed at the
        end.
    num_workers : int, optional
        Threads that fetch; as many decode, up to the cores.
    memory_limit_bytes : int, optional
        Budget of the volumes in flight on one machine; default half of the memory available.
    samples_per_shard : int, optional
        Default 128.
    compress : {"none", "pack", "rice"}, optional
        How volumes and masks are compressed, without the loss of a bit: not at all (the default),
        so that they are fastest to decode, or so that they are smallest.
    shards : range, optional
        Do only these shards of the plan.
    axes, max_tilt_degrees, assume_orientation : optional
        Which orientations are taken, and which one volumes have that do not say, as
        :class:`~ctgpu.volume.orientation.AxisRules`.
    hu_guard : {"refuse", "warn"}, optional
        What to do about a volume that does not look like HU: a failed sample (the default), or
        taken, with the finding in its JSON.
    force : bool
        Build again what is finished.
    retry_failed : bool
        Re-do only the samples that failed, in the shards they belong to.
    """

    split: str | None = option(
        help="Part of the data set: train, valid, or as it names them. (default: the data set's, "
        "which mostly is valid, or the plan's)"
    )
    spec: Spec | None = None
    device: str | Engine = option("auto", help=f"Where to compute: {DEVICE_HELP}.", group="machine")
    num_workers: int | None = option(
        help="Threads that download; as many inflate, up to the cores.",
        most=MOST_WORKERS,
        group="machine",
    )
    memory_limit_bytes: int | None = option(
        flag="--memory-limit",
        written="size",
        help="Bytes for volumes in flight on a machine, such as 16G. (default: half of memory)",
        most=MOST_INT64,
        group="machine",
    )
    samples_per_shard: int | None = option(
        help=f"Samples in a shard. (default: {DEFAULT_SAMPLES_PER_SHARD})"
    )
    compress: str | None = option(
        choices=("none", *get_args(Coding)),
        help="How volumes and masks are compressed, without loss: none, pack (fastest to read) or "
        "rice (smallest). (default: none, or the plan's)",
    )
    shards: range | None = option(
        written="range",
        help="Do only shards A-B of the plan, both included. (default: all, or in a SLURM job "
        "array its element's part)",
        group="again",
    )
    axes: str | None = option(
        selects="checked",
        help="checked: refuse volumes whose third axis is not the patient's long one; stored: take "
        "every volume as it lies. (default: checked)",
    )
    max_tilt_degrees: float | None = option(
        selects=DEFAULT_MAX_TILT_DEGREES,
        help="Refuse volumes whose axes are further than this from the patient's, or sheared by "
        f"more. (default: {DEFAULT_MAX_TILT_DEGREES:g})",
    )
    assume_orientation: str | None = option(
        selects=WHERE_GIVEN,
        help="How volumes lie that do not say so, as the patient's directions along their axes, "
        "such as LPS. (default: not known, which --orientation refuses)",
    )
    hu_guard: str | None = option(
        selects="refuse",
        choices=get_args(HuGuard),
        help="What to do about volumes that are not HU (normalised, grey values, labels, rescaled "
        "twice or never): refuse, or warn and take them. (default: refuse)",
    )
    force: bool = option(False, help="Build again what is finished already.", group="again")
    retry_failed: bool = option(False, help="Re-do only the samples that failed.", group="again")

    def __post_init__(self) -> None:
        """Check each value, and make plain Python of NumPy's scalars.

        Raises
        ------
        UsageError
            Naming the parameter, what was found and what was wanted.
        """
        for one in fields(self):
            object.__setattr__(self, one.name, checked(one, getattr(self, one.name)))
        if self.split is not None and not re.fullmatch(r"[\w.-]{1,60}", self.split):
            raise UsageError(
                f"split is {shown(self.split)}; wanted a name of letters, digits, '.', '_' and '-'"
            )
        require_kind("spec", self.spec, Spec, SPEC_WANTED)
        require_kind("device", self.device, (str, Engine), f"{DEVICE_HELP}, or an open engine")
        require_kind("shards", self.shards, range, "a range, such as range(0, 10)")
        if self.shards is not None and (
            self.shards.step != 1 or not 0 <= self.shards.start < self.shards.stop
        ):
            raise UsageError(
                f"shards is {self.shards!r}; it takes consecutive shards, such as range(0, 10)"
            )
        rules = AxisRules.of_selection(self.selection)
        object.__setattr__(self, "assume_orientation", rules.assume_orientation)

    @property
    def compression(self) -> Coding | None:
        """As :attr:`ctgpu.shards.plan.Plan.compression`, of a plan that is made now."""
        return next((coding for coding in get_args(Coding) if coding == self.compress), None)

    @property
    def selection(self) -> dict[str, Any]:
        """The options given that choose samples and how they are taken, as plans record them."""
        return {
            name: value
            for name in selection_defaults(type(self))
            if (value := getattr(self, name)) is not None
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Request(Common):
    """The options of a build.

    Attributes
    ----------
    source : path, optional
        A local copy of CT-RATE or any folder of volumes; default the Hub.
    repo_id, revision : str, optional
        Data set on the Hub (default CT-RATE) and its branch, tag or commit, which is pinned.
    temp_dir : path, optional
        Spool downloads there instead of holding them in memory.
    part : Part
        This process is one of several with the same request: it does its part of the shards (or
        `shards`), and keeps to its part of the Hub's quotas and of the machine's memory.
    dataset : str or path, optional
        What lies where in the source, and what is in it: a description that ctgpu has, by its name,
        or a file; see docs/data_sets.md.  By default CT-RATE's on the Hub and where a folder has
        anything of it, else any folder of volumes, ``"plain"``.
    labels, reports : path, optional
        Tables of labels and of reports, in place of those that the description names.
    key_column, text_columns : str, optional
        Their column that names the volumes, and those that make a report, with commas between them.
    split_by, fractions : str, optional
        ``"patient"`` makes splits of a data set that has none; their shares of the patients, such
        as ``"0.9,0.1"`` for train and valid; `seed` tells who belongs to which.
    include, exclude : str, optional
        Globs of paths, as :func:`ctgpu.sources.selection.fitting` takes them.
    masks : bool, optional
        Store the masks that the description names beside the volumes; by default where it does.
    limit, recon, order, seed, keep_no_chest, spacing_fallback : optional
        Which samples and in which order: first N, ``"all"`` or ``"first"`` reconstruction,
        ``"path"`` or ``"shuffled"`` with a seed, volumes listed as no chest, ``"header"`` to take
        the file's spacing where the CSV has none.
    keep_uids : bool, optional
        Name the samples of DICOM by their SeriesInstanceUID instead of a salted hash of it.
    token, endpoint : str, optional
        Of the Hub; default from the environment or the login.
    """

    source: str | PathLike[str] | None = option(
        written="path",
        help="A local copy of CT-RATE, or any folder of volumes, instead of the Hub.",
        group="where",
    )
    repo_id: str | None = option(
        help=f"Data set on the Hub. (default: {DEFAULT_REPO_ID})", group="where"
    )
    revision: str | None = option(
        help="Branch, tag or commit; pinned to a commit. (default: main)", group="where"
    )
    temp_dir: str | PathLike[str] | None = option(
        written="path",
        help="Spool downloads here instead of holding them in memory.",
        group="machine",
    )
    part: Part = Part()
    dataset: str | PathLike[str] | None = option(
        written="path",
        help=f"What lies where: {', '.join(BUILT_IN)}, or a description's file in .toml, as `ctgpu "
        "describe` writes. (default: ct-rate, or plain where a folder has nothing of it)",
        group="where",
    )
    labels: str | PathLike[str] | None = option(
        written="path",
        help="A table of labels: CSV, TSV, Excel or Parquet, a column a class.",
        group="where",
    )
    reports: str | PathLike[str] | None = option(
        written="path", help="A table of reports.", group="where"
    )
    key_column: str | None = option(
        help="Their column that names the volumes. (default: the one whose cells do)", group="where"
    )
    text_columns: str | None = option(
        help="Columns of a report's text, in order, with commas between them. (default: by name)",
        group="where",
    )
    split_by: str | None = option(
        selects=WHERE_GIVEN,
        choices=("patient",),
        help="patient: make the splits of a data set that has none, without parting a patient's "
        "scans; takes --fractions and --seed.",
    )
    fractions: str | None = option(
        selects=WHERE_GIVEN,
        help="Shares of the patients in train and valid, or train, valid and test, such as "
        "0.9,0.1.",
    )
    include: str | None = option(
        selects=WHERE_GIVEN,
        help="Take only volumes whose paths fit a glob; several with commas between them, such as "
        "'chest/*,*_thin.nii.gz'.",
    )
    exclude: str | None = option(
        selects=WHERE_GIVEN, help="Leave out volumes whose paths fit a glob; several likewise."
    )
    masks: bool | None = option(
        flag="--masks/--no-masks",
        selects=WHERE_GIVEN,
        help="Store the masks that the data set's description names, or leave them out. (default: "
        "store them)",
    )
    limit: int | None = option(selects=None, help="A trial plan of the first N samples.")
    recon: str | None = option(
        selects="all",
        choices=get_args(Recon),
        help="all or first: one reconstruction of each scan. (default: all)",
    )
    order: str | None = option(
        selects="path", choices=get_args(Order), help="path or shuffled. (default: path)"
    )
    seed: int | None = option(
        selects=0,
        least=-MOST_INT64,
        most=MOST_INT64,
        help="Seed of --order shuffled and of --split-by.",
    )
    keep_no_chest: bool | None = option(
        selects=False,
        help="Keep volumes that the data set's lists leave out, as CT-RATE's no_chest.",
    )
    spacing_fallback: str | None = option(
        selects="fail",
        choices=("fail", "header"),
        help="header: take the file's spacing where the CSV has none. (default: fail)",
    )
    keep_uids: bool | None = option(
        selects=WHERE_GIVEN,
        help="Name the samples of DICOM by their SeriesInstanceUID, instead of a salted hash of it "
        "that only the output folder's private/series.json resolves.",
    )
    endpoint: str | None = None
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        # Not super(): a class with slots is another object than the one that it is bound to.
        Common.__post_init__(self)
        object.__setattr__(self, "part", self.part or Part())
        object.__setattr__(self, "keep_uids", self.keep_uids or None)
        require_kind("part", self.part, Part, "a ctgpu.building.request.Part")
        require_kind("endpoint", self.endpoint, str, "text")
        require_kind("token", self.token, str, "text")
        if (self.split_by is None) is not (self.fractions is None):
            raise UsageError(
                "split_by and fractions (--split-by, --fractions) go together, such as --split-by "
                "patient --fractions 0.9,0.1"
            )
        if self.source is not None and (self.repo_id is not None or self.revision is not None):
            raise UsageError(
                "source (--source) names a local folder, repo_id and revision (--repo-id, "
                "--revision) a data set on the Hub; give one or the other"
            )

    @property
    def source_path(self) -> Path | None:
        """The local source; None where the source is the Hub."""
        return Path(self.source) if self.source is not None else None

    @property
    def temp_path(self) -> Path | None:
        """The folder that downloads are spooled to; None keeps them in memory."""
        return Path(self.temp_dir) if self.temp_dir is not None else None


def selection_defaults(kind: type) -> Mapping[str, Any]:
    """What a plan records for each option that chooses samples where it is not given."""
    return {one.name: o.selects for one, o in options_of(kind) if o.selects is not UNSAID}


def taken(kind: type[_CommonT], options: Common, **more: Any) -> _CommonT:
    """Options of one kind, with the values of another kind's and, before these, of `more`."""
    shared = {one.name for one in fields(kind)} & {one.name for one in fields(options)}
    return kind(**({name: getattr(options, name) for name in shared} | more))


def called_with(
    options: Callable[_P, _CommonT],
) -> Callable[[Callable[[_CommonT], _R]], Callable[_P, _R]]:
    """Turn a function of an options object into one whose parameters are the object's fields."""

    def face(work: Callable[[_CommonT], _R]) -> Callable[_P, _R]:
        signature = inspect.signature(options)

        @functools.wraps(work)
        def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            try:
                signature.bind(*args, **kwargs)
            except TypeError as error:
                raise TypeError(f"{work.__name__}() {error}") from None
            return work(options(*args, **kwargs))

        result = inspect.signature(work).return_annotation
        face_signature = signature.replace(return_annotation=result)
        call.__signature__ = face_signature  # type: ignore[attr-defined]
        before, returns, after = inspect.getdoc(work).partition("\nReturns\n")  # type: ignore[union-attr]
        call.__doc__ = f"{before}\n{_parameters(options)}\n{returns}{after}"
        return call

    return face


def _parameters(options: Any) -> str:
    """The attributes of a class and of those that it extends, as a function documents them."""
    heading = "Attributes\n----------\n"
    kinds = [kind for kind in options.__mro__ if kind.__dict__.get("__doc__")]
    texts = [(inspect.getdoc(kind) or "").partition(heading)[2] for kind in kinds]
    return "Parameters\n----------\n" + "\n".join(filter(None, texts)) + "\n"
