"""CONTRIBUTING lists every module of the package, and calls things by their names."""

from __future__ import annotations

import ast
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest

import ctgpu

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "ctgpu"
PAGE = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
LONGEST = 500


def block_after(words: str) -> str:
    """The first block of code after some words of the page."""
    return PAGE.partition(words)[2].partition("```\n")[2].partition("```")[0]


def day() -> str:
    return PAGE.partition("## A sample's day\n")[2].partition("\n## ")[0]


def quoted(text: str) -> set[str]:
    """What stands in backticks."""
    return set(re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)))


def modules() -> dict[str, Path]:
    """Files by dotted name, without ``ctgpu``: a room is called as its ``__init__``."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


def tree() -> dict[str, str]:
    """Modules and rooms by dotted name as the page lists them, with what it says of each."""
    lines = block_after("## The rooms\n").partition("ctgpu/\n")[2].partition("\nkernels/")[0]
    listed: dict[str, str] = {}
    above: list[str] = []
    for line in filter(None, lines.splitlines()):
        match = re.fullmatch(r"((?:  )+)([\w.]+/?) +(\S.*)", line)
        assert match, line
        depth = len(match[1]) // 2 - 1
        above[depth:] = [match[2].rstrip("/").removesuffix(".py")]
        name = ".".join(above)
        assert name not in listed, line
        listed[name] = match[3]
    return listed


def test_the_tree_names_every_module() -> None:
    real = {name for name in modules() if name and not name.endswith("__main__")}
    assert set(tree()) == real


def test_the_clauses_of_the_tree_are_aligned() -> None:
    lines = block_after("## The rooms\n").splitlines()[1:]
    starts = {len(re.match(r" *\S+ +", line)[0]) for line in filter(None, lines)}  # type: ignore[index]
    assert len(starts) == 1


def test_the_order_of_imports_is_the_contract_that_lint_proves() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    contract = project["tool"]["importlinter"]["contracts"][0]["layers"]
    stated = " ".join(block_after("Imports go one way").split()).split(" → ")
    assert [layer.split(", ") for layer in stated] == [layer.split(" | ") for layer in contract]


def definitions(path: Path) -> set[str]:
    """Names of a module's classes and functions, and ``Class.name`` of what classes hold."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef):
                    names.add(f"{node.name}.{inner.name}")
                elif isinstance(inner, ast.AnnAssign) and isinstance(inner.target, ast.Name):
                    names.add(f"{node.name}.{inner.target.id}")
    return names


@cache
def known() -> dict[str, set[str]]:
    """What each module defines."""
    return {dotted: definitions(path) for dotted, path in modules().items()}


def is_there(name: str) -> bool:
    """Whether a name is there.

    It may be a module (``room.module``), what one defines (``room.module.name``), what a class
    holds (``Class.name``), a class or function by its name alone, or public (``ctgpu.name``).
    """
    if name.startswith("ctgpu."):
        return name.removeprefix("ctgpu.") in ctgpu.__all__
    parts = name.split(".")
    return (
        name in known()
        or any(name in names for names in known().values())
        or any(
            ".".join(parts[n:]) in known().get(".".join(parts[:n]), ()) for n in range(len(parts))
        )
    )


def names_of_code(text: str) -> set[str]:
    """What a text quotes that is a dotted name, or one in capitals or with an underscore."""
    return {
        word
        for word in quoted(text)
        if re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*", word)
        and ("." in word or "_" in word or word[0].isupper())
        and not word.endswith((".py", ".json", ".jsonl", ".md", ".toml", ".yml"))
    }


@pytest.mark.slow
def test_a_samples_day_calls_things_by_their_names() -> None:
    names = names_of_code(day()) | {name for name in names_of_code(PAGE) if "." in name}
    assert len(names) > 60
    assert {name for name in names if not is_there(name)} == set()


def test_every_path_of_the_package_is_there() -> None:
    paths = set(re.findall(r"\bctgpu/[\w/.]+\b(?!/)/?", PAGE))
    assert len(paths) > 5
    assert {path for path in paths if not (REPOSITORY / path).exists()} == set()


def test_every_thread_is_called_by_its_name() -> None:
    sources = "\n".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    others = {"ctgpu-batch", "ctgpu-probe", "ctgpu-ray"}
    started = set(re.findall(r'"(ctgpu-[a-z]+)"', sources)) - others
    assert {word for word in quoted(day()) if word.startswith("ctgpu-")} == started


@pytest.mark.slow
def test_a_name_that_is_not_there_is_found_out() -> None:
    there = ("building.builder.make_shards", "Pipeline._admit", "cli.main", "ctgpu.build")
    gone = (
        "building.builder.make_shard",
        "builder.make_shards",
        "Pipeline.admit",
        "building.Pipeline",
        "ctgpu.make_shards",
    )
    assert [is_there(name) for name in there] == [True] * len(there)
    assert [is_there(name) for name in gone] == [False] * len(gone)


def test_no_file_of_the_package_is_long_and_the_root_has_ten() -> None:
    lines = {p: p.read_text(encoding="utf-8").count("\n") for p in PACKAGE.rglob("*.py")}
    assert {str(p): n for p, n in lines.items() if n > LONGEST} == {}
    assert len(list(PACKAGE.glob("*.py"))) <= 10
