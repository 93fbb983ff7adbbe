"""A recipe over shards: gone back to a save inside an epoch and a buffer, it ends with the bits of a run that nobody stopped."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pal_audio.data.manifest import read_manifest
from pal_audio.data.shard_writing import write_shards
from pal_audio.errors import PalError
from pal_audio.training.preflight import plan_run
from pal_audio.training.run import train
from tests.training.shrink import write_clips


@pytest.fixture(scope="module")
def streamed(tmp_path_factory: pytest.TempPathFactory, recipe_text: str) -> Path:
    """The tiny recipe on shards of two sources, of which the second stage takes one."""
    folder = tmp_path_factory.mktemp("streamed")
    sets = folder / "sets"
    for name, num in (("a", 9), ("b", 6)):
        write_shards(read_manifest(write_clips(sets, name, num)), sets / name, 20_000)
    write_clips(sets, "t", 2)
    data = f"{{type: shards, train: [{sets}/a, {{shards: {sets}/b, weight: 1.5}}], test: [{sets}/t.jsonl], shuffle_buffer: 8}}"
    text = recipe_text.replace("{num_train: 24, num_test: 6, seconds: 2.0}", data)
    text = text.replace("name: second,", "name: second, sources: [b],").replace("steps: 6,", "epochs: 1.5,")
    (folder / "streamed.yaml").write_text(text)
    train(folder / "streamed.yaml", out=folder / "run")
    return folder


@pytest.mark.parametrize("kept", ["0/00000006", "1/00000003"])
def test_resumed_is_uninterrupted(streamed: Path, tmp_path: Path, kept: str) -> None:
    run, (stage, step) = tmp_path / "run", kept.split("/")
    shutil.copytree(streamed / "run", run)
    (run / "finished.json").unlink()
    shutil.rmtree(run / "final")
    for later in range(int(stage), 2):
        for checkpoint in (run / f"checkpoints-{later}").iterdir():
            if later > int(stage) or checkpoint.name > step:
                shutil.rmtree(checkpoint)
    assert (run / f"checkpoints-{stage}" / step).is_dir()
    train(streamed / "streamed.yaml", out=run, resume=True)
    whole, resumed = (load_file(folder / "final" / "model.safetensors") for folder in (streamed / "run", run))
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)


def test_budgets_and_unknown_sources_are_refused(streamed: Path, tmp_path: Path) -> None:
    recipe = streamed / "streamed.yaml"
    with pytest.raises(PalError, match="a stream makes batches of a number of examples; give `batch_size`"):
        train(recipe, ["stages.0.batch_size=null", "stages.0.batch_audio_s=10"], out=tmp_path / "run")
    with pytest.raises(PalError, match="no source is called 'c'; there are a, b"):
        train(recipe, ["stages.1.sources=[c]"], out=tmp_path / "run")


def test_the_plan_of_a_stream_has_no_activations_and_evaluations_work(streamed: Path, tmp_path: Path) -> None:
    """What the longest example is, a stream knows when it has come."""
    few = ["stages.0.epochs=null", "stages.0.steps=2", "stages.0.eval_every=1", "stages.1.steps=1"]
    plan = plan_run(streamed / "streamed.yaml", few, out=tmp_path / "run")
    assert [stage.memory.activations for stage in plan.stages] == [0, 0]
    assert plan.num_train == 18
    assert plan.example is not None
    run = train(streamed / "streamed.yaml", few, out=tmp_path / "run")
    assert len((run / "samples.jsonl").read_text().splitlines()) == 2


def test_shards_that_changed_are_refused_on_resume(streamed: Path, tmp_path: Path) -> None:
    shutil.copytree(streamed, tmp_path / "moved")
    recipe, run = tmp_path / "moved" / "streamed.yaml", tmp_path / "moved" / "run"
    (run / "finished.json").unlink()
    data = json.loads((run / "recipe.json").read_text())["data"]
    assert data.keys() == {str(streamed / "sets" / "t.jsonl"), "shards of a", "shards of b"}
    described = json.loads((run / "recipe.json").read_text())
    described["data"]["shards of b"] = "another"
    (run / "recipe.json").write_text(json.dumps(described))
    with pytest.raises(PalError, match="shards of b is not what"):
        train(recipe, out=run, resume=True)
