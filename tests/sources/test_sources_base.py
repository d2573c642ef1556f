"""What a source is that has nothing of its own but volumes."""

from __future__ import annotations

import pytest

from ctgpu.buffers import Allocate
from ctgpu.data_sets import Description, built_in
from ctgpu.errors import UsageError
from ctgpu.sources.base import Source
from ctgpu.sources.fetched import Fetched
from ctgpu.volume.ref import SampleRef


class Least(Source):
    """A source of one volume, and of the tables that it is given."""

    def __init__(self, **tables: bytes) -> None:
        self.data_set: Description = built_in()
        self.listed: list[str] = []
        self._tables = {f"{name}.csv": content for name, content in tables.items()}

    def identity(self) -> dict[str, str]:
        return {"kind": "least", "location": "here", "revision": "1"}

    def list_volumes(self, split: str) -> list[SampleRef]:
        self.listed.append(split)
        return [SampleRef.of_file("valid_1_a_1.nii.gz", 5)]

    def read_table(self, *names: str) -> tuple[str, bytes] | None:
        named = (name.rsplit("/", 1)[-1] for name in names)
        return next(((n, self._tables[n]) for n in named if n in self._tables), None)

    def fetch(self, ref: SampleRef, allocate: Allocate) -> Fetched:
        return Fetched(ref.path, allocate(ref.size_bytes))


def test_what_a_source_does_not_say_is_that_there_is_nothing_of_it() -> None:
    source = Least()
    (ref,) = source.list_volumes("valid")
    assert source.listed_split is None
    assert (source.left_out, source.unused_tables) == ((), ())
    assert dict(source.missing_folders) == {}
    assert source.file_of(ref) is None
    source.close()


def test_nothing_of_one_source_is_anothers() -> None:
    one, other = Least(), Least()
    one.left_out = ["a.nii"]
    assert other.left_out == ()
    with pytest.raises(TypeError):
        other.missing_folders["a"] = "b"  # type: ignore[index]


def test_where_tables_are_wanted_without_volumes_these_are_listed_all_the_same() -> None:
    source = Least()
    source.find_tables("train")
    assert source.listed == ["train"]


def test_its_tables_are_those_of_its_description() -> None:
    source = Least(no_chest_valid=b"", validation_reports=b"VolumeName,Findings_EN\n")
    with pytest.raises(UsageError, match=r"validation_reports\.csv lacks the column"):
        source.tables("valid")
    assert Least().tables("valid").joined == ()
    assert Least().tables("valid", ["x", "y"]).class_names == ("x", "y")


def test_what_lacks_a_part_of_a_source_is_none() -> None:
    class Half(Source):
        def identity(self) -> dict[str, str]:
            return {}

    with pytest.raises(TypeError, match="abstract"):
        Half()  # type: ignore[abstract]
