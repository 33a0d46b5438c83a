"""Operators that draw numbers, and Dropout."""

from __future__ import annotations

import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional

from graphopt.runtimes._torch.table import Host, operator
from graphopt.runtimes._torch.values import TYPES


def _generator(seed: float | None, device: torch.device | None = None) -> torch.Generator | None:
    return None if seed is None else torch.Generator(device or "cpu").manual_seed(int(seed))


def _type(dtype: int | None, like: Tensor | None = None) -> torch.dtype:
    if dtype:
        return TYPES[ir.DataType(dtype)]
    return torch.float32 if like is None else like.dtype


@operator("Dropout", 12)
def dropout(
    data: Tensor,
    ratio: Host | None = None,
    training_mode: Host | None = None,
    *,
    seed: int | None = None,
    outputs_: int,
) -> tuple[Tensor, ...]:
    """The input, and in training some of it zero and the rest scaled up; and what was kept.

    A seed is mixed with torch's own, which a training sets anew for each step: what is dropped must change.
    """
    share = 0.5 if ratio is None else float(ratio.item())
    if training_mode is None or not training_mode.item() or share == 0:
        return (data,) if outputs_ == 1 else (data, torch.ones_like(data, dtype=torch.bool))
    if seed is None:
        return torch.native_dropout(data, share, True)[:outputs_]  # type: ignore[no-any-return]
    generator = _generator((seed + torch.initial_seed()) % 2**63, data.device)
    kept = torch.rand(data.shape, generator=generator, device=data.device) >= share
    return data * kept / (1 - share), kept


@operator("Dropout", 10)
def dropout_10(data: Tensor, *, ratio: float = 0.5, outputs_: int) -> tuple[Tensor, ...]:
    """The input, and that all was kept."""
    del ratio
    return (data,) if outputs_ == 1 else (data, torch.ones_like(data, dtype=torch.bool))


@operator("Dropout")
def dropout_7(data: Tensor, *, ratio: float = 0.5, outputs_: int) -> tuple[Tensor, ...]:
    """The input, and that all was kept, in ones of its type."""
    del ratio
    return (data,) if outputs_ == 1 else (data, torch.ones_like(data))


@operator("Bernoulli", 15)
def bernoulli(input: Tensor, *, dtype: int | None = None, seed: float | None = None) -> Tensor:
    """Ones with the probability that the input says."""
    drawn = torch.rand(input.shape, generator=_generator(seed, input.device), device=input.device)
    return (drawn < input).to(_type(dtype, input))


@operator("RandomNormal")
def random_normal(
    *, shape: tuple[int, ...], dtype: int = 1, mean: float = 0.0, scale: float = 1.0, seed: float | None = None
) -> Tensor:
    """Normally distributed numbers."""
    return torch.randn(shape, generator=_generator(seed), dtype=_type(dtype)) * scale + mean


@operator("RandomNormalLike")
def random_normal_like(
    input: Tensor, *, dtype: int | None = None, mean: float = 0.0, scale: float = 1.0, seed: float | None = None
) -> Tensor:
    """Normally distributed numbers in the shape of the input."""
    device = input.device
    drawn = torch.randn(input.shape, generator=_generator(seed, device), dtype=_type(dtype, input), device=device)
    return drawn * scale + mean


@operator("RandomUniform")
def random_uniform(
    *, shape: tuple[int, ...], dtype: int = 1, high: float = 1.0, low: float = 0.0, seed: float | None = None
) -> Tensor:
    """Uniformly distributed numbers."""
    return torch.rand(shape, generator=_generator(seed), dtype=_type(dtype)) * (high - low) + low


@operator("RandomUniformLike")
def random_uniform_like(
    input: Tensor, *, dtype: int | None = None, high: float = 1.0, low: float = 0.0, seed: float | None = None
) -> Tensor:
    """Uniformly distributed numbers in the shape of the input."""
    device = input.device
    drawn = torch.rand(input.shape, generator=_generator(seed, device), dtype=_type(dtype, input), device=device)
    return drawn * (high - low) + low


@operator("Multinomial", 7)
def multinomial(input: Tensor, *, dtype: int = 6, sample_size: int = 1, seed: float | None = None) -> Tensor:
    """Classes drawn with the probabilities of which the input holds the logarithms."""
    share = functional.softmax(input, dim=1)
    drawn = torch.multinomial(share, sample_size, replacement=True, generator=_generator(seed, input.device))
    return drawn.to(_type(dtype))
