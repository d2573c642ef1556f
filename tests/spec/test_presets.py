"""Presets by name: in Python, on the command line, and in folders that were begun with one."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import ctgpu
from ctgpu.errors import CtgpuError, UsageError
from ctgpu.spec import CT_RATE, PRESETS, Spec
from ctgpu.spec import presets as module
from ctgpu.spec.presets import preset, presets
from ctgpu.testing.ctrate import Volume, chest_phantom, lay_out_ct_rate

#: A volume that is made in no time.
TINY = {"target_spacing_mm": (12, 12, 12), "shape_hwd": (24, 20, 16)}


def test_each_states_where_it_was_read() -> None:
    assert len(presets()) >= 12
    for name, one in presets().items():
        assert one.title, name
        assert one.files, name
        for file, address in one.sources.items():
            path, first, last = re.fullmatch(r"(.+):(\d+)-(\d+)", file).groups()  # type: ignore[union-attr]
            assert int(first) < int(last)
            if one.repository.startswith("https://github.com/"):
                assert re.fullmatch("[0-9a-f]{40}", one.version), name
                assert address == f"{one.repository}/blob/{one.version}/{path}#L{first}-L{last}"
            else:
                assert one.version in address == one.repository, name
        assert (one.mean_hu is None) == (one.most_hu is None), name
        is_same = one.mean_hu is None and one.precision_hu is None and one.step_share == 0.001
        assert is_same or one.differs, name


def test_the_default_contract_is_one_of_them() -> None:
    assert Spec.preset("ct-rate") == CT_RATE == PRESETS["ct-rate"]
    assert Spec.preset("ct-rate-dhw") == Spec(layout="DHW") == Spec.preset("ct-chat")
    assert list(PRESETS) == list(presets())
    assert ctgpu.PRESETS is PRESETS


def test_merlin_by_hand() -> None:
    assert Spec.preset("merlin") == Spec(
        orientation="RAS",
        target_spacing_mm=(1.5, 1.5, 3),
        grid="origin",
        shape_hwd=(224, 224, 160),
        clip="after",
        output_range=(0, 1),
    )


def test_fields_can_be_different() -> None:
    spec = Spec.preset("merlin", dtype="uint8", shape_hwd=(64, 64, 64))
    assert spec == replace(Spec.preset("merlin"), dtype="uint8", shape_hwd=(64, 64, 64))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("merln", "preset is 'merln'; did you mean merlin?"),
        ("Merlin", "preset is 'Merlin'; did you mean merlin?"),
        ("spectr", "preset is 'spectr'; did you mean spectre or spectre-vla?"),
        ("nope", "preset is 'nope'; it is one of ct-rate, ct-rate-dhw, "),
        (7, "preset is 7; it is one of ct-rate"),
        (None, "preset is None; it is one of ct-rate"),
    ],
)
def test_a_name_that_is_none(name: Any, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        Spec.preset(name)
    assert str(caught.value).startswith(sentence)


def test_a_change_that_contradicts_the_preset_says_so() -> None:
    with pytest.raises(UsageError) as caught:
        Spec.preset("m3d", target_spacing_mm=(1, 1, 1))
    assert str(caught.value) == (
        "target_spacing_mm is (1.0, 1.0, 1.0) and fit is 'stretch': stretching to a shape takes no "
        "spacing; fit comes from preset m3d"
    )
    # Not where the preset has no part in it.
    with pytest.raises(UsageError, match=r"takes three whole numbers from 1 to 65535$"):
        Spec.preset("m3d", shape_hwd=(0, 1, 1))


# ---- folders ----------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path) -> Path:
    volume = Volume(chest_phantom((40, 36, 30), (8, 8, 8)), (8.0, 8.0, 8.0))
    lay_out_ct_rate(tmp_path / "source", {"valid_1_a_1": volume, "valid_2_a_1": volume})
    return tmp_path / "source"


def test_a_folder_goes_on_when_its_preset_means_something_else(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    spec = Spec.preset("ct2rep", **TINY)
    options: dict[str, Any] = {"output_dir": out, "source": source, "samples_per_shard": 1}
    ctgpu.build(spec=spec, shards=range(1), **options)
    assert json.loads((out / "plan.json").read_text())["spec"] == spec.to_dict()

    changed = replace(preset("ct2rep"), spec={"hu_window": [-900, 100]} | TINY)
    monkeypatch.setattr(module, "presets", lambda: {"ct2rep": changed})
    report = ctgpu.build(**options)
    assert report.manifest["total_samples"] == 2
    with pytest.raises(CtgpuError, match="hu_window"):
        ctgpu.build(spec=Spec.preset("ct2rep", **TINY), **options)
