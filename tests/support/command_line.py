"""The command line, in a process of its own or, which takes a tenth of the time, in this one."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

from ctgpu.cli import exits
from support.phantoms import SPEC_FLAGS

CTGPU = (sys.executable, "-m", "ctgpu.cli")
#: A build of small outputs.
SMALL = (*SPEC_FLAGS, "--device", "cpu")
#: A terminal that is wide enough for sentences, and no network.
_VARIABLES = {"COLUMNS": "120", "HF_HUB_OFFLINE": "1"}
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)

Ended = subprocess.CompletedProcess[str]


def run(*arguments: object, **options: Any) -> Ended:
    """``ctgpu`` as a user runs it."""
    ended = subprocess.run(
        [*CTGPU, *map(str, arguments)],
        capture_output=True,
        timeout=120,
        check=False,
        env=os.environ | _VARIABLES,
        **options,
    )
    # Decoded here: universal newlines would hide a carriage return.
    streams = (ended.stdout.decode(), ended.stderr.decode())
    return subprocess.CompletedProcess(ended.args, ended.returncode, *streams)


def finish(command: Sequence[object], **streams: Any) -> Ended:
    """A command that has its own idea of standard streams."""
    return subprocess.run(
        [str(word) for word in command],
        **({"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams),
        text=True,
        timeout=120,
        check=False,
    )


def shell(script: str, *arguments: object) -> Ended:
    """``ctgpu`` as ``"$@"`` of a script, which arranges its streams."""
    return finish(["bash", "-c", script, "bash", *CTGPU, *arguments])


def patched(patch: str, *arguments: object) -> Ended:
    """``ctgpu`` in a process in which `patch` has been executed first."""
    script = f"{patch}\nfrom ctgpu.cli import main\nmain()"
    return finish([sys.executable, "-c", script, *arguments])


def run_here(*arguments: object, **variables: str) -> Ended:
    """The same in this process, down to the descriptors of its standard streams."""
    words = ["ctgpu", *map(str, arguments)]
    with _process_kept(), _streams_caught() as caught:
        with (
            mock.patch.object(sys, "argv", words),
            mock.patch.object(sys, "stdout", _on(1)),
            mock.patch.object(sys, "stderr", _on(2)),
            mock.patch.dict(os.environ, _VARIABLES | variables),
        ):
            try:
                exits.run()
            except SystemExit as ended:
                code = ended.code
        output, errors = (_content(number) for number in caught)
    assert isinstance(code, int)
    return subprocess.CompletedProcess(words, code, output, errors)


def sentence(result: Ended) -> str:
    """The only line of the command's own on standard error."""
    lines = [line for line in result.stderr.splitlines() if line.startswith("ctgpu: ")]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.stderr
    return lines[0]


@contextlib.contextmanager
def _process_kept() -> Iterator[None]:
    """Put back what a command changes of its process."""
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    loggers = [logging.getLogger(name) for name in ("", "ctgpu", "py.warnings")]
    logs = [(logger, logger.handlers[:], logger.level) for logger in loggers]
    hook = threading.excepthook
    try:
        yield
    finally:
        logging.captureWarnings(False)
        threading.excepthook = hook
        for logger, kept, level in logs:
            logger.handlers[:] = kept
            logger.setLevel(level)
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _streams_caught() -> Iterator[tuple[int, int]]:
    """Files that take the place of standard output and error."""
    sys.stdout.flush()
    sys.stderr.flush()
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile()) for _ in (1, 2)]
        for descriptor, file in zip((1, 2), files, strict=True):
            before = os.dup(descriptor)
            stack.callback(os.close, before)
            stack.callback(os.dup2, before, descriptor)
            os.dup2(file.fileno(), descriptor)
        yield files[0].fileno(), files[1].fileno()


def _on(descriptor: int) -> Any:
    return open(descriptor, "w", encoding="utf-8", closefd=False)


def _content(descriptor: int) -> str:
    size = os.fstat(descriptor).st_size
    return os.pread(descriptor, size, 0).decode()
