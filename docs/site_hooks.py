"""What the site has beside the files of docs/: pages of other files, and links that leave it."""

from __future__ import annotations

import html
import logging
import os.path
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from mkdocs.structure.files import File, Files

from ctgpu.cli.commands import app

REPOSITORY = Path(__file__).resolve().parent.parent
SOURCES = "https://github.com/ctgpu/ctgpu/blob/main"
#: Files elsewhere that are pages of the site too.
PAGES = {"CHANGELOG.md": "docs/changelog.md", "SECURITY.md": "docs/security.md"}
FENCED = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")
COLUMNS = 80
CELL = re.compile(r"<td((?: style=\"[^\"]*\")?)>(.*?)</td>", re.DOTALL)
#: Characters up to which a cell stays on one line, and from which its column may not get narrow.
SHORT, LONG = 20, 45
#: What is written in code within a sentence: options would be parted at their hyphens.
NAME = re.compile(r"(?<!</span>)<code>([^<]{1,32})</code>")
#: A picture, and what stands in links, where another would be no HTML.
IMAGE = re.compile(r"<a\b.*?</a>|<img\b[^>]*\bsrc=\"([^\"]+)\"[^>]*>", re.DOTALL)

log = logging.getLogger("mkdocs.hooks.ctgpu")


def relinked(text: str, file: str, page: str) -> str:
    """A file's text with its links as they lead from its page.

    Parameters
    ----------
    text : str
        Markdown.
    file, page : str
        Where it lies and where its page lies, below the repository's root.
    """

    def leads_to(link: re.Match[str]) -> str:
        target = os.path.normpath(os.path.join(os.path.dirname(file), link[1]))
        target = PAGES.get(target, target)
        if target.startswith("docs/"):  # which mkdocs itself checks
            return os.path.relpath(target, os.path.dirname(page))
        if not (REPOSITORY / target).exists():
            log.warning("%s links to %s, and there is no such file", file, link[1])
        return f"{SOURCES}/{target}"

    parts = FENCED.split(text)
    parts[::2] = [LINK.sub(leads_to, part) for part in parts[::2]]
    return "".join(parts)


def laid_out(page: str) -> str:
    """HTML with classes of what may not be broken or get narrow; its pictures open on a click.

    Browsers give the columns of a table that is too wide their longest words' widths: figures
    are parted from their units then, and sentences are set a word a line.
    """

    def with_class(cell: re.Match[str]) -> str:
        length = len(html.unescape(re.sub(r"<[^>]*>", "", cell[2])).strip())
        kind = "short" if length <= SHORT else "long" if length >= LONG else ""
        return f'<td class="{kind}"{cell[1]}>{cell[2]}</td>' if kind else cell[0]

    def with_link(found: re.Match[str]) -> str:
        return f'<a href="{found[1]}">{found[0]}</a>' if found[1] else found[0]

    page = NAME.sub(r'<code class="short">\1</code>', CELL.sub(with_class, page))
    return IMAGE.sub(with_link, page)


def commands() -> Iterator[str]:
    """The page of all commands, in parts: what ``--help`` says of each."""
    yield "# Commands\n\nWhat `ctgpu COMMAND --help` says.\n"
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        context = typer.Context(
            command,
            info_name=f"ctgpu {name}",
            terminal_width=COLUMNS,
            help_option_names=["-h", "--help"],
        )
        yield f"\n## ctgpu {name}\n\n```text\n{command.get_help(context).strip()}\n```\n"


def on_files(files: Files, config: Any) -> Files:
    for file, page in PAGES.items():
        text = relinked((REPOSITORY / file).read_text(encoding="utf-8"), file, page)
        files.append(File.generated(config, page.removeprefix("docs/"), content=text))
    files.append(File.generated(config, "commands.md", content="".join(commands())))
    return files


def on_page_content(content: str, /, **_: Any) -> str:
    return laid_out(content)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    file = f"docs/{page.file.src_uri}"
    return markdown if file in PAGES.values() else relinked(markdown, file, file)
