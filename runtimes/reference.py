"""The reference evaluator of the onnx package: slow, and independent of ONNX Runtime, for cross-checks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from graphopt import io
from graphopt.runtime import Arrays, ExecutionError, Runtime, Session, flatten
from graphopt.target import Target


class ReferenceRuntime(Runtime):
    """onnx.reference, which follows the operator specification literally."""

    def open(self, model: ir.Model, target: Target) -> Session:
        del target
        return self._session(io.to_proto(model))

    def open_file(self, path: str | Path, target: Target) -> Session:
        del target
        return self._session(str(path))

    def _session(self, source: onnx.ModelProto | str) -> Session:
        try:
            return ReferenceSession(ReferenceEvaluator(source))
        except (NotImplementedError, RuntimeError, ValueError, KeyError) as error:
            raise ExecutionError(f"reference evaluator: {' '.join(str(error).split())[:400]}") from error


class ReferenceSession(Session):
    """A ReferenceEvaluator behind graphopt's protocol."""

    def __init__(self, evaluator: ReferenceEvaluator) -> None:
        self._evaluator = evaluator

    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        names = list(outputs) if outputs is not None else self._evaluator.output_names
        try:
            values = self._evaluator.run(names, dict(feeds))
        except Exception as error:  # operators are plain numpy code and raise whatever numpy raises
            raise ExecutionError(f"reference evaluator: {' '.join(str(error).split())[:400]}") from error
        arrays: dict[str, np.ndarray] = {}
        for name, value in zip(names, values, strict=True):
            arrays.update(flatten(name, value))
        return arrays
