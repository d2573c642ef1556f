"""Train, be killed at any moment, and go on in the middle of the epoch: run it again.

    python examples/resume.py demo/shards run.pt --epochs 5

Needs the extra `torch`.  The order of an epoch depends on the seed and the epoch alone, so a run
that was killed sees the samples that it would have seen, each once.
"""

import argparse
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from ctgpu import CtgpuError
from ctgpu.loading import VolumeDataset, make_loader

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args()
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        dataset = VolumeDataset(options.folder)
        loader = make_loader(dataset, shuffle=True, seed=0, labelled_only=True, device=device)
    except CtgpuError as error:
        parser.error(str(error))
    layers = (nn.Conv3d(1, 16, 5, stride=4, padding=2), nn.ReLU(), nn.AdaptiveAvgPool3d(1))
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, len(dataset.class_names))).to(device)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    parts = {"model": model, "optimizer": optimizer, "loader": loader}
    history: list[tuple[str, float]] = []
    if options.checkpoint.exists():
        saved = torch.load(options.checkpoint, map_location=device)
        history = saved["history"]
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        print(f"going on after step {len(history)}", flush=True)
    # Steps are counted, not epochs: a run may be killed between the last step of one and the next.
    while len(history) < options.epochs * len(loader):
        for batch in loader:
            logits, labels = model(batch["volume"].float()), batch["labels"]
            known = ~labels.isnan()  # a blank cell of the table teaches nothing
            loss = F.binary_cross_entropy_with_logits(logits[known], labels[known])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            history.append((batch["study_id"][0], loss.item()))
            state = {name: part.state_dict() for name, part in parts.items()}
            # Under another name first, so that the checkpoint is whole whenever it is there.
            torch.save(state | {"history": history}, f"{options.checkpoint}.tmp")
            os.replace(f"{options.checkpoint}.tmp", options.checkpoint)
            print(f"step {len(history)}: loss {loss.item():.3f}", flush=True)
