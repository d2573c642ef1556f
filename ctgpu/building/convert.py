"""An existing WebDataset into shards of this format, through the same build."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path

from ctgpu.arguments import option, path_of
from ctgpu.building.builder import make_shards
from ctgpu.building.cleaner import Cleaner
from ctgpu.building.events import Event, Planned, ShardCommitted, Watcher, ignore
from ctgpu.building.executor import LocalExecutor
from ctgpu.building.recoding import plan_to_recode, recode
from ctgpu.building.report import BuildReport
from ctgpu.building.request import Common, Request, called_with, taken
from ctgpu.engines.adopting import AdoptingEngine
from ctgpu.errors import UsageError
from ctgpu.shards.card import Claims
from ctgpu.shards.folder import failures
from ctgpu.shards.manifest import manifest
from ctgpu.shards.names import PLAN_NAME, PRIVATE_NAME
from ctgpu.shards.patterns import expand_pattern
from ctgpu.shards.plan import Plan
from ctgpu.shards.tar import mask_of
from ctgpu.sources.tar_samples import preprocessed_shape, samples_of_tar
from ctgpu.sources.tars import TarSource
from ctgpu.spec import CT_RATE, Spec

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertRequest(Common):
    """The options of a conversion.

    Attributes
    ----------
    delete_after : bool
        Remove an input tar once all that it says is in shards that are committed and were read
        back whole, and its bytes still are those that were converted; else it is kept, and the log
        says why: see :mod:`ctgpu.building.cleaner`.
    dry_run : bool
        Convert and delete nothing: the log says what `delete_after` would delete now, and what it
        keeps, and why.
    """

    delete_after: bool = option(
        False,
        help="Delete a tar once all that it says is in committed and verified shards; what is kept "
        "is named.",
        group="again",
    )
    dry_run: bool = option(
        False,
        help="Convert and delete nothing: say what --delete-after would delete.",
        group="again",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _ConvertCall(ConvertRequest):
    """The parameters of :func:`convert_tars`.

    Attributes
    ----------
    input_pattern : path
        A folder of tars, one tar, a brace pattern or a glob.
    output_dir : path
        Folder of the data set; another one than that of the tars.
    watch : callable
        Called with every :class:`~ctgpu.building.events.Event`, as by :func:`ctgpu.build`.
    """

    input_pattern: str | PathLike[str] = field(kw_only=False)
    output_dir: str | PathLike[str] = field(kw_only=False)
    watch: Watcher = ignore


@called_with(_ConvertCall)
def convert_tars(call: _ConvertCall) -> BuildReport:
    """Build a data set from the tars of a WebDataset.

    Of finished shards of ctgpu whose compression alone is asked for, everything else stays, byte
    for byte: what comes out is what a build with that compression would have made.  Raw volumes
    (``bin`` or ``ctz`` with ``json``, ``npz``, ``nii.gz``) are preprocessed.  Shards that were
    preprocessed already are adopted: shapes are checked, metadata completed, volumes left as they
    are, or rounded to the precision that is asked for; those that the old builder cropped in the
    wrong axis order are reported as failures.  The split is only recorded, by default as the
    manifest beside the tars says.

    Returns
    -------
    BuildReport

    Raises
    ------
    UsageError
        If the request cannot be honoured.
    EnvironmentFailure
        If the tars, the device or the output folder fail.
    """
    folder = path_of("output_dir", call.output_dir)
    pattern = path_of("input_pattern", call.input_pattern)
    return convert(folder, pattern, taken(ConvertRequest, call), call.watch)


def convert(
    folder: Path, pattern: Path, request: ConvertRequest, watch: Watcher = ignore
) -> BuildReport:
    """Convert the tars of a pattern into a folder; as :func:`convert_tars`."""
    if pattern.is_dir():
        pattern = pattern / "*.tar"
    if not pattern.name.endswith(".tar"):
        raise UsageError(
            f"input_pattern is {str(pattern)!r}; it is a folder of tars, or ends in .tar"
        )
    delete_after, spec = request.delete_after, request.spec
    if delete_after and request.force:
        raise UsageError("--force reads again what --delete-after deletes; give one of them")
    if request.dry_run and not delete_after:
        raise UsageError("--dry-run says what --delete-after would delete; give both")
    begun = (folder / PLAN_NAME).exists()
    tars = TarSource(pattern).tars_left() if begun else expand_pattern(pattern)
    if folder.exists() and any(_same_folder(tar, folder) for tar in tars):
        raise UsageError(
            f"{folder} itself holds tars that {pattern} names; choose another --output-dir, or the "
            "pattern of the tars to convert"
        )
    if (plan := plan_to_recode(folder, tars, request)) is not None:
        if delete_after:
            raise UsageError(
                f"--delete-after is for tars of another kind; {tars[0].parent} is a whole data "
                "set: remove it yourself when `ctgpu verify` has found nothing wrong with the copy"
            )
        private = folder / PRIVATE_NAME
        had_private = private.exists()
        report = recode(folder, tars, plan, request, watch)
        if private.exists() and not had_private:
            log.info(
                "%s was copied too: it says whom the samples show, so leave it out where the "
                "shards are given away",
                private,
            )
        return report
    if request.dry_run:
        return _dry_run(folder, pattern)
    adopted = _adopted_shape(folder, pattern)
    if adopted is not None and not begun:
        _require_adoptable(tars[0], spec or CT_RATE)
        spec = replace(spec or CT_RATE, shape_hwd=adopted, intensity="hu")
    cleaner = Cleaner(folder, TarSource(pattern)) if delete_after and begun else None

    def listen(event: Event) -> None:
        nonlocal cleaner
        watch(event)
        if delete_after and cleaner is None and isinstance(event, Planned):
            cleaner = Cleaner(folder, TarSource(pattern))
        if cleaner is not None and isinstance(event, ShardCommitted):
            cleaner.delete_finished()

    asked = taken(
        Request,
        request,
        source=pattern,
        split=request.split or (None if begun else Claims.if_readable(tars[0].parent).split),
        spec=spec,
        device=AdoptingEngine() if adopted is not None else request.device,
    )
    report = make_shards(folder, asked, LocalExecutor(), listen)
    if cleaner is not None:
        cleaner.delete_finished()
        cleaner.report()
    return report


def _require_adoptable(tar: Path, spec: Spec) -> None:
    """Refuse to call volumes that are taken as they are what they are not, and to lose masks.

    Raises
    ------
    UsageError
        If another contract is asked for, or stated beside the tars, than such volumes can have; or
        if there are masks.
    """
    stated = Claims.if_readable(tar.parent).spec
    masks = [(one.key, mask) for one in samples_of_tar(tar) if (mask := mask_of(one.members))]
    if masks:
        key, mask = masks[0]
        raise UsageError(
            f"{tar} holds {key}.{mask}, a mask beside a preprocessed volume, and a conversion "
            "carries no masks: copy the folder as it is, or build from the originals; of shards of "
            "ctgpu, --compress alone makes a copy with masks"
        )
    if stated is not None and (stated.precision_step or 0.0) > (spec.precision_step or 0.0):
        raise UsageError(
            f"the tars hold volumes of precision {stated.precision}, as is stated in {tar.parent}, "
            f"and {spec.precision} is asked for, which they cannot become again: give "
            f"--precision {stated.precision}"
        )
    for what, one in (("is asked for", spec), (f"is stated in {tar.parent}", stated)):
        # A precision they are rounded to; all else would have to be in them already.
        if one is not None and not replace(one, precision="exact").is_first_version:
            raise UsageError(
                f"the tars hold preprocessed volumes, which are adopted as they are: float16, a "
                f"window mapped to [-1, 1]; {_what_is_new(one)} {what}: convert their originals"
            )


def _what_is_new(spec: Spec) -> str:
    """What a spec says beyond the first format, such as ``dtype 'int16'``."""
    default, values = CT_RATE.to_dict(), spec.to_dict()
    new = [f"{n} {v!r}" for n, v in values.items() if n not in default and n != "precision"]
    return ", ".join(new) or "hu_window None"


def _same_folder(tar: Path, folder: Path) -> bool:
    """Whether `tar`, or what it links to, lies in `folder`, however that is written."""
    return any(
        parent.exists() and os.path.samefile(parent, folder)
        for parent in (tar.parent, tar.resolve().parent)
    )


def _dry_run(folder: Path, pattern: Path) -> BuildReport:
    plan = Plan.load(folder)
    cleaner = Cleaner(folder, TarSource(pattern), dry_run=True)
    cleaner.delete_finished()
    cleaner.report()
    failed = [{"shard_index": index, **f.to_dict()} for index, f in failures(folder)]
    return BuildReport(folder, manifest(folder, plan), 0, 0, failed, None)


def _adopted_shape(folder: Path, pattern: Path) -> tuple[int, int, int] | None:
    """The shape that the inputs were preprocessed to; None where they are raw."""
    if (folder / PLAN_NAME).exists():
        plan = Plan.load(folder)
        return plan.spec.shape_hwd if plan.arithmetic == AdoptingEngine.arithmetic else None
    first = next((tar for tar in expand_pattern(pattern) if tar.exists()), None)
    samples = samples_of_tar(first) if first else []
    shape = preprocessed_shape(samples[0]) if samples else None
    return None if shape is None else (shape[0], shape[1], shape[2])
