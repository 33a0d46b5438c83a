"""Unknown powers of two, one per channel, and what is known about them: equal, opposite, or zero."""

from __future__ import annotations

import numpy as np


class Variables:
    """Unknown exponents with equations between them, in a union-find structure with signs.

    Identifiers are numbers: `k` stands for exponent k, `-k` for its negative, 0 for the exponent zero, which is a factor
    of one.
    """

    def __init__(self) -> None:
        self._parent = [0]
        self._sign = [1]
        self._reasons: dict[int, str] = {0: "it is joined with values that no constant before them can scale"}

    def fresh(self, count: int) -> np.ndarray:
        """Return identifiers of new exponents, int64 [count]."""
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        self._sign.extend([1] * count)
        return np.arange(first, first + count)

    def unify(self, one: np.ndarray, two: np.ndarray) -> None:
        """Make exponents equal; the arrays of identifiers are broadcast against each other."""
        one, two = np.broadcast_arrays(one, two)
        different = one != two
        for a, b in dict.fromkeys(zip(one[different].tolist(), two[different].tolist(), strict=True)):
            self._unify(a, b)

    def fix(self, ids: np.ndarray, reason: str) -> None:
        """Make exponents zero; the first reason is remembered."""
        for a in np.unique(np.abs(ids)).tolist():
            self._reasons.setdefault(self._find(a)[0], reason)

    def reason(self, ids: np.ndarray) -> str | None:
        """Return why all these exponents are zero; None if one of them is free."""
        found = [self._reasons.get(self._find(a)[0]) for a in np.unique(np.abs(ids)).tolist()]
        return None if None in found or not found else found[0]

    def free(self) -> np.ndarray:
        """Return the exponents that are left after all equations, one of every set of equal ones."""
        return np.array([k for k in range(1, len(self._parent)) if self._is_free_root(k)], np.int64)

    def resolved(self) -> np.ndarray:
        """Return for every exponent k the signed number of the free one that it equals, or 0, int64 [k]."""
        table = np.zeros(len(self._parent), np.int64)
        for k in range(1, len(table)):
            root, sign = self._find(k)
            table[k] = 0 if root in self._reasons else sign * root
        return table

    def _is_free_root(self, k: int) -> bool:
        return self._parent[k] == k and k not in self._reasons

    def _find(self, k: int) -> tuple[int, int]:
        """Return root and sign of exponent k > 0, and shorten the way there."""
        path = []
        while self._parent[k] != k:
            path.append(k)
            k = self._parent[k]
        sign = 1
        for step in reversed(path):
            sign *= self._sign[step]
            self._parent[step], self._sign[step] = k, sign
        return k, sign

    def _unify(self, a: int, b: int) -> None:
        (one, first), (two, second) = self._find(abs(a)), self._find(abs(b))
        same = first * second * (-1 if (a < 0) != (b < 0) else 1)
        if one == two:
            if same < 0:
                self._reasons.setdefault(one, "what it computes meets its own reciprocal")
            return
        if one in self._reasons or two in self._reasons:
            self._reasons.setdefault(one, self._reasons.get(two, ""))
            self._reasons.setdefault(two, self._reasons[one])
            return
        self._parent[one], self._sign[one] = two, same
