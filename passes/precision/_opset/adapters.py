"""Every adapter: importing the files that hold them is what registers them."""

from graphopt.passes.precision._opset import (
    attributes,
    axes,
    broadcasting,
    elementwise,
    indexing,
    normalization,
    quantization,
    recurrent,
    resizing,
    softmax,
    spectral,
)
from graphopt.passes.precision._opset.table import DOWN, UP

__all__ = [
    "DOWN",
    "UP",
    "attributes",
    "axes",
    "broadcasting",
    "elementwise",
    "indexing",
    "normalization",
    "quantization",
    "recurrent",
    "resizing",
    "softmax",
    "spectral",
]
