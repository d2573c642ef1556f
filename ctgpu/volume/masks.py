"""How the masks of a data set are stored: label volumes, one beside each volume."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta

from ctgpu.arguments import converted
from ctgpu.spec import Spec

MaskDtype = Literal["uint8", "uint16"]

_NUMPY: Mapping[MaskDtype, str] = {"uint8": "|u1", "uint16": "<u2"}


@dataclass(frozen=True, slots=True)
class MaskFormat:
    """Type and meaning of the numbers of stored masks; 0 is the background.

    Attributes
    ----------
    dtype : {"uint8", "uint16"}
        As they are stored, in the shape and order of the volume.
    labels : dict of str to int
        The number of each label; empty where the numbers have no names.
    """

    dtype: MaskDtype
    labels: Mapping[str, Annotated[int, Meta(ge=1, le=65535)]] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: Any) -> MaskFormat:
        """What :meth:`to_dict` made.

        Raises
        ------
        ValueError
            If it is anything else.
        """
        masks = converted(values, cls)
        masks.check()
        return masks

    def check(self) -> None:
        """Hold the labels against the type.

        Raises
        ------
        ValueError
            If one does not fit it, or two have one number.
        """
        names: dict[int, str] = {}
        for name, number in self.labels.items():
            if number > np.iinfo(self.numpy_dtype).max:
                raise ValueError(f"the label {name!r} is {number}, which {self.dtype} cannot hold")
            if (other := names.setdefault(number, name)) != name:
                raise ValueError(f"the labels {other!r} and {name!r} are both {number}")

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values, the labels by their numbers."""
        by_number = sorted(self.labels.items(), key=lambda label: label[1])
        return {"dtype": self.dtype, "labels": dict(by_number)}

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The type of arrays that hold a stored mask, little-endian."""
        return np.dtype(_NUMPY[self.dtype])

    def size_bytes(self, spec: Spec) -> int:
        """Bytes of one stored mask beside a volume of `spec`."""
        return math.prod(spec.stored_shape) * self.numpy_dtype.itemsize
