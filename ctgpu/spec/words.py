"""A contract in words."""

from __future__ import annotations

from ctgpu.spec.contract import STORED, Spec


def in_words(spec: Spec) -> str:
    """A contract in one line, for those who look for one."""
    values = "HU" if spec.stores_hu else _mapped(spec)
    axes = "" if spec.layout == "HWD" else ", stored D, H, W"
    boxes = {
        "centre": "",
        "foreground": f"the box above {spec.foreground_hu:.6g} HU",
        "body": "the patient's box",
        "mask": "the box of its mask's labels",
    }
    parts = [
        "axes as stored" if spec.orientation == STORED else spec.orientation,
        boxes[spec.crop],
        _sizes(spec),
        values,
        f"{spec.dtype}{_precision(spec)}{axes}",
    ]
    return "; ".join(filter(None, parts))


def _precision(spec: Spec) -> str:
    if spec.precision_step is None:
        return ""
    error_hu = spec.precision_error_hu
    off = (
        "how far off in HU each volume decides"
        if error_hu is None
        else f"up to {error_hu:.2g} HU off"
    )
    return f" in steps of {spec.precision} ({off})"


def _sizes(spec: Spec) -> str:
    shape = " × ".join(map(str, spec.shape_hwd))
    spacing = " × ".join(f"{mm:g}" for mm in spec.target_spacing_mm)
    if spec.fit == "stretch":
        return f"stretched to {shape}"
    if spec.fit == "contain":
        return f"fitted into {shape}"
    first = ", from the first voxel" if spec.grid == "origin" else ""
    return f"{spacing} mm{first}, {shape}"


def _mapped(spec: Spec) -> str:
    named = {"minmax": "least to largest", "zscore": "z-score"}
    if spec.percentiles is not None:
        source = "percentiles {:g} to {:g}".format(*spec.percentiles)
    elif spec.normalise in named:
        source = named[spec.normalise]
    else:
        source = ""
    if spec.hu_window is not None:
        window = "{:.6g} to {:.6g} HU".format(*spec.hu_window)
        source = f"{source} within {window}" if source else window
        if spec.clip == "after":
            source += ", clipped after resampling,"
    if spec.normalise == "zscore":
        return source
    text = "{} → {:g} to {:g}".format(source, *spec.output_range)
    if spec.standardise is not None:
        mean, std = spec.standardise
        text += f", − {mean:g}" + (f", / {std:g}" if std != 1 else "")
    return text
