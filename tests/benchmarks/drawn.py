"""What a picture of a result shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def assert_drawn(path: Path) -> None:
    """A picture of some size, on white, with enough ink and with more than one colour."""
    from matplotlib.image import imread

    pixels = imread(path)[..., :3]
    assert pixels.shape[1] >= 900
    assert pixels.shape[0] >= 200
    ink = np.any(pixels < 0.95, axis=-1)
    assert 0.02 < ink.mean() < 0.7
    assert np.ptp(pixels[ink], axis=-1).max() > 0.2, "only grey"


def texts(figure: Any) -> str:
    """All that is written in a figure."""
    from matplotlib.text import Text

    return "\n".join(text.get_text() for text in figure.findobj(Text))
