"""One question a module: its ``main`` measures, and writes one result."""
