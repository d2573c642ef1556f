"""Trains a classifier of a data set's labels on its shards; run again, it goes on.

On one device ``python examples/train.py shards/train``, and on eight GPUs of a machine
``torchrun --nproc-per-node 8 examples/train.py shards/train``.
"""

from __future__ import annotations

import argparse
import os
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ctgpu import CtgpuError
from ctgpu.loading import VolumeDataset, make_loader


def network(classes: int) -> nn.Module:
    """A small one, where yours would come in: (B, 1, D, H, W) to (B, classes)."""
    layers: list[nn.Module] = []
    for before, after in pairwise([1, 16, 32, 64, 128]):
        layers += [nn.Conv3d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after)]
        layers += [nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(128, classes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("shards", help="folder of the data set")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=2, help="samples of one rank")
    parser.add_argument("--save-every", type=int, default=100, help="steps")
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoint.pt"))
    options = parser.parse_args()

    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    ranks, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    if ranks > 1:  # before the loader, which asks it for this rank's share
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")

    try:
        dataset = VolumeDataset(options.shards)
    except CtgpuError as error:
        parser.error(str(error))
    loader = make_loader(
        dataset,
        batch_size=options.batch_size,
        shuffle=True,
        seed=0,
        drop_last=True,
        labelled_only=True,  # a sample without any label has nothing to teach
        on_error="skip",  # a damaged one is a warning, and another takes its place
        device=device,
    )
    torch.manual_seed(0)
    model = network(len(dataset.class_names)).to(device)
    parallel = DistributedDataParallel(model) if ranks > 1 else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    if options.checkpoint.exists():
        saved = torch.load(options.checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        loader.load_state_dict(saved["loader"])

    def save() -> None:
        if rank == 0:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            beside = options.checkpoint.with_suffix(".new")
            torch.save({**state, "loader": loader.state_dict()}, beside)
            beside.replace(options.checkpoint)  # so that a kill leaves a whole one

    for epoch in range(loader.epoch, options.epochs):
        loader.set_epoch(epoch)  # one that the checkpoint is in the middle of goes on there
        for step, batch in enumerate(loader, 1):
            with torch.autocast(device.type, torch.bfloat16):
                logits = parallel(batch["volume"].float())
            known = ~batch["labels"].isnan()  # labels that the tables do not have are NaN
            loss = F.binary_cross_entropy_with_logits(logits.float()[known], batch["labels"][known])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % options.save_every == 0:
                save()
            if rank == 0 and step % 10 == 1:  # to show a loss waits for the GPU
                print(f"epoch {epoch} step {step}/{len(loader)} loss {loss.item():.4f}")
        save()

    if ranks > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
