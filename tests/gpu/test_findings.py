"""What ``check.py`` reads out of its stages, and what ``pack.py`` packs.  No GPU is needed."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import check
import facts
import install
import pack
import pytest
import words

from benchmarks.harness import machine
from benchmarks.harness.asking import Asked


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
    found["not_here"] = {"torch": "torch is not installed"}
    assert words.of_benchmark(found).endswith("; torch not here: torch is not installed")
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


@pytest.fixture
def checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A checkout with code in each folder, known to git, and an empty pack."""
    for name in (".gpu-check/", "build/"):
        (tmp_path / name).mkdir()
    (tmp_path / ".gitignore").write_text("/build/\n/.gpu-check/\n")
    for name in CODE_OF_A_CHECKOUT:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("first\n")
    for words_of_git in (("init", "--quiet"), ("add", ".")):
        subprocess.run(["git", *words_of_git], cwd=tmp_path, check=True)
    monkeypatch.setattr(pack, "REPOSITORY", tmp_path)
    monkeypatch.setattr(pack, "CARRIED", tmp_path / ".gpu-check")
    return tmp_path


CODE_OF_A_CHECKOUT = (
    *("ctgpu/api.py", "ctgpu/loading/loader.py", "kernels/cuda/tile.h", "kernels/cuda/a.cu"),
    *("kernels/b.cpp", "tests/gpu/check.py", "tests/conftest.py", "benchmarks/run_gpu.py"),
)


@pytest.mark.parametrize(("over", "status"), [(0, 0), (1, 1)])
def test_pack_and_checkout_together_must_not_be_too_large_to_travel(
    checkout: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    over: int,
    status: int,
) -> None:
    listed = [path for path in checkout.rglob("*") if path.is_file() and ".git/" not in str(path)]
    known = sum(path.stat().st_size for path in listed)
    (checkout / "build" / "large").write_bytes(bytes(1000))  # git ignores it: it stays
    (checkout / "new.py").write_bytes(bytes(7))  # not added yet, and it travels
    (checkout / "ctgpu" / "api.py").unlink()  # git knows it still
    (checkout / ".gpu-check" / "wheel").write_bytes(bytes(100 + over))
    monkeypatch.setattr(pack, "MOST_BYTES", known + 7 - len("first\n") + 100)
    assert pack.report() == status
    assert ("too large" in capsys.readouterr().err) == bool(status)


def test_where_git_does_not_know_the_checkout_that_is_said(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(checkout / ".git")
    assert pack.report() == 0
    assert "checkout: not known to git" in capsys.readouterr().out
    assert pack.commit() is None


@pytest.mark.parametrize("name", CODE_OF_A_CHECKOUT)
@pytest.mark.parametrize("how", ["edited", "removed", "renamed"])
def test_a_commit_whose_code_is_not_what_was_packed_is_marked(
    checkout: Path, name: str, how: str
) -> None:
    written = {"commit": "abc", "sources": pack.hashes_of_sources()}
    (pack.CARRIED / "pack.json").write_text(json.dumps(written))
    found = facts.pack(pack.CARRIED)
    assert found["commit"] == "abc"
    assert found["changed"] == []
    path = checkout / name
    if how == "edited":
        path.write_text("second\n")
    elif how == "removed":
        path.unlink()
    else:
        path.rename(path.with_stem("other"))
    found = facts.pack(pack.CARRIED)
    assert found["commit"] == "abc-changed"
    assert found["changed"] == [name.partition("/")[0]]
    assert words.of_facts({"gpus": [], "pack": found}) == "no GPU; commit abc-changed"


def test_a_published_result_names_the_commit_as_the_facts_do(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.rmtree(checkout / ".git")
    monkeypatch.setattr(machine, "REPOSITORY", checkout)
    written = {"commit": "abc", "sources": pack.hashes_of_sources()}
    (pack.CARRIED / "pack.json").write_text(json.dumps(written))
    options = argparse.Namespace(json=tmp_path / "gpu.json", plot=None)
    asked = Asked("gpu", options)
    commits = []
    for content in ("first\n", "second\n"):
        (checkout / "benchmarks" / "run_gpu.py").write_text(content)
        asked.publish({})
        commits.append(json.loads(options.json.read_text())["machine"]["commit"])
    (pack.CARRIED / "pack.json").unlink()
    asked.publish({})
    commits.append(json.loads(options.json.read_text())["machine"]["commit"])
    assert commits == ["abc", "abc-changed", None]


def test_what_is_no_code_does_not_change_a_commit(checkout: Path) -> None:
    """Results are written there, and Python leaves bytecode."""
    written = {"commit": "abc", "sources": pack.hashes_of_sources()}
    (pack.CARRIED / "pack.json").write_text(json.dumps(written))
    for name in ("benchmarks/results/gpu.json", "ctgpu/__pycache__/api.cpython-312.pyc"):
        (checkout / name).parent.mkdir()
        (checkout / name).touch()
    assert facts.pack(pack.CARRIED)["commit"] == "abc"


@pytest.mark.parametrize("commit", ["abc", None])
def test_a_pack_that_tells_of_no_code_vouches_for_none(checkout: Path, commit: str | None) -> None:
    (pack.CARRIED / "pack.json").write_text(json.dumps({"commit": commit}))
    found = facts.pack(pack.CARRIED)
    assert found["changed"] == list(pack.SOURCES)
    line = words.of_facts({"gpus": [], "pack": found})
    assert line.endswith("commit abc-changed" if commit else "commit not known")
    assert facts.pack(checkout / "no such pack") == {}
