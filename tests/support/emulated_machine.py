"""A machine whose GPU is the emulated one: for this process, or for those that it starts.

The others find there what a real one has: a driver library, ``nvidia-smi``, CuPy.  So whatever
runs in them is what runs with a GPU, and nothing in ctgpu or in ``gpu/check.py`` knows of this.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from ctgpu.checking import doctor
from ctgpu.engines import cupy_runtime
from support.compiling import compiled
from support.emulated_cupy import CUDA_VERSION, EmulatedCupy
from support.nvrtc import Nvrtc

TESTS = Path(__file__).resolve().parents[1]

#: ``libcuda.so.1``, as far as it is asked without CuPy.
DRIVER = f"""
extern "C" int cuDriverGetVersion(int *version) {{
    *version = {CUDA_VERSION};
    return 0;
}}
extern "C" int cuDevicePrimaryCtxGetState(int, unsigned *flags, int *active) {{
    *flags = 0;
    *active = 0;
    return 0;
}}
"""
#: Answers as many values as it is asked for, most of them as for what a device does not tell.
NVIDIA_SMI = """#!/bin/sh
echo "$1" | awk -F= '{
    n = split($2, names, ",")
    for (i = 1; i <= n; i++) {
        value = "[N/A]"
        if (names[i] == "name") value = "emulated GPU"
        if (names[i] == "driver_version") value = "580.00"
        printf "%s%s", (i > 1 ? ", " : ""), value
    }
    print ""
}'
"""
CUPY = """
import sys
from support.emulated_cupy import EmulatedCupy
from support.gpu import Gpus
sys.modules[__name__] = EmulatedCupy(Gpus(count=1))
"""


def in_this_process(patch: pytest.MonkeyPatch) -> EmulatedCupy:
    """Put the emulated device in the place of CuPy and of the driver."""
    cupy = EmulatedCupy()
    patch.setitem(sys.modules, "cupy", cupy)
    for module in (cupy_runtime, doctor):
        patch.setattr(module, "driver_cuda_version", lambda: CUDA_VERSION)
    return cupy


def for_others(folder: Path) -> dict[str, str]:
    """The variables with which a process finds the emulated device and takes it for a real one.

    The test is skipped where there is no compiler or no NVRTC.

    Parameters
    ----------
    folder : Path
        An empty one, to put the machine's parts into.
    """
    Nvrtc.of_version("13")
    programs, libraries, modules = (folder / name for name in ("bin", "lib", "python"))
    for part in (programs, libraries, modules):
        part.mkdir()
    (programs / "nvidia-smi").write_text(NVIDIA_SMI)
    (programs / "nvidia-smi").chmod(0o755)
    driver = libraries / "driver.cpp"
    driver.write_text(DRIVER)
    (libraries / "libcuda.so.1").symlink_to(compiled(driver))
    (modules / "cupy.py").write_text(CUPY)
    package = modules / f"cupy_cuda13x-{EmulatedCupy.__version__}.dist-info"
    package.mkdir()
    (package / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: cupy-cuda13x\nVersion: {EmulatedCupy.__version__}\n"
    )
    return {
        "PYTEST_ADDOPTS": "-p support.beyond_emulation",
        **{
            name: os.pathsep.join([*map(str, first), *filter(None, [os.environ.get(name)])])
            for name, first in (
                ("PATH", [programs]),
                ("LD_LIBRARY_PATH", [libraries]),
                ("PYTHONPATH", [modules, TESTS]),
            )
        },
    }
