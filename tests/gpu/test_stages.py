"""The stages of ``check.py`` themselves: what they find, and that they find what is wrong.

On the emulated device of ``conftest.py`` where there is no other.
"""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import decoder
import end_to_end
import numpy as np
import pytest
import smoke
import words

from benchmarks.harness import gpu_timing
from benchmarks.questions import gpu_static_ctz
from ctgpu.codec import Coding, Head
from ctgpu.codec.ctz import Kind
from ctgpu.engines.ctz_on_device import CtzDecoder
from ctgpu.engines.cuda import CudaEngine
from ctgpu.spec import Spec

pytestmark = pytest.mark.usefixtures("device")

SPEC = Spec(target_spacing_mm=(12.0, 12.0, 16.0), shape_hwd=(32, 32, 24))


def spoil(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the engine change one voxel of every volume by one bit."""
    run = CudaEngine.run

    def wrong(self: CudaEngine, jobs: Any, **others: Any) -> None:
        run(self, jobs, **others)
        for made in jobs:
            made.out.view(np.uint16)[tuple(n // 2 for n in made.out.shape)] ^= 1

    monkeypatch.setattr(CudaEngine, "run", wrong)


@pytest.mark.slow
def test_smoke_compares_bits_and_times_the_first(tmp_path: Path) -> None:
    result = tmp_path / "smoke.json"
    found = smoke.smoke(result, (30, 28, 26), SPEC)
    assert found == json.loads(result.read_text())
    assert list(found["layouts"]) == ["HWD", "DHW"]
    for layout in found["layouts"].values():
        assert layout["same_bits"]
        assert min(layout["first_s"], layout["second_s"], found["open_s"]) > 0
    assert "HWD same bits" in words.of_smoke(found)


@pytest.mark.slow
def test_smoke_finds_one_wrong_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch)
    found = smoke.smoke(tmp_path / "smoke.json", (30, 28, 26), SPEC)
    assert [layout["voxels_that_differ"] for layout in found["layouts"].values()] == [1, 1]
    assert "DHW 1 voxels differ" in words.of_smoke(found)


@pytest.fixture
def small_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "SHAPE", (9, 6, 33))
    monkeypatch.setattr(decoder, "BOX", ((5, 1, 20), (4, 4, 13)))
    monkeypatch.setattr(gpu_static_ctz, "VOLUME_DHW", (8, 48, 64))
    monkeypatch.setattr(gpu_timing, "WARM_UP_S", 0.0)


@pytest.mark.slow
@pytest.mark.usefixtures("small_decoder")
def test_the_decoder_is_held_against_the_cpus_and_timed(tmp_path: Path) -> None:
    result = tmp_path / "decoder.json"
    found = decoder.check(result, 2, 1)
    assert json.loads(json.dumps(found)) == json.loads(result.read_text())
    assert len(found["volumes"]) == 5 * 2 * 2
    assert all(one["same_bits"] and one["tiles"] == 4 for one in found["volumes"].values())
    # There are some of both forms.
    assert (
        0 < sum(one["raw_tiles"] for one in found["volumes"].values()) < 4 * len(found["volumes"])
    )
    assert list(found["speed"]) == ["float16, pack", "float16, rice", "grid, pack", "grid, rice"]
    for of in found["speed"].values():
        assert not of["damaged"]
        assert of["shape_dhw"] == (16, 48, 64)
        assert min(of[f"batch of {n}"]["voxel_gb_per_s"] for n in (1, 4)) > 0
    assert words.of_decoder(found).startswith("20 of 20 volumes have the same bits; float16, pack ")


@pytest.mark.slow
@pytest.mark.usefixtures("small_decoder")
def test_a_decoder_with_one_wrong_bit_or_damage_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = decoder.on_gpu

    def wrong(on: CtzDecoder, head: Head, *others: Any) -> np.ndarray:
        made = right(on, head, *others)
        if (head.kind, head.coding, head.layout) == ("grid", "rice", "HWD"):
            made[1, 2, 3] ^= 1
        return made

    for name in ("KINDS", "TIMED"):
        monkeypatch.setattr(decoder, name, ("grid",))
    monkeypatch.setattr(decoder, "on_gpu", wrong)
    timed = decoder.phantom

    def damaged(kind: Kind, coding: Coding) -> tuple[Head, np.ndarray]:
        head, tiles = timed(kind, coding)
        return head, tiles if coding == "pack" else tiles ^ np.uint8(255)

    monkeypatch.setattr(decoder, "phantom", damaged)
    monkeypatch.setattr(sys, "argv", ["decoder.py", str(tmp_path / "decoder.json")])
    monkeypatch.setattr(decoder, "SLABS", 1)
    monkeypatch.setattr(decoder, "REPEATS", 1)
    assert decoder.main() == 1
    said = words.of_decoder(json.loads((tmp_path / "decoder.json").read_text()))
    assert said.startswith("3 of 4 volumes have the same bits; others: grid, rice, HWD; ")
    assert said.endswith("GB/s, and finds damage")
    assert said.count("finds damage") == 1


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(end_to_end, "PHANTOMS", (((48, 44, 30), (8.0, 8.0, 12.0)),) * 2)
    return end_to_end.parts(tmp_path, tmp_path / "no real ct", SPEC)


@pytest.mark.slow
def test_shards_of_both_engines_are_compared_file_by_file(parts: Any, tmp_path: Path) -> None:
    shards = {name: part for name, part in parts.items() if name.startswith("shards")}
    found = end_to_end.run_parts(tmp_path / "found.json", shards)
    assert found == json.loads((tmp_path / "found.json").read_text())
    assert len(found) == 2
    for part in found.values():
        assert part["passed"]
        assert {"shard-000000.tar", "shard-000000.idx", "plan.json"} <= part["sha256"].keys()
    assert words.of_end_to_end(found) == "2 of 2 parts passed"


def test_shards_of_which_there_are_none_are_not_the_same(
    parts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plan_alone(folder: Path, source: Path, device: str, spec: Spec) -> Path:
        (folder / "plan.json").write_text("{}")
        return folder

    monkeypatch.setattr(end_to_end, "build", plan_alone)
    found = end_to_end.run_parts(tmp_path / "found.json", {"shards": parts["shards, HWD"]})
    assert not found["shards"]["passed"]


@pytest.mark.slow
def test_shards_that_differ_by_a_bit_are_named(
    parts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch)
    found = end_to_end.run_parts(tmp_path / "found.json", {"shards": parts["shards, HWD"]})
    assert not found["shards"]["passed"]
    assert found["shards"]["files_that_differ"] == ["shard-000000.tar"]
    assert words.of_end_to_end(found) == "0 of 1 parts passed; failed: shards"


def test_scans_that_differ_by_a_bit_are_named(parts: Any, tmp_path: Path) -> None:
    import ctgpu

    def right(scan: Path) -> Any:
        return ctgpu.preprocess(scan, spec=SPEC, device="cpu", intensity="hu")

    def wrong(scan: Path) -> Any:
        volume = right(scan)
        volume.view(np.uint16)[0, 0, 0] ^= 1
        return volume

    source = tmp_path / "source"
    assert end_to_end.compare_scans(source, SPEC, right)["passed"]
    found = end_to_end.compare_scans(source, SPEC, wrong)
    assert not found["passed"]
    assert list(found["voxels_that_differ"].values()) == [1, 1]
    assert not end_to_end.compare_scans(tmp_path / "none", SPEC, right)["passed"]


def test_a_part_that_raises_leaves_the_others_theirs(tmp_path: Path) -> None:
    def broken() -> dict[str, Any]:
        raise RuntimeError("a device was lost")

    every = {
        "absent": lambda: {"passed": bool(end_to_end.package("no_such_package"))},
        "broken": broken,
        "good": lambda: {"passed": True},
    }
    found = end_to_end.run_parts(tmp_path / "found.json", every)
    assert found["absent"] == {"passed": True, "not_here": "no_such_package is not installed"}
    assert found["broken"] == {"passed": False, "why": "RuntimeError: a device was lost"}
    assert found["good"]["passed"]
    assert words.of_end_to_end(found) == ("1 of 3 parts passed; failed: broken; not here: absent")


@pytest.mark.parametrize(
    "error",
    [
        ImportError("cannot import name 'VolumeDataset' from 'ctgpu.loading'"),
        ModuleNotFoundError("No module named 'ctgpu._native'", name="ctgpu._native"),
        ModuleNotFoundError("No module named 'torch'", name="torch"),
    ],
)
@pytest.mark.parametrize("part", ["shards, HWD", "preprocess to cupy", "loader"])
def test_an_import_that_fails_within_a_part_is_a_failure(
    parts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: ImportError, part: str
) -> None:
    """Our own, or that of what the part has found to be there."""

    def fail(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(end_to_end, "build", fail)
    monkeypatch.setattr(end_to_end, "VolumeDataset", fail)
    monkeypatch.setattr(end_to_end.ctgpu, "preprocess", fail)
    monkeypatch.setattr(end_to_end, "torch_with_cuda", lambda: None)
    found = end_to_end.run_parts(tmp_path / "found.json", {part: parts[part]})
    assert not found[part]["passed"]
    assert found[part]["why"].endswith(str(error))


@pytest.mark.parametrize("part", ["preprocess to torch", "loader"])
def test_without_torch_the_parts_about_it_are_not_here(
    parts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    found = end_to_end.run_parts(tmp_path / "found.json", {part: parts[part]})
    assert found[part] == {"passed": True, "not_here": "torch is not installed"}
    of_cpu_alone = types.SimpleNamespace(
        __version__="2.9+cpu", cuda=types.SimpleNamespace(is_available=lambda: False)
    )
    monkeypatch.setitem(sys.modules, "torch", of_cpu_alone)
    found = end_to_end.run_parts(tmp_path / "found.json", {part: parts[part]})
    assert found[part]["not_here"] == "torch 2.9+cpu finds no CUDA device"


@pytest.mark.parametrize(
    "code",
    [
        "raise ImportError('libtorch_cuda.so: undefined symbol')",
        "raise OSError('libcudart.so.13: cannot open shared object file')",
        "import no_such_package_of_torchs",
    ],
)
def test_torch_that_is_there_and_broken_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    (tmp_path / "torch.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    every = {"torch": lambda: {"passed": bool(end_to_end.torch_with_cuda())}}
    found = end_to_end.run_parts(tmp_path / "found.json", every)
    assert not found["torch"]["passed"]
