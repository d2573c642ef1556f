"""Flags: sizes, ranges and numbers out of their notation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from ctgpu.arguments import option, options_of
from ctgpu.building.request import Common
from ctgpu.cli.options import (
    Debug,
    RayCommand,
    names_flags,
    parse_number,
    parse_numbers,
    parse_range,
    parse_size,
    shorten,
    spec_of,
    takes,
)
from ctgpu.errors import UsageError
from ctgpu.spec import CT_RATE
from support.command_line import run_here


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("8G", 8 * 10**9), ("500m", 5 * 10**8), ("1.5GiB", 3 << 29), ("4096", 4096), ("2 kB", 2000)],
)
def test_sizes(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "G", "8X", "-1G", "8ib", "1e3", "9" * 400, "inf", "nan", "٣"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="is not a size") as caught:
        parse_size(text)
    assert len(str(caught.value)) < 150


@pytest.mark.parametrize("text", ["0", "0.0001", "0.000G", "0GiB"])
def test_a_size_of_nothing_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=f"'{text}' is less than a byte"):
        parse_size(text)


def test_a_size_is_exact_however_large() -> None:
    assert parse_size("999999999999999999") == 999_999_999_999_999_999
    assert parse_size("0.001k") == 1


@pytest.mark.parametrize(
    "text", ["", "-1", "3-1", "a", "1-", "0-999999999999999999999", "9" * 5000, "²", "0x1"]
)
def test_what_is_no_range_of_shards(text: str) -> None:
    with pytest.raises(UsageError, match="--shards is ") as caught:
        parse_range(text)
    assert len(str(caught.value)) < 150


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("build --memory-limit 0", "'0' is less than a byte"),
        ("build --memory-limit=", "'' is not a size"),
        ("build --memory-limit 999999999999999999T", "--memory-limit is 9999"),
        ("build --shards=", "--shards is ''"),
        ("build --num-workers 1000000000", "--num-workers is 1000000000"),
        ("build --limit 99999999999999999999", "--limit is 99999999999999999999"),
        ("plan --preset nope", "--preset is 'nope'; it is one of ct-rate"),
        ("build --preset nope", "--preset is 'nope'; it is one of ct-rate"),
        ("build --spacing nan,1,1", "--spacing is (nan"),
        ("build --spacing 1e400,1,1", "--spacing is (inf"),
        ("build --spacing 1e-320,1,1", "--spacing is (1e-320"),
        (f"build --shape {'9' * 400},1,1", "--shape is (inf"),
        ("build --hu-window -1e308,1e308", "--hu-window is (-1e+308"),
        ("build --spacing 1", "--spacing is '1'; write 3 numbers with commas between them"),
        ("build --spacing 0,1,1", "--spacing is (0.0, 1.0, 1.0); every spacing must be above"),
        ("build --shape 480,480", "--shape is '480,480'; write 3 numbers"),
        ("build --shape 1.5,2,2", "--shape is (1.5, 2.0, 2.0); it takes three whole numbers"),
        ("build --hu-window 5,1", "--hu-window is (5.0, 1.0); the first must be below"),
        ("build --layout WHD", "--layout is 'WHD'; it is one of HWD, DHW"),
        ("build --clip never", "--clip is 'never'; it is one of before, after"),
        ("convert --input-pattern {source} --intensity x", "--intensity is 'x'; it is one of"),
        ("build --hu-window nan,0", "--hu-window is (nan"),
        ("convert --input-pattern {source} --memory-limit 0", "'0' is less than a byte"),
        ("plan --memory-limit 0", "'0' is less than a byte"),
        ("plan --calibrate -1", "--calibrate is -1"),
        ("inspect {source} --num-samples 0", "--num-samples is 0"),
        ("inspect {source} --num-samples 99999999999999999999", "--num-samples is 9999"),
        ("verify {source} --num-samples 0", "--num-samples is '0'"),
        (f"verify {{source}} --num-samples {'9' * 5000}", "--num-samples is '9999"),
    ],
    ids=lambda text: text[:50],
)
def test_a_number_that_cannot_be_is_refused_before_any_work(
    tmp_path: Path, source: Path, command: str, sentence: str
) -> None:
    words = command.format(source=source).split()
    if words[0] in ("build", "convert"):
        words += ["--output-dir", str(tmp_path / "out"), "--device", "cpu"]
    if words[0] in ("build", "plan"):
        words += ["--source", str(source)]
    result = run_here(*words)
    assert result.returncode == 2, result.stderr
    assert result.stderr.splitlines()[-1].startswith("ctgpu: ")
    assert result.stderr.count("\n") == 1
    assert sentence in result.stderr
    assert not (tmp_path / "out").exists()


def test_ranges_include_both_ends() -> None:
    assert parse_range("3-7") == range(3, 8)
    assert parse_range("4") == range(4, 5)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("0.75,0.75,1.5", (0.75, 0.75, 1.5)), (" 1 , 2,3e0", (1, 2, 3)), ("1,inf,nan", None)],
)
def test_numbers_with_commas_between_them(text: str, numbers: tuple[float, ...] | None) -> None:
    found = parse_numbers(text, "--spacing", "0.75,0.75,1.5")
    # Whether they make sense is what the spec says.
    assert found == numbers if numbers else len(found) == 3


def test_what_are_not_so_many_numbers_is_refused_by_flag_and_example() -> None:
    for text in ("1,2", "1,2,3,4", "1,2,", "a,b,c", ""):
        with pytest.raises(UsageError, match=r"^--s is .*; write 3 numbers .* such as 1,1,2$"):
            parse_numbers(text, "--s", "1,1,2")
    with pytest.raises(UsageError, match=r"^--pad-value is 'air'; write a number"):
        parse_number("air", "--pad-value")
    assert parse_number("-1.5", "--pad-value") == -1.5


def test_long_values_are_shortened_in_messages() -> None:
    assert shorten("a" * 60) == repr("a" * 60)
    assert shorten("a" * 61) == repr("a" * 57 + "…")


def test_options_that_say_nothing_make_no_spec_and_others_start_from_ct_rates() -> None:
    assert spec_of(None, {}) is None
    assert spec_of("ct-rate", {}) == CT_RATE
    assert spec_of(None, {"layout": "DHW"}) == replace(CT_RATE, layout="DHW")
    with pytest.raises(UsageError, match=r"^preset is 'nope'; it is one of ct-rate"):
        spec_of("nope", {"layout": "DHW"})


@dataclass(frozen=True, kw_only=True)
class Wishes(Common):
    """What a made-up command takes."""

    memory: int | None = option(None, help="How much.", written="size", flag="--most-memory")
    times: int = option(3, help="How often.")


def wishing() -> tuple[typer.Typer, list[tuple[Any, ...]]]:
    """A command of these flags, and what it was called with."""
    called: list[tuple[Any, ...]] = []
    app = typer.Typer()

    @takes(Wishes, without={one.name for one, _ in options_of(Common)}, times="As often as this.")
    def command(folder: Path, *, options: Wishes, debug: Debug = False) -> None:
        called.append((folder, options.memory, options.times, debug))
        if options.times == 9:
            raise UsageError("times is 9; wish less often")

    app.command()(names_flags(command))
    return app, called


def test_a_class_of_options_gives_a_command_its_flags() -> None:
    app, called = wishing()
    ended = CliRunner().invoke(app, ["here", "--most-memory", "2k", "--times", "5", "--debug"])
    assert ended.exit_code == 0, ended.output
    assert CliRunner().invoke(app, ["here"]).exit_code == 0
    assert called == [(Path("here"), 2000, 5, True), (Path("here"), None, 3, False)]
    text = " ".join(CliRunner().invoke(app, ["--help"], env={"COLUMNS": "120"}).output.split())
    assert "--most-memory" in text
    assert "How much." in text
    # Of this command another help was stated.
    assert "As often as this." in text
    assert "How often." not in text
    assert "--dataset" not in text


def test_a_message_that_names_a_parameter_names_its_flag() -> None:
    app, _ = wishing()
    ended = CliRunner().invoke(app, ["here", "--times", "9"])
    assert isinstance(ended.exception, UsageError)
    assert str(ended.exception) == "--times is 9; wish less often"


@pytest.mark.parametrize(
    ("words", "ray"),
    [
        ([], None),
        (["--ray"], "auto"),
        (["--ray", "--times", "4"], "auto"),
        (["--ray", "host:1"], "host:1"),
        (["--ray=host:1", "--times", "4"], "host:1"),
    ],
)
def test_ray_may_stand_without_an_address(words: list[str], ray: str | None) -> None:
    app, seen = typer.Typer(), []

    @app.command(cls=RayCommand)
    def command(ray: str | None = None, times: int = 1) -> None:
        seen.append((ray, times))

    assert CliRunner().invoke(app, words).exit_code == 0
    assert seen == [(ray, 4 if "--times" in words else 1)]
