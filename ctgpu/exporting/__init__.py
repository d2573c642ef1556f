"""Samples for other programs, as files of their own or through an index: ``ctgpu export``."""

from ctgpu.exporting.energon import Indexed, write_energon_index
from ctgpu.exporting.export import Exported, export_samples

__all__ = ["Exported", "Indexed", "export_samples", "write_energon_index"]
