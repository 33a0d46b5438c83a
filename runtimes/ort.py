"""ONNX Runtime, on any execution provider it offers."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import io
from graphopt.errors import UserError
from graphopt.runtime import Arrays, ExecutionError, Runtime, Session, flatten
from graphopt.target import Target

_SILENT = 4


def _library() -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise UserError(
            "ONNX Runtime is not installed; run pip install 'graphopt[cpu]', or 'graphopt[gpu]' on a machine with CUDA"
        ) from None
    return onnxruntime


def _refusals() -> tuple[type[Exception], ...]:
    """What onnxruntime raises when it cannot load or run a model; its classes share no base of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = [value for value in vars(state).values() if isinstance(value, type) and issubclass(value, Exception)]
    return (*own, RuntimeError, ValueError, TypeError)


class OrtRuntime(Runtime):
    """ONNX Runtime with all of its graph optimizations, as a deployment runs it."""

    def open(self, model: ir.Model, target: Target) -> Session:
        return OrtSession(self._session(model, target))

    def optimized(self, model: ir.Model, target: Target) -> ir.Model | None:
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "optimized.onnx")
            self._session(model, target, path)
            return ir.external_data.load_to_model(ir.load(path))

    def _session(self, model: ir.Model, target: Target, optimized: str | None = None) -> Any:
        ort = _library()
        available = ort.get_available_providers()
        if target.provider not in available:
            raise UserError(
                f"target '{target.name}' needs {target.provider}, but this onnxruntime offers {', '.join(available)}; "
                "install 'graphopt[gpu]' in place of 'graphopt[cpu]' or choose another target"
            )
        options = ort.SessionOptions()
        options.log_severity_level = _SILENT
        options.intra_op_num_threads = target.threads
        # Idle workers of one session spin for a while and take a core from the next one. With spinning, a
        # model timed against itself measured 0.6 to 1.8 times its own speed here; without, 0.99 to 1.01.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if optimized:
            options.optimized_model_filepath = optimized
        providers = list(dict.fromkeys([target.provider, "CPUExecutionProvider"]))
        with io.serialized(model) as source:
            try:
                return ort.InferenceSession(source, options, providers=providers)
            except _refusals() as error:
                raise ExecutionError(_one_line(error)) from error


class OrtSession(Session):
    """An onnxruntime.InferenceSession behind graphopt's protocol."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._names = [output.name for output in session.get_outputs()]

    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        names = list(outputs) if outputs is not None else self._names
        try:
            values = self._session.run(names, feeds)
        except _refusals() as error:
            raise ExecutionError(_one_line(error)) from error
        arrays: dict[str, np.ndarray] = {}
        for name, value in zip(names, values, strict=True):
            arrays.update(flatten(name, value))
        return arrays


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text.replace("[ONNXRuntimeError] : ", "ONNX Runtime error ", 1)[:400]
