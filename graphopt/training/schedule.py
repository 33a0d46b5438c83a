"""The learning rate as a function of progress."""

from __future__ import annotations

import math
from typing import Literal


def factor(kind: Literal["onecycle", "cosine", "linear", "constant"], progress: float, warmup: float) -> float:
    """Return what the highest learning rate is multiplied by.

    Args:
        kind: "onecycle" rises and falls along half cosines (Smith and Topin, arXiv:1708.07120), "cosine" rises
            linearly and falls along one (Loshchilov and Hutter, arXiv:1608.03983), "linear" rises and falls linearly.
        progress: share of all steps that are done, 0 to 1.
        warmup: share of all steps in which it rises.
    """
    if kind == "constant":
        return 1.0
    if progress < warmup:
        rising = progress / warmup
        return 0.04 + 0.96 * _half_cosine(rising) if kind == "onecycle" else rising
    left = 1 - (progress - warmup) / max(1 - warmup, 1e-9)
    return max(left, 0.0) if kind == "linear" else _half_cosine(left)


def _half_cosine(x: float) -> float:
    """Rise from 0 at 0 to 1 at 1."""
    return (1 - math.cos(math.pi * min(max(x, 0.0), 1.0))) / 2
