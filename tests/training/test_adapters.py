"""Training adapters: gradients reach exactly what a stage names, runs resume to the same bits, and a run can be exported."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pal_audio import cli
from pal_audio.errors import PalError
from pal_audio.model import load
from pal_audio.training.groups import GROUPS, parameter_groups
from pal_audio.training.recipe import load_recipe
from pal_audio.training.run import train
from tests.tiny import batch, message, noise, tiny_model
from tests.training.broken_off import broken_off

RECIPE = """
name: tiny
model:
  preset: pal
  encoder: {type: conv, num_mels: 16, channels: [4, 8], time_strides: [4, 2], hidden_size: 16, num_layers: 1, num_heads: 2}
  summary: {type: pool, num_tokens: 2}
  llm: {model_type: llama, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 2, num_attention_heads: 4,
        num_key_value_heads: 2, max_position_embeddings: 512, tokenizer: {vocab_size: 300}}
adapter: {type: dora, r: 2, dropout: 0.2, target: all_linear}
data: {num_train: 12, num_test: 2, seconds: 2.0}
stages:
  - {name: first, train: {connector: 1e-3, projector: 1e-3}, steps: 3, batch_size: 4, save_every: 2}
  - {name: second, train: {connector: 1e-3, llm.adapter: 1e-2}, steps: 5, batch_size: 4, save_every: 2}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE)
    return path


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("arm", ["plits", "lal", "pal"])
@pytest.mark.parametrize(
    "parts",
    [{"llm.adapter"}, {"connector", "llm.adapter"}, {"llm"}, {"llm.ffn", "llm.adapter"}, {"encoder"}],
    ids=lambda parts: " ".join(sorted(parts)),
)
def test_gradients_reach_exactly_the_stages_parts(arm: str, kind: str, parts: set[str]) -> None:
    """Invariant 7, for every preset and adapter: backward through a real batch."""
    model, processor = tiny_model("llama", arm, adapter={"type": kind, "r": 2, "target": "all_linear"})
    groups = parameter_groups(model, dict.fromkeys(parts, 1e-3), 0.1)
    model.train()
    conversation = [*message(noise(0.6)), {"role": "assistant", "content": "a bell"}]
    model(**batch(processor, [conversation], return_labels=True), use_cache=False).loss.backward()
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert reached == {name for name, _ in model.named_parameters() if any(GROUPS[part](name) for part in parts)}
    for part in parts:
        assert any(bool(p.grad.any()) for name, p in model.named_parameters() if GROUPS[part](name) and p.grad is not None)
    grouped = {id(parameter) for group in groups for parameter in group["params"]}  # type: ignore[attr-defined]
    assert grouped == {id(parameter) for name, parameter in model.named_parameters() if name in reached}


def test_the_part_is_the_adapter_and_nothing_else() -> None:
    model, _ = tiny_model("llama", "lal", adapter={"type": "dora", "target": ["q_proj", "v_proj"]})
    kinds = {name.split(".")[-3] for name, _ in model.named_parameters() if GROUPS["llm.adapter"](name)}
    assert kinds == {"lora_A", "lora_B", "lora_magnitude_vector"}
    plain, _ = tiny_model("llama", "lal")
    with pytest.raises(PalError, match=r"'llm.adapter' names no parameter \(the recipe has no `adapter:`"):
        parameter_groups(plain, {"llm.adapter": 1e-3}, 0.0)


def test_a_run_keeps_the_base_frozen_and_saves_what_loads(recipe: Path, tmp_path: Path) -> None:
    run = train(recipe, out=tmp_path / "run")
    first = load_file(run / "checkpoints-0" / "00000003" / "model.safetensors")
    final = load_file(run / "final" / "model.safetensors")
    changed = {name for name, tensor in final.items() if not tensor.equal(first[name])}
    assert changed == {name for name in final if GROUPS["llm.adapter"](name) or GROUPS["connector"](name)}
    untouched = [name for name in first if ".lora_B." in name]
    assert untouched
    assert not any(first[name].any() for name in untouched), "it is the identity until a stage trains it"
    assert json.loads((run / "recipe.json").read_text())["recipe"]["adapter"]["type"] == "dora"


def test_an_interrupted_run_resumes_to_the_same_bits(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(recipe, out=tmp_path / "whole")
    broken = broken_off(recipe, tmp_path / "broken", monkeypatch, at=(("first", 3), ("second", 4)))
    ours, theirs = (load_file(run / "final" / "model.safetensors") for run in (whole, broken))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_pal_export(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(recipe, ["stages.0.steps=1", "stages.1.steps=2"], out=tmp_path / "run")
    kept, merged = tmp_path / "kept", tmp_path / "merged"
    capsys.readouterr()
    assert cli.main(["export", str(run), str(kept)]) == 0
    assert cli.main(["export", str(run), str(merged), "--merge"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{kept}\n{merged}\n"
    assert err == ""
    assert cli.main(["export", str(run), str(merged), "--merge"]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert cli.main(["export", str(run), str(merged), "--merge", "--overwrite"]) == 0
    model, processor = load(run / "final")
    inputs = batch(processor, [message(noise(0.6))])
    with torch.no_grad():
        expected = model(**inputs).logits
        for folder, adapted in ((kept, True), (merged, False)):
            again, _ = load(folder)
            assert (again.config.adapter is not None) == adapted
            torch.testing.assert_close(again(**inputs).logits, expected)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("adapter=null", "trains an adapter, but the recipe has none"),
        ("adapter.rank=4", "unknown key 'rank'"),
        ("adapter.type=lorra", "adapter.type"),
        ("stages.1.sources=[scene]", "no source is called 'scene'; there are scenes"),
        ("data.type=manifest", "data: type must be scenes, mix, manifests or shards"),
        ("data.type=manifests", "unknown key 'num_train'"),
    ],
)
def test_what_is_wrong_is_one_line(recipe: Path, override: str, words: str) -> None:
    with pytest.raises(PalError, match=words) as caught:
        load_recipe(recipe, [override])
    assert "\n" not in str(caught.value)


def test_an_adapter_that_no_stage_trains_is_said(recipe: Path) -> None:
    with pytest.warns(UserWarning, match=r"no stage trains 'llm.adapter'"):
        load_recipe(recipe, ["stages.1.train={connector: 1e-3}"])
