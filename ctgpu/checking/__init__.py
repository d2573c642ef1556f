"""Whether what lies on disk, or this machine, is as it should be, and what it looks like."""
