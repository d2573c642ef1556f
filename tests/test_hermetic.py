"""The tests see nothing of the environment of their caller."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from huggingface_hub import constants, get_token

from hermetic import kept

TESTS = Path(__file__).resolve().parent

#: What has already changed the outcome of a test somewhere, or would.
HOSTILE = {
    "HF_HUB_OFFLINE": "1",
    "HF_TOKEN": "hf_of_the_caller",
    "HF_ENDPOINT": "http://localhost:9",
    "RAY_ADDRESS": "localhost:9",
    "SLURM_ARRAY_TASK_ID": "1",
    "http_proxy": "http://localhost:9",
    "HTTPS_PROXY": "http://localhost:9",
    "LC_ALL": "tr_TR.ISO-8859-9",
    "FORCE_COLOR": "1",
    "COLUMNS": "20",
    "TERM": "dumb",
    "PYTHONWARNINGS": "error",
    "PYTHONIOENCODING": "ascii",
    "PYTHONUTF8": "0",
    "PYTHONCOERCECLOCALE": "0",
    "WORLD_SIZE": "4",
    "CTGPU_CPU": "scalar",
    "OMP_NUM_THREADS": "1",
    "ATEN_CPU_CAPABILITY": "default",
    "TZ": "Asia/Kathmandu",
    "TMPDIR": "/tmp/it's an odd $name",
}


def test_only_what_is_named_is_left() -> None:
    assert kept(HOSTILE) == {}
    needed = {"PATH": "/bin", "CTGPU_REAL_CT": "/ct", "LD_LIBRARY_PATH": "/lib", "TMPDIR": "/big"}
    assert kept(HOSTILE | needed) == needed


@pytest.mark.parametrize("folder", ["", "relative", "/a b", "/a'b", "/é", "/" + "x" * 60])
def test_a_temporary_folder_that_ray_or_a_shell_cannot_take_is_not_used(folder: str) -> None:
    assert kept({"TMPDIR": folder}) == {}


def test_this_very_run_is_shut_out() -> None:
    assert not (HOSTILE.keys() - {"TMPDIR"}) & os.environ.keys()
    assert constants.HF_HUB_OFFLINE is False
    assert get_token() is None


@pytest.mark.slow
def test_a_run_with_a_hostile_environment_is_shut_out_before_anything_reads_it(
    tmp_path: Path,
) -> None:
    (tmp_path / "conftest.py").write_text((TESTS / "conftest.py").read_text(encoding="utf-8"))
    (tmp_path / "test_inside.py").write_text(
        """
import json, locale, os, subprocess, sys, tempfile, pathlib
from huggingface_hub import constants

def test_inside():
    umask = os.umask(0)
    os.umask(umask)
    child = "import locale, os; print(locale.getpreferredencoding(), os.getenv('TZ'))"
    pathlib.Path("seen.json").write_text(json.dumps({
        "offline": constants.HF_HUB_OFFLINE,
        "endpoint": constants.ENDPOINT,
        "names": sorted(os.environ),
        "umask": umask,
        "folder": tempfile.gettempdir(),
        "encodings": [sys.getfilesystemencoding(), locale.getpreferredencoding()],
        "child": subprocess.check_output([sys.executable, "-c", child], text=True).split(),
    }))
"""
    )
    odd = tmp_path / "it's an odd $name"
    odd.mkdir()
    subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            *("--rootdir", str(tmp_path), "test_inside.py"),
        ],
        cwd=tmp_path,
        env=os.environ | HOSTILE | {"TMPDIR": str(odd), "PYTHONPATH": str(TESTS)},
        umask=0o077,
        check=True,
        timeout=120,
    )
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert seen["offline"] is False
    assert seen["endpoint"] == "https://huggingface.co"
    assert not HOSTILE.keys() & set(seen["names"])
    assert seen["umask"] == 0o022
    assert seen["folder"] == tempfile.gettempdir()
    assert [encoding.lower() for encoding in seen["encodings"]] == ["utf-8", "utf-8"]
    assert [word.lower() for word in seen["child"]] == ["utf-8", "none"]
