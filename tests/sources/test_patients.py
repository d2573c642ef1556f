"""Splits by patient: nobody is in two, nobody moves, and whom a volume shows."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Sequence
from typing import Any

import pytest
from shelf import Shelf

from ctgpu.data_sets import Description, built_in
from ctgpu.errors import UsageError
from ctgpu.sources.patients import SPLITS_BY_PATIENT, PatientSplit, of_patients, patient_of
from ctgpu.sources.selection import select
from ctgpu.sources.tables import Tables
from ctgpu.volume.ref import SampleRef

PEOPLE = [f"P{n}" for n in range(10_000)]
#: Of twenty, with three fractions and the seed 7.
PINNED = {
    "train": ["P0", "P10", "P11", "P12", "P14", "P17", "P18", "P19", "P3", "P4", "P6"],
    "valid": ["P13", "P15", "P16", "P2", "P5", "P7"],
    "test": ["P1", "P8", "P9"],
}


def described(table: str | None = None, **content: Any) -> Tables:
    """Tables of a data set; `table` is one that names patients."""
    if table is not None:
        rule = {"files": ["t.csv"], "key": "scan", "patient": "patient"}
        content = {"tables": [rule], **content}
    files = {} if table is None else {"t.csv": table}
    return Tables.load(Shelf(Description.of({"name": "x", **content}), files), "valid")


def refs_of(*paths: str) -> list[SampleRef]:
    return [SampleRef.of_file(path, 1) for path in paths]


def splits_of(
    people: Sequence[str], fractions: tuple[float, ...], seed: int = 0
) -> dict[str, set[str]]:
    """Who belongs to each split."""
    return {
        name: {who for who in people if PatientSplit(name, fractions, seed).takes(who)}
        for name in SPLITS_BY_PATIENT[len(fractions)]
    }


# Who belongs to which split.


@pytest.mark.parametrize(
    "fractions", [(0.9, 0.1), (0.5, 0.5), (0.01, 0.99), (0.8, 0.1, 0.1), (0.4, 0.3, 0.3)]
)
@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1])
def test_everybody_is_in_one_split_and_the_shares_are_near_the_fractions(
    fractions: tuple[float, ...], seed: int
) -> None:
    splits = splits_of(PEOPLE, fractions, seed)
    assert sum(map(len, splits.values())) == len(PEOPLE)
    assert set().union(*splits.values()) == set(PEOPLE)
    for found, share in zip(splits.values(), fractions, strict=True):
        # Five standard deviations of as many draws.
        tolerance = 5 * (share * (1 - share) * len(PEOPLE)) ** 0.5
        assert abs(len(found) - share * len(PEOPLE)) < tolerance


def test_who_belongs_where_is_the_same_everywhere_and_for_ever() -> None:
    """A build that goes on with another release of ctgpu must not move anybody."""
    splits = splits_of([f"P{n}" for n in range(20)], (0.6, 0.2, 0.2), 7)
    assert {name: sorted(found) for name, found in splits.items()} == PINNED


def test_volumes_that_are_added_move_nobody() -> None:
    before = splits_of(PEOPLE[:100], (0.7, 0.2, 0.1))
    mixed = random.Random(3).sample(PEOPLE[:1000], 1000)
    after = splits_of(mixed, (0.7, 0.2, 0.1))
    for name, found in before.items():
        assert found == after[name] & set(PEOPLE[:100])


def test_another_seed_gives_other_splits() -> None:
    found = [frozenset(splits_of(PEOPLE[:200], (0.5, 0.5), seed)["train"]) for seed in range(5)]
    assert len(set(found)) == 5


@pytest.mark.slow
def test_a_third_split_leaves_those_before_it_alone() -> None:
    two, three = splits_of(PEOPLE, (0.8, 0.2), 1), splits_of(PEOPLE, (0.8, 0.1, 0.1), 1)
    assert two["train"] == three["train"]
    assert two["valid"] == three["valid"] | three["test"]


@pytest.mark.slow
@pytest.mark.parametrize("fractions", [(0.1,) * 2 + (0.8,), (1 / 3, 1 / 3, 1 / 3), (0.7, 0.3)])
def test_fractions_that_no_float_has_leave_nobody_out(fractions: tuple[float, ...]) -> None:
    splits = splits_of(PEOPLE, fractions)
    assert sum(map(len, splits.values())) == len(PEOPLE)


def test_a_name_in_either_normal_form_is_one_patient() -> None:
    for name in (f"é{n}" for n in range(50)):
        forms = {unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)}
        assert len(forms) == 2
        assert len({PatientSplit("train", (0.5, 0.5)).takes(form) for form in forms}) == 1


# What is refused.


@pytest.mark.parametrize(
    ("fractions", "shown"),
    [
        ((), "empty"),
        ((1.0,), "1"),
        ((0.9, 0.2), "0.9,0.2"),
        ((0.9, 0.05), "0.9,0.05"),
        ((1.0, 0.0), "1,0"),
        ((1.5, -0.5), "1.5,-0.5"),
        ((float("nan"), 0.5), "nan,0.5"),
        ((float("inf"), 0.5), "inf,0.5"),
        ((0.25, 0.25, 0.25, 0.25), "0.25,0.25,0.25,0.25"),
        ((0.5, 0.5, 0.0), "0.5,0.5,0"),
    ],
)
def test_fractions_that_are_none_are_refused(fractions: tuple[float, ...], shown: str) -> None:
    with pytest.raises(UsageError) as caught:
        PatientSplit("train", fractions)
    assert str(caught.value) == (
        f"fractions is {shown}; wanted two or three numbers above 0 whose sum is 1, such as "
        "0.9,0.1, for train, valid and test"
    )


@pytest.mark.parametrize(
    ("split", "fractions", "names"),
    [
        ("test", (0.5, 0.5), "2 fractions make the splits train and valid"),
        ("all", (0.5, 0.25, 0.25), "3 fractions make the splits train and valid and test"),
    ],
)
def test_a_split_that_they_do_not_make_is_refused(
    split: str, fractions: tuple[float, ...], names: str
) -> None:
    with pytest.raises(UsageError, match=f"^split is '{split}'; {names}$"):
        PatientSplit(split, fractions)


def test_a_plan_states_the_split() -> None:
    stated = {"split_by": "patient", "fractions": "0.8, 0.1,0.1", "seed": 4}
    assert PatientSplit.of_selection("test", stated) == PatientSplit("test", (0.8, 0.1, 0.1), 4)
    for seed in ({}, {"seed": None}):
        found = PatientSplit.of_selection(
            "valid", {"split_by": "patient", "fractions": "0.9,0.1"} | seed
        )
        assert found == PatientSplit("valid", (0.9, 0.1), 0)
    assert PatientSplit.of_selection("valid", {}) is None
    assert PatientSplit.of_selection("valid", {"split_by": None, "fractions": "0.9,0.1"}) is None


@pytest.mark.parametrize(
    "fractions", [{}, {"fractions": None}, {"fractions": "a,b"}, {"fractions": ""}]
)
def test_a_plan_that_states_no_fractions_is_refused(fractions: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="fractions is empty; wanted two or three numbers"):
        PatientSplit.of_selection("train", {"split_by": "patient"} | fractions)


# Whom a volume shows.


def test_a_column_names_patients() -> None:
    tables = described("scan,patient\na.nii.gz, p1 \nx/b,p1\nc,\nd,nan\n")
    found = {
        ref.study_id: patient_of(ref, tables)
        for ref in refs_of("a.nii", "b.nii", "c.nii", "d.nii", "e.nii")
    }
    assert found == {"a": "p1", "b": "p1", "c": None, "d": None, "e": None}


def test_a_part_of_the_path_names_patients() -> None:
    volumes = {"paths": ["{patient}/ct/*.nii", "**/sub-{patient}_*.nii", "*.nii"]}
    tables = described(volumes=volumes)
    refs = refs_of("p1/ct/a.nii", "x/y/sub-p2_b.nii", "c.nii", "é1/ct/d.nii", "other/e.nii")
    assert [patient_of(ref, tables) for ref in refs] == ["p1", "p2", None, "é1", None]


def test_a_part_of_the_name_names_patients() -> None:
    tables = described(volumes={"patient": r"(?P<patient>[a-z]+\d+)_.*"})
    refs = refs_of("x/ab1_2.nii", "ab1_3.npz", "ab1.nii", "_4.nii")
    assert [patient_of(ref, tables) for ref in refs] == ["ab1", "ab1", None, None]
    ct_rate = Tables(data_set=built_in())
    refs = refs_of("train_7_a_1.nii.gz", "train_7_b_2.nii.gz", "train_77_a_1.nii.gz")
    assert [patient_of(ref, ct_rate) for ref in refs] == ["train_7", "train_7", "train_77"]


def test_the_table_goes_before_the_path_and_that_before_the_name() -> None:
    volumes = {"paths": ["{patient}/*.nii", "*.nii"], "patient": "(?P<patient>.).*"}
    tables = described("scan,patient\na,table\nb,\n", volumes=volumes)
    refs = refs_of("path/a.nii", "path/b.nii", "path/c.nii", "d.nii")
    assert [patient_of(ref, tables) for ref in refs] == ["table", "path", "path", "d"]


def test_the_paths_of_every_split_may_name_patients() -> None:
    splits = {"a": {"volumes": ["a/{patient}/*"], "fallback": ["old/{patient}_*"]}, "b": {}}
    tables = described(splits=splits, volumes={"paths": ["b/{patient}.nii"]})
    refs = refs_of("a/p1/x.nii", "old/p2_x.nii", "b/p3.nii")
    assert [patient_of(ref, tables) for ref in refs] == ["p1", "p2", "p3"]


def test_a_patients_scans_never_part() -> None:
    rows = "".join(f"s{n},p{n // 3}\n" for n in range(300))
    tables = described(f"scan,patient\n{rows}")
    refs = refs_of(*(f"x/s{n}.nii" for n in range(300)))
    fractions = (0.5, 0.3, 0.2)
    found = {
        name: of_patients(refs, tables, PatientSplit(name, fractions, 5))
        for name in SPLITS_BY_PATIENT[3]
    }
    # All of them, each once, in their order.
    assert sorted(ref.path for own in found.values() for ref in own) == sorted(r.path for r in refs)
    people = [{patient_of(ref, tables) for ref in own} for own in found.values()]
    assert all(len(own) == 3 * len(who) for own, who in zip(found.values(), people, strict=True))
    assert sum(map(len, people)) == len(set().union(*people)) == 100
    for own in found.values():
        assert own == [ref for ref in refs if ref in own]


def test_volumes_that_show_nobody_known_are_refused_and_named() -> None:
    tables = described("scan,patient\na,p\n")
    refs = refs_of("x/a.nii", "x/b.nii", "x/c.nii", "x/d.nii", "x/e.nii")
    for split in SPLITS_BY_PATIENT[2]:
        with pytest.raises(UsageError) as caught:
            of_patients(refs, tables, PatientSplit(split, (0.5, 0.5)))
        said = str(caught.value)
        assert said.startswith(
            "nothing says which patient 4 volumes show, such as x/b.nii, x/c.nii, x/d.nii;"
        )
        assert "x/e.nii" not in said
        assert "{patient} in a glob" in said
    assert of_patients([], tables, PatientSplit("train", (0.5, 0.5))) == []


def test_rows_that_contradict_each_other_about_a_patient_stop_it() -> None:
    tables = described("scan,patient\na,p\na,q\n")
    with pytest.raises(
        UsageError, match=r"t\.csv has rows that contradict each other for a in line 2"
    ):
        of_patients(refs_of("a.nii"), tables, PatientSplit("train", (0.5, 0.5)))


def test_a_name_that_is_not_utf8_is_refused_by_name() -> None:
    tables = described(volumes={"patient": "(?P<patient>.*)"})
    refs = refs_of("\udcff.nii", "a.nii")
    splits = [PatientSplit(name, (0.5, 0.5)) for name in SPLITS_BY_PATIENT[2]]
    (split,) = (one for one in splits if one.takes("\udcff"))
    with pytest.raises(UsageError, match="has a name that is not UTF-8; rename it"):
        select(refs, tables, by_patient=split)


def test_the_selection_counts_those_of_the_other_split() -> None:
    tables = described(volumes={"paths": ["{patient}/*.nii"]})
    refs = refs_of(*(f"p{n}/{n}_{k}.nii" for n in range(40) for k in range(2)))
    split = PatientSplit("valid", (0.7, 0.3), 2)
    selection = select(refs, tables, split="valid", by_patient=split)
    own = [ref for ref in refs if split.takes(ref.path.split("/")[0])]
    assert 0 < len(own) < len(refs)
    assert {ref.path for ref in selection.samples} == {ref.path for ref in own}
    assert selection.counts["of the other split"] == len(refs) - len(own)
