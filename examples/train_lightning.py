"""Train a small 3-D CNN on the labels of a data set, with Lightning.

    python examples/train_lightning.py demo/shards --epochs 5

Needs the extra `torch`, and `pip install lightning`.  Checkpoints go to `checkpoints/`.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch import nn

from ctgpu.loading import VolumeDataset, make_loader


class Classifier(LightningModule):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.losses: list[float] = []
        self.layers = nn.Sequential(
            *(nn.Conv3d(1, 16, 5, stride=4, padding=2), nn.ReLU()),
            *(nn.Conv3d(16, 32, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(32, classes)),
        )

    def training_step(self, batch: dict, _: int) -> torch.Tensor:
        logits, labels = self.layers(batch["volume"].float()), batch["labels"]
        known = ~labels.isnan()  # a study without labels, or a blank cell, teaches nothing
        loss = F.binary_cross_entropy_with_logits(logits[known], labels[known], reduction="sum")
        loss = loss / known.sum().clamp(min=1)
        self.losses.append(loss.item())
        return loss

    def on_train_epoch_end(self) -> None:
        print(f"epoch {self.current_epoch}: loss {sum(self.losses) / len(self.losses):.3f}")
        self.losses.clear()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=2)
    options = parser.parse_args()
    torch.manual_seed(0)
    dataset = VolumeDataset(options.folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loader = make_loader(dataset, options.batch_size, shuffle=True, seed=0, device=device)
    trainer = Trainer(accelerator=device, devices=1, max_epochs=options.epochs, logger=False)
    trainer.fit(Classifier(len(dataset.class_names)), loader)
