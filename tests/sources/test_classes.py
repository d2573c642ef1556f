"""What the labels in tars mean."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ctgpu.data_sets import built_in
from ctgpu.errors import UsageError
from ctgpu.sources.classes import classes_of_labels
from ctgpu.testing.ctrate import LABEL_NAMES


def state(folder: Path, card: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps(card))
    return folder


def test_eighteen_labels_without_names_are_ct_rates(tmp_path: Path) -> None:
    assert classes_of_labels([tmp_path], {"a": 72, "b": 72, "c": 71}, built_in()) == LABEL_NAMES


def test_labels_of_no_bytes_decide_nothing(tmp_path: Path) -> None:
    assert classes_of_labels([tmp_path], {"a": 0, "b": 0, "c": 72}, built_in()) == LABEL_NAMES
    assert classes_of_labels([tmp_path], {"a": 0, "b": 0}, built_in()) == ()
    assert classes_of_labels([tmp_path], {}, built_in()) == ()


@pytest.mark.parametrize("size_bytes", [1, 20, 71, 76])
def test_other_labels_without_names_are_refused(tmp_path: Path, size_bytes: int) -> None:
    with pytest.raises(UsageError, match=rf"b\.cls has {size_bytes} bytes.*class_names"):
        classes_of_labels([tmp_path], {"a.cls": 0, "b.cls": size_bytes}, built_in())


def test_names_are_those_of_the_manifest_also_where_there_are_eighteen(tmp_path: Path) -> None:
    names = [f"organ {n}" for n in range(18)]
    state(tmp_path, {"class_names": names})
    assert classes_of_labels([tmp_path], {"a": 72}, built_in()) == tuple(names)
    assert classes_of_labels([tmp_path], {}, built_in()) == tuple(names)


def test_a_manifest_that_does_not_fit_the_labels_is_refused(tmp_path: Path) -> None:
    state(tmp_path, {"class_names": ["a", "b"]})
    with pytest.raises(UsageError, match=r"manifest\.json names 2 classes.*have 72 bytes"):
        classes_of_labels([tmp_path], {"a": 72}, built_in())


def test_manifests_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    one = state(tmp_path / "one", {"class_names": ["a", "b"]})
    two = state(tmp_path / "two", {"class_names": ["b", "a"]})
    with pytest.raises(UsageError, match="state different class_names"):
        classes_of_labels([one, two], {"x": 8}, built_in())
    assert classes_of_labels([one, tmp_path, one], {"x": 8}, built_in()) == ("a", "b")
