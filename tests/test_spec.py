"""Passes as text: what is rendered parses back, and what does not parse says why."""

from __future__ import annotations

import dataclasses
import re

import click
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt import registry, spec
from graphopt.errors import UsageError

SOURCE = """
@dataclass(frozen=True)
class Everything(Pass):
    count: int = param(3, "how many")
    ratio: float = param(0.5, "share, 0 to 1")
    fast: bool = param(True, "whether to hurry")
    text: str = param("", "any words")
    mode: Literal["one", "two words"] = param("one", "which way")
    bits: Literal[4, 8] = param(8, "bits of a weight")
    sizes: tuple[int, ...] = param((1, 2), "some sizes")
    shares: tuple[float, ...] = param((), "some shares")
    names: tuple[str, ...] = param((), "some names")
    limit: int | None = param(None, "at most this many")
    floor: float | None = param(1.5, "at least this much")
    label: str | None = param(None, "a name, if any")
    two_words: int = param(0, "a field whose name is two words")
    file: str = param("", "where facts come from", source="data")

    def __post_init__(self):
        if self.count < 0:
            raise ValueError("count is negative")

    def call(self, model):
        return Result(model, False)
"""


@pytest.fixture(scope="module", autouse=True)
def everything(module_drop_pass):
    """A pass with a field of every type."""
    module_drop_pass("everything", SOURCE)
    module_drop_pass(
        "needy",
        """
        @dataclass(frozen=True)
        class Needy(Pass):
            teacher: str

            def call(self, model):
                return Result(model, False)
        """,
    )
    return registry.find("pass", "everything")


PLAIN = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
NUMBER = st.floats(allow_nan=False)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "count": st.integers(0),
        "ratio": NUMBER,
        "fast": st.booleans(),
        "text": PLAIN,
        "mode": st.sampled_from(["one", "two words"]),
        "bits": st.sampled_from([4, 8]),
        "sizes": st.lists(st.integers()).map(tuple),
        "shares": st.lists(NUMBER).map(tuple),
        "names": st.lists(PLAIN.filter(lambda name: name and "," not in name)).map(tuple),
        "limit": st.none() | st.integers(),
        "floor": st.none() | NUMBER,
        "label": st.none() | PLAIN.filter(lambda word: word != "none"),
        "file": PLAIN,
    },
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(FIELDS)
def test_what_is_rendered_parses_back(fields):
    pass_ = registry.find("pass", "everything")(**fields)
    assert spec.parse(spec.render(pass_)) == pass_
    assert spec.from_entry(spec.to_entry(pass_)) == pass_


@settings(max_examples=50, deadline=None, derandomize=True)
@given(FIELDS)
def test_passes_are_values(fields):
    cls = registry.find("pass", "everything")
    assert cls(**fields) == cls(**fields)
    assert hash(cls(**fields)) == hash(cls(**fields))


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("everything", {}),
        ("  everything  ", {}),
        ("everything{}", {}),
        ("everything { count=4 }", {"count": 4}),
        ("everything{ratio=1e-3 fast=false}", {"ratio": 1e-3, "fast": False}),
        ("everything{fast=True}", {"fast": True}),
        ("everything{text='two words' label=\"a=b\"}", {"text": "two words", "label": "a=b"}),
        ("everything{text='}{'}", {"text": "}{"}),
        ("everything{sizes=3,4 names=a,b shares=}", {"sizes": (3, 4), "names": ("a", "b"), "shares": ()}),
        ("everything{sizes=7}", {"sizes": (7,)}),
        ("everything{limit=none floor=none}", {"limit": None, "floor": None}),
        ("everything{limit=7}", {"limit": 7}),
        ("everything{bits=4}", {"bits": 4}),
        ("everything{count=1\n ratio=2}", {"count": 1, "ratio": 2.0}),
    ],
)
def test_parsing(text, fields):
    assert spec.parse(text) == registry.find("pass", "everything")(**fields)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "everything"),
        ({"count": 3}, "everything"),
        ({"count": 4, "fast": False}, "everything{count=4 fast=false}"),
        ({"sizes": (), "names": ("a b", "c")}, "everything{sizes='' names='a b,c'}"),
        ({"text": "it's"}, "everything{text='it'\"'\"'s'}"),
        ({"floor": None}, "everything{floor=none}"),
        ({"file": "/home/someone/data.npz"}, "everything{file=/home/someone/data.npz}"),
    ],
)
def test_rendering(fields, text):
    assert spec.render(registry.find("pass", "everything")(**fields)) == text


def test_sources_can_be_left_out():
    """Provenance must not depend on where a file lay."""
    pass_ = registry.find("pass", "everything")(file="/home/someone/data.npz", count=4)
    assert spec.render(pass_, sources=False) == "everything{count=4}"


def test_dashes_in_field_names():
    """What is `--two-words` on the command line may be written so in a specification, too."""
    assert spec.parse("everything{two-words=1}") == spec.parse("everything{two_words=1}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot read pass ''; write name or 'name{field=value}'"),
        ("everything{count=3", "cannot read pass"),
        ("everything}", "cannot read pass"),
        ("every thing", "cannot read pass"),
        ("everything{text='open}", "cannot read pass 'everything{text='open}': No closing quotation"),
        ("everything{count}", "everything: 'count' is not field=value"),
        ("everithing", "unknown pass 'everithing'; did you mean 'everything'?"),
        ("everything{cuont=3}", "everything: unknown field 'cuont'; did you mean 'count'?"),
        ("everything{zzzzzz=3}", "everything: unknown field 'zzzzzz'; known: bits, count, fast, "),
        ("everything{count=x}", "everything: count: 'x' is not a whole number"),
        ("everything{count=1.5}", "everything: count: '1.5' is not a whole number"),
        ("everything{count=}", "everything: count: '' is not a whole number"),
        ("everything{ratio=half}", "everything: ratio: 'half' is not a number"),
        ("everything{fast=yes}", "everything: fast: 'yes' is not true or false"),
        ("everything{mode=three}", "everything: mode: 'three' is not one of one, two words"),
        ("everything{bits=5}", "everything: bits: '5' is not one of 4, 8"),
        ("everything{sizes=1,x}", "everything: sizes: 'x' is not a whole number"),
        ("everything{limit=x}", "everything: limit: 'x' is not a whole number"),
        ("everything{count=-1}", "everything: count is negative"),
        ("needy", "needy: .*teacher"),
    ],
)
def test_what_does_not_parse_says_why(text, message):
    with pytest.raises(UsageError) as error:
        spec.parse(text)
    assert error.value.exit_code == 2
    if "*" in message:
        assert error.match(message)
    else:
        assert message in str(error.value)


@pytest.mark.parametrize(
    ("entry", "fields"),
    [
        ("everything{count=4}", {"count": 4}),
        ({"pass": "everything"}, {}),
        ({"pass": "everything", "count": 4, "ratio": 1, "fast": False}, {"count": 4, "ratio": 1.0, "fast": False}),
        ({"pass": "everything", "sizes": [3, 4], "names": ["a,b"]}, {"sizes": (3, 4), "names": ("a,b",)}),
        ({"pass": "everything", "bits": 4, "limit": None, "floor": None}, {"bits": 4, "floor": None}),
        ({"pass": "everything", "sizes": "3,4"}, {"sizes": (3, 4)}),
        ({"pass": "everything", "count": 4.0}, {"count": 4}),
        ({"pass": "everything", "text": 3}, {"text": "3"}),
    ],
)
def test_recipe_entries(entry, fields):
    assert spec.from_entry(entry) == registry.find("pass", "everything")(**fields)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (3, "recipe step 3 is neither a pass specification nor a mapping with a 'pass' key"),
        (None, "recipe step None is neither"),
        ({"count": 3}, "is neither a pass specification nor a mapping with a 'pass' key"),
        ({"pass": 3}, "is neither"),
        (["everything"], "is neither"),
        ({"pass": "everything", "count": 8.7}, "everything: count: '8.7' is not a whole number"),
        ({"pass": "everything", "count": True}, "everything: count: 'True' is not a whole number"),
        ({"pass": "everything", "ratio": False}, "everything: ratio: 'False' is not a number"),
        ({"pass": "everything", "ratio": [1]}, "everything: ratio: '[1]' is not a number"),
        ({"pass": "everything", "fast": 3}, "everything: fast: '3' is not true or false"),
        ({"pass": "everything", "text": None}, "everything: text: 'None' is not text"),
        ({"pass": "everything", "sizes": 3}, "everything: sizes: '3' is not a list"),
        ({"pass": "everything", "mode": ["one"]}, "everything: mode: '['one']' is not one of"),
        ({"pass": "everything", 3: 4}, "everything: unknown field '3'"),
    ],
)
def test_recipe_entries_that_do_not_fit(entry, message):
    with pytest.raises(UsageError) as error:
        spec.from_entry(entry)
    assert message in str(error.value)


def test_entries_hold_what_differs_from_the_defaults():
    cls = registry.find("pass", "everything")
    assert spec.to_entry(cls()) == {"pass": "everything"}
    assert spec.to_entry(cls(sizes=(5,), floor=None)) == {"pass": "everything", "sizes": [5], "floor": None}


def test_options_of_the_generated_command():
    options = {option.name: option for option in spec.options(registry.find("pass", "everything"))}
    assert list(options) == [field.name for field in dataclasses.fields(registry.find("pass", "everything"))]
    assert options["fast"].opts == ["--fast"]
    assert options["fast"].secondary_opts == ["--no-fast"]
    assert options["count"].help == "how many  [default: 3]"
    metavars = {name: option.metavar for name, option in options.items()}
    assert metavars["count"] == metavars["limit"] == "INTEGER"
    assert metavars["ratio"] == metavars["floor"] == "NUMBER"
    assert metavars["mode"] == "one|two words"
    assert metavars["bits"] == "4|8"
    assert metavars["sizes"] == "INTEGER,..."
    assert metavars["text"] == metavars["label"] == "TEXT"
    context = click.Context(click.Command("x", params=list(options.values())))
    shown = {name: option.get_help_record(context)[1] for name, option in options.items()}
    assert re.search(r"default: \(?3\b", shown["count"])
    assert re.search(r"default: \(?1,2\b", shown["sizes"])
    assert "default" not in shown["limit"]


@pytest.mark.parametrize("name", list(registry.entries("pass")))
def test_every_pass_round_trips(name):
    cls = registry.find("pass", name)
    assert spec.parse(name) == cls()
    assert spec.render(cls()) == name
    for field in dataclasses.fields(cls):
        text = f"{name}{{{field.name}={spec._text(field.default)!r}}}"
        assert spec.parse(text) == cls(), text
