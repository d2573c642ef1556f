"""Train on several GPUs, or processes of a CPU, that share the samples of each epoch.

    torchrun --standalone --nproc-per-node=2 examples/train_ddp.py demo/shards --epochs 5

Needs the extra `torch`.  The loader asks torch.distributed for its share: there is no sampler.
"""

import argparse
import os

import torch
import torch.nn.functional as F
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from ctgpu import CtgpuError
from ctgpu.loading import VolumeDataset, make_loader

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args()
    if "LOCAL_RANK" not in os.environ:
        parser.error("start it with torchrun, which tells each process its rank")
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    try:
        dataset = VolumeDataset(options.folder)
        loader = make_loader(dataset, shuffle=True, seed=0, labelled_only=True, device=device)
    except CtgpuError as error:
        parser.error(str(error))
    # Before the first epoch, for which the loader asks it for this process's share.
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    torch.manual_seed(0)
    layers = (nn.Conv3d(1, 16, 5, stride=4, padding=2), nn.ReLU(), nn.AdaptiveAvgPool3d(1))
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, len(dataset.class_names))).to(device)
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for epoch in range(options.epochs):
        losses, seen = torch.zeros(2, device=device), []
        for batch in loader:
            logits, labels = parallel(batch["volume"].float()), batch["labels"]
            known = ~labels.isnan()  # a blank cell of the table teaches nothing
            loss = F.binary_cross_entropy_with_logits(logits[known], labels[known])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses += torch.stack([loss.detach(), torch.ones_like(loss)])
            seen += batch["study_id"]
        distributed.all_reduce(losses)
        everyone: list = [None] * distributed.get_world_size()
        distributed.all_gather_object(everyone, seen)
        if distributed.get_rank() == 0:
            print(f"epoch {epoch}: loss {losses[0] / losses[1]:.3f}; samples {everyone}")
    distributed.destroy_process_group()
