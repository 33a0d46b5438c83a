"""Learn which way to round each number of a weight (Nagel et al. 2020, arXiv:2004.10568).

Every integer is floor(w / s) + h, where h = clip(1.2 sigmoid(v) - 0.1, 0, 1) lies between rounding down and up. The
error of the layer is minimized by gradient over v, with a penalty 1 - |2h - 1|^beta that drives h to 0 or 1 as beta
falls. The error is the quadratic function of `_gptq.Objective`: what the layer reads is used through its second moments
alone, so that a step costs the same for any amount of data, and its gradient has no noise.
"""

from __future__ import annotations

import importlib.util

import numpy as np

from graphopt.passbase import PreconditionError
from graphopt.passes.quantization._gptq import Levels, Objective

_RATE = 0.05


def require_torch(otherwise: str) -> None:
    """Refuse to go on without torch.

    Args:
        otherwise: what to do without it.

    Raises:
        PreconditionError: it is not installed.
    """
    if importlib.util.find_spec("torch") is None:
        raise PreconditionError(f"learning needs PyTorch; install 'graphopt[torch]', or {otherwise}")


def learned(
    objective: Objective, weight: np.ndarray, scale: np.ndarray, levels: Levels, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return integers, and the shares h that they were rounded from; both [groups, channels, inputs].

    Args:
        objective: the error.
        weight: what to round, [groups, channels, inputs].
        scale: [groups, channels].
        levels: what the integers may be.
        steps: of gradient descent.
    """
    import torch

    from graphopt.training.rounding import penalty, shares, start

    ratio = weight / scale[..., None]
    down = np.floor(ratio)
    nearest = objective.error(levels.nearest(ratio) * scale[..., None])
    unit = max(float(nearest.sum()), np.finfo(np.float32).tiny)
    low, high = (torch.as_tensor(np.broadcast_to(x, ratio.shape).astype(np.float32)) for x in (levels.low, levels.high))
    floor, step = (torch.from_numpy(x.astype(np.float32)) for x in (down, scale[..., None]))
    xx, yx = (torch.from_numpy((x / unit).astype(np.float32)) for x in (objective.xx, objective.yx))
    v = start(ratio - down).requires_grad_()
    optimizer = torch.optim.Adam([v], _RATE)
    for number in range(steps):
        h = shares(v)
        w = (floor + h).clamp(low, high) * step
        loss = ((w @ xx - 2 * yx) * w).sum() + penalty(h, number / steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    h = shares(v.detach()).numpy().astype(np.float64)
    return np.clip(down + (h >= 0.5), levels.low, levels.high), h
