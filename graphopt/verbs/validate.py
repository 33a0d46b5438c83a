"""Check a model against a reference, output by output and on a task"""

from __future__ import annotations

import sys
from typing import Any

import click


@click.command("validate")
@click.argument("model")
@click.option("--reference", metavar="REF", help="The model it should agree with.")
@click.option(
    "--data", metavar="D", help="What to run on: a .npz or package.module:factory; by default seeded random inputs."
)
@click.option(
    "--metric",
    metavar="M",
    help="accuracy, top5, precision, recall, f1, mse, agreement, cosine or package.module:function.",
)
@click.option(
    "--max-drop", metavar="X", help="Gate: largest accepted drop of the metric, absolute (0.005) or relative (0.5%)."
)
@click.option("--min-sqnr", type=float, metavar="DB", help="Gate: smallest signal-to-noise ratio of every output, dB.")
@click.option("--target", default="cpu", show_default=True, help="Where to run: cpu, cuda, reference.")
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of random inputs and resampling."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def command(model: str, reference: str | None, as_json: bool, **options: Any) -> None:
    """Check that MODEL loads, runs, and computes what its reference computes.

    Exit code 3 when a gate is not met; without --max-drop and --min-sqnr the gate is equality of all outputs.
    """
    from rich.table import Table

    from graphopt.console import console, print_json
    from graphopt.validation import validate

    done = validate(model, reference, **options)
    if as_json:
        print_json(done.to_json())
        sys.exit(0 if done.met else 3)
    out = console()
    if done.outputs:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in ("output", "max error", "mean error", "SQNR dB", "equal"):
            table.add_column(heading, justify="left" if heading == "output" else "right")
        for o in done.outputs:
            table.add_row(
                o.name, f"{o.max_error:.3g}", f"{o.mean_error:.3g}", f"{o.sqnr:.1f}", "no" if o.mismatch else "yes"
            )
        out.print(table)
    if done.metric:
        m = done.metric
        interval = f" (95 % interval {m.ci95[0]:+.4f} to {m.ci95[1]:+.4f})" if m.ci95 else ""
        out.print(f"{m.name} {m.before:.4f} -> {m.after:.4f}, drop {m.drop:+.4f}{interval}")
    elif done.score is not None:
        out.print(f"{options['metric']} {done.score:.4f}")
    for failure in done.failures:
        out.print(f"gate not met: {failure}", style="red")
    if done.met:
        out.print("the model loads and runs" + (" and meets its gates" if reference else ""))
    sys.exit(0 if done.met else 3)
