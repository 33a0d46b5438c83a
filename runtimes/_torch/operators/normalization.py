"""Normalization over batches, layers, groups and neighbours."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional

from graphopt.runtimes._torch.table import Mode, operator
from graphopt.runtimes._torch.values import TYPES


@operator("BatchNormalization", 14)
def batch_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
    mode_: Mode,
) -> Tensor | tuple[Tensor, ...]:
    """Normalize channels with stored statistics, or with the batch's own.

    In a training that re-estimates statistics, those of the batch are used, and the stored ones move towards them.
    """
    if training_mode:
        return _with_batch(x, scale, bias, mean, var, epsilon, momentum)
    learning = mode_.batchnorm == "batch" and torch.is_grad_enabled()
    return functional.batch_norm(
        x, mean.to(x.dtype), var.to(x.dtype), scale.to(x.dtype), bias.to(x.dtype), learning, 1 - momentum, epsilon
    )


@operator("BatchNormalization", 7)
def batch_normalization_7(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    spatial: int = 1,
    mode_: Mode,
) -> Tensor:
    """Normalize channels with stored statistics."""
    if not spatial:
        raise ValueError(
            "BatchNormalization over every element (spatial=0) is not computed; convert the model to opset 9"
        )
    made = batch_normalization(x, scale, bias, mean, var, epsilon=epsilon, momentum=momentum, mode_=mode_)
    assert isinstance(made, Tensor)
    return made


def _with_batch(
    x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor, epsilon: float, momentum: float
) -> tuple[Tensor, ...]:
    axes = [axis for axis in range(x.ndim) if axis != 1]
    shape = [1, -1, *(1,) * (x.ndim - 2)]
    now, spread = x.mean(axes), x.var(axes, unbiased=False)
    normal = (x - now.reshape(shape)) / torch.sqrt(spread.reshape(shape) + epsilon)
    return (
        (normal * scale.reshape(shape) + bias.reshape(shape)).to(x.dtype),
        (mean * momentum + now * (1 - momentum)).to(mean.dtype),
        (var * momentum + spread * (1 - momentum)).to(var.dtype),
    )


@operator("InstanceNormalization", 6)
def instance_normalization(input: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    """Normalize every channel of every sample."""
    return functional.instance_norm(input, None, None, scale, bias, True, 0.0, epsilon)


@operator("LayerNormalization", 1)
def layer_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
    outputs_: int,
) -> Tensor | tuple[Tensor, ...]:
    """Normalize over all axes from one on."""
    start = axis % x.ndim
    if outputs_ == 1 and scale.shape == x.shape[start:] and (bias is None or bias.shape == scale.shape):
        return functional.layer_norm(x, x.shape[start:], scale, bias, epsilon)
    axes = list(range(start, x.ndim))
    wide = x.to(_stash(stash_type, x))
    mean = wide.mean(axes, keepdim=True)
    centred = wide - mean
    inverse = torch.rsqrt(centred.square().mean(axes, keepdim=True) + epsilon)
    made = (centred * inverse).to(x.dtype) * scale
    return (made if bias is None else made + bias), mean, inverse


def _stash(stash_type: int, x: Tensor) -> torch.dtype:
    """Return the type in which statistics are computed."""
    kind = TYPES[ir.DataType(stash_type)]
    return x.dtype if x.dtype.itemsize > kind.itemsize else kind


@operator("RMSNormalization", 23)
def rms_normalization(
    x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    """Divide by the root of the mean square over all axes from one on."""
    axes = list(range(axis % x.ndim, x.ndim))
    wide = x.to(_stash(stash_type, x))
    inverse = torch.rsqrt(wide.square().mean(axes, keepdim=True) + epsilon)
    return (wide * inverse).to(x.dtype) * scale.to(x.dtype)


@operator("SimplifiedLayerNormalization", 1)
def simplified_layer_normalization(
    x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    """RMSNormalization, as ONNX Runtime calls it."""
    return rms_normalization(x, scale, axis=axis, epsilon=epsilon, stash_type=stash_type)


@operator("GroupNormalization", 21)
def group_normalization(
    x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    """Normalize groups of channels; scale and bias are per channel."""
    wide = x.to(_stash(stash_type, x))
    made = functional.group_norm(wide, num_groups, None, None, epsilon).to(x.dtype)
    shape = [1, -1, *(1,) * (x.ndim - 2)]
    return made * scale.reshape(shape) + bias.reshape(shape)


@operator("GroupNormalization", 18)
def group_normalization_18(x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5) -> Tensor:
    """Normalize groups of channels; scale and bias are per group."""
    each = x.shape[1] // num_groups
    return group_normalization(
        x, scale.repeat_interleave(each), bias.repeat_interleave(each), num_groups=num_groups, epsilon=epsilon
    )


@operator("LRN")
def local_response_normalization(
    x: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> Tensor:
    """Divide by a power of the mean square over neighbouring channels."""
    before = (size - 1) // 2
    squares = functional.pad(x.square().movedim(1, -1), (before, size - 1 - before))
    sums = squares.unfold(-1, size, 1).sum(-1).movedim(-1, 1)
    return x / (bias + alpha / size * sums).pow(beta)


@operator("MeanVarianceNormalization", 9)
def mean_variance_normalization(x: Tensor, *, axes: Sequence[int] = (0, 2, 3)) -> Tensor:
    """Subtract the mean and divide by the deviation over axes."""
    chosen = list(axes)
    mean = x.mean(chosen, keepdim=True)
    deviation = (x.square().mean(chosen, keepdim=True) - mean.square()).sqrt()
    return (x - mean) / (deviation + 1e-9)
