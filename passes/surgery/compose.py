"""Append a second model, which goes on with the outputs of the first

`compose A.onnx --other B.onnx --connect out1=in1,out2=in2`: what is on the left is an output of A, or an input, which
both models then share. Without `--connect`, outputs and inputs of A feed the inputs of B that have their names; if no
output does, and there are as many outputs as inputs, they go in order. Inputs of B that nothing feeds become inputs
of the whole, outputs of A that feed nothing stay outputs, and B's outputs follow.

What both models call alike gets a prefix in B, unless it is an inner tensor of A, which then gives way to an input or
output of B. Dynamic axes that meet are one axis, under A's name. Both must use the same opset version; metadata of A
wins over that of B. The result is held against running A, then B.

onnx.compose.merge_models is not used: it needs both models in memory as protobuf, loses where external data lies,
gives the same name to axes that are none, and refuses equal functions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from graphopt import graphs, inference, inputs, io, runtime
from graphopt.errors import UserError
from graphopt.passbase import Before, Case, Cases, Pass, PreconditionError, Result, param
from graphopt.passes.surgery import _axes, _names
from graphopt.runtime import Arrays, ExecutionError, Session

_Pair = tuple[ir.Value, ir.Value]
"""(output or input of the first model, input of the second that it feeds)."""


@dataclass(frozen=True)
class Compose(Pass):
    """Feed the outputs of a model to another one."""

    other: str = param("", "Path of the model that goes on.", source="model")
    connect: tuple[str, ...] = param((), "What feeds what, as one=other; by default equal names, else in order.")
    prefix: str = param("other_", "Put before names of the second model that the first one uses, too.")

    def call(self, model: ir.Model) -> Result:
        """Compose in place; the report tells what feeds what, and which inputs and outputs were renamed."""
        if not self.other:
            raise PreconditionError("no second model is named; give other")
        other = io.load(self.other)
        second = other.clone()
        pairs = self._pairs(model, other)
        for pair in pairs:
            self._check(*pair)
        self._import_opsets(model, other)
        _take_functions(model, other)
        ports = {value: value.name or "" for value in (*other.graph.inputs, *other.graph.outputs)}
        joined = {two.name or "": one.name or "" for one, two in pairs}
        _axes.rename(other, self._axis_names(model, other, pairs))
        left = [value for value in model.graph.outputs if value not in {one for one, _ in pairs}]
        ended = _pass_on(other, pairs)
        ports |= {copy: ports[two] for two, copy in ended.items()}
        self._rename(model, other, [*model.graph.inputs, *left], {two for _, two in pairs})
        kept = [value.name or "" for value in left]
        names = {old: value.name or "" for value, old in ports.items() if old not in joined or value in ended.values()}
        _append(model, other, pairs, left)
        skipped = _take_metadata(model, other)
        model.ir_version = max(model.ir_version or 0, other.ir_version or 0)
        report = {"connected": joined, "renamed": {old: new for old, new in names.items() if old != new}}
        return Result(model, True, report, skipped, cases=_cases(second, joined, kept, names))

    def _pairs(self, model: ir.Model, other: ir.Model) -> list[_Pair]:
        outputs = {value.name or "": value for value in model.graph.outputs}
        sources = {v.name or "": v for v in model.graph.inputs if not v.is_initializer()} | outputs
        wanted = {value.name or "": value for value in other.graph.inputs}
        if self.connect:
            given = _names.pairs(self.pass_name(), self.connect)
            _names.once(self.pass_name(), [two for _, two in given])
            return [
                (
                    _names.find(self.pass_name(), "output", one, sources),
                    _names.find(self.pass_name(), f"input of {self.other} called", two, wanted),
                )
                for one, two in given
            ]
        if not outputs.keys().isdisjoint(wanted):
            return [(sources[name], value) for name, value in wanted.items() if name in sources]
        required = [value for value in other.graph.inputs if not value.is_initializer()]
        if len(outputs) != len(required):
            raise UserError(
                f"{self.pass_name()}: the outputs {', '.join(outputs)} do not match the inputs {', '.join(wanted)}; "
                "say what feeds what with connect"
            )
        return list(zip(outputs.values(), required, strict=True))

    def _check(self, one: ir.Value, two: ir.Value) -> None:
        """Refuse to feed an input with what it cannot take."""
        where = f"{self.pass_name()}: '{one.name}' cannot feed '{two.name}'"
        if not isinstance(one.type, ir.TensorType):
            raise UserError(f"{where}: it is no tensor; connect another output")
        if two.type is not None and one.type != two.type:
            raise UserError(f"{where}: it is {one.type.dtype.name}, not {two.dtype and two.dtype.name}; insert a Cast")
        here, there = (port.shape for port in runtime.ports([one, two]))
        if here is None or there is None:
            return
        unequal = (a != b for a, b in zip(here, there, strict=False) if isinstance(a, int) and isinstance(b, int))
        if len(here) != len(there) or any(unequal):
            raise UserError(f"{where}: its shape is {_text(here)}, not {_text(there)}; insert a Reshape")

    def _import_opsets(self, model: ir.Model, other: ir.Model) -> None:
        used = {node.domain for node in io.nodes(other)}
        for domain, version in other.opset_imports.items():
            present = model.opset_imports.setdefault(domain, version)
            if present != version and domain in used:
                raise UserError(
                    f"{self.pass_name()}: the models use opsets {present} and {version} of domain "
                    f"'{domain or 'ai.onnx'}'; run graphopt convert-opset on one of them first"
                )

    def _axis_names(self, model: ir.Model, other: ir.Model, pairs: Sequence[_Pair]) -> dict[str, str]:
        """Return new names for axes of the second model: those that they meet, else some that the first does not use."""
        new: dict[str, str] = {}
        for one, two in pairs:
            for here, there in zip(inference.dims(one.shape) or (), inference.dims(two.shape) or (), strict=False):
                if isinstance(here, str) and isinstance(there, str):
                    new.setdefault(there, here)
        first, second = _axes.names(model), _axes.names(other)
        taken = Counter([*first, *second])
        for name in second:
            if name in first and name not in new and name.isidentifier():
                new[name] = graphs.fresh(self.prefix + name, taken)
        return new

    def _rename(self, model: ir.Model, other: ir.Model, ports: Sequence[ir.Value], gone: Collection[ir.Value]) -> None:
        """Make all names unlike; `ports` are inputs and outputs of the first model that stay such."""
        taken = graphs.names(model) + graphs.names(other)
        theirs = [value for value in _axes.values(other) if value not in gone]
        theirs_too = {value.name for value in (*other.graph.inputs, *other.graph.outputs) if value not in gone}
        fixed = {value.name for value in ports}
        yielding = [value for value in _axes.values(model) if value.name in theirs_too - fixed]
        graphs.rename(model, {value: graphs.fresh(value.name or "", taken) for value in yielding})
        ours = {value.name for value in _axes.values(model)}
        clashing = [value for value in theirs if value.name in ours]
        graphs.rename(other, {value: graphs.fresh(f"{self.prefix}{value.name}", taken) for value in clashing})
        nodes = Counter(node.name for graph in (model.graph, other.graph) for node in graph.all_nodes() if node.name)
        present = {node.name for node in model.graph.all_nodes() if node.name}
        for node in other.graph.all_nodes():
            if node.name in present:
                node.name = graphs.fresh(f"{self.prefix}{node.name}", nodes)


def _take_functions(model: ir.Model, other: ir.Model) -> None:
    """Take over the second model's functions; those that the first defines otherwise are inlined."""

    def differs(function: ir.Function) -> bool:
        ours = model.functions.get(function.identifier())
        return ours is not None and _content(ours) != _content(function)

    if any(map(differs, other.functions.values())):
        InlinePass(differs)(other)
    for identifier, function in other.functions.items():
        model.functions.setdefault(identifier, function)


def _content(function: ir.Function) -> bytes:
    content: bytes = ir.serde.serialize_function(function).SerializeToString(deterministic=True)
    return content


def _pass_on(other: ir.Model, pairs: Sequence[_Pair]) -> dict[ir.Value, ir.Value]:
    """Let an Identity compute what the second model returns as it gets it, so that it keeps its name; return which."""
    ended = {}
    for _, value in pairs:
        if value.is_graph_output():
            node = ir.node("Identity", [value])
            copy = node.outputs[0]
            copy.name, copy.type, copy.shape = value.name, value.type, value.shape
            other.graph.append(node)
            other.graph.outputs[:] = [copy if output is value else output for output in other.graph.outputs]
            ended[value] = copy
    return ended


def _append(model: ir.Model, other: ir.Model, pairs: Sequence[_Pair], left: Sequence[ir.Value]) -> None:
    """Move the second graph behind the first."""
    graph, second = model.graph, other.graph
    for one, two in pairs:
        two.replace_all_uses_with(one)
    fed = {two for _, two in pairs}
    values = [value for value in second.inputs if value not in fed]
    outputs, nodes = list(second.outputs), list(second)
    weights = [value for value in second.initializers.values() if value not in fed]
    second.inputs.clear()
    second.outputs.clear()
    second.initializers.clear()
    second.remove(nodes)
    graph.extend(nodes)
    graph.inputs.extend(values)
    for value in weights:
        graph.initializers.add(value)
    graph.outputs[:] = [*left, *outputs]


def _take_metadata(model: ir.Model, other: ir.Model) -> list[tuple[str, str]]:
    """Take over the second model's metadata; return what the first has otherwise."""
    skipped = []
    for key, text in other.metadata_props.items():
        if key != io.PROVENANCE and model.metadata_props.setdefault(key, text) != text:
            skipped.append((f"metadata '{key}'", "differs in the second model, and stays as in the first"))
    return skipped


def _cases(second: ir.Model, joined: Mapping[str, str], left: Sequence[str], names: Mapping[str, str]) -> Cases:
    """Run the first model, then the second, where that runs on what the first computes (its batch may be fixed)."""

    def cases(before: Before) -> list[Case]:
        session = runtime.open_session(second, before.target)
        found = []
        for feeds in before.feeds:
            first = before.run(feeds)
            fed = {two: {**feeds, **first}[one] for two, one in joined.items()}
            try:
                others = _others(second, session, fed, before.seed)
                results = session.run({**fed, **others})
            except (ExecutionError, UserError):
                continue
            given = {names[name]: array for name, array in others.items()}
            computed = {_names.renamed(key, names): array for key, array in results.items()}
            found.append(Case({**feeds, **given}, {**_names.of(first, left), **computed}))
        return found

    return cases


def _others(second: ir.Model, session: Session, fed: Arrays, seed: int) -> dict[str, np.ndarray]:
    """Return arrays for the inputs that the first model does not feed, of sizes that fit what it feeds.

    Raises:
        UserError: no generated ones make the model run.
    """
    ports = runtime.model_inputs(second)
    if all(port.name in fed for port in ports):
        return {}
    axes: dict[str, int] = {}
    batch = 1
    for port in ports:
        sizes = fed[port.name].shape if port.name in fed else ()
        for axis, (dim, size) in enumerate(zip(port.shape or (), sizes, strict=False)):
            if isinstance(dim, str):
                axes[dim] = size
            if axis == 0 and not isinstance(dim, int):
                batch = size
    made = inputs.of_batch(second, _Fed(session, fed), batch, seed, axes)
    return {name: array for name, array in made.items() if name not in fed}


class _Fed(Session):
    """A session that gets some of its inputs from elsewhere."""

    def __init__(self, session: Session, fed: Arrays) -> None:
        self._session, self._fed = session, fed

    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        return self._session.run({**feeds, **self._fed}, outputs)


def _text(dims: tuple[int | str | None, ...]) -> str:
    return f"[{', '.join('?' if dim is None else str(dim) for dim in dims)}]"
