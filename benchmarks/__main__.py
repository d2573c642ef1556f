"""``python -m benchmarks``: every benchmark on one page, or a comparison of two results."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

# Scripts find each other by bare name, as where each runs by its path.
sys.path.insert(0, str(Path(__file__).resolve().parent))

import compare
import page

if __name__ == "__main__":
    # As any program ends whose output is not wanted any more, such as before `| head`.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    if sys.argv[1:2] == ["compare"]:
        sys.exit(compare.main(sys.argv[2:]))
    sys.exit(page.main(sys.argv[1:]))
