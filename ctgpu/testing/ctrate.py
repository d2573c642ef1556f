"""CT-RATE-like sources on disk, from phantoms or real volumes, with all their CSVs."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ctgpu.data_sets import built_in
from ctgpu.data_sets.layout import SplitFolders
from ctgpu.volume.raw import Spacing

VolumeFormat = Literal[".nii.gz", ".nii", ".npz"]

#: The pair in the CSV; v1 voxels need it, and the fixed ones must be left alone.
RESCALE_PAIR = (1.0, -1024.0)

#: The description of the data set.
CT_RATE_DATA = built_in()
#: Its abnormalities, in the order of its label vector.
LABEL_NAMES = CT_RATE_DATA.class_names
#: What it has a table or a list for.
TABLES = ("metadata", "labels", "reports", "no_chest")


@dataclass(frozen=True)
class Volume:
    """One volume to lay out.

    Attributes
    ----------
    voxels : numpy.ndarray
        HU, shape (H, W, D), any integer or floating dtype.
    spacing_mm : tuple of float
        Voxel size (H, W, D).
    affine : numpy.ndarray or None
        4 × 4; made of the spacing where None.
    """

    voxels: npt.NDArray[Any]
    spacing_mm: Spacing
    affine: npt.NDArray[np.float64] | None = field(default=None)

    @classmethod
    def read(cls, path: Path) -> Volume:
        """A NIfTI file's volume, in the dtype it is stored in."""
        import nibabel

        image: Any = nibabel.load(path)
        voxels = np.asanyarray(image.dataobj)
        # What a CSV would state: the float32 of the header as a short decimal number.
        h, w, d = (float(str(np.float32(s))) for s in image.header.get_zooms()[:3])
        return cls(voxels, (h, w, d), image.affine)


def chest_phantom(
    shape_hwd: tuple[int, int, int], spacing_mm: Spacing, seed: int = 0
) -> npt.NDArray[np.int16]:
    """A plausible chest: body, lungs with vessels, heart, spine and noise, in air.

    Parameters
    ----------
    shape_hwd : tuple of int
        Voxels (H, W, D).
    spacing_mm : tuple of float
        Voxel size (H, W, D) in millimetres; the body fills most of the field of view whatever
        that is, the vessels and the noise keep their size.
    seed : int
        Another chest for another seed.

    Returns
    -------
    numpy.ndarray
        int16 HU, shape `shape_hwd`, in Fortran order as NIfTI stores it.
    """
    rng = np.random.default_rng(seed)
    h, w, d = (
        np.linspace(-1, 1, n, dtype=np.float32).reshape(shape)
        for n, shape in zip(shape_hwd, ((-1, 1, 1), (1, -1, 1), (1, 1, -1)), strict=True)
    )
    lean = np.float32(rng.uniform(-0.05, 0.05))
    hu = np.full(shape_hwd, -1000, np.float32, order="F")
    body = (h / 0.9) ** 2 + (w / 0.7) ** 2 + 0 * d < 1
    hu[body] = 40
    hu[body & ((h / 0.84) ** 2 + (w / 0.63) ** 2 + 0 * d > 1)] = -100
    millimetres = [
        np.arange(n, dtype=np.float32) * s for n, s in zip(shape_hwd, spacing_mm, strict=True)
    ]
    x, y, z = np.meshgrid(*millimetres, indexing="ij", sparse=True)
    vessels = np.sin(x / 5) * np.sin(y / 6) * np.cos((x + z) / 9) > 0.55
    for side in (-1, 1):
        lung = ((h - side * 0.42) / 0.34) ** 2 + ((w - lean) / 0.5) ** 2 + (d / 1.1) ** 2 < 1
        hu[lung] = -850
        hu[lung & vessels] = 30
    hu[((h - 0.12) / 0.28) ** 2 + ((w + 0.1) / 0.3) ** 2 + (d / 0.6) ** 2 < 1] = 45
    hu[(h / 0.12) ** 2 + ((w - 0.5) / 0.12) ** 2 + 0 * d < 1] = 700
    hu += rng.normal(0, 15, shape_hwd).astype(np.float32)
    return np.asfortranarray(np.clip(np.rint(hu), -1024, 3071).astype(np.int16))


def table_names(table: str, split: str) -> tuple[str, ...]:
    """Paths under which a table of a split may be found, best first.

    Parameters
    ----------
    table : {"metadata", "labels", "reports", "no_chest"}
        Which one.
    split : {"train", "valid"}
        The split; the metadata and reports of ``valid`` are named ``validation``.
    """
    rules = dict(zip(TABLES, CT_RATE_DATA.rules_of_files, strict=True))
    return CT_RATE_DATA.paths(rules[table], split)


def lay_out_ct_rate(
    root: Path,
    volumes: Mapping[str, Volume | Path],
    *,
    split: str = "valid",
    format: VolumeFormat = ".nii.gz",
    order: Literal["C", "F"] = "F",
    npz_member: Literal["arr_0", "data", "volume"] = "arr_0",
    compressed: bool = True,
    nested: bool = True,
    fixed: bool = True,
    tables: Collection[str] = ("metadata", "labels", "reports"),
    no_chest: Collection[str] = (),
) -> dict[str, Path]:
    """Write a source tree as CT-RATE has it.

    Parameters
    ----------
    root : Path
        Where; made where it does not exist.  Laying out twice adds, but replaces the CSVs.
    volumes : mapping
        By study id (``valid_1_a_1``): a volume, or a ``.nii.gz`` file of HU, which is linked as it
        stands where the format allows.
    split : str
        The split.
    format : {".nii.gz", ".nii", ".npz"}
        Of every volume.
    order : {"C", "F"}
        Memory order of the array in an ``.npz``.
    npz_member : {"arr_0", "data", "volume"}
        Its name; ``volume`` is accompanied by ``metadata``, as JSON bytes.
    compressed : bool
        Whether the members of an ``.npz`` are deflated.
    nested : bool
        Folders per patient and scan, as the official repository has them.
    fixed : bool
        v2, whose voxels are HU, or v1, whose voxels need the CSV's slope and intercept.
    tables : collection of str
        Which CSVs to write.
    no_chest : collection of str
        Study ids for the list of volumes that show no chest.

    Returns
    -------
    dict
        Path of each volume, by study id.
    """
    folder = root / "dataset" / SplitFolders(CT_RATE_DATA).of(split)[0 if fixed else 1]
    paths, facts = {}, {}
    for study_id, given in volumes.items():
        steps = study_id.split("_")
        place = folder / "_".join(steps[:2]) / "_".join(steps[:3]) if nested else folder
        place.mkdir(parents=True, exist_ok=True)
        path = paths[study_id] = place / (study_id + format)
        volume = Volume.read(given) if isinstance(given, Path) else given
        facts[study_id] = volume
        if isinstance(given, Path) and fixed and given.name.endswith(format):
            path.symlink_to(given.resolve())
            continue
        voxels = volume.voxels if fixed else _to_raw(volume.voxels)
        if format == ".npz":
            stored = np.asfortranarray(voxels) if order == "F" else np.ascontiguousarray(voxels)
            path.write_bytes(_npz(stored, volume, npz_member, compressed))
        else:
            path.write_bytes(_nifti(voxels, volume, packed=format == ".nii.gz"))
    write_tables(root, facts, split=split, tables=tables)
    if no_chest:
        target = root / table_names("no_chest", split)[0]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("".join(f"{study_id}.nii.gz\n" for study_id in no_chest))
    return paths


def write_tables(
    root: Path,
    volumes: Mapping[str, Volume],
    *,
    split: str = "valid",
    tables: Collection[str] = ("metadata", "labels", "reports"),
) -> None:
    """Write the CSVs of a split; part of :func:`lay_out_ct_rate`."""
    for table, rows in _table_rows(volumes).items():
        if table in tables:
            _write_csv(root / table_names(table, split)[0], rows)


def _to_raw(voxels: npt.NDArray[Any]) -> npt.NDArray[np.int16]:
    slope, intercept = RESCALE_PAIR
    return np.asarray((voxels - intercept) / slope, np.int16, order="F")


def _nifti(voxels: npt.NDArray[Any], volume: Volume, *, packed: bool) -> bytes:
    import nibabel

    affine = np.diag([*volume.spacing_mm, 1.0]) if volume.affine is None else volume.affine
    make: Any = nibabel.Nifti1Image
    image = make(voxels, affine, dtype=voxels.dtype)
    image.header.set_zooms(volume.spacing_mm)
    content: bytes = image.to_bytes()
    return gzip.compress(content, 1, mtime=0) if packed else content


def _npz(stored: npt.NDArray[Any], volume: Volume, member: str, compressed: bool) -> bytes:
    members: dict[str, npt.NDArray[Any]] = {member: stored}
    if member == "volume":
        text = json.dumps({"spacing": list(volume.spacing_mm)})
        members["metadata"] = np.frombuffer(text.encode(), np.uint8)
    archive = io.BytesIO()
    kind = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(archive, "w", kind, compresslevel=1) as target:
        for name, array in members.items():
            with target.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
    return archive.getvalue()


def _table_rows(volumes: Mapping[str, Volume]) -> dict[str, list[dict[str, Any]]]:
    rows: dict[str, list[dict[str, Any]]] = {"metadata": [], "labels": [], "reports": []}
    for number, (study_id, volume) in enumerate(volumes.items()):
        name = {"VolumeName": f"{study_id}.nii.gz"}
        h, w, d = volume.spacing_mm
        shape = dict(zip(("Rows", "Columns", "NumberofSlices"), volume.voxels.shape, strict=True))
        rows["metadata"].append(
            name
            | {"Manufacturer": "Phantom", "PatientSex": "FM"[number % 2], "PatientAge": "060Y"}
            | dict(zip(("RescaleSlope", "RescaleIntercept"), RESCALE_PAIR, strict=True))
            | {"XYSpacing": f"[{h}, {w}]", "ZSpacing": d}
            | shape
        )
        rows["labels"].append(
            name | {label: (number + k) % 3 // 2 for k, label in enumerate(LABEL_NAMES)}
        )
        rows["reports"].append(
            name
            | {
                "ClinicalInformation_EN": "Not given.",
                "Technique_EN": "Non-contrast chest CT.",
                "Findings_EN": f"Trachea and both main bronchi are open, case {number}.",
                "Impressions_EN": "No active infiltration.",
            }
        )
    return rows


def _write_csv(target: Path, rows: list[dict[str, Any]]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
