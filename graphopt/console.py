"""What the verbs share in talking to people: results on stdout, progress on stderr."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from graphopt.pipeline import Step

_STYLE = {"kept": "green", "reverted": "red", "skipped": "dim"}
_MOST_ROWS = 6


def console() -> Console:
    """Return the console for results. Off a terminal it is wide, so that nothing is folded in a log."""
    return Console(width=None if sys.stdout.isatty() else 160, markup=False, highlight=False)


@contextlib.contextmanager
def progress() -> Iterator[Callable[[Step], None]]:
    """Yield a callback that shows on stderr, if that is a terminal, which pass has just ended."""
    with activity() as tell:
        yield lambda step: tell(f"{step.spec.partition('{')[0]}: {step.status}")


@contextlib.contextmanager
def activity() -> Iterator[Callable[[str], None]]:
    """Yield a callback that shows on stderr, if that is a terminal, what is going on."""
    status = Console(stderr=True)
    if not status.is_terminal:
        yield lambda text: None
        return
    with status.status("opening the model ...") as spinner:
        yield lambda text: spinner.update(Text(text))


def print_json(record: dict[str, Any]) -> None:
    """Print one JSON object; infinities and NaN, which JSON lacks, become null."""
    click.echo(json.dumps(plain(record), indent=2))


def print_steps(steps: Sequence[Step]) -> None:
    """Print a table of steps, and below it what passes left alone and why."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("pass", "result", "why"):
        table.add_column(heading, overflow="fold")
    for heading in ("nodes", "bytes", "seconds"):
        table.add_column(heading, justify="right", no_wrap=True)
    for step in steps:
        facts = ", ".join(
            f"{key.replace('_', ' ')} {value}"
            for key, value in step.report.items()
            if value and not isinstance(value, (dict, list, tuple))
        )
        why = f"{step.reason}: {facts}" if facts and step.status == "kept" else step.reason
        table.add_row(
            step.spec,
            Text(step.status, style=_STYLE[step.status]),
            why,
            _arrow(*step.nodes),
            _arrow(*step.bytes),
            f"{step.seconds:.1f}",
        )
    out = console()
    out.print(table)
    for step in steps:
        for node, reason in step.skipped[:_MOST_ROWS]:
            out.print(
                f"  {step.spec.partition('{')[0]} left {node} alone: {reason}",
                style="dim",
            )
        if len(step.skipped) > _MOST_ROWS:
            out.print(
                f"  {step.spec.partition('{')[0]} left {len(step.skipped) - _MOST_ROWS} more alone; --json lists them",
                style="dim",
            )


def size(count: float) -> str:
    """Return bytes in words people read, such as "1.09 MB" (decimal units)."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def _arrow(before: int, after: int) -> str:
    return f"{before:,}" if before == after else f"{before:,} -> {after:,}"


def plain(value: Any) -> Any:
    """Return a JSON-ready copy: infinities and NaN, which JSON lacks, become null; numpy scalars become plain."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.item() if hasattr(value, "item") else value
