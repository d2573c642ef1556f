"""Lightning's Trainer and Fabric take the loader as it is, or refuse it as docs/loading.md says."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from loading_cases import STUDIES

from ctgpu.loading import VolumeDataset, make_loader

torch = pytest.importorskip("torch")
if find_spec("lightning") is None:
    pytest.skip("Lightning is not installed", allow_module_level=True)

# Lightning gives warnings of its own.
pytestmark = pytest.mark.filterwarnings("ignore")


def new_model() -> Any:
    from lightning_model import Model

    return Model()


def trainer(folder: Path, **options: Any) -> Any:
    from lightning.pytorch import Trainer

    options = {"enable_checkpointing": False, "max_epochs": 2} | options
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **options,
    )


def fit(folder: Path, train: Any, valid: Any, path: Path | None = None, **options: Any) -> Any:
    model = new_model()
    trainer(folder, **options).fit(model, train, valid, ckpt_path=path)
    return model.seen


def test_it_validates_and_tests_on_one_or_several_loaders(hwd: Path, tmp_path: Path) -> None:
    model = new_model()
    loader = make_loader(hwd, 2)
    trainer(tmp_path).validate(model, loader)
    assert model.seen == {"valid 0": STUDIES}
    trainer(tmp_path).test(model, loader)  # the same one, once more
    trainer(tmp_path).test(model, [loader, make_loader(hwd, 4, drop_last=True)])
    assert model.seen == {"valid 0": STUDIES, "test 0": 2 * STUDIES, "test 1": STUDIES[:8]}


def test_it_predicts_for_every_sample_and_says_for_which(hwd: Path, tmp_path: Path) -> None:
    model = new_model()
    dataset = VolumeDataset(hwd)
    batches = trainer(tmp_path).predict(model, make_loader(dataset, 2))
    assert [s for batch in batches for s in batch["study_id"]] == STUDIES
    for batch in batches:
        # What predict_step returned stayed as it was while later batches were read.
        for row, study_id in enumerate(batch["study_id"]):
            expected = torch.from_numpy(dataset[study_id]["volume"].copy())
            assert torch.equal(batch["volume"][row], expected)
            with torch.no_grad():
                alone = model({"volume": expected[None]})[0]
            assert torch.allclose(batch["logits"][row], alone, atol=1e-5)
    first, second = trainer(tmp_path).predict(
        model, [make_loader(dataset.select(STUDIES[3:7]), 3), make_loader(dataset, 4)]
    )
    assert [s for batch in first for s in batch["study_id"]] == STUDIES[3:7]
    assert [s for batch in second for s in batch["study_id"]] == STUDIES


@pytest.mark.parametrize(
    ("options", "sanity", "each_epoch"),
    [
        ({}, 4, 11),
        ({"num_sanity_val_steps": 0}, 0, 11),
        ({"num_sanity_val_steps": -1}, 11, 11),
        ({"limit_val_batches": 2}, 4, 4),
        ({"limit_val_batches": 0.5, "num_sanity_val_steps": 1}, 2, 6),
        ({"reload_dataloaders_every_n_epochs": 1}, 4, 11),
    ],
)
def test_it_fits_with_several_validation_loaders(
    hwd: Path, tmp_path: Path, options: dict[str, Any], sanity: int, each_epoch: int
) -> None:
    seen = fit(
        tmp_path,
        make_loader(hwd, 2, shuffle=True, seed=7),
        [make_loader(hwd, 2), make_loader(hwd, 2)],
        **options,
    )
    epochs = make_loader(hwd, 2, shuffle=True, seed=7)
    assert seen["train"] == [s for _ in range(2) for batch in epochs for s in batch["study_id"]]
    for name in ("valid 0", "valid 1"):
        assert seen[name] == STUDIES[:sanity] + 2 * STUDIES[:each_epoch]


def test_a_limited_epoch_is_followed_by_the_next(hwd: Path, tmp_path: Path) -> None:
    train = make_loader(hwd, 2, shuffle=True, seed=7)
    seen = fit(tmp_path, train, make_loader(hwd, 2), limit_train_batches=3)
    expected = []
    for epoch in range(2):
        train.set_epoch(epoch)
        expected += [s for batch in train for s in batch["study_id"]][:6]
    assert seen["train"] == expected


@pytest.mark.slow
def test_it_resumes_within_an_epoch_that_validates_meanwhile(hwd: Path, tmp_path: Path) -> None:
    from lightning.pytorch.callbacks import ModelCheckpoint

    keep = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1)
    options: dict[str, Any] = {"val_check_interval": 2}

    def loaders() -> tuple[Any, Any]:
        return make_loader(hwd, 2, shuffle=True, seed=7), [make_loader(hwd, 2) for _ in range(2)]

    whole = fit(tmp_path, *loaders(), enable_checkpointing=True, callbacks=[keep], **options)
    assert len(whole["train"]) == 22
    for step, first, validations in ((1, 2, 6), (3, 6, 5), (8, 15, 2)):
        path = tmp_path / f"step={step}.ckpt"
        rest = fit(tmp_path, *loaders(), path, num_sanity_val_steps=0, **options)
        assert rest["train"] == whole["train"][first:]
        assert rest["valid 0"] == rest["valid 1"] == validations * STUDIES


def test_it_overfits_on_a_loader_that_does_not_shuffle(hwd: Path, tmp_path: Path) -> None:
    seen = fit(tmp_path, make_loader(hwd, 2), make_loader(hwd, 2), overfit_batches=2)
    assert seen["train"] == 2 * STUDIES[:4]
    assert seen["valid 0"] == 3 * STUDIES[:4]
    for shuffled in ({"shuffle": True}, {"shuffle": True, "shuffle_window_bytes": 1}):
        loader = make_loader(hwd, 2, **shuffled)
        with pytest.raises(ValueError, match=r"shuffle=True\) needs to subclass"):
            fit(tmp_path, loader, make_loader(hwd, 2), overfit_batches=2)


def test_fabric_needs_not_set_the_loader_up_and_saves_its_state(hwd: Path, tmp_path: Path) -> None:
    from lightning.fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=1)
    loader = make_loader(hwd, 2, shuffle=True, seed=3)
    with pytest.raises(TypeError, match="Only PyTorch DataLoader are currently supported"):
        fabric.setup_dataloaders(loader)
    model, optimizer = fabric.setup(
        layer := torch.nn.Linear(1, 18), torch.optim.SGD(layer.parameters(), 1e-3)
    )
    batches = iter(loader)
    for _ in range(2):
        batch = next(batches)
        loss = model(batch["volume"].float().mean((1, 2, 3, 4))[:, None]).sum()
        fabric.backward(loss)
        optimizer.step()
    fabric.save(tmp_path / "state.ckpt", {"model": model, "loader": loader})
    rest = [s for batch in batches for s in batch["study_id"]]
    again = make_loader(hwd, 2, shuffle=True, seed=3)
    fabric.load(tmp_path / "state.ckpt", {"model": model, "loader": again})
    assert [s for batch in again for s in batch["study_id"]] == rest
    assert len(rest) == 7
