"""How far each output of one model is from that of another, over any number of runs."""

from __future__ import annotations

import dataclasses

import numpy as np

from graphopt import compare
from graphopt.runtime import Arrays


@dataclasses.dataclass(frozen=True)
class OutputError:
    """How far one output is from the reference, over all inputs that were run.

    Attributes:
        name: the output.
        max_error, mean_error: absolute, over finite reference elements; 0 where types are not floating-point and equal.
        sqnr: signal-to-quantization-noise ratio in dB; infinity when equal.
        mismatch: what is beyond the tolerance of exact passes, in words, or None.
        cosine: mean over samples of the cosine similarity, or None where it is not defined.
        agreement: share of positions at which the largest of the scores on axis 1 is the same, or of equal elements
            for integers; None for outputs without classes.
    """

    name: str
    max_error: float
    mean_error: float
    sqnr: float
    mismatch: str | None
    cosine: float | None
    agreement: float | None


class OutputErrors:
    """Errors of all outputs, added up run by run, so that no output needs to be kept."""

    def __init__(self, rtol: float) -> None:
        """Begin with no runs; `rtol` is the largest error of an element that is no mismatch."""
        self._rtol = rtol
        self._sums: dict[str, _Sums] = {}

    def add(self, expected: Arrays, actual: Arrays, samples: int | None = None) -> None:
        """Take in one run of both models.

        Args:
            expected: outputs of the reference.
            actual: outputs of the model, of the same names.
            samples: how many entries of the first axis count; the rest fills up a fixed batch.
        """
        for name, array in expected.items():
            counts = samples is not None and array.ndim and len(array) > samples
            part = slice(samples) if counts else slice(None)
            one, two = (array[part], actual[name][part]) if array.ndim else (array, actual[name])
            self._sums.setdefault(name, _Sums()).add(one, two, self._rtol)

    def rows(self) -> list[OutputError]:
        """Return what was found so far, one row per output."""
        return [sums.row(name) for name, sums in self._sums.items()]


@dataclasses.dataclass
class _Sums:
    """Running sums of one output."""

    largest: float = 0.0
    total: float = 0.0
    elements: int = 0
    signal: float = 0.0
    noise: float = 0.0
    mismatch: str | None = None
    comparable: bool = True
    cosines: list[float] = dataclasses.field(default_factory=list)
    agreeing: int = 0
    positions: int = 0

    def add(self, expected: np.ndarray, actual: np.ndarray, rtol: float) -> None:
        self.mismatch = self.mismatch or compare.mismatch(expected, actual, rtol)
        if expected.shape != actual.shape or not (_is_number(expected) and _is_number(actual)):
            self.comparable = False
            return
        errors = _absolute_errors(expected, actual)
        self.largest = max(self.largest, float(np.max(errors, initial=0.0)))
        self.total += float(np.sum(errors))
        self.elements += errors.size
        signal, noise = compare.sqnr_sums(expected, actual)
        self.signal += signal
        self.noise += noise
        if expected.ndim and compare.is_float(expected.dtype):
            self.cosines += compare.cosine(expected, actual).tolist()
        equal = _agreement(expected, actual)
        if equal is not None:
            self.agreeing += int(np.sum(equal))
            self.positions += equal.size

    def row(self, name: str) -> OutputError:
        agreement = self.agreeing / self.positions if self.positions else None
        if not self.comparable:
            error = 0.0 if self.mismatch is None else float("nan")
            noise = float("inf") if self.mismatch is None else float("-inf")
            return OutputError(name, error, error, noise, self.mismatch, None, None)
        return OutputError(
            name=name,
            max_error=self.largest,
            mean_error=self.total / max(self.elements, 1),
            sqnr=compare.decibels(self.signal, self.noise),
            mismatch=self.mismatch,
            cosine=float(np.mean(self.cosines)) if self.cosines else None,
            agreement=agreement,
        )


def _is_number(array: np.ndarray) -> bool:
    return array.dtype.kind in "iub" or compare.is_float(array.dtype)


def _agreement(expected: np.ndarray, actual: np.ndarray) -> np.ndarray | None:
    """Return where both see the same class, or None if there are no classes."""
    if not compare.is_float(expected.dtype):
        return np.asarray(expected == actual)
    if expected.ndim < 2 or expected.shape[1] < 2:
        return None
    return np.asarray(np.argmax(expected, axis=1) == np.argmax(actual, axis=1))


def _absolute_errors(reference: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    """Return |candidate - reference| where the reference is finite, flat."""
    a, b = reference.astype(np.float64), candidate.astype(np.float64)
    finite = np.isfinite(a)
    return np.asarray(np.abs(b[finite] - a[finite]))
