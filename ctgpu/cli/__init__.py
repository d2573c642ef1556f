"""The command line: one file a subcommand, each a thin skin over a Python function."""

from __future__ import annotations

import os
import signal
import sys


def main() -> None:
    """Run the command line."""
    # Until a command has something to tidy up, Ctrl-C ends the process, imports included.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Nothing here multiplies large matrices; each thread of OpenBLAS costs memory and a place.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        from ctgpu.cli.exits import run
    except (OSError, MemoryError) as error:  # not even the means to say it well can be loaded
        print(f"ctgpu: too little memory or too few open files to begin: {error}", file=sys.stderr)
        sys.exit(3)
    run()
