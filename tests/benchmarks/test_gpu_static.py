"""What ``run_gpu.py --static`` counts of the compiled kernels; nothing of it needs a GPU.

NVRTC and nvdisasm come with the development dependencies, so that where those are (Linux), nothing
here is skipped but what would count the published kernels again with another NVRTC than theirs.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from benchmarks.harness import compare, kernels
from benchmarks.harness.asking import RESULTS
from benchmarks.harness.machine import REPOSITORY
from benchmarks.questions import gpu as run_gpu
from benchmarks.questions import gpu_static
from ctgpu.engines.batch import THREADS, KernelKey
from ctgpu.machine import usable_cores
from ctgpu.spec import Spec
from ctgpu.volume.stored import Stored
from support import kernel_counts
from support.nvrtc import Nvrtc, in_wheels

USUAL = gpu_static.USUAL
#: What takes the place of the usual one where four rows do not lie together.
ANY_STRIDES = replace(USUAL, rows=1, pairs=False)


@pytest.fixture(scope="module")
def compiler() -> Nvrtc:
    if sys.platform != "linux":
        pytest.skip("NVIDIA has no wheels for this system")
    return kernel_counts.newest_nvrtc()


def version_of(compiler: Nvrtc) -> str:
    return "{}.{}".format(*compiler.version())


def value(numbers: dict[str, dict[str, list[int]]], name: str) -> int:
    return numbers[name]["runs"][0]


def test_every_variant_has_a_name_of_its_own() -> None:
    keys = gpu_static.variants()
    assert len(keys) == len(set(keys)) == len({gpu_static.name_of(key) for key in keys})
    assert Counter(key.stored for key in keys) == {
        "float16": 480 + 164,  # for any strides, and for four rows that lie together
        "bfloat16": 4,
        "int16": 4,
        "uint8": 4,
        "float16_grid10": 4,
        "float16_grid11": 4,
    }
    assert gpu_static.name_of(ANY_STRIDES) == "i2, H to D, clips before"
    assert gpu_static.name_of(replace(USUAL, stored="uint8")) == (
        "i2, H to D, clips before, four rows, in pairs, to uint8"
    )


def test_a_kernel_is_counted(compiler: Nvrtc) -> None:
    numbers = gpu_static.count(compiler, kernel_counts.nvdisasm_path(), USUAL)
    # What __launch_bounds__ grants, and what tile.h declares.
    assert 32 <= value(numbers, "registers") <= 64
    assert value(numbers, "shared memory") == 40 * 285 * 4
    assert value(numbers, "instructions") > 500
    # `write` blends eight pairs for one vector, `blend` stores four rows, and has the loads of four
    # columns under way before and in its loop.
    assert value(numbers, "shared loads") >= 16
    assert value(numbers, "shared stores") >= 4
    assert value(numbers, "global loads") >= 16


def test_swapped_bytes_cost_instructions(compiler: Nvrtc) -> None:
    swapped = KernelKey("i4", swap=True, fast=0, out=1, rescales=False, clips_before=True)
    straight = KernelKey("i4", swap=False, fast=0, out=1, rescales=False, clips_before=True)
    more, fewer = (
        value(gpu_static.count(compiler, kernel_counts.nvdisasm_path(), key), "instructions")
        for key in (swapped, straight)
    )
    assert more > fewer


def test_opcodes_are_counted_without_padding(compiler: Nvrtc) -> None:
    cubin = gpu_static.compiled_of(compiler, USUAL).cubin
    opcodes = kernel_counts.disassemble(kernel_counts.nvdisasm_path(), cubin)
    assert "NOP" not in opcodes
    assert opcodes["BAR"] == 1  # the one __syncthreads
    assert opcodes["EXIT"] >= 1
    with pytest.raises(kernel_counts.ToolError, match="nvdisasm fails"):
        kernel_counts.disassemble(kernel_counts.nvdisasm_path(), b"no cubin")


def test_what_does_not_compile_is_one_sentence(
    compiler: Nvrtc, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_static, "kernel_source", lambda: "this is no C++")
    with pytest.raises(kernel_counts.ToolError, match=r"H to D, .* in pairs does not compile"):
        gpu_static.compiled_of(compiler, USUAL)


@pytest.mark.parametrize(
    ("registers", "shared_bytes", "blocks"),
    [(64, 45600, 3), (63, 46240, 3), (65, 45600, 2), (32, 45600, 5), (32, 1000, 6), (64, 99000, 2)],
)
def test_occupancy_is_bound_by_what_runs_out_first(
    registers: int, shared_bytes: int, blocks: int
) -> None:
    assert kernels.blocks_of_a_multiprocessor(registers, shared_bytes, THREADS) == blocks


def test_a_missing_tool_is_one_sentence_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(kernel_counts, "in_wheels", lambda pattern: [])
    monkeypatch.setattr(kernel_counts, "nvrtc_libraries", dict)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run_gpu.main(["--static", "--quick", "--json", str(tmp_path / "made.json")]) == 3
    error = capsys.readouterr().err
    assert error == (
        "the kernels cannot be counted: there is no NVRTC; pip install nvidia-cuda-nvrtc\n"
    )
    with pytest.raises(kernel_counts.ToolError, match="pip install nvidia-cuda-nvdisasm"):
        kernel_counts.nvdisasm_path()
    assert not (tmp_path / "made.json").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
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


# ---- The published result ----------------------------------------------------------------------

#: Those for whom the documents have figures, and some of each kind beside them.
RECOUNTED = (
    USUAL,
    gpu_static.USUAL_DHW,
    ANY_STRIDES,
    KernelKey("u1", swap=False, fast=2, out=2, rescales=True, clips_before=False),
    KernelKey("f8", swap=True, fast=1, out=1, rescales=False, clips_before=True),
    *(replace(gpu_static.USUAL_DHW, stored=stored) for stored in get_args(Stored)[1:]),
)
AGAIN = "run python benchmarks/run_gpu.py --static, and hold docs/gpu.md against it"


@pytest.fixture(scope="module")
def published() -> dict[str, Any]:
    return compare.load(RESULTS / "gpu_static.json")


def test_the_published_counts_are_those_of_these_kernels(published: dict[str, Any]) -> None:
    assert published["counted_from"] == gpu_static.counted_from(), AGAIN
    assert list(published["variants"]) == [gpu_static.name_of(key) for key in gpu_static.variants()]
    assert published["architecture"] == gpu_static.ARCHITECTURE


@pytest.fixture
def other_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the kernels' sources, which is what is counted now."""
    for name in gpu_static.KERNEL_FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(gpu_static.kernel_folder() / name, tmp_path / name)
    monkeypatch.setattr(gpu_static, "kernel_folder", lambda: tmp_path)
    return tmp_path


@pytest.mark.parametrize("changed", gpu_static.KERNEL_FILES)
def test_a_kernel_that_changed_is_told_from_the_counted_one(
    other_kernels: Path, changed: str
) -> None:
    before = gpu_static.counted_from()
    with (other_kernels / changed).open("a") as file:
        file.write("\n")
    after = gpu_static.counted_from()
    assert {name for name in before if before[name] != after[name]} == {changed}


def test_where_the_kernels_lie_does_not_change_what_they_were_counted_from(
    monkeypatch: pytest.MonkeyPatch, other_kernels: Path
) -> None:
    before, options = gpu_static.counted_from(), gpu_static.kernel_options
    elsewhere = f"-I{other_kernels / 'cuda'}"
    monkeypatch.setattr(
        gpu_static,
        "kernel_options",
        lambda key: [elsewhere if o.startswith("-I") else o for o in options(key)],
    )
    assert elsewhere in gpu_static.options_of(USUAL)
    assert gpu_static.counted_from() == before


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("CUPY_OPTIONS", ()),
        ("ARCHITECTURE", "sm_100"),
        ("variants", lambda: [USUAL]),
        ("kernel_options", lambda key: ("--std=c++17", *key.defines)),
    ],
)
def test_other_variants_or_options_are_told_from_the_counted_ones(
    monkeypatch: pytest.MonkeyPatch, name: str, other: object
) -> None:
    before = gpu_static.counted_from()
    monkeypatch.setattr(gpu_static, name, other)
    after = gpu_static.counted_from()
    assert {name for name in before if before[name] != after[name]} == {"variants"}


def test_every_file_that_a_kernel_includes_is_among_those_it_was_counted_from() -> None:
    listed = {(gpu_static.kernel_folder() / name).resolve() for name in gpu_static.KERNEL_FILES}
    for file in listed:
        for name in re.findall(r'#\s*include "([^"]+)"', file.read_text(encoding="utf-8")):
            assert (file.parent / name).resolve() in listed


def test_two_results_of_other_kernels_can_be_compared(
    published: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = published | {"counted_from": dict.fromkeys(published["counted_from"], "another")}
    other = tmp_path / "other.json"
    other.write_text(json.dumps(changed))
    assert compare.main([str(RESULTS / "gpu_static.json"), str(other)]) == 0
    assert "says nothing about the code" not in capsys.readouterr().out


@pytest.fixture
def same_compiler(compiler: Nvrtc, published: dict[str, Any]) -> Nvrtc:
    """The one with which the published kernels were counted: another makes other counts."""
    if published["nvrtc"] != version_of(compiler):
        pytest.skip(
            f"counted with NVRTC {published['nvrtc']} and this is {version_of(compiler)}: {AGAIN}"
        )
    return compiler


def differing(compiler: Nvrtc, published: dict[str, Any], key: KernelKey) -> set[str]:
    """Which counts of a variant are not the published ones."""
    told = published["variants"][gpu_static.name_of(key)]
    made = gpu_static.count(compiler, kernel_counts.nvdisasm_path(), key)
    assert told.keys() == made.keys()
    return {name for name in made if value(told, name) != value(made, name)}


@pytest.mark.parametrize("key", RECOUNTED, ids=gpu_static.name_of)
def test_the_published_counts_are_counted_again(
    same_compiler: Nvrtc, published: dict[str, Any], key: KernelKey
) -> None:
    assert not differing(same_compiler, published, key), AGAIN


@pytest.mark.exhaustive
def test_every_published_count_is_counted_again(
    same_compiler: Nvrtc, published: dict[str, Any]
) -> None:
    keys = gpu_static.variants()
    with ThreadPoolExecutor(usable_cores()) as threads:
        found = list(threads.map(lambda key: differing(same_compiler, published, key), keys))
    assert {
        gpu_static.name_of(k): names for k, names in zip(keys, found, strict=True) if names
    } == {}


@pytest.mark.parametrize("layout", ["HWD", "DHW"])
def test_the_published_bounds_follow_from_the_published_counts(
    published: dict[str, Any], layout: str
) -> None:
    told = published["roofline"][layout]
    blocks, issued, moved = (
        told[name] for name in ("blocks", "instructions_of_a_block", "bytes_moved")
    )
    assert told["bounds"] == gpu_static.bounds_of(blocks, issued, moved), AGAIN


@pytest.mark.slow
@pytest.mark.parametrize("key", [USUAL, gpu_static.USUAL_DHW], ids=gpu_static.name_of)
def test_the_published_roofline_is_computed_again(
    same_compiler: Nvrtc, published: dict[str, Any], key: KernelKey
) -> None:
    spec = Spec(layout="HWD" if key.out == 2 else "DHW")
    told = published["roofline"][spec.layout]
    numbers = published["variants"][gpu_static.name_of(key)]
    made = gpu_static.roofline(same_compiler, key, numbers, spec)
    made["ptx_instructions_of_a_block"] |= told["ptx_instructions_of_a_block"] | {
        "runs": made["ptx_instructions_of_a_block"]["runs"]
    }
    assert told == json.loads(json.dumps(made))


@pytest.mark.slow
@pytest.mark.parametrize("fast", [0, 1, 2])
@pytest.mark.parametrize("out", [1, 2])
def test_shared_memory_has_no_bank_conflicts_but_where_single_rows_are_stored(
    compiler: Nvrtc, fast: int, out: int
) -> None:
    key = replace(ANY_STRIDES, fast=fast, out=out)
    counts, _ = kernel_counts.run_on_cpu(gpu_static.compiled_of(compiler, key).ptx, key)
    assert kernel_counts.passes_of(counts, "ld.shared") == 1
    # As the documents say: none but where neighbouring threads follow H, and slots of neighbours
    # along D meet in a warp.
    stored = kernel_counts.passes_of(counts, "st.shared")
    assert stored == 1 if fast else 1 < stored < 1.8


@pytest.mark.slow
@pytest.mark.parametrize("key", [USUAL, gpu_static.USUAL_DHW], ids=gpu_static.name_of)
def test_what_stores_four_rows_has_no_bank_conflicts(compiler: Nvrtc, key: KernelKey) -> None:
    counts, blocks = kernel_counts.run_on_cpu(gpu_static.compiled_of(compiler, key).ptx, key)
    assert kernel_counts.passes_of(counts, "ld.shared") == 1
    assert kernel_counts.passes_of(counts, "st.shared") == 1
    # Eight voxels of two rows for every vector: 32 × 256 voxels of a block.
    loads = sum(n for name, n in counts.warps.items() if name.startswith("ld.shared"))
    assert loads == blocks * 32 * 2 * 8


# ---- The documents' figures --------------------------------------------------------------------


def test_the_documents_give_the_published_figures(published: dict[str, Any]) -> None:
    text = " ".join((REPOSITORY / "docs" / "gpu.md").read_text(encoding="utf-8").split())
    missing = [sentence for sentence in sentences(published) if sentence not in text]
    assert missing == []


def sentences(result: dict[str, Any]) -> list[str]:
    """What docs/gpu.md must say of a result."""

    to_float16 = [key for key in gpu_static.variants() if key.stored == "float16"]

    def range_of(name: str, keys: Sequence[KernelKey] = to_float16) -> str:
        counts = [value(result["variants"][gpu_static.name_of(key)], name) for key in keys]
        return f"{min(counts):,} to {max(counts):,}"

    def thousands(number: float) -> str:
        return f"{number / 1000:.1f}"

    def instructions_to(stored: Stored) -> str:
        hwd, dhw = (
            value(
                result["variants"][gpu_static.name_of(replace(key, stored=stored))], "instructions"
            )
            for key in (USUAL, gpu_static.USUAL_DHW)
        )
        in_words = stored.replace("_grid", " in steps of 2^-")
        return f"{hwd:,} to {in_words} (DHW {dhw:,})"

    spilled = {
        key: size
        for key in gpu_static.variants()
        if (size := value(result["variants"][gpu_static.name_of(key)], "spill stores"))
    }
    assert {key.rows for key in spilled} <= {1}
    assert {key.voxel[1:] for key in spilled} <= {"8"}
    any_strides, four_rows = ([key for key in to_float16 if key.rows == rows] for rows in (1, 4))
    hwd, dhw = result["roofline"]["HWD"], result["roofline"]["DHW"]
    ptx, ptx_dhw = (value(of, "ptx_instructions_of_a_block") for of in (hwd, dhw))
    assert hwd["blocks"] == dhw["blocks"]
    assert hwd["bytes_moved"] == dhw["bytes_moved"]
    for access in ("load", "store"):
        assert {of[f"wavefronts_of_a_shared_{access}"] for of in (hwd, dhw)} == {1}
    in_words = {2: "two", 3: "three", 4: "four"}
    rows = [
        f"| {name} ({device.copy_gb_per_s / 1000} TB/s) "
        f"| {hwd['bounds'][name]['issue_us']:.0f} µs, DHW {dhw['bounds'][name]['issue_us']:.0f} µs "
        f"| {hwd['bounds'][name]['memory_us']:.0f} µs |"
        for name, device in kernels.DEVICES.items()
    ]
    (multiprocessors,) = {device.multiprocessors for device in kernels.DEVICES.values()}
    (clock_ghz,) = {device.clock_ghz for device in kernels.DEVICES.values()}
    return [
        f"all {len(to_float16)} kernels to float16",
        f"With NVRTC {result['nvrtc']} for {result['architecture']}",
        f"{range_of('registers')} registers, {range_of('shared memory')} bytes of shared memory "
        f"and so {in_words[hwd['blocks_of_a_multiprocessor']]} blocks a multiprocessor, "
        f"{hwd['occupancy']:.0%}".replace("%", " % of its warps"),
        f"{len(spilled)} kernels, for any strides and of voxels of 8 bytes, spill up to "
        f"{max(spilled.values(), default=0)} bytes a thread, the others nothing",
        f"{range_of('instructions', any_strides)} instructions for any strides, "
        f"{range_of('instructions', four_rows)} for four rows at once",
        f"Usual kernels have {', '.join(map(instructions_to, get_args(Stored)))}",
        f"{thousands(ptx)} thousand PTX instructions a block ({thousands(ptx_dhw)} for DHW), about "
        f"{thousands(hwd['instructions_of_a_block'])} thousand of machine code "
        f"({thousands(dhw['instructions_of_a_block'])})",
        f"that is {hwd['blocks']:,} blocks",
        f"= {hwd['bytes_moved']:,} bytes",
        f"{hwd['bytes_moved'] / 1e6:.1f} MB at the copy bandwidth",
        f"of {multiprocessors} × 4 schedulers at {clock_ghz} GHz",
        *rows,
        "reading and writing it is free of bank conflicts",
    ]


def test_the_usual_kernel_spills_nothing_with_the_older_nvrtc_of_the_documents() -> None:
    text = (REPOSITORY / "docs" / "gpu.md").read_text(encoding="utf-8")
    (version,) = re.findall(r"nor does the usual one with NVRTC ([\d.]+\d)", text)
    found = in_wheels(f"*/lib/libnvrtc.so.{version.partition('.')[0]}")
    if not found:
        pytest.skip(f"NVRTC {version} is not installed")
    older = Nvrtc(found[0])
    if version_of(older) != version:
        pytest.skip(f"the documents speak of NVRTC {version} and this is {version_of(older)}")
    assert " 0 bytes spill stores, 0 bytes spill loads" in gpu_static.compiled_of(older, USUAL).log


def test_figures_that_the_documents_do_not_give_are_found(published: dict[str, Any]) -> None:
    given = sentences(published)
    published = json.loads(json.dumps(published))
    for numbers in published["variants"].values():
        numbers["instructions"]["runs"][0] += 1
    published["roofline"]["HWD"]["instructions_of_a_block"] += 1000
    assert len(set(sentences(published)) - set(given)) == 3
