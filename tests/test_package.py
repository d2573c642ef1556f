"""The package as a whole."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from types import FunctionType, ModuleType

import pytest
import typer

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


@pytest.mark.slow
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


#: MONAI calls what torch warns of.
OF_MONAI = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
#: What stays from version to version, by module.
PUBLIC = {
    "ctgpu": "PRESETS BuildReport CtgpuError Geometry PreprocessedBatch RelabelReport Spec "
    "__version__ build compare_samples convert_tars estimate_build inspect_samples preprocess "
    "preprocess_batch relabel save_on_scan",
    "ctgpu.loading": "WINDOWS RawDataset VolumeDataset VolumeLoader make_loader",
    "ctgpu.loading.webdataset": "decoder",
    "ctgpu.loading.dali": "pipeline",
    "ctgpu.loading.monai": "MonaiDataset",
    "ctgpu.engines": "Engine Job arithmetic_of available_engines open_engine",
    "ctgpu.errors": "AccessError CtgpuError DecodeError DeviceError EnvironmentFailure FetchError "
    "GeometryError IntensityError MismatchError NewerFormatError SampleError SourceError "
    "StorageError TableError UsageError",
    "ctgpu.viewing": "Viewed write_view",
    "ctgpu.testing.ctrate": "CT_RATE_DATA LABEL_NAMES RESCALE_PAIR TABLES Volume "
    "chest_phantom lay_out_ct_rate table_names write_tables",
    "ctgpu.testing.hub": "LocalHub Request main",
    "ctgpu.testing.voxels": "DTYPES MEMORY_ORDERS random_voxels",
}
#: Functions that are there for the package itself.
FOR_THE_PACKAGE = {"ctgpu.errors": {"reason_of", "shortage"}}
#: Parameters that stay, those first that may be passed by position, in their order.
PARAMETERS = {
    "ctgpu.build": "output_dir split source repo_id revision spec device num_workers "
    "memory_limit_bytes temp_dir samples_per_shard shards part limit recon order seed "
    "keep_no_chest spacing_fallback axes max_tilt_degrees hu_guard force retry_failed token "
    "endpoint executor watch dataset labels reports key_column text_columns split_by fractions "
    "include exclude assume_orientation keep_uids",
    "ctgpu.compare_samples": "preprocessed source num_samples spec",
    "ctgpu.convert_tars": "input_pattern output_dir split spec device num_workers "
    "memory_limit_bytes samples_per_shard shards axes max_tilt_degrees hu_guard force "
    "retry_failed delete_after dry_run watch",
    "ctgpu.estimate_build": "output_dir split source repo_id revision spec device num_workers "
    "memory_limit_bytes samples_per_shard limit recon order seed keep_no_chest spacing_fallback "
    "axes max_tilt_degrees hu_guard token endpoint calibrate watch cores network_gbit gpus online "
    "step_ms batch_size",
    "ctgpu.inspect_samples": "where num_samples",
    "ctgpu.preprocess": "path_or_array spacing_mm spec device intensity threads out output "
    "return_geometry axes max_tilt_degrees hu_guard assume_orientation mask",
    "ctgpu.preprocess_batch": "volumes spec spacing_mm device output out on_error intensity "
    "threads axes max_tilt_degrees hu_guard assume_orientation",
    "ctgpu.relabel": "output_dir source token endpoint looked_at",
    "ctgpu.save_on_scan": "array geometry path order layout outside",
    "ctgpu.loading.RawDataset": "source split dataset spec device shards plan "
    "write_shards write_limit num_threads memory_limit options",
    "ctgpu.loading.VolumeDataset": "dir_or_pattern verify",
    "ctgpu.loading.make_loader": "dataset batch_size shuffle seed shuffle_window_bytes "
    "sample_weights class_balanced drop_last device prefetch_bytes num_threads copy labelled_only "
    "on_error window windows random_crop_hwd transform rank world_size",
    "ctgpu.loading.webdataset.decoder": "sample",
    "ctgpu.loading.dali.pipeline": "dataset batch_size device_id num_threads shuffle seed "
    "shuffle_bytes rank world_size prefetch_queue_depth",
    "ctgpu.loading.monai.MonaiDataset": "dataset transform image_key label_key mask_key window "
    "windows dtype labelled_only",
    "ctgpu.engines.arithmetic_of": "device",
    "ctgpu.engines.available_engines": "",
    "ctgpu.engines.open_engine": "device",
    "ctgpu.testing.ctrate.chest_phantom": "shape_hwd spacing_mm seed",
    "ctgpu.testing.ctrate.lay_out_ct_rate": "root volumes split format order npz_member "
    "compressed nested fixed tables no_chest",
    "ctgpu.testing.ctrate.write_tables": "root volumes split tables",
    "ctgpu.testing.hub.LocalHub": "root repo_id token gated redirect page_size faults port",
    "ctgpu.viewing.write_view": "folder output num_samples reports looked_at",
    "ctgpu.testing.voxels.random_voxels": "seed shape_hwd dtype order flipped step",
}
#: Flags that stay, by command.
FLAGS = {
    "build": "assume-orientation axes clip compress dataset debug device exclude force "
    "fractions hu-guard hu-window include intensity keep-no-chest keep-uids "
    "key-column labels layout limit log-format max-tilt-degrees memory-limit "
    "num-workers order output-dir precision preset ray recon repo-id reports "
    "retry-failed revision samples-per-shard seed shape shards source spacing "
    "spacing-fallback split split-by temp-dir text-columns",
    "convert": "axes compress debug delete-after device dry-run force hu-guard input-pattern "
    "intensity log-format max-tilt-degrees memory-limit num-workers output-dir "
    "precision preset retry-failed samples-per-shard shards split",
    "demo": "debug device output-dir",
    "describe": "debug output repo-id revision",
    "doctor": "debug device json output-dir",
    "export": "debug force hu output-dir samples split to",
    "inspect": "debug json num-samples preview source",
    "manifest": "debug",
    "plan": "axes batch-size calibrate cores dataset debug device gpus hu-guard json limit "
    "max-tilt-degrees memory-limit network-gbit num-workers online output-dir preset recon "
    "repo-id revision samples-per-shard source split step-ms",
    "presets": "",
    "relabel": "debug source",
    "verify": "debug json num-samples original-pattern preprocessed-pattern source",
    "view": "debug num-samples output reports",
}


def offered(module: ModuleType) -> set[str]:
    """The names that a module exports, or else the classes and functions that it defines."""
    if hasattr(module, "__all__"):
        return set(module.__all__)
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and isinstance(value, type | FunctionType)
        and value.__module__ == module.__name__
    }


@OF_MONAI
@pytest.mark.parametrize("module", PUBLIC)
def test_what_is_public_stays(module: str) -> None:
    names = set(PUBLIC[module].split())
    found = importlib.import_module(module)
    assert {name for name in names if not hasattr(found, name)} == set()
    if hasattr(found, "__all__"):
        assert names == set(found.__all__)
    # A new name is listed here, or private.
    assert offered(found) - FOR_THE_PACKAGE.get(module, set()) <= names


@OF_MONAI
@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_stay(name: str) -> None:
    module, _, function = name.rpartition(".")
    signature = inspect.signature(getattr(importlib.import_module(module), function))
    stated, taken = PARAMETERS[name].split(), signature.parameters
    assert set(stated) <= taken.keys()
    by_position = [p.name for p in taken.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert by_position == stated[: len(by_position)]


def test_ways_of_a_geometry_stay() -> None:
    for way, stated in {
        "of_metadata": "metadata",
        "to_scan": "self array order layout outside",
    }.items():
        taken = inspect.signature(getattr(ctgpu.Geometry, way)).parameters
        assert list(taken) == stated.split()


def test_the_commands_stay() -> None:
    registered = {info.name for info in app.registered_commands}
    assert registered == FLAGS.keys()


def test_the_flags_of_commands_stay() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for name, flags in FLAGS.items():
        taken = {word for parameter in commands[name].params for word in parameter.opts}
        assert {f"--{flag}" for flag in flags.split()} <= taken, name
