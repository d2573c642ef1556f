"""Chosen samples of a data set as files of their own, in formats that other programs read."""

from __future__ import annotations

import difflib
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from ctgpu.arguments import path_of, require_choice, require_flag, require_kind, shown
from ctgpu.errors import DecodeError, SampleError, StorageError, UsageError, reason_of
from ctgpu.exporting.formats import new_file, write_nifti, write_npy
from ctgpu.exporting.nnunet import require_blosc2, write_case
from ctgpu.loading.catalogue import Named, describe
from ctgpu.loading.dataset import VolumeDataset
from ctgpu.loading.region import in_stored_order, to_hwd
from ctgpu.printable import counted, to_json
from ctgpu.shards.disk import remove, remove_stale_temporaries
from ctgpu.shards.names import PLAN_NAME
from ctgpu.spec import Spec
from ctgpu.viewing.members import Metadata, read_metadata
from ctgpu.volume.orientation import is_usable
from ctgpu.volume.ref import normal_form
from ctgpu.volume.stored import numbers_of

#: What samples can be exported as.
Form = Literal["npy", "nifti", "blosc2"]

# Endings of a sample's files: its volume, its mask, what is beside them.
_ENDINGS: Mapping[Form, tuple[str, ...]] = {
    "npy": (".npy", ".seg.npy", ".json"),
    "nifti": (".nii.gz", ".seg.nii.gz", ".json"),
    "blosc2": (".b2nd", "_seg.b2nd", ".pkl", ".json"),
}
# Order of the axes of their arrays; those of NumPy's are as they are stored.
_AXES: Mapping[Form, str] = {"nifti": "HWD", "blosc2": "CDWH"}
_NUMBER = re.compile(r"-?[0-9]{1,18}")
# How many names are suggested for one that is not there, and how like it they are at least.
_NEAR, _NEAR_RATIO = 3, 0.8
# Bits behind the point of a number's fraction.
_FRACTION_BITS = {"float16": 10, "bfloat16": 7}


@dataclass(frozen=True, slots=True)
class Exported:
    """What became of one sample.

    Attributes
    ----------
    key : str
        Its name.
    files : tuple of Path
        What was written; empty where it could not be read.
    fault : str or None
        Why it could not.
    """

    key: str
    files: tuple[Path, ...] = ()
    fault: str | None = None


def export_samples(
    where: Named | Sequence[Named],
    output_dir: str | PathLike[str],
    *,
    to: Form,
    samples: Sequence[str | int] | None = None,
    hu: bool = False,
    force: bool = False,
) -> Iterator[Exported]:
    """Write samples as files of their own: volume, mask, and a JSON with everything else.

    Each file appears whole or not at all.  A sample that is damaged is told of, and the others
    are exported.

    Parameters
    ----------
    where : path or list of path
        A data set, as :class:`ctgpu.loading.VolumeDataset` takes it.
    output_dir : path
        Folder of the files; made where it is not there.
    to : {"npy", "nifti", "blosc2"}
        ``"npy"``: arrays in the order and type that are stored, bfloat16 as float32.  ``"nifti"``:
        ``.nii.gz``, which lie over the scan in a viewer; float16 and bfloat16 as float32.
        ``"blosc2"``: cases as nnU-Net v2 keeps what it has preprocessed, float32.
    samples : sequence of str or int, optional
        Study ids or keys, and numbers (below 0: from the end), also as text; default all.  What is
        the name of a sample means that one.
    hu : bool
        Values as HU, in float32, where other numbers are stored.  What was clipped or rounded is
        lost; the JSON says to what, and by how much at most.
    force : bool
        Replace files that are there.

    Returns
    -------
    iterator of Exported
        For each sample, in the order of the data set, when it has been exported.

    Raises
    ------
    UsageError
        If an argument is something else, a sample is not there, two have one name, a file is
        there already, or a library is missing.
    EnvironmentFailure
        If the shards cannot be read or the files not be written, when its turn comes.
    """
    require_choice("to", to, get_args(Form))
    require_flag("hu", hu)
    require_flag("force", force)
    folder = path_of("output_dir", output_dir)
    if to == "blosc2":
        require_blosc2()
    dataset = VolumeDataset(where, verify="always")
    if samples is not None:
        dataset = dataset.select(_wanted(samples, dataset, describe(where)))
    if not len(dataset):
        raise UsageError(f"{describe(where)} holds no sample that could be exported")
    _require_room(dataset, folder, to, force)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"{folder} cannot be made: {reason_of(error)}; choose another --output-dir"
        ) from error
    remove_stale_temporaries(folder)
    return _export_all(dataset, folder, to, hu)


def _wanted(samples: Sequence[str | int], dataset: VolumeDataset, named: str) -> list[str | int]:
    """Names and numbers, held against those that there are."""
    if isinstance(samples, str | bytes) or not isinstance(samples, Sequence):
        raise UsageError(
            f"samples is {shown(samples)}; it takes a list of names and numbers, such as "
            "['valid_1_a_1', 0]"
        )
    names = {normal_form(n) for entry in dataset.entries for n in (entry.study_id, entry.key)}
    wanted: list[str | int] = []
    for one in samples:
        require_kind("samples", one, (str, int), "a list of names and numbers", optional=False)
        if isinstance(one, str) and normal_form(one) not in names:
            if not _NUMBER.fullmatch(one):
                raise UsageError(f"samples has {shown(one)}, which {_fault(one, dataset, named)}")
            one = int(one)
        wanted.append(one)
    return wanted


def _fault(name: str, dataset: VolumeDataset, named: str) -> str:
    """Why a data set has no sample of a name, and the way out."""
    failed = {normal_form(study) for shard in dataset.shards for _, study in shard.holes}
    if normal_form(name) in failed:
        return (
            f"failed when {named} was built; leave it out, or see in its failures.jsonl why and "
            "build it with --retry-failed"
        )
    # Ids mostly differ in a digit, or in how they are written.
    known = {entry.study_id.lower(): entry.study_id for entry in dataset.entries}
    if near := difflib.get_close_matches(name.lower(), known, n=_NEAR, cutoff=_NEAR_RATIO):
        wanted = f"did you mean {' or '.join(known[one] for one in near)}?"
    else:
        wanted = f"give study ids or keys that it holds, or numbers below {len(dataset)}"
    return f"is the name of no sample of {named}; {wanted}"


def _require_room(dataset: VolumeDataset, folder: Path, to: Form, force: bool) -> None:
    """Refuse names that would meet, and files that are there."""
    keys = [entry.key for entry in dataset.entries]
    # Some file systems take two names for one that differ in case or in Unicode's form alone.
    folded = Counter(normal_form(key).casefold() for key in keys)
    twice = [key for key, count in folded.items() if count > 1]
    if twice:
        raise UsageError(
            f"{counted(len(twice), 'name stands', 'names stand')} for several samples, or for some "
            f"that differ in case alone, such as {twice[0]}, and could be files of one name; "
            "export these samples apart"
        )
    masks = [key for key in keys if key.casefold().endswith("_seg")]
    if to == "blosc2" and masks:
        raise UsageError(
            f"nnU-Net takes every file such as {masks[0]}.b2nd for the mask of another case; leave "
            "this sample out, or export it as npy or nifti"
        )
    shards = {shard.path.parent for shard in dataset.shards}
    if (folder / PLAN_NAME).exists() or any(_is_same(place, folder) for place in shards):
        raise UsageError(
            f"{folder} is the folder of a data set, where files of other programs have no place; "
            "choose another --output-dir"
        )
    if force:
        return
    there = [
        folder / f"{key}{ending}"
        for key in keys
        for ending in _ENDINGS[to]
        if os.path.lexists(folder / f"{key}{ending}")
    ]
    if there:
        others = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise UsageError(
            f"{there[0]}{others} would be replaced; choose another --output-dir, or say so with "
            "--force"
        )


def _is_same(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:  # one is not there
        return False


def _export_all(dataset: VolumeDataset, folder: Path, to: Form, hu: bool) -> Iterator[Exported]:
    for number, entry in enumerate(dataset.entries):
        try:
            exported = Exported(entry.key, tuple(_export(dataset, number, folder, to, hu)))
        except SampleError as error:
            exported = Exported(entry.key, fault=str(error))
        yield exported


def _export(dataset: VolumeDataset, number: int, folder: Path, to: Form, hu: bool) -> list[Path]:
    """One sample; its files."""
    shard, entry = dataset.locate(number)
    spec = dataset.spec
    with shard.open() as reader:
        metadata = read_metadata(reader, entry)
    scale_offset = _scale_offset(spec, metadata, needed=hu)
    if to == "nifti" and not is_usable(np.array(metadata.affine)):
        raise DecodeError(
            f"{shard.path}: the affine of {entry.key}.json cannot be used, so nobody knows where "
            "the volume lies; export it as npy, or build the sample again"
        )
    sample = dataset[number]
    stored = to_hwd(sample["volume"][0], "DHW")
    mask = to_hwd(sample["mask"][0], "DHW") if "mask" in sample else None
    values = _facts(stored, spec, scale_offset, hu)
    volume = _exported(stored, spec, scale_offset if hu else None)
    if to == "blosc2":
        labels = dataset.mask_labels
        files = write_case(folder, entry.key, volume, mask, metadata.spacing_mm, labels)
    else:
        files = []
        for ending, voxels in zip(_ENDINGS[to], (volume, mask), strict=False):
            if voxels is not None:
                files.append(folder / f"{entry.key}{ending}")
                _write(files[-1], voxels, to, spec, metadata)
    beside = {
        "study_id": sample["study_id"],
        "files": [path.name for path in files],
        "axes": _AXES.get(to, spec.layout),
        "values": values,
        # What is not known is null.
        "labels": dict(zip(dataset.class_names, sample["labels"].tolist(), strict=True)),
        "report": sample["report"],
        **({} if mask is None else {"mask_labels": dataset.mask_labels}),
        "sample": dataset.metadata(number),
    }
    files.append(folder / f"{entry.key}.json")
    with new_file(files[-1]) as file:
        file.write(f"{to_json(beside)}\n".encode())
    # What another data set's sample had, such as a mask, is not this one's.
    for ending in _ENDINGS[to]:
        if (path := folder / f"{entry.key}{ending}") not in files:
            remove(path)
    return files


def _write(
    path: Path, voxels_hwd: npt.NDArray[Any], to: Form, spec: Spec, metadata: Metadata
) -> None:
    if to == "npy":
        write_npy(path, in_stored_order(voxels_hwd, "HWD", spec.layout))
    else:
        stated = metadata.source.affine_source == "header"
        write_nifti(path, voxels_hwd, np.array(metadata.affine), stated=stated)


def _scale_offset(spec: Spec, metadata: Metadata, *, needed: bool) -> tuple[float, float] | None:
    """What makes the stored numbers of HU; None where no one knows, and it is not needed."""
    try:
        return metadata.scale_offset(spec)
    except DecodeError:
        if needed:
            raise
        return None


def _exported(
    stored: npt.NDArray[Any], spec: Spec, scale_offset: tuple[float, float] | None
) -> npt.NDArray[Any]:
    """The stored numbers, or the HU that they stand for."""
    if scale_offset is None or spec.stores_hu:
        return numbers_of(stored, spec.dtype) if spec.dtype == "bfloat16" else stored
    scale, offset = scale_offset
    numbers = numbers_of(stored, spec.dtype)
    numbers -= np.float32(offset)
    numbers /= np.float32(scale)
    return numbers


def _facts(
    stored: npt.NDArray[Any], spec: Spec, scale_offset: tuple[float, float] | None, hu: bool
) -> dict[str, Any]:
    """What the exported numbers are, and what is lost of the scan's HU."""
    known: dict[str, Any] = {
        "unit": "HU" if hu or spec.stores_hu else "stored",
        "normalise": spec.normalise,
        "clipped_to_hu": None if spec.hu_window is None else list(spec.hu_window),
    }
    if scale_offset is not None:
        scale, offset = scale_offset
        known["hu_of_stored"] = {"scale": 1 / scale, "offset": -offset / scale}
        known["rounded_by_hu"] = _rounding(stored, spec, scale_offset) / abs(scale)
    return known


def _rounding(stored: npt.NDArray[Any], spec: Spec, scale_offset: tuple[float, float]) -> float:
    """By how much storing has changed a number of this volume at most."""
    if spec.dtype in ("int16", "uint8"):
        return 0.5
    on_grid = (spec.precision_step or 0.0) / 2
    # Plane by plane: as float32 at once it would be as large again.
    most = max(float(np.abs(numbers_of(plane, spec.dtype)).max()) for plane in stored)
    if not math.isfinite(most) or most == 0:
        return on_grid
    scale, offset = scale_offset
    ends = [abs(hu * scale + offset) for hu in spec.hu_window or ()]
    if spec.normalise == "window" and ends and math.isclose(most, max(ends), rel_tol=1e-9):
        # Nothing beyond the window was rounded down to its end.
        most = math.nextafter(most, 0)
    exponent = math.frexp(most)[1] - 1
    return on_grid + 2.0 ** (exponent - _FRACTION_BITS[spec.dtype] - 1)
