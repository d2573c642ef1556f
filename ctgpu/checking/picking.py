"""A few samples of many tars, spread evenly."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from ctgpu.errors import UsageError
from ctgpu.printable import counted
from ctgpu.sources.tar_samples import TarSample, samples_of_tar


def pick(tars: Sequence[Path], num_samples: int | None) -> Iterator[TarSample]:
    """Samples of some tars, spread evenly; all of them where `num_samples` is None.

    They are `num_samples` unless the tars hold fewer.  No more tars are scanned than samples are
    wanted, and one more for each that turns out to be empty.

    Raises
    ------
    UsageError
        If the tars hold no sample.
    """
    if num_samples is None:
        picked = itertools.chain.from_iterable(map(samples_of_tar, tars))
    else:
        samples = _scan_enough(tars, num_samples)
        shares = _deal_out([len(of_tar) for of_tar in samples], num_samples)
        picked = itertools.chain.from_iterable(
            (of_tar[i] for i in spread(len(of_tar), share))
            for of_tar, share in zip(samples, shares, strict=True)
        )
    first = next(picked, None)
    if first is None:
        raise UsageError(
            f"no sample is in {tars[0]}, nor in {counted(len(tars) - 1, 'other tar')} named beside "
            "it, so there is nothing to compare; name others"
        )
    yield first
    yield from picked


def _scan_enough(tars: Sequence[Path], num_samples: int) -> list[list[TarSample]]:
    """The samples of so many tars that hold some, in the order of the tars."""
    left = dict(enumerate(tars))
    scanned: dict[int, list[TarSample]] = {}
    while left and len(scanned) < num_samples:
        places = list(left)
        for i in spread(len(places), num_samples - len(scanned)):
            if samples := samples_of_tar(left.pop(places[i])):
                scanned[places[i]] = samples
    return [scanned[place] for place in sorted(scanned)]


def _deal_out(counts: Sequence[int], wanted: int) -> list[int]:
    """How many to take of each, as even as `counts` allow; what is over goes to the fuller ones."""
    shares = [0] * len(counts)
    fewest_first = sorted(range(len(counts)), key=counts.__getitem__)
    for done, place in enumerate(fewest_first):
        shares[place] = min(counts[place], wanted // (len(counts) - done))
        wanted -= shares[place]
    return shares


def spread(count: int, wanted: int) -> list[int]:
    """Numbers below `count`, `wanted` or all of them, evenly spaced."""
    wanted = min(count, wanted)
    return [(2 * i + 1) * count // (2 * wanted) for i in range(wanted)]
