"""The network in training, and its loss: the task's, and the difference from a teacher."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.nn import functional

from graphopt import io, runtime, tapping
from graphopt.errors import UserError, did_you_mean
from graphopt.runtime import ExecutionError, Session
from graphopt.target import find as find_target
from graphopt.training import losses
from graphopt.training.settings import Settings


class Teacher:
    """A network to learn from, which only runs.

    Attributes:
        session: of the network as it is.
        digest: the sha256 of its files.
    """

    def __init__(self, path: str, target: str, tensors: Sequence[str]) -> None:
        """Open it.

        Args:
            path: of the .onnx file.
            target: where it runs.
            tensors: inner values that are wanted besides its outputs.

        Raises:
            UserError: it does not load, or has no such values.
        """
        model = io.load(path)
        place = find_target(target)
        tapped, self._names = tap(model, tensors, path)
        self._own = {value.name for value in model.graph.outputs}
        self._path, self.digest = path, io.sha256(model.meta[io.FILES])
        try:
            self._session = runtime.open_session(tapped, place)
            self.session: Session = runtime.open_session(model, place)
        except ExecutionError as error:
            raise UserError(f"{path}: does not load: {error}") from None

    def run(self, feeds: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Return its outputs, and the inner values that were asked for, by name."""
        try:
            outputs = self._session.run(feeds)
        except ExecutionError as error:
            raise UserError(f"{self._path}: does not run on the training data: {error}") from None
        inner = {name: outputs[output] for name, output in self._names.items()}
        return {name: array for name, array in outputs.items() if name in self._own}, inner


def tap(model: ir.Model, tensors: Sequence[str], name: str) -> tuple[ir.Model, dict[str, str]]:
    """Return a model that also outputs inner values, and the output at which each of them is.

    Raises:
        UserError: it has no such value.
    """
    if not tensors:
        return model, {}
    known = {value.name: value for node in model.graph for value in node.outputs if value.name}
    known |= {value.name: value for value in model.graph.inputs if value.name}
    for tensor in tensors:
        if tensor not in known:
            raise UserError(
                f"{name}: has no tensor '{tensor}'{did_you_mean(tensor, known)}; graphopt inspect lists them"
            )
    tapped = tapping.tap(model, [known[tensor] for tensor in tensors])
    led = dict(zip(tensors, tapped.names, strict=True))
    return tapped.model, {tensor: output for tensor, output in led.items() if output is not None}


class Learner(nn.Module):  # type: ignore[misc]  # torch is optional, so mypy skips it
    """The network in training, with the projections that distillation needs.

    Attributes:
        network: the graph as a module.
        projections: one per matched tensor of another width than the teacher's, by its name.
    """

    def __init__(
        self,
        network: nn.Module,
        own: Collection[str],
        taps: Mapping[str, str],
        wanted: Mapping[str, int],
        widths: Mapping[str, int],
    ) -> None:
        """Join network and projections.

        Args:
            network: outputs by name; the matched tensors are among them.
            own: the outputs that the model has without them.
            taps: output at which each matched tensor is.
            wanted: width of the teacher's tensor, by the student's.
            widths: width of the student's.
        """
        super().__init__()
        self.network, self._own, self._taps = network, frozenset(own), dict(taps)
        self._order = list(wanted)
        self.projections = nn.ModuleList(
            nn.Identity() if widths[name] == wanted[name] else nn.Linear(widths[name], wanted[name], bias=False)
            for name in self._order
        )

    def forward(self, feeds: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """Return outputs, matched tensors as they are, and matched tensors as wide as the teacher's."""
        outputs = self.network(feeds)
        inner = {name: outputs[output] for name, output in self._taps.items()}
        projected = {
            name: _projected(inner[name], projection)
            for name, projection in zip(self._order, self.projections, strict=True)
        }
        return {n: x for n, x in outputs.items() if n in self._own}, inner, projected


class Objective:
    """The loss of a batch."""

    def __init__(self, settings: Settings, weights: Sequence[tuple[Tensor, int]]) -> None:
        """Prepare.

        Args:
            settings: how to train.
            weights: those that are penalized, each with its axis of output channels.
        """
        self._settings, self._weights = settings, weights
        self._features = [pair.split("=") for pair in settings.features]
        self._attention = [pair.split("=") for pair in settings.attention]

    def __call__(
        self,
        made: tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]],
        target: Tensor | None,
        taught: tuple[dict[str, Tensor], dict[str, Tensor]] | None,
    ) -> Tensor:
        """Return the loss.

        Args:
            made: what the learner returned.
            target: the task's targets, or None.
            taught: outputs and inner values of the teacher, or None.
        """
        settings = self._settings
        outputs, inner, projected = made
        share = 0.0 if taught is None else settings.alpha if target is not None and settings.loss != "none" else 1.0
        total: Tensor = torch.zeros(())
        if share < 1:
            assert target is not None
            loss = losses.task_loss(settings.loss, target, settings.label_smoothing)
            total = total + (1 - share) * loss(outputs, target)
        if taught is not None:
            wanted, theirs = taught
            if share:
                total = total + share * self._difference(outputs, wanted, target)
            for mine, other in self._features:
                total = total + settings.feature_weight * _gap(projected[mine], theirs[other])
            for mine, other in self._attention:
                total = total + settings.attention_weight * losses.attention_difference(inner[mine], theirs[other])
        return total + losses.penalty(self._weights, settings.l1, settings.group_sparsity)

    def _difference(self, outputs: Mapping[str, Tensor], wanted: Mapping[str, Tensor], target: Tensor | None) -> Tensor:
        settings = self._settings
        name = next(iter(outputs))
        pairs = _pairs(outputs, wanted)
        match = settings.match
        if match == "auto":
            classes = target is not None and not target.dtype.is_floating_point and outputs[name].ndim > 1
            match = "classes" if classes else "mse"
        if match == "classes":
            return losses.softened(*pairs[0], settings.temperature)
        compare = losses.squared if match == "mse" else losses.angle
        total = torch.zeros(())
        for one, other in pairs:
            total = total + compare(one, other)
        return total / len(pairs)


def _pairs(outputs: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Pair outputs with the teacher's: by name, or by place when names differ.

    Raises:
        UserError: the numbers or shapes of outputs differ.
    """
    if set(outputs) <= set(wanted):
        pairs = [(value, wanted[name]) for name, value in outputs.items()]
    elif len(outputs) == len(wanted):
        pairs = list(zip(outputs.values(), wanted.values(), strict=True))
    else:
        raise UserError(
            f"the teacher's outputs {', '.join(wanted)} do not fit the student's {', '.join(outputs)}; "
            "graphopt extract or remove-output leaves those that match"
        )
    pairs = [(one, other) for one, other in pairs if one.dtype.is_floating_point]
    for one, other in pairs:
        if one.shape != other.shape:
            raise UserError(
                f"the teacher's output of shape {list(other.shape)} does not fit the student's of {list(one.shape)}"
            )
    return pairs


def width(shape: Sequence[int]) -> int:
    """Return how many features a matched tensor has: channels of an image, else its last axis."""
    return int(shape[1] if len(shape) > 3 else shape[-1])


def _projected(x: Tensor, projection: nn.Module) -> Tensor:
    if isinstance(projection, nn.Identity):
        return x
    projected: Tensor = projection(x.movedim(1, -1)).movedim(-1, 1) if x.ndim > 3 else projection(x)
    return projected


def _gap(mine: Tensor, others: Tensor) -> Tensor:
    """Mean squared difference of features, images brought to the smaller of both sizes (FitNets, arXiv:1412.6550)."""
    if mine.ndim == 4 and mine.shape[2:] != others.shape[2:]:
        size = [min(a, b) for a, b in zip(mine.shape[2:], others.shape[2:], strict=True)]
        mine, others = (functional.adaptive_avg_pool2d(x, size) for x in (mine, others))
    return losses.squared(mine, others)
