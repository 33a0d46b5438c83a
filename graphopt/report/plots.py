"""Draw what was measured, with matplotlib."""

from __future__ import annotations

import importlib.util
import io as streams
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt import io
from graphopt.errors import UserError

if TYPE_CHECKING:
    from graphopt.benchmarking import Benchmark, Row
    from graphopt.sensitivity import Sensitivity
    from graphopt.training.finetuning import Finetuned

_FORMATS = (".png", ".svg")
_MOST_BARS = 60
_COLORS = {"baseline": "#777777", "faster": "#0a7a33", "slower": "#b3261e", "equal": "#2f6fde", "undecided": "#c77700"}


def check(path: str) -> None:
    """Refuse a picture that cannot be drawn or written, before any work is done.

    Raises:
        UserError: its format is unknown, its folder cannot be written, or matplotlib is not installed.
    """
    if Path(path).suffix not in _FORMATS:
        raise UserError(f"{path}: is neither a .png nor a .svg; name the picture so")
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("--plot needs matplotlib; run pip install 'graphopt[report]'")
    io.check_writable(path)


def benchmark(done: Benchmark, path: str) -> None:
    """Draw time per run (median to 99th percentile) and speed-up with its interval, a line for every row.

    Raises:
        UserError: the file cannot be written.
    """
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "graphopt", "font.size": 9}):
        _save(_benchmark(done.rows), path)


def training(done: Finetuned, path: str) -> None:
    """Draw loss and metric over the epochs of a training; the epoch that was taken is marked.

    Raises:
        UserError: the file cannot be written.
    """
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "graphopt", "font.size": 9}):
        _save(_training(done), path)


def sensitivity(done: Sensitivity, path: str) -> None:
    """Draw a bar for each layer, the most fragile on top, and lines where the quantized model's outputs are.

    Raises:
        UserError: the file cannot be written.
    """
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "graphopt", "font.size": 9}):
        _save(_sensitivity(done), path)


def _sensitivity(done: Sensitivity) -> Any:
    from matplotlib.figure import Figure

    rows = sorted((layer for layer in done.layers if abs(layer.sqnr) < math.inf), key=lambda layer: layer.sqnr)
    rows = rows[:_MOST_BARS]
    figure = Figure(figsize=(9, 1.5 + 0.22 * len(rows)), layout="constrained")
    ratios, shares = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    places = range(len(rows))
    ratios.barh(places, [layer.sqnr for layer in rows], color=_COLORS["baseline"], height=0.7)
    for mark, color, values in (
        ("<", _COLORS["equal"], [layer.weights_sqnr for layer in rows]),
        (">", _COLORS["undecided"], [layer.activation_sqnr for layer in rows]),
    ):
        kept = [(value, place) for place, value in zip(places, values, strict=True) if abs(value) < math.inf]
        label = "weights alone" if mark == "<" else "result alone"
        ratios.plot(*zip(*kept, strict=True) if kept else ((), ()), mark, color=color, markersize=4, label=label)
    measured = min((output.measured for output in done.outputs), default=math.inf)
    if abs(measured) < math.inf:
        ratios.axvline(measured, color=_COLORS["slower"], linewidth=0.8, label="everything quantized")
    ratios.set_yticks(places, [f"{layer.name} ({layer.operator})" for layer in rows])
    ratios.set_ylim(len(rows) - 0.4, -0.8)
    ratios.set_xlabel("SQNR of the worst output, dB; lower is more fragile")
    ratios.legend(loc="upper right", frameon=False)
    shares.barh(places, [100 * layer.share for layer in rows], color=_COLORS["baseline"], height=0.7)
    shares.set_xlabel("share of all noise, %")
    for axes in (ratios, shares):
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _training(done: Finetuned) -> Any:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    losses = figure.subplots()
    epochs = [row["epoch"] for row in done.history]
    losses.plot(epochs, [row["loss"] for row in done.history], "o-", color=_COLORS["baseline"])
    losses.set_xlabel("epoch")
    losses.set_ylabel("loss")
    losses.xaxis.set_major_locator(MaxNLocator(integer=True))
    if done.metric:
        scores = losses.twinx()
        values = [done.metric.before, *(row["metric"] for row in done.history)]
        scores.plot([0, *epochs], values, "o-", color=_COLORS["equal"])
        scores.plot(done.best, values[done.best], "o", color=_COLORS["faster"], markersize=9)
        scores.set_ylabel(done.metric.name, color=_COLORS["equal"])
    return figure


def _benchmark(rows: list[Row]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.2 + 0.35 * len(rows)), layout="constrained")
    times, speeds = figure.subplots(1, 2, sharey=True)
    places = range(len(rows))
    for place, row in zip(places, rows, strict=True):
        color = _COLORS[row.verdict]
        times.plot([row.median_ms, row.p99_ms], [place, place], color=color, linewidth=1)
        times.plot([row.median_ms, row.p90_ms], [place, place], color=color, linewidth=4, solid_capstyle="butt")
        times.plot(row.median_ms, place, "o", color=color)
        low, high = row.ci95
        speeds.errorbar(
            row.speedup, place, xerr=[[row.speedup - low], [high - row.speedup]], fmt="o", color=color, capsize=3
        )
        speeds.annotate(row.verdict, (row.speedup, place), (0, 6), textcoords="offset points", ha="center", color=color)
    times.set_yticks(places, [_label(row, rows) for row in rows])
    times.set_ylim(len(rows) - 0.4, -0.8)
    times.set_xlim(left=0)
    times.set_xlabel("ms per run: median, to 90 % (thick), to 99 % (thin)")
    speeds.axvline(1, color="#777777", linewidth=0.8)
    speeds.margins(x=0.15)
    speeds.set_xlabel("times the speed of the first, 95 % interval")
    for axes in (times, speeds):
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _label(row: Row, rows: list[Row]) -> str:
    """Name a row by its model and by everything in which rows differ."""
    facts = {
        "on": [r.target for r in rows],
        "batch": [str(r.batch) for r in rows],
        **{name: [str(r.axes[name]) for r in rows] for name in row.axes},
        "clients": [str(r.clients) for r in rows],
    }
    here = rows.index(row)
    told = [f"{name} {values[here]}" for name, values in facts.items() if len(set(values)) > 1]
    return ", ".join([Path(row.model).name, *told])


def _save(figure: Any, path: str) -> None:
    buffer = streams.BytesIO()
    form = Path(path).suffix[1:]
    figure.savefig(buffer, format=form, dpi=150, metadata={"Date": None} if form == "svg" else None)
    io.write_bytes(path, buffer.getvalue())
