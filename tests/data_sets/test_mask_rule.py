"""Where a description says that masks are, and what of that is refused."""

from __future__ import annotations

from typing import Any

import pytest

from ctgpu.data_sets import Description
from ctgpu.data_sets.writing import to_toml
from ctgpu.errors import FetchError


def described(masks: dict[str, Any], **more: Any) -> Description:
    return Description.of({"name": "x", "masks": masks, **more})


def test_names_in_the_template_are_those_of_the_volume() -> None:
    data_set = described(
        {"files": "{folder}/{name}_{key}_{patient}/seg.mha", "labels": {"a": 1}},
        volumes={"paths": ["images/{patient}/{key}/*.nii.gz"]},
    )
    assert data_set.mask_files("images/p1/s 1/ct.0.nii.gz", "s 1") == [
        (None, "images/p1/s 1/ct.0_s 1_p1/seg.mha")
    ]


def test_a_volume_without_a_folder_has_its_mask_beside_it() -> None:
    data_set = described({"files": "{folder}/{name}-mask.nrrd"})
    assert data_set.mask_files("a.nii.gz", "a") == [(None, "a-mask.nrrd")]
    assert data_set.mask_files("b/a.nii.gz", "a") == [(None, "b/a-mask.nrrd")]


def test_a_file_for_each_label_comes_in_the_order_of_the_numbers() -> None:
    data_set = described({"files": "{key}/{label}.nii", "labels": {"c": 3, "a": 300, "b": 1}})
    assert data_set.mask_files("x/s.nii", "s") == [
        (1, "s/b.nii"),
        (3, "s/c.nii"),
        (300, "s/a.nii"),
    ]


def test_the_patient_may_be_told_by_the_study_id() -> None:
    masks = {"files": "{patient}/{name}.nii.gz"}
    data_set = described(masks, volumes={"patient": r"(?P<patient>p\d+)_.*"})
    assert data_set.mask_files("p7_2.nii.gz", "p7_2") == [(None, "p7/p7_2.nii.gz")]
    with pytest.raises(FetchError, match="nothing says whom it shows"):
        data_set.mask_files("q.nii.gz", "q")


def test_globs_of_splits_count_too() -> None:
    data_set = described(
        {"files": "{patient}.nii.gz"},
        splits={"train": {"volumes": ["tr/{patient}/{key}.nii"]}, "test": {}},
    )
    assert data_set.mask_files("tr/p/s.nii", "s") == [(None, "p.nii.gz")]


def test_a_data_set_without_masks_has_no_files_of_them() -> None:
    assert Description(name="x").mask_files("a.nii.gz", "a") == []


@pytest.mark.parametrize(
    ("masks", "dtype"),
    [
        ({}, "uint8"),
        ({"dtype": "uint16"}, "uint16"),
        ({"labels": {"a": 255}}, "uint8"),
        ({"labels": {"a": 255}, "dtype": "uint16"}, "uint16"),
        ({"labels": {"a": 1, "b": 256}}, "uint16"),
    ],
)
def test_the_stored_type_follows_from_the_description_alone(
    masks: dict[str, Any], dtype: str
) -> None:
    rule = described({"files": "{key}.nii", **masks}).masks
    assert rule is not None
    assert rule.format.dtype == dtype
    assert rule.format.labels == masks.get("labels", {})


@pytest.mark.parametrize(
    ("masks", "field", "fault"),
    [
        ({"files": "{study}.nii"}, "masks.files", "says {study}; it takes {folder}, {name}"),
        ({"files": "{key}{.nii"}, "masks.files", "says a brace alone"),
        ({"files": "/data/{key}.nii"}, "masks.files", "leads out of the source"),
        ({"files": "../{key}.nii"}, "masks.files", "leads out of the source"),
        ({"files": "mask.nii"}, "masks.files", "is the same for every volume"),
        ({"files": "{label}.nii", "labels": {"a": 1}}, "masks.files", "is the same for every"),
        ({"files": "{key}.png"}, "masks.files", "ends in no suffix of volumes: .nii.gz"),
        ({"files": "{key}/{label}.nii"}, "masks.labels", "has {label} in it, and there are none"),
        ({"files": "{key}.nii", "labels": {"a": 0}}, "masks.labels.a", "0 is no number of a"),
        ({"files": "{key}.nii", "labels": {"a": 65536}}, "masks.labels.a", "wanted 1 to 65535"),
        ({"files": "{key}.nii", "labels": {"a": 2, "b": 2}}, "masks.labels", "are both 2"),
        ({"files": "{key}.nii", "labels": {" ": 2}}, "masks.labels", "is no name of a label"),
        (
            {"files": "{key}/{label}.nii", "labels": {"../a": 1}},
            "masks.labels",
            "'../a' is no name of a label",
        ),
        ({"files": "{key}.nii", "absent": "skip"}, "masks.absent", "Invalid enum value 'skip'"),
    ],
)
def test_what_is_wrong_is_named_with_its_field(
    masks: dict[str, Any], field: str, fault: str
) -> None:
    with pytest.raises(ValueError, match=f"^{field}: ") as refused:
        described(masks)
    assert fault in str(refused.value)


def test_it_is_written_as_it_is_read() -> None:
    import tomllib

    data_set = described(
        {"files": "{key}.nii", "labels": {"left lung": 2, "Ä": 1}, "absent": "empty"},
        tables=[{"files": ["t.csv"], "key": "k", "text": ["x"]}],
    )
    assert Description.of(tomllib.loads(to_toml(data_set))) == data_set
