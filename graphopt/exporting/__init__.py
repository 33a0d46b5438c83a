"""From PyTorch to ONNX. The modules here import torch, so that only `graphopt.export` and the verbs import them, late."""

from __future__ import annotations

import importlib.util

from graphopt.errors import UserError


def require_torch() -> None:
    """Refuse to go on without PyTorch.

    Raises:
        UserError: it is not installed.
    """
    if importlib.util.find_spec("torch") is None:
        raise UserError("export needs PyTorch; run pip install 'graphopt[torch]'")
