"""Run passes in the given order, each verified"""

from __future__ import annotations

import click

from graphopt.passcommand import apply_options, run_and_print

command = click.Command(
    "apply",
    params=[click.Argument(["model"]), click.Argument(["passes"], nargs=-1, required=True), *apply_options()],
    callback=run_and_print,
    help="Run passes on MODEL in the given order, each written name or 'name{field=value}', each verified.",
)
