"""What ``run_gpu.py --static`` counts of the compiled kernels; nothing of it needs a GPU.

NVRTC and nvdisasm come with the development dependencies, so that where those are (Linux), these
tests are never skipped.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import compare
import gpu_static
import run_gpu
from common import RESULTS
from ctgpu.engines._batch import KernelKey

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="NVIDIA has no wheels for this")

USUAL = gpu_static.USUAL


@pytest.fixture(scope="module")
def compiler() -> gpu_static.Compiler:
    return gpu_static.Compiler(gpu_static.nvrtc_path())


def value(numbers: dict[str, dict[str, list[int]]], name: str) -> int:
    return numbers[name]["runs"][0]


def test_every_variant_has_a_name_of_its_own() -> None:
    keys = gpu_static.variants()
    assert len(keys) == len(set(keys)) == len({gpu_static.name_of(key) for key in keys}) == 480
    assert gpu_static.name_of(USUAL) == "i2, H to D, clips before"


def test_a_kernel_is_counted(compiler: gpu_static.Compiler) -> None:
    numbers = gpu_static.count(compiler, gpu_static.nvdisasm_path(), USUAL)
    # What __launch_bounds__ grants, and what tile.h declares.
    assert 32 <= value(numbers, "registers") <= 64
    assert value(numbers, "shared memory") == 40 * 257 * 4
    assert value(numbers, "instructions") > 500
    # `write` blends eight pairs for one vector, `blend` stores four columns.
    assert value(numbers, "shared loads") >= 16
    assert value(numbers, "shared stores") >= 4
    assert value(numbers, "global loads") >= 16


def test_swapped_bytes_cost_instructions(compiler: gpu_static.Compiler) -> None:
    swapped = KernelKey("i4", swap=True, fast=0, out=1, rescales=False, clips_before=True)
    straight = KernelKey("i4", swap=False, fast=0, out=1, rescales=False, clips_before=True)
    more, fewer = (
        value(gpu_static.count(compiler, gpu_static.nvdisasm_path(), key), "instructions")
        for key in (swapped, straight)
    )
    assert more > fewer


def test_opcodes_are_counted_without_padding(compiler: gpu_static.Compiler) -> None:
    cubin = compiler.compile(USUAL).cubin
    opcodes = gpu_static.disassemble(gpu_static.nvdisasm_path(), cubin)
    assert "NOP" not in opcodes
    assert opcodes["BAR"] == 1  # the one __syncthreads
    assert opcodes["EXIT"] >= 1
    with pytest.raises(gpu_static.ToolError, match="nvdisasm fails"):
        gpu_static.disassemble(gpu_static.nvdisasm_path(), b"no cubin")


def test_what_does_not_compile_is_one_sentence(
    compiler: gpu_static.Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_static, "kernel_source", lambda: "this is no C++")
    with pytest.raises(gpu_static.ToolError, match="i2, H to D, clips before does not compile"):
        compiler.compile(USUAL)


@pytest.mark.parametrize(
    ("registers", "shared_bytes", "blocks"),
    [(64, 41120, 3), (63, 41120, 3), (65, 41120, 2), (32, 41120, 5), (32, 1000, 6), (64, 99000, 2)],
)
def test_occupancy_is_bound_by_what_runs_out_first(
    registers: int, shared_bytes: int, blocks: int
) -> None:
    assert gpu_static.blocks_of_a_multiprocessor(registers, shared_bytes) == blocks


def test_a_missing_tool_is_one_sentence_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(gpu_static, "_in_wheels", lambda pattern: [])
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run_gpu.main(["--static", "--quick", "--json", str(tmp_path / "made.json")]) == 3
    error = capsys.readouterr().err
    assert error == (
        "the kernels cannot be counted: there is no NVRTC; pip install nvidia-cuda-nvrtc\n"
    )
    with pytest.raises(gpu_static.ToolError, match="pip install nvidia-cuda-nvdisasm"):
        gpu_static.nvdisasm_path()
    assert not (tmp_path / "made.json").exists()


@pytest.mark.slow
def test_the_result_is_one_that_compare_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tmp_path / "gpu_static.json"
    assert run_gpu.main(["--static", "--quick", "--json", str(made)]) == 0
    printed = capsys.readouterr().out
    assert "an estimate" in printed
    result = json.loads(made.read_text())
    assert result["benchmark"] == "gpu_static"
    assert list(result["variants"]) == [
        gpu_static.name_of(key) for key in (USUAL, gpu_static.USUAL_DHW)
    ]
    for model in result["roofline"].values():
        assert model["estimate"]
        # Per voxel of a tile of 32 × 256, a warp's instruction serving 32: tens of them.
        issued = model["ptx_instructions_of_a_block"]["runs"][0]
        assert 10 < issued * 32 / (32 * 256) < 1000
        assert model["bounds"]["H200"]["memory_us"] == pytest.approx(62.3, abs=0.1)
    assert compare.main([str(made), str(made)]) == 0
    result["variants"][gpu_static.name_of(USUAL)]["registers"]["runs"] = [128]
    worse = tmp_path / "worse.json"
    worse.write_text(json.dumps(result))
    assert compare.main([str(made), str(worse)]) == 1


def test_a_picture_of_what_was_not_measured_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as caught:
        run_gpu.main(["--static", "--plot", str(tmp_path / "made.png")])
    assert caught.value.code == 2
    assert "--static measures nothing" in capsys.readouterr().err


def test_the_published_counts_are_those_of_every_variant(compiler: gpu_static.Compiler) -> None:
    published = compare.load(RESULTS / "gpu_static.json")
    assert list(published["variants"]) == [gpu_static.name_of(key) for key in gpu_static.variants()]
    if published["nvrtc"] != compiler.version:
        return  # another compiler, other counts
    numbers = gpu_static.count(compiler, gpu_static.nvdisasm_path(), USUAL)
    told = published["variants"][gpu_static.name_of(USUAL)]
    assert {name: value(told, name) for name in numbers} == {
        name: value(numbers, name) for name in numbers
    }
