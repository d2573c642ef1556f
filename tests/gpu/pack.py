"""Puts what ``check.py`` needs, and a bare GPU machine lacks, into ``.gpu-check``.

Needs the internet, a C++ compiler and the same kind of processor as the machine with the GPU.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
CARRIED = REPOSITORY / ".gpu-check"
#: What may travel to such a machine, with the checkout's own files.
MOST_BYTES = 64 << 20
#: To run the tests, and to compile where the carried wheel does not load.  CMake, of 29 MiB, does
#: not fit beside the real CT: the machine has it, as it has the compiler, or nothing is compiled.
TESTING = ("pip", "pytest>=8.3", "hypothesis>=6.100")
COMPILING = ("nanobind>=3.1", "scikit-build-core>=1.1", "ninja>=1.11")
#: What is run on the machine, and in it what is code.
SOURCES = ("ctgpu", "kernels", "tests", "benchmarks")
CODE = (".py", ".h", ".cpp", ".cu")
#: A machine with CuPy or torch, which are too large to be carried, has it; and no two shall mix.
LEFT_OUT = ("numpy",)
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64")
REAL_CT = ("qin_QIN-LSC-0028.nii.gz", "ts_example_ct_sm.nii.gz")


def main() -> int:
    """Collect wheels for Linux x86-64, ctgpu's own and real CT; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--real-ct", type=Path, required=True, help="folder of real CT volumes")
    parser.add_argument("--python-version", default="3.12", help="of the machine with the GPU")
    options = parser.parse_args()
    missing = [name for name in REAL_CT if not (options.real_ct / name).is_file()]
    if missing:
        parser.error(f"{options.real_ct} lacks {', '.join(missing)}")
    shutil.rmtree(CARRIED, ignore_errors=True)
    wheels = CARRIED / "wheels"
    download(wheels, options.python_version)
    build(wheels)
    (CARRIED / "real_ct").mkdir()
    for name in REAL_CT:
        shutil.copyfile(options.real_ct / name, CARRIED / "real_ct" / name)
    facts = {
        "commit": commit(),
        "packed": datetime.now(UTC).isoformat(timespec="seconds"),
        "native_sources": hash_of_native_sources(),
        "sources": hashes_of_sources(),
        "wheels": sorted(path.name for path in wheels.glob("*.whl")),
    }
    (CARRIED / "pack.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return report()


def download(wheels: Path, python_version: str) -> None:
    """Wheels of everything that ctgpu, its tests and its build need."""
    with open(REPOSITORY / "pyproject.toml", "rb") as file:
        needs = tomllib.load(file)["project"]["dependencies"]
    target = ["--python-version", python_version, "--implementation", "cp", "--abi", "abi3"]
    target += ["--abi", f"cp{python_version.replace('.', '')}", "--abi", "none"]
    for platform in (*PLATFORMS, "manylinux2014_x86_64"):
        target += ["--platform", platform]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:"]
    everything = (*needs, *TESTING, *COMPILING)
    subprocess.run([*pip, "--dest", str(wheels), *target, *everything], check=True)
    for name in LEFT_OUT:
        for path in wheels.glob(f"{name}-*.whl"):
            path.unlink()


def build(wheels: Path) -> None:
    """ctgpu's own wheel: one for every Python, with nothing linked that a bare machine may lack."""
    own = [
        "cmake.define.CTGPU_LIBDEFLATE=OFF",
        "cmake.define.CMAKE_MODULE_LINKER_FLAGS=-static-libstdc++ -static-libgcc",
    ]
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    settings = [f"--config-settings={setting}" for setting in own]
    subprocess.run([*pip, *settings, "--wheel-dir", str(wheels), str(REPOSITORY)], check=True)


def hash_of_native_sources() -> str:
    """Of everything that the compiled module is made of."""
    return _hash([*_code("kernels", (".h", ".cpp")), REPOSITORY / "CMakeLists.txt"])


def hashes_of_sources() -> dict[str, str]:
    """Of the code in each folder that something is run from."""
    return {folder: _hash(_code(folder, CODE)) for folder in SOURCES}


def _code(folder: str, suffixes: tuple[str, ...]) -> list[Path]:
    return [path for path in (REPOSITORY / folder).rglob("*") if path.suffix in suffixes]


def _hash(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(files):
        content = path.read_bytes()
        name = path.relative_to(REPOSITORY).as_posix()
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def commit() -> str | None:
    """The checkout's commit, ``-dirty`` where it has changes; None without git."""
    head, changes = git("rev-parse", "HEAD"), git("status", "--porcelain")
    return None if head is None else head.strip() + ("-dirty" if changes else "")


def git(*words: str) -> str | None:
    """What git says of the checkout; None where there is no git, or it does not know it."""
    command = ["git", "-C", str(REPOSITORY), *words]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


def report() -> int:
    """Say how large pack and checkout are; returns 1 where they are too large to travel."""
    packed = size_bytes(path for path in CARRIED.rglob("*"))
    listed = git("ls-files", "-z", "--cached", "--others", "--exclude-standard")
    others = size_bytes({REPOSITORY / name for name in (listed or "").split("\0")})
    whole = packed + others
    checkout = f"checkout: {others / 2**20:.1f} MiB" if listed else "checkout: not known to git"
    print(
        f"{CARRIED.name}: {packed / 2**20:.1f} MiB, {checkout}, "
        f"together {whole / 2**20:.1f} MiB of {MOST_BYTES >> 20}"
    )
    if whole <= MOST_BYTES:
        return 0
    print("together they are too large: leave out a wheel or a volume", file=sys.stderr)
    return 1


def size_bytes(paths: Iterable[Path]) -> int:
    """Of those that are files."""
    return sum(path.stat().st_size for path in paths if path.is_file())


if __name__ == "__main__":
    sys.exit(main())
