"""CONTRIBUTING names every module and calls things by their names."""

from __future__ import annotations

import ast
import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "ctgpu"
PAGE = (REPOSITORY / "CONTRIBUTING.md").read_text()
LONGEST = 500


def tree() -> dict[str, set[str]]:
    """Modules by room, as the page's tree lists them."""
    block = PAGE.partition("```\nctgpu/\n")[2].partition("```")[0].partition("\nkernels/")[0]
    rooms: dict[str, set[str]] = {"": set()}
    room, inner = "", ""
    for line in filter(str.strip, block.splitlines()):
        indent = len(line) - len(line.lstrip())
        # Names and what is said of them are at least two blanks apart.
        head, _, _ = line.strip().partition("  ")
        for word in head.split():
            if word.endswith("/"):
                room, inner = (word, "") if indent == 2 else (room, word)
                rooms.setdefault(room + inner, set())
            elif word.endswith(".py"):
                rooms[""].add(word.removesuffix(".py"))
            elif indent > 2:
                inner = inner if indent > 4 else ""
                rooms[room + inner].add(word)
    return rooms


def there() -> dict[str, set[str]]:
    rooms: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        room = path.parent.relative_to(PACKAGE).as_posix()
        rooms.setdefault("" if room == "." else f"{room}/", set()).add(path.stem)
    return {room: {n for n in names if not n.startswith("__")} for room, names in rooms.items()}


def test_the_tree_names_every_module() -> None:
    # Each subcommand is a file of its name.
    commands = {p.stem for p in (PACKAGE / "cli").glob("*.py") if "def command(" in p.read_text()}
    named, real = tree(), there()
    real["cli/"] -= commands | {"commands"}
    assert named == real


def defined() -> set[str]:
    """Names of all classes, functions and methods, the latter also as ``Class.method``."""
    names: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                names.add(node.name)
            if isinstance(node, ast.ClassDef):
                names |= {f"{node.name}.{n.name}" for n in node.body if hasattr(n, "name")}
    return names


def test_a_samples_day_calls_things_by_their_names() -> None:
    day = PAGE.partition("## A sample's day")[2].partition("\n## ")[0]
    names = re.findall(r"`(?:[\w/]+\.py: )?([A-Za-z_][\w.]*?)s?`(?:s\b)?", day)
    known = defined()
    called = {name for name in names if "/" not in name and not name.endswith((".json", ".py"))}
    called -= {"ctgpu.build"}
    assert len(called) > 30
    assert {name for name in called if name not in known and f"{name}s" not in known} == set()
    for path, name in re.findall(r"`([\w/]+\.py): (\w+)`", day):
        text = (REPOSITORY / path).read_text()
        assert re.search(rf"^(?:def|class) {name}\b", text, re.MULTILINE), (path, name)


def test_no_file_of_the_package_is_long_and_the_root_has_ten() -> None:
    lines = {p: p.read_text().count("\n") for p in PACKAGE.rglob("*.py")}
    assert {str(p): n for p, n in lines.items() if n > LONGEST} == {}
    assert len(list(PACKAGE.glob("*.py"))) <= 10
