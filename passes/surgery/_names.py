"""What surgery passes share: names that people give, and errors that tell which ones there are."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from graphopt.errors import UserError, did_you_mean
from graphopt.runtime import Arrays

T = TypeVar("T")

_MOST = 400
"""Characters of a list of known names that are still worth reading."""


def find(pass_name: str, kind: str, name: str, known: Mapping[str, T]) -> T:
    """Return what a name stands for.

    Args:
        pass_name: who asks.
        kind: what is named, in words ("tensor", "output").
        name: as it was given.
        known: everything of that kind.

    Raises:
        UserError: there is no such name.
    """
    if name in known:
        return known[name]
    hint = did_you_mean(name, known)
    if len(hint) > _MOST:
        hint = f" among the {len(known)} there are, and none like it; check the name"
    raise UserError(f"{pass_name}: there is no {kind} '{name}'{hint}")


def once(pass_name: str, names: Sequence[str]) -> None:
    """Refuse a name that is given twice.

    Raises:
        UserError: there is one.
    """
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{pass_name}: '{twice}' is given twice; name it once")


def pairs(pass_name: str, entries: Iterable[str]) -> list[tuple[str, str]]:
    """Read entries of the form "one=other", cut at the last "=".

    Raises:
        UserError: one is of another form.
    """
    found = []
    for entry in entries:
        one, equals, other = entry.rpartition("=")
        if not (one and equals and other):
            raise UserError(f"{pass_name}: '{entry}' is not of the form old=new; write both names")
        found.append((one, other))
    return found


def of(results: Arrays, names: Collection[str]) -> dict[str, np.ndarray]:
    """Return the results that belong to these outputs; a sequence `y` comes as `y[0]`, `y[1]` and so on."""
    return {key: array for key, array in results.items() if owner(key, names)}


def owner(key: str, names: Collection[str]) -> str | None:
    """Return which of these outputs a result belongs to, or None."""
    if key in names:
        return key
    name = key.partition("[")[0]
    return name if name in names else None


def renamed(key: str, names: Mapping[str, str]) -> str:
    """Return what a result of an output is called after that was renamed."""
    name = owner(key, names)
    return key if name is None else names[name] + key.removeprefix(name)
