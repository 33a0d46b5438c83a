"""Say what differs between two models: interface, nodes, weights, sizes"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console

    from graphopt.difference.initializers import Changed


@click.command("diff")
@click.argument("before")
@click.argument("after")
@click.option(
    "--top", type=click.IntRange(1), default=20, show_default=True, metavar="N", help="Rows per section at most."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, with all rows.")
def command(before: str, after: str, top: int, as_json: bool) -> None:
    """Say what differs between the models BEFORE and AFTER, without running them.

    Values are matched by name, then by structure; renamed and fused nodes are told as such. The exit code is 0
    whether or not the models differ: to check that they compute the same, use graphopt validate.
    """
    from graphopt.console import console, print_json
    from graphopt.difference import diff, text

    found = diff(before, after)
    if as_json:
        print_json(found.to_json())
        return
    out = console()
    out.print(found.summary, style="bold", soft_wrap=True)
    _print_rows(out, "inputs", text.port_rows(found.inputs), top)
    _print_rows(out, "outputs", text.port_rows(found.outputs), top)
    _print_rows(out, "nodes", text.node_rows(found.nodes), top)
    _print_rows(out, "operators", text.operator_rows(found.operators), top)
    _print_changed(out, found.initializers.changed, top)
    _print_rows(out, "initializers", text.stored_rows(found.initializers), top)
    _print_rows(out, "declarations", text.fact_rows(found.facts), top)
    _print_rows(out, "sizes", text.size_rows(found.sizes), top)


def _print_rows(out: Console, heading: str, found: Iterable[str], top: int) -> None:
    """Print a section, if there is anything in it."""
    rows = list(found)
    if rows:
        out.print(f"\n{heading}", style="bold")
    for row in rows[:top]:
        out.print(f"  {row}", soft_wrap=True)
    _print_more(out, len(rows) - top)


def _print_changed(out: Console, changed: tuple[Changed, ...], top: int) -> None:
    """Print how far initializers are from what they were, the least alike first."""
    from rich.table import Table

    from graphopt.difference.text import changed_row

    if not changed:
        return
    out.print("\ninitializers that changed", style="bold")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("  name", "type", "shape"):
        table.add_column(heading, overflow="fold")
    for heading in ("changed", "largest", "relative", "SQNR dB", "zeros"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in sorted(changed, key=_likeness)[:top]:
        name, *cells = changed_row(one)
        table.add_row(f"  {name}", *cells)
    out.print(table)
    _print_more(out, len(changed) - top)


def _print_more(out: Console, count: int) -> None:
    if count > 0:
        out.print(f"  {count} more; --top or --json show them", style="dim")


def _likeness(one: Changed) -> float:
    """Return the signal-to-noise ratio; what cannot be measured comes first."""
    return float("-inf") if one.distance is None or one.distance.sqnr is None else one.distance.sqnr
