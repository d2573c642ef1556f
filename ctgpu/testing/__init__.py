"""A local Hub and CT-RATE-like sources, for tests, the demo and benchmarks."""
