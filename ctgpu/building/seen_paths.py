"""What the paths of volumes say: which splits there are, and which part of a path is the name."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

from ctgpu.data_sets.description import Description
from ctgpu.data_sets.fields import SplitRule, VolumeRule
from ctgpu.data_sets.globs import glob_of_name
from ctgpu.data_sets.writing import Draft, field_line
from ctgpu.printable import counted
from ctgpu.volume.ref import SampleRef, normal_form

#: What folders and columns call the splits, and what a description does.
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "imagestr"), "train"),
    **dict.fromkeys(("valid", "val", "validation", "dev"), "valid"),
    **dict.fromkeys(("test", "testing", "imagests"), "test"),
}
_SHOWN = 4

Parts = tuple[str, ...]


def describe_paths(draft: Draft, paths: Sequence[str]) -> None:
    """Globs of the splits and of the volumes, and remarks on what paths leave open.

    Parameters
    ----------
    draft : Draft
        Gets them.
    paths : sequence of str
        Of all volumes, at least one.
    """
    parts = [tuple(path.split("/")) for path in paths]
    root = _root(parts)
    depth = len(root)
    groups: dict[str, list[Parts]] = defaultdict(list)
    for path in parts:
        groups[_split_of(path, depth)].append(path)
    others = groups.pop("", [])
    if groups and len(others) <= len(paths) / 2:
        order = sorted(groups, key=("train", "valid", "test").index)
        _describe_splits(draft, root, {split: groups[split] for split in order}, others)
    else:
        if groups:
            _say_of_few(draft, groups)
        _describe_all(draft, root, parts)
    if unreadable := [path for path in paths if not _is_utf8(path)]:
        draft.say(
            "volumes",
            f"Rename what has a name that is not UTF-8, as a build refuses it: "
            f"{counted(len(unreadable), 'volume')}, such as {unreadable[0]}.",
        )
    draft.say("volumes", "How volumes lie that do not say so, along H, W and D:")
    draft.offer("volumes", field_line("orientation", "LPS"))
    draft.say(
        "volumes",
        "Whom a volume shows, for --split-by patient, by its name; a table's column can say it, "
        "or {patient} in a glob:",
    )
    draft.offer("volumes", "patient = '(?P<patient>[^_]+)_.*'")


def ids_of(data_set: Description, paths: Collection[str]) -> dict[str, str]:
    """The study id of each volume that a description takes, in normal form, and its path."""
    every = [globs for split in data_set.splits for globs in data_set.alternatives(split)]
    every = every or [data_set.volumes.paths]
    ids: dict[str, str] = {}
    for path in paths:
        found = next(filter(None, (data_set.volume(path, globs) for globs in every)), None)
        if found is not None:
            ref = SampleRef.of_file(path, 0, study_id=found.key)
            ids.setdefault(normal_form(ref.study_id), path)
    return ids


def _root(parts: Sequence[Parts]) -> Parts:
    """The folders that all volumes are in, down to one that is named as a split."""
    common = _common_folder(parts)
    for place, name in enumerate(common):
        if name.casefold() in SPLIT_WORDS:
            return common[:place]
    return common


def _common_folder(paths: Sequence[Parts]) -> Parts:
    folders = [path[:-1] for path in paths]
    low, high = min(folders), max(folders)
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(low, high, strict=False))
    return tuple(name for name, _ in same)


def _split_of(path: Parts, depth: int) -> str:
    """The split that the folder at a depth is named after; empty where it is none, or a file."""
    return SPLIT_WORDS.get(path[depth].casefold(), "") if len(path) > depth + 1 else ""


def _describe_splits(
    draft: Draft, root: Parts, groups: Mapping[str, Sequence[Parts]], others: Sequence[Parts]
) -> None:
    depth = len(root) + 1
    every = [path for paths in groups.values() for path in paths]
    # Best are names that no two volumes share, of whatever split.
    tail = _tail([every], depth) or _tail(list(groups.values()), depth)
    rules = {}
    for split, paths in groups.items():
        tops = dict.fromkeys(path[:depth] for path in paths)
        rules[split] = SplitRule(volumes=tuple(_glob(top, tail or "**") for top in tops))
    draft.change(splits=rules)
    if tail is None:
        for split, paths in groups.items():
            _say_of_clash(draft, f"splits.{split}", "volumes", paths, depth)
    if others:
        names = sorted({path[len(root)] for path in others})
        draft.say(
            "splits",
            f"{counted(len(others), 'volume is', 'volumes are')} in no folder of a split and left "
            f"out ({_shortened(names)}): if they belong to one, add a glob of theirs to its "
            "volumes.",
        )
    ids = [
        ids_of(draft.description, ["/".join(path) for path in paths]) for paths in groups.values()
    ]
    for place, own in enumerate(ids):
        for other in ids[:place]:
            if shared := own.keys() & other.keys():
                name = min(shared)
                draft.say(
                    "splits",
                    f"{counted(len(shared), 'name is', 'names are')} there in two splits, such as "
                    f"{name} ({other[name]} and {own[name]}): what a table says of one it says of "
                    "both.",
                )


def _describe_all(draft: Draft, root: Parts, parts: Sequence[Parts]) -> None:
    tail = _tail([parts], len(root))
    if tail is None:
        _say_of_clash(draft, "volumes", "paths", parts, len(root))
    elif tail != "**":
        draft.change(volumes=VolumeRule(paths=(_glob(root, tail),)))


def _say_of_few(draft: Draft, groups: Mapping[str, Sequence[Parts]]) -> None:
    for split, paths in groups.items():
        draft.say(
            "splits",
            f"{'/'.join(paths[0])} may be of the split {split}, by its folder; most volumes are "
            "in other folders.  A split is described like this:",
        )
        folder = _common_folder(paths)
        draft.offer("splits", f"[splits.{split}]")
        draft.offer("splits", field_line("volumes", [_glob(folder, "**")]))


def _tail(groups: Sequence[Sequence[Parts]], depth: int) -> str | None:
    """The end of globs by which every volume of a group has a name of its own.

    ``**`` where that is the file's; None where no part of the paths is.
    """
    if all(_doubled(paths, -1) is None for paths in groups):
        return "**"
    every = [path for paths in groups for path in paths]
    shortest = min(map(len, every))
    for place in range(2, shortest - depth + 1):
        if any(_doubled(paths, -place) is not None for paths in groups):
            continue
        between = "" if all(len(path) == depth + place for path in every) else "**/"
        last = ({path[k] for path in every} for k in range(1 - place, 0))
        ends = (_glob_of(names.pop()) if len(names) == 1 else "*" for names in last)
        return f"{between}{{key}}/{'/'.join(ends)}"
    return None


def _doubled(paths: Sequence[Parts], place: int) -> tuple[Parts, Parts] | None:
    """Two volumes that would bear one name by this part of their paths."""
    seen: dict[str, Parts] = {}
    for path in paths:
        key = normal_form(SampleRef.of_file(path[place], 0).key)
        if (other := seen.setdefault(key, path)) != path:
            return other, path
    return None


def _say_of_clash(draft: Draft, place: str, name: str, paths: Sequence[Parts], depth: int) -> None:
    """Two volumes of one name, and globs for those whose folder could name them."""
    clash = _doubled(paths, -1)
    if clash is None:
        return
    one, other = ("/".join(path) for path in clash)
    draft.say(
        place,
        f"{one} and {other} have the same name, and every volume needs its own: a build refuses "
        f"them.  {{key}} in a glob of {name} tells which part of a path is the name.",
    )
    by_file: dict[str, list[Parts]] = defaultdict(list)
    for path in paths:
        by_file[path[-1]].append(path)
    usual = sorted(by_file, key=lambda file: -len(by_file[file]))[:_SHOWN]
    tails = {file: _tail([by_file[file]], depth) for file in usual if len(by_file[file]) > 1}
    found = {file: tail for file, tail in tails.items() if tail not in (None, "**")}
    if found:
        draft.say(place, f"If only files of one name are volumes, state {name} as one of these:")
    for tail in found.values():
        folders = dict.fromkeys(path[:depth] for path in paths)
        draft.offer(place, field_line(name, [_glob(folder, str(tail)) for folder in folders]))


def _glob(folders: Sequence[str], tail: str) -> str:
    return "/".join((*map(_glob_of, folders), tail))


def _glob_of(name: str) -> str:
    """A glob of a name; of one that is not UTF-8, which no file of text can hold, a wider one."""
    return "".join(c if _is_utf8(c) else "?" for c in glob_of_name(name))


def _is_utf8(name: str) -> bool:
    return not any("\ud800" <= c <= "\udfff" for c in name)


def _shortened(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
