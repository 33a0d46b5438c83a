"""Layouts: a value v and its other form v' with v = Transpose(v', perm), and how they carry through axes that come and go.

Axis i of v is axis perm[i] of v'. Axes of size 1 may change places for nothing, so permutations are compared after
`canonical` has put those in order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from graphopt.inference import Dim

Perm = tuple[int, ...]
Dims = tuple[Dim, ...]


def is_identity(perm: Sequence[int]) -> bool:
    """Tell whether nothing moves."""
    return all(axis == index for index, axis in enumerate(perm))


def inverse(perm: Perm) -> Perm:
    """Return the permutation that undoes `perm`."""
    return tuple(sorted(range(len(perm)), key=perm.__getitem__))


def permuted(dims: Dims | None, perm: Perm) -> Dims | None:
    """Return the shape of Transpose(v, perm) for v of shape `dims`."""
    return None if dims is None else tuple(dims[axis] for axis in perm)


def canonical(perm: Perm, dims: Dims | None) -> Perm:
    """Return the equal of `perm` that keeps axes of size 1 in order.

    Args:
        perm: of v = Transpose(v', perm).
        dims: of v.
    """
    if dims is None or len(dims) != len(perm):
        return perm
    ones = [index for index, size in enumerate(dims) if size == 1]
    result = list(perm)
    for index, axis in zip(ones, sorted(perm[index] for index in ones), strict=True):
        result[index] = axis
    return tuple(result)


def keeps_order(perm: Perm, dims: Dims | None) -> bool:
    """Tell whether v and v' hold the same elements in the same order: only axes of size 1 move.

    Args:
        perm: of v = Transpose(v', perm).
        dims: of v.
    """
    if dims is None:
        return is_identity(perm)
    moved = [axis for axis, size in zip(perm, dims, strict=True) if size != 1]
    return moved == sorted(moved)


def restrict(perm: Perm, kept: Sequence[int]) -> Perm:
    """Return the permutation of some axes of v, called `kept`, among themselves."""
    order = sorted(perm[axis] for axis in kept)
    return tuple(order.index(perm[axis]) for axis in kept)


def extend(perm: Perm, kept: Sequence[int], rank: int) -> Perm:
    """Return a permutation of `rank` axes that moves the `kept` ones as `perm` does, and no others."""
    result = list(range(rank))
    for index, axis in enumerate(kept):
        result[axis] = kept[perm[index]]
    return tuple(result)


def suffix(perm: Perm, rank: int) -> Perm | None:
    """Return the permutation of the last `rank` axes; None if others move among them."""
    start = len(perm) - rank
    last = tuple(axis - start for axis in perm[start:])
    return last if start >= 0 and all(axis >= 0 for axis in last) else None


def target(dims: Dims, source: Dims | None = None) -> list[int] | None:
    """Return what a Reshape must be told to make `dims`: it can copy sizes, or find one out; both fails for empty tensors.

    Args:
        dims: of the result.
        source: of the input; an equal size at the same place can be copied.
    """
    if 0 in dims:
        return None
    result: list[int] = []
    for index, size in enumerate(dims):
        if isinstance(size, int):
            result.append(size)
        elif size is not None and source is not None and index < len(source) and source[index] == size:
            result.append(0)
        else:
            result.append(-1)
    return result if result.count(-1) <= (0 not in result) else None


def blocks(before: Dims, after: Dims) -> list[tuple[list[int], list[int]]] | None:
    """Return which axes of a Reshape's input become which of its output, as a finest list of blocks; None if unknown.

    Each block has the same number of elements on both sides. Axes of size 1 without a partner are blocks of their own.
    """
    result: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        a, b = (before[i] if i < len(before) else 1), (after[j] if j < len(after) else 1)
        if a is not None and a == b and i < len(before) and j < len(after):
            result.append(([i], [j]))
            i, j = i + 1, j + 1
        elif a == 1 and i < len(before):
            result.append(([i], []))
            i += 1
        elif b == 1 and j < len(after):
            result.append(([], [j]))
            j += 1
        else:
            left, right = [i], [j]
            i, j = i + 1, j + 1
            while (pair := (_count(before, left), _count(after, right))) and pair[0] != pair[1]:
                one, two = pair
                if one is None or two is None or i > len(before) or j > len(after):
                    return None
                if one < two:
                    left.append(i)
                    i += 1
                else:
                    right.append(j)
                    j += 1
            if _count(before, left) is None:
                return None
            result.append((left, right))
    return result


def _count(dims: Dims, axes: Sequence[int]) -> int | None:
    sizes = [dims[axis] if axis < len(dims) else None for axis in axes]
    known = [size for size in sizes if isinstance(size, int) and size > 0]
    return math.prod(known) if len(known) == len(sizes) else None


def through(perm: Perm, pairs: Sequence[tuple[list[int], list[int]]]) -> Perm | None:
    """Return the permutation on the other side of a Reshape; None if a block would be torn apart.

    Args:
        perm: of v = Transpose(v', perm), one side of the Reshape.
        pairs: blocks of axes, those of v first.
    """
    rank = sum(len(there) for _, there in pairs)
    order: list[tuple[int, list[int]]] = []
    fixed: list[tuple[int, list[int]]] = []
    for here, there in pairs:
        places = [perm[axis] for axis in here]
        if places != list(range(places[0], places[0] + len(places))) if places else False:
            return None
        if places:
            order.append((places[0], there))
        else:
            fixed.append((there[0], there))
    sequence = [axis for _, there in sorted(order) for axis in there]
    for place, there in fixed:  # new axes of size 1 stay where they are
        sequence[place:place] = there
    result = [0] * rank
    for index, axis in enumerate(sequence):
        result[axis] = index
    return tuple(result)
