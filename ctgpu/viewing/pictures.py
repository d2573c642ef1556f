"""Slices as JPEG, and outlines of masks as PNG, by Pillow."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ctgpu.errors import UsageError, shortage
from ctgpu.installation import install_command

if TYPE_CHECKING:
    from PIL.Image import Image

#: Of outlines, for label 1 and those that follow; all are bright enough to be seen on grey.
COLOURS = (
    *("#ffb000", "#3fa7ff", "#ff5fa2", "#5fd35f", "#c79bff", "#ff7f2a"),
    *("#2fd6c3", "#f5ee5a", "#ff8f8f", "#9fb4ff", "#b5e853", "#e7c39b"),
)
_QUALITY = 70


def colour_of(label: int) -> str:
    """The colour of a label's outline."""
    return COLOURS[(label - 1) % len(COLOURS)]


def require_pillow() -> None:
    """Refuse pictures where they cannot be made, before anything is read.

    Raises
    ------
    UsageError
        If Pillow is missing.
    """
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise shortage(error) or UsageError(
            f"the pictures of a view need Pillow: install it with `{install_command('view')}`, or "
            "leave them out with --num-samples 0"
        ) from error


def jpeg(grey: npt.NDArray[np.uint8], size: tuple[int, int]) -> bytes:
    """A grey picture as JPEG.

    Parameters
    ----------
    grey : numpy.ndarray
        uint8, shape (rows, columns).
    size : tuple of int
        Width and height to which it is resampled.
    """
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(grey)).resize(size, Image.Resampling.BILINEAR)
    return _encoded(picture, "JPEG", quality=_QUALITY, optimize=True)


def outlines(labels: npt.NDArray[Any], size: tuple[int, int]) -> bytes:
    """The outlines of a slice of a mask as PNG, transparent elsewhere; empty where there is none.

    Parameters
    ----------
    labels : numpy.ndarray
        The number of each voxel's label, 0 for none; shape (rows, columns).
    size : tuple of int
        Width and height, to which it is resampled by nearest neighbour.
    """
    from PIL import Image

    if not labels.any():
        return b""
    width, height = size
    rows = (2 * np.arange(height) + 1) * labels.shape[0] // (2 * height)
    columns = (2 * np.arange(width) + 1) * labels.shape[1] // (2 * width)
    small = labels[rows][:, columns].astype(np.int32)
    around = np.pad(small, 1)
    neighbours = (around[:-2, 1:-1], around[2:, 1:-1], around[1:-1, :-2], around[1:-1, 2:])
    edge = (small > 0) & np.logical_or.reduce([small != other for other in neighbours])
    drawn = np.where(edge, (small - 1) % len(COLOURS) + 1, 0).astype(np.uint8)
    picture = Image.fromarray(drawn).convert("L")
    picture.putpalette(bytes(3) + b"".join(bytes.fromhex(colour[1:]) for colour in COLOURS))
    return _encoded(picture, "PNG", bits=4, transparency=0, optimize=True)


def _encoded(picture: Image, kind: str, **how: Any) -> bytes:
    content = io.BytesIO()
    picture.save(content, kind, **how)
    return content.getvalue()
