"""How much memory a model takes to load and to run, measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil

from graphopt import runtime
from graphopt.errors import UserError
from graphopt.runtime import Arrays, ExecutionError
from graphopt.target import Target
from graphopt.target import find as find_target

_TIMEOUT = 600


class Unmeasurable(Exception):
    """The model's memory cannot be measured; the message says why."""


def peak_bytes(path: str | Path, target: Target, feeds: Sequence[Arrays]) -> list[int]:
    """Return the most memory in use up to the first run on each of several inputs, in bytes.

    What the interpreter, the libraries and the inputs take is not counted; memory on a device is not seen.

    Args:
        path: the model.
        target: where to run it.
        feeds: inputs, the smallest first: what one run took is never given back before the next.

    Raises:
        Unmeasurable: the inputs are not plain arrays, or the process failed.
    """
    if any(array.dtype.kind not in "biufc" for arrays in feeds for array in arrays.values()):
        raise Unmeasurable("its inputs are not plain numbers")
    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder) / f"{number}.npz") for number in range(len(feeds))]
        for file, arrays in zip(files, feeds, strict=True):
            np.savez(file, **arrays)  # type: ignore[arg-type]
        task = json.dumps({"path": str(path), "target": str(target), "feeds": files})
        try:
            done = subprocess.run(
                [sys.executable, "-m", __name__], input=task, capture_output=True, text=True, timeout=_TIMEOUT
            )
        except subprocess.TimeoutExpired:
            raise Unmeasurable(f"it ran for over {_TIMEOUT} s") from None
    if done.returncode:
        raise Unmeasurable((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
    return [int(peak) for peak in json.loads(done.stdout)]


def _peak() -> int:
    """Return the most memory that this process has had, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # on Linux, where getrusage would count what the parent had when it forked
        return int(status.read_text(encoding="utf-8").partition("VmHWM:")[2].split()[0]) * 1024
    facts = psutil.Process().memory_info()
    if hasattr(facts, "peak_wset"):  # on Windows
        return int(facts.peak_wset)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _measure(path: str, target: Target, files: Sequence[str]) -> list[int]:
    opened = runtime.find(target)
    opened.kernels(target)  # loads the runtime's own library
    feeds = [dict(np.load(file)) for file in files]
    before = psutil.Process().memory_info().rss
    session = opened.open_file(path, target)
    peaks = []
    for arrays in feeds:
        session.run(arrays)
        peaks.append(max(0, _peak() - before))
    return peaks


if __name__ == "__main__":
    order = json.load(sys.stdin)
    try:
        found = _measure(order["path"], find_target(order["target"]), order["feeds"])
    except (ExecutionError, UserError) as error:
        sys.exit(str(error))
    print(json.dumps(found))
