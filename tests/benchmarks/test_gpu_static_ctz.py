"""What ``run_gpu.py --static`` counts of the compiled decoders of `.ctz`; nothing needs a GPU."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.harness import compare, kernels
from benchmarks.harness.asking import RESULTS
from benchmarks.harness.machine import REPOSITORY
from benchmarks.questions import gpu_static_ctz
from ctgpu.engines.ctz_on_device import CtzKernel
from ctgpu.engines.nvrtc import DECODE_CTZ
from support import kernel_counts, plain_ctz
from support.nvrtc import Nvrtc

USUAL = CtzKernel("float16", "rice")
AGAIN = "run python benchmarks/run_gpu.py --static, and hold docs/gpu.md against it"


@pytest.fixture(scope="module")
def compiler() -> Nvrtc:
    if sys.platform != "linux":
        pytest.skip("NVIDIA has no wheels for this system")
    return kernel_counts.newest_nvrtc()


@pytest.fixture(scope="module")
def published() -> dict[str, Any]:
    return compare.load(RESULTS / "gpu_static.json")


@pytest.fixture
def same_compiler(compiler: Nvrtc, published: dict[str, Any]) -> Nvrtc:
    """The one with which the published kernels were counted: another makes other counts."""
    version = "{}.{}".format(*compiler.version())
    if published["nvrtc"] != version:
        pytest.skip(f"counted with NVRTC {published['nvrtc']} and this is {version}: {AGAIN}")
    return compiler


def value(numbers: dict[str, Any], name: str) -> int:
    return int(numbers[name]["runs"][0])


# ---- What is counted ---------------------------------------------------------------------------


def test_the_phantom_is_a_chest_that_both_codings_make_smaller() -> None:
    for key in gpu_static_ctz.ROOFLINES:
        head, tiles = gpu_static_ctz.phantom(key.kind, key.coding)
        assert head.shape_dhw == (8, 480, 480)
        assert not head.table["raw"].any()
        assert len(tiles) == head.table["size"].sum()
        assert 1.5 < 2 * np.prod(head.shape_dhw) / len(tiles) < 3


@pytest.mark.slow
def test_what_is_counted_is_the_decoding_of_the_phantom(
    compiler: Nvrtc, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_static_ctz, "VOLUME_DHW", (240, 24, 40))
    head, tiles = gpu_static_ctz.phantom("float16", "rice")
    ptx = gpu_static_ctz.compiled_of(compiler, USUAL).ptx
    counts = gpu_static_ctz.decoded_on_cpu(ptx, head, tiles)
    # Voxels, from each lane that has one, and what the next plane needs, from all of them ...
    voxels = int(np.prod(head.shape_dhw))
    stores = sum(n for name, n in counts.threads.items() if name.startswith("st.u16"))
    planes_before = 2 * 32 * (head.shape_dhw[0] - 1) * head.shape_dhw[1]
    assert stores == voxels + planes_before
    # ... and a decoder that is given damage says so.
    with pytest.raises(AssertionError):
        gpu_static_ctz.decoded_on_cpu(ptx, head, tiles ^ np.uint8(255))
    member = head.to_bytes() + tiles.tobytes()
    assert np.isfinite(plain_ctz.decode(member)).all()


def test_a_decoder_is_counted(compiler: Nvrtc) -> None:
    numbers = gpu_static_ctz.count(compiler, kernel_counts.nvdisasm_path(), USUAL)
    # What __launch_bounds__ grants 16 blocks, and what decode_ctz.cu declares.
    assert 64 <= value(numbers, "registers") <= 128
    assert value(numbers, "shared memory") == 2048 * 4
    assert value(numbers, "spill stores") == value(numbers, "spill loads") == 0
    # Of eight rows at a time, packed bits, those of the plane before, and significand bits.
    assert value(numbers, "global loads") >= 8 * 5


def test_what_does_not_compile_is_one_sentence(
    compiler: Nvrtc, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_static_ctz, "kernel_source", lambda sources: "this is no C++")
    with pytest.raises(kernel_counts.ToolError, match="float16, rice does not compile"):
        gpu_static_ctz.compiled_of(compiler, USUAL)


def test_few_warps_wait_for_themselves_and_many_for_their_turn() -> None:
    one, four = gpu_static_ctz.bounds_of(450, 1_980_000, 10**9)["H100"].values()
    assert one == {"issue_us": 1000, "wait_us": 4000, "memory_us": pytest.approx(333.3, abs=0.1)}
    assert four["issue_us"] == four["wait_us"] == 4000
    assert four["memory_us"] == pytest.approx(4 * one["memory_us"])
    (_, more) = gpu_static_ctz.bounds_of(1000, 1_980_000, 10**9)["H200"].values()
    assert more["issue_us"] == more["wait_us"] == 8000


# ---- The published result ----------------------------------------------------------------------


def test_the_published_counts_are_those_of_these_kernels(published: dict[str, Any]) -> None:
    told = published["decoder"]
    assert told["counted_from"] == gpu_static_ctz.counted_from(), AGAIN
    names = [gpu_static_ctz.name_of(key) for key in gpu_static_ctz.variants()]
    assert list(told["variants"]) == names
    assert list(told["roofline"]) == list(map(gpu_static_ctz.name_of, gpu_static_ctz.ROOFLINES))


@pytest.mark.parametrize("changed", DECODE_CTZ.files)
def test_a_decoder_that_changed_is_told_from_the_counted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    before = gpu_static_ctz.counted_from()
    for name in DECODE_CTZ.files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(gpu_static_ctz.kernel_folder() / name, tmp_path / name)
    monkeypatch.setattr(gpu_static_ctz, "kernel_folder", lambda: tmp_path)
    assert gpu_static_ctz.counted_from() == before
    with (tmp_path / changed).open("a") as file:
        file.write("\n")
    after = gpu_static_ctz.counted_from()
    assert {name for name in before if before[name] != after[name]} == {changed}


@pytest.mark.parametrize(
    ("name", "other"), [("CUPY_OPTIONS", ()), ("ARCHITECTURE", "sm_100"), ("CODINGS", ("rice",))]
)
def test_other_decoders_or_options_are_told_from_the_counted_ones(
    monkeypatch: pytest.MonkeyPatch, name: str, other: object
) -> None:
    before = gpu_static_ctz.counted_from()
    monkeypatch.setattr(gpu_static_ctz, name, other)
    after = gpu_static_ctz.counted_from()
    assert {name for name in before if before[name] != after[name]} == {"variants"}


def test_every_file_that_a_decoder_includes_is_among_those_it_was_counted_from() -> None:
    folder = gpu_static_ctz.kernel_folder()
    listed = {(folder / name).resolve() for name in DECODE_CTZ.files}
    for file in listed:
        for name in re.findall(r'#\s*include "([^"]+)"', file.read_text(encoding="utf-8")):
            assert (file.parent / name).resolve() in listed


@pytest.mark.slow
@pytest.mark.parametrize("key", [USUAL, CtzKernel("grid", "pack")], ids=gpu_static_ctz.name_of)
def test_the_published_counts_are_counted_again(
    same_compiler: Nvrtc, published: dict[str, Any], key: CtzKernel
) -> None:
    told, name = published["decoder"], gpu_static_ctz.name_of(key)
    made = gpu_static_ctz.count(same_compiler, kernel_counts.nvdisasm_path(), key)
    assert {each: value(made, each) for each in made} == {
        each: value(told["variants"][name], each) for each in told["variants"][name]
    }, AGAIN
    bound = gpu_static_ctz.roofline(same_compiler, key, made)
    issued = "ptx_instructions_of_a_tile"
    bound[issued] = told["roofline"][name][issued] | {"runs": bound[issued]["runs"]}
    assert told["roofline"][name] == json.loads(json.dumps(bound)), AGAIN


# ---- The documents' figures --------------------------------------------------------------------


def test_the_documents_give_the_published_figures(published: dict[str, Any]) -> None:
    text = " ".join((REPOSITORY / "docs" / "gpu.md").read_text(encoding="utf-8").split())
    missing = [sentence for sentence in sentences(published["decoder"]) if sentence not in text]
    assert missing == []


def sentences(decoder: dict[str, Any]) -> list[str]:
    """What docs/gpu.md must say of a result."""
    variants, rooflines = decoder["variants"], decoder["roofline"]

    def ends(name: str) -> str:
        values = [value(of, name) for of in variants.values()]
        return f"{min(values):,} to {max(values):,}"

    (shared,) = {value(of, "shared memory") for of in variants.values()}
    assert {value(of, "spill stores") for of in variants.values()} == {0}
    blocks = [of["blocks_of_a_multiprocessor"] for of in rooflines.values()]
    (tiles,) = {of["tiles"] for of in rooflines.values()}
    (planes,) = {of["bytes_of_planes_before"] for of in rooflines.values()}
    (depth, height, width), out_mb = gpu_static_ctz.VOLUME_DHW, 110.592
    assert 2 * depth * height * width == out_mb * 1e6
    ratios = [of["ratio_of_the_phantom"] for of in rooflines.values()]
    uploads = [out_mb / 55 / ratio for ratio in (max(ratios), min(ratios))]
    schedulers = {
        device.multiprocessors * kernels.SCHEDULERS for device in kernels.DEVICES.values()
    }
    said = [
        f"The {len(variants)} decoders of `.ctz` have {ends('registers')} registers, {shared:,} "
        f"bytes of shared memory, no spills, {ends('instructions')} instructions; {min(blocks)} "
        f"to {max(blocks)} warps a multiprocessor",
        f"a volume of {height}×{width}×{depth} is {tiles} tiles: fewer than the {max(schedulers)} "
        "schedulers of an H100 or H200",
        f"{planes / 1e6:.1f} MB a volume, of which {tiles * height * 64 / 1e6:.1f} MB are in use",
        f"upload of {out_mb:.1f} MB, {out_mb / 55:.1f} ms at an assumed 55 GB/s, and compressed as "
        f"this phantom is ({min(ratios):.1f} to {max(ratios):.1f} times) {uploads[0]:.1f} to "
        f"{uploads[1]:.1f} ms",
    ]
    for name, of in rooflines.items():
        one, four = of["bounds"]["H100"].values()
        assert of["bounds"]["H200"]["4"]["wait_us"] == four["wait_us"]
        faster = of["bounds"]["H200"].values()
        said.append(
            f"| {name} | {value(of, 'ptx_instructions_of_a_tile') / 1000:.0f} "
            f"| {of['instructions_of_a_tile'] / 1000:.0f} | {one['issue_us']:.0f} "
            f"| {one['wait_us']:.0f} | {four['wait_us']:.0f} "
            f"| {one['memory_us']:.0f}, {four['memory_us']:.0f} "
            f"| {', '.join(format(bound['memory_us'], '.0f') for bound in faster)} |"
        )
    return said


def test_figures_that_the_documents_do_not_give_are_found(published: dict[str, Any]) -> None:
    given = sentences(published["decoder"])
    changed = json.loads(json.dumps(published["decoder"]))
    for numbers in changed["variants"].values():
        numbers["registers"]["runs"][0] += 1
    changed["roofline"]["float16, rice"]["instructions_of_a_tile"] += 10**6
    assert len(set(sentences(changed)) - set(given)) == 2
