"""How the samples beside a tar were made."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import ctgpu
from ctgpu.checking.recipe import Recipe
from ctgpu.errors import NewerFormatError, UsageError
from ctgpu.shards.plan import Plan
from ctgpu.spec import CT_RATE
from ctgpu.testing.ctrate import lay_out_ct_rate
from ctgpu.volume.orientation import DEFAULT_RULES
from support.phantoms import COARSE_SPEC, chests


def beside(folder: Path) -> Recipe:
    return Recipe.beside(folder / "shard-000000.tar")


def stating(folder: Path, **stated: Any) -> Recipe:
    """Beside tars with a manifest alone."""
    (folder / "manifest.json").write_text(json.dumps(stated))
    return beside(folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made")
    lay_out_ct_rate(root / "source", chests(["train_1_a_1"], (24, 22, 16)), split="train")
    ctgpu.build(
        root / "out",
        source=root / "source",
        spec=replace(COARSE_SPEC, layout="DHW"),
        split="train",
        spacing_fallback="header",
        max_tilt_degrees=7.5,
        hu_guard="warn",
        device="cpu",
    )
    return root / "out"


def test_bare_tars_are_taken_for_ct_rates_contract(tmp_path: Path) -> None:
    recipe = beside(tmp_path)
    assert recipe == Recipe()
    assert (recipe.spec, recipe.split, recipe.plan) == (CT_RATE, "valid", None)
    assert (recipe.hu_guard, recipe.spacing_from_header) == ("refuse", False)


def test_a_plan_says_all_of_it(made: Path) -> None:
    recipe = beside(made)
    assert recipe.spec == replace(COARSE_SPEC, layout="DHW")
    assert (recipe.split, recipe.spacing_from_header, recipe.hu_guard) == ("train", True, "warn")
    assert recipe.rules == replace(DEFAULT_RULES, max_tilt_degrees=7.5)
    assert recipe.plan is not None
    assert recipe.plan.fingerprint == Plan.load(made).fingerprint


def test_a_manifest_says_as_much_but_which_samples_were_planned(made: Path, tmp_path: Path) -> None:
    recipe = stating(tmp_path, **json.loads((made / "manifest.json").read_text()))
    assert replace(beside(made), plan=None, folder=None, spacing_from_header=False) == recipe


@pytest.mark.parametrize("selection", [{}, {"hu_guard": "warn"}, {"hu_guard": None}])
def test_before_the_guard_was_recorded_it_let_most_through(
    tmp_path: Path, selection: dict[str, Any]
) -> None:
    assert stating(tmp_path, selection=selection).hu_guard == "warn"


def test_of_what_a_manifest_does_not_say_the_default_counts(tmp_path: Path) -> None:
    recipe = stating(tmp_path, total_samples=5)
    assert (recipe.spec, recipe.split, recipe.rules) == (CT_RATE, "valid", DEFAULT_RULES)


@pytest.mark.parametrize(
    "stated",
    [
        {"spec": {"shape_hwd": "large"}},
        {"spec": {"dtype": "float128"}},
        {"selection": {"max_tilt_degrees": "x"}},
    ],
)
def test_a_damaged_manifest_is_named(tmp_path: Path, stated: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"manifest\.json does not say how its samples were made"):
        stating(tmp_path, **stated)


def test_a_damaged_plan_is_no_reason_to_believe_the_manifest(made: Path, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes((made / "manifest.json").read_bytes())
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(UsageError, match=r"plan\.json"):
        beside(tmp_path)


def test_what_a_newer_ctgpu_wrote_is_called_so(made: Path, tmp_path: Path) -> None:
    plan = json.loads((made / "plan.json").read_text())
    (tmp_path / "plan.json").write_text(json.dumps(plan | {"format": "ctgpu-plan-99"}))
    with pytest.raises(NewerFormatError):
        beside(tmp_path)
