"""How add-preprocessing is verified: the model as it was runs on images that numpy prepares."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from graphopt import compare, inference, runtime
from graphopt.passbase import Before, Case, Cases
from graphopt.passes.surgery import _pre_numpy
from graphopt.passes.surgery._pre_steps import Steps, model_of
from graphopt.runtime import ExecutionError, Session
from graphopt.target import Target

_AGREEMENT = 1e-5
"""Relative error up to which a runtime's images are those that numpy computes."""
_RESIZED_AGREEMENT = 1e-3
"""That error after resizing: a quarter of one of 256 levels. Runtimes count pixels in single precision."""


@dataclass(frozen=True)
class Plan:
    """What to put before a model.

    Attributes:
        steps: from images to the model.
        images: their shape.
        top: the value of a white pixel.
    """

    steps: Steps
    images: tuple[inference.Dim, ...]
    top: float


def of(name: str, plan: Plan, opset: int) -> Cases:
    """Return what tells the cases of a model in whose input `name` the plan was put."""

    def cases(before: Before) -> list[Case]:
        session = _steps_alone(plan, opset, before.target)
        found = []
        for index, feeds in enumerate(before.feeds):
            for size, shape in enumerate(_shapes(plan, feeds[name].shape)):
                images = _draw(np.random.default_rng([before.seed, index, size]), shape, plan)
                prepared = _prepare(images, plan.steps, session)
                found.append(Case({**feeds, name: images}, before.run({**feeds, name: prepared})))
        return found

    return cases


def _steps_alone(plan: Plan, opset: int, target: Target) -> Session | None:
    """Return a session of the steps without the model, if the runtime knows their operators."""
    try:
        return runtime.open_session(model_of(plan.steps, plan.images, opset), target)
    except ExecutionError:
        return None


def _prepare(images: np.ndarray, steps: Steps, session: Session | None) -> np.ndarray:
    """Return what the model takes: the runtime's own digits where they agree with numpy's.

    The model may turn the last digit into a step, where it rounds to 8 bits for example.
    """
    expected = _pre_numpy.preprocess(images, steps)
    try:
        actual = session.run({"x": images})["y"] if session else None
    except ExecutionError:
        return expected
    if actual is None or actual.shape != expected.shape or actual.dtype != expected.dtype:
        return expected
    if steps.taken.is_floating_point():
        rtol = _RESIZED_AGREEMENT if steps.resizing else _AGREEMENT
        return actual if compare.same(expected, actual, rtol) else expected
    return actual if np.abs(expected.astype(np.int64) - actual.astype(np.int64)).max(initial=0) <= 1 else expected


def _shapes(plan: Plan, prepared: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Yield shapes of images for a shape of what the model was run on; several if images may have any size."""
    steps = plan.steps
    perm = steps.perm or tuple(range(len(prepared)))
    variants = [list(prepared)]
    if steps.resizing:
        height, width = steps.resizing.size
        declared = [side for axis in steps.spatial if isinstance(side := plan.images[perm[axis]], int)]
        larger, smaller = [height + height // 2 + 1, 2 * width + 1], [height // 2 + 1, width - width // 4]
        variants = []
        for sides in [declared] if declared else [larger, smaller]:
            variants.append(list(prepared))
            for axis, side in zip(steps.spatial, sides, strict=True):
                variants[-1][axis] = side
    for variant in variants:
        yield tuple(variant[perm.index(place)] for place in range(len(perm)))


def _draw(rng: np.random.Generator, shape: tuple[int, ...], plan: Plan) -> np.ndarray:
    dtype = plan.steps.given
    if dtype.is_floating_point():
        return np.asarray(rng.random(shape) * plan.top).astype(dtype.numpy())
    return rng.integers(0, int(plan.top) + 1, shape).astype(dtype.numpy())
