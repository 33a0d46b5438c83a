"""Which positions of a model's outputs are padding? Found by measurement, not by name.

Sequences of a batch are filled up to one length, and a mask of ones and zeros tells the model to ignore what was filled in.
What it computes at those positions is no result, and may be sensitive to anything.
"""

from __future__ import annotations

import numpy as np

from graphopt import compare
from graphopt.runtime import Arrays, ExecutionError, Session

_SAME = 1e-3


def mask(session: Session, feeds: Arrays, outputs: Arrays) -> str | None:
    """Return the input that tells padding from content, or None.

    An input [N, T] of ones and zeros is one if the model shows it, in that other inputs [N, T, ...] changed where it is
    zero change outputs [N, T, ...] there and nowhere else, and changed in one place where it is one they change outputs in
    other such places: positions see each other, but not these.

    Args:
        session: of the model.
        feeds: its inputs.
        outputs: what it computes of them.
    """
    for name, array in feeds.items():
        if array.ndim != 2 or array.size == 0 or not np.isin(array, (0, 1)).all():
            continue
        real = array.astype(bool)
        several = np.flatnonzero(real.sum(axis=1) > 1)
        if real.all() or not several.size:
            continue
        row = int(several[0])
        one = np.zeros_like(real)
        one[row, int(np.flatnonzero(real[row])[0])] = True
        try:
            hidden, shown = (_changes(session, feeds, outputs, name, where) for where in (~real, one))
        except ExecutionError:
            continue
        if any(
            (changed & ~real).any() and not (changed & real).any() and (shown[output] & real & ~one).any()
            for output, changed in hidden.items()
            if output in shown
        ):
            return name
    return None


def blanked(outputs: Arrays, feeds: Arrays, name: str | None) -> dict[str, np.ndarray]:
    """Return outputs with zeros where they are padding.

    Args:
        outputs: by name.
        feeds: inputs that they were computed of.
        name: of the input that tells padding from content, or None.
    """
    if name is None:
        return dict(outputs)
    real = feeds[name].astype(bool)
    return {
        key: np.where(real.reshape(*real.shape, *[1] * (array.ndim - 2)), array, np.zeros((), array.dtype))
        if array.shape[:2] == real.shape and compare.is_float(array.dtype)
        else array
        for key, array in outputs.items()
    }


def _changes(session: Session, feeds: Arrays, outputs: Arrays, name: str, where: np.ndarray) -> dict[str, np.ndarray]:
    """Return where [N, T] each output [N, T, ...] changes when the inputs other than `name` do in some places."""
    others = {key: a for key, a in feeds.items() if key != name and a.shape[:2] == where.shape}
    altered = {key: _altered(a, where, feeds[name].astype(bool)) for key, a in others.items()}
    made = session.run({**feeds, **altered})
    found = {}
    for key, before in outputs.items():
        if compare.is_float(before.dtype) and before.shape[:2] == where.shape and made[key].shape == before.shape:
            apart = np.abs(made[key].astype(np.float64) - before).reshape(*where.shape, -1).max(axis=-1, initial=0)
            found[key] = apart > _SAME * float(np.sqrt(np.mean(np.square(before, dtype=np.float64))))
    return found


def _altered(array: np.ndarray, where: np.ndarray, content: np.ndarray) -> np.ndarray:
    """Return an array that holds in some places what it holds elsewhere in the content."""
    values, made = array.reshape(-1, *array.shape[2:]), array.copy()
    places, sources = np.flatnonzero(where), np.flatnonzero(content)
    made.reshape(values.shape)[places] = values[sources[(np.arange(len(places)) + len(sources) // 2) % len(sources)]]
    return made
