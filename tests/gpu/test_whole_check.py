"""``check.py`` run through, with the stages that it has, on a machine with the emulated GPU.

Every stage is the real one in a process of its own.  What takes long on this device is given
smaller sizes, and what is to hang, fail or be killed does so halfway, in the scripts themselves.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import signal
import sys
import sysconfig
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import check
import pack
import pytest
from runner import MARK, Runner, Stage

import ctgpu
from support.emulated_machine import for_others

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="CUDA's driver is Linux's here")

#: What is done before a script's own main: smaller sizes, and nothing else.
SMALL = """
import os, signal, sys
from ctgpu.spec import Spec
small = Spec(target_spacing_mm=(12.0, 12.0, 16.0), shape_hwd=(32, 32, 24))
"""
SMALL_SMOKE = (
    SMALL
    + """
import smoke
run_smoke = smoke.smoke
smoke.smoke = lambda result, shape, spec: run_smoke(result, (30, 28, 26), small)
"""
)
SMALL_DECODER = """
import sys
import decoder
check_decoder = decoder.check
decoder.SHAPE, decoder.BOX = (9, 6, 33), ((5, 1, 20), (4, 4, 13))
decoder.KINDS = decoder.TIMED = ("grid",)
decoder.check = lambda result, slabs, repeats: check_decoder(result, 1, 1)
from benchmarks.harness import gpu_timing
gpu_timing.WARM_UP_S = 0.0
from benchmarks.questions import gpu_static_ctz
gpu_static_ctz.VOLUME_DHW = (8, 48, 64)
"""
SMALL_END_TO_END = (
    SMALL
    + """
import end_to_end
parts = end_to_end.parts
end_to_end.parts = lambda folder, real_ct, spec: parts(folder, real_ct, small)
end_to_end.PHANTOMS = (((48, 44, 30), (8.0, 8.0, 12.0)),) * 2
"""
)
#: And what goes wrong halfway.
WRONG_BIT = """
from ctgpu.engines.cuda import CudaEngine
run = CudaEngine.run
def wrong(self, jobs, **others):
    run(self, jobs, **others)
    for made in jobs:
        made.out.view("u2")[0, 0, 0] ^= 1
CudaEngine.run = wrong
"""
IS_KILLED = "end_to_end.compare_cupy = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
HANGS = """
import sys, time
sys.path.insert(0, {folder!r})
from benchmarks.harness import gpu_timing
from benchmarks.questions import gpu as run_gpu
gpu_timing.WARM_UP_S = 0.0
run_gpu.measure_pipeline = lambda *_: time.sleep(1000)
"""


def small(stage: Stage, code: str, *more: Any) -> Stage:
    """A script of Python as a stage runs it, with `code` before its main."""
    python, script, *arguments = stage.command
    module = Path(script).stem
    run = f"{code}\nsys.exit({module}.main())\n"
    return replace(stage, command=[python, "-c", run, *arguments, *more])


# ---- the machine --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return for_others(tmp_path_factory.mktemp("machine"))


@pytest.fixture
def carried(tmp_path: Path) -> Path:
    """A pack with the wheel of this checkout, made of the module that is compiled already."""
    native = next(Path(root, "ctgpu") for root in sys.path if compiled(root)).glob("_native*.so")
    files = {f"ctgpu/{path.name}": path.read_bytes() for path in native}
    info = f"ctgpu-{ctgpu.__version__}.dist-info"
    tag = f"cp310-abi3-{re.sub('[-.]', '_', sysconfig.get_platform())}"
    metadata = f"Metadata-Version: 2.1\nName: ctgpu\nVersion: {ctgpu.__version__}\n"
    files[f"{info}/METADATA"] = metadata.encode()
    files[f"{info}/WHEEL"] = f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: {tag}\n".encode()
    record = [f"{name},sha256={digest(content)}," for name, content in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""]).encode()
    folder = tmp_path / "carried"
    (folder / "wheels").mkdir(parents=True)
    (folder / "real_ct").mkdir()
    with zipfile.ZipFile(folder / "wheels" / f"ctgpu-{ctgpu.__version__}-{tag}.whl", "w") as wheel:
        for name, content in files.items():
            wheel.writestr(name, content)
    packed = {
        "commit": "abc",
        "native_sources": pack.hash_of_native_sources(),
        "sources": pack.hashes_of_sources(),
    }
    (folder / "pack.json").write_text(json.dumps(packed))
    return folder


def compiled(root: str) -> bool:
    return next(Path(root, "ctgpu").glob("_native*.so"), None) is not None


def digest(content: bytes) -> str:
    encoded = base64.urlsafe_b64encode(hashlib.sha256(content).digest())
    return encoded.rstrip(b"=").decode()


Change = Callable[[Stage], Stage]


@pytest.fixture
def run_check(
    machine: Mapping[str, str],
    carried: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> Callable[..., tuple[int, list[dict[str, Any]], str]]:
    """Runs the command; gives its status, the result file after each writing, and what it said."""
    if not any(map(compiled, sys.path)):
        pytest.skip("the C++ engine was not built")
    monkeypatch.setattr(check, "CARRIED", carried)
    monkeypatch.setattr(check, "find_tool", lambda name: None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.delenv(MARK, raising=False)
    for name, value in machine.items():
        monkeypatch.setenv(name, value)
    output = tmp_path / "out" / "result.json"
    written: list[dict[str, Any]] = []
    listed, write = check.stages, Runner.write

    def write_and_look(runner: Runner) -> None:
        write(runner)
        written.append(json.loads(output.read_text()))

    def run(limit_s: float, **changes: Change) -> tuple[int, list[dict[str, Any]], str]:
        def stages(work: Path) -> list[Stage]:
            return [changes.get(one.name.replace(" ", "_"), same)(one) for one in listed(work)]

        assert set(changes) <= {one.name.replace(" ", "_") for one in listed(tmp_path)}
        monkeypatch.setattr(check, "stages", stages)
        monkeypatch.setattr(Runner, "write", write_and_look)
        monkeypatch.setattr(sys, "argv", ["check.py", f"--limit={limit_s}", f"--output={output}"])
        status = check.main()
        assert json.loads(output.read_text()) == json.loads((carried / "result.json").read_text())
        return status, written, capsys.readouterr().out

    return run


def same(stage: Stage) -> Stage:
    return stage


def assert_each_stage_left_what_was_before_it(written: list[dict[str, Any]]) -> None:
    """Whenever the file was written, all that had ended was in it as it is in the end."""
    final = written[-1]["stages"]
    names = list(final)
    seen = []
    for result in written:
        stages = result["stages"]
        assert list(stages) == names[: len(stages)]
        ended = [name for name in stages if stages[name]["status"] != "running"]
        assert names[: len(ended)] == ended
        assert all(stages[name] == final[name] for name in ended)
        seen.append(len(ended))
    assert sorted(set(seen) - {0}) == list(range(1, len(names) + 1))
    assert [result["finished"] for result in written[-2:]] == [False, True]


# ---- the runs -----------------------------------------------------------------------------------

NAMES = [
    *("facts", "install", "doctor", "smoke", "decoder", "benchmark", "ncu", "tests"),
    *("loader tests", "end to end", "memcheck", "racecheck", "synccheck"),
]
ONE_TEST = ("-k", "test_every_memory_order and HWD")


@pytest.mark.slow
def test_a_stage_that_hangs_fails_or_is_killed_leaves_the_results_before_it(
    run_check: Callable[..., tuple[int, list[dict[str, Any]], str]],
) -> None:
    hangs = HANGS.format(folder=str(check.REPOSITORY))
    status, written, said = run_check(
        900.0,
        smoke=lambda one: small(one, SMALL_SMOKE + WRONG_BIT),
        decoder=lambda one: small(one, SMALL_DECODER),
        benchmark=lambda one: replace(small(one, hangs, "--quick", "--repeats=1"), most_s=20),
        tests=lambda one: replace(one, command=[*one.command, *ONE_TEST]),
        # It imports torch to find that there is nothing for it: longer on a machine at work.
        loader_tests=lambda one: replace(one, most_s=300),
        end_to_end=lambda one: small(one, SMALL_END_TO_END + IS_KILLED),
    )
    assert status == 1
    assert_each_stage_left_what_was_before_it(written)
    stages = written[-1]["stages"]
    assert {name: outcome["status"] for name, outcome in stages.items()} == {
        "facts": "passed",
        "install": "passed",
        "doctor": "passed",
        "smoke": "failed",
        "decoder": "passed",
        "benchmark": "timed out",
        "ncu": "not here",
        "tests": "passed",
        "loader tests": "not here",
        "end to end": "killed",
        "memcheck": "not here",
        "racecheck": "not here",
        "synccheck": "not here",
    }, said
    found = {name: outcome.get("found") for name, outcome in stages.items()}
    assert found["facts"]["gpus"][0]["name"] == "emulated GPU"
    assert found["install"]["ctgpu"] == "carried wheel"
    copies = next(one for one in found["doctor"]["checks"] if one["name"] == "cuda:0")["facts"]
    assert min(copies[f"{way}_gb_per_s"] for way in ("upload", "download", "device_copy")) > 0
    assert {one["voxels_that_differ"] for one in found["smoke"]["layouts"].values()} == {1}
    # The parts before the one that hangs, and before the one that ends it all.
    assert len(found["benchmark"]["kernel"]["cases"]) == 8
    assert "pipeline" in found["benchmark"]["not_measured"]
    assert list(found["end to end"]) == ["shards, HWD", "shards, DHW", "preprocess to torch"]
    assert all(part["passed"] for part in found["end to end"].values())
    assert found["tests"]["tests"] > found["tests"]["skipped"]
    assert "torch" in stages["loader tests"]["why"]
    assert "smoke" in said.splitlines()[-len(NAMES) + 2]
    assert [line.split("  ")[0] for line in said.splitlines()[-len(NAMES) - 1 : -1]] == NAMES


@pytest.mark.exhaustive
def test_the_check_passes_with_the_stages_that_it_has(
    run_check: Callable[..., tuple[int, list[dict[str, Any]], str]],
    carried: Path,
    real_ct: Path,
) -> None:
    """A full volume, the tests, shards of phantoms and of real CT; only the benchmark is quick."""
    for name in pack.REAL_CT:
        shutil.copyfile(real_ct / name, carried / "real_ct" / name)

    def unhurried(stage: Stage, *more: str) -> Stage:
        return replace(stage, command=[*stage.command, *more], most_s=3000)

    status, written, said = run_check(
        12_000.0,
        **dict.fromkeys(("doctor", "smoke", "tests", "loader_tests", "end_to_end"), unhurried),
        decoder=lambda one: replace(small(one, SMALL_DECODER), most_s=3000),
        benchmark=lambda one: unhurried(one, "--quick", "--repeats=2"),
    )
    assert_each_stage_left_what_was_before_it(written)
    stages = written[-1]["stages"]
    assert list(stages) == NAMES
    statuses = {name: outcome["status"] for name, outcome in stages.items()}
    not_here = {"ncu", "loader tests", "memcheck", "racecheck", "synccheck"}
    assert statuses == {name: "not here" if name in not_here else "passed" for name in NAMES}, said
    assert status == 0
    found = {name: outcome.get("found") for name, outcome in stages.items()}
    assert all(one["same_bits"] for one in found["smoke"]["layouts"].values())
    assert {"kernel", "pipeline", "inflate"} <= set(found["benchmark"])
    assert list(found["benchmark"]["not_here"]) == ["torch"]
    absent = [name for name, part in found["end to end"].items() if "not_here" in part]
    assert absent == ["preprocess to torch", "loader"]
    assert set(found["tests"]["reasons"]) == {
        "needs torch's CUDA",
        "needs what a driver compiles",
        "takes minutes on the emulated GPU",
    }
