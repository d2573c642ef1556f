"""Files put together: which series there are, and what was left out."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from ctgpu.sources.dicom.private import Series, SeriesFile
from ctgpu.sources.dicom.scan import BROKEN


class Sorted(NamedTuple):
    """What a scan has found, sorted.

    Attributes
    ----------
    series : dict of str to Series
        By key, in its order.
    others : tuple of SeriesFile
        Files that are no slices of a CT.
    """

    series: dict[str, Series]
    others: tuple[SeriesFile, ...]

    @property
    def left_out(self) -> str:
        """How many files are no slices, by reason; empty where all are."""
        # Why one cannot be read is its own, and for the owner alone.
        reasons = Counter(file.left_out.partition(": ")[0] for file in self.others)
        return ", ".join(f"{reason} ({count})" for reason, count in reasons.most_common())

    @property
    def doubtful(self) -> dict[str, int]:
        """Keys of the series that may lack slices.

        With each, how many files lie in the folders of its own that cannot be read.
        """
        broken = Counter(
            os.path.dirname(file.path) for file in self.others if file.left_out.startswith(BROKEN)
        )
        doubts = {
            key: sum(broken[folder] for folder in series.folders)
            for key, series in (self.series.items() if broken else ())
        }
        return {key: count for key, count in doubts.items() if count}


def sorted_out(files: Iterable[SeriesFile], key_of: Callable[[str], str]) -> Sorted:
    """Put files together by SeriesInstanceUID.

    Parameters
    ----------
    files : iterable of SeriesFile
        What a scan has found.
    key_of : callable
        Gives the key of a SeriesInstanceUID.
    """
    slices: dict[str, list[SeriesFile]] = {}
    others: list[SeriesFile] = []
    for file in files:
        if file.header is None:
            others.append(file)
        else:
            slices.setdefault(file.header.series_uid, []).append(file)
    series = {
        key_of(uid): Series(uid, _study_of(own), tuple(sorted(own, key=lambda file: file.path)))
        for uid, own in slices.items()
    }
    return Sorted(dict(sorted(series.items())), tuple(others))


def _study_of(files: Iterable[SeriesFile]) -> str:
    return next((f.header.study_uid for f in files if f.header and f.header.study_uid), "")


def studies_of_several(series: Mapping[str, Series]) -> int:
    """How many studies have more than one of the series, so that their UID names none."""
    number = Counter(one.study_uid for one in series.values() if one.study_uid)
    return sum(count > 1 for count in number.values())
