"""Make ONNX models smaller and faster, and prove that they still do their job."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphopt.apply import apply
    from graphopt.benchmark import benchmark
    from graphopt.io import load, save
    from graphopt.optimize import optimize
    from graphopt.validate import validate

__all__ = ["apply", "benchmark", "load", "optimize", "save", "validate"]
__version__ = "0.1.0"

_HOMES = {"load": "io", "save": "io"}


def __getattr__(name: str) -> Any:
    """Import a public function when it is first used, so that `import graphopt` costs next to nothing."""
    if name not in __all__:
        raise AttributeError(f"module 'graphopt' has no attribute '{name}'")
    return getattr(importlib.import_module(f"graphopt.{_HOMES.get(name, name)}"), name)
