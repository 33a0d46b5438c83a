"""Check a model against a reference, output by output and on a task"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from graphopt.verbs import _options

if TYPE_CHECKING:
    from graphopt.outputs import OutputError
    from graphopt.validation import Validation

_MOST_CLASSES = 20


@click.command("validate")
@click.argument("model")
@click.option("--reference", metavar="REF", help="The model it should agree with.")
@_options.data
@click.option(
    "--metric",
    metavar="M",
    help="accuracy, top5, precision, recall, f1, mse, agreement, cosine or package.module:function.",
)
@click.option(
    "--max-drop", metavar="X", help="Gate: largest accepted drop of the metric, absolute (0.005) or relative (0.5%)."
)
@click.option("--min-sqnr", type=float, metavar="DB", help="Gate: smallest signal-to-noise ratio of every output, dB.")
@click.option(
    "--min-agreement",
    type=click.FloatRange(0, 1),
    metavar="X",
    help="Gate: smallest share of samples of the same class, such as 0.98.",
)
@_options.target
@click.option(
    "--reference-target",
    metavar="T",
    help="Where to run the reference, such as 'cpu{level=none}'; without --reference, the model itself.",
)
@click.option("--batch", metavar="N,...", help="Batch sizes to compare at; by default a few.")
@_options.axis
@_options.seed
@_options.as_json
def command(
    model: str, reference: str | None, batch: str | None, axes: tuple[str, ...], as_json: bool, **options: Any
) -> None:
    """Check that MODEL loads, runs, and computes what its reference computes.

    Exit code 3 when a gate is not met; without --max-drop, --min-sqnr and --min-agreement the gate is equality of
    all outputs.
    """
    from graphopt.console import print_json
    from graphopt.validation import validate

    sizes = _options.sizes(batch, "--batch") if batch is not None else ()
    done = validate(model, reference, batch=sizes, axes=_options.axis_sizes(axes), **options)
    if as_json:
        print_json(done.to_json())
    else:
        _print(done, options["metric"])
    sys.exit(0 if done.met else 3)


def _print(done: Validation, metric: str | None) -> None:
    from graphopt.console import console

    out = console()
    if done.outputs:
        out.print(_outputs(done.outputs))
    if done.metric:
        m = done.metric
        interval = f" (95 % interval {m.ci95[0]:+.4f} to {m.ci95[1]:+.4f})" if m.ci95 else ""
        chance = f", McNemar p = {m.p_value:.2g}" if m.p_value is not None else ""
        out.print(f"{m.name} {m.before:.4f} -> {m.after:.4f}, drop {m.drop:+.4f}{interval}{chance}", soft_wrap=True)
    elif done.score is not None:
        out.print(f"{metric} {done.score:.4f}")
    if done.classes:
        out.print(_classes(done))
    if done.padding:
        out.print(f"positions where '{done.padding}' is 0 are padding, and were not compared", soft_wrap=True)
    for warning in done.warnings:
        out.print(f"warning: {warning}", style="yellow", soft_wrap=True)
    for failure in done.failures:
        out.print(f"gate not met: {failure}", style="red", soft_wrap=True)
    if done.met:
        out.print("the model loads and runs" + (" and meets its gates" if done.reference else ""))


def _outputs(rows: list[OutputError]) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("output", "max error", "mean error", "SQNR dB", "cosine", "same class", "equal"):
        table.add_column(heading, justify="left" if heading == "output" else "right", overflow="fold")
    for o in rows:
        table.add_row(
            o.name,
            f"{o.max_error:.3g}",
            f"{o.mean_error:.3g}",
            f"{o.sqnr:.1f}",
            "" if o.cosine is None else f"{o.cosine:.6f}",
            "" if o.agreement is None else f"{o.agreement:.4f}",
            "no" if o.mismatch else "yes",
        )
    return table


def _classes(done: Validation) -> Any:
    """Return a table of classes, those that lost most F1 first where there are many."""
    from rich.table import Table

    before = {row.label: row for row in done.reference_classes}
    rows = done.classes
    title = None
    if len(rows) > _MOST_CLASSES:
        rows = sorted(rows, key=lambda row: row.f1 - before[row.label].f1 if before else row.f1)[:_MOST_CLASSES]
        title = f"the {_MOST_CLASSES} {'that lost most F1' if before else 'worst'} of {len(done.classes)} classes"
    table = Table(box=None, pad_edge=False, header_style="bold", title=title, title_justify="left")
    for heading in ("class", "samples", "precision", "recall", "F1"):
        table.add_column(heading, justify="right")

    def cell(now: float, then: float | None) -> str:
        return f"{now:.4f}" if then is None else f"{then:.4f} -> {now:.4f}"

    for row in rows:
        old = before.get(row.label)
        cells = [cell(getattr(row, k), getattr(old, k) if old else None) for k in ("precision", "recall", "f1")]
        table.add_row(str(row.label), str(row.support), *cells)
    if done.macro:
        old_macro = done.reference_macro or {}
        table.add_row("macro", "", *(cell(value, old_macro.get(k)) for k, value in done.macro.items()))
    return table
