"""Which paths a glob fits, what it reads off them, and which globs are none."""

from __future__ import annotations

import unicodedata
from typing import Literal

import pytest

from ctgpu.data_sets.globs import Found, compiled, find, folder_of, folders_of

NOTHING = Found()
Form = Literal["NFC", "NFD"]


@pytest.mark.parametrize(
    ("glob", "fits", "not_"),
    [
        ("a.nii", ["a.nii"], ["xa.nii", "a.niix", "a_nii", "b/a.nii", "a.nii\n", "A.nii"]),
        ("*.nii", [".nii", "a.nii", "a.b.nii", "a b.nii", "a\nb.nii"], ["a/b.nii", "a.nii.gz"]),
        ("a?.nii", ["ab.nii", "a .nii", "a..nii"], ["a.nii", "abc.nii", "a/.nii"]),
        ("**", ["a", "a/b", "a/b/c.nii", ".hidden/a"], []),
        ("**/a.nii", ["a.nii", "x/a.nii", "x/y/a.nii"], ["xa.nii", "x/xa.nii", "a.nii/b"]),
        ("x/**/a", ["x/a", "x/y/a", "x/y/z/a"], ["xa", "x/ya", "y/x/a"]),
        ("x/**", ["x/a", "x/y/a"], ["x", "xy/a", "y/x/a"]),
        ("**/x/**/*.nii", ["x/a.nii", "y/x/z/a.nii"], ["a.nii", "yx/a.nii"]),
        # Within a name it stands for slashes too, and is no folder of its own.
        ("a**.nii", ["a.nii", "ab.nii", "a/b.nii"], ["b.nii", "ba.nii"]),
        ("a**/b", ["a/b", "ax/y/b"], ["ab"]),
        ("*/*", ["a/b"], ["a", "a/b/c"]),
        ("[ab]x", ["ax", "bx"], ["cx", "x", "abx"]),
        ("[!ab]x", ["cx", " x"], ["ax", "bx", "x"]),
        ("[a-c]", ["a", "b"], ["-", "d"]),
        ("[a-]", ["a", "-"], ["b"]),
        ("[]a]", ["]", "a"], ["[", "]a]"]),
        ("[!]a]", ["b"], ["]", "a"]),
        ("[]]", ["]"], ["[]]"]),
        ("[!]", ["!"], ["a"]),
        ("[[]a", ["[a"], ["a"]),
        ("[*?]", ["*", "?"], ["a", ""]),
        (r"[\d]", ["d", "\\"], ["1"]),
        ("[^a]", ["^", "a"], ["b"]),
        ("[&&~~||-]", ["&", "~", "|", "-"], ["a"]),
        ("[--a]", ["-", "a", "A"], ["b", "!"]),
        # A set is one character of a name, so no slash; brackets that do not close are brackets.
        ("a[!x]b", ["acb"], ["a/b", "axb"]),
        ("a[b/c]d", ["a[b/c]d"], ["abd", "a/d"]),
        ("a[b", ["a[b"], ["ab"]),
        ("[]", ["[]"], ["", "a"]),
        ("a.(b)+|^$", ["a.(b)+|^$"], ["ab"]),
        ("[{]key[}]", ["{key}"], ["key"]),
        (r"a\*", ["a\\b"], ["a*"]),
    ],
)
def test_a_glob_fits_whole_paths(glob: str, fits: list[str], not_: list[str]) -> None:
    assert {path: find([glob], path) for path in fits} == dict.fromkeys(fits, NOTHING)
    assert {path: find([glob], path) for path in not_} == dict.fromkeys(not_)


@pytest.mark.parametrize(
    ("glob", "path", "found"),
    [
        ("{key}.nii.gz", "scan 1.v2.nii.gz", Found("scan 1.v2")),
        ("{key}", "s1.nii.gz", Found("s1.nii.gz")),
        ("{key}/ct.nii.gz", "s1/ct.nii.gz", Found("s1")),
        ("{patient}/{key}.nii", "p1/s1.nii", Found("s1", "p1")),
        ("{patient}/**/{key}.npz", "p1/a/b/s1.npz", Found("s1", "p1")),
        ("**/{patient}_{key}.npz", "a/p_1_s_2.npz", Found("1_s_2", "p")),
        ("{key}_{patient}", "a_b_c", Found("a", "b_c")),
        ("sub-{patient}/ses-*/ct_?.nii", "sub-07/ses-a/ct_1.nii", Found(None, "07")),
        ("{patient}/x", "x", None),
        ("{patient}/x", "/x", None),
        ("{key}.nii", ".nii", None),
        ("{key}.nii", "a/b.nii", None),
    ],
)
def test_names_in_braces_are_read_off_a_path(glob: str, path: str, found: Found | None) -> None:
    assert find([glob], path) == found


def test_the_first_glob_that_fits_says_what_a_path_is() -> None:
    globs = ["a/{patient}.nii", "**/{key}.nii", "**"]
    assert find(globs, "a/x.nii") == Found(None, "x")
    assert find(globs, "b/x.nii") == Found("x", None)
    assert find(globs, "b/x.npz") == NOTHING
    assert find([], "a") is None


@pytest.mark.parametrize("glob_form", ["NFC", "NFD"])
@pytest.mark.parametrize("path_form", ["NFC", "NFD"])
def test_unicodes_two_ways_to_write_a_letter_are_one(glob_form: Form, path_form: Form) -> None:
    glob = unicodedata.normalize(glob_form, "Zürich/{key}.nii")
    path = unicodedata.normalize(path_form, "Zürich/é1.nii")
    assert find([glob], path) == Found(unicodedata.normalize("NFC", "é1"))
    one = unicodedata.normalize(path_form, "é.nii")
    assert find(["?.nii"], one) == NOTHING
    assert find([unicodedata.normalize(glob_form, "[é].nii")], one) == NOTHING


@pytest.mark.parametrize(
    ("glob", "fault"),
    [
        ("/data/*.nii", "leads out of the source"),
        ("../*.nii", "leads out of the source"),
        ("a/../b", "leads out of the source"),
        ("", "has a part that no path has"),
        ("./a.nii", "has a part that no path has"),
        ("a//b", "has a part that no path has"),
        ("a/./b", "has a part that no path has"),
        ("a/", "has a part that no path has"),
        ("{study}.nii", r"says \{study\}; it takes \{key\} and \{patient\}"),
        ("{key}/{key}.nii", r"says \{key\}; it takes"),
        ("{Key}", r"says \{Key\}"),
        ("a{}b", r"says \{\}"),
        ("{key", r"says \{key"),
        ("key}", r"says \}"),
        ("{a b}", r"says \{a b\}"),
        ("{key.__class__}", r"says \{key\.__class__\}"),
        ("{key}{", r"says \{;"),
        ("[z-a]", "has brackets that are no set: bad character range z-a"),
    ],
)
def test_what_no_path_can_fit_is_refused_and_named(glob: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault) as caught:
        compiled(glob)
    assert repr(glob) in str(caught.value)


@pytest.mark.parametrize(
    ("glob", "folder"),
    [
        ("*.nii", ""),
        ("a.nii", ""),
        ("a/b/*.nii", "a/b"),
        ("a/b/c.nii", "a/b"),
        ("a/*/b/x", "a"),
        ("a/b?/x", "a"),
        ("a/[b]/x", "a"),
        ("a/{patient}/x", "a"),
        ("a/**", "a"),
        ("**/a/x", ""),
        ("é a/x", "é a"),
    ],
)
def test_all_that_fits_a_glob_lies_in_one_folder(glob: str, folder: str) -> None:
    assert folder_of(glob) == folder


@pytest.mark.parametrize(
    ("globs", "folders"),
    [
        ([], []),
        (["a/*", "a/*.nii"], ["a"]),
        (["a/*", "b/*"], ["a", "b"]),
        (["b/*", "a/*", "b/**"], ["b", "a"]),
        (["a/b/*", "a/*"], ["a"]),
        (["a/*", "a/b/c/*"], ["a"]),
        # No folder within another, whose name only begins as its own.
        (["a/*", "ab/*"], ["a", "ab"]),
        (["a/*", "*.nii", "b/*"], [""]),
        (["**/x", "a/x"], [""]),
    ],
)
def test_folders_are_looked_at_once(globs: list[str], folders: list[str]) -> None:
    assert list(folders_of(globs)) == folders
