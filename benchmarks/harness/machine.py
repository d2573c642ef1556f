"""The machine, the software and the commit that a result belongs to."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from ctgpu.decode.inflate import inflate_backend
from ctgpu.engines import open_engine
from ctgpu.errors import CtgpuError
from ctgpu.machine import usable_cores

REPOSITORY = Path(__file__).resolve().parents[2]

#: Distributions whose versions are recorded, where they are installed.
_RECORDED = (
    *("ctgpu", "numpy", "torch", "nibabel", "isal", "deflate", "zlib-ng", "webdataset"),
    *("huggingface_hub", "scipy", "SimpleITK", "torchio", "monai", "nvidia-dali-cuda120"),
    *("litdata", "ray", "blosc2", "zstandard"),
)


def machine_facts() -> dict[str, Any]:
    """What every result says of where it was measured."""
    return {
        "cpu": _cpu_model(),
        "usable_cores": usable_cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "ctgpu_cpu_variant": _of_engine("cpu", lambda facts: facts["variant"]),
        "gpu": _of_engine("cuda:0", lambda facts: facts["devices"][0]["name"]),
        "inflate": inflate_backend(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": _versions(),
        "commit": _commit(),
        "utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", *map(shown, sys.argv)]),
    }


def machine_line(machine: Mapping[str, Any]) -> str:
    """The facts that a figure cannot be read without, in one line."""
    variant = f" ({machine['ctgpu_cpu_variant']})" if machine["ctgpu_cpu_variant"] else ""
    return (
        f"{machine['usable_cores']} cores, {machine['cpu']}{variant}, "
        f"{machine['memory_gib']:.0f} GiB, {machine['gpu'] or 'no GPU'}"
    )


def shown(argument: str) -> str:
    """An argument of a command line, without the folders of this machine."""
    path = Path(argument)
    return path.name if path.is_absolute() else argument


def _cpu_model() -> str:
    with suppress(OSError):
        told = re.search(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text("utf-8"), re.M)
        if told:
            return told[1].strip()
    return platform.processor() or platform.machine()


def _of_engine(device: str, fact: Callable[[Mapping[str, Any]], object]) -> str | None:
    with suppress(CtgpuError), closing(open_engine(device)) as engine:
        return str(fact(engine.describe()))
    return None


def _versions() -> dict[str, str]:
    versions = {}
    for name in _RECORDED:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
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
    try:
        import facts
    except ImportError:  # only the GPU's benchmark travels so, and its script knows the place
        return None
    found: str | None = facts.pack(REPOSITORY / ".gpu-check").get("commit")
    return found
