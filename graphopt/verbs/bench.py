"""Time models against each other, interleaved in one process"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from graphopt.verbs import _options

if TYPE_CHECKING:
    from graphopt.benchmarking import Row


@click.command("bench")
@click.argument("models", nargs=-1, required=True)
@click.option(
    "--target",
    "targets",
    multiple=True,
    default=["cpu"],
    show_default="cpu",
    metavar="T",
    help=f"{_options.TARGET_HELP} Give it twice to compare targets.",
)
@_options.threads
@_options.batch
@_options.axis
@click.option("--clients", default="1", show_default=True, metavar="N,...", help="Threads that run at the same time.")
@_options.data
@click.option("--runs", type=click.IntRange(2), help="Rounds per size; by default as many as it takes.")
@click.option(
    "--seconds", type=click.FloatRange(0, min_open=True), default=3.0, show_default=True, help="Longest time per size."
)
@click.option(
    "--width",
    type=click.FloatRange(0),
    default=2.0,
    show_default=True,
    metavar="PERCENT",
    help="Stop before that when the speed-up's interval is this narrow.",
)
@click.option(
    "--fail-if-slower", metavar="PERCENT", help="Gate: more time than the first model, such as 5%; exit code 3."
)
@click.option(
    "--memory/--no-memory", default=True, show_default=True, help="Measure peak memory, in processes of their own."
)
@click.option("--plot", metavar="FILE", help="Draw the result as .png or .svg (needs the extra 'report').")
@_options.seed
@_options.as_json
def command(
    models: tuple[str, ...],
    targets: tuple[str, ...],
    threads: int,
    batch: str,
    axes: tuple[str, ...],
    clients: str,
    width: float,
    fail_if_slower: str | None,
    plot: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Time MODELS on the same inputs; speed-ups are against the first, with 95 % intervals.

    Exit code 3 when --fail-if-slower is not met.
    """
    from graphopt.benchmarking import benchmark
    from graphopt.console import console, print_json
    from graphopt.report import plots
    from graphopt.target import find

    sizes, many = _options.sizes(batch, "--batch"), _options.sizes(clients, "--clients")
    chosen = _options.axis_sizes(axes)
    limit = _percent(fail_if_slower) if fail_if_slower is not None else None
    if plot is not None:
        plots.check(plot)
    places = [find(target, threads) for target in targets]
    done = benchmark(
        models,
        target=places,
        batch=sizes,
        axes=chosen,
        clients=many,
        width=width / 100,
        fail_if_slower=limit,
        **options,
    )
    if plot is not None:
        plots.benchmark(done, plot)
    if as_json:
        print_json({"target": targets[0], **done.to_json()})
        sys.exit(0 if done.met else 3)
    out = console()
    out.print(_table(done.rows))
    for warning in done.warnings:
        out.print(f"warning: {warning}", style="yellow", soft_wrap=True)
    for failure in done.failures:
        out.print(f"gate not met: {failure}", style="red", soft_wrap=True)
    sys.exit(0 if done.met else 3)


def _percent(text: str) -> float:
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = -1.0
    if not value >= 0:
        raise click.BadParameter(f"'{text}' is not a percentage such as 5%", param_hint="--fail-if-slower")
    return value


def _table(rows: list[Row]) -> Any:
    """Return a table with the columns in which rows differ, or that always tell something."""
    from rich.table import Table

    from graphopt.console import size

    columns: dict[str, list[str]] = {
        "model": [row.model for row in rows],
        "target": [row.target for row in rows],
        "batch": [str(row.batch) for row in rows],
        **{name: [str(row.axes[name]) for row in rows] for name in rows[0].axes},
        "clients": [str(row.clients) for row in rows],
        "median ms": [f"{row.median_ms:.3f}" for row in rows],
        "p90": [f"{row.p90_ms:.3f}" for row in rows],
        "p99": [f"{row.p99_ms:.3f}" for row in rows],
        "samples/s": [f"{row.per_second:.0f}" for row in rows],
        "load ms": [f"{row.load_ms:.1f}" for row in rows],
        "peak memory": ["" if row.peak_bytes is None else size(row.peak_bytes) for row in rows],
        "speed": [f"{row.speedup:.2f}x" for row in rows],
        "95 % interval": [f"{row.ci95[0]:.2f} to {row.ci95[1]:.2f}" for row in rows],
        "verdict": [row.verdict for row in rows],
    }
    table = Table(box=None, pad_edge=False, header_style="bold")
    hidden = {name for name in ("target", "clients") if len(set(columns[name])) == 1}
    if not any(columns["peak memory"]):
        hidden.add("peak memory")
    shown = [name for name in columns if name not in hidden]
    for name in shown:
        table.add_column(name, justify="left" if name in ("model", "target", "verdict") else "right", overflow="fold")
    for cells in zip(*(columns[name] for name in shown), strict=True):
        table.add_row(*cells)
    return table
