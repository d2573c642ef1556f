"""A contract in one line."""

from __future__ import annotations

from ctgpu.spec import Spec
from ctgpu.spec.words import in_words


def test_specs_of_every_kind_have_words() -> None:
    for spec, words in (
        (Spec(dtype="int16"), "; HU; int16"),
        (Spec(normalise="zscore"), "; z-score within -1000 to 1000 HU; "),
        (Spec(hu_window=None, normalise="zscore"), "; z-score; "),
        (
            Spec(hu_window=None, normalise="percentiles", percentiles=(1, 99)),
            "; percentiles 1 to 99 → -1 to 1; ",
        ),
        (Spec(precision="2^-10"), "; float16 in steps of 2^-10 (up to 0.49 HU off)"),
        (
            Spec(precision="2^-11", layout="DHW"),
            "; float16 in steps of 2^-11 (up to 0.24 HU off), stored D, H, W",
        ),
        (
            Spec(precision="2^-10", normalise="minmax", hu_window=None),
            "; float16 in steps of 2^-10 (how far off in HU each volume decides)",
        ),
        (Spec(fit="contain"), "; fitted into 480 × 480 × 240; "),
        (Spec(crop="foreground"), "; the box above -500 HU; "),
        (Spec(crop="body"), "; the patient's box; "),
        (Spec(crop="mask"), "; the box of its mask's labels; "),
    ):
        assert words in f"; {in_words(spec)}"
