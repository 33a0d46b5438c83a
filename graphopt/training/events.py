"""What a training tells while it runs, to whoever listens: a progress bar, a log file."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import os
from collections.abc import Callable, Iterator


@dataclasses.dataclass(frozen=True)
class Event:
    """How far a training is.

    Attributes:
        epoch: which one is running, from 1; 0 before the first.
        step, steps: of this epoch: done, and in all.
        loss: mean of the epoch so far, or None before the first step.
        learning_rate: of the last step.
        metric: of the evaluation data after this epoch, when it is known; else None.
        seconds: since this epoch began.
    """

    epoch: int
    step: int
    steps: int
    loss: float | None
    learning_rate: float
    metric: float | None = None
    seconds: float = 0.0

    @property
    def ended(self) -> bool:
        """Tell whether the epoch is over."""
        return self.step == self.steps


Listener = Callable[[Event], None]

_listener: contextvars.ContextVar[Listener | None] = contextvars.ContextVar("listener", default=None)


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Hear of every training that runs inside this context."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def tell(event: Event) -> None:
    """Tell the listener, if there is one."""
    listener = _listener.get()
    if listener:
        listener(event)


def is_first() -> bool:
    """Tell whether this process is the one that writes and prints, among those that `torchrun` started."""
    return int(os.environ.get("RANK", "0")) == 0
