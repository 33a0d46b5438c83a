"""Recipes: ready ones by name, and files."""

from __future__ import annotations

import pytest

from graphopt import recipe, registry, spec
from graphopt.errors import UsageError, UserError


@pytest.fixture(autouse=True)
def scale(drop_pass):
    drop_pass(
        "scale",
        """
        @dataclass(frozen=True)
        class Scale(Pass):
            factor: float = param(1.0, "by how much")

            def call(self, model):
                return Result(model, False)
        """,
    )


@pytest.fixture
def write(tmp_path):
    def made(text, name="r.yaml"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return made


def test_a_recipe_file(write):
    path = write("# two steps\nsteps:\n  - scale\n  - scale{factor=2}\n  - pass: scale\n    factor: 3\n")
    assert [spec.render(p) for p in recipe.load(path)] == ["scale", "scale{factor=2.0}", "scale{factor=3.0}"]


def test_an_empty_recipe(write):
    assert recipe.load(write("steps: []")) == []


@pytest.mark.parametrize("name", list(registry.entries("recipe")))
def test_every_ready_recipe_loads(name):
    assert registry.entry("recipe", name).summary
    for pass_ in recipe.load(name):
        assert spec.parse(spec.render(pass_)) == pass_


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a recipe is a mapping with a list of passes under 'steps'"),
        ("- scale", "a recipe is a mapping"),
        ("steps: scale", "a recipe is a mapping"),
        ("steps:\n", "a recipe is a mapping"),
        ("steps: [scale", "not a YAML recipe: "),
        ("steps: !!python/object/apply:os.getcwd []", "not a YAML recipe: "),
        ("\0", "not a YAML recipe: "),
    ],
)
def test_files_that_are_no_recipes(write, text, message):
    with pytest.raises(UserError, match=message) as error:
        recipe.load(write(text))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: [scael]", "unknown pass 'scael'; did you mean 'scale'"),
        ("steps: [3]", "recipe step 3 is neither"),
        ("steps: [{factor: 2}]", "is neither a pass specification"),
        ("steps: [{pass: scale, fcator: 2}]", "scale: unknown field 'fcator'; did you mean 'factor'"),
        ("steps: [{pass: scale, factor: two}]", "scale: factor: 'two' is not a number"),
        ("steps: [{pass: scale, 2: two}]", "scale: unknown field '2'"),
    ],
)
def test_steps_that_do_not_fit(write, text, message):
    with pytest.raises(UsageError, match=message):
        recipe.load(write(text))


def test_paths_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="cannot read the recipe: No such file"):
        recipe.load(str(tmp_path / "none.yaml"))
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(UserError, match="cannot read the recipe: Is a directory"):
        recipe.load(str(tmp_path / "folder.yaml"))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(UserError, match="not a YAML recipe"):
        recipe.load(str(tmp_path / "binary.yaml"))
    with pytest.raises(UsageError, match="unknown recipe 'defualt'; did you mean 'default'"):
        recipe.load("defualt")
