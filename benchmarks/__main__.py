"""``python -m benchmarks``: every question on one page, or a comparison of two results.

A script beside this file stands for its question: ``run_build.py`` is ``questions/build.py``.
"""

from __future__ import annotations

import importlib
import signal
import sys
from pathlib import Path

#: What is no question, and where it is.
OTHERS = {
    "compare": "harness.compare",
    "page": "harness.page",
    "plots": "publishing.bars",
    "report": "publishing.report",
}


def main() -> int:
    """Run what was asked for; returns the exit status."""
    name, arguments = Path(sys.argv[0]).stem.removeprefix("run_"), sys.argv[1:]
    if name == "__main__":
        compares = arguments[:1] == ["compare"]
        name, arguments = ("compare", arguments[1:]) if compares else ("page", arguments)
    if name in OTHERS:
        # They end as any program does whose output is not wanted any more, such as before `| head`.
        # Questions do not: some talk to processes and connections that they break.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    module = importlib.import_module(f"benchmarks.{OTHERS.get(name, f'questions.{name}')}")
    return int(module.main(arguments))


if __name__ == "__main__":
    sys.exit(main())
