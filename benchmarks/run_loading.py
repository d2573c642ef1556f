"""What does loading cost, step by step and per second, in the old way, with ctgpu and with others?

Four questions, each on full-size samples of one real scan:

- where the time of one sample goes, and what that means for a training step: the old guide's
  tables beside the old way and ctgpu as measured here (``loading_steps.py``).  Without a GPU the
  consumer is a fixed wait, labelled as simulated; with one it is a training step, which has not
  run on a device yet (``loading_consumer.py``);
- how many samples per second webdataset, DALI, litdata, plain ``readinto`` and ctgpu deliver from
  warm tars, and how that grows with threads (``loading_contenders.py``);
- how fast cold files are read, against ``dd``;
- whether memory stays within its budget, and ranks and resuming are exact (``loading_checks.py``).

Contenders that are not installed are left out and named.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from common import (
    REAL_CT_NAME,
    REAL_CT_SPACING_MM,
    argument_parser,
    load_real_ct,
    phantom_ct,
)
from ctgpu.machine import usable_cores
from ctgpu.spec import Spec
from loading_checks import STOP_EVERY, cold, memory, ranks, resume
from loading_consumer import make_consumer
from loading_contenders import compare_contenders, compare_threads
from loading_data import Data, build, write_raw
from loading_steps import compare_steps
from publishing import publish

_TINY = Spec(shape_hwd=(16, 16, 8), target_spacing_mm=(8.0, 8.0, 16.0))


def main() -> None:
    """Run the benchmark."""
    parser = argument_parser(__doc__ or "", repeats=5)
    parser.add_argument("--samples", type=int, default=16, help="samples of the data set")
    parser.add_argument("--work-dir", type=Path, help="where to work; default a temporary folder")
    options = parser.parse_args()
    thread_counts = [1, 2, 4, 8, 16]
    if options.quick:
        options.samples, options.repeats, thread_counts = 4, 1, [1, 2]
        voxels, spacing_mm, about = phantom_ct((96, 80, 60)), (3.0, 3.0, 6.0), "phantom 96×80×60"
        spec = Spec(shape_hwd=(96, 96, 48), target_spacing_mm=(3.0, 3.0, 6.0))
    else:
        voxels, spacing_mm, spec = load_real_ct(options.data), REAL_CT_SPACING_MM, Spec()
        about = f"{REAL_CT_NAME}, its 112 slices repeated to 300, called {spacing_mm} mm"
    torch.set_num_threads(usable_cores())
    consumer = make_consumer()
    with tempfile.TemporaryDirectory(dir=options.work_dir) as name:
        folder = Path(name)
        data = Data(
            raw=write_raw(folder / "raw-000000.tar", voxels, spacing_mm, samples=2),
            shards=build(folder / "shards", voxels, spacing_mm, spec, options.samples),
            litdata=folder / "litdata",
        )
        del voxels
        tiny_voxels = phantom_ct((32, 32, 16))
        tiny = build(folder / "tiny", tiny_voxels, (4.0, 4.0, 8.0), _TINY, 2 * STOP_EVERY + 3)
        result = {
            "data": about,
            "sample_bytes": spec.size_bytes,
            "samples": options.samples,
            "cores": usable_cores(),
            "torch_threads": torch.get_num_threads(),
            "consumer": {"name": consumer.name, "simulated": consumer.simulated},
            "cache": "warm: every file was read before the first run; `cold` says where not",
            "steps": compare_steps(
                data,
                consumer,
                repeats=options.repeats,
                old_samples=min(4, options.samples),
                attached_steps=min(8, options.samples),
            ),
            "warm": compare_contenders(data, options.repeats),
            "threads": compare_threads(data, thread_counts, max(1, options.repeats // 2)),
            "cold": cold(data, options.repeats),
            "memory": memory(data.shards),
            "ranks": ranks(tiny),
            "resume": resume(tiny),
        }
    publish(options, "loading", result)


if __name__ == "__main__":
    main()
