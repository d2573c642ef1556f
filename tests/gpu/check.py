"""Everything that needs a GPU, in one go: ``make gpu-check``.

For a bare machine with a GPU, Python 3.12, CuPy, torch, nanobind, scikit-build-core and a compiler,
without internet.  Builds and installs the checkout into a folder of its own, runs the GPU tests, a
part of them under compute-sanitizer, and the GPU benchmark, and writes one JSON.  What such a
machine lacks lies in ``.gpu-check`` beside the checkout's files: ``pack.py`` puts it there.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
CARRIED = REPOSITORY / ".gpu-check"
# Under a sanitizer everything takes many times as long: one test for each way through the kernel.
SANITIZED = "every_memory_order or shapes_that_leave_a_rest or batch_of_everything"


def main() -> int:
    """Run every stage, also after one failed; returns 0 where all passed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--json", type=Path, default=CARRIED / "result.json", help="where to write the result"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = check(Path(folder))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    failed = [stage for stage, outcome in result["stages"].items() if outcome["status"] == "failed"]
    print(f"{result['device']}: " + (f"failed: {', '.join(failed)}" if failed else "all passed"))
    print(f"written to {options.json}")
    return 1 if failed else 0


def check(work: Path) -> dict[str, Any]:
    """The stages' outcomes, and what tests and benchmark wrote."""
    site, stages = work / "site", {}
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--upgrade",
    ]
    wheels = sorted((CARRIED / "wheels").glob("*.whl"))
    environment = {
        **os.environ,
        # The installed package first: the checkout holds no compiled module.
        "PYTHONPATH": os.pathsep.join(map(str, (site, REPOSITORY))),
        "CTGPU_REAL_CT": str(CARRIED / "real_ct"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }

    def stage(name: str, command: list[Any], *, limit_s: float) -> bool:
        print(f"== {name}", flush=True)
        begin = time.monotonic()
        try:
            ran = subprocess.run(
                list(map(str, command)), cwd=work, env=environment, timeout=limit_s, check=False
            )
            status = "failed" if ran.returncode else "passed"
        except subprocess.TimeoutExpired:
            status = "failed"
        stages[name] = {"status": status, "seconds": round(time.monotonic() - begin, 1)}
        return status == "passed"

    def pytest(*arguments: Any) -> list[Any]:
        return [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            *("-c", REPOSITORY / "pyproject.toml", "--rootdir", REPOSITORY),
            *(REPOSITORY / "tests" / "gpu", *arguments),
        ]

    if wheels:
        stage("carried wheels", [*pip, "--target", site, *wheels], limit_s=60)
    built = stage(
        "build", [*pip, "--no-build-isolation", "--target", site, REPOSITORY], limit_s=180
    )
    doctor = [sys.executable, "-c", DOCTOR, work / "doctor.json"]
    if built and stage("doctor", doctor, limit_s=60):
        report = work / "tests.xml"
        stage("tests", pytest(f"--junitxml={report}"), limit_s=240)
        for tool in ("memcheck", "racecheck"):
            sanitizer = shutil.which("compute-sanitizer")
            if sanitizer is None:
                stages[tool] = {"status": "no compute-sanitizer here"}
                continue
            run = [sanitizer, "--tool", tool, "--error-exitcode", "9"]
            stage(tool, [*run, *pytest("-k", SANITIZED)], limit_s=120)
        benchmark = [sys.executable, REPOSITORY / "benchmarks" / "run_gpu.py"]
        stage("benchmark", [*benchmark, "--json", work / "benchmark.json"], limit_s=240)
    found = read(work / "doctor.json")
    devices = [c["facts"]["name"] for c in found.get("checks", []) if c["name"] == "cuda:0"]
    return {
        "device": devices[0] if devices else "no GPU",
        "stages": stages,
        "tests": count_tests(work / "tests.xml"),
        "doctor": found,
        "benchmark": read(work / "benchmark.json"),
    }


DOCTOR = """
import json, sys
from rich.console import Console
from ctgpu.doctor import diagnose
report = diagnose(device="cuda")
Console(width=160).print(report.to_table())
json.dump(report.to_dict(), open(sys.argv[1], "w"))
sys.exit(report.exit_code)
"""


def read(path: Path) -> dict[str, Any]:
    """A JSON file, or nothing where its stage did not write it."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def count_tests(path: Path) -> dict[str, int]:
    """Tests, failures and skips of a JUnit report."""
    if not path.is_file():
        return {}
    suites = ElementTree.parse(path).getroot().iter("testsuite")
    total = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    for suite in suites:
        for key in total:
            total[key] += int(suite.get(key, 0))
    return total


if __name__ == "__main__":
    sys.exit(main())
