"""Tests mirror the package: whoever looks for those of a module finds a file of its name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).resolve().parent
PACKAGE = TESTS.parent / "ctgpu"

#: Modules without a file of their own, and where their tests are instead.
ELSEWHERE = {
    "__init__": "what rooms offer is in test_package.py",
    "__main__": "test_cli_*.py run it",
}


def names_of(module: Path) -> tuple[str, str]:
    """What its file may be called: with the room's name where two rooms have such a module."""
    return f"test_{module.stem}.py", f"test_{module.parent.name}_{module.stem}.py"


def without_tests(package: Path, tests: Path) -> Iterator[str]:
    """A sentence for each module that has no file of tests in the folder of its room."""
    for module in sorted(package.rglob("*.py")):
        room = module.parent.relative_to(package)
        names = names_of(module)
        if module.stem not in ELSEWHERE and not any((tests / room / n).exists() for n in names):
            yield (
                f"{module.relative_to(package.parent)} has no tests of its own; they belong into "
                f"{' or '.join(str(Path(tests.name, room, name)) for name in names)}"
            )


def test_every_module_has_a_file_of_tests_of_its_name() -> None:
    assert list(without_tests(PACKAGE, TESTS)) == []


def test_no_two_files_of_tests_have_one_name() -> None:
    # pytest imports them by it, and whoever runs one by name means one.
    names = Counter(path.name for path in TESTS.rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []


def test_no_file_of_tests_is_long() -> None:
    lines = {path: path.read_text(encoding="utf-8").count("\n") for path in TESTS.rglob("*.py")}
    assert {str(path): count for path, count in lines.items() if count > 500} == {}


def test_a_module_without_tests_is_found(tmp_path: Path) -> None:
    for path in (
        *("ctgpu/__init__.py", "ctgpu/api.py", "ctgpu/room/one.py", "ctgpu/room/inner/two.py"),
        *("ctgpu/room/three.py", "tests/test_api.py", "tests/room/test_room_one.py"),
        *("tests/room/test_two.py", "tests/test_three.py"),
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    assert list(without_tests(tmp_path / "ctgpu", tmp_path / "tests")) == [
        "ctgpu/room/inner/two.py has no tests of its own; they belong into "
        "tests/room/inner/test_two.py or tests/room/inner/test_inner_two.py",
        "ctgpu/room/three.py has no tests of its own; they belong into "
        "tests/room/test_three.py or tests/room/test_room_three.py",
    ]
