"""Which description of a data set a build goes by, and what of its tables is joined."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ctgpu.building.request import Request
from ctgpu.data_sets import PLAIN, Description, built_in, named
from ctgpu.data_sets.fields import TableRule
from ctgpu.data_sets.layout import SplitFolders
from ctgpu.errors import MismatchError, UsageError
from ctgpu.printable import counted
from ctgpu.shards.plan import Plan
from ctgpu.sources.base import Source
from ctgpu.sources.dicom.private import root_of
from ctgpu.sources.dicom.source import DicomSource
from ctgpu.sources.folder import FolderSource
from ctgpu.sources.recognition import SeenTable, describe_tables, look_at_table
from ctgpu.sources.table import read_first, study_id_in
from ctgpu.sources.table_files import TABLE_SUFFIXES
from ctgpu.sources.tables import Tables
from ctgpu.volume.ref import SampleRef, normal_form

_log = logging.getLogger(__name__)

#: Tables that nobody has named are held in memory as cells, ten times as large as their file.
LARGEST_LOOKED_AT_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class JoinedTable:
    """A table that was joined to the volumes of a build.

    Attributes
    ----------
    path, key : str
        Where it is, and its column that names the volumes; empty where each volume has its own row
        beside it, as in a tar.
    says : tuple of str
        Labels, text, spacing …
    volumes, of : int
        How many of the samples have a row, and how many samples there are.
    """

    path: str
    key: str
    says: tuple[str, ...]
    volumes: int
    of: int

    def __str__(self) -> str:
        joined = f", joined by {self.key}" if self.key else ""
        of, have = counted(self.of, "volume"), "has" if self.of == 1 else "have"
        return f"{self.path} ({', '.join(self.says)}){joined}: {self.volumes} of {of} {have} a row"


def joined_tables(tables: Tables, samples: Sequence[SampleRef]) -> tuple[JoinedTable, ...]:
    """What of the tables was joined to the samples of a build."""
    return tuple(
        JoinedTable(
            one.table.path,
            one.table.key,
            one.rule.roles,
            sum(sample.study_id in one for sample in samples),
            len(samples),
        )
        for one in tables.joined
    )


def asked_for(request: Request) -> Description | None:
    """The description that a request names, without its short cuts; None where it names none."""
    return None if request.dataset is None else named(request.dataset)


def of_plan(plan: Plan) -> Description:
    """The description that a plan was made by.

    Raises
    ------
    UsageError
        If what the plan has of it is none.
    """
    if plan.data_set is None:
        return built_in(PLAIN) if plan.source["kind"] == "dicom" else built_in()
    try:
        return Description.of(plan.data_set)
    except ValueError as error:
        raise UsageError(
            f"the plan's description of its data set is damaged ({error}); bring plan.json back "
            "from a copy, or build into another folder"
        ) from error


def is_bare(plan: Plan) -> bool:
    """Whether a plan states no description because nothing was joined in a plain folder."""
    data_set = built_in()
    folders = SplitFolders(data_set)
    return (
        plan.data_set is None
        and plan.source["kind"] in ("folder", "dicom")
        and not plan.class_names
        and not any(
            folders.split_of(sample.path.split("/")) or data_set.split_of_name(sample.study_id)
            for sample in plan.samples
        )
    )


def name_in(plan: Plan) -> str:
    """What the description of a plan is called."""
    return (built_in(PLAIN) if is_bare(plan) else of_plan(plan)).name


def to_record(description: Description, request: Request) -> Description | None:
    """What a plan has to hold of a description; None of what is the same without a word about it.

    Without one a plan stands for CT-RATE's, which takes a folder that is not CT-RATE's for a plain
    one: the plans that there were before there were descriptions.
    """
    implied = [built_in()]
    if request.dataset is None:
        implied.append(built_in(PLAIN))
    return None if description in implied else description


def settle(request: Request, source: Source, refs: Sequence[SampleRef], split: str) -> Description:
    """The description that a new build goes by, once its source is listed.

    A folder in which nothing is CT-RATE's is a plain one: of the tables beside its volumes those
    are joined that name them.

    Raises
    ------
    UsageError
        If a table that was named cannot be read, or names no volume.
    """
    description = source.data_set
    ids = {normal_form(ref.study_id) for ref in refs}
    is_plain = description == built_in(PLAIN)
    if isinstance(source, FolderSource) and request.dataset is None:
        is_plain = not _is_ct_rate(source, refs, split)
    if is_plain:
        description = built_in(PLAIN)
        if isinstance(source, FolderSource):
            seen = [_look_at(source, path, ids) for path in _candidates(source, request)]
            description = describe_tables(description, seen)
            source.unused_tables = _not_joined(source.unused_tables, description, seen)
    return with_short_cuts(description, request, source, ids)


def with_short_cuts(
    base: Description, request: Request, source: Source, study_ids: Collection[str]
) -> Description:
    """A description with the tables that ``--labels`` and ``--reports`` name in place of its own.

    Raises
    ------
    UsageError
        If one cannot be read, or a column is missing, or it names no volume.
    """
    named_files = {"labels": request.labels, "text": request.reports}
    root = source.place_of("") if isinstance(source, DicomSource) else None
    files = {role: _recorded(Path(path), root) for role, path in named_files.items() if path}
    if not files:
        if request.key_column is not None or request.text_columns is not None:
            raise UsageError(
                "key_column and text_columns (--key-column, --text-columns) are columns of the "
                "tables that --labels and --reports name; name one of these too"
            )
        return base
    rules = [_without(rule, [*files]) for rule in base.tables]
    for path in dict.fromkeys(files.values()):
        _, content = read_first(source.read_table, (path,)) or ("", b"")
        seen = look_at_table(path, content, study_ids, request.key_column, source.aliases)
        if seen.fault is not None:
            raise UsageError(seen.fault)
        if seen.key is None or seen.volumes == 0:
            raise UsageError(
                f"{path} names none of the {counted(len(study_ids), 'volume')}, such as "
                f"{min(study_ids, default='none')}, in {request.key_column or 'any column'}; pass "
                "--key-column with the column of their names, without folder and suffix"
            )
        text: tuple[str, ...] = ()
        if path == files.get("text"):
            text = seen.text
            if request.text_columns is not None:
                text = tuple(name.strip() for name in request.text_columns.split(","))
            if not text:
                raise UsageError(
                    f"{path} has no column that is a report's by its name; pass --text-columns "
                    f"with some of {', '.join(seen.open)[:200] or 'its columns'}"
                )
        labels = seen.labels if path == files.get("labels") else None
        if labels is not None and not labels:
            raise UsageError(
                f"{path} has no column of labels: numbers from 0 to 1, or words such as True; "
                f"it has {', '.join((*seen.text, *seen.open))[:200] or 'none beside the key'}: for "
                "other labels write a description, see `ctgpu describe`"
            )
        rules.append(
            TableRule(
                files=(path,),
                key=seen.key,
                labels=labels,
                label_words=dict(seen.words) if labels else {},
                text=text,
                patient=seen.patient if not any(r.patient for r in rules) else None,
            )
        )
    kept = tuple(rule for rule in rules if rule.roles)
    names = () if "labels" in files else base.class_names
    return msgspec.structs.replace(base, tables=kept, class_names=names)


def require_same(plan: Plan, folder: Path, request: Request) -> None:
    """Refuse a description, or a short cut, that is not what a folder was begun with.

    Raises
    ------
    MismatchError
        Naming the fields that differ.
    """
    known = built_in(PLAIN) if is_bare(plan) else of_plan(plan)
    wanted = asked_for(request)
    if plan.data_set is None and wanted == built_in():
        # Of CT-RATE, and of what was taken for it, nothing is stated.
        known = wanted
    if wanted is not None:
        # Of a plain folder the tables were recognised, and are not stated.
        fields = ("name",) if wanted == built_in(PLAIN) else wanted.__struct_fields__
        if request.labels is not None or request.reports is not None:
            # These stand in place of the description's own.
            fields = tuple(name for name in fields if name not in ("tables", "class_names"))
        differ = [name for name in fields if getattr(known, name) != getattr(wanted, name)]
        if differ:
            raise MismatchError(
                f"{folder} was begun with another description of {known.name}: "
                f"{', '.join(differ)} {'differ' if len(differ) > 1 else 'differs'} from "
                f"{wanted.name}'s now ({request.dataset}); leave --dataset out to go on with the "
                "one that the plan has kept, or build into another folder"
            )
    root = None
    if plan.source["kind"] == "dicom":
        begun = root_of(folder)
        root = request.source_path or (Path(begun) if begun is not None else None)
    for option, path in (("labels", request.labels), ("reports", request.reports)):
        if path is not None:
            file = _recorded(Path(path), root)
            _require_same_table(known, folder, request, option, Path(path), file)


def _recorded(path: Path, root: Path | None) -> str:
    """What a plan calls a table that was named; below a folder of DICOM by its place there alone.

    The names of the folders above may be a patient's.
    """
    path = Path(os.path.abspath(path)) if root is not None else path.absolute()
    if root is not None and path.is_relative_to(os.path.abspath(root)):
        return str(path.relative_to(os.path.abspath(root)))
    return str(path)


def _require_same_table(
    known: Description, folder: Path, request: Request, option: str, path: Path, file: str
) -> None:
    """Refuse a short cut that names another table, or other columns of it, than at the begin."""
    role = "labels" if option == "labels" else "text"
    rule = next((r for r in known.tables if r.files == (file,) and role in r.roles), None)
    if rule is None:
        raise MismatchError(
            f"{folder} was begun without the table {path} as its {option}; leave --{option} out "
            "to go on with it, or build into another folder"
        )
    wanted = {"key-column": (request.key_column, rule.key)}
    if option == "reports" and request.text_columns is not None:
        asked = ",".join(name.strip() for name in request.text_columns.split(","))
        wanted["text-columns"] = (asked, ",".join(rule.text))
    for flag, (now, begun) in wanted.items():
        if now not in (None, begun):
            raise MismatchError(
                f"{folder} was begun with the column {begun} of {path}, and --{flag} is {now}; "
                f"leave --{flag} out to go on with it, or build into another folder"
            )


def _without(rule: TableRule, roles: Collection[str]) -> TableRule:
    """A rule that says nothing any more of labels, or of the text."""
    nothing: dict[str, object] = {}
    if "labels" in roles:
        nothing |= {"labels": None, "label_words": {}, "label_range": None}
    if "text" in roles:
        nothing |= {"text": (), "report": None}
    return msgspec.structs.replace(rule, **nothing)


def _is_ct_rate(source: FolderSource, refs: Sequence[SampleRef], split: str) -> bool:
    """Whether anything in a folder is CT-RATE's: a folder, a table or the name of a volume."""
    data_set = built_in()
    return (
        source.listed_split is not None
        or bool(source.table_checksums(split))
        or any(data_set.split_of_name(ref.study_id) is not None for ref in refs)
    )


def _candidates(source: FolderSource, request: Request) -> list[str]:
    """Paths of the tables that lie beside the volumes, or at the top, and were not named."""
    named_files = {Path(path).resolve() for path in (request.labels, request.reports) if path}
    source.unused_tables = [
        path for path in source.unused_tables if source.place_of(path).resolve() not in named_files
    ]
    return [
        path
        for path in source.unused_tables
        if path.lower().endswith(TABLE_SUFFIXES) and not path.startswith("..")
    ]


def _not_joined(
    paths: Sequence[str], description: Description, seen: Sequence[SeenTable]
) -> list[str]:
    """The tables that nothing is taken from; what is open in the others is named here."""
    joined = {path for rule in description.tables for path in rule.files}
    for table in seen:
        if table.path in joined and table.open:
            _log.warning(
                "%s: not read: %s; labels are columns of numbers from 0 to 1 or of words such as "
                "True, and reports are called so: a description can name others (see `ctgpu "
                "describe`)",
                *(table.path, ", ".join(table.open)),
            )
        if table.path in joined and table.split is not None:
            _log.warning(
                "%s: its column %s, which may tell splits apart, is not read, so every volume is "
                "taken whichever split is asked for; a description can name it (see `ctgpu "
                "describe`)",
                *(table.path, table.split),
            )
    # Of those that cannot be read a warning of their own has said why.
    joined |= {table.path for table in seen if table.fault or table.contradicts}
    return [path for path in paths if path not in joined]


def _look_at(source: FolderSource, path: str, study_ids: Collection[str]) -> SeenTable:
    if source.place_of(path).stat().st_size > LARGEST_LOOKED_AT_BYTES:
        fault = f"{path} is too large to be looked at; name it with --labels or in a description"
        seen = SeenTable(path, fault=fault)
    else:
        _, content = source.read_table(path) or (path, b"")
        seen = look_at_table(path, content, study_ids, aliases=source.aliases)
    named = {*study_ids, *source.aliases}
    if seen.key is not None and study_id_in(seen.key) in named:
        fault = f"{path} has no line of column names, for its first line names a volume; add one"
        seen = SeenTable(path, fault=fault)
    if seen.fault is not None:
        _log.warning("%s", seen.fault)
    elif seen.contradicts is not None:
        _log.warning("%s is not joined, as it has %s; correct that", path, seen.contradicts)
    return seen
