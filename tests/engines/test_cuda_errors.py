"""What an explicit ``cuda`` says where it cannot work: one sentence and the way out.

Nothing is computed here.  The stand-in for CuPy only answers what is asked before a device is used.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from ctgpu.engines import cupy_runtime, open_engine
from ctgpu.engines.cuda import CudaEngine
from ctgpu.errors import DeviceError


class CUDARuntimeError(RuntimeError):
    def __init__(self, status: int) -> None:
        super().__init__(f"cudaError {status}")
        self.status = status


def stand_in(
    *,
    version: str = "14.2.0",
    runtime: int = 13000,
    devices: int | CUDARuntimeError = 1,
    nvrtc: bool = True,
) -> Any:
    def get_device_count() -> int:
        if isinstance(devices, CUDARuntimeError):
            raise devices
        return devices

    def get_version() -> tuple[int, int]:
        if not nvrtc:
            raise RuntimeError("CuPy failed to load libnvrtc.so.13")
        return 13, 0

    return types.SimpleNamespace(
        __version__=version,
        cuda=types.SimpleNamespace(
            runtime=types.SimpleNamespace(
                runtimeGetVersion=lambda: runtime,
                getDeviceCount=get_device_count,
                CUDARuntimeError=CUDARuntimeError,
            ),
            nvrtc=types.SimpleNamespace(getVersion=get_version),
        ),
    )


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    def prepare(driver: int | None, cupy: Any = None) -> None:
        monkeypatch.setattr(cupy_runtime, "driver_cuda_version", lambda: driver)
        monkeypatch.setitem(sys.modules, "cupy", cupy)  # None: importing it fails

    return prepare


@pytest.mark.parametrize(
    ("driver", "cupy", "sentence"),
    [
        (None, None, r"no NVIDIA driver was found .*install one.*or use --device cpu"),
        (11040, None, r"supports CUDA 11\.4 and 12\.0 is needed: update the driver"),
        (12020, None, r"CuPy is not installed.*CUDA 12\.2: pip install .*\[cuda12\]'"),
        (13000, None, r"CuPy is not installed.*CUDA 13\.0: pip install .*\[cuda13\]'"),
        (13000, stand_in(version="13.6.0"), r"CuPy 13\.6\.0 is installed and 14 is needed"),
        (12040, stand_in(), r"CUDA 12\.4 .*built for CUDA 13\.0: .*\[cuda12\]"),
        (13000, stand_in(nvrtc=False), r"no NVRTC.*pip install .*\[cuda13\]' brings it"),
        (13000, stand_in(devices=0), r"shows no GPU.*CUDA_VISIBLE_DEVICES"),
        (13000, stand_in(devices=CUDARuntimeError(100)), r"shows no GPU.*CUDA_VISIBLE_DEVICES"),
        (13000, stand_in(devices=CUDARuntimeError(35)), r"too old for the installed CuPy: update"),
    ],
)
def test_one_sentence_with_the_way_out(
    machine: Any, driver: int | None, cupy: Any, sentence: str
) -> None:
    machine(driver, cupy)
    with pytest.raises(DeviceError, match=sentence) as caught:
        open_engine("cuda")
    assert str(caught.value).endswith("or use --device cpu")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("devices", "sentence"),
    [(1, r"there is no cuda:7; .* cuda:0$"), (4, r"there is no cuda:7; .* cuda:0 to cuda:3$")],
)
def test_a_device_that_does_not_exist(machine: Any, devices: int, sentence: str) -> None:
    machine(13000, stand_in(devices=devices))
    with pytest.raises(DeviceError, match=sentence):
        CudaEngine((0, 7))


def test_a_broken_cupy_says_what_broke(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def find_spec(self, name: str, *_: Any) -> None:
            if name == "cupy":
                raise ImportError("long story\n  libfoo.so.1 is missing")

    machine(13000)
    monkeypatch.delitem(sys.modules, "cupy")
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(DeviceError, match=r"cannot be imported \(libfoo\.so\.1 is missing\)"):
        open_engine("cuda")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            OSError(30, "Read-only file system", "/home/me/.cupy"),
            r"CuPy cannot keep compiled kernels in \S+kernel_cache \(Read-only file system\): set "
            r"CUPY_CACHE_DIR to a folder that can be written, or use --device cpu$",
        ),
        (
            OSError("libcublas.so.13: cannot open shared object file"),
            r"CuPy cannot be imported \(libcublas\.so\.13: cannot open shared object file\): pip",
        ),
        (
            RuntimeError("module compiled against ABI version 0x1000009"),
            r"CuPy cannot be imported \(module compiled against ABI version 0x1000009\): pip",
        ),
        (ValueError("numpy.dtype size changed"), r"imported \(numpy\.dtype size changed\): pip"),
        (AttributeError(), r"imported \(no reason given\): pip install .*\[cuda13\]'"),
    ],
)
def test_whatever_importing_cupy_raises_is_one_sentence(
    machine: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, sentence: str
) -> None:
    class Broken:
        def find_spec(self, name: str, *_: Any) -> None:
            if name == "cupy":
                raise error

    machine(13000)
    monkeypatch.delenv("CUPY_CACHE_DIR", raising=False)
    monkeypatch.delitem(sys.modules, "cupy")
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(DeviceError, match=sentence) as caught:
        open_engine("cuda")
    assert "\n" not in str(caught.value)
    assert open_engine("auto").name == "cpu"


def test_auto_falls_back_with_one_log_line(machine: Any, caplog: pytest.LogCaptureFixture) -> None:
    machine(None)
    with caplog.at_level(logging.INFO, "ctgpu"):
        engine = open_engine("auto")
    assert engine.name == "cpu"
    assert [record.getMessage() for record in caplog.records] == [
        "using the CPU engine: no NVIDIA driver was found (libcuda.so.1 cannot be loaded): install "
        "one, start the container with its GPU passed through, or use --device cpu"
    ]


def test_importing_the_engine_imports_no_cupy() -> None:
    code = "import ctgpu.engines.cuda, sys; sys.exit('cupy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_benchmark_says_that_it_needs_a_gpu() -> None:
    ran = subprocess.run(
        [sys.executable, "benchmarks/run_gpu.py", "--quick"],
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 3
    assert ran.stderr.startswith("this benchmark needs a GPU: ")
    assert ran.stderr.count("\n") == 1
