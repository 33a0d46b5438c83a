"""Say whether graphopt can work here, and how to mend what is broken"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from graphopt.diagnosis import Diagnosis
    from graphopt.hardware import Machine

_STYLES: dict[str, dict[str, Any]] = {
    "broken": {"fg": "red", "bold": True},
    "warning": {"fg": "yellow"},
    "note": {"fg": "cyan"},
    "ok": {"fg": "green"},
}


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(as_json: bool) -> None:
    """Say whether graphopt can work here, and how to mend what is broken.

    Looks at the installed packages, tries the libraries and the execution providers, and at the machine. Exit code
    1 when something is broken.
    """
    from graphopt.diagnosis import diagnose

    done = diagnose()
    # Not through graphopt.console, which imports rich and more: they may be what is broken.
    if as_json:
        click.echo(json.dumps(done.to_json(), indent=2))
    else:
        _print(done)
    sys.exit(0 if done.healthy else 1)


def _print(done: Diagnosis) -> None:
    width = max(len(finding.check) for finding in done.findings) + 2
    for finding in done.findings:
        status = click.style(f"{finding.status:9}", **_STYLES[finding.status])
        click.echo(f"{status}{finding.check:{width}}{finding.message}")
        if finding.fix:
            click.echo(f"{'':{9 + width}}{click.style('fix:', bold=True)} {finding.fix}")
    click.echo()
    versions = ", ".join(f"{name} {version}" for name, version in done.versions.items() if version)
    for name, text in (*_machine(done.machine), ("versions", versions)):
        click.echo(f"{click.style(f'{name:11}', bold=True)}{text}")
    click.echo()
    counts = {status: sum(finding.status == status for finding in done.findings) for status in _STYLES}
    verdict = click.style("healthy", fg="green") if done.healthy else click.style("not healthy", fg="red")
    click.echo(f"{verdict}: broken {counts['broken']}, warnings {counts['warning']}, notes {counts['note']}")


def _machine(machine: Machine) -> list[tuple[str, str]]:
    physical = f"{machine.physical_cores} physical, " if machine.physical_cores else ""
    cores = f"{physical}{machine.logical_cores} logical, {machine.threads} for this process"
    rows = [
        ("processor", f"{machine.processor or 'unknown'} ({machine.architecture})"),
        ("cores", cores),
        ("system", f"{machine.system}, Python {machine.python}"),
    ]
    if machine.memory:
        rows.insert(2, ("memory", f"{machine.memory / (1 << 30):.1f} GiB"))
    return rows
