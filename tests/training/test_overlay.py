"""Recipes that stand on another."""

from pathlib import Path

import pytest

from pal_audio.commands import recipes
from pal_audio.errors import PalError
from pal_audio.training.overlay import read_recipe
from pal_audio.training.recipe import load_recipe

BASE = "name: base\nmodel: {preset: lal, lal: {layers: all}}\nstages: [{train: {llm: 1.0, connector: 2.0}}, {steps: 5}]\n"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text(BASE)
    return tmp_path / "base.yaml"


def overlay(base: Path, content: str) -> Path:
    path = base.with_name("over.yaml")
    path.write_text(f"base: {base.name}\n{content}")
    return path


def test_mappings_are_merged_null_removes_and_numbers_change_list_entries(base: Path) -> None:
    path = overlay(base, "name: over\nmodel: {preset: plits, lal: null}\nstages: {0: {train: {llm: null, llm.ffn: 3.0}}}\n")
    assert read_recipe(path) == {
        "name": "over",
        "model": {"preset": "plits"},
        "stages": [{"train": {"connector": 2.0, "llm.ffn": 3.0}}, {"steps": 5}],
    }
    assert read_recipe(overlay(base, "stages: [{steps: 1}]"))["stages"] == [{"steps": 1}]
    assert read_recipe(base)["name"] == "base"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("base: over.yaml", "cannot be read|circle"),
        ("base: none.yaml", "no such recipe none.yaml"),
        ("base: ../quickstart.yaml", "no such recipe"),
        ("base: 3", "must be the name"),
        ("base: [a]", "must be the name"),
        ("base: base.yaml\nstages: {2: {steps: 1}}", "2 is no entry of the base's list of 2"),
        ("base: base.yaml\nstages: {first: {steps: 1}}", "'first' is no entry"),
    ],
)
def test_what_is_wrong_is_one_line(base: Path, content: str, words: str) -> None:
    path = base.with_name("over.yaml")
    path.write_text(content)
    with pytest.raises(PalError, match=words) as caught:
        read_recipe(path)
    assert "\n" not in str(caught.value)


def test_a_base_may_be_a_shipped_recipe_and_keys_are_still_checked(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("base: quickstart.yaml\nname: mine\nmodel: {preset: pal}\n")
    assert load_recipe(path).model.preset == "pal"
    assert load_recipe(path, ["stages.0.steps=3"]).stages[0].steps == 3
    path.write_text("base: quickstart.yaml\nmodel: {presett: pal}\n")
    with pytest.raises(PalError, match="did you mean 'preset'"):
        load_recipe(path)


def test_a_copy_of_an_overlay_stands_alone(tmp_path: Path) -> None:
    name = "curriculum-qwen2.5-1.5b-lal-frozen-ffn"
    recipes.copy(name, tmp_path / "mine.yaml")
    text = (tmp_path / "mine.yaml").read_text()
    assert text.startswith("# The three-stage curriculum, Qwen2.5")
    assert "base:" not in text
    assert load_recipe(tmp_path / "mine.yaml") == load_recipe(recipes.shipped(name))
