"""benchmarks/lab/reuse.py: language model and encoders of another lab."""

import json
from pathlib import Path

import pytest
from benchmarks.lab.__main__ import RECIPES
from benchmarks.lab.flow import Flow
from benchmarks.lab.grid import grid_steps
from benchmarks.lab.recipes import Shelf
from benchmarks.lab.reuse import take_models

from pal_audio.errors import PalError
from pal_audio.training.recipe import load_recipe


def packed(folder: Path, *names: str) -> Path:
    """What `pack` copies of models made by the lab's own recipes."""
    for name in names:
        run = folder / "runs" / f"lab-{name}"
        made = run / ("llm" if name == "lm" else "encoders")
        made.mkdir(parents=True)
        (made / "config.json").write_text("{}")
        told = load_recipe(RECIPES / f"{name}.yaml").model_dump(mode="json") | {"workers": 32, "trackers": []}
        (run / "recipe.json").write_text(json.dumps({"recipe": told}))
    (folder / "marks").mkdir(exist_ok=True)
    (folder / "marks" / "lab-lm.json").write_text('{"seconds": 409.0}')
    return folder


def test_what_another_lab_made_is_not_made_again(tmp_path: Path) -> None:
    there, out = packed(tmp_path / "small", "lm", "encoder-unified"), tmp_path / "out"
    flow = Flow(tmp_path, out, Shelf(RECIPES), arms=["lal", "pal-multi"])
    assert "text-world" in {step.name for step in grid_steps(flow)}
    assert take_models(flow, there) == ["lab-encoder-unified", "lab-lm"]
    steps = {step.name: step for step in grid_steps(flow)}
    assert steps["lab-lm"].done
    assert steps["lab-encoder-unified"].done
    assert not steps["lab-encoder-speech"].done
    assert "text-world" not in steps, "no step needs it"
    assert json.loads(flow.mark("lab-lm").read_text())["seconds"] == 409.0
    (out / "runs" / "lab-lm" / "llm" / "config.json").write_text("ours")
    assert take_models(flow, there) == [], "what is there is kept"
    assert (out / "runs" / "lab-lm" / "llm" / "config.json").read_text() == "ours"


def test_models_of_another_recipe_are_refused_before_anything_is_copied(tmp_path: Path) -> None:
    there = packed(tmp_path / "small", "lm", "encoder-unified")
    told = there / "runs" / "lab-lm" / "recipe.json"
    content = json.loads(told.read_text())
    content["recipe"]["stages"][0]["steps"] = 2000
    told.write_text(json.dumps(content))
    flow = Flow(tmp_path, tmp_path / "out", Shelf(RECIPES), arms=["lal"])
    with pytest.raises(PalError, match=r"lab-lm.recipe\.json: trained by another recipe than .*lm\.yaml \(stages differ\)"):
        take_models(flow, there)
    assert not (tmp_path / "out" / "runs").exists()
    with pytest.raises(
        PalError, match=r"no model of a lab is there \(looked for runs/NAME/recipe\.json of lab-encoder-unified, lab-lm\)"
    ):
        take_models(flow, tmp_path / "elsewhere")
