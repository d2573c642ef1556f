"""What of the caller's environment reaches the tests: what is named here, and nothing else.

``conftest.py`` calls :func:`shut_out` before it imports anything that reads variables when it is
imported, as huggingface_hub, typer and torch do.  What a test starts inherits what is left.
"""

from __future__ import annotations

import atexit
import fnmatch
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping

import pytest

#: Where programs, libraries and compilers are; which GPUs to use; and what is ours to be asked.
KEPT = (
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LD_*", "DYLD_*", "VIRTUAL_ENV", "CONDA_*"),
    *("PYTHONPATH", "PYTHONUSERBASE", "PYTHONDONTWRITEBYTECODE", "PYENV_*", "NIX_*", "PYTEST_*"),
    *("CC", "CXX", "CPATH", "CPLUS_INCLUDE_PATH", "LIBRARY_PATH", "SDKROOT", "DEVELOPER_DIR"),
    *("CUDA_HOME", "CUDA_PATH", "CUDA_VISIBLE_DEVICES", "NVIDIA_*", "QEMU_*", "CTGPU_REAL_CT"),
)
# Short, for the names of sockets are too, and without what a shell takes apart.
_PLAIN_FOLDER = re.compile(r"/[A-Za-z0-9_./+-]{1,40}")


def kept(environment: Mapping[str, str]) -> dict[str, str]:
    """The part of an environment that tests see."""
    left = {
        name: value
        for name, value in environment.items()
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in KEPT)
    }
    if _PLAIN_FOLDER.fullmatch(environment.get("TMPDIR", "")):
        left["TMPDIR"] = environment["TMPDIR"]
    return left


def shut_out() -> None:
    """Leave this process, and those that it starts, nothing of the caller's but :data:`KEPT`."""
    # A sanitizer or profiler of gpu/check.py finds its instructions there once CUDA is first used.
    left = dict(os.environ) if "CTGPU_CHECK_STAGE" in os.environ else kept(os.environ)
    os.environ.clear()
    os.environ.update(left)
    os.umask(0o022)
    time.tzset()
    sys.warnoptions.clear()  # of PYTHONWARNINGS; processes that are spawned are told them
    tempfile.tempdir = None  # of TMPDIR; it may have been asked for already
    # A token that the caller has saved is not for the tests' Hub.
    os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="ctgpu-hf-home-")
    atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)


def begin_again_in_utf8(config: pytest.Config) -> None:
    """Replace this process where the caller's locale has no names for the files of some tests.

    Python decides on the encoding of names when it starts.
    """
    if sys.getfilesystemencoding() == "utf-8":
        return
    shutil.rmtree(os.environ["HF_HOME"])
    if capture := config.pluginmanager.getplugin("capturemanager"):
        capture.suspend_global_capture(in_=True)  # else nothing of the next one would be seen
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
