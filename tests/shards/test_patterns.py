"""One grammar of patterns, in which what exists means itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ctgpu.errors import UsageError
from ctgpu.shards.patterns import expand_paths, expand_pattern


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def names(folder: Path, pattern: str) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in expand_pattern(folder / pattern)]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("", ["a-9.tar", "a-10.tar", "b-1.tar"]),
        ("a-*.tar", ["a-9.tar", "a-10.tar"]),
        ("a-*", ["a-9.tar", "a-10.tar"]),
        ("*", ["a-9.tar", "a-10.tar", "b-1.tar"]),
        ("?-[19].tar", ["a-9.tar", "b-1.tar"]),
        ("?-[!9].tar", ["b-1.tar"]),
        ("{a-9,b-1}.tar", ["a-9.tar", "b-1.tar"]),
        ("{a,b}-{1,9}*", ["a-9.tar", "a-10.tar", "b-1.tar"]),
        ("x-{08..11}.tar", ["x-08.tar", "x-09.tar", "x-10.tar", "x-11.tar"]),
        ("{a,b}-{1..2}.tar", ["a-1.tar", "a-2.tar", "b-1.tar", "b-2.tar"]),
        ("{z{1..2},y}.tar", ["y.tar", "z1.tar", "z2.tar"]),
        ("{m,n/o}/p.tar", ["m/p.tar", "n/o/p.tar"]),
        ("{m/{1,2},n}/p.tar", ["m/1/p.tar", "m/2/p.tar", "n/p.tar"]),
        ("{m,}x.tar", ["mx.tar", "x.tar"]),
        ("{m}.tar", ["{m}.tar"]),
        ("open{1.tar", ["open{1.tar"]),
        ("a-9.tar", ["a-9.tar"]),
        ("nothing.tar", ["nothing.tar"]),
        ("sub*/*.tar", ["sub1/d-1.tar", "sub2/d-1.tar", "sub2/d-2.tar"]),
        ("sub*/d-{1..3}.tar", ["sub1/d-1.tar", "sub2/d-1.tar", "sub2/d-2.tar"]),
        ("sub{1..3}/d-*.tar", ["sub1/d-1.tar", "sub2/d-1.tar", "sub2/d-2.tar"]),
        ("sub{1,2}", ["sub1/d-1.tar", "sub2/d-1.tar", "sub2/d-2.tar"]),
        ("{a-9.tar,a-*.tar,a-9.tar}", ["a-9.tar", "a-10.tar"]),
    ],
)
def test_patterns_name_tars_in_natural_order(
    tmp_path: Path, pattern: str, expected: list[str]
) -> None:
    touch(tmp_path, "a-9.tar", "a-10.tar", "b-1.tar", "c.txt", "a-9.json", "a-9.idx")
    touch(tmp_path, "sub1/d-1.tar", "sub2/d-1.tar", "sub2/d-2.tar", "sub1/d-2.json")
    assert names(tmp_path, pattern) == expected


@pytest.mark.parametrize("folder", ["x[ab]", "x{1,2}", "x{1..2}", "x*", "x?", "{x,y}[z]", "[x"])
@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("", ["s-0.tar", "s-1.tar"]),
        ("s-0.tar", ["s-0.tar"]),
        ("s-*.tar", ["s-0.tar", "s-1.tar"]),
        ("s-{0..2}.tar", ["s-0.tar", "s-1.tar", "s-2.tar"]),
        ("s-{0,1}.tar", ["s-0.tar", "s-1.tar"]),
        ("*", ["s-0.tar", "s-1.tar"]),
    ],
)
def test_a_folder_that_exists_means_itself_as_a_part(
    tmp_path: Path, folder: str, pattern: str, expected: list[str]
) -> None:
    decoys = ("xa", "xb", "x1", "x2", "xy", "x[a]", "xz", "yz")
    for name in decoys:
        touch(tmp_path, f"{name}/s-0.tar", f"{name}/s-7.tar")
    touch(tmp_path, f"{folder}/s-0.tar", f"{folder}/s-1.tar")
    assert names(tmp_path, f"{folder}/{pattern}") == [f"{folder}/{name}" for name in expected]
    # Below a wildcard too.
    touch(tmp_path, f"deep1/{folder}/s-0.tar", "deep1/xa/s-0.tar", "deep1/x1/s-0.tar")
    assert names(tmp_path, f"deep*/{folder}/s-0.tar") == [f"deep1/{folder}/s-0.tar"]


@pytest.mark.parametrize("name", ["s-{0..1}.tar", "s-[01].tar", "s-*.tar", "s-{a,b}.tar"])
def test_a_tar_that_exists_means_itself(tmp_path: Path, name: str) -> None:
    touch(tmp_path, name, "s-0.tar", "s-1.tar", "s-a.tar")
    assert names(tmp_path, name) == [name]
    (tmp_path / name).unlink()
    assert names(tmp_path, name) != [name]
    (tmp_path / name).symlink_to("nowhere")  # it is there, and does not open
    assert names(tmp_path, name) == [name]


def test_what_a_brace_stands_for_means_itself_where_it_exists(tmp_path: Path) -> None:
    touch(tmp_path, "x[a]/s.tar", "xa/s.tar", "y/s.tar")
    assert names(tmp_path, "{x[a],y}/s.tar") == ["x[a]/s.tar", "y/s.tar"]


def test_folders_are_matched_within_a_pattern_and_not_at_its_end(tmp_path: Path) -> None:
    touch(tmp_path, "shard-old/s.tar", "shard-old.tar/s.tar", "shard-1.tar")
    touch(tmp_path, ".hidden.tar", "._shard-1.tar")
    assert names(tmp_path, "shard-*") == ["shard-1.tar"]
    assert names(tmp_path, "") == ["shard-1.tar"]
    assert names(tmp_path, "shard-*/s.tar") == ["shard-old.tar/s.tar", "shard-old/s.tar"]


def test_the_caller_says_what_a_wildcard_matches(tmp_path: Path) -> None:
    touch(tmp_path, "a.wds", "a.tar", "b.wds")
    found = expand_paths(tmp_path / "*", lambda name: name.endswith(".wds"))
    assert [path.name for path in found] == ["a.wds", "b.wds"]
    # What is named without one is always meant.
    assert len(expand_paths(tmp_path / "{a.tar,b.wds}", lambda name: False)) == 2


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("*.tar", "names no tar; give a folder of shards"),
        ("", "names no tar"),
        ("x*/s-{0..1}.tar", "names no tar"),
        ("x-{5..2}.tar", r"\{5\.\.2\} is no range"),
        ("x-{0..99999999}.tar", "is no range of at most 1,000,000"),
        ("x-{a..c}.tar", "is no range"),
        ("x-{0..9..3}.tar", "is no range"),
        ("x-{٠..٣}.tar", "is no range"),
        ("x-{0.." + "9" * 5000 + "}.tar", "is no range"),
        pytest.param(
            "{0..9999}/{0..9999}.tar", "names more than 1,000,000 tars", marks=pytest.mark.slow
        ),
    ],
)
def test_what_names_nothing_or_too_much_is_refused(
    tmp_path: Path, pattern: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        expand_pattern(tmp_path / pattern)


def test_an_empty_path_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "s.tar")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"the path is empty.*'\.' for this one"):
        expand_pattern("")
    assert expand_pattern(".") == [Path("s.tar")]
    assert expand_pattern("*.tar") == [Path("s.tar")]


@pytest.mark.slow
def test_patterns_need_no_source_to_be_imported() -> None:
    program = "import sys, ctgpu.shards.patterns; assert 'ctgpu.sources' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
