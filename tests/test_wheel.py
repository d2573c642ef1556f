"""What `make wheel` makes, and that it runs where there is nothing to compile with."""

from __future__ import annotations

import email.parser
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from email.message import Message
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import NamedTuple

import pytest

from ctgpu.engines.nvrtc import DECODE_CTZ, PREPROCESS
from support.compiling import compiler

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
#: How a release tries its wheels out: see docs/releasing.md.
RELEASE = PROJECT["tool"]["cibuildwheel"]
BIN = Path(sys.executable).parent
LARGEST_BYTES = 3_000_000
TO_COMPILE = ("c++", "cc", "clang", "clang++", "cmake", "g++", "gcc", "make", "ninja", "nvcc")


class Made(NamedTuple):
    """What `make wheel` has made, and said."""

    wheel: Path
    sdist: Path
    said: str

    @property
    def inflates_by(self) -> str:
        return "libdeflate" if "libdeflate is linked in" in self.said else "isal"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Both, by the tools of this environment: no network is asked for others.

    The wheel is made of the sdist, unpacked elsewhere: where there is no clone.
    """
    if compiler() is None:
        pytest.skip("no C++ compiler")
    if missing := [name for name in ("abi3audit", "pyproject-build") if not (BIN / name).exists()]:
        pytest.skip(f"there is no {' and no '.join(missing)} here: pip install --group dev")
    folder = tmp_path_factory.mktemp("dist")
    ran = subprocess.run(
        [REPOSITORY / ".ci/wheel", folder, "--no-isolation"],
        env={**os.environ, "BIN": str(BIN), "LC_ALL": "C"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    print(ran.stdout)
    assert ran.returncode == 0, ran.stdout
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return Made(wheel, sdist, ran.stdout)


@pytest.fixture(scope="module")
def inside(made: Made) -> Iterator[zipfile.ZipFile]:
    with zipfile.ZipFile(made.wheel) as archive:
        yield archive


@pytest.fixture(scope="module")
def metadata(inside: zipfile.ZipFile) -> Message:
    (name,) = (name for name in inside.namelist() if name.endswith(".dist-info/METADATA"))
    return email.parser.BytesParser().parsebytes(inside.read(name))


def files_of_the_tree() -> set[str]:
    """Those of the project, committed or not yet."""
    if not (REPOSITORY / ".git").exists() or shutil.which("git") is None:
        pytest.skip("this is no clone")
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z"]
    ran = subprocess.run(
        [*command, "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    return {name for name in filter(None, ran.stdout.split("\0")) if (REPOSITORY / name).exists()}


def test_one_wheel_for_every_python_is_small(made: Made) -> None:
    version = PROJECT["project"]["version"]
    name, platform = made.wheel.stem.split("-cp311-abi3-")
    assert name == f"ctgpu-{version}"
    assert made.sdist.name == f"ctgpu-{version}.tar.gz"
    assert f"tag {version}-cp311-abi3-{platform}; " in made.said
    if sys.platform == "linux":
        refused = "auditwheel refuses it" in made.said
        assert platform.startswith("linux_" if refused else "manylinux_2_")
    assert made.wheel.stat().st_size < LARGEST_BYTES


def test_it_holds_the_package_and_what_nvrtc_compiles(inside: zipfile.ZipFile) -> None:
    kernels = {f"ctgpu/kernels/{name}" for name in (*PREPROCESS.files, *DECODE_CTZ.files)}
    package = {name for name in files_of_the_tree() if name.startswith("ctgpu/")}
    files = (name for name in inside.namelist() if not name.endswith("/"))
    held = {name for name in files if ".dist-info/" not in name}
    assert held - {"ctgpu/_native.abi3.so"} == package | kernels
    assert "ctgpu/_native.abi3.so" in held


def test_its_date_is_the_commits_so_that_it_can_be_made_again(inside: zipfile.ZipFile) -> None:
    files_of_the_tree()  # skips where this is no clone
    command = ["git", "-c", "safe.directory=*", "log", "-1", "--format=%ct"]
    ran = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    of_the_commit = datetime.fromtimestamp(int(ran.stdout), UTC).timetuple()[:5]
    assert {info.date_time[:5] for info in inside.infolist()} == {of_the_commit}


def test_the_licences_of_what_is_compiled_in_travel_along(
    inside: zipfile.ZipFile, metadata: Message
) -> None:
    files = ["LICENSE", "licenses/libdeflate.txt", "licenses/nanobind.txt"]
    assert sorted(metadata.get_all("License-File", [])) == files
    info = next(name for name in inside.namelist() if name.endswith("/METADATA"))
    for name in files:
        held = inside.read(f"{Path(info).parent}/licenses/{name}")
        assert held == (REPOSITORY / name).read_bytes()
    assert metadata["License-Expression"] == "Apache-2.0 AND BSD-3-Clause AND MIT"


def test_its_metadata_are_those_of_an_index(metadata: Message) -> None:
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload().startswith("# ctgpu\n")  # type: ignore[union-attr]
    assert metadata["Summary"]
    assert {url.partition(", ")[0] for url in metadata.get_all("Project-URL", [])} == {
        *("Changelog", "Documentation", "Issues", "Source")
    }
    extras = set(metadata.get_all("Provides-Extra", []))
    assert {name.replace("_", "-") for name in extras} == {
        *PROJECT["project"]["optional-dependencies"]
    }
    stated = metadata.get_all("Classifier", [])
    tested = {int(name[3:5]) for name in RELEASE["build"]}
    for minor in tested:
        assert f"Programming Language :: Python :: 3.{minor}" in stated


@pytest.mark.skipif(sys.platform != "linux", reason="as Linux links")
def test_libdeflate_is_in_it_and_stays_in_it(made: Made, inside: zipfile.ZipFile) -> None:
    elffile = pytest.importorskip("elftools.elf.elffile")
    with inside.open("ctgpu/_native.abi3.so") as file:
        module = elffile.ELFFile(file)
        tags = module.get_section_by_name(".dynamic").iter_tags()
        needed = {tag.needed for tag in tags if tag.entry.d_tag == "DT_NEEDED"}
        symbols = list(module.get_section_by_name(".dynsym").iter_symbols())
    exported = {symbol.name for symbol in symbols if symbol["st_shndx"] != "SHN_UNDEF"}
    assert "PyInit__native" in exported
    assert [name for name in (*needed, *exported) if "deflate" in name] == []
    if made.inflates_by == "isal":
        pytest.skip("there is no libdeflate.a here: apt install libdeflate-dev")


def test_the_sdist_holds_every_file(made: Made) -> None:
    with tarfile.open(made.sdist) as archive:
        held = {member.name.partition("/")[2] for member in archive if member.isfile()}
    assert held == {*files_of_the_tree(), "PKG-INFO"}


def needed_by(name: str, extras: frozenset[str] = frozenset()) -> Iterator[Distribution]:
    """A package of this environment and all that it needs."""
    requirements = pytest.importorskip("packaging.requirements")
    seen: set[tuple[str, frozenset[str]]] = set()
    wanted = [(name, extras)]
    while wanted:
        name, extras = wanted.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        found = distribution(name)
        yield found
        for line in found.requires or []:
            need = requirements.Requirement(line)
            if need.marker is None or any(
                need.marker.evaluate({"extra": extra}) for extra in extras or {""}
            ):
                wanted.append((need.name, frozenset(need.extras)))


def lend(found: Distribution, site: Path) -> None:
    """Make a package of this environment one of another's, by links."""
    for top in {file.parts[0] for file in found.files or []} - {"..", "__pycache__"}:
        if not (site / top).exists():
            (site / top).symlink_to(found.locate_file(top))


class Installed(NamedTuple):
    """A fresh environment with the wheel in it."""

    folder: Path
    site: Path
    environment: dict[str, str]

    def run(self, *command: str | Path, cwd: Path, **more: str) -> str:
        """What a command that must succeed prints."""
        ran = subprocess.run(
            command,
            cwd=cwd,
            env={**self.environment, **more},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout


@pytest.fixture(scope="module")
def installed(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel beside what it says it needs and nothing else, and no program but those and sh.

    What it needs are the packages of this environment, so that no network is asked for them.
    """
    folder = tmp_path_factory.mktemp("fresh")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (folder / "bin/sh").symlink_to("/bin/sh")
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder)}))
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin/python"]
    install = [*pip, "install", "--quiet", "--no-index", "--no-deps", made.wheel]
    subprocess.run(install, check=True)
    for line in PROJECT["project"]["dependencies"]:
        for found in needed_by(re.match(r"[\w.-]+", line)[0]):  # type: ignore[index]
            lend(found, site)
    # By the wheel's own metadata nothing is missing, and nothing too old.
    subprocess.run([*pip, "check"], check=True)
    environment = {
        "PATH": str(folder / "bin"),
        **dict.fromkeys(("CC", "CXX"), "false"),
        "HOME": str(folder),
        "HF_ENDPOINT": "http://localhost:9",
        "LC_ALL": "C.UTF-8",
    }
    return Installed(folder, site, environment)


def test_it_is_imported_from_there_where_nothing_compiles(
    installed: Installed, tmp_path: Path
) -> None:
    path = installed.environment["PATH"]
    assert [name for name in TO_COMPILE if shutil.which(name, path=path)] == []
    code = (
        "import sys, ctgpu; from ctgpu import _native; "
        "print(ctgpu.__file__, _native.__file__, *sys.path, sep='\\n')"
    )
    package, native, *searched = installed.run("python", "-c", code, cwd=tmp_path).splitlines()
    assert [Path(package).parent, Path(native).parent] == [installed.site / "ctgpu"] * 2
    assert not [place for place in searched if Path(place) == Path(sysconfig.get_path("purelib"))]
    assert not (installed.site / "torch").exists()


def test_doctor_finds_engine_and_inflater(installed: Installed, made: Made, tmp_path: Path) -> None:
    report = json.loads(installed.run("ctgpu", "doctor", "--json", cwd=tmp_path))
    facts = {check["name"]: check["facts"] for check in report["checks"]}
    assert report["device"] == "cpu"
    assert facts["inflate"]["backend"] == made.inflates_by
    assert facts["CPU engine"]["variant"]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing of the project but `test-sources`, as cibuildwheel makes one."""
    folder = tmp_path_factory.mktemp("sources")
    for name in RELEASE["test-sources"]:
        source, target = REPOSITORY / name, folder / name
        target.parent.mkdir(exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    return folder


@pytest.fixture(scope="module")
def lent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a release's tests need beside the package."""
    folder = tmp_path_factory.mktemp("lent")
    for line in RELEASE["test-requires"]:
        for found in needed_by(re.match(r"[\w.-]+", line)[0]):  # type: ignore[index]
            lend(found, folder)
    return folder


@pytest.mark.parametrize("command", RELEASE["test-command"], ids=lambda line: line.split()[1])
def test_what_a_release_tries_runs(
    installed: Installed, made: Made, sources: Path, lent: Path, command: str
) -> None:
    if "libdeflate" in command and made.inflates_by == "isal":
        pytest.skip("there is no libdeflate.a here: apt install libdeflate-dev")
    words = shlex.split(command)
    # For pytest alone, so that it shows where the package itself wants one of them.
    said = installed.run(
        *("sh", "-c", command), cwd=sources, PYTHONPATH=str(lent) if "pytest" in words else ""
    )
    print(said)
    if "demo" in words:
        assert len(list((sources / "demo/shards").glob("shard-*.tar"))) >= 1
    elif "pytest" in words:
        assert re.search(r"\b\d{2,} passed", said)
