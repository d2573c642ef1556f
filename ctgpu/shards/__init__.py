"""The format on disk: plan, tar, journal, record, index, manifest; see ``docs/format.md``."""
