"""Coverage-guided fuzzing of whole `.ctz` members, by the checks of Python and of the decoders.

``python tests/fuzz/fuzz_ctz.py [CORPUS_DIR] [-max_total_time=SECONDS] [-runs=N] [-seed=N]`` takes
libFuzzer's options.  What is found besides a ``CtzError`` is a crash, and its input is written to
the working directory.  Tiles have a fuzzer of their own, fuzz_ctz.cpp, which sees what the decoders
do in their memory.
"""

from __future__ import annotations

import sys
from pathlib import Path

from instrumented import fuzz, instrumented

with instrumented("ctgpu", comparisons=False):
    from ctgpu.codec import CtzError

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "faults"))
import ctz_corpus

from ctgpu import _native

VARIANTS = _native.ctz_variants()
BOXES = [((0, 0, 0), ctz_corpus.SHAPE_DHW), ((0, 0, 0), (1, 1, 1)), ((8, 1, 30), (1, 3, 3))]
SOUND = {
    member: ctz_corpus.true_voxels(name.partition("-")[0]).tobytes()  # type: ignore[arg-type]
    for name, member in ctz_corpus.valid_members().items()
}


def decode_one(data: bytes) -> None:
    """One input: the same outcome by every variant, and the true voxels of a sound member."""
    how, member = (data or b"\0")[0], data[1:]
    start_dhw, box_dhw = BOXES[how % 3]
    # No mutation passes a checksum by itself.
    if how & 64:
        member = ctz_corpus.mended(member)
    outcomes: set[bytes | None] = set()
    for variant in VARIANTS:
        try:
            voxels = ctz_corpus.decoded(
                member,
                start_dhw=start_dhw,
                box_dhw=box_dhw,
                hwd=how & 128 > 0,
                verify=how & 32 > 0,
                variant=variant,
            )
        except CtzError:
            outcomes.add(None)
        else:
            outcomes.add(voxels.tobytes())
    assert len(outcomes) == 1
    if member in SOUND and box_dhw == ctz_corpus.SHAPE_DHW:
        assert outcomes == {SOUND[member]}


def write_seeds(folder: Path) -> None:
    """Members of every kind and coding, and hostile ones, read in every way."""
    members = [*SOUND, *(member for _, member in ctz_corpus.crafted())]
    for k, member in enumerate(members):
        (folder / f"seed-{k:03d}").write_bytes(bytes([k * 37 % 256]) + member)


if __name__ == "__main__":
    fuzz(decode_one, write_seeds)
