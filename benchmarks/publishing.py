"""Writing a result: JSON with the facts of the machine, and a picture where one is wanted."""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import plots
from common import REPOSITORY, RESULTS
from ctgpu.decode.inflate import inflate_backend
from ctgpu.machine import usable_cores

#: Distributions whose versions are recorded, where they are installed.
_RECORDED = (
    "ctgpu",
    "numpy",
    "torch",
    "nibabel",
    "isal",
    "deflate",
    "zlib-ng",
    "webdataset",
    "huggingface_hub",
    "scipy",
    "SimpleITK",
    "torchio",
    "monai",
    "nvidia-dali-cuda120",
    "litdata",
    "ray",
)


def machine_facts() -> dict[str, Any]:
    """The machine, the software and the commit that a result belongs to."""
    return {
        "cpu": _cpu_model(),
        "usable_cores": usable_cores(),
        "memory_gib": _memory_gib(),
        "ctgpu_cpu_variant": _cpu_variant(),
        "gpu": _gpu(),
        "inflate": inflate_backend(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": _versions(),
        "commit": _commit(),
        "utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", *(_shown(a) for a in sys.argv)]),
    }


def publish(options: argparse.Namespace, name: str, payload: Mapping[str, Any]) -> None:
    """Write one result as JSON, with the machine's facts, draw it where asked, and say where.

    Parameters
    ----------
    options : argparse.Namespace
        Of :func:`argument_parser`; without ``--json`` the file is
        ``benchmarks/results/<name>.json``.
    name : str
        The benchmark's name.
    payload : mapping
        JSON-ready results.
    """
    path = RESULTS / f"{name}.json" if options.json is None else options.json
    path.parent.mkdir(parents=True, exist_ok=True)
    result = {"benchmark": name, "machine": machine_facts(), **payload}
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"written: {_shown(str(path))}")
    if options.plot is not None:
        plots.draw(result, options.plot)
        print(f"drawn: {_shown(str(options.plot))}")


def _shown(argument: str) -> str:
    path = Path(argument)
    return path.name if path.is_absolute() else argument


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory_gib() -> float:
    import psutil

    return round(psutil.virtual_memory().total / 2**30, 1)


def _cpu_variant() -> str | None:
    from ctgpu.engines import open_engine
    from ctgpu.errors import DeviceError

    try:
        return str(open_engine("cpu").describe()["variant"])
    except DeviceError:
        return None


def _gpu() -> str | None:
    from ctgpu.engines import open_engine
    from ctgpu.errors import CtgpuError

    try:
        engine = open_engine("cuda:0")
    except CtgpuError:
        return None
    try:
        return str(engine.describe()["devices"][0]["name"])
    finally:
        engine.close()


def _versions() -> dict[str, str]:
    versions = {}
    for name in _RECORDED:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _commit() -> str | None:
    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(REPOSITORY), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return _packed_commit()


def _packed_commit() -> str | None:
    """The commit that ``tests/gpu/pack.py`` packed, where the files came without git."""
    sys.path.append(str(REPOSITORY / "tests" / "gpu"))
    import facts

    found: str | None = facts.pack(REPOSITORY / ".gpu-check").get("commit")
    return found
