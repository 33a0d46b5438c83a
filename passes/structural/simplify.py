"""Reduce a graph to the fewest operators that compute the same numbers

The exact structural passes, in rounds until none finds anything more to do. Functions are inlined first. Types, symbolic
shapes and sizes are inferred once a round. Quantization (QuantizeLinear and its relatives) is left as it is.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from graphopt import registry
from graphopt.passbase import Pass, Result, param
from graphopt.passes.structural._informed import Facts, Informed

_STAGES = (
    "eliminate-identity",
    "fold-shapes",
    "drop-initial-states",
    "split-sequences",
    "merge-slices",
    "split-slices",
    "merge-reshapes",
    "absorb-axes",
    "fold-arithmetic",
    "fold-batchnorm",
    "fuse-gemm",
    "fold-scales",
    "eliminate-common-subexpressions",
    "eliminate-dead-code",
)
"""After `fold-constants`, in every round."""
_ROUNDS = 20


@dataclass(frozen=True)
class Simplify(Pass):
    """Run the exact structural passes until nothing changes."""

    max_growth: int = param(1 << 16, "bytes by which folding one node may enlarge the model's tensors")

    def call(self, model: ir.Model) -> Result:
        """Simplify in place; the report counts the rounds in which each pass did something."""
        stages = [_make("fold-constants", max_growth=self.max_growth), *map(_make, _STAGES)]
        changed: Counter[str] = Counter()
        skipped: dict[tuple[str, str], None] = {}
        if model.functions:
            changed["inline"] += InlinePass()(model).modified
        changed["freeze-defaults"] += _make("freeze-defaults", habit=True).call(model).modified
        for _ in range(_ROUNDS):
            skipped.clear()
            facts, again = Facts(model), False
            for stage in stages:
                result = stage.apply(model, facts) if isinstance(stage, Informed) else stage.call(model)
                again |= result.modified
                changed[stage.pass_name()] += result.modified
                skipped.update(dict.fromkeys(result.skipped))
            if not again:
                break
        changed["deduplicate-initializers"] += _make("deduplicate-initializers").call(model).modified
        return Result(model, bool(changed.total()), dict(+changed), list(skipped))


def _make(name: str, **fields: Any) -> Pass:
    made: Pass = registry.find("pass", name)(**fields)
    return made
