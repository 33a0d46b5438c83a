"""`passes`: the list, and one pass with its fields."""

from __future__ import annotations

import pytest

from graphopt import registry


@pytest.fixture(autouse=True)
def example(drop_pass):
    drop_pass(
        "example",
        """
        @dataclass(frozen=True)
        class Example(Pass):
            ratio: float = param(0.5, "share of [channels] to go, 0 to 1")
            names: tuple[str, ...] = param(("a", "b"), "which ones")
            mode: Literal["l1", "l2"] = param("l2", "norm")
            contract = Contract("lossy", min_sqnr=7.0)

            def call(self, model):
                return Result(model, False)
        """,
    )


def test_the_list(graphopt):
    ran = graphopt("passes", "--json")
    assert (ran.code, ran.err) == (0, "")
    assert list(ran.json) == ["passes"]
    assert [row["name"] for row in ran.json["passes"]] == list(registry.entries("pass"))
    assert {"name": "example", "family": "dropped", "summary": "A pass called example"} in ran.json["passes"]
    shown = graphopt("passes")
    assert (shown.code, shown.err) == (0, "")
    assert "A pass called example" in shown.out
    assert len(shown.out.splitlines()) == len(ran.json["passes"]), "one line per pass"


def test_one_pass(graphopt):
    ran = graphopt("passes", "example", "--json")
    assert (ran.code, ran.err) == (0, "")
    assert ran.json["name"] == "example"
    assert ran.json["contract"] == {"kind": "lossy", "rtol": 1e-4, "min_sqnr": 7.0, "timed": False, "improves": False}
    assert ran.json["description"] == "A pass called example."
    assert [(f["name"], f["default"], f["help"]) for f in ran.json["fields"]] == [
        ("ratio", 0.5, "share of [channels] to go, 0 to 1"),
        ("names", ["a", "b"], "which ones"),
        ("mode", "l2", "norm"),
    ]
    shown = graphopt("passes", "example")
    assert (shown.code, shown.err) == (0, "")
    for text in ("example (lossy)", "ratio: NUMBER = 0.5", "share of [channels] to go, 0 to 1", "('a', 'b')"):
        assert text in shown.out, text


def test_a_pass_that_does_not_exist(graphopt):
    ran = graphopt("passes", "exmaple")
    assert (ran.code, ran.error) == (2, "unknown pass 'exmaple'; did you mean 'example'?")
