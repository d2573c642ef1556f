"""How a command ends: one sentence on standard error, and an exit code that means something.

The subcommands are imported below :func:`run`, so that what goes wrong there has a code too.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import sys
import traceback
from typing import Any, NoReturn, TextIO

from ctgpu.cli.stopping import Stopped
from ctgpu.errors import CtgpuError, EnvironmentFailure, reason_of, shortage
from ctgpu.printable import printable, printable_lines

#: ``EX_SOFTWARE`` of ``sysexits.h``: something that this package did not foresee.
DEFECT_EXIT_CODE = 70

_STDOUT = "standard output"


def run() -> NoReturn:
    """Do what the command line says, and end the process."""
    code = _run()
    for stream in (sys.stdout, sys.stderr):
        # What could not be written must not fail once more when the interpreter ends.
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(code)


def _run() -> int:
    try:
        _open_standard_streams()
        from ctgpu.cli.commands import invoke
        from ctgpu.cli.terminal import lost_log

        code = invoke()
    except BaseException as error:
        return _end(error)
    if (lost := lost_log()) is not None and code <= CtgpuError.exit_code:
        return _fail(f"log lines could not be written to standard error: {reason_of(lost)}")
    return code


def _end(error: BaseException) -> int:
    """Say what happened and return its exit code."""
    if isinstance(error, Stopped):
        _tell(error.sentence, error.command)
        return error.exit_code
    if isinstance(error, SystemExit) and isinstance(error.__context__, BrokenPipeError):
        error = error.__context__  # libraries exit by themselves then
    if isinstance(error, BrokenPipeError) and error.filename == _STDOUT:
        # As any program ends whose output is not wanted any more.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.raise_signal(signal.SIGPIPE)
    if "--debug" in sys.argv:
        _write(printable_lines("".join(traceback.format_exception(error)), indent="  "))
    if isinstance(error, CtgpuError):
        _tell(str(error))
        return error.exit_code
    if (short := shortage(error)) is not None:
        return _fail(str(short))
    if isinstance(error, OSError) and error.errno is not None:
        return _fail(_refused_by_the_system(error))
    _tell(
        f"this is a defect of ctgpu, please report it: {type(error).__name__}: {error}; finished "
        "samples are kept, and --debug shows the traceback"
    )
    return DEFECT_EXIT_CODE


def _fail(sentence: str) -> int:
    _tell(sentence)
    return EnvironmentFailure.exit_code


def _refused_by_the_system(error: OSError) -> str:
    if error.filename is not None:
        return f"{error.filename} cannot be used: {reason_of(error)}"
    try:
        os.getcwd()
    except OSError:  # what is relative names no file then
        return "the working folder is gone: change to one that exists"
    return f"the system refuses: {reason_of(error)}; finished samples are kept"


class _Stream(io.FileIO):
    """A standard stream whose errors say which one it is."""

    def __init__(self, descriptor: int, name: str) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.name = name

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            raise OSError(error.errno, error.strerror, self.name) from None


def _open_standard_streams() -> None:
    """Replace output and errors by streams that fail in words and escape what an encoding lacks.

    Raises
    ------
    EnvironmentFailure
        If standard output is closed.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # Else the next file opened would get this number, and receive what is printed.
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is not None:
        sys.stderr = _text(_Stream(2, "standard error"), sys.stderr.encoding)
    if sys.stdout is None:
        raise EnvironmentFailure(
            "standard output is closed: send it to a file, or to /dev/null if it is not wanted"
        )
    sys.stdout = _text(_Stream(1, _STDOUT), sys.stdout.encoding)


def _text(stream: _Stream, encoding: str) -> TextIO:
    return io.TextIOWrapper(
        io.BufferedWriter(stream), encoding, errors="backslashreplace", line_buffering=True
    )


def _tell(sentence: str, command: str | None = None) -> None:
    """Say a sentence, and a command that is to be copied."""
    said = f"ctgpu: {printable(sentence)}"
    with contextlib.suppress(OSError, ImportError, ValueError):
        if sys.stderr is not None and sys.stderr.isatty():
            from ctgpu.cli.wrapping import wrap

            columns = shutil.get_terminal_size().columns
            said = "\n".join([*wrap(said, columns), *([] if command is None else [f"  {command}"])])
            command = None
    _write(said if command is None else f"{said} {command}")


def _write(text: str) -> None:
    # Where standard error is closed or fails too, the code alone must say it.
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(text, file=sys.stderr, flush=True)
