"""How the samples of a data set were made, as its plan or its manifest says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctgpu.data_sets import DEFAULT_SPLIT
from ctgpu.errors import NewerFormatError, UsageError
from ctgpu.shards.card import Claims
from ctgpu.shards.names import PLAN_NAME
from ctgpu.shards.plan import Plan
from ctgpu.spec import CT_RATE, Spec
from ctgpu.volume.intensity import HuGuard
from ctgpu.volume.orientation import DEFAULT_RULES, AxisRules


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the samples beside a tar were made.

    Attributes
    ----------
    spec : Spec
        What they were made to.
    split : str
        Which tables belong to them.
    spacing_from_header : bool
        Whether the file's spacing served where the CSV had none.
    rules : AxisRules
        Which orientations were taken.
    hu_guard : {"refuse", "warn"}
        What was done about volumes that do not look like HU.
    plan : Plan or None
        The data set's plan, where a folder of ctgpu is compared.
    folder : Path or None
        Where the plan lies.
    """

    spec: Spec = CT_RATE
    split: str = DEFAULT_SPLIT
    spacing_from_header: bool = False
    rules: AxisRules = DEFAULT_RULES
    hu_guard: HuGuard = "refuse"
    plan: Plan | None = None
    folder: Path | None = None

    @classmethod
    def beside(cls, tar: Path) -> Recipe:
        """From the plan or the manifest beside `tar`; CT-RATE's contract where there is neither.

        Raises
        ------
        UsageError
            If one of them is damaged.
        NewerFormatError
            If a newer ctgpu wrote it.
        """
        folder = tar.parent
        if (folder / PLAN_NAME).exists():
            plan = Plan.load(folder)
            from_header = plan.selection.get("spacing_fallback") == "header"
            rules = AxisRules.of_selection(plan.selection)
            guard = _guard_of(plan.selection)
            return cls(plan.spec, plan.split, from_header, rules, guard, plan, folder)
        claims = Claims.load(folder)
        if claims is None:
            return cls()
        try:
            return cls(
                claims.spec or CT_RATE,
                claims.split or DEFAULT_SPLIT,
                rules=AxisRules.of_selection(claims.selection),
                hu_guard=_guard_of(claims.selection),
            )
        except NewerFormatError:
            raise
        except UsageError as error:
            raise UsageError(
                f"{claims.path} does not say how its samples were made: {error}"
            ) from error


def _guard_of(selection: Mapping[str, Any]) -> HuGuard:
    """The guard of a data set; before it was recorded, it let most of what is not HU through."""
    return "refuse" if selection.get("hu_guard") == "refuse" else "warn"
