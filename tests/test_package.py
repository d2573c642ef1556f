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


def test_public_names_are_there() -> None:
    for name in ctgpu.__all__:
        assert getattr(ctgpu, name) is not None
    assert callable(ctgpu.build)
    assert callable(ctgpu.preprocess)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        ctgpu.nonsense  # noqa: B018
