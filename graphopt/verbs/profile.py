"""Say where the time of a model goes, node by node"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from graphopt.verbs import _options

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from graphopt.profiling import Profile, Profiling
    from graphopt.profiling.difference import Difference, NodeDifference
    from graphopt.profiling.nodes import NodeTime
    from graphopt.profiling.words import Scale


_BOTH = ("us/run A", "us/run B", "difference")


@click.command("profile")
@click.argument("model")
@click.argument("model_b", required=False)
@_options.target
@_options.threads
@click.option(
    "--batch",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    metavar="N",
    help="Batch size, where it is dynamic.",
)
@click.option(
    "--axis",
    "axes",
    multiple=True,
    metavar="NAME=N",
    help="Size of another dynamic axis, such as sequence=128; nameless ones are called input:axis.",
)
@_options.data
@click.option(
    "--runs", type=click.IntRange(1), metavar="N", help="Runs of each model to record; by default as many as fit."
)
@click.option(
    "--seconds",
    type=click.FloatRange(0, min_open=True),
    default=2.0,
    show_default=True,
    metavar="S",
    help="How long the recorded runs of a model may take, 5 of them at least.",
)
@click.option(
    "--top", type=click.IntRange(1), default=15, show_default=True, metavar="N", help="Rows per table at most."
)
@click.option("--trace", metavar="FILE", help="Keep the profiler's own file, for chrome://tracing or Perfetto.")
@_options.seed
@_options.as_json
def command(
    model: str,
    model_b: str | None,
    target: str,
    threads: int,
    axes: tuple[str, ...],
    top: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Say where the time of MODEL goes, from the runtime's own profiler; with MODEL_B, where it differs from MODEL.

    Times are medians per run. What the profiler itself adds is measured against runs without it, and taken off.
    """
    from graphopt.console import console, print_json
    from graphopt.profiling import profile
    from graphopt.target import find

    done = profile(model, model_b, target=find(target, threads), axes=_sizes(axes), **options)
    if as_json:
        print_json(done.to_json())
    elif done.difference is not None:
        _print_difference(console(), done, done.difference, top)
    else:
        _print_profile(console(), done, top)


def _sizes(texts: tuple[str, ...]) -> dict[str, int]:
    """Read what `--axis` was given: one size each.

    Raises:
        click.BadParameter: one of them is not of the form NAME=N.
    """
    found = _options.axis_sizes(texts)
    for name, sizes in found.items():
        if len(sizes) > 1:
            raise click.BadParameter(f"'{name}' has {len(sizes)} sizes; a profile is of one", param_hint="--axis")
    return {name: sizes[0] for name, sizes in found.items()}


def _print_profile(out: Console, done: Profiling, top: int) -> None:
    found = done.models[0]
    out.print(_headline(done, found), style="bold", soft_wrap=True)
    _print_notes(out, found)
    from graphopt.profiling.words import operator, percent

    rows = [
        (operator(row.operator), str(row.nodes), _calls(row.calls), f"{row.us:.1f}", percent(row.share))
        for row in found.operators
    ]
    share = found.outside_us / found.run_us if found.run_us else 0.0
    outside = ("outside nodes", "", "", f"{found.outside_us:.1f}", percent(share))
    _print_table(out, ("operator", "nodes", "calls", "us/run", "share"), rows, top, left=("operator",), last=outside)
    nodes = [_node_row(node) for node in found.nodes]
    headings = ["node", "operator", "us/run", "share", "calls", "output", "made of", "inside", "on"]
    if len({node.provider for node in found.nodes}) < 2:
        headings.pop()
    _print_table(out, headings, nodes, top, left=("node", "operator", "output", "made of", "inside", "on"))


def _headline(done: Profiling, found: Profile) -> str:
    """Return in words what a run takes."""
    time = _scale(found)
    sizes = ", ".join([f"batch {done.batch}", *(f"{name} {size}" for name, size in done.axes.items())])
    return (
        f"{found.model} on {done.target}, {sizes}: {time(found.run_us)} {time.unit} per run, "
        f"{time(found.run_us - found.outside_us)} in nodes and {time(found.outside_us)} outside of them"
    )


def _scale(found: Profile) -> Scale:
    """Return how to write what is told of whole runs."""
    from graphopt.profiling.words import scale

    return scale(max(found.run_us, found.plain_us, found.profiler_us))


def _print_notes(out: Console, found: Profile) -> None:
    """Print how a profile was measured, and what to know of it."""
    time = _scale(found)
    out.print(
        f"  median of {found.runs} runs; {time(found.profiler_us)} {time.unit} that the profiler adds are taken off, "
        f"and a call without it takes {time(found.plain_us)}",
        soft_wrap=True,
    )
    for note in found.notes:
        out.print(f"  {note}", soft_wrap=True)


def _node_row(node: NodeTime) -> tuple[str, ...]:
    from graphopt.profiling.words import operator, percent

    return (
        node.node,
        operator(node.operator),
        f"{node.us:.1f}",
        percent(node.share),
        _calls(node.calls),
        ", ".join(map(str, node.outputs)),
        _made_of(node),
        " > ".join(node.inside),
        node.provider.removesuffix("ExecutionProvider"),
    )


def _made_of(node: NodeTime) -> str:
    """Return the operators that went into a node, unless it is just that node of the file."""
    if node.added:
        return "(added by the runtime)"
    names = [origin.operator for origin in node.fused]
    return "" if names == [node.operator] else _operators(names)


def _operators(names: Sequence[str]) -> str:
    """Return operators in words, such as "Conv + 2 Relu"."""
    from graphopt.profiling.words import operator

    counts = {name: names.count(name) for name in dict.fromkeys(names)}
    return " + ".join(f"{count} {operator(name)}" if count > 1 else operator(name) for name, count in counts.items())


def _calls(calls: float) -> str:
    return f"{calls:.6g}"


def _print_difference(out: Console, done: Profiling, found: Difference, top: int) -> None:
    from graphopt.profiling.words import operator

    out.print(found.summary, style="bold", soft_wrap=True)
    for index, one in enumerate(done.models):
        out.print(f"{'AB'[index]}: {_headline(done, one)}", soft_wrap=True)
        _print_notes(out, one)
    rows = [
        (operator(row.operator), *map(_count, row.nodes), *_times(row.before_us, row.after_us, row.difference_us))
        for row in found.operators
    ]
    before, after = (one.outside_us for one in done.models)
    outside = ("outside nodes", "", "", *_times(before, after, found.outside_us))
    _print_table(out, ("operator", "nodes A", "nodes B", *_BOTH), rows, top, left=("operator",), last=outside)
    nodes = [
        (
            _place(row),
            _operators(row.before),
            _operators(row.after),
            *_times(row.before_us, row.after_us, row.difference_us),
        )
        for row in found.nodes
    ]
    _print_table(out, ("node", "in A", "in B", *_BOTH), nodes, top, left=("node", "in A", "in B"))


def _place(row: NodeDifference) -> str:
    return row.node or "(without counterpart)"


def _count(number: int) -> str:
    return str(number) if number else ""


def _times(before: float, after: float, difference: float) -> tuple[str, str, str]:
    return f"{before:.1f}", f"{after:.1f}", f"{difference:+.1f}"


def _print_table(
    out: Console,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    top: int,
    *,
    left: Sequence[str],
    last: Sequence[str] | None = None,
) -> None:
    """Print the first rows of a table, without columns that are empty in all of these, and how many there are more.

    Args:
        out: where to.
        headings: of the columns.
        rows: the cells.
        top: rows to print.
        left: columns that are not numbers.
        last: a row that is always printed.
    """
    from rich.table import Table

    shown = [*rows[:top], *([last] if last is not None else [])]
    if not shown:
        return
    table: Table = Table(box=None, pad_edge=False, header_style="bold")
    filled = [number for number in range(len(headings)) if any(row[number] for row in shown)]
    for number in filled:
        is_text = headings[number] in left
        table.add_column(
            headings[number],
            justify="left" if is_text else "right",
            overflow="fold",
            no_wrap=not is_text,
        )
    for row in shown:
        table.add_row(*(row[number] for number in filled))
    out.print()
    out.print(table)
    if len(rows) > top:
        out.print(f"{len(rows) - top} more; --top or --json show them", style="dim")
