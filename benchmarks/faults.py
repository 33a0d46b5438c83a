"""Does bisection name the right node? Faults are injected into models, and looked for.

    python benchmarks/faults.py MODEL... [--faults 10]

Per model and kind of fault, the given number of nodes is drawn (seeded), bodies of Loop, Scan and If included:
weight: a constant of the node is scaled by 1.5 and shifted. operand: one input is replaced by another value of the
same type and shape, or two inputs change places. attribute: a number among the attributes changes.
A fault that changes no value of the model, or makes it fail, is drawn again. Printed: how many were found at the very
node, and where the others were suspected.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

import graphopt
from graphopt.bisection import bisect
from graphopt.errors import UserError

_COMMUTATIVE = ("Add", "Mul", "Max", "Min", "Sum", "And", "Or", "Equal")
_DRAWS = 30


def weight(model: ir.Model, node: ir.Node, rng: random.Random) -> bool:
    """Scale and shift a constant that only this node uses; tell whether there was one."""
    constants = [v for v in node.inputs if v is not None and v.const_value is not None and len(v.uses()) == 1]
    constants = [v for v in constants if v.is_initializer() and v.dtype is not None and v.dtype.is_floating_point()]
    if not constants:
        return False
    value = rng.choice(constants)
    assert value.const_value is not None
    array = value.const_value.numpy()
    value.const_value = ir.tensor((array * 1.5 + 0.01).astype(array.dtype), name=value.name)
    return True


def operand(model: ir.Model, node: ir.Node, rng: random.Random) -> bool:
    """Exchange inputs, or take another value of the same shape that is computed before."""
    inputs = list(node.inputs)
    if len(inputs) == 2 and node.op_type not in _COMMUTATIVE and inputs[0] is not inputs[1] and _alike(*inputs):
        node.replace_input_with(0, inputs[1])
        node.replace_input_with(1, inputs[0])
        return True
    choices = []
    before = []
    for other in node.graph or ():
        if other is node:
            break
        before += list(other.outputs)
    for index, value in enumerate(inputs):
        choices += [(index, other) for other in before if other not in inputs and _alike(value, other)]
    if not choices:
        return False
    index, other = rng.choice(choices)
    node.replace_input_with(index, other)
    return True


def attribute(model: ir.Model, node: ir.Node, rng: random.Random) -> bool:
    """Change a number."""
    numbers = (ir.AttributeType.FLOAT, ir.AttributeType.INT, ir.AttributeType.INTS)
    choices = [a for a in node.attributes.values() if a.type in numbers and a.name not in ("to", "num_outputs")]
    if not choices:
        return False
    chosen = rng.choice(choices)
    if chosen.type == ir.AttributeType.FLOAT:
        node.attributes.add(ir.AttrFloat32(chosen.name, chosen.as_float() * 1.5 + 0.1))
    elif chosen.type == ir.AttributeType.INT:
        node.attributes.add(ir.AttrInt64(chosen.name, 1 - chosen.as_int() if chosen.as_int() in (0, 1) else 0))
    elif chosen.name == "pads" and min(chosen.as_ints()) > 0:  # moves the picture by one, and keeps its size
        half = len(chosen.as_ints()) // 2
        moved = [number + (1 if index < half else -1) for index, number in enumerate(chosen.as_ints())]
        node.attributes.add(ir.AttrInt64s(chosen.name, moved))
    elif len(set(chosen.as_ints())) > 1:
        node.attributes.add(ir.AttrInt64s(chosen.name, list(chosen.as_ints())[::-1]))
    else:
        node.attributes.add(ir.AttrInt64s(chosen.name, [number + 1 for number in chosen.as_ints()]))
    return True


def _alike(one: ir.Value | None, two: ir.Value | None) -> bool:
    return (
        one is not None
        and two is not None
        and one.shape is not None
        and (one.dtype, one.shape) == (two.dtype, two.shape)
        and len(one.shape) > 0
    )


def inject(path: Path, kind: str, rng: random.Random, folder: Path) -> tuple[Path, list[str]] | None:
    """Write a faulty copy of a model; return its path and the names of what the faulty node computes."""
    model = graphopt.load(path)
    with contextlib.suppress(Exception):  # shapes only widen the choice of operands
        ShapeInferencePass()(model)
    node = rng.choice(list(model.graph.all_nodes()))
    if not node.outputs or not FAULTS[kind](model, node, rng):
        return None
    graphopt.save(model, folder / "faulty.onnx")
    return folder / "faulty.onnx", [value.name or "" for value in node.outputs]


FAULTS = {"weight": weight, "operand": operand, "attribute": attribute}


def main() -> None:
    """Run the experiment."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--faults", type=int, default=10)
    args = parser.parse_args()
    print("model                                     fault      found at the node  seconds (median)")
    for path in args.models:
        for kind in FAULTS:
            rng = random.Random(f"{path.name} {kind}")
            hits, seconds, misses = 0, [], []
            for _ in range(args.faults * _DRAWS):
                if len(seconds) == args.faults:
                    break
                with tempfile.TemporaryDirectory() as folder:
                    made = inject(path, kind, rng, Path(folder))
                    if made is None:
                        continue
                    start = time.perf_counter()
                    try:
                        found = bisect(path, made[0])
                    except UserError:  # the fault makes the model fail
                        continue
                if found.first is None:  # nothing differs, on these inputs
                    continue
                seconds.append(time.perf_counter() - start)
                hits += found.first.output in made[1]
                if found.first.output not in made[1]:
                    misses.append(f"{made[1][0]}: found {found.first}, before it: {', '.join(found.first.before)}")
            typical = f"{np.median(seconds):.2f}" if seconds else ""
            print(f"{path.name:41} {kind:10} {hits:3} of {len(seconds):3}         {typical}", flush=True)
            for miss in misses:
                print(f"    {miss}")


if __name__ == "__main__":
    main()
