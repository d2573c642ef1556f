"""Which volumes become samples, and in which order."""

from __future__ import annotations

import logging
import random
import unicodedata

import pytest

from ctgpu.data_sets.fields import TableRule
from ctgpu.errors import UsageError
from ctgpu.shards.names import natural_key
from ctgpu.sources.selection import select
from ctgpu.sources.table import Table
from ctgpu.sources.tables import Joined, Tables
from ctgpu.volume.ref import SampleRef

NAMES = ["train_1_a_1", "train_1_a_2", "train_1_b_1", "train_2_a_2", "train_2_a_10", "train_10_a_1"]


def refs(*names: str, suffix: str = ".nii.gz") -> list[SampleRef]:
    return [SampleRef.of_file(f"dataset/train_fixed/{name}{suffix}", 1) for name in names]


def chosen(*names: str, tables: Tables | None = None, **options: object) -> list[str]:
    given = refs(*names)
    random.Random(0).shuffle(given)
    found = select(given, tables or Tables(), **options)  # type: ignore[arg-type]
    return [ref.study_id for ref in found.samples]


def test_natural_order_of_the_paths_whatever_the_listing() -> None:
    assert chosen(*NAMES) == NAMES


def test_odd_digits_are_ordered_too() -> None:
    # "²" is a digit that int() does not take; "٣" is one that it does.
    assert sorted(["a²", "a10", "a٣"], key=natural_key) == ["a٣", "a10", "a²"]


def test_first_keeps_the_lowest_reconstruction_of_each_scan() -> None:
    assert chosen(*NAMES, recon="first") == [
        "train_1_a_1",
        "train_1_b_1",
        "train_2_a_2",
        "train_10_a_1",
    ]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"include": "*_a_1.nii.gz"}, ["train_1_a_1", "train_10_a_1"]),
        ({"include": "*/train_2_*, *_b_1.nii.gz"}, ["train_1_b_1", "train_2_a_2", "train_2_a_10"]),
        ({"exclude": "dataset/*/train_1_*"}, ["train_2_a_2", "train_2_a_10", "train_10_a_1"]),
        ({"include": "*_1_*", "exclude": "*_a_[12].nii*"}, ["train_1_b_1"]),
        ({"include": "dataset*", "exclude": "TRAIN*"}, NAMES),
    ],
)
def test_paths_fit_globs(options: dict[str, str], wanted: list[str]) -> None:
    assert chosen(*NAMES, **options) == wanted
    left_out = select(refs(*NAMES), Tables(), **options).counts["left out by their paths"]  # type: ignore[arg-type]
    assert left_out == len(NAMES) - len(wanted)


def test_globs_and_paths_are_compared_in_one_normal_form() -> None:
    composed = unicodedata.normalize("NFC", "thorax_é")
    given = refs(unicodedata.normalize("NFD", composed), "thorax_e")
    found = select(given, Tables(), include=f"*{composed}*").samples
    assert [ref.path for ref in found] == [given[0].path]


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        (
            {"include": "train_1_a_1"},
            "include 'train_1_a_1' leaves none of the 6 volumes, such as ",
        ),
        ({"exclude": "*"}, r"exclude '\*' leaves none of the 6 volumes"),
        ({"include": "*", "exclude": "d*"}, r"include '\*' and exclude 'd\*' leaves none"),
    ],
)
def test_globs_that_leave_nothing_are_refused(options: dict[str, str], asked: str) -> None:
    with pytest.raises(UsageError, match=asked):
        chosen(*NAMES, **options)


def test_first_is_chosen_among_those_that_show_a_chest() -> None:
    tables = Tables(left_out=dict.fromkeys(["train_1_a_1"], "without a chest"))
    assert chosen("train_1_a_1", "train_1_a_2", recon="first", tables=tables) == ["train_1_a_2"]


def test_other_names_are_scans_of_their_own() -> None:
    assert chosen("sample_001", "sample_002", recon="first") == ["sample_001", "sample_002"]


def test_shuffling_is_the_same_everywhere_and_stable_under_limit() -> None:
    order = chosen(*NAMES, order="shuffled", seed=7)
    # Written down, so that another platform or Python version must agree.
    assert order == [
        "train_1_a_2",
        "train_1_b_1",
        "train_1_a_1",
        "train_10_a_1",
        "train_2_a_2",
        "train_2_a_10",
    ]
    assert chosen(*NAMES, order="shuffled", seed=7, limit=3) == order[:3]
    assert chosen(*NAMES, order="shuffled", seed=8) != order
    assert sorted(order) == sorted(NAMES)


def test_no_chest_is_left_out_unless_kept() -> None:
    tables = Tables(left_out=dict.fromkeys(["train_1_a_2", "elsewhere"], "without a chest"))
    assert "train_1_a_2" not in chosen(*NAMES, tables=tables)
    assert chosen(*NAMES, tables=tables, keep_no_chest=True) == NAMES


def test_counts_say_where_every_volume_went() -> None:
    labels = Table("labels.csv", [], {name: [] for name in NAMES[:4]})
    rule = TableRule(files=("labels.csv",), key="VolumeName", labels="classes")
    left_out = {"train_1_b_1": "without a chest"}
    tables = Tables([Joined(labels, rule)], left_out, ("Nodule",))
    samples, counts = select(refs(*NAMES), tables, recon="first", limit=2)
    assert [ref.study_id for ref in samples] == ["train_1_a_1", "train_2_a_2"]
    assert counts == {
        "listed": 6,
        "of the other split": 0,
        "without a chest": 1,
        "other reconstructions": 2,
        "beyond the limit": 1,
        "selected": 2,
        "without labels": 0,
        "without a report": 2,
        "without metadata": 2,
        "without a byte": 0,
    }


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x/train_1_a_1.npz", "x/train_1_a_1.nii.gz"),
        ("x/train_1_a_1.npz", "y/train_1_a_1.npz"),
        ("x/a.b.npz", "x/a_b.npz"),
    ],
)
def test_collisions_are_refused_by_both_names(one: str, other: str) -> None:
    with pytest.raises(UsageError, match="keep or rename") as caught:
        select([SampleRef.of_file(one, 1), SampleRef.of_file(other, 1)], Tables())
    assert one in str(caught.value)
    assert other in str(caught.value)


def test_names_that_differ_in_their_normal_form_alone_are_refused() -> None:
    nfc, nfd = (unicodedata.normalize(form, "a/Müller.npz") for form in ("NFC", "NFD"))
    assert nfc != nfd
    with pytest.raises(UsageError, match=f"{nfc} and {nfd} would both be"):
        select([SampleRef.of_file(nfc, 1), SampleRef.of_file(nfd, 1)], Tables())


def test_a_name_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(UsageError, match="not UTF-8"):
        select([SampleRef.of_file("x/\udcff.npz", 1)], Tables())


def test_volumes_that_ct_rate_names_after_the_other_split_are_left_out_and_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    names = ["valid_1_a_1", "train_1_a_1", "train_2_b_1_resampled", "scan", "trained_1_a_1"]
    flat = [SampleRef.of_file(f"{name}.nii.gz", 1) for name in names]
    samples, counts = select(flat, Tables(), split="valid")
    assert {ref.study_id for ref in samples} == {"valid_1_a_1", "scan", "trained_1_a_1"}
    assert counts["listed"] == 5
    assert counts["of the other split"] == 2
    assert "2 volumes are left out" in caplog.text
    assert "train_1_a_1.nii.gz" in caplog.text
    assert {ref.study_id for ref in select(flat, Tables(), split="train").samples} == {
        *names[1:],
    }
    assert len(select(flat, Tables()).samples) == 5


def test_a_volume_of_the_other_split_collides_with_none() -> None:
    same = [SampleRef.of_file("a/train_1_a_1.npz", 1), SampleRef.of_file("b/train_1_a_1.npz", 1)]
    assert len(select([*same, SampleRef.of_file("x.npz", 1)], Tables(), split="valid").samples) == 1


def test_a_folder_that_holds_only_the_other_split_by_its_names_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'train' by their names \(.*train_1_a_1.*--split train"):
        select(refs(*NAMES), Tables(), split="valid")
