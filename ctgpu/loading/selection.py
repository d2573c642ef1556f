"""Chooses samples of a data set: by name, by number or by a function of their entries."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from ctgpu.errors import UsageError
from ctgpu.printable import counted
from ctgpu.shards.record import SampleEntry
from ctgpu.volume.ref import normal_form

Indices = npt.NDArray[np.int64]
Wanted = str | int
Predicate = Callable[[SampleEntry], bool]

_SHOWN = 3


def select_numbers(
    wanted: Iterable[Wanted] | Predicate, entries: Sequence[SampleEntry], named: str
) -> list[int]:
    """Numbers, ascending and each once, of the samples that are asked for.

    Parameters
    ----------
    wanted : iterable of str or int, or callable
        As :meth:`ctgpu.loading.VolumeDataset.select` takes it.
    entries : sequence of SampleEntry
        Of all samples.
    named : str
        What an error calls the data set.

    Raises
    ------
    UsageError
        If one of them is not there, or is neither a name nor a number.
    """
    if callable(wanted):
        return [number for number, entry in enumerate(entries) if wanted(entry)]
    if isinstance(wanted, str | bytes) or not isinstance(wanted, Iterable):
        raise UsageError(
            f"select was given {wanted!r}; it takes a list of study ids or numbers, such as "
            "['valid_1_a_1'], or a function of a sample's entry"
        )
    wanted = list(wanted)
    names = {normal_form(item): item for item in wanted if isinstance(item, str)}
    numbers = check_numbers([i for i in wanted if not isinstance(i, str)], len(entries), named)
    found: set[str] = set()
    selected = set(numbers.tolist())
    for number, entry in enumerate(entries):
        if own := names.keys() & {normal_form(entry.study_id), normal_form(entry.key)}:
            found |= own
            selected.add(number)
    if missing := sorted(names[name] for name in names.keys() - found):
        shown = ", ".join(missing[:_SHOWN]) + (", …" if len(missing) > _SHOWN else "")
        given = counted(
            len(names), "study that select was given is", "studies that select was given are"
        )
        raise UsageError(
            f"{len(missing)} of the {given} not in {named} ({shown}); leave them out, or take "
            "those that are there with select(lambda sample: sample.study_id in wanted)"
        )
    return sorted(selected)


def check_numbers(numbers: Iterable[int], total: int, named: str) -> Indices:
    """Numbers of samples as an array; negative ones count from the end.

    Raises
    ------
    UsageError
        If one is not a whole number, or there is no such sample.
    """
    checked = []
    for number in numbers:
        # A mask would pass for the numbers 0 and 1.
        if isinstance(number, bool) or "bool" in str(getattr(number, "dtype", "")):
            raise UsageError(
                "samples are chosen by their numbers, not by a mask; numpy.flatnonzero(mask) makes "
                "numbers of it"
            )
        try:
            value = operator.index(number)
        except TypeError:
            raise UsageError(
                f"{number!r} is not the number of a sample; give whole numbers"
            ) from None
        if not -total <= value < total:
            raise UsageError(f"there is no sample {value}: {named} has {total}")
        checked.append(value % total)
    return np.array(checked, np.int64)
