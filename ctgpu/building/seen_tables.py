"""What tables say of the volumes of a first description: rules, and remarks on what stays open."""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence

import msgspec

from ctgpu.building.seen_paths import SPLIT_WORDS
from ctgpu.data_sets.fields import SplitRule, TableRule, VolumeRule
from ctgpu.data_sets.globs import glob_of_name
from ctgpu.data_sets.writing import Draft, field_line
from ctgpu.printable import counted
from ctgpu.sources.cells import is_blank
from ctgpu.sources.recognition import SeenTable, describe_tables, look_at_table
from ctgpu.sources.table import study_id_in
from ctgpu.sources.table_files import rows_of

#: Reads a table by its path; a text is why it cannot be.
ReadTable = Callable[[str], bytes | str]

_SPACING_WORDS = ("spacing", "thickness", "voxel")
_SHOWN = 12
_EXAMPLES = 3
# Of so many rows and names those are sought that may mean the same.
_SAMPLE_ROWS = 2000
_SAMPLE_NAMES = 20
_SAMPLE_COLUMNS = 200


def add_tables(draft: Draft, paths: Sequence[str], read: ReadTable, ids: Mapping[str, str]) -> None:
    """Rules of the tables that name volumes, and remarks on the others.

    Parameters
    ----------
    draft : Draft
        Gets them.
    paths : sequence of str
        Of the tables.
    read : callable
        Gives the bytes of one.
    ids : mapping of str to str
        The study id of each volume, in normal form, and its path.
    """
    seen: list[SeenTable] = []
    lists: list[str] = []
    texts: list[str] = []
    words: dict[str, _Splits] = {}
    for path in paths:
        content = read(path)
        if isinstance(content, str):
            draft.say("tables", content)
            continue
        one = look_at_table(path, content, ids.keys())
        if one.fault is not None:
            draft.say("tables", one.fault)
        elif (kind := _without_header(one, content, ids)) is not None:
            if kind == "list":
                lists.append(path)
            else:
                draft.say("tables", kind)
        elif one.key is None:
            _say_of_stranger(draft, one, content, ids, texts)
        else:
            seen.append(one)
            if one.split is not None:
                words[path] = _Splits(one, content, ids.keys())
    draft.description = describe_tables(draft.description, seen)
    _take_splits(draft, seen, words)
    _say_of_rules(draft, seen, ids, words)
    _say_of_unused(draft, seen, ids)
    if texts:
        draft.say("tables", f"In these texts no volume is named: {_shortened(texts)}.")
    if not draft.description.tables and "tables" not in draft.remarks:
        draft.say("tables", "No table was found.  One is described like this:")
        draft.offer("tables", "[[tables]]", field_line("files", ["labels.csv"]))
        draft.offer("tables", field_line("key", "file"), field_line("labels", "rest"))
    _offer_lists(draft, lists)


def _without_header(seen: SeenTable, content: bytes, ids: Mapping[str, str]) -> str | None:
    """``"list"`` where a file is a list of volumes, or what to say of a table without a header."""
    if seen.key is None and not seen.open:
        return None
    header = [name.strip() for name in _first_rows(seen.path, content, 1)[0]]
    named = [name for name in header if study_id_in(name) in ids]
    if len(header) == 1 and (named or seen.key is not None):
        return "list"
    if named:
        return (
            f"{seen.path} has no line of column names, for its first line names the volume "
            f"{named[0]}: put a line such as file,label_1,label_2 before it."
        )
    return None


def _first_rows(path: str, content: bytes, number: int) -> list[list[str]]:
    rows = rows_of(path, content, "replace")
    return [cells for _, cells in itertools.islice(rows, number)]


def _say_of_stranger(
    draft: Draft, seen: SeenTable, content: bytes, ids: Mapping[str, str], texts: list[str]
) -> None:
    """A table in which no column names a volume: the column that comes closest, and why not.

    What is rather a text, such as a licence, is only added to `texts`.
    """
    path = seen.path
    if not seen.open:
        draft.say("tables", f"{path} has no columns.")
        return
    header, *rows = _first_rows(path, content, _SAMPLE_ROWS + 1)
    is_text = path.lower().endswith(".txt")
    if not seen.rows:
        if is_text and rows:
            texts.append(path)
            return
        what = "rows as wide as its header" if rows else "rows below its header"
        draft.say("tables", f"{path} has no {what}: {_shortened(seen.open)}.")
        return
    columns = {
        name.strip(): list(
            dict.fromkeys(
                study_id_in(cells[place])
                for cells in rows
                if len(cells) > place and not is_blank(cells[place])
            )
        )
        for place, name in enumerate(header[:_SAMPLE_COLUMNS])
        if name.strip()
    }
    some_ids = list(ids)[:_SAMPLE_NAMES]
    closest = max(columns, key=lambda name: _closeness(columns[name], some_ids))
    cells = columns[closest]
    if is_text and not _closeness(cells, some_ids)[0]:
        texts.append(path)
        return
    draft.say(
        "tables",
        f"{path}: no column names a volume.  The closest is {closest}, with cells such as "
        f"{_quoted(cells)}, and volumes are called {_quoted(some_ids)}.  It has "
        f"{counted(seen.rows, 'row')} and the columns {_shortened(seen.open)}.",
    )
    _offer_part_of_name(draft, path, closest, cells, ids)


def _closeness(cells: Sequence[str], ids: Sequence[str]) -> tuple[int, int]:
    """How many volumes have a name like that of a cell; of as many, how many cells differ."""
    bare = {squeezed for cell in cells if (squeezed := _squeezed(cell))}
    like = sum(
        any(
            one == cell or (min(len(one), len(cell)) > 2 and (cell in one or one in cell))
            for cell in bare
        )
        for one in map(_squeezed, ids)
    )
    return like, len(cells)


def _squeezed(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).casefold()


def _offer_part_of_name(
    draft: Draft, path: str, column: str, cells: Collection[str], ids: Mapping[str, str]
) -> None:
    """A glob that takes the part of names that is the same as a table's cells, if there is one."""
    some = dict(itertools.islice(ids.items(), _SAMPLE_NAMES))
    around: dict[tuple[str, str], set[str]] = defaultdict(set)
    for study_id in some:
        for cell in cells:
            if len(cell) > 1 and cell in study_id:
                before, _, after = study_id.partition(cell)
                around[before, after].add(study_id)
    if not around:
        return
    (before, after), fitting = max(around.items(), key=lambda item: len(item[1]))
    if len(fitting) < 2 or len(fitting) * 2 < len(some):
        return
    draft.say(
        "tables",
        f"Cells of {column} are names of volumes without "
        f"{' and '.join(repr(part) for part in (before, after) if part)}: let {{key}} in a glob "
        "take that part of a name.",
    )
    example = some[min(fitting)].rsplit("/", 1)[-1]
    stem = min(fitting)
    is_default = draft.description.volumes == VolumeRule() and not draft.description.splits
    if is_default and example.startswith(stem):
        draft.say("volumes", f"To name volumes as {path} does, in its column {column}:")
        ends = sorted({p.rsplit("/", 1)[-1][len(stem) :] for s, p in some.items() if s == stem})
        globs = [f"**/{glob_of_name(before)}{{key}}{glob_of_name(after)}{end}" for end in ends]
        draft.offer("volumes", field_line("paths", globs))


class _Splits:
    """What the column of splits says of the volumes."""

    def __init__(self, seen: SeenTable, content: bytes, ids: Collection[str]) -> None:
        lines = rows_of(seen.path, content, "replace")
        header = [name.strip() for name in next(lines)[1]]
        key, place = header.index(str(seen.key)), header.index(str(seen.split))
        said: dict[str, set[str]] = defaultdict(set)
        for _, cells in lines:
            if len(cells) != len(header) or is_blank(cells[place]):
                continue
            if (study_id := study_id_in(cells[key])) in ids:
                said[study_id].add(cells[place].strip())
        #: Volumes by word, the usual first.
        self.words = Counter(word for words in said.values() for word in words)
        self.contradicting = [study_id for study_id, words in said.items() if len(words) > 1]
        self.volumes = len(said)

    def rules(self) -> dict[str, SplitRule]:
        """A split for each word, or for those that mean the same."""
        by_name: dict[str, dict[str, str]] = {}
        for word in sorted(self.words):
            folded = word.casefold()
            name = SPLIT_WORDS.get(folded) or re.sub(r"[^\w.-]+", "_", word.lower())
            while folded not in SPLIT_WORDS and name in by_name and folded not in by_name[name]:
                # Of two words that look alike as names, each is a split of its own.
                name += "_"
            by_name.setdefault(name, {}).setdefault(folded, word)
        return {
            name: SplitRule(words=() if list(words) == [name.casefold()] else tuple(words.values()))
            for name, words in by_name.items()
        }


def _take_splits(draft: Draft, seen: Sequence[SeenTable], words: Mapping[str, _Splits]) -> None:
    """Splits as a column tells them, of the table that knows most volumes."""
    usable = [one for one in seen if one.path in words and words[one.path].words]
    usable.sort(key=lambda one: -one.volumes)
    if not usable:
        return
    if draft.description.splits:
        for one in usable:
            said = _shortened(sorted(words[one.path].words))
            draft.say(
                "splits",
                f"{one.path} has a column {one.split} of {said}; the splits above are those of the "
                "folders.",
            )
        return
    first = usable[0]
    told = words[first.path]
    tables = list(draft.description.tables)
    place = next((k for k, r in enumerate(tables) if r.files == (first.path,)), None)
    # Rows that differ in their split alone would fail what else the table says.
    if place is not None and not told.contradicting:
        tables[place] = msgspec.structs.replace(tables[place], split=first.split)
    else:
        tables.append(TableRule(files=(first.path,), key=str(first.key), split=first.split))
    draft.change(splits=told.rules(), tables=tuple(tables))


def _say_of_splits(draft: Draft, place: str, said: _Splits, ids: Collection[str]) -> None:
    words = [f"{word!r} of {counted(n, 'volume')}" for word, n in said.words.most_common(_SHOWN)]
    draft.say(place, f"Splits: {', '.join(words)}.")
    if missing := len(ids) - said.volumes:
        there = counted(missing, "volume has", "volumes have")
        draft.say(place, f"{there} no word there, and no split.")
    if several := said.contradicting:
        there = counted(len(several), "volume has", "volumes have")
        draft.say(place, f"{there} rows of several splits, such as {several[0]}, and no split.")


def _say_of_rules(
    draft: Draft,
    seen: Sequence[SeenTable],
    ids: Mapping[str, str],
    words: Mapping[str, _Splits],
) -> None:
    """Below each table what it has besides, and how much of the volumes it knows."""
    by_path = {one.path: one for one in seen}
    rules = draft.description.tables
    for number, rule in enumerate(rules):
        place = f"tables[{number}]"
        one = by_path[rule.files[0]]  # type: ignore[index]
        if rule.split is not None:
            _say_of_splits(draft, place, words[one.path], ids.keys())
            if rule.roles == ("splits",) and any(r.files == rule.files for r in rules[:number]):
                continue
        draft.say(place, _coverage(one, ids))
        has = {*(rule.labels or ()), *rule.text, *filter(None, [rule.patient, rule.split])}
        _say_of_the_rest(draft, place, one, has)


def _coverage(seen: SeenTable, ids: Mapping[str, str]) -> str:
    volumes = counted(len(ids), "volume has", "volumes have")
    of = f"{seen.volumes} of {volumes} a row, and the table has {seen.rows}."
    if seen.volumes == len(ids):
        return of
    return (
        f"{of}  The others become samples with labels of NaN and an empty report; if they should "
        f"have a row, hold the column {seen.key} against names such as {_quoted(list(ids))}."
    )


def _say_of_the_rest(draft: Draft, place: str, seen: SeenTable, has: Collection[str]) -> None:
    """What a table has that its rule does not take, as fields to be had."""
    for name, columns in (("labels", seen.labels), ("text", seen.text)):
        if columns and set(columns).isdisjoint(has):
            other = _rule_with(draft, name)
            draft.say(
                place,
                f"Its {name} are left to {other}, for one table alone states them.  To have these "
                "in their place, take them out there and state here:",
            )
            draft.offer(place, field_line(name, list(columns)))
    if seen.patient is not None and seen.patient not in has:
        draft.say(place, f"Its patients are left to {_rule_with(draft, 'patient')}.")
    if seen.split is not None and seen.split not in has:
        draft.say(place, f"Its column {seen.split}, which may tell splits apart, is not used.")
    if sizes := _sizes(seen):
        draft.say(place, "These columns may be the size of a voxel, where files do not state it:")
        draft.offer(place, field_line("spacing_mm", sizes))
    if left := [name for name in seen.open if name not in sizes]:
        draft.say(place, f"Nothing is known of: {_shortened(left)}.")
        draft.say(place, "Columns that are to go along in each sample's JSON:")
        draft.offer(place, field_line("carry", left[:3]))


def _rule_with(draft: Draft, field: str) -> str:
    """The file of the table that states something."""
    rules = draft.description.tables
    return next((str(rule.files[0]) for rule in rules if getattr(rule, field)), "no table")  # type: ignore[index]


def _sizes(seen: SeenTable) -> list[str]:
    """Columns that may hold the size of a voxel: of rows and columns before that of slices."""
    found = [n for n in seen.open if any(word in n.casefold() for word in _SPACING_WORDS)]
    found.sort(key=lambda name: bool(re.search(r"slice|thickness|z[ _-]?(?:spac|vox)", name, re.I)))
    return found[:3]


def _say_of_unused(draft: Draft, seen: Sequence[SeenTable], ids: Mapping[str, str]) -> None:
    """Tables that name volumes and of which nothing is taken."""
    taken = {rule.files for rule in draft.description.tables}
    for one in seen:
        if (one.path,) in taken:
            continue
        if one.contradicts is not None:
            draft.say(
                "tables", f"{one.path} is not joined, as it has {one.contradicts}; correct that."
            )
            continue
        if not (one.labels or one.text or one.patient or one.split or one.open):
            draft.say("tables", f"{one.path} names volumes, and says nothing of them.")
            continue
        draft.say("tables", f"{one.path} is not needed, or not understood.  To make use of it:")
        draft.offer("tables", "[[tables]]", field_line("files", [one.path]))
        draft.offer("tables", field_line("key", one.key))
        draft.say("tables", _coverage(one, ids))
        _say_of_the_rest(draft, "tables", one, ())


def _offer_lists(draft: Draft, lists: Sequence[str]) -> None:
    for path in lists:
        draft.say("leave_out", f"{path} is a list of volumes.  To leave these out:")
        _offer_list(draft, path)
    if not lists:
        draft.say("leave_out", "Volumes to leave out, by a file with a name in each line:")
        _offer_list(draft, "leave_out.txt")


def _offer_list(draft: Draft, path: str) -> None:
    draft.offer("leave_out", "[[leave_out]]", field_line("files", [path]))
    draft.offer("leave_out", field_line("reason", "left out by a list"))


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names[:_EXAMPLES]) or "none"


def _shortened(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (", ".join(names[:_SHOWN]) or "no columns") + more
