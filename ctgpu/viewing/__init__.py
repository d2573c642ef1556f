"""A page about a data set, for people who would rather look than read: ``ctgpu view``."""

from ctgpu.viewing.view import Viewed, write_view

__all__ = ["Viewed", "write_view"]
