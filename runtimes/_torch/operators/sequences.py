"""Sequences, which are lists, and optionals, of which an absent one is None."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from graphopt.runtimes._torch.operators.joining import concat, cut
from graphopt.runtimes._torch.operators.shape import squeeze_1, unsqueeze_1
from graphopt.runtimes._torch.table import Host, operator


@operator("SequenceEmpty", 11)
def sequence_empty(*, dtype: int | None = None) -> list[Any]:
    """A sequence of nothing."""
    del dtype
    return []


@operator("SequenceConstruct", 11)
def sequence_construct(*inputs: Any) -> list[Any]:
    """A sequence of tensors."""
    return list(inputs)


@operator("SequenceInsert", 11)
def sequence_insert(input_sequence: list[Any], tensor: Any, position: Host | None = None) -> list[Any]:
    """A sequence with one more tensor, by default at its end."""
    place = len(input_sequence) if position is None else int(position.reshape(-1)[0])
    made = list(input_sequence)
    made.insert(place, tensor)
    return made


@operator("SequenceErase", 11)
def sequence_erase(input_sequence: list[Any], position: Host | None = None) -> list[Any]:
    """A sequence without one of its tensors, by default the last."""
    made = list(input_sequence)
    del made[-1 if position is None else int(position.reshape(-1)[0])]
    return made


@operator("SequenceAt", 11)
def sequence_at(input_sequence: list[Any], position: Host) -> Any:
    """One tensor of a sequence."""
    return input_sequence[int(position.reshape(-1)[0])]


@operator("SequenceLength", 11)
def sequence_length(input_sequence: list[Any]) -> Tensor:
    """How many tensors there are."""
    return torch.tensor(len(input_sequence), dtype=torch.int64)


@operator("SplitToSequence", 11)
def split_to_sequence(input: Any, split: Host | None = None, *, axis: int = 0, keepdims: int = 1) -> list[Any]:
    """Pieces of given sizes, or slices."""
    length = input.shape[axis]
    if split is not None and split.ndim:
        return list(cut(input, axis, split.tolist()))
    size = 1 if split is None else int(split)
    pieces = list(cut(input, axis, [min(size, length - i) for i in range(0, length, size)]))
    return pieces if split is not None or keepdims else [squeeze_1(piece, axes=(axis,)) for piece in pieces]


@operator("ConcatFromSequence", 11)
def concat_from_sequence(input_sequence: list[Any], *, axis: int, new_axis: int = 0) -> Any:
    """Tensors one after the other, along an axis of theirs or a new one."""
    parts = [unsqueeze_1(x, axes=(axis,)) for x in input_sequence] if new_axis else input_sequence
    return concat(*parts, axis=axis)


@operator("SequenceMap", 17)
def sequence_map(
    input_sequence: list[Any], *others: Any, body: Callable[..., list[Any]], outputs_: int
) -> tuple[Any, ...]:
    """A body for every tensor of a sequence, along with the tensors of other sequences."""
    rows = [body(x, *(o[i] if isinstance(o, list) else o for o in others)) for i, x in enumerate(input_sequence)]
    return tuple([row[i] for row in rows] for i in range(outputs_))


@operator("Optional", 15)
def optional(input: Any = None, *, type: Any = None) -> Any:
    """A value, or none."""
    del type
    return input


@operator("OptionalHasElement", 15)
def optional_has_element(input: Any = None) -> Tensor:
    """Whether there is a value."""
    return torch.tensor(input is not None)


@operator("OptionalGetElement", 15)
def optional_get_element(input: Any) -> Any:
    """The value."""
    return input
