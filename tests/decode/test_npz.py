"""``.npz`` archives as users keep them, and as nobody should."""

from __future__ import annotations

import gc
import io
import json
import struct
import sys
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel
import numpy as np
import pytest

from ctgpu.decode import inflated_size
from ctgpu.decode.npz import locate_voxels
from ctgpu.errors import DecodeError
from ctgpu.volume.raw import Rescale


def some_voxels(dtype: str = "i2", shape: tuple[int, ...] = (5, 4, 3)) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 100, shape).astype(dtype)


def as_json_bytes(value: object) -> np.ndarray:
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


@pytest.mark.parametrize("compress", [False, True], ids=["stored", "deflated"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(
    "dtype", ["i1", "u1", "<i2", ">i2", "u2", "i4", "u4", "<i8", ">u8", "f2", "f4", ">f8"]
)
def test_every_dtype_order_and_method(dtype, order, compress, make_npz, load):
    voxels = np.asarray(some_voxels(dtype), order=order)
    volume = load("a.npz", make_npz(compress, arr_0=voxels))
    assert volume.voxels.dtype == voxels.dtype
    assert volume.voxels.strides == voxels.strides
    np.testing.assert_array_equal(volume.voxels, voxels)
    assert np.shares_memory(volume.voxels, volume.buffer.bytes)
    assert (volume.spacing_mm, volume.affine, volume.format) == (None, None, "npz")
    assert volume.header_rescale == Rescale()


def test_a_stored_member_takes_no_memory_beside_the_file(make_npz, load, pool):
    voxels = some_voxels(shape=(64, 64, 64))
    stored, deflated = make_npz(False, arr_0=voxels), make_npz(True, arr_0=voxels)
    assert inflated_size("a.npz", np.frombuffer(stored, np.uint8)) == 0
    assert inflated_size("a.npz", np.frombuffer(deflated, np.uint8)) == voxels.nbytes + 128
    volume = load("a.npz", stored)
    assert pool.lent_bytes < 2 * voxels.nbytes
    assert volume.voxels.astype(np.float32).sum() == voxels.sum()


@pytest.mark.parametrize(
    ("arrays", "wanted"),
    [
        (("arr_0", "data", "volume"), "volume"),
        (("arr_0", "data"), "data"),
        (("other", "arr_0"), "arr_0"),
        (("scan",), "scan"),
        (("nested/scan",), "nested/scan"),
    ],
)
def test_which_array_is_the_volume(arrays, wanted, make_npz, load):
    made = {name: some_voxels(shape=(k + 2, 3, 4)) for k, name in enumerate(arrays)}
    np.testing.assert_array_equal(load("a.npz", make_npz(**made)).voxels, made[wanted])


def test_the_single_3d_array_is_the_volume(make_npz, load):
    voxels = some_voxels()
    data = make_npz(labels=np.arange(18.0), scan=voxels, mask=np.zeros((2, 2), "u1"))
    np.testing.assert_array_equal(load("a.npz", data).voxels, voxels)
    with pytest.raises(DecodeError, match="2 3-D arrays"):
        load("a.npz", make_npz(first=voxels, second=voxels))
    with pytest.raises(DecodeError, match="single 3-D"):
        load("a.npz", make_npz(labels=np.arange(3)))


OBJECTS = np.array([{"a": 1}, None], object)


@pytest.mark.parametrize(
    "beside",
    [
        {"info": OBJECTS},
        {"data": np.array({"a": 1}, object)},
        {"arr_0": np.arange(18.0)},
        {"arr_0": np.arange(18.0), "volume": np.array({"a": 1}, object), "info": OBJECTS},
        {"volume": np.zeros((4, 4))},
        {"info": np.full((2, 2, 2), None, object)},
    ],
)
def test_what_cannot_be_the_volume_does_not_hide_it(beside, make_npz, load):
    voxels = some_voxels()
    for arrays in ({"scan": voxels, **beside}, {**beside, "scan": voxels}):
        np.testing.assert_array_equal(load("a.npz", make_npz(**arrays)).voxels, voxels)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"volume": np.zeros((1, 4, 4, 4)), "mask": some_voxels()}, r"shape \(1, 4, 4, 4\)"),
        ({"arr_0": np.arange(3), "a": some_voxels(), "b": some_voxels()}, "2 3-D arrays"),
        ({"info": OBJECTS}, "info is a pickled"),
        ({"info": OBJECTS, "arr_0": np.arange(3)}, r"arr_0 has shape \(3,\)"),
    ],
)
def test_no_array_is_taken_for_the_volume_by_guessing(arrays, message, make_npz, load):
    with pytest.raises(DecodeError, match=message):
        load("a.npz", make_npz(**arrays))


@pytest.mark.parametrize("compress", [False, True])
def test_spacing_and_affine_may_be_arrays(compress, make_npz, load):
    affine = np.asfortranarray(METADATA["affine"] + np.eye(4, k=3) * 7)
    volume = load(
        "a.npz",
        make_npz(
            compress,
            volume=some_voxels(),
            spacing=np.array([0.34, 0.35, 1.5], ">f8"),
            affine=affine,
        ),
    )
    assert volume.spacing_mm == (0.34, 0.35, 1.5)
    np.testing.assert_array_equal(volume.affine, affine)
    assert (volume.metadata, volume.spacing_contradiction) == ({}, None)
    whole = load("a.npz", make_npz(compress, arr_0=some_voxels(), spacing_mm=np.array([1, 2, 3])))
    assert whole.spacing_mm == (1, 2, 3)


def test_arrays_of_facts_are_held_against_each_other(make_npz, load):
    arrays = {"spacing": np.array([0.34, 0.35, 3]), "affine": np.array(METADATA["affine"])}
    volume = load("a.npz", make_npz(volume=some_voxels(), **arrays))
    assert "0.34 × 0.35 × 3 mm" in volume.spacing_contradiction
    singular = make_npz(volume=some_voxels(), affine=np.zeros((4, 4)))
    with pytest.raises(DecodeError, match="maps no volume"):
        load("a.npz", singular)


def test_the_metadata_goes_before_arrays_of_facts(make_npz, load):
    arrays = {"spacing_mm": np.array([9, 9, 9]), "affine": np.eye(4)}
    metadata = as_json_bytes(METADATA)
    volume = load("a.npz", make_npz(volume=some_voxels(), metadata=metadata, **arrays))
    assert volume.spacing_mm == (0.34, 0.35, 1.5)
    np.testing.assert_array_equal(volume.affine, METADATA["affine"])


@pytest.mark.parametrize(
    "spacing", [np.array([1.0, 2]), OBJECTS, np.array([1, 2, np.nan]), np.array(["a", "b", "c"])]
)
def test_arrays_that_only_bear_the_name_of_a_fact_say_nothing(spacing, make_npz, load):
    assert load("a.npz", make_npz(volume=some_voxels(), spacing=spacing)).spacing_mm is None


def test_a_damaged_array_of_facts_is_found(make_npz, load):
    data = bytearray(make_npz(False, volume=some_voxels(), spacing=np.array([1.0, 2, 3])))
    data[data.index(b"PK\x01\x02") - 3] ^= 1
    with pytest.raises(DecodeError, match="spacing is not usable"):
        load("a.npz", bytes(data))


@pytest.mark.parametrize("compress", [False, True])
def test_zip64(compress, make_npz, load):
    voxels = some_voxels()
    np.testing.assert_array_equal(
        load("a.npz", make_npz(compress, zip64=True, volume=voxels)).voxels, voxels
    )


def test_numpys_own_writers(load, tmp_path: Path):
    voxels = some_voxels()
    np.savez(tmp_path / "stored.npz", voxels)
    np.savez_compressed(tmp_path / "deflated.npz", data=np.asfortranarray(voxels))
    for path in tmp_path.iterdir():
        np.testing.assert_array_equal(load(path.name, path.read_bytes()).voxels, voxels)


METADATA = {
    "RescaleSlope": 2,
    "RescaleIntercept": -1024.0,
    "XYSpacing": "[0.34, 0.35]",
    "ZSpacing": 1.5,
    "affine": np.diag([0.34, 0.35, 1.5, 1]).tolist(),
    "PatientSex": "F",
}


@pytest.mark.parametrize(
    "wrap",
    [
        as_json_bytes,
        lambda value: np.array(json.dumps(value).encode()),
        lambda value: np.array(json.dumps(value)),
    ],
    ids=["uint8", "bytes", "text"],
)
@pytest.mark.parametrize("compress", [False, True])
def test_metadata(wrap, compress, make_npz, load):
    data = make_npz(compress, volume=some_voxels(), metadata=wrap(METADATA))
    volume = load("a.npz", data)
    assert volume.spacing_mm == (0.34, 0.35, 1.5)
    assert volume.header_rescale == Rescale(2.0, -1024.0, "metadata")
    np.testing.assert_array_equal(volume.affine, METADATA["affine"])
    assert volume.metadata == METADATA


def test_an_affine_alone_states_the_spacing(make_npz, load):
    facts = {"affine": METADATA["affine"]}
    volume = load("a.npz", make_npz(volume=some_voxels(), metadata=as_json_bytes(facts)))
    assert volume.spacing_mm == (0.34, 0.35, 1.5)
    assert volume.spacing_contradiction is None


@pytest.mark.parametrize("spacing", [[1, 1, 1], [0, 0.35, 1.5], [0.34, -0.35, 1.5]])
def test_an_affine_serves_where_the_spacing_is_unset_or_no_length(spacing, make_npz, load):
    facts = {"affine": METADATA["affine"], "spacing_mm": spacing}
    volume = load("a.npz", make_npz(volume=some_voxels(), metadata=as_json_bytes(facts)))
    assert volume.spacing_mm == (0.34, 0.35, 1.5)
    assert volume.spacing_contradiction is None


def test_a_spacing_that_contradicts_the_affine_is_told_of_both(make_npz, load):
    facts = {"affine": METADATA["affine"], "XYSpacing": [0.34, 0.35], "ZSpacing": 3}
    volume = load("a.npz", make_npz(volume=some_voxels(), metadata=as_json_bytes(facts)))
    for words in ("a.npz", "0.34 × 0.35 × 3 mm", "0.34 × 0.35 × 1.5 mm"):
        assert words in volume.spacing_contradiction


@pytest.mark.parametrize(
    ("metadata", "spacing"),
    [
        ({"XYSpacing": [0.3, 0.4], "ZSpacing": "2.5"}, (0.3, 0.4, 2.5)),
        ({"spacing": [0.3, 0.4, 5]}, (0.3, 0.4, 5)),
        ({"spacing_mm": "[1, 2, 3]", "spacing": [9, 9, 9]}, (1, 2, 3)),
        ({"XYSpacing": [0.3, 0.4]}, None),
        ({"XYSpacing": None, "ZSpacing": None, "RescaleSlope": None}, None),
        ({}, None),
    ],
)
def test_spellings_of_spacing(metadata, spacing, make_npz, load):
    volume = load("a.npz", make_npz(volume=some_voxels(), metadata=as_json_bytes(metadata)))
    assert volume.spacing_mm == spacing
    assert volume.header_rescale == Rescale()


def test_not_a_number_in_metadata_stays_json_ready(make_npz, load):
    metadata = np.frombuffer(b'{"PatientAge": NaN, "ZSpacing": NaN}', np.uint8)
    volume = load("a.npz", make_npz(volume=some_voxels(), metadata=metadata))
    assert volume.metadata == {"PatientAge": None, "ZSpacing": None}


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (np.array({"RescaleSlope": 2}, object), "pickled"),
        (np.frombuffer(b"{not json", np.uint8), "not readable"),
        (as_json_bytes([1, 2]), "not an object"),
        (np.frombuffer(b"[" * 100_000, np.uint8), "not readable"),
        (np.arange(4.0), "not readable"),
        (np.zeros(2 << 20, np.uint8), "at most"),
        (as_json_bytes({"RescaleSlope": "steep"}), "RescaleSlope"),
        (as_json_bytes({"RescaleSlope": 0}), "RescaleSlope 0"),
        (np.frombuffer(b'{"RescaleIntercept": 1e999}', np.uint8), "RescaleIntercept inf"),
        (as_json_bytes({"XYSpacing": "0.3", "ZSpacing": 1}), "XYSpacing"),
        (as_json_bytes({"spacing": [1, 2]}), "spacing"),
        (as_json_bytes({"affine": [[1, 0], [0, 1]]}), "affine"),
        (as_json_bytes({"affine": [[None] * 4] * 4}), "affine"),
        (as_json_bytes({"affine": np.zeros((4, 4)).tolist()}), "maps no volume"),
        (as_json_bytes({"affine": np.diag([1.0, 1, 0, 1]).tolist()}), "maps no volume"),
        (as_json_bytes({"affine": (np.eye(4) + np.eye(4, k=-3)).tolist()}), "last row"),
    ],
)
def test_metadata_that_is_refused(metadata, message, make_npz, load):
    with pytest.raises(DecodeError, match=message) as caught:
        load("scan 1.npz", make_npz(volume=some_voxels(), metadata=metadata))
    assert "scan 1.npz" in str(caught.value)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([[[{"a": 1}]]], object), "pickled"),
        (np.zeros((4, 4), "i2"), r"shape \(4, 4\)"),
        (np.zeros((1, 4, 4, 4), "i2"), r"shape \(1, 4, 4, 4\)"),
        (np.zeros((4, 0, 4), "i2"), r"shape \(4, 0, 4\)"),
        (np.zeros((), "i2"), r"shape \(\)"),
        (np.zeros((2, 2, 2), "g"), "float128|longdouble"),
        (np.zeros((2, 2, 2), "c8"), "complex64"),
        (np.zeros((2, 2, 2), "?"), "bool"),
        (np.zeros((2, 2, 2), "S4"), "S4"),
        (np.zeros((2, 2, 2), "i2,f4"), "f4"),
        (np.zeros((2, 2, 2), "M8[s]"), "datetime64"),
    ],
)
def test_arrays_that_are_refused(array, message, make_npz, load):
    for compress in (False, True):
        with pytest.raises(DecodeError, match=message):
            load("a.npz", make_npz(compress, volume=array))


def zip_of(npy: bytes, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("volume.npy", npy)
    return file.getvalue()


def npy_bytes(header: str, body: bytes, version: tuple[int, int] = (1, 0)) -> bytes:
    text = header.encode().ljust(117) + b"\n"
    size = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + size + text + body


def header_of(shape: str, descr: str = "'<i2'") -> str:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}"


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_npy_versions(version, load):
    npy = npy_bytes(header_of("(1, 2, 3)"), bytes(range(12)), version)
    assert load("a.npz", zip_of(npy)).voxels.tobytes() == bytes(range(12))


@pytest.mark.parametrize(
    ("npy", "message"),
    [
        (b"", "header"),
        (b"\x93NUMPY\x01", "header"),
        (npy_bytes(header_of("(1, 2, 3)"), bytes(12), (9, 9)), "version"),
        (npy_bytes(header_of("(1, 2, 4)"), bytes(12)), "declares"),
        (npy_bytes(header_of("(1, 2, 2)"), bytes(12)), "declares"),
        (npy_bytes(header_of("(-1, 2, -6)"), bytes(12)), "shape"),
        (npy_bytes(header_of("(10**9, 2, 2)"), bytes(12)), "header"),
        (npy_bytes(header_of("(99999999999, 99999999999, 9)"), bytes(12)), "shape"),
        (npy_bytes(header_of("(9999, 9999, 9999)"), bytes(12)), "declares"),
        (npy_bytes(header_of("(" + "9" * 4000 + ", 1, 1)"), bytes(12)), "shape"),
        (npy_bytes(header_of("(1, 2, 3)", "'|O'"), bytes(12)), "pickled"),
        (npy_bytes(header_of("(1, 2, 3)", "'nonsense'"), bytes(12)), "header"),
        (npy_bytes("__import__('os').abort()", bytes(12)), "header"),
        (npy_bytes("(" * 110, bytes(12)), "header"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(9000), "header"),
        (npy_bytes(" " * 60_000 + header_of("(1, 2, 3)"), bytes(12)), "header"),
    ],
)
def test_npy_headers_that_lie(npy, message, load):
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with pytest.raises(DecodeError, match=message):
            load("a.npz", zip_of(npy, method))


def test_a_wrong_crc_is_found(make_npz, load):
    for compress in (False, True):
        data = bytearray(make_npz(compress, volume=some_voxels(shape=(30, 20, 10))))
        central = data.index(b"PK\x01\x02")
        data[central + 16] ^= 1
        with pytest.raises(DecodeError, match=r"a\.npz"):
            load("a.npz", bytes(data))


def test_a_flipped_stored_voxel_is_found(make_npz, load):
    data = bytearray(make_npz(False, volume=some_voxels()))
    data[data.index(b"PK\x01\x02") - 3] ^= 1
    with pytest.raises(DecodeError, match="CRC-32"):
        load("a.npz", bytes(data))


def test_a_bomb_is_refused(load, pool):
    npy = npy_bytes(header_of("(1024, 1024, 1024)", "'<f8'"), b"")
    data = bytearray(zip_of(npy + bytes(100 << 20)))
    with pytest.raises(DecodeError, match="declares"):
        load("a.npz", bytes(data))
    central = data.index(b"PK\x01\x02")
    struct.pack_into("<I", data, central + 24, 0xFFFFFF00)
    with pytest.raises(DecodeError, match="cannot hold"):
        load("a.npz", bytes(data))
    assert pool.idle_bytes < 8 << 20


def patched_directory(data: bytes, **fields: int) -> bytes:
    places = {"flags": (8, "<H"), "method": (10, "<H"), "packed": (20, "<I"), "offset": (42, "<I")}
    patched = bytearray(data)
    for name, value in fields.items():
        at, code = places[name]
        struct.pack_into(code, patched, data.index(b"PK\x01\x02") + at, value)
    return bytes(patched)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"flags": 1}, "encrypted"),
        ({"method": 14}, "method 14"),
        ({"method": 9}, "method 9"),
        ({"packed": 0x7FFFFFFF}, "does not lie"),
        ({"packed": 3}, r"a\.npz"),
        ({"offset": 7}, "does not lie"),
        ({"offset": 0x7FFFFFFF}, "does not lie"),
    ],
)
@pytest.mark.parametrize("compress", [False, True])
def test_zip_directories_that_lie(fields, message, compress, make_npz, load):
    data = make_npz(compress, volume=some_voxels(shape=(20, 20, 20)))
    with pytest.raises(DecodeError, match=message):
        load("a.npz", patched_directory(data, **fields))


def test_overlapping_members_are_refused(make_npz, load):
    data = make_npz(volume=some_voxels(shape=(20, 20, 20)), zzz=some_voxels())
    # The second entry of the directory is pointed into the data of the first.
    second = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 4)
    inside = bytearray(data)
    struct.pack_into("<I", inside, second + 42, 60)
    with pytest.raises(DecodeError, match="does not lie"):
        load("a.npz", bytes(inside))


@pytest.mark.parametrize(
    "data", [b"", b"PK\x05\x06" + bytes(18), b"\x1f\x8b" + bytes(99), b"x" * 999]
)
def test_rubbish_is_refused(data, load):
    with pytest.raises(DecodeError, match=r"a\.npz"):
        load("a.npz", data)
    assert inflated_size("a.npz", np.frombuffer(data, np.uint8)) == 0


def test_too_many_arrays_and_a_huge_directory_are_refused(make_npz, load):
    with pytest.raises(DecodeError, match="holds 65 arrays"):
        load("a.npz", make_npz(**{f"a{k}": np.zeros(1) for k in range(65)}))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("volume.npy", b"")
        archive.comment = b"no archive needs this"
        for k in range(18):
            info = zipfile.ZipInfo(f"{k}.npy")
            info.extra = struct.pack("<HH", 0x4343, 65_000) + bytes(65_000)
            archive.writestr(info, b"")
    with pytest.raises(DecodeError, match="directory takes more than"):
        load("a.npz", file.getvalue())


def test_the_stored_bytes_are_restored_after_inflating(make_npz, fill, pool):
    from ctgpu.decode.inflate import BACKENDS
    from ctgpu.decode.npz import _directory

    voxels = some_voxels()
    stored = make_npz(volume=voxels)
    for backend in BACKENDS.values():
        with fill(stored) as buffer:
            member = _directory("a.npz", buffer.bytes)["volume"]
            out = np.empty(member.size_bytes, np.uint8)
            backend.member_into(buffer.bytes, member.start, member.stop, out, member.crc)
            assert buffer.bytes.tobytes() == stored
            assert zlib.crc32(out) == member.crc


@pytest.mark.slow
def test_real_volumes_in_both_orders(real_ct: Path, make_npz, load):
    voxels = np.asanyarray(nibabel.load(real_ct / "lidcidri0003_small.nii.gz").dataobj)
    for array in (np.ascontiguousarray(voxels), np.asfortranarray(voxels)):
        np.testing.assert_array_equal(load("a.npz", make_npz(arr_0=array)).voxels, voxels)


class Rubbish:
    """Is collected at some allocation; then its thread may be made to wait."""

    def __init__(self) -> None:
        self.itself = self

    def __del__(self) -> None:
        for _ in range(20):
            pass


@pytest.mark.slow
def test_threads_read_headers_side_by_side(make_npz):
    """CPython 3.11 counts the depth of its parser for all threads together."""
    archive = make_npz(volume=some_voxels(), spacing=np.array([1.0, 1.5, 3.0]))

    def read(_: int) -> tuple[int, ...]:
        Rubbish()
        # Each its own, for a buffer that is decoded may be written to.
        return locate_voxels("a.npz", np.frombuffer(bytearray(archive), np.uint8), 1 << 20).shape

    interval, thresholds = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(1e-6)
    gc.set_threshold(10)
    try:
        with ThreadPoolExecutor(8) as threads:
            shapes = list(threads.map(read, range(4_000)))
    finally:
        sys.setswitchinterval(interval)
        gc.set_threshold(*thresholds)
    assert shapes == [some_voxels().shape] * 4_000
