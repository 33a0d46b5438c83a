"""Try things that may end the process, such as importing a damaged library, in a process that may end.

Python cannot catch what a native library does to it: a truncated file is a bus error, an instruction that the
processor lacks an illegal instruction. The child tries one step after the other and reports each as it is done, so
that whoever waits for it knows in which step it died. It ends at the first step that fails, and the rest is tried
in a fresh one: a library may behave differently after another one failed halfway through its import.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from graphopt.health.finding import one_line

_SECONDS = 180.0
"""For a cold disk and for the start of a GPU."""

_CHILD = (
    "import json, sys; task = json.load(sys.stdin); sys.path[:] = task['path']; "
    "from graphopt.health import trial; trial.perform(task['steps'])"
)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of one step.

    Attributes:
        step: `import MODULE` or `runtime NAME`.
        value: what the runtime found, one dict per `Finding`; None for an import or a failure.
        error: why it failed, in one line; None when it did not.
        died: whether it took the process with it.
    """

    step: str
    value: Any = None
    error: str | None = None
    died: bool = False


def attempt(steps: Sequence[str], seconds: float = _SECONDS) -> list[Outcome]:
    """Try steps in child processes with this process's search path, and return what came of each.

    Args:
        steps: `import MODULE` imports a module, `runtime NAME` asks a runtime of the registry for its diagnosis.
        seconds: how long one child may take; then it is ended, and the step it was in has failed.
    """
    outcomes: list[Outcome] = []
    while len(outcomes) < len(steps):
        rest = steps[len(outcomes) :]
        reports, end = _child(rest, seconds)
        outcomes += reports
        if len(reports) < len(rest) and not (reports and reports[-1].error):
            outcomes.append(Outcome(rest[len(reports)], error=end, died=True))
    return outcomes


def perform(steps: Sequence[str]) -> None:
    """Try steps in this process, the child: report each in one line of JSON on stdout, and end at the first failure."""
    with os.fdopen(os.dup(1), "w") as reports:
        os.dup2(2, 1)  # libraries print where they like; the reports stay among themselves
        for outcome in map(_try, steps):
            print(json.dumps(dataclasses.asdict(outcome)), file=reports, flush=True)
            if outcome.error:
                break


def _child(steps: Sequence[str], seconds: float) -> tuple[list[Outcome], str]:
    """Run one child and return its reports, and how it ended in words."""
    task = json.dumps({"path": sys.path, "steps": list(steps)})
    command = [sys.executable, "-P", "-c", _CHILD]
    try:
        done = subprocess.run(command, input=task, capture_output=True, text=True, errors="replace", timeout=seconds)
        out, end = done.stdout, _end(done.returncode, done.stderr)
    except subprocess.TimeoutExpired as late:
        partial = late.stdout or ""  # bytes on POSIX systems, text on Windows
        out = partial.decode(errors="replace") if isinstance(partial, bytes) else partial
        end = f"was not done after {seconds:g} seconds"
    except OSError as error:
        out, end = "", f"no process could be started: {one_line(error)}"
    return list(_reports(out)), end


def _reports(text: str) -> Iterator[Outcome]:
    for line in text.splitlines():
        yield Outcome(**json.loads(line))


def _end(code: int, stderr: str) -> str:
    """Describe how a child ended: the signal (of a POSIX system) or the code, and its last words."""
    if code < 0:
        how = f"the process was ended by {signal.Signals(-code).name}"
    else:
        how = f"the process ended with code {code if code < 256 else hex(code)}"
    lines = stderr.strip().splitlines()
    return one_line(f"{how}; last words: {lines[-1]}" if lines else how)


def _try(step: str) -> Outcome:
    verb, _, name = step.partition(" ")
    try:
        return Outcome(step, value=_VERBS[verb](name))
    except (Exception, SystemExit) as error:
        return Outcome(step, error=one_line(f"{type(error).__name__}: {error}"))


def _import(name: str) -> None:
    module = importlib.import_module(name)
    if not getattr(module, "__file__", None):
        raise ImportError(f"of {name} only a folder without __init__.py is left: {', '.join(module.__path__)}")


def _runtime(name: str) -> list[dict[str, Any]]:
    from graphopt import registry

    return [dataclasses.asdict(finding) for finding in registry.find("runtime", name)().diagnose()]


_VERBS: dict[str, Callable[[str], Any]] = {"import": _import, "runtime": _runtime}
