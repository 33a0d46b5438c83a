"""The training loop: weights of a graph, by gradient, towards a better loss.

Every random choice is a function of the seed, the epoch and the step, so that a training that was interrupted goes on
to the very weights that it would have reached.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from graphopt import registry, runtime
from graphopt.data import Data, batch_size, open_data
from graphopt.errors import UserError
from graphopt.passbase import PreconditionError
from graphopt.runtime import ExecutionError
from graphopt.target import find as find_target
from graphopt.training import distributed, roles, schedule, state
from graphopt.training.augmentation import augmentation
from graphopt.training.evaluation import Evaluator, write_back
from graphopt.training.events import Event, tell
from graphopt.training.examples import Examples, examples
from graphopt.training.learner import Learner, Objective, Teacher, tap, width
from graphopt.training.settings import Settings

_MINUTE = 60.0
_MOMENTUM = 0.9
_CHECKED = 20
"""Steps between looks at whether the loss is still a number, which waits for a GPU."""
_EVIDENT = 0.5
"""Share of zeros from which on a quantized weight counts as pruned; below, they are small numbers that were rounded."""


@dataclasses.dataclass(frozen=True)
class Epoch:
    """What came of one epoch.

    Attributes:
        epoch: its number, from 1.
        loss: mean over its steps.
        learning_rate: in its last step.
        metric: of the evaluation data afterwards, or None without.
        seconds: how long it took, evaluation left out.
    """

    epoch: int
    loss: float
    learning_rate: float
    metric: float | None
    seconds: float


@dataclasses.dataclass(frozen=True)
class Fitted:
    """What came of a training.

    Attributes:
        history: one row per epoch.
        best: the epoch whose weights were taken; 0 when none was better than the weights before.
        before: the metric before training, or None without evaluation data.
        metric: its name, or None.
        trained: names of the initializers that were trained.
        refused: `(initializer, reason)` of those that could not be.
        resumed: whether it went on from a checkpoint.
    """

    history: list[Epoch]
    best: int
    before: float | None
    metric: str | None
    trained: list[str]
    refused: list[tuple[str, str]]
    resumed: bool

    @property
    def after(self) -> float | None:
        """The metric of the weights that were taken."""
        return self.history[self.best - 1].metric if self.best else self.before


@dataclasses.dataclass
class Progress:
    """How far a training is, as a checkpoint keeps it.

    Attributes:
        before: the metric before the first step.
        kept: state of the network after the best epoch.
        best: its number; 0 for the network before the first step.
        history: epochs that are over.
        step: steps done of the running epoch.
        loss: their sum.
    """

    before: float | None
    kept: dict[str, Tensor]
    best: int = 0
    history: list[Epoch] = dataclasses.field(default_factory=list)
    step: int = 0
    loss: float = 0.0


def fit(model: ir.Model, settings: Settings, *, data: Data | None = None) -> Fitted:
    """Train a model in place: the content of initializers changes, and nothing else.

    Args:
        model: what to train.
        settings: how.
        data: training data, in place of what the settings name.

    Raises:
        PreconditionError: there is nothing to train or to learn from, or torch cannot execute the model.
        UserError: data, teacher or settings do not fit the model, or the loss is no number any more.
    """
    return Training(model, settings, data).run()


class Training:
    """One training, from beginning to end."""

    def __init__(self, model: ir.Model, settings: Settings, data: Data | None = None) -> None:
        """Prepare everything; see `fit`."""
        self._model, self._settings = model, settings
        self._data = data or open_data(settings.data)
        ports = runtime.model_inputs(model)
        self._data.check(ports)
        text = next((port.name for port in ports if port.dtype == ir.DataType.STRING), None)
        if text:
            raise PreconditionError(f"input '{text}' is text, on which torch does not compute")
        labels = next(self._data.batches(1, 1), (None, None))[1]
        if labels is not None and labels.dtype.kind not in "bfui":
            raise UserError(f"{self._data.name}: labels are text; number the classes from 0")
        if labels is None and not settings.teacher:
            raise PreconditionError(
                f"{self._data.name}: has no labels; add them, or --teacher to learn from another network"
            )
        automatic = "cuda" if torch.cuda.is_available() else "cpu"
        self._device = registry.find("runtime", "torch")().device(
            automatic if settings.device == "auto" else settings.device
        )
        self._rank, self._world = distributed.join(self._device)
        size = batch_size(ports, settings.batch)
        if size % self._world:
            raise UserError(f"batch {size} does not divide by {self._world} processes; choose another --batch")
        self._examples: Examples = examples(self._data, size)
        students = [pair.partition("=")[0] for pair in (*settings.features, *settings.attention)]
        teachers = [pair.partition("=")[2] for pair in (*settings.features, *settings.attention)]
        if students and not settings.teacher:
            raise UserError("features and attention are matched with a teacher's; add --teacher")
        self._teacher = Teacher(settings.teacher, settings.teacher_target, teachers) if settings.teacher else None
        torch.manual_seed(settings.seed)
        network, taps = self._opened(students)
        learner = self._joined(network, taps).to(self._device)
        self._network, self._learner = network, learner
        if settings.compile:
            learner.network = network.compiled()
        self._run = nn.parallel.DistributedDataParallel(learner) if self._world > 1 else learner
        self._weights: dict[str, nn.Parameter] = network.weights()
        outputs = {name: roles.output_axis(model.graph.initializers[name]) for name in self._weights}
        penalized = [(w, outputs[name]) for name, w in self._weights.items() if w.ndim > 1]
        self._objective = Objective(settings, penalized)
        self._optimizer = _optimizer(settings, network, learner)
        self._rates = [group["lr"] for group in self._optimizer.param_groups]
        self._masks = _masks(model, self._weights) if settings.zeros == "keep" else {}
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=settings.precision == "float16")
        self._augment = augmentation(settings.augment)
        reference = self._teacher.session if self._teacher else None
        evaluation = open_data(settings.eval_data) if settings.eval_data else None
        self._evaluator = (
            Evaluator(model, find_target("cpu"), evaluation, settings.metric, reference)
            if evaluation and self._rank == 0
            else None
        )
        digests = [d.digest() for d in (self._data, evaluation) if d]
        digests += [self._teacher.digest] if self._teacher else []
        facts = {**dataclasses.asdict(settings), "checkpoint": "", "digests": digests, "model": state.digest(model)}
        self._mark = state.fingerprint(facts)

    def run(self) -> Fitted:
        """Train, and write the weights of the best epoch into the model."""
        settings, steps = self._settings, self._examples.steps
        progress, resumed = self._begin()
        history = progress.history
        for number in range(len(history) + 1, settings.epochs + 1):
            if settings.patience and len(history) - progress.best >= settings.patience:
                break
            loss, rate, seconds = self._epoch(number, progress)
            metric = self._score()
            if metric is None or self._improves(metric, progress):
                progress.best, progress.kept = number, self._state()
            history.append(Epoch(number, loss, rate, metric, seconds))
            progress.step, progress.loss = 0, 0.0
            tell(Event(number, steps, steps, loss, rate, metric, seconds))
            self._save(progress)
        self._network.load_state_dict(progress.kept)
        if progress.best:
            arrays, held = self._network.arrays(), self._model.graph.initializers
            changed = {n: a for n, a in arrays.items() if not np.array_equal(a, _held(held[n]))}
            write_back(self._model, changed)
        name = self._evaluator.metric.name if self._evaluator else None
        return Fitted(
            history, progress.best, progress.before, name, list(self._weights), self._network.refused, resumed
        )

    def _begin(self) -> tuple[Progress, bool]:
        """Return where to begin, and whether that is where another run of the same training ended."""
        path = self._settings.checkpoint
        saved = state.load(path, self._mark) if path else None
        if saved is None:
            before = self._score()
            tell(Event(0, 0, self._examples.steps, None, 0.0, before))
            return Progress(before, self._state()), False
        for part, content in zip(self._parts(), saved["parts"], strict=True):
            part.load_state_dict(content)
        history = [Epoch(*row) for row in saved["history"]]
        return Progress(saved["before"], saved["kept"], saved["best"], history, saved["step"], saved["loss"]), True

    def _score(self) -> float | None:
        """Return the metric with the weights as they are now; the first process computes it for all."""
        metric = self._evaluator.score(self._network.arrays()).value if self._evaluator else None
        return None if metric is None and self._world == 1 else distributed.agreed(metric, self._world)

    def _improves(self, metric: float, progress: Progress) -> bool:
        old = progress.history[progress.best - 1].metric if progress.best else progress.before
        better = old is None or self._evaluator is None or self._evaluator.is_better(metric, old)
        return bool(distributed.agreed(better, self._world))

    def _state(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self._network.state_dict().items()}

    def _parts(self) -> tuple[Any, ...]:
        """Return what has a state besides the progress."""
        return self._learner, self._optimizer, self._scaler

    def _save(self, progress: Progress) -> None:
        if self._settings.checkpoint and not self._rank:
            content = {**vars(progress), "fingerprint": self._mark, "parts": [p.state_dict() for p in self._parts()]}
            content["history"] = [list(dataclasses.astuple(row)) for row in progress.history]
            state.save(self._settings.checkpoint, content)

    def _opened(self, tensors: Sequence[str]) -> tuple[Any, dict[str, str]]:
        """Return the graph as a module, and the outputs at which tensors are that are matched with the teacher's."""
        settings, model = self._settings, self._model
        names = roles.trainable(model, settings.train, settings.freeze)
        if not names:
            raise PreconditionError(
                "the model has no initializers that are weights; simplify makes initializers of Constant nodes, "
                "and --train names what else to train"
            )
        tapped, taps = tap(model, list(dict.fromkeys(tensors)), "the model")
        found = registry.find("runtime", "torch")()
        try:
            network = found.module(tapped, names, learn_scales=settings.scales == "learned")
        except ExecutionError as error:
            raise PreconditionError(str(error)) from None
        network.mode.batchnorm = settings.batchnorm
        if not network.weights():
            raise PreconditionError("; ".join(f"{name} {why}" for name, why in network.refused))
        return network, taps

    def _joined(self, network: nn.Module, taps: Mapping[str, str]) -> Learner:
        """Join the network with the projections that matched features of another width need."""
        pairs = [pair.split("=") for pair in self._settings.features]
        own = [value.name or "" for value in self._model.graph.outputs]
        if not pairs:
            return Learner(network, own, taps, {}, {})
        assert self._teacher is not None
        feeds, _ = next(self._examples.epoch(self._settings.seed, 0))
        _, theirs = self._teacher.run(feeds)
        with torch.no_grad():
            mine = network({name: torch.from_numpy(np.array(array)) for name, array in feeds.items()})
        wanted = {student: width(theirs[teacher].shape) for student, teacher in pairs}
        widths = {student: width(mine[taps[student]].shape) for student, _ in pairs}
        return Learner(network, own, taps, wanted, widths)

    def _epoch(self, number: int, progress: Progress) -> tuple[float, float, float]:
        """Go through what is left of an epoch; return mean loss, last learning rate, and seconds."""
        settings, steps = self._settings, self._examples.steps
        total = torch.full((), progress.loss, device=self._device)
        begun = saved = time.perf_counter()
        rate = 0.0
        for step, (feeds, target) in enumerate(
            self._examples.epoch(settings.seed, number, progress.step), progress.step
        ):
            share = ((number - 1) * steps + step) / (settings.epochs * steps)
            factor = schedule.factor(settings.schedule, share, settings.warmup)
            rate = settings.learning_rate * factor
            total += self._step(number, step, feeds, target, factor)
            done = step + 1
            if done % _CHECKED and done < steps:
                continue
            loss = float(total) / done
            if not np.isfinite(loss):
                raise UserError(
                    f"the loss is {loss} at epoch {number}, step {done}; choose a smaller --learning-rate, or "
                    "look for numbers that are not finite in the data"
                )
            if done < steps:
                tell(Event(number, done, steps, loss, rate, None, time.perf_counter() - begun))
                if time.perf_counter() - saved > _MINUTE:
                    progress.step, progress.loss, saved = done, float(total), time.perf_counter()
                    self._save(progress)
        return float(total) / steps, rate, time.perf_counter() - begun

    def _step(
        self, number: int, step: int, feeds: Mapping[str, np.ndarray], target: np.ndarray | None, factor: float
    ) -> Tensor:
        """Take one step downhill; return the loss."""
        settings = self._settings
        generator = torch.Generator().manual_seed(_mixed(settings.seed, number, step))
        torch.manual_seed(_mixed(settings.seed, number, step, self._rank + 1))
        inputs = self._augment({name: torch.from_numpy(np.array(a)) for name, a in feeds.items()}, generator)
        part = slice(self._rank, None, self._world)
        inputs = {name: x[part] for name, x in inputs.items()}
        targets = None if target is None else torch.from_numpy(np.array(target[part])).to(self._device)
        taught = None
        if self._teacher:
            outputs, inner = self._teacher.run({name: x.numpy() for name, x in inputs.items()})
            taught = self._placed(outputs), self._placed(inner)
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        try:
            with self._arithmetic():
                made = self._run({name: x.to(self._device) for name, x in inputs.items()})
        except ExecutionError as error:
            raise UserError(f"{self._data.name}: the model does not run on this data: {error}") from None
        outputs, inner, projected = (_widened(tensors) for tensors in made)
        loss = self._objective((outputs, inner, projected), targets, taught)
        self._optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()
        if settings.clip:
            self._scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self._learner.parameters(), settings.clip)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        with torch.no_grad():
            for name, mask in self._masks.items():
                self._weights[name].mul_(mask)
        return loss.detach()

    def _placed(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        return {name: torch.from_numpy(np.array(array)).to(self._device) for name, array in arrays.items()}

    def _arithmetic(self) -> contextlib.AbstractContextManager[Any]:
        if self._settings.precision == "float32":
            return contextlib.nullcontext()
        made: contextlib.AbstractContextManager[Any] = torch.autocast(
            self._device.type, getattr(torch, self._settings.precision)
        )
        return made


def _widened(tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return what are tensors, those of half precision as float32."""
    half = (torch.bfloat16, torch.float16)
    found = {name: x for name, x in tensors.items() if isinstance(x, Tensor)}
    return {name: x.float() if x.dtype in half else x for name, x in found.items()}


def _optimizer(settings: Settings, network: Any, learner: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer; only weights of two axes or more decay, and learned scales move by shares of themselves."""
    weights: dict[str, nn.Parameter] = network.weights()
    scales = [weights[name] for name in network.scales]
    others = [w for name, w in weights.items() if name not in network.scales]
    known = {id(w) for w in weights.values()}
    others += [p for p in learner.parameters() if id(p) not in known]
    groups: list[dict[str, Any]] = [
        {"params": [w for w in others if w.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [w for w in others if w.ndim < 2], "weight_decay": 0.0},
    ]
    rate = settings.learning_rate
    if settings.optimizer == "sgd":
        groups.append({"params": scales, "weight_decay": 0.0})
        return torch.optim.SGD(groups, rate, momentum=_MOMENTUM, nesterov=True)
    groups += [{"params": [s], "weight_decay": 0.0, "lr": rate * float(s.detach().abs().mean())} for s in scales]
    return torch.optim.AdamW(groups, rate)


def _masks(model: ir.Model, weights: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return where pruned weights are not zero: tensors of two axes or more that hold some zeros, and other numbers."""
    masks = {}
    for name, weight in weights.items():
        kept = weight.detach() != 0
        share = 1 - float(kept.float().mean())
        type_ = model.graph.initializers[name].dtype
        rounded = type_ is not None and not (type_.is_floating_point() and type_.bitwidth > 8)
        if weight.ndim > 1 and (_EVIDENT if rounded else 0) < share < 1:
            masks[name] = kept
    return masks


def _mixed(*numbers: int) -> int:
    """Return a seed made of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def _held(value: ir.Value) -> np.ndarray:
    assert value.const_value is not None
    return value.const_value.numpy()
