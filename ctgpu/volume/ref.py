"""One volume as listings and plans name it, before a byte of it is read."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

#: ``fixed``: voxels are HU, as of CT-RATE v2.  ``v1``: they need a table's slope and intercept.
Provenance = Literal["fixed", "v1", "unknown"]

#: Suffixes of volumes.  Files of a later row are volumes where none of an earlier row is there:
#: beside ``.nii.gz`` an ``.nrrd`` mostly is a mask, and an ``.npy`` may be anything.
VOLUME_TIERS = (
    (".nii.gz", ".nii", ".npz"),
    (".mha", ".mhd", ".nrrd", ".nhdr"),
    (".npy",),
)
VOLUME_SUFFIXES = tuple(itertools.chain(*VOLUME_TIERS))
#: How files of DICOM are called, where they are called anything: slices, mostly, of a volume.
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")


@dataclass(frozen=True, slots=True)
class SampleRef:
    """One volume that a source has, and the sample that is made of it.

    A plan stores these fields, so that key and study id stay those that it was made with.

    Attributes
    ----------
    key : str
        Name of the sample's members in a shard.
    study_id : str
        How the tables name the volume.
    path : str
        Relative to the source, with forward slashes.
    size_bytes : int
        Size of the file as stored.
    checksum : str or None
        ``"sha256:<hex>"`` as the source states it; the fetched bytes are held against it.
    provenance : {"fixed", "v1", "unknown"}
        What the path says about the voxels.
    """

    key: str
    study_id: str
    path: str
    size_bytes: int
    checksum: str | None = None
    provenance: Provenance = "unknown"

    @classmethod
    def of_file(
        cls,
        path: str,
        size_bytes: int,
        checksum: str | None = None,
        provenance: Provenance = "unknown",
        study_id: str | None = None,
    ) -> SampleRef:
        """A listed file; by default its name without the volume's suffix is the study id."""
        study_id = strip_volume_suffix(study_id or path.rsplit("/", 1)[-1])
        return cls(_key_of(study_id), study_id, path, size_bytes, checksum, provenance)


def _key_of(study_id: str) -> str:
    """The study id with ``_`` for what tar readers split at.

    WebDataset splits names at dots, DALI's index at white space.
    """
    return "".join(
        "_" if c in "./\\" or c.isspace() or not c.isprintable() else c for c in study_id
    )


def normal_form(study_id: str) -> str:
    """A study id as ids are compared, in Unicode's NFC.

    macOS writes file names in NFD, and tables are mostly written in NFC.
    """
    return unicodedata.normalize("NFC", study_id)


class Spelling:
    """Names as they are stored, each found by itself or else by its normal form.

    A copy that was made by way of another system may spell names otherwise.

    Parameters
    ----------
    names : iterable of str
        As they are stored.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        exact = {name: name for name in names}
        self._stored = {normal_form(name): name for name in exact} | exact

    def find(self, name: str) -> str | None:
        """How a name is stored; None where it is not."""
        return self._stored.get(name) or self._stored.get(normal_form(name))


def strip_volume_suffix(file_name: str) -> str:
    """``valid_1_a_1.nii.gz`` to ``valid_1_a_1``; other names are returned unchanged."""
    for suffix in (*VOLUME_SUFFIXES, ".bin", ".ctz"):
        if file_name.lower().endswith(suffix):
            return file_name[: -len(suffix)]
    return file_name
