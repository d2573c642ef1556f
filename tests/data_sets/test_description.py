"""What a description takes, and where it says what is wrong."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from whole_description import WHOLE

from ctgpu.data_sets import BUILT_IN, Description, built_in, named
from ctgpu.data_sets.fields import TableRule
from ctgpu.errors import UsageError

# What it takes.


def test_every_field_is_taken_and_kept() -> None:
    description = Description.of(WHOLE)
    assert description.content == WHOLE
    names = {name for part in (Description, TableRule) for name in part.__struct_fields__}
    stated = {*WHOLE, *(name for table in WHOLE["tables"] for name in table)}
    assert names == stated
    for section, part in (("layout", "layout"), ("volumes", "volumes"), ("arrays", "arrays")):
        assert set(WHOLE[section]) == set(getattr(description, part).__struct_fields__)
    assert set(WHOLE["splits"]["a"]) == set(description.splits["a"].__struct_fields__)
    assert set(WHOLE["masks"]) == set(description.masks.__struct_fields__)  # type: ignore[union-attr]
    assert set(WHOLE["leave_out"][0]) == set(description.leave_out[0].__struct_fields__)


@pytest.mark.parametrize(
    "content", [WHOLE, {"name": "x"}, *(built_in(n).content for n in BUILT_IN)]
)
def test_its_content_is_kept_through_json(content: dict[str, Any]) -> None:
    description = Description.of(content)
    again = Description.of(json.loads(json.dumps(description.content)))
    assert again == description
    assert again.content == description.content


def test_the_meaning_of_ct_rates_does_not_change() -> None:
    """Plans of CT-RATE state no description: a change of its own would change what they mean.

    Where one is wanted, plans have to say which one they were made by before it is made.
    """
    content = json.dumps(built_in().content, sort_keys=True).encode()
    assert hashlib.sha256(content).hexdigest() == (
        "a064d9ee5f54793108096f862b077b3fe96e54948e41da17735019990bbb64d0"
    )


def test_a_plain_one_says_nothing() -> None:
    assert built_in("plain").content == {"name": "plain"}


@pytest.mark.parametrize("name", BUILT_IN)
def test_those_that_are_packaged_are_found_by_their_names(name: str) -> None:
    assert named(name) is built_in(name)
    assert built_in(name).split_asked_for(None) == ("all" if name == "luna16" else "valid")


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_file_may_have_a_byte_order_mark_and_windows_lines(
    tmp_path: Path, mark: str, end: str
) -> None:
    text = mark + end.join(('name = "Zürich"', "[arrays]", 'axes = "DHW"', ""))
    path = tmp_path / "mine.toml"
    path.write_bytes(text.encode())
    description = named(path)
    assert description == Description.of({"name": "Zürich", "arrays": {"axes": "DHW"}})
    assert named(os.fspath(path)) == description


# What it says of paths and names.


def test_which_split_is_taken() -> None:
    description = Description.of(WHOLE)
    assert description.split_asked_for(None) == "b"
    assert description.split_asked_for("a") == "a"
    with pytest.raises(UsageError, match="split is 'c'; Ours has a, b: pass one of these"):
        description.split_asked_for("c")
    first = Description.of({"name": "x", "splits": {"b": {}, "a": {}}})
    assert first.split_asked_for(None) == "b"
    assert Description.of({"name": "x"}).split_asked_for("any") == "any"


def test_splits_have_their_own_globs_or_those_of_all_volumes() -> None:
    description = Description.of(WHOLE)
    assert description.alternatives("a") == (("a/{key}.nii",), ("*.nii",))
    assert description.alternatives("b") == (("{patient}/{key}.npz",),)
    assert description.alternatives("c") == ()
    assert Description.of({"name": "x"}).alternatives("any") == (("**",),)


def test_a_copy_may_lie_in_the_data_sets_root_or_without_it() -> None:
    description = Description.of(WHOLE)
    (globs,) = description.alternatives("b")
    for path in ("data/p/s.npz", "p/s.npz"):
        found = description.volume(path, globs)
        assert found is not None
        assert (found.key, found.patient) == ("s", "p")
    assert description.volume("other/p/s.npz", globs) is None


def test_tables_are_looked_for_in_their_own_place_first() -> None:
    description = Description.of(WHOLE)
    assert description.paths(description.tables[0], "a") == ("data/m.tsv", "m.tsv")
    labels = description.tables[1]
    assert description.paths(labels, "b") == ("/data/lb.csv", "data/lb.csv", "lb.csv")
    assert description.paths(labels, "c") == ()
    nested = Description.of(
        {"name": "x", "leave_out": [{"files": ["t/a.txt", "b.txt"], "reason": "r"}]}
    )
    assert nested.paths(nested.leave_out[0], "any") == ("t/a.txt", "b.txt", "a.txt")
    assert description.all_paths() == {
        *("data/m.tsv", "m.tsv", "data/la.csv", "la.csv", "/data/lb.csv", "data/lb.csv", "lb.csv"),
        *("data/r.csv", "r.csv", "data/no.txt", "no.txt"),
    }


@pytest.mark.parametrize(
    ("study_id", "scan", "patient"),
    [
        ("p1_a_2", ("p1_a", 2), "p1"),
        ("p1_a", None, "p1"),
        ("p1", None, None),
        ("_1", None, None),
        ("", None, None),
    ],
)
def test_names_say_which_scan_and_whom(
    study_id: str, scan: tuple[str, int] | None, patient: str | None
) -> None:
    description = Description.of(WHOLE)
    assert description.scan_of(study_id) == scan
    assert description.patient_of(study_id) == patient


def test_a_regex_that_catches_no_number_or_nothing_says_nothing() -> None:
    volumes = {"scan": "(?P<scan>a+)?_?(?P<recon>.*)", "patient": "(?P<patient>p*)(?P<x>.)?"}
    description = Description.of({"name": "x", "volumes": volumes})
    assert description.scan_of("a_1") == ("a", 1)
    assert [description.scan_of(name) for name in ("a_", "a_b", "_1", "a_²")] == [None] * 4
    assert (description.patient_of("pp"), description.patient_of("x")) == ("pp", None)
    assert Description.of({"name": "x"}).scan_of("a_1") is None
    assert Description.of({"name": "x"}).patient_of("a_1") is None


def test_what_paths_say_of_voxels() -> None:
    description = Description.of(WHOLE)
    assert description.provenance("source/x/a.nii") == "fixed"
    assert description.provenance("source/y/a.nii") == "v1"
    assert description.provenance("source/z/a.nii") == "unknown"
    assert description.provenance("source/x/y/a.nii") == "fixed"


def test_the_range_of_labels_is_that_of_their_table() -> None:
    assert Description.of(WHOLE).label_range == (0, 2)
    assert Description.of({"name": "x"}).label_range is None
