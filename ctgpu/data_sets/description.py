"""What a data set is: where its volumes and tables lie, and what is in them.

A description is a TOML file; every field of it is a field of the class here, or of its parts in
:mod:`ctgpu.data_sets.fields`.
"""

from __future__ import annotations

import copy
import itertools
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from ctgpu.arguments import converted
from ctgpu.data_sets import globs
from ctgpu.data_sets.checks import compiled_regex, faults_of
from ctgpu.data_sets.fields import (
    ArrayRule,
    Layout,
    ListRule,
    MaskRule,
    Part,
    SplitRule,
    TableRule,
    VolumeRule,
)
from ctgpu.data_sets.globs import Found
from ctgpu.data_sets.lines import line_of
from ctgpu.errors import FetchError, UsageError, reason_of
from ctgpu.volume.ref import Provenance, strip_volume_suffix

#: The split of what has none.
DEFAULT_SPLIT = "valid"
_MOST_BYTES = 1 << 20


class Description(Part, frozen=True):
    """A data set.

    Attributes
    ----------
    name : str
        As messages and summaries call it.
    licence : str
        What its user has agreed to, in a few words.
    repository : str or None
        Where it is on the Hugging Face Hub.
    default_split : str or None
        The split to take where none is asked for; else ``"valid"``.
    class_names : tuple of str
        Names of the labels, in order.
    text_separator : str
        Between the columns of a report in its text.
    layout : Layout
    splits : dict of str to SplitRule
        By name.  Where there are none, every volume belongs to whichever split is asked for.
    volumes : VolumeRule
    arrays : ArrayRule
    masks : MaskRule or None
        Where there are masks.
    tables : tuple of TableRule
        For each role at most one.
    leave_out : tuple of ListRule
    """

    name: str
    licence: str = ""
    repository: str | None = None
    default_split: str | None = None
    class_names: tuple[str, ...] = ()
    text_separator: str = "\n"
    layout: Layout = Layout()
    splits: dict[str, SplitRule] = msgspec.field(default_factory=dict)
    volumes: VolumeRule = VolumeRule()
    arrays: ArrayRule = ArrayRule()
    masks: MaskRule | None = None
    tables: tuple[TableRule, ...] = ()
    leave_out: tuple[ListRule, ...] = ()

    @classmethod
    def load(cls, path: Path) -> Description:
        """Read a description.

        Raises
        ------
        UsageError
            If it cannot be read or is none; the message names file, line and field.
        """
        try:
            with path.open("rb") as file:
                content = file.read(_MOST_BYTES + 1)
            if len(content) > _MOST_BYTES:
                raise UsageError(
                    f"{path} has more than {_MOST_BYTES:,} bytes; it is no description"
                )
            text = content.decode("utf-8-sig")
            values = tomllib.loads(text)
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {reason_of(error)}") from error
        except UnicodeDecodeError as error:
            raise UsageError(f"{path} is not UTF-8; save it as that") from error
        # Numbers of thousands of digits and brackets within brackets fail in the parser itself.
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{path} is no TOML: {error}; correct it") from error
        try:
            return cls.of(values)
        except _Wrong as error:
            line = line_of(text, error.field)
            where = f"{path}, line {line}" if line else f"{path}"
            raise UsageError(f"{where}: {error}; docs/data_sets.md says what it takes") from error

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Description:
        """The description of some content, as :attr:`content` gives it.

        Raises
        ------
        ValueError
            If it is none; the message names the field.
        """
        try:
            description = converted(dict(content), cls)
        except ValueError as error:
            raise _Wrong(*_what_and_where(str(error), content)) from error
        for field, fault in faults_of(description):
            raise _Wrong(fault, field)
        return description

    @property
    def content(self) -> dict[str, Any]:
        """All that was stated, ready for JSON."""
        content: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self))
        return content

    @property
    def label_range(self) -> tuple[float, float] | None:
        """Lowest and highest value of a label; None where any number is one."""
        return next((t.label_range for t in self.tables if t.labels is not None), None)

    def split_asked_for(self, name: str | None) -> str:
        """The split to take.

        Raises
        ------
        UsageError
            If there is none of that name.
        """
        split = name or self.default_split or next(iter(self.splits), DEFAULT_SPLIT)
        if self.splits and split not in self.splits:
            raise UsageError(
                f"split is {split!r}; {self.name} has {', '.join(self.splits)}: pass one of these"
            )
        return split

    def alternatives(self, split: str) -> tuple[tuple[str, ...], ...]:
        """Globs of a split's volumes, and those to take where nothing fits them."""
        rule = self.splits.get(split)
        if rule is None:
            return () if self.splits else (self.volumes.paths,)
        own = rule.volumes or self.volumes.paths
        return (own, rule.fallback) if rule.fallback else (own,)

    @property
    def globs_of_volumes(self) -> tuple[str, ...]:
        """Globs of the volumes of every split."""
        every = (self.alternatives(split) for split in self.splits or [""])
        return tuple(dict.fromkeys(itertools.chain(*itertools.chain(*every))))

    def volume(self, path: str, wanted: tuple[str, ...]) -> Found | None:
        """What a path below the source says of its volume; None where it fits no glob."""
        if (found := globs.find(wanted, path)) is None and self.layout.root:
            inner = path.removeprefix(f"{self.layout.root}/")
            found = globs.find(wanted, inner) if inner != path else None
        return found

    def provenance(self, path: str) -> Provenance:
        """What a path that begins with the source's name says about the voxels of its volume."""
        if globs.find(self.volumes.hu, path) is not None:
            return "fixed"
        return "v1" if globs.find(self.volumes.needs_rescale, path) is not None else "unknown"

    def split_of_name(self, study_id: str) -> str | None:
        """The split that claims a study id wherever its file lies; None where none does."""
        return next(
            (
                name
                for name, rule in self.splits.items()
                if rule.names and compiled_regex(rule.names).fullmatch(study_id)
            ),
            None,
        )

    def scan_of(self, study_id: str) -> tuple[str, int] | None:
        """The scan that a volume is a reconstruction of, and which; None where it says nothing."""
        if self.volumes.scan is None:
            return None
        match = compiled_regex(self.volumes.scan).fullmatch(study_id)
        if match is None or not match["scan"] or not (match["recon"] or "").isdecimal():
            return None
        return match["scan"], int(match["recon"])

    def patient_of(self, study_id: str) -> str | None:
        """Whom a study id says that it shows; None where it says nothing."""
        if self.volumes.patient is None:
            return None
        match = compiled_regex(self.volumes.patient).fullmatch(study_id)
        return None if match is None else match["patient"] or None

    def mask_files(self, path: str, study_id: str) -> list[tuple[int | None, str]]:
        """The files of a volume's mask, in the order in which they are merged.

        Parameters
        ----------
        path : str
            That of the volume, below the source.
        study_id : str
            Its study id.

        Returns
        -------
        list of (int or None, str)
            The number of the label that a file is of, None where the file holds numbers, and its
            path below the source; nothing where there are no masks.

        Raises
        ------
        FetchError
            If they go by the patient, and nothing says who that is.
        """
        if self.masks is None:
            return []
        folder, _, file_name = path.rpartition("/")
        found = self.volume(path, self.globs_of_volumes)
        patient = (found and found.patient) or self.patient_of(study_id)
        if patient is None and "{patient}" in self.masks.files:
            raise FetchError(
                f"{path} has its mask at {self.masks.files}, and nothing says whom it shows; name "
                "the patient in the globs of the volumes, or in volumes.patient"
            )
        places = {
            "folder": folder,
            "name": strip_volume_suffix(file_name),
            "key": study_id,
            "patient": patient,
        }
        if "{label}" not in self.masks.files:
            return [(None, _filled(self.masks.files, places))]
        by_number = sorted((number, name) for name, number in self.masks.labels.items())
        return [
            (number, _filled(self.masks.files, places | {"label": name}))
            for number, name in by_number
        ]

    def paths(self, rule: TableRule | ListRule, split: str) -> tuple[str, ...]:
        """Paths under which a table or a list of a split may be found, best first.

        Those that are not absolute may lie without the data set's root, or without a folder.
        """
        files = rule.files
        names = files.get(split, ()) if isinstance(files, dict) else files
        root = self.layout.root
        # Of several copies the one in its own place counts, whatever its name.
        places: tuple[Callable[[str], str], ...] = (
            *((lambda name: f"{root}/{name}",) if root else ()),
            lambda name: name,
            lambda name: name.rsplit("/", 1)[-1],
        )
        return tuple(
            dict.fromkeys(
                name if name.startswith("/") else place(name) for place in places for name in names
            )
        )

    @property
    def rules_of_files(self) -> tuple[TableRule | ListRule, ...]:
        """Its tables, and then its lists."""
        return (*self.tables, *self.leave_out)

    def all_paths(self) -> frozenset[str]:
        """Paths of every table and list of any split."""
        rules = self.rules_of_files
        splits = {s for r in rules if isinstance(r.files, dict) for s in r.files} | {DEFAULT_SPLIT}
        return frozenset(
            path for rule in rules for split in splits for path in self.paths(rule, split)
        )


def _filled(template: str, places: Mapping[str, str | None]) -> str:
    """A template of paths with what its names stand for; no folder leaves nothing behind."""
    return re.sub(r"\{(\w+)\}", lambda match: places[match[1]] or "", template).removeprefix("/")


class _Wrong(ValueError):
    """What is wrong with a field of a description."""

    def __init__(self, fault: str, field: str) -> None:
        super().__init__(f"{field}: {fault}" if field else fault)
        self.field = field


def _what_and_where(message: str, content: Mapping[str, Any]) -> tuple[str, str]:
    """What `msgspec` found, apart from the field in which."""
    fault, _, where = message.partition(" - at `$")
    field = where.removesuffix("`").removeprefix(".")
    if "[...]" in field:
        field = field.replace("[...]", f".{_name_at_fault(message, field, content)}")
    of_field = re.fullmatch(r"Object (contains unknown|missing required) field `(.*)`", fault)
    if of_field is not None:
        field = f"{field}.{of_field[2]}".removeprefix(".")
        fault = "there is no such field" if of_field[1][0] == "c" else "it is missing"
    return fault.replace("`", "'").replace("object", "table"), field


def _name_at_fault(message: str, field: str, content: Mapping[str, Any]) -> str:
    """The name within a section of names, for which `msgspec` writes ``[...]``."""
    *way, section = re.findall(r"\w+", field.partition("[...]")[0])
    whole = copy.deepcopy(dict(content))
    outer: Any = whole
    for step in way:
        outer = outer[int(step) if step.isdecimal() else step]
    for name, value in outer[section].items():
        outer[section] = {name: value}
        try:
            converted(whole, Description)
        except ValueError as error:
            if str(error) == message:
                return str(name)
    return "…"
