"""Train on several GPUs, or processes of a CPU, that share the samples of each epoch.

    torchrun --standalone --nproc-per-node=2 examples/train_ddp.py demo/shards --epochs 5

Needs the extra `torch`.  The loader asks torch.distributed for its share: there is no sampler.
"""

import argparse
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from ctgpu.loading import VolumeDataset, make_loader

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args()
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    torch.manual_seed(0)
    dataset = VolumeDataset(options.folder)
    loader = make_loader(dataset, shuffle=True, seed=0, device=device)
    layers = nn.Sequential(
        *(nn.Conv3d(1, 16, 5, stride=4, padding=2), nn.ReLU()),
        *(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(16, len(dataset.class_names))),
    )
    model = DistributedDataParallel(layers.to(device))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for epoch in range(options.epochs):
        losses, seen = torch.zeros(2, device=device), []
        for batch in loader:
            logits, known = model(batch["volume"].float()), ~batch["labels"].isnan()
            loss = F.binary_cross_entropy_with_logits(
                logits[known], batch["labels"][known], reduction="sum"
            )
            optimizer.zero_grad()
            (loss / known.sum().clamp(min=1)).backward()
            optimizer.step()
            losses += torch.stack([loss.detach(), known.sum()])
            seen += batch["study_id"]
        distributed.all_reduce(losses)
        everyone: list = [None] * distributed.get_world_size()
        distributed.all_gather_object(everyone, seen)
        if distributed.get_rank() == 0:
            print(f"epoch {epoch}: loss {losses[0] / losses[1]:.3f}; samples {everyone}")
    distributed.destroy_process_group()
