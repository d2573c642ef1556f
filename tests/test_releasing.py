"""What a release is made with: notes, the pinned libdeflate, and the workflows."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
CI = REPOSITORY / ".ci"
WORKFLOWS = sorted((REPOSITORY / ".github/workflows").glob("*.yml"))
PROJECT = """
[project]
version = "1.2.0"
urls.Source = "https://example.org/ctgpu"
"""
CHANGELOG = """# Changelog

All notable changes; [the format](https://keepachangelog.com).

## Unreleased

### Added

- What comes next.

## 1.2.0 - 2030-01-31

### Added

- A page: [docs/page.md](docs/page.md#part), [a part](#part), [more](https://example.org/x).

## 1.1.0 - 2029-01-31

- What came before.
"""


@pytest.fixture(scope="module")
def notes_of() -> Callable[..., str]:
    functions = runpy.run_path(str(CI / "release_notes.py"))
    return functions["release_notes"]  # type: ignore[no-any-return]


def test_notes_are_the_section_of_the_version_and_lead_into_its_tree(
    notes_of: Callable[..., str],
) -> None:
    page = "[docs/page.md](https://example.org/ctgpu/blob/v1.2.0/docs/page.md#part)"
    wanted = f"### Added\n\n- A page: {page}, [a part](#part), [more](https://example.org/x).\n"
    assert notes_of("v1.2.0", PROJECT, CHANGELOG) == wanted
    bracketed = CHANGELOG.replace("## 1.2.0 -", "## [1.2.0] -")
    assert notes_of("v1.2.0", PROJECT, bracketed) == wanted


@pytest.mark.parametrize(
    ("tag", "old", "new", "said"),
    [
        ("1.2.0", "", "", r"the tag is 1\.2\.0 and .* has version 1\.2\.0: tag v1\.2\.0, or"),
        ("v1.1.0", "", "", r"the tag is v1\.1\.0 and .* has version 1\.2\.0: tag v1\.2\.0, or"),
        ("v1.2.0", " - 2030-01-31", "", r"no section `## 1\.2\.0 - YYYY-MM-DD`: give the changes"),
        ("v1.2.0", "1.2.0 -", "1x2.0 -", r"no section `## 1\.2\.0 - YYYY-MM-DD`"),
        ("v1.2.0", "1.2.0 -", "1.2.0rc1 -", r"no section `## 1\.2\.0 - YYYY-MM-DD`"),
        ("v1.1.0", "", "", "the tag is"),
    ],
)
def test_a_tag_without_its_notes_is_refused(
    notes_of: Callable[..., str], tag: str, old: str, new: str, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        notes_of(tag, PROJECT, CHANGELOG.replace(old, new))


def test_a_section_that_says_nothing_is_refused(notes_of: Callable[..., str]) -> None:
    empty = "## Unreleased\n\n## 1.2.0 - 2030-01-31\n\n## 1.1.0 - 2029-01-31\n\n- Before.\n"
    with pytest.raises(ValueError, match=r"says nothing of 1\.2\.0"):
        notes_of("v1.2.0", PROJECT, empty)


def test_the_changelog_would_be_taken_as_it_is(notes_of: Callable[..., str]) -> None:
    project = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    version = tomllib.loads(project)["project"]["version"]
    changelog = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    dated = changelog.replace("## Unreleased", f"## {version} - 2030-01-31", 1)
    notes = notes_of(f"v{version}", project, dated)
    assert "### Added" in notes
    assert re.findall(r"\]\((?!https://|#)[^)]*\)", notes) == []


def test_what_is_wrong_is_one_sentence_and_a_failure() -> None:
    script = [sys.executable, CI / "release_notes.py"]
    for arguments, said in (
        (["v0.0.0"], "the tag is v0.0.0 and pyproject.toml has version "),
        ([], "say which tag"),
    ):
        ran = subprocess.run([*script, *arguments], capture_output=True, text=True, check=False)
        assert (ran.returncode, ran.stdout) == (1, "")
        assert ran.stderr.startswith(said)
        assert ran.stderr.count("\n") == 1


def test_another_libdeflate_than_the_pinned_one_is_not_built(tmp_path: Path) -> None:
    if missing := [name for name in ("cmake", "curl") if shutil.which(name) is None]:
        pytest.skip(f"there is no {' and no '.join(missing)} here")
    archive = tmp_path / "forged.tar.gz"
    archive.write_bytes(b"something else")
    ran = subprocess.run(
        [CI / "libdeflate", tmp_path / "prefix"],
        env={**os.environ, "LIBDEFLATE_URL": archive.as_uri()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1
    assert re.fullmatch(
        rf"{archive.as_uri()} has SHA-256 [0-9a-f]{{64}}, and libdeflate [\d.]+ has "
        r"[0-9a-f]{64}: fetch it from elsewhere \(LIBDEFLATE_URL\)\n",
        ran.stderr,
    )
    assert not (tmp_path / "prefix").exists()


@pytest.fixture
def wheel_of(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs ``.ci/wheel`` with tools that only say how they were called.

    Another compiler than `false` would find this machine's libdeflate.a.
    """
    tools = tmp_path / "tools"
    tools.mkdir()

    def wheel_of(
        name: str, *, refused: bool = False, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        make = f'echo "asked: $*"; touch "$2/ctgpu-1.tar.gz" "$2/{name}"'
        repair = 'mkdir -p "$3"; cp "$4" "$3/ctgpu-1-cp311-abi3-manylinux_2_99_riscv64.whl"'
        for tool, script in (
            ("pyproject-build", make),
            ("auditwheel", "exit 1" if refused else repair),
            ("abi3audit", "echo audited"),
            ("twine", "echo checked"),
        ):
            (tools / tool).write_text(f"#!/bin/sh\n{script}\n")
            (tools / tool).chmod(0o755)
        return subprocess.run(
            [CI / "wheel", tmp_path / "dist"],
            env={**os.environ, "BIN": str(tools), "CXX": "false", **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    return wheel_of


LINUX = "ctgpu-1-cp311-abi3-linux_riscv64.whl"
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="auditwheel is for Linux")


def test_where_there_is_no_libdeflate_it_is_left_out_and_said(
    wheel_of: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    ran = wheel_of(LINUX)
    assert ran.returncode == 0, ran.stderr
    assert "there is no libdeflate.a (apt install libdeflate-dev, or " in ran.stdout
    assert "-Ccmake.define.CTGPU_LIBDEFLATE=OFF\n" in ran.stdout
    assert ran.stdout.endswith("; inflates by isal\n")


def test_a_libdeflate_of_ones_own_is_found(
    tmp_path: Path, wheel_of: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    (tmp_path / "own/lib").mkdir(parents=True)
    (tmp_path / "own/lib/libdeflate.a").touch()
    ran = wheel_of(LINUX, CMAKE_PREFIX_PATH=str(tmp_path / "own"))
    assert "there is no libdeflate.a" not in ran.stdout
    assert "-Ccmake.define.CTGPU_LIBDEFLATE=STATIC\n" in ran.stdout
    assert ran.stdout.endswith("; libdeflate is linked in\n")


@needs_linux
@pytest.mark.parametrize("refused", [False, True])
def test_the_wheel_is_auditwheels_or_as_it_was_and_said(
    tmp_path: Path, wheel_of: Callable[..., subprocess.CompletedProcess[str]], refused: bool
) -> None:
    left_over = tmp_path / "dist/ctgpu-0-py3-none-any.whl"
    left_over.parent.mkdir()
    left_over.touch()
    ran = wheel_of(LINUX, refused=refused)
    wheel = LINUX if refused else LINUX.replace("linux", "manylinux_2_99")
    assert ran.returncode == 0, ran.stderr
    assert ("auditwheel refuses it" in ran.stderr) == refused
    assert {path.name for path in left_over.parent.iterdir()} == {wheel, "ctgpu-1.tar.gz"}
    tag = wheel.removeprefix("ctgpu-").removesuffix(".whl")
    assert f"wheel: tag {tag}; inflates by isal\n" in ran.stdout
    assert "audited\nchecked\n" in ran.stdout


def test_a_wheel_without_the_engine_is_none(
    tmp_path: Path, wheel_of: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    ran = wheel_of("ctgpu-1-py3-none-any.whl")
    assert ran.returncode == 1
    assert ran.stderr.startswith("wheel: the C++ engine could not be compiled")
    assert not (tmp_path / "dist").exists()


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_actions_are_pinned_to_commits(path: Path) -> None:
    used = re.findall(r"uses: *(.*)", path.read_text(encoding="utf-8"))
    assert used
    pinned = re.compile(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")
    assert [action for action in used if not pinned.fullmatch(action)] == []


def test_workflows_use_one_version_of_an_action() -> None:
    """A second one would be what somebody forgot to update."""
    used: dict[str, set[str]] = {}
    for path in WORKFLOWS:
        for name, commit in re.findall(r"uses: *(\S+)@(\S+)", path.read_text(encoding="utf-8")):
            used.setdefault(name, set()).add(commit)
    assert {name: commits for name, commits in used.items() if len(commits) > 1} == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("platform", "processor", "tag"),
    [
        ("linux", "x86_64", "manylinux_x86_64"),
        ("linux", "aarch64", "manylinux_aarch64"),
        ("macos", "arm64", "macosx_arm64"),
    ],
)
def test_cibuildwheel_takes_what_it_is_told(platform: str, processor: str, tag: str) -> None:
    """What it does not know it refuses, and what it would build is the documented."""
    program = Path(sys.executable).parent / "cibuildwheel"
    if not program.exists():
        pytest.skip("cibuildwheel is not installed: pip install --group dev")
    ran = subprocess.run(
        [program, "--platform", platform, "--archs", processor, "--print-build-identifiers"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == [f"cp3{minor}-{tag}" for minor in (11, 12, 13, 14)]
