"""What takes the batches: a training step on the GPU, or a fixed wait where there is none.

The GPU part has not run on a device yet.
"""

from __future__ import annotations

import time
from typing import Protocol

import torch

#: The old guide's "GPU operations" of one step.
WAIT_S = 0.379
_CLASSES = 18


class Consumer(Protocol):
    """Takes one batch after the other, and knows how long it was busy."""

    name: str
    simulated: bool

    def __call__(self, volume: torch.Tensor, labels: torch.Tensor) -> None:
        """Take a batch: (B, 1, D, H, W), host or GPU, and (B, classes)."""

    def drain(self) -> float:
        """Wait until all batches are done with; busy seconds since the last call."""


class SimulatedStep:
    """Waits as long as the old guide's GPU operations took, and computes nothing."""

    name = f"simulated: a fixed wait of {WAIT_S * 1e3:.0f} ms"
    simulated = True

    def __init__(self) -> None:
        self._busy_s = 0.0

    def __call__(self, volume: torch.Tensor, labels: torch.Tensor) -> None:
        began = time.perf_counter()
        time.sleep(WAIT_S)
        self._busy_s += time.perf_counter() - began

    def drain(self) -> float:
        busy_s, self._busy_s = self._busy_s, 0.0
        return busy_s


class TrainingStep:
    """Forward, backward and optimiser step of a small 3-D CNN, bfloat16 autocast, on a GPU.

    Busy is what lies between two CUDA events around the step; the upload of a batch that comes
    from the host is not in it.
    """

    name = "training step of a small 3-D CNN, bfloat16 autocast"
    simulated = False

    def __init__(self, device: str = "cuda") -> None:
        nn = torch.nn
        self._device = device
        self._model = nn.Sequential(
            nn.Conv3d(1, 32, kernel_size=4, stride=4),
            nn.GELU(),
            nn.Conv3d(32, 64, kernel_size=3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv3d(64, 128, kernel_size=3, stride=2, padding=1),
            nn.GELU(),
            nn.AdaptiveAvgPool3d(1),
            nn.Flatten(),
            nn.Linear(128, _CLASSES),
        ).to(device)
        self._optimiser = torch.optim.AdamW(self._model.parameters(), lr=1e-4)
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def __call__(self, volume: torch.Tensor, labels: torch.Tensor) -> None:
        volume = volume.to(self._device, non_blocking=True)
        # A study without a label row has NaN.
        labels = labels.to(self._device, non_blocking=True).nan_to_num()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        with torch.autocast(self._device, torch.bfloat16):
            logits = self._model(volume)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits.float(), labels)
        self._optimiser.zero_grad()
        loss.backward()
        self._optimiser.step()
        end.record()
        self._events.append((begin, end))

    def drain(self) -> float:
        torch.cuda.synchronize()
        busy_ms = sum(begin.elapsed_time(end) for begin, end in self._events)
        self._events.clear()
        return busy_ms / 1e3


def make_consumer() -> Consumer:
    """The training step where there is a GPU, else the wait."""
    return TrainingStep() if torch.cuda.is_available() else SimulatedStep()
