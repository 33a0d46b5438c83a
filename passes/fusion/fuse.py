"""Join operators into the ones that ONNX Runtime has kernels for: attention and others

Most exporters write a network in small standard operators. ONNX Runtime has larger ones in its domain com.microsoft, of
which it finds some by itself when a session loads. Attention it finds only in the shape of a few exporters; this pass
finds it by what is computed (see the modules of this folder, one for each kind):

    rotary         RotaryEmbedding
    quantized      DynamicQuantizeMatMul, MatMulIntegerToFloat
    attention      Attention (which packs the matrices of queries, keys and values; QAttention, where these are integers),
                   GroupQueryAttention, MultiHeadAttention (with or without a cache)
    normalization  SkipLayerNormalization, SkipSimplifiedLayerNormalization, LayerNormalization, RMSNormalization
    gelu           Gelu, BiasGelu, FastGelu, QuickGelu
    convolution    FusedConv
    matmul         FusedMatMul

Every fused operator computes the same numbers up to the order of its sums: masks are added as they are, scales are
exact, and GELU by erf stays GELU by erf. Sizes that the fusion relies on must be proven by inference. The result runs on
ONNX Runtime only, so the pass belongs after everything that looks for standard operators, quantization above all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import onnx_ir as ir

from graphopt import target
from graphopt.passbase import FASTER, Pass, PreconditionError, Result, param
from graphopt.passes.fusion import _attention, _convolution, _gelu, _matmul, _normalization, _quantized, _rotary
from graphopt.passes.fusion._site import MICROSOFT, Site

_OPSET = 11
"""The operators that go around fused ones are those of this opset or newer."""

_KINDS: dict[str, Callable[[Site], None]] = {
    "rotary": _rotary.fuse,
    "quantized": _quantized.fuse,
    "attention": _attention.fuse,
    "normalization": _normalization.fuse,
    "gelu": _gelu.fuse,
    "convolution": _convolution.fuse,
    "matmul": _matmul.fuse,
}
"""In the order in which they run: attention looks for fused products of integers, and for Transpose and scale, which float
products would take in; a bias belongs to the product before it rather than to a sum or Gelu."""


@dataclass(frozen=True)
class Fuse(Pass):
    """Join operators."""

    only: tuple[str, ...] = param((), "Kinds of fusion to make, such as attention,gelu; all by default.")
    target: str = param("cpu", "Where the model will run; only operators that it has kernels for are made.")
    contract = FASTER

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.only if kind not in _KINDS]
        if unknown:
            raise ValueError(f"only: there is no kind '{unknown[0]}'; choose {', '.join(_KINDS)}")

    def requires(self, model: ir.Model) -> None:
        """Raise PreconditionError where no fused operator can run."""
        opset = model.opset_imports.get("", 0)
        if opset < _OPSET:
            raise PreconditionError(f"it needs opset {_OPSET} or newer, this model has {opset}; try convert-opset")
        if not target.capabilities(target.find(self.target)).fused:
            raise PreconditionError(f"target '{self.target}' tells of no kernels beyond standard ONNX")

    def call(self, model: ir.Model) -> Result:
        """Fuse in place; the report counts the operators that were made."""
        place = target.find(self.target)
        imported = MICROSOFT in model.opset_imports
        site = Site(model, target.capabilities(place).fused, on_cpu=place.provider == target.CPU)
        useful = []
        for kind in [kind for kind in _KINDS if kind in (self.only or _KINDS)]:
            before = Counter(site.fused)
            _KINDS[kind](site)
            if site.fused != before:
                useful.append(kind)
        if site.fused:
            for graph in site.graphs():
                graph.sort()
        elif not imported:
            model.opset_imports.pop(MICROSOFT, None)
        parts = [replace(self, only=(kind,)) for kind in useful] if len(useful) > 1 else []
        report = dict(sorted(site.fused.items()))
        return Result(model, bool(site.fused), report, sorted(site.skipped.items()), parts=parts)
