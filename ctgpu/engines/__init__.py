"""RawVolume and plan to float16: one interface, one registry."""

from ctgpu.engines.base import Engine, Job
from ctgpu.engines.registry import arithmetic_of, available_engines, open_engine

__all__ = ["Engine", "Job", "arithmetic_of", "available_engines", "open_engine"]
