"""Convolution with the activation after it as one operator

FusedConv computes Conv and applies Relu, Sigmoid, Tanh, LeakyRelu, HardSigmoid or Clip to what is still in the cache.
ONNX Runtime fuses the same pairs when a session loads, unless its optimizations are switched off.
"""

from __future__ import annotations

import onnx_ir as ir

from graphopt import graphs
from graphopt.passes.fusion._site import MICROSOFT, Site

_ACTIVATIONS = ("Clip", "HardSigmoid", "LeakyRelu", "Relu", "Sigmoid", "Tanh")
_LARGEST = 3.4028234663852886e38
"""The largest float32, where a Clip has no bound."""


def fuse(site: Site) -> None:
    """Fuse every activation whose convolution nothing else uses."""
    if not site.has("FusedConv"):
        return
    for graph in site.graphs():
        for node in list(graph):
            if node.graph is graph and graphs.is_op(node, *_ACTIVATIONS) and not graphs.has_parameters(node):
                _activated(site, node)


def _activated(site: Site, node: ir.Node) -> None:
    conv = site.maker(node.inputs[0], "Conv")
    parameters = _parameters(site, node)
    if (
        conv is None
        or site.is_quantized(conv)
        or parameters is None
        or site.dtype(node.outputs[0]) != ir.DataType.FLOAT
    ):
        return
    attributes = {name: found.value for name, found in conv.attributes.items()}
    if parameters:
        attributes["activation_params"] = parameters
    made = site.add(
        node, "FusedConv", list(conv.inputs), node.outputs[0], domain=MICROSOFT, activation=node.op_type, **attributes
    )
    reason = site.replace(node.outputs[0], made)
    if reason:
        site.skip(node, reason)
    else:
        site.fused["FusedConv"] += 1


def _parameters(site: Site, node: ir.Node) -> list[float] | None:
    """Return what an activation is told, in the order in which FusedConv wants it, or None if it varies."""
    if node.op_type == "LeakyRelu":
        return [_attribute(node, "alpha", 0.01)]
    if node.op_type == "HardSigmoid":
        return [_attribute(node, "alpha", 0.2), _attribute(node, "beta", 0.5)]
    if node.op_type != "Clip":
        return []
    if site.opset() < 11:
        return [_attribute(node, "min", -_LARGEST), _attribute(node, "max", _LARGEST)]
    bounds = [node.inputs[i] if i < len(node.inputs) else None for i in (1, 2)]
    numbers = [site.number(b) if b is not None else end for b, end in zip(bounds, (-_LARGEST, _LARGEST), strict=True)]
    return None if None in numbers else [number for number in numbers if number is not None]


def _attribute(node: ir.Node, name: str, default: float) -> float:
    found = node.attributes.get(name)
    return default if found is None else found.as_float()
