"""Every shipped recipe, made tiny, from its file to a finished run: it builds, and each stage changes exactly its parts."""

from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from pal_audio import encoders
from pal_audio.errors import PalError
from pal_audio.model import load
from pal_audio.training.groups import GROUPS
from pal_audio.training.overlay import read_recipe
from pal_audio.training.recipe import load_recipe, says_data_alone
from pal_audio.training.run import train
from tests.training.shrink import overrides

SHIPPED = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
RECIPES = [path for path in SHIPPED if not says_data_alone(read_recipe(path))]  # the others are composed in tests/data/mixing
ARMS = ("plits", "lal", "pal", "lal-frozen-ffn", "lal-frozen-llm")
LLMS = {
    "llama-3.2-1b": "meta-llama/Llama-3.2-1B-Instruct",
    "llama-3.2-3b": "meta-llama/Llama-3.2-3B-Instruct",
    "qwen2.5-1.5b": "Qwen/Qwen2.5-1.5B-Instruct",
}


@pytest.fixture(autouse=True)
def another_precision_in_one_process() -> None:
    """Accelerate keeps one precision a process; the recipes differ in theirs."""
    AcceleratorState._reset_state(reset_partial_state=True)


def test_the_papers_comparison_is_complete() -> None:
    found = {path.stem for path in RECIPES}
    for slug, llm in LLMS.items():
        for arm in ARMS:
            recipe = load_recipe(RECIPES[0].with_name(f"curriculum-{slug}-{arm}.yaml"))
            assert recipe.name in found
            assert recipe.model.llm == llm
            assert recipe.model.preset == arm.partition("-")[0]
            assert len(recipe.stages) == 3
            later = [set(stage.train) - {"connector", "projector"} for stage in recipe.stages]
            assert not later[0]
            expected = {"lal-frozen-ffn": {"llm.attention", "llm.norm", "llm.embeddings"}, "lal-frozen-llm": set()}
            assert later[1] == later[2] == expected.get(arm, {"llm"})


@pytest.mark.filterwarnings("ignore:train. projector:UserWarning")  # PLITS has none; one word switches the preset
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_runs_and_each_stage_changes_exactly_its_parts(path: Path, tmp_path: Path) -> None:
    settings = overrides(path, tmp_path / "data")
    recipe = load_recipe(path, settings)
    if recipe.adapter is not None and recipe.adapter.type == "qlora":
        pytest.importorskip("bitsandbytes", reason="bitsandbytes, an optional extra, is not installed")
    run = train(path, settings, out=tmp_path / "run")
    ends = [load_file(run / f"checkpoints-{n}" / "00000002" / "model.safetensors") for n in range(len(recipe.stages))]
    for stage, before, after in zip(recipe.stages[1:], ends, ends[1:], strict=False):
        changed = {name for name, tensor in after.items() if not tensor.equal(before[name])}
        for part in stage.train:
            assert part == "projector" or any(GROUPS[part](name) for name in changed), part
        assert all(any(GROUPS[part](name) for part in stage.train) for name in changed)
    if recipe.model.is_whole:
        model, _ = load(run / "final")
        assert (model.config.adapter is None) == (recipe.adapter is None)
    for stage in recipe.stages:  # what later recipes name
        assert stage.objective != "text" or AutoModelForCausalLM.from_pretrained(run / "llm")
        assert not stage.of_encoder or encoders.parse({"type": "conv", "checkpoint": str(run / "encoders" / "audio")}).build()


def test_manifests_that_are_not_there_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PalError, match=r"data.train\[0\]: no such manifest data/openaqa/classification.*--set data.train.0"):
        train(RECIPES[0], out=tmp_path / "run")
    assert not (tmp_path / "run").exists(), "the next try, with the right path, must not find a begun run"
