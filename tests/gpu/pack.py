"""Puts what ``check.py`` needs, and a bare GPU machine lacks, into ``.gpu-check``."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

CARRIED = Path(__file__).resolve().parents[2] / ".gpu-check"
# Neither CuPy nor torch: a machine with a GPU has them.
PACKAGES = (
    "braceexpand",
    "hypothesis",
    "isal",
    "nanobind>=3.1",
    "nanobind-backend",
    "nibabel",
    "pathspec",
    "scikit-build-core>=1.1",
    "sortedcontainers",
    "tenacity",
    "webdataset",
    "xxhash",
)
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64")
REAL_CT = ("qin_QIN-LSC-0028.nii.gz", "ts_example_ct_sm.nii.gz")


def main() -> None:
    """Download wheels for Linux x86-64 and copy real CT."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--real-ct", type=Path, required=True, help="folder of real CT volumes")
    parser.add_argument("--python-version", default="3.12", help="of the machine with the GPU")
    options = parser.parse_args()
    shutil.rmtree(CARRIED, ignore_errors=True)
    target = ["--python-version", options.python_version, "--implementation", "cp"]
    for platform in (*PLATFORMS, "manylinux2014_x86_64"):
        target += ["--platform", platform]
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    wheels = ["--only-binary=:all:", "--dest", str(CARRIED / "wheels")]
    subprocess.run([*download, *wheels, *target, *PACKAGES], check=True)
    (CARRIED / "real_ct").mkdir()
    for name in REAL_CT:
        shutil.copyfile(options.real_ct / name, CARRIED / "real_ct" / name)
    size = sum(path.stat().st_size for path in CARRIED.rglob("*") if path.is_file())
    print(f"{CARRIED.name}: {size / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
