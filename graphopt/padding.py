"""Which positions of a model's outputs are padding? Found by measurement, not by name.

Sequences of a batch are filled up to one length, and a mask of ones and zeros tells the model to ignore what was filled in.
What it computes at those positions is no result, and may be sensitive to anything.
"""

from __future__ import annotations

import numpy as np

from graphopt import compare
from graphopt.runtime import Arrays, ExecutionError, Session

_SAME = 1e-3


class Padding:
    """The padding of a model's outputs, looked for on the first inputs that can tell.

    Attributes:
        mask: the input that tells padding from content, None while or because there is none.
    """

    def __init__(self, session: Session) -> None:
        """Begin, with a session of the model to trust."""
        self._session, self._is_known = session, False
        self.mask: str | None = None

    def observe(self, feeds: Arrays, outputs: Arrays) -> None:
        """Find the mask, if that was not tried before and there are zeros and ones that may be it.

        An input [N, T] of these is one if the model shows it, in that other inputs [N, T, ...] changed where it is zero
        change outputs [N, T, ...] there and nowhere else, and changed in one place where it is one they change outputs in
        other such places: positions see each other, but not these.

        Args:
            feeds: inputs of the model.
            outputs: what it computes of them.
        """
        if self._is_known:
            return
        for name, real in _candidates(feeds).items():
            self._is_known = True
            if self._hides(feeds, outputs, name, real):
                self.mask = name
                return

    def blanked(self, outputs: Arrays, feeds: Arrays) -> dict[str, np.ndarray]:
        """Return outputs, computed of `feeds` by whichever model, with zeros where they are padding."""
        if self.mask is None:
            return dict(outputs)
        real = feeds[self.mask].astype(bool)
        return {
            key: np.where(real.reshape(*real.shape, *[1] * (array.ndim - 2)), array, np.zeros((), array.dtype))
            if array.shape[:2] == real.shape and compare.is_float(array.dtype)
            else array
            for key, array in outputs.items()
        }

    def _hides(self, feeds: Arrays, outputs: Arrays, name: str, real: np.ndarray) -> bool:
        """Tell whether the model hides from each other what an input says is padding and content."""
        row = int(np.flatnonzero(real.sum(axis=1) > 1)[0])
        one = np.zeros_like(real)
        one[row, int(np.flatnonzero(real[row])[0])] = True
        try:
            hidden, shown = (_changes(self._session, feeds, outputs, name, where) for where in (~real, one))
        except ExecutionError:
            return False
        return any(
            bool((changed & ~real).any() and not (changed & real).any() and (shown[output] & real & ~one).any())
            for output, changed in hidden.items()
            if output in shown
        )


def _candidates(feeds: Arrays) -> dict[str, np.ndarray]:
    """Return inputs [N, T] of zeros and ones, as bool, with zeros in them and a row with several ones."""
    found = {name: a.astype(bool) for name, a in feeds.items() if a.ndim == 2 and np.isin(a, (0, 1)).all()}
    return {name: real for name, real in found.items() if not real.all() and (real.sum(axis=1) > 1).any()}


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
