"""Train a graph: weights change, by the name of their initializer; nodes, names and types stay."""
