"""``ctgpu manifest``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ctgpu.cli.options import Debug
from ctgpu.cli.terminal import Console
from ctgpu.printable import counted
from ctgpu.shards.manifest import write_manifest

#: One call of it, as its help shows it.
EXAMPLE = "ctgpu manifest shards"


def command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The data set's folder.")],
    debug: Debug = False,
) -> None:
    """Derive manifest.json and failures.jsonl again from the shards' records; no tar is read."""
    card = write_manifest(folder)
    Console().prose(
        f"{folder}: {card['total_samples']} of {counted(card['planned_samples'], 'sample')} in "
        f"{card['total_shards']} of {counted(card['planned_shards'], 'shard')}, "
        f"{card['failed_samples']} failed"
    )
