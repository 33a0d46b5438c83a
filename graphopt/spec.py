"""Dataclass <-> text, command line and recipe: the only place that converts between them.

A pass is written `name` or `name{field=value field='two words'}`. Sequences are comma-separated.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
import types
import typing
from collections.abc import Mapping
from typing import Any

from graphopt import registry
from graphopt.errors import UsageError, did_you_mean

if typing.TYPE_CHECKING:
    import click

    from graphopt.passbase import Pass

_SPEC = re.compile(r"\s*([\w.-]+)\s*(?:\{(.*)\})?\s*", re.DOTALL)


def parse(text: str) -> Pass:
    """Build the pass that `text` describes.

    Raises:
        UsageError: bad syntax, unknown pass, unknown field, or a value of the wrong type.
    """
    return build(*split(text, "pass"))


def split(text: str, kind: str) -> tuple[str, dict[str, str]]:
    """Take `name{field=value ...}` apart into the name and its fields, in which `-` reads as `_`.

    Args:
        text: what was written.
        kind: what it names ("pass", "target"), for messages.

    Raises:
        UsageError: bad syntax, or a field given twice.
    """
    match = _SPEC.fullmatch(text)
    if not match:
        raise UsageError(f"cannot read {kind} '{text}'; write name or 'name{{field=value}}'")
    name, body = match.groups()
    fields: dict[str, str] = {}
    try:
        words = shlex.split(body or "")
    except ValueError as error:
        raise UsageError(f"cannot read {kind} '{text}': {error}") from None
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise UsageError(f"{name}: '{word}' is not field=value")
        if key.replace("-", "_") in fields:
            raise UsageError(f"{name}: field '{key}' is given twice")
        fields[key.replace("-", "_")] = value
    return name, fields


def join(name: str, fields: Mapping[str, Any]) -> str:
    """Write `name{field=value ...}`, which `split` reads back."""
    words = [f"{key}={shlex.quote(_text(value))}" for key, value in fields.items()]
    return f"{name}{{{' '.join(words)}}}" if words else name


def build(name: str, fields: Mapping[str, Any]) -> Pass:
    """Build the pass `name` with `fields`, whose values may be text.

    Raises:
        UsageError: unknown pass or field, or a value that does not fit.
    """
    cls = registry.find("pass", name)
    types_ = field_types(cls)
    values = {}
    for key, value in fields.items():
        if key not in types_:
            raise UsageError(f"{name}: unknown field '{key}'{did_you_mean(str(key), types_)}")
        values[key] = convert(value, types_[key], f"{name}: {key}")
    for field in dataclasses.fields(typing.cast(Any, cls)):
        if field.default is dataclasses.MISSING and field.name not in values:
            raise UsageError(f"{name}: field '{field.name}' is required; write {name}{{{field.name}=...}}")
    try:
        return typing.cast("Pass", cls(**values))
    except ValueError as error:
        raise UsageError(f"{name}: {error}") from None


def from_entry(entry: str | Mapping[str, Any]) -> Pass:
    """Build a pass from a recipe entry: a specification string, or `{"pass": name, field: value}`."""
    if isinstance(entry, str):
        return parse(entry)
    if not isinstance(entry, Mapping) or not isinstance(entry.get("pass"), str):
        raise UsageError(f"recipe step {entry!r} is neither a pass specification nor a mapping with a 'pass' key")
    return build(entry["pass"], {key: value for key, value in entry.items() if key != "pass"})


def to_entry(pass_: Pass) -> dict[str, Any]:
    """Return the recipe entry of a pass: its name and the fields that differ from their defaults."""
    entry: dict[str, Any] = {"pass": pass_.pass_name()}
    for field in dataclasses.fields(typing.cast(Any, pass_)):
        value = getattr(pass_, field.name)
        if value != field.default:
            entry[field.name] = list(value) if isinstance(value, tuple) else value
    return entry


def render(pass_: Pass, *, sources: bool = True) -> str:
    """Return the specification string of a pass; `parse` reads it back.

    Args:
        pass_: the pass.
        sources: whether to include fields that name outside sources such as data files.
    """
    outside = {f.name for f in dataclasses.fields(typing.cast(Any, pass_)) if f.metadata.get("source")}
    fields = to_entry(pass_)
    name = fields.pop("pass")
    return join(name, {key: value for key, value in fields.items() if sources or key not in outside})


def options(cls: type[Pass]) -> list[click.Option]:
    """Return one command-line option per field of a pass class."""
    import click

    made = []
    types_ = field_types(cls)
    for field in dataclasses.fields(typing.cast(Any, cls)):
        flag = "--" + field.name.replace("_", "-")
        help_ = field.metadata.get("help", "")
        if types_[field.name] is bool:
            made.append(click.Option([f"{flag}/--no-{flag[2:]}"], default=field.default, help=help_, show_default=True))
        else:
            if field.default not in (None, "", (), dataclasses.MISSING):
                help_ += f"  [default: {_text(field.default)}]"
            made.append(click.Option([flag], default=None, help=help_, metavar=type_name(types_[field.name])))
    return made


def field_types(cls: type) -> dict[str, Any]:
    """Return the resolved type of every field of a dataclass."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(typing.cast(Any, cls))}


def type_name(type_: Any) -> str:
    """Return how a field's type is called on the command line, such as `INTEGER` or `TEXT,...`."""
    if typing.get_origin(type_) is typing.Literal:
        return "|".join(map(str, typing.get_args(type_)))
    arguments = [a for a in typing.get_args(type_) if a not in (type(None), Ellipsis)]
    if typing.get_origin(type_) is tuple:
        return f"{type_name(arguments[0])},..."
    return type_name(arguments[0]) if arguments else {str: "TEXT", int: "INTEGER", float: "NUMBER"}.get(type_, "VALUE")


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (tuple, list)):
        return ",".join(map(_text, value))
    return str(value)


def convert(value: Any, type_: Any, where: str) -> Any:
    """Turn text (or a plain recipe value) into `type_`.

    Raises:
        UsageError: it does not fit; the message begins with `where`.
    """
    origin, arguments = typing.get_origin(type_), typing.get_args(type_)
    if origin in (typing.Union, types.UnionType):
        if value is None or value == "none":
            return None
        if not isinstance(value, (str, int, float, list, tuple)):  # an object, which only Python code can give
            return value
        return convert(value, next(a for a in arguments if a is not type(None)), where)
    if origin is typing.Literal:
        for argument in arguments:
            if str(argument) == str(value):
                return argument
        raise UsageError(f"{where}: '{value}' is not one of {', '.join(map(str, arguments))}")
    if origin is tuple:
        if not isinstance(value, (str, list, tuple)):
            raise UsageError(f"{where}: '{value}' is not a list")
        parts = [p for p in value.split(",") if p] if isinstance(value, str) else value
        return tuple(convert(part, arguments[0], where) for part in parts)
    if type_ is bool:
        word = str(value).lower()
        if word not in ("true", "false"):
            raise UsageError(f"{where}: '{value}' is not true or false")
        return word == "true"
    if type_ in (int, float):
        try:
            number = type_(value)
        except (TypeError, ValueError):
            number = None
        if number is None or isinstance(value, bool) or (isinstance(value, float) and number != value):
            raise UsageError(f"{where}: '{value}' is not {'a whole number' if type_ is int else 'a number'}")
        return number
    if type_ is str:
        if value is None or isinstance(value, (list, dict, bool)):
            raise UsageError(f"{where}: '{value}' is not text")
        return str(value)
    return value
