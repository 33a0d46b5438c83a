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

_LOW, _HIGH = -0.1, 1.1
_RATE = 0.05
_PENALTY = 10.0
"""Of all numbers undecided, in units of the error of nearest rounding."""
_WARMUP = 0.2
"""Share of the steps before the penalty sets in."""
_BETA = 20.0, 2.0


def require_torch() -> None:
    """Refuse to go on without torch.

    Raises:
        PreconditionError: it is not installed.
    """
    if importlib.util.find_spec("torch") is None:
        raise PreconditionError("learning needs PyTorch; install 'graphopt[torch]', or choose method=gptq")


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

    ratio = weight / scale[..., None]
    down = np.floor(ratio)
    share = np.clip((ratio - down - _LOW) / (_HIGH - _LOW), 1e-3, 1 - 1e-3)
    nearest = objective.error(levels.nearest(ratio) * scale[..., None])
    unit = max(float(nearest.sum()), np.finfo(np.float32).tiny)
    low, high = (torch.as_tensor(np.broadcast_to(x, ratio.shape).astype(np.float32)) for x in (levels.low, levels.high))
    floor, step = (torch.from_numpy(x.astype(np.float32)) for x in (down, scale[..., None]))
    xx, yx = (torch.from_numpy((x / unit).astype(np.float32)) for x in (objective.xx, objective.yx))
    v = torch.from_numpy(np.log(share / (1 - share)).astype(np.float32)).requires_grad_()
    optimizer = torch.optim.Adam([v], _RATE)
    for number in range(steps):
        h = (torch.sigmoid(v) * (_HIGH - _LOW) + _LOW).clamp(0, 1)
        w = (floor + h).clamp(low, high) * step
        loss = ((w @ xx - 2 * yx) * w).sum()
        progress = (number / steps - _WARMUP) / (1 - _WARMUP)
        if progress > 0:
            beta = _BETA[1] + (_BETA[0] - _BETA[1]) * (1 - progress)
            loss = loss + _PENALTY * (1 - (2 * h - 1).abs().pow(beta)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    h = (torch.sigmoid(v.detach()) * (_HIGH - _LOW) + _LOW).clamp(0, 1).numpy().astype(np.float64)
    return np.clip(down + (h >= 0.5), levels.low, levels.high), h
