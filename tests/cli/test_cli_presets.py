"""``ctgpu presets`` and ``--preset``."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import typer
from typer.testing import CliRunner

from ctgpu.building.request import Request
from ctgpu.cli.commands import app
from ctgpu.cli.options import flags_of, takes
from ctgpu.spec import CT_RATE, PRESETS, Spec
from ctgpu.spec.presets import presets
from ctgpu.spec.words import in_words


def parsed(flags: str) -> Spec | None:
    """The spec that `ctgpu build` makes of flags."""
    seen: list[Spec | None] = []

    @takes(Request)
    def command(*, options: Request) -> None:
        seen.append(options.spec)

    one = typer.Typer()
    one.command()(command)
    result = CliRunner().invoke(one, flags.split(), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return seen[0]


@pytest.mark.parametrize("name", presets())
def test_a_flag_says_it_and_so_do_the_flags_that_are_shown(name: str) -> None:
    spec = Spec.preset(name)
    assert parsed(f"--preset {name}") == spec
    assert (parsed(flags_of(spec)) or CT_RATE) == spec
    assert parsed(f"--preset {name} --shape 64,48,32") == replace(spec, shape_hwd=(64, 48, 32))


def test_other_words_for_one_are_flags_too() -> None:
    spec = Spec(hu_window=None, normalise="percentiles", percentiles=(0.5, 99.5), pad_value=-1)
    assert "--hu-window none" in flags_of(spec)
    assert parsed(flags_of(spec)) == spec


def test_they_are_listed_and_shown() -> None:
    listed = CliRunner().invoke(app, ["presets"], env={"COLUMNS": "200"})
    assert listed.exit_code == 0
    for name, one in presets().items():
        assert any(line.startswith(name) for line in listed.output.splitlines())
        shown = CliRunner().invoke(app, ["presets", name])
        assert shown.exit_code == 0
        for text in (
            in_words(PRESETS[name]),
            flags_of(PRESETS[name]),
            one.version,
            *one.sources.values(),
        ):
            assert text in shown.output, name


@pytest.mark.slow
def test_the_command_line_ends_in_a_sentence() -> None:
    for arguments in (["presets", "merln"], ["plan", "--preset", "merln", "--source", "."]):
        run = subprocess.run(
            [sys.executable, "-m", "ctgpu.cli", *arguments], capture_output=True, text=True
        )
        assert run.returncode == 2
        assert run.stderr.strip().endswith("preset is 'merln'; did you mean merlin?")
