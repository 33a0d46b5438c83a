"""Passes that join operators into the ones that a target has kernels for."""
