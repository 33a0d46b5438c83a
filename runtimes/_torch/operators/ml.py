"""Operators of ai.onnx.ml that networks use."""

from __future__ import annotations

import torch
from torch import Tensor

from graphopt.runtimes._torch.operators._moving import moving
from graphopt.runtimes._torch.table import operator

_DOMAIN = "ai.onnx.ml"


@operator("ArrayFeatureExtractor", 1, _DOMAIN)
@moving
def array_feature_extractor(x: Tensor, y: Tensor) -> Tensor:
    """Columns by index."""
    taken = x.index_select(-1, y.reshape(-1).to(torch.int64))
    return taken.reshape(1, -1) if x.ndim == 1 else taken


@operator("Binarizer", 1, _DOMAIN)
def binarizer(x: Tensor, *, threshold: float = 0.0) -> Tensor:
    """1 above a threshold, else 0."""
    return (x > threshold).to(x.dtype)
