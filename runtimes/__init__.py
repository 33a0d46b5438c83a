"""Ways to execute a graph: one file each, found by the registry."""
