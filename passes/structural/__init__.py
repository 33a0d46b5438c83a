"""Lossless edits of the graph."""
