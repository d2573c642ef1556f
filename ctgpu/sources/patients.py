"""Splits of a data set that has none, made so that a patient's scans never part."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ctgpu.errors import TableError, UsageError
from ctgpu.printable import counted
from ctgpu.sources.tables import Tables
from ctgpu.volume.ref import SampleRef, normal_form

#: Names of two or three splits, in the order of their fractions.
SPLITS_BY_PATIENT = {2: ("train", "valid"), 3: ("train", "valid", "test")}

_NAMED = 3


@dataclass(frozen=True, slots=True)
class PatientSplit:
    """One split of patients.

    To which one a patient belongs depends on the patient's name and the seed alone, and on nobody
    else: a folder that grows between two builds moves nobody from one to the other.  So the shares
    of few patients are only near the fractions.

    Attributes
    ----------
    split : str
        Which one: ``train``, ``valid`` or, of three, ``test``.
    fractions : tuple of float
        Shares of the patients, two or three; their sum is 1.
    seed : int
        Gives the same patients wherever and whenever it is used.

    Raises
    ------
    UsageError
        If there are no such fractions, or no such split.
    """

    split: str
    fractions: tuple[float, ...]
    seed: int = 0

    def __post_init__(self) -> None:
        names = SPLITS_BY_PATIENT.get(len(self.fractions))
        if (
            names is None
            or not all(0 < share < 1 for share in self.fractions)
            or abs(sum(self.fractions) - 1) >= 1e-6
        ):
            shown = ",".join(f"{share:g}" for share in self.fractions)
            raise UsageError(
                f"fractions is {shown or 'empty'}; wanted two or three numbers above 0 whose sum "
                "is 1, such as 0.9,0.1, for train, valid and test"
            )
        if self.split not in names:
            raise UsageError(
                f"split is {self.split!r}; {len(self.fractions)} fractions make the splits "
                f"{' and '.join(names)}"
            )

    @classmethod
    def of_selection(cls, split: str, selection: Mapping[str, Any]) -> PatientSplit | None:
        """The one that a plan's selection states; None where it states none.

        Raises
        ------
        UsageError
            As the class itself.
        """
        if selection.get("split_by") is None:
            return None
        try:
            fractions = tuple(float(share) for share in str(selection["fractions"]).split(","))
        except (KeyError, ValueError):
            fractions = ()
        return cls(split, fractions, selection.get("seed") or 0)

    def takes(self, patient: str) -> bool:
        """Whether a patient belongs to the split."""
        # Names that are not UTF-8 are refused by name, and later.
        drawn = f"{self.seed}/{normal_form(patient)}".encode(errors="surrogateescape")
        digest = hashlib.sha256(drawn).digest()
        place = int.from_bytes(digest[:8], "big") / 2**64
        begin = 0.0
        names = SPLITS_BY_PATIENT[len(self.fractions)]
        for name, share in zip(names[:-1], self.fractions[:-1], strict=True):
            if place < begin + share:
                return name == self.split
            begin += share
        return names[-1] == self.split


def of_patients(
    refs: Iterable[SampleRef], tables: Tables, by_patient: PatientSplit
) -> list[SampleRef]:
    """The volumes that show a split's patients.

    Raises
    ------
    UsageError
        If nothing says whom a volume shows, or a table says it twice and otherwise.
    """
    own: list[SampleRef] = []
    unknown: list[str] = []
    for ref in refs:
        try:
            patient = patient_of(ref, tables)
        except TableError as error:
            # One split with a patient of another would be worse than none.
            raise UsageError(f"{error}; or leave the volume out with --exclude") from error
        if patient is None:
            unknown.append(ref.path)
        elif by_patient.takes(patient):
            own.append(ref)
    if unknown:
        raise UsageError(
            f"nothing says which patient {counted(len(unknown), 'volume shows', 'volumes show')}, "
            f"such as {', '.join(unknown[:_NAMED])}; to split by patient, let the description of "
            "the data set name a table's column (patient), a part of the paths ({patient} in a "
            "glob) or of the names (volumes.patient)"
        )
    return own


def patient_of(ref: SampleRef, tables: Tables) -> str | None:
    """Whom a volume shows, by a table, its path or its name; None where none of them says."""
    data_set = tables.data_set
    if (patient := tables.facts_of(ref.study_id, "patient")) is not None:
        return patient
    for split in data_set.splits or ("",):
        for globs in data_set.alternatives(split):
            found = data_set.volume(ref.path, globs)
            if found is not None and found.patient is not None:
                return found.patient
    return data_set.patient_of(ref.study_id)
