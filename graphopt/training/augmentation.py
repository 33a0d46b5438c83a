"""Change images at random, so that a network does not learn them by heart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from graphopt.data import resolve
from graphopt.errors import UsageError, UserError

Inputs = dict[str, Tensor]
Augmentation = Callable[[Inputs, torch.Generator], Inputs]
"""(inputs by name, source of chance) -> inputs."""

_PADDING = 4


def augmentation(names: Sequence[str]) -> Augmentation:
    """Return what applies augmentations one after the other.

    Args:
        names: as in `Settings.augment`.

    Raises:
        UsageError: there is no such augmentation.
        UserError: the function cannot be imported.
    """
    chosen = [_find(name) for name in names]

    def apply(inputs: Inputs, generator: torch.Generator) -> Inputs:
        for one in chosen:
            inputs = one(inputs, generator)
        return inputs

    return apply


def flip(inputs: Inputs, generator: torch.Generator) -> Inputs:
    """Mirror every other image, left to right, the same in all inputs that are images."""
    chosen = torch.rand(_count(inputs), generator=generator) < 0.5
    return _images(inputs, lambda x: torch.where(chosen.view(-1, 1, 1, 1), x.flip(-1), x))


def crop(padding: int) -> Augmentation:
    """Shift every image by up to `padding` pixels each way; what comes in is zero."""

    def shift(inputs: Inputs, generator: torch.Generator) -> Inputs:
        places = torch.randint(2 * padding + 1, (2, _count(inputs)), generator=generator)

        def one(x: Tensor) -> Tensor:
            padded = functional.pad(x, (padding,) * 4)
            rows = places[0][:, None] + torch.arange(x.shape[2])
            columns = places[1][:, None] + torch.arange(x.shape[3])
            samples = torch.arange(len(x))[:, None, None]
            return padded.permute(0, 2, 3, 1)[samples, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)

        return _images(inputs, lambda x: one(x).contiguous())

    return shift


def _find(name: str) -> Augmentation:
    kind, colon, rest = name.partition(":")
    if kind == "flip" and not colon:
        return flip
    if kind == "crop" and (not colon or rest.isdigit()):
        return crop(int(rest) if colon else _PADDING)
    if not colon:
        raise UsageError(f"unknown augmentation '{name}'; choose flip, crop, crop:N or package.module:function")
    return resolve(name)


def _images(inputs: Inputs, change: Callable[[Tensor], Tensor]) -> Inputs:
    """Change the inputs that are images.

    Raises:
        UserError: none is.
    """
    images = [name for name, x in inputs.items() if x.ndim == 4]
    if not images:
        raise UserError("flip and crop want images [batch, channels, height, width]; no input has four axes")
    changed: dict[str, Any] = {name: change(inputs[name]) for name in images}
    return inputs | changed


def _count(inputs: Inputs) -> int:
    return len(next(iter(inputs.values())))
