"""Small made-up copies of public data sets, laid out as their releases are."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt

import ctgpu
from ctgpu.building.events import Event, SampleWritten
from ctgpu.building.relabelling import RelabelReport, relabel
from ctgpu.checking.compare import compare_samples
from ctgpu.checking.facts import inspect_samples
from ctgpu.checking.verify import verify_folder
from ctgpu.spec import Spec
from ctgpu.testing.ctrate import Volume, lay_out_ct_rate
from support.phantoms import SPACING_MM

Hu = npt.NDArray[np.int16]

#: Of every volume: no two axes are of one length.
SHAPE_HWD = (15, 12, 9)
#: Resampled, padded along H and cropped along W and D.
SPEC = Spec(target_spacing_mm=(4.0, 3.5, 6.0), shape_hwd=(16, 9, 6))
#: Likewise of volumes of 0.8 mm.
FINE_SPEC = Spec(target_spacing_mm=(1.0, 0.9, 1.2), shape_hwd=(16, 9, 5))

#: Merlin's own header but for its thirty findings, and INSPECT's.
MERLIN_REPORTS = ("study id", "Findings", "Split", "Few Shot")
INSPECT_LABELS = (
    *("impression_id", "person_id", "pe_acute", "pe_subsegmentalonly", "pe_positive"),
    *("pe_positive_nlp", "1_month_mortality", "12_month_PH", "tte_PH", "is_censored_PH"),
)


def marked(seed: int, shape_hwd: tuple[int, int, int] = SHAPE_HWD) -> Hu:
    """Tissue and noise, with another value at the begin of each axis, so that none is any other."""
    rng = np.random.default_rng(seed)
    hu = rng.normal(40, 15, shape_hwd)
    hu[:, :, 0] = rng.normal(700, 15, shape_hwd[:2])
    hu[:, 0, :] = rng.normal(-100, 15, shape_hwd[::2])
    hu[0, :, :] = rng.normal(-850, 15, shape_hwd[1:])
    hu[1:4, 1:3, 1:2] = rng.normal(300, 15, (3, 2, 1))
    return np.clip(np.rint(hu), -1000, 1000).astype(np.int16)


def write_nifti(
    path: Path, hu: Hu, spacing_mm: Sequence[float] = SPACING_MM, codes: str | None = None
) -> Path:
    """A NIfTI file; with `codes`, of axes that lead to these sides of the patient."""
    affine = np.diag([*spacing_mm, 1.0])
    if codes is not None:
        affine = np.zeros((4, 4))
        affine[3, 3] = 1
        for axis, code in enumerate(codes):
            place = "RLAPSI".index(code)
            affine[place // 2, axis] = spacing_mm[axis] * (-1 if code in "LPI" else 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    make: Any = nibabel.Nifti1Image
    nibabel.save(make(hu, affine), path)
    return path


def write_npz(path: Path, **arrays: npt.NDArray[Any]) -> Path:
    """An ``.npz`` of these arrays, deflated."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    return path


def write_table(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> Path:
    """A table as its suffix says; ``.semicolon.csv`` has semicolons between its cells."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".xlsx":
        import openpyxl

        book = openpyxl.Workbook()
        for row in (header, *rows):
            book.active.append(list(row))
        book.save(path)
    elif path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        columns = {name: [row[k] for row in rows] for k, name in enumerate(header)}
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
    else:
        text = io.StringIO()
        mark = "\t" if path.suffix == ".tsv" else ";" if ".semicolon" in path.name else ","
        csv.writer(text, delimiter=mark).writerows((header, *rows))
        path.write_text(text.getvalue(), "utf-8", newline="")
    return path


def lay_out_rad_chestct(
    root: Path,
    volumes: Mapping[str, Hu],
    *,
    tables: str = "",
    images: str = "",
) -> Path:
    """A copy of RAD-ChestCT: ``.npz`` of slices, rows and columns, without a spacing.

    Parameters
    ----------
    root : Path
        Where.
    volumes : mapping
        By name, such as ``trn00001``: HU (H, W, D).
    tables, images : str
        Folders of its tables and of its volumes; users choose them.
    """
    for name, hu in volumes.items():
        write_npz(root / images / f"{name}.npz", ct=np.ascontiguousarray(hu.transpose(2, 0, 1)))
    header = ("NoteAcc_DEID", "nodule*right_upper", "nodulegr1cm*lung", "nodule*left_lower")
    for split in ("train", "valid", "test"):
        own = [name for name in volumes if name.startswith(_PREFIX[split])]
        rows = [(name, *rad_chestct_cells(name)) for name in (*own, f"{_PREFIX[split]}99999")]
        write_table(root / tables / f"img{split}_Abnormality_and_Location_Labels.csv", header, rows)
    write_table(
        root / tables / "Summary_3630.csv",
        ("MRN_DEID", "NoteAcc_DEID", "Set_Assigned", "Subset_Assigned"),
        [(f"mrn{name[3:]}", name, "imgtrain_notetrain", "imgtrain") for name in volumes],
    )
    return root


_PREFIX = {"train": "trn", "valid": "val", "test": "tst"}


def rad_chestct_cells(name: str) -> tuple[int, int, int]:
    """What the copy's labels say of a volume: nodule here, a large one, nodule there."""
    number = int(name[3:])
    return number & 1, number >> 1 & 1, number >> 2 & 1


def lay_out_merlin(
    root: Path,
    volumes: Mapping[str, Hu],
    splits: Mapping[str, str],
    findings: Mapping[str, Sequence[object]],
    class_names: Sequence[str],
    *,
    reports: str = "reports_final.xlsx",
    texts: Mapping[str, str] | None = None,
    suffix: str = ".nii.gz",
    codes: str = "LPS",
) -> Path:
    """A copy of Merlin: a workbook of reports and splits, and a CSV of findings in other order."""
    for name, hu in volumes.items():
        write_nifti(root / "merlin_data" / f"{name}{suffix}", hu, codes=codes)
    rows = [
        (name, (texts or {}).get(name, f"FINDINGS: Of {name}.\nIMPRESSION: Nothing."), split, 0)
        for name, split in splits.items()
    ]
    write_table(root / reports, MERLIN_REPORTS, rows)
    order = sorted(range(len(class_names)), key=lambda place: class_names[place])
    write_table(
        root / "zero_shot_findings_disease_cls.csv",
        ("study_id", *(class_names[place] for place in order)),
        [(name, *(cells[place] for place in order)) for name, cells in findings.items()],
    )
    return root


def lay_out_inspect(
    root: Path,
    volumes: Mapping[str, Hu],
    rows: Mapping[str, tuple[str, str, str, Mapping[str, object]]],
    *,
    folder: str = "full",
    codes: str = "RAS",
) -> Path:
    """A copy of INSPECT: volumes by image, tables by impression, and one that leads across.

    Parameters
    ----------
    root : Path
        Where.
    volumes : mapping
        By ``image_id``.
    rows : mapping
        By ``image_id`` the impression, the person, the split, and cells of labels.
    folder : str
        In which all lies.
    codes : str
        Of the volumes.
    """
    for name, hu in volumes.items():
        write_nifti(root / folder / "CTPA" / f"{name}.nii.gz", hu, codes=codes)

    def write(table: str, header: Sequence[str], lines: Sequence[Sequence[object]]) -> None:
        write_table(root / folder / f"{table}_20250611.tsv", header, lines)

    write(
        "study_mapping",
        ("impression_id", "image_id", "person_id", "note_id", "provenance"),
        [(imp, image, person, f"n{imp}", "INSPECT") for image, (imp, person, *_) in rows.items()],
    )
    splits = [(imp, person, split) for imp, person, split, _ in rows.values()]
    # As in the release, some impressions stand there twice, with the same words.
    write("splits", ("impression_id", "person_id", "split"), [*splits, splits[0]])
    write(
        "impressions",
        ("impression_id", "impressions"),
        [(imp, f'IMPRESSION: of "{imp}",\nsecond line') for imp, *_ in rows.values()],
    )
    write(
        "labels",
        INSPECT_LABELS,
        [
            (imp, person, *(cells.get(name, "") for name in INSPECT_LABELS[2:]))
            for imp, person, _, cells in rows.values()
        ],
    )
    return root


def build(folder: Path, source: Path | None = None, **options: Any) -> ctgpu.BuildReport:
    """A build of two samples a shard, on the CPU."""
    begun = (folder / "plan.json").exists()
    defaults: dict[str, Any] = {} if begun else {"spec": SPEC, "samples_per_shard": 2}
    return ctgpu.build(folder, source=source, **({"device": "cpu"} | defaults | options))


def check(folder: Path, source: Path, samples: int) -> None:
    """Verify a finished data set, compare it with its originals, and look at it."""
    assert verify_folder(folder).findings == []
    compared = list(compare_samples(folder, source=source, num_samples=None))
    assert [c.faults for c in compared] == [()] * samples
    assert len(list(inspect_samples(folder, num_samples=samples + 1))) == samples


def nothing_to_do(folder: Path, **options: Any) -> None:
    """Build once more: no file may be another one afterwards."""
    before = {path.name: (path.stat().st_ino, path.read_bytes()) for path in folder.iterdir()}
    report = build(folder, **options)
    assert (report.written, report.exit_code) == (0, 0)
    after = {path.name: (path.stat().st_ino, path.read_bytes()) for path in folder.iterdir()}
    assert {n: b for n, (_, b) in after.items()} == {n: b for n, (_, b) in before.items()}
    tars = [name for name in before if name.endswith(".tar")]
    assert tars
    assert [after[name][0] for name in tars] == [before[name][0] for name in tars]


def relabelled(folder: Path) -> RelabelReport:
    """Labels and reports written again, all of them."""
    report = relabel(folder)
    assert report.exit_code == 0
    assert verify_folder(folder).findings == []
    return report


MINE_NAMES = ("s-1", "s-2", "s-3", "s-10")
MINE = """
name = "Mine"
default_split = "all"
class_names = ["cyst", "stone"]
text_separator = " | "

[splits.all]
volumes = ["scans/{patient}/{key}.nii.gz"]

[[tables]]
files = ["about.csv"]
key = "id"
labels = "classes"
label_words = { many = 7 }
text = ["Findings", "Impression"]
carry = ["age", "kernel"]

[[leave_out]]
files = ["phantoms.txt"]
reason = "of a phantom"
"""
MINE_HEADER = ("age", "stone", "id", "Impression", "cyst", "Findings", "kernel")
MINE_ROWS = [
    (61, -2.5, "s-1.nii.gz", "Well.", 1, "Air.", "B30f"),
    ("", "many", "scans/p1/s-2", "", "", "Water.", ""),
    (33, 0.1, "s-10", "Ill.", 0, "", "é"),
]


def lay_out_mine(root: Path) -> Path:
    """A data set of four volumes of three patients that :data:`MINE` describes."""
    for seed, (name, patient) in enumerate(zip(MINE_NAMES, ("p1", "p1", "p2", "p3"), strict=True)):
        write_nifti(root / "scans" / patient / f"{name}.nii.gz", marked(seed), codes="LPS")
    write_table(root / "about.csv", MINE_HEADER, MINE_ROWS)
    (root / "phantoms.txt").write_text("s-3.nii.gz\n\nnot there\n")
    return root


def lay_out_two_of_ct_rate(root: Path) -> Path:
    """A copy of CT-RATE of two volumes."""
    volumes = {f"valid_{n}_a_1": Volume(marked(n), SPACING_MM) for n in (1, 2)}
    lay_out_ct_rate(root, volumes)
    return root


def stop_after(written: int) -> Any:
    """For `watch`: stop a build when so many samples are written."""
    count = itertools.count(1)

    def watch(event: Event) -> None:
        if isinstance(event, SampleWritten) and next(count) == written:
            raise KeyboardInterrupt

    return watch
