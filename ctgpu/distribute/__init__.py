"""More than one process, or machine, on one plan."""
