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
        return _with_batch(x, scale, bias, mean, var, epsilon, momentum)[:3]
    if mode_.batchnorm == "batch" and torch.is_grad_enabled():
        return _learning(x, scale, bias, mean, var, epsilon, momentum)
    return _frozen(x, scale, bias, mean, var, epsilon)


@operator("BatchNormalization", 9)
def batch_normalization_9(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    mode_: Mode,
    outputs_: int,
) -> Tensor | tuple[Tensor, ...]:
    """Normalize channels with stored statistics, or with the batch's own where statistics are asked for."""
    if outputs_ > 1:
        return _with_batch(x, scale, bias, mean, var, epsilon, momentum)
    return batch_normalization(x, scale, bias, mean, var, epsilon=epsilon, momentum=momentum, mode_=mode_)


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
    outputs_: int,
) -> Tensor | tuple[Tensor, ...]:
    """Normalize channels, or without `spatial` every element of a sample by itself."""
    operands = (x, scale, bias, mean, var)
    if not spatial:
        operands = (x.flatten(1), *(parameter.reshape(-1) for parameter in operands[1:]))
    made = batch_normalization_9(*operands, epsilon=epsilon, momentum=momentum, mode_=mode_, outputs_=outputs_)
    if spatial:
        return made
    if isinstance(made, Tensor):
        return made.reshape(x.shape)
    return made[0].reshape(x.shape), *(statistic.reshape(mean.shape) for statistic in made[1:])


def _frozen(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor, epsilon: float) -> Tensor:
    """Normalize with statistics that are given."""
    if mean.requires_grad or var.requires_grad:  # torch's function has no gradient for them
        shape = [1, -1, *(1,) * (x.ndim - 2)]
        factor = scale * torch.rsqrt(var + epsilon)
        return ((x - mean.reshape(shape)) * factor.reshape(shape) + bias.reshape(shape)).to(x.dtype)
    scale, bias, mean, var = _alike(x, scale, bias, mean, var)
    return functional.batch_norm(x, mean, var, scale, bias, False, 0.0, epsilon)


def _learning(
    x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor, epsilon: float, momentum: float
) -> Tensor:
    """Normalize with the batch's statistics, and move the stored ones towards them in place."""
    scale, bias, moved_mean, moved_var = _alike(x, scale, bias, mean, var)
    made = functional.batch_norm(x, moved_mean, moved_var, scale, bias, True, 1 - momentum, epsilon)
    for stored, moved in ((mean, moved_mean), (var, moved_var)):
        if stored is not moved:
            with torch.no_grad():
                stored.copy_(moved)
    return made


def _alike(x: Tensor, *parameters: Tensor) -> Sequence[Tensor]:
    """Return parameters in a type that torch's function takes: that of X, or float32 beside a narrower X."""
    if all(parameter.dtype == x.dtype for parameter in parameters):
        return parameters
    kind = x.dtype if x.dtype.itemsize >= 4 else torch.float32
    return [parameter.to(kind) for parameter in parameters]


def _with_batch(
    x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor, epsilon: float, momentum: float
) -> tuple[Tensor, ...]:
    """Return X normalized by the batch's statistics, the stored ones moved towards them, and those of the batch."""
    axes = [axis for axis in range(x.ndim) if axis != 1]
    shape = [1, -1, *(1,) * (x.ndim - 2)]
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    spread, now = torch.var_mean(wide, axes, correction=0)
    normal = (wide - now.reshape(shape)) * torch.rsqrt(spread.reshape(shape) + epsilon)
    return (
        (normal * scale.reshape(shape) + bias.reshape(shape)).to(x.dtype),
        (mean * momentum + now * (1 - momentum)).to(mean.dtype),
        (var * momentum + spread * (1 - momentum)).to(var.dtype),
        now.to(mean.dtype),
        spread.to(var.dtype),
    )


@operator("InstanceNormalization", 6)
def instance_normalization(input: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    """Normalize every channel of every sample."""
    return torch.group_norm(input, input.shape[1], scale, bias, epsilon)


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
    """Normalize over all axes from one on; returns Y, and the mean and inverse deviation if asked for."""
    shape = x.shape[axis % x.ndim :]
    if outputs_ == 1 and x.dtype == scale.dtype and scale.shape == shape and (bias is None or bias.shape == shape):
        return functional.layer_norm(x, shape, scale, bias, epsilon)
    axes = list(range(-len(shape), 0))
    wide = x.to(_stash(stash_type, x))
    spread, mean = torch.var_mean(wide, axes, correction=0, keepdim=True)
    inverse = torch.rsqrt(spread + epsilon)
    made = ((wide - mean) * inverse).to(scale.dtype) * scale
    kind = TYPES[ir.DataType(stash_type)]
    return (made if bias is None else made + bias), mean.to(kind), inverse.to(kind)


def _stash(stash_type: int, x: Tensor) -> torch.dtype:
    """Return the type in which statistics are computed: never a narrower one than that of X."""
    kind = TYPES[ir.DataType(stash_type)]
    return x.dtype if x.dtype.itemsize > kind.itemsize else kind


@operator("RMSNormalization", 23)
def rms_normalization(
    x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    """Divide by the root of the mean square over all axes from one on; of the type of the scale."""
    return simplified_layer_normalization(x, scale, axis=axis, epsilon=epsilon, stash_type=stash_type, outputs_=1)[0]


@operator("SimplifiedLayerNormalization", 1)
def simplified_layer_normalization(
    x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1, outputs_: int
) -> tuple[Tensor, ...]:
    """RMSNormalization, as ONNX Runtime calls it, and the inverse of the root if asked for."""
    shape = x.shape[axis % x.ndim :]
    if outputs_ == 1 and x.dtype == scale.dtype and scale.shape == shape:
        return (functional.rms_norm(x, shape, scale, epsilon),)
    wide = x.to(_stash(stash_type, x))
    inverse = torch.rsqrt(wide.square().mean(list(range(-len(shape), 0)), keepdim=True) + epsilon)
    return (wide * inverse).to(scale.dtype) * scale, inverse.to(TYPES[ir.DataType(stash_type)])


@operator("GroupNormalization", 21)
def group_normalization(
    x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    """Normalize groups of channels; scale and bias are per channel."""
    del stash_type  # torch computes statistics of narrow floats in float32
    return torch.group_norm(x, num_groups, scale, bias, epsilon)


@operator("GroupNormalization", 18)
def group_normalization_18(x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5) -> Tensor:
    """Normalize groups of channels; scale and bias are per group."""
    each = x.shape[1] // num_groups
    return torch.group_norm(x, num_groups, scale.repeat_interleave(each), bias.repeat_interleave(each), epsilon)


@operator("LRN")
def local_response_normalization(
    x: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> Tensor:
    """Divide by a power of the mean square over neighbouring channels."""
    before = (size - 1) // 2
    squares = functional.pad(x.square().flatten(2).unsqueeze(1), (0, 0, before, size - 1 - before))
    means = functional.avg_pool2d(squares, (size, 1), 1).reshape(x.shape)
    return x / (bias + alpha * means).pow(beta)


@operator("MeanVarianceNormalization", 9)
def mean_variance_normalization(x: Tensor, *, axes: Sequence[int] = (0, 2, 3)) -> Tensor:
    """Subtract the mean and divide by the deviation over axes."""
    deviation, mean = torch.std_mean(x, list(axes), correction=0, keepdim=True)
    return (x - mean) / (deviation + 1e-9)
