"""``ctgpu doctor``."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from ctgpu.checking.doctor import Check, Report
from ctgpu.cli.doctor import next_steps, text_of
from support.command_line import run, run_here


def shown(report: Report) -> str:
    text = io.StringIO()
    Console(file=text, width=200).print(text_of(report, 200))
    return text.getvalue()


def test_each_check_has_its_mark_and_the_device_its_reason() -> None:
    checks = [
        Check("disk", "ok", "100 GB free"),
        Check("CuPy", "missing", "not installed"),
        Check("Hub", "failed", "says \x1b[2J [bold]no"),
    ]
    lines = [line.split() for line in shown(Report(checks, "cpu", "as asked")).splitlines()]
    assert [line[:2] for line in lines] == [
        ["ok", "disk"],
        ["--", "CuPy"],
        ["no", "Hub"],
        ["ok", "chosen"],
    ]
    # Nothing of it is obeyed, by the terminal or by rich.
    assert lines[2][-2:] == [r"\x1b[2J", "[bold]no"]
    assert "no device works: none has been found" in shown(Report([], None, "none has been found"))


@pytest.mark.slow
def test_its_json_says_the_same(tmp_path: Path) -> None:
    arguments = ("doctor", "--device", "cpu", "--output-dir", tmp_path)
    told = run_here(*arguments, "--json")
    assert (told.returncode, told.stderr) == (0, "")
    facts = json.loads(told.stdout)
    assert facts["device"] == "cpu"
    table = run(*arguments)
    assert (table.returncode, table.stderr) == (0, "")
    assert "chosen device  --device cpu: as asked" in table.stdout
    names = {check["name"] for check in facts["checks"]}
    assert {"CPU engine", "disk"} <= names
    assert all(name in table.stdout for name in names)


def test_a_device_that_there_is_not_is_said_and_ends_with_3(tmp_path: Path) -> None:
    result = run_here("doctor", "--device", "cuda:99", "--output-dir", tmp_path)
    assert result.returncode == 3
    assert "no device works" in result.stdout


@pytest.mark.parametrize("width", [50, 80])
def test_no_word_and_no_command_is_broken(width: int) -> None:
    text = "run `pip install -e '/a/rather/long/path/to/a/checkout[cuda12]'` or see what else says"
    report = Report(tuple(Check(name, "ok", text) for name in ("NVIDIA driver", "x")), "cpu", text)
    shown = io.StringIO()
    Console(file=shown, width=width).print(text_of(report, width), soft_wrap=True)
    lines = shown.getvalue().splitlines()
    assert " ".join(shown.getvalue().split()).count(text) == 3
    for line in lines:
        assert len(line.rstrip()) <= width or "`pip install -e" in line
    assert (
        sum("`pip install -e '/a/rather/long/path/to/a/checkout[cuda12]'`" in x for x in lines) == 3
    )


def test_it_ends_with_the_next_step(tmp_path: Path) -> None:
    place = ("--output-dir", tmp_path)
    good = run_here("doctor", "--device", "cpu", *place, COLUMNS="80")
    assert good.stdout.endswith("\n\nNext:\n  ctgpu demo\n  ctgpu plan --source FOLDER\n")
    lines = good.stdout.replace(str(tmp_path), "/tmp").splitlines()
    assert max(map(len, lines)) <= 80
    bad = run_here("doctor", "--device", "cuda:99", *place)
    assert bad.stdout.endswith("Next:\n  ctgpu doctor  # once what is marked `no` is mended\n")


def test_a_gpu_that_only_lacks_a_package_is_the_next_step() -> None:
    driver = Check("NVIDIA driver", "ok", "", {"install": "pip install 'ctgpu[cuda12]'"})
    for device in ("cpu", None):
        report = Report((driver, Check("CuPy", "failed", "not installed")), device, "")
        assert next_steps(report) == ("pip install 'ctgpu[cuda12]'", "ctgpu doctor")
    report = Report((driver, Check("CuPy", "ok", "13.4")), "cuda:0", "")
    assert next_steps(report)[0] == "ctgpu demo"
