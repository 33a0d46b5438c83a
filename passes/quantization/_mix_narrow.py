"""Which weights take 4 bits: as many bytes as the outputs bear, those first that make the least noise for each."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from graphopt.fidelity import Fidelity
from graphopt.passes.quantization._mix_trial import Placement, Trial
from graphopt.sensitivity import noise
from graphopt.sensitivity.sources import Sources, constant
from graphopt.target import Target


def narrow(model: ir.Model, placement: Placement, trial: Trial, samples: Fidelity, place: Target) -> Placement:
    """Return a placement with as many weights in 4 bits as fit the budget; the same where that is none.

    The order comes from what each weight alone makes of the float model's outputs; how far to go in it is found by
    bisection on quantized models.

    Args:
        model: the float model, with ranges and named nodes.
        placement: where its weights take 8 bits.
        trial: makes candidates and holds them against the budget.
        samples: to measure single weights on.
        place: where to run.
    """
    sizes = {node.name or "": _elements(node) for node in model.graph.all_nodes()}
    heavy = frozenset(name for name, size in sizes.items() if size) - placement.floats
    whole = trial.make(dataclasses.replace(placement, int4=heavy))
    if whole is None:
        return placement
    sources = Sources(model, whole.model)
    meter = noise.Meter(sources, samples, place)
    loud = {source.name: max(meter.together([source]).values()) for source in sources if source.kind == "weights"}
    order = sorted(heavy & loud.keys(), key=lambda name: (loud[name] / sizes[name], name))
    low, high = placement, len(order) + 1
    while high - len(low.int4) > 1:
        middle = (len(low.int4) + high) // 2
        tried = dataclasses.replace(placement, int4=frozenset(order[:middle]))
        made = trial.make(tried)
        if made is not None and made.fits:
            low = tried
        else:
            high = middle
    return low


def _elements(node: ir.Node) -> int:
    """Return the size of a node's largest constant."""
    return max((tensor.size for value in node.inputs[1:] if (tensor := constant(value)) is not None), default=0)
