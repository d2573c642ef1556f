"""What is wrong with a description whose fields are of the right types."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from ctgpu.data_sets import globs
from ctgpu.data_sets.fields import Files, MaskRule, SplitRule
from ctgpu.errors import UsageError
from ctgpu.printable import counted
from ctgpu.volume.orientation import AxisRules
from ctgpu.volume.ref import VOLUME_SUFFIXES

if TYPE_CHECKING:
    from ctgpu.data_sets.description import Description


# What a path of masks may be made of.
_OF_MASKS = ("folder", "name", "key", "patient", "label")


@functools.lru_cache(maxsize=256)
def compiled_regex(text: str) -> re.Pattern[str]:
    """A regular expression of a description."""
    return re.compile(text, re.DOTALL)


def faults_of(data_set: Description) -> Iterator[tuple[str, str]]:
    """Fields that are of the right type and wrong all the same, and why."""
    if not data_set.name.strip():
        yield "name", "it is empty; wanted what messages are to call the data set"
    if data_set.splits and data_set.default_split not in (None, *data_set.splits):
        yield "default_split", f"{data_set.default_split!r} is none of the splits"
    for name, split in data_set.splits.items():
        if not re.fullmatch(r"[\w.-]+", name):
            yield f"splits.{name}", "a split's name takes letters, digits, '.', '_' and '-'"
        yield from _of_globs(f"splits.{name}.volumes", split.volumes)
        yield from _of_globs(f"splits.{name}.fallback", split.fallback)
        if split.names is not None:
            yield from _of_regex(f"splits.{name}.names", split.names)
    claimed: dict[str, str] = {}
    for name, split in data_set.splits.items():
        for word in split.words or (name,):
            if (other := claimed.setdefault(word.casefold(), name)) != name:
                yield f"splits.{name}.words", f"{word!r} stands for the split {other} already"
    yield from _of_globs("volumes.paths", data_set.volumes.paths)
    yield from _of_globs("volumes.hu", data_set.volumes.hu)
    yield from _of_globs("volumes.needs_rescale", data_set.volumes.needs_rescale)
    if data_set.volumes.scan is not None:
        yield from _of_regex("volumes.scan", data_set.volumes.scan, "scan", "recon")
    if data_set.volumes.patient is not None:
        yield from _of_regex("volumes.patient", data_set.volumes.patient, "patient")
    if data_set.volumes.orientation is not None:
        try:
            AxisRules(assume_orientation=data_set.volumes.orientation)
        except UsageError as error:
            yield "volumes.orientation", str(error)
    if data_set.arrays.spacing_mm is not None and not all(
        0 < mm < float("inf") for mm in data_set.arrays.spacing_mm
    ):
        yield "arrays.spacing_mm", "wanted three numbers above 0"
    if data_set.masks is not None:
        yield from _faults_of_masks(data_set.masks)
    if len(set(data_set.class_names)) < len(data_set.class_names):
        yield "class_names", "a name stands there twice"
    yield from _faults_of_tables(data_set)


def _faults_of_masks(masks: MaskRule) -> Iterator[tuple[str, str]]:
    names = re.findall(r"\{([^{}]*)\}", masks.files)
    fixed = re.sub(r"\{[^{}]*\}", "", masks.files)
    unknown = [name for name in names if name not in _OF_MASKS]
    if unknown or "{" in fixed or "}" in fixed:
        shown = f"{{{unknown[0]}}}" if unknown else "a brace alone"
        known = ", ".join(f"{{{name}}}" for name in _OF_MASKS)
        yield "masks.files", f"{masks.files!r} says {shown}; it takes {known}"
    elif masks.files.startswith("/") or ".." in masks.files.split("/"):
        yield "masks.files", f"{masks.files!r} leads out of the source; write it relative to that"
    elif not {"folder", "name", "key", "patient"}.intersection(names):
        yield "masks.files", f"{masks.files!r} is the same for every volume; say {{key}} in it"
    elif not masks.files.lower().endswith(VOLUME_SUFFIXES):
        suffixes = ", ".join(VOLUME_SUFFIXES)
        yield "masks.files", f"{masks.files!r} ends in no suffix of volumes: {suffixes}"
    if "label" in names and not masks.labels:
        yield "masks.labels", "files has {label} in it, and there are none"
    for name, number in masks.labels.items():
        if not 1 <= number <= 65535:
            yield f"masks.labels.{name}", f"{number} is no number of a label; wanted 1 to 65535"
            return
        if not name.strip() or ("label" in names and ("/" in name or name == "..")):
            yield "masks.labels", f"{name!r} is no name of a label"
    try:
        masks.format.check()
    except ValueError as error:
        yield "masks.labels", str(error)


def _faults_of_tables(data_set: Description) -> Iterator[tuple[str, str]]:
    seen: dict[str, int] = {}
    for place, table in enumerate(data_set.tables):
        field = f"tables[{place}]"
        yield from _of_files(f"{field}.files", table.files, data_set.splits)
        if not table.roles:
            yield f"{field}.files", "nothing is said about its columns, such as labels or text"
        for role in table.roles:
            if (
                role not in ("columns to carry", "other names")
                and seen.setdefault(role, place) != place
            ):
                yield f"{field}", f"tables[{seen[role]}] states {role} too; one table may"
        if table.labels == "classes" and not data_set.class_names:
            yield f"{field}.labels", "it is 'classes', and the data set has no class_names"
        if (
            isinstance(table.labels, tuple)
            and data_set.class_names
            and len(table.labels) != len(data_set.class_names)
        ):
            columns = counted(len(table.labels), "column")
            fault = f"{columns} for class_names of {len(data_set.class_names)}"
            yield f"{field}.labels", fault
        if table.labels == "rest" and data_set.class_names:
            yield (
                f"{field}.labels",
                "it is 'rest', whose names are its header's: no class_names",
            )
        if not all(table.keys) or not table.keys:
            yield f"{field}.key", "it names no column"
        if table.through is not None and table.through not in {
            name for other in data_set.tables if other is not table for name in other.other_names
        }:
            yield f"{field}.through", f"no other table has {table.through!r} in other_names"
        if table.through is not None and table.other_names:
            yield f"{field}.through", "a table with other_names names volumes by their own"
        if len(table.spacing_mm) > 3:
            yield f"{field}.spacing_mm", "wanted one to three columns"
        low, high = table.label_range or (0, 1)
        if not (low < high and math.isfinite(high - low)):
            yield f"{field}.label_range", "wanted the lowest and then the highest value"
        for word, value in table.label_words.items():
            if value != "unknown" and not math.isfinite(value):
                yield f"{field}.label_words.{word}", "wanted a number, or 'unknown'"
        if table.report is not None and not table.text:
            yield f"{field}.report", "it keeps columns of a report, and text names none"
        if table.labels == table.report == "rest":
            yield f"{field}.report", "labels is 'rest' too; name the columns of one of them"
    for place, listed in enumerate(data_set.leave_out):
        yield from _of_files(f"leave_out[{place}].files", listed.files, data_set.splits)


def _of_regex(field: str, text: str, *groups: str) -> Iterator[tuple[str, str]]:
    try:
        found = compiled_regex(text).groupindex
    except (re.error, RecursionError, OverflowError) as error:
        yield field, f"{text[:60]!r} is no regular expression: {error}"
        return
    for group in groups:
        if group not in found:
            yield field, f"{text!r} has no group {group}; write it as (?P<{group}>…)"


def _of_globs(field: str, patterns: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for glob in patterns:
        try:
            globs.compiled(glob)
        except ValueError as error:
            yield field, str(error)


def _of_files(
    field: str, files: Files, splits: Mapping[str, SplitRule]
) -> Iterator[tuple[str, str]]:
    for split, names in files.items() if isinstance(files, dict) else [(None, files)]:
        if split is not None and splits and split not in splits:
            yield f"{field}.{split}", "there is no such split"
        for name in names:
            if not name or ".." in name.split("/") or "\0" in name:
                yield field, f"{name!r} is no path below the source, nor a whole one"
    if not files:
        yield field, "it names no file"
