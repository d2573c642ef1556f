"""What the JSON of a sample says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from view_cases import HOSTILE, SCANS, held, stated

from ctgpu.errors import DecodeError
from ctgpu.shards.reader import ShardReader
from ctgpu.shards.record import Member
from ctgpu.spec import Spec
from ctgpu.viewing.members import Metadata, ValueScale, read_labels, read_metadata, read_report

GOLDEN = Path(__file__).parent.parent / "golden"


def read(folder: Path) -> Metadata:
    shard, entry = held(folder)
    with ShardReader(shard.path) as reader:
        return read_metadata(reader, entry)


class Spoilt:
    """A shard whose members are these."""

    path = Path("shard-000000.tar")

    def __init__(self, content: bytes) -> None:
        self._content = content

    def read(self, entry: object, extension: str) -> bytes:
        return self._content


def test_it_is_what_a_build_wrote(made: Path) -> None:
    metadata = read(made)
    said = stated(made)["s0"]
    shape, spacing_mm, codes, maker, findings, _ = SCANS["s0"]
    assert metadata.source.shape == shape
    assert metadata.source.spacing_mm == pytest.approx(spacing_mm)
    assert metadata.source.orientation == codes
    assert metadata.columns["maker"] == maker
    assert metadata.report == {"findings": findings}
    assert list(metadata.resized_shape) == said["resized_shape"]
    assert metadata.known_affine is not None
    assert metadata.known_affine.tolist() == said["affine"]


@pytest.mark.parametrize("path", sorted(GOLDEN.rglob("shards/shard-000000.json")), ids=str)
def test_what_earlier_versions_wrote_is_understood(path: Path) -> None:
    metadata = read(path.parent)
    assert metadata.source.shape == (30, 26, 18)
    known = metadata.source.affine_source != "spacing"
    assert (metadata.known_affine is not None) == known


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"spacing_mm": "x"}', b"\xff"])
def test_what_is_something_else_is_refused(made: Path, content: bytes) -> None:
    _, entry = held(made)
    spoilt: Any = Spoilt(content)
    with pytest.raises(DecodeError, match=r"s0\.json is not that of a sample of ctgpu"):
        read_metadata(spoilt, entry)


@pytest.mark.parametrize(
    ("path", "values"),
    [
        (("spacing_mm",), ([0, 1, 1], [-1, 1, 1], [1e300, 1, 1], [1, 1], None)),
        (("source", "spacing_mm"), ([0, 1, 1], [1, 1, 1e9])),
        (("source", "shape"), ([-1, 1, 1], [1.5, 1, 1], [1 << 50, 1, 1])),
        (("source", "tilt_degrees"), (-1, 1e300, "3")),
        (("source", "orientation"), ("<b>", 3)),
        (("resized_shape",), ([1, 2], [-3, 1, 1])),
        (("normalisation",), ({"scale": 1e300, "offset": 0}, {"scale": 1}, 3)),
        (("columns",), ({"a": 3}, [1])),
        (("report",), ({"a": None}, "text")),
        (("affine",), (3, [["a"]], [[1.0] * 4] * 3, [[1.0] * 3] * 4)),
    ],
)
def test_what_no_sample_can_be_is_refused(
    made: Path, path: tuple[str, ...], values: tuple[object, ...]
) -> None:
    _, entry = held(made)
    for value in values:
        said = stated(made)["s0"]
        place = said["source"] if len(path) == 2 else said
        place[path[-1]] = value
        spoilt: Any = Spoilt(json.dumps(said).encode())
        with pytest.raises(DecodeError, match=rf"is not that of a sample of ctgpu .*{path[-1]}"):
            read_metadata(spoilt, entry)


def test_labels_are_as_many_as_there_are_classes(made: Path) -> None:
    shard, entry = held(made)
    with ShardReader(shard.path) as reader:
        assert read_labels(reader, entry, 2).tolist() == [1.0, 0.0]
        with pytest.raises(DecodeError, match=r"s0\.cls has 8 bytes; wanted 9 little-endian"):
            read_labels(reader, entry, 9)


def test_a_report_is_text_whatever_it_holds(made: Path) -> None:
    shard, entry = held(made)
    with ShardReader(shard.path) as reader:
        assert read_report(reader, entry) == HOSTILE
    spoilt: Any = Spoilt(b"\xff\x00a")
    assert read_report(spoilt, entry) == "\ufffd\x00a"


def test_a_member_that_is_far_too_long_is_not_even_read(made: Path) -> None:
    _, entry = held(made)
    long = {
        name: Member(member.offset, 1 << 40, member.xxh3_128)
        for name, member in entry.members.items()
    }
    spoilt: Any = Spoilt(b"")
    for read_member in (read_metadata, read_report):
        with pytest.raises(DecodeError, match=r"has 1,099,511,627,776 bytes; at most 16,777,216"):
            read_member(spoilt, replace(entry, members=long))


def test_an_affine_that_spans_nothing_is_not_known(made: Path) -> None:
    metadata = read(made)
    flat = ((0.0,) * 4,) * 4
    assert metadata.known_affine is not None
    assert replace(metadata, affine=flat).known_affine is None


@pytest.mark.parametrize(
    ("spec", "own", "wanted"),
    [
        ({}, None, (0.001, 0.0)),
        ({"dtype": "uint8"}, None, (0.1275, 127.5)),
        ({"dtype": "int16", "hu_window": None}, None, (1.0, 0.0)),
        ({"normalise": "zscore"}, ValueScale(0.02, 3.0), (0.02, 3.0)),
        ({"normalise": "zscore"}, None, None),
        ({"normalise": "zscore"}, ValueScale(0.0, 3.0), None),
    ],
)
def test_the_scale_of_what_is_stored(made: Path, spec: Any, own: Any, wanted: Any) -> None:
    metadata = replace(read(made), normalisation=own)
    if wanted is None:
        with pytest.raises(DecodeError, match="does not say how it was normalised"):
            metadata.scale_offset(Spec(**spec))
    else:
        assert metadata.scale_offset(Spec(**spec)) == pytest.approx(wanted)
