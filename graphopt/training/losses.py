"""What training makes small: the task's loss, the difference from a teacher, and penalties on weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional

from graphopt.data import resolve
from graphopt.errors import UsageError, UserError, did_you_mean

Loss = Callable[[Mapping[str, Tensor], Tensor], Tensor]
"""(outputs by name, targets [batch, ...]) -> mean over the batch, a scalar."""


def task_loss(name: str, targets: Tensor, label_smoothing: float) -> Loss:
    """Return the task's loss.

    Args:
        name: as in `Settings.loss`; "auto" takes cross-entropy for whole-number targets and mse for others.
        targets: of a batch.
        label_smoothing: see `Settings`.

    Raises:
        UsageError: there is no such loss.
        UserError: the function cannot be imported.
    """
    if ":" in name:
        return resolve(name)
    if name == "auto":
        name = "mse" if targets.dtype.is_floating_point else "cross-entropy"
    if name not in _LOSSES:
        raise UsageError(f"unknown loss '{name}'{did_you_mean(name, _LOSSES)}, or package.module:function")
    compare = _LOSSES[name]
    if compare is cross_entropy:
        return lambda outputs, target: cross_entropy(_first(outputs), target, label_smoothing)
    return lambda outputs, target: compare(_first(outputs), target)


def cross_entropy(scores: Tensor, target: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of class scores [batch, classes, ...] with classes [batch, ...] or probabilities like the scores.

    Label smoothing: Szegedy et al., arXiv:1512.00567.

    Raises:
        UserError: the shapes do not fit.
    """
    classes = not target.dtype.is_floating_point
    wanted = scores.shape[:1] + scores.shape[2:] if classes else scores.shape
    if scores.ndim < 2 or target.shape != wanted:
        raise _misfit(scores, target)
    if classes and len(target) and not 0 <= int(target.min()) <= int(target.max()) < scores.shape[1]:
        raise UserError(
            f"labels lie in {int(target.min())} to {int(target.max())}, but the model has {scores.shape[1]} classes; "
            "number them from 0"
        )
    return functional.cross_entropy(scores, target.long() if classes else target, label_smoothing=label_smoothing)


def squared(output: Tensor, target: Tensor) -> Tensor:
    """Mean squared error."""
    return functional.mse_loss(output, _like(output, target))


def absolute(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error."""
    return functional.l1_loss(output, _like(output, target))


def angle(output: Tensor, target: Tensor) -> Tensor:
    """One minus the cosine, over the last axis."""
    return (1 - functional.cosine_similarity(output, _like(output, target), dim=-1)).mean()


def softened(scores: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """Divergence of softened class probabilities on axis 1 from the teacher's, times the square of the temperature.

    Hinton et al., "Distilling the Knowledge in a Neural Network", arXiv:1503.02531.
    """
    classes = scores.shape[1]
    mine = functional.log_softmax(scores.movedim(1, -1).reshape(-1, classes) / temperature, dim=1)
    others = functional.log_softmax(wanted.movedim(1, -1).reshape(-1, classes) / temperature, dim=1)
    return functional.kl_div(mine, others, reduction="batchmean", log_target=True) * temperature**2


def attention_difference(mine: Tensor, others: Tensor) -> Tensor:
    """Difference of attention maps: mean squares over channels, normalized over the places, [batch, channels, ...].

    Zagoruyko and Komodakis, "Paying More Attention to Attention", arXiv:1612.03928.

    Raises:
        UserError: there are no places, or the maps have different ones.
    """
    if min(mine.ndim, others.ndim) < 3:
        raise UserError(f"attention maps want [batch, channels, places ...], not {list(mine.shape)}; match features")
    one, other = (functional.normalize(t.square().mean(1).flatten(1), dim=1) for t in (mine, others))
    if one.shape != other.shape:
        raise UserError(f"attention maps of {list(mine.shape)} and {list(others.shape)} have different places")
    return (one - other).square().sum(1).mean()


def penalty(weights: Iterable[tuple[Tensor, int]], l1: float, group_sparsity: float) -> Tensor | float:
    """Sum of the penalties on weights, each with its axis of output channels: of single numbers, and of channels.

    Group sparsity: Wen et al., "Learning Structured Sparsity in Deep Neural Networks", arXiv:1608.03665.
    """
    total: Any = 0.0
    for weight, axis in weights:
        if l1:
            total = total + l1 * weight.abs().sum()
        if group_sparsity:
            channels = weight.movedim(axis, 0).flatten(1)
            total = total + group_sparsity * channels.shape[1] ** 0.5 * channels.norm(dim=1).sum()
    return total


def _first(outputs: Mapping[str, Tensor]) -> Tensor:
    return next(iter(outputs.values()))


def _like(output: Tensor, target: Tensor) -> Tensor:
    """Return a target in the shape of the output, if they differ by axes of size one only."""
    if [d for d in output.shape if d != 1] != [d for d in target.shape if d != 1]:
        raise _misfit(output, target)
    return target.reshape(output.shape).to(output.dtype)


def _misfit(output: Tensor, target: Tensor) -> UserError:
    return UserError(
        f"targets of shape {list(target.shape)} do not fit the model's first output of shape {list(output.shape)}; "
        "choose another --loss, such as package.module:function"
    )


_LOSSES: dict[str, Callable[..., Tensor]] = {
    "cross-entropy": cross_entropy,
    "mse": squared,
    "l1": absolute,
    "cosine": angle,
}
