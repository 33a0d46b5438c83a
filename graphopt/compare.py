"""Are two results the same, and if not, how far apart?"""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np

from graphopt.runtime import Arrays

_DWARFS = 1e6
"""An element this many times the median, and equal in both arrays, is a fill value rather than a result."""


def same(reference: np.ndarray, candidate: np.ndarray, rtol: float) -> bool:
    """Tell whether two arrays hold the same numbers.

    Floating-point elements may differ by `rtol` times (their magnitude + the root mean square of the
    reference); 16-bit and narrower types by at least 8 of their machine epsilons. Elements that dwarf the
    others, such as the lowest finite number in an attention mask, do not count for the mean. NaN and
    infinities must stand in the same places. Everything else must be equal.
    """
    return mismatch(reference, candidate, rtol) is None


def mismatch(reference: np.ndarray, candidate: np.ndarray, rtol: float) -> str | None:
    """Return in words how `candidate` differs from `reference` by more than `same` allows, or None."""
    if reference.shape != candidate.shape:
        return f"shape {list(candidate.shape)} instead of {list(reference.shape)}"
    if reference.dtype != candidate.dtype:
        return f"type {candidate.dtype} instead of {reference.dtype}"
    if not is_float(reference.dtype):
        wrong = int(np.sum(reference != candidate))
        return f"{wrong} of {reference.size} elements differ" if wrong else None
    rtol = max(rtol, 8 * float(ml_dtypes.finfo(reference.dtype).eps) if reference.dtype.itemsize < 4 else 0.0)
    a, b = _double(reference), _double(candidate)
    finite = np.isfinite(a)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True) or not np.isfinite(b[finite]).all():
        return "NaN or infinity in other places"
    with np.errstate(over="ignore"):
        a, b = np.abs(a[finite]), np.abs(b[finite] - a[finite])
        allowed = rtol * a + rtol * _scale(a, b)
    if bool(np.all(b <= allowed)):  # of nothing, too
        return None
    worst = int(np.argmax(b - allowed))
    return f"largest error {b[worst]:.3g} where {allowed[worst]:.3g} is allowed"


def _scale(magnitudes: np.ndarray, errors: np.ndarray) -> float:
    """Return the root mean square of the magnitudes that are results rather than fill values."""
    nonzero = magnitudes[magnitudes > 0]
    if not nonzero.size:
        return 0.0
    usual = magnitudes[(magnitudes < _DWARFS * np.median(nonzero)) | (errors > 0)]
    largest = float(np.max(usual, initial=0.0))
    return largest * math.sqrt(float(np.mean(np.square(usual / largest)))) if largest else 0.0


def first_mismatch(reference: Arrays, candidate: Arrays, rtol: float) -> str | None:
    """Compare outputs by name; return the first difference in words, or None."""
    for name, array in reference.items():
        if name not in candidate:
            return f"output '{name}' is missing"
        reason = mismatch(array, candidate[name], rtol)
        if reason:
            return f"output '{name}': {reason}"
    extra = set(candidate) - set(reference)
    return f"unexpected output '{min(extra)}'" if extra else None


def sqnr(reference: np.ndarray, candidate: np.ndarray) -> float:
    """Return the signal-to-quantization-noise ratio in dB over finite elements; infinity when equal."""
    signal, noise = sqnr_sums(reference, candidate)
    return decibels(signal, noise)


def sqnr_sums(reference: np.ndarray, candidate: np.ndarray) -> tuple[float, float]:
    """Return the sums of squares of the signal and of the error, over elements finite in the reference."""
    a, b = _double(reference), _double(candidate)
    finite = np.isfinite(a)
    a, error = a[finite], b[finite] - a[finite]
    return float(np.sum(a * a)), float(np.sum(error * error))


def decibels(signal: float, noise: float) -> float:
    """Return 10 log10(signal / noise), with infinity for no noise and -infinity for noise alone."""
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 and math.isfinite(noise) else -math.inf


def cosine(reference: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    """Return the cosine similarity of each sample (first axis), [N]; 1 where both are zero, 0 beside infinity and NaN."""
    width = math.prod(reference.shape[1:])  # reshape cannot work it out where there is no sample
    a, b = (_double(array).reshape(len(reference), width) for array in (reference, candidate))
    both_zero = ~a.any(axis=1) & ~b.any(axis=1)
    with np.errstate(invalid="ignore", over="ignore"):
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        cosines = np.sum(a * b, axis=1) / np.where(norms == 0, 1, norms)
    return np.where(both_zero, 1.0, np.where(np.isfinite(cosines), cosines, 0.0))


def is_float(dtype: np.dtype) -> bool:
    """Tell whether a numpy type is floating-point, ml_dtypes' narrow types included."""
    return dtype.kind == "f" or (dtype.kind == "V" and dtype.name.startswith(("bfloat", "float")))


def _double(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64)
