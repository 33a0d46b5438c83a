"""Activation ranges: facts that calibrate leaves on values, and the file that keeps them outside the model."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.errors import UserError, did_you_mean
from graphopt.passbase import FACT_PREFIX

KEY = FACT_PREFIX + "range"
"""Metadata key of a value's ranges: a JSON object, `[lo, hi]` by the name of the observer that found it."""

Range = tuple[float, float]


def write(value: ir.Value, ranges: Mapping[str, Range]) -> None:
    """Leave ranges on a value, by observer, in the fewest digits that give the same float32 back."""
    parts = [f'"{name}": {_text(range_)}' for name, range_ in ranges.items()]
    value.metadata_props[KEY] = "{" + ", ".join(parts) + "}"


def read(model: ir.Model, observer: str = "min-max") -> dict[str, Range]:
    """Return the ranges that one observer found, by the names of the values that carry them."""
    found = {}
    for value in _values(model):
        text = value.metadata_props.get(KEY)
        range_ = json.loads(text).get(observer) if text is not None else None
        if range_ is not None and value.name:
            found[value.name] = (float(range_[0]), float(range_[1]))
    return found


def observers(model: ir.Model) -> list[str]:
    """Return which observers have left ranges."""
    texts = (value.metadata_props.get(KEY) for value in _values(model))
    return list(dict.fromkeys(name for text in texts if text is not None for name in json.loads(text)))


def erase(model: ir.Model) -> None:
    """Remove the ranges."""
    for value in _values(model):
        value.metadata_props.pop(KEY, None)


def dump(model: ir.Model, facts: Mapping[str, Any]) -> bytes:
    """Return the ranges of a model as a file: JSON, one activation a line.

    Args:
        model: its values carry ranges.
        facts: JSON-ready things to say about how they were found.
    """
    rows = [f"    {json.dumps(v.name)}: {v.metadata_props[KEY]}" for v in _values(model) if KEY in v.metadata_props]
    head = [f"  {json.dumps(key)}: {json.dumps(value)}," for key, value in facts.items()]
    return "\n".join(["{", *head, '  "activations": {', ",\n".join(rows), "  }", "}", ""]).encode()


def restore(model: ir.Model, path: str | Path) -> int:
    """Put the ranges of a file on the values of a model, in place of those it has; return how many.

    Raises:
        UserError: the file cannot be read, is not of that form, or names values that the model does not have.
    """
    found = _parse(path)
    values = {value.name: value for value in _values(model) if value.name}
    for name in found:
        if name not in values:
            raise UserError(f"{path}: the model has no activation '{name}'{did_you_mean(name, values)}")
    erase(model)
    for name, ranges in found.items():
        write(values[name], ranges)
    return len(found)


def _parse(path: str | Path) -> dict[str, dict[str, Range]]:
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot read the ranges: {error.strerror}; check the path") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    activations = document.get("activations") if isinstance(document, dict) else None
    if not isinstance(activations, dict) or not activations:
        raise UserError(f"{path}: holds no ranges; it needs an object 'activations' of NAME: {{OBSERVER: [LO, HI]}}")
    return {name: _checked(f"{path}: '{name}'", ranges) for name, ranges in activations.items()}


def _checked(where: str, ranges: Any) -> dict[str, Range]:
    if not isinstance(ranges, dict) or not ranges:
        raise UserError(f"{where}: must be an object such as {{\"min-max\": [-1.5, 2]}}")
    found = {}
    for observer, range_ in ranges.items():
        numbers = isinstance(range_, list) and all(
            isinstance(end, (int, float)) and not isinstance(end, bool) for end in range_
        )
        if not numbers or len(range_) != 2 or not all(map(math.isfinite, range_)):
            raise UserError(f"{where}: {observer} must be two finite numbers [LO, HI]")
        if range_[0] > range_[1]:
            raise UserError(f"{where}: {observer} begins at {range_[0]}, above its end {range_[1]}; swap them")
        found[observer] = (float(range_[0]), float(range_[1]))
    return found


def _text(range_: Range) -> str:
    return f"[{np.float32(range_[0])!s}, {np.float32(range_[1])!s}]"


def _values(model: ir.Model) -> Iterator[ir.Value]:
    """Yield the values of the main graph and of the bodies in it."""
    inside = {graph for function in model.functions.values() for graph in (function.graph, *function.subgraphs())}
    for graph in (model.graph, *model.graph.subgraphs()):
        if graph not in inside:
            yield from graph.inputs
            yield from (value for node in graph for value in node.outputs)
