"""Batches of a data set that is not built, or not yet."""
