"""The members beside a volume: labels, report and JSON, as bytes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ctgpu.building.members import (
    label_bytes,
    relabelled_metadata,
    report_bytes,
    sample_metadata,
    says_the_same,
    to_json_bytes,
)
from ctgpu.shards.record import Member, SampleEntry, checksum
from ctgpu.sources.tables import SampleRow
from ctgpu.spec import Spec
from ctgpu.volume.prepare import PreparedVolume, prepare_volume
from ctgpu.volume.raw import RawVolume
from support.phantoms import chest

#: Three unequal axes: one is padded, one cropped.
SPEC = Spec(target_spacing_mm=(4.0, 5.0, 6.0), shape_hwd=(30, 10, 14))
ROW = SampleRow(
    np.array([0, 1, np.nan], np.float32),
    True,
    {"Findings_EN": "Klar ü."},
    "Klar ü.",
    rescale_pair=(1.0, -1024.0),
    carried={"age": "61"},
)


def prepared(spec: Spec = SPEC, **facts: Any) -> PreparedVolume:
    volume = chest((24, 22, 16))
    raw = RawVolume(volume.voxels, volume.spacing_mm, **facts)
    return prepare_volume(
        raw, spec=spec, spacing_mm=volume.spacing_mm, spacing_source="csv", intensity="hu"
    )


def metadata_of(made: PreparedVolume, **more: Any) -> dict[str, Any]:
    stated = {"study_id": "a", "source_path": "a.nii", "source_revision": "1", "report": {}}
    stated |= {"fingerprint": "0" * 16, "payload_xxh3_128": "1" * 32}
    return sample_metadata(made, **(stated | more))


def test_a_prediction_can_be_mapped_back_onto_the_scan() -> None:
    made = prepared()
    facts = metadata_of(made)
    assert facts["shape"] == facts["volume_shape"] == [30, 10, 14]
    assert facts["dtype"] == facts["volume_dtype"] == "float16"
    assert facts["source"]["shape"] == [24, 22, 16]
    assert facts["source"]["spacing_mm"] == [3.5, 3.0, 5.0]
    assert facts["crop_start"][1] > 0
    assert facts["pad_before"][0] > 0
    # The middle of the output is the middle of the scan, by the two affines.
    middle = [*((np.array(SPEC.shape_hwd) - 1) / 2), 1]
    there = np.array(facts["affine"]) @ middle
    middle = [*((np.array([24, 22, 16]) - 1) / 2), 1]
    assert there == pytest.approx(np.array(facts["source"]["affine"]) @ middle, abs=3.1)


def test_what_is_not_known_is_left_out_and_what_is_is_stated() -> None:
    plain = metadata_of(prepared())
    assert not {"orientation", "normalisation", "columns"} & plain.keys()
    assert not {"stated_rescale", "members"} & plain["source"].keys()
    assert plain["source"]["affine_source"] == "spacing"
    assert plain["source"]["orientation"] is None
    lps = np.diag([-3.5, -3.0, 5.0, 1.0])
    turned = replace(SPEC, orientation="RAS", normalise="minmax", hu_window=None)
    full = metadata_of(
        prepared(turned, affine=lps),
        carried={"age": "61"},
        stated_rescale=(1.0, -1024.0),
        read_xxh3_128={"volume": "2" * 32},
    )
    assert full["orientation"] == "RAS"
    assert (full["source"]["orientation"], full["source"]["affine_source"]) == ("LPS", "header")
    assert full["source"]["spacing_mm"] == [3.5, 3.0, 5.0]
    assert {"scale", "offset", "pad_value"} <= full["normalisation"].keys()
    assert full["columns"] == {"age": "61"}
    assert full["source"]["stated_rescale"] == [1.0, -1024.0]
    assert full["source"]["members"] == {"volume": "2" * 32}
    assert json.loads(to_json_bytes(full)) == full


@pytest.mark.parametrize("pair", [None, (math.nan, 0.0), (1.0, math.inf)])
def test_a_pair_that_is_none_is_not_stated(pair: tuple[float, float] | None) -> None:
    assert "stated_rescale" not in metadata_of(prepared(), stated_rescale=pair)["source"]


def test_labels_are_little_endian_float32_and_the_report_utf8() -> None:
    assert np.frombuffer(label_bytes(ROW), "<f4").tobytes() == ROW.labels.tobytes()
    swapped = replace(ROW, labels=ROW.labels.astype(">f4"))
    assert label_bytes(swapped) == label_bytes(ROW)
    assert report_bytes(ROW).decode() == "Klar ü."
    assert label_bytes(replace(ROW, labels=np.empty(0, np.float32))) == b""


def test_a_stored_sample_says_the_same_as_its_row_or_not() -> None:
    contents = {"cls": label_bytes(ROW), "txt": report_bytes(ROW)}
    members = {name: Member(0, len(c), checksum(c)) for name, c in contents.items()}
    entry = SampleEntry("a", "a", 0, 1024, members, True)
    assert says_the_same(entry, ROW)
    assert says_the_same(entry, replace(ROW, carried={}, report={}))
    assert not says_the_same(entry, replace(ROW, text="Klar u."))
    assert not says_the_same(entry, replace(ROW, labels=1 - ROW.labels))


def test_relabelled_it_says_what_the_tables_say_now_and_the_rest_stays() -> None:
    before = metadata_of(
        prepared(),
        report={"Findings_EN": "Old."},
        carried={"age": "60"},
        stated_rescale=(2.0, 0.0),
        read_xxh3_128={"volume": "2" * 32, "txt": "3" * 32},
    )
    row = replace(ROW, read_xxh3_128={"txt": "4" * 32})
    take = {"report": True, "stated_rescale": True, "carried": True}
    after = relabelled_metadata(before, row, **take)
    assert after["report"] == {"Findings_EN": "Klar ü."}
    assert after["columns"] == {"age": "61"}
    assert after["source"]["stated_rescale"] == [1.0, -1024.0]
    assert after["source"]["members"] == {"volume": "2" * 32, "txt": "4" * 32}
    changed = {"report", "columns", "source"}
    assert {k: v for k, v in after.items() if k not in changed} == {
        k: v for k, v in before.items() if k not in changed
    }
    # What is not taken stays; a mapping that was given is not changed.
    kept = relabelled_metadata(before, replace(ROW, carried={}), **dict.fromkeys(take, False))
    assert kept == before
    assert before["source"]["stated_rescale"] == [2.0, 0.0]
    gone = relabelled_metadata(before, replace(ROW, carried={}, rescale_pair=None), **take)
    assert "columns" not in gone
    assert "stated_rescale" not in gone["source"]


def test_what_earlier_versions_did_not_record_is_not_added() -> None:
    before = metadata_of(prepared())
    row = replace(ROW, read_xxh3_128={"txt": "4" * 32})
    after = relabelled_metadata(before, row, report=False, stated_rescale=True, carried=True)
    assert after["source"] == before["source"]


def test_json_depends_on_the_value_alone_and_holds_no_nan() -> None:
    assert to_json_bytes({"b": 1, "a": "ü"}) == to_json_bytes({"a": "ü", "b": 1})
    assert to_json_bytes({"b": [1, 2.5], "a": "ü"}) == '{"a":"ü","b":[1,2.5]}'.encode()
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json_bytes({"a": math.nan})
