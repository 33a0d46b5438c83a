"""Tensors that hold a weight in blocks, encoded when they are asked for, one weight in memory at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
from collections.abc import Callable
from typing import Literal, TypeVar

import numpy as np
import onnx_ir as ir

from graphopt.passes.quantization._block_bytes import all_finite, pack, pack_zeros
from graphopt.passes.quantization._block_gptq import encode_by_output
from graphopt.passes.quantization._block_kinds import Kind
from graphopt.passes.quantization._block_layout import Layout
from graphopt.passes.quantization._blocks import Encoded, encode

T = TypeVar("T")

Shelf = Literal["whole", "cut", "packed", "gathered"]
"""How to lay the numbers down: in the shape of the weight; with its axis cut into blocks; as MatMulNBits takes them; as
GatherBlockQuantized does, which knows 8 bits unsigned only."""

_HALF = 128


@dataclasses.dataclass(frozen=True)
class _Part:
    """One tensor of a stored weight, and how to take it from what was encoded."""

    suffix: str
    dtype: ir.DataType
    shape: tuple[int, ...]
    take: Callable[[Encoded], np.ndarray]


class Store:
    """A weight as integers, scales, and zero points where there are any.

    The tensors are lazy. Whichever is read first encodes the weight; the last to be read lets go of what was encoded.
    """

    def __init__(self, weight: ir.TensorProtocol, layout: Layout, kind: Kind, shelf: Shelf, *, search: bool) -> None:
        """Prepare to store a weight.

        Args:
            weight: its tensor.
            layout: where its blocks lie.
            kind: how it is kept.
            shelf: how the numbers are laid down.
            search: look for better scales (see `_blocks.encode`).
        """
        self.layout, self.kind = layout, kind
        self._weight, self._shelf, self._search = weight, shelf, search
        self._encoded: Encoded | None = None
        self._waiting: set[str] = set()
        self._is_chosen = False
        self._lock = threading.Lock()  # tensors may be written at the same time
        self._parts = [self._numbers(), self._scales(), *([] if kind.symmetric else [self._zeros()])]

    def round_by(self, moments: np.ndarray) -> None:
        """Choose the integers by what comes of products, now and once for all: they stay in memory.

        Args:
            moments: mean products [K, K] of what the weight [K, N] multiplies.
        """
        self._encoded = self._encode(functools.partial(encode_by_output, moments=moments))
        self._is_chosen = True

    @property
    def nbytes(self) -> int:
        """The bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors(str))

    def tensors(self, name: Callable[[str], str]) -> list[ir.LazyTensor]:
        """Return the tensors: numbers, scales, zero points if there are any.

        Args:
            name: makes a tensor's name from a suffix.
        """
        return [
            ir.LazyTensor(lambda part=part: self._make(part), part.dtype, ir.Shape(part.shape), name=name(part.suffix))  # type: ignore[misc]
            for part in self._parts
        ]

    def _numbers(self) -> _Part:
        layout, dtype, bits = self.layout, self.kind.dtype, self.kind.bits
        if self._shelf == "packed":
            shape = (layout.columns, -(-layout.rows // layout.block), layout.block * bits // 8)
            return _Part("q", ir.DataType.UINT8, shape, lambda found: found.numbers)
        if self._shelf == "cut" and layout.blocks > 1:
            return _Part("q", dtype, layout.cut, lambda found: layout.cut_up(found.numbers))
        if self._shelf == "gathered" and dtype == ir.DataType.INT8:
            moved = np.uint8(_HALF)
            return _Part(
                "q", ir.DataType.UINT8, layout.shape, lambda found: layout.whole(found.numbers).view(np.uint8) + moved
            )
        return _Part("q", dtype, layout.shape, lambda found: layout.whole(found.numbers))

    def _scales(self) -> _Part:
        return self._like_scales("s", self._weight.dtype, lambda found: found.scales)

    def _zeros(self) -> _Part:
        if self._shelf == "packed":
            layout, bits = self.layout, self.kind.bits
            size = layout.columns * -(-layout.blocks * bits // 8)
            return _Part("z", ir.DataType.UINT8, (size,), lambda found: pack_zeros(_zeros_of(found), bits))
        return self._like_scales("z", self.kind.dtype, _zeros_of)

    def _like_scales(self, suffix: str, dtype: ir.DataType, take: Callable[[Encoded], np.ndarray]) -> _Part:
        layout = self.layout
        if self._shelf == "packed":
            return _Part(suffix, dtype, (layout.columns * layout.blocks,), lambda found: take(found).T.reshape(-1))
        if self._shelf == "cut":
            shape = layout.cut_scales
            return _Part(suffix, dtype, shape, lambda found: layout.whole_scales(take(found)).reshape(shape))
        return _Part(suffix, dtype, layout.scales, lambda found: layout.whole_scales(take(found)))

    def _make(self, part: _Part) -> ir.TensorProtocol:
        with self._lock:
            if self._encoded is None:
                self._encoded = self._encode(functools.partial(encode, search=self._search))
                self._waiting = {other.suffix for other in self._parts}
            array = part.take(self._encoded)
            self._waiting.discard(part.suffix)
            if not self._waiting and not self._is_chosen:
                self._encoded = None
        if part.dtype.bitwidth < 8:
            return ir.PackedTensor(pack(array, part.dtype.bitwidth), part.dtype, shape=part.shape)
        return ir.Tensor(np.ascontiguousarray(array), part.dtype)

    def _encode(self, how: Callable[..., Encoded]) -> Encoded:
        layout, packed = self.layout, self._shelf == "packed"
        size = layout.block if packed else layout.size
        return _read(
            self._weight, lambda weight: how(layout.matrix(weight), size, self.kind, weight.dtype, pack=packed)
        )


def is_finite(tensor: ir.TensorProtocol) -> bool:
    """Tell whether all elements of a float32 or float16 tensor are finite."""
    return _read(tensor, all_finite)


def _read(tensor: ir.TensorProtocol, work: Callable[[np.ndarray], T]) -> T:
    """Return what comes of working on a tensor's elements; those read of a file leave memory again."""
    try:
        return work(tensor.numpy())
    finally:
        if isinstance(tensor, ir.ExternalTensor):
            with contextlib.suppress(BufferError):  # somebody else is reading them
                tensor.release()


def _zeros_of(found: Encoded) -> np.ndarray:
    assert found.zeros is not None
    return found.zeros
