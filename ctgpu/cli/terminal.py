"""The sinks: everything that the command line shows goes out here, nothing from outside raw.

File names, reports, keys and messages are escaped by :mod:`ctgpu.printable`, and never read as
markup.  A log line that cannot be written does not stop a build of days; that it was lost shows in
the exit code.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from enum import StrEnum
from typing import Any, TextIO

import rich.console
import typer
from rich.progress import Progress
from rich.text import Text

from ctgpu.cli.wrapping import wrap
from ctgpu.printable import printable, printable_lines, to_json


class LogFormat(StrEnum):
    """How log lines look."""

    text = "text"
    json = "json"


class Console(rich.console.Console):
    """A console on which every string is plain text on one line, in tables and titles too."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options | {"markup": False, "emoji": False})

    def prose(self, text: str, indent: str = "") -> None:
        """Print a paragraph: on a terminal broken between words, elsewhere as one line."""
        said = printable(text)
        for line in wrap(said, self.width, indent) if self.is_terminal else [indent + said]:
            self.print(line, soft_wrap=True)

    def on_broken_pipe(self) -> None:
        # Called where the error is being handled: exits.py decides what becomes of it.
        raise


class ShardBar(Progress):
    """How many shards were looked at: a bar on a terminal, which goes when it is done."""

    def __init__(self, doing: str, console: Console) -> None:
        super().__init__(console=console, transient=True, disable=not console.is_interactive)
        self._doing = self.add_task(doing, total=None)

    def looked_at(self, done: int, shards: int) -> None:
        """Say that so many of so many shards are done."""
        self.update(self._doing, completed=done, total=shards)

    def say(self, sentence: str) -> None:
        """Write a paragraph to standard output, with the bar out of its way."""
        console = Console()
        if self.disable or not console.is_terminal:
            console.prose(sentence)
            return
        self.stop()
        try:
            console.prose(sentence)
        finally:
            self.start()


def say(line: str) -> None:
    """Write one line to standard output."""
    typer.echo(printable(line))


def say_json(value: object) -> None:
    """Write one JSON object to standard output."""
    typer.echo(to_json(value))


class _Formatter(logging.Formatter):
    """One line for an event; a traceback below it is indented, so that it cannot pass for one."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        return printable_lines(super().formatException(ei), indent="    ")


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        line |= getattr(record, "facts", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return to_json(line)


class _Losing(logging.Handler):
    """Remembers that a line could not be written, instead of writing about it to the same place."""

    lost: OSError | None = None

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exception()
        if isinstance(error, OSError):
            self.lost = error
        else:
            super().handleError(record)


class _PlainHandler(_Losing, logging.StreamHandler[TextIO]):
    pass


class _LiveHandler(_Losing):
    """Lines for people who look on: the time, what happened, and its level where that matters."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self._day = time.localtime()[:3]

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._console.print(self._text_of(record), soft_wrap=True)
        except Exception:
            self.handleError(record)

    def _text_of(self, record: logging.LogRecord) -> Text:
        said, *traceback = self.format(record).split("\n")
        level = "" if record.levelno == logging.INFO else record.levelname
        when = time.localtime(record.created)
        begin = time.strftime("%H:%M:%S", when)
        lines = wrap(f"{level} {said}".lstrip(), self._console.width, " " * 9, f"{begin} ")
        text = Text("\n".join([*lines, *traceback]))
        text.stylize("log.time", 0, len(begin))
        if level:
            text.stylize(
                f"logging.level.{level.lower()}", len(begin) + 1, len(begin) + 1 + len(level)
            )
        if when[:3] != self._day:
            # A build takes days, and most lines do not need to say which one it is.
            self._day = when[:3]
            text = Text("\n").join([Text(time.strftime("%Y-%m-%d", when), "log.time"), text])
        return text


def configure_logging(log_format: LogFormat, level: int, console: Console) -> None:
    """Send log lines to standard error: above the live display on a terminal, else plain.

    Warnings of other packages, and errors that end a thread, become such lines too.
    """
    handler: _Losing
    if log_format is LogFormat.json:
        handler = _PlainHandler(sys.stderr)
        handler.setFormatter(_JsonFormatter())
    elif console.is_terminal:
        handler = _LiveHandler(console)
        handler.setFormatter(_Formatter())
    else:
        handler = _PlainHandler(sys.stderr)
        handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger().handlers[:] = [handler]
    logging.getLogger("ctgpu").setLevel(level)
    logging.captureWarnings(True)
    threading.excepthook = _log_thread


def lost_log() -> OSError | None:
    """Why a log line could not be written, where one could not."""
    handlers = logging.getLogger().handlers
    return next((h.lost for h in handlers if isinstance(h, _Losing) and h.lost), None)


def _log_thread(error: threading.ExceptHookArgs) -> None:
    if error.exc_value is not None and error.exc_type is not SystemExit:
        name = error.thread.name if error.thread is not None else "a thread"
        logging.getLogger("ctgpu").error("%s has ended: %r", name, error.exc_value)
