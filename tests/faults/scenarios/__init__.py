"""Small builds put to the test, for the fault tests and ``benchmarks/run_reliability.py``."""

from __future__ import annotations

from scenarios.bad_hub import build_from_bad_hub
from scenarios.builds import (
    REPOSITORY,
    SAMPLES_PER_SHARD,
    Builder,
    make_source,
    quick_patience,
    snapshot,
)
from scenarios.corrupted import build_corrupted, build_rotten_hub
from scenarios.full_disk import fill_and_resume, small_disk
from scenarios.kills import kill_and_resume, kill_at_calls
from scenarios.memory import build_measured, declare_huge_volumes
from scenarios.scale import (
    make_plan_of,
    plan_measured,
    pretend_committed,
    resume_measured,
    run_measured,
)
from support.phantoms import SPEC

__all__ = [
    "REPOSITORY",
    "SAMPLES_PER_SHARD",
    "SPEC",
    "Builder",
    "build_corrupted",
    "build_from_bad_hub",
    "build_measured",
    "build_rotten_hub",
    "declare_huge_volumes",
    "fill_and_resume",
    "kill_and_resume",
    "kill_at_calls",
    "make_plan_of",
    "make_source",
    "plan_measured",
    "pretend_committed",
    "quick_patience",
    "resume_measured",
    "run_measured",
    "small_disk",
    "snapshot",
]
