"""``python -m benchmarks compare``: what got slower beyond the noise, and nothing else."""

from __future__ import annotations

import copy
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from made_results import MACHINE, result

from benchmarks.harness import compare
from benchmarks.harness.measuring import counted, measured
from benchmarks.harness.page import HERE

pytest.importorskip("scipy", reason="scipy (extra bench) is not installed")

RUNS = 7


def noisy(value: float, seed: int, *, runs: int = RUNS, noise: float = 0.03) -> list[float]:
    """Runs around `value`."""
    chance = random.Random(seed)
    return [value * (1 + chance.uniform(-noise, noise)) for _ in range(runs)]


def made(seed: int, **factors: float) -> dict[str, Any]:
    """A result; each factor makes the named quantity's runs longer or its rate higher."""
    values = {"ctgpu": 2.0, "old": 0.2, "peer": 0.5, "third": 0.7}
    rates = {
        name: measured(noisy(value * factors.get(name, 1.0), seed * 100 + n), "samples/s")
        for n, (name, value) in enumerate(values.items())
    }
    times = {
        name: measured(noisy(0.03 * factors.get(name, 1.0), seed * 100 + 50 + n), "s")
        for n, name in enumerate(("layout", "inflate", "threads"))
    }
    peak = [value * factors.get("peak", 1.0) for value in noisy(1e9, seed * 100 + 90)]
    return result(
        "made",
        contenders={name: {"rate": rate, "ctgpu_over_this": 1.0} for name, rate in rates.items()},
        times={name: {"time": time} for name, time in times.items()},
        peak_rss=measured(peak, "bytes"),
    )


def run(folder: Path, old: Any, new: Any) -> int:
    paths = [folder / "old.json", folder / "new.json"]
    for path, content in zip(paths, (old, new), strict=True):
        path.write_text(json.dumps(content), encoding="utf-8")
    return compare.main([str(path) for path in paths])


def listed(text: str, title: str) -> list[str]:
    """The quantities in the list under `title`."""
    lines = text.splitlines()
    begin = next((n for n, line in enumerate(lines) if line.startswith(title)), len(lines))
    names = []
    for line in lines[begin + 1 :]:
        if not line.startswith("  "):
            break
        names.append(line.strip().partition(":")[0])
    return names


@pytest.mark.slow
def test_noise_is_not_flagged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(1, 60, 2):
        assert run(tmp_path, made(seed), made(seed + 1)) == 0
        printed = capsys.readouterr().out
        assert "slower, or larger: nothing beyond the noise" in printed
        assert "MACHINE" not in printed


def test_what_got_slower_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, made(1), made(2, layout=1.3, ctgpu=0.8, inflate=0.7)) == 1
    printed = capsys.readouterr().out
    assert listed(printed, "slower") == ["contenders / ctgpu / rate", "times / layout / time"]
    assert listed(printed, "faster") == ["times / inflate / time"]
    assert printed.count("p = 0.00058, 7 and 7 runs") == 3


def test_a_higher_rate_is_faster_and_a_longer_time_slower(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, made(1), made(2, ctgpu=1.3)) == 0
    assert listed(capsys.readouterr().out, "faster") == ["contenders / ctgpu / rate"]
    assert run(tmp_path, made(1), made(2, layout=1.3)) == 1
    assert listed(capsys.readouterr().out, "slower") == ["times / layout / time"]


def test_more_memory_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, made(1), made(2, peak=1.5)) == 1
    assert listed(capsys.readouterr().out, "slower") == ["peak_rss"]


def test_a_change_too_small_to_matter_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    times = [measured([1.0 + n / 1e4 + late for n in range(RUNS)], "s") for late in (0.0, 0.01)]
    assert compare.Change.of(("time",), *times).p < 0.001
    assert run(tmp_path, *(result("made", time=time) for time in times)) == 0
    assert "within the noise: 1" in capsys.readouterr().out


def test_too_few_runs_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = made(1), made(2)
    old["once"], new["once"] = measured([1.0], "s"), measured([9.0], "s")
    assert run(tmp_path, old, new) == 0
    assert listed(capsys.readouterr().out, "too few runs to tell") == ["once"]


@pytest.mark.parametrize(("runs", "status"), [(4, 0), (5, 1)])
def test_five_runs_suffice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], runs: int, status: int
) -> None:
    old, new = (result("made", time=measured(noisy(s, s, runs=runs), "s")) for s in (1, 2))
    assert run(tmp_path, old, new) == status
    told = listed(capsys.readouterr().out, "slower" if status else "too few runs to tell")
    assert told == ["time"]


def test_the_effect_is_the_share_of_pairs_that_are_worse() -> None:
    for unit, share in (("s", 0.75), ("samples/s", 0.25)):
        old, new = measured([1.0, 3.0], unit), measured([2.0, 4.0], unit)
        assert compare.Change.of(("it",), old, new).effect == share
    alike = measured([1.0, 2.0], "s")
    assert compare.Change.of(("it",), alike, alike).effect == 0.5


def test_runs_that_mostly_overlap_are_noise_however_many_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = measured([1.0 + n / 100 for n in range(100)], "s")
    new = measured([1.2 + n / 100 for n in range(100)], "s")
    change = compare.Change.of(("time",), old, new)
    assert change.p < 1e-4
    assert change.factor > compare.SMALLEST_FACTOR
    assert change.effect < compare.LEAST_EFFECT
    assert run(tmp_path, result("made", time=old), result("made", time=new)) == 0
    assert "within the noise: 1" in capsys.readouterr().out


def test_what_only_one_holds_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = made(1), made(2)
    del new["times"]["layout"], old["times"]["threads"]
    new["times"]["inflate"]["time"]["unit"] = "bytes"
    assert run(tmp_path, old, new) == 0
    printed = capsys.readouterr().out
    assert listed(printed, "only in the old") == ["times / layout / time"]
    assert listed(printed, "only in the new") == ["times / threads / time"]
    assert listed(printed, "measured in another unit") == ["times / inflate / time"]


def test_another_machine_and_other_data_are_said_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = made(2)
    new["machine"] = MACHINE | {"cpu": "another CPU", "versions": {"numpy": "2.1"}}
    new["data"] = "other data"
    run(tmp_path, made(1), new)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "DIFFERENT MACHINE: cpu was made-up CPU, is another CPU"
    assert lines[1] == "DIFFERENT DATA: data was made-up data, is other data"
    assert lines[2] == "So a difference below says nothing about the code."
    assert lines[3] == "other versions: numpy 2.0 → 2.1"


def test_a_slower_machine_is_told_from_slower_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = dict.fromkeys(("ctgpu", "old", "peer", "third"), 0.7)
    slow |= dict.fromkeys(("inflate", "threads"), 1 / 0.7)
    assert run(tmp_path, made(1), made(2, **slow, layout=2 / 0.7)) == 1
    printed = capsys.readouterr().out
    assert "THE MACHINE, rather than the code, seems slower: the other contenders" in printed
    assert listed(printed, "slower also relative to that") == ["times / layout / time"]
    assert len(listed(printed, "slower, or larger")) == 7


def test_what_did_not_gain_from_a_faster_machine_got_slower(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fast = dict.fromkeys(("old", "peer", "third"), 1.5)
    fast |= dict.fromkeys(("inflate", "threads", "layout"), 1 / 1.5)
    assert run(tmp_path, made(1), made(2, **fast)) == 1
    printed = capsys.readouterr().out
    assert listed(printed, "slower also relative to that") == ["contenders / ctgpu / rate"]
    assert "slower, or larger: nothing beyond the noise" in printed


def test_slower_code_is_not_excused_as_a_slower_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = {"ctgpu": 0.6} | dict.fromkeys(("inflate", "threads", "layout"), 1.6)
    assert run(tmp_path, made(1), made(2, **ours)) == 1
    assert "MACHINE" not in capsys.readouterr().out


def test_contenders_that_differ_in_how_they_changed_do_not_stand_for_the_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, made(1), made(2, old=0.5, peer=0.6)) == 1
    printed = capsys.readouterr().out
    assert "MACHINE" not in printed
    assert printed.count("not ctgpu's own") == 2


def test_without_contenders_all_figures_stand_for_the_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = made(1), made(2, **dict.fromkeys(("inflate", "threads", "layout"), 1.6))
    del old["contenders"], new["contenders"]
    assert run(tmp_path, old, new) == 1
    printed = capsys.readouterr().out
    assert "seems slower: all figures changed by 1." in printed
    assert "would look the same" in printed
    assert "slower also relative to that: none" in printed


def broken_results() -> list[tuple[Any, str]]:
    """What is no result, and what is said of it."""
    empty, text, none = made(2), made(2), made(2)
    empty["peak_rss"]["runs"] = []
    text["peak_rss"]["runs"] = ["fast"]
    none = result("made")
    other = made(2) | {"benchmark": "other"}
    return [
        ([1], "is not a result of a benchmark"),
        ({"benchmark": "made"}, "is not a result of a benchmark"),
        (empty, "holds runs of peak_rss that are not numbers"),
        (text, "holds runs of peak_rss that are not numbers"),
        (none, "no measured quantity in common"),
        (other, "compare two results of one benchmark"),
    ]


@pytest.mark.parametrize(("new", "said"), broken_results())
def test_unusable_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], new: Any, said: str
) -> None:
    assert run(tmp_path, made(1), new) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.err.count("\n") == 1
    assert not printed.out


def test_files_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(json.dumps(made(1)))
    assert compare.main([str(good), str(bad)]) == 2
    assert "bad.json cannot be read: No such file" in capsys.readouterr().err
    bad.write_text("{")
    assert compare.main([str(good), str(bad)]) == 2
    assert "bad.json is not JSON" in capsys.readouterr().err


def test_why_a_file_cannot_be_read_is_never_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, encoding: str) -> str:
        raise ConnectionError("the server went away")  # without a number

    monkeypatch.setattr(Path, "read_text", fail)
    assert compare.main([str(tmp_path / "good.json")] * 2) == 2
    assert "good.json cannot be read: the server went away" in capsys.readouterr().err


def test_a_result_is_the_same_as_itself(tmp_path: Path) -> None:
    old = made(1)
    old["nothing"] = measured([0] * RUNS, "bytes")
    assert run(tmp_path, old, copy.deepcopy(old)) == 0


def test_from_the_command_line(tmp_path: Path) -> None:
    for name, content in (("old", made(1)), ("new", made(2, layout=1.3))):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks", "compare"),
            *(str(tmp_path / "old.json"), str(tmp_path / "new.json")),
        ],
        cwd=HERE.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (1, "")
    assert "times / layout / time" in ran.stdout


def test_a_reader_that_went_away_ends_it_as_sigpipe_does(tmp_path: Path) -> None:
    for name, content in (("old", made(1)), ("new", made(2, layout=1.3))):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    read, write = os.pipe()
    os.close(read)
    try:
        ran = subprocess.run(
            [
                *(sys.executable, "-m", "benchmarks", "compare"),
                *(str(tmp_path / "old.json"), str(tmp_path / "new.json")),
            ],
            cwd=HERE.parent,
            stdout=write,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(write)
    assert (ran.returncode, ran.stderr) == (-signal.SIGPIPE, "")


def test_what_is_counted_differs_by_any_difference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def static(registers: int, spilled: int, instructions: int) -> dict[str, Any]:
        counts = {
            "registers": counted(registers, "registers"),
            "spilled": counted(spilled, "bytes"),
            "instructions": counted(instructions, "instructions"),
        }
        return result("static", variants={"usual": counts}, time=measured(noisy(1.0, 1), "s"))

    assert run(tmp_path, static(64, 0, 1000), static(64, 24, 1000)) == 1
    printed = capsys.readouterr().out
    assert listed(printed, "slower, or larger") == ["variants / usual / spilled"]
    assert "(from nothing, counted)" in printed
    assert run(tmp_path, static(64, 24, 1000), static(63, 24, 1000)) == 0
    assert listed(capsys.readouterr().out, "faster, or smaller") == ["variants / usual / registers"]
    assert run(tmp_path, static(64, 0, 1000), static(64, 0, 1001)) == 1
    capsys.readouterr()
    assert run(tmp_path, static(64, 0, 1000), static(64, 0, 1000)) == 0
    assert "nothing beyond the noise" in capsys.readouterr().out
