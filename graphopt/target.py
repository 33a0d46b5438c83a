"""Where a model will run."""

from __future__ import annotations

import dataclasses

from graphopt.errors import UsageError, did_you_mean


@dataclasses.dataclass(frozen=True)
class Target:
    """A place to run a model, as data.

    Attributes:
        name: what people type after `--target`.
        runtime: the runtime that executes it (a file in `runtimes/`).
        provider: ONNX Runtime execution provider.
        threads: threads within one operator; 0 lets the runtime decide.
    """

    name: str
    runtime: str = "ort"
    provider: str = "CPUExecutionProvider"
    threads: int = 0


TARGETS = {
    target.name: target
    for target in (
        Target("cpu"),
        Target("cuda", provider="CUDAExecutionProvider"),
        Target("reference", runtime="reference"),
    )
}


def find(name: str, threads: int = 0) -> Target:
    """Return the target called `name`, using that many threads.

    Raises:
        UsageError: there is no such target.
    """
    if name not in TARGETS:
        raise UsageError(f"unknown target '{name}'{did_you_mean(name, TARGETS)}")
    return dataclasses.replace(TARGETS[name], threads=threads)
