"""docs/training.md names every key that a recipe may hold, and every part."""

from pathlib import Path

import pytest

from pal_audio.data import ManifestsConfig, SourceConfig
from pal_audio.model import ModelSpec
from pal_audio.model.adapters import AdapterConfig
from pal_audio.training.groups import GROUPS
from pal_audio.training.recipe import Recipe, Stage

TEXT = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("config", [Recipe, ModelSpec, Stage, AdapterConfig, ManifestsConfig, SourceConfig])
def test_every_key_is_described(config: type[Recipe]) -> None:
    missing = [key for key in config.model_fields if f"`{key}`" not in TEXT and f"{{{key}" not in TEXT]
    assert missing == []


def test_every_part_is_described() -> None:
    assert [part for part in GROUPS if f"`{part}`" not in TEXT] == []
