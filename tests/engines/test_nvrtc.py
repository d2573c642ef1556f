"""The CUDA sources compile without a warning for every GPU generation, without a GPU."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from ctgpu.codec.ctz import KINDS, Kind
from ctgpu.engines import nvrtc as nvrtc_module
from ctgpu.engines.batch import KernelKey
from ctgpu.engines.ctz_on_device import CtzKernel
from ctgpu.engines.nvrtc import (
    DECODE_CTZ,
    KERNEL_NAME,
    PREPROCESS,
    Sources,
    Variant,
    kernel_folder,
    kernel_options,
    kernel_source,
)
from ctgpu.errors import DeviceError
from ctgpu.volume.stored import Stored
from support.nvrtc import CUPY_OPTIONS, Nvrtc

ARCHITECTURES = (75, 80, 90, 100, 120)
USUAL = KernelKey(
    "i2", swap=False, fast=0, out=2, rescales=False, clips_before=True, rows=4, pairs=True
)


@pytest.fixture(scope="session", params=["12", "13"])
def nvrtc(request: pytest.FixtureRequest) -> Nvrtc:
    return Nvrtc.of_version(request.param)


def all_kernels() -> list[KernelKey]:
    """Every voxel type, every pair of axes and every type of the output at least once, with both
    values of each flag; contiguous along H, every other in four rows."""
    dtypes = ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
    axes = list(itertools.product((0, 1, 2), (1, 2)))
    return [
        KernelKey(
            dtype,
            swap=n % 2 > 0,
            fast=fast,
            out=out,
            rescales=n % 3 > 0,
            clips_before=n % 5 > 0,
            stored=get_args(Stored)[n % 7 % 6],
            rows=4 if fast == 0 and n % 4 < 2 else 1,
        )
        for n, (dtype, (fast, out)) in enumerate(
            zip(dtypes * 2, itertools.islice(itertools.cycle(axes), 2 * len(dtypes)), strict=True)
        )
    ]


@pytest.mark.slow
@pytest.mark.parametrize("stored", get_args(Stored))
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nvrtc_compiles_for_every_architecture(
    nvrtc: Nvrtc, architecture: int, stored: Stored
) -> None:
    options = kernel_options(replace(USUAL, stored=stored))
    ptx = nvrtc.compile(kernel_source(), (f"-arch=compute_{architecture}", *options, *CUPY_OPTIONS))
    assert f".entry {KERNEL_NAME}" in ptx


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nvrtc_compiles_the_usual_kernel_without_spills(nvrtc: Nvrtc, architecture: int) -> None:
    options = (*kernel_options(USUAL), *CUPY_OPTIONS, "--ptxas-options=-v")
    compiled = (f"-arch=sm_{architecture}", *options)
    log = nvrtc.build(kernel_source(), compiled).log
    assert "warning" not in log
    assert " 0 bytes spill stores, 0 bytes spill loads" in log


@pytest.mark.slow
@pytest.mark.parametrize("key", all_kernels(), ids=lambda key: " ".join(key.defines))
def test_nvrtc_compiles_every_kernel_to_exact_arithmetic(nvrtc: Nvrtc, key: KernelKey) -> None:
    ptx = nvrtc.compile(kernel_source(), ("-arch=compute_90", *kernel_options(key), *CUPY_OPTIONS))
    # CuPy asks for subnormals to be flushed; no instruction may do so.
    assert not re.findall(r"^.*\.ftz.*$", ptx, re.MULTILINE)
    # Every fma is one that preprocess_math.h writes: all are rounded to nearest, none contracted.
    assert set(re.findall(r"\bfma\.\S+", ptx)) == {"fma.rn.f32"}
    assert not re.findall(r"\b(?:mul|mad|add)\.(?:rn\.)?f32", ptx)
    # Eight voxels at a time are written.
    words = 2 if key.stored == "uint8" else 4
    assert re.search(rf"\bst(?:\.global)?\.v{words}\.u32", ptx)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nvrtc_compiles_the_decoder_for_every_architecture_without_spills(
    nvrtc: Nvrtc, architecture: int, kind: Kind
) -> None:
    key = CtzKernel(kind, "rice")
    options = (f"-arch=sm_{architecture}", *kernel_options(key, DECODE_CTZ), *CUPY_OPTIONS)
    made = nvrtc.build(kernel_source(DECODE_CTZ), (*options, "--ptxas-options=-v"))
    assert "warning" not in made.log
    assert " 0 bytes spill stores, 0 bytes spill loads" in made.log
    assert f".entry {DECODE_CTZ.kernel}" in made.ptx


def test_the_hash_of_the_sources_is_among_the_options() -> None:
    assert any(re.fullmatch(r"-DCTGPU_SOURCES=0x[0-9a-f]{16}", o) for o in kernel_options(USUAL))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nvcc_compiles_for_every_architecture(architecture: int, tmp_path: Path) -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc on the PATH")
    strict = [f"-arch=sm_{architecture}", "--Werror", "all-warnings", "-Xptxas", "-v"]
    files = ["-o", tmp_path / "kernel.cubin", kernel_folder() / "cuda" / "preprocess.cu"]
    ran = subprocess.run(
        ["nvcc", "-cubin", *strict, *kernel_options(USUAL), *files],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    # The kernel that nearly every build runs keeps everything in registers.
    assert " 0 bytes spill stores, 0 bytes spill loads" in ran.stderr


@pytest.mark.parametrize(
    ("sources", "key"),
    [(PREPROCESS, USUAL), (DECODE_CTZ, CtzKernel("float16", "rice"))],
    ids=["preprocess", "ctz"],
)
def test_the_hash_is_of_every_source_and_the_includes_are_found(
    sources: Sources, key: Variant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashes = set()
    for changed in (None, *sources.files):
        folder = tmp_path / str(changed).replace("/", "_")
        for name in sources.files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(b"changed" if name == changed else b"as it was")
        monkeypatch.setattr(nvrtc_module, "kernel_folder", lambda folder=folder: folder)
        nvrtc_module._hash_of_sources.cache_clear()
        options = kernel_options(key, sources)
        assert f"-I{folder / 'cuda'}" in options
        hashes.add(next(option for option in options if "SOURCES" in option))
    nvrtc_module._hash_of_sources.cache_clear()
    assert len(hashes) == 1 + len(sources.files)


def test_sources_that_are_missing_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "ctgpu"
    monkeypatch.setattr(nvrtc_module, "__file__", str(package / "engines" / "nvrtc.py"))
    find = nvrtc_module.kernel_folder.__wrapped__
    with pytest.raises(
        DeviceError, match=r"the CUDA sources are missing from .*kernels: reinstall"
    ):
        find()
    # Beside the package, as in a checkout; inside it, as installed, they come first.
    for folder in (tmp_path / "kernels", package / "kernels"):
        shutil.copytree(kernel_folder(), folder)
        assert find() == folder
