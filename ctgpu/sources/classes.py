"""What the labels in the tars of a WebDataset mean."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from ctgpu.data_sets import Description
from ctgpu.errors import UsageError
from ctgpu.printable import counted
from ctgpu.shards.card import Claims
from ctgpu.shards.names import MANIFEST_NAME

#: Of one float32 label.
LABEL_BYTES = 4


def classes_of_labels(
    folders: Iterable[Path], sizes_bytes: Mapping[str, int], data_set: Description
) -> tuple[str, ...]:
    """Names of the classes that most of the labels in some tars are for.

    Those that the manifests beside the tars state; else the data set's where there are as many
    labels; none where there are no labels.

    Parameters
    ----------
    folders : iterable of Path
        Where the tars are.
    sizes_bytes : mapping of str to int
        Of each sample's labels, by what a message is to call them; float32 each.
    data_set : Description
        What the tars were made of.

    Raises
    ------
    UsageError
        If manifests contradict each other, or there are labels that nothing names.
    """
    stated = {
        claims.path: claims.class_names
        for claims in map(Claims.if_readable, dict.fromkeys(folders))
        if claims.class_names is not None
    }
    if len(set(stated.values())) > 1:
        raise UsageError(
            f"{' and '.join(map(str, stated))} state different class_names, so a label would mean "
            "one thing here and another there; convert these tars apart"
        )
    # Labels of no bytes say nothing about the others.
    usual = Counter(size for size in sizes_bytes.values() if size).most_common(1)
    size_bytes = usual[0][0] if usual else 0
    for path, names in stated.items():
        if size_bytes not in (0, LABEL_BYTES * len(names)):
            raise UsageError(
                f"{path} names {counted(len(names), 'class', 'classes')}, and most labels "
                f"beside it have {size_bytes} bytes; wanted {LABEL_BYTES * len(names)}: correct "
                "its class_names"
            )
        return names
    names = data_set.class_names
    if size_bytes in (0, LABEL_BYTES * len(names)):
        return names if size_bytes else ()
    example = next(name for name, size in sizes_bytes.items() if size == size_bytes)
    raise UsageError(
        f"{example} has {size_bytes} bytes, and nothing names its classes; wanted "
        f"{data_set.name}'s {len(names)} as little-endian float32, or as many as a {MANIFEST_NAME} "
        "beside the tars lists as class_names"
    )
