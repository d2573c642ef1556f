"""The volumes that samples of a data set were made of."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Self

from ctgpu.buffers import BufferPool
from ctgpu.building.masks import read_mask
from ctgpu.building.planning import open_named_source
from ctgpu.building.prepare import prepare_sample
from ctgpu.building.request import Request
from ctgpu.checking.recipe import Recipe
from ctgpu.errors import FetchError, UsageError
from ctgpu.sources import open_source
from ctgpu.sources.base import Source
from ctgpu.sources.tables import SampleRow
from ctgpu.volume.prepare import PreparedVolume
from ctgpu.volume.ref import SampleRef, normal_form


class Originals:
    """The volumes that samples were made of, found by key.

    Parameters
    ----------
    source : Source
        Where they are; closed with this.
    recipe : Recipe
        How the samples were made.
    """

    def __init__(self, source: Source, recipe: Recipe) -> None:
        self._source = source
        self._recipe = recipe
        self._pool = BufferPool()
        refs = source.list_volumes(recipe.split)
        # A copy may have its names in another normal form; one of exactly the name goes before.
        self._refs = {normal_form(ref.key): ref for ref in refs} | {ref.key: ref for ref in refs}
        class_names = recipe.plan.class_names if recipe.plan else None
        self._tables = source.tables(recipe.split, class_names)

    @classmethod
    def open(cls, source: str | PathLike[str] | None, recipe: Recipe) -> Originals:
        """Those of a folder or of tars; by default those that the recipe's plan names.

        Raises
        ------
        UsageError
            If there is no source, or it holds no volume of the split.
        EnvironmentFailure
            If the source fails.
        """
        named = Path(source) if source is not None else None
        if recipe.plan is not None and recipe.folder is not None:
            return cls(open_named_source(recipe.plan, recipe.folder, named, Request()), recipe)
        if named is None:
            raise UsageError(
                "there is no plan that names the originals; pass --source or --original-pattern"
            )
        return cls(open_source(source=named), recipe)

    def row(self, key: str) -> SampleRow:
        """What the source says about the original of `key`.

        Raises
        ------
        FetchError
            If there is no original.
        TableError
            If its rows cannot be used.
        """
        return self._tables.row(
            self._ref(key).study_id, spacing_from_header=self._recipe.spacing_from_header
        )

    def prepare(self, key: str) -> PreparedVolume:
        """The original of `key`, decoded, with everything decided; release it when done.

        Its mask is with it where the recipe's plan has masks.

        Raises
        ------
        SampleError
            If it cannot be had, or not be used.
        """
        row, ref, plan = self.row(key), self._ref(key), self._recipe.plan
        raw = self._source.fetch(ref, self._pool.acquire).decode(self._pool)
        mask = None
        if plan is not None and plan.masks is not None:
            with raw.released_on_error():
                mask = read_mask(self._source, ref, raw, plan.masks, self._pool)
        return prepare_sample(
            raw,
            row,
            ref,
            spec=self._recipe.spec,
            rules=self._recipe.rules,
            hu_guard=self._recipe.hu_guard,
            mask=mask,
        )

    def _ref(self, key: str) -> SampleRef:
        found = self._refs.get(key) or self._refs.get(normal_form(key))
        if found is None:
            raise FetchError(f"the source has no original of {key}")
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self._source.close()
