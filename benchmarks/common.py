"""What every benchmark shares: real data, interleaved timing, measured quantities and tables."""

from __future__ import annotations

import argparse
import gc
import math
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from ctgpu.buffers import allocate_pages

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"

#: The scan of the measured job, and what makes it a full-size one: see :func:`load_real_ct`.
REAL_CT_NAME = "qin_QIN-LSC-0028.nii.gz"
#: For who has the name alone.
REAL_CT_ORIGIN = (
    f"{REAL_CT_NAME} is the scan QIN-LSC-0028 of TCIA's collection QIN LUNG CT (CC BY 3.0), its "
    "DICOM series converted to int16 HU without resampling."
)
REAL_CT_SLICES = 300
REAL_CT_SPACING_MM = (0.8672, 0.8672, 1.25)

# Names and sizes of what a unit is shown in, small to large.
_SIZES = {
    "s": (("µs", 1e-6), ("ms", 1e-3), ("s", 1.0)),
    "bytes": (("bytes", 1.0), ("kB", 1e3), ("MB", 1e6), ("GB", 1e9)),
}

median = statistics.median


def argument_parser(description: str, *, repeats: int = 7) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark takes.

    ``--data FOLDER`` (real CT), ``--quick`` (tiny synthetic sizes, as the tests run it),
    ``--json FILE``, ``--plot FILE`` and ``--repeats N``.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=os.environ.get("CTGPU_REAL_CT") or REPOSITORY.parent / "shared" / "real_ct",
        help="folder of real CT volumes",
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs")
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--plot", type=Path, help="PNG to draw the result into (extra bench)")
    parser.add_argument("--repeats", type=int, default=repeats, help="interleaved runs of each")
    return parser


def interleaved(
    contenders: Mapping[str, Callable[[], object]], repeats: int, *, warm_ups: int = 1
) -> dict[str, list[float]]:
    """Time every contender `repeats` times, one after the other and round by round.

    Interleaving spreads the machine's slow moments over all contenders.

    Parameters
    ----------
    contenders : mapping of str to callable
        What to time; each is called without arguments.
    repeats : int
        Rounds that are recorded.
    warm_ups : int
        Rounds that are not.

    Returns
    -------
    dict of str to list of float
        Wall-clock seconds, `repeats` per contender.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    gc.collect()
    gc.disable()
    try:
        for turn in range(warm_ups + repeats):
            for name, run in contenders.items():
                begin = time.perf_counter()
                run()
                end = time.perf_counter()
                if turn >= warm_ups:
                    seconds[name].append(end - begin)
    finally:
        gc.enable()
    return seconds


def measured(runs: Sequence[float], unit: str) -> dict[str, Any]:
    """One measured quantity, as every result holds it: ``compare`` and the plots look for these.

    Parameters
    ----------
    runs : sequence of float
        The value of every run, in the order of the rounds.
    unit : str
        ``"s"``, ``"bytes"`` … where less is better, ``"samples/s"``, ``"GB/s"`` … where more is.

    Returns
    -------
    dict
        ``unit``, ``median``, ``min``, ``max`` and ``runs``.
    """
    return {
        "unit": unit,
        "median": median(runs),
        "min": min(runs),
        "max": max(runs),
        "runs": list(runs),
    }


def counted(value: int, unit: str) -> dict[str, Any]:
    """One quantity that is the same in every run, such as the instructions of a kernel.

    Returns
    -------
    dict
        ``unit``, ``runs`` with the one value, and ``exact``, by which ``compare`` knows that any
        difference is one.
    """
    return {"unit": unit, "runs": [value], "exact": True}


def more_is_better(unit: str) -> bool:
    """Whether a larger value of `unit` is the better one: it is a rate."""
    return unit.endswith("/s")


def is_measured(node: Any) -> bool:
    """Whether a part of a result is what :func:`measured` makes."""
    return isinstance(node, dict) and {"unit", "runs"} <= node.keys()


def measured_leaves(
    tree: Any, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Every quantity of :func:`measured` in a result, with the keys that lead to it."""
    if is_measured(tree):
        yield path, tree
    elif isinstance(tree, dict):
        for name, branch in tree.items():
            yield from measured_leaves(branch, (*path, name))


def contender_groups(
    tree: Mapping[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Every ``contenders`` in a result, by name, with the keys that lead to it."""
    for name, branch in tree.items():
        if name == "contenders":
            yield path, branch
        elif isinstance(branch, dict):
            yield from contender_groups(branch, (*path, name))


def is_peers(path: Sequence[str]) -> bool:
    """Whether a quantity at `path` is that of a contender other than ctgpu."""
    below = path[path.index("contenders") + 1 :] if "contenders" in path else ()
    return bool(below) and not below[0].startswith("ctgpu")


def in_words(value: float, unit: str) -> str:
    """A value with three digits, never an exponent, and a unit of fitting size.

    >>> in_words(0.0271, "s")
    '27.1 ms'
    >>> in_words(1.61e9, "bytes")
    '1.61 GB'
    """
    sizes = _SIZES.get(unit, ((unit, 1.0),))
    shown, size = next((s for s in reversed(sizes) if s[1] <= abs(value)), sizes[0])
    return f"{three_digits(value / size)} {shown}"


def three_digits(value: float) -> str:
    """Three significant digits, never an exponent."""
    places = 2 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:.{max(0, places)}f}"


def machine_line(machine: Mapping[str, Any]) -> str:
    """The facts of :func:`machine_facts` that a figure cannot be read without, in one line."""
    variant = f" ({machine['ctgpu_cpu_variant']})" if machine["ctgpu_cpu_variant"] else ""
    return (
        f"{machine['usable_cores']} cores, {machine['cpu']}{variant}, "
        f"{machine['memory_gib']:.0f} GiB, {machine['gpu'] or 'no GPU'}"
    )


def peak_rss_bytes() -> int:
    """Most memory that this process ever had resident."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Kibibytes on Linux, bytes on macOS.
    return peak if sys.platform == "darwin" else peak * 1024


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table: the first column left-aligned, the others right-aligned."""
    table = Table(title=title, title_justify="left")
    for column, text in enumerate(header):
        table.add_column(text, justify="right" if column else "left")
    for row in rows:
        table.add_row(*(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row))
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def in_pages(shape: tuple[int, ...], dtype: npt.DTypeLike, *, order: Any = "C") -> npt.NDArray[Any]:
    """An array in the memory that the pipeline uses: page-aligned, huge pages where granted."""
    kind = np.dtype(dtype)
    memory = allocate_pages(int(np.prod(shape)) * kind.itemsize)
    memory.fill(0)
    return np.ndarray(shape, kind, buffer=memory.data, order=order)


def load_real_ct(
    folder: Path, *, slices: int = REAL_CT_SLICES, order: Any = "F"
) -> npt.NDArray[np.int16]:
    """The scan of the measured job: int16 HU, 512 × 512 × `slices`, its own slices repeated.

    Parameters
    ----------
    folder : pathlib.Path
        Folder that holds :data:`REAL_CT_NAME` (112 slices).
    slices : int
        Slices wanted.
    order : {"F", "C"}
        Memory order: ``F`` as NIfTI stores it.
    """
    path = Path(folder) / REAL_CT_NAME
    if not path.is_file():
        raise SystemExit(f"{path} is not there; pass --data FOLDER with {REAL_CT_NAME}, or --quick")
    import nibabel

    image = np.asanyarray(nibabel.load(path).dataobj)
    volume = in_pages((*image.shape[:2], slices), np.int16, order=order)
    volume[...] = image[:, :, np.arange(slices) % image.shape[2]]
    return volume


def phantom_ct(shape_hwd: tuple[int, int, int], *, order: Any = "F") -> npt.NDArray[np.int16]:
    """Synthetic HU with air, soft tissue and noise, int16; for ``--quick`` and for odd sizes."""
    volume = in_pages(shape_hwd, np.int16, order=order)
    random = np.random.default_rng(0)
    texture = random.integers(-60, 60, shape_hwd[:2], np.int16)
    i, j = np.ogrid[-1.0 : 1.0 : shape_hwd[0] * 1j, -1.0 : 1.0 : shape_hwd[1] * 1j]
    body = np.where(i * i + j * j < 0.7, 40, -1000).astype(np.int16)
    for k in range(shape_hwd[2]):
        volume[:, :, k] = body + np.roll(texture, k, axis=k % 2)
    return volume
