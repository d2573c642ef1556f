"""A library of the tests is compiled once, and anew where what it is made of is another."""

from __future__ import annotations

import ctypes
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support import compiling
from support.compiling import compiled, compiler

SOURCE = '#include "header.h"\nextern "C" int answer() { return ANSWER + MORE; }\n'


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(compiling, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(compiling, "INCLUDED", (tmp_path,))
    (tmp_path / "header.h").write_text("#define ANSWER 40\n")
    (tmp_path / "answer.cpp").write_text(SOURCE)
    return tmp_path / "answer.cpp"


def answer(library: Path) -> int:
    return int(ctypes.CDLL(str(library)).answer())


def test_it_is_compiled_anew_where_something_is_another(source: Path) -> None:
    first = compiled(source, "-DMORE=2")
    assert answer(first) == 42
    other = compiled(source, "-DMORE=3")
    assert answer(other) == 43
    source.with_name("header.h").write_text("#define ANSWER 50\n")
    of_header = compiled(source, "-DMORE=2")
    assert answer(of_header) == 52
    source.write_text(SOURCE.replace("MORE", "2 * MORE"))
    of_source = compiled(source, "-DMORE=2")
    assert answer(of_source) == 54
    assert len({first, other, of_header, of_source}) == 4


def test_of_many_at_a_time_one_compiles(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands, run = [], subprocess.run

    def counted(command: list[object], **options: object) -> object:
        commands.append(command)
        return run(command, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "run", counted)
    with ThreadPoolExecutor(4) as threads:
        made = set(threads.map(lambda _: compiled(source, "-DMORE=2"), range(4)))
    assert len(made) == 1
    assert len([command for command in commands if "-o" in command]) == 1


def test_what_does_not_compile_leaves_no_library(source: Path) -> None:
    source.write_text("this is no C++\n")
    for _ in range(2):
        with pytest.raises(subprocess.CalledProcessError):
            compiled(source)
    assert not list(source.parent.glob("kept/*.so"))


def test_without_a_compiler_the_test_is_skipped(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("PATH", str(source.parent))
    assert compiler() is None
    with pytest.raises(pytest.skip.Exception):
        compiled(source)
