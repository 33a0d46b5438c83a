"""Write the report of a run: JSON always, HTML beside it when a folder is asked for."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING

from graphopt import io
from graphopt.console import plain
from graphopt.errors import UserError

if TYPE_CHECKING:
    from graphopt.optimizer import Report


def check(folder: str | None) -> None:
    """Refuse a report folder that cannot be filled, before any work is done.

    Raises:
        UserError: the path is a file, or the template engine for HTML is not installed.
    """
    if folder is None:
        return
    existing = next(path for path in (Path(folder), *Path(folder).absolute().parents) if path.exists())
    if not existing.is_dir():
        raise UserError(f"{folder}: cannot be a folder, since {existing} is a file; choose another --report")
    if importlib.util.find_spec("jinja2") is None:
        raise UserError("--report needs jinja2 for its HTML; run pip install 'graphopt[report]'")


def write(report: Report, folder: Path | None) -> Path:
    """Write the report and return where it is.

    Args:
        report: what `optimize` returned.
        folder: gets report.json and report.html; without one, a single JSON file lies beside the output.

    Raises:
        UserError: the folder cannot be made or written.
    """
    text = json.dumps(plain(report.to_json()), indent=2) + "\n"
    if folder is None:
        path = Path(report.output).with_suffix(".report.json")
        io.write_bytes(path, text.encode())
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot make the folder: {error.strerror}") from None
    io.write_bytes(folder / "report.json", text.encode())
    io.write_bytes(folder / "report.html", _html(report).encode())
    return folder / "report.html"


def _html(report: Report) -> str:
    import jinja2

    loader = jinja2.PackageLoader("graphopt.report", ".")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return str(environment.get_template("report.html").render(r=report))
