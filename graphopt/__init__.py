"""Make ONNX models smaller and faster, and prove that they still do their job."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphopt.application import apply
    from graphopt.benchmarking import benchmark
    from graphopt.bisection import bisect
    from graphopt.difference import diff
    from graphopt.exporting.exporter import export
    from graphopt.io import load, save
    from graphopt.optimizer import optimize
    from graphopt.profiling import profile
    from graphopt.splitting import split
    from graphopt.training.finetuning import distill, finetune
    from graphopt.validation import validate

__all__ = [
    "apply",
    "benchmark",
    "bisect",
    "diff",
    "distill",
    "export",
    "finetune",
    "load",
    "optimize",
    "profile",
    "save",
    "split",
    "validate",
]
__version__ = "0.1.0"

_HOMES = {
    "apply": "application",
    "benchmark": "benchmarking",
    "bisect": "bisection",
    "diff": "difference",
    "distill": "training.finetuning",
    "export": "exporting.exporter",
    "finetune": "training.finetuning",
    "load": "io",
    "optimize": "optimizer",
    "profile": "profiling",
    "save": "io",
    "split": "splitting",
    "validate": "validation",
}
"""The module of each public function. None is called like its function: importing it would shadow the function."""


def __getattr__(name: str) -> Any:
    """Import a public function when it is first used, so that `import graphopt` costs next to nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'graphopt' has no attribute '{name}'")
    return getattr(importlib.import_module(f"graphopt.{_HOMES[name]}"), name)
