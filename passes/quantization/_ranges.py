"""Activation ranges: facts that calibrate leaves on values, and the file that keeps them outside the model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import scopes
from graphopt.errors import UserError, did_you_mean
from graphopt.passbase import FACT_PREFIX

KEY = FACT_PREFIX + "range"
"""Metadata key of a value's ranges: a JSON object, `[lo, hi]` by the name of the observer that found it."""

OBSERVERS = ("min-max", "moving-average", "percentile", "entropy", "mse")

Range = tuple[float, float]


def write(value: ir.Value, ranges: Mapping[str, Range]) -> None:
    """Leave ranges on a value, by observer."""
    value.metadata_props[KEY] = _text(ranges)


def read(model: ir.Model, observer: str = "min-max") -> dict[str, Range]:
    """Return the ranges that one observer found, by the names of the values that carry them."""
    return {name: ranges[observer] for name, ranges in _all(model).items() if observer in ranges}


def observers(model: ir.Model) -> list[str]:
    """Return which observers have left ranges."""
    return list(dict.fromkeys(observer for ranges in _all(model).values() for observer in ranges))


def snapshot(model: ir.Model) -> list[str | None]:
    """Return all that is recorded, to be compared."""
    return [value.metadata_props.get(KEY) for value in _values(model)]


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
    rows = [f"    {json.dumps(name)}: {_text(ranges)}" for name, ranges in _all(model).items()]
    head = [f"  {json.dumps(key)}: {json.dumps(value)}," for key, value in facts.items()]
    return "\n".join(["{", *head, '  "activations": {', ",\n".join(rows), "  }", "}", ""]).encode()


def restore(model: ir.Model, path: str | Path) -> int:
    """Put the ranges of a file on the values of a model, in place of those it has; return how many.

    Raises:
        UserError: the file cannot be read, is not of that form, or names values that the model does not have.
    """
    found = _parse(path)
    values: dict[str, list[ir.Value]] = {}
    for value in _values(model):
        values.setdefault(value.name or "", []).append(value)
    for name in found:
        if name not in values:
            raise UserError(f"{path}: the model has no activation '{name}'{did_you_mean(name, values)}")
    erase(model)
    for name, ranges in found.items():
        for value in values[name]:
            write(value, ranges)
    return len(found)


def _parse(path: str | Path) -> dict[str, dict[str, Range]]:
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot read the ranges: {error.strerror}; check the path") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON: {error}; write it with calibrate{{save=FILE}}") from None
    activations = document.get("activations") if isinstance(document, dict) else None
    if not isinstance(activations, dict) or not activations:
        raise UserError(f"{path}: holds no ranges; it needs an object 'activations' of NAME: {{OBSERVER: [LO, HI]}}")
    return {name: _checked(f"{path}: '{name}'", ranges) for name, ranges in activations.items()}


def _checked(where: str, ranges: Any) -> dict[str, Range]:
    if not isinstance(ranges, dict) or not ranges:
        raise UserError(f'{where}: must be an object such as {{"min-max": [-1.5, 2]}}')
    found = {}
    for observer, range_ in ranges.items():
        if observer not in OBSERVERS:
            raise UserError(f"{where}: there is no observer '{observer}'{did_you_mean(observer, OBSERVERS)}")
        if not isinstance(range_, list) or len(range_) != 2 or not all(map(_is_finite, range_)):
            raise UserError(f"{where}: {observer} must be two finite float32 numbers [LO, HI]")
        lo, hi = range_
        if lo > hi:
            raise UserError(f"{where}: {observer} begins at {lo}, above its end {hi}; swap them")
        found[observer] = float(lo), float(hi)
    return found


def _is_finite(end: Any) -> bool:
    """Tell whether something is a number that float32 has room for."""
    largest = float(np.finfo(np.float32).max)
    return isinstance(end, (int, float)) and not isinstance(end, bool) and -largest <= end <= largest


def _text(ranges: Mapping[str, Range]) -> str:
    """Return ranges as JSON, in the fewest digits that give the same float32 back."""
    parts = [f'"{name}": [{np.float32(lo)!s}, {np.float32(hi)!s}]' for name, (lo, hi) in ranges.items()]
    return "{" + ", ".join(parts) + "}"


def _all(model: ir.Model) -> dict[str, dict[str, Range]]:
    """Return all ranges, by value and observer; values of one name, as branches of an If may have, share theirs."""
    found: dict[str, dict[str, Range]] = {}
    for value in _values(model):
        text = value.metadata_props.get(KEY)
        if text is None or not value.name:
            continue
        ranges = found.setdefault(value.name, {})
        for observer, (lo, hi) in json.loads(text).items():
            before = ranges.get(observer, (lo, hi))
            ranges[observer] = min(before[0], float(lo)), max(before[1], float(hi))
    return found


def _values(model: ir.Model) -> Iterator[ir.Value]:
    """Yield the values of the main graph and of the bodies in it."""
    for graph in scopes.main_and_bodies(model):
        yield from graph.inputs
        yield from (value for node in graph for value in node.outputs)
