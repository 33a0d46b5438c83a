"""onnxruntime behind graphopt's protocol: its import, its exceptions, its session."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from graphopt.errors import UserError
from graphopt.runtime import Arrays, ExecutionError, Session, flatten


def library() -> Any:
    """Import onnxruntime.

    Raises:
        UserError: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError:
        raise UserError(
            "ONNX Runtime is not installed; run pip install 'graphopt[cpu]', or 'graphopt[gpu]' on a machine with CUDA"
        ) from None
    return onnxruntime


def refusals() -> tuple[type[Exception], ...]:
    """What onnxruntime raises when it cannot load or run a model; its classes share no base of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = [value for value in vars(state).values() if isinstance(value, type) and issubclass(value, Exception)]
    return (*own, RuntimeError, ValueError, TypeError)


def one_line(error: Exception) -> str:
    """Return an exception's message in one line of bounded length."""
    text = " ".join(str(error).split())
    return text.replace("[ONNXRuntimeError] : ", "ONNX Runtime error ", 1)[:400]


class OrtSession(Session):
    """An onnxruntime.InferenceSession behind graphopt's protocol."""

    def __init__(self, session: Any, options: Any = None) -> None:
        """Wrap a session.

        Args:
            session: the onnxruntime.InferenceSession.
            options: RunOptions of every run.
        """
        self._session = session
        self._options = options
        self._names = [output.name for output in session.get_outputs()]

    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        names = list(outputs) if outputs is not None else self._names
        try:
            values = self._session.run(names, feeds, self._options)
        except refusals() as error:
            raise ExecutionError(one_line(error)) from error
        arrays: dict[str, np.ndarray] = {}
        for name, value in zip(names, values, strict=True):
            arrays.update(flatten(name, value))
        return arrays
