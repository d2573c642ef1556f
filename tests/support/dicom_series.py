"""Volumes as DICOM series: single frames or one Enhanced CT file, in each transfer syntax.

What is written names a patient only as far as :func:`plant` makes it; all UIDs are made of a seed.
"""

from __future__ import annotations

import copy
import io
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset, uid
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence

SYNTAXES = {
    "explicit": uid.ExplicitVRLittleEndian,
    "implicit": uid.ImplicitVRLittleEndian,
    "big": uid.ExplicitVRBigEndian,
    "rle": uid.RLELossless,
    "jpeg-lossless": uid.JPEGLosslessSV1,
    "jpeg-ls": uid.JPEGLSLossless,
    "jpeg2000": uid.JPEG2000Lossless,
}
CT, ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1"
_TO_LPS = np.diag([-1.0, -1, 1])


def uid_of(*parts: object) -> str:
    """A UID that is the same for the same parts."""
    return str(uid.generate_uid(entropy_srcs=[repr(part) for part in parts]))


def datasets_of(
    hu: np.ndarray,
    affine: np.ndarray,
    *,
    form: str = "single",
    slope: float = 1,
    intercept: float = -1024,
    bits_stored: int = 16,
    signed: bool = False,
    series: str = "series",
    study: str = "study",
) -> list[Dataset]:
    """One data set a file, with native pixels, in the order of the slices.

    Parameters
    ----------
    hu : numpy.ndarray
        Shape (H, W, D): columns, rows and slices.
    affine : numpy.ndarray
        4 × 4, its index to RAS+ millimetres.
    form : {"single", "enhanced"}
        A file a slice, or one of all.
    slope, intercept : float
        What HU are stored by.
    bits_stored : int
        Of 16 that are allocated.
    signed : bool
        Of the stored values.
    series, study : str
        What the UIDs are made of.
    """
    stored = np.rint((hu - float(intercept)) / float(slope))
    planes = stored.astype(np.int16 if signed else np.uint16).transpose(2, 1, 0)
    assert (planes == stored.transpose(2, 1, 0)).all(), "HU that cannot be stored so"
    steps, origin = _TO_LPS @ affine[:3, :3], _TO_LPS @ affine[:3, 3]
    spacing = np.linalg.norm(steps, axis=0)
    orientation = [*(steps[:, 0] / spacing[0]), *(steps[:, 1] / spacing[1])]
    positions = [origin + k * steps[:, 2] for k in range(len(planes))]

    def common(number: int, pixels: np.ndarray) -> Dataset:
        dataset = Dataset()
        dataset.SOPClassUID = CT if form == "single" else ENHANCED_CT
        dataset.SOPInstanceUID = uid_of(series, "instance", number)
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = uid_of(study), uid_of(series)
        dataset.FrameOfReferenceUID = uid_of(study, "frame of reference")
        dataset.Modality, dataset.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
        dataset.PatientID, dataset.PatientName = "", ""
        dataset.InstanceNumber, dataset.AcquisitionNumber = number + 1, 1
        dataset.Rows, dataset.Columns = planes.shape[1:]
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored = 16, bits_stored
        dataset.HighBit, dataset.PixelRepresentation = bits_stored - 1, int(signed)
        dataset.PixelData = pixels.tobytes()
        dataset["PixelData"].VR = "OW"
        return dataset

    if form == "single":
        made = []
        for k, plane in enumerate(planes):
            dataset = common(k, plane)
            dataset.ImagePositionPatient = decimals(positions[k])
            dataset.ImageOrientationPatient = decimals(orientation)
            dataset.PixelSpacing = decimals([spacing[1], spacing[0]])
            # As in many a real file, no distance between slices.
            dataset.SliceThickness = "7.5"
            dataset.RescaleSlope, dataset.RescaleIntercept = decimals([slope, intercept])
            made.append(dataset)
        return made
    dataset = common(0, planes)
    dataset.NumberOfFrames = len(planes)
    shared = Dataset()
    shared.PixelMeasuresSequence = _item(PixelSpacing=decimals([spacing[1], spacing[0]]))
    shared.PlaneOrientationSequence = _item(ImageOrientationPatient=decimals(orientation))
    shared.PixelValueTransformationSequence = _item(
        RescaleSlope=decimals([slope])[0], RescaleIntercept=decimals([intercept])[0]
    )
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    groups = []
    for position in positions:
        group = Dataset()
        group.PlanePositionSequence = _item(ImagePositionPatient=decimals(position))
        groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence = Sequence(groups)
    return [dataset]


def decimals(numbers: Iterable[float]) -> list[str]:
    """Numbers as DICOM writes them, in at most 16 characters, as exact as that is."""
    return [_decimal(float(number)) for number in numbers]


def _decimal(number: float) -> str:
    for digits in range(17, 0, -1):
        if len(text := f"{number + 0.0:.{digits}g}") <= 16:
            return text
    raise AssertionError(number)


def _item(**elements: Any) -> Sequence:
    dataset = Dataset()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return Sequence([dataset])


def file_bytes(dataset: Dataset, transfer_syntax: str = "explicit") -> bytes:
    """A data set with native pixels as a file in one of :data:`SYNTAXES`."""
    syntax = SYNTAXES[transfer_syntax]
    dataset = copy.deepcopy(dataset)
    meta = dataset.file_meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    if transfer_syntax == "jpeg-lossless":
        return _by_gdcm(_written(dataset))
    if syntax.is_compressed:
        dataset.compress(syntax, generate_instance_uid=False)
    elif transfer_syntax == "big":
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").byteswap().tobytes()
    meta.TransferSyntaxUID = syntax
    return _written(dataset)


def _written(dataset: Dataset) -> bytes:
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def _by_gdcm(data: bytes) -> bytes:
    """The same file in JPEG lossless, which pydicom does not write."""
    import gdcm

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.dcm")
        path.write_bytes(data)
        reader = gdcm.ImageReader()
        reader.SetFileName(str(path))
        assert reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFileName(str(path))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
        return path.read_bytes()


def write_series(
    folder: Path,
    hu: np.ndarray,
    affine: np.ndarray,
    *,
    transfer_syntax: str = "explicit",
    name: Callable[[int], str] = "{:03d}.dcm".format,
    change: Callable[[Dataset, int], None] = lambda dataset, number: None,
    **form: Any,
) -> list[Path]:
    """Write a volume as the files of a series.

    Parameters
    ----------
    folder : Path
        Made if it is not there.
    hu, affine, **form
        As :func:`datasets_of` takes them.
    transfer_syntax : str
        One of :data:`SYNTAXES`.
    name : callable
        Of the file by its number.
    change : callable
        Called with each data set and its number before it is written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, dataset in enumerate(datasets_of(hu, affine, **form)):
        change(dataset, number)
        path = folder / name(number)
        path.write_bytes(file_bytes(dataset, transfer_syntax))
        paths.append(path)
    return paths


def plant(dataset: Dataset, marks: dict[str, str]) -> None:
    """Put what names a patient into text of every kind, private and nested elements too.

    Parameters
    ----------
    dataset : Dataset
        Changed in place.
    marks : dict
        ``"name"``, ``"date"`` (8 digits) and ``"id"``, as they are to be looked for.
    """
    _plant_plain(dataset, marks)
    request = Dataset()
    _plant_plain(request, marks)
    deeper = Dataset()
    _plant_plain(deeper, marks)
    request.ReferencedStudySequence = Sequence([deeper])
    dataset.RequestAttributesSequence = Sequence([request])
    for text in ("StudyDescription", "SeriesDescription", "ProtocolName", "ImageComments"):
        setattr(dataset, text, f"{marks['name']} {marks['id']}")
    block = dataset.private_block(0x0099, "CTGPU TEST", create=True)
    block.add_new(1, "LO", marks["name"])
    block.add_new(2, "SH", marks["id"][:16])
    block.add_new(3, "UN", "/".join(marks.values()).encode())
    block.add_new(4, "SQ", Sequence([copy.deepcopy(deeper)]))


def _plant_plain(dataset: Dataset, marks: dict[str, str]) -> None:
    dataset.PatientName, dataset.PatientID = marks["name"], marks["id"]
    dataset.OtherPatientIDs, dataset.AccessionNumber = marks["id"], marks["id"][:16]
    dataset.ReferringPhysicianName = dataset.OperatorsName = marks["name"]
    dataset.PatientBirthDate = dataset.StudyDate = dataset.ContentDate = marks["date"]
    dataset.InstitutionName = dataset.InstitutionAddress = dataset.PatientComments = marks["name"]
    dataset.StationName = marks["name"][:16]
