"""Series against the volumes that they were written from, and against SimpleITK's reader."""

from __future__ import annotations

import locale
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK

from ctgpu.buffers import BufferPool
from ctgpu.decode.dicom_header import SliceHeader, read_header
from ctgpu.decode.dicom_pixels import decode_series, memory_bytes
from ctgpu.errors import DecodeError, GeometryError
from ctgpu.volume.raw import RawVolume, Rescale
from support.dicom_series import SYNTAXES, datasets_of, file_bytes, write_series

HU = np.random.default_rng(3).integers(-1000, 1000, (36, 33, 4)).astype(np.int16)
AFFINE = np.array([[-0.7, 0, 0, 90], [0, -0.8, 0, 80], [0, 0, 1.5, -30], [0, 0, 0, 1]])
TO_RAS = np.diag([-1.0, -1, 1])


class Series:
    """A series in memory, whose volume the test looks at."""

    def __init__(self, pool: BufferPool, files: list[bytes]) -> None:
        self.pool = pool
        self.files = [np.frombuffer(data, np.uint8) for data in files]
        self.headers = [read_header(data, "a.dcm") for data in files]

    @classmethod
    def of(cls, pool: BufferPool, transfer_syntax: str = "explicit", **form) -> Series:
        datasets = datasets_of(HU, AFFINE, **form)
        return cls(pool, [file_bytes(dataset, transfer_syntax) for dataset in datasets])

    def change(self, number: int, **changes: object) -> Series:
        self.headers[number] = msgspec.structs.replace(self.headers[number], **changes)
        return self

    def decode(self, **options) -> RawVolume:
        return decode_series("key-of-it", self.files, self.headers, self.pool, **options)


def hu_of(volume: RawVolume) -> np.ndarray:
    return volume.header_rescale.hu_of(volume.voxels)


def geometry_of(image: SimpleITK.Image) -> np.ndarray:
    """The affine of an image, in RAS+."""
    affine = np.eye(4)
    direction = np.array(image.GetDirection()).reshape(3, 3)
    affine[:3, :3] = TO_RAS @ direction @ np.diag(image.GetSpacing())
    affine[:3, 3] = TO_RAS @ image.GetOrigin()
    return affine


def by_simpleitk(folder: Path) -> SimpleITK.Image:
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


@pytest.mark.parametrize("form", ["single", "enhanced"])
@pytest.mark.parametrize("transfer_syntax", SYNTAXES)
def test_voxels_and_geometry(transfer_syntax, form, pool):
    series = Series.of(pool, transfer_syntax, form=form)
    volume = series.decode()
    np.testing.assert_array_equal(hu_of(volume), HU)
    assert volume.header_rescale == Rescale(1.0, -1024.0, "header")
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-12)
    assert volume.spacing_mm == (0.7, 0.8, 1.5)
    assert (volume.format, volume.affine_source) == ("dicom", "header")
    assert volume.voxels.flags.f_contiguous
    assert volume.size_bytes == volume.voxels.nbytes == memory_bytes(series.headers)
    volume.release()


@pytest.mark.parametrize("transfer_syntax", SYNTAXES)
@pytest.mark.parametrize("bits_stored", [12, 16])
def test_signed_values(transfer_syntax, bits_stored, pool):
    form = {"signed": True, "intercept": 0, "bits_stored": bits_stored}
    volume = Series.of(pool, transfer_syntax, **form).decode()
    np.testing.assert_array_equal(volume.voxels, HU)
    assert volume.header_rescale.is_identity
    volume.release()


@pytest.mark.parametrize("transfer_syntax", ["explicit", "implicit", "big", "rle"])
@pytest.mark.parametrize("signed", [False, True])
def test_bits_above_those_that_are_stored_are_dropped(signed, transfer_syntax, pool):
    datasets = datasets_of(
        HU, AFFINE, bits_stored=12, signed=signed, intercept=-1024 * (not signed)
    )
    for dataset in datasets:
        stored = np.frombuffer(dataset.PixelData, "<u2") & 0x0FFF
        # As an overlay would have it.
        dataset.PixelData = (stored | (stored % 7 << 12).astype("<u2")).tobytes()
    volume = Series(pool, [file_bytes(d, transfer_syntax) for d in datasets]).decode()
    np.testing.assert_array_equal(hu_of(volume), HU)
    volume.release()


@pytest.mark.parametrize(
    ("pairs", "dtype"),
    [
        ([(1, -1024), (1, -1000), (2, -1024), (1, 0)], np.int16),
        ([(1, -1024), (30, 0), (1, -1024), (1, -1024)], np.int32),
        ([(0.5, -1024), (0.25, -1000), (0.5, -1024), (0.5, -1024)], np.float32),
    ],
)
@pytest.mark.parametrize("form", ["single", "enhanced"])
def test_slices_with_a_slope_each_become_hu(form, pairs, dtype, pool):
    series = Series.of(pool, form=form, bits_stored=12)
    slopes, intercepts = (tuple(map(float, numbers)) for numbers in zip(*pairs, strict=True))
    if form == "enhanced":
        series.change(0, slopes=slopes, intercepts=intercepts)
    else:
        for k in range(4):
            series.change(k, slopes=slopes[k : k + 1], intercepts=intercepts[k : k + 1])
    volume = series.decode()
    assert (volume.voxels.dtype, volume.header_rescale.is_identity) == (np.dtype(dtype), True)
    expected = (HU + 1024.0) * slopes + intercepts
    np.testing.assert_array_equal(volume.voxels, expected)
    volume.release()


def test_slices_that_are_stored_in_two_ways_become_hu(pool):
    unsigned = datasets_of(HU, AFFINE, bits_stored=12)
    signed = datasets_of(HU, AFFINE, bits_stored=12, signed=True, intercept=0)
    mixed = [file_bytes(d) for d in (*unsigned[:2], *signed[2:])]
    mixed[1] = file_bytes(unsigned[1], "big")
    volume = Series(pool, mixed).decode()
    np.testing.assert_array_equal(volume.voxels, HU)
    assert volume.voxels.dtype == np.int16
    volume.release()


def test_without_slope_and_intercept_values_are_hu(pool):
    datasets = datasets_of(HU, AFFINE, signed=True, intercept=0)
    for dataset in datasets:
        del dataset.RescaleSlope, dataset.RescaleIntercept
    volume = Series(pool, [file_bytes(d) for d in datasets]).decode()
    np.testing.assert_array_equal(hu_of(volume), HU)
    volume.release()


REFUSED = {
    "a slope without an intercept": ({"intercepts": ()}, "without a slope"),
    "a slope of zero": ({"slopes": (0.0,)}, "without a slope"),
    "colours": ({"samples_per_pixel": 3, "photometric": "RGB"}, "3 channels of 16 bits"),
    "inverted": ({"photometric": "MONOCHROME1"}, "not as MONOCHROME2"),
    "bits from above": ({"bits_stored": 12, "high_bit": 15}, "12 bits up to bit 15"),
    "no bits": ({"bits_stored": 0, "high_bit": -1}, "0 bits"),
    "lossy JPEG": ({"transfer_syntax": "1.2.840.10008.1.2.4.51"}, "is not read here"),
    "no syntax": ({"transfer_syntax": ""}, "is not read here"),
    "another syntax": ({"transfer_syntax": "1.2.840.10008.1.2.4.70"}, "cut short or damaged"),
    "another byte order": ({"transfer_syntax": "1.2.840.10008.1.2.2"}, "has changed since"),
    "another place": ({"pixel_offset": 400}, "has changed since"),
    "another size": ({"pixel_bytes": 36 * 33 * 2 - 2}, "has changed since"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_refused(case, pool):
    changes, sentence = REFUSED[case]
    series = Series.of(pool).change(1, **changes)
    with pytest.raises(DecodeError, match=f"^key-of-it .*{sentence}"):
        series.decode()
    # The fixture holds that no memory stays on loan.
    assert memory_bytes(series.headers) >= 0


def test_a_slice_that_is_cut_short_is_refused(pool):
    series = Series.of(pool)
    series.files[2] = series.files[2][:-1]
    with pytest.raises(DecodeError, match=r"declares 2,376 bytes of pixels, and that has 2,375"):
        series.decode()


def test_more_frames_than_are_declared_are_refused(pool):
    series = Series.of(pool, form="enhanced")
    header = series.headers[0]
    series.change(0, frames=3, positions=header.positions[:3])
    with pytest.raises(DecodeError, match=r"declares 7,128 bytes of pixels, and that has 9,504"):
        series.decode()


def test_a_volume_beyond_the_limit_is_refused_before_memory_is_taken(pool):
    with pytest.raises(DecodeError, match=r"declares 9,504 bytes; at most 9,000"):
        Series.of(pool).decode(limit_bytes=9000)


def test_a_gap_is_refused_by_name(pool):
    series = Series.of(pool)
    del series.files[2], series.headers[2]
    with pytest.raises(GeometryError, match=r"^key-of-it .*1 gap of"):
        series.decode()


@pytest.fixture
def keep_locale() -> Iterator[None]:
    """SimpleITK leaves the locale at "C" where it has written DICOM."""
    before = locale.setlocale(locale.LC_ALL)
    yield
    locale.setlocale(locale.LC_ALL, before)


@pytest.mark.usefixtures("keep_locale")
def test_what_simpleitk_writes_and_reads(pool, tmp_path):
    image = SimpleITK.GetImageFromArray(HU.T)
    image.SetSpacing((0.7, 0.8, 1.5))
    writer = SimpleITK.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for k in range(HU.shape[2]):
        one = image[:, :, k]
        for tag, value in {
            "0008|0060": "CT",
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
            "0020|000e": "1.2.3",
            "0020|0032": f"-90\\-80\\{1.5 * k - 30}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0028|1052": "0",
            "0028|1053": "1",
        }.items():
            one.SetMetaData(tag, value)
        writer.SetFileName(str(tmp_path / f"{k}.dcm"))
        writer.Execute(one)
    series = Series(pool, [path.read_bytes() for path in sorted(tmp_path.iterdir())])
    volume = series.decode()
    np.testing.assert_array_equal(hu_of(volume), HU)
    oracle = by_simpleitk(tmp_path)
    np.testing.assert_allclose(volume.affine, geometry_of(oracle), atol=1e-9)
    np.testing.assert_array_equal(hu_of(volume), SimpleITK.GetArrayFromImage(oracle).T)
    volume.release()


#: Of other writers, as pydicom has them among its data.
OTHERS = [
    *("CT_small", "MR_small_implicit", "MR_small_expb", "MR_small_RLE", "MR_small_jp2klossless"),
    *("MR_small_jpeg_ls_lossless", "693_J2KI", "J2K_pixelrep_mismatch", "JPEGLSNearLossless_08"),
    *("JPEGLSNearLossless_16", "examples_overlay"),
]


@pytest.mark.parametrize("name", OTHERS)
def test_files_of_other_writers_as_simpleitk_reads_them(name, pool):
    path = Path(pydicom.__file__).with_name("data") / "test_files" / f"{name}.dcm"
    if not path.exists():
        pytest.skip("this pydicom comes without it")
    series = Series(pool, [path.read_bytes()] * 2)
    for k in range(2):
        series.change(
            k,
            positions=((0.0, 0.0, float(k)),),
            orientations=((1.0, 0.0, 0.0, 0.0, 1.0, 0.0),),
            pixel_spacings_mm=((1.0, 1.0),),
        )
    volume = series.decode()
    wanted = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))[0].T
    found = hu_of(volume)
    for k in range(2):
        np.testing.assert_array_equal(found[:, :, k], wanted)
    volume.release()


WAYS = [("explicit", "single"), ("implicit", "enhanced")]
COMPRESSED_WAYS = [
    *(("jpeg-lossless", "single"), ("jpeg-ls", "enhanced")),
    *(("jpeg2000", "single"), ("rle", "enhanced")),
]


@pytest.mark.slow
@pytest.mark.parametrize(("transfer_syntax", "form"), [*WAYS, *COMPRESSED_WAYS])
def test_real_ct_is_that_of_its_nifti_and_of_simpleitk(
    transfer_syntax, form, real_ct, pool, tmp_path
):
    paths = sorted(real_ct.glob("*_small.nii.gz"))
    assert paths
    for path in paths:
        nifti = nibabel.load(path)
        hu, affine = np.asanyarray(nifti.dataobj).astype(np.int16), nifti.affine
        folder = tmp_path / path.name
        form_of_it = {"form": form, "transfer_syntax": transfer_syntax, "intercept": -4096}
        files = write_series(folder, hu, affine, **form_of_it)
        volume = Series(pool, [file.read_bytes() for file in files]).decode()
        found = hu_of(volume)
        np.testing.assert_array_equal(found, hu)
        np.testing.assert_allclose(volume.affine, affine, atol=1e-5)
        np.testing.assert_allclose(volume.spacing_mm, nifti.header.get_zooms(), rtol=1e-6)
        is_single = form == "single"
        oracle = by_simpleitk(folder) if is_single else SimpleITK.ReadImage(str(files[0]))
        np.testing.assert_array_equal(found, SimpleITK.GetArrayFromImage(oracle).T)
        np.testing.assert_allclose(volume.affine, geometry_of(oracle), atol=1e-5)
        np.testing.assert_allclose(volume.spacing_mm, oracle.GetSpacing(), rtol=1e-6)
        volume.release()


def test_headers_of_another_number_than_files_are_a_defect(pool):
    series = Series.of(pool)
    with pytest.raises(ValueError, match="zip"):
        decode_series("s", series.files[:3], series.headers, pool)


def test_pixels_that_are_not_compressed_need_no_pydicom(pool, monkeypatch):
    series = Series.of(pool)
    for module in [name for name in sys.modules if name.partition(".")[0] == "pydicom"]:
        monkeypatch.setitem(sys.modules, module, None)
    volume = series.decode()
    np.testing.assert_array_equal(hu_of(volume), HU)
    volume.release()


def test_memory_of_a_series_that_is_refused_is_none():
    assert memory_bytes([header_without_image()]) == 0


def header_without_image() -> SliceHeader:
    dataset = datasets_of(HU, AFFINE)[0]
    dataset.SamplesPerPixel = 3
    return read_header(file_bytes(dataset), "a.dcm")
