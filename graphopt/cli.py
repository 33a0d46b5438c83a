"""The command line: a click group whose commands are found, not listed."""

from __future__ import annotations

import sys

import click

from graphopt import __version__, registry
from graphopt.errors import UserError


class Commands(click.Group):
    """Verbs, then one command per pass; nothing is imported until it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        verbs = registry.entries("verb")
        return [*sorted(verbs), *(name for name in registry.entries("pass") if name not in verbs)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in registry.entries("verb"):
            command: click.Command = registry.find("verb", cmd_name)
            return command
        if cmd_name in registry.entries("pass"):
            from graphopt.passcommand import pass_command

            return pass_command(cmd_name)
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError:
            from graphopt.errors import did_you_mean

            known = self.list_commands(ctx)
            raise click.UsageError(f"no command '{args[0]}'{did_you_mean(args[0], known)}", ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, e.summary) for name, e in sorted(registry.entries("verb").items())])
        families: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx)[len(registry.entries("verb")) :]:
            entry = registry.entry("pass", name)
            families.setdefault(entry.group, []).append((name, entry.summary))
        for family, rows in families.items():
            with formatter.section(f"Passes: {family}"):
                formatter.write_dl(rows)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="graphopt")
@click.option("-v", "--verbose", is_flag=True, help="Log what happens to stderr.")
def cli(verbose: bool) -> None:
    """Make ONNX models smaller and faster, and prove that they still do their job.

    Exit codes: 0 done; 1 you can fix it; 2 wrong usage; 3 a gate was not met.
    """
    import logging

    # Without -v only errors: libraries warn about broken models, of which graphopt tells in its own words.
    logging.basicConfig(level=logging.DEBUG if verbose else logging.ERROR, format="%(name)s: %(message)s")


def main() -> None:
    """Run the command line; turn a `UserError` into one line on stderr and its exit code."""
    try:
        cli()
    except UserError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
