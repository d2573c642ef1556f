"""Series of DICOM through SimpleITK and through ctgpu: the result, and what is written of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.harness.asking import Scan
from benchmarks.harness.measuring import in_words
from benchmarks.publishing import report
from benchmarks.questions import build, build_dicom
from ctgpu.decode.dicom_header import left_out, read_header
from ctgpu.decode.dicom_stack import stack_of


def test_what_is_measured_is_a_series_of_ct(tmp_path: Path) -> None:
    scan = Scan.phantom((20, 18, 6), (3.0, 2.5, 5.0))
    folder = build_dicom.write_series(tmp_path / "0", scan, 0)
    headers = [read_header(path.read_bytes(), path.name) for path in folder.iterdir()]
    assert {left_out(header) for header in headers} == {None}
    stack = stack_of("0", headers)
    assert (stack.shape, stack.spacing_mm) == ((20, 18, 6), (3.0, 2.5, 5.0))


@pytest.mark.slow
def test_quick_runs_and_the_documents_say_what_came_out(tmp_path: Path) -> None:
    written = tmp_path / "build_dicom.json"
    assert build.main(["--format", "dicom", "--quick", "--json", str(written)]) == 0
    result = json.loads(written.read_text(encoding="utf-8"))
    assert result["benchmark"] == "build_dicom"
    assert list(result["contenders"]) == [build_dicom.ALONE, build_dicom.PER_CORE, "ctgpu"]
    assert result["bottleneck"] in result["stages"]
    results = report.load_all(report.RESULTS) | {"build_dicom": result}
    page = report.page(results)
    for name, facts in result["contenders"].items():
        assert f"| {name} | {in_words(facts['rate']['median'], 'samples/s')} |" in page
    assert f"The bottleneck of ctgpu is {result['bottleneck']}" in page
