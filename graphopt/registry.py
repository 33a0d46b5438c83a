"""Find passes, runtimes, verbs and recipes by name, without importing any of them to list them.

A kind is a folder of a package: dropping a file there is the whole registration. Third parties add
to it through entry points of the group named like the package, whose names are the pass names.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Any

from graphopt.errors import UsageError, did_you_mean

PACKAGES = {
    "pass": "graphopt.passes",
    "runtime": "graphopt.runtimes",
    "verb": "graphopt.verbs",
    "recipe": "graphopt.models.recipes",
}
SUFFIXES = {"recipe": ".yaml"}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One thing that can be found.

    Attributes:
        name: the name people type.
        group: the folder it lies in ("structural"), or the distribution of an entry point.
        path: its file, or None for an entry point.
        target: what to import: a module, or "module:attribute" for an entry point.
    """

    name: str
    group: str
    path: Path | None
    target: str

    @property
    def summary(self) -> str:
        """First line of the file's docstring (of its leading comment for a recipe), read without importing it."""
        if self.path is None:
            return f"from {self.group}"
        text = self.path.read_text(encoding="utf-8")
        if self.path.suffix == ".py":
            try:
                return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0].rstrip(".")
            except SyntaxError as error:
                return f"cannot be read: {error}"
        return text.partition("\n")[0].lstrip("# ").rstrip(".")


@functools.cache
def entries(kind: str) -> dict[str, Entry]:
    """Return everything of a kind ("pass", "runtime", "verb", "recipe") by name, sorted by group and name.

    Raises:
        RuntimeError: two files or entry points claim the same name.
    """
    package = PACKAGES[kind]
    spec = importlib.util.find_spec(package)
    found: list[Entry] = []
    suffix = SUFFIXES.get(kind, ".py")
    for root in map(Path, (spec.submodule_search_locations or ()) if spec else ()):
        for path in sorted(root.rglob(f"*{suffix}")):
            parts = path.relative_to(root).with_suffix("").parts
            if not any(part.startswith("_") for part in parts):
                module = ".".join((package, *parts))
                found.append(Entry(path.stem.replace("_", "-"), path.parent.name, path, module))
    for point in importlib.metadata.entry_points(group=package):
        group = point.dist.name if point.dist else "entry point"
        found.append(Entry(point.name, group, None, point.value))
    table: dict[str, Entry] = {}
    for entry in found:
        if entry.name in table:
            raise RuntimeError(f"two {kind}es are named '{entry.name}': {table[entry.name].target} and {entry.target}")
        table[entry.name] = entry
    return table


def entry(kind: str, name: str) -> Entry:
    """Return the entry of that name.

    Raises:
        UsageError: there is none; the message suggests the nearest name.
    """
    table = entries(kind)
    if name not in table:
        raise UsageError(f"unknown {kind} '{name}'{did_you_mean(name, table)}")
    return table[name]


def find(kind: str, name: str) -> Any:
    """Import and return what `name` stands for: a `Pass` subclass, a `Runtime` subclass or a click command.

    A file defines exactly one public object of its kind; which one is found by type, not by name.

    Raises:
        UsageError: nothing of that kind has this name.
    """
    target, _, attribute = entry(kind, name).target.partition(":")
    module = importlib.import_module(target)
    if attribute:
        found_there = getattr(module, attribute)
        if kind == "pass" and found_there.pass_name() != name:
            raise RuntimeError(f"entry point '{name}' must be called '{found_there.pass_name()}', as its pass is")
        return found_there
    if kind == "verb":
        return module.command
    base = _base(kind)
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, base)
        and value.__module__ == module.__name__
        and not value.__name__.startswith("_")
    ]
    if len(found) != 1:
        raise RuntimeError(f"{target} must define exactly one {base.__name__}, found {len(found)}")
    return found[0]


def _base(kind: str) -> type:
    if kind == "pass":
        from graphopt.passbase import Pass

        return Pass
    from graphopt.runtime import Runtime

    return Runtime
