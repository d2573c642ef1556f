"""What docs/loading.md shows is true: its loop, its selections, and how HU come back."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ctgpu
from ctgpu.codec.ctz import LANES, PLANES
from ctgpu.errors import UsageError
from ctgpu.spec import Spec
from ctgpu.testing.ctrate import lay_out_ct_rate
from support.compressed_folders import compress_folder
from support.masks import LABELS, mask_of, with_masks
from support.pages import python_block
from support.phantoms import chest, study_ids

torch = pytest.importorskip("torch")

PAGE = (Path(__file__).resolve().parent.parent / "docs/loading.md").read_text()
STUDIES = study_ids(5)


def code(mark: str) -> str:
    """The one block of Python that has `mark` in it."""
    return python_block(PAGE, mark)


def lay_out(source: Path) -> None:
    lay_out_ct_rate(source, dict.fromkeys(STUDIES, chest((60, 56, 40), 1)))


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five samples, of which the second and the third have no label row; in ``./shards``."""
    lay_out(tmp_path / "source")
    (table,) = (tmp_path / "source").rglob("*labels*.csv")
    rows = table.read_text().splitlines(keepends=True)
    table.write_text("".join(row for row in rows if not row.startswith(tuple(STUDIES[1:3]))))
    spec = Spec(target_spacing_mm=(8.0, 8.0, 12.0), shape_hwd=(24, 20, 16))
    ctgpu.build(tmp_path / "shards", source=tmp_path / "source", spec=spec, device="cpu")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "shards"


class Classifier(torch.nn.Module):  # type: ignore[misc, name-defined]
    """Logits of the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 18)
        self.optimizer = torch.optim.SGD(self.parameters(), 0.1)

    def forward(self, volume: Any) -> Any:
        return self.layer(volume.float().mean((1, 2, 3, 4))[:, None])


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_its_loop_trains_where_studies_have_no_labels(
    shards: Path, caplog: pytest.LogCaptureFixture, batch_size: int
) -> None:
    loop = code("set_epoch").replace('"cuda"', '"cpu"').replace("range(10)", "range(2)")
    loop = loop.replace("batch_size=2", f"batch_size={batch_size}")
    for line in ("loss.backward()", "model.optimizer.step()", "losses.append(loss)"):
        loop += f"{' ' * 8}{line}\n"
    model, losses = Classifier(), []  # type: ignore[var-annotated]
    names: dict[str, Any] = {"model": model, "losses": losses}
    with caplog.at_level(logging.WARNING):
        exec(loop, names)
    assert len(losses) == 2 * (5 // batch_size)
    assert all(loss.isfinite() for loss in losses)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert sum(loss.item() > 0 for loss in losses) >= 2
    # A batch of one study without labels has nothing to learn from.
    assert sum(loss.item() == 0 for loss in losses) == (4 if batch_size == 1 else 0)
    assert [record.getMessage()[:30] for record in caplog.records] == [
        "2 of 5 samples have no label r"
    ]
    known = torch.as_tensor(np.stack([names["dataset"][s]["labels"] for s in STUDIES])).isnan()
    assert known.all(1).tolist() == [False, True, True, False, False]


def test_its_selections_are_data_sets(shards: Path) -> None:
    from ctgpu.loading import VolumeDataset, make_loader

    names: dict[str, Any] = {
        "torch": torch,
        "make_loader": make_loader,
        "dataset": VolumeDataset(shards),
        "ids": STUDIES[:2],
    }
    exec(code("random_split").replace("0.9", "0.6").replace("0.1", "0.4"), names)
    assert list(names["chosen"].study_ids) == STUDIES[:2]
    assert list(names["labelled"].study_ids) == [STUDIES[n] for n in (0, 3, 4)]
    seen = [s for batch in names["loader"] for s in batch["study_id"]]
    assert sorted(seen) == sorted(STUDIES[n] for n in names["train"].indices)


def test_its_masks_belong_to_their_volumes(shards: Path) -> None:
    from ctgpu.loading import VolumeDataset, make_loader

    dataset = VolumeDataset(with_masks(shards, shards.parent / "masked"))
    names: dict[str, Any] = {"make_loader": make_loader, "dataset": dataset}
    exec(code("mask_labels").replace("(128, 128, 64)", "(9, 8, 7)"), names)
    assert names["lung"].shape == names["batch"]["volume"].shape
    volume = names["batch"]["volume"].numpy()
    assert np.array_equal(
        names["lung"].numpy(), mask_of(volume, "uint8") == LABELS["uint8"]["lung"]
    )


@pytest.mark.slow
def test_hu_come_back_from_every_type_as_near_as_it_says(tmp_path: Path) -> None:
    from ctgpu.loading import VolumeDataset, make_loader

    lay_out(tmp_path / "source")
    stated = re.findall(r"^\| `(\w+)` \| `torch\.\w+` \|.* ([\d.]+) HU \|$", PAGE, re.MULTILINE)
    within_hu = {dtype: float(hu) for dtype, hu in stated}
    assert list(within_hu) == ["float16", "bfloat16", "int16", "uint8"]

    def load(name: str, **fields: Any) -> dict[str, Any]:
        spec = Spec(target_spacing_mm=(8.0, 8.0, 12.0), shape_hwd=(24, 20, 16), **fields)
        folder = tmp_path / name
        ctgpu.build(folder, source=tmp_path / "source", spec=spec, limit=4, device="cpu")
        dataset = VolumeDataset(folder)
        batch = next(iter(make_loader(dataset, 4)))
        return {"torch": torch, "dataset": dataset, "batch": batch}

    exact = load("int16", dtype="int16")["batch"]["volume"].double()
    assert len(exact.unique()) > 500
    for dtype, nearest_hu in within_hu.items():
        names = load(f"again-{dtype}", dtype=dtype)
        exec(code("spec.scale_offset"), names)
        assert (names["hu"] - exact).abs().max() <= nearest_hu + 0.5
        exec(code("numbers_of"), names)
        assert np.array_equal(names["numbers"], names["batch"]["volume"][3].float().numpy())
    names = load("zscore", normalise="zscore")
    with pytest.raises(UsageError, match="a scale of its own"):
        exec(code("spec.scale_offset"), names)
    exec(code('["normalisation"]'), names)
    assert (names["hu"] - exact).abs().max() <= 1


def test_its_windows_are_channels(tmp_path: Path) -> None:
    from ctgpu.loading import VolumeDataset, make_loader

    lay_out(tmp_path / "source")
    (wide,) = re.findall(r"`--hu-window (-\d+,\d+)`, which covers all the named ones", PAGE)
    lo, hi = map(float, wide.split(","))
    for fields in ({"hu_window": (lo, hi)}, {"dtype": "int16", "hu_window": None}):
        spec = Spec(target_spacing_mm=(8.0, 8.0, 12.0), shape_hwd=(24, 20, 16), **fields)  # type: ignore[arg-type]
        folder = tmp_path / f"shards-{spec.dtype}"
        ctgpu.build(folder, source=tmp_path / "source", spec=spec, limit=2, device="cpu")
        names: dict[str, Any] = {"make_loader": make_loader, "dataset": VolumeDataset(folder)}
        exec(code(".unbind(1)"), names)
        for name, window in (("lung", "lung"), ("mediastinum", "mediastinum"), ("wide", None)):
            chosen = window or (-1150, 350)
            (alone,) = make_loader(names["dataset"], 2, window=chosen)  # type: ignore[arg-type]
            assert torch.equal(names[name], alone["volume"][:, 0])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_its_pipeline_of_monai_makes_batches(shards: Path) -> None:
    pytest.importorskip("monai")
    names: dict[str, Any] = {}
    exec(code("MonaiDataset(").replace("(96, 96, 96)", "(8, 9, 10)"), names)
    assert names["batch"]["image"].shape == (1, 1, 8, 9, 10)  # the last of five, two at a time
    assert names["batch"]["image"].dtype == torch.float32
    assert names["batch"]["label"].shape == (1, 18)
    assert len(names["patches"]) == 3


def test_its_compressed_shards_are_the_same_batches(shards: Path) -> None:
    from ctgpu.loading import VolumeDataset, make_loader

    small = compress_folder(shards, shards.parent / "small", "rice")
    for batch, raw in zip(make_loader(small, 2), make_loader(shards, 2), strict=True):
        assert torch.equal(batch["volume"], raw["volume"])
        assert batch["volume"].is_contiguous()
        assert not raw["volume"].is_contiguous()
    assert len(VolumeDataset([shards, small])) == 10


def test_its_boxes_meet_as_many_tiles_as_it_says() -> None:
    (stated,) = re.findall(
        r"a box of (\d+)³ meets at most (\d+) of the (\d+) tiles of ([\d ×]+)", PAGE
    )
    box, most, all_tiles = map(int, stated[:3])
    h, w, d = map(int, stated[3].split("×"))
    assert (h, w, d) == Spec().shape_hwd
    assert -(-d // PLANES) * -(-w // LANES) == all_tiles
    met = [
        max((start + box - 1) // tile - start // tile + 1 for start in range(size - box + 1))
        for size, tile in ((d, PLANES), (w, LANES))
    ]
    assert met[0] * met[1] == most
