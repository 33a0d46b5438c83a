"""The operator table: which function computes an operator, from which opset on.

An operator is a function whose signature is the ONNX signature: inputs are positional parameters, attributes are
keyword-only parameters with ONNX's defaults. The annotation says what an input arrives as: `Tensor`, or `Host` for an
operand that decides about sizes, which arrives as a NumPy array (a constant one without any cost at run time). An
absent optional input is None. An operator with several outputs returns a tuple. Two keyword-only parameters are not
attributes: `outputs_` is the number of outputs that the node has, and `mode_` the module's `Mode`.

A look-up takes the newest implementation that is not newer than the model's opset. So an operator that a new opset
leaves alone needs nothing, and one that changed gets a second function.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from graphopt.runtimes._torch import operators

FIRST, LAST = 7, 28
"""The window of opsets in which the table holds; before 7, arithmetic broadcasts by other rules."""

CONTRIB = "com.microsoft"
"""The domain of ONNX Runtime's documented contrib operators."""

Host = np.ndarray
"""An operand that decides about sizes or attributes."""

_HOST = ("Host", "Host | None")
_SPECIAL = ("outputs_", "mode_")


@dataclasses.dataclass
class Mode:
    """What a module tells its operators besides their operands.

    Attributes:
        batchnorm: "frozen" normalizes with the stored statistics; "batch" with those of the batch, and moves the
            stored ones towards them.
        momentum: share of the old statistics that stays, where the node does not say.
    """

    batchnorm: Literal["frozen", "batch"] = "frozen"
    momentum: float = 0.9


@dataclasses.dataclass(frozen=True)
class Implementation:
    """A function of the table.

    Attributes:
        function: what computes.
        hosts: for every positional parameter, whether it is a `Host`.
        least: how many inputs must be there.
        variadic: whether more inputs may follow.
        attributes: the attributes that it takes.
        special: the parameters that are not attributes.
    """

    function: Callable[..., Any]
    hosts: tuple[bool, ...]
    least: int
    variadic: bool
    attributes: frozenset[str]
    special: frozenset[str]


_table: dict[tuple[str, str], dict[int, Implementation]] = {}


def operator(name: str, since: int = 1, domain: str = "") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enter a function into the table.

    Args:
        name: the operator.
        since: the first opset of its domain for which the function is right.
        domain: of the operator.
    """

    def enter(function: Callable[..., Any]) -> Callable[..., Any]:
        versions = _table.setdefault((domain, name), {})
        if since in versions:
            raise RuntimeError(f"two functions compute {name} since opset {since}")
        versions[since] = _described(function)
        return function

    return enter


def find(domain: str, name: str, opset: int) -> Implementation | None:
    """Return what computes an operator at an opset, or None."""
    _load()
    versions = _table.get(("" if domain == "ai.onnx" else domain, name), {})
    known = [since for since in versions if since <= opset]
    return versions[max(known)] if known else None


def entries() -> dict[tuple[str, str], list[int]]:
    """Return the opsets since which there are implementations, by domain and operator."""
    _load()
    return {key: sorted(versions) for key, versions in sorted(_table.items())}


@functools.cache
def _load() -> None:
    for module in pkgutil.iter_modules(operators.__path__, operators.__name__ + "."):
        importlib.import_module(module.name)


def _described(function: Callable[..., Any]) -> Implementation:
    positional: list[bool] = []
    attributes: set[str] = set()
    special: set[str] = set()
    least, variadic = 0, False
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY:
            (special if parameter.name in _SPECIAL else attributes).add(parameter.name)
        elif parameter.kind is parameter.VAR_POSITIONAL:
            variadic = True
        else:
            positional.append(parameter.annotation in _HOST)
            least += parameter.default is parameter.empty
    return Implementation(function, tuple(positional), least, variadic, frozenset(attributes), frozenset(special))
