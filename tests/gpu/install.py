"""Second stage of ``check.py``: ctgpu and what it needs, in a folder of their own, offline.

    python install.py RESULT.json CARRIED SITE

The carried wheel of ctgpu brings the compiled module; it is compiled here only where that wheel is
missing, was made of other C++ sources, or does not load on this machine.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from pack import REPOSITORY, hash_of_native_sources

#: Loads the compiled module by itself: whatever else is amiss, compiling does not mend it.
LOAD = """
import importlib.util, pathlib
path = next(pathlib.Path("ctgpu").glob("_native*.so"))
spec = importlib.util.spec_from_file_location("_native", path)
spec.loader.exec_module(importlib.util.module_from_spec(spec))
print("loaded")
"""
#: CMake finds any of these; the variable CXX names another.
COMPILERS = ("c++", "g++", "clang++")
#: By which pip compiles; the pack has them.
BUILDING = ("scikit_build_core", "nanobind")
PROBE = "from ctgpu.engines import open_engine; print(open_engine('cpu').describe()['variant'])"


def main() -> int:
    """Install; returns 0 where the CPU engine, which all results are held against, works."""
    result, carried, site = map(Path, sys.argv[1:])
    wheels = sorted((carried / "wheels").glob("*.whl"))
    ours = [path for path in wheels if path.name.startswith("ctgpu-")]
    others = [path for path in wheels if path not in ours]
    site.mkdir(parents=True, exist_ok=True)
    unfit = install_each(carried, site, others)
    found: dict[str, Any] = {"wheels": len(others) - len(unfit), "unfit_wheels": unfit}
    found |= install_ours(carried, site, ours)
    result.write_text(json.dumps(found), encoding="utf-8")
    return 0 if found["variant"] else 1


def install_ours(carried: Path, site: Path, wheels: list[Path]) -> dict[str, Any]:
    """Install ctgpu: which way, why not the other, and the CPU engine's variant."""
    why = unusable(carried, wheels)
    if not why:
        if pip(carried, site, *wheels):
            overlay(site)
            if said(site, LOAD):
                return {"ctgpu": "carried wheel", "variant": said(site, PROBE)}
        why = "the carried wheel does not load"
    shutil.rmtree(site / "ctgpu", ignore_errors=True)
    found = {"ctgpu": "not installed", "why_compiled": why, "variant": ""}
    if missing := missing_to_compile(site):
        print(f"{why}, and to compile there is no {missing} here", flush=True)
        return found | {"missing": missing}
    print(f"compiling, as {why}", flush=True)
    if pip(carried, site, "--no-build-isolation", REPOSITORY):
        # Where the compiler fails, pyproject.toml has the package installed without the module.
        compiled = said(site, LOAD)
        found["ctgpu"] = "compiled" if compiled else "pure package, as compiling failed"
        found["variant"] = said(site, PROBE)
    return found


def missing_to_compile(site: Path) -> str:
    """The first thing without which nothing can be compiled here; empty where all are there."""

    def is_module(name: str) -> bool:
        return bool(said(site, f"import importlib.util as u; print(u.find_spec({name!r}) or '')"))

    if not shutil.which("cmake") and not is_module("cmake"):
        return "CMake"
    compilers = shlex.split(os.environ.get("CXX", ""))[:1] or COMPILERS
    if not any(map(shutil.which, compilers)):
        return "C++ compiler"
    return next((name for name in BUILDING if not is_module(name)), "")


def unusable(carried: Path, wheels: list[Path]) -> str:
    """Why the carried wheel of ctgpu is not tried; empty where it is."""
    if len(wheels) != 1:
        return f"{len(wheels)} wheels of ctgpu are carried"
    try:
        packed = json.loads((carried / "pack.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "the pack does not say what it was made of"
    if packed.get("native_sources") != hash_of_native_sources():
        return "the C++ sources are others than the carried wheel's"
    return ""


def overlay(site: Path) -> None:
    """Put the checkout's own Python and CUDA sources in the place of the wheel's."""
    for path in (site / "ctgpu").rglob("*"):
        if path.is_file() and path.suffix != ".so":
            path.unlink()  # else one that the checkout has no more would stay
    ignored = shutil.ignore_patterns("__pycache__", "*.so")
    for source, target in (("ctgpu", "ctgpu"), ("kernels", "ctgpu/kernels")):
        shutil.copytree(REPOSITORY / source, site / target, ignore=ignored, dirs_exist_ok=True)


def said(site: Path, code: str) -> str:
    """What Python code prints over what is in `site`; empty where it fails."""
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=site,
        env=over(site),
        capture_output=True,
        text=True,
        check=False,
    )
    print(ran.stderr[-2000:])
    return ran.stdout.strip() if ran.returncode == 0 else ""


def install_each(carried: Path, site: Path, wheels: list[Path]) -> list[str]:
    """Install all wheels; where one does not fit this Python, the others, and name it."""
    if not wheels or pip(carried, site, *wheels):
        return []
    return [wheel.name for wheel in wheels if not pip(carried, site, wheel)]


def pip(carried: Path, site: Path, *what: Any) -> bool:
    """Whether pip, a carried one where there is one, installed it into `site`."""
    own = next((carried / "wheels").glob("pip-*.whl"), None)
    runner = [sys.executable, own / "pip"] if own is not None else [sys.executable, "-m", "pip"]
    words = ["install", "--quiet", "--no-index", "--no-deps", "--no-compile", "--upgrade"]
    command = [*runner, *words, "--target", site, *what]
    ran = subprocess.run([str(word) for word in command], env=over(site), check=False)
    return ran.returncode == 0


def over(site: Path) -> dict[str, str]:
    """The environment in which what is in `site` comes before what the machine has."""
    foreign = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *foreign])}


if __name__ == "__main__":
    sys.exit(main())
