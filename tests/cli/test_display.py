"""What a build shows: the bar, the log lines and the summary."""

from __future__ import annotations

import io
import itertools
import logging
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ctgpu.building.described import JoinedTable
from ctgpu.building.events import (
    Event,
    Planned,
    SampleFailed,
    SampleWritten,
    ShardDoneElsewhere,
    ShardElsewhere,
    ShardResumed,
)
from ctgpu.building.pipeline import Failure, PipelineReport, StageTime
from ctgpu.building.report import BuildReport
from ctgpu.cli.display import Display, rates_of, show_summary, stage_table
from ctgpu.cli.terminal import Console


class Screen:
    """A display on a terminal that is 160 wide."""

    def __init__(self) -> None:
        self.written = io.StringIO()
        self.console = Console(file=self.written, force_terminal=True, width=80)

    def last_line(self, *events: Event, report: BuildReport | None = None) -> str:
        with Display(self.console) as display:
            for event in events:
                display(event)
            if report is not None:
                display.finish(report)
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.written.getvalue())
        return [line for line in re.split(r"[\r\n]+", text) if line.strip()][-1]


def planned(samples: int) -> Planned:
    return Planned({}, samples, 2, 2, samples)


def written(shard: int, n: int) -> SampleWritten:
    return SampleWritten(f"valid_{n}", shard, 100, 1000)


def report_of(tmp_path: Path, **changed: Any) -> BuildReport:
    stages = [
        # Six files at once, in the first of ten seconds: fetching is done, and not to blame.
        StageTime("fetch", 16, busy_s=6.0, waiting_s=0.1),
        StageTime("decode", 2, busy_s=18.0, waiting_s=2.0),
        StageTime("device", 1, busy_s=2.0, waiting_s=8.0),
        StageTime("write", 1, busy_s=1.0, waiting_s=9.0),
    ]
    manifest = {
        "total_samples": 6,
        "planned_samples": 6,
        "total_shards": 1,
        "sample_shape": [4, 4, 4],
        "layout": "HWD",
        "sample_dtype": "float16",
        "fingerprint": "0" * 16,
        "num_classes": 0,
        "source": {"kind": "folder"},
    }
    values: dict[str, Any] = {
        "folder": tmp_path,
        "manifest": manifest,
        "written": 6,
        "stored_bytes": 6_000_000,
        "failures": [],
        "pipeline": PipelineReport(10.0, stages, 5000, 6),
    }
    return BuildReport(**(values | changed))


def test_the_maker_of_a_shard_is_named_in_one_sentence(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ctgpu")
    with Display(Console(file=io.StringIO())) as display:
        display(ShardElsewhere(3, "process 17 on node3"))
        display(ShardDoneElsewhere(3, 6))
    assert [record.getMessage() for record in caplog.records] == [
        "shard 000003 is being made by process 17 on node3",
        "shard 000003 was made by another process",
    ]


def test_the_bar_counts_what_others_make_and_says_what_it_waits_for() -> None:
    first, second = (ShardElsewhere(shard, "process 17 on node3") for shard in (1, 2))
    line = Screen().last_line(planned(6), first)
    assert line.startswith("waiting for shard 000001 ")
    assert "0/6" in line
    line = Screen().last_line(planned(6), first, second, ShardDoneElsewhere(1, 3))
    assert line.startswith("waiting for shard 000002 ")
    assert "3/6" in line
    line = Screen().last_line(planned(6), first, ShardDoneElsewhere(1, 6))
    assert line.startswith("building ")
    assert "6/6" in line
    # What is made here goes on meanwhile, and one that died is taken over.
    line = Screen().last_line(planned(6), first, ShardResumed(1, 2), written(1, 3))
    assert line.startswith("building ")
    assert "3/6" in line


def test_a_failed_sample_counts_as_done_and_in_no_rate() -> None:
    failed = SampleFailed("valid_2", 0, "valid_2.nii.gz", Failure("decode", "DecodeError", "no"))
    line = Screen().last_line(planned(2), failed)
    assert "1/2" in line
    assert "0.00 samples/s" in line
    assert "1 failed" in line


def test_bar_and_summary_end_with_the_same_rates(tmp_path: Path) -> None:
    report = report_of(tmp_path)
    line = Screen().last_line(planned(6), *(written(0, n) for n in range(6)), report=report)
    assert "0.60 samples/s, 0.6 MB/s" in line
    assert rates_of(report) == "0.60 samples/s, 0.6 MB/s"
    screen = io.StringIO()
    show_summary(report, Console(file=screen, width=80))
    assert "6 samples in 10.0 s: 0.60 samples/s, 0.6 MB/s, " in screen.getvalue()


def test_the_bottleneck_is_the_stage_whose_speed_decides_and_has_a_heading(
    tmp_path: Path,
) -> None:
    report = report_of(tmp_path)
    assert report.pipeline is not None
    assert report.pipeline.bottleneck.name == "decode"
    screen = io.StringIO()
    Console(file=screen, width=120).print(stage_table(report))
    header, *rows = [
        [cell.strip() for cell in re.split("[│┃]", line)[1:-1]]
        for line in screen.getvalue().splitlines()
        if re.search("[│┃]", line)
    ]
    assert header[-2:] == ["alone s", "bottleneck"]
    assert [(row[0], *row[-2:]) for row in rows] == [
        ("fetch", "1.00", ""),
        ("decode", "9.00", "yes"),
        ("device", "2.00", ""),
        ("write", "1.00", ""),
    ]


def test_a_dumb_terminal_gets_lines_and_no_bar(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr("ctgpu.cli.display._LINE_EVERY_S", 0.0)
    caplog.set_level(logging.INFO, "ctgpu")
    screen = io.StringIO()
    with Display(Console(file=screen, force_terminal=True, width=80)) as display:
        display(planned(2))
        display(written(0, 1))
    assert screen.getvalue() == ""
    assert caplog.messages[-1].startswith("1 of 2 samples, ")


def test_a_bar_that_counted_nothing_is_taken_away() -> None:
    for events in ([], [planned(0)], [planned(2), written(0, 1)]):
        screen = Screen()
        screen.last_line(*events)
        ended = screen.written.getvalue()
        assert ended.endswith("\x1b[1A\x1b[2K") is (len(events) < 2), events


@pytest.mark.parametrize("said_of", ["", "scans/valid_2.nii.gz "])
def test_the_path_of_what_failed_is_said_once(
    said_of: str, caplog: pytest.LogCaptureFixture
) -> None:
    failure = Failure("decode", "DecodeError", f"{said_of}cannot be read")
    with Display(Console(file=io.StringIO())) as display:
        display(SampleFailed("valid_2", 0, "scans/valid_2.nii.gz", failure))
    assert caplog.text.count("scans/valid_2.nii.gz") == 1
    assert display.shown == {"valid_2"}


@pytest.mark.parametrize("is_terminal", [True, False])
def test_tables_that_a_terminal_has_shown_are_not_in_the_summary(
    tmp_path: Path, is_terminal: bool
) -> None:
    table = JoinedTable("labels.csv", "scan", ("labels",), 1, 1)
    with Display(Console(file=io.StringIO(), force_terminal=is_terminal)) as display:
        display(replace(planned(1), tables=(table,)))
    screen, report = io.StringIO(), report_of(tmp_path, tables=(table,))
    show_summary(report, Console(file=screen), shown=display.shown)
    assert ("labels.csv" in screen.getvalue()) is not is_terminal


@pytest.mark.parametrize("pending", [0, 1, 12345])
def test_the_bar_says_nothing_of_what_there_is_not(pending: int) -> None:
    line = Screen().last_line(planned(pending))
    assert ("nothing to do" in line) is (pending == 0)
    assert (f"0/{pending}" in line) is (pending > 0)
    assert "eta" not in line
    assert "eta" not in Screen().last_line()  # while it lists


def test_the_bar_of_a_long_build_fits_into_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(monotonic=itertools.count(0.0, 0.25).__next__)
    monkeypatch.setattr("ctgpu.cli.display.time", clock)
    screen = Screen()
    failed = SampleFailed("valid_2", 0, "valid_2.nii.gz", Failure("decode", "DecodeError", "no"))
    heavy = SampleWritten("valid_1", 0, 100, 3 * 10**8)
    line = screen.last_line(planned(12345), heavy, heavy, failed)
    assert "3/12345" in line
    assert "1.60 samples/s, 480 MB/s " in line
    assert line.rstrip().endswith("1 failed")
    assert len(line.rstrip()) <= 80
    assert "…" not in line


def test_a_summary_breaks_no_word_on_a_terminal_and_no_line_elsewhere(tmp_path: Path) -> None:
    failures = [
        {"key": f"valid_{n}", "stage": "decode", "message": f"/a/{'long/' * 30}{n}.gz is cut short"}
        for n in range(8)
    ]
    report = report_of(tmp_path, failures=failures)
    shown = {}
    for is_terminal in (True, False):
        screen = io.StringIO()
        console = Console(file=screen, width=80, force_terminal=is_terminal, no_color=True)
        show_summary(report, console, ["build", "--output-dir", "o"], {"valid_0", "valid_7"})
        shown[is_terminal] = re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue())
    assert shown[True].split() == shown[False].split()
    for line in shown[True].splitlines():
        assert len(line) <= 80 or "long/" in line or str(tmp_path) in line
    assert "\n  valid_1 (decode): /a/long/" in shown[False]
    assert "  … and 1 more\n" in shown[False]
    assert not any(f"{key} (" in shown[False] for key in ("valid_0", "valid_7"))
    assert "8 samples failed; see " in shown[False]
    assert shown[False].endswith(
        f"\nNext:\n  ctgpu build --output-dir o --retry-failed\n  ctgpu verify {tmp_path}\n"
    )
