"""The pass: a frozen dataclass whose fields are its whole configuration."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import PreconditionError

from graphopt.runtime import Arrays
from graphopt.target import Target

if TYPE_CHECKING:
    from onnxscript.rewriter import MatchContext

__all__ = [
    "EXACT",
    "FASTER",
    "LOSSY",
    "TRAINED",
    "Before",
    "Case",
    "Contract",
    "Pass",
    "PreconditionError",
    "Result",
    "Rewrite",
    "param",
]

FACT_PREFIX = "graphopt."
"""Metadata keys under which one pass leaves facts for another, on values, nodes or the model."""


@dataclasses.dataclass(frozen=True)
class Contract:
    """What a pass promises about the numbers its output model computes.

    Attributes:
        kind: "exact" (the same numbers up to `rtol`) or "lossy" (measured against the budget).
        rtol: largest accepted error of an exact pass, relative to the element and to the root mean
            square of its tensor (see `compare.same`); float32. Narrower types get their own floor.
        min_sqnr: lossy passes below this signal-to-quantization-noise ratio (dB) are rolled back
            as broken, whatever the metric says.
        improves: a lossy pass whose purpose is the metric: where steps are measured, it is kept only if the metric is
            no worse than before it, whatever the budget and the speed.
        timed: an exact pass whose only purpose is speed: where steps are measured, it is kept only if the model
            measures faster. Lossy passes are measured anyway.
    """

    kind: Literal["exact", "lossy"]
    rtol: float = 1e-4
    min_sqnr: float = 3.0
    timed: bool = False
    improves: bool = False


EXACT = Contract("exact")
FASTER = Contract("exact", timed=True)
LOSSY = Contract("lossy")
TRAINED = Contract("lossy", min_sqnr=-math.inf, improves=True)


@dataclasses.dataclass(frozen=True)
class Case:
    """One run that a model must pass.

    Attributes:
        feeds: arrays by input name.
        expected: arrays by output name, all outputs of the model and no others.
    """

    feeds: Arrays
    expected: Arrays


class Before(Protocol):
    """The model as it was before a pass that changed its inputs or outputs.

    Attributes:
        model: never to be changed.
        feeds: inputs on which it runs, at several sizes where its axes are dynamic.
        seed: of every random choice.
        target: where it runs, and where a pass opens whatever else it needs to run.
    """

    @property
    def model(self) -> ir.Model: ...
    @property
    def feeds(self) -> Sequence[Arrays]: ...
    @property
    def seed(self) -> int: ...
    @property
    def target(self) -> Target: ...

    def run(self, feeds: Arrays, tensors: Sequence[str] = ()) -> dict[str, np.ndarray]:
        """Return its outputs by name, and the inner values of its main graph called `tensors`.

        Raises:
            ExecutionError: it does not run on these feeds.
        """


Cases = Callable[[Before], Sequence[Case]]


@dataclasses.dataclass
class Result(ir.passes.PassResult):
    """What a pass did.

    Attributes:
        report: a few JSON-ready facts worth telling, such as `{"folded": 3}`.
        skipped: `(node, reason)` for everything the pass looked at and left alone.
        cases: set by a pass that changes the model's inputs or outputs, in name, number, order, type or size: what
            the model must compute now, told by what it computed before. The pipeline runs these cases in place of
            comparing equal inputs and outputs.
        parts: passes that do the same work in parts. Where steps are measured and this one is rolled back, they are
            tried one after the other, so that a part that breaks or slows the model does not take the others with it.
    """

    report: dict[str, Any] = dataclasses.field(default_factory=dict)
    skipped: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    cases: Cases | None = None
    parts: Sequence[Pass] = ()


def param(default: Any, help: str, *, source: Literal["data", "model", "file"] | None = None) -> Any:
    """A dataclass field with help text for the command line.

    Args:
        default: the default value.
        help: one line that says what the field means, with its unit.
        source: what outside source the field names: a data set, another model, or a file beside the model. It takes
            part in the specification, but provenance records the hash of a data set's or model's content in its place,
            so that moving a file changes no byte.
    """
    return dataclasses.field(default=default, metadata={"help": help, "source": source})


class Pass(ir.passes.InPlacePass, abc.ABC):
    """A transformation of a model in place.

    Subclass it as `@dataclass(frozen=True)` in a file of its own inside a folder of `passes/`; the
    file's stem is the pass's name. It then composes with the passes of onnx_ir and onnxscript.
    """

    contract: ClassVar[Contract] = EXACT

    @classmethod
    def pass_name(cls) -> str:
        """The name by which people call the pass, from its module: `fold_constants` -> `fold-constants`."""
        return cls.__module__.rpartition(".")[2].replace("_", "-")

    @abc.abstractmethod
    def call(self, model: ir.Model) -> Result:
        """Transform `model` in place and say truthfully whether anything changed."""

    def audit(self, optimized: ir.Model) -> list[tuple[str, str]]:
        """Look at the model as the target's runtime rewrote it; return `(node, reason)` rows to report.

        Called by the pipeline after a successful call, for passes that override it.
        """
        del optimized
        return []


class Rewrite(Pass):
    """A local rewrite: patterns, a check that refuses with a reason, and a replacement.

    Patterns are onnxscript's: functions `(op, x, ...)` that build the subgraph to find. They run over
    the graph, its subgraphs and its functions. What the check refuses becomes a `skipped` row.
    """

    @abc.abstractmethod
    def patterns(self) -> Sequence[Callable[..., Any]]:
        """The pattern functions, tried in order at every node."""

    @abc.abstractmethod
    def check(self, context: MatchContext, **bindings: Any) -> str | None:
        """Return why this match must be left alone, or None to rewrite it."""

    @abc.abstractmethod
    def rewrite(self, op: Any, **bindings: Any) -> Any:
        """Build the replacement with the tape `op` and return its output values."""

    def call(self, model: ir.Model) -> Result:
        from onnxscript.rewriter import RewriteRule, RewriteRuleSet

        refusals: dict[str, str] = {}

        def check(context: MatchContext, **bindings: Any) -> bool:
            reason = self.check(context, **bindings)
            if reason:
                refusals[context.root.name or context.root.op_type] = reason
            return reason is None

        rules = [RewriteRule(pattern, self.rewrite, check) for pattern in self.patterns()]
        count = RewriteRuleSet(rules).apply_to_model(model)
        return Result(model, bool(count), {"rewritten": count}, sorted(refusals.items()))
