"""What ``check.py`` reads out of its stages, and what ``pack.py`` packs.  No GPU is needed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import check
import facts
import install
import pack
import pytest
import words


def test_a_junit_report_gives_counts_and_the_names_of_what_failed(tmp_path: Path) -> None:
    path = tmp_path / "tests.xml"
    path.write_text(
        '<testsuites><testsuite><testcase classname="a" name="good"/>'
        '<testcase classname="a" name="bad"><failure/></testcase>'
        '<testcase classname="b" name="worse"><error/></testcase>'
        '<testcase classname="b" name="not"><skipped/></testcase></testsuite></testsuites>'
    )
    found = check.read_tests(path)
    assert found == {"tests": 4, "skipped": 1, "names": ["a::bad", "b::worse"]}
    assert words.of_tests(found) == "3 ran, 1 skipped; failed: a::bad, b::worse"
    path.write_text("<testsuites><testsu")
    assert check.read_tests(path) is None
    assert check.read_tests(tmp_path / "none.xml") is None


def test_a_profile_gives_every_metric_with_its_unit(tmp_path: Path) -> None:
    path = tmp_path / "ncu.csv"
    path.write_text(
        "==PROF== Connected to process 12\n"
        '"ID","Kernel Name","gpu__time_duration.sum","dram__bytes.sum"\n'
        '"","","us","Mbyte"\n"0","ctgpu_preprocess","152.3","267,9"\n'
    )
    found = check.read_profile(path)
    assert found == {
        "gpu__time_duration.sum": {"value": "152.3", "unit": "us"},
        "dram__bytes.sum": {"value": "267,9", "unit": "Mbyte"},
    }
    assert words.of_profile(found) == "duration 152.3 us"
    path.write_text("==ERROR== no permission\n")
    assert check.read_profile(path) is None


def test_facts_are_those_of_nvidia_smi(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    values = ", ".join(["NVIDIA H200", "580.1", *(f"v{n}" for n in range(11))])
    tool.write_text(f"#!/bin/sh\necho '{values}'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    (gpu,) = facts.gpus()
    assert gpu["name"] == "NVIDIA H200"
    assert list(gpu) == list(facts.QUERIES)
    line = words.of_facts({"gpus": [gpu], "pack": {"commit": "abc"}})
    assert line.startswith("NVIDIA H200, driver 580.1, PCIe v3 × v5")
    assert line.endswith("commit abc")
    tool.write_text("#!/bin/sh\necho no devices were found; exit 6\n")
    assert facts.gpus() == []
    assert words.of_facts({"gpus": [], "pack": {}}) == "no GPU; commit not known"


def test_parts_of_a_benchmark_are_told_as_far_as_they_came() -> None:
    found: dict[str, Any] = {"kernel": {"cases": {"a": {"share_of_copy": 0.5}}}}
    assert words.of_benchmark(found) == "kernel 50% to 50% of copy"
    found["failed"] = {"torch": "ImportError: none"}
    assert words.of_benchmark(found).endswith("; torch failed: ImportError: none")
    assert words.of_benchmark({}) == ""


# ---- the pack -----------------------------------------------------------------------------------


def test_the_wheel_is_used_only_for_the_sources_that_it_was_made_of(tmp_path: Path) -> None:
    wheel = tmp_path / "ctgpu-0.1.0-cp310-abi3-linux_x86_64.whl"
    assert install.unusable(tmp_path, []) == "0 wheels of ctgpu are carried"
    assert "does not say" in install.unusable(tmp_path, [wheel])
    (tmp_path / "pack.json").write_text(json.dumps({"native_sources": "others"}))
    assert "others than the carried wheel's" in install.unusable(tmp_path, [wheel])
    (tmp_path / "pack.json").write_text(
        json.dumps({"native_sources": pack.hash_of_native_sources()})
    )
    assert install.unusable(tmp_path, [wheel]) == ""


def test_the_hash_of_the_sources_changes_with_each_of_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(pack, "REPOSITORY", tmp_path)
    (tmp_path / "kernels" / "cpu").mkdir(parents=True)
    for name in ("CMakeLists.txt", "kernels/a.h", "kernels/cpu/b.cpp"):
        (tmp_path / name).touch()
    seen = {pack.hash_of_native_sources()}
    for name in ("CMakeLists.txt", "kernels/a.h", "kernels/cpu/b.cpp"):
        (tmp_path / name).write_text("other")
        seen.add(pack.hash_of_native_sources())
    (tmp_path / "kernels" / "cpu" / "b.cpp").rename(tmp_path / "kernels" / "b.cpp")
    seen.add(pack.hash_of_native_sources())
    assert len(seen) == 5


@pytest.mark.parametrize(("size", "status"), [(10, 0), (11, 1)])
def test_a_pack_that_is_too_large_to_travel_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, size: int, status: int
) -> None:
    (tmp_path / "file").write_bytes(bytes(size))
    monkeypatch.setattr(pack, "CARRIED", tmp_path)
    monkeypatch.setattr(pack, "MOST_BYTES", 10)
    assert pack.report() == status
