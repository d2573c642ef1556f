"""Stage of ``check.py``: shards, single scans and the loader, on the GPU and on the CPU.

    python end_to_end.py RESULT.json REAL_CT

Each part is written as soon as it is known.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import ctgpu
from ctgpu.loading import VolumeDataset, make_loader
from ctgpu.spec import Spec
from ctgpu.testing.ctrate import Volume, chest_phantom, lay_out_ct_rate

DEVICE = "cuda:0"
#: Phantoms of these shapes and spacings, H, W, D, beside the real CT.
PHANTOMS = (((120, 110, 70), (3.0, 3.2, 4.5)), ((90, 100, 80), (3.9, 3.5, 4.0)))
#: What of a data set differs between two builds of the same plan, by what docs/format.md says.
RUN_FACTS = ("shard-*.json", "manifest.json")


class NotHere(Exception):
    """The machine lacks a package that a part is about."""


def main() -> int:
    """Run every part, also after one failed; returns 0 where all passed."""
    result, real_ct = map(Path, sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder:
        found = run_parts(result, parts(Path(folder), real_ct, Spec()))
    return 0 if all(part["passed"] for part in found.values()) else 1


def run_parts(
    result: Path, every: Mapping[str, Callable[[], dict[str, Any]]]
) -> dict[str, dict[str, Any]]:
    """What each part found; one that raises has failed, unless what it is about is not here."""
    found: dict[str, dict[str, Any]] = {}
    for name, part in every.items():
        try:
            found[name] = part()
        except NotHere as error:
            found[name] = {"passed": True, "not_here": str(error)}
        except Exception as error:  # whatever it is, the other parts are run
            traceback.print_exc()
            found[name] = {"passed": False, "why": f"{type(error).__name__}: {error}"}
        result.write_text(json.dumps(found), encoding="utf-8")
    return found


def parts(folder: Path, real_ct: Path, spec: Spec) -> dict[str, Callable[[], dict[str, Any]]]:
    """The parts, by name.

    Parameters
    ----------
    folder : Path
        Where data sets are made.
    real_ct : Path
        Folder of real CT volumes; those named ``*_sm.nii.gz`` are built from as well.
    spec : Spec
        Of the output, but for its layout.
    """
    source = folder / "source"
    lay_out(source, real_ct)
    hwd, dhw = (Spec.from_dict({**spec.to_dict(), "layout": layout}) for layout in ("HWD", "DHW"))
    return {
        "shards, HWD": lambda: compare_shards(folder, source, hwd),
        "shards, DHW": lambda: compare_shards(folder, source, dhw),
        "preprocess to torch": lambda: compare_torch(source, spec),
        "preprocess to cupy": lambda: compare_cupy(source, spec),
        "loader": lambda: compare_loader(folder),
    }


def lay_out(source: Path, real_ct: Path) -> None:
    """A CT-RATE-like source of phantoms and of small real scans."""
    volumes = {
        f"valid_{n}_a_1": Volume(chest_phantom(shape, spacing_mm, n), spacing_mm)
        for n, (shape, spacing_mm) in enumerate(PHANTOMS, 1)
    }
    for n, path in enumerate(sorted(real_ct.glob("*_sm.nii.gz")), len(volumes) + 1):
        volumes[f"valid_{n}_a_1"] = Volume.read(path)
    lay_out_ct_rate(source, volumes)


def build(folder: Path, source: Path, device: str, spec: Spec) -> Path:
    """Build one data set."""
    output = folder / f"{spec.layout}-{device.replace(':', '')}"
    report = ctgpu.build(output, source=source, device=device, spec=spec, samples_per_shard=2)
    if report.exit_code:
        raise RuntimeError(f"the build on {device} ended with {report.exit_code}")
    return output


def compare_shards(folder: Path, source: Path, spec: Spec) -> dict[str, Any]:
    """The same data set on GPU and CPU, file by file."""
    ours, theirs = (hashes(build(folder, source, where, spec)) for where in (DEVICE, "cpu"))
    differ = sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))
    made = any(name.endswith(".tar") for name in ours)
    return {"passed": made and not differ, "sha256": ours, "files_that_differ": differ}


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file that does not tell of its run."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.is_file() and not any(path.match(pattern) for pattern in RUN_FACTS)
    }


def scans(source: Path) -> list[Path]:
    """The volumes of the source."""
    return sorted(source.rglob("*.nii.gz"))


def package(name: str) -> Any:
    """A package that the machine may bring.

    Raises
    ------
    NotHere
        If it is not installed; one that is and cannot be imported is a failure.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise NotHere(f"{name} is not installed") from None


def torch_with_cuda() -> Any:
    """torch, where it finds a GPU; :class:`NotHere` is raised where it does not."""
    torch = package("torch")
    if not torch.cuda.is_available():
        raise NotHere(f"torch {torch.__version__} finds no CUDA device")
    return torch


def compare_torch(source: Path, spec: Spec) -> dict[str, Any]:
    """Scans left on the GPU as torch tensors."""
    torch_with_cuda()

    def on_host(scan: Path) -> Any:
        tensor = ctgpu.preprocess(scan, spec=spec, device=DEVICE, output="torch", intensity="hu")
        assert tensor.is_cuda
        return (tensor + 0).cpu().numpy()  # an operation of torch's own reads it first

    return compare_scans(source, spec, on_host)


def compare_cupy(source: Path, spec: Spec) -> dict[str, Any]:
    """Scans left on the GPU as CuPy arrays."""
    cupy = package("cupy")

    def on_host(scan: Path) -> Any:
        array = ctgpu.preprocess(scan, spec=spec, device=DEVICE, output="cupy", intensity="hu")
        assert isinstance(array, cupy.ndarray)
        return cupy.asnumpy(array)

    return compare_scans(source, spec, on_host)


def compare_scans(source: Path, spec: Spec, on_host: Callable[[Path], Any]) -> dict[str, Any]:
    """Each scan's bits against the CPU engine's."""
    differ = {}
    for scan in scans(source):
        wanted = ctgpu.preprocess(scan, spec=spec, device="cpu", intensity="hu")
        differ[scan.name] = int(
            np.count_nonzero(on_host(scan).view(np.uint16) != wanted.view(np.uint16))
        )
    return {
        "passed": bool(differ) and not any(differ.values()),
        "voxels_that_differ": differ,
    }


def compare_loader(folder: Path) -> dict[str, Any]:
    """Batches on the GPU against batches on the host, of both layouts."""
    torch = torch_with_cuda()
    same, batches = True, 0
    for layout in ("HWD", "DHW"):
        dataset = VolumeDataset(folder / f"{layout}-cpu")
        for there, here in zip(
            make_loader(dataset, 2, device=DEVICE), make_loader(dataset, 2), strict=True
        ):
            batches += 1
            assert there["volume"].is_cuda
            assert there["study_id"] == here["study_id"]
            same &= torch.equal(there["volume"].cpu(), here["volume"])
            same &= torch.equal(there["labels"].cpu(), here["labels"])
    return {"passed": bool(same and batches), "batches": batches}


if __name__ == "__main__":
    sys.exit(main())
