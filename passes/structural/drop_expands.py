"""Remove an Expand, or a Tile of axes of size 1, whose users broadcast anyway

Elementwise operators and the batch axes of MatMul broadcast, so op(Expand(x, s), y) = op(x, y) where y spans the axes
that the Expand stretches. If y does not, as in an operator with one input, its result may stay small in its turn, as
long as every user of that broadcasts too: op(Cast(Expand(x, s)), y) = op(Cast(x), y). An Expand goes only if no user
needs it, and the sizes are proven: as numbers, or as equal expressions of the graph inputs' axes.

onnx-optimizer and onnxscript drop an Expand only where it changes nothing at all.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphopt import graphs, scopes
from graphopt.inference import Dim, Known
from graphopt.passbase import FACT_PREFIX, Result
from graphopt.passes.structural._informed import Facts, Informed

Dims = tuple[Dim, ...]

# fmt: off
_ELEMENTWISE = (
    "Abs", "Acos", "Acosh", "Add", "And", "Asin", "Asinh", "Atan", "Atanh", "BitShift", "BitwiseAnd", "BitwiseNot",
    "BitwiseOr", "BitwiseXor", "Cast", "Ceil", "Celu", "Cos", "Cosh", "Div", "Elu", "Equal", "Erf", "Exp", "Floor",
    "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "IsInf", "IsNaN", "LeakyRelu", "Less",
    "LessOrEqual", "Log", "Max", "Mean", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "Or", "Pow", "Reciprocal", "Relu",
    "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Tan",
    "Tanh", "ThresholdedRelu", "Where", "Xor",
)
# fmt: on
_FIRST_OPSET = 8
"""Since then Expand exists, and all of these broadcast as NumPy does."""
_FARTHEST = 64
"""How many users of users are looked at."""


@dataclass(frozen=True)
class DropExpands(Informed):
    """Remove Expands whose users broadcast."""

    def apply(self, model: ir.Model, facts: Facts) -> Result:
        """Remove them in place, one after the other; the report counts them by operator."""
        dropped: Counter[str] = Counter()
        skipped = []
        for root in scopes.roots(model):
            if root.opset_imports.get("", 0) < _FIRST_OPSET:
                continue
            for graph in (root, *root.subgraphs()):
                found = [node for node in graph if graphs.is_op(node, "Expand", "Tile")]
                order = {node: index for index, node in enumerate(graph)} if found else {}
                while found:
                    reasons = {node: _drop(node, facts, order) for node in found}
                    dropped.update(node.op_type for node, reason in reasons.items() if not reason)
                    stuck = {node: reason for node, reason in reasons.items() if reason}
                    if len(stuck) == len(found):
                        skipped += [(graphs.label(node), reason) for node, reason in stuck.items()]
                        break
                    found = list(stuck)  # one that is gone may have been what another one was needed for
        return Result(model, bool(dropped), dict(dropped), skipped)


def _drop(node: ir.Node, facts: Facts, order: dict[ir.Node, int]) -> str | None:
    source, output = node.inputs[0], node.outputs[0]
    before, after = (None if value is None else _dims(value, facts) for value in (source, output))
    sizes = graphs.array(node.inputs[1]) if node.op_type == "Expand" else None
    if before is not None and sizes is not None:
        after = _broadcast([before, tuple(sizes.tolist())])
    if source is None or before is None or after is None:
        return "its sizes are not known"
    if node.op_type == "Tile" and not _stretches(node, before):
        return "it repeats more than axes of size 1"
    if before == after:
        return "it changes nothing that is known"
    small: dict[ir.Value, Dims] = {output: before}
    large: dict[ir.Value, Dims] = {output: after}
    users: list[ir.Node] = []
    queue: list[tuple[int, ir.Node]] = []
    reason = _follow(output, order, queue)
    while queue and not reason:
        user = heapq.heappop(queue)[1]
        if users and user is users[-1]:
            continue
        users.append(user)
        if len(users) > _FARTHEST:
            return "too many nodes depend on it"
        result = _result(user, small, facts)
        if result is None:
            return f"{graphs.label(user)} needs it, or might"
        stretched = _result(user, large, facts)
        if result != stretched:
            small[user.outputs[0]] = result
            if stretched is not None:
                large[user.outputs[0]] = stretched
            reason = _follow(user.outputs[0], order, queue)
    if reason:
        return reason
    _rewrite(output, source, users, small, order, facts)
    return None


def _follow(value: ir.Value, order: Mapping[ir.Node, int], queue: list[tuple[int, ir.Node]]) -> str | None:
    """Queue the users of a value; say why it must keep its shape, if so."""
    if value.is_graph_output():
        return f"'{value.name}' is a graph output"
    for user in value.consumers():
        if user not in order:
            return f"a subgraph uses '{value.name}'"
        heapq.heappush(queue, (order[user], user))
    return None


def _stretches(tile: ir.Node, dims: Dims) -> bool:
    repeats = graphs.array(tile.inputs[1])
    return repeats is not None and all(
        times == 1 or (times > 1 and size == 1) for times, size in zip(repeats.tolist(), dims, strict=True)
    )


def _dims(value: ir.Value, facts: Facts) -> Dims | None:
    known = facts.get(value)
    if known is not None:
        return known.dims()
    tensor = graphs.constant(value)
    return None if tensor is None else tuple(int(size) for size in tensor.shape.numpy())


def _result(node: ir.Node, given: Mapping[ir.Value, Dims], facts: Facts) -> Dims | None:
    """Return the shape of a broadcasting operator's result with some shapes as given; None if not known."""
    shapes = []
    for value in node.inputs:
        dims = None if value is None else given.get(value, _dims(value, facts))
        if dims is None:
            return None
        shapes.append(dims)
    if graphs.has_parameters(node):
        return None
    if graphs.is_op(node, *_ELEMENTWISE):
        return _broadcast(shapes)
    if graphs.is_op(node, "MatMul") and all(len(dims) >= 2 for dims in shapes):
        matrices = [_dims(value, facts) for value in node.inputs if value is not None]
        if any(dims[-2:] != (own or ())[-2:] for dims, own in zip(shapes, matrices, strict=True)):
            return None
        batch = _broadcast([dims[:-2] for dims in shapes])
        return None if batch is None else (*batch, shapes[0][-2], shapes[1][-1])
    return None


def _broadcast(shapes: Sequence[Dims]) -> Dims | None:
    rank = max(map(len, shapes))
    result: list[Dim] = []
    for axis in range(-rank, 0):
        sizes = {dims[axis] for dims in shapes if len(dims) >= -axis} - {1}
        numbers = [size for size in sizes if isinstance(size, int)]
        if None in sizes or (len(sizes) > 1 and not numbers):
            return None
        result.append(numbers[0] if numbers else sizes.pop() if sizes else 1)
    return tuple(result)


def _rewrite(
    output: ir.Value,
    source: ir.Value,
    users: Sequence[ir.Node],
    small: Mapping[ir.Value, Dims],
    order: dict[ir.Node, int],
    facts: Facts,
) -> None:
    """Let users take small values. Those that make other small ones are made anew, as their outputs change shape."""
    new = {output: source}
    replaced = [output]
    for user in users:
        inputs = [value if value is None else new.get(value, value) for value in user.inputs]
        value = user.outputs[0]
        if value not in small:
            for index, given in enumerate(inputs):
                if given is not user.inputs[index]:
                    user.replace_input_with(index, given)
            continue
        twin = ir.Node(
            user.domain,
            user.op_type,
            inputs,
            user.attributes,
            name=user.name,
            doc_string=user.doc_string,
            metadata_props=dict(user.metadata_props),
        )
        made = twin.outputs[0]
        made.name = graphs.fresh(f"{value.name}_small", facts.names)
        known = facts.get(value)
        made.type = (known.type if known else None) or value.type
        dims = small[value]
        shape = ir.Shape([size if isinstance(size, int) else None for size in dims])
        made.shape = shape if made.type is not None else None
        facts[made] = Known(made.type, shape, dims)
        for key, fact in value.metadata_props.items():
            if key.startswith(FACT_PREFIX):
                made.metadata_props[key] = fact
        assert isinstance(user.graph, ir.Graph)
        user.graph.insert_before(user, twin)
        order[twin] = order[user]
        new[value] = made
        replaced.append(value)
    for value in reversed(replaced):
        graphs.discard(value)
