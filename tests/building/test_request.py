from __future__ import annotations

import inspect
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import ctgpu
from ctgpu.arguments import option, options_of
from ctgpu.building.builder import make_shards
from ctgpu.building.convert import ConvertRequest
from ctgpu.building.request import Common, Part, Request, selection_defaults, taken
from ctgpu.cli.commands import app
from ctgpu.cli.options import names_flags, takes
from ctgpu.errors import UsageError
from ctgpu.spec import CT_RATE, Spec
from support.building import builds
from support.phantoms import SPEC

build = builds(spec=SPEC, samples_per_shard=4)


@dataclass(frozen=True, slots=True, kw_only=True)
class More(Request):
    slices: int | None = option(selects=3, least=2, help="So many slices.")
    kind_of_body: str | None = option(choices=("thin", "fat"), help="Which.")


def flags_of(command: str) -> set[str]:
    found = next(c for c in typer.main.get_command(app).commands.items() if c[0] == command)[1]
    return {word for parameter in found.params for word in parameter.opts}


# One declaration: keyword, flag, help, checks and documentation follow from a field.


@pytest.mark.parametrize("function", [ctgpu.build, ctgpu.convert_tars, ctgpu.estimate_build])
def test_keywords_and_documentation_are_those_of_the_fields(function: Any) -> None:
    kind = ConvertRequest if function is ctgpu.convert_tars else Request
    signature, doc = inspect.signature(function), inspect.getdoc(function) or ""
    parameters = doc.partition("Parameters\n----------\n")[2].partition("\nReturns\n")[0]
    assert {one.name for one in fields(kind)} <= signature.parameters.keys()
    for name, parameter in signature.parameters.items():
        assert parameter.kind is not parameter.VAR_KEYWORD
        assert any(
            name in line.partition(" : ")[0].split(", ")
            for line in parameters.splitlines()
            if line[:1].strip()
        ), name
    assert signature.return_annotation in ("BuildReport", "Estimate")


@pytest.mark.parametrize(
    ("command", "kind"), [("build", Request), ("convert", ConvertRequest), ("plan", Request)]
)
def test_every_option_is_a_flag(command: str, kind: type) -> None:
    offered = [*options_of(kind), *options_of(Spec)]
    named = {one.name: o.flag or f"--{one.name.replace('_', '-')}" for one, o in offered}
    flags = flags_of(command)
    # Of a flag and its contrary, the first.
    wanted = {flag.partition("/")[0] for flag in named.values()}
    assert wanted <= flags
    assert "--preset" in flags


@pytest.mark.parametrize(
    ("function", "arguments"),
    [(ctgpu.build, ("a",)), (ctgpu.convert_tars, ("a", "b")), (ctgpu.estimate_build, ("a",))],
)
def test_an_unknown_keyword_names_the_function(function: Any, arguments: tuple[str, ...]) -> None:
    with pytest.raises(TypeError, match=rf"^{function.__name__}\(\) .*'colour'"):
        function(*arguments, colour="red")


def test_a_new_option_takes_a_field_and_the_place_where_it_works(tmp_path: Path) -> None:
    said: list[More] = []
    command_line = typer.Typer()

    @command_line.command()
    @names_flags
    @takes(More)
    def command(*, options: More) -> None:
        said.append(options)

    run = CliRunner().invoke
    assert "So many slices." in run(command_line, ["--help"]).output
    arguments = [
        "--slices",
        "5",
        "--kind-of-body",
        "fat",
        "--memory-limit",
        "1k",
        "--shards",
        "2-3",
    ]
    assert run(command_line, [*arguments, "--spacing", "1,2,3"]).exit_code == 0
    assert (said[0].slices, said[0].kind_of_body) == (5, "fat")
    assert (said[0].memory_limit_bytes, said[0].shards) == (1000, range(2, 4))
    assert said[0].spec == Spec(target_spacing_mm=(1, 2, 3))
    assert said[0].selection == {"slices": 5}
    assert selection_defaults(More) == {**selection_defaults(Request), "slices": 3}
    for mistake, sentence in (
        (["--slices", "1"], "--slices is 1; it takes a whole number from 2 to"),
        (["--kind-of-body", "tall"], "--kind-of-body is 'tall'; it is thin or fat"),
    ):
        assert sentence in str(run(command_line, mistake).exception)
    with pytest.raises(UsageError, match=r"^kind_of_body is 'tall'; it is thin or fat"):
        More(kind_of_body="tall")


# Values


def test_nothing_said_is_nothing_selected() -> None:
    request = Request()
    assert request.selection == {}
    assert (request.part, request.spec, request.device) == (Part(), None, "auto")
    assert Request(part=None) == request  # type: ignore[arg-type]
    assert set(selection_defaults(Common)) < set(selection_defaults(Request))


def test_scalars_of_numpy_and_texts_of_paths_are_taken(tmp_path: Path) -> None:
    request = Request(
        limit=np.int64(3),  # type: ignore[arg-type]
        max_tilt_degrees=np.float32(2.5),  # type: ignore[arg-type]
        force=np.bool_(True),  # type: ignore[arg-type]
        source=str(tmp_path),
    )
    assert (type(request.limit), type(request.force)) == (int, bool)
    assert request.selection == {"limit": 3, "max_tilt_degrees": 2.5}
    assert request.source_path == tmp_path


def test_what_is_not_kept_is_not_recorded() -> None:
    assert Request(keep_uids=True).selection == {"keep_uids": True}
    assert Request(keep_uids=False).selection == {}


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"repo_id": 5}, "repo_id is 5; wanted text"),
        ({"force": "yes"}, "force is 'yes'; wanted True or False"),
        ({"keep_no_chest": "no"}, "keep_no_chest is 'no'; wanted True or False"),
        ({"keep_uids": 1}, "keep_uids is 1; wanted True or False"),
        ({"temp_dir": 3}, "temp_dir is 3; wanted a path"),
        ({"seed": 2**63}, "seed is 9223372036854775808; it takes a whole number from -"),
        ({"device": 0}, "device is 0; wanted auto"),
        ({"token": b"hf"}, "token is "),
        ({"source": "a", "repo_id": "b/c"}, "give one or the other"),
    ],
    ids=str,
)
def test_other_values_are_one_sentence(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        Request(**values)


def test_options_of_one_kind_are_taken_from_another(tmp_path: Path) -> None:
    asked = ConvertRequest(spec=CT_RATE, num_workers=2, retry_failed=True, delete_after=True)
    request = taken(Request, asked, source=tmp_path, split="train")
    assert (request.spec, request.num_workers, request.retry_failed) == (CT_RATE, 2, True)
    assert (request.source, request.split) == (tmp_path, "train")


def test_an_address_is_no_folder_of_a_build() -> None:
    from ctgpu.building.executor import LocalExecutor

    with pytest.raises(UsageError, match=r"output_dir is .*an address"):
        make_shards(Path("s3://bucket/a"), Request(), LocalExecutor())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "test"}, "none for the split 'test': pass --split train or valid"),
        ({"recon": "last"}, "recon is 'last'"),
        ({"spacing_fallback": "guess"}, "spacing_fallback is 'guess'"),
        ({"limit": 0}, "limit is 0"),
        ({"repo_id": "a/b"}, "one or the other"),
        ({"device": "tpu"}, "device is 'tpu'"),
        ({"device": None}, "device is None; wanted auto, cpu"),
        ({"split": ["valid"]}, r"split is \['valid'\]; wanted text"),
        ({"order": np.array(["path", "shuffled"])}, "order is array"),
        ({"spec": "ct-rate"}, "spec is 'ct-rate'; wanted a ctgpu.Spec"),
        ({"spec": {}}, "spec is {}; wanted a ctgpu.Spec"),
        ({"shards": "0-9"}, "shards is '0-9'; wanted a range"),
        ({"shards": [0]}, r"shards is \[0\]; wanted a range"),
        ({"part": 1}, "part is 1; wanted a ctgpu.building.request.Part"),
        ({"executor": "ray"}, "executor is 'ray'; wanted a ctgpu.building.executor.Executor"),
        ({"watch": None}, "watch is None; wanted a function"),
        ({"force": "no"}, "force is 'no'; wanted True or False"),
        ({"retry_failed": "no"}, "retry_failed is 'no'; wanted True or False"),
        ({"keep_no_chest": "no"}, "keep_no_chest is 'no'; wanted True or False"),
        ({"temp_dir": 5}, "temp_dir is 5; wanted a path"),
        ({"token": 5}, "token is 5; wanted text"),
        ({"endpoint": 5}, "endpoint is 5; wanted text"),
        ({"revision": 5}, "revision is 5; wanted text"),
        ({"repo_id": 5}, "repo_id is 5; wanted text"),
    ],
)
def test_a_request_that_cannot_be_honoured_is_one_sentence(
    tmp_path: Path, source: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        build(tmp_path / "out", source, **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", [5, b"out", "", "a\0b", ["out"]])
def test_what_is_no_path_is_one_sentence(tmp_path: Path, source: Path, path: Any) -> None:
    for name, call in (
        ("output_dir", lambda: ctgpu.build(path, source=source)),
        ("source", lambda: ctgpu.build(tmp_path / "out", source=path)),
        ("output_dir", lambda: ctgpu.relabel(path)),
        ("output_dir", lambda: ctgpu.convert_tars(source, path)),
        ("input_pattern", lambda: ctgpu.convert_tars(path, tmp_path / "out")),
    ):
        with pytest.raises(UsageError, match=f"{name} is .*; wanted a path"):
            call()
    assert not (tmp_path / "out").exists()


def test_numbers_may_be_those_of_numpy(tmp_path: Path, source: Path) -> None:
    report = build(
        tmp_path / "out",
        source,
        limit=np.int64(3),
        seed=np.int32(7),
        samples_per_shard=np.uint8(2),
        num_workers=np.int64(2),
        memory_limit_bytes=np.int64(10**9),
        max_tilt_degrees=np.float32(20),
        keep_no_chest=np.bool_(True),
    )
    assert (report.written, report.manifest["total_shards"]) == (3, 2)
    selection = report.manifest["selection"]
    assert (selection["limit"], selection["seed"], selection["keep_no_chest"]) == (3, 7, True)
    assert build(tmp_path / "out", limit=3, max_tilt_degrees=20.0).exit_code == 0


@pytest.mark.parametrize(
    ("given", "compression"), [(None, None), ("none", None), ("pack", "pack"), ("rice", "rice")]
)
def test_no_compression_is_said_or_left_out(given: str | None, compression: str | None) -> None:
    request = Request(compress=given)
    assert (request.compress, request.compression) == (given, compression)
    assert "compress" not in request.selection


@pytest.mark.parametrize("given", ["zip", "Rice", "", 1, True])
def test_a_compression_that_is_none_is_refused(given: Any) -> None:
    with pytest.raises(UsageError, match=r"compress is .*none or pack or rice"):
        Request(compress=given)
