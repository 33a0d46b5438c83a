"""The table of adapters: for an operator and the version that changed it, how to carry a node over that change.

An adapter is a function of a `Site`. It changes the node there and returns None, or emits nodes and returns the
values that take the place of the node's outputs; it raises `Refusal` where there is no equal. An adapter is needed
only where a schema tells too little: `convert` drops attributes that say what was understood before anyway, spells
out defaults that changed, and checks types and numbers of inputs by itself.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import onnx_ir as ir

from graphopt.passes.precision._opset.site import Site

Adapter = Callable[[Site], ir.Value | Sequence[ir.Value] | None]

UP: dict[tuple[str, int], list[Adapter]] = defaultdict(list)
DOWN: dict[tuple[str, int], list[Adapter]] = defaultdict(list)


def up(since: int, *op_types: str) -> Callable[[Adapter], Adapter]:
    """Register an adapter that brings operators from before version `since` to it."""
    return _register(UP, since, op_types)


def down(since: int, *op_types: str) -> Callable[[Adapter], Adapter]:
    """Register an adapter that brings operators from version `since` to the one before."""
    return _register(DOWN, since, op_types)


def _register(
    table: dict[tuple[str, int], list[Adapter]], since: int, op_types: tuple[str, ...]
) -> Callable[[Adapter], Adapter]:
    def decorate(adapter: Adapter) -> Adapter:
        for op_type in op_types:
            table[op_type, since].append(adapter)
        return adapter

    return decorate
