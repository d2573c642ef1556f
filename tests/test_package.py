"""The package as a whole."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import ctgpu
from ctgpu.cli.commands import app


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


#: What stays from version to version, by module.
PUBLIC = {
    "ctgpu": "PRESETS BuildReport CtgpuError Geometry RelabelReport Spec __version__ build "
    "compare_samples convert_tars estimate_build inspect_samples preprocess relabel",
    "ctgpu.loading": "WINDOWS VolumeDataset VolumeLoader make_loader",
    "ctgpu.loading.webdataset": "decoder",
    "ctgpu.loading.dali": "pipeline",
    "ctgpu.engines": "Engine Job arithmetic_of available_engines open_engine",
    "ctgpu.errors": "AccessError CtgpuError DecodeError DeviceError EnvironmentFailure FetchError "
    "GeometryError IntensityError MismatchError SampleError SourceError StorageError TableError "
    "UsageError",
    "ctgpu.testing.ctrate": "RESCALE_PAIR Volume chest_phantom lay_out_ct_rate write_tables",
    "ctgpu.testing.hub": "LocalHub Request main",
    "ctgpu.testing.voxels": "DTYPES MEMORY_ORDERS random_voxels",
}
COMMANDS = "build convert demo doctor inspect manifest plan relabel verify"


@pytest.mark.parametrize("module", PUBLIC)
def test_what_is_public_stays(module: str) -> None:
    names = set(PUBLIC[module].split())
    found = importlib.import_module(module)
    assert {name for name in names if not hasattr(found, name)} == set()
    if hasattr(found, "__all__"):
        assert names == set(found.__all__)


def test_the_commands_stay() -> None:
    registered = {info.name for info in app.registered_commands}
    assert registered == set(COMMANDS.split())
