"""Train a small 3-D CNN on the labels of a data set, with Lightning.

    python examples/train_lightning.py demo/shards --epochs 5

Needs the extra `torch`, and Lightning.  Losses and checkpoints go to `lightning_logs/`.
"""

import argparse

import torch
import torch.nn.functional as F
from torch import nn

from ctgpu import CtgpuError
from ctgpu.loading import make_loader

try:
    from lightning.pytorch import LightningModule, Trainer, loggers
except ImportError:
    raise SystemExit("train_lightning.py needs Lightning: pip install lightning") from None


class Classifier(LightningModule):
    def __init__(self, classes: int) -> None:
        super().__init__()
        cnn = (nn.Conv3d(1, 16, 5, stride=4), nn.ReLU(), nn.Conv3d(16, 32, 3, stride=2), nn.ReLU())
        head = (nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(32, classes))
        self.layers = nn.Sequential(*cnn, *head)

    def training_step(self, batch: dict, _: int, name: str = "loss") -> torch.Tensor:
        logits, labels = self.layers(batch["volume"].float()), batch["labels"]
        known = ~labels.isnan()  # a blank cell of the table teaches nothing
        loss = F.binary_cross_entropy_with_logits(logits[known], labels[known])
        self.log(name, loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(labels))
        return loss

    def validation_step(self, batch: dict, number: int) -> None:
        self.training_step(batch, number, "valid_loss")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--valid", help="folder of other patients, to validate on")
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args()
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        loader = make_loader(options.folder, 2, shuffle=True, labelled_only=True, device=device)
        valid = options.valid and make_loader(options.valid, 2, labelled_only=True, device=device)
    except CtgpuError as error:
        parser.error(str(error))
    logger = loggers.CSVLogger(".")
    trainer = Trainer(accelerator=device, devices=1, max_epochs=options.epochs, logger=logger)
    trainer.fit(Classifier(len(loader.dataset.class_names)), loader, valid)
