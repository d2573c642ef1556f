"""Every result can be drawn, and the picture shows something."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from drawn import assert_drawn, texts
from made_results import gpu_result, result

from benchmarks.harness import page
from benchmarks.harness.measuring import measured
from benchmarks.publishing import bars

matplotlib = pytest.importorskip("matplotlib", reason="matplotlib (extra bench) is not installed")


def test_a_gpus_result_is_drawn(tmp_path: Path) -> None:
    bars.draw(gpu_result(), tmp_path / "new" / "gpu.png")
    assert_drawn(tmp_path / "new" / "gpu.png")
    written = texts(bars.figure_of(gpu_result()))
    assert "made-up GPU" in written
    assert "made-up data" in written
    assert "45.5 %" in written


def test_a_benchmark_without_a_picture_of_its_own_is_drawn_as_bars(tmp_path: Path) -> None:
    made = result(
        "unheard of",
        contenders={
            name: {"rate": measured([value, 1.2 * value], "samples/s")}
            for name, value in (("ctgpu", 20.0), ("another way", 0.2))
        },
        peak=measured([0, 0], "bytes"),
    )
    assert made["benchmark"] not in bars.PICTURES
    bars.draw(made, tmp_path / "bars.png")
    assert_drawn(tmp_path / "bars.png")
    written = texts(bars.figure_of(made))
    for text in ("another way", "22.0 samples/s", "samples/s (log scale)", "0 bytes"):
        assert text in written
    bars.draw(result("nothing measured"), tmp_path / "nothing.png")


def test_what_went_wrong_is_red_and_what_was_not_tried_is_named() -> None:
    question = {"tried_means": "kills", "wrong_means": "files that differ"}
    made = result(
        "reliability",
        verdict={
            "kills": question | {"tried": 50, "wrong": 2},
            "no_space": question | {"tried": 0, "wrong": 0},
        },
    )
    figure = bars.figure_of(made)
    assert "50 tried, 2 files that differ" in texts(figure)
    assert "not tried on this machine" in texts(figure)
    colours = {text.get_text(): text.get_color() for text in figure.axes[0].texts}
    assert colours["50 tried, 2 files that differ"] == bars.BAD


def test_it_redraws_a_result_from_its_file(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(json.dumps(gpu_result()))
    subprocess.run(
        [
            *(sys.executable, "-W", "error", str(page.HERE / "plots.py")),
            *(str(tmp_path / "result.json"), str(tmp_path / "out.png")),
        ],
        check=True,
    )
    assert_drawn(tmp_path / "out.png")


def test_without_matplotlib_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit, match=r"pip install '\.\[bench\]'"):
        bars.draw(gpu_result(), tmp_path / "out.png")
    assert not (tmp_path / "out.png").exists()
