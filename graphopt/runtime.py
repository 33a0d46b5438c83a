"""The protocol between graphopt and whatever executes a graph."""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from graphopt import registry
from graphopt.errors import UserError

if TYPE_CHECKING:
    from graphopt.diagnosis import Finding
    from graphopt.profiling.trace import Recorder
    from graphopt.target import Target

Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Port:
    """An input or output of a graph.

    Attributes:
        name: its name.
        dtype: element type, or None when it is not a dense tensor (a sequence, an optional, a map).
        shape: one entry per axis: a size, the name of a dynamic axis, or None for a nameless dynamic
            axis; None as a whole when the rank is unknown.
    """

    name: str
    dtype: ir.DataType | None
    shape: tuple[int | str | None, ...] | None


class Session(abc.ABC):
    """A model that is ready to run: named arrays in, named arrays out."""

    @abc.abstractmethod
    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Run once and return the outputs by name (all of them unless `outputs` names some).

        Raises:
            ExecutionError: the runtime could not execute the model on these inputs.
        """

    def prepare(self, feeds: Arrays) -> Callable[[], object]:
        """Return a function that runs once on `feeds`, for timing: on a device they lie there already, and stay there.

        It raises what `run` raises. Clients that run at the same time need a function each.
        """
        return functools.partial(self.run, feeds)


class ExecutionError(Exception):
    """A runtime refused a model or failed while running it. The message is the runtime's own, in one line."""


class Runtime(abc.ABC):
    """A way to execute graphs. A file in `runtimes/` defines one subclass."""

    @abc.abstractmethod
    def open(self, model: ir.Model, target: Target) -> Session:
        """Make a session for a model. The model is not changed.

        Raises:
            ExecutionError: the runtime does not load this model.
            UserError: the runtime or what the target asks of it is not installed.
        """

    @abc.abstractmethod
    def open_file(self, path: str | Path, target: Target) -> Session:
        """Make a session for a file as a deployment does, without graphopt's own reading of it.

        Raises:
            ExecutionError: the runtime does not load this model.
            UserError: the runtime or what the target asks of it is not installed.
        """

    def optimized(self, model: ir.Model, target: Target) -> ir.Model | None:
        """Return the graph as the runtime itself rewrites it for the target, or None if it does not tell."""
        del model, target
        return None

    def recorder(self, model: ir.Model, target: Target) -> AbstractContextManager[Recorder]:
        """Return a session of a model, to be entered, that records how long each node takes.

        Raises:
            ExecutionError: the runtime does not load this model.
            UserError: the runtime has no profiler.
        """
        del model
        raise UserError(
            f"target '{target.name}' has no profiler; choose a target that ONNX Runtime executes, such as cpu"
        )

    def providers(self) -> Sequence[str]:
        """Return the names of the execution providers that it knows, installed or not."""
        return ()

    def kernels(self, target: Target) -> frozenset[tuple[str, str]]:
        """Return `(domain, operator)` of everything the target's provider executes; empty if it does not tell."""
        del target
        return frozenset()

    def diagnose(self) -> Sequence[Finding]:
        """Look for faults of its installation."""
        return ()


def flatten(name: str, value: Any) -> dict[str, np.ndarray]:
    """Spread a runtime's result into named arrays: sequences and maps become `name[i]`, an absent optional nothing."""
    if isinstance(value, list):
        return {key: array for i, item in enumerate(value) for key, array in flatten(f"{name}[{i}]", item).items()}
    if isinstance(value, dict):
        return {f"{name}[{key}]": np.asarray(item) for key, item in value.items()}
    return {} if value is None else {name: np.asarray(value)}


def ports(values: Sequence[ir.Value]) -> tuple[Port, ...]:
    """Describe graph inputs or outputs."""
    return tuple(Port(v.name or "", _dtype(v), _shape(v)) for v in values)


def model_inputs(model: ir.Model) -> tuple[Port, ...]:
    """Describe the inputs a caller must feed: graph inputs that have no default value."""
    defaults = model.graph.initializers
    return ports([v for v in model.graph.inputs if v.name not in defaults])


def open_session(model: ir.Model, target: Target) -> Session:
    """Open `model` on the runtime that `target` names."""
    return find(target).open(model, target)


def find(target: Target) -> Runtime:
    """Return the runtime that `target` names."""
    runtime: Runtime = registry.find("runtime", target.runtime)()
    return runtime


def _dtype(value: ir.Value) -> ir.DataType | None:
    return value.dtype if isinstance(value.type, ir.TensorType) else None


def _shape(value: ir.Value) -> tuple[int | str | None, ...] | None:
    if value.shape is None:
        return None
    dims = (dim if isinstance(dim, int) else dim.value for dim in value.shape)
    return tuple(None if isinstance(dim, int) and dim < 0 else dim for dim in dims)  # -1 is how some say dynamic
