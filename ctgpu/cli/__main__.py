"""``python -m ctgpu.cli``."""

from ctgpu.cli import main

main()
