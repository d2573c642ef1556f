"""A first description of a folder or a repository that nobody has described."""

from __future__ import annotations

import contextlib
import itertools
import os
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Literal

import numpy as np

from ctgpu.buffers import BufferPool, Bytes
from ctgpu.building.described import LARGEST_LOOKED_AT_BYTES
from ctgpu.building.seen_paths import describe_paths, ids_of
from ctgpu.building.seen_tables import add_tables
from ctgpu.data_sets import BUILT_IN, PLAIN, Description, built_in, path_of_built_in
from ctgpu.data_sets.description import DEFAULT_SPLIT
from ctgpu.data_sets.fields import ArrayRule, VolumeRule
from ctgpu.data_sets.writing import Draft, field_line
from ctgpu.decode import MAX_VOLUME_BYTES
from ctgpu.decode.npy import HEAD_BYTES, read_header
from ctgpu.decode.npz import VOLUME_NAMES, arrays_in, locate_voxels
from ctgpu.errors import DecodeError, FetchError, SourceError, UsageError
from ctgpu.printable import counted
from ctgpu.shards.names import natural_key
from ctgpu.sources import source_kind
from ctgpu.sources.base import Source
from ctgpu.sources.dicom.walk import holds_dicom
from ctgpu.sources.folder import FolderSource
from ctgpu.sources.hub.source import HubSource
from ctgpu.sources.table_files import TABLE_SUFFIXES
from ctgpu.volume.ref import VOLUME_SUFFIXES, SampleRef

_MOST_TABLES = 40
# What is fetched from the Hub only to be looked at.
_MOST_FETCHED_BYTES = 64 << 20
_MOST_FILES_COUNTED = 10_000
_SHOWN = 4
_VOLUMES = f"{', '.join(VOLUME_SUFFIXES[:-1])} or {VOLUME_SUFFIXES[-1]}"
_OTHER_TABLES = (".xls", ".json", ".jsonl")


@dataclass(frozen=True, slots=True)
class _Files:
    """What a source has, with sizes in bytes.

    Attributes
    ----------
    volumes, tables : dict of str to int
        In natural order of the paths; of tables, those at the top first.
    others : list of str
        What may be tables of kinds that are not read.
    """

    volumes: dict[str, int]
    tables: dict[str, int]
    others: list[str]


def describe(
    source: str | PathLike[str] | None = None,
    *,
    repo_id: str | None = None,
    revision: str | None = None,
    token: str | Literal[False] | None = None,
    endpoint: str | None = None,
    file_name: str = "my-data.toml",
) -> str:
    """A first description of a data set, as TOML with remarks on what is left open.

    Parameters
    ----------
    source : path, optional
        A folder of volumes, with or without tables.
    repo_id, revision : str, optional
        A data set on the Hub instead, and its branch, tag or commit.
    token, endpoint : optional
        Of the Hub; default from the environment or the login.
    file_name : str
        Where it will be saved, for the commands in its last lines.

    Returns
    -------
    str
        What ``--dataset`` takes once it is saved.

    Raises
    ------
    UsageError
        If there is no such folder or repository, or no volume in it.
    AccessError, SourceError
        If it cannot be looked at.
    """
    if (source is None) == (repo_id is None):
        raise UsageError("name a folder, or a data set on the Hub with --repo-id; one of the two")
    if source is not None and revision is not None:
        raise UsageError("--revision is of a data set on the Hub, and a folder was named")
    opened: FolderSource | HubSource
    if source is not None:
        _require_folder(Path(source))
        opened = FolderSource(Path(source), data_set=built_in(PLAIN))
    else:
        opened = HubSource(
            str(repo_id), revision, token=token, endpoint=endpoint, data_set=built_in(PLAIN)
        )
    with contextlib.closing(opened):
        files = _files_on_hub(opened) if isinstance(opened, HubSource) else _files_in(opened)
        name = repo_id or _printable_name(os.path.basename(os.path.abspath(source or ".")))
        draft = Draft(Description(name=name, repository=repo_id))
        known = _known_as(files)
        _say_what_it_is(draft, files.volumes, known)
        describe_paths(draft, [*files.volumes])
        _describe_arrays(draft, opened, files.volumes)
        _describe_tables(draft, opened, files)
    _offer_fields_at_top(draft)
    where = (
        f"--source {_in_shell(source)}" if source is not None else f"--repo-id {_in_shell(repo_id)}"
    )
    if revision is not None:
        where += f" --revision {_in_shell(revision)}"
    draft.offer("end", *_how_to_go_on(draft, where, source, file_name, known))
    return draft.to_toml()


def built_in_file(name: str) -> str | None:
    """The description that ctgpu has under a name, as it is written; None where it has none."""
    return path_of_built_in(name).read_text("utf-8") if name in BUILT_IN else None


def _require_folder(path: Path) -> None:
    if source_kind(path) == "tars":
        raise UsageError(
            f"{path} is the tars of a WebDataset, whose samples hold their labels and reports: "
            "`ctgpu convert` takes them without a description"
        )
    if not path.is_dir():
        what = "is a file and not a folder" if path.exists() else "is not a folder"
        raise UsageError(f"{path} {what}; pass the folder that holds the volumes")


def _files_in(source: FolderSource) -> _Files:
    """What a folder has: tables wherever they lie, for a description can name them there."""
    root = source.place_of("")
    try:
        volumes = {ref.path: ref.size_bytes for ref in source.list_volumes(DEFAULT_SPLIT)}
    except UsageError:
        raise UsageError(_nothing_in(root)) from None
    beside = {path: source.place_of(path) for path in source.unused_tables}
    below = {
        path: root / path for path in _names_below(root) if path.lower().endswith(TABLE_SUFFIXES)
    }
    sizes = {}
    for path, place in (beside | below).items():
        with contextlib.suppress(OSError):
            sizes[path] = place.stat().st_size
    return _sorted_files(volumes, sizes)


def _files_on_hub(source: HubSource) -> _Files:
    sizes = {path: size for path, size in source.list_files().items() if not _is_hidden(path)}
    volumes = {path: n for path, n in sizes.items() if path.lower().endswith(VOLUME_SUFFIXES)}
    if not volumes:
        raise UsageError(
            f"{source.identity()['location']} has no {_VOLUMES} file among its {len(sizes)}; "
            "ctgpu reads these"
        )
    return _sorted_files(volumes, sizes)


def _sorted_files(volumes: Mapping[str, int], sizes: Mapping[str, int]) -> _Files:
    own = {f"{path.rpartition('.')[0].removesuffix('.nii')}.json" for path in volumes}
    tables = [path for path in sizes if path.lower().endswith(TABLE_SUFFIXES)]
    others = [p for p in sizes if p.lower().endswith(_OTHER_TABLES) and p not in own]
    tables.sort(key=_shallow_first)
    others.sort(key=_shallow_first)
    return _Files(
        {path: volumes[path] for path in sorted(volumes, key=natural_key)},
        {path: sizes[path] for path in tables},
        others,
    )


def _shallow_first(path: str) -> tuple[object, ...]:
    return path.count("/"), natural_key(path)


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/"))


def _names_below(root: Path) -> Iterator[str]:
    """Paths of the files below a folder that are not hidden; links to folders are not followed."""
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inner = os.path.relpath(folder, root)
        for name in names:
            if not name.startswith("."):
                yield name if inner == "." else f"{inner}/{name}"


def _nothing_in(root: Path) -> str:
    """What to say of a folder without volumes."""
    found = list(itertools.islice(_names_below(root), _MOST_FILES_COUNTED))
    if not found:
        return f"{root} is empty; pass the folder that holds the volumes, {_VOLUMES} files"
    kinds = Counter(os.path.splitext(name)[1].lower() or "without suffix" for name in found)
    said = ", ".join(f"{n} {kind}" for kind, n in kinds.most_common(_SHOWN))
    way_out = "pass the folder that holds the volumes"
    if not kinds.keys() - set(TABLE_SUFFIXES):
        way_out = "a description begins with them, and tables alone are none; bring them there"
    elif holds_dicom(root):
        way_out = "`ctgpu build --source` takes series of DICOM as they are, without a description"
    return f"{root} has no {_VOLUMES} file anywhere below it, only {said}; {way_out}"


def _printable_name(name: str) -> str:
    """What to call a data set, after its folder."""
    clean = "".join(c if c.isprintable() else "_" for c in name).strip()
    return clean or "my data"


def _known_as(files: _Files) -> str | None:
    """The built-in description of a data set that this is, by its folders, names or tables."""
    names = [SampleRef.of_file(path, 0).study_id for path in files.volumes]
    for known in BUILT_IN:
        data_set = built_in(known)
        telling = set(data_set.layout.telling)
        if any(not telling.isdisjoint(path.split("/")[:-1]) for path in files.volumes):
            return known
        if all(data_set.split_of_name(name) is not None for name in names):
            return known
        # Names of tables that others would hardly choose.
        named = not telling and not data_set.all_paths().isdisjoint(files.tables)
        if named and any(_fits(data_set, path) for path in files.volumes):
            return known
    return None


def _fits(data_set: Description, path: str) -> bool:
    """Whether a path is that of a volume of a data set, in whichever split."""
    return data_set.volume(path, data_set.globs_of_volumes) is not None


def _say_what_it_is(draft: Draft, volumes: Mapping[str, int], known: str | None) -> None:
    number = counted(len(volumes), "volume")
    draft.say("", f"A first description of {number}, such as {next(iter(volumes))}.")
    draft.say(
        "",
        "Read the lines that begin with #, correct what is beside them, save this file and pass "
        "its name to --dataset.  docs/data_sets.md has every field.",
    )
    if known is not None:
        draft.say(
            "",
            f"This looks like {built_in(known).name}, which ctgpu knows: pass --dataset {known} in "
            f"place of this file.  `ctgpu describe {known}` shows what is known of it.",
        )


def _describe_arrays(draft: Draft, source: Source, volumes: Mapping[str, int]) -> None:
    """What the first bare array says, and what it does not."""
    path = next((path for path in volumes if path.lower().endswith((".npz", ".npy"))), None)
    if path is None:
        return
    try:
        with contextlib.ExitStack() as stack:
            data = _bytes_of(source, path, volumes[path], stack)
            if data is not None:
                _describe_array(draft, path, data)
                return
    except (DecodeError, FetchError, OSError, ValueError) as error:
        draft.say("arrays", f"{path} cannot be looked at: {error}")
        return
    draft.say(
        "arrays",
        f"{path} was not fetched to be looked at, for it has {volumes[path] >> 20:,} MiB.  State "
        "what such files do not say of themselves: the array's name, its axes and the size of a "
        "voxel along H, W and D:",
    )
    draft.offer("arrays", 'member = "ct"', 'axes = "DHW"', "spacing_mm = [0.8, 0.8, 0.8]")


def _bytes_of(
    source: Source, path: str, size_bytes: int, stack: contextlib.ExitStack
) -> Bytes | None:
    """A file as it is; None where it is too large to be fetched for a look."""
    if isinstance(source, FolderSource):
        place = source.place_of(path)
        return np.memmap(place, np.uint8, "c") if place.stat().st_size else np.empty(0, np.uint8)
    if size_bytes > _MOST_FETCHED_BYTES:
        return None
    fetched = source.fetch(SampleRef.of_file(path, size_bytes), BufferPool().acquire)
    stack.callback(fetched.release)
    return fetched.buffer.bytes


def _describe_array(draft: Draft, path: str, data: Bytes) -> None:
    if path.lower().endswith(".npy"):
        shape = read_header(path, data[:HEAD_BYTES].tobytes()).shape
        if len(shape) == 3:
            _guess_axes(draft, path, shape)
            _ask_for_spacing(draft, path)
        else:
            draft.say("arrays", f"{path} has not three axes, as a volume has: it will fail.")
        return
    arrays = arrays_in(path, data)
    held = ", ".join(f"{name} {shape} {dtype}" for name, (shape, dtype) in arrays.items())
    three = {name: shape for name, (shape, _) in arrays.items() if len(shape) == 3}
    member = next((n for n in VOLUME_NAMES if len(arrays.get(n, ((),))[0]) >= 3), None)
    if member is None and len(three) == 1:
        member = next(iter(three))
    draft.say("arrays", f"{path} holds {held}.")
    if not three:
        draft.say("arrays", "None has three axes, as a volume has: such files will fail.")
        return
    if member is None:
        draft.say("arrays", "Several may be the volume; name the one that is:")
        draft.offer("arrays", field_line("member", next(iter(three))))
    elif len(three) > 1 and member in three:
        draft.say("arrays", f"{member} is taken by its name; for another one:")
        draft.offer("arrays", field_line("member", next(n for n in three if n != member)))
    if member is not None and member not in three:
        draft.say("arrays", f"{member}, which is taken by its name, has not three axes; name one:")
        draft.offer("arrays", field_line("member", next(iter(three))))
        member = None
    shapes = {three[member]} if member is not None else set(three.values())
    if len(shapes) == 1:
        _guess_axes(draft, path, shapes.pop())
    if member is not None:
        _look_for_spacing(draft, path, data, member)


def _guess_axes(draft: Draft, path: str, shape: tuple[int, ...]) -> None:
    """State the order of axes that a shape suggests; (H, W, D), which is the default, in words."""
    axis = _axis_of_slices(shape)
    if axis is None:
        draft.say("arrays", f"The shape {shape} does not tell which axis is which: check.")
        draft.offer("arrays", 'axes = "HWD"')
        return
    axes = {0: "DHW", 1: "HDW", 2: "HWD"}[axis]
    if axis != 2:
        draft.change(arrays=ArrayRule(axes=axes))  # type: ignore[arg-type]
    draft.say("arrays", f"The axes are guessed from the shape {shape} of {path}: check.")
    if axis == 2:
        draft.offer("arrays", 'axes = "HWD"')


def _axis_of_slices(shape: tuple[int, ...]) -> int | None:
    """The axis that differs from two of one length, or else the shortest; None where none does."""
    for axis in range(3):
        one, other = (n for k, n in enumerate(shape) if k != axis)
        if one == other != shape[axis]:
            return axis
    return shape.index(min(shape)) if len(set(shape)) == 3 else None


def _look_for_spacing(draft: Draft, path: str, data: Bytes, member: str) -> None:
    try:
        facts = locate_voxels(path, data, MAX_VOLUME_BYTES, member).facts
    except DecodeError as error:
        draft.say("arrays", f"A build will refuse it: {error}.")
        return
    if facts.get("spacing_mm") is None:
        _ask_for_spacing(draft, path)


def _ask_for_spacing(draft: Draft, path: str) -> None:
    draft.say(
        "arrays",
        f"{path} does not say how large a voxel is.  It must be stated: by a table, or here "
        "for all volumes, along H, W and D:",
    )
    draft.offer("arrays", "spacing_mm = [0.8, 0.8, 0.8]")


def _describe_tables(draft: Draft, source: Source, files: _Files) -> None:
    on_hub = isinstance(source, HubSource)
    largest = _MOST_FETCHED_BYTES if on_hub else LARGEST_LOOKED_AT_BYTES

    def read(path: str) -> bytes | str:
        if files.tables[path] > largest:
            mib = files.tables[path] >> 20
            return f"{path} was not looked at, for it has {mib:,} MiB."
        try:
            _, content = source.read_table(path) or (path, b"")
        except SourceError as error:
            if on_hub:
                raise
            return f"{error}."
        return content

    paths = [*files.tables]
    ids = ids_of(draft.description, [*files.volumes])
    add_tables(draft, paths[:_MOST_TABLES], read, ids)
    if more := paths[_MOST_TABLES:]:
        number = counted(len(more), "more table was", "more tables were")
        draft.say("tables", f"{number} not looked at, such as {more[0]}.")
    if files.others:
        draft.say(
            "tables",
            "Not looked at, for they are no CSV, TSV, .xlsx or Parquet: "
            f"{_shortened(files.others)}.",
        )


def _offer_fields_at_top(draft: Draft) -> None:
    data_set = draft.description
    draft.say("top", "What its users have agreed to, in a few words:")
    draft.offer("top", field_line("licence", "research only; not to be passed on"))
    if data_set.splits:
        draft.say("top", "The split to take where no --split is given:")
        draft.offer("top", field_line("default_split", next(iter(data_set.splits))))
    labels = next((rule.labels for rule in data_set.tables if rule.labels), None)
    if isinstance(labels, tuple):
        draft.say("top", "Names of the labels, in the order of their columns:")
        draft.offer("top", field_line("class_names", list(labels)))


def _how_to_go_on(
    draft: Draft,
    where: str,
    source: str | PathLike[str] | None,
    file_name: str,
    known: str | None,
) -> Iterator[str]:
    if known is not None:
        yield f"ctgpu build {where} --dataset {known} --output-dir shards"
        yield "or, by this file:"
    else:
        yield f"To go on, save this as {file_name} and run"
    yield f"ctgpu build {where} --dataset {_in_shell(file_name)} --output-dir shards"
    data_set = draft.description
    is_plain = (data_set.volumes, data_set.arrays, data_set.splits) == (
        VolumeRule(),
        ArrayRule(),
        {},
    )
    labels = next((rule for rule in data_set.tables if rule.labels), None)
    reports = next((rule for rule in data_set.tables if rule.text), None)
    if source is None or known or not is_plain or (labels is None and reports is None):
        return
    words: list[str] = []
    for flag, rule in (("--labels", labels), ("--reports", reports)):
        if rule is not None:
            words += [flag, os.path.join(source, str(rule.files[0]))]  # type: ignore[index]
    keys = {str(rule.key) for rule in (labels, reports) if rule is not None}
    if len(keys) == 1:
        words += ["--key-column", keys.pop()]
    # A comma parts two columns there; without the option they are recognised, as they were here.
    if reports is not None and not any("," in name for name in reports.text):
        words += ["--text-columns", ",".join(reports.text)]
    yield "or, without a file:"
    yield f"ctgpu build {where} {' '.join(map(_in_shell, words))} --output-dir shards"


def _in_shell(word: str | PathLike[str] | None) -> str:
    """A word as a shell takes it back from a line of text."""
    text = os.fspath(word or "")
    if text.isprintable():
        return shlex.quote(text)
    escaped = "".join(c if c.isprintable() and c not in "\\'" else _octal(c) for c in text)
    return f"$'{escaped}'"


def _octal(character: str) -> str:
    return "".join(f"\\{byte:03o}" for byte in os.fsencode(character))


def _shortened(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
