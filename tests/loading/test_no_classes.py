"""Data sets without classes, by every reader: labels of shape (0,)."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import numpy as np
import pytest

import ctgpu
from ctgpu.errors import MismatchError
from ctgpu.loading import VolumeDataset, make_loader
from ctgpu.spec import Spec
from ctgpu.testing.ctrate import lay_out_ct_rate
from support.phantoms import chest, chests

SPEC = Spec(target_spacing_mm=(8.0, 8.0, 12.0), shape_hwd=(44, 36, 24))


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three samples in two shards, made of a folder that is not CT-RATE's."""
    root = tmp_path_factory.mktemp("unlabelled")
    volumes = chests(("scan-0", "scan-1", "scan-2"), (60, 56, 40))
    made = lay_out_ct_rate(root / "made", volumes, tables=())
    (root / "source").mkdir()
    for path in made.values():
        path.rename(root / "source" / path.name)
    report = ctgpu.build(
        root / "out", source=root / "source", spec=SPEC, samples_per_shard=2, device="cpu"
    )
    assert report.exit_code == 0
    return root / "out"


def test_a_sample_has_labels_of_no_length(unlabelled: Path) -> None:
    dataset = VolumeDataset(unlabelled, verify="always")
    assert dataset.class_names == ()
    for index in range(3):
        labels = dataset[index]["labels"]
        assert labels.shape == (0,)
        assert labels.dtype == np.float32


@pytest.mark.parametrize("copy", [False, True])
def test_a_batch_has_labels_of_no_length(unlabelled: Path, copy: bool) -> None:
    torch = pytest.importorskip("torch")
    batches = list(make_loader(unlabelled, 2, copy=copy))
    assert [tuple(batch["labels"].shape) for batch in batches] == [(2, 0), (1, 0)]
    assert {batch["labels"].dtype for batch in batches} == {torch.float32}
    assert torch.nn.functional.mse_loss(batches[0]["labels"], torch.zeros(2, 0)).isnan()


def test_the_stock_loader_of_torch_stacks_them(unlabelled: Path) -> None:
    torch = pytest.importorskip("torch")
    (batch,) = torch.utils.data.DataLoader(VolumeDataset(unlabelled), batch_size=3)
    assert tuple(batch["labels"].shape) == (3, 0)


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
)
def test_webdataset_reads_them(unlabelled: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    from ctgpu.loading.webdataset import decoder

    urls = [str(shard.path) for shard in VolumeDataset(unlabelled).shards]
    source = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False)
    assert [sample["labels"].shape for sample in source.map(decoder)] == [(0,)] * 3
    del source
    gc.collect()


def test_dali_reads_them(unlabelled: Path) -> None:
    pytest.importorskip("nvidia.dali", reason="nvidia-dali is not installed")
    from ctgpu.loading.dali import pipeline

    _, labels, _, metadata = pipeline(unlabelled, 3).run()
    assert [np.asarray(labels[row]).shape for row in range(3)] == [(0,)] * 3
    dataset = VolumeDataset(unlabelled)
    assert [json.loads(bytes(np.asarray(metadata[row]))) for row in range(3)] == [
        dataset.metadata(index) for index in range(3)
    ]


def test_they_do_not_fit_one_batch_with_a_data_set_that_has_classes(
    unlabelled: Path, tmp_path: Path
) -> None:
    lay_out_ct_rate(tmp_path / "source", {"valid_1_a_1": chest((60, 56, 40), 9)})
    (tmp_path / "both").mkdir()
    ctgpu.build(tmp_path / "both/labelled", source=tmp_path / "source", spec=SPEC, device="cpu")
    (tmp_path / "both/unlabelled").symlink_to(unlabelled)
    with pytest.raises(MismatchError, match="class names"):
        VolumeDataset(tmp_path / "both/*/shard-*.tar")
