"""Passes, one per file, grouped by family; found by the registry."""
