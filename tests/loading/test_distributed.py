"""Ranks that know of each other by torch.distributed alone; Lightning and Accelerate."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import gloo_rank
import pytest

from ctgpu.errors import UsageError
from ctgpu.loading import make_loader

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def forks() -> Any:
    """Begins processes that have torch imported already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.distributed", "ctgpu.loading.loader"])
    return context


def run_ranks(
    forks: Any, folder: Path, meeting: Path, world_size: int, state: Any = None, stop: int = 0
) -> list[dict[str, Any]]:
    ranks = [
        forks.Process(target=gloo_rank.main, args=(folder, meeting, rank, world_size, state, stop))
        for rank in range(world_size)
    ]
    for rank in ranks:
        rank.start()
    try:
        for rank in ranks:
            rank.join(120)
        assert [rank.exitcode for rank in ranks] == [0] * world_size
    finally:
        for rank in ranks:
            rank.kill()
    return [json.loads(Path(f"{meeting}.{rank}").read_text()) for rank in range(world_size)]


def together(ranks: list[dict[str, Any]]) -> list[str]:
    steps = zip(*(rank["steps"] for rank in ranks), strict=True)
    return [study_id for step in steps for studies, _ in step for study_id in studies]


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_gloo_ranks_have_equal_steps_and_disjoint_samples(
    forks: Any, hwd: Path, tmp_path: Path, world_size: int
) -> None:
    whole = [b["study_id"][0] for b in make_loader(hwd, shuffle=True, seed=7)]
    ranks = run_ranks(forks, hwd, tmp_path / "meeting", world_size)
    seen = together(ranks)
    assert seen[:11] == whole
    assert seen[11:] == whole[: len(seen) - 11]
    assert len(seen) == -(-11 // world_size) * world_size
    assert {rank["len"] for rank in ranks} == {len(ranks[0]["steps"])}
    # The sums that went around are the same on every rank: all were at the same step.
    assert len({json.dumps([total for _, total in rank["steps"]]) for rank in ranks}) == 1


@pytest.mark.slow
def test_four_ranks_go_on_where_two_were_stopped(forks: Any, hwd: Path, tmp_path: Path) -> None:
    whole = [b["study_id"][0] for b in make_loader(hwd, shuffle=True, seed=7)]
    two = run_ranks(forks, hwd, tmp_path / "two", 2, stop=2)
    assert two[0]["state"] == two[1]["state"]
    assert together(two) == whole[:4]
    four = run_ranks(forks, hwd, tmp_path / "four", 4, state=two[0]["state"])
    assert together(four)[:7] == whole[4:]
    assert len(together(four)) == 8


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Lightning gives deprecation warnings of its own
def test_lightning_trains_saves_and_resumes_within_an_epoch(hwd: Path, tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning.pytorch", reason="Lightning is not installed")

    class Model(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(1, 18)
            self.seen: list[str] = []

        def training_step(self, batch: dict[str, Any], _: int) -> Any:
            self.seen += batch["study_id"]
            mean = batch["volume"].float().mean((1, 2, 3, 4))[:, None]
            return torch.nn.functional.mse_loss(self.layer(mean), batch["labels"])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 1e-3)

    def fit(path: Path | None, **options: Any) -> Any:
        model = Model()
        trainer = lightning.Trainer(
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            **options,
        )
        loader = make_loader(hwd, 2, shuffle=True, seed=7)
        trainer.fit(model, loader, ckpt_path=path)
        return model

    keep = lightning.callbacks.ModelCheckpoint(
        tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1
    )
    whole = fit(None, max_epochs=2, callbacks=[keep])
    assert len(whole.seen) == 22
    for step, first in ((3, 6), (6, 11), (8, 15)):
        rest = fit(tmp_path / f"step={step}.ckpt", max_epochs=2, enable_checkpointing=False)
        assert rest.seen == whole.seen[first:]


@pytest.mark.filterwarnings("ignore")  # Lightning gives deprecation warnings of its own
def test_lightning_validates_within_an_epoch_on_a_loader_of_its_own(
    hwd: Path, tmp_path: Path
) -> None:
    lightning = pytest.importorskip("lightning.pytorch", reason="Lightning is not installed")

    class Model(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(1, 18)
            self.seen: dict[str, list[str]] = {"train": [], "valid": []}

        def training_step(self, batch: dict[str, Any], _: int) -> Any:
            self.seen["train"] += batch["study_id"]
            return self.layer(batch["volume"].float().mean((1, 2, 3, 4))[:, None]).sum()

        def validation_step(self, batch: dict[str, Any], _: int) -> None:
            self.seen["valid"] += batch["study_id"]

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 1e-3)

    def fit(train: Any, valid: Any) -> dict[str, list[str]]:
        model = Model()
        trainer = lightning.Trainer(
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            default_root_dir=tmp_path,
            max_epochs=2,
            val_check_interval=3,  # of six steps
            num_sanity_val_steps=1,
        )
        trainer.fit(model, train, valid)
        return model.seen

    seen = fit(make_loader(hwd, 2, shuffle=True, seed=7), make_loader(hwd, 2))
    epochs = make_loader(hwd, 2, shuffle=True, seed=7)
    whole = [s for _ in range(2) for batch in epochs for s in batch["study_id"]]
    assert seen["train"] == whole
    in_order = [f"valid_{n}_a_1" for n in range(1, 12)]
    assert seen["valid"] == in_order[:2] + 4 * in_order
    loader = make_loader(hwd, 2)
    with pytest.raises(UsageError, match="make two loaders"):
        fit(loader, loader)


def test_accelerate_leaves_the_loader_as_it_is(hwd: Path) -> None:
    accelerate = pytest.importorskip("accelerate", reason="Accelerate is not installed")
    accelerator = accelerate.Accelerator(cpu=True)
    loader = make_loader(hwd, 2, shuffle=True)
    model = torch.nn.Linear(1, 1)
    prepared, prepared_model = accelerator.prepare(loader, model)
    accelerator.register_for_checkpointing(prepared)
    assert prepared is loader
    assert prepared_model is model
    assert sum(len(batch["study_id"]) for batch in prepared) == 11
