"""Train an image encoder and a text encoder on pairs of a volume and its report, as CLIP does.

    python examples/train_clip.py demo/shards --epochs 5

Needs the extra `torch`.  The encoders are as small as they can be: put yours in their places.
"""

import argparse
import re
import zlib

import torch
import torch.nn.functional as F
from torch import nn

from ctgpu import CtgpuError
from ctgpu.loading import VolumeDataset, make_loader


def tokens(reports: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Words as numbers, by their hashes, and where each report begins among them."""
    words = [re.findall(r"\w+", report.lower()) or [""] for report in reports]
    numbers = [zlib.crc32(word.encode()) % 4096 for report in words for word in report]
    return torch.tensor(numbers), torch.tensor([0, *map(len, words[:-1])]).cumsum(0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=4)
    options = parser.parse_args()
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        pairs = VolumeDataset(options.folder).select(lambda s: s.members["txt"].size_bytes > 0)
        # A pair is told from the others of its batch: a last batch of fewer would be easier.
        loader = make_loader(pairs, options.batch_size, shuffle=True, drop_last=True, device=device)
    except CtgpuError as error:
        parser.error(str(error))
    if not len(loader):
        parser.error(f"{len(pairs)} scans have a report, too few for a batch")
    layers = (nn.Conv3d(1, 16, 5, stride=4), nn.ReLU(), nn.Conv3d(16, 32, 3, stride=2), nn.ReLU())
    vision = nn.Sequential(*layers, nn.AdaptiveAvgPool3d(2), nn.Flatten(), nn.Linear(256, 64))
    language = nn.EmbeddingBag(4096, 64)
    encoders = nn.ModuleList([vision, language]).to(device)
    log_scale = nn.Parameter(torch.tensor(2.0, device=device))
    optimizer = torch.optim.Adam([*encoders.parameters(), log_scale], 3e-3)
    for epoch in range(options.epochs):
        for batch in loader:
            images = F.normalize(vision(batch["volume"].float()))
            texts = F.normalize(language(*(t.to(device) for t in tokens(batch["report"]))))
            logits = log_scale.exp().clamp(max=100) * images @ texts.T
            own = torch.arange(len(logits), device=device)
            loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch}: loss {loss.item():.3f}")
