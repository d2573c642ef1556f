"""``install.py`` run for real: by pip, offline, into a folder of its own.  No GPU is needed.

The carried wheels are made here, ctgpu's with the compiled module of this installation.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pack
import pytest
import words

from ctgpu.engines import open_engine

_native = pytest.importorskip("ctgpu._native", reason="the C++ engine is not compiled here")

HERE = Path(__file__).resolve().parent
NATIVE = Path(_native.__file__)
OURS = "ctgpu-0.1.0"
#: Builds nothing: it hands over a wheel, as a compiler would, or does what one does that fails.
BACKEND = """
import os, pathlib, shutil

def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    wheel = pathlib.Path(os.environ["CTGPU_TEST_WHEEL"])
    shutil.copy(wheel, wheel_directory)
    return wheel.name
"""


def make_wheel(folder: Path, name: str, tag: str, files: Mapping[str, bytes | str]) -> Path:
    """A wheel as pip takes it; `name` with its version."""
    project, version = name.split("-")
    everything = {
        **files,
        f"{name}.dist-info/METADATA": (
            f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}\n"
        ),
        f"{name}.dist-info/WHEEL": (
            f"Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: false\nTag: {tag}\n"
        ),
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{tag}.whl"
    record = ""
    with zipfile.ZipFile(path, "w") as archive:
        for inside, content in everything.items():
            data = content.encode() if isinstance(content, str) else content
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            archive.writestr(inside, data)
            record += f"{inside},sha256={digest},{len(data)}\n"
        archive.writestr(f"{name}.dist-info/RECORD", f"{record}{name}.dist-info/RECORD,,\n")
    return path


def make_ours(folder: Path, module: bytes | None, **others: str) -> Path:
    """ctgpu's own wheel: a compiled module, where there is one, among sources of another day."""
    files: dict[str, bytes | str] = {"ctgpu/__init__.py": "raise SystemExit('of another day')\n"}
    files |= {f"ctgpu/{name}.py": text for name, text in others.items()}
    if module is None:
        return make_wheel(folder, OURS, "py3-none-any", files)
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    return make_wheel(
        folder, OURS, f"cp310-abi3-{platform}", {**files, f"ctgpu/{NATIVE.name}": module}
    )


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that knows the packages here, but not that ctgpu is among them."""
    folder = tmp_path_factory.mktemp("python")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    return folder / "bin" / "python"


@pytest.fixture
def carried(tmp_path: Path) -> Path:
    """A pack of this checkout's sources, with no wheel of ctgpu yet."""
    folder = tmp_path / "carried"
    make_wheel(folder / "wheels", "fitting-1.0", "py3-none-any", {"fitting.py": "fits = True\n"})
    (folder / "pack.json").write_text(json.dumps({"native_sources": pack.hash_of_native_sources()}))
    return folder


@pytest.fixture
def install(tmp_path: Path, python: Path, carried: Path) -> Callable[..., dict[str, Any]]:
    def install(**environment: str) -> dict[str, Any]:
        ran = subprocess.run(
            [python, HERE / "install.py", tmp_path / "found.json", carried, tmp_path / "site"],
            env={**os.environ, "PYTHONPATH": sysconfig.get_path("purelib"), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        print(ran.stdout)
        assert (tmp_path / "found.json").is_file(), ran.stdout
        found: dict[str, Any] = json.loads((tmp_path / "found.json").read_text())
        assert ran.returncode == (0 if found["variant"] else 1), ran.stdout
        return found

    return install


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder for the PATH with what `missing_to_compile` asks for."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in ("cmake", "c++"):
        (folder / name).write_text("#!/bin/sh\nexit 1\n")
        (folder / name).chmod(0o755)
    return folder


def carry_build_tools(carried: Path, backend: str = BACKEND) -> None:
    files = {"scikit_build_core/__init__.py": "", "scikit_build_core/build.py": backend}
    make_wheel(carried / "wheels", "scikit_build_core-1.1", "py3-none-any", files)
    make_wheel(carried / "wheels", "nanobind-3.1", "py3-none-any", {"nanobind.py": ""})


def variant() -> str:
    return str(open_engine("cpu").describe()["variant"])


@pytest.mark.slow
def test_the_carried_wheel_brings_the_module_and_the_checkout_the_rest(
    install: Callable[..., dict[str, Any]], carried: Path, tmp_path: Path, python: Path
) -> None:
    make_ours(carried / "wheels", NATIVE.read_bytes(), gone="of_another_day = True\n")
    found = install()
    assert found == {
        "wheels": 1,
        "unfit_wheels": [],
        "ctgpu": "carried wheel",
        "variant": variant(),
    }
    assert words.of_install(found) == f"carried wheel; CPU engine {variant()}"
    site = tmp_path / "site"
    assert (site / "fitting.py").is_file()
    for name in ("ctgpu/__init__.py", "ctgpu/engines/cuda.py", "kernels/cuda/preprocess.cu"):
        inside = site / "ctgpu" / name if name.startswith("kernels") else site / name
        assert inside.read_bytes() == (pack.REPOSITORY / name).read_bytes()
    assert not (site / "ctgpu" / "gone.py").exists()
    ran = subprocess.run(
        [
            python,
            "-c",
            "from importlib.util import find_spec as f; import ctgpu; "
            "print(ctgpu.__file__, f('ctgpu._native').origin)",
        ],
        env={**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{sysconfig.get_path('purelib')}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert [Path(path).parent for path in ran.stdout.split()] == [site / "ctgpu"] * 2


@pytest.mark.slow
def test_a_wheel_that_does_not_fit_is_named_and_the_others_installed(
    install: Callable[..., dict[str, Any]], carried: Path, tmp_path: Path
) -> None:
    make_ours(carried / "wheels", NATIVE.read_bytes())
    unfit = make_wheel(carried / "wheels", "alien-1.0", "cp27-cp27m-win32", {"alien.py": ""})
    found = install()
    assert found["unfit_wheels"] == [unfit.name]
    assert found["wheels"] == 1
    assert found["variant"] == variant()
    assert (tmp_path / "site" / "fitting.py").is_file()
    assert words.of_install(found).endswith(f"; do not fit: {unfit.name}")


BROKEN = "the carried wheel does not load"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lacks", "missing"),
    [
        ("cmake", "CMake"),
        ("c++", "C++ compiler"),
        ("scikit_build_core", "scikit_build_core"),
        ("nanobind", "nanobind"),
    ],
)
def test_where_nothing_can_be_compiled_it_is_said_what_is_missing(
    install: Callable[..., dict[str, Any]],
    carried: Path,
    tools: Path,
    tmp_path: Path,
    lacks: str,
    missing: str,
) -> None:
    # What is installed here, but for that.
    packages = tmp_path / "packages"
    packages.mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if path.name != lacks:
            (packages / path.name).symlink_to(path)
    make_ours(carried / "wheels", b"no module at all")
    carry_build_tools(carried)
    (tools / lacks).unlink(missing_ok=True)
    for wheel in (carried / "wheels").glob(f"{lacks}-*.whl"):
        wheel.unlink()
    found = install(PATH=str(tools), PYTHONPATH=str(packages))
    assert found["ctgpu"] == "not installed"
    assert found["why_compiled"] == BROKEN
    assert found["missing"] == missing
    said = f"not installed, as {BROKEN}; to compile, there is no {missing} here"
    assert words.of_install(found).startswith(said)
    assert not (tmp_path / "site" / "ctgpu").exists()


def test_a_compiler_that_is_named_and_not_there_is_missing(
    install: Callable[..., dict[str, Any]], carried: Path, tools: Path
) -> None:
    carry_build_tools(carried)
    found = install(PATH=str(tools), CXX="no-such-compiler -O1")
    assert found["why_compiled"] == "0 wheels of ctgpu are carried"
    assert found["missing"] == "C++ compiler"


@pytest.mark.slow
@pytest.mark.parametrize("why", ["broken", "other sources", "alien"])
def test_what_cannot_be_taken_from_the_wheel_is_compiled(
    install: Callable[..., dict[str, Any]], carried: Path, tools: Path, tmp_path: Path, why: str
) -> None:
    compiled = make_ours(tmp_path / "built", NATIVE.read_bytes(), made_here="")
    # The checkout's own Python, as a build takes it.
    with zipfile.ZipFile(compiled, "a") as archive:
        for path in (pack.REPOSITORY / "ctgpu").rglob("*.py"):
            name = path.relative_to(pack.REPOSITORY).as_posix()
            if name != "ctgpu/__init__.py":
                archive.write(path, name)
    if why == "alien":
        make_wheel(carried / "wheels", OURS, "cp27-cp27m-win32", {})
    else:
        module = b"no module at all" if why == "broken" else NATIVE.read_bytes()
        make_ours(carried / "wheels", module, of_the_carried_wheel="")
    if why == "other sources":
        (carried / "pack.json").write_text(json.dumps({"native_sources": "others"}))
    carry_build_tools(carried)
    found = install(PATH=str(tools), CTGPU_TEST_WHEEL=str(compiled))
    assert found["ctgpu"] == "compiled"
    wanted = "the C++ sources are others than the carried wheel's"
    assert found["why_compiled"] == (wanted if why == "other sources" else BROKEN)
    assert (tmp_path / "site" / "ctgpu" / "made_here.py").is_file()
    assert not (tmp_path / "site" / "ctgpu" / "of_the_carried_wheel.py").exists()


@pytest.mark.slow
def test_a_build_that_leaves_the_module_out_is_told_from_one_that_has_it(
    install: Callable[..., dict[str, Any]], carried: Path, tools: Path, tmp_path: Path
) -> None:
    """As pyproject.toml has it where the compiler fails."""
    pure = make_ours(tmp_path / "built", None)
    carry_build_tools(carried)
    found = install(PATH=str(tools), CTGPU_TEST_WHEEL=str(pure))
    assert found["ctgpu"] == "pure package, as compiling failed"
    assert found["variant"] == ""
    assert words.of_install(found).endswith("CPU engine missing")


@pytest.mark.slow
def test_a_build_that_fails_installs_nothing(
    install: Callable[..., dict[str, Any]], carried: Path, tools: Path, tmp_path: Path
) -> None:
    carry_build_tools(carried, "raise OSError('the disk is full')\n")
    found = install(PATH=str(tools))
    assert (found["ctgpu"], found["variant"]) == ("not installed", "")
    assert "missing" not in found


@pytest.mark.exhaustive
def test_the_pack_that_was_made_here_compiles(
    install: Callable[..., dict[str, Any]], carried: Path
) -> None:
    """By the build tools that it carries, and this machine's CMake and compiler."""
    wheels = pack.CARRIED / "wheels"
    if not wheels.is_dir():
        pytest.skip("no pack here: `make gpu-pack` makes one")
    for name in ("nanobind", "scikit_build_core", "ninja", "pathspec", "packaging"):
        wheel = next(wheels.glob(f"{name}-*.whl"))
        (carried / "wheels" / wheel.name).write_bytes(wheel.read_bytes())
    found = install()
    assert (found["ctgpu"], found["variant"]) == ("compiled", variant())
