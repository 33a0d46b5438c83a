"""Rename inputs, outputs, inner tensors, nodes and dynamic axes

`rename MODEL --names input.1=image,495=scores --axes N=batch`. One `*` on the left stands for any text, which takes
the place of a `*` on the right: `--nodes '*=encoder/*'`, `--names 'onnx::*=*'`. Of several entries that fit a name
the first counts; all take effect at once, so names can be swapped. A nameless axis of an input or output is called
`input:axis`, as in `--axes image:0=batch`.

What has the same name in several control-flow bodies is renamed in all of them. Names inside functions are theirs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphopt import graphs
from graphopt.errors import UserError
from graphopt.passbase import Before, Case, Cases, Pass, PreconditionError, Result, param
from graphopt.passes.surgery import _axes, _names


@dataclass(frozen=True)
class Rename(Pass):
    """Change what things are called."""

    names: tuple[str, ...] = param((), "Tensors to rename, as old=new; one * on each side stands for any text.")
    nodes: tuple[str, ...] = param((), "Nodes to rename, likewise.")
    axes: tuple[str, ...] = param((), "Dynamic axes to rename, likewise; nameless ones are called input:axis.")

    def call(self, model: ir.Model) -> Result:
        """Rename in place; the report counts the names that changed."""
        if not (self.names or self.nodes or self.axes):
            raise PreconditionError("nothing to rename; give names, nodes or axes")
        ports = [value.name or "" for value in (*model.graph.inputs, *model.graph.outputs)]
        count = {"tensors": self._tensors(model), "nodes": self._nodes(model), "axes": self._axes(model)}
        now = [value.name or "" for value in (*model.graph.inputs, *model.graph.outputs)]
        cases = _cases(dict(zip(ports, now, strict=True))) if now != ports else None
        return Result(
            model, any(count.values()), {kind: number for kind, number in count.items() if number}, cases=cases
        )

    def _tensors(self, model: ir.Model) -> int:
        values = list(_axes.values(model))
        new = self._plan("tensor", self.names, [value.name or "" for value in values])
        graphs.rename(model, {value: new[value.name] for value in values if value.name in new})
        return len(new)

    def _nodes(self, model: ir.Model) -> int:
        nodes = list(model.graph.all_nodes())
        new = self._plan("node", self.nodes, [node.name for node in nodes if node.name])
        for node in nodes:
            node.name = new.get(node.name or "", node.name)
        return len(new)

    def _axes(self, model: ir.Model) -> int:
        nameless = {
            f"{value.name}:{axis}": (value, axis)
            for value in (*model.graph.inputs, *model.graph.outputs)
            for axis, dim in enumerate(value.shape or ())
            if not isinstance(dim, int) and dim.value is None
        }
        given = [entry for entry in self.axes if entry.rpartition("=")[0] in nameless]
        new = self._plan("axis", [entry for entry in self.axes if entry not in given], _axes.names(model))
        named = dict(_names.pairs(self.pass_name(), given))
        for name in (*new.values(), *named.values()):
            if name.isdecimal():
                raise UserError(f"{self.pass_name()}: an axis cannot be called '{name}', which is a size; use a name")
        _axes.rename(model, new)
        for old, name in named.items():  # several may get one name, which says that they are equal
            value, axis = nameless[old]
            assert value.shape is not None
            value.shape = ir.Shape([name if i == axis else dim for i, dim in enumerate(value.shape)])
        return len(new) + len(named)

    def _plan(self, kind: str, entries: Iterable[str], known: Iterable[str]) -> dict[str, str]:
        """Return the new name of everything that changes its name.

        Raises:
            UserError: an entry fits nothing, or two things would have one name.
        """
        there = dict.fromkeys(known)
        plan: dict[str, str] = {}
        for old, new in _names.pairs(self.pass_name(), entries):
            for name in self._fitting(kind, old, list(there)):
                plan.setdefault(name, new.replace("*", _middle(name, old)) if old not in there else new)
        plan = {old: new for old, new in plan.items() if old != new}
        count = Counter([*plan.values(), *(name for name in there if name not in plan)])
        for old, new in plan.items():
            if count[new] > 1:
                raise UserError(
                    f"{self.pass_name()}: {kind} '{old}' cannot become '{new}', which another one is called; "
                    "choose another name"
                )
        return plan

    def _fitting(self, kind: str, old: str, known: Sequence[str]) -> list[str]:
        if "*" not in old or old in known:
            _names.find(self.pass_name(), kind, old, dict.fromkeys(known))
            return [old]
        if old.count("*") > 1:
            raise UserError(f"{self.pass_name()}: '{old}' has more than one *; write several entries")
        head, _, tail = old.partition("*")
        fitting = [n for n in known if n.startswith(head) and n.endswith(tail) and len(n) >= len(head) + len(tail)]
        if not fitting:
            raise UserError(f"{self.pass_name()}: no {kind} is called like '{old}'; check the pattern")
        return fitting


def _middle(name: str, pattern: str) -> str:
    """Return the text that the * of a pattern stands for in a name."""
    head, _, tail = pattern.partition("*")
    return name[len(head) : len(name) - len(tail)]


def _cases(new: Mapping[str, str]) -> Cases:
    def cases(before: Before) -> list[Case]:
        return [
            Case(
                {new[name]: array for name, array in feeds.items()},
                {_names.renamed(key, new): array for key, array in before.run(feeds).items()},
            )
            for feeds in before.feeds
        ]

    return cases
