"""What the verbs that train share: options, progress, logs and tables."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from graphopt import registry, spec
from graphopt.errors import UsageError
from graphopt.verbs import _options

if TYPE_CHECKING:
    from graphopt.training.events import Event
    from graphopt.training.finetuning import Finetuned

_MOST_CLASSES = 20
_COLUMNS = ("epoch", "loss", "learning_rate", "metric", "seconds")


def options(*without: str) -> Callable[[Any], Any]:
    """Return a decorator that adds the options of every verb that trains: the fields of the pass, and more.

    Args:
        without: fields that the verb has in another form.
    """
    shared: list[Callable[[Any], Any]] = [
        click.option("-o", "--output", required=True, metavar="OUT", help="Path of the model to write."),
        click.option("--folds", type=click.IntRange(0), default=0, help="Estimate the metric by cross-validation too."),
        click.option("--log", metavar="FILE", help="Write one row per epoch to a .csv or .json file."),
        click.option("--plot", metavar="FILE", help="Draw loss and metric over the epochs (.png or .svg)."),
        click.option(
            "--resume/--no-resume", default=True, help="Go on from OUT.checkpoint if a run like this left one."
        ),
        _options.target,
        _options.as_json,
    ]

    def add(command: Any) -> Any:
        fields = [o for o in spec.options(registry.find("pass", "finetune")) if o.name not in without]
        for option in reversed(shared):
            command = option(command)
        command.__click_params__ = [*command.__click_params__, *reversed(fields)]
        return command

    return add


def run_and_print(
    run: Callable[..., Finetuned],
    output: str,
    as_json: bool,
    log: str | None,
    plot: str | None,
    resume: bool,
    given: Mapping[str, Any],
) -> None:
    """Train, and tell what came of it."""
    from graphopt.console import print_json
    from graphopt.io import check_writable
    from graphopt.report import plots
    from graphopt.training.events import is_first, listening

    if log:
        if not log.endswith((".csv", ".json")):
            raise UsageError(f"--log {log}: is neither a .csv nor a .json; name the file so")
        check_writable(log)
    if plot:
        plots.check(plot)
    settings = {key: value for key, value in given.items() if value is not None}
    with _progress() as listener, listening(listener):
        done = run(output=output, resume=resume, **settings)
    if not is_first():
        return
    if log:
        _write_log(done, Path(log))
    if plot:
        plots.training(done, plot)
    if as_json:
        print_json(done.to_json())
    else:
        _print(done)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[Event], None]]:
    """Yield what shows progress on stderr: a bar on a terminal, else a line for every epoch."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from graphopt.training.events import is_first

    console = Console(stderr=True, highlight=False)
    if not is_first():
        yield lambda event: None
        return
    if not console.is_terminal:
        yield lambda event: _line(event) if event.ended or (not event.epoch and event.metric is not None) else None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), TextColumn("{task.fields[facts]}"))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("training", total=None, facts="")

        def show(event: Event) -> None:
            facts = _facts(event)
            bar.update(task, description=f"epoch {event.epoch}", completed=event.step, total=event.steps, facts=facts)
            if event.ended:
                bar.console.print(f"epoch {event.epoch}: {facts}")

        yield show


def _line(event: Event) -> None:
    click.echo(f"epoch {event.epoch}: {_facts(event)}" if event.epoch else f"before: {_facts(event)}", err=True)


def _facts(event: Event) -> str:
    parts = [] if event.loss is None else [f"loss {event.loss:.4f}", f"learning rate {event.learning_rate:.2g}"]
    if event.metric is not None:
        parts.append(f"metric {event.metric:.4f}")
    if event.seconds:
        parts.append(f"{event.seconds:.0f} s")
    return ", ".join(parts)


def _write_log(done: Finetuned, path: Path) -> None:
    from graphopt.io import write_bytes

    if path.suffix == ".json":
        write_bytes(path, (json.dumps(list(done.history), indent=2) + "\n").encode())
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(done.history)
    write_bytes(path, text.getvalue().encode())


def _print(done: Finetuned) -> None:
    from rich.table import Table

    from graphopt.console import console

    out = console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("epoch", "loss", "learning rate", "metric", "seconds"):
        table.add_column(heading, justify="right")
    for row in done.history:
        metric = "" if row["metric"] is None else f"{row['metric']:.4f}" + (" *" if row["epoch"] == done.best else "")
        table.add_row(
            str(row["epoch"]), f"{row['loss']:.4f}", f"{row['learning_rate']:.2g}", metric, f"{row['seconds']:.1f}"
        )
    out.print(table)
    if done.cross_validation:
        cv = done.cross_validation
        out.print(f"{cv.metric} of {len(cv.scores)} folds left out: {cv.mean:.4f}, deviation {cv.deviation:.4f}")
    if done.metric:
        m = done.metric
        interval = f" (95 % interval of the drop {m.ci95[0]:+.4f} to {m.ci95[1]:+.4f})" if m.ci95 else ""
        out.print(f"{m.name} {m.before:.4f} -> {m.after:.4f}{interval}", soft_wrap=True)
    if done.confusion and len(done.classes) <= _MOST_CLASSES:
        out.print(_classes(done))
    for name, reason in done.refused[:_MOST_CLASSES]:
        out.print(f"  {name} was not trained: {reason}", style="dim", soft_wrap=True)
    for note in done.notes:
        out.print(f"note: {note}", style="yellow", soft_wrap=True)
    if not done.best:
        out.print("no epoch was better than the weights before, which stay", style="yellow")
    out.print(f"{done.trained} initializers trained; output {done.output}", soft_wrap=True)
    sys.stdout.flush()


def _classes(done: Finetuned) -> Any:
    """Return the confusion matrix: actual classes down, predicted ones across, with precision and recall."""
    from rich.table import Table

    assert done.confusion is not None
    scores = {row.label: row for row in done.classes}
    table = Table(box=None, pad_edge=False, header_style="bold", title="actual \\ predicted", title_justify="left")
    for heading in ("class", *map(str, done.confusion["labels"]), "precision", "recall"):
        table.add_column(heading, justify="right")
    for label, counts in zip(done.confusion["labels"], done.confusion["counts"], strict=True):
        row = scores.get(label)
        ends = (f"{row.precision:.3f}", f"{row.recall:.3f}") if row else ("", "")
        table.add_row(str(label), *map(str, counts), *ends)
    return table
