"""``python -m benchmarks``: one page of every benchmark."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest
from made_results import result

from benchmarks.__main__ import main
from benchmarks.harness import page
from benchmarks.harness.measuring import counted, measured

WRITES = """
import json, sys
assert sys.argv[1] == "--quick"
with open(sys.argv[sys.argv.index("--json") + 1], "w") as file:
    file.write(RESULT)
"""
NO_GPU = "import sys\nprint('this benchmark needs a GPU: none', file=sys.stderr)\nsys.exit(3)\n"
FAILS = "raise SystemExit('the disk is full')\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of benchmarks: one that works and one that needs a GPU."""
    contenders = {
        "ctgpu": {"rate": measured([20.0], "samples/s"), "ctgpu_over_this": 1.0},
        "another way": {"rate": measured([5.0], "samples/s"), "ctgpu_over_this": 4.0},
    }
    made = json.dumps(result("works", contenders=contenders))
    here = tmp_path / "benchmarks"
    here.mkdir()
    (here / "run_works.py").write_text(f"RESULT = {made!r}\n{WRITES}")
    (here / "run_gpu.py").write_text(NO_GPU)
    (here / "library.py").write_text(FAILS)
    monkeypatch.setattr(page, "HERE", here)
    return here


def test_every_benchmark_is_found() -> None:
    names = {script.stem for script in page.scripts()}
    assert {"run_build", "run_preprocess", "run_gpu", "run_loading", "run_reliability"} <= names
    assert {"run_contracts", "run_distribute", "project"} <= names
    assert not names & {"plots", "report", "__main__"}


def test_a_script_stands_for_its_question_and_nothing_else() -> None:
    for script in [*page.scripts(), page.HERE / "report.py", page.HERE / "plots.py"]:
        lines = script.read_text(encoding="utf-8").splitlines()
        assert len(lines) <= 5, script
    others = [path for path in page.HERE.rglob("*.py") if path.parent != page.HERE]
    assert len(others) > 20
    assert not [path for path in others if "sys.path" in path.read_text(encoding="utf-8")]


def test_a_question_outlives_the_connections_that_it_breaks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those that only print end by SIGPIPE, as any program does."""
    monkeypatch.setattr(sys, "argv", ["benchmarks/run_gpu.py", "--help"])
    with pytest.raises(SystemExit):
        main()
    assert signal.getsignal(signal.SIGPIPE) == signal.SIG_IGN


def test_a_missing_gpu_is_no_failure(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert page.main(["--keep", str(folder / "kept")]) == 0
    printed = capsys.readouterr().out
    assert "run_works: ok, " in printed
    assert "another way  5.00 samples/s, ctgpu over this 4.00 ×" in printed
    assert "run_gpu: needs a GPU, " in printed
    assert "this benchmark needs a GPU: none" in printed
    assert "made-up CPU" in printed
    assert printed.endswith("1 ok, 1 needs a GPU\n")
    assert [path.name for path in (folder / "kept").iterdir()] == ["works.json"]


def test_a_failure_is_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "run_broken.py").write_text(FAILS)
    (folder / "project.py").write_text("pass\n")
    assert page.main([]) == 1
    printed = capsys.readouterr().out
    assert "run_broken: failed, " in printed
    assert "the disk is full" in printed
    assert "it wrote no result" in printed
    assert printed.endswith("1 ok, 1 needs a GPU, 2 failed\n")


def test_only_a_gpus_benchmark_may_need_one(folder: Path) -> None:
    (folder / "run_works.py").write_text(NO_GPU)
    assert page.main([]) == 1


def test_without_contenders_it_shows_what_was_tried_and_measured() -> None:
    question = {"tried": 50, "tried_means": "kills", "wrong": 0, "wrong_means": "files that differ"}
    made = result(
        "reliability", verdict={"kills": question}, memory={"peak": measured([2e9], "bytes")}
    )
    assert list(page.headlines(made)) == [
        ("kills", "50 tried, 0 files that differ"),
        ("memory", "peak 2.00 GB"),
    ]


def test_a_simulation_is_not_passed_off_as_measured() -> None:
    made = result("project", largest_deviation=0.0123, volumes=5)
    assert list(page.headlines(made)) == [("not measured: largest deviation", "0.0123")]


def test_a_line_has_what_was_measured_of_something_and_its_ratios() -> None:
    of = {"time": measured([0.5], "s"), "cpu": measured([0.25], "s"), "ctgpu_over_this": 2.0}
    counts = {f"count {n}": counted(1200 + n, "instructions") for n in range(10)}
    made = result("made", warm={"contenders": {"ctgpu": of}}, variants={"usual": counts})
    (contender, what), (variant, all_of) = page.headlines(made)
    assert (contender, what) == ("warm / ctgpu", "500 ms, cpu 250 ms, ctgpu over this 2.00 ×")
    assert variant == "variants / usual"
    assert all_of.startswith("count 0 1,200, count 1 1,201, ")
    assert all_of.endswith("count 7 1,207, and 2 more")


def test_a_part_names_how_much_of_it_is_not_shown() -> None:
    times = {str(n): {"time": measured([1.0], "s")} for n in range(5)}
    assert len(page.part(result("made", times=times))) == 5
    assert page.part(result("made", times=times), most=3)[3:] == ["  and 2 more"]
