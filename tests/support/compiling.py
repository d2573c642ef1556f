"""C++ of the tests, each compiled once for all processes and runs."""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
#: Where they are kept; ``make clean`` removes it.
KEPT = REPOSITORY / "build" / "tests"
#: What sources may include: the interpreter of PTX, and the kernels.
INCLUDED = (REPOSITORY / "tests" / "support" / "machine", REPOSITORY / "kernels")
_CPUINFO = Path("/proc/cpuinfo")


def compiler() -> str | None:
    """The C++ compiler, where there is one."""
    return shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")


def compiled(source: Path, *options: str) -> Path:
    """A C++ source as a shared library; the test is skipped where there is no compiler.

    It is compiled anew where the source, a header, the options, the compiler or the CPU is another.
    """
    command = compiler()
    if command is None:
        pytest.skip("no C++ compiler")
    call = [command, *options, "-ffp-contract=off", "-Wall", "-Wextra", "-fPIC", "-shared"]
    version = subprocess.run([command, "--version"], capture_output=True, check=True).stdout
    headers = sorted(path for folder in INCLUDED for path in folder.rglob("*.h"))
    told = [repr(call).encode(), version, _cpu(), *(p.read_bytes() for p in (source, *headers))]
    name = f"{source.stem}-{hashlib.sha256(b''.join(told)).hexdigest()[:20]}"
    library, lock = KEPT / f"{name}.so", KEPT / f"{name}.lock"
    KEPT.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as held:
        # The others wait: it takes them no longer than to compile it too.
        fcntl.flock(held, fcntl.LOCK_EX)
        if not library.exists():
            unfinished = library.with_suffix(".part")
            subprocess.run([*call, "-o", unfinished, source], check=True)
            unfinished.replace(library)
    return library


def _cpu() -> bytes:
    """What ``-march=native`` goes by."""
    try:
        told = re.findall(rb"^(?:flags|Features|model name)\s*:.*$", _CPUINFO.read_bytes(), re.M)
    except OSError:
        return platform.processor().encode()
    return b"".join(sorted(set(told)))


def built(target: str, build: Path, *definitions: str) -> Path:
    """A program that CMakeLists.txt has, made in `build` unless it is there and newer."""
    cmake = shutil.which("cmake")
    if cmake is None:
        pytest.skip("cmake is not installed")
    build.mkdir(parents=True, exist_ok=True)
    with (build / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        configure = [cmake, "-S", str(REPOSITORY), "-B", str(build), "-DCTGPU_PYTHON=OFF"]
        for command in (
            [*configure, *(f"-D{definition}" for definition in definitions)],
            [cmake, "--build", str(build), "--parallel", "--target", target],
        ):
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            assert result.returncode == 0, result.stderr[-4000:]
    return build / target


def built_for_arm(target: str) -> list[str]:
    """The command that runs such a program, emulated, as ``make sanitize`` makes it for Arm."""
    compiler = shutil.which("aarch64-linux-gnu-g++")
    emulator = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if compiler is None or emulator is None:
        pytest.skip("needs g++-aarch64-linux-gnu and qemu-user")
    program = built(
        target,
        REPOSITORY / "build" / "sanitize-arm",
        *(f"CMAKE_CXX_COMPILER={compiler}", "CMAKE_EXE_LINKER_FLAGS=-static", "CTGPU_TESTS=ON"),
        *("CMAKE_SYSTEM_NAME=Linux", "CMAKE_SYSTEM_PROCESSOR=aarch64"),
        "CMAKE_CXX_FLAGS=-fsanitize=undefined -fno-sanitize-recover=all",
    )
    return [emulator, str(program)]
