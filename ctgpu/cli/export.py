"""``ctgpu export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast, get_args

import typer

from ctgpu.arguments import require_choice
from ctgpu.cli.options import Debug
from ctgpu.cli.stopping import stoppable
from ctgpu.cli.terminal import Console, say
from ctgpu.errors import UsageError
from ctgpu.exporting import export_samples, write_energon_index
from ctgpu.exporting.energon import Split
from ctgpu.exporting.export import Form
from ctgpu.printable import counted

#: One call of it, as its help shows it.
EXAMPLE = "ctgpu export shards --to nifti --samples all --output-dir scans"

_ENERGON = "energon"
_FORMATS: tuple[Form, ...] = get_args(Form)
_SPLITS: tuple[Split, ...] = get_args(Split)


def command(
    where: Annotated[
        str,
        typer.Argument(metavar="DIR|PATTERN", help="A data set, or tars of it (braces and globs)."),
    ],
    to: Annotated[
        str,
        typer.Option(
            metavar="FORMAT",
            help="npy; nifti, which lies over the scan in a viewer; blosc2, as nnU-Net v2 keeps "
            "its cases; or energon: an index beside the tars, for Megatron-Energon.",
        ),
    ],
    output_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the files.")
    ] = None,
    samples: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME,…", help="Which: names, numbers from 0, or all; may come several times."
        ),
    ] = None,
    hu: Annotated[
        bool,
        typer.Option(
            "--hu", help="Values as HU, but for what was clipped and rounded when they were stored."
        ),
    ] = False,
    split: Annotated[
        str | None,
        typer.Option(metavar="SPLIT", help="Of --to energon: train, val or test. (default: train)"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
    debug: Debug = False,
) -> None:
    """Write samples as files that other programs read, or an index for Megatron-Energon.

    Volume and mask of a sample are a file each; labels, report and metadata go into a JSON beside
    them. Exits with 1 where a sample is damaged; the others are exported all the same.
    """
    require_choice("to", to, (*_FORMATS, _ENERGON))
    if to == _ENERGON:
        _index(
            where,
            split or "train",
            force,
            asked=output_dir is not None or samples is not None or hu,
        )
        return
    if split is not None:
        raise UsageError("--split is for the index of --to energon; leave it out")
    listed = [name for one in samples or () for name in map(str.strip, one.split(",")) if name]
    if output_dir is None or not listed:
        raise UsageError(
            "say where the files go with --output-dir, and which samples they are with --samples: "
            "names, numbers or all"
        )
    form = cast(Form, to)
    chosen = None if listed == ["all"] else listed
    exported = faults = 0
    with stoppable():
        for one in export_samples(where, output_dir, to=form, samples=chosen, hu=hu, force=force):
            if one.fault is None:
                exported += 1
                say(f"{one.key}: {', '.join(path.name for path in one.files)}")
            else:
                faults += 1
                say(f"{one.key}: {one.fault}")
    damaged = f"; {faults} could not be" if faults else ""
    Console().prose(
        f"{output_dir}: {exported} of {counted(exported + faults, 'sample')} exported{damaged}"
    )
    raise typer.Exit(1 if faults else 0)


def _index(where: str, split: str, force: bool, *, asked: bool) -> None:
    require_choice("split", split, _SPLITS)
    if asked:
        raise UsageError(
            "--to energon writes an index of all samples beside their tars; leave out "
            "--output-dir, --samples and --hu"
        )
    indexed = write_energon_index(where, split=cast(Split, split), force=force)
    kept = "; dataset.yaml was left as it is, --force replaces it" if indexed.kept_dataset else ""
    Console().prose(
        f"{indexed.folder}: {counted(indexed.samples, 'sample')} in "
        f"{counted(indexed.shards, 'shard')} indexed for Energon as {indexed.split}{kept}"
    )
