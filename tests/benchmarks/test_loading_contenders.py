"""The readers that ``run_loading.py`` holds ctgpu's against."""

from __future__ import annotations

import multiprocessing

import torch

from benchmarks.peers.readers import of_loader


def test_the_private_names_of_torch_that_end_worker_processes_are_there() -> None:
    """Without them ``run_loading.py`` ends in an error once its readers are timed.

    Then ``of_loader`` may leave the workers to the garbage collector, which takes 5 s for each of
    litdata's; until then pyproject.toml keeps torch below the next major version.
    """
    loader = torch.utils.data.DataLoader(
        [torch.ones(2, dtype=torch.float16)],  # type: ignore[arg-type]
        batch_size=None,
        num_workers=1,
        persistent_workers=True,
        multiprocessing_context="forkserver",
    )
    before = set(multiprocessing.active_children())
    contender = of_loader(loader)
    assert [contender.payload(volume).tolist() for volume in contender.epoch()] == [[1.0, 1.0]]
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 1
    contender.close()
    assert not workers & set(multiprocessing.active_children())
