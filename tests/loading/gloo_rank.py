"""One rank of a gloo group, for the tests: writes what it was given to a file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ctgpu.loading import make_loader


def main(folder: Path, meeting: Path, rank: int, world_size: int, state: Any, stop: int) -> None:
    import torch
    from torch import distributed

    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=world_size
    )
    loader = make_loader(folder, 1, shuffle=True, seed=7)
    if state:
        loader.load_state_dict(state)
    steps = []
    for batch in loader:
        # What DDP does at each step: it would hang if a rank had one step less.
        total = batch["volume"].float().sum()
        distributed.all_reduce(total)
        steps.append([batch["study_id"], total.item()])
        if len(steps) == stop:
            break
    result = {"steps": steps, "state": loader.state_dict(), "len": len(loader)}
    Path(f"{meeting}.{rank}").write_text(json.dumps(result))
    distributed.destroy_process_group()
