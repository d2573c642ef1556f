"""NRRD against SimpleITK and pynrrd, which are the oracles."""

from __future__ import annotations

import gzip
from pathlib import Path

import nrrd
import numpy as np
import pytest

from ctgpu.decode import decode, inflated_size
from ctgpu.errors import DecodeError
from support.itk_images import DIRECTIONS, DTYPES, ITK_AFFINES, copy_by_itk, marked, write_itk

HEADER = """NRRD0004
# made by hand
type: short
dimension: 3
space: left-posterior-superior
sizes: 5 4 3
space directions: (0.7,0,0) (0,0.8,0) (0,0,1.5)
kinds: domain domain domain
endian: little
encoding: raw
space origin: (-10,-20,30)
modality:=CT
"""
VOXELS = marked((5, 4, 3), "int16")


def made(voxels: np.ndarray = VOXELS, payload: bytes | None = None, **changes: str | None) -> bytes:
    """A file by hand, with fields changed, added or (None) left out; ``_`` is a space."""
    lines = HEADER.splitlines()
    for name, value in changes.items():
        field = name.replace("_", " ")
        lines = [line for line in lines if not line.startswith(f"{field}:")]
        lines += [] if value is None else [f"{field}: {value}"]
    return header_of(lines) + (voxels.tobytes("F") if payload is None else payload)


def header_of(lines: list[str]) -> bytes:
    return ("\n".join(lines) + "\n\n").encode()


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("compress", [False, True], ids=["raw", "gzip"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_itk_writes(dtype, compress, direction, load, tmp_path):
    voxels = marked((7, 5, 4), dtype)
    path = write_itk(tmp_path / "a.nrrd", voxels, direction, compress=compress)
    volume = load("a.nrrd", path.read_bytes())
    np.testing.assert_array_equal(volume.voxels, voxels)
    np.testing.assert_allclose(volume.affine, ITK_AFFINES[direction], atol=1e-12)
    np.testing.assert_allclose(volume.spacing_mm, (0.7, 0.8, 1.5), rtol=1e-12)
    assert volume.format == "nrrd"


@pytest.mark.parametrize("encoding", ["raw", "gzip"])
@pytest.mark.parametrize(
    "space", ["RAS", "LAS", "left-posterior-superior", "right-anterior-superior"]
)
def test_what_pynrrd_writes(space, encoding, load, tmp_path):
    voxels = marked((7, 5, 4), "int16")
    steps = np.array([[0, 0.7, 0], [0.8, 0, 0], [0, 0, -1.5]])
    header = {"space": space, "space directions": steps, "space origin": [1, 2, 3]}
    nrrd.write(str(tmp_path / "a.nrrd"), voxels, header | {"encoding": encoding})
    volume = load("a.nrrd", (tmp_path / "a.nrrd").read_bytes())
    np.testing.assert_array_equal(volume.voxels, voxels)
    signs = {"LAS": [-1, 1, 1], "left-posterior-superior": [-1, -1, 1]}.get(space, [1, 1, 1])
    np.testing.assert_array_equal(volume.affine[:3, :3], np.diag(signs) @ steps.T)
    np.testing.assert_array_equal(volume.affine[:3, 3], np.multiply(signs, [1, 2, 3]))


@pytest.mark.parametrize("compress", [False, True], ids=["raw", "raw.gz"])
def test_a_header_and_its_voxels_in_two_files(compress, pool, fill, tmp_path):
    voxels = marked((7, 5, 4), "int16")
    path = write_itk(tmp_path / "a.nhdr", voxels, "RAS", compress=compress)
    payload = tmp_path / ("a.raw.gz" if compress else "a.raw")
    volume = decode("a.nhdr", fill(payload.read_bytes()), pool, header=path.read_bytes())
    np.testing.assert_array_equal(volume.voxels, voxels)
    np.testing.assert_allclose(volume.affine, ITK_AFFINES["RAS"], atol=1e-12)
    volume.release()


def test_voxels_are_used_where_they_lie(load):
    volume = load("a.nrrd", made())
    assert inflated_size("a.nrrd", np.frombuffer(made(), np.uint8)) == 0
    assert np.shares_memory(volume.voxels, volume.buffer.bytes)
    np.testing.assert_array_equal(volume.voxels, VOXELS)


def test_big_endian(load):
    volume = load("a.nrrd", made(VOXELS.astype(">i2"), endian="big"))
    assert volume.voxels.dtype == np.dtype(">i2")
    np.testing.assert_array_equal(volume.voxels, VOXELS)


@pytest.mark.parametrize("space", ["scanner-xyz", "3D-right-handed", None])
def test_in_another_space_nothing_says_how_the_scan_lies(space, load):
    volume = load("a.nrrd", made(space=space))
    assert volume.affine is None
    np.testing.assert_allclose(volume.spacing_mm, (0.7, 0.8, 1.5))


def test_spacings_alone(load):
    volume = load("a.nrrd", made(space=None, space_directions=None, spacings="0.5 0.6 2"))
    assert (volume.affine, volume.spacing_mm) == (None, (0.5, 0.6, 2))
    assert load("a.nrrd", made(space=None, space_directions=None)).spacing_mm is None


def test_bytes_before_the_voxels(pool, fill, load):
    skipped = made(payload=b"before" + VOXELS.tobytes("F"), byte_skip="6")
    np.testing.assert_array_equal(load("a.nrrd", skipped).voxels, VOXELS)
    at_end = made(payload=b"anything" + VOXELS.tobytes("F"), byte_skip="-1")
    np.testing.assert_array_equal(load("a.nrrd", at_end).voxels, VOXELS)


def test_a_header_that_ends_with_its_file(pool, fill):
    header = made(data_file="a.raw", payload=b"").rstrip(b"\n")
    for text in (header, header + b"\n", header + b"\n\n"):
        volume = decode("a.nhdr", fill(VOXELS.tobytes("F")), pool, header=text)
        np.testing.assert_array_equal(volume.voxels, VOXELS)
        volume.release()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type": "block"}, "type block; wanted an integer"),
        ({"type": None}, "type none"),
        ({"encoding": "bzip2"}, "encoding bzip2; wanted raw or gzip"),
        ({"encoding": "ascii"}, "encoding ascii"),
        ({"endian": None}, "endian none; wanted little or big"),
        ({"sizes": "5 4"}, r"shape \(5, 4\); wanted three axes"),
        ({"sizes": "3 5 4 3"}, "wanted three axes"),
        ({"sizes": "a b c"}, "sizes 'a b c'; wanted whole numbers"),
        ({"sizes": "5 4 300"}, "it is cut short"),
        ({"sizes": "5 4 2"}, "goes on behind them for a slice"),
        ({"sizes": "99999 99999 99999"}, "at most .* are accepted"),
        ({"byte_skip": "-7"}, "byte skip"),
        ({"line_skip": "2"}, "wanted no lines"),
        ({"byte_skip": "4", "encoding": "gzip"}, "skips bytes of a compressed stream"),
        ({"space_directions": "(1,0) (0,1)"}, "wanted 3 finite numbers"),
        ({"space_directions": "(1,0,0) (0,1,0)"}, "wanted three of three numbers"),
        ({"space_directions": "(1,0,0) (0,1,0) (1,1,0)"}, "an orientation that cannot be read"),
        ({"space_directions": "none (0,1,0) (0,0,1)"}, "wanted 3 finite numbers"),
        ({"space_origin": "(1,inf,2)"}, "wanted 3 finite numbers"),
        ({"space_units": '"in" "in" "in"'}, "wanted mm"),
        ({"data_file": "a.raw"}, "is a header alone and its voxels lie in a.raw"),
        ({"data_file": "LIST"}, "several files"),
        ({"data_file": "../a.raw"}, "wanted the name of one file"),
        ({"data_file": "/etc/passwd"}, "wanted the name of one file"),
        ({"encoding": "gzip"}, "not usable"),
    ],
)
def test_what_is_refused_and_why(changes, message, load):
    with pytest.raises(DecodeError, match=message):
        load("a.nrrd", made(**changes))


@pytest.mark.parametrize(
    "data", [b"", b"NRRD", b"NRRD0009\n\n", b"NRRD0004\nnothing\n\n", bytes(99)]
)
def test_what_is_no_nrrd(data, load):
    with pytest.raises(DecodeError, match=r"a\.nrrd"):
        load("a.nrrd", data)


def test_every_cut_and_every_bit_of_a_compressed_file(load):
    packed = made(payload=gzip.compress(VOXELS.tobytes("F"), mtime=0), encoding="gzip")
    start = packed.index(b"\n\n") + 2
    for size_bytes in range(len(packed)):
        with pytest.raises(DecodeError):
            load("a.nrrd", packed[:size_bytes])
    for bit in range(8 * start, 8 * len(packed)):
        damaged = bytearray(packed)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            volume = load("a.nrrd", bytes(damaged))
        except DecodeError:
            continue
        np.testing.assert_array_equal(volume.voxels, VOXELS)


def test_a_stream_that_unfolds_without_end_is_refused_before_memory_is_taken(load):
    with pytest.raises(DecodeError, match="cannot hold"):
        load("a.nrrd", made(payload=gzip.compress(bytes(99)), encoding="gzip", sizes="500 500 300"))
    with pytest.raises(DecodeError, match="inflates to more than was declared"):
        load("a.nrrd", made(payload=gzip.compress(bytes(1 << 16)), encoding="gzip"))


def test_real_ct_reads_as_its_nifti_does(real_ct: Path, load, tmp_path):
    path = sorted(real_ct.glob("*.nii.gz"))[0]
    nifti = load(path.name, path.read_bytes())
    volume = load("a.nrrd", copy_by_itk(path, tmp_path / "a.nrrd", compress=True).read_bytes())
    np.testing.assert_array_equal(volume.voxels, nifti.voxels)
    np.testing.assert_allclose(volume.affine, nifti.affine, atol=1e-4)
