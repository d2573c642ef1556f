"""``ctgpu manifest``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ctgpu.cli.options import Debug
from ctgpu.cli.terminal import say
from ctgpu.shards.manifest import write_manifest


def command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The data set's folder.")],
    debug: Debug = False,
) -> None:
    """Derive manifest.json and failures.jsonl again from the shards' records; no tar is read."""
    card = write_manifest(folder)
    say(
        f"{folder}: {card['total_samples']} of {card['planned_samples']} samples in "
        f"{card['total_shards']} of {card['planned_shards']} shards, "
        f"{card['failed_samples']} failed"
    )
