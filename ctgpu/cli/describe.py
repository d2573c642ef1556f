"""``ctgpu describe``."""

from __future__ import annotations

import codecs
import contextlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from ctgpu.building.describing import built_in_file, describe
from ctgpu.cli.options import Debug
from ctgpu.cli.terminal import say
from ctgpu.data_sets import BUILT_IN
from ctgpu.data_sets.writing import ascii_only
from ctgpu.errors import StorageError, UsageError, reason_of

_SUFFIX = ".toml"


#: One call of it, as its help shows it.
EXAMPLE = "ctgpu describe volumes --output my-data.toml"


def command(
    folder: Annotated[
        str | None,
        typer.Argument(
            metavar="[FOLDER|NAME]",
            help=f"A folder of volumes; or {', '.join(BUILT_IN)}, to see that description.",
        ),
    ] = None,
    repo_id: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="A data set on the Hub instead.")
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Its branch, tag or commit. (default: main)"),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="Write it here, such as my-data.toml, and not to stdout."
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Look at a folder or a repository, and write a first description of the data set in it.

    What is recognised becomes fields, what is not becomes remarks. --dataset takes the file.
    """
    # A repository may take a while to look at.
    if output is not None:
        _require_new(output)
    text = _text_of(folder, repo_id, revision, str(output) if output else "my-data.toml")
    if output is not None:
        _write(output, text)
        say(f"{output}: read its remarks, then pass it to --dataset")
        return
    if not _takes_all(sys.stdout.encoding):
        text = ascii_only(text)
    # A line ends nowhere else, whatever is in a text.
    for line in text.removesuffix("\n").split("\n"):
        say(line)


def _text_of(folder: str | None, repo_id: str | None, revision: str | None, output: str) -> str:
    if folder is None or repo_id is not None or Path(folder).is_dir():
        return describe(folder, repo_id=repo_id, revision=revision, file_name=output)
    if (text := built_in_file(folder)) is not None:
        if revision is not None:
            raise UsageError(f"--revision is of a data set on the Hub, and {folder} is built in")
        return text
    if Path(folder).suffix or "/" in folder or Path(folder).exists():
        return describe(folder, revision=revision)
    raise UsageError(
        f"there is no folder {folder} here, and no description of that name: pass the folder that "
        f"holds the volumes, or one of {', '.join(BUILT_IN)}"
    )


def _require_new(output: Path) -> None:
    if output.suffix != _SUFFIX:
        raise UsageError(
            f"--output is {output}; let its name end in {_SUFFIX}, by which --dataset knows a file"
        )
    if output.exists() or output.is_symlink():
        raise UsageError(f"{output} is there already; name another file with --output")


def _write(output: Path, text: str) -> None:
    try:
        file = output.open("x", encoding="utf-8", newline="\n")
    except FileExistsError:
        raise UsageError(f"{output} is there already; name another file with --output") from None
    except OSError as error:
        raise StorageError(f"{output} cannot be written: {reason_of(error)}") from error
    try:
        with file:
            file.write(text)
    except OSError as error:
        # A part of it would be in the way next time.
        with contextlib.suppress(OSError):
            output.unlink()
        raise StorageError(f"{output} cannot be written: {reason_of(error)}") from error


def _takes_all(encoding: str | None) -> bool:
    """Whether what is sent to a stream arrives as the UTF-8 that TOML is."""
    try:
        return codecs.lookup(encoding or "ascii").name == "utf-8"
    except LookupError:
        return False
