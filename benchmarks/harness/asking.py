"""A question being asked: its options, what it is asked about, and the result that it writes."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import page
from benchmarks.harness.machine import REPOSITORY, machine_facts, machine_line, shown
from benchmarks.harness.measuring import Array, in_pages
from ctgpu.testing.ctrate import chest_phantom
from ctgpu.volume.raw import Spacing

RESULTS = REPOSITORY / "benchmarks" / "results"

#: The scan of the measured job, and what makes it a full-size one.
REAL_CT_NAME = "qin_QIN-LSC-0028.nii.gz"
#: For who has the name alone.
REAL_CT_ORIGIN = (
    f"{REAL_CT_NAME} is the scan QIN-LSC-0028 of TCIA's collection QIN LUNG CT (CC BY 3.0), its "
    "DICOM series converted to int16 HU without resampling."
)
REAL_CT_SLICES = 300
REAL_CT_SPACING_MM = (0.8672, 0.8672, 1.25)
REAL_CT_REPEATED = f"{REAL_CT_NAME}, its 112 slices repeated to {REAL_CT_SLICES}"


@dataclass
class Scan:
    """What most questions are asked about; `about` is the result's ``data``."""

    voxels: Array
    spacing_mm: Spacing
    about: str

    @classmethod
    def phantom(cls, shape_hwd: tuple[int, int, int], spacing_mm: Spacing, seed: int = 0) -> Scan:
        """A made-up chest."""
        about = f"phantom {'×'.join(map(str, shape_hwd))}"
        return cls(chest_phantom(shape_hwd, spacing_mm, seed), spacing_mm, about)


class Question(argparse.ArgumentParser):
    """The options that every question takes; one adds its own, and then calls :meth:`asked`.

    `name` is the result's, `description` the docstring of the module.
    """

    def __init__(self, name: str, description: str | None, *, repeats: int = 7) -> None:
        super().__init__(
            description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        self.name = name
        real_ct = os.environ.get("CTGPU_REAL_CT") or REPOSITORY.parent / "shared" / "real_ct"
        add = self.add_argument
        add("--data", type=Path, default=real_ct, help="folder of real CT volumes")
        add("--quick", action="store_true", help="tiny sizes: shows that it runs")
        add("--json", type=Path, help="where to write the result")
        add("--repeats", type=int, default=repeats, help="interleaved runs of each")

    def asked(self, arguments: Sequence[str] | None, **quick: Any) -> Asked:
        """The options of one call; with ``--quick`` those of `quick` take the place of theirs."""
        options = self.parse_args(arguments)
        if options.quick:
            vars(options).update(quick)
        return Asked(self.name, options)


@dataclass
class Asked:
    """A question with its options."""

    name: str
    options: argparse.Namespace

    @property
    def quick(self) -> bool:
        """Whether it only shows that it runs."""
        return bool(self.options.quick)

    @property
    def repeats(self) -> int:
        """Rounds that count."""
        return int(self.options.repeats)

    def scan(self, quick_shape_hwd: tuple[int, int, int] = (96, 80, 60)) -> Scan:
        """The real scan, or a phantom with ``--quick``."""
        if self.quick:
            return Scan.phantom(quick_shape_hwd, (3.0, 3.0, 6.0))
        return Scan(load_real_ct(self.options.data), REAL_CT_SPACING_MM, REAL_CT_REPEATED)

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """A folder to work in, removed afterwards."""
        with tempfile.TemporaryDirectory() as name:
            yield Path(name)

    def publish(self, facts: Mapping[str, Any], *, show: bool = True) -> int:
        """Write a result as JSON, with the machine's facts, and `show` it.

        Without ``--json`` it goes to ``benchmarks/results/``.  Returns 0, the exit status.
        """
        result = {"benchmark": self.name, "machine": machine_facts(), **facts}
        if show:
            print("\n".join([machine_line(result["machine"]), *page.part(result)]))
        path = self.options.json or RESULTS / f"{self.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        print(f"written: {shown(str(path))}")
        return 0


def load_scan(folder: Path, name: str) -> Scan:
    """A real scan as its file has it, at its own spacing: HU, ordered as NIfTI has it."""
    path = Path(folder) / name
    if not path.is_file():
        raise SystemExit(f"{path} is not there; pass --data FOLDER with {name}, or --quick")
    import nibabel

    loaded: Any = nibabel.load(path)
    h, w, d = map(float, loaded.header.get_zooms())
    voxels, mm = np.asanyarray(loaded.dataobj), f"{h:.4g}×{w:.4g}×{d:.4g} mm"
    return Scan(voxels, (h, w, d), f"{name}, {'×'.join(map(str, voxels.shape))} of {mm}")


def load_real_ct(folder: Path) -> Array:
    """The scan of the measured job: int16 HU, its own slices repeated, ordered as NIfTI has it."""
    image = load_scan(folder, REAL_CT_NAME).voxels
    volume = in_pages((*image.shape[:2], REAL_CT_SLICES), np.int16, order="F")
    volume[...] = image[:, :, np.arange(REAL_CT_SLICES) % image.shape[2]]
    return volume
