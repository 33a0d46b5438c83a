"""Sequences, which are lists, and optionals, of which an absent one is None."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphopt.runtimes._torch.operators.joining import concat, cut
from graphopt.runtimes._torch.operators.shape import unsqueeze_1
from graphopt.runtimes._torch.table import Host, operator


@operator("SequenceEmpty", 11)
def sequence_empty(*, dtype: int = 1) -> list[Any]:
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
    if split is None:
        pieces = list(cut(input, axis, [1] * length))
        return pieces if keepdims else [p.squeeze(axis) for p in pieces]
    if split.ndim:
        return list(cut(input, axis, split.tolist()))
    size = int(split)
    return list(cut(input, axis, [min(size, length - i) for i in range(0, length, size)]))


@operator("ConcatFromSequence", 11)
def concat_from_sequence(input_sequence: list[Any], *, axis: int, new_axis: int = 0) -> Any:
    """Tensors one after the other, along an axis of theirs or a new one."""
    parts = [unsqueeze_1(x, axes=(axis,)) for x in input_sequence] if new_axis else input_sequence
    return concat(*parts, axis=axis)


@operator("SequenceMap", 17)
def sequence_map(input_sequence: list[Any], *others: Any, body: Callable[..., list[Any]]) -> tuple[Any, ...]:
    """A body for every tensor of a sequence, along with the tensors of other sequences."""
    rows = [body(x, *(o[i] if isinstance(o, list) else o for o in others)) for i, x in enumerate(input_sequence)]
    return tuple(list(column) for column in zip(*rows, strict=True))


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


@operator("ArrayFeatureExtractor", 1, "ai.onnx.ml")
def array_feature_extractor(x: Any, y: Tensor) -> Any:
    """Columns by index."""
    index = y.reshape(-1)
    if isinstance(x, np.ndarray):
        return x[..., index.numpy()]
    taken = x[..., index]
    return taken.reshape(1, -1) if x.ndim == 1 else taken


@operator("Binarizer", 1, "ai.onnx.ml")
def binarizer(x: Tensor, *, threshold: float = 0.0) -> Tensor:
    """1 above a threshold, else 0."""
    return (x > threshold).to(x.dtype)
