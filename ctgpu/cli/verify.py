"""``ctgpu verify``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.filesize import decimal

from ctgpu.checking.compare import Comparison, compare_samples
from ctgpu.checking.verify import Verification, verify_folder
from ctgpu.cli.options import Debug, shorten
from ctgpu.cli.terminal import Console, ShardBar, say, say_json
from ctgpu.errors import UsageError
from ctgpu.printable import counted
from ctgpu.shards.findings import Finding

#: One call of it, as its help shows it.
EXAMPLE = "ctgpu verify shards --num-samples 8"


def command(
    folder: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="The data set's folder.")
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="Derive samples of DIR again from these volumes, and compare."
        ),
    ] = None,
    preprocessed_pattern: Annotated[
        str | None,
        typer.Option(
            metavar="PATTERN", help="Compare the samples of these tars, instead of DIR's."
        ),
    ] = None,
    original_pattern: Annotated[
        Path | None, typer.Option(metavar="PATTERN", help="Derive them again from these raw tars.")
    ] = None,
    num_samples: Annotated[
        str | None,
        typer.Option(
            metavar="N|all", help="Compare N samples, spread over the shards, or all. (default: 8)"
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead.")] = False,
    debug: Debug = False,
) -> None:
    """Check that a data set is what was written, or what its originals say it should be.

    With DIR alone, every payload, record, index and manifest is re-read, and what is compressed is
    decoded. With --source, --original-pattern or --num-samples, samples are derived again from
    their originals by the torch reference, and volume, labels and report compared. Exits with 0
    only if nothing is wrong.
    """
    if folder is not None and preprocessed_pattern is not None:
        raise UsageError("DIR and --preprocessed-pattern both name what to look at; give one")
    if source is not None and original_pattern is not None:
        raise UsageError("--source and --original-pattern both name the originals; give one")
    if any(given is not None for given in (source, original_pattern, num_samples)):
        _compare(folder or preprocessed_pattern, source or original_pattern, num_samples, as_json)
    if folder is None:
        raise UsageError(
            "name the data set's folder, or --preprocessed-pattern and --original-pattern"
        )

    def show(finding: Finding) -> None:
        if not as_json:
            bar.say(f"{finding.file}: {finding.problem}")

    with ShardBar("checking shards", Console(stderr=True)) as bar:
        result = verify_folder(folder, found=show, checked=bar.looked_at)
    if as_json:
        say(result.to_json())
    else:
        Console().prose(_verdict(result))
    raise typer.Exit(result.exit_code)


def _compare(
    where: Path | str | None, source: Path | None, num_samples: str | None, as_json: bool
) -> NoReturn:
    if where is None:
        raise UsageError("name what to compare: the data set's folder or --preprocessed-pattern")
    compared: list[Comparison] = []
    for sample in compare_samples(where, source=source, num_samples=_count(num_samples or "8")):
        compared.append(sample)
        if not as_json:
            Console().prose(_line(sample))
    passed = sum(sample.passed for sample in compared)
    if as_json:
        samples = [sample.to_dict() for sample in compared]
        say_json({"passed": passed == len(compared), "samples": samples})
    else:
        say(f"{passed} of {counted(len(compared), 'sample')} passed")
    raise typer.Exit(0 if passed == len(compared) else 1)


def _count(text: str) -> int | None:
    if text == "all":
        return None
    if not re.fullmatch(r"0*[1-9][0-9]{0,8}", text):
        raise UsageError(
            f"--num-samples is {shorten(text)}; it is a whole number from 1 to 999999999, or all"
        )
    return int(text)


def _line(sample: Comparison) -> str:
    numbers = (
        f"max {sample.max_ulp:.0f} ulp, mean {sample.mean_ulp:.2g} ulp, "
        f"{sample.differing_share:.3%} differ"
    )
    verdict = "passed" if sample.passed else f"FAILED: {'; '.join(sample.faults)}"
    return f"{sample.key}: {numbers}: {verdict}"


def _verdict(result: Verification) -> str:
    samples, shards = counted(result.samples, "sample"), counted(result.shards, "shard")
    what = f"{samples} in {shards}, {decimal(result.size_bytes)}"
    if result.findings:
        damaged = sum(finding.damaged for finding in result.findings)
        missing = len(result.findings) - damaged
        return f"{result.folder}: {what}: {damaged} damaged, {missing} not finished"
    failed = f"; {counted(result.failed_samples, 'sample')} failed" if result.failed_samples else ""
    return f"{result.folder}: {what}: every byte is as it was written{failed}"
