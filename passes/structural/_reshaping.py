"""How to write a Reshape whose sizes are known in part"""

from __future__ import annotations

from collections.abc import Sequence

from graphopt.inference import Dim

RESHAPES = ("Flatten", "Reshape", "Squeeze", "Unsqueeze")
"""Operators that leave the elements in their order."""


def target(source: Sequence[Dim] | None, result: Sequence[Dim] | None) -> list[int] | None:
    """Return the constant that makes Reshape turn `source` into `result`; None if there is none.

    A size that varies is copied (0) from the same axis of the source, or, once, left to be computed (-1).
    """
    if result is None or 0 in result:
        return None
    found = []
    for axis, size in enumerate(result):
        if isinstance(size, int):
            found.append(size)
        elif size is not None and source is not None and axis < len(source) and source[axis] == size:
            found.append(0)
        else:
            found.append(-1)
    return found if found.count(-1) <= 1 else None


def same(first: Sequence[Dim] | None, second: Sequence[Dim] | None) -> bool:
    """Tell whether two shapes are certainly equal."""
    return first is not None and second is not None and None not in first and tuple(first) == tuple(second)
