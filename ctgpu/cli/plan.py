"""``ctgpu plan``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.filesize import decimal
from rich.table import Table

from ctgpu.arguments import path_of
from ctgpu.building.calibration import Elsewhere
from ctgpu.building.estimate import Estimate, estimate, named_machine, named_training
from ctgpu.building.feeding import Feeding, Way
from ctgpu.building.projection import GBIT, UNLIMITED
from ctgpu.building.request import Request
from ctgpu.cli.display import Display
from ctgpu.cli.help import HEADINGS
from ctgpu.cli.options import Debug, Json, Log, log_level, takes
from ctgpu.cli.stopping import stoppable
from ctgpu.cli.terminal import Console, LogFormat, configure_logging, say_json
from ctgpu.cli.wrapping import wrap
from ctgpu.machine import usable_cores
from ctgpu.printable import counted

_MEASURED = "What is measured, and what is asked of it"

#: One call of it, as its help shows it.
EXAMPLE = "ctgpu plan --source volumes --output-dir shards --cores 64 --gpus 8"


@takes(
    Request,
    num_workers="Threads that download. (default: what is suggested)",
    split="Part of the data set. (default: the data set's, which mostly is valid)",
)
def command(
    output_dir: Annotated[
        Path,
        typer.Option(
            metavar="PATH",
            rich_help_panel=HEADINGS["where"],
            help="Where the build would write; nothing stays there.",
        ),
    ] = Path(),
    *,
    options: Request,
    calibrate: Annotated[
        int,
        typer.Option(
            metavar="N",
            rich_help_panel=_MEASURED,
            help="Build a trial of so many samples to measure; 0 for none.",
        ),
    ] = 3,
    cores: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            rich_help_panel=_MEASURED,
            help="Of another machine, for which to answer, too.",
        ),
    ] = None,
    network_gbit: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            rich_help_panel=_MEASURED,
            help="Its link to the source, Gbit/s at its full rate.",
        ),
    ] = None,
    gpus: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            rich_help_panel=_MEASURED,
            help="Its GPUs; as long as none is measured, an upper bound. With --online those that "
            "train.",
        ),
    ] = None,
    online: Annotated[
        bool,
        typer.Option(
            "--online",
            rich_help_panel=_MEASURED,
            help="Say whether training would wait, fed from raw volumes or from shards.",
        ),
    ] = False,
    step_ms: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            rich_help_panel=_MEASURED,
            help="Of --online: milliseconds of a training step.",
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            rich_help_panel=_MEASURED,
            help="Of --online: samples of a GPU in a step. (default: 1)",
        ),
    ] = None,
    as_json: Json = False,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="[ADDRESS]",
            rich_help_panel=HEADINGS["machine"],
            help="As `ctgpu build` has it.",
        ),
    ] = None,
    log_format: Log = LogFormat.text,
    debug: Debug = False,
) -> None:
    """Say what a build would take: volumes, bytes, memory, time. Exits with 3 if there is no room.

    It takes every option of `ctgpu build`, so that one line serves both, and answers for the whole
    data set on this machine, whatever --shards, --force, --retry-failed and --ray say.

    It builds a trial: a few samples are built to measure this machine, stored in each way of
    --compress, read again and removed. With --cores, --network-gbit or --gpus it also says, by
    what it measured, what the build would take there; with --online instead whether training there
    would wait for its samples.
    """
    named = named_machine(cores, network_gbit, gpus)
    training = named_training(online, step_ms, batch_size, gpus)
    errors = Console(stderr=True)
    configure_logging(log_format, log_level(debug), errors)
    options = replace(options, shards=None, force=False, retry_failed=False)
    with stoppable(), Display(errors) as display:
        folder = path_of("output_dir", output_dir)
        estimated = estimate(folder, options, calibrate, display, named, training)
    if as_json:
        say_json(estimated.to_dict())
    else:
        _show(estimated, Console())
    raise typer.Exit(estimated.exit_code)


def _show(estimate: Estimate, console: Console) -> None:
    storage = estimate.storage
    table = Table(title="What the build would take", title_justify="left", show_header=False)
    room = "fits" if estimate.fits else "does not fit: free some, or build parts with --shards"
    free = "unknown, for the file system does not say"
    if estimate.free_bytes is not None:
        asked = decimal(storage.needed_bytes)
        free = f"{decimal(estimate.free_bytes)}; a build asks for {asked}: {room}"
    rows = [
        ("volumes", ", ".join(f"{n} {what}" for what, n in estimate.counts.items() if n)),
        ("data set", estimate.data_set),
        *(("table", str(table)) for table in estimate.tables),
        ("shards", f"{storage.shards}, {decimal(storage.full_shard_bytes)} each when full"),
        ("to read", decimal(estimate.source_bytes)),
        ("to store", _to_store(estimate)),
        ("free", free),
        ("memory", f"up to {decimal(estimate.memory_bytes)} for volumes in flight"),
    ]
    for stage in estimate.stages:
        mark = ", the bottleneck" if stage is estimate.bottleneck else ""
        rows.append((stage.name, f"{_hours(stage.wall_s)} with threads: {stage.threads}{mark}"))
    if estimate.stages:
        rows.append(("together", f"{_hours(estimate.wall_s)}, as the stages overlap"))
    if estimate.elsewhere is not None:
        rows += _elsewhere(estimate.elsewhere)
    if estimate.online is not None:
        rows += _online(estimate.online)
    rows.append(("suggested", f"--num-workers {estimate.num_workers}"))
    table.add_column(no_wrap=True)
    # What is longer than its box goes on in the next line, and is not cut.
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    if estimate.readings:
        _show_readings(estimate, console)


def _to_store(estimate: Estimate) -> str:
    storage = estimate.storage
    said = f"{decimal(storage.stored_bytes)}, {storage.sample_bytes:,} bytes a volume"
    if estimate.compression is None:
        return said
    return f"{said} by {estimate.compression}, {'' if estimate.readings else 'not '}measured"


def _show_readings(estimate: Estimate, console: Console) -> None:
    """For each way to store volumes their bytes, and how fast they are loaded here."""
    cores, built = usable_cores(), estimate.calibrated_on
    table = Table(
        *("--compress", "to store", "one thread", f"cores: {cores}", "what decides"),
        title="How it could be stored, and loaded here in samples/s",
        title_justify="left",
    )
    for way, reading in estimate.readings.items():
        bottleneck, rate = next(iter(reading.limits(cores).items()))
        to_store = decimal(round(estimate.storage.samples * reading.sample_bytes))
        what, *_ = bottleneck.split(",")
        table.add_row(way, to_store, f"{1 / reading.thread_s:.3g}", f"{rate:.3g}", what)
    console.print(table)
    said = (
        f"Measured: {counted(built, 'volume')}, built, stored in each way and "
        "read by one thread, from "
        + ("this disk." if estimate.read_from_disk else "memory: a disk may be slower.")
        + " All else is projected from that; a network's speed varies by more."
    )
    # As wide as the tables, wherever they go.
    for line in wrap(said, console.width):
        console.print(line, soft_wrap=True)


def _elsewhere(elsewhere: Elsewhere) -> list[tuple[str, str]]:
    machine = elsewhere.machine
    parts = [f"cores: {machine.cores}"]
    if machine.network_bytes_per_s != UNLIMITED:
        parts.append(f"{machine.network_bytes_per_s / GBIT:g} Gbit/s")
    if machine.gpus:
        parts.append(f"GPUs: {machine.gpus}")
    least = "at least " if elsewhere.is_least else ""
    decides = f"what decides: {elsewhere.bottleneck}, then {elsewhere.second}"
    return [
        ("elsewhere", ", ".join(parts)),
        ("", f"{least}{_hours(elsewhere.wall_s)}; {decides}"),
        *([("", "no GPU was measured: none is counted as the limit")] if least else []),
    ]


def _online(feeding: Feeding) -> list[tuple[str, str]]:
    training = feeding.training
    network = feeding.network_bytes_per_s
    link = "" if network == UNLIMITED else f", {network / GBIT:g} Gbit/s"
    return [
        (
            "training",
            f"GPUs: {training.gpus}, {counted(training.batch_size, 'sample')} each in "
            f"{training.step_ms:g} ms take {training.samples_per_s:.3g}/s; "
            f"cores: {feeding.cores}{link}",
        ),
        ("from raw", _way(feeding.raw)),
        ("from shards", _way(feeding.shards)),
        ("", feeding.advice),
    ]


def _way(way: Way) -> str:
    keeps_up = "enough" if not way.waiting_share else f"training waits {way.waiting_share:.0%}"
    return (
        f"{way.samples_per_s:.3g}/s: {keeps_up}; what decides: {way.bottleneck}; to keep up: "
        f"{way.cores_needed:.1f} cores and {way.gbit_needed:.3g} Gbit/s"
    )


def _hours(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
