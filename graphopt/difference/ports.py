"""What differs between the inputs or the outputs of two models"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from graphopt import runtime

Shape = tuple[int | str | None, ...]


@dataclasses.dataclass(frozen=True)
class Port:
    """An input or output of a model.

    Attributes:
        name: its name.
        dtype: element type; for sequences and optionals in words, such as "SEQUENCE of FLOAT"; None when unknown.
        shape: as in `graphopt.runtime.Port`.
    """

    name: str
    dtype: str | None
    shape: Shape | None


@dataclasses.dataclass(frozen=True)
class PortChange:
    """An input or output before and after; None where it is not there."""

    before: Port | None
    after: Port | None

    @property
    def matters(self) -> bool:
        """Whether more than the name of a dynamic axis differs."""
        if self.before is None or self.after is None:
            return True
        return _without_axis_names(self.before) != _without_axis_names(self.after)


@dataclasses.dataclass(frozen=True)
class Ports:
    """What differs between the inputs, or the outputs, of two models.

    Attributes:
        changed: those that were added, removed, renamed, or have another type or shape.
        reordered: whether those that are in both models come in another order.
    """

    changed: tuple[PortChange, ...]
    reordered: bool

    @property
    def matters(self) -> bool:
        """Whether somebody who runs the model could notice."""
        return self.reordered or any(change.matters for change in self.changed)


def compare_ports(before: Sequence[ir.Value], after: Sequence[ir.Value], matched: Mapping[ir.Value, ir.Value]) -> Ports:
    """Compare inputs or outputs, paired by name, and those without a namesake by how they are matched.

    Args:
        before, after: the values.
        matched: value after -> value before.
    """
    names, names_after = {v.name: v for v in before}, {v.name: v for v in after}
    pairs: dict[ir.Value, ir.Value] = {}
    for value in after:
        other = names.get(value.name) or matched.get(value)
        if other is not None and other in before and (other.name == value.name or other.name not in names_after):
            pairs[other] = value
    changed = [PortChange(port(v), port(pairs[v]) if v in pairs else None) for v in before]
    changed += [PortChange(None, port(v)) for v in after if v not in pairs.values()]
    order = [pairs[v] for v in before if v in pairs]
    return Ports(
        tuple(change for change in changed if change.before != change.after),
        order != [v for v in after if v in order],
    )


def port(value: ir.Value) -> Port:
    """Describe an input or output."""
    (plain,) = runtime.ports([value])
    return Port(plain.name, _type_name(value.type), plain.shape)


def _type_name(found: ir.TypeProtocol | None) -> str | None:
    if found is None:
        return None
    if isinstance(found, ir.TensorType):
        return found.dtype.name
    kind = type(found).__name__.removesuffix("Type").upper()
    if isinstance(found, (ir.SequenceType, ir.OptionalType)):
        return f"{kind} of {_type_name(found.elem_type)}"
    return f"{kind} of {found.dtype.name}"


def _without_axis_names(port: Port) -> Port:
    shape = port.shape and tuple(size if isinstance(size, int) else None for size in port.shape)
    return dataclasses.replace(port, shape=shape)
