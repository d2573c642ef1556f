"""Train an image encoder and a text encoder on pairs of a volume and its report, as CLIP does.

    python examples/train_clip.py demo/shards --epochs 5

Needs the extra `torch`.  The encoders are as small as they can be: put yours in their places.
"""

import argparse
import re
import zlib
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from ctgpu.loading import make_loader

WORDS, WIDTH, BATCH_SIZE = 4096, 64, 4
device = "cuda" if torch.cuda.is_available() else "cpu"


def tokens(reports: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Words as numbers, by their hashes, and where each report begins among them."""
    words = [re.findall(r"\w+", report.lower()) or [""] for report in reports]
    numbers = [zlib.crc32(word.encode()) % WORDS for report in words for word in report]
    starts = torch.tensor([0, *map(len, words[:-1])]).cumsum(0)
    return torch.tensor(numbers, device=device), starts.to(device)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args()
    torch.manual_seed(0)
    image_encoder = nn.Sequential(
        *(nn.Conv3d(1, 16, 5, stride=4, padding=2), nn.ReLU()),
        *(nn.Conv3d(16, 32, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool3d(2), nn.Flatten(), nn.Linear(32 * 8, WIDTH)),
    ).to(device)
    text_encoder = nn.EmbeddingBag(WORDS, WIDTH).to(device)
    log_scale = nn.Parameter(torch.tensor(2.0, device=device))
    parameters = [*image_encoder.parameters(), *text_encoder.parameters(), log_scale]
    optimizer = torch.optim.Adam(parameters, 3e-3)
    # A pair is told from the others of its batch: a last batch of fewer would be easier.
    loader = make_loader(options.folder, BATCH_SIZE, shuffle=True, drop_last=True, device=device)
    for epoch in range(options.epochs):
        for batch in loader:
            images = F.normalize(image_encoder(batch["volume"].float()))
            texts = F.normalize(text_encoder(*tokens(batch["report"])))
            logits = log_scale.exp() * images @ texts.T
            own = torch.arange(len(logits), device=device)
            loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch}: loss {loss.item():.3f}")
