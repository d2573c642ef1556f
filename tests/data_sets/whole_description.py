"""Descriptions that the tests begin from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ctgpu.data_sets import Description
from ctgpu.errors import UsageError

#: What a file begins with, and a table of it.
HEAD = 'name = "x"\n'
TABLE = '[[tables]]\nfiles = ["a.csv"]\nkey = "k"\n'

#: Every field, none at its default.
WHOLE: dict[str, Any] = {
    "name": "Ours",
    "licence": "free",
    "repository": "me/ours",
    "default_split": "b",
    "class_names": ["n", "e"],
    "text_separator": " | ",
    "layout": {"root": "data", "telling": ["a_fixed"], "companions": ["tables"]},
    "splits": {
        "a": {"volumes": ["a/{key}.nii"], "fallback": ["*.nii"], "names": "a.*", "words": ["A"]},
        "b": {},
    },
    "volumes": {
        "paths": ["{patient}/{key}.npz"],
        "hu": ["**/x/**"],
        "needs_rescale": ["**/y/**"],
        "scan": r"(?P<scan>\w+)_(?P<recon>\d+)",
        "patient": r"(?P<patient>\w+?)_.*",
        "orientation": "LPS",
    },
    "arrays": {"member": "ct", "axes": "DHW", "spacing_mm": [0.8, 0.8, 1.5]},
    "masks": {
        "files": "{folder}/{label}.nii.gz",
        "labels": {"lung": 1, "heart": 9},
        "absent": "empty",
        "dtype": "uint16",
    },
    "tables": [
        {
            "files": ["m.tsv"],
            "key": ["image", "image_id"],
            "other_names": ["exam"],
            "spacing_mm": ["h", "w", "d"],
            "rescale": ["s", "i"],
            "shape": ["nh", "nw", "nd"],
            "carry": ["kvp"],
            "patient": "person",
            "split": "cohort",
        },
        {
            "files": {"a": ["la.csv"], "b": ["/data/lb.csv", "lb.csv"]},
            "key": "exam",
            "through": "exam",
            "labels": "classes",
            "label_range": [0.0, 2.0],
            "label_words": {"yes": 1.0, "maybe": "unknown"},
            "label_separator": "*",
        },
        {
            "files": ["r.csv"],
            "key": "exam",
            "through": "exam",
            "text": ["f", "i"],
            "report": "rest",
            "ignore": ["technique"],
        },
    ],
    "leave_out": [{"files": ["no.txt"], "reason": "blurred"}],
}


def write(folder: Path, text: str | bytes) -> Path:
    """The file of a description."""
    path = folder / "mine.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def refused(folder: Path, text: str | bytes) -> str:
    """What is said of a description that is wrong."""
    with pytest.raises(UsageError) as caught:
        Description.load(write(folder, text))
    said = str(caught.value)
    assert "\n" not in said
    return said
