"""The page of integrations: its recipes' `model:` blocks are valid, and it has a section for every preset."""

import re
from pathlib import Path

import pytest
import yaml

from pal_audio.model import AudioConfig, preset
from pal_audio.model.presets import ENCODERS_OF, PRESETS

PAGE = (Path(__file__).parents[2] / "docs" / "integrations.md").read_text()
BLOCKS = [yaml.safe_load(block)["model"] for block in re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)]


@pytest.mark.parametrize("model", BLOCKS, ids=lambda model: model["preset"])
def test_blocks_are_valid(model: dict[str, object]) -> None:
    options = dict(model)
    name = str(options.pop("preset"))
    if name not in ENCODERS_OF:
        options["encoder"] = {"type": "conv"}
    AudioConfig.parse(preset(name, **options))  # type: ignore[arg-type]


def test_every_preset_has_its_section_and_block() -> None:
    assert set(re.findall(r"^## (.+)$", PAGE, flags=re.MULTILINE)) == set(PRESETS) == {model["preset"] for model in BLOCKS}
