"""ONNX Runtime's contrib operators: activations, products, convolution and normalization with something joined on.

https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import functional

from graphopt.runtimes._torch.operators import activation
from graphopt.runtimes._torch.operators.convolution import conv
from graphopt.runtimes._torch.operators.matrix import gemm
from graphopt.runtimes._torch.table import CONTRIB, operator


@operator("Gelu", 1, CONTRIB)
def gelu(x: Tensor) -> Tensor:
    """X times the normal distribution function of X."""
    return functional.gelu(x)


@operator("BiasGelu", 1, CONTRIB)
def bias_gelu(a: Tensor, b: Tensor) -> Tensor:
    """Gelu(A + B)."""
    return functional.gelu(a + b)


@operator("FastGelu", 1, CONTRIB)
def fast_gelu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Gelu by its approximation with tanh."""
    return functional.gelu(x if bias is None else x + bias, approximate="tanh")


@operator("QuickGelu", 1, CONTRIB)
def quick_gelu(x: Tensor, *, alpha: float = 1.702) -> Tensor:
    """X sigmoid(alpha X)."""
    return activation.swish(x, alpha=alpha)


_ACTIVATIONS: dict[str, tuple[Callable[..., Tensor], tuple[str, ...]]] = {
    "Celu": (activation.celu, ("alpha",)),
    "Clip": (torch.clamp, ("min", "max")),
    "Elu": (activation.elu, ("alpha",)),
    "HardSigmoid": (activation.hard_sigmoid, ("alpha", "beta")),
    "LeakyRelu": (activation.leaky_relu, ("alpha",)),
    "Relu": (torch.relu, ()),
    "Selu": (activation.selu, ("alpha", "gamma")),
    "Sigmoid": (torch.sigmoid, ()),
    "Softplus": (activation.softplus, ()),
    "Softsign": (functional.softsign, ()),
    "Tanh": (torch.tanh, ()),
    "ThresholdedRelu": (activation.thresholded_relu, ("alpha",)),
}
"""What is joined to convolutions and products, and the names of its numbers."""


def _activated(x: Tensor, name: str, numbers: Iterable[float | None]) -> Tensor:
    """Apply an activation by its ONNX name; a number that is None is the default.

    Raises:
        ValueError: it is none of those that are fused.
    """
    if not name:
        return x
    if name not in _ACTIVATIONS:
        raise ValueError(f"activation '{name}' is not one that is joined to an operator")
    function, names = _ACTIVATIONS[name]
    given = zip(names, numbers, strict=False)
    return function(x, **{key: number for key, number in given if number is not None})


@operator("FusedConv", 1, CONTRIB)
def fused_conv(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    z: Tensor | None = None,
    *,
    activation: str = "",
    activation_params: tuple[float, ...] = (),
    auto_pad: str = "NOTSET",
    dilations: tuple[int, ...] | None = None,
    group: int = 1,
    kernel_shape: tuple[int, ...] | None = None,
    pads: tuple[int, ...] | None = None,
    strides: tuple[int, ...] | None = None,
) -> Tensor:
    """Activation(Conv(X) + Z)."""
    made = conv(
        x,
        w,
        b,
        auto_pad=auto_pad,
        dilations=dilations,
        group=group,
        kernel_shape=kernel_shape,
        pads=pads,
        strides=strides,
    )
    return _activated(made if z is None else made + z, activation, activation_params)


@operator("FusedGemm", 1, CONTRIB)
def fused_gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    activation: str = "",
    activation_alpha: float | None = None,
    activation_beta: float | None = None,
    activation_gamma: float | None = None,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,  # noqa: N803 (the attribute's name)
    transB: int = 0,  # noqa: N803
) -> Tensor:
    """Activation(Gemm)."""
    second = activation_gamma if activation == "Selu" else activation_beta
    made = gemm(a, b, c, alpha=alpha, beta=beta, transA=transA, transB=transB)
    return _activated(made, activation, (activation_alpha, second))


@operator("FusedMatMul", 1, CONTRIB)
@operator("TransposeMatMul", 1, CONTRIB)
def fused_mat_mul(
    a: Tensor,
    b: Tensor,
    *,
    alpha: float = 1.0,
    transA: int = 0,  # noqa: N803
    transB: int = 0,  # noqa: N803
    transBatchA: int = 0,  # noqa: N803
    transBatchB: int = 0,  # noqa: N803
) -> Tensor:
    """Alpha A B, both perhaps transposed: in the last two axes, or the first one moved before the last."""
    made = torch.matmul(_turned(a, transA, transBatchA), _turned(b, transB, transBatchB))
    return made if alpha == 1 else alpha * made


def _turned(x: Tensor, last: int, batch: int) -> Tensor:
    x = x.movedim(0, -2) if batch else x
    return x.transpose(-1, -2) if last and x.ndim > 1 else x


@operator("SkipLayerNormalization", 1, CONTRIB)
def skip_layer_normalization(
    input: Tensor,
    skip: Tensor,
    gamma: Tensor,
    beta: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    epsilon: float = 1e-5,
) -> tuple[Tensor | None, ...]:
    """LayerNormalization(input + skip + bias), and that sum as the fourth output."""
    total = _sum(input, skip, bias)
    return functional.layer_norm(total, total.shape[-1:], gamma, beta, epsilon), None, None, total


@operator("SkipSimplifiedLayerNormalization", 1, CONTRIB)
def skip_simplified_layer_normalization(
    input: Tensor, skip: Tensor, gamma: Tensor, bias: Tensor | None = None, *, epsilon: float = 1e-5
) -> tuple[Tensor | None, ...]:
    """RMSNormalization(input + skip + bias), and that sum as the fourth output."""
    total = _sum(input, skip, bias)
    return functional.rms_norm(total, total.shape[-1:], gamma, epsilon), None, None, total


def _sum(input: Tensor, skip: Tensor, bias: Tensor | None) -> Tensor:
    total = input + skip
    return total if bias is None else total + bias


@operator("EmbedLayerNormalization", 1, CONTRIB)
def embed_layer_normalization(
    input_ids: Tensor,
    segment_ids: Tensor | None,
    word_embedding: Tensor,
    position_embedding: Tensor,
    segment_embedding: Tensor | None,
    gamma: Tensor,
    beta: Tensor,
    mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    *,
    epsilon: float = 1e-12,
    mask_index_type: int = 0,
) -> tuple[Tensor, ...]:
    """The sum of embeddings, normalized; how many tokens the mask keeps; and the sum."""
    del mask_index_type  # which only says whether the second output is there
    total = functional.embedding(input_ids, word_embedding)
    if position_ids is None:
        total = total + position_embedding[: input_ids.shape[1]]
    else:
        total = total + functional.embedding(position_ids, position_embedding)
    if segment_ids is not None and segment_embedding is not None:
        total = total + functional.embedding(segment_ids, segment_embedding)
    kept = input_ids.new_zeros(len(input_ids)) if mask is None else mask.sum(1)
    return functional.layer_norm(total, total.shape[-1:], gamma, beta, epsilon), kept.to(torch.int32), total


@operator("GroupNorm", 1, CONTRIB)
def group_norm(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    *,
    activation: int,
    channels_last: int = 1,
    epsilon: float = 1e-5,
    groups: int,
) -> Tensor:
    """GroupNormalization, with Swish after it where `activation` is 1."""
    inner = x.movedim(-1, 1) if channels_last else x
    made = torch.group_norm(inner, groups, gamma.to(x.dtype), beta.to(x.dtype), epsilon)
    made = functional.silu(made) if activation else made
    return made.movedim(1, -1) if channels_last else made


@operator("SkipGroupNorm", 1, CONTRIB)
def skip_group_norm(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    skip: Tensor,
    bias: Tensor | None = None,
    *,
    activation: int,
    channels_last: int = 1,
    epsilon: float = 1e-5,
    groups: int,
) -> tuple[Tensor, Tensor]:
    """GroupNorm(X + skip + bias), and that sum."""
    places = (1,) * (x.ndim - 2)
    sizes = (*places, -1) if channels_last else (-1, *places)
    skip = skip.reshape(len(skip), *sizes) if skip.ndim == 2 else skip
    total = _sum(x, skip, None if bias is None else bias.reshape(sizes))
    made = group_norm(
        total, gamma, beta, activation=activation, channels_last=channels_last, epsilon=epsilon, groups=groups
    )
    return made, total


@operator("BiasAdd", 1, CONTRIB)
def bias_add(x: Tensor, bias: Tensor, skip: Tensor) -> Tensor:
    """X + bias + skip."""
    return x + bias + skip


@operator("BiasSplitGelu", 1, CONTRIB)
def bias_split_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """The left half of X + bias times Gelu of the right one."""
    left, right = (x + bias).chunk(2, -1)
    return left * functional.gelu(right)
