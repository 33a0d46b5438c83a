"""Rank layers by the accuracy that quantizing them costs"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

from graphopt.verbs import _options

if TYPE_CHECKING:
    from collections.abc import Callable

    from graphopt.sensitivity import Sensitivity
    from graphopt.sensitivity.layers import Layer

_ORDERS = ("sqnr", "share", "graph", "bytes", "gain")


@click.command("sensitivity")
@click.argument("model")
@click.option(
    "--data",
    required=True,
    metavar="D",
    help="Representative inputs: a .npz with one array per input, or package.module:factory.",
)
@click.option(
    "--samples", type=click.IntRange(1), default=64, show_default=True, metavar="N", help="Samples to measure with."
)
@click.option("--eval-data", metavar="D", help="What to compute the metric on; by default the data.")
@click.option(
    "--metric",
    metavar="M",
    help="accuracy, top5, precision, recall, f1, mse, agreement, cosine or package.module:function, for every layer.",
)
@click.option(
    "--scheme",
    default="quantize-static",
    show_default=True,
    metavar="PASS",
    help="How to quantize, such as 'quantize-static{per_channel=false}'.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(0),
    default=1.0,
    show_default=True,
    metavar="S",
    help="How long to record each model for the times of layers; 0 for no times.",
)
@click.option(
    "--sort", type=click.Choice(_ORDERS), default="sqnr", show_default=True, help="What to order the table by."
)
@click.option(
    "--top", type=click.IntRange(1), default=25, show_default=True, metavar="N", help="Rows of the table at most."
)
@click.option("--plot", metavar="FILE", help="Draw the result as .png or .svg (needs the extra 'report').")
@_options.target
@_options.as_json
def command(model: str, data: str, sort: str, top: int, plot: str | None, as_json: bool, **options: Any) -> None:
    """Measure what quantizing one layer at a time does to the outputs of MODEL, a float model.

    Ratios are signal to noise, of the output that suffers most, in dB: the lower, the more fragile. What all layers
    cost together is the sum of what each costs alone; how closely that comes to the model when all of it is
    quantized is printed below the table. To be rid of what rounding a result costs, those that read it must compute in
    float, too: `graphopt mix-precision` sees to that.
    """
    from graphopt.console import activity, console, print_json
    from graphopt.report import plots
    from graphopt.sensitivity import analyse

    if plot is not None:
        plots.check(plot)
    with activity() as tell:
        done = analyse(model, data, progress=tell, **options)
    if plot is not None:
        plots.sensitivity(done, plot)
    if as_json:
        print_json(done.to_json())
        return
    out = console()
    rows = done.layers if sort == "graph" else sorted(done.layers, key=_KEYS[sort])
    out.print(_table(done, rows[:top]))
    if len(rows) > top:
        out.print(f"{len(rows) - top} more; --top or --json show them", style="dim")
    out.print()
    for output in done.outputs:
        out.print(
            f"{output.name}: {_decibels(output.measured)} dB with everything quantized, "
            f"{_decibels(output.predicted)} dB by the sum over layers",
            soft_wrap=True,
        )
    if done.metric is not None:
        found = done.metric
        out.print(f"{found.name} {found.before:.4f} -> {found.after:.4f} with everything quantized", soft_wrap=True)
    if done.skipped:
        out.print(f"{len(done.skipped)} nodes stay in float; --json says why", style="dim")
    if done.unmatched:
        out.print(f"{len(done.unmatched)} rounded values belong to no layer; --json lists them", style="dim")


def _gain(layer: Layer) -> float:
    if layer.float_ms is None or layer.quantized_ms is None:
        return 0.0
    return layer.float_ms - layer.quantized_ms


_KEYS: dict[str, Callable[[Layer], float]] = {
    "sqnr": lambda layer: layer.sqnr,
    "share": lambda layer: -layer.share,
    "bytes": lambda layer: -layer.weight_bytes,
    "gain": lambda layer: -_gain(layer),
}


def _table(done: Sensitivity, rows: list[Layer]) -> Any:
    from rich.table import Table

    from graphopt.console import size

    columns = {
        "layer": [layer.name for layer in rows],
        "operator": [layer.operator for layer in rows],
        "alone dB": [_decibels(layer.sqnr) for layer in rows],
        "mean": [_decibels(layer.mean_sqnr) for layer in rows],
        "weights": [_decibels(layer.weights_sqnr) for layer in rows],
        "result": [_decibels(layer.activation_sqnr) for layer in rows],
        "share": [f"{layer.share:.1%}" for layer in rows],
        "without": [_decibels(layer.without) for layer in rows],
        "drop": ["" if layer.drop is None else f"{layer.drop:+.4f}" for layer in rows],
        "weights are": [size(layer.weight_bytes) if layer.weight_bytes else "" for layer in rows],
        "float ms": ["" if layer.float_ms is None else f"{layer.float_ms:.3f}" for layer in rows],
        "quantized ms": ["" if layer.quantized_ms is None else f"{layer.quantized_ms:.3f}" for layer in rows],
    }
    if len(done.outputs) == 1:
        del columns["mean"]
    table = Table(box=None, pad_edge=False, header_style="bold")
    shown = {name: cells for name, cells in columns.items() if any(cells)}
    for name in shown:
        text = name in ("layer", "operator")
        table.add_column(name, justify="left" if text else "right", overflow="fold", no_wrap=not text)
    for cells in zip(*shown.values(), strict=True):
        table.add_row(*cells)
    return table


def _decibels(ratio: float) -> str:
    return "" if math.isinf(ratio) and ratio > 0 else f"{ratio:.1f}"
