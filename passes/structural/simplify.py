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
from graphopt.errors import did_you_mean
from graphopt.passbase import Pass, Result, param
from graphopt.passes.structural._informed import Facts, Informed

_STAGES = (
    "unroll-loops",
    "eliminate-identity",
    "fold-shapes",
    "drop-initial-states",
    "split-sequences",
    "merge-slices",
    "split-slices",
    "merge-transposes",
    "drop-expands",
    "fold-pads",
    "merge-reshapes",
    "absorb-axes",
    "recompose",
    "fold-arithmetic",
    "fold-batchnorm",
    "fuse-gemm",
    "fold-scales",
    "eliminate-common-subexpressions",
    "eliminate-dead-code",
)
"""After `fold-constants`, in every round."""
_RESHAPES = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze"})
_NEEDED = {
    "absorb-axes": _RESHAPES,
    "drop-expands": frozenset({"Expand", "Tile"}),
    "drop-initial-states": frozenset({"GRU", "LSTM", "RNN"}),
    "fold-batchnorm": frozenset({"BatchNormalization"}),
    "fold-pads": frozenset({"Pad"}),
    "fuse-gemm": frozenset({"Add"}),
    "merge-reshapes": _RESHAPES,
    "merge-slices": frozenset({"Slice"}),
    "merge-transposes": frozenset({"Transpose"}),
    "split-sequences": frozenset({"SplitToSequence"}),
    "split-slices": frozenset({"Slice"}),
    "unroll-loops": frozenset({"Loop", "Scan"}),
}
"""Operators without which a pass has nothing to do."""
_ROUNDS = 20


@dataclass(frozen=True)
class Simplify(Pass):
    """Run the exact structural passes until nothing changes."""

    max_growth: int = param(1 << 16, "bytes by which folding one node may enlarge the model's tensors")

    without: tuple[str, ...] = param((), "passes to leave out, such as recompose or fuse-gemm")

    def __post_init__(self) -> None:
        known = {"fold-constants", *_STAGES}
        for name in self.without:
            if name not in known:
                raise ValueError(f"'{name}' is not part of it{did_you_mean(name, known)}")

    def call(self, model: ir.Model) -> Result:
        """Simplify in place; the report counts the rounds in which each pass did something."""
        stages: dict[str, Pass] = {}
        changed: Counter[str] = Counter()
        skipped: dict[tuple[str, str], None] = {}
        facts: Facts | None = None
        merge = _make("deduplicate-initializers")
        if model.functions:
            changed["inline"] += InlinePass()(model).modified
        changed["freeze-defaults"] += _make("freeze-defaults", habit=True).call(model).modified
        changed[merge.pass_name()] += merge.call(model).modified
        for _ in range(_ROUNDS):
            skipped.clear()
            facts, again = facts if facts is not None and facts.are_all() else Facts(model), False
            present = {node.op_type for graph in facts.graphs for node in graph}
            for name in ("fold-constants", *_STAGES):
                if name in self.without or not _NEEDED.get(name, present) & present:
                    continue
                if name not in stages:
                    stages[name] = _make(name, **({"max_growth": self.max_growth} if name == "fold-constants" else {}))
                stage = stages[name]
                result = stage.apply(model, facts) if isinstance(stage, Informed) else stage.call(model)
                again |= result.modified
                changed[name] += result.modified
                skipped.update(dict.fromkeys(result.skipped))
            if not again and changed.total():
                again = merge.call(model).modified
                changed[merge.pass_name()] += again
            if not again:
                break
        return Result(model, bool(changed.total()), dict(+changed), list(skipped), parts=tuple(stages.values()))


def _make(name: str, **fields: Any) -> Pass:
    made: Pass = registry.find("pass", name)(**fields)
    return made
