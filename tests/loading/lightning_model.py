"""A model for Lightning, in a module of its own, as Lightning takes seconds to import."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule


class Model(LightningModule):  # type: ignore[misc]
    """Writes down the study ids of every step, by kind of step and number of loader."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 18)
        self.seen: dict[str, list[str]] = {}

    def forward(self, batch: dict[str, Any]) -> Any:
        return self.layer(batch["volume"].float().mean((1, 2, 3, 4))[:, None])

    def training_step(self, batch: dict[str, Any], _: int) -> Any:
        self.seen.setdefault("train", []).extend(batch["study_id"])
        return self(batch).sum()

    def validation_step(self, batch: dict[str, Any], _: int, dataloader_idx: int = 0) -> None:
        self.seen.setdefault(f"valid {dataloader_idx}", []).extend(batch["study_id"])

    def test_step(self, batch: dict[str, Any], index: int, dataloader_idx: int = 0) -> None:
        self.seen.setdefault(f"test {dataloader_idx}", []).extend(batch["study_id"])

    def predict_step(self, batch: dict[str, Any], _: int, dataloader_idx: int = 0) -> Any:
        return {"logits": self(batch), "study_id": batch["study_id"], "volume": batch["volume"]}

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 1e-3)
