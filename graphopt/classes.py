"""Precision, recall and F1 of every class."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class ClassScore:
    """How well one class is told from the others.

    Attributes:
        label: the class.
        support: samples that belong to it.
        precision: of those predicted as this class, the share that belongs to it; 0 when none was predicted.
        recall: of those that belong to it, the share predicted as this class.
        f1: harmonic mean of precision and recall.
    """

    label: int | str
    support: int
    precision: float
    recall: float
    f1: float


def class_scores(pairs: np.ndarray) -> list[ClassScore]:
    """Score every class that occurs among the labels.

    Args:
        pairs: predicted and actual class of each sample, [N, 2].
    """
    labels, *columns = _table(pairs)
    return [
        ClassScore(label if isinstance(label, str) else int(label), int(support), *map(float, scores))
        for label, support, *scores in zip(labels.tolist(), *columns, strict=True)
    ]


def macro(pairs: np.ndarray) -> dict[str, float]:
    """Return precision, recall and F1, each averaged over the classes that occur among the labels."""
    return dict(zip(("precision", "recall", "f1"), map(float, map(np.mean, _table(pairs)[2:])), strict=True))


def _table(pairs: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return labels, support, precision, recall and F1, [classes] each."""
    predicted, actual = pairs[:, 0], pairs[:, 1]
    labels, codes = np.unique(actual, return_inverse=True)
    size = len(labels)
    places = np.minimum(np.searchsorted(labels, predicted), size - 1)
    known = labels[places] == predicted
    support = np.bincount(codes, minlength=size)
    claimed = np.bincount(places[known], minlength=size)
    hits = np.bincount(codes[predicted == actual], minlength=size)
    precision, recall = hits / np.maximum(claimed, 1), hits / support
    f1 = 2 * precision * recall / np.where(hits, precision + recall, 1)
    return labels, support, precision, recall, f1


def confusion(pairs: np.ndarray) -> dict[str, list[Any]]:
    """Count how often each class was taken for which.

    Args:
        pairs: predicted and actual class of each sample, [N, 2].

    Returns:
        `labels`, and `counts`: one row per actual class, one column per predicted class.
    """
    labels, codes = np.unique(pairs, return_inverse=True)
    codes = codes.reshape(pairs.shape)
    counts = np.zeros((len(labels), len(labels)), np.int64)
    np.add.at(counts, (codes[:, 1], codes[:, 0]), 1)
    return {"labels": labels.tolist(), "counts": counts.tolist()}
