"""The originals of samples: where they are looked for, and that they are found."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from checking_cases import SPEC, STUDIES

import ctgpu
from ctgpu.checking.compare import compare_samples
from ctgpu.errors import UsageError
from ctgpu.testing.ctrate import Volume, lay_out_ct_rate
from ctgpu.testing.hub import LocalHub
from support.phantoms import SPACING_MM


def test_originals_whose_names_have_another_normal_form_are_found(
    tmp_path: Path, phantoms: dict[str, Volume]
) -> None:
    decomposed, composed = (unicodedata.normalize(form, "Müller é") for form in ("NFD", "NFC"))
    for folder, name in (("here", decomposed), ("copy", composed)):
        (tmp_path / folder).mkdir()
        np.savez(
            tmp_path / folder / f"{name}.npz",
            phantoms[STUDIES[0]].voxels,
            spacing=np.array(SPACING_MM),
        )
    ctgpu.build(tmp_path / "out", source=tmp_path / "here", spec=SPEC, device="cpu")
    for folder in ("here", "copy"):
        (found,) = compare_samples(tmp_path / "out", source=tmp_path / folder, num_samples=None)
        assert found.passed, found


def test_without_a_source_the_plans_own_is_used(built: Path) -> None:
    assert all(c.passed for c in compare_samples(built / "out", num_samples=2))


def test_a_data_set_from_the_hub_is_held_against_its_pinned_revision(
    tmp_path: Path, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LocalHub(built / "source", "someone/CT-RATE", token="hf_secret") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        ctgpu.build(tmp_path / "out", repo_id="someone/CT-RATE", spec=SPEC, device="cpu")
        hub.commit()
        found = list(compare_samples(tmp_path / "out", num_samples=2))
    assert [comparison.passed for comparison in found] == [True, True]


def test_a_sample_without_an_original_fails_alone(
    tmp_path: Path, built: Path, phantoms: dict[str, Volume]
) -> None:
    lay_out_ct_rate(tmp_path / "part", {k: phantoms[k] for k in STUDIES[:2]})
    found = list(compare_samples(built / "out", source=tmp_path / "part", num_samples=None))
    assert [comparison.passed for comparison in found] == [True, True, False]
    assert "no original of valid_3_a_1" in found[2].faults[0]
    assert found[2].to_dict()["max_ulp"] is None


def test_nothing_to_compare_with_is_said(tmp_path: Path, built: Path) -> None:
    (tar,) = (built / "out").glob("shard-000000.tar")
    (tmp_path / tar.name).symlink_to(tar)
    with pytest.raises(UsageError, match="no plan that names the originals"):
        list(compare_samples(tmp_path))
