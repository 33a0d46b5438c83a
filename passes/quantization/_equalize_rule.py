"""What rules about factors per channel share (see `_equalize_rules`)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from graphopt import graphs
from graphopt.passes.quantization._equalize_channels import Channels

Rule = Callable[[Channels, ir.Node], str | None]
"""Takes the exponents of a node's inputs and sets those of its outputs, or returns a reason not to."""

UNKNOWN = "the sizes of what it reads or computes are not known"
_LIMIT = 1 << 30
"""Constants of more elements are left alone."""


def because(node: ir.Node, reason: str) -> str:
    """Return a reason that names the operator."""
    return f"it goes into {graphs.label(node)} ({node.op_type}): {reason}"


def array_of(value: ir.Value | None) -> np.ndarray | None:
    """Return a float32 constant that may be replaced."""
    found = graphs.array(value, _LIMIT)
    return found if found is not None and found.dtype == np.float32 else None


def integers_of(value: ir.Value | None) -> np.ndarray | None:
    """Return a constant of whole numbers, such as axes."""
    found = graphs.array(value)
    return found.ravel() if found is not None and found.dtype.kind == "i" else None


def rank_of(channels: Channels, value: ir.Value | None) -> int | None:
    """Return the rank of a value, if it is known."""
    sizes = channels.sizes(value) if value is not None else None
    return None if sizes is None else len(sizes)


def does_not_commute(node: ir.Node) -> str:
    """Return the reason of an operator that no factor goes through."""
    return f"it goes into {graphs.label(node)} ({node.op_type}), which does not commute with a factor per channel"


def raised(ids: np.ndarray, rank: int) -> np.ndarray:
    """Return exponents in a higher rank, as broadcasting aligns them."""
    return ids.reshape((1,) * (rank - ids.ndim) + ids.shape)
