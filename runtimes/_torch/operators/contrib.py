"""ONNX Runtime's contrib operators: activations, products, convolution and normalization with something joined on.

https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from graphopt.runtimes._torch.operators import activation as activations
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
    return activations.swish(x, alpha=alpha)


def _activated(x: Tensor, name: str, alpha: float | None, beta: float | None) -> Tensor:
    """Apply an activation by its ONNX name.

    Raises:
        ValueError: it is none of those that are fused.
    """
    if name in ("", "Identity"):
        return x
    if name == "Relu":
        return torch.relu(x)
    if name == "Sigmoid":
        return torch.sigmoid(x)
    if name == "Tanh":
        return torch.tanh(x)
    if name == "LeakyRelu":
        return functional.leaky_relu(x, 0.01 if alpha is None else alpha)
    if name == "Clip":
        return x.clamp(alpha, beta)
    if name == "HardSigmoid":
        return activations.hard_sigmoid(x, alpha=0.2 if alpha is None else alpha, beta=0.5 if beta is None else beta)
    raise ValueError(f"activation '{name}' is not one that is joined to an operator")


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
    alpha, beta = (*activation_params, None, None)[:2]
    return _activated(made if z is None else made + z, activation, alpha, beta)


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
    del activation_gamma  # none of the activations has one
    made = gemm(a, b, c, alpha=alpha, beta=beta, transA=transA, transB=transB)
    return _activated(made, activation, activation_alpha, activation_beta)


@operator("FusedMatMul", 1, CONTRIB)
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
    one, other = _turned(a, transA, transBatchA), _turned(b, transB, transBatchB)
    made = torch.matmul(one, other)
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
    wide = total.to(torch.promote_types(total.dtype, torch.float32))
    scaled = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)).to(total.dtype)
    return scaled * gamma, None, None, total


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
    """The sum of embeddings, normalized; how many tokens count; and the sum."""
    places = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
    total = word_embedding[input_ids.long()]
    total = total + position_embedding[places if position_ids is None else position_ids.long()]
    if segment_ids is not None and segment_embedding is not None:
        total = total + segment_embedding[segment_ids.long()]
    counted = mask is not None and mask_index_type
    lengths = mask.sum(1).to(torch.int32) if mask is not None and counted else input_ids.new_zeros(len(input_ids)).int()
    return functional.layer_norm(total, total.shape[-1:], gamma, beta, epsilon), lengths, total
