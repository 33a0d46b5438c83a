"""How surgery is checked: through the pipeline, which holds the new model against what the pass says it computes."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import onnx_ir as ir
import pytest

from graphopt import target
from graphopt.passbase import Pass
from graphopt.pipeline import Pipeline, Step, begin, feeds_for


@pytest.fixture
def operate(parse: Callable[[str], ir.Model]) -> Callable[..., tuple[ir.Model, Step]]:
    """Apply a pass to ONNX text or a model; return the verified result and the step."""

    def run(pass_: Pass, model: str | ir.Model, status: str = "kept") -> tuple[ir.Model, Step]:
        start = begin(parse(model) if isinstance(model, str) else model, target.find("cpu"), (), "test")
        pipe = Pipeline(start, target.find("cpu"), feeds_for(start, None, 0, "test"))
        step = pipe.run(pass_, strict=True)
        assert step.status == status, step.reason
        onnx.checker.check_model(ir.to_proto(pipe.model), full_check=True)
        return pipe.model, step

    return run


@pytest.fixture
def names() -> Callable[..., tuple[list[str | None], list[str | None]]]:
    """Return the names of a model's inputs and outputs."""
    return lambda model: ([v.name for v in model.graph.inputs], [v.name for v in model.graph.outputs])
