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
from datetime import UTC, datetime
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
CARRIED = REPOSITORY / ".gpu-check"
#: What may travel to such a machine, with the checkout's own files.
MOST_BYTES = 64 << 20
#: To run the tests, and to compile where the carried wheel does not load.
TOOLS = ("pip", "pytest>=8.3", "hypothesis>=6.100", "nanobind>=3.1", "scikit-build-core>=1.1")
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
    subprocess.run([*pip, "--dest", str(wheels), *target, *needs, *TOOLS], check=True)
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
    kernels = REPOSITORY / "kernels"
    files = [path for path in kernels.rglob("*") if path.suffix in (".h", ".cpp")]
    digest = hashlib.sha256()
    for path in sorted([*files, REPOSITORY / "CMakeLists.txt"]):
        digest.update(f"{path.relative_to(REPOSITORY).as_posix()}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def commit() -> str | None:
    """The checkout's commit, ``-dirty`` where it has changes; None without git."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(REPOSITORY), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def report() -> int:
    """Say how large it is; returns 1 where it is too large to travel."""
    size = sum(path.stat().st_size for path in CARRIED.rglob("*") if path.is_file())
    print(f"{CARRIED.name}: {size / 2**20:.1f} MiB of {MOST_BYTES >> 20}")
    if size <= MOST_BYTES:
        return 0
    print(f"{CARRIED.name} is too large: leave out a wheel or a volume", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
