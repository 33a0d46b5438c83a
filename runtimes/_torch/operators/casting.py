"""Cast and CastLike, and the conversions to and from narrow floats that other families share."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import torch
from torch import Tensor

from graphopt.runtimes._torch.values import NAMES, from_numpy, to_numpy


def to_float(x: Tensor) -> Tensor:
    """Return narrow floats as float32, and any other floats as they are."""
    if not x.dtype.is_floating_point or x.dtype.itemsize > 1:
        return x
    return from_numpy(to_numpy(x).astype(np.float32)).to(x.device)


def to_float8(x: Tensor, dtype: torch.dtype, saturate: int = 1) -> Tensor:
    """Round to the nearest narrow float; without `saturate`, what is too large becomes infinite or NaN."""
    array = to_numpy(x.to(torch.float32))
    narrow = NAMES[dtype].numpy()
    if saturate and dtype not in (torch.float4_e2m1fn_x2, torch.float8_e8m0fnu):
        most = float(ml_dtypes.finfo(narrow).max)
        array = np.where(np.isnan(array), array, np.clip(array, -most, most))
    return from_numpy(array.astype(narrow)).to(x.device)
