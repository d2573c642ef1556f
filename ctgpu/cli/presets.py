"""``ctgpu presets``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from ctgpu.cli.options import flags_of
from ctgpu.cli.terminal import Console, say
from ctgpu.spec import Spec
from ctgpu.spec.presets import presets
from ctgpu.spec.words import in_words

#: One call of it, as its help shows it.
EXAMPLE = "ctgpu presets merlin"


def command(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="One of them, to see it in full.")
    ] = None,
) -> None:
    """List the contracts of public projects that --preset takes, or show one of them."""
    if name is None:
        _list(Console())
    else:
        _show(name, Console())


def _list(console: Console) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("preset", no_wrap=True)
    for heading in ("contract", "as in"):
        table.add_column(heading, overflow="fold")
    for name, one in presets().items():
        project = one.repository.partition("//")[2].removeprefix("github.com/").strip("/")
        table.add_row(name, in_words(Spec.preset(name)), f"{one.title} ({project})")
    console.print(table)
    console.prose(
        "`ctgpu presets NAME` shows one in full: flags that say the same, sources, differences"
    )


def _show(name: str, console: Console) -> None:
    spec, one = Spec.preset(name), presets()[name]
    console.prose(f"{name}: {one.title}")
    console.prose(in_words(spec))
    say("")
    say(f"the same in flags: {flags_of(spec) or 'none, this is the default'}")
    say("")
    say(f"read at {one.version}:")
    for address in dict.fromkeys(one.sources.values()):
        say(f"  {address}")
    say("")
    console.prose(f"differs: {one.distance}")
    if one.differs:
        console.prose(one.differs)
