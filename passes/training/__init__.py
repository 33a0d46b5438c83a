"""Passes that train: weights change, by gradient."""
