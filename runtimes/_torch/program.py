"""A graph, compiled into a list of steps."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from graphopt.runtime import ExecutionError
from graphopt.runtimes._torch import table, values
from graphopt.runtimes._torch.table import Mode

Environment = dict[int, Any]
"""What values hold during a run, by slot."""


class Slots:
    """Numbers for values, so that a run looks up whole numbers and not names."""

    def __init__(self) -> None:
        self._numbers: dict[ir.Value, int] = {}

    def __getitem__(self, value: ir.Value) -> int:
        return self._numbers.setdefault(value, len(self._numbers))


@dataclasses.dataclass(frozen=True)
class Compiler:
    """What all graphs of a model share while they are compiled.

    Attributes:
        opsets: versions by domain.
        mode: what operators are told besides their operands.
        overrides: functions that compute nodes in place of those of the table.
        slots: of all values.
    """

    opsets: Mapping[str, int]
    mode: Mode
    overrides: Mapping[ir.Node, Callable[..., Any]]
    slots: Slots = dataclasses.field(default_factory=Slots)

    def opset(self, domain: str) -> int:
        """Return the version of a domain; contrib operators have one only."""
        return self.opsets.get(domain, self.opsets.get("ai.onnx", 1) if domain == "" else 1)

    def objection(self, node: ir.Node) -> str | None:
        """Return why a node cannot be computed, or None."""
        found = table.find(node.domain, node.op_type, self.opset(node.domain))
        if found is None:
            return f"is not in the operator table at opset {self.opset(node.domain)}"
        unknown = sorted(set(node.attributes) - found.attributes)
        if unknown:
            return f"has attribute {unknown[0]}, which is not known at opset {self.opset(node.domain)}"
        count = len(node.inputs)
        if count > len(found.hosts) and not found.variadic:
            return f"has {count} inputs, of which {len(found.hosts)} are known"
        if count < found.least:
            return f"has {count} inputs and needs {found.least}"
        return None


@dataclasses.dataclass(frozen=True)
class Step:
    """One node, ready to run.

    Attributes:
        node: what it is called in messages.
        function: (operands) -> output or outputs.
        inputs: slots of the operands; None for an absent one. Constant ones are part of the function.
        hosts: which operands arrive as NumPy arrays.
        bodies: programs among the attributes.
        outputs: slots of the outputs; None for those nobody asked for.
        done: slots that nothing needs afterwards.
        constant: whether the function has constant operands inside.
    """

    node: str
    function: Callable[..., Any]
    inputs: tuple[int | None, ...]
    hosts: tuple[bool, ...]
    bodies: Mapping[str, Program]
    outputs: tuple[int | None, ...]
    done: tuple[int, ...]
    constant: bool

    def run(self, environment: Environment) -> None:
        """Compute the outputs and forget what is done with."""
        operands = [
            None if slot is None else _operand(environment[slot], host)
            for slot, host in zip(self.inputs, self.hosts, strict=True)
        ]
        bodies = {name: functools.partial(body, environment) for name, body in self.bodies.items()}
        try:
            result = self.function(*_together(operands), **bodies)
        except ExecutionError:
            raise
        except Exception as error:  # operators raise whatever torch raises
            raise ExecutionError(f"torch: {self.node}: {' '.join(str(error).split())[:300]}") from error
        if len(self.outputs) == 1 and not isinstance(result, tuple):
            result = (result,)
        for slot, value in zip(self.outputs, result, strict=False):
            if slot is not None:
                environment[slot] = value
        for slot in self.done:
            environment.pop(slot, None)


class Program:
    """A graph, compiled: it reads and writes an environment."""

    def __init__(self, graph: ir.Graph, compiler: Compiler, *, top: bool = True) -> None:
        """Compile a graph and those inside it.

        Args:
            graph: what to compile.
            compiler: what all graphs of the model share.
            top: whether this is the main graph, whose initializers are the module's business.
        """
        slots = compiler.slots
        self.inputs = [slots[value] for value in graph.inputs]
        self.outputs = [slots[value] for value in graph.outputs]
        self._constants = {} if top else {slots[v]: values.constant(v) for v in graph.initializers.values()}
        steps = [_compiled(node, compiler) for node in graph]
        own = {slot for step in steps for slot in step.outputs} | {*self.inputs, *self._constants}
        self.captures = {slot for step in steps for slot in _reads(step)} | set(self.outputs)
        self.captures -= own
        self.steps = _forgetting(steps, keep={*self.outputs, *self.captures, *self._constants, *self.inputs} - {None})

    def run(self, environment: Environment) -> None:
        """Run on an environment that holds the inputs, and the initializers of a main graph."""
        for step in self.steps:
            step.run(environment)

    def show_compiler(self) -> None:
        """Let torch.compile take functions with constant operands as they are, instead of tracing NumPy in them."""
        for step in self.steps:
            if step.constant:
                torch.compiler.allow_in_graph(step.function)
            for body in step.bodies.values():
                body.show_compiler()

    def __call__(self, outside: Environment, *operands: Any) -> list[Any]:
        """Run as a body inside another graph.

        Args:
            outside: environment of the node that the body belongs to.
            operands: the body's inputs.
        """
        environment = {slot: outside[slot] for slot in self.captures}
        environment |= self._constants
        environment |= zip(self.inputs, operands, strict=True)
        self.run(environment)
        return [environment[slot] for slot in self.outputs]


def _compiled(node: ir.Node, compiler: Compiler) -> Step:
    objection = compiler.objection(node)
    label = f"{node.name or node.outputs[0].name} ({node.op_type})"
    if objection:
        raise ExecutionError(f"torch: {label} {objection}")
    found = table.find(node.domain, node.op_type, compiler.opset(node.domain))
    assert found is not None
    bodies, attributes = {}, {}
    for name, attribute in node.attributes.items():
        if attribute.type == ir.AttributeType.GRAPH:
            bodies[name] = Program(attribute.as_graph(), compiler, top=False)
        else:
            attributes[name] = _plain(attribute)
    special = {"outputs_": len(node.outputs), "mode_": compiler.mode}
    attributes |= {name: special[name] for name in found.special}
    function = compiler.overrides.get(node) or functools.partial(found.function, **attributes)
    extra = len(node.inputs) - len(found.hosts)
    hosts = (*found.hosts[: len(node.inputs)], *(False for _ in range(extra)))
    fixed = {
        i: np.array(value.const_value.numpy())
        for i, (value, host) in enumerate(zip(node.inputs, hosts, strict=True))
        if host and value is not None and value.const_value is not None and not value.is_graph_input()
    }
    left = [i for i in range(len(node.inputs)) if i not in fixed]
    return Step(
        label,
        _bound(function, fixed) if fixed else function,
        tuple(None if (value := node.inputs[i]) is None else compiler.slots[value] for i in left),
        tuple(hosts[i] for i in left),
        bodies,
        tuple(compiler.slots[value] if value.name else None for value in node.outputs),
        (),
        bool(fixed),
    )


def _bound(function: Callable[..., Any], fixed: Mapping[int, np.ndarray]) -> Callable[..., Any]:
    """Return a function of the operands that are left when some are fixed, by position."""

    def call(*operands: Any, **bodies: Any) -> Any:
        left = iter(operands)
        count = len(operands) + len(fixed)
        return function(*(fixed[i] if i in fixed else next(left) for i in range(count)), **bodies)

    return call


def _plain(attribute: ir.Attr) -> Any:
    """Return the value of an attribute: numbers, text, tuples of them, or a tensor."""
    if attribute.type == ir.AttributeType.TENSOR:
        return values.tensor_of(attribute.as_tensor())
    if attribute.type == ir.AttributeType.TENSORS:
        return tuple(values.tensor_of(tensor) for tensor in attribute.as_tensors())
    return tuple(attribute.value) if isinstance(attribute.value, (list, tuple)) else attribute.value


def _reads(step: Step) -> set[int]:
    return {slot for slot in step.inputs if slot is not None}.union(*(body.captures for body in step.bodies.values()))


def _forgetting(steps: Sequence[Step], keep: Iterable[int | None]) -> list[Step]:
    """Let every step forget what it is the last to need, so that memory is freed as early as possible."""
    needed = set(keep)
    made = []
    for step in reversed(steps):
        touched = _reads(step) | {slot for slot in step.outputs if slot is not None}
        made.append(dataclasses.replace(step, done=tuple(sorted(touched - needed))))
        needed |= touched
    return made[::-1]


def _operand(value: Any, host: bool) -> Any:
    if not host or not isinstance(value, Tensor):
        return value
    return values.to_numpy(value)


def _together(operands: list[Any]) -> list[Any]:
    """Bring tensors to the accelerator that one of them is on: sizes and indices are computed on the processor."""
    device = next((x.device for x in operands if isinstance(x, Tensor) and x.device.type != "cpu"), None)
    if device is None:
        return operands
    return [x.to(device) if isinstance(x, Tensor) and x.device != device else x for x in operands]
