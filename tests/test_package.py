"""The package as a whole."""

from __future__ import annotations

import subprocess
import sys

import pytest

import ctgpu


def test_import_is_light_and_silent() -> None:
    code = (
        "import sys, ctgpu; ctgpu.Spec(); "
        "heavy = {'torch', 'cupy', 'nibabel', 'huggingface_hub', 'webdataset', 'rich'}; "
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_dir_lists_what_is_public_before_and_after_it_is_used() -> None:
    code = (
        "import ctgpu; assert dir(ctgpu) == sorted(ctgpu.__all__), dir(ctgpu); "
        "[getattr(ctgpu, name) for name in dir(ctgpu)]; "
        "assert {'build', 'preprocess', 'Spec', '__version__'} <= set(dir(ctgpu)); "
        "assert dir(ctgpu) == sorted(ctgpu.__all__)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_public_names_are_there() -> None:
    for name in ctgpu.__all__:
        assert getattr(ctgpu, name) is not None
    assert callable(ctgpu.build)
    assert callable(ctgpu.preprocess)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        ctgpu.nonsense  # noqa: B018
