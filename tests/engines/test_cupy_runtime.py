"""What an explicit ``cuda`` says where it cannot work: one sentence and the way out.

Nothing is computed here.  The stand-in for CuPy only answers what is asked before a device is used.
"""

from __future__ import annotations

import contextlib
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
        (12020, None, r"CuPy is not installed.*CUDA 12\.2: `pip install .*\[cuda12\]'`"),
        (13000, None, r"CuPy is not installed.*CUDA 13\.0: `pip install .*\[cuda13\]'`"),
        (13000, stand_in(version="13.6.0"), r"CuPy 13\.6\.0 is installed and 14 is needed"),
        (12040, stand_in(), r"CUDA 12\.4 .*built for CUDA 13\.0: .*\[cuda12\]"),
        (13000, stand_in(nvrtc=False), r"no NVRTC.*`pip install .*\[cuda13\]'` brings it"),
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
            r"CuPy cannot be imported \(libcublas\.so\.13: cannot open shared object file\): `pip",
        ),
        (
            RuntimeError("module compiled against ABI version 0x1000009"),
            r"CuPy cannot be imported \(module compiled against ABI version 0x1000009\): `pip",
        ),
        (ValueError("numpy.dtype size changed"), r"imported \(numpy\.dtype size changed\): `pip"),
        (AttributeError(), r"imported \(no reason given\): `pip install .*\[cuda13\]'`"),
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


@pytest.mark.slow
def test_importing_the_engine_imports_no_cupy() -> None:
    code = "import ctgpu.engines.cuda, sys; sys.exit('cupy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
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


@pytest.mark.parametrize(("version", "text"), [(12000, "12.0"), (12040, "12.4"), (13010, "13.1")])
def test_versions_of_cuda_are_told_as_people_count_them(version: int, text: str) -> None:
    assert cupy_runtime.version_text(version) == text
    assert cupy_runtime.fitting_extra(version) == ("cuda13" if version >= 13000 else "cuda12")


@pytest.mark.parametrize(
    ("loaded", "found"),
    [
        (None, None),
        (types.SimpleNamespace(), None),
        (types.SimpleNamespace(cuDriverGetVersion=lambda at: 100), None),
        (types.SimpleNamespace(cuDriverGetVersion=lambda at: 0), None),
        (types.SimpleNamespace(cuDriverGetVersion=lambda at: _write(at, 13000)), 13000),
    ],
    ids=["no library", "another library", "refused", "nothing said", "told"],
)
def test_the_driver_itself_is_asked_which_cuda_it_supports(
    loaded: Any, found: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str) -> Any:
        assert name == "libcuda.so.1"
        if loaded is None:
            raise OSError(name)
        return loaded

    monkeypatch.setattr(cupy_runtime.ctypes, "CDLL", load)
    assert cupy_runtime.driver_cuda_version() == found
    if loaded is None:
        assert not cupy_runtime.has_context(0)


@pytest.mark.parametrize("chosen", ["GPU-5d5ba0d6", "MIG-1c0f9f28-0c1c-5f8d", "3"])
def test_ordinals_are_those_of_what_the_process_can_see(
    monkeypatch: pytest.MonkeyPatch, chosen: str
) -> None:
    """However that was chosen, the driver is asked which device an ordinal is."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    driver = types.SimpleNamespace(
        cuDeviceGet=lambda to, ordinal: 101 if ordinal.value else _write(to, 7),
        cuDevicePrimaryCtxGetState=lambda device, flags, to: _write(to, device.value == 7),
    )
    monkeypatch.setattr(cupy_runtime.ctypes, "CDLL", lambda name: driver)
    assert cupy_runtime.has_context(0)
    assert not cupy_runtime.has_context(1)


def _write(reference: Any, value: int) -> int:
    reference._obj.value = value
    return 0


@pytest.mark.parametrize("context", [False, True])
def test_a_thread_goes_back_to_a_device_that_it_has_used(
    context: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = [0]
    runtime = types.SimpleNamespace(getDevice=lambda: chosen[-1], setDevice=chosen.append)
    cupy = types.SimpleNamespace(cuda=types.SimpleNamespace(runtime=runtime))
    monkeypatch.setattr(cupy_runtime, "has_context", lambda ordinal: context)
    with cupy_runtime.on_device(cupy, 0):
        assert chosen == [0]  # it is there already
    with contextlib.suppress(KeyError), cupy_runtime.on_device(cupy, 2):
        assert chosen == [0, 2]
        raise KeyError
    assert chosen == ([0, 2, 0] if context else [0, 2])


def test_a_callers_stream_is_lent_as_it_is() -> None:
    assert cupy_runtime.LentStream(7).__cuda_stream__() == (0, 7)


def test_kernels_are_kept_where_cupy_keeps_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUPY_CACHE_DIR", "/cache")
    assert cupy_runtime.kernel_cache_folder() == "/cache"
    monkeypatch.delenv("CUPY_CACHE_DIR")
    assert cupy_runtime.kernel_cache_folder().endswith("/.cupy/kernel_cache")


# ---- Errors of CUDA as sentences ---------------------------------------------------------------


class CompileException(Exception):
    pass


class OutOfMemoryError(MemoryError):
    pass


class OtherCudaError(RuntimeError):
    pass


def raising(error: Exception, **words: Any) -> None:
    kinds = {"driver": "CUDADriverError", "nvrtc": "NVRTCError"}
    modules = {
        name: types.SimpleNamespace(**{kind: OtherCudaError}) for name, kind in kinds.items()
    }
    cuda = types.SimpleNamespace(
        memory=types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
        compiler=types.SimpleNamespace(CompileException=CompileException),
        runtime=types.SimpleNamespace(CUDARuntimeError=CUDARuntimeError),
        **modules,
    )
    cupy = types.SimpleNamespace(cuda=cuda)
    usual = {"kernel": "the kernel", "failed": "cuda:3 failed", "way_out": "start again"}
    with cupy_runtime.cuda_errors(cupy, **usual | words):
        raise error


@pytest.mark.parametrize("error", [CUDARuntimeError(700), OtherCudaError("cudaError 700")])
def test_a_device_that_fails_is_told_and_remembered(error: Exception) -> None:
    remembered: list[str] = []
    with pytest.raises(DeviceError) as caught:
        raising(error, on_failure=remembered.append)
    assert remembered == [str(caught.value)] == ["cuda:3 failed (cudaError 700): start again"]
    assert caught.value.__cause__ is error


def test_what_does_not_compile_is_told_by_its_first_error_and_not_remembered() -> None:
    remembered: list[str] = []
    log = CompileException("a note\nkernel.cu(3): error: no such thing\n1 error detected")
    with pytest.raises(DeviceError) as caught:
        raising(log, on_failure=remembered.append, otherwise=", or use --device cpu")
    assert str(caught.value) == (
        "NVRTC cannot compile the kernel for this GPU (kernel.cu(3): error: no such thing): "
        "update nvidia-cuda-nvrtc or the driver, or use --device cpu"
    )
    assert remembered == []


def test_memory_that_does_not_suffice_has_its_sentence_or_passes() -> None:
    with pytest.raises(DeviceError, match=r"^choose a smaller batch$"):
        raising(OutOfMemoryError(), no_memory="choose a smaller batch")
    with pytest.raises(OutOfMemoryError):
        raising(OutOfMemoryError())


def test_errors_of_others_pass() -> None:
    with pytest.raises(ZeroDivisionError):
        raising(ZeroDivisionError())
