"""Two tensors, read piece by piece: are they equal, and if not, how far apart?

Tensors are converted and compared a piece at a time, and external data is let go after each use, so that the
memory needed does not grow with the model.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import compare
from graphopt.errors import UserError

_PIECE = 1 << 20
"""Elements compared at a time."""

_SAMPLE = 256
"""Elements that tell two tensors apart at a glance."""

_SHOWN = 8
"""Elements of a tensor that people can read at a glance."""


@dataclasses.dataclass(frozen=True)
class Distance:
    """How far a tensor is from another of the same shape, which it is not equal to.

    Attributes:
        changed: share of the elements that differ, 0 to 1.
        zeros: share of the elements that are zero, before and after; None for strings.
        largest: largest absolute change, infinite where a number became NaN or infinite; None for strings, and where
            a floating-point type became another kind of type, since their numbers do not mean the same.
        relative: norm of the change / norm of the original; None as for `largest`.
        sqnr: signal-to-quantization-noise ratio in dB, over elements that were finite; None as for `largest`.
    """

    changed: float
    zeros: tuple[float, float] | None
    largest: float | None
    relative: float | None
    sqnr: float | None


def constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """Return the tensor of an initializer (a default of a graph input, too) or of a Constant node, or None."""
    if value is None or value.is_initializer():
        return None if value is None else value.const_value
    node = value.producer()
    if node is None or not is_constant_node(node):
        return None
    attribute = node.attributes.get("value")
    if attribute is not None and attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
        tensor: ir.TensorProtocol = attribute.value  # as_tensor() takes a hundred times as long
        return tensor
    try:
        return ir.convenience.get_const_tensor(value)
    except ValueError:  # a Constant of a kind that onnx_ir does not read, such as a sparse one
        return None


def are_constants(*values: ir.Value | None) -> bool:
    """Tell whether the tensors of all these values are known."""
    return all(constant(value) is not None for value in values)


def is_constant_node(node: ir.Node | None) -> bool:
    """Tell whether a node is the operator Constant."""
    return node is not None and node.domain == "" and node.op_type == "Constant"


def shape(tensor: ir.TensorProtocol) -> tuple[int, ...]:
    """Return the sizes of a tensor's axes."""
    return tuple(tensor.shape.numpy())


def values(tensor: ir.TensorProtocol) -> list[Any] | None:
    """Return the elements of a short tensor, flat and ready for JSON, or None."""
    if tensor.size > _SHOWN:
        return None
    found = [_readable(item) for item in _flat(tensor).tolist()]
    _release(tensor)
    return found


def describe(tensor: ir.TensorProtocol) -> str:
    """Return a tensor in words: type and shape, and the elements of a short one."""
    short = values(tensor)
    return f"{tensor.dtype.name} {list(shape(tensor))}" + ("" if short is None else f" {short}")


def is_uniform(tensor: ir.TensorProtocol) -> bool:
    """Tell whether all elements are one number, as those of fresh biases and scales are."""
    flat = _flat(tensor)
    result = not flat.size or all(bool(np.all(flat[i : i + _PIECE] == flat[0])) for i in range(0, flat.size, _PIECE))
    del flat
    _release(tensor)
    return result


def sample(tensor: ir.TensorProtocol) -> bytes:
    """Return the first elements' bytes: tensors that differ in them are not equal."""
    result = _bytes(_flat(tensor)[:_SAMPLE])
    _release(tensor)
    return result


def digest(tensor: ir.TensorProtocol) -> bytes:
    """Return the SHA-256 of a tensor's elements."""
    result = _digest(tensor)
    _release(tensor)
    return result


def equal(before: ir.TensorProtocol, after: ir.TensorProtocol) -> bool:
    """Tell whether two tensors have the same type, the same shape and the same numbers; NaN equals NaN."""
    same = before.dtype == after.dtype and shape(before) == shape(after)
    return same and distance(before, after) is None


def distance(before: ir.TensorProtocol, after: ir.TensorProtocol) -> Distance | None:
    """Say how far apart two tensors of the same shape are; None if they hold the same numbers.

    Raises:
        UserError: a tensor's data does not fit its type and shape.
    """
    result = _distance(_flat(before), _flat(after))
    _release(before)
    _release(after)
    return result


def _distance(before: np.ndarray, after: np.ndarray) -> Distance | None:
    if before.dtype.kind == "c" and before.dtype == after.dtype:  # two numbers each
        before, after = before.view(before.real.dtype), after.view(after.real.dtype)
    pieces = [slice(start, start + _PIECE) for start in range(0, before.size, _PIECE)]
    changed = sum(_changed(before[piece], after[piece]) for piece in pieces)
    if not changed:
        return None
    share = changed / before.size
    if not (_is_number(before.dtype) and _is_number(after.dtype)):
        return Distance(share, None, None, None, None)
    zeros = np.zeros(2)
    signal = noise = largest = 0.0
    for piece in pieces:
        a, b = before[piece].astype(np.float64), after[piece].astype(np.float64)
        zeros += (np.sum(a == 0), np.sum(b == 0))
        with np.errstate(over="ignore", invalid="ignore"):
            sums = compare.sqnr_sums(a, b)
            signal, noise = signal + sums[0], noise + sums[1]
            apart = np.where(_differ(a, b), np.abs(b - a), 0.0)
        largest = max(largest, float(np.max(np.where(np.isnan(apart), np.inf, apart))))
    shares = (float(zeros[0]) / before.size, float(zeros[1]) / before.size)
    if compare.is_float(before.dtype) != compare.is_float(after.dtype):
        return Distance(share, shares, None, None, None)
    relative = math.sqrt(noise / signal) if signal > 0 and math.isfinite(noise) else math.inf
    return Distance(share, shares, largest, relative, compare.decibels(signal, noise))


def _changed(a: np.ndarray, b: np.ndarray) -> int:
    """Count the elements that differ."""
    if not (_is_number(a.dtype) and _is_number(b.dtype)):
        return sum(one != other for one, other in zip(a.tolist(), b.tolist(), strict=True))
    if a.dtype != b.dtype:
        a, b = a.astype(np.float64), b.astype(np.float64)
    differs = np.asarray(a != b)
    if not compare.is_float(a.dtype) or not differs.any():
        return int(np.sum(differs))
    return int(np.sum(_differ(a[differs].astype(np.float64), b[differs].astype(np.float64))))


def _differ(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.asarray((a != b) & ~(np.isnan(a) & np.isnan(b)))


def _is_number(dtype: np.dtype) -> bool:
    return dtype.kind in "fiub" or (dtype.kind == "V" and dtype.names is None)


def _flat(tensor: ir.TensorProtocol) -> np.ndarray:
    try:
        return np.asarray(tensor.numpy()).reshape(-1)
    except (AssertionError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise UserError(f"tensor '{tensor.name}' cannot be read: {reason}; export the model again") from None


def _readable(item: Any) -> Any:
    """Return an element as JSON can hold it."""
    if isinstance(item, bytes):
        return item.decode(errors="replace")
    return str(item) if isinstance(item, complex) else item


def _digest(tensor: ir.TensorProtocol) -> bytes:
    flat, result = _flat(tensor), hashlib.sha256()
    for start in range(0, flat.size, _PIECE):
        result.update(_bytes(flat[start : start + _PIECE]))
    return result.digest()


def _bytes(flat: np.ndarray) -> bytes:
    if flat.dtype.kind in "OSU":  # strings
        return "\0".join(str(item) for item in flat.tolist()).encode()
    return flat.tobytes()


def _release(tensor: ir.TensorProtocol) -> None:
    """Let go of external data that nobody else holds an array of."""
    if isinstance(tensor, ir.ExternalTensor):
        with contextlib.suppress(BufferError):
            tensor.release()
