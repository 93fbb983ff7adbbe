"""docs/training.md names every key that a recipe may hold, and every part."""

from pathlib import Path

import pytest

from pal_audio.data import ManifestsConfig, SourceConfig, TextConfig, TextSourceConfig
from pal_audio.model import ModelSpec
from pal_audio.model.adapters import AdapterConfig
from pal_audio.training.groups import GROUPS
from pal_audio.training.objectives import OBJECTIVES
from pal_audio.training.recipe import HEAD, Recipe, Stage, load_recipe

TEXT = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "config", [Recipe, ModelSpec, Stage, AdapterConfig, ManifestsConfig, SourceConfig, TextConfig, TextSourceConfig]
)
def test_every_key_is_described(config: type[Recipe]) -> None:
    missing = [key for key in config.model_fields if f"`{key}`" not in TEXT and f"{{{key}" not in TEXT]
    assert missing == []


def test_every_part_is_described() -> None:
    assert [part for part in (*GROUPS, HEAD) if f"`{part}`" not in TEXT] == []


def test_every_objective_is_described() -> None:
    assert [
        name for name in OBJECTIVES if f"| `{name}` |" not in TEXT or f"objective: {name}" not in TEXT + "objective: answer"
    ] == []


@pytest.mark.parametrize("name", ["my-lm", "my-speech-encoder", "my-sound-encoder"])
def test_the_examples_of_objectives_are_recipes(name: str, tmp_path: Path) -> None:
    (block,) = [block for block in TEXT.split("```")[1::2] if f"name: {name}\n" in block]
    (tmp_path / "r.yaml").write_text(block.removeprefix("yaml"))
    assert load_recipe(tmp_path / "r.yaml").name == name
