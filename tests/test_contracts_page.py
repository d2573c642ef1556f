"""What docs/contracts.md shows is true: its fields, its defaults, its picture."""

from __future__ import annotations

import dataclasses
import re
import runpy
from pathlib import Path

import pytest

from ctgpu.arguments import options_of
from ctgpu.spec import Spec

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE = (DOCS / "contracts.md").read_text()


def test_every_field_and_every_flag_of_the_contract_is_in_it() -> None:
    for one, offered in options_of(Spec):
        assert f"`{one.name}`" in PAGE, one.name
        assert f"`{offered.flag or '--' + one.name.replace('_', '-')}`" in PAGE, one.name
    assert {one.name for one, _ in options_of(Spec)} == {f.name for f in dataclasses.fields(Spec)}


def test_its_code_makes_the_spec_of_its_command() -> None:
    (code,) = re.findall(r"```python\n(spec = .*?\n\))", PAGE, re.DOTALL)
    found: dict[str, object] = {}
    exec(f"import ctgpu\n{code}", found)
    assert found["spec"] == Spec(
        orientation="RAS",
        target_spacing_mm=(1.5, 1.5, 3),
        grid="origin",
        shape_hwd=(224, 224, 160),
        clip="after",
        output_range=(0, 1),
    )
    options = "--orientation RAS --spacing 1.5,1.5,3 --grid origin --shape 224,224,160"
    assert f"{options} --clip after --output-range 0,1" in PAGE
    assert found["spec"] == Spec.preset("merlin")


def test_its_table_of_presets_is_of_today() -> None:
    assert runpy.run_path(str(DOCS / "presets.py"))["with_table"](PAGE) == PAGE


@pytest.mark.slow
def test_its_picture_is_small_and_made_by_its_script(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert (DOCS / "contracts.png").stat().st_size < 200_000
    runpy.run_path(str(DOCS / "contracts.py"))["draw"](tmp_path / "made.png", dots_per_inch=20)
    assert (tmp_path / "made.png").read_bytes()[:4] == b"\x89PNG"
