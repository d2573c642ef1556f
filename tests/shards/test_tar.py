from __future__ import annotations

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shard_samples import make_plan

from ctgpu.errors import UsageError
from ctgpu.shards.plan import Plan
from ctgpu.shards.tar import (
    ALIGNMENT_BYTES,
    BLOCK_BYTES,
    END_OF_ARCHIVE,
    KEY_LIMIT_BYTES,
    MEMBER_LIMIT_BYTES,
    PAYLOADS,
    alignment,
    check_payload,
    extensions,
    header,
    place_sample,
)
from ctgpu.volume.ref import SampleRef


@pytest.mark.parametrize("size_bytes", [0, 1, 110_592_000, MEMBER_LIMIT_BYTES])
def test_header_is_what_tarfile_writes(size_bytes: int) -> None:
    info = tarfile.TarInfo("scan_ü.bin")
    info.size = size_bytes
    assert header("scan_ü.bin", size_bytes) == info.tobuf(tarfile.USTAR_FORMAT)


@pytest.mark.parametrize(("name", "size_bytes"), [("x" * 101, 0), ("x", 8**11), ("x", -1)])
def test_header_refuses_what_does_not_fit(name: str, size_bytes: int) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        header(name, size_bytes)


@pytest.mark.parametrize("start", range(0, 2 * ALIGNMENT_BYTES, BLOCK_BYTES))
def test_alignment_is_exact_and_legal(start: int) -> None:
    extended = alignment(start)
    assert (start + len(extended) + BLOCK_BYTES) % ALIGNMENT_BYTES == 0
    assert len(extended) < 2 * ALIGNMENT_BYTES
    archive = io.BytesIO(extended + header("scan.bin", 0) + END_OF_ARCHIVE)
    with tarfile.open(fileobj=archive) as tar:
        (member,) = tar.getmembers()
    assert member.name == "scan.bin"
    assert set(member.pax_headers) <= {"comment"}


def sizes_of(names: tuple[str, ...]) -> st.SearchStrategy[dict[str, int]]:
    return st.fixed_dictionaries({extension: st.integers(0, 9000) for extension in names})


@pytest.mark.slow
@given(
    st.one_of(
        st.lists(sizes_of(extensions(compressed=compressed, masks=masks)), max_size=5)
        for compressed in (False, True)
        for masks in (False, True)
    )
)
def test_laid_out_samples_are_a_tar(samples: list[dict[str, int]]) -> None:
    archive = b""
    expected = []
    for number, sizes in enumerate(samples):
        placement = place_sample(len(archive), f"scan_{number}", sizes)
        assert placement.start == len(archive)
        for frame, extension in zip(placement.frames, sizes, strict=False):
            archive += frame + bytes([number + 1]) * sizes[extension]
        archive += placement.frames[-1]
        assert placement.end == len(archive)
        for extension, offset in zip(sizes, placement.offsets, strict=True):
            assert extension not in PAYLOADS or offset % ALIGNMENT_BYTES == 0
            expected.append((f"scan_{number}.{extension}", offset, sizes[extension]))
    with tarfile.open(fileobj=io.BytesIO(archive + END_OF_ARCHIVE)) as tar:
        found = [(m.name, m.offset_data, m.size) for m in tar.getmembers()]
    assert found == expected


def planned(key: str, folder: Path) -> Plan:
    """A saved plan of one sample with this key, as it is read back."""
    sample = SampleRef(key, "study", "some/path.npz", 1)
    Plan.create(folder, replace(make_plan(), samples=[sample]))
    return Plan.load(folder)


@pytest.mark.parametrize("key", ["train_1_a_1", "ü", "x" * KEY_LIMIT_BYTES, "a-b+c=(d)"])
def test_good_keys(key: str, tmp_path: Path) -> None:
    assert planned(key, tmp_path).samples[0].key == key


@pytest.mark.parametrize(
    "key",
    [
        "",
        "..",
        "a.b",
        "a/b",
        "a\\b",
        "a b",
        "a\nb",
        "a\0b",
        "a\u00a0b",
        "a\u202eb",
        "x" * (KEY_LIMIT_BYTES + 1),
        "ü" * (KEY_LIMIT_BYTES // 2 + 1),
        "a\udcffb",
    ],
)
def test_bad_keys_are_refused_by_path(key: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"some/path\.npz.*rename the file"):
        planned(key, tmp_path)


def test_a_volume_of_8_gib_is_refused() -> None:
    check_payload(MEMBER_LIMIT_BYTES)
    with pytest.raises(UsageError, match="8 GiB"):
        check_payload(MEMBER_LIMIT_BYTES + 1)


def test_a_key_that_a_later_unicode_allowed_stays_allowed(tmp_path: Path) -> None:
    # U+0378 is not assigned yet; the Python that made the plan may have known it.
    assert planned("a\u0378b", tmp_path).samples[0].key == "a\u0378b"
